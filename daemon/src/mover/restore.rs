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
use repo::plan::{Fetch, Piece, ReadPlan};
use repo::{Image, RepoError, Repository};
use tracing::info;

use super::limit::Limiter;
use super::verify::{self, Mismatch};
use crate::error::{JobError, Result, first_error};

/// Memory of one worker's write buffers in bytes: 16 chunks of 1 MiB keep a device busy while one more is decrypted.
const WRITE_BYTES: usize = 16 << 20;

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
    /// Leave out what the repository has lost, and tell where that is, instead of ending at the first such place.
    pub salvage: bool,
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
    /// Places that could not be restored, in order; the target has there what it had before. Empty unless salvaging.
    pub lost: Vec<Extent>,
    /// How zeros were made.
    pub zero: ZeroReport,
    /// How the target was written.
    pub engine: Option<EngineChoice>,
    /// Pieces compared after reading the target back, when asked for.
    pub verified_pieces: Option<u64>,
    /// Wall time in milliseconds.
    pub duration_ms: u64,
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
    /// Pieces that could not be read.
    lost: Mutex<Vec<usize>>,
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
    let (plan, lost) = match options.salvage {
        true => ReadPlan::of_readable(repository, table, wanted)?,
        false => (ReadPlan::new(repository, table, wanted)?, Vec::new()),
    };
    let zeros = zero_extents(table, image.size, is_zero_piece);

    let fetch_len = usize::try_from(plan.fetch_len_max().max(1)).expect("checked against the longest piece");
    let fetchers = repository.store().habits().reads.clamp(1, plan.len().max(1));
    let fetch_slot = (fetch_len + 2 * READ_SLACK).next_multiple_of(READ_SLACK);
    let workers = options.workers.max(1);
    let job = Job {
        repository,
        image,
        target,
        options,
        plan: &plan,
        next: AtomicUsize::new(0),
        fetch_pool: BufPool::new(fetch_slot, fetchers + workers)?,
        limiter: Limiter::new(options.limit),
        cancel,
        stop: Cancel::new(),
        progress,
        engine: Mutex::new(None),
        lost: Mutex::new(Vec::new()),
    };
    job.lose(&lost);
    let mut zeroer = Zeroer::new(options.faults.clone());
    job.run(
        fetchers,
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

    let lost = merged(
        table,
        image.size,
        std::mem::take(&mut *job.lost.lock().expect("workers are done")),
    );
    let verified_pieces = match options.verify {
        false => None,
        true => {
            let mut mismatches = verify::compare(repository, image, target, workers, options.engine, cancel)?;
            mismatches.retain(|m| !lost.iter().any(|lost| lost.contains(m.extent)));
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
        skipped_bytes: lost.iter().map(|extent| extent.len).sum(),
        lost,
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

/// The places of `pieces` inside the volume, in order, neighbours merged.
fn merged(table: &BlockAddressTable, size: u64, mut pieces: Vec<usize>) -> Vec<Extent> {
    pieces.sort_unstable();
    pieces.dedup();
    let mut extents: Vec<Extent> = Vec::new();
    for at in pieces {
        let extent = table.entry(at).extent;
        let len = extent.len.min(size.saturating_sub(extent.offset));
        match extents.last_mut() {
            Some(last) if last.offset + last.len == extent.offset => last.len += len,
            _ => extents.push(Extent {
                offset: extent.offset,
                len,
            }),
        }
    }
    extents
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

fn send(fetched: &Sender<Fetched>, what: Fetched) -> Result<()> {
    // The workers are gone only after a failure, and have told why.
    fetched.send(what).map_err(|_| JobError::Cancelled)
}

impl Job<'_> {
    fn run(
        &self,
        fetchers: usize,
        workers: usize,
        longest: usize,
        zeroer: &mut Zeroer,
        zeros: &[Extent],
    ) -> Result<()> {
        let (fetched, queue) = bounded(fetchers);
        std::thread::scope(|scope| {
            let guard = |result: Result<()>| {
                if result.is_err() {
                    self.stop.cancel();
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
            self.repository.keep_fresh()?;
            let fetch = self.plan.fetch(unit);
            let mut buf = self
                .fetch_pool
                .take_cancel(&self.stop)
                .map_err(|_| JobError::Cancelled)?;
            match self
                .repository
                .store()
                .read_range(fetch.pack(), fetch.range(), &mut buf)
            {
                Ok(at) => send(fetched, Fetched::Range { unit, buf, at })?,
                Err(e) if e.is_not_found() || (e.is_damage() && self.options.salvage) => {
                    drop(buf);
                    self.fetch_moved(&fetch, fetched)?;
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Notes `pieces` down as lost.
    fn lose(&self, pieces: &[usize]) {
        for at in pieces {
            let extent = self.image.table.entry(*at).extent;
            self.progress.add_done(extent.len.min(self.image.size - extent.offset));
        }
        self.lost.lock().expect("no panic while held").extend_from_slice(pieces);
    }

    /// Fetches the contents of a pack that is gone from where the index has them now: maintenance rewrites packs that have
    /// become small, and deletes them later.
    fn fetch_moved(&self, fetch: &Fetch<'_>, fetched: &Sender<Fetched>) -> Result<()> {
        info!(pack = %fetch.pack(), "a pack is gone; its contents are looked up again");
        for piece in fetch.pieces(self.repository, &self.image.table) {
            self.check()?;
            let uses = piece.uses;
            let first = self.image.table.entry(*uses.first().expect("every piece is used"));
            match self.repository.read_piece(&first) {
                Ok(plaintext) => send(fetched, Fetched::Moved { plaintext, uses })?,
                Err(e) if e.is_damage() && self.options.salvage => self.lose(&uses),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
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
            let (unit, sealed) = match &fetched {
                Fetched::Range { unit, buf, at } => (*unit, &buf[at.clone()]),
                Fetched::Moved { plaintext, uses } => {
                    self.write_moved(plaintext, uses, &pool, &mut engine)?;
                    continue;
                }
            };
            for piece in self.plan.fetch(unit).pieces(self.repository, &self.image.table) {
                let mut buf = self.slot(&pool, &mut engine)?;
                let bytes = &sealed[piece.at.clone()];
                let len = match self.unseal(&piece, bytes, &mut unsealer, &mut buf) {
                    Ok(len) => len,
                    Err(JobError::Repository(e)) if e.is_damage() && self.options.salvage => {
                        self.lose(&piece.uses);
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
            self.check()?;
            self.reap(&mut engine)?;
        }
        Ok(())
    }

    /// Writes a content to each piece it is used for.
    fn write_moved(&self, plaintext: &[u8], uses: &[usize], pool: &BufPool, engine: &mut Engine) -> Result<()> {
        for at in uses {
            let mut buf = self.slot(pool, engine)?;
            let len = self.image.table.entry(*at).extent.len;
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
        let contents = self.repository.contents();
        if !piece.compressed {
            let len = piece.entry.original_len as usize;
            contents.unseal_into(&piece.entry, sealed, unsealer, &mut buf[..len])?;
            return Ok(len);
        }
        // The index knows the length of the stream; the lists know those of the piece, and must agree.
        let len_of = |at: &usize| self.image.table.entry(*at).extent.len;
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
