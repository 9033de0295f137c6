//! A CSI SnapshotMetadata service in this process: gRPC over TLS, over plain TCP, or on a unix socket.
//!
//! | module | what it is |
//! |---|---|
//! | [`listing`] | what drivers answer: pages of blocks, from an offset on |
//! | `wire` | requests and frames of gRPC, written from its description |
//!
//! A function says what happens on each stream, so that a test can play any misbehaviour. It stands on the HTTP/2 layer alone and
//! shares no code with our client, nor with the library that is built on.
//!
//! ```
//! use blockferry_tests::cbt_server::{CbtServer, Play, listing::Listing};
//!
//! let listing = Listing::fixed(1 << 30, 4096, &[0, 7, 8]);
//! let server = CbtServer::tls(move |_, asked| Play::whole(listing.pages(asked.starting_offset))).unwrap();
//! assert!(server.address().starts_with("127.0.0.1:"));
//! ```

pub mod listing;
mod wire;

use std::future::poll_fn;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::{Builder, Runtime};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

pub use crate::proxy::tls::{AUTHORITY, OTHER_AUTHORITY};
use crate::{Failure, Result};

/// Status codes of gRPC that the contract speaks of.
pub mod code {
    #![expect(missing_docs, reason = "the names are those of gRPC")]
    pub const OK: u32 = 0;
    pub const CANCELLED: u32 = 1;
    pub const INVALID_ARGUMENT: u32 = 3;
    pub const DEADLINE_EXCEEDED: u32 = 4;
    pub const NOT_FOUND: u32 = 5;
    pub const PERMISSION_DENIED: u32 = 7;
    pub const FAILED_PRECONDITION: u32 = 9;
    pub const OUT_OF_RANGE: u32 = 11;
    pub const INTERNAL: u32 = 13;
    pub const UNAVAILABLE: u32 = 14;
    pub const UNAUTHENTICATED: u32 = 16;
}

/// What a client asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Path of the call.
    pub path: String,
    /// The token; empty on the socket of a driver.
    pub token: String,
    /// Namespace; empty on the socket of a driver.
    pub namespace: String,
    /// Name or handle of the snapshot.
    pub snapshot: String,
    /// The base of a delta.
    pub base: Option<String>,
    /// First byte of interest.
    pub starting_offset: u64,
    /// Blocks in one message.
    pub max_results: u64,
}

/// How a stream ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With a status and its text.
    Status(u32, String),
    /// As if it were complete, but without a status: what a proxy leaves of a stream.
    NoStatus,
    /// The stream is reset.
    Reset,
    /// The connection breaks.
    Hangup,
    /// It does not.
    Silence,
}

/// What happens on one stream.
pub struct Play {
    /// Messages, made while they are sent.
    pub pages: Box<dyn Iterator<Item = Bytes> + Send>,
    /// And then.
    pub ending: Ending,
}

impl Play {
    /// These pages, then this status.
    pub fn new<P>(pages: P, code: u32, text: &str) -> Self
    where
        P: IntoIterator<Item = Bytes>,
        P::IntoIter: Send + 'static,
    {
        Self::ending(pages, Ending::Status(code, text.to_owned()))
    }

    /// These pages, then this end.
    pub fn ending<P>(pages: P, ending: Ending) -> Self
    where
        P: IntoIterator<Item = Bytes>,
        P::IntoIter: Send + 'static,
    {
        Self {
            pages: Box::new(pages.into_iter()),
            ending,
        }
    }

    /// These pages, and that was all.
    pub fn whole<P>(pages: P) -> Self
    where
        P: IntoIterator<Item = Bytes>,
        P::IntoIter: Send + 'static,
    {
        Self::new(pages, code::OK, "")
    }

    /// Nothing but a status.
    pub fn status(code: u32, text: &str) -> Self {
        Self::new([], code, text)
    }
}

/// Says what happens on the stream of this number, the first being 0.
type Script = dyn Fn(usize, &Asked) -> Play + Send + Sync;

struct Shared {
    script: Box<Script>,
    streams: AtomicUsize,
    asked: Mutex<Vec<Asked>>,
}

/// A running service. It ends, with all its streams, when dropped.
pub struct CbtServer {
    address: String,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl CbtServer {
    /// A service with the certificate of the tests.
    ///
    /// # Errors
    /// When there is no port to listen on.
    pub fn tls(script: impl Fn(usize, &Asked) -> Play + Send + Sync + 'static) -> Result<Self> {
        let mut config = crate::proxy::tls::config().map_err(Failure::at("set TLS up"))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self::tcp(script, Some(TlsAcceptor::from(Arc::new(config))))
    }

    /// A service that speaks no TLS.
    ///
    /// # Errors
    /// When there is no port to listen on.
    pub fn plain(script: impl Fn(usize, &Asked) -> Play + Send + Sync + 'static) -> Result<Self> {
        Self::tcp(script, None)
    }

    /// A driver on its socket.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn unix(path: &Path, script: impl Fn(usize, &Asked) -> Play + Send + Sync + 'static) -> Result<Self> {
        let listener = UnixListener::bind(path).map_err(Failure::at(format!("listen on {}", path.display())))?;
        listener
            .set_nonblocking(true)
            .map_err(Failure::at("set the socket up"))?;
        let server = Self::new(path.display().to_string(), script)?;
        let shared = Arc::clone(&server.shared);
        server.runtime().spawn(async move {
            let listener = tokio::net::UnixListener::from_std(listener).expect("in the runtime");
            while let Ok((socket, _)) = listener.accept().await {
                start(socket, &shared);
            }
        });
        Ok(server)
    }

    fn tcp(script: impl Fn(usize, &Asked) -> Play + Send + Sync + 'static, tls: Option<TlsAcceptor>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Failure::at("listen"))?;
        listener
            .set_nonblocking(true)
            .map_err(Failure::at("set the socket up"))?;
        let address = listener.local_addr().map_err(Failure::at("name the service"))?;
        let server = Self::new(address.to_string(), script)?;
        let shared = Arc::clone(&server.shared);
        server.runtime().spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("in the runtime");
            while let Ok((socket, _)) = listener.accept().await {
                let (tls, shared) = (tls.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let _ = socket.set_nodelay(true); // only faster
                    match tls {
                        None => start(socket, &shared),
                        // A client that does not like the certificate ends the connection: no error of ours.
                        Some(tls) => {
                            if let Ok(socket) = tls.accept(socket).await {
                                start(socket, &shared);
                            }
                        }
                    }
                });
            }
        });
        Ok(server)
    }

    fn new(address: String, script: impl Fn(usize, &Asked) -> Play + Send + Sync + 'static) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Ok(Self {
            address,
            shared: Arc::new(Shared {
                script: Box::new(script),
                streams: AtomicUsize::new(0),
                asked: Mutex::new(Vec::new()),
            }),
            runtime: Some(runtime.map_err(Failure::at("start the service"))?),
        })
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("there until dropped")
    }

    /// `127.0.0.1:PORT`, or the path of the socket.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What was asked so far, one entry a stream.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for CbtServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Serves one connection in the background.
fn start<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(socket: S, shared: &Arc<Shared>) {
    let (shared, hangup) = (Arc::clone(shared), Arc::new(OnceLock::new()));
    let own = Arc::clone(&hangup);
    let task = tokio::spawn(async move {
        // Errors here are clients that went away.
        let Ok(mut connection) = h2::server::handshake(socket).await else {
            return;
        };
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(answer(request, respond, Arc::clone(&shared), Arc::clone(&own)));
        }
    });
    let _ = hangup.set(task.abort_handle());
}

/// Plays one stream; ends silently when the client has gone.
async fn answer(
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    shared: Arc<Shared>,
    hangup: Arc<OnceLock<AbortHandle>>,
) {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    while let Some(Ok(part)) = body.data().await {
        let _ = body.flow_control().release_capacity(part.len());
        bytes.extend(part);
    }
    let asked = wire::parse(&path, &bytes);
    shared
        .asked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(asked.clone());
    let number = shared.streams.fetch_add(1, Ordering::SeqCst);
    let play = (shared.script)(number, &asked);
    let _ = perform(play, respond, &hangup).await;
}

async fn perform(
    play: Play,
    mut respond: SendResponse<Bytes>,
    hangup: &OnceLock<AbortHandle>,
) -> std::result::Result<(), h2::Error> {
    let Play { pages, ending } = play;
    let mut pages = pages.peekable();
    let mut head = Response::new(());
    head.headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    if let (Ending::Status(code, text), None) = (&ending, pages.peek()) {
        // A stream without a message has its status in the head, as servers in Go send it.
        head.headers_mut().extend(status(*code, text));
        respond.send_response(head, true)?;
        return Ok(());
    }
    let mut stream = respond.send_response(head, false)?;
    for page in pages {
        send(&mut stream, wire::frame(&page)).await?;
        // The page goes out before the next is made, which may take a script as long as it likes.
        tokio::task::yield_now().await;
    }
    match ending {
        Ending::Status(code, text) => stream.send_trailers(status(code, &text))?,
        Ending::NoStatus => stream.send_data(Bytes::new(), true)?,
        Ending::Reset => stream.send_reset(Reason::INTERNAL_ERROR),
        Ending::Hangup => {
            if let Some(connection) = hangup.get() {
                connection.abort();
            }
        }
        Ending::Silence => {
            let _ = poll_fn(|cx| stream.poll_reset(cx)).await;
        }
    }
    Ok(())
}

fn status(code: u32, text: &str) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert("grpc-status", HeaderValue::from(code));
    if let Ok(text) = HeaderValue::from_str(text) {
        map.insert("grpc-message", text);
    }
    map
}

/// Sends `bytes` as the client takes them.
async fn send(stream: &mut SendStream<Bytes>, mut bytes: Bytes) -> std::result::Result<(), h2::Error> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        if stream.capacity() == 0 && poll_fn(|cx| stream.poll_capacity(cx)).await.transpose()?.is_none() {
            return Err(Reason::CANCEL.into());
        }
        let part = bytes.split_to(stream.capacity().min(bytes.len()));
        if !part.is_empty() {
            stream.send_data(part, false)?;
        }
    }
    Ok(())
}
