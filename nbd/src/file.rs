//! A file or block device as a volume, through the page cache.

use blockio::{BlockError, BlockSink, BlockSource, Extent, ExtentKind, Geometry, Kind, Op};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tracing::info;

/// Below this a look at the file's map costs more than reading what may be a hole.
const MAP_MIN: u64 = 64 << 10;

/// Zeros written at once where the file system makes none by itself: a chunk.
const ZEROS: usize = 1 << 20;

/// A file or block device, read and written through the page cache. What is in the cache is read without a wait.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    path: PathBuf,
    size: AtomicU64,
    /// The file system makes zeros by a note in its tables; unknown until it has refused.
    zero_range: AtomicBool,
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
            size: AtomicU64::new(size),
            zero_range: AtomicBool::new(true),
        })
    }

    /// Takes up the size that the file has now, when that is larger than before. Returns the bytes of the volume.
    ///
    /// # Errors
    /// When the size cannot be found out.
    pub fn look_again(&self) -> Result<u64, BlockError> {
        let failed = |error| BlockError::from_io(Op::Stat, error).on(&self.path);
        let size = (&self.file).seek(io::SeekFrom::End(0)).map_err(failed)?;
        Ok(self.size.fetch_max(size, Ordering::AcqRel).max(size))
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Zeros as bytes, where the file system has no other way.
    fn write_plain_zeroes(&self, range: Extent) -> Result<(), BlockError> {
        let zeros = vec![0; ZEROS.min(range.bytes())];
        let mut at = range.offset;
        while at < range.end() {
            let piece = Extent::between(at, range.end().min(at + zeros.len() as u64));
            self.write_at(at, &zeros[..piece.bytes()])?;
            at = piece.end();
        }
        Ok(())
    }

    fn failed(&self, op: Op, extent: Extent, error: impl Into<io::Error>) -> BlockError {
        BlockError::from_io(op, error.into()).on(&self.path).at(extent)
    }

    fn check(&self, op: Op, extent: Extent) -> Result<(), BlockError> {
        if extent.end() > self.size() {
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
        Geometry::of_bytes(self.size())
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
        if self.zero_range.load(Ordering::Relaxed) {
            match self.fallocate(range, FallocateFlags::ZERO_RANGE) {
                Err(error) if matches!(error.kind, Kind::Unsupported(_)) => {
                    self.zero_range.store(false, Ordering::Relaxed);
                    info!(path = %self.path.display(), "this file system has no quick zeros: they are written as bytes");
                }
                done => return done,
            }
        }
        self.check(Op::Zero, range)?;
        self.write_plain_zeroes(range)
    }

    fn flush(&self) -> Result<(), BlockError> {
        let whole = Extent {
            offset: 0,
            len: self.size(),
        };
        self.file
            .sync_data()
            .map_err(|error| self.failed(Op::Sync, whole, error))
    }

    fn discard(&self, range: Extent) -> Result<(), BlockError> {
        match self.fallocate(range, FallocateFlags::PUNCH_HOLE) {
            Err(error) if matches!(error.kind, Kind::Unsupported(_)) => self.write_zeroes(range),
            done => done,
        }
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

    /// tmpfs has no ZERO_RANGE: zeros were refused there, and a device on top of it failed.
    #[test]
    fn zeros_are_written_where_the_file_system_makes_none() {
        for folder in ["/dev/shm", "/tmp"] {
            let file = tempfile::NamedTempFile::new_in(folder).unwrap();
            let content = vec![5; (3 << 20) + 512];
            std::fs::write(file.path(), &content).unwrap();
            let volume = FileSource::open(file.path(), true).unwrap();
            let range = Extent {
                offset: 512,
                len: (2 << 20) + 512,
            };
            volume.write_zeroes(range).unwrap();
            let mut expected = content;
            expected[512..(2 << 20) + 1024].fill(0);
            assert!(std::fs::read(file.path()).unwrap() == expected, "{folder}");
            assert!(
                volume
                    .write_zeroes(Extent {
                        offset: 3 << 20,
                        len: 513
                    })
                    .is_err(),
                "past the end"
            );
            volume
                .discard(Extent {
                    offset: 3 << 20,
                    len: 512,
                })
                .unwrap();
            expected[3 << 20..].fill(0);
            assert!(std::fs::read(file.path()).unwrap() == expected, "{folder}");
        }
    }

    #[test]
    fn a_file_that_grew_is_a_volume_that_grew() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1024).unwrap();
        let volume = FileSource::open(file.path(), true).unwrap();
        file.as_file().set_len(4096).unwrap();
        assert_eq!(volume.geometry().size, 1024, "only when it is told to look");
        assert_eq!(volume.look_again().unwrap(), 4096);
        volume.write_at(4000, &[1; 96]).unwrap();
        file.as_file().set_len(512).unwrap();
        assert_eq!(volume.look_again().unwrap(), 4096, "a volume does not shrink");
    }
}
