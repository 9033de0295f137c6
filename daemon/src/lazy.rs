//! The image of a snapshot as a volume that is there at once: bytes are fetched when they are read, or shortly before.
//!
//! | file | noun |
//! |---|---|
//! | `lazy` | [`LazySource`]: bytes of the volume to pieces of its list; what is zero, from the list alone |
//! | `lazy::ahead` | `Ahead`: finds readers that go front to back, and says what they want next |
//! | [`fetcher`] | [`Fetcher`]: the threads that fetch, one flight a content however many wait for it, neighbours in one read |
//! | [`background`] | [`Background`]: the same volume for work that can wait for those who read it |
//! | `lazy::queue` | `Queue`: what is to be fetched, in three ranks |
//! | `lazy::flight` | `Flight`: a content under way, and who waits for it, and for how long |
//! | `lazy::memory` | `Memory`: contents opened not long ago, lent to replies without a copy |
//!
//! The way of a byte: list -> memory -> flight -> cache on the disk -> range of a pack -> opened -> memory. What cannot be had
//! is an error with its reason, for exactly the bytes it is about; never zeros, and never a wait without end.

mod ahead;
pub mod background;
pub mod fetcher;
mod flight;
mod memory;
mod queue;

use std::io;
use std::sync::Arc;

use blockio::{BlockError, BlockSource, ChunkIndex, Extent, ExtentKind, Geometry, Kind, Lent, Op};
use repo::object::{BlockAddressTable, TableEntry};
use repo::{ContentId, Image};

use crate::error::{JobError, Result};
use ahead::Ahead;
pub use background::{Background, Landed};
pub use fetcher::{FetchOptions, Fetcher};
use memory::Plaintext;

/// Longest piece of an image that is served, in bytes: a reader of one byte waits for all of it. Kopia's widest splitter
/// makes 16 MiB.
const PIECE_LEN_MAX: u64 = 64 << 20;

/// The volume in a snapshot, fetched as it is read. Many readers may read at once.
pub struct LazySource {
    fetcher: Arc<Fetcher>,
    table: BlockAddressTable,
    size: u64,
    /// With the blocks of the device that was backed up, where that is known.
    geometry: Geometry,
    /// The content of a piece of zeros, and the length such a piece has.
    zero: Option<(ContentId, u64)>,
    ahead: Ahead,
}

impl LazySource {
    /// The volume of `image`, whose repository is that of `fetcher`.
    ///
    /// # Errors
    /// `Usage` when it has pieces of more than 64 MiB, which no program is known to make.
    pub fn new(fetcher: Arc<Fetcher>, image: Image) -> Result<Self> {
        let logical_block = image.snapshot.logical_block()?.and_then(|len| u32::try_from(len).ok());
        let Image { table, size, .. } = image;
        let longest = match table.uniform_len() {
            Some(len) => len,
            None => table.iter().map(|entry| entry.extent.len).max().unwrap_or(0),
        };
        if longest > PIECE_LEN_MAX {
            return Err(JobError::Usage(format!(
                "the image has pieces of {longest} bytes; at most {PIECE_LEN_MAX} are served"
            )));
        }
        // A splitter that cuts where the data says so cuts zeros at its longest piece.
        let zero = (longest > 0).then(|| (fetcher.zero_content(longest), longest));
        let window = fetcher.window(longest);
        Ok(Self {
            ahead: Ahead::new(window, table.count()),
            fetcher,
            geometry: Geometry {
                logical_block: logical_block.unwrap_or(Geometry::of_bytes(size).logical_block),
                ..Geometry::of_bytes(size)
            },
            table,
            size,
            zero,
        })
    }

    /// Sends for what is in `chunks`, which will be read soon, together and for 256 pieces at most.
    pub fn prefetch_chunks(&self, chunks: impl Iterator<Item = ChunkIndex>) {
        let whole = chunks.filter_map(|chunk| {
            let start = chunk.get().checked_mul(blockio::CHUNK_SIZE)?;
            (start < self.size).then(|| Extent::between(start, (start + blockio::CHUNK_SIZE).min(self.size)))
        });
        let pieces = whole.flat_map(|extent| self.parts(extent)).map(|(_, piece, _)| piece);
        self.fetcher.fetch_ahead(pieces.filter(|piece| !self.is_zero(piece)));
    }

    fn is_zero(&self, piece: &TableEntry) -> bool {
        let same = |(zero, len)| len == piece.extent.len && zero == piece.content;
        self.zero.is_some_and(same) && !piece.compressed
    }

    fn check(&self, op: Op, range: Extent) -> Result<(), BlockError> {
        match range.end() > self.size || range.offset.checked_add(range.len).is_none() {
            true => Err(BlockError::new(op, Kind::OutOfRange).at(range)),
            false => Ok(()),
        }
    }

    /// The pieces that hold `range`, each with its part of it, in order. `range` is inside the volume.
    fn parts(&self, range: Extent) -> impl Iterator<Item = (usize, TableEntry, Extent)> + '_ {
        let mut at = range.offset;
        std::iter::from_fn(move || {
            if at >= range.end() {
                return None;
            }
            let number = self.table.find(at);
            let piece = self.table.entry(number);
            let part = piece.extent.clip(range)?;
            at = part.end();
            Some((number, piece, part))
        })
    }

    /// Piece `number` was asked for: what its reader will want next is sent for.
    fn note(&self, number: usize) {
        let next = self.ahead.note(number);
        if !next.is_empty() {
            let pieces = next.map(|next| self.table.entry(next));
            let wanted = pieces.filter(|piece| piece.extent.offset < self.size && !self.is_zero(piece));
            self.fetcher.fetch_ahead(wanted);
        }
    }
}

/// Copies the bytes of `part` out of `piece`, whose bytes are `plaintext`.
fn copy(piece: &TableEntry, plaintext: &Plaintext, part: Extent, target: &mut [u8]) {
    let from = within(piece, part);
    target.copy_from_slice(&plaintext[from..from + part.bytes()]);
}

fn within(piece: &TableEntry, part: Extent) -> usize {
    usize::try_from(part.offset - piece.extent.offset).expect("inside a piece")
}

impl BlockSource for LazySource {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        let range = Extent {
            offset,
            len: buf.len() as u64,
        };
        self.check(Op::Read, range)?;
        // All of it is under way before the first of it is waited for.
        self.prefetch(range);
        for (number, piece, part) in self.parts(range) {
            let from = usize::try_from(part.offset - offset).expect("inside the buffer");
            let target = &mut buf[from..from + part.bytes()];
            self.note(number);
            if self.is_zero(&piece) {
                target.fill(0);
                continue;
            }
            let failed = |why: io::Error| BlockError::new(Op::Read, Kind::Io).at(part).because(why);
            copy(&piece, &self.fetcher.fetch(&piece).map_err(failed)?, part, target);
        }
        Ok(())
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        self.check(Op::Map, range)?;
        let first = out.len();
        for (_, piece, part) in self.parts(range) {
            let kind = match self.is_zero(&piece) {
                true => ExtentKind::Hole,
                false => ExtentKind::Data,
            };
            match out[first..].last_mut() {
                Some((last, same)) if *same == kind => *last = Extent::between(last.offset, part.end()),
                _ => out.push((part, kind)),
            }
        }
        Ok(())
    }

    fn prefetch(&self, range: Extent) {
        if self.check(Op::Read, range).is_err() {
            return;
        }
        let pieces = self.parts(range).map(|(_, piece, _)| piece);
        self.fetcher.fetch_ahead(pieces.filter(|piece| !self.is_zero(piece)));
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        let range = Extent {
            offset,
            len: buf.len() as u64,
        };
        self.check(Op::Read, range)?;
        for (number, piece, part) in self.parts(range) {
            let from = usize::try_from(part.offset - offset).expect("inside the buffer");
            let target = &mut buf[from..from + part.bytes()];
            if self.is_zero(&piece) {
                target.fill(0);
            } else if let Some(plaintext) = self.fetcher.at_hand(&piece) {
                copy(&piece, &plaintext, part, target);
            } else {
                return Ok(false);
            }
            self.note(number);
        }
        Ok(true)
    }

    fn lend(&self, range: Extent) -> Option<Lent> {
        self.check(Op::Read, range).ok()?;
        let (number, piece, part) = self.parts(range).next()?;
        let plaintext = self.fetcher.at_hand(&piece)?;
        self.note(number);
        let from = within(&piece, part);
        Lent::new(plaintext, from..from + part.bytes())
    }
}

#[cfg(test)]
pub(crate) mod tests;
