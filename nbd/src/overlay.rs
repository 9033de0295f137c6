//! Writes over a volume that is only read: an [`Overlay`] keeps what was written in a folder of its own.
//!
//! # What a crash leaves
//!
//! Every sector of 512 bytes holds either what it held at its last flush, or something written to it later. That is the
//! contract of a disk with a volatile cache. It rests on this order: data is written; a flush takes down which sectors that
//! were, makes the data durable, then appends to the log and makes that durable, then answers. So:
//!
//! | cut | what is left |
//! |---|---|
//! | before the data is durable | the log as it was: sectors that were in the file have old or new bytes, others are as below |
//! | after it, before the log is | the same, or a part of the batch, each record of which is about durable data |
//! | after both | all of it |
//! | while the log is replaced by a shorter one | one of the two, which say the same |
//!
//! Discarded space is given back at once: a sector that the log still calls written then reads as zero, which is what was
//! written to it later.
//!
//! That is what is left when the system ends. When only this process does, no answered write may be lost, flushed or not: those who
//! sent them live on. What is changed between flushes is noted for the next process (`overlay::live`), in files that the cache of the
//! system holds as it holds the data.
//!
//! # In place
//!
//! [`Overlay::open_in_place`] has its data in the final volume itself, the target, instead of in its folder; the log is the same and
//! says what of the target counts. Zeros are written there as zeros, so that the target has the whole volume at the end, and
//! [`Overlay::hydrate`] fetches what nobody wrote. It takes the lock of a chunk alone and leaves out every sector that was
//! written meanwhile: written wins. To a flush, what was hydrated is like what was written; without one it is fetched again
//! after a crash. When nothing comes from the base any more, [`Overlay::complete`] says so in the log, for good.
//!
//! A flush that fails for want of space can be repeated. One whose data or log may or may not be durable cannot: the overlay then
//! takes no more writes, for what is lost is not known; reads go on.

mod hydrate;
mod live;
mod log;
mod map;
mod store;
mod target;

use blockio::{
    BlockError, BlockMap, BlockSink, BlockSource, BufPool, CHUNK_SIZE, ChunkIndex, Extent, ExtentKind, Geometry,
};
use blockio::{Kind, Lent, Op};
pub use hydrate::Hydrated;
use live::Live;
use log::{Binding, Replayed};
use map::{Map, Place, SECTOR};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use store::{Folder, FsFolder, Medium};
use target::Spot;

/// Locks for writes that do not cover whole sectors; chunks share them.
const STRIPES: usize = 64;

/// A log shorter than this is not replaced: reading it takes less than a second.
const LOG_MIN: u64 = 64 << 20;
/// A log this many times as long as need be is.
const LOG_FACTOR: u64 = 4;
/// Bytes of a new log that are put together in memory.
const LOG_PART: usize = 256 << 10;

/// A volume that takes writes, over one that does not. Nobody else may open the same folder meanwhile.
pub struct Overlay {
    inner: Inner<FsFolder>,
}

impl Overlay {
    /// Opens the overlay in the folder `path`, or makes one. `identity` names what `base` is (repository and object); an overlay of
    /// anything else is refused.
    ///
    /// # Errors
    /// When the folder cannot be used, is in use, belongs to something else, or is damaged.
    pub fn open(path: &Path, base: Arc<dyn BlockSource>, identity: &str) -> Result<Self, BlockError> {
        let folder = FsFolder::new(path, None).map_err(|error| BlockError::from_io(Op::Open, error).on(path))?;
        let inner = Inner::open(folder, base, identity, LOG_MIN).map_err(|error| error.on(path))?;
        Ok(Self { inner })
    }

    /// Opens the overlay whose state is in the folder `state` and whose data is in `target`, a block device or a file, or makes one.
    /// A target without a state is about to be overwritten: nothing that it has counts. It may be larger than the volume,
    /// the rest of it stays as it is. What ties a state to a target, and what does not, is told in `overlay/target.rs`.
    ///
    /// # Errors
    /// As [`Overlay::open`]; and when the target is mounted, in use, read-only, smaller than the volume, has larger blocks, or is
    /// not the one that the state is of. Nothing is written to the target then.
    pub fn open_in_place(
        state: &Path,
        target: &Path,
        base: Arc<dyn BlockSource>,
        identity: &str,
    ) -> Result<Self, BlockError> {
        let geometry = base.geometry();
        let spot = Spot::new(target, geometry.size, geometry.logical_block);
        let folder =
            FsFolder::new(state, Some(spot)).map_err(|error| BlockError::from_io(Op::Open, error).on(state))?;
        let on_state = |error: BlockError| {
            if error.path.as_os_str().is_empty() {
                error.on(state)
            } else {
                error
            }
        };
        let inner = Inner::open(folder, base, identity, LOG_MIN).map_err(on_state)?;
        Ok(Self { inner })
    }

    /// The chunks of which anything was changed. Of an overlay in place: of which anything is present, but for one that is complete,
    /// of which nothing is known any more and none are told.
    pub fn changed(&self) -> BlockMap {
        let mut changed = BlockMap::new(self.inner.size.div_ceil(CHUNK_SIZE));
        for chunk in self.inner.map_read().chunks.keys() {
            changed.set(ChunkIndex::new(*chunk));
        }
        changed
    }
}

struct Log<M> {
    file: M,
    len: u64,
    batch: u64,
}

struct Inner<F: Folder> {
    base: Arc<dyn BlockSource>,
    binding: Binding,
    size: u64,
    folder: F,
    data: F::Data,
    log: Mutex<Log<F::File>>,
    map: RwLock<Map>,
    /// Changed under the lock of the map, so that both say the same. None where it could not be told from one of another boot.
    live: Option<Mutex<Live<F::File>>>,
    stripes: [RwLock<()>; STRIPES],
    /// A flush failed in a way that leaves open what is durable.
    broken: AtomicBool,
    log_min: u64,
    /// Chunks on their way from the base to the target, of an overlay in place.
    staging: Option<BufPool>,
    /// Bytes written or made zero since it was opened, hydration apart.
    written: AtomicU64,
}

fn failed(op: Op, extent: Extent) -> impl Fn(io::Error) -> BlockError {
    move |error| BlockError::from_io(op, error).at(extent)
}

impl<F: Folder> Inner<F> {
    fn open(folder: F, base: Arc<dyn BlockSource>, identity: &str, log_min: u64) -> Result<Self, BlockError> {
        let size = base.geometry().size;
        let opening = |error: io::Error| BlockError::from_io(Op::Open, error);
        // Its lock comes first.
        let (data, written) = folder.data()?;
        let mut binding = Binding {
            identity: identity.to_owned(),
            size,
            target: None,
        };
        let is_in_place = folder.target().is_some();
        let found = folder.log().map_err(opening)?;
        if let Some(name) = folder.target() {
            // Marked before there is a log: what another overlay says of this target has an end when this one may write to it.
            let mark = match &found {
                Some(_) => folder.marked(),
                None => folder.mark(),
            };
            binding.target = Some(log::Target {
                name: name.to_owned(),
                mark: mark.map_err(opening)?.unwrap_or_default(),
            });
        }
        let (file, said) = match found {
            Some(file) => {
                let said = binding.replay(&file)?;
                if !is_in_place && data.len().map_err(opening)? != size {
                    let text = "the log of an overlay whose data is not there, or not all of it";
                    return Err(BlockError::new(Op::Open, Kind::InvalidInput(text.to_owned())));
                }
                // A batch cut short must not stand between this one and the next.
                if file.len().map_err(opening)? != said.len {
                    file.set_len(said.len).map_err(opening)?;
                    file.sync().map_err(opening)?;
                }
                (file, said)
            }
            None if written => {
                let text = "data of an overlay without its log, so that nobody can tell what of it counts";
                return Err(BlockError::new(Op::Open, Kind::InvalidInput(text.to_owned())));
            }
            None => {
                if !is_in_place {
                    data.set_len(size).map_err(opening)?;
                    data.sync().map_err(opening)?;
                }
                let header = binding.encode()?;
                let file = folder.begin_log().map_err(opening)?;
                file.write_at(&header, 0).map_err(opening)?;
                file.sync().map_err(opening)?;
                folder.commit_log().map_err(opening)?;
                let said = Replayed {
                    chunks: std::collections::BTreeMap::new(),
                    len: header.len() as u64,
                    batch: 0,
                    is_complete: false,
                };
                (file, said)
            }
        };
        let mut map = match said.is_complete {
            true => Map::complete(size),
            false => Map::new(size, said.chunks),
        };
        let (live, changes) = Live::open(&folder, size).map_err(opening)?.unzip();
        let changes = changes.unwrap_or_default();
        for (extent, place) in &changes {
            map.set(*extent, *place);
        }
        let opened = Self {
            base,
            binding,
            size,
            folder,
            data,
            log: Mutex::new(Log {
                file,
                len: said.len,
                batch: said.batch,
            }),
            map: RwLock::new(map),
            live: live.map(Mutex::new),
            stripes: std::array::from_fn(|_| RwLock::new(())),
            broken: AtomicBool::new(false),
            log_min,
            staging: is_in_place.then(hydrate::staging).transpose()?,
            written: AtomicU64::new(0),
        };
        // What a process that died left is durable from here on, and what did so in another run of the system is no more.
        if !changes.is_empty() {
            opened.flush()?;
        }
        opened.live(Live::clear).map_err(opening)?;
        Ok(opened)
    }

    fn map_read(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_write(&self) -> RwLockWriteGuard<'_, Map> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn stripe(&self, offset: u64) -> &RwLock<()> {
        let chunk = usize::try_from(ChunkIndex::of(offset).get() % STRIPES as u64).expect("below 64");
        &self.stripes[chunk]
    }

    fn check(&self, op: Op, extent: Extent) -> Result<(), BlockError> {
        if extent.end() > self.size {
            return Err(BlockError::new(op, Kind::OutOfRange).at(extent));
        }
        if op != Op::Read && self.broken.load(Ordering::Acquire) {
            let cause = io::Error::other("a flush failed before, and what it lost is not known");
            return Err(BlockError::new(op, Kind::Io).at(extent).because(cause));
        }
        Ok(())
    }

    /// The sectors around `extent`, the last one cut short by the end of the volume.
    fn outwards(&self, extent: Extent) -> Extent {
        let start = extent.offset / SECTOR * SECTOR;
        Extent::between(start, extent.end().next_multiple_of(SECTOR).min(self.size))
    }

    /// The whole sectors inside `extent`.
    fn inwards(&self, extent: Extent) -> Extent {
        let end = if extent.end() == self.size {
            self.size
        } else {
            extent.end() / SECTOR * SECTOR
        };
        Extent::between(extent.offset.next_multiple_of(SECTOR), end)
    }

    fn read(&self, offset: u64, buf: &mut [u8], wait: bool) -> Result<bool, BlockError> {
        let extent = Extent {
            offset,
            len: buf.len() as u64,
        };
        self.check(Op::Read, extent)?;
        let mut runs = Vec::new();
        self.map_read().runs(extent, &mut runs);
        for (run, place) in runs {
            let from = usize::try_from(run.offset - offset).expect("inside the buffer");
            let part = &mut buf[from..from + run.bytes()];
            let ready = match place {
                Place::Zero => {
                    part.fill(0);
                    true
                }
                Place::Data if wait => self
                    .data
                    .read_at(part, run.offset)
                    .map(|()| true)
                    .map_err(failed(Op::Read, run))?,
                Place::Data => self.data.try_read_at(part, run.offset).map_err(failed(Op::Read, run))?,
                Place::Base if wait => self.base.read_at(run.offset, part).map(|()| true)?,
                Place::Base => self.base.try_read_at(run.offset, part)?,
            };
            if !ready {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn write(&self, offset: u64, buf: &[u8]) -> Result<(), BlockError> {
        let extent = Extent {
            offset,
            len: buf.len() as u64,
        };
        self.check(Op::Write, extent)?;
        for part in extent.split_on_grid() {
            let from = usize::try_from(part.offset - offset).expect("inside the buffer");
            let bytes = &buf[from..from + part.bytes()];
            if self.outwards(part) == part {
                // Beside others like it: the last one to a sector wins. Not beside one that merges.
                let _shared = self.stripe(part.offset).read().unwrap_or_else(PoisonError::into_inner);
                self.put(part, bytes)?;
            } else {
                let _alone = self.stripe(part.offset).write().unwrap_or_else(PoisonError::into_inner);
                self.merge(part, bytes)?;
            }
        }
        Ok(())
    }

    /// Writes whole sectors.
    fn put(&self, part: Extent, bytes: &[u8]) -> Result<(), BlockError> {
        self.data
            .write_at(bytes, part.offset)
            .map_err(failed(Op::Write, part))?;
        // Only now may it count: before, the file has something else there.
        self.change(part, Place::Data)?;
        self.written.fetch_add(part.len, Ordering::Relaxed);
        Ok(())
    }

    /// Writes parts of sectors, whose other bytes stay.
    fn merge(&self, part: Extent, bytes: &[u8]) -> Result<(), BlockError> {
        let sectors = self.outwards(part);
        let mut merged = vec![0; sectors.bytes()];
        let first = Extent::between(sectors.offset, self.size.min(sectors.offset + SECTOR));
        let last = self.outwards(Extent::between(part.end() - 1, part.end()));
        for edge in [first, last] {
            let at = usize::try_from(edge.offset - sectors.offset).expect("inside");
            self.read(edge.offset, &mut merged[at..at + edge.bytes()], true)?;
        }
        let at = usize::try_from(part.offset - sectors.offset).expect("inside");
        merged[at..at + bytes.len()].copy_from_slice(bytes);
        self.put(sectors, &merged)
    }

    fn zero(&self, extent: Extent, give_back: bool) -> Result<(), BlockError> {
        self.check(Op::Zero, extent)?;
        let inner = self.inwards(extent);
        if inner.is_empty() {
            // Less than two sectors' edges.
            return self.write(extent.offset, &vec![0; extent.bytes()]);
        }
        for edge in [
            Extent::between(extent.offset, inner.offset),
            Extent::between(inner.end(), extent.end()),
        ] {
            self.write(edge.offset, &vec![0; edge.bytes()])?;
        }
        for part in inner.split_on_grid() {
            let _shared = self.stripe(part.offset).read().unwrap_or_else(PoisonError::into_inner);
            if self.is_in_place() {
                self.data
                    .zero(part.offset, part.len, give_back)
                    .map_err(failed(Op::Zero, part))?;
            }
            self.change(part, self.zeros())?;
            self.written.fetch_add(part.len, Ordering::Relaxed);
        }
        if give_back && !self.is_in_place() {
            self.data.punch(inner.offset, inner.len);
        }
        Ok(())
    }

    /// Where zeros are when they were made.
    fn zeros(&self) -> Place {
        match self.is_in_place() {
            true => Place::Data,
            false => Place::Zero,
        }
    }

    fn whole(&self) -> Extent {
        Extent {
            offset: 0,
            len: self.size,
        }
    }

    fn flush(&self) -> Result<(), BlockError> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        self.flush_into(&mut log)
    }

    fn flush_into(&self, log: &mut Log<F::File>) -> Result<(), BlockError> {
        let whole = self.whole();
        self.check(Op::Sync, whole)?;
        // What is taken down here was written before; the data of it becomes durable next.
        let states: Vec<_> = {
            let mut map = self.map_write();
            self.live(Live::turn).map_err(failed(Op::Sync, whole))?;
            let pending = std::mem::take(&mut map.pending);
            let state = |chunk| Some((chunk, map.chunks.get(&chunk)?.clone()));
            pending.into_iter().filter_map(state).collect()
        };
        self.data.sync().map_err(|error| self.fail(whole, error))?;
        if states.is_empty() {
            return Ok(());
        }
        let batch = log::encode(log.batch, &states);
        if let Err(error) = log.file.write_at(&batch, log.len) {
            // Part of it may be there. Without it the log is as it was, and all of it can be tried again.
            if let Err(error) = log.file.set_len(log.len) {
                return Err(self.fail(whole, error));
            }
            self.map_write().pending.extend(states.iter().map(|(chunk, _)| chunk));
            return Err(failed(Op::Sync, whole)(error));
        }
        log.file.sync().map_err(|error| self.fail(whole, error))?;
        log.len += batch.len() as u64;
        log.batch += 1;
        self.live(Live::retire).map_err(failed(Op::Sync, whole))?;
        self.shorten(log)
    }

    /// From here on nobody knows what is durable.
    fn fail(&self, extent: Extent, error: io::Error) -> BlockError {
        self.broken.store(true, Ordering::Release);
        failed(Op::Sync, extent)(error)
    }

    /// Replaces a log that is much longer than need be. What is pending stays so: it may be in the new log too, which then says
    /// nothing that is not durable, since only what was logged goes in.
    fn shorten(&self, log: &mut Log<F::File>) -> Result<(), BlockError> {
        if log.len < self.log_min || log.len < LOG_FACTOR * self.map_read().logged_len() {
            return Ok(());
        }
        // From the old log, not from the map: what is in the map may not be durable.
        let said = self.binding.replay(&log.file)?;
        let (count, batch) = (said.chunks.len(), 0);
        let mut chunks = said.chunks.into_iter().enumerate();
        // A part at a time: all of it may be as long as the map is large.
        let more = |bytes: &mut Vec<u8>| {
            while bytes.len() < LOG_PART
                && let Some((index, (chunk, state))) = chunks.next()
            {
                log::encode_one(log::Slot { batch, index, count }, chunk, &state, bytes);
            }
        };
        // Without room for a shorter log the long one does.
        let Ok((file, len)) = self.make_log(more) else {
            return Ok(());
        };
        self.use_log(log, file, len, u64::from(count > 0))
    }

    /// A log of its header and all that `more` gives, until that is nothing, which is not in use yet; and its length.
    fn make_log(&self, mut more: impl FnMut(&mut Vec<u8>)) -> io::Result<(F::File, u64)> {
        let mut bytes = self.binding.encode().map_err(io::Error::other)?;
        let file = self.folder.begin_log()?;
        let mut len = 0;
        while !bytes.is_empty() {
            file.write_at(&bytes, len)?;
            len += bytes.len() as u64;
            bytes.clear();
            more(&mut bytes);
        }
        file.sync()?;
        Ok((file, len))
    }

    /// Puts `file` in the place of the log in use. `batch` is the number of its next one.
    fn use_log(&self, log: &mut Log<F::File>, file: F::File, len: u64, batch: u64) -> Result<(), BlockError> {
        self.folder
            .commit_log()
            .map_err(|error| self.fail(self.whole(), error))?;
        *log = Log { file, len, batch };
        Ok(())
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        self.check(Op::Read, range)?;
        let mut runs = Vec::new();
        self.map_read().runs(range, &mut runs);
        for (run, place) in runs {
            match place {
                Place::Data => out.push((run, ExtentKind::Data)),
                Place::Zero => out.push((run, ExtentKind::Zero)),
                Place::Base => self.base.extents(run, out)?,
            }
        }
        Ok(())
    }
}

impl BlockSource for Overlay {
    fn geometry(&self) -> Geometry {
        Geometry {
            offset_align: 1,
            memory_align: 1,
            ..self.inner.base.geometry()
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.inner.read(offset, buf, true).map(|_| ())
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        self.inner.extents(range, out)
    }

    fn prefetch(&self, range: Extent) {
        let mut runs = Vec::new();
        self.inner.map_read().runs(range, &mut runs);
        for (run, _) in runs.iter().filter(|(_, place)| *place == Place::Base) {
            self.inner.base.prefetch(*run);
        }
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        self.inner.read(offset, buf, false)
    }

    fn lend(&self, range: Extent) -> Option<Lent> {
        let chunk = ChunkIndex::of(range.offset);
        let map = self.inner.map_read();
        let changed = map.is_complete() || map.chunks.contains_key(&chunk.get());
        drop(map);
        // The base lends at most to the end of this chunk, beyond which it may not be what counts.
        let part = range.split_on_grid().next().filter(|_| !changed)?;
        self.inner.base.lend(part)
    }
}

impl BlockSink for Overlay {
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), BlockError> {
        self.inner.write(offset, buf)
    }

    fn write_zeroes(&self, range: Extent) -> Result<(), BlockError> {
        self.inner.zero(range, false)
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.inner.flush()
    }

    fn discard(&self, range: Extent) -> Result<(), BlockError> {
        self.inner.zero(range, true)
    }

    fn zeroes_fast(&self) -> bool {
        !self.inner.is_in_place()
    }
}

#[cfg(test)]
mod tests;
