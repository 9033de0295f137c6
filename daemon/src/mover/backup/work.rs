//! The workers: read chunks, find zeros, hash in lanes, store what is new.
//!
//! Each owns a ring, its chunk buffers and a pack. It keeps up to 24 chunks under way, collects chunks that are not zero until a
//! full set of hash lanes is together, and seals new ones straight into its pack buffer. Zero chunks are known by id: neither
//! hashed nor looked up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use blockio::{
    BlockBuf, BlockMap, BlockSource, BufPool, CHUNK_BYTES, CHUNK_SIZE, Cancel, ChunkIndex, Completion, Device, Engine,
    EngineChoice, EngineOptions, OpKind, Progress, Request, is_zero,
};
use repo::crypto::Digest;
use repo::object::BlockAddressTable;
use repo::session::{Sealer, Stored, WriteSession};
use repo::snapshot::{Snapshot, tag};
use repo::{ContentId, Repository};

use super::BackupOptions;
use super::plan::Plan;
use crate::error::{JobError, Result, first_error};
use crate::mover::cursor::Cursor;
use crate::mover::journal::Journal;
use crate::mover::limit::Limiter;
use crate::mover::snapshot::{About, store_image};

/// Chunk buffers of one worker: 8 being hashed, 16 on the way from the device. Two workers then keep 32 MiB in flight,
/// where the measured device rate stops rising; 16 slots lost 6 %.
const SLOTS: usize = 24;

/// One pass over some chunks of the volume.
pub(super) struct Round {
    /// Chunks to read.
    pub(super) chunks: BlockMap,
    /// Those of them that are compared with what the snapshot would say of them.
    pub(super) audited: BlockMap,
    /// The first one counts into the progress; chunks of later ones were counted as taken over.
    pub(super) is_first: bool,
}

/// What the workers share.
pub(super) struct Job<'a> {
    pub(super) options: &'a BackupOptions,
    repository: &'a Repository,
    device: &'a Arc<Device>,
    pub(super) journal: Option<&'a Journal>,
    limiter: Limiter,
    cancel: &'a Cancel,
    /// Ends all workers after the first failure.
    stop: Cancel,
    progress: &'a Progress,
    about: About<'a>,
    zero: ContentId,
    /// What the snapshot would say if nothing were read.
    base: BlockAddressTable,
    /// What it says.
    table: Mutex<BlockAddressTable>,
    engine: Mutex<Option<EngineChoice>>,
    zero_is_needed: AtomicBool,
    zero_is_stored: AtomicBool,
    read_chunks: AtomicU64,
}

impl<'a> Job<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        device: &'a Arc<Device>,
        about: About<'a>,
        plan: &Plan,
        journal: Option<&'a Journal>,
        cancel: &'a Cancel,
        progress: &'a Progress,
    ) -> Self {
        Self {
            options: about.options,
            repository,
            device,
            journal,
            limiter: Limiter::new(about.options.limit),
            cancel,
            stop: Cancel::new(),
            progress,
            about,
            zero: plan.zero,
            base: plan.base.clone(),
            table: Mutex::new(plan.base.clone()),
            engine: Mutex::new(None),
            zero_is_needed: AtomicBool::new(false),
            zero_is_stored: AtomicBool::new(false),
            read_chunks: AtomicU64::new(0),
        }
    }

    /// What the snapshot says of each chunk.
    pub(super) fn table(&self) -> BlockAddressTable {
        self.table.lock().expect("no panic while held").clone()
    }

    /// Bytes read from the device, in whole chunks.
    pub(super) fn read_bytes(&self) -> u64 {
        self.read_chunks.load(Ordering::Relaxed) * CHUNK_SIZE
    }

    /// How the device was read.
    pub(super) fn engine(&self) -> EngineChoice {
        let engine = self.engine.lock().expect("no panic while held").clone();
        engine.expect("every worker notes its engine")
    }

    /// Content id of a chunk as the device has it now.
    pub(super) fn content_of(&self, chunk: ChunkIndex) -> Result<ContentId> {
        let mut buf = vec![0; CHUNK_BYTES];
        self.device.read_at(chunk.offset(), &mut buf)?;
        Ok(self.repository.contents().content_id(None, &buf))
    }

    /// Takes chunks as read that an interrupted run has read.
    pub(super) fn take_up(&self, chunks: &[(ChunkIndex, ContentId)]) {
        let mut table = self.table.lock().expect("no panic while held");
        for (chunk, content) in chunks {
            table.set_content(index(*chunk), content);
        }
    }

    /// Counts what needs no reading: taken over, taken up (`resumed`), or zero.
    pub(super) fn begin(&self, plan: &Plan, resumed: &[ChunkIndex]) {
        let geometry = self.device.geometry();
        self.progress.add_total(geometry.size);
        let table = self.table.lock().expect("no panic while held");
        let unread = plan.intake.unread.iter().filter(|chunk| !plan.sample.get(*chunk));
        for chunk in unread.chain(resumed.iter().copied()).chain(plan.intake.holes.iter()) {
            if table.hash(index(chunk)) == self.zero.hash() {
                self.zero_is_needed.store(true, Ordering::Relaxed);
                self.progress.add_zero(CHUNK_SIZE);
            } else {
                self.progress.add_unchanged(CHUNK_SIZE);
            }
            self.progress.add_done(geometry.chunk_extent(chunk).len);
        }
    }

    /// Reads and stores the chunks of a round; returns those that were not as the snapshot would have said, in order.
    pub(super) fn run(&self, session: &WriteSession<'_>, round: &Round) -> Result<Vec<ChunkIndex>> {
        let cursor = Cursor::new(round.chunks.clone());
        // A worker costs its buffers: none without at least a few chunks to read.
        let workers = usize::try_from(cursor.count().div_ceil(SLOTS as u64 / 2)).unwrap_or(usize::MAX);
        let workers = workers.clamp(1, self.options.workers.max(1));
        let wrong = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let work = |is_first| {
                let (cursor, wrong) = (&cursor, &wrong);
                move || {
                    let worker = Worker {
                        job: self,
                        session,
                        round,
                        cursor,
                        wrong,
                    };
                    let result = worker.work(is_first);
                    if result.is_err() {
                        self.stop.cancel();
                    }
                    result
                }
            };
            let threads: Vec<_> = (0..workers).map(|at| scope.spawn(work(at == 0))).collect();
            first_error(threads.into_iter().map(std::thread::ScopedJoinHandle::join))
        })?;
        self.read_chunks.fetch_add(cursor.count(), Ordering::Relaxed);
        if round.is_first {
            let done = self.progress.snapshot().done_bytes;
            assert_eq!(
                done,
                self.device.geometry().size,
                "every byte of the volume is accounted for"
            );
        }
        let mut wrong = wrong.into_inner().expect("workers are done");
        wrong.sort_unstable();
        Ok(wrong)
    }

    /// A snapshot of what is indexed so far; nothing while there is nothing to show. Velero must not take it for a parent,
    /// so the tags it looks for are left out, and the pin, so that it may expire.
    fn checkpoint(&self, session: &WriteSession<'_>) -> repo::Result<Option<Snapshot>> {
        let table = self.table();
        let Some(part) = session.indexed_part(&table) else {
            return Ok(None);
        };
        let (_, mut snapshot) = store_image(session, self.device.geometry(), &self.about, &part)?;
        for tag in [tag::UPLOADER, tag::CHANGE_ID, tag::VOLUME_ID, tag::REQUESTER] {
            snapshot.tags.remove(tag);
        }
        snapshot.tags.insert(tag::SESSION.into(), session.id().to_string());
        snapshot.pins.clear();
        Ok(Some(snapshot))
    }

    /// Stores the content all zero chunks and holes refer to, once.
    fn store_zero(&self, sealer: &mut Sealer<'_>) -> Result<()> {
        if !self.zero_is_stored.swap(true, Ordering::Relaxed) {
            sealer.store(self.zero, &vec![0; CHUNK_BYTES])?;
        }
        Ok(())
    }
}

/// Position of a chunk in the table.
pub(super) fn index(chunk: ChunkIndex) -> usize {
    usize::try_from(chunk.get()).expect("the table fits memory")
}

/// One thread at work on a round.
struct Worker<'a> {
    job: &'a Job<'a>,
    session: &'a WriteSession<'a>,
    round: &'a Round,
    cursor: &'a Cursor,
    wrong: &'a Mutex<Vec<ChunkIndex>>,
}

impl Worker<'_> {
    fn work(&self, is_first: bool) -> Result<()> {
        let job = self.job;
        let pool = BufPool::new(CHUNK_BYTES, SLOTS)?;
        let options = EngineOptions {
            kind: job.options.engine,
            faults: job.options.faults.clone(),
            ..EngineOptions::default()
        };
        let mut engine = Engine::open(std::slice::from_ref(job.device), std::slice::from_ref(&pool), &options)?;
        if is_first {
            *job.engine.lock().expect("no panic while held") = Some(engine.choice().clone());
        }
        let mut sealer = self.session.sealer();
        if is_first && job.zero_is_needed.load(Ordering::Relaxed) {
            job.store_zero(&mut sealer)?;
        }
        let lanes = job.repository.contents().hasher().lanes();
        let mut batch = Batch::default();
        let mut queued: Vec<ChunkIndex> = Vec::new();
        let mut completions = Vec::new();
        loop {
            if job.cancel.is_cancelled() || job.stop.is_cancelled() {
                return Err(JobError::Cancelled);
            }
            self.read_ahead(&mut engine, &pool, &mut queued)?;
            if engine.in_flight() == 0 {
                break;
            }
            engine.wait(1, &mut completions)?;
            for completion in completions.drain(..) {
                let (chunk, buf) = finished(completion)?;
                if is_zero(&buf) {
                    job.store_zero(&mut sealer)?;
                    self.settle(std::iter::once((chunk, job.zero.hash())))?;
                    if self.round.is_first {
                        job.progress.add_zero(CHUNK_SIZE);
                    }
                } else {
                    batch.push(chunk, buf);
                }
            }
            while batch.len() >= lanes {
                self.store(&mut sealer, &mut batch, lanes)?;
            }
            self.session.keep_up()?;
            self.session.checkpoint_when_due(&mut || job.checkpoint(self.session))?;
        }
        while batch.len() > 0 {
            let count = batch.len().min(lanes);
            self.store(&mut sealer, &mut batch, count)?;
        }
        sealer.finish()?;
        Ok(())
    }

    /// Queues reads for all free buffers.
    fn read_ahead(&self, engine: &mut Engine, pool: &BufPool, queued: &mut Vec<ChunkIndex>) -> Result<()> {
        let free = pool.free();
        self.cursor.take(free, queued);
        self.job
            .limiter
            .take(queued.len() as u64 * CHUNK_SIZE, self.job.cancel)?;
        for chunk in queued.drain(..) {
            let buf = pool.try_take().expect("as many chunks were taken as buffers are free");
            let request = Request {
                device: 0,
                kind: OpKind::Read,
                offset: chunk.offset(),
                len: CHUNK_BYTES,
                buf: Some(buf),
                tag: chunk.get(),
            };
            engine
                .push(request)
                .map_err(|_| JobError::Panic("a ring with fewer entries than buffers".into()))?;
        }
        engine.submit()?;
        Ok(())
    }

    /// Hashes and stores the first `count` chunks of the batch.
    fn store(&self, sealer: &mut Sealer<'_>, batch: &mut Batch, count: usize) -> Result<()> {
        let progress = self.job.progress;
        {
            let data: Vec<&[u8]> = batch.bufs[..count].iter().map(|buf| &buf[..]).collect();
            batch.digests.clear();
            let hasher = self.job.repository.contents().hasher();
            hasher.hash_many(&data, &mut batch.digests);
            for (digest, data) in batch.digests.iter().zip(&data) {
                let id = ContentId::new(None, digest.as_slice())?;
                match sealer.store(id, data)? {
                    Stored::Known if self.round.is_first => progress.add_unchanged(CHUNK_SIZE),
                    Stored::Known => {}
                    Stored::New { packed_len } => {
                        progress.add_new(CHUNK_SIZE);
                        progress.add_stored(u64::from(packed_len));
                    }
                }
            }
        }
        let hashes = batch.digests.iter().map(Digest::as_slice);
        self.settle(batch.chunks[..count].iter().copied().zip(hashes))?;
        batch.chunks.drain(..count);
        batch.bufs.drain(..count);
        Ok(())
    }

    /// Notes what chunks hold: in the table, in the journal, in the progress, and where the list was wrong about it.
    fn settle<'b>(&self, chunks: impl Iterator<Item = (ChunkIndex, &'b [u8])> + Clone) -> Result<()> {
        let job = self.job;
        {
            let mut table = job.table.lock().expect("no panic while held");
            for (chunk, hash) in chunks.clone() {
                if self.round.audited.get(chunk) && job.base.hash(index(chunk)) != hash {
                    self.wrong.lock().expect("no panic while held").push(chunk);
                }
                if table.hash(index(chunk)) != hash {
                    table.set_content(index(chunk), &ContentId::new(None, hash)?);
                }
            }
        }
        if let Some(journal) = job.journal {
            journal.finished(chunks.clone());
        }
        if self.round.is_first {
            let geometry = job.device.geometry();
            let bytes = chunks.map(|(chunk, _)| geometry.chunk_extent(chunk).len).sum();
            job.progress.add_done(bytes);
        }
        Ok(())
    }
}

/// Chunks read, not zero, and not yet hashed.
#[derive(Default)]
struct Batch {
    chunks: Vec<ChunkIndex>,
    bufs: Vec<BlockBuf>,
    digests: Vec<Digest>,
}

impl Batch {
    fn len(&self) -> usize {
        self.chunks.len()
    }

    fn push(&mut self, chunk: ChunkIndex, buf: BlockBuf) {
        self.chunks.push(chunk);
        self.bufs.push(buf);
    }
}

fn finished(completion: Completion) -> Result<(ChunkIndex, BlockBuf)> {
    completion.result?;
    let buf = completion
        .buf
        .ok_or_else(|| JobError::Panic("a read came back without its buffer".into()))?;
    Ok((ChunkIndex::new(completion.tag), buf))
}
