//! A volume as the only file of a FUSE file system.
//!
//! The protocol is spoken by the crate `fuser` without its feature `libfuse`: it is maintained, needs no C library or helper
//! program where we are root, and keeps step with the kernel's protocol. What it lacks, we do not need; what it costs is a
//! handful of small crates. A client of our own would be some 600 lines that parse the same messages.

use crate::export::Export;
use blockio::{BlockError, Extent, Kind};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, WriteFlags,
};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};
use tracing::warn;

/// The file. The directory has the number that FUSE gives to roots.
const FILE: INodeNo = INodeNo(2);

/// How long the kernel may rely on size and names. Where a volume grows, it is made to ask.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Longest request: 256 pages, the kernel's own limit for FUSE unless an administrator raised it.
pub(super) const REQUEST_MAX: u32 = 1 << 20;

/// Requests the kernel may have under way by itself (direct IO, read-ahead). A loop device has 128 requests.
const IN_FLIGHT: u16 = 128;

thread_local! {
    /// Where reads of this thread are put together: at most [`REQUEST_MAX`] bytes a thread.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The file system.
pub(super) struct VolumeFile {
    export: Arc<Export>,
    name: String,
}

impl VolumeFile {
    /// A file named `name` with the bytes of `export`.
    pub(super) fn new(export: Arc<Export>, name: &str) -> Self {
        Self {
            export,
            name: name.to_owned(),
        }
    }

    fn size(&self) -> u64 {
        self.export.size()
    }

    fn attr(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o500, 0),
            FILE if self.export.sink.is_some() => (FileType::RegularFile, 0o600, self.size()),
            FILE => (FileType::RegularFile, 0o400, self.size()),
            _ => return None,
        };
        let time = SystemTime::UNIX_EPOCH;
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    /// The part of a request inside the volume; `None` when some of it is outside.
    fn inside(&self, offset: u64, len: u64) -> Option<Extent> {
        Extent::new(offset, len).filter(|extent| extent.end() <= self.size())
    }

    /// Does what the volume is asked for, and finds the number for what goes wrong. A panic is a fault of the volume.
    fn ask<T>(&self, work: impl FnOnce() -> Result<T, BlockError>) -> Result<T, Errno> {
        let counters = &self.export.counters;
        counters.requests.fetch_add(1, Ordering::Relaxed);
        let done = catch_unwind(AssertUnwindSafe(work));
        let (errno, error) = match done {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => (errno_of(&error), error.to_string()),
            Err(_) => (Errno::EIO, "a panic of the volume".to_owned()),
        };
        let count = counters.failures.fetch_add(1, Ordering::Relaxed) + 1;
        // A reader that tries again and again must not fill the log.
        if count.is_power_of_two() {
            warn!(count, error, "a request failed on its volume");
        }
        Err(errno)
    }

    fn read_into(&self, extent: Extent, reply: ReplyData) {
        self.export.counters.bytes_read.fetch_add(extent.len, Ordering::Relaxed);
        if let Some(lent) = self.export.source.lend(extent)
            && lent.len() as u64 == extent.len
        {
            self.export.counters.requests.fetch_add(1, Ordering::Relaxed);
            reply.data(&lent);
            return;
        }
        BUFFER.with_borrow_mut(|buffer| {
            let len = extent.bytes();
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let buffer = &mut buffer[..len];
            match self.ask(|| self.export.source.read_at(extent.offset, buffer)) {
                Ok(()) => reply.data(buffer),
                Err(errno) => reply.error(errno),
            }
        });
    }
}

/// Of what a volume says, what a block device can pass on: the block layer knows few errors.
fn errno_of(error: &BlockError) -> Errno {
    match error.kind {
        Kind::NoSpace => Errno::ENOSPC,
        Kind::ReadOnly => Errno::EROFS,
        _ => Errno::EIO,
    }
}

/// What a fallocate is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zeroing {
    /// Zero, and the space may go back.
    Punch,
    /// Zero, and the space stays.
    Zero,
}

impl Zeroing {
    /// Of a mode of fallocate. Others would change the size or allocate, which means nothing here.
    fn of(mode: i32) -> Option<Self> {
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            libc::FALLOC_FL_PUNCH_HOLE => Some(Self::Punch),
            libc::FALLOC_FL_ZERO_RANGE => Some(Self::Zero),
            _ => None,
        }
    }
}

impl Filesystem for VolumeFile {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What a kernel does not have is slower, not wrong; it says what the nearest is.
        let _ = config.set_max_write(REQUEST_MAX);
        let _ = config.set_max_background(IN_FLIGHT);
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attr(FILE) {
            Some(attr) if parent == INodeNo::ROOT && name == self.name.as_str() => {
                reply.entry(&FOR_EVER, &attr, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(inode) {
            Some(attr) => reply.attr(&FOR_EVER, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (FILE, FileType::RegularFile, self.name.as_str()),
        ];
        for (next, (inode, kind, name)) in (1..).zip(entries) {
            if next > offset && reply.add(inode, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if inode != FILE {
            reply.error(Errno::ENOENT);
        } else if self.export.sink.is_none() && flags.acc_mode() != OpenAccMode::O_RDONLY {
            reply.error(Errno::EROFS);
        } else {
            // No second copy in the page cache; and writes need not wait for one another: the block layer orders them.
            let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
            reply.opened(FileHandle(0), flags);
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if inode != FILE {
            return reply.error(Errno::ENOENT);
        }
        let len = self.size().saturating_sub(offset).min(size.min(REQUEST_MAX).into());
        self.read_into(Extent { offset, len }, reply);
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(sink) = self.export.sink.as_ref().filter(|_| inode == FILE) else {
            return reply.error(Errno::EROFS);
        };
        let Some(extent) = self.inside(offset, data.len() as u64) else {
            return reply.error(Errno::ENOSPC);
        };
        self.export
            .counters
            .bytes_written
            .fetch_add(extent.len, Ordering::Relaxed);
        match self.ask(|| sink.write_at(offset, data)) {
            // At most 16 MiB: the kernel was told less.
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // A close, which promises nothing.
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let Some(sink) = &self.export.sink else {
            return reply.ok();
        };
        match self.ask(|| sink.flush()) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(sink) = self.export.sink.as_ref().filter(|_| inode == FILE) else {
            return reply.error(Errno::EROFS);
        };
        let (Some(zeroing), Some(extent)) = (Zeroing::of(mode), self.inside(offset, length)) else {
            return reply.error(Errno::EOPNOTSUPP);
        };
        let zeroed = self.ask(|| match zeroing {
            Zeroing::Punch => sink.discard(extent),
            Zeroing::Zero => sink.write_zeroes(extent),
        });
        match zeroed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_zeros_are_made_by_fallocate() {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        assert_eq!(Zeroing::of(libc::FALLOC_FL_PUNCH_HOLE | keep), Some(Zeroing::Punch));
        assert_eq!(Zeroing::of(libc::FALLOC_FL_ZERO_RANGE | keep), Some(Zeroing::Zero));
        assert_eq!(Zeroing::of(libc::FALLOC_FL_ZERO_RANGE), Some(Zeroing::Zero));
        assert_eq!(Zeroing::of(keep), None);
        assert_eq!(Zeroing::of(libc::FALLOC_FL_COLLAPSE_RANGE), None);
        assert_eq!(Zeroing::of(-1), None);
    }
}
