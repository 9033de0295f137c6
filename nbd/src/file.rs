//! A file or block device as a volume, through the page cache.

use blockio::{BlockError, BlockSink, BlockSource, Extent, ExtentKind, Geometry, Kind, Op};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Below this a look at the file's map costs more than reading what may be a hole.
const MAP_MIN: u64 = 64 << 10;

/// A file or block device, read and written through the page cache. What is in the cache is read without a wait.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    path: PathBuf,
    size: u64,
}

impl FileSource {
    /// Opens `path`, for writing too when `writable`.
    ///
    /// # Errors
    /// When it cannot be opened so, or its size not be found out.
    pub fn open(path: &Path, writable: bool) -> Result<Self, BlockError> {
        let failed = |op| move |error| BlockError::from_io(op, error).on(path);
        let mut file = OpenOptions::new()
            .read(true)
            .write(writable)
            .open(path)
            .map_err(failed(Op::Open))?;
        let size = file.seek(io::SeekFrom::End(0)).map_err(failed(Op::Stat))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            size,
        })
    }

    fn failed(&self, op: Op, extent: Extent, error: impl Into<io::Error>) -> BlockError {
        BlockError::from_io(op, error.into()).on(&self.path).at(extent)
    }

    fn check(&self, op: Op, extent: Extent) -> Result<(), BlockError> {
        if extent.end() > self.size {
            return Err(BlockError::new(op, Kind::OutOfRange).on(&self.path).at(extent));
        }
        Ok(())
    }

    fn fallocate(&self, range: Extent, mode: FallocateFlags) -> Result<(), BlockError> {
        self.check(Op::Zero, range)?;
        if range.is_empty() {
            return Ok(());
        }
        rustix::fs::fallocate(&self.file, mode | FallocateFlags::KEEP_SIZE, range.offset, range.len)
            .map_err(|error| self.failed(Op::Zero, range, error))
    }

    /// Where data, or a hole, begins at or behind `at`; `None` when there is none up to the end.
    fn seek(&self, target: SeekFrom) -> Result<Option<u64>, Errno> {
        match rustix::fs::seek(&self.file, target) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn of(offset: u64, buf: &[u8]) -> Extent {
    Extent {
        offset,
        len: buf.len() as u64,
    }
}

impl BlockSource for FileSource {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(self.size)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        let extent = of(offset, buf);
        self.check(Op::Read, extent)?;
        self.file
            .read_exact_at(buf, offset)
            .map_err(|error| self.failed(Op::Read, extent, error))
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        self.check(Op::Map, range)?;
        if range.len < MAP_MIN {
            out.push((range, ExtentKind::Data));
            return Ok(());
        }
        let failed = |error| self.failed(Op::Map, range, error);
        let mut at = range.offset;
        while at < range.end() {
            let data = self.seek(SeekFrom::Data(at)).map_err(failed)?;
            let data = data.unwrap_or(range.end()).clamp(at, range.end());
            if data > at {
                out.push((Extent::between(at, data), ExtentKind::Hole));
                at = data;
                continue;
            }
            let hole = self.seek(SeekFrom::Hole(at)).map_err(failed)?;
            // A file that changes meanwhile may say anything; data is never wrong.
            let hole = hole.filter(|hole| *hole > at).unwrap_or(range.end()).min(range.end());
            out.push((Extent::between(at, hole), ExtentKind::Data));
            at = hole;
        }
        Ok(())
    }

    fn prefetch(&self, range: Extent) {
        let len = std::num::NonZeroU64::new(range.len);
        // A hint: a kernel that does not take it changes nothing.
        let _ = rustix::fs::fadvise(&self.file, range.offset, len, rustix::fs::Advice::WillNeed);
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        let extent = of(offset, buf);
        self.check(Op::Read, extent)?;
        match rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT) {
            Ok(len) => Ok(len == buf.len()),
            // Not in the cache; or a file system without such reads. Either way the bytes are read by one who may wait.
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::INTR) => Ok(false),
            Err(error) => Err(self.failed(Op::Read, extent, error)),
        }
    }
}

impl BlockSink for FileSource {
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), BlockError> {
        let extent = of(offset, buf);
        self.check(Op::Write, extent)?;
        self.file
            .write_all_at(buf, offset)
            .map_err(|error| self.failed(Op::Write, extent, error))
    }

    fn write_zeroes(&self, range: Extent) -> Result<(), BlockError> {
        self.fallocate(range, FallocateFlags::ZERO_RANGE)
    }

    fn flush(&self) -> Result<(), BlockError> {
        let whole = Extent {
            offset: 0,
            len: self.size,
        };
        self.file
            .sync_data()
            .map_err(|error| self.failed(Op::Sync, whole, error))
    }

    fn discard(&self, range: Extent) -> Result<(), BlockError> {
        self.fallocate(range, FallocateFlags::PUNCH_HOLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_written_and_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let volume = FileSource::open(&path, true).unwrap();
        volume.write_at(256 << 10, &[7; 4096]).unwrap();
        volume.flush().unwrap();
        let mut buf = [0; 2];
        volume.read_at((256 << 10) - 1, &mut buf).unwrap();
        assert_eq!(buf, [0, 7]);
        assert!(
            volume.try_read_at(256 << 10, &mut buf).unwrap(),
            "just written, so in the cache"
        );
        let mut extents = Vec::new();
        volume.extents(volume.geometry().extent(), &mut extents).unwrap();
        let covered: u64 = extents.iter().map(|(extent, _)| extent.len).sum();
        assert_eq!(covered, 1 << 20);
        let data = |at: u64| {
            let found = extents
                .iter()
                .find(|(extent, _)| extent.offset <= at && at < extent.end());
            found.unwrap().1 == ExtentKind::Data
        };
        assert!(data(256 << 10));
        assert!(volume.write_at((1 << 20) - 1, &[0; 2]).is_err() && volume.read_at(1 << 20, &mut buf).is_err());
    }

    #[test]
    fn a_file_opened_for_reading_takes_no_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        std::fs::write(&path, [1; 512]).unwrap();
        let volume = FileSource::open(&path, false).unwrap();
        assert!(volume.write_at(0, &[2]).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), [1; 512]);
    }
}
