//! A file as a block device.

use super::error::AttachError;
use super::sys::{self, LoopSettings, loop_flag};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use tracing::warn;

/// Where free devices are asked for.
pub(super) const CONTROL: &str = "/dev/loop-control";

/// Others take free devices too: a device that was free when we asked is lost this often at most.
const TRIES: usize = 64;

/// A loop device that we hold open. The kernel unbinds it when nobody has it open any more, so it does not outlive us unless
/// it is in use.
#[derive(Debug)]
pub(super) struct LoopDevice {
    file: File,
    path: PathBuf,
}

impl LoopDevice {
    /// Binds `file` to a free device with blocks of `block` bytes.
    pub(super) fn bind(file: BorrowedFd<'_>, block: u32, read_only: bool, name: &str) -> Result<Self, AttachError> {
        let control = open(Path::new(CONTROL), OFlags::RDWR).map_err(AttachError::system(format!("open {CONTROL}")))?;
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let read_only = if read_only { loop_flag::READ_ONLY } else { 0 };
        let settings = LoopSettings {
            file,
            block,
            flags: loop_flag::AUTOCLEAR | loop_flag::DIRECT_IO | read_only,
            name,
        };
        for _ in 0..TRIES {
            let number = sys::free_loop(control.as_fd()).map_err(AttachError::system("find a free loop device"))?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let failed = |what: &str| AttachError::system(format!("{what} {}", path.display()));
            let device = open(&path, access).map_err(failed("open"))?;
            match sys::configure_loop(device.as_fd(), &settings) {
                Ok(()) => {
                    let device = Self { file: device, path };
                    device.say_if_buffered()?;
                    return Ok(device);
                }
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                Err(error) => return Err(failed("bind")(error)),
            }
        }
        Err(AttachError::system("find a free loop device")(io::Error::from(
            Errno::BUSY,
        )))
    }

    /// The kernel takes direct IO as a wish. Without it every block is in memory twice.
    fn say_if_buffered(&self) -> Result<(), AttachError> {
        let info = sys::loop_status(self.file.as_fd()).map_err(self.failed("ask"))?;
        if info.is_some_and(|info| info.flags & loop_flag::DIRECT_IO == 0) {
            warn!(device = %self.path.display(), "the kernel reads the volume through its page cache, not directly");
        }
        Ok(())
    }

    fn failed(&self, what: &str) -> impl FnOnce(io::Error) -> AttachError + use<> {
        AttachError::system(format!("{what} {}", self.path.display()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Descriptors of ours that are open on it.
    pub(super) fn own(&self) -> [RawFd; 1] {
        [self.file.as_raw_fd()]
    }

    /// Takes up the size of its file, which has grown.
    pub(super) fn resize(&self) -> Result<(), AttachError> {
        sys::refresh_loop(self.file.as_fd()).map_err(self.failed("resize"))
    }

    /// Asks the kernel to unbind it when it is closed. `false` when others have it open: it then stays until they close it.
    pub(super) fn clear(&self) -> Result<bool, AttachError> {
        sys::clear_loop(self.file.as_fd()).map_err(self.failed("unbind"))?;
        let bound = sys::loop_status(self.file.as_fd()).map_err(self.failed("ask"))?;
        Ok(bound.is_none())
    }
}

/// Whether `file`, as the kernel shows what is behind a loop device, is the file of that name in a file system that is mounted
/// nowhere: one of ours.
pub(super) fn is_ours(file: &str, identifier: &str) -> bool {
    file.strip_prefix('/') == Some(identifier)
}

/// Unbinds a device whose file system has no server any more; at once, or when its last user leaves it.
pub(super) fn unbind(path: &Path) -> Result<(), AttachError> {
    let failed = |what: &str| AttachError::system(format!("{what} {}", path.display()));
    let file = open(path, OFlags::RDONLY).map_err(failed("open"))?;
    sys::clear_loop(file.as_fd()).map_err(failed("unbind"))
}

fn open(path: &Path, access: OFlags) -> io::Result<File> {
    let fd = rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty())?;
    Ok(fd.into())
}
