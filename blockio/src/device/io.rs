//! Reads and writes of any alignment, one at a time, in the calling thread.
//!
//! Whole units of direct IO in aligned memory go straight through; everything else through a bounce buffer. A write of part
//! of a unit reads it, changes it and writes it back, while no other write of this device is under way, so that two writes
//! to one unit both last.

use super::{Access, Device, Transfer};
use crate::buf::{BlockBuf, BufPool};
use crate::error::{BlockError, Kind, Op};
use crate::extent::{Extent, ExtentKind};
use crate::fault::{Outcome, strike};
use crate::geometry::{CHUNK_BYTES, Geometry, align_down};
use crate::traits::{BlockSink, BlockSource};
use crate::zeroing::Zeroer;
use std::os::unix::fs::FileExt;
use std::sync::PoisonError;

/// Bounce buffers of a device: as many unaligned requests at once as there are cores in a common node. The next one waits.
const BOUNCE_SLOTS: usize = 8;

impl Device {
    /// Makes durable what was written through either descriptor: they are of one object.
    ///
    /// # Errors
    /// When that is not certain.
    pub fn sync(&self) -> Result<(), BlockError> {
        if let Some(outcome) = strike(self.faults.as_ref(), Op::Sync, None) {
            outcome.at_once(Op::Sync).map_err(|e| e.on(&self.path))?;
        }
        self.sync_file()
    }

    /// [`Self::sync`] without faults.
    pub(crate) fn sync_file(&self) -> Result<(), BlockError> {
        self.file
            .sync_data()
            .map_err(|e| BlockError::from_io(Op::Sync, e).on(&self.path))
    }

    /// Runs a read to its end. `buf` is aligned if the extent is below the tail.
    pub(crate) fn run_read(&self, mut transfer: Transfer, buf: &mut [u8]) -> Result<(), BlockError> {
        while let Some(piece) = transfer.piece(&self.geometry) {
            let answer = self
                .lane(piece.lane)
                .read_at(&mut buf[piece.at..piece.at + piece.len], piece.offset);
            transfer.advance(self, &piece, answer)?;
        }
        Ok(())
    }

    /// Runs a write to its end. `buf` is aligned if the extent is below the tail.
    pub(crate) fn run_write(&self, mut transfer: Transfer, buf: &[u8]) -> Result<(), BlockError> {
        while let Some(piece) = transfer.piece(&self.geometry) {
            let answer = self
                .lane(piece.lane)
                .write_at(&buf[piece.at..piece.at + piece.len], piece.offset);
            transfer.advance(self, &piece, answer)?;
        }
        Ok(())
    }

    /// Whether this device may be written: opened for it, and the extent inside.
    pub(crate) fn check_write(&self, op: Op, extent: Extent) -> Result<(), BlockError> {
        let refuse = |kind| Err(BlockError::new(op, kind).at(extent).on(&self.path));
        if self.access == Access::Read {
            return refuse(Kind::InvalidInput("opened for reading only".to_owned()));
        }
        if extent
            .offset
            .checked_add(extent.len)
            .is_none_or(|end| end > self.geometry.size)
        {
            return refuse(Kind::OutOfRange);
        }
        Ok(())
    }

    /// Whether this device may be read.
    pub(crate) fn check_read(&self, extent: Extent) -> Result<(), BlockError> {
        if self.access == Access::Write {
            let what = "opened for writing only".to_owned();
            return Err(BlockError::new(Op::Read, Kind::InvalidInput(what))
                .at(extent)
                .on(&self.path));
        }
        Ok(())
    }

    /// An aligned buffer of one chunk.
    pub(crate) fn bounce(&self) -> Result<BlockBuf, BlockError> {
        let pool = match self.bounce.get() {
            Some(pool) => pool,
            None => {
                let pool = BufPool::new(CHUNK_BYTES, BOUNCE_SLOTS)?;
                self.bounce.get_or_init(|| pool)
            }
        };
        Ok(pool.take())
    }

    /// First byte behind the last whole unit of direct IO.
    fn tail_start(&self) -> u64 {
        align_down(self.geometry.size, self.align())
    }

    fn align(&self) -> u64 {
        u64::from(self.geometry.offset_align)
    }

    fn is_memory_aligned(&self, buf: &[u8]) -> bool {
        buf.as_ptr().addr().is_multiple_of(self.geometry.memory_align as usize)
    }

    /// Reads bytes that exist, whatever their alignment.
    fn read_existing(&self, extent: Extent, buf: &mut [u8], limit: Option<usize>) -> Result<(), BlockError> {
        let (align, tail) = (self.align(), self.tail_start());
        let transfer = |extent| {
            let transfer = Transfer::new(Op::Read, extent);
            limit.map_or(transfer.clone(), |bytes| transfer.in_calls_of(bytes))
        };
        let starts_well = extent.offset >= tail || extent.offset.is_multiple_of(align);
        let ends_well = extent.end() >= tail || extent.end().is_multiple_of(align);
        if starts_well && ends_well && (extent.offset >= tail || self.is_memory_aligned(buf)) {
            return self.run_read(transfer(extent), buf);
        }
        let mut bounce = None;
        let mut left = extent;
        let mut buf = buf;
        while !left.is_empty() {
            if left.offset >= tail {
                return self.run_read(transfer(left), buf);
            }
            let bounce = match &mut bounce {
                Some(bounce) => bounce,
                none => none.insert(self.bounce()?),
            };
            let start = align_down(left.offset, align);
            let units = Extent::between(start, left.end().next_multiple_of(align).min(tail));
            let units = units
                .clip(Extent {
                    offset: start,
                    len: bounce.len() as u64,
                })
                .unwrap_or(units);
            self.run_read(transfer(units), bounce)?;
            let wanted = left.clip(units).unwrap_or(left);
            let (now, later) = buf.split_at_mut(wanted.bytes());
            now.copy_from_slice(&bounce[Extent::between(start, wanted.offset).bytes()..][..wanted.bytes()]);
            buf = later;
            left = Extent::between(wanted.end(), left.end());
        }
        Ok(())
    }

    /// Writes bytes that exist, whatever their alignment.
    fn write_existing(&self, extent: Extent, buf: &[u8], limit: Option<usize>) -> Result<(), BlockError> {
        let (align, tail) = (self.align(), self.tail_start());
        let transfer = |extent| {
            let transfer = Transfer::new(Op::Write, extent);
            limit.map_or(transfer.clone(), |bytes| transfer.in_calls_of(bytes))
        };
        let mut left = extent;
        let mut buf = buf;
        while !left.is_empty() {
            let units = left
                .clip(Extent { offset: 0, len: tail })
                .and_then(|below| below.align_inwards(align));
            let part = match units {
                _ if left.offset >= tail => left,
                Some(units) if units.offset == left.offset => units,
                _ => left
                    .clip(Extent {
                        offset: align_down(left.offset, align),
                        len: align,
                    })
                    .unwrap_or(left),
            };
            let (now, later) = buf.split_at(part.bytes());
            let is_edge = part.offset < tail && !(part.offset.is_multiple_of(align) && part.len.is_multiple_of(align));
            if is_edge {
                self.write_edge(part, now)?;
            } else {
                let _shared = self.edges.read().unwrap_or_else(PoisonError::into_inner);
                if part.offset >= tail || self.is_memory_aligned(now) {
                    self.run_write(transfer(part), now)?;
                } else {
                    let mut bounce = self.bounce()?;
                    let pieces = now.chunks(bounce.len()).zip((part.offset..).step_by(bounce.len()));
                    for (piece, offset) in pieces {
                        bounce[..piece.len()].copy_from_slice(piece);
                        self.run_write(
                            transfer(Extent {
                                offset,
                                len: piece.len() as u64,
                            }),
                            &bounce,
                        )?;
                    }
                }
            }
            buf = later;
            left = Extent::between(part.end(), left.end());
        }
        Ok(())
    }

    /// Writes part of one unit of direct IO.
    fn write_edge(&self, part: Extent, bytes: &[u8]) -> Result<(), BlockError> {
        if self.access == Access::Write {
            let what = "part of a block, on a device that was opened for writing only".to_owned();
            return Err(BlockError::new(Op::Write, Kind::InvalidInput(what))
                .at(part)
                .on(&self.path));
        }
        let unit = Extent {
            offset: align_down(part.offset, self.align()),
            len: self.align(),
        };
        let mut bounce = self.bounce()?;
        let _alone = self.edges.write().unwrap_or_else(PoisonError::into_inner);
        self.run_read(Transfer::new(Op::Read, unit), &mut bounce)?;
        bounce[Extent::between(unit.offset, part.offset).bytes()..][..bytes.len()].copy_from_slice(bytes);
        self.run_write(Transfer::new(Op::Write, unit), &bounce)
    }

    /// The limit a planned fault sets to this operation, or its failure.
    fn struck(&self, op: Op, extent: Extent) -> Result<Option<usize>, BlockError> {
        let outcome = strike(self.faults.as_ref(), op, Some(extent));
        outcome
            .map(|outcome: Outcome| outcome.at_once(op))
            .transpose()
            .map_err(|e| e.at(extent).on(&self.path))
    }
}

impl BlockSource for Device {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        let Some(asked) = Extent::new(offset, buf.len() as u64) else {
            return Err(BlockError::new(Op::Read, Kind::OutOfRange).on(&self.path));
        };
        self.check_read(asked)?;
        let existing = asked.clip(self.geometry.extent());
        let (bytes, past_end) = buf.split_at_mut(existing.map_or(0, |extent| extent.bytes()));
        if let Some(extent) = existing {
            let limit = self.struck(Op::Read, extent)?;
            self.read_existing(extent, bytes, limit)?;
        }
        past_end.fill(0);
        Ok(())
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        let mut at = range.offset;
        for data in self.allocated_extents(range)? {
            if at < data.offset {
                out.push((Extent::between(at, data.offset), ExtentKind::Hole));
            }
            out.push((data, ExtentKind::Data));
            at = data.end();
        }
        if at < range.end() {
            out.push((Extent::between(at, range.end()), ExtentKind::Hole));
        }
        Ok(())
    }
}

impl BlockSink for Device {
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), BlockError> {
        let extent = Extent {
            offset,
            len: buf.len() as u64,
        };
        self.check_write(Op::Write, extent)?;
        let limit = self.struck(Op::Write, extent)?;
        self.write_existing(extent, buf, limit)
    }

    /// The cheapest way the device takes, found anew by each call; a caller with much to zero keeps a [`Zeroer`].
    fn write_zeroes(&self, range: Extent) -> Result<(), BlockError> {
        Zeroer::new(self.faults.clone()).zero(self, range).map(|_| ())
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.sync()
    }
}
