//! The two files of an overlay, and how they are made and replaced. A trait, so that tests can pull the plug.
//!
//! | | scratch | in place |
//! |---|---|---|
//! | `data` in the folder | what was written | empty: the lock of the folder |
//! | `log` in the folder | which of it counts | which of the target counts |
//! | the target | | the volume itself |

use super::live::Boot;
use super::target::{FsData, Spot};
use blockio::{BlockError, Kind, Op};
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
    /// Makes a range zero on the medium. With `give_back` its space may be given back, where it reads as zero after that.
    fn zero(&self, offset: u64, len: u64, give_back: bool) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

/// Where the files of an overlay are: the data, and the log that says which of it counts.
pub(super) trait Folder: Send + Sync {
    type File: Medium;
    type Data: Medium;

    /// The data, made when there is none; and whether anything was ever written to it that a log should tell of.
    fn data(&self) -> Result<(Self::Data, bool), BlockError>;
    /// What the data is, when it is a volume of its own rather than a file of this folder.
    fn target(&self) -> Option<&str> {
        None
    }
    /// Marks the data, which is about to be overwritten, as that of this overlay. Durable when this returns. `None` where it
    /// takes no mark.
    fn mark(&self) -> io::Result<Option<String>> {
        Ok(None)
    }
    /// The mark that the data has.
    fn marked(&self) -> io::Result<Option<String>> {
        Ok(None)
    }
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

/// A folder of a file system, and the volume whose state it has when the overlay is in place.
#[derive(Debug)]
pub(super) struct FsFolder {
    path: PathBuf,
    target: Option<Spot>,
}

impl FsFolder {
    /// The folder `path`, made if missing, and then durably: what is flushed into it later must not vanish with its name.
    pub(super) fn new(path: &Path, target: Option<Spot>) -> io::Result<Self> {
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
        Ok(Self {
            path: path.to_owned(),
            target,
        })
    }

    fn open(&self, name: &str, create: bool, empty: bool) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).truncate(empty);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(self.path.join(name))
    }
}

impl Folder for FsFolder {
    type File = File;
    type Data = FsData;

    fn data(&self) -> Result<(FsData, bool), BlockError> {
        let failed = |error: io::Error| BlockError::from_io(Op::Open, error);
        let file = self.open("data", true, false).map_err(failed)?;
        // Held for as long as the file is open: two overlays in one folder would undo each other.
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            Errno::WOULDBLOCK => failed(io::ErrorKind::ResourceBusy.into()),
            error => failed(error.into()),
        })?;
        let written = file.metadata().map_err(failed)?.blocks() > 0;
        match &self.target {
            None => Ok((FsData::File(file), written)),
            Some(_) if written => {
                let text = "the folder of an overlay that has its data in itself, not in a target";
                Err(BlockError::new(Op::Open, Kind::InvalidInput(text.to_owned())))
            }
            // What is in a target without a log is about to be overwritten: nothing of it counts.
            Some(spot) => Ok((FsData::Target(Box::new(spot.open(file)?)), false)),
        }
    }

    fn target(&self) -> Option<&str> {
        self.target.as_ref().and_then(Spot::name)
    }

    fn mark(&self) -> io::Result<Option<String>> {
        self.target.as_ref().map_or(Ok(None), Spot::mark)
    }

    fn marked(&self) -> io::Result<Option<String>> {
        self.target.as_ref().map_or(Ok(None), Spot::marked)
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
        fs::rename(self.path.join("log.new"), self.path.join("log"))?;
        File::open(&self.path)?.sync_all()
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

    fn zero(&self, offset: u64, len: u64, _give_back: bool) -> io::Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(self, mode, offset, len).map_err(io::Error::from)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
