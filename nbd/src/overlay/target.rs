//! The volume that an overlay in place fills: a block device or a file, and how it is told from another one.
//!
//! # What binds a state to its target
//!
//! | target | name | mark |
//! |---|---|---|
//! | block device | size, and what the kernel says of the device: WWN, serial number, UUID of a mapping, file behind a loop device; of a partition its number and start | none: all of it is the volume's |
//! | file | inode number | a random UUID in the attribute `user.blockferry.state`, where the file system has such |
//!
//! A state is refused with a target of another name, or with another mark. So a wrong device is detected when it has another size
//! or number, a device without any number of its own only by its size; a file that was replaced or copied is detected, one that
//! was filled by another state in between by its mark. What is *not* detected: a device that something else wrote to while
//! no overlay had it open, one that was set back to a snapshot of itself, and a clone with the same numbers.

use super::store::Medium;
use blockio::{BlockError, BlockSink, BlockSource, Device, DeviceId, Extent, OpenOptions, Zeroer};
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Attribute of a file that says whose target it is.
const MARK: &str = "user.blockferry.state";
/// Longest mark: a UUID has 36 bytes.
const MARK_MAX: usize = 64;
/// Longest of what the kernel says of a device that is taken into its name. Serial numbers have some dozens of bytes.
const FACT_MAX: usize = 1024;

/// What sysfs may say of a disk that stays over a reboot, below its folder.
const FACTS: [&str; 8] = [
    "wwid",
    "device/wwid",
    "serial",
    "device/serial",
    "device/cid",
    "dm/uuid",
    "md/uuid",
    "loop/backing_file",
];

/// Where a target is, and what it has to be.
#[derive(Debug)]
pub(super) struct Spot {
    path: PathBuf,
    size: u64,
    logical_block: u32,
    name: OnceLock<(DeviceId, String)>,
}

impl Spot {
    /// The target at `path`, for a volume of `size` bytes in blocks of `logical_block`.
    pub(super) fn new(path: &Path, size: u64, logical_block: u32) -> Self {
        Self {
            path: path.to_owned(),
            size,
            logical_block,
            name: OnceLock::new(),
        }
    }

    /// Opens it, so that nobody else can; `lock` is kept as long.
    pub(super) fn open(&self, lock: File) -> Result<Target, BlockError> {
        // Past the page cache: a write that fails there fails when it is made, not when it can no longer be told whose it was.
        let device = Device::open(&self.path, &OpenOptions::overwrite())?;
        let found = device.geometry();
        let refuse = |text: String| {
            let kind = blockio::Kind::InvalidInput(text);
            Err(BlockError::new(blockio::Op::Open, kind).on(&self.path))
        };
        if found.size < self.size {
            return refuse(format!(
                "the target has {} bytes, the volume {}: the target is smaller",
                found.size, self.size
            ));
        }
        if device.is_block_device() && found.logical_block > self.logical_block {
            return refuse(format!(
                "the target has blocks of {} bytes, the volume of {}: what is on the volume could not be used there",
                found.logical_block, self.logical_block
            ));
        }
        let _ = self.name.set((device.id(), name_of(device.id(), found.size)));
        Ok(Target {
            device,
            keep: Zeroer::new(None).keep_sparse(true),
            give_back: Zeroer::new(None).keep_sparse(true).unmap(true),
            _lock: lock,
        })
    }

    /// What the target is; `None` before it was opened.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.get().map(|(_, name)| name.as_str())
    }

    fn is_file(&self) -> bool {
        matches!(self.name.get(), Some((DeviceId::File { .. }, _)))
    }

    pub(super) fn mark(&self) -> io::Result<Option<String>> {
        if !self.is_file() {
            return Ok(None);
        }
        let mark = fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
        match rustix::fs::setxattr(&self.path, MARK, mark.as_bytes(), XattrFlags::empty()) {
            Ok(()) => {
                File::open(&self.path)?.sync_all()?;
                Ok(Some(mark))
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn marked(&self) -> io::Result<Option<String>> {
        if !self.is_file() {
            return Ok(None);
        }
        let mut bytes = [0; MARK_MAX];
        match rustix::fs::getxattr(&self.path, MARK, &mut bytes[..]) {
            Ok(len) => Ok(Some(String::from_utf8_lossy(&bytes[..len]).into_owned())),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// One line that says which object this is, of what stays as it is over a reboot.
fn name_of(id: DeviceId, size: u64) -> String {
    match id {
        DeviceId::File { inode, .. } => format!("file inode={inode}"),
        DeviceId::Block { number } => {
            let (major, minor) = (libc::major(number), libc::minor(number));
            let folder = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
            format!("block device size={size}{}", facts(&folder))
        }
    }
}

/// What stays of the device whose folder in sysfs is `folder`.
fn facts(folder: &Path) -> String {
    let mut found = String::new();
    let mut add = |folder: &Path, name: &str| {
        let Ok(text) = fs::read_to_string(folder.join(name)) else {
            return;
        };
        let text = text.trim();
        if !text.is_empty() && text.len() <= FACT_MAX {
            found.push_str(&format!(" {}={text:?}", name.replace('/', ".")));
        }
    };
    let mut disk = folder.to_owned();
    if folder.join("partition").exists() {
        add(folder, "partition");
        add(folder, "start");
        disk = folder.join("..");
    }
    for name in FACTS {
        add(&disk, name);
    }
    found
}

/// A target that is open.
#[derive(Debug)]
pub(super) struct Target {
    device: Device,
    /// Zeros that keep their blocks on a block device, so that room that was paid for stays.
    keep: Zeroer,
    /// Zeros that give them back.
    give_back: Zeroer,
    _lock: File,
}

/// The error of the system in `error`, so that it is sorted anew by who reports it.
fn io_error(error: BlockError) -> io::Error {
    let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match cause.and_then(io::Error::raw_os_error) {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(error),
    }
}

impl Medium for Target {
    fn len(&self) -> io::Result<u64> {
        Ok(self.device.geometry().size)
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.device.read_at(offset, buf).map_err(io_error)
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.device.try_read_at(offset, buf).map_err(io_error)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.device.write_at(offset, buf).map_err(io_error)
    }

    fn punch(&self, _offset: u64, _len: u64) {}

    fn zero(&self, offset: u64, len: u64, give_back: bool) -> io::Result<()> {
        let zeroer = if give_back { &self.give_back } else { &self.keep };
        let zeroed = zeroer.zero(&self.device, Extent { offset, len });
        zeroed.map(drop).map_err(io_error)
    }

    fn sync(&self) -> io::Result<()> {
        self.device.sync().map_err(io_error)
    }
}

/// Where an overlay on a real file system has its data.
#[derive(Debug)]
pub(super) enum FsData {
    /// A file of its folder.
    File(File),
    /// The volume itself.
    Target(Box<Target>),
}

impl FsData {
    fn medium(&self) -> &dyn Medium {
        match self {
            Self::File(file) => file,
            Self::Target(target) => &**target,
        }
    }
}

impl Medium for FsData {
    fn len(&self) -> io::Result<u64> {
        self.medium().len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.medium().set_len(len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.medium().read_at(buf, offset)
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.medium().try_read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.medium().write_at(buf, offset)
    }

    fn punch(&self, offset: u64, len: u64) {
        self.medium().punch(offset, len);
    }

    fn zero(&self, offset: u64, len: u64, give_back: bool) -> io::Result<()> {
        self.medium().zero(offset, len, give_back)
    }

    fn sync(&self) -> io::Result<()> {
        self.medium().sync()
    }
}
