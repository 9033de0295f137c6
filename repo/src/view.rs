//! What a client knows of the index: the blobs in force, merged.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tracing::debug;

use crate::blob::{BlobMeta, BlobStore};
use crate::cache::Cache;
use crate::content::ContentFormat;
use crate::epoch::{self, EpochState};
use crate::error::{Kind, RepoError, Result};
use crate::format::EpochParameters;
use crate::id::BlobId;
use crate::index::{Gather, Merged, Table, v0};

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
    /// Some of them were taken from the cache.
    pub(crate) is_from_cache: bool,
}

/// Where an index is read from.
pub(crate) struct Origin<'a> {
    pub(crate) store: &'a dyn BlobStore,
    pub(crate) contents: &'a ContentFormat,
    /// None in a repository without epochs.
    pub(crate) epochs: Option<EpochParameters>,
    /// None for who wants the blobs as the storage has them.
    pub(crate) cache: Option<&'a Cache>,
}

impl View {
    /// Reads the index; again when another client's compaction takes blobs away meanwhile.
    pub(crate) fn load(origin: &Origin<'_>) -> Result<Self> {
        retry(|| Self::empty(origin.in_force()?).with_listed(origin))
    }

    /// The index as it is now. Only blobs that are new are read, unless some that were read are no longer in force: a
    /// compaction repeats their entries, but a client that took back a failed flush has unsaid them.
    pub(crate) fn refreshed(&self, origin: &Origin<'_>) -> Result<Self> {
        retry(|| {
            let epoch = origin.in_force()?;
            let listed: HashSet<&BlobId> = epoch.blobs.iter().map(|blob| &blob.id).collect();
            let start = match self.loaded.iter().all(|id| listed.contains(id)) {
                true => Self { epoch, ..self.clone() },
                false => Self::empty(epoch),
            };
            start.with_listed(origin)
        })
    }

    fn empty(epoch: EpochState) -> Self {
        Self {
            merged: Merged::default(),
            epoch,
            loaded: HashSet::new(),
            is_from_cache: false,
        }
    }

    /// The same with every blob in force read, from the cache as far as it has them.
    fn with_listed(mut self, origin: &Origin<'_>) -> Result<Self> {
        let blobs = self.epoch.blobs.iter();
        let mut missing: Vec<BlobMeta> = blobs.filter(|blob| !self.loaded.contains(&blob.id)).cloned().collect();
        if missing.is_empty() {
            return Ok(self);
        }
        if let Some(cache) = origin.cache {
            self.take_cached(cache, &missing)?;
            missing.retain(|blob| !self.loaded.contains(&blob.id));
        }
        let bytes = missing.iter().map(|blob| blob.len).sum();
        let mut gather = Gather::new(&mut self.merged, bytes);
        read_tables(origin, &missing, &mut |id, table| gather.add(table, id))?;
        gather.finish();
        self.loaded.extend(missing.into_iter().map(|blob| blob.id));
        if let Some(cache) = origin.cache {
            cache.keep_tables(&self.merged);
        }
        Ok(self)
    }

    /// Takes what the cache has of the `missing` blobs.
    fn take_cached(&mut self, cache: &Cache, missing: &[BlobMeta]) -> Result<()> {
        let missing: Vec<BlobId> = missing.iter().map(|blob| blob.id.clone()).collect();
        let in_force = self.epoch.blobs.iter().map(|blob| &blob.id).collect();
        for (table, sources) in cache.load_tables(&missing, &in_force) {
            self.loaded.extend(sources.iter().cloned());
            self.merged.push(table, sources)?;
            self.is_from_cache = true;
        }
        Ok(())
    }

    /// Adds this client's own index blob `id`, so that it is not read back.
    pub(crate) fn add(&mut self, id: BlobId, table: Table) -> Result<()> {
        self.merged.add_from(table, vec![id.clone()])?;
        self.loaded.insert(id);
        Ok(())
    }
}

impl Origin<'_> {
    /// The index blobs in force: by epoch, or in a repository of format version 1 by its logs.
    fn in_force(&self) -> Result<EpochState> {
        match &self.epochs {
            Some(parameters) => epoch::read(self.store, parameters),
            None => Ok(EpochState::without_epochs(v0::read(self.store, self.contents)?)),
        }
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

/// Fetches, decrypts and parses index blobs, several at once; `each` takes them one by one, in any order.
fn read_tables(
    origin: &Origin<'_>,
    blobs: &[BlobMeta],
    each: &mut dyn FnMut(BlobId, Table) -> Result<()>,
) -> Result<()> {
    let Origin { store, contents, .. } = origin;
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
        return blobs.iter().try_for_each(|blob| each(blob.id.clone(), read(blob)?));
    }
    let next = AtomicUsize::new(0);
    // Without a place to wait in: a loader goes on when its table is taken, so that they run ahead of `each` by one blob each.
    let (sender, receiver) = crossbeam_channel::bounded(0);
    std::thread::scope(|scope| {
        for _ in 0..loaders {
            let (sender, read, next) = (sender.clone(), &read, &next);
            scope.spawn(move || {
                while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let table = read(blob);
                    let failed = table.is_err();
                    if sender.send((blob, table)).is_err() || failed {
                        next.store(blobs.len(), Ordering::Relaxed); // the others need not go on
                        return;
                    }
                }
            });
        }
        drop(sender);
        let receiver = receiver; // dropped at an error, which ends the loaders
        for (blob, table) in receiver {
            each(blob.id.clone(), table?)?;
        }
        Ok(())
    })
}
