//! A volume behind the kernel's own NBD client: no program in between, no handshake on the wire, two to four socket pairs.
//!
//! The device outlives its server. When the server dies, requests wait for [`DEAD_TIMEOUT`] for another that adopts the device
//! under the same identifier. While it lives, a link that the kernel gives up is replaced at once.

use super::apart::run_apart;
use super::devices::{Found, bytes};
use super::error::AttachError;
use super::fuse_loop::flush_file;
use super::kernel::{Client, Listener};
use super::kind::Kind;
use super::netlink::{Connect, Link};
use crate::export::{Export, Exports};
use crate::server::{Limits, Server, kernel_flags};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Each is a queue of the device with a thread at both ends. More than four bring no more: the copies on both ends take all
/// processors then.
const LINKS_MAX: usize = 4;

/// With one alone, a request that is late fails instead of being sent again.
const LINKS_MIN: usize = 2;

/// The kernel makes no more queues than it has processors, and a link without a queue only waits for another to die.
fn link_count() -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    processors.clamp(LINKS_MIN, LINKS_MAX)
}

/// A request without answer for so long is sent again on another link. More than the 20 s that a fetch may take, so that the
/// volume's own error comes first; after a restart it is what requests under way wait for, so not much more.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(25);

/// Without any link, requests wait so long: enough to start a server again, also by hand.
const DEAD_TIMEOUT: Duration = Duration::from_secs(300);

/// Others make devices too, and the kernel then says that the one it had chosen is taken, or its sockets are: tried so often,
/// with [`PAUSE`] between.
const TRIES: usize = 40;

/// Between two looks at something that changes within milliseconds.
const PAUSE: Duration = Duration::from_millis(25);

/// The kernel makes, and takes away, a device within milliseconds; under emulation within a second.
const KERNEL_WAIT: Duration = Duration::from_secs(10);

/// What is needed to attach or adopt.
pub(super) struct Request<'a> {
    /// The volume, in whole blocks.
    pub(super) export: &'a Arc<Export>,
    /// Bytes of a logical block.
    pub(super) block: u32,
    pub(super) identifier: &'a str,
}

impl Request<'_> {
    fn link<'a>(&'a self, sockets: &'a [RawFd]) -> Link<'a> {
        link(self.identifier, sockets)
    }
}

fn link<'a>(identifier: &'a str, sockets: &'a [RawFd]) -> Link<'a> {
    Link {
        identifier,
        timeout: REQUEST_TIMEOUT,
        dead_timeout: DEAD_TIMEOUT,
        sockets,
    }
}

/// A device `/dev/nbdN` that this process serves.
#[derive(Debug)]
pub(super) struct NbdDevice {
    index: u32,
    path: PathBuf,
    identifier: String,
    read_only: bool,
    /// Open from attach to detach, so that an error of write-back shows in the last flush. None once detached.
    file: Option<File>,
    watch: Option<Watch>,
}

impl NbdDevice {
    /// Makes a device.
    pub(super) fn attach(request: &Request<'_>) -> Result<Self, AttachError> {
        let mut client = Client::open()?;
        let server = server(request)?;
        let mut tries = 0;
        let index = loop {
            let ends = links(&server, link_count())?;
            let sockets = raw(&ends);
            let connected = client.connect(&Connect {
                size: request.export.size(),
                block: request.block,
                flags: kernel_flags(request.export.flags().read_only),
                link: request.link(&sockets),
            });
            match connected {
                Ok(index) => break index,
                Err(error) if tries < TRIES && is_taken(&error) => {
                    tries += 1;
                    thread::park_timeout(PAUSE);
                }
                Err(error) => return Err(error),
            }
        };
        Self::begin(request, index, server).inspect_err(|_| {
            // What was made and cannot be used is taken away again; the first error counts.
            let _ = client.disconnect(index);
        })
    }

    /// Serves the device of this identifier whose server is gone.
    pub(super) fn adopt(request: &Request<'_>) -> Result<Option<Self>, AttachError> {
        let mut client = Client::open()?;
        let Some(index) = find(&mut client, request.identifier)? else {
            return Ok(None);
        };
        let (expected, found) = (request.export.size(), bytes(&path_of(index)));
        if found != Some(expected) {
            return Err(AttachError::Foreign {
                device: path_of(index),
                expected: format!("a volume of {expected} bytes"),
                found: format!("one of {} bytes", found.unwrap_or(0)),
            });
        }
        let server = server(request)?;
        let ends = links(&server, link_count())?;
        client.reconfigure(index, &request.link(&raw(&ends)))?;
        drop(ends);
        Self::begin(request, index, server).map(Some)
    }

    fn begin(request: &Request<'_>, index: u32, server: Arc<Server>) -> Result<Self, AttachError> {
        let path = path_of(index);
        let read_only = request.export.flags().read_only;
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let open = || rustix::fs::open(&path, access | OFlags::CLOEXEC, Mode::empty());
        // The node of a device that the kernel has just made may come a moment later.
        let opened = until(KERNEL_WAIT, || open().ok());
        let file = opened.map_or_else(open, Ok);
        let file = file.map_err(AttachError::system(format!("open {}", path.display())))?;
        let watch = Watch::start(server, index, request.identifier)?;
        Ok(Self {
            index,
            path,
            identifier: request.identifier.to_owned(),
            read_only,
            file: Some(file.into()),
            watch: Some(watch),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Descriptors of ours that are open on it.
    pub(super) fn own(&self) -> Vec<RawFd> {
        self.file.iter().map(AsRawFd::as_raw_fd).collect()
    }

    /// Flushes and takes the device away.
    pub(super) fn detach(&mut self, grace: Duration) -> Result<(), AttachError> {
        let Some(file) = &self.file else { return Ok(()) };
        if !self.read_only {
            flush_file(file, &self.path, grace)?;
        }
        self.take_away(grace)
    }

    /// The kernel takes a new size at once, and tells who has the device open.
    pub(super) fn resize(&self, size: u64) -> Result<(), AttachError> {
        Client::open()?.resize(self.index, size, &link(&self.identifier, &[]))
    }

    /// Takes the device away; requests under way fail.
    pub(super) fn abort(&mut self) -> Result<(), AttachError> {
        self.take_away(KERNEL_WAIT)
    }

    fn take_away(&mut self, grace: Duration) -> Result<(), AttachError> {
        let stuck = || AttachError::Stuck {
            device: self.path.clone(),
            waited: grace,
        };
        let begun = Instant::now();
        // The kernel's goodbye would look like a dead link.
        let watch = self.watch.take().inspect(Watch::stop);
        let index = self.index;
        let done = run_apart("disconnect the device", move || Client::open()?.disconnect(index))?;
        done.recv_timeout(grace).map_err(|_| stuck())??;
        // Its last user takes it away.
        self.file = None;
        let left = grace.saturating_sub(begun.elapsed()).max(PAUSE);
        let gone = until(left, || {
            (backend(index).as_deref() != Some(&self.identifier)).then_some(())
        });
        // Connections end by themselves, the volume permitting; this waits for them for a while.
        drop(watch);
        gone.ok_or_else(stuck)
    }
}

/// Looks until `look` sees something, for `wait` at most.
fn until<T>(wait: Duration, look: impl Fn() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look() {
            return Some(seen);
        }
        if begun.elapsed() >= wait {
            return None;
        }
        thread::park_timeout(PAUSE);
    }
}

/// The device, or a socket, was taken by somebody else meanwhile (EBADF was seen in the field).
fn is_taken(error: &AttachError) -> bool {
    matches!(error, AttachError::System { source, .. }
        if matches!(source.raw_os_error(), Some(libc::EBUSY | libc::EBADF)))
}

/// A server of this export alone.
fn server(request: &Request<'_>) -> Result<Arc<Server>, AttachError> {
    let exports = Arc::new(Exports::new());
    let inserted = exports.insert(request.identifier, request.export.clone());
    inserted.map_err(|error| AttachError::system("serve the volume")(io::Error::other(error)))?;
    Ok(Arc::new(Server::new(exports, Limits::default())))
}

/// Socket pairs with one end served; returns the other ends, which the kernel takes a hold of for itself.
fn links(server: &Server, count: usize) -> Result<Vec<OwnedFd>, AttachError> {
    let failed = || AttachError::system("make a connection for the kernel");
    let pair = |_| {
        let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let (ours, kernels) = pair.map_err(io::Error::from).map_err(failed())?;
        server
            .serve_kernel(ours)
            .map_err(|error| failed()(io::Error::other(error)))?;
        Ok(kernels)
    };
    (0..count).map(pair).collect()
}

fn raw(ends: &[OwnedFd]) -> Vec<RawFd> {
    ends.iter().map(AsRawFd::as_raw_fd).collect()
}

/// What device `index` says it serves; `None` when it is not connected.
fn backend(index: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/sys/block/nbd{index}/backend")).ok()?;
    Some(text.trim_end().to_owned())
}

fn path_of(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{index}"))
}

/// Devices that say what they serve. Where no record tells of a server, the kernel's word has to do: the process that made the
/// connection, which another may have taken over, or whose number another may have. So one is held for served that may not be.
pub(super) fn connected() -> impl Iterator<Item = Found> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let name = entry.file_name();
        let index: u32 = name.to_str()?.strip_prefix("nbd")?.parse().ok()?;
        let process = fs::read_to_string(entry.path().join("pid")).ok();
        let process: Option<u32> = process.and_then(|text| text.trim().parse().ok());
        let path = path_of(index);
        Some(Found {
            kind: Kind::Nbd,
            size: bytes(&path).unwrap_or(0),
            path,
            identifier: backend(index)?,
            served: process.is_some_and(|process| Path::new(&format!("/proc/{process}")).exists()),
            process,
        })
    })
}

/// Disconnects a device that nobody serves. Its users get errors; it bears its identifier until the last of them has left.
pub(super) fn take_away(path: &Path, identifier: &str, in_use: bool) -> Result<(), AttachError> {
    let mut client = Client::open()?;
    let index = find(&mut client, identifier)?.filter(|index| path_of(*index) == path);
    let index = index.ok_or(AttachError::Message("the device is gone"))?;
    client.disconnect(index)?;
    if in_use {
        return Ok(());
    }
    until(KERNEL_WAIT, || {
        (backend(index).as_deref() != Some(identifier)).then_some(())
    })
    .ok_or(AttachError::Stuck {
        device: path.to_owned(),
        waited: KERNEL_WAIT,
    })
}

/// The device that serves this.
fn find(client: &mut Client, identifier: &str) -> Result<Option<u32>, AttachError> {
    let devices = client.status()?;
    let mut connected = devices
        .into_iter()
        .filter(|(_, connected)| *connected)
        .map(|(index, _)| index);
    Ok(connected.find(|index| backend(*index).as_deref() == Some(identifier)))
}

/// Replaces links that the kernel has given up, for as long as it lives.
struct Watch {
    listener: Arc<Listener>,
    stopped: Arc<AtomicBool>,
    _server: Arc<Server>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watch({:?})", self.stopped)
    }
}

impl Watch {
    fn start(server: Arc<Server>, index: u32, identifier: &str) -> Result<Self, AttachError> {
        let listener = Arc::new(Listener::open()?);
        let stopped = Arc::new(AtomicBool::new(false));
        let (heard, stop, identifier) = (listener.clone(), stopped.clone(), identifier.to_owned());
        let (served, held) = (Arc::downgrade(&server), server);
        let watch = move || {
            let dead = |number| {
                let Some(server) = served
                    .upgrade()
                    .filter(|_| number == index && !stop.load(Ordering::Acquire))
                else {
                    return;
                };
                match replace(&server, index, &identifier) {
                    Ok(()) => info!(index, "a link of the device was dead and is replaced"),
                    Err(error) => warn!(index, %error, "a link of the device is dead and stays so"),
                }
            };
            if let Err(error) = heard.run(|| stop.load(Ordering::Acquire), dead) {
                warn!(index, %error, "nobody listens for dead links of the device any more");
            }
        };
        let spawned = thread::Builder::new().name("nbd-watch".to_owned()).spawn(watch);
        spawned.map_err(AttachError::system("start a thread to watch the device"))?;
        Ok(Self {
            listener,
            stopped,
            _server: held,
        })
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.listener.wake();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Gives the device one link in place of a dead one. When none is dead, the kernel lets it go and it ends.
fn replace(server: &Server, index: u32, identifier: &str) -> Result<(), AttachError> {
    let ends = links(server, 1)?;
    Client::open()?.reconfigure(index, &link(identifier, &raw(&ends)))
}
