//! What the readers of a volume do: in which order they touch it first, and how long they wait.
//!
//! [`Watched`] goes around a volume that is served, and tells a [`Watch`]. Work in the background, which does not go through it,
//! gives way by what it says; and the order of first touches is kept in a file ([`Trace`]) for the next mount of the same image,
//! which begins with what this one wanted first.

mod meter;
mod trace;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use blockio::{BlockError, BlockSink, BlockSource, ChunkIndex, Extent, ExtentKind, Geometry, Lent};

use meter::Meter;
pub use meter::Waits;
pub use trace::{Trace, TraceKeeper};

/// First touches that are remembered: 64 GiB of a volume in 256 KiB. What is touched after that is not the start of anything.
pub const TOUCHES_MAX: usize = 65_536;

/// What readers of one volume do. Many threads tell it.
#[derive(Debug)]
pub struct Watch {
    /// A bit a chunk, from the lowest of the first word: 128 KiB for 1 TiB.
    seen: Vec<AtomicU64>,
    order: Mutex<Vec<u32>>,
    meter: Meter,
}

impl Watch {
    /// For a volume of `size` bytes that nobody read yet.
    pub fn new(size: u64) -> Self {
        let words = size.div_ceil(blockio::CHUNK_SIZE).div_ceil(64);
        Self {
            seen: (0..words).map(|_| AtomicU64::new(0)).collect(),
            order: Mutex::default(),
            meter: Meter::default(),
        }
    }

    /// `range` was read.
    fn touch(&self, range: Extent) {
        for chunk in range.chunks() {
            let bit = 1 << (chunk.get() % 64);
            let word = usize::try_from(chunk.get() / 64)
                .ok()
                .and_then(|word| self.seen.get(word));
            // Looked at before it is changed: nearly all chunks were touched before, and readers on several cores share the word.
            let Some(word) = word.filter(|word| word.load(Ordering::Relaxed) & bit == 0) else {
                continue;
            };
            let is_first = word.fetch_or(bit, Ordering::Relaxed) & bit == 0;
            if let (true, Ok(number)) = (is_first, u32::try_from(chunk.get())) {
                let mut order = self.order();
                if order.len() < TOUCHES_MAX {
                    order.push(number);
                }
            }
        }
    }

    /// The chunks touched, in the order of their first touches, from touch number `from` on.
    pub fn touched(&self, from: usize) -> Vec<ChunkIndex> {
        let order = self.order();
        let rest = order.get(from..).unwrap_or_default();
        rest.iter().map(|chunk| ChunkIndex::new((*chunk).into())).collect()
    }

    /// How many chunks were touched, of those that are remembered.
    pub fn touches(&self) -> usize {
        self.order().len()
    }

    /// How long readers waited since this was asked last.
    pub fn take_waits(&self) -> Waits {
        self.meter.take()
    }

    fn order(&self) -> MutexGuard<'_, Vec<u32>> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A volume whose readers are watched.
#[derive(Debug)]
pub struct Watched<T> {
    volume: T,
    watch: Arc<Watch>,
}

impl<T> Watched<T> {
    /// `volume`, whose readers `watch` is told of.
    pub fn new(volume: T, watch: Arc<Watch>) -> Self {
        Self { volume, watch }
    }
}

impl<T: BlockSource> BlockSource for Watched<T> {
    fn geometry(&self) -> Geometry {
        self.volume.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        let begun = Instant::now();
        let len = buf.len() as u64;
        self.watch.touch(Extent { offset, len });
        let read = self.volume.read_at(offset, buf);
        self.watch.meter.count(begun.elapsed());
        read
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        self.volume.extents(range, out)
    }

    fn prefetch(&self, range: Extent) {
        self.volume.prefetch(range);
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        let len = buf.len() as u64;
        let read = self.volume.try_read_at(offset, buf)?;
        if read {
            self.watch.touch(Extent { offset, len });
        }
        Ok(read)
    }

    fn lend(&self, range: Extent) -> Option<Lent> {
        let lent = self.volume.lend(range)?;
        self.watch.touch(Extent {
            len: lent.len() as u64,
            ..range
        });
        Some(lent)
    }
}

impl<T: BlockSink> BlockSink for Watched<T> {
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), BlockError> {
        self.volume.write_at(offset, buf)
    }

    fn write_zeroes(&self, range: Extent) -> Result<(), BlockError> {
        self.volume.write_zeroes(range)
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.volume.flush()
    }

    fn discard(&self, range: Extent) -> Result<(), BlockError> {
        self.volume.discard(range)
    }

    fn zeroes_fast(&self) -> bool {
        self.volume.zeroes_fast()
    }

    fn is_prompt(&self) -> bool {
        self.volume.is_prompt()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// `count` waits of `each`.
    pub(crate) fn waits(count: u32, each: std::time::Duration) -> Waits {
        let meter = Meter::default();
        (0..count).for_each(|_| meter.count(each));
        meter.take()
    }
}

#[cfg(test)]
mod tests;
