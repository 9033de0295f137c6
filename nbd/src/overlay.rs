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
//! sent them live on. What is changed between flushes is noted for the next process ([`live`]), in files that the cache of the
//! system holds as it holds the data.
//!
//! A flush that fails for want of space can be repeated. One whose data or log may or may not be durable cannot: the overlay then
//! takes no more writes, for what is lost is not known; reads go on.

mod live;
mod log;
mod map;
mod store;

use blockio::{BlockError, BlockMap, BlockSink, BlockSource, CHUNK_SIZE, ChunkIndex, Extent, ExtentKind, Geometry};
use blockio::{Kind, Lent, Op};
use live::Live;
use log::{Binding, Replayed};
use map::{Map, Place, SECTOR};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use store::{Folder, FsFolder, Medium};

/// Locks for writes that do not cover whole sectors; chunks share them.
const STRIPES: usize = 64;

/// A log shorter than this is not replaced: reading it takes less than a second.
const LOG_MIN: u64 = 64 << 20;
/// A log this many times as long as need be is.
const LOG_FACTOR: u64 = 4;

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
        let folder = FsFolder::new(path).map_err(|error| BlockError::from_io(Op::Open, error).on(path))?;
        let inner = Inner::open(folder, base, identity, LOG_MIN).map_err(|error| error.on(path))?;
        Ok(Self { inner })
    }

    /// The chunks of which anything was changed.
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
    data: F::File,
    log: Mutex<Log<F::File>>,
    map: RwLock<Map>,
    /// Changed under the lock of the map, so that both say the same. None where it could not be told from one of another boot.
    live: Option<Mutex<Live<F::File>>>,
    stripes: [RwLock<()>; STRIPES],
    /// A flush failed in a way that leaves open what is durable.
    broken: AtomicBool,
    log_min: u64,
}

fn failed(op: Op, extent: Extent) -> impl Fn(io::Error) -> BlockError {
    move |error| BlockError::from_io(op, error).at(extent)
}

impl<F: Folder> Inner<F> {
    fn open(folder: F, base: Arc<dyn BlockSource>, identity: &str, log_min: u64) -> Result<Self, BlockError> {
        let size = base.geometry().size;
        let binding = Binding {
            identity: identity.to_owned(),
            size,
        };
        let opening = |error: io::Error| BlockError::from_io(Op::Open, error);
        // Its lock comes first.
        let (data, written) = folder.data().map_err(opening)?;
        let (file, said) = match folder.log().map_err(opening)? {
            Some(file) => {
                let said = binding.replay(&file)?;
                if data.len().map_err(opening)? != size {
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
                data.set_len(size).map_err(opening)?;
                data.sync().map_err(opening)?;
                let header = binding.encode()?;
                let file = folder.begin_log().map_err(opening)?;
                file.write_at(&header, 0).map_err(opening)?;
                file.sync().map_err(opening)?;
                folder.commit_log().map_err(opening)?;
                let said = Replayed {
                    chunks: std::collections::BTreeMap::new(),
                    len: header.len() as u64,
                    batch: 0,
                };
                (file, said)
            }
        };
        let mut map = Map::new(size);
        map.chunks = said.chunks;
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
        };
        // What a process that died left is durable from here on, and what did so in another run of the system is no more.
        if !changes.is_empty() {
            opened.flush()?;
        }
        opened.live(Live::clear).map_err(opening)?;
        Ok(opened)
    }

    /// Does something with the changes since the last flush, where they are noted.
    fn live<T: Default>(&self, act: impl FnOnce(&mut Live<F::File>) -> io::Result<T>) -> io::Result<T> {
        match &self.live {
            Some(live) => act(&mut live.lock().unwrap_or_else(PoisonError::into_inner)),
            None => Ok(T::default()),
        }
    }

    /// The sectors of `part` are at `place` from now on, for the next process too.
    fn change(&self, part: Extent, place: Place) -> Result<(), BlockError> {
        let is_long = {
            let mut map = self.map_write();
            if !map.set(part, place) {
                return Ok(());
            }
            let noted = self.live(|live| {
                live.append(part, place)?;
                Ok(live.is_long())
            });
            noted.map_err(failed(Op::Write, part))?
        };
        if is_long {
            self.flush()?;
        }
        Ok(())
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
        self.change(part, Place::Data)
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
            self.change(part, Place::Zero)?;
        }
        if give_back {
            self.data.punch(inner.offset, inner.len);
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), BlockError> {
        let whole = Extent {
            offset: 0,
            len: self.size,
        };
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
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
        self.shorten(&mut log)
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
        let states: Vec<_> = said.chunks.into_iter().collect();
        let bytes = [self.binding.encode()?, log::encode(0, &states)].concat();
        let make = || -> io::Result<F::File> {
            let file = self.folder.begin_log()?;
            file.write_at(&bytes, 0)?;
            file.sync()?;
            Ok(file)
        };
        // Without room for a shorter log the long one does.
        let Ok(file) = make() else { return Ok(()) };
        let whole = Extent {
            offset: 0,
            len: self.size,
        };
        self.folder.commit_log().map_err(|error| self.fail(whole, error))?;
        *log = Log {
            file,
            len: bytes.len() as u64,
            batch: u64::from(!states.is_empty()),
        };
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
        let changed = self.inner.map_read().chunks.contains_key(&chunk.get());
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
        true
    }
}

#[cfg(test)]
mod tests;
