//! Full backup of a volume: read, find zeros, hash in lanes, store what is new, write the list, publish the snapshot.
//!
//! Each worker owns a ring, its chunk buffers and a pack. It keeps up to 24 chunks under way, collects chunks that
//! are not zero until a full set of hash lanes is together, and seals new ones straight into its pack buffer. Zero chunks
//! are known by id: neither hashed nor looked up.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use blockio::{
    BlockBuf, BlockMap, BufPool, CHUNK_BYTES, CHUNK_SIZE, Cancel, ChunkIndex, Completion, Device, Engine, EngineChoice,
    EngineKind, EngineOptions, OpKind, Progress, Request, is_zero,
};
use repo::compress::CompressionPolicy;
use repo::crypto::Digest;
use repo::object::BlockAddressTable;
use repo::session::{Sealer, Stored, WriteOptions, WriteSession, WriteTotals};
use repo::snapshot::{Snapshot, Source, tag};
use repo::time::Time;
use repo::{ContentId, ManifestId, ObjectId, Repository};

use super::cursor::Cursor;
use super::limit::Limiter;
use super::notes::SessionNotes;
use super::snapshot::{publish, store_image};
use crate::error::{JobError, Result, first_error};

/// Chunk buffers of one worker: 8 being hashed, 16 on the way from the device. Two workers then keep 32 MiB in flight,
/// where the measured device rate stops rising; 16 slots lost 6 %.
const SLOTS: usize = 24;

/// Packs on their way to the storage for each worker; one is written while the next fills.
const UPLOADS_PER_WORKER: usize = 1;

/// What to back up, and how.
pub struct BackupOptions {
    /// Whose volume the snapshot shows.
    pub source: Source,
    /// Compression of chunks.
    pub compression: CompressionPolicy,
    /// Worker threads.
    pub workers: usize,
    /// Way to the device.
    pub engine: EngineKind,
    /// Bytes a second read from the device.
    pub limit: Option<u64>,
    /// Change id of the CSI snapshot, for the next increment.
    pub change_id: Option<String>,
    /// Volume the change id belongs to.
    pub volume_id: Option<String>,
    /// Further tags.
    pub tags: BTreeMap<String, String>,
    /// How the repository is treated.
    pub care: Care,
    /// Engine faults, for tests.
    pub faults: Option<blockio::FaultPlan>,
}

/// How a backup treats the repository.
#[derive(Clone, Debug, Default)]
pub struct Care {
    /// Packs on their way to the storage at once, 22 MiB each; by the storage's habits when not given.
    pub uploads: Option<usize>,
    /// Share of reused contents whose packs are looked for, in percent.
    pub check_reused: u8,
    /// Contents to store again though the repository has them.
    pub damaged: Arc<HashSet<ContentId>>,
    /// Folder of this host's notes on running sessions. Without it the marker of a crashed session stays until it expires.
    pub notes: Option<PathBuf>,
}

/// What a backup did. All of it is durable.
#[derive(Clone, Debug)]
pub struct BackupReport {
    /// The snapshot.
    pub snapshot: ManifestId,
    /// The image's object.
    pub object: ObjectId,
    /// Bytes of the volume.
    pub source_size: u64,
    /// Bytes read from the device.
    pub read_bytes: u64,
    /// Bytes found zero, or known to be a hole.
    pub zero_bytes: u64,
    /// Bytes the repository had already.
    pub known_bytes: u64,
    /// Bytes new to the repository.
    pub new_bytes: u64,
    /// What the session stored and looked for.
    pub totals: WriteTotals,
    /// How the device was read.
    pub engine: EngineChoice,
    /// Kernel that hashed.
    pub hash_kernel: &'static str,
    /// When reading began, and when all was durable.
    pub start: Time,
    /// See `start`.
    pub end: Time,
    /// Wall time in milliseconds.
    pub duration_ms: u64,
}

/// What the workers share.
struct Job<'a> {
    repository: &'a Repository,
    device: &'a Arc<Device>,
    options: &'a BackupOptions,
    cursor: Cursor,
    limiter: Limiter,
    cancel: &'a Cancel,
    /// Ends all workers after the first failure.
    stop: Cancel,
    progress: &'a Progress,
    /// When reading began.
    start: Time,
    /// Hash of each chunk's content; the zero content's until known better.
    hashes: Mutex<Vec<u8>>,
    engine: Mutex<Option<EngineChoice>>,
    zero_stored: AtomicBool,
}

/// Backs `device` up into `repository` as a new full snapshot.
pub fn backup(
    repository: &Repository,
    device: &Arc<Device>,
    options: &BackupOptions,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<BackupReport> {
    let started = Instant::now();
    let start = Time::now();
    let geometry = device.geometry();
    if geometry.size == 0 {
        return Err(JobError::Usage(format!(
            "{} has no bytes; there is nothing to back up",
            device.path().display()
        )));
    }
    if let Some(label) = options.tags.keys().find(|key| Snapshot::LABELS.contains(&key.as_str())) {
        return Err(JobError::Usage(format!(
            "a tag may not be called {label:?}; that label belongs to the snapshot itself"
        )));
    }
    let workers = options.workers.max(1);
    let note = SessionNotes::of(repository, options.care.notes.as_deref()).and_then(|notes| {
        notes.clean_up_after_crashes(repository);
        notes.begin()
    });
    let by_habit = (workers * UPLOADS_PER_WORKER).max(repository.store().habits().puts);
    let write = WriteOptions {
        sealers: workers,
        uploads: options.care.uploads.unwrap_or(by_habit),
        compression: options.compression,
        user: options.source.user.clone(),
        host: options.source.host.clone(),
        session: note.as_ref().map(|note| note.session().clone()),
        check_reused: options.care.check_reused,
        damaged: options.care.damaged.clone(),
    };
    let map = chunks_with_data(device)?;
    progress.add_total(geometry.size);
    let holes = geometry.chunks() - map.count();
    progress.add_zero(holes * CHUNK_SIZE);
    // The last chunk may be a piece of one, and a hole.
    let data_bytes: u64 = map.iter().map(|chunk| geometry.chunk_extent(chunk).len).sum();
    progress.add_done(geometry.size - data_bytes);

    let zero = repository.zero_content();
    let job = Job {
        repository,
        device,
        options,
        hashes: Mutex::new(
            zero.hash()
                .repeat(usize::try_from(geometry.chunks()).map_err(|_| too_large(device))?),
        ),
        cursor: Cursor::new(map),
        limiter: Limiter::new(options.limit),
        cancel,
        stop: Cancel::new(),
        progress,
        start,
        engine: Mutex::new(None),
        zero_stored: AtomicBool::new(false),
    };

    let session = WriteSession::begin(repository, &write)?;
    let moved = job.run(&session, workers, &zero);
    let table = match moved {
        Ok(()) => {
            let hashes = std::mem::take(&mut *job.hashes.lock().expect("workers are done"));
            BlockAddressTable::uniform(CHUNK_SIZE, repository.contents().hash_len(), hashes)
        }
        Err(e) => {
            session.abandon();
            return Err(e);
        }
    };
    let published = publish(session, device, options, &table, start);
    let (snapshot, object, totals, end) = published?;
    let done = progress.snapshot();
    Ok(BackupReport {
        snapshot,
        object,
        source_size: geometry.size,
        read_bytes: job.cursor.count() * CHUNK_SIZE,
        zero_bytes: done.zero_bytes,
        known_bytes: done.unchanged_bytes,
        new_bytes: done.new_bytes,
        totals,
        engine: job
            .engine
            .into_inner()
            .expect("workers are done")
            .expect("every worker notes its engine"),
        hash_kernel: repository.contents().hasher().kernel(),
        start,
        end,
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

fn too_large(device: &Device) -> JobError {
    JobError::Usage(format!(
        "{} is larger than this host can address",
        device.path().display()
    ))
}

/// The chunks that may hold data: all of a device; of a file what SEEK_DATA tells.
fn chunks_with_data(device: &Device) -> Result<BlockMap> {
    let geometry = device.geometry();
    let mut map = BlockMap::new(geometry.chunks());
    for extent in device.allocated_extents(geometry.extent())? {
        map.set_extent(extent).map_err(|e| JobError::Panic(e.to_string()))?;
    }
    Ok(map)
}

impl Job<'_> {
    fn run(&self, session: &WriteSession<'_>, workers: usize, zero: &ContentId) -> Result<()> {
        let size = self.device.geometry().size;
        std::thread::scope(|scope| {
            let work = |at| {
                move || {
                    let result = self.work(session, at == 0, zero);
                    if result.is_err() {
                        self.stop.cancel();
                    }
                    result
                }
            };
            let threads: Vec<_> = (0..workers).map(|at| scope.spawn(work(at))).collect();
            first_error(threads.into_iter().map(std::thread::ScopedJoinHandle::join))
        })?;
        let done = self.progress.snapshot().done_bytes;
        assert_eq!(done, size, "every byte of the volume is accounted for");
        Ok(())
    }

    /// A snapshot of what is indexed so far; nothing while there is nothing to show. Velero must not take it for a parent,
    /// so the tags it looks for are left out, and the pin, so that it may expire.
    fn checkpoint(&self, session: &WriteSession<'_>) -> repo::Result<Option<Snapshot>> {
        let hashes = self.hashes.lock().expect("no panic while held").clone();
        let table = BlockAddressTable::uniform(CHUNK_SIZE, self.repository.contents().hash_len(), hashes);
        let Some(part) = session.indexed_part(&table) else {
            return Ok(None);
        };
        let (_, mut snapshot) = store_image(session, self.device, self.options, &part, self.start)?;
        for tag in [tag::UPLOADER, tag::CHANGE_ID, tag::VOLUME_ID, tag::REQUESTER] {
            snapshot.tags.remove(tag);
        }
        snapshot.tags.insert(tag::SESSION.into(), session.id().to_string());
        snapshot.pins.clear();
        Ok(Some(snapshot))
    }

    fn work(&self, session: &WriteSession<'_>, first: bool, zero: &ContentId) -> Result<()> {
        let pool = BufPool::new(CHUNK_BYTES, SLOTS)?;
        let options = EngineOptions {
            kind: self.options.engine,
            faults: self.options.faults.clone(),
            ..EngineOptions::default()
        };
        let mut engine = Engine::open(std::slice::from_ref(self.device), std::slice::from_ref(&pool), &options)?;
        if first {
            *self.engine.lock().expect("no panic while held") = Some(engine.choice().clone());
        }
        let mut sealer = session.sealer();
        if first && self.cursor.count() < self.device.geometry().chunks() {
            self.store_zero(&mut sealer, zero)?; // for the holes
        }
        let lanes = self.repository.contents().hasher().lanes();
        let mut batch = Batch::default();
        let mut queued: Vec<ChunkIndex> = Vec::new();
        let mut completions = Vec::new();
        loop {
            if self.cancel.is_cancelled() || self.stop.is_cancelled() {
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
                    self.store_zero(&mut sealer, zero)?;
                    self.progress.add_zero(CHUNK_SIZE);
                    self.progress.add_done(self.device.geometry().chunk_extent(chunk).len);
                } else {
                    batch.push(chunk, buf);
                }
            }
            while batch.len() >= lanes {
                self.store(&mut sealer, &mut batch, lanes)?;
            }
            session.keep_up()?;
            session.checkpoint_when_due(&mut || self.checkpoint(session))?;
        }
        while batch.len() > 0 {
            let count = batch.len().min(lanes);
            self.store(&mut sealer, &mut batch, count)?;
        }
        sealer.finish()?;
        Ok(())
    }

    /// Stores the content all zero chunks and holes refer to, once.
    fn store_zero(&self, sealer: &mut Sealer<'_>, zero: &ContentId) -> Result<()> {
        if !self.zero_stored.swap(true, Ordering::Relaxed) {
            sealer.store(*zero, &vec![0; CHUNK_BYTES])?;
        }
        Ok(())
    }

    /// Queues reads for all free buffers.
    fn read_ahead(&self, engine: &mut Engine, pool: &BufPool, queued: &mut Vec<ChunkIndex>) -> Result<()> {
        let free = pool.free();
        self.cursor.take(free, queued);
        self.limiter.take(queued.len() as u64 * CHUNK_SIZE, self.cancel)?;
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
        let contents = self.repository.contents();
        let mut bytes = 0;
        {
            let data: Vec<&[u8]> = batch.bufs[..count].iter().map(|buf| &buf[..]).collect();
            batch.digests.clear();
            contents.hasher().hash_many(&data, &mut batch.digests);
            for (digest, data) in batch.digests.iter().zip(&data) {
                let id = ContentId::new(None, digest.as_slice())?;
                match sealer.store(id, data)? {
                    Stored::Known => self.progress.add_unchanged(CHUNK_SIZE),
                    Stored::New { packed_len } => {
                        self.progress.add_new(CHUNK_SIZE);
                        self.progress.add_stored(u64::from(packed_len));
                    }
                }
            }
        }
        {
            let mut hashes = self.hashes.lock().expect("no panic while held");
            let len = contents.hash_len();
            for (chunk, digest) in batch.chunks[..count].iter().zip(&batch.digests) {
                let at = usize::try_from(chunk.get()).expect("the table fits memory") * len;
                hashes[at..at + len].copy_from_slice(digest.as_slice());
                bytes += self.device.geometry().chunk_extent(*chunk).len;
            }
        }
        self.progress.add_done(bytes);
        batch.chunks.drain(..count);
        batch.bufs.drain(..count);
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
