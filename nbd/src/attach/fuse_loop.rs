//! A volume as a block device without any help of the kernel but FUSE and loop devices.
//!
//! The file system shows nowhere: it is mounted in a private folder, its file is opened and bound to a loop device, and the
//! mount is taken away again. From then on the loop device alone keeps the file system alive, and it is unbound by the kernel
//! when the last one closes it. So whatever dies leaves no mount, no folder and no device behind. What has to be given up
//! because the volume does not answer is aborted through the control file of the FUSE connection, which fails every request
//! under way.

use super::apart::{run_apart, with_only};
use super::error::AttachError;
use super::loop_device::LoopDevice;
use super::partitions::PartitionTable;
use super::sys;
use super::volume_file::VolumeFile;
use crate::export::Export;
use fuser::{Config, MountOption, Session};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// Where the kernel's side of FUSE is.
pub(super) const FUSE_DEVICE: &str = "/dev/fuse";

/// Requests served at once, each by a thread: as many reads of an object store with 20 ms latency bring 800 MiB/s in requests of
/// 1 MiB. A thread takes 1 MiB for requests and up to 1 MiB for answers.
const SERVERS: usize = 16;

/// The first bytes of the volume may take so long, and then its table of partitions: an object store that answers does so in a
/// fraction of it, and one that does not shall not keep a device from those who can wait.
const PARTITIONS_WAIT: Duration = Duration::from_secs(5);

/// After an abort the kernel has nothing more to wait for; what is slower than this hangs in the volume.
const ABORT_WAIT: Duration = Duration::from_secs(5);

/// What is needed to attach.
pub(super) struct Request<'a> {
    /// The volume, in whole blocks.
    pub(super) export: &'a Arc<Export>,
    /// Bytes of a logical block.
    pub(super) block: u32,
    pub(super) identifier: &'a str,
    /// Folder for the moment of mounting.
    pub(super) runtime: &'a Path,
}

/// A loop device over a file of our own FUSE file system.
#[derive(Debug)]
pub(super) struct FuseLoop {
    /// None once it is detached.
    device: Option<LoopDevice>,
    served: Served,
    read_only: bool,
}

impl FuseLoop {
    pub(super) fn attach(request: &Request<'_>) -> Result<Self, AttachError> {
        let read_only = request.export.flags().read_only;
        let (served, file) = Served::start(request)?;
        match LoopDevice::bind(file.as_fd(), request.block, read_only, request.identifier) {
            Ok(device) => {
                show_partitions(&device, request.export)?;
                Ok(Self {
                    device: Some(device),
                    served,
                    read_only,
                })
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn device(&self) -> Option<&LoopDevice> {
        self.device.as_ref()
    }

    /// Flushes, unbinds, and ends the file system. Until the device is unbound, an error leaves everything as it was.
    pub(super) fn detach(&mut self, grace: Duration) -> Result<(), AttachError> {
        let Some(device) = &self.device else { return Ok(()) };
        let deadline = Instant::now() + grace;
        if !self.read_only {
            flush(device, grace)?;
        }
        if !device.clear()? {
            return Err(AttachError::Busy {
                device: device.path().to_owned(),
                holders: super::holders::find(device.path(), &device.own()),
            });
        }
        // All that was written is durable, so a volume that hangs from here on holds up reads that nobody waits for.
        self.close(deadline.saturating_duration_since(Instant::now()))
    }

    /// The file has grown: the kernel asks for its size again, and the loop device takes it up.
    pub(super) fn resize(&self) -> Result<(), AttachError> {
        let Some(device) = &self.device else { return Ok(()) };
        self.served.refresh()?;
        device.resize()
    }

    /// Fails all requests under way and to come, and unbinds. What was not flushed is lost.
    pub(super) fn abort(&mut self) -> Result<(), AttachError> {
        self.served.abort();
        if let Some(device) = &self.device {
            device.clear()?;
        }
        self.close(ABORT_WAIT)
    }

    /// Closes the device, which unbinds it, which ends the file system.
    fn close(&mut self, grace: Duration) -> Result<(), AttachError> {
        let Some(device) = self.device.take() else {
            return Ok(());
        };
        let path = device.path().to_owned();
        // It would keep the file system alive.
        self.served.place = None;
        // The last close waits for requests under way; ours is not the last.
        let closed = with_only(device.file(), "close the device", |file| {
            drop(file);
            Ok(())
        })?;
        drop(device);
        if closed.recv_timeout(grace).is_ok() && self.served.has_ended(ABORT_WAIT) {
            return Ok(());
        }
        self.served.abort();
        if self.served.has_ended(ABORT_WAIT) {
            return Ok(());
        }
        // The device is gone; threads of ours wait in the volume and end when it comes back.
        debug!(device = %path.display(), "the volume does not come back from a request; its threads are left behind");
        Ok(())
    }
}

/// Where the volume has a table of partitions, they become devices as well: `/dev/loop3p1` and so on. What hinders that is told, and
/// the device is there without them.
fn show_partitions(device: &LoopDevice, export: &Arc<Export>) -> Result<(), AttachError> {
    let source = export.source.clone();
    let looked = run_apart("look for partitions", move || {
        let size = usize::try_from(source.geometry().size).unwrap_or(usize::MAX);
        let mut head = vec![0; size.min(PartitionTable::HEAD_LEN)];
        let is_read = source.read_at(0, &mut head).is_ok();
        is_read.then(|| PartitionTable::in_head(&head)).flatten()
    })?;
    let Ok(Some(table)) = looked.recv_timeout(PARTITIONS_WAIT) else {
        return Ok(());
    };
    let found = with_only(device.file(), "find partitions", |file| {
        sys::find_loop_partitions(file.as_fd())
    })?;
    let error = match found.recv_timeout(PARTITIONS_WAIT) {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it is still being read".to_owned(),
    };
    let device = device.path().display();
    warn!(%device, %table, error, "the kernel does not show the partitions; `partx -a` does");
    Ok(())
}

/// Makes all that was written durable, or gives up after `grace`.
pub(super) fn flush(device: &LoopDevice, grace: Duration) -> Result<(), AttachError> {
    flush_file(device.file(), device.path(), grace)
}

/// As [`flush`], of a device by its file.
pub(super) fn flush_file(file: &File, path: &Path, grace: Duration) -> Result<(), AttachError> {
    let synced = with_only(file, "flush the device", |file| file.sync_all())?;
    match synced.recv_timeout(grace) {
        Ok(synced) => synced.map_err(AttachError::system(format!("flush {}", path.display()))),
        Err(_) => Err(AttachError::Stuck {
            device: path.to_owned(),
            waited: grace,
        }),
    }
}

/// A FUSE file system that is served by threads of ours until nobody has its file open.
#[derive(Debug)]
struct Served {
    /// A write to it fails all requests of the connection.
    control: File,
    /// The file of the volume, only as a place: nothing can be read by it. None once the device is closed.
    place: Option<OwnedFd>,
    ended: Receiver<()>,
}

impl Served {
    /// Mounts, opens the file, unmounts. Returns the file, which keeps it alive.
    fn start(request: &Request<'_>) -> Result<(Self, File), AttachError> {
        let folder = Folder::create(request.runtime)?;
        let read_only = request.export.flags().read_only;
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("blockferry".to_owned()),
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoExec,
            if read_only { MountOption::RO } else { MountOption::RW },
        ];
        config.n_threads = Some(SERVERS);
        let volume = VolumeFile::new(request.export.clone(), request.identifier);
        let session =
            Session::new(volume, &folder.path, &config).map_err(AttachError::system("mount a FUSE file system"))?;
        let mounted = Mounted(&folder.path);
        let ended = run_apart("serve the file system", move || {
            if let Err(error) = session.run() {
                debug!(%error, "a FUSE session ended");
            }
        })?;
        let path = folder.path.join(request.identifier);
        let opened = OpenOptions::new().read(true).write(!read_only).open(&path);
        let file = opened.map_err(AttachError::system(format!("open {}", path.display())))?;
        let control = control_file(&file, request.runtime)?;
        let place = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let place = place.map_err(AttachError::system(format!("open {}", path.display())))?;
        drop(mounted);
        let served = Self {
            control,
            place: Some(place),
            ended,
        };
        Ok((served, file))
    }

    /// Has the kernel ask for the size of the file, although it was told that this never changes.
    fn refresh(&self) -> Result<(), AttachError> {
        let Some(place) = &self.place else { return Ok(()) };
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        let asked = rustix::fs::statx(place, "", flags, StatxFlags::SIZE);
        asked
            .map(drop)
            .map_err(AttachError::system("ask for the size of the volume's file"))
    }

    fn abort(&self) {
        // Fails only when the connection is gone, which is what is wanted.
        let _ = (&self.control).write_all(b"1");
    }

    fn has_ended(&self, grace: Duration) -> bool {
        !matches!(self.ended.recv_timeout(grace), Err(RecvTimeoutError::Timeout))
    }
}

/// The file that aborts the FUSE connection which `file` is on: `abort` in a folder named by the number of the file system's
/// device (Documentation/filesystems/fuse/fuse.rst). Mounted for a moment, as hosts need not have it.
fn control_file(file: &File, runtime: &Path) -> Result<File, AttachError> {
    let failed = || AttachError::system("find the control file of a FUSE connection");
    let folder = Folder::create(runtime)?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount("fusectl", &folder.path, "fusectl", flags, None)
        .map_err(io::Error::from)
        .map_err(failed())?;
    let mounted = Mounted(&folder.path);
    let device = file.metadata().map_err(failed())?.dev();
    // The kernel names the folder by its own number, 12 bits of major above 20 of minor; the major of such devices is 0.
    let number = u64::from(rustix::fs::major(device)) << 20 | u64::from(rustix::fs::minor(device));
    let path = folder.path.join(number.to_string()).join("abort");
    let control = OpenOptions::new().write(true).open(path).map_err(failed())?;
    drop(mounted);
    Ok(control)
}

/// Something mounted at a path; taken away on drop, at once for new users and at the end of the last one for good.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(self.0, UnmountFlags::DETACH) {
            debug!(%error, path = %self.0.display(), "not unmounted");
        }
    }
}

/// An empty folder only for us; removed on drop.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn create(runtime: &Path) -> Result<Self, AttachError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let failed = |path: &Path| AttachError::system(format!("create {}", path.display()));
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder.recursive(true).create(runtime).map_err(failed(runtime))?;
        builder.recursive(false);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = runtime.join(format!("mount-{}-{number}", std::process::id()));
            match builder.create(&path) {
                Ok(()) => return Ok(Self { path }),
                // Left by one that died and had our number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(&path)(error)),
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir(&self.path) {
            debug!(%error, path = %self.path.display(), "not removed");
        }
    }
}
