//! The two files of an overlay, and how they are made and replaced. A trait, so that tests can pull the plug.

use super::live::Boot;
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A file whose writes are durable after a sync, and may be lost in pieces before it.
pub(super) trait Medium: Send + Sync {
    fn len(&self) -> io::Result<u64>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// All of `buf`, or an error.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// As [`Medium::read_at`], unless that would wait for a device.
    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool>;
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Gives back the space of a range, which reads as zero then. May do nothing.
    fn punch(&self, offset: u64, len: u64);
    fn sync(&self) -> io::Result<()>;
}

/// Where the files of an overlay are: the data, and the log that says which of it counts.
pub(super) trait Folder: Send + Sync {
    type File: Medium;

    /// The data, made when there is none; and whether anything was ever written to it.
    fn data(&self) -> io::Result<(Self::File, bool)>;
    /// The log; `None` when there is none.
    fn log(&self) -> io::Result<Option<Self::File>>;
    /// An empty log that is not in use yet.
    fn begin_log(&self) -> io::Result<Self::File>;
    /// Puts the log begun, which was synced, in the place of the one in use. Durable when this returns.
    fn commit_log(&self) -> io::Result<()>;
    /// One of the two files of changes since the last flush, made when there is none.
    fn live(&self, which: usize) -> io::Result<Self::File>;
    /// Names this run of the system; `None` when that is not known.
    fn boot(&self) -> Option<Boot>;
}

/// A folder of a file system.
#[derive(Debug)]
pub(super) struct FsFolder(PathBuf);

impl FsFolder {
    /// The folder `path`, made if missing, and then durably: what is flushed into it later must not vanish with its name.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
        fs::create_dir_all(path)?;
        for parent in missing.iter().filter_map(|folder| folder.parent()) {
            let parent = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            File::open(parent)?.sync_all()?;
        }
        Ok(Self(path.to_owned()))
    }

    fn open(&self, name: &str, create: bool, empty: bool) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).truncate(empty);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(self.0.join(name))
    }
}

impl Folder for FsFolder {
    type File = File;

    fn data(&self) -> io::Result<(File, bool)> {
        let file = self.open("data", true, false)?;
        // Held for as long as the file is open: two overlays in one folder would undo each other.
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            Errno::WOULDBLOCK => io::ErrorKind::ResourceBusy.into(),
            error => io::Error::from(error),
        })?;
        let written = file.metadata()?.blocks() > 0;
        Ok((file, written))
    }

    fn log(&self) -> io::Result<Option<File>> {
        match self.open("log", false, false) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn begin_log(&self) -> io::Result<File> {
        self.open("log.new", true, true)
    }

    fn commit_log(&self) -> io::Result<()> {
        fs::rename(self.0.join("log.new"), self.0.join("log"))?;
        File::open(&self.0)?.sync_all()
    }

    fn live(&self, which: usize) -> io::Result<File> {
        self.open(["live.0", "live.1"][which], true, false)
    }

    fn boot(&self) -> Option<Boot> {
        // Such as 1b9f1d3e-....: 32 digits of hex and 4 dashes.
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let digits: String = text.trim().split('-').collect();
        u128::from_str_radix(&digits, 16).ok().map(u128::to_le_bytes)
    }
}

impl Medium for File {
    fn len(&self) -> io::Result<u64> {
        self.metadata().map(|found| found.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let wanted = buf.len();
        match rustix::io::preadv2(self, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT) {
            Ok(len) => Ok(len == wanted),
            // Not in the cache, or no such reads here. One who may wait reads it.
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(buf, offset)
    }

    fn punch(&self, offset: u64, len: u64) {
        // Space that is not given back costs space and nothing else: the log says that these bytes do not count.
        let _ = rustix::fs::fallocate(
            self,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            len,
        );
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
