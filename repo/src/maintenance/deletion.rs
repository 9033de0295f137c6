//! Deleting blobs: in batches, each after another look, every one with its reason.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use blockio::Cancel;
use serde::Serialize;
use tracing::info;

use super::collect::Count;
use super::journal::Journal;
use crate::blob::{BlobMeta, BlobStore};
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;
use crate::index::EntryRef;

/// Blobs deleted between two looks whether another client maintains the repository too: some seconds of work.
const BATCH: usize = 1000;

/// What was found out about the victims may be acted on for this long; a quarter of the time for which Kopia acts on a
/// listing of the index.
const GUARD_VALID: Duration = Duration::from_secs(300);

/// Deletes in flight: what hides a round trip and troubles no store.
const DELETES_IN_FLIGHT: usize = 8;

/// Blobs of one run that the history names; the log names all. 50 runs of a task are kept, so this makes 300 KiB at most.
const NAMED_MAX: usize = 50;

/// Blobs that are gone, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// All of them.
    #[serde(flatten)]
    pub totals: Count,
    /// The first of them.
    pub named: Vec<DeletedBlob>,
}

/// A blob that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeletedBlob {
    /// Its name.
    pub blob: String,
    /// Its length.
    pub bytes: u64,
    /// Why it went.
    pub reason: String,
}

impl Deleted {
    fn add(&mut self, meta: &BlobMeta, reason: &str) {
        info!(blob = %meta.id, bytes = meta.len, reason, "blob deleted");
        self.totals.add(meta.len);
        if self.named.len() < NAMED_MAX {
            self.named.push(DeletedBlob {
                blob: meta.id.to_string(),
                bytes: meta.len,
                reason: reason.to_owned(),
            });
        }
    }
}

/// Deletes `victims`, each for what `reason` says of it. `guard` looks once more whether all of them may go: before the
/// first batch, and again when that is too long ago.
///
/// # Errors
/// The first failure; what was deleted before is in the log.
pub(super) fn delete(
    store: &dyn BlobStore,
    journal: &mut Journal<'_>,
    victims: &[BlobMeta],
    cancel: &Cancel,
    reason: &dyn Fn(&BlobId) -> String,
    guard: &mut dyn FnMut(&HashSet<&str>) -> Result<()>,
) -> Result<Deleted> {
    let mut deleted = Deleted::default();
    let mut looked: Option<Instant> = None;
    for (number, batch) in victims.chunks(BATCH).enumerate() {
        if cancel.is_cancelled() {
            return Err(RepoError::new(Kind::Cancelled, "delete blobs"));
        }
        if looked.is_none_or(|at| at.elapsed() >= GUARD_VALID) {
            let left = &victims[number * BATCH..];
            guard(&left.iter().map(|meta| meta.id.as_str()).collect())?;
            looked = Some(Instant::now());
        }
        journal.check_undisturbed()?;
        let gone = delete_batch(store, batch);
        for meta in &gone.0 {
            deleted.add(meta, &reason(&meta.id));
        }
        gone.1?;
    }
    store.sync()?;
    Ok(deleted)
}

/// Deletes a batch with several requests in flight; gives those that are gone, and the first failure.
fn delete_batch<'a>(store: &dyn BlobStore, batch: &'a [BlobMeta]) -> (Vec<&'a BlobMeta>, Result<()>) {
    let share = batch.len().div_ceil(DELETES_IN_FLIGHT).max(1);
    let work = |part: &'a [BlobMeta]| {
        let mut gone = Vec::new();
        for meta in part {
            if let Err(e) = store.delete(&meta.id) {
                return (gone, Err(e.context(format!("delete blob {}", meta.id))));
            }
            gone.push(meta);
        }
        (gone, Ok(()))
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = batch
            .chunks(share)
            .map(|part| scope.spawn(move || work(part)))
            .collect();
        let (mut all, mut result) = (Vec::new(), Ok(()));
        for thread in threads {
            let panicked = || {
                (
                    Vec::new(),
                    Err(RepoError::new(Kind::Storage, "a deleting thread panicked")),
                )
            };
            let (gone, outcome) = thread.join().unwrap_or_else(|_| panicked());
            all.extend(gone);
            result = result.and(outcome);
        }
        (all, result)
    })
}

/// Refuses when the index, as it is known after another look, names one of `victims`.
///
/// # Errors
/// `Busy`: somebody gave a content in that pack a new life since the plan was made.
pub(super) fn guard_packs<'a>(
    rows: impl Iterator<Item = EntryRef<'a>>,
    watermark: Option<u64>,
    victims: &HashSet<&str>,
) -> Result<()> {
    for entry in rows {
        if victims.contains(entry.pack) && !entry.is_forgotten(watermark) {
            let what = format!(
                "pack {} was to be deleted, but content {} in it is in the index now; nothing is deleted, the next run plans anew",
                entry.pack, entry.content
            );
            return Err(RepoError::new(Kind::Busy, what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ContentId;
    use crate::index::IndexEntry;

    #[test]
    fn a_pack_that_the_index_names_again_is_not_deleted() {
        let entry = |time, deleted| IndexEntry {
            content: ContentId::new(None, &[1; 16]).expect("valid"),
            pack: BlobId::known("p1"),
            offset: 32,
            packed_len: 100,
            original_len: 72,
            time,
            deleted,
            format_version: 3,
            compression: 0,
        };
        let victims = HashSet::from(["p1"]);
        let check = |entry: &IndexEntry| guard_packs([entry.as_ref()].into_iter(), Some(50), &victims);
        check(&entry(50, true)).expect("forgotten");
        for named in [entry(51, true), entry(51, false), entry(10, false)] {
            assert_eq!(check(&named).expect_err("named").kind(), Kind::Busy);
        }
        guard_packs([entry(99, false).as_ref()].into_iter(), None, &HashSet::from(["p2"])).expect("another pack");
    }
}
