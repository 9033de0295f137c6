//! Restore of an image: zero runs are zeroed, everything else is fetched in pack order, decrypted and written.
//!
//! Fetchers read ranges of packs into a bounded pool; workers decrypt straight into aligned buffers that their ring
//! writes. Order does not matter, so nobody waits for a neighbour.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use blockio::{
    BlockBuf, BufPool, CHUNK_BYTES, CHUNK_SIZE, Cancel, Device, Engine, EngineChoice, EngineKind, EngineOptions,
    Extent, OpKind, Progress, Request, ZeroReport, Zeroer, is_zero,
};
use crossbeam_channel::{Receiver, Sender, bounded};
use repo::blob::READ_SLACK;
use repo::content::Unsealer;
use repo::object::BlockAddressTable;
use repo::plan::{FETCH_LEN_MAX, ReadPlan};
use repo::{Image, Repository};

use super::limit::Limiter;
use super::verify::{self, Mismatch};
use crate::error::{JobError, Result, first_error};

/// Memory of one worker's write buffers in bytes: 16 chunks of 1 MiB keep a device busy while one more is decrypted.
const WRITE_BYTES: usize = 16 << 20;

/// Threads that fetch. A directory serves from a local device, which 4 reads of 8 MiB keep busy.
const FETCHERS: usize = 4;

/// Longest piece of an image that is restored, in bytes. Kopia's widest splitter makes 16 MiB.
const PIECE_LEN_MAX: u64 = 64 << 20;

/// How to restore.
pub struct RestoreOptions {
    /// Worker threads.
    pub workers: usize,
    /// Way to the target.
    pub engine: EngineKind,
    /// Bytes a second written.
    pub limit: Option<u64>,
    /// Read the target back and compare every piece's id.
    pub verify: bool,
    /// The target reads as zeros now (a file just created): zero runs need no work.
    pub target_is_zero: bool,
    /// Engine faults, for tests.
    pub faults: Option<blockio::FaultPlan>,
}

/// What a restore did. All of it is on the target's medium.
#[derive(Clone, Debug)]
pub struct RestoreReport {
    /// Bytes of the volume.
    pub size: u64,
    /// Bytes fetched from packs.
    pub fetched_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes zeroed without writing data.
    pub zeroed_bytes: u64,
    /// Bytes left alone because the target had them.
    pub skipped_bytes: u64,
    /// How zeros were made.
    pub zero: ZeroReport,
    /// How the target was written.
    pub engine: Option<EngineChoice>,
    /// Pieces compared after reading the target back, when asked for.
    pub verified_pieces: Option<u64>,
    /// Wall time in milliseconds.
    pub duration_ms: u64,
}

/// A fetched range on its way to a worker.
struct Fetched {
    unit: usize,
    buf: BlockBuf,
    at: Range<usize>,
}

struct Job<'a> {
    repository: &'a Repository,
    image: &'a Image,
    target: &'a Arc<Device>,
    options: &'a RestoreOptions,
    plan: &'a ReadPlan,
    next: AtomicUsize,
    fetch_pool: BufPool,
    limiter: Limiter,
    cancel: &'a Cancel,
    stop: Cancel,
    progress: &'a Progress,
    engine: Mutex<Option<EngineChoice>>,
}

/// True when every piece of `table` begins at a multiple of `align`, so that a target can be written past the page cache.
pub fn is_aligned(table: &BlockAddressTable, align: u64) -> bool {
    match table.uniform_len() {
        Some(len) => table.count() <= 1 || len.is_multiple_of(align),
        None => table.iter().all(|entry| entry.extent.offset.is_multiple_of(align)),
    }
}

/// Writes `image` to `target`.
pub fn restore(
    repository: &Repository,
    image: &Image,
    target: &Arc<Device>,
    options: &RestoreOptions,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<RestoreReport> {
    let started = Instant::now();
    let geometry = target.geometry();
    if geometry.size < image.size {
        let what = format!(
            "{} has {} bytes, the volume {}: the target is smaller",
            target.path().display(),
            geometry.size,
            image.size
        );
        return Err(JobError::Usage(what));
    }
    let table = &image.table;
    let longest = table.iter().map(|entry| entry.extent.len).max().unwrap_or(0);
    if longest > PIECE_LEN_MAX {
        return Err(JobError::Usage(format!(
            "the image has pieces of {longest} bytes; at most {PIECE_LEN_MAX} are restored"
        )));
    }
    progress.add_total(image.size);

    let zero = repository.zero_content();
    let in_volume = |i: &usize| table.entry(*i).extent.offset < image.size;
    let is_zero_piece = |i: &usize| table.uniform_len() == Some(CHUNK_SIZE) && table.content(*i) == zero;
    let wanted = (0..table.count()).filter(in_volume).filter(|i| !is_zero_piece(i));
    let plan = ReadPlan::new(repository, table, wanted)?;
    let zeros = zero_extents(table, image.size, is_zero_piece);

    let fetch_len =
        usize::try_from(plan.fetch_len_max().max(FETCH_LEN_MAX)).expect("checked against the longest piece");
    let fetch_slot = (fetch_len + 2 * READ_SLACK).next_multiple_of(READ_SLACK);
    let workers = options.workers.max(1);
    let job = Job {
        repository,
        image,
        target,
        options,
        plan: &plan,
        next: AtomicUsize::new(0),
        fetch_pool: BufPool::new(fetch_slot, FETCHERS + workers)?,
        limiter: Limiter::new(options.limit),
        cancel,
        stop: Cancel::new(),
        progress,
        engine: Mutex::new(None),
    };
    let mut zeroer = Zeroer::new(options.faults.clone());
    job.run(
        workers,
        usize::try_from(longest).expect("checked above"),
        &mut zeroer,
        &zeros,
    )?;
    target.sync()?;
    assert_eq!(
        progress.snapshot().done_bytes,
        image.size,
        "every byte of the volume is accounted for"
    );

    let verified_pieces = match options.verify {
        false => None,
        true => {
            let mismatches = verify::compare(repository, image, target, workers, options.engine, cancel)?;
            match mismatches.first() {
                None => Some(table.count() as u64),
                Some(first) => return Err(mismatch(target, first, mismatches.len())),
            }
        }
    };
    let done = progress.snapshot();
    Ok(RestoreReport {
        size: image.size,
        fetched_bytes: plan.fetch_bytes(),
        written_bytes: done.new_bytes,
        zeroed_bytes: done.zero_bytes,
        skipped_bytes: 0,
        zero: zeroer.report(),
        engine: job.engine.into_inner().expect("workers are done"),
        verified_pieces,
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

fn mismatch(target: &Device, first: &Mismatch, count: usize) -> JobError {
    let extent = first.extent;
    JobError::Damage(format!(
        "{}: {count} pieces differ from the snapshot after the restore, the first at byte {} ({} bytes, content {}); the target is not usable",
        target.path().display(),
        extent.offset,
        extent.len,
        first.content
    ))
}

/// Runs of zero pieces inside the volume, merged.
fn zero_extents(table: &BlockAddressTable, size: u64, is_zero: impl Fn(&usize) -> bool) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::new();
    for i in (0..table.count()).filter(is_zero) {
        let extent = table.entry(i).extent;
        let len = extent.len.min(size.saturating_sub(extent.offset));
        match runs.last_mut() {
            _ if len == 0 => break,
            Some(last) if last.offset + last.len == extent.offset => last.len += len,
            _ => runs.push(Extent {
                offset: extent.offset,
                len,
            }),
        }
    }
    runs
}

impl Job<'_> {
    fn run(&self, workers: usize, longest: usize, zeroer: &mut Zeroer, zeros: &[Extent]) -> Result<()> {
        let (fetched, queue) = bounded(FETCHERS);
        std::thread::scope(|scope| {
            let guard = |result: Result<()>| {
                if result.is_err() {
                    self.stop.cancel();
                }
                result
            };
            let mut threads = Vec::new();
            for _ in 0..FETCHERS {
                let fetched = fetched.clone();
                threads.push(scope.spawn(move || guard(self.fetch(&fetched))));
            }
            drop(fetched);
            for at in 0..workers {
                let queue = queue.clone();
                threads.push(scope.spawn(move || guard(self.work(&queue, at == 0, longest))));
            }
            drop(queue);
            let zeroed = guard(self.zero(zeroer, zeros));
            first_error(
                threads
                    .into_iter()
                    .map(std::thread::ScopedJoinHandle::join)
                    .chain([Ok(zeroed)]),
            )
        })
    }

    fn check(&self) -> Result<()> {
        match self.cancel.is_cancelled() || self.stop.is_cancelled() {
            true => Err(JobError::Cancelled),
            false => Ok(()),
        }
    }

    fn zero(&self, zeroer: &mut Zeroer, zeros: &[Extent]) -> Result<()> {
        for run in zeros {
            let mut left = *run;
            while left.len > 0 {
                self.check()?;
                // 1 GiB at a time, so that a cancellation is seen and progress moves.
                let part = Extent {
                    offset: left.offset,
                    len: left.len.min(1 << 30),
                };
                if !self.options.target_is_zero {
                    zeroer.zero(self.target, part)?;
                }
                self.progress.add_zero(part.len);
                self.progress.add_done(part.len);
                left = Extent {
                    offset: left.offset + part.len,
                    len: left.len - part.len,
                };
            }
        }
        Ok(())
    }

    fn fetch(&self, fetched: &Sender<Fetched>) -> Result<()> {
        loop {
            let unit = self.next.fetch_add(1, Ordering::Relaxed);
            if unit >= self.plan.len() {
                return Ok(());
            }
            self.check()?;
            let fetch = self.plan.fetch(unit);
            let mut buf = self
                .fetch_pool
                .take_cancel(&self.stop)
                .map_err(|_| JobError::Cancelled)?;
            let at = self.repository.read_pack(fetch.pack(), fetch.range(), &mut buf)?;
            if fetched.send(Fetched { unit, buf, at }).is_err() {
                return Err(JobError::Cancelled); // the workers are gone and have told why
            }
        }
    }

    fn work(&self, queue: &Receiver<Fetched>, first: bool, longest: usize) -> Result<()> {
        let slot = longest.max(CHUNK_BYTES).next_multiple_of(READ_SLACK);
        let pool = BufPool::new(slot, (WRITE_BYTES / slot).max(2))?;
        let options = EngineOptions {
            kind: self.options.engine,
            faults: self.options.faults.clone(),
            ..EngineOptions::default()
        };
        let mut engine = Engine::open(std::slice::from_ref(self.target), std::slice::from_ref(&pool), &options)?;
        if first {
            *self.engine.lock().expect("no panic while held") = Some(engine.choice().clone());
        }
        let mut unsealer = Unsealer::new();
        for fetched in queue {
            self.check()?;
            let sealed = &fetched.buf[fetched.at.clone()];
            for piece in self.plan.fetch(fetched.unit).pieces(self.repository, &self.image.table) {
                let len = piece.entry.original_len as usize;
                let mut buf = self.slot(&pool, &mut engine)?;
                self.repository.contents().unseal_into(
                    &piece.entry,
                    &sealed[piece.at.clone()],
                    &mut unsealer,
                    &mut buf[..len],
                )?;
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
            self.check()?;
            self.reap(&mut engine)?;
        }
        Ok(())
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
            self.progress.add_new(completion.len as u64);
            self.progress.add_done(completion.len as u64);
        }
        Ok(())
    }

    /// Writes piece `at`, whose bytes are in `buf`, as far as it lies in the volume.
    fn write(&self, engine: &mut Engine, at: usize, buf: BlockBuf) -> Result<()> {
        let extent = self.image.table.entry(at).extent;
        let len = extent.len.min(self.image.size - extent.offset);
        let bytes = usize::try_from(len).expect("a piece fits a buffer");
        self.limiter.take(len, self.cancel)?;
        if self.options.target_is_zero && is_zero(&buf[..bytes]) {
            self.progress.add_zero(len);
            self.progress.add_done(len);
            return Ok(());
        }
        let align = u64::from(self.target.geometry().offset_align);
        if self.target.is_direct() && !len.is_multiple_of(align) {
            // The odd end of the volume; written through the target's own bounce buffer.
            use blockio::BlockSink;
            self.target.write_at(extent.offset, &buf[..bytes])?;
            self.progress.add_new(len);
            self.progress.add_done(len);
            return Ok(());
        }
        let mut request = Request {
            device: 0,
            kind: OpKind::Write,
            offset: extent.offset,
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
