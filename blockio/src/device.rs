//! A block device or a regular file, opened for direct IO: what it is, how large, who else has it.

mod claim;
pub mod fingerprint;
mod io;
mod transfer;

pub use claim::mounted_at;
pub(crate) use transfer::{Lane, Piece, Transfer};

use crate::buf::BufPool;
use crate::error::{BlockError, Kind, Op};
use crate::extent::Extent;
use crate::fault::FaultPlan;
use crate::geometry::{CHUNK_SIZE, Geometry, align_up};
use crate::sys::alloc::PAGE_BYTES;
use crate::sys::ioctl;
use std::fs::{self, File, FileType, Metadata, TryLockError};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{OnceLock, RwLock};

/// What will be done with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Write, in whole units of direct IO only: anything else has to read first.
    Write,
    /// Read and write.
    ReadWrite,
}

/// How to open a device. No default: the wrong one could overwrite a mounted disk.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// What will be done with it.
    pub access: Access,
    /// Nobody else may use it: an exclusive claim on a block device, a lock on a file; mounted ones, swap, and files behind a
    /// loop device are refused.
    pub exclusive: bool,
    /// Past the page cache. Where the file system cannot, IO is buffered, and [`Device::buffered_reason`] says why.
    pub direct: bool,
}

impl OpenOptions {
    /// To read a volume that others may use: direct, not exclusive.
    pub const fn read() -> Self {
        Self {
            access: Access::Read,
            exclusive: false,
            direct: true,
        }
    }

    /// To overwrite a volume: direct, exclusive, readable for edges and for verification.
    pub const fn overwrite() -> Self {
        Self {
            access: Access::ReadWrite,
            exclusive: true,
            direct: true,
        }
    }
}

/// What becomes of the length of what is opened.
#[derive(Clone, Copy)]
enum Length {
    /// It stays.
    Kept,
    /// A file of fewer bytes grows to these.
    AtLeast(u64),
    /// A file loses its bytes and gets as many zeros.
    Replaced(u64),
}

/// Which storage object a device is. Equal ids are the same object, whatever paths lead to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceId {
    /// A block device.
    Block {
        /// Major and minor number in one, as `stat` gives it.
        number: u64,
    },
    /// A regular file.
    File {
        /// The device its file system is on.
        device: u64,
        /// Its number in that file system.
        inode: u64,
    },
}

impl DeviceId {
    fn of(meta: &Metadata) -> Self {
        match meta.file_type().is_block_device() {
            true => Self::Block { number: meta.rdev() },
            false => Self::File {
                device: meta.dev(),
                inode: meta.ino(),
            },
        }
    }
}

/// An open block device or regular file of fixed size.
///
/// Direct IO of the bulk path goes through an `Engine`; the device itself serves requests of any alignment through
/// [`BlockSource`](crate::BlockSource) and [`BlockSink`](crate::BlockSink).
#[derive(Debug)]
pub struct Device {
    file: File,
    /// Buffered descriptor for the bytes behind the last whole unit of direct IO; present only if there are such bytes.
    tail: Option<File>,
    path: PathBuf,
    id: DeviceId,
    geometry: Geometry,
    access: Access,
    direct: bool,
    buffered_reason: Option<String>,
    /// Held exclusively while a part of a unit is read, changed and written back; shared by writes of whole units.
    edges: RwLock<()>,
    bounce: OnceLock<BufPool>,
    faults: Option<FaultPlan>,
}

impl Device {
    /// Opens what is at `path`.
    ///
    /// # Errors
    /// When it is not there, is neither a block device nor a regular file, is in use or mounted (with `exclusive`), is
    /// read-only (to write), or its geometry cannot be had.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, BlockError> {
        // An O_PATH descriptor pins the object without opening it: what is checked is what is then opened, and a FIFO
        // cannot make the open wait for its other end.
        let mut pin = fs::OpenOptions::new();
        let pin = pin
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(path)
            .map_err(|e| os_error(Op::Open, path, e))?;
        Self::open_pinned(&pin, path, options, Length::Kept)
    }

    /// Opens what is at `path`, and makes it `size` bytes long when it is a file that is shorter. What is added reads as zeros.
    ///
    /// # Errors
    /// As [`Self::open`], and when the file cannot grow, which one opened for reading cannot.
    pub fn open_grown(path: &Path, size: u64, options: &OpenOptions) -> Result<Self, BlockError> {
        let mut pin = fs::OpenOptions::new();
        let pin = pin
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(path)
            .map_err(|e| os_error(Op::Open, path, e))?;
        Self::open_pinned(&pin, path, options, Length::AtLeast(size))
    }

    /// Creates a regular file of `size` bytes that reads as zeros, for direct reading and writing, exclusively.
    ///
    /// # Errors
    /// When something is there already and `replace` is not set, it is not a regular file, or it is in use.
    pub fn create_file(path: &Path, size: u64, replace: bool) -> Result<Self, BlockError> {
        Self::create_file_with(path, size, replace, &OpenOptions::overwrite())
    }

    /// [`Self::create_file`], opened as told. With `replace`, a file that is there keeps its name and loses its bytes, after
    /// it is locked (with `exclusive`).
    ///
    /// # Errors
    /// As [`Self::create_file`].
    pub fn create_file_with(path: &Path, size: u64, replace: bool, options: &OpenOptions) -> Result<Self, BlockError> {
        if options.access == Access::Read {
            let what = "a file that is created is opened for writing".to_owned();
            return Err(BlockError::new(Op::Open, Kind::InvalidInput(what)).on(path));
        }
        let pin = match fs::metadata(path) {
            Ok(_) if !replace => {
                let what = "something is there already; name another place, or ask for it to be replaced".to_owned();
                return Err(BlockError::new(Op::Open, Kind::InvalidInput(what)).on(path));
            }
            Ok(_) => fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path),
            Err(_) => fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path),
        };
        let pin = pin.map_err(|e| os_error(Op::Open, path, e))?;
        let device = Self::open_pinned(&pin, path, options, Length::Replaced(size))?;
        // The name is as durable as the bytes will be.
        let folder = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|e| os_error(Op::Sync, folder, e))?;
        Ok(device)
    }

    fn open_pinned(pin: &File, path: &Path, options: &OpenOptions, length: Length) -> Result<Self, BlockError> {
        let meta = pin.metadata().map_err(|e| os_error(Op::Stat, path, e))?;
        let id = DeviceId::of(&meta);
        let block = meta.file_type().is_block_device();
        let refuse = |kind| Err(BlockError::new(Op::Open, kind).on(path));
        if !(meta.is_file() || (block && !matches!(length, Length::Replaced(_)))) {
            return refuse(Kind::NotADevice(describe(meta.file_type()).to_owned()));
        }
        if options.exclusive
            && let Some(place) = mounted_at(id)
        {
            return refuse(Kind::Mounted(place));
        }

        let claim = if options.exclusive && block { libc::O_EXCL } else { 0 };
        let (file, buffered_reason) = match options.direct {
            false => (
                reopen(pin, options.access, claim),
                Some("buffered IO was asked for".to_owned()),
            ),
            true => match reopen(pin, options.access, claim | libc::O_DIRECT) {
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => (
                    reopen(pin, options.access, claim),
                    Some("the file system has no direct IO".to_owned()),
                ),
                opened => (opened, None),
            },
        };
        let file = file.map_err(|e| open_error(e, id, options.access, path))?;
        if options.exclusive && !block {
            claim_file(&file, id, path)?;
        }
        let resized = match length {
            Length::Replaced(size) => file.set_len(0).and_then(|()| file.set_len(size)),
            Length::AtLeast(size) if !block && meta.len() < size => file.set_len(size),
            Length::AtLeast(_) | Length::Kept => Ok(()),
        };
        resized.map_err(|e| os_error(Op::Open, path, e))?;

        let stat_error = |e| os_error(Op::Stat, path, e);
        let mut device = Self {
            geometry: Geometry::of_bytes(size_of(&file, block).map_err(stat_error)?),
            file,
            tail: None,
            path: path.to_owned(),
            id,
            access: options.access,
            direct: buffered_reason.is_none(),
            buffered_reason,
            edges: RwLock::new(()),
            bounce: OnceLock::new(),
            faults: None,
        };
        device.learn_blocks(&meta).map_err(stat_error)?;
        device.learn_alignment(pin).map_err(stat_error)?;
        if block && options.access != Access::Read && ioctl::is_read_only(&device.file).map_err(stat_error)? {
            return refuse(Kind::ReadOnly);
        }
        if !device
            .geometry
            .size
            .is_multiple_of(u64::from(device.geometry.offset_align))
        {
            device.tail = Some(reopen(pin, options.access, 0).map_err(|e| os_error(Op::Open, path, e))?);
        }
        Ok(device)
    }

    fn learn_blocks(&mut self, meta: &Metadata) -> std::io::Result<()> {
        if self.is_block_device() {
            self.geometry.logical_block = ioctl::logical_block(&self.file)?;
            self.geometry.physical_block = ioctl::physical_block(&self.file)?;
        } else {
            self.geometry.physical_block = u32::try_from(meta.blksize()).unwrap_or(4096);
        }
        Ok(())
    }

    /// Finds what direct IO asks for, and falls back to buffered IO where that is nothing our buffers can give.
    fn learn_alignment(&mut self, pin: &File) -> std::io::Result<()> {
        if !self.direct {
            return Ok(());
        }
        let said = ioctl::direct_io_alignment(&self.file).unwrap_or(None); // ENOSYS before Linux 4.11, EPERM under old seccomp
        let floor = if self.is_block_device() {
            self.geometry.logical_block
        } else {
            1
        };
        let (memory, offset) = match said {
            // The kernel does not say: the logical block of a device, 4096 bytes for a file, hold everywhere.
            None if self.is_block_device() => (PAGE_ALIGN, floor),
            None => (PAGE_ALIGN, PAGE_ALIGN),
            Some((memory, offset)) => (memory, if offset == 0 { 0 } else { offset.max(floor) }),
        };
        let usable = memory.is_power_of_two()
            && memory <= PAGE_ALIGN
            && offset.is_power_of_two()
            && u64::from(offset) <= CHUNK_SIZE / 16;
        if usable {
            self.geometry.memory_align = memory;
            self.geometry.offset_align = offset;
        } else {
            // The descriptor it was opened by holds the claim or lock, so it stays, in the place of a tail there is none of.
            self.buffered_reason = Some(match offset {
                0 => "the file system has no direct IO for this file".to_owned(),
                _ => format!("direct IO asks for memory aligned to {memory} and offsets to {offset} bytes"),
            });
            self.direct = false;
            self.geometry.offset_align = 1;
            self.geometry.memory_align = 1;
            let buffered = reopen(pin, self.access, 0)?;
            self.tail = Some(std::mem::replace(&mut self.file, buffered));
        }
        Ok(())
    }

    /// The same device with faults in what it does itself. The engines have a plan of their own.
    #[must_use]
    pub fn with_faults(mut self, faults: Option<FaultPlan>) -> Self {
        self.faults = faults;
        self
    }

    /// Size and blocks, as they were when it was opened.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device; a regular file otherwise.
    pub fn is_block_device(&self) -> bool {
        matches!(self.id, DeviceId::Block { .. })
    }

    /// Whether IO goes past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Why IO does not go past the page cache; `None` when it does.
    pub fn buffered_reason(&self) -> Option<&str> {
        self.buffered_reason.as_deref()
    }

    /// Which storage object it is.
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// Whether writing to one may change the other: the same object, a partition and its disk, a loop device and its file.
    /// Stacks of device mapper, and storage behind a network, are not looked through.
    pub fn shares_storage_with(&self, other: &Self) -> bool {
        let (ours, theirs) = (claim::underlying(self.id), claim::underlying(other.id));
        self.id == other.id || ours.contains(&other.id) || theirs.contains(&self.id)
    }

    /// Bytes of the device at this moment.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn current_size(&self) -> Result<u64, BlockError> {
        size_of(&self.file, self.is_block_device()).map_err(|e| os_error(Op::Stat, &self.path, e))
    }

    /// Whether all the bytes are there that were when it was opened. More is no fault.
    ///
    /// # Errors
    /// [`Kind::Shrunk`] when some are gone.
    pub fn check_not_shrunk(&self) -> Result<(), BlockError> {
        let (was, is) = (self.geometry.size, self.current_size()?);
        if is < was {
            return Err(BlockError::new(Op::Stat, Kind::Shrunk { was, is }).on(&self.path));
        }
        Ok(())
    }

    /// The parts of `range` that are not known to be holes, ascending, apart from each other, in whole chunks but for the
    /// ends of `range` and of the volume. A block device cannot say: all of it.
    ///
    /// # Errors
    /// When the file system fails to say.
    pub fn allocated_extents(&self, range: Extent) -> Result<Vec<Extent>, BlockError> {
        let Some(range) = range.clip(self.geometry.extent()) else {
            return Ok(Vec::new());
        };
        if self.is_block_device() {
            return Ok(vec![range]);
        }
        let failed = |e| BlockError::from_io(Op::Map, e).at(range).on(&self.path);
        let mut found: Vec<Extent> = Vec::new();
        let mut at = range.offset;
        while at < range.end() {
            // One look per chunk at most, and one extent per two chunks: a shattered file costs no more than that.
            let Some(start) = ioctl::seek_data(&self.file, at).map_err(failed)? else {
                break;
            };
            if start >= range.end() {
                break;
            }
            let end = ioctl::seek_hole(&self.file, start)
                .map_err(failed)?
                .unwrap_or(range.end());
            let around = Extent::between(start, end.max(start + 1))
                .align_outwards(CHUNK_SIZE)
                .unwrap_or(range);
            let Some(around) = around.clip(range) else { break };
            match found.last_mut() {
                Some(last) if last.end() >= around.offset => *last = Extent::between(last.offset, around.end()),
                _ => found.push(around),
            }
            at = align_up(around.end(), CHUNK_SIZE).unwrap_or(u64::MAX);
        }
        Ok(found)
    }

    /// The descriptor it was opened by, which holds the claim: `file`, but in buffered fallback.
    fn claimant(&self) -> &File {
        match &self.tail {
            Some(first) if self.buffered_reason.is_some() => first,
            _ => &self.file,
        }
    }

    /// The error of a call that gave or took no bytes where the volume has some.
    pub(crate) fn out_of_bytes(&self, op: Op, extent: Extent) -> BlockError {
        let kind = self.check_not_shrunk().err().map_or(Kind::Short, |e| e.kind);
        BlockError::new(op, kind).at(extent).on(&self.path)
    }

    /// The descriptor for IO, and for zeroing.
    pub(crate) fn main(&self) -> &File {
        &self.file
    }

    /// The descriptor of a lane.
    pub(crate) fn lane(&self, lane: Lane) -> &File {
        match (lane, &self.tail) {
            (Lane::Tail, Some(tail)) => tail,
            _ => &self.file,
        }
    }
}

impl Drop for Device {
    /// Lets go of the lock on a file. Closing would do so too, but not while a child process that is just being started still
    /// has a copy of the descriptor. (The claim on a block device ends with the last copy only.)
    fn drop(&mut self) {
        if !self.is_block_device() {
            let _ = self.claimant().unlock(); // nothing to let go of if it was not exclusive
        }
    }
}

/// [`PAGE_BYTES`], as alignments are given.
const PAGE_ALIGN: u32 = 4096;
const _: () = assert!(PAGE_ALIGN as usize == PAGE_BYTES);

fn os_error(op: Op, path: &Path, error: std::io::Error) -> BlockError {
    BlockError::from_io(op, error).on(path)
}

/// Opens what `pin` is of.
fn reopen(pin: &File, access: Access, flags: i32) -> std::io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options
        .read(access != Access::Write)
        .write(access != Access::Read)
        .custom_flags(flags);
    options.open(format!("/proc/self/fd/{}", pin.as_raw_fd()))
}

fn open_error(error: std::io::Error, id: DeviceId, access: Access, path: &Path) -> BlockError {
    let mut failed = os_error(Op::Open, path, error);
    if let DeviceId::Block { number } = id {
        if matches!(failed.kind, Kind::Busy(_)) {
            let holders = claim::holders(number);
            failed.kind = match mounted_at(id) {
                Some(place) => Kind::Mounted(place),
                None if holders.is_empty() => Kind::Busy("another process or mount namespace".to_owned()),
                None => Kind::Busy(holders.join(", ")),
            };
        } else if access != Access::Read && claim::is_marked_read_only(number) {
            failed.kind = Kind::ReadOnly;
        }
    }
    failed
}

fn claim_file(file: &File, id: DeviceId, path: &Path) -> Result<(), BlockError> {
    let busy = |holder: String| Err(BlockError::new(Op::Open, Kind::Busy(holder)).on(path));
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return busy("a process that has it locked".to_owned()),
        Err(TryLockError::Error(e)) => return Err(os_error(Op::Open, path, e)),
    }
    match claim::loop_over(id) {
        Some(name) => busy(format!("/dev/{name}")),
        None => Ok(()),
    }
}

fn size_of(file: &File, block: bool) -> std::io::Result<u64> {
    if block {
        ioctl::size(file)
    } else {
        Ok(file.metadata()?.len())
    }
}

fn describe(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_block_device() {
        "a block device where a file was to be made"
    } else {
        "something else"
    }
}

#[cfg(test)]
mod tests;
