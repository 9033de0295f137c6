//! Writing: one session from its marker to its last index blob.
//!
//! Order, and what a crash leaves after each step:
//!
//! | step | a crash after it leaves |
//! |---|---|
//! | session marker | a marker; maintenance ignores it after 96 h |
//! | packs, durable | packs that nothing refers to; maintenance deletes them when the marker is old |
//! | index blobs, durable | contents that nothing refers to; the next run finds and reuses them |
//! | the flush that holds the manifest | a complete snapshot |
//! | marker deleted | nothing |
//!
//! Many threads store at once, each through its own [`Sealer`]; they share the claim table (which content is whose), the
//! pool of pack buffers (the memory bound) and the uploaders.

mod checkpoint;
mod claims;
mod clean_up;
mod clock;
mod continued;
mod lists;
mod presence;
mod sealer;
mod upload;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blockio::BufPool;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use crate::blob::BlobStore;
use crate::compress::CompressionPolicy;
use crate::epoch::IndexWriter;
use crate::error::{Kind, RepoError, Result};
use crate::id::{BlobId, ContentId, ManifestId, SessionId};
use crate::index::build_shards;
use crate::manifest::{self, Changes};
use crate::pack::buffer_capacity;
use crate::repository::Repository;
use crate::snapshot::Snapshot;
use crate::time::Time;

use checkpoint::Checkpoints;
pub use checkpoint::{CHECKPOINT, CHECKPOINT_INTERVAL};
use claims::{Claim, Claims};
pub use clean_up::{remove_markers, supersede_checkpoints};
pub use clock::CLOCK_SKEW_MAX;
pub use continued::StoredHook;
pub use lists::PutList;
use presence::Presence;
pub use sealer::{Sealer, Stored};
use upload::Uploaders;

/// An index flush is due this long after the last one. Unindexed packs must be indexed well before maintenance may take
/// them, and Kopia flushes as often (kopia, repo/content/content_manager.go).
const FLUSH_INTERVAL: Duration = Duration::from_secs(600);

/// How a session writes.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Threads that will hold a [`Sealer`] at once.
    pub sealers: usize,
    /// Packs on their way to the storage at once, at least one. Each takes a buffer of about 22 MiB.
    pub uploads: usize,
    /// Compression of file data.
    pub compression: CompressionPolicy,
    /// User name in the session marker.
    pub user: String,
    /// Host name in the session marker.
    pub host: String,
    /// Name of the session, for a caller who notes it down before the marker is stored. Else a random one.
    pub session: Option<SessionId>,
    /// Share of reused contents whose packs are looked for, in percent. What is lost is stored again.
    pub check_reused: u8,
    /// Contents to store again though the index has them: those that a verification found damaged.
    pub damaged: Arc<HashSet<ContentId>>,
    /// Told the index entries of each pack once the storage has it, for a caller who keeps a journal.
    pub on_stored: Option<StoredHook>,
}

/// What a session did, all of it durable once [`WriteSession::commit`] has returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteTotals {
    /// Bytes of packs stored.
    pub stored_bytes: u64,
    /// Packs stored.
    pub packs: u64,
    /// Contents stored.
    pub contents: u64,
    /// Index blobs stored.
    pub index_blobs: u64,
    /// Reused contents whose packs were looked for.
    pub reused_checked: u64,
    /// Contents stored again because the repository had lost or damaged them.
    pub healed: u64,
}

/// The JSON of a session marker (kopia, repo/content/sessions.go).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Marker {
    pub(crate) id: String,
    #[serde(rename = "startTime")]
    pub(crate) start: Time,
    #[serde(rename = "checkpointTime")]
    pub(crate) checkpoint: Time,
    #[serde(default)]
    pub(crate) username: String,
    #[serde(default)]
    pub(crate) hostname: String,
}

/// One writing client at work. Ends by [`commit`](Self::commit) or [`abandon`](Self::abandon).
pub struct WriteSession<'r> {
    repository: &'r Repository,
    id: SessionId,
    marker: BlobId,
    compression: CompressionPolicy,
    claims: Claims,
    buffers: BufPool,
    uploaders: Uploaders,
    /// Lists, directories and manifests: few, so one at a time.
    metadata: Mutex<sealer::Metadata>,
    last_flush: Mutex<Instant>,
    checkpoints: Mutex<Checkpoints>,
    checkpoint_interval: Duration,
    index_blobs: AtomicU64,
    /// Packs begun and not handed to the uploaders.
    open_packs: AtomicUsize,
}

impl<'r> WriteSession<'r> {
    /// Begins a session: takes note of the upgrade lock, leaves the marker, compares clocks.
    pub fn begin(repository: &'r Repository, options: &WriteOptions) -> Result<Self> {
        let store = repository.store();
        let started = Time::now();
        repository.format().check_writable()?;
        repository.format().check_lock(started.unix())?;
        let id = match &options.session {
            Some(id) => id.clone(),
            None => SessionId::random()?,
        };
        let marker = Marker {
            id: id.to_string(),
            start: started,
            checkpoint: started,
            username: options.user.clone(),
            hostname: options.host.clone(),
        };
        let (blob, sealed) = repository
            .contents()
            .seal_blob("s", Some(id.as_str()), &crate::json::to_vec(&marker))?;

        let slots = options.sealers + options.uploads + 1;
        let capacity = buffer_capacity(repository.format().max_pack_size);
        let no_memory = |e| {
            RepoError::new(
                Kind::Storage,
                format!("reserve {slots} pack buffers of {capacity} bytes"),
            )
            .because(e)
        };
        let buffers = BufPool::new(capacity, slots).map_err(no_memory)?;

        if let Err(e) = clock::put_and_check(&**store, &blob, &sealed) {
            let _ = store.delete(&blob); // the marker did its work; the clock is what must be told
            return Err(e);
        }
        debug!(session = %id, slots, capacity, "write session begun");
        Ok(Self {
            repository,
            marker: blob,
            compression: options.compression,
            claims: Claims::new(Presence::new(options.check_reused, salt(&id)), options.damaged.clone()),
            uploaders: Uploaders::start(store.clone(), options.uploads, options.on_stored.clone()),
            metadata: Mutex::new(sealer::Metadata::new()),
            last_flush: Mutex::new(Instant::now()),
            checkpoints: Mutex::new(Checkpoints {
                last: Instant::now(),
                published: None,
            }),
            checkpoint_interval: CHECKPOINT_INTERVAL,
            index_blobs: AtomicU64::new(0),
            open_packs: AtomicUsize::new(0),
            buffers,
            id,
        })
    }

    /// Name of the session.
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// The repository written to.
    pub fn repository(&self) -> &'r Repository {
        self.repository
    }

    /// A way for one thread to store file data.
    pub fn sealer(&self) -> Sealer<'_> {
        Sealer::new(self)
    }

    /// Stores a metadata content (`prefix` `k`, `m`, `x`), compressed as Kopia's metadata is when `compress`.
    pub fn put_metadata(&self, prefix: char, bytes: &[u8], compress: bool) -> Result<ContentId> {
        let id = self.repository.contents().content_id(Some(prefix), bytes);
        self.put_metadata_as(id, bytes, compress)?;
        Ok(id)
    }

    /// The same for who has hashed `bytes` to `id`.
    fn put_metadata_as(&self, id: ContentId, bytes: &[u8], compress: bool) -> Result<()> {
        if let Claim::Yours { floor } = self.claims.claim(self.repository, &id)? {
            self.metadata
                .lock()
                .expect("no panic while held")
                .store(self, id, bytes, compress, floor)?;
        }
        Ok(())
    }

    /// What a long session calls again and again, cheap most of the time: indexes what has reached the storage when the last
    /// flush is ten minutes ago, and looks whether others changed the repository ([`Repository::keep_fresh`]).
    pub fn keep_up(&self) -> Result<()> {
        self.repository.keep_fresh()?;
        let Ok(mut last) = self.last_flush.try_lock() else {
            return Ok(());
        };
        if last.elapsed() >= FLUSH_INTERVAL {
            self.flush_index()?;
            *last = Instant::now();
        }
        Ok(())
    }

    /// Indexes what has reached the storage.
    fn flush_now(&self) -> Result<()> {
        let mut last = self.last_flush.lock().expect("no panic while held");
        self.flush_index()?;
        *last = Instant::now();
        Ok(())
    }

    /// Stores the metadata pack, full or not.
    fn close_metadata(&self) -> Result<()> {
        self.metadata.lock().expect("no panic while held").close(self)
    }

    /// Makes all stored packs durable, then their index.
    fn flush_index(&self) -> Result<()> {
        let entries = self.uploaders.take_entries();
        if entries.is_empty() {
            return Ok(());
        }
        let store = &**self.repository.store();
        // Entries of packs that a failed sync may have lost are not given back: no later flush may index them.
        store.sync()?;
        let written = self.write_index(store, &entries);
        if written.is_err() {
            self.uploaders.give_back(entries);
        }
        written
    }

    fn write_index(&self, store: &dyn BlobStore, entries: &[crate::index::IndexEntry]) -> Result<()> {
        let shards = build_shards(entries.to_vec())?;
        let writer = IndexWriter {
            store,
            contents: self.repository.contents(),
            parameters: &self.repository.epoch_parameters(),
            session: &self.id,
        };
        let mut blobs = writer.write(&shards, Some(&self.repository.epoch()))?;
        if let Err(e) = store.sync() {
            // The caller is told that nothing was published, so nothing may be.
            writer.take_back(&mut blobs);
            return Err(e);
        }
        self.index_blobs.fetch_add(blobs.len() as u64, Ordering::Relaxed);
        blobs
            .into_iter()
            .zip(shards)
            .try_for_each(|(blob, shard)| self.repository.add_index(blob, shard))
    }

    /// Stores `snapshot` and ends the session: when this returns, the snapshot and all it refers to is durable. Checkpoints
    /// that it takes the place of are gone with the same step.
    pub fn commit(self, snapshot: &Snapshot) -> Result<(ManifestId, WriteTotals)> {
        let prepared = (|| {
            let mut changes = Changes::default();
            let id = changes.put(snapshot.labels(), snapshot)?;
            if let Err(e) = supersede_checkpoints(self.repository, &snapshot.source, &mut changes) {
                warn!(session = %self.id, error = %e, "checkpoints of earlier sessions are not looked for");
            }
            if let Some((own, since)) = self.checkpoints.lock().expect("no panic while held").published {
                changes.delete_own(own, since);
            }
            Ok((changes, id))
        })();
        let (changes, id) = match prepared {
            Ok(prepared) => prepared,
            Err(e) => {
                self.abandon();
                return Err(e);
            }
        };
        let totals = self.commit_changes(&changes)?;
        Ok((id, totals))
    }

    /// Stores `changes` of manifests and ends the session.
    pub fn commit_changes(self, changes: &Changes) -> Result<WriteTotals> {
        let stored = self.store_changes(changes);
        match stored {
            Ok(()) => Ok(self.end()),
            Err(e) => {
                self.abandon();
                Err(e)
            }
        }
    }

    fn store_changes(&self, changes: &Changes) -> Result<()> {
        let unfinished = self.open_packs.load(Ordering::SeqCst)
            - usize::from(self.metadata.lock().expect("no panic while held").is_open());
        if unfinished > 0 {
            let what =
                format!("{unfinished} threads ended without handing over their last pack; the snapshot would lack it");
            return Err(RepoError::new(Kind::InvalidInput, what));
        }
        if !changes.is_empty() {
            self.put_metadata(manifest::PREFIX, &changes.to_bytes(), true)?;
        }
        self.uploaders.drain()?;
        self.close_metadata()?;
        self.flush_index()
    }

    /// Ends the session without a manifest: what is stored is indexed for the next run to reuse, and the marker goes.
    /// Best effort: an error here adds nothing to the one that led here.
    pub fn abandon(self) {
        let drained = self.uploaders.drain();
        let closed = self.close_metadata();
        // A commit that failed may have stored its manifest. Indexed here, it would publish a snapshot that is reported as
        // failed.
        let mut entries = self.uploaders.take_entries();
        entries.retain(|entry| entry.content.prefix() != Some(manifest::PREFIX));
        self.uploaders.give_back(entries);
        // A pack that is lost is no reason to lose the others.
        let flushed = self.flush_index();
        if let Err(e) = drained.and(closed).and(flushed) {
            warn!(session = %self.id, error = %e, "not all this session stored is indexed; maintenance will delete the rest");
        }
        self.end();
    }

    fn end(self) -> WriteTotals {
        let store = self.repository.store();
        if let Err(e) = store.delete(&self.marker).and_then(|()| store.sync()) {
            warn!(session = %self.id, error = %e, "the session marker stays; maintenance passes over it after 96 hours");
        }
        let (reused_checked, healed) = self.claims.counts();
        WriteTotals {
            index_blobs: self.index_blobs.load(Ordering::Relaxed),
            reused_checked,
            healed,
            ..self.uploaders.totals()
        }
    }
}

/// A number that differs from session to session.
fn salt(id: &SessionId) -> u16 {
    let digits = id.as_str().get(1..5).unwrap_or_default();
    u16::from_str_radix(digits, 16).unwrap_or_default()
}

#[cfg(test)]
mod tests;
