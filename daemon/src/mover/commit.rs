//! Commit: what was written over a snapshot becomes a snapshot of its own, that continues it.
//!
//! Nothing is looked for: the chunks that were written are known, and the list of the snapshot below says the rest. What is taken over
//! from there is looked up all the same, as for an increment (`super::backup`), and read where the repository lost it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use blockio::{BlockMap, BlockSource, CHUNK_BYTES, Cancel, ChunkIndex, Extent, Progress, is_zero};
use repo::object::BlockAddressTable;
use repo::session::{Stored, WriteOptions, WriteSession, WriteTotals};
use repo::snapshot::tag;
use repo::time::Time;
use repo::{ContentId, Image, ManifestId, ObjectId, Repository};
use tracing::warn;

use super::audit::Walk;
use super::backup::BackupOptions;
use super::ladder::Rung;
use super::notes::SessionNotes;
use super::snapshot::{About, store_image};
use crate::error::{JobError, Result, first_error};

/// What a commit did. All of it is durable.
#[derive(Clone, Debug)]
pub struct CommitReport {
    /// The snapshot made.
    pub snapshot: ManifestId,
    /// Its image.
    pub object: ObjectId,
    /// The snapshot below.
    pub parent: ManifestId,
    /// Bytes of the volume.
    pub size: u64,
    /// Bytes of chunks read: those that were written to.
    pub read_bytes: u64,
    /// Of these, zero.
    pub zero_bytes: u64,
    /// Of these, in contents the repository did not have.
    pub new_bytes: u64,
    /// What was stored.
    pub totals: WriteTotals,
    /// Wall time in milliseconds.
    pub duration_ms: u64,
}

/// Stores `volume`, which is `below` but for the chunks in `written`, as a snapshot of `options.source`. Of the options those about
/// devices and lists do not apply.
///
/// # Errors
/// `Usage` when `below` is not in chunks of 1 MiB, or is of the same source: an increment by a list of changes of that source would
/// continue from what was never on its volume. Besides those of the repository and of `volume`; then nothing is published.
pub fn commit(
    repository: &Repository,
    below: &Image,
    volume: &dyn BlockSource,
    written: &BlockMap,
    options: &BackupOptions,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<CommitReport> {
    let (started, start) = (Instant::now(), Time::now());
    let parent = below.snapshot.id.expect("a snapshot that was read has an id");
    if below.snapshot.source == options.source {
        return Err(JobError::Usage(format!(
            "snapshots of {} show its volume; what was written over one of them needs a source of its own (--as)",
            options.source
        )));
    }
    repository.refresh()?; // what is taken over is looked up in an index as fresh as can be
    let geometry = volume.geometry();
    let zero = repository.zero_content();
    let count = usize::try_from(geometry.chunks()).expect("as many as the list below has");
    let table = below.table.child(blockio::CHUNK_SIZE, count, &zero).map_err(|unfit| {
        JobError::Usage(format!(
            "snapshot {parent} cannot be continued: {unfit}; only images in chunks of 1 MiB can"
        ))
    })?;
    let note = SessionNotes::of(repository, options.care.notes.as_deref()).and_then(|notes| {
        notes.clean_up_after_crashes(repository);
        notes.begin()
    });
    let workers = options.workers.max(1);
    let write = WriteOptions {
        sealers: workers,
        uploads: options
            .care
            .uploads
            .unwrap_or(workers.max(repository.store().habits().puts)),
        compression: options.compression,
        user: options.source.user.clone(),
        host: options.source.host.clone(),
        session: note.as_ref().map(|note| note.session().clone()),
        check_reused: options.care.check_reused,
        damaged: options.care.damaged.clone(),
        on_stored: None,
    };
    let session = WriteSession::begin(repository, &write)?;
    let job = Job {
        session: &session,
        volume,
        zero,
        table: Mutex::new(table),
        cancel,
        progress,
        read_bytes: AtomicU64::new(0),
        zero_bytes: AtomicU64::new(0),
        new_bytes: AtomicU64::new(0),
    };
    let stored = job.store_all(written, &parent, workers).and_then(|()| {
        let walk = below.snapshot.tags.get(tag::AUDIT_WALK).map(String::as_str);
        let about = About {
            options,
            rung: Rung::Delta,
            codes: String::new(),
            parent: Some(parent),
            parent_list: below.list.clone(),
            walk: Walk::of_tag(walk),
            doubt: below.snapshot.tags.get(tag::UNTRUSTED).cloned(),
            start,
        };
        let table = job.table.lock().expect("workers are done");
        Ok(store_image(&session, geometry, &about, &table)?)
    });
    let counted = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (read_bytes, zero_bytes, new_bytes) = (
        counted(&job.read_bytes),
        counted(&job.zero_bytes),
        counted(&job.new_bytes),
    );
    let (object, snapshot) = match stored {
        Ok(stored) => stored,
        Err(e) => {
            session.abandon();
            return Err(e);
        }
    };
    let (id, totals) = session.commit(&snapshot)?;
    Ok(CommitReport {
        snapshot: id,
        object,
        parent,
        size: geometry.size,
        read_bytes,
        zero_bytes,
        new_bytes,
        totals,
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

struct Job<'a, 'r> {
    session: &'a WriteSession<'r>,
    volume: &'a dyn BlockSource,
    zero: ContentId,
    table: Mutex<BlockAddressTable>,
    cancel: &'a Cancel,
    progress: &'a Progress,
    read_bytes: AtomicU64,
    zero_bytes: AtomicU64,
    new_bytes: AtomicU64,
}

impl Job<'_, '_> {
    /// Stores what was written, and what is taken over and not there any more.
    fn store_all(&self, written: &BlockMap, parent: &ManifestId, workers: usize) -> Result<()> {
        let mut chunks: Vec<ChunkIndex> = written.iter().collect();
        chunks.extend(self.absent(written)?);
        self.store(&chunks, workers)?;
        let repository = self.session.repository();
        repository.refresh()?;
        if repository.manifests()?.get(parent).is_none() {
            // Maintenance may take what only it held.
            warn!(%parent, "the snapshot below was deleted meanwhile; what was taken over from it is looked up again");
            self.store(&self.absent(written)?, workers)?;
        }
        Ok(())
    }

    /// The chunks that were not written whose contents are not there.
    fn absent(&self, written: &BlockMap) -> Result<Vec<ChunkIndex>> {
        let table = self.table.lock().expect("no panic while held");
        let chunk = |piece: usize| ChunkIndex::new(piece as u64);
        let taken_over = (0..table.count()).filter(|piece| !written.get(chunk(*piece)));
        let absent = self.session.absent_pieces(&table, taken_over)?;
        Ok(absent.into_iter().map(chunk).collect())
    }

    fn store(&self, chunks: &[ChunkIndex], workers: usize) -> Result<()> {
        self.progress
            .add_total(chunks.iter().map(|chunk| self.extent(*chunk).len).sum());
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            let mut sealer = self.session.sealer();
            let mut bytes = vec![0; CHUNK_BYTES];
            while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                if self.cancel.is_cancelled() {
                    return Err(JobError::Cancelled);
                }
                let extent = self.extent(*chunk);
                bytes.fill(0); // behind the end of the volume there are zeros
                self.volume.read_at(extent.offset, &mut bytes[..extent.bytes()])?;
                let id = match is_zero(&bytes) {
                    true => self.zero,
                    false => self.session.repository().contents().content_id(None, &bytes),
                };
                let is_new = matches!(sealer.store(id, &bytes)?, Stored::New { .. });
                let counted = |counter: &AtomicU64, counts: bool| {
                    counter.fetch_add(if counts { extent.len } else { 0 }, Ordering::Relaxed);
                };
                counted(&self.read_bytes, true);
                counted(&self.zero_bytes, id == self.zero);
                counted(&self.new_bytes, is_new && id != self.zero);
                self.progress.add_done(extent.len);
                let piece = usize::try_from(chunk.get()).expect("the table fits memory");
                self.table.lock().expect("no panic while held").set_content(piece, &id);
            }
            Ok(sealer.finish()?)
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers.min(chunks.len())).map(|_| scope.spawn(work)).collect();
            first_error(threads.into_iter().map(std::thread::ScopedJoinHandle::join))
        })
    }

    fn extent(&self, chunk: ChunkIndex) -> Extent {
        let size = self.volume.geometry().size;
        Extent::between(chunk.offset(), chunk.next().offset().min(size))
    }
}
