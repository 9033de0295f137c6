//! A service on loopback whose answers the test makes up, and which keeps what it was asked.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Self-signed for 127.0.0.1, valid for a hundred years; it protects nothing but tests.
pub(in crate::blob) const CERTIFICATE: &[u8] = include_bytes!("loopback/cert.pem");
const PRIVATE_KEY: &[u8] = include_bytes!("loopback/key.pem");

/// What was asked.
#[derive(Clone, Debug, Default)]
pub(in crate::blob) struct Request {
    pub(in crate::blob) method: String,
    /// Path, percent-encoded.
    pub(in crate::blob) path: String,
    pub(in crate::blob) query: String,
    /// By lower-case name.
    pub(in crate::blob) headers: BTreeMap<String, String>,
    pub(in crate::blob) body: Vec<u8>,
}

impl Request {
    pub(in crate::blob) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Whether the signature covers header `name`.
    pub(in crate::blob) fn signs(&self, name: &str) -> bool {
        let signed = self
            .header("authorization")
            .split("SignedHeaders=")
            .nth(1)
            .unwrap_or_default();
        signed
            .split(',')
            .next()
            .unwrap_or_default()
            .split(';')
            .any(|header| header == name)
    }
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub(in crate::blob) struct Answer {
    /// 0 breaks the connection instead.
    pub(in crate::blob) status: u16,
    pub(in crate::blob) headers: Vec<(&'static str, String)>,
    pub(in crate::blob) body: Vec<u8>,
    /// Bytes of the body that are sent before the connection breaks.
    pub(in crate::blob) cut: Option<usize>,
    /// Length that is claimed instead of the body's.
    pub(in crate::blob) claim: Option<u64>,
}

impl Answer {
    pub(in crate::blob) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            body: body.into(),
            ..Self::default()
        }
    }

    /// A refusal as S3 words it.
    pub(in crate::blob) fn refused(status: u16, code: &str, message: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>{message}</Message><RequestId>7</RequestId></Error>"
        );
        Self {
            status,
            body: body.into(),
            ..Self::default()
        }
    }

    pub(in crate::blob) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// The service. Its threads end with the process.
pub(in crate::blob) struct Server {
    pub(in crate::blob) url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

type Handler = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

impl Server {
    pub(in crate::blob) fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::listen("http", Arc::new(answer), |stream| Box::new(stream))
    }

    /// With TLS under [`CERTIFICATE`].
    pub(in crate::blob) fn start_tls(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let chain = CertificateDer::pem_slice_iter(CERTIFICATE)
            .map(Result::unwrap)
            .collect();
        let key = PrivateKeyDer::from_pem_slice(PRIVATE_KEY).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let config = Arc::new(config);
        Self::listen("https", Arc::new(answer), move |stream| {
            let connection = ServerConnection::new(config.clone()).unwrap();
            Box::new(StreamOwned::new(connection, stream))
        })
    }

    fn listen(scheme: &str, answer: Handler, wrap: impl Fn(TcpStream) -> Box<dyn Stream> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, answer, kept) = (wrap(stream.unwrap()), answer.clone(), kept.clone());
                thread::spawn(move || serve(stream, &answer, &kept));
            }
        });
        Self { url, requests }
    }

    /// What was asked so far, the question for `.storageconfig` left out.
    pub(in crate::blob) fn requests(&self) -> Vec<Request> {
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .filter(|r| !r.path.ends_with("/.storageconfig"))
            .cloned()
            .collect()
    }
}

trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

fn serve(stream: Box<dyn Stream>, answer: &Handler, kept: &Mutex<Vec<Request>>) {
    let mut stream = BufReader::new(stream);
    while let Ok(Some(request)) = read(&mut stream) {
        let mut told = answer(&request);
        let is_head = request.method == "HEAD";
        kept.lock().unwrap().push(request);
        let len = told.claim.unwrap_or(told.body.len() as u64);
        if told.status == 0 {
            return;
        }
        let mut head = format!("HTTP/1.1 {} Some Reason\r\ncontent-length: {len}\r\n", told.status);
        for (name, value) in &told.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        told.body.truncate(told.cut.unwrap_or(usize::MAX));
        if is_head {
            told.body.clear();
        }
        let stream = stream.get_mut();
        let sent = stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(&told.body));
        if sent.and_then(|()| stream.flush()).is_err() || told.cut.is_some() {
            return;
        }
    }
}

fn read(stream: &mut BufReader<Box<dyn Stream>>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let mut request = Request {
        method: words.next().unwrap_or_default().into(),
        ..Request::default()
    };
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    (request.path, request.query) = (path.into(), query.into());
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        request.headers.insert(name.to_lowercase(), value.trim().into());
    }
    let len = request.header("content-length").parse().unwrap_or(0);
    request.body = vec![0; len];
    stream.read_exact(&mut request.body)?;
    Ok(Some(request))
}
