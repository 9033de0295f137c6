//! Filling a target with what nobody wrote to it.

use super::log;
use super::map::{Map, Place};
use super::store::{Folder, Medium};
use super::{Inner, Overlay, STRIPES, failed};
use blockio::{BlockError, BlockMap, BlockSource, BufPool, CHUNK_SIZE, ChunkIndex, Extent, ExtentKind, Kind, Op};
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, RwLockWriteGuard};

/// Chunks that are hydrated at once: who wants more waits. Four writes of a MiB keep any disk busy.
const STAGED: usize = 4;

/// Chunks that are made zero by one call, while nobody writes to them. On a device without an offload 16 MiB of zeros take less than
/// a tenth of a second.
const ZERO_CHUNKS: u64 = 16;
const _: () = assert!(ZERO_CHUNKS <= STRIPES as u64, "no stripe is locked twice by one call");

/// What a step of hydration put into the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hydrated {
    /// Bytes of the base that were written.
    pub written_bytes: u64,
    /// Bytes that were made zero, without being fetched.
    pub zeroed_bytes: u64,
}

impl Hydrated {
    /// Bytes put into the target in either way.
    pub fn bytes(&self) -> u64 {
        self.written_bytes + self.zeroed_bytes
    }
}

/// Memory from which every device takes a write as it is.
pub(super) fn staging() -> Result<BufPool, BlockError> {
    BufPool::new(usize::try_from(CHUNK_SIZE).expect("1 MiB"), STAGED)
}

impl Overlay {
    /// Fetches what of `chunk` still comes from the base, and puts it into the target. Durable with the next flush.
    ///
    /// # Errors
    /// When the base cannot be read or the target not be written; what was put there before that counts. When the overlay is not in
    /// place, or a flush failed before.
    pub fn hydrate(&self, chunk: ChunkIndex) -> Result<Hydrated, BlockError> {
        self.inner.hydrate(chunk, &*self.inner.base)
    }

    /// As [`Overlay::hydrate`], with the bytes read from `base`, which must be those of the base itself: another way to them.
    ///
    /// # Errors
    /// As [`Overlay::hydrate`].
    pub fn hydrate_from(&self, chunk: ChunkIndex, base: &dyn BlockSource) -> Result<Hydrated, BlockError> {
        self.inner.hydrate(chunk, base)
    }

    /// Makes zero in the target what of `range` still comes from the base and is known to be zero there; the rest stays as it is.
    ///
    /// # Errors
    /// As [`Overlay::hydrate`].
    pub fn hydrate_zeroes(&self, range: Extent) -> Result<Hydrated, BlockError> {
        self.inner.hydrate_zeroes(range)
    }

    /// Writes into the log that the target has the whole volume, and forgets the base.
    ///
    /// # Errors
    /// When something still comes from the base, and as [`blockio::BlockSink::flush`].
    pub fn complete(&self) -> Result<(), BlockError> {
        self.inner.complete()
    }

    /// [`Overlay::complete`] was done, in this run or one before.
    pub fn is_complete(&self) -> bool {
        self.inner.map_read().is_complete()
    }

    /// Bytes of the volume that do not come from the base any more.
    pub fn present_bytes(&self) -> u64 {
        self.inner.map_read().present_bytes()
    }

    /// Bytes written or made zero by others than hydration since this was opened; those written twice are counted twice.
    pub fn written_bytes(&self) -> u64 {
        self.inner.written.load(Ordering::Relaxed)
    }

    /// Something of `chunk` comes from the base.
    pub fn is_absent(&self, chunk: ChunkIndex) -> bool {
        chunk.get() < self.inner.size.div_ceil(CHUNK_SIZE) && self.inner.map_read().is_absent(chunk.get())
    }

    /// The chunks of which something comes from the base.
    pub fn absent(&self) -> BlockMap {
        self.inner.absent()
    }
}

impl<F: Folder> Inner<F> {
    pub(super) fn absent(&self) -> BlockMap {
        let chunks = self.size.div_ceil(CHUNK_SIZE);
        let mut absent = BlockMap::new(chunks);
        let map = self.map_read();
        for chunk in (0..chunks).filter(|chunk| map.is_absent(*chunk)) {
            absent.set(ChunkIndex::new(chunk));
        }
        absent
    }

    /// Zeros are made in the data too, which is to be the volume.
    pub(super) fn is_in_place(&self) -> bool {
        self.staging.is_some()
    }

    fn check_in_place(&self, extent: Extent) -> Result<&BufPool, BlockError> {
        self.check(Op::Write, extent)?;
        self.staging.as_ref().ok_or_else(|| {
            let text = "only an overlay in place is hydrated".to_owned();
            BlockError::new(Op::Write, Kind::InvalidInput(text)).at(extent)
        })
    }

    pub(super) fn hydrate(&self, chunk: ChunkIndex, base: &dyn BlockSource) -> Result<Hydrated, BlockError> {
        let start = chunk.get().saturating_mul(CHUNK_SIZE).min(self.size);
        let whole = Extent::between(start, start.saturating_add(CHUNK_SIZE).min(self.size));
        let staging = self.check_in_place(whole)?;
        if whole.is_empty() {
            return Err(BlockError::new(Op::Write, Kind::OutOfRange));
        }
        // Without a lock: it may take long.
        let pieces = self.pieces_of(self.base_runs(whole), base)?;
        let data = |pieces: &[(Extent, bool)]| {
            pieces
                .iter()
                .filter(|(_, is_zero)| !is_zero)
                .map(|(run, _)| *run)
                .collect()
        };
        let data: Vec<Extent> = data(&pieces);
        let (Some(first), Some(last)) = (data.first(), data.last()) else {
            return self.fill(whole, &pieces, 0, &[]);
        };
        let span = Extent::between(first.offset, last.end());
        let mut memory = staging.take();
        let bytes = &mut memory[..span.bytes()];
        for run in &data {
            let from = usize::try_from(run.offset - span.offset).expect("inside a chunk");
            base.read_at(run.offset, &mut bytes[from..from + run.bytes()])?;
        }
        self.fill(whole, &pieces, span.offset, bytes)
    }

    /// What of `extent` comes from the base.
    fn base_runs(&self, extent: Extent) -> Vec<Extent> {
        let mut runs = Vec::new();
        self.map_read().runs(extent, &mut runs);
        runs.into_iter()
            .filter(|(_, place)| *place == Place::Base)
            .map(|(run, _)| run)
            .collect()
    }

    /// Cuts `runs` into whole sectors that are zero (`true`) and others, ascending; a sector that is zero in part is among the others.
    fn pieces_of(&self, runs: Vec<Extent>, base: &dyn BlockSource) -> Result<Vec<(Extent, bool)>, BlockError> {
        let mut pieces: Vec<(Extent, bool)> = Vec::new();
        let mut push = |extent: Extent, is_zero: bool| match pieces.last_mut() {
            _ if extent.is_empty() => {}
            Some((last, same)) if *same == is_zero && last.end() == extent.offset => {
                *last = Extent::between(last.offset, extent.end());
            }
            _ => pieces.push((extent, is_zero)),
        };
        for run in runs {
            let mut extents = Vec::new();
            base.extents(run, &mut extents)?;
            let mut at = run.offset;
            for (extent, kind) in extents {
                if kind == ExtentKind::Data {
                    continue;
                }
                let Some(zeros) = extent.clip(run).map(|zeros| self.inwards(zeros)) else {
                    continue;
                };
                if zeros.offset < zeros.end() && zeros.offset >= at {
                    push(Extent::between(at, zeros.offset), false);
                    push(zeros, true);
                    at = zeros.end();
                }
            }
            push(Extent::between(at, run.end()), false);
        }
        Ok(pieces)
    }

    /// Puts those sectors of `pieces`, which all lie in the chunk `whole`, into the target that still come from the base. `bytes` are
    /// those of the base from `start` on.
    fn fill(&self, whole: Extent, pieces: &[(Extent, bool)], start: u64, bytes: &[u8]) -> Result<Hydrated, BlockError> {
        let mut done = Hydrated::default();
        let _alone = self
            .stripe(whole.offset)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        self.check_in_place(whole)?;
        // What was written meanwhile wins. Nothing is written while this lock is held.
        let runs = self.base_runs(whole);
        for (piece, is_zero) in pieces {
            for part in runs.iter().filter_map(|run| run.clip(*piece)) {
                if *is_zero {
                    self.data
                        .zero(part.offset, part.len, false)
                        .map_err(failed(Op::Zero, part))?;
                    done.zeroed_bytes += part.len;
                } else {
                    let from = usize::try_from(part.offset - start).expect("inside a chunk");
                    self.data
                        .write_at(&bytes[from..from + part.bytes()], part.offset)
                        .map_err(failed(Op::Write, part))?;
                    done.written_bytes += part.len;
                }
                // Noted for the next process, too: what is written over it later changes nothing that would be.
                self.change(part, Place::Data)?;
            }
        }
        Ok(done)
    }

    pub(super) fn hydrate_zeroes(&self, range: Extent) -> Result<Hydrated, BlockError> {
        self.check_in_place(range)?;
        let mut done = Hydrated::default();
        let mut at = range.offset;
        while at < range.end() {
            let next = (ChunkIndex::of(at).get() + ZERO_CHUNKS) * CHUNK_SIZE;
            let part = Extent::between(at, next.min(range.end()));
            done.zeroed_bytes += self.zero_base(part)?;
            at = part.end();
        }
        Ok(done)
    }

    /// Makes zero what of `extent`, at most [`ZERO_CHUNKS`] long, comes from the base and is zero there.
    fn zero_base(&self, extent: Extent) -> Result<u64, BlockError> {
        let extent = self.inwards(extent);
        if extent.offset >= extent.end() {
            return Ok(0);
        }
        let pieces = self.pieces_of(self.base_runs(extent), &*self.base)?;
        let zeros: Vec<Extent> = pieces
            .into_iter()
            .filter(|(_, is_zero)| *is_zero)
            .map(|(run, _)| run)
            .collect();
        if zeros.is_empty() {
            return Ok(0);
        }
        let _alone = self.lock_all(extent);
        self.check_in_place(extent)?;
        let runs = self.base_runs(extent);
        let mut done = 0;
        for zero in zeros {
            for run in runs.iter().filter_map(|run| run.clip(zero)) {
                self.data
                    .zero(run.offset, run.len, false)
                    .map_err(failed(Op::Zero, run))?;
                run.split_on_grid()
                    .try_for_each(|part| self.change(part, Place::Data))?;
                done += run.len;
            }
        }
        Ok(done)
    }

    /// The locks of all chunks in `extent`, each alone. In the order of the locks, so that two of these do not wait for each other;
    /// everybody else holds one at a time.
    fn lock_all(&self, extent: Extent) -> Vec<RwLockWriteGuard<'_, ()>> {
        let mut stripes: Vec<u64> = extent.chunks().map(|chunk| chunk.get() % STRIPES as u64).collect();
        stripes.sort_unstable();
        stripes.dedup();
        let lock = |stripe: u64| {
            self.stripe(stripe * CHUNK_SIZE)
                .write()
                .unwrap_or_else(PoisonError::into_inner)
        };
        stripes.into_iter().map(lock).collect()
    }

    pub(super) fn complete(&self) -> Result<(), BlockError> {
        self.check_in_place(self.whole())?;
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if self.map_read().is_complete() {
            return Ok(());
        }
        if !self.map_read().is_all_present() {
            let absent = self.absent().count();
            let text = format!("{absent} chunks are not in the target yet");
            return Err(BlockError::new(Op::Sync, Kind::InvalidInput(text)));
        }
        // The log says durably of every sector that it is in the target, before it says it in fewer words.
        self.flush_into(&mut log)?;
        let mut record = Some(log::encode_complete(0));
        let made = self.make_log(|bytes| bytes.extend(record.take().into_iter().flatten()));
        let (file, len) = made.map_err(failed(Op::Sync, self.whole()))?;
        self.use_log(&mut log, file, len, 1)?;
        *self.map_write() = Map::complete(self.size);
        Ok(())
    }
}
