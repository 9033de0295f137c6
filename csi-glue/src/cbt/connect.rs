//! Connections: TLS to a sidecar, or the unix socket of a driver.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use super::refusal::Refusal;

/// A connection that is not there after 10 s would not be there after 60.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Bytes on their way in one stream. At 1 GB/s and 2 ms there and back 2 MB are under way; twice that keeps the line full.
const WINDOW: u32 = 4 << 20;

/// A peer that is gone is noticed after 60 s of silence and four unanswered probes. Probes of TCP, not of HTTP/2: servers of
/// gRPC end connections whose client pings more often than every five minutes.
const KEEPALIVE: Duration = Duration::from_secs(60);
const PROBE: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;

/// Where a service is, checked.
#[derive(Clone)]
pub(super) enum Target {
    /// `host:port`, the name its certificate has to bear, and whom to believe.
    Tls {
        host: String,
        port: u16,
        name: ServerName<'static>,
        config: Arc<ClientConfig>,
    },
    /// A socket.
    Unix(PathBuf),
}

/// Why there is no connection.
pub(super) enum Failure {
    /// Worth another try.
    Passing(String),
    /// The other side is not whom it should be.
    Untrusted(String),
}

impl Target {
    /// Checks `address` (`host:port`, an IPv6 address in brackets) and `ca_pem`.
    pub(super) fn tls(address: &str, ca_pem: &[u8]) -> Result<Self, Refusal> {
        let setting = |what: String| Refusal::Setting(what);
        let bad = || setting(format!("{address:?} is no address of a service; write HOST:PORT"));
        let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().map_err(|_| bad())?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| bad())?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem) {
            let certificate = certificate.map_err(|e| setting(format!("read the certificate authority: {e}")))?;
            let added = roots.add(certificate);
            added.map_err(|e| setting(format!("use the certificate authority: {e}")))?;
        }
        if roots.is_empty() {
            return Err(setting("the certificate authority holds no certificate in PEM".into()));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|e| setting(format!("set TLS up: {e}")))?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self::Tls {
            host: host.to_owned(),
            port,
            name,
            config: Arc::new(config),
        })
    }

    /// The socket at `path`.
    pub(super) fn unix(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }

    /// A new connection. Each stream has its own: they are minutes long, and one that broke leaves nothing behind.
    pub(super) async fn connect(&self) -> Result<Channel, Failure> {
        let endpoint = self.endpoint().map_err(|e| Failure::Passing(chain(&e)))?;
        let connecting = endpoint.connect_with_connector(Connector(self.clone()));
        connecting.await.map_err(|e| match untrusted(&e) {
            Some(why) => Failure::Untrusted(why),
            None => Failure::Passing(chain(&e)),
        })
    }

    fn endpoint(&self) -> Result<Endpoint, tonic::transport::Error> {
        // Scheme and authority of the requests. The connection is made below, whatever they are.
        let uri = match self {
            Self::Tls { host, port, .. } if host.contains(':') => format!("https://[{host}]:{port}"),
            Self::Tls { host, port, .. } => format!("https://{host}:{port}"),
            Self::Unix(_) => "http://localhost".to_owned(),
        };
        Ok(Endpoint::from_shared(uri)?
            .connect_timeout(CONNECT_MAX)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW))
    }

    async fn open(self) -> io::Result<Stream> {
        match self {
            Self::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path).await?)),
            Self::Tls {
                host,
                port,
                name,
                config,
            } => {
                let socket = TcpStream::connect((host.as_str(), port)).await?;
                socket.set_nodelay(true)?;
                let keepalive = socket2::TcpKeepalive::new()
                    .with_time(KEEPALIVE)
                    .with_interval(PROBE)
                    .with_retries(PROBES);
                socket2::SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
                let stream = TlsConnector::from(config).connect(name, socket).await?;
                Ok(Stream::Tls(Box::new(stream)))
            }
        }
    }
}

/// What the HTTP client asks for a connection.
struct Connector(Target);

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Stream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let target = self.0.clone();
        Box::pin(async { Ok(TokioIo::new(target.open().await?)) })
    }
}

/// Either kind of connection.
enum Stream {
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

macro_rules! either {
    ($stream:expr, $name:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Tls(stream) => {
                let $name = Pin::new(&mut **stream);
                $call
            }
            Stream::Unix(stream) => {
                let $name = Pin::new(stream);
                $call
            }
        }
    };
}

impl tokio::io::AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut tokio::io::ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buf))
    }
}

impl tokio::io::AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}

/// What TLS says against the other side, when that is why there is no connection.
fn untrusted(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // An IO error hides what it holds from its chain of causes.
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(tls) = held.and_then(|held| held.downcast_ref::<rustls::Error>()) {
            return Some(match tls {
                rustls::Error::InvalidMessage(_) => format!("the other side does not speak TLS ({tls})"),
                _ => tls.to_string(),
            });
        }
        cause = error.source();
    }
    None
}

/// An error with its causes.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(address: &str, ca: &[u8]) -> String {
        match Target::tls(address, ca) {
            Ok(_) => panic!("{address} is accepted"),
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn settings_are_checked_before_anything_is_tried() {
        for address in ["", "host", "host:", "host:99999", "a b:1", ":5", "[::1:5"] {
            assert!(refused(address, b"").contains("HOST:PORT"), "{address}");
        }
        assert!(refused("host:1", b"nothing").contains("no certificate"));
        assert!(
            refused(
                "[::1]:1",
                b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
            )
            .contains("use")
        );
    }
}
