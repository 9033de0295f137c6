//! Sockets that clients connect to.

use super::{STACK, Shared, TlsSettings};
use crate::error::NbdError;
use rustix::fs::{FlockOperation, Mode};
use rustls::ServerConfig;
use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tracing::{debug, warn};

/// Connections the kernel holds until we accept them.
const BACKLOG: i32 = 128;

/// Keepalive of TCP: a peer that vanished is noticed after 60 + 6 x 10 s, when nothing is sent.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(10))
    .with_retries(6);

/// After a failed accept, before the next: files or memory are short, and others have to give some back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A Unix socket to listen on. Its mode is 0600, or 0666 when other users may connect, who are then told apart by the kernel.
#[derive(Clone, Debug)]
pub struct UnixListen {
    /// Where the socket is made. A stale one is replaced, one that answers is not.
    pub path: PathBuf,
    /// Users who may connect, beside root and the one we run as.
    pub uids: Vec<u32>,
    /// LIST is answered.
    pub listing: bool,
}

impl UnixListen {
    /// At `path`, for root and ourselves, with listing.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            uids: Vec::new(),
            listing: true,
        }
    }
}

/// What is known of a peer, and what its connection may do, before it says anything.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: Option<IpAddr>,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) listing: bool,
}

/// A socket being listened on. Dropping it ends that and removes a Unix socket that is still ours.
pub(super) struct Listening {
    socket: Arc<Socket>,
    acceptor: Option<JoinHandle<()>>,
    path: Option<(PathBuf, (u64, u64))>,
}

impl Listening {
    pub(super) fn unix(shared: &Arc<Shared>, id: u64, listen: &UnixListen) -> Result<Self, NbdError> {
        let path = &listen.path;
        let mode = if listen.uids.is_empty() { 0o600 } else { 0o666 };
        let socket = bind_unix(path, mode)?;
        let made = identity(path).map_err(failed(path.display()))?;
        let mut uids: BTreeSet<u32> = listen.uids.iter().copied().collect();
        uids.extend([0, rustix::process::geteuid().as_raw()]);
        let peer = Peer {
            address: None,
            tls: None,
            listing: listen.listing,
        };
        let admit = move |socket: &Socket, _: &SockAddr| {
            let uid = rustix::net::sockopt::socket_peercred(socket).ok()?.uid.as_raw();
            if !uids.contains(&uid) {
                warn!(uid, "connection refused: this user may not connect");
                return None;
            }
            Some(peer.clone())
        };
        let mut listening = Self::accept(shared, id, socket, admit)?;
        listening.path = Some((path.clone(), made));
        Ok(listening)
    }

    pub(super) fn tcp(
        shared: &Arc<Shared>,
        id: u64,
        address: SocketAddr,
        tls: TlsSettings,
    ) -> Result<(Self, SocketAddr), NbdError> {
        let bind = || -> io::Result<(Socket, SocketAddr)> {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            let bound = socket
                .local_addr()?
                .as_socket()
                .ok_or(io::ErrorKind::AddrNotAvailable)?;
            Ok((socket, bound))
        };
        let (socket, bound) = bind().map_err(failed(address))?;
        let admit = move |socket: &Socket, from: &SockAddr| {
            let socket = SockRef::from(socket);
            // Slower or later to notice without them, not wrong.
            let _ = socket.set_tcp_nodelay(true);
            let _ = socket.set_tcp_keepalive(&KEEPALIVE);
            Some(Peer {
                address: from.as_socket().map(|from| from.ip()),
                tls: Some(tls.config.clone()),
                // Tenants share this listener; none is told of the others' exports.
                listing: false,
            })
        };
        Ok((Self::accept(shared, id, socket, admit)?, bound))
    }

    fn accept(
        shared: &Arc<Shared>,
        id: u64,
        socket: Socket,
        admit: impl Fn(&Socket, &SockAddr) -> Option<Peer> + Send + 'static,
    ) -> Result<Self, NbdError> {
        let socket = Arc::new(socket);
        let (shared, accepting) = (shared.clone(), socket.clone());
        let run = move || {
            while !shared.is_closing() {
                match accepting.accept() {
                    Ok((client, from)) => {
                        if let Some(peer) = admit(&client, &from) {
                            shared.accept(id, OwnedFd::from(client), peer);
                        }
                    }
                    Err(_) if shared.is_closing() => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        debug!(%error, "accept failed");
                        thread::park_timeout(ACCEPT_PAUSE);
                    }
                }
            }
        };
        let acceptor = thread::Builder::new()
            .name("nbd-accept".to_owned())
            .stack_size(STACK)
            .spawn(run)
            .map_err(|source| NbdError::System {
                doing: "start a thread that accepts connections",
                source,
            })?;
        Ok(Self {
            socket,
            acceptor: Some(acceptor),
            path: None,
        })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Wakes the acceptor, which then sees that the server is closing.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.thread().unpark();
            let _ = acceptor.join();
        }
        if let Some((path, made)) = &self.path
            && identity(path).is_ok_and(|found| found == *made)
        {
            // Left behind it would be found stale and replaced.
            let _ = fs::remove_file(path);
        }
    }
}

fn failed<D: std::fmt::Display>(place: D) -> impl FnOnce(io::Error) -> NbdError {
    move |source| NbdError::Listen {
        place: place.to_string(),
        source,
    }
}

/// Device and number of the file at `path`.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

fn bind_unix(path: &Path, mode: u32) -> Result<Socket, NbdError> {
    let refused = || failed(path.display());
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // Two servers that find the same stale socket must not remove each other's new one.
    let lock = fs::File::open(folder).map_err(refused())?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|error| refused()(error.into()))?;
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(NbdError::NotASocket(path.to_owned())),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(refused())?;
            }
            Ok(_) => return Err(NbdError::InUse(path.to_owned())),
            Err(error) => return Err(refused()(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(refused()(error)),
    }
    let bind = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Before it has a name, so that nobody else can connect at any moment: the name inherits this mode.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        socket.bind(&SockAddr::unix(path)?)?;
        if mode != 0o600 {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    bind().map_err(refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_private_from_its_first_moment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _socket = bind_unix(&path, 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_stale_socket_is_replaced_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = bind_unix(&path, 0o600).unwrap();
        assert!(matches!(bind_unix(&path, 0o600), Err(NbdError::InUse(_))));
        drop(first);
        assert!(bind_unix(&path, 0o600).is_ok());
        let file = dir.path().join("f");
        fs::write(&file, "keep").unwrap();
        assert!(matches!(bind_unix(&file, 0o600), Err(NbdError::NotASocket(_))));
        assert_eq!(fs::read(&file).unwrap(), b"keep");
    }
}
