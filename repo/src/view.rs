//! What a client knows of the index: the blobs in force, merged.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tracing::debug;

use crate::blob::{BlobMeta, BlobStore};
use crate::content::ContentFormat;
use crate::epoch::{self, EpochState};
use crate::error::{Kind, RepoError, Result};
use crate::format::EpochParameters;
use crate::id::BlobId;
use crate::index::{Merged, Table, v0};

/// Index blobs fetched and decrypted at once, at most: each takes a thread and, in a repository of 16,000,000 contents a
/// blob, 600 MiB; the blobs of ordinary flushes are below 1 MiB.
const LOADERS_MAX: usize = 16;

/// Tries to read an index whose blobs vanish under the reader, as a compaction by another client makes them.
const INDEX_TRIES: u32 = 10;

/// Wait before the second try; it doubles up to a minute in all, as Kopia's own reader does.
const INDEX_RETRY_DELAY: Duration = Duration::from_millis(100);

/// What is known of the index.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// Every entry.
    pub(crate) merged: Merged,
    /// Blobs in force, write epoch, watermark.
    pub(crate) epoch: EpochState,
    /// Blobs whose entries are in `merged`.
    loaded: HashSet<BlobId>,
}

impl View {
    /// Reads the index in `store`; again when another client's compaction takes blobs away meanwhile.
    pub(crate) fn load(
        store: &dyn BlobStore,
        epochs: Option<&EpochParameters>,
        contents: &ContentFormat,
    ) -> Result<Self> {
        retry(|| Self::empty(in_force(store, epochs, contents)?).with_listed(store, contents))
    }

    /// The index as it is now. Only blobs that are new are read, unless some that were read are no longer in force: a
    /// compaction repeats their entries, but a client that took back a failed flush has unsaid them.
    pub(crate) fn refreshed(
        &self,
        store: &dyn BlobStore,
        epochs: Option<&EpochParameters>,
        contents: &ContentFormat,
    ) -> Result<Self> {
        retry(|| {
            let epoch = in_force(store, epochs, contents)?;
            let listed: HashSet<&BlobId> = epoch.blobs.iter().map(|blob| &blob.id).collect();
            let start = match self.loaded.iter().all(|id| listed.contains(id)) {
                true => Self { epoch, ..self.clone() },
                false => Self::empty(epoch),
            };
            start.with_listed(store, contents)
        })
    }

    fn empty(epoch: EpochState) -> Self {
        Self {
            merged: Merged::default(),
            epoch,
            loaded: HashSet::new(),
        }
    }

    /// The same with every blob in force read.
    fn with_listed(mut self, store: &dyn BlobStore, contents: &ContentFormat) -> Result<Self> {
        let missing: Vec<BlobMeta> = self
            .epoch
            .blobs
            .iter()
            .filter(|blob| !self.loaded.contains(&blob.id))
            .cloned()
            .collect();
        for table in read_tables(store, contents, &missing)? {
            self.merged.push(table)?;
        }
        self.merged.fold();
        self.loaded.extend(missing.into_iter().map(|blob| blob.id));
        Ok(self)
    }

    /// Adds this client's own index blob `id`, so that it is not read back.
    pub(crate) fn add(&mut self, id: BlobId, table: Table) -> Result<()> {
        self.merged.add(table)?;
        self.loaded.insert(id);
        Ok(())
    }
}

/// The index blobs in force: by epoch, or in a repository of format version 1 by its logs.
fn in_force(store: &dyn BlobStore, epochs: Option<&EpochParameters>, contents: &ContentFormat) -> Result<EpochState> {
    match epochs {
        Some(parameters) => epoch::read(store, parameters),
        None => Ok(EpochState::without_epochs(v0::read(store, contents)?)),
    }
}

/// Tries again while index blobs vanish under the reader.
fn retry(mut read: impl FnMut() -> Result<View>) -> Result<View> {
    let mut delay = INDEX_RETRY_DELAY;
    for tried in 1.. {
        match read() {
            Err(e) if e.is_not_found() && tried < INDEX_TRIES => {
                debug!(error = %e, tried, "an index blob vanished while the index was read");
                #[expect(
                    clippy::disallowed_methods,
                    reason = "another client's compaction is awaited, which sends no signal"
                )]
                std::thread::sleep(delay);
                delay *= 2;
            }
            Err(e) if e.is_not_found() => {
                return Err(RepoError::corrupt("index blobs named by the listing are missing").because(e));
            }
            other => return other,
        }
    }
    unreachable!("the loop ends by returning")
}

/// Fetches, decrypts and parses index blobs, several at once.
fn read_tables(store: &dyn BlobStore, contents: &ContentFormat, blobs: &[BlobMeta]) -> Result<Vec<Table>> {
    let read = |blob: &BlobMeta| -> Result<Table> {
        let sealed = store.get(&blob.id)?;
        if sealed.len() as u64 != blob.len {
            let what = format!(
                "index blob {}: {} bytes came, the listing says {}",
                blob.id,
                sealed.len(),
                blob.len
            );
            return Err(RepoError::new(Kind::Unavailable, what));
        }
        let plaintext = contents.open_blob(&blob.id, &sealed)?;
        drop(sealed);
        Table::parse(plaintext).map_err(|e| e.context(format!("index blob {}", blob.id)))
    };
    let loaders = store.habits().reads.clamp(1, LOADERS_MAX).min(blobs.len());
    if loaders < 2 {
        return blobs.iter().map(read).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<Table>> {
        let mut tables = Vec::new();
        while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            match read(blob) {
                Ok(table) => tables.push(table),
                Err(e) => {
                    next.store(blobs.len(), Ordering::Relaxed); // the others need not go on
                    return Err(e);
                }
            }
        }
        Ok(tables)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..loaders).map(|_| scope.spawn(work)).collect();
        let mut tables = Vec::with_capacity(blobs.len());
        for thread in threads {
            let read = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            tables.extend(read?);
        }
        Ok(tables)
    })
}
