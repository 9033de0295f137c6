//! How one read or write gets through: what to ask of which descriptor next, and what an answer means. No IO in here, so
//! that both engines and the plain calls share it.
//!
//! A volume whose size is not a multiple of what direct IO asks for has a tail. The part below it goes through the direct
//! descriptor; the tail goes through a second, buffered one, whose page cache the kernel keeps in step with direct IO. (An
//! aligned read past the end would do for files as well, but never a write.) Tails are of files: a block device whose size
//! is not a multiple of its own logical block has bytes at its end that Linux reads by neither way, and says EIO.

use super::Device;
use crate::error::{BlockError, Op};
use crate::extent::Extent;
use crate::geometry::{Geometry, align_down};
use std::io;

/// Most bytes asked for at once: what the kernel transfers at most (`MAX_RW_COUNT`, 2 GiB less a page) is more, and a power
/// of two stays aligned.
const PIECE_BYTES_MAX: u64 = 1 << 30;

/// Answers without progress in a row before a transfer is given up: interrupted calls, a kernel short of memory.
const IDLE_ANSWERS_MAX: u32 = 16;

/// Which descriptor of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Direct IO; or all IO, on a device that is opened buffered.
    Main,
    /// Buffered IO, for the tail.
    Tail,
}

/// The next call to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) lane: Lane,
    /// Offset on the volume.
    pub(crate) offset: u64,
    /// Offset in the buffer.
    pub(crate) at: usize,
    pub(crate) len: usize,
}

/// A read or write on its way. Begins at a multiple of `offset_align` or in the tail, ends at one or in the tail.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    op: Op,
    extent: Extent,
    done: u64,
    idle_answers: u32,
    /// At most so many bytes at once; a fault's doing.
    limit: u64,
}

impl Transfer {
    /// A transfer of `extent`, all of it below the size of the volume.
    pub(crate) fn new(op: Op, extent: Extent) -> Self {
        Self {
            op,
            extent,
            done: 0,
            idle_answers: 0,
            limit: PIECE_BYTES_MAX,
        }
    }

    /// The same, in calls of `bytes` at most (but one unit of direct IO at least).
    pub(crate) fn in_calls_of(mut self, bytes: usize) -> Self {
        self.limit = (bytes as u64).clamp(1, PIECE_BYTES_MAX);
        self
    }

    pub(crate) fn op(&self) -> Op {
        self.op
    }

    /// Next call to make; `None` when all bytes are through.
    pub(crate) fn piece(&self, geometry: &Geometry) -> Option<Piece> {
        let align = u64::from(geometry.offset_align);
        let tail = align_down(geometry.size, align);
        let left = Extent::between(self.extent.offset + self.done, self.extent.end());
        if left.is_empty() {
            return None;
        }
        let (lane, len) = if left.offset < tail {
            let limit = align_down(self.limit, unit(geometry)).max(unit(geometry));
            (Lane::Main, left.end().min(tail).saturating_sub(left.offset).min(limit))
        } else {
            (Lane::Tail, left.len.min(self.limit))
        };
        let bytes = |value: u64| usize::try_from(value).expect("a transfer fits its buffer");
        Some(Piece {
            lane,
            offset: left.offset,
            at: bytes(self.done),
            len: bytes(len),
        })
    }

    /// Takes the answer to the call for `piece`. A short answer is progress; the rest is the next piece.
    ///
    /// # Errors
    /// When the transfer has failed.
    pub(crate) fn advance(
        &mut self,
        device: &Device,
        piece: &Piece,
        answer: io::Result<usize>,
    ) -> Result<(), BlockError> {
        let through = match answer {
            Ok(0) => return Err(device.out_of_bytes(self.op, self.extent)),
            Ok(bytes) => bytes.min(piece.len) as u64,
            Err(e) if e.kind() == io::ErrorKind::Interrupted || e.kind() == io::ErrorKind::WouldBlock => {
                return self.idle(device, Some(e));
            }
            Err(e) => return Err(BlockError::from_io(self.op, e).at(self.extent).on(device.path())),
        };
        let unit = if piece.lane == Lane::Main {
            unit(&device.geometry())
        } else {
            1
        };
        let whole_units = if through == piece.len as u64 {
            through
        } else {
            align_down(through, unit)
        };
        if whole_units < through && device.check_not_shrunk().is_err() {
            // An answer that ends within a unit ends where the file does.
            return Err(device.out_of_bytes(self.op, self.extent));
        }
        if whole_units == 0 {
            return self.idle(device, None);
        }
        self.done += whole_units;
        self.idle_answers = 0;
        Ok(())
    }

    fn idle(&mut self, device: &Device, cause: Option<io::Error>) -> Result<(), BlockError> {
        self.idle_answers += 1;
        if self.idle_answers < IDLE_ANSWERS_MAX {
            return Ok(());
        }
        Err(match cause {
            Some(e) => BlockError::from_io(self.op, e).at(self.extent).on(device.path()),
            None => device.out_of_bytes(self.op, self.extent),
        })
    }
}

/// Bytes after which a direct transfer can be resumed: offset and memory address are then both aligned.
fn unit(geometry: &Geometry) -> u64 {
    u64::from(geometry.offset_align.max(geometry.memory_align))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use proptest::prelude::*;

    fn geometry(size: u64, align: u32) -> Geometry {
        Geometry {
            size,
            logical_block: align,
            physical_block: align,
            offset_align: align,
            memory_align: align,
        }
    }

    #[test]
    fn the_tail_goes_through_its_own_lane() {
        let geometry = geometry(5 * 4096 + 100, 4096);
        let mut transfer = Transfer::new(
            Op::Read,
            Extent {
                offset: 4096,
                len: 4 * 4096 + 100,
            },
        );
        let first = transfer.piece(&geometry).unwrap();
        assert_eq!(
            first,
            Piece {
                lane: Lane::Main,
                offset: 4096,
                at: 0,
                len: 4 * 4096
            }
        );
        transfer.done = 4 * 4096;
        let second = transfer.piece(&geometry).unwrap();
        assert_eq!(
            second,
            Piece {
                lane: Lane::Tail,
                offset: 5 * 4096,
                at: 4 * 4096,
                len: 100
            }
        );
        transfer.done += 100;
        assert_eq!(transfer.piece(&geometry), None);
    }

    #[test]
    fn answers_are_taken_for_what_they_are() {
        let file = crate::testing::patterned_file(64 << 10).0;
        let device = Device::open(file.path(), &crate::OpenOptions::read()).unwrap();
        let unit = usize::try_from(unit(&device.geometry())).unwrap();
        let whole = device.geometry().extent();
        let mut transfer = Transfer::new(Op::Read, whole);
        let mut tell = |answer: io::Result<usize>| {
            let piece = transfer.piece(&device.geometry()).unwrap();
            transfer.advance(&device, &piece, answer).map(|()| transfer.done)
        };
        assert_eq!(tell(Ok(unit)).unwrap(), unit as u64);
        assert_eq!(
            tell(Ok(2 * unit - 1)).unwrap(),
            2 * unit as u64,
            "what cannot be resumed in place is done again"
        );
        for _ in 1..IDLE_ANSWERS_MAX {
            tell(Err(io::ErrorKind::Interrupted.into())).unwrap();
        }
        tell(Ok(unit)).unwrap();
        for _ in 1..IDLE_ANSWERS_MAX {
            tell(Err(io::ErrorKind::WouldBlock.into())).unwrap();
        }
        assert!(
            tell(Err(io::ErrorKind::WouldBlock.into())).unwrap_err().is_transient(),
            "there is an end to patience"
        );
        assert_eq!(tell(Ok(0)).unwrap_err().kind, Kind::Short, "the size is as it was");
        assert_eq!(
            tell(Err(io::Error::from_raw_os_error(5))).unwrap_err().extent,
            Some(whole)
        );
    }

    proptest! {
        #[test]
        fn pieces_cover_the_extent_and_direct_ones_are_aligned(
            units in 0u64..20, tail in 0u64..512, first in 0u64..20, limit in 1usize..3000,
        ) {
            let geometry = geometry(units * 512 + tail, 512);
            let offset = first.min(units) * 512;
            let extent = Extent::between(offset, geometry.size);
            let mut transfer = Transfer::new(Op::Read, extent).in_calls_of(limit);
            let mut at = offset;
            while let Some(piece) = transfer.piece(&geometry) {
                prop_assert_eq!(piece.offset, at);
                prop_assert!(piece.len > 0);
                if piece.lane == Lane::Main {
                    prop_assert!(piece.offset % 512 == 0 && piece.len % 512 == 0);
                }
                at += piece.len as u64;
                transfer.done += piece.len as u64;
            }
            prop_assert_eq!(at, geometry.size);
        }
    }
}
