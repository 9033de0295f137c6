//! A block map that is still being told: one side sets chunks in ascending order, others read what is known already.
//!
//! The **watermark** is the byte up to which the map is complete. A chunk below it that is not set stays so, with one
//! exception: a source that was interrupted may begin again a little before where it ended, and then name something it left
//! out before. Such a chunk is set and also kept as *late*; a reader that has reached the end asks for those once.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::block_map::{BlockMap, PastEnd};
use crate::control::{Cancel, Cancelled};
use crate::extent::Extent;
use crate::geometry::{CHUNK_SIZE, ChunkIndex};

/// How long a reader that waits for the map takes at most to see that it was cancelled: short beside any step of a job, long
/// enough to cost nothing.
const CANCEL_LOOK: Duration = Duration::from_millis(50);

/// A [`BlockMap`] of one volume between the one who tells it and those who read it.
#[derive(Debug)]
pub struct GrowingMap {
    size: u64,
    inner: Mutex<Inner>,
    grown: Condvar,
}

#[derive(Debug)]
struct Inner {
    map: BlockMap,
    /// Chunks below this are known.
    known: u64,
    late: Option<BlockMap>,
    state: MapState,
}

/// Whether more is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapState {
    /// More is to come.
    Growing,
    /// Everything is known.
    Finished,
    /// Nothing more comes, and what lies past the watermark is not known. What is set stays set.
    Failed,
}

/// What a reader does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextChunk {
    /// This chunk is set, and every one between it and where the reader asked from is known not to be.
    Chunk(ChunkIndex),
    /// No further chunk is set. [`GrowingMap::take_late`] may hold some that lie before.
    End,
    /// The map ended before it was complete.
    Failed,
}

impl GrowingMap {
    /// A map of a volume of `size` bytes of which nothing is known.
    ///
    /// # Panics
    /// With more than [`BlockMap::CHUNKS_MAX`] chunks.
    pub fn new(size: u64) -> Self {
        let inner = Inner {
            map: BlockMap::new(size.div_ceil(CHUNK_SIZE)),
            known: 0,
            late: None,
            state: MapState::Growing,
        };
        Self {
            size,
            inner: Mutex::new(inner),
            grown: Condvar::new(),
        }
    }

    /// Bytes of the volume.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Lets `tell` add to the map, then wakes the readers. They wait meanwhile, so it adds a batch and computes nothing else.
    pub fn grow<R>(&self, tell: impl FnOnce(&mut Growth<'_>) -> R) -> R {
        let told = tell(&mut Growth {
            inner: &mut self.lock(),
            size: self.size,
        });
        self.grown.notify_all();
        told
    }

    /// Ends the map before it is complete. A finished map stays finished.
    pub fn fail(&self) {
        self.grow(|growth| {
            if growth.inner.state == MapState::Growing {
                growth.inner.state = MapState::Failed;
            }
        });
    }

    /// Whether more is to come.
    pub fn state(&self) -> MapState {
        self.lock().state
    }

    /// The byte up to which the map is complete.
    pub fn known(&self) -> u64 {
        (self.lock().known * CHUNK_SIZE).min(self.size)
    }

    /// Waits until the first set chunk at or behind `from` is known.
    ///
    /// # Errors
    /// [`Cancelled`] within 50 ms of the request.
    pub fn wait_next(&self, from: ChunkIndex, cancel: &Cancel) -> Result<NextChunk, Cancelled> {
        let mut inner = self.lock();
        loop {
            cancel.check()?;
            match inner.map.next_set(from) {
                Some(chunk) if chunk.get() < inner.known => return Ok(NextChunk::Chunk(chunk)),
                _ => {}
            }
            match inner.state {
                MapState::Finished => return Ok(NextChunk::End),
                MapState::Failed => return Ok(NextChunk::Failed),
                MapState::Growing => {}
            }
            inner = (self.grown.wait_timeout(inner, CANCEL_LOOK)).map_or_else(|e| e.into_inner().0, |waited| waited.0);
        }
    }

    /// Chunks that were set behind the watermark, each handed out once.
    pub fn take_late(&self) -> Option<BlockMap> {
        self.lock().late.take()
    }

    /// The map as it is.
    pub fn map(&self) -> BlockMap {
        self.lock().map.clone()
    }

    /// The map, when nobody else reads it any more.
    pub fn into_map(self) -> BlockMap {
        self.inner.into_inner().unwrap_or_else(PoisonError::into_inner).map
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hand of the one who tells the map.
#[derive(Debug)]
pub struct Growth<'a> {
    inner: &'a mut Inner,
    size: u64,
}

impl Growth<'_> {
    /// Bytes of the volume.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Sets every chunk that `extent` touches.
    ///
    /// # Errors
    /// [`PastEnd`], and nothing is set, when a touched chunk is past the end.
    #[inline]
    pub fn set_extent(&mut self, extent: Extent) -> Result<(), PastEnd> {
        if extent.offset / CHUNK_SIZE < self.inner.known {
            self.set_late(extent)?;
        }
        self.inner.map.set_extent(extent)
    }

    /// Remembers the chunks of `extent` that readers may have passed already.
    #[cold]
    fn set_late(&mut self, extent: Extent) -> Result<(), PastEnd> {
        let chunks = self.inner.map.len();
        if extent.end().div_ceil(CHUNK_SIZE) > chunks {
            return Err(PastEnd { extent, chunks });
        }
        let known = self.inner.known;
        for chunk in extent.chunks().take_while(|chunk| chunk.get() < known) {
            if !self.inner.map.get(chunk) {
                self.inner.late.get_or_insert_with(|| BlockMap::new(chunks)).set(chunk);
            }
        }
        Ok(())
    }

    /// Everything before byte `offset` has been told. The chunk that `offset` lies in has not, unless it is the end.
    pub fn know_up_to(&mut self, offset: u64) {
        let chunks = if offset >= self.size {
            self.inner.map.len()
        } else {
            offset / CHUNK_SIZE
        };
        self.inner.known = self.inner.known.max(chunks);
    }

    /// Everything has been told.
    pub fn finish(&mut self) {
        self.inner.known = self.inner.map.len();
        self.inner.state = MapState::Finished;
    }

    /// No chunk is set.
    pub fn is_empty(&self) -> bool {
        self.inner.map.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = CHUNK_SIZE;

    fn extent(offset: u64, len: u64) -> Extent {
        Extent { offset, len }
    }

    fn next(map: &GrowingMap, from: u64) -> NextChunk {
        map.wait_next(ChunkIndex::new(from), &Cancel::new()).unwrap()
    }

    #[test]
    fn a_chunk_is_read_only_when_all_before_it_is_known() {
        let map = GrowingMap::new(4 * MIB);
        let cancel = Cancel::new();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| (next(&map, 0), next(&map, 3), next(&map, 4)));
            map.grow(|g| g.set_extent(extent(2 * MIB, 1)).unwrap());
            map.grow(|g| g.know_up_to(2 * MIB + 1));
            assert_eq!(
                map.known(),
                2 * MIB,
                "more may be told of the chunk the watermark lies in"
            );
            map.grow(|g| g.know_up_to(3 * MIB));
            map.grow(|g| g.finish());
            let seen = reader.join().unwrap();
            assert_eq!(
                seen,
                (NextChunk::Chunk(ChunkIndex::new(2)), NextChunk::End, NextChunk::End)
            );
        });
        cancel.cancel();
        assert_eq!(map.wait_next(ChunkIndex::new(0), &cancel), Err(Cancelled));
    }

    #[test]
    fn a_waiting_reader_sees_the_end_the_failure_and_the_cancel() {
        for how in 0..3 {
            let (map, cancel) = (GrowingMap::new(MIB), Cancel::new());
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| map.wait_next(ChunkIndex::new(0), &cancel));
                match how {
                    0 => map.grow(|g| g.finish()),
                    1 => map.fail(),
                    _ => cancel.cancel(),
                }
                let expect = [Ok(NextChunk::End), Ok(NextChunk::Failed), Err(Cancelled)][how];
                assert_eq!(reader.join().unwrap(), expect);
            });
        }
    }

    #[test]
    fn a_chunk_behind_the_watermark_is_kept_as_late() {
        let map = GrowingMap::new(8 * MIB);
        map.grow(|g| {
            g.set_extent(extent(MIB, MIB)).unwrap();
            g.know_up_to(4 * MIB);
            g.set_extent(extent(0, 6 * MIB)).unwrap();
            assert!(g.set_extent(extent(0, 9 * MIB)).is_err());
            g.finish();
        });
        let late: Vec<u64> = map.take_late().unwrap().iter().map(ChunkIndex::get).collect();
        assert_eq!(late, [0, 2, 3]);
        assert_eq!(map.take_late(), None);
        assert_eq!(map.map().count(), 6);
        map.fail();
        assert_eq!(map.state(), MapState::Finished);
    }

    proptest! {
        /// A reader that follows the watermark and then takes the late ones has seen exactly the map.
        #[test]
        fn readers_miss_nothing(steps in prop::collection::vec((0u64..64, 1u64..9, 0u64..64), 0..20)) {
            let map = GrowingMap::new(64 * MIB - 5);
            let (mut seen, mut at) = (BlockMap::new(64), 0);
            for (first, len, known) in steps {
                map.grow(|g| {
                    let _ = g.set_extent(extent(first * MIB, len * MIB));
                    g.know_up_to(known * MIB);
                });
                while at * MIB < map.known() && let NextChunk::Chunk(chunk) = next_known(&map, at) {
                    seen.set(chunk);
                    at = chunk.get() + 1;
                }
                at = at.max(map.known() / MIB);
            }
            map.grow(|g| g.finish());
            while let NextChunk::Chunk(chunk) = next(&map, at) {
                seen.set(chunk);
                at = chunk.get() + 1;
            }
            if let Some(late) = map.take_late() {
                seen.union(&late);
            }
            prop_assert_eq!(seen, map.into_map());
        }
    }

    /// The next chunk when it is known without waiting.
    fn next_known(map: &GrowingMap, from: u64) -> NextChunk {
        match map.map().next_set(ChunkIndex::new(from)) {
            Some(chunk) if chunk.offset() < map.known() => next(map, from),
            _ => NextChunk::End,
        }
    }
}
