//! A front that speaks TLS and passes requests on in plain, one after the other on each connection.

use std::io::{self, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::http::{self, Framing, Head};
use crate::{Failure, Result};

/// The authority that signed the certificate of every front, as PEM.
pub const AUTHORITY: &str = include_str!("../../certs/ca.pem");

/// Another authority, which signed nothing, as PEM.
pub const OTHER_AUTHORITY: &str = include_str!("../../certs/other-ca.pem");

const CERTIFICATE: &str = include_str!("../../certs/server.pem");
const KEY: &str = include_str!("../../certs/server.key");

/// A running front. Takes no more connections when dropped.
#[derive(Debug)]
pub struct Front {
    port: u16,
    stop: Arc<AtomicBool>,
}

impl Front {
    /// Starts a front for `upstream`, a `host:port` that speaks plain HTTP.
    ///
    /// # Errors
    /// When there is no port to listen on.
    pub fn start(upstream: &str) -> Result<Self> {
        let config = Arc::new(config().map_err(Failure::at("set TLS up"))?);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Failure::at("listen for TLS"))?;
        let port = listener.local_addr().map_err(Failure::at("name the front"))?.port();
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, upstream) = (Arc::clone(&stop), upstream.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (config, upstream) = (Arc::clone(&config), upstream.clone());
                // A client that does not like the certificate ends the connection: no error of ours.
                thread::spawn(move || _ = serve(config, client, &upstream));
            }
        });
        Ok(Self { port, stop })
    }

    /// `https://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("https://{}", self.address())
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)); // wakes the one who accepts
    }
}

/// What a server with the certificate of the tests needs.
pub(crate) fn config() -> std::result::Result<ServerConfig, Box<dyn std::error::Error>> {
    let certificates = CertificateDer::pem_slice_iter(CERTIFICATE.as_bytes()).collect::<std::result::Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_no_client_auth().with_single_cert(certificates, key)?)
}

fn serve(config: Arc<ServerConfig>, client: TcpStream, upstream: &str) -> io::Result<()> {
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut client = BufReader::new(StreamOwned::new(connection, client));
    let mut server = BufReader::new(TcpStream::connect(upstream)?);
    while let Some(head) = Head::read(&mut client)? {
        if head.field("expect").is_some() {
            client.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            client.get_mut().flush()?;
        }
        let method = head.first.split(' ').next().unwrap_or_default().to_owned();
        server.get_mut().write_all(&head.to_bytes())?;
        http::pump(&mut client, head.request_body()?, Framing::Kept, &mut |piece| {
            server.get_mut().write_all(piece)
        })?;
        let head = loop {
            match Head::read(&mut server)? {
                Some(head) if head.status() < 200 => {}
                Some(head) => break head,
                None => return Ok(()),
            }
        };
        client.get_mut().write_all(&head.to_bytes())?;
        http::pump(&mut server, head.answer_body(&method)?, Framing::Kept, &mut |piece| {
            client.get_mut().write_all(piece)
        })?;
        client.get_mut().flush()?;
    }
    Ok(())
}
