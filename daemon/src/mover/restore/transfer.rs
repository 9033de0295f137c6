//! Moves pieces from the packs to the target, in pack order.
//!
//! Fetchers read ranges of packs into a bounded pool; workers decrypt straight into aligned buffers that their ring
//! writes. Order does not matter, so nobody waits for a neighbour.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use blockio::{
    BlockBuf, BufPool, CHUNK_BYTES, Cancel, Device, Engine, EngineChoice, EngineOptions, Extent, OpKind, Progress,
    Request, Zeroer, is_zero,
};
use crossbeam_channel::{Receiver, Sender, bounded};
use repo::blob::{Habits, READ_SLACK};
use repo::content::Unsealer;
use repo::plan::{Fetch, Piece, ReadPlan};
use repo::{Image, RepoError, Repository};
use tracing::info;

use super::RestoreOptions;
use crate::error::{JobError, Result, first_error};
use crate::mover::Limiter;

/// Memory of one worker's write buffers in bytes: 16 chunks of 1 MiB keep a device busy while one more is decrypted.
const WRITE_BYTES: usize = 16 << 20;

/// Reads of the repository in flight at most, however short they are: scattered chunks of 1 MiB come one a request, and 16
/// of those fill a link of 1 Gbit/s behind 100 ms of latency.
const FETCHES_MAX: usize = 16;

/// Bytes zeroed in one call, so that a cancellation is seen and progress moves.
const ZERO_BYTES: u64 = 1 << 30;

/// The way from the repository to a target, for as many plans as a restore needs.
pub(super) struct Transfer<'a> {
    pub(super) repository: &'a Repository,
    pub(super) image: &'a Image,
    pub(super) target: &'a Arc<Device>,
    pub(super) options: &'a RestoreOptions,
    pub(super) limiter: &'a Limiter,
    pub(super) cancel: &'a Cancel,
    /// Ends all threads after the first failure.
    pub(super) stop: Cancel,
    pub(super) progress: &'a Progress,
    pub(super) zeroer: Zeroer,
    /// Bytes of the longest piece.
    pub(super) longest: usize,
    engine: Mutex<Option<EngineChoice>>,
    /// Pieces that could not be read.
    lost: Mutex<Vec<usize>>,
    fetched_bytes: AtomicU64,
}

/// What was fetched, on its way to a worker.
enum Fetched {
    /// A range of a pack, as planned.
    Range {
        unit: usize,
        buf: BlockBuf,
        at: Range<usize>,
    },
    /// A content that had moved to another pack, decrypted, and the pieces it is used for. There are few of these.
    Moved { plaintext: Vec<u8>, uses: Vec<usize> },
}

/// One plan under way.
struct Run<'a> {
    job: &'a Transfer<'a>,
    plan: &'a ReadPlan,
    next: AtomicUsize,
    fetch_pool: BufPool,
}

/// How many of `reads` reads, the longest of `len` bytes, are in flight: as many bytes as the storage likes.
fn fetchers(reads: usize, len: u64, habits: &Habits) -> usize {
    let bytes = habits.read_len.saturating_mul(habits.reads as u64);
    let by_len = usize::try_from(bytes / len.max(1)).unwrap_or(FETCHES_MAX);
    let most = FETCHES_MAX.max(habits.reads);
    by_len.clamp(habits.reads.max(1), most).min(reads.max(1))
}

fn send(fetched: &Sender<Fetched>, what: Fetched) -> Result<()> {
    // The workers are gone only after a failure, and have told why.
    fetched.send(what).map_err(|_| JobError::Cancelled)
}

impl<'a> Transfer<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        image: &'a Image,
        target: &'a Arc<Device>,
        options: &'a RestoreOptions,
        limiter: &'a Limiter,
        (cancel, progress): (&'a Cancel, &'a Progress),
    ) -> Self {
        let longest = image.table.iter().map(|entry| entry.extent.len).max().unwrap_or(0);
        Self {
            repository,
            image,
            target,
            options,
            limiter,
            cancel,
            stop: Cancel::new(),
            progress,
            // A file is given holes where it becomes zero; a device keeps its blocks unless told otherwise.
            zeroer: Zeroer::new(options.faults.clone())
                .keep_sparse(true)
                .unmap(options.discard),
            longest: usize::try_from(longest).expect("compared with the longest piece"),
            engine: Mutex::new(None),
            lost: Mutex::new(Vec::new()),
            fetched_bytes: AtomicU64::new(0),
        }
    }

    /// Fetches and writes what `plan` says, and makes `zeros` zero.
    pub(super) fn run(&self, plan: &ReadPlan, zeros: &[Extent]) -> Result<()> {
        let fetch_len = usize::try_from(plan.fetch_len_max().max(1)).expect("checked against the longest piece");
        let fetchers = fetchers(plan.len(), plan.fetch_len_max(), &self.repository.store().habits());
        let workers = match plan.is_empty() {
            true => 0,
            false => self.options.workers.max(1),
        };
        let fetch_slot = (fetch_len + 2 * READ_SLACK).next_multiple_of(READ_SLACK);
        let run = Run {
            job: self,
            plan,
            next: AtomicUsize::new(0),
            fetch_pool: BufPool::new(fetch_slot, fetchers + workers)?,
        };
        run.run(fetchers, workers, zeros)?;
        self.fetched_bytes.fetch_add(plan.fetch_bytes(), Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn check(&self) -> Result<()> {
        match self.cancel.is_cancelled() || self.stop.is_cancelled() {
            true => Err(JobError::Cancelled),
            false => Ok(()),
        }
    }

    /// Notes `pieces` down as lost.
    pub(super) fn lose(&self, pieces: &[usize]) {
        for at in pieces {
            self.progress.add_done(self.inside(*at).len);
        }
        self.lost.lock().expect("no panic while held").extend_from_slice(pieces);
    }

    /// The pieces lost so far, and how the target was written, once all threads are done.
    pub(super) fn outcome(&self) -> (Vec<usize>, Option<EngineChoice>, u64) {
        let lost = std::mem::take(&mut *self.lost.lock().expect("workers are done"));
        let engine = self.engine.lock().expect("workers are done").take();
        (lost, engine, self.fetched_bytes.load(Ordering::Relaxed))
    }

    /// The bytes of piece `at` that are in the volume.
    pub(super) fn inside(&self, at: usize) -> Extent {
        let extent = self.image.table.entry(at).extent;
        Extent::between(extent.offset, extent.end().min(self.image.size))
    }

    /// Makes `extent` zero, and counts it as zeroed and done.
    pub(super) fn zero(&self, extent: Extent) -> Result<()> {
        let mut left = extent;
        while !left.is_empty() {
            self.check()?;
            let part = Extent {
                offset: left.offset,
                len: left.len.min(ZERO_BYTES),
            };
            if !self.options.target_is_zero {
                self.zeroer.zero(self.target, part)?;
            }
            self.progress.add_zero(part.len);
            self.progress.add_done(part.len);
            left = Extent::between(part.end(), left.end());
        }
        Ok(())
    }
}

impl Run<'_> {
    fn run(&self, fetchers: usize, workers: usize, zeros: &[Extent]) -> Result<()> {
        let (fetched, queue) = bounded(fetchers);
        let stop = &self.job.stop;
        std::thread::scope(|scope| {
            let guard = |result: Result<()>| {
                if result.is_err() {
                    stop.cancel();
                }
                result
            };
            let mut threads = Vec::new();
            for _ in 0..fetchers {
                let fetched = fetched.clone();
                threads.push(scope.spawn(move || guard(self.fetch(&fetched))));
            }
            drop(fetched);
            for at in 0..workers {
                let queue = queue.clone();
                threads.push(scope.spawn(move || guard(self.work(&queue, at == 0))));
            }
            drop(queue);
            let zeroed = guard(zeros.iter().try_for_each(|extent| self.job.zero(*extent)));
            first_error(
                threads
                    .into_iter()
                    .map(std::thread::ScopedJoinHandle::join)
                    .chain([Ok(zeroed)]),
            )
        })
    }

    fn fetch(&self, fetched: &Sender<Fetched>) -> Result<()> {
        loop {
            let unit = self.next.fetch_add(1, Ordering::Relaxed);
            if unit >= self.plan.len() {
                return Ok(());
            }
            self.job.check()?;
            self.job.repository.keep_fresh()?;
            let fetch = self.plan.fetch(unit);
            let mut buf = self
                .fetch_pool
                .take_cancel(&self.job.stop)
                .map_err(|_| JobError::Cancelled)?;
            match self
                .job
                .repository
                .store()
                .read_range(fetch.pack(), fetch.range(), &mut buf)
            {
                Ok(at) => send(fetched, Fetched::Range { unit, buf, at })?,
                Err(e) if e.is_not_found() || (e.is_damage() && self.job.options.salvage) => {
                    drop(buf);
                    self.fetch_moved(&fetch, fetched)?;
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Fetches the contents of a pack that is gone from where the index has them now: maintenance rewrites packs that have
    /// become small, and deletes them later.
    fn fetch_moved(&self, fetch: &Fetch<'_>, fetched: &Sender<Fetched>) -> Result<()> {
        info!(pack = %fetch.pack(), "a pack is gone; its contents are looked up again");
        for piece in fetch.pieces(self.job.repository, &self.job.image.table) {
            self.job.check()?;
            let uses = piece.uses;
            let first = self.job.image.table.entry(*uses.first().expect("every piece is used"));
            match self.job.repository.read_piece(&first) {
                Ok(plaintext) => send(fetched, Fetched::Moved { plaintext, uses })?,
                Err(e) if e.is_damage() && self.job.options.salvage => self.job.lose(&uses),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn work(&self, queue: &Receiver<Fetched>, first: bool) -> Result<()> {
        let slot = self.job.longest.max(CHUNK_BYTES).next_multiple_of(READ_SLACK);
        let pool = BufPool::new(slot, (WRITE_BYTES / slot).max(2))?;
        let options = EngineOptions {
            kind: self.job.options.engine,
            faults: self.job.options.faults.clone(),
            ..EngineOptions::default()
        };
        let mut engine = Engine::open(
            std::slice::from_ref(self.job.target),
            std::slice::from_ref(&pool),
            &options,
        )?;
        if first {
            *self.job.engine.lock().expect("no panic while held") = Some(engine.choice().clone());
        }
        let mut unsealer = Unsealer::new();
        for fetched in queue {
            self.job.check()?;
            let (unit, sealed) = match &fetched {
                Fetched::Range { unit, buf, at } => (*unit, &buf[at.clone()]),
                Fetched::Moved { plaintext, uses } => {
                    self.write_moved(plaintext, uses, &pool, &mut engine)?;
                    continue;
                }
            };
            for piece in self.plan.fetch(unit).pieces(self.job.repository, &self.job.image.table) {
                let mut buf = self.slot(&pool, &mut engine)?;
                let bytes = &sealed[piece.at.clone()];
                let len = match self.unseal(&piece, bytes, &mut unsealer, &mut buf) {
                    Ok(len) => len,
                    Err(JobError::Repository(e)) if e.is_damage() && self.job.options.salvage => {
                        self.job.lose(&piece.uses);
                        continue;
                    }
                    Err(e) => return Err(e),
                };
                let (last, others) = piece.uses.split_last().expect("every piece is used");
                for at in others {
                    let mut copy = self.slot(&pool, &mut engine)?;
                    copy[..len].copy_from_slice(&buf[..len]);
                    self.write(&mut engine, *at, copy)?;
                }
                self.write(&mut engine, *last, buf)?;
            }
        }
        while engine.in_flight() > 0 {
            self.job.check()?;
            self.reap(&mut engine)?;
        }
        Ok(())
    }

    /// Writes a content to each piece it is used for.
    fn write_moved(&self, plaintext: &[u8], uses: &[usize], pool: &BufPool, engine: &mut Engine) -> Result<()> {
        for at in uses {
            let mut buf = self.slot(pool, engine)?;
            let len = self.job.image.table.entry(*at).extent.len;
            if plaintext.len() as u64 != len {
                let what = format!("a content of {} bytes is used for a piece of {len}", plaintext.len());
                return Err(RepoError::corrupt(what).into());
            }
            buf[..plaintext.len()].copy_from_slice(plaintext);
            self.write(engine, *at, buf)?;
        }
        Ok(())
    }

    /// Puts the bytes of `piece` to the front of `buf`; how many there are.
    fn unseal(&self, piece: &Piece, sealed: &[u8], unsealer: &mut Unsealer, buf: &mut [u8]) -> Result<usize> {
        let contents = self.job.repository.contents();
        if !piece.compressed {
            let len = piece.entry.original_len as usize;
            contents.unseal_into(&piece.entry, sealed, unsealer, &mut buf[..len])?;
            return Ok(len);
        }
        // The index knows the length of the stream; the lists know those of the piece, and must agree.
        let len_of = |at: &usize| self.job.image.table.entry(*at).extent.len;
        let len = piece.uses.first().map_or(0, len_of);
        if piece.uses.iter().any(|at| len_of(at) != len) {
            let what = format!("content {} is a piece of different lengths", piece.entry.content);
            return Err(RepoError::corrupt(what).into());
        }
        let len = usize::try_from(len).expect("compared with the longest piece");
        contents.unseal_piece_into(&piece.entry, sealed, unsealer, &mut buf[..len])?;
        Ok(len)
    }

    /// A free buffer; waits for a write to end when there is none.
    fn slot(&self, pool: &BufPool, engine: &mut Engine) -> Result<BlockBuf> {
        loop {
            if let Some(buf) = pool.try_take() {
                return Ok(buf);
            }
            self.reap(engine)?;
        }
    }

    fn reap(&self, engine: &mut Engine) -> Result<()> {
        let mut completions = Vec::new();
        engine.wait(1, &mut completions)?;
        for completion in completions {
            completion.result?;
            self.job.progress.add_new(completion.len as u64);
            self.job.progress.add_done(completion.len as u64);
        }
        Ok(())
    }

    /// Writes piece `at`, whose bytes are in `buf`, as far as it lies in the volume.
    fn write(&self, engine: &mut Engine, at: usize, buf: BlockBuf) -> Result<()> {
        let Extent { offset, len } = self.job.inside(at);
        let bytes = usize::try_from(len).expect("a piece fits a buffer");
        self.job.limiter.take(len, self.job.cancel)?;
        if self.job.options.target_is_zero && is_zero(&buf[..bytes]) {
            self.job.progress.add_zero(len);
            self.job.progress.add_done(len);
            return Ok(());
        }
        let align = u64::from(self.job.target.geometry().offset_align);
        if self.job.target.is_direct() && !len.is_multiple_of(align) {
            // The odd end of the volume; written through the target's own bounce buffer.
            use blockio::BlockSink;
            self.job.target.write_at(offset, &buf[..bytes])?;
            self.job.progress.add_new(len);
            self.job.progress.add_done(len);
            return Ok(());
        }
        let mut request = Request {
            device: 0,
            kind: OpKind::Write,
            offset,
            len: bytes,
            buf: Some(buf),
            tag: at as u64,
        };
        while let Err(back) = engine.push(request) {
            request = back;
            self.reap(engine)?;
        }
        engine.submit()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_reads_are_more_in_flight_and_memory_stays_bounded() {
        let mib = 1 << 20;
        let local = |reads, len| fetchers(reads, len, &Habits::LOCAL);
        assert_eq!(local(1000, 8 * mib), 4);
        assert_eq!(local(1000, mib), 16, "scattered chunks");
        assert_eq!(local(1000, 20 * mib), 4);
        assert_eq!((local(3, mib), local(0, 0)), (3, 1));
        let remote = |len| fetchers(1000, len, &Habits::REMOTE);
        assert_eq!((remote(24 * mib), remote(12 * mib), remote(mib)), (8, 16, 16));
    }
}
