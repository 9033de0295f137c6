//! Snapshot garbage collection: contents that no snapshot uses are marked deleted, and deleted ones that one uses are given
//! back.
//!
//! A mark is no loss: a deleted content can be read, and is given back by the next collection, until the deletion becomes
//! final ([`super::forget`]).

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::census::{Census, Totals, is_system};
use super::marks::Marks;
use super::safety::{Breaker, Safety};
use crate::blob::BlobStore;
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;
use crate::index::{EntryRef, IndexEntry};
use crate::time::Time;

/// A number of things and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// How many.
    pub count: u64,
    /// Bytes they take in packs.
    pub bytes: u64,
}

impl Count {
    /// One more, of `bytes`.
    pub fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// What a collection would do, and why it leaves the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CollectTotals {
    /// What the census has walked.
    pub census: Totals,
    /// Used by a snapshot.
    pub in_use: Count,
    /// Manifests.
    pub system: Count,
    /// Used by none, but younger than the margin.
    pub too_young: Count,
    /// Used by none and marked deleted by an earlier collection.
    pub deleted_before: Count,
    /// Used by none: to be marked deleted.
    pub to_delete: Count,
    /// Used, and marked deleted: to be given back.
    pub to_restore: Count,
}

/// The decision of a collection: what becomes of each content.
pub(super) struct CollectPlan {
    pub(super) totals: CollectTotals,
    delete: Marks,
    restore: Marks,
}

/// What becomes of one content. No IO, no clock: tests feed it facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Deleted for good; it says nothing any more.
    Gone,
    System,
    Used,
    Restore,
    TooYoung,
    DeletedBefore,
    Delete,
}

fn fate(entry: &EntryRef<'_>, used: bool, watermark: Option<u64>, now: Time, age_min: Duration) -> Fate {
    let age = now.since(Time::from_unix(entry.time));
    match (used, entry.deleted) {
        _ if entry.is_forgotten(watermark) => Fate::Gone,
        _ if is_system(entry) => Fate::System,
        (true, true) => Fate::Restore,
        (true, false) => Fate::Used,
        (false, true) => Fate::DeletedBefore,
        (false, false) if age < age_min => Fate::TooYoung,
        (false, false) => Fate::Delete,
    }
}

impl CollectPlan {
    /// Decides for every content that the census knows. `now` is the storage's time.
    pub(super) fn new(census: &Census<'_>, now: Time, safety: &Safety) -> Self {
        let mut plan = Self {
            totals: CollectTotals {
                census: census.totals(),
                ..CollectTotals::default()
            },
            delete: Marks::new(census.len()),
            restore: Marks::new(census.len()),
        };
        for (position, entry) in census.rows() {
            let totals = &mut plan.totals;
            let fate = fate(
                &entry,
                census.uses(position),
                census.watermark(),
                now,
                safety.content_age_min,
            );
            let count = match fate {
                Fate::Gone => continue,
                Fate::System => &mut totals.system,
                Fate::Used => &mut totals.in_use,
                Fate::TooYoung => &mut totals.too_young,
                Fate::DeletedBefore => &mut totals.deleted_before,
                Fate::Delete => {
                    plan.delete.set(position);
                    &mut totals.to_delete
                }
                Fate::Restore => {
                    plan.restore.set(position);
                    &mut totals.to_restore
                }
            };
            count.add(u64::from(entry.packed_len));
        }
        plan
    }

    /// Refuses what looks like a listing that lies rather than like retention.
    ///
    /// # Errors
    /// `InvalidInput`, with the flag that says it is meant.
    pub(super) fn check(&self, breaker: &Breaker, allow_many: bool, allow_no_snapshots: bool) -> Result<()> {
        let totals = &self.totals;
        if totals.census.snapshots == 0 && totals.to_delete.count > 0 && !allow_no_snapshots {
            let what = format!(
                "the repository lists no snapshot, but holds {} contents of {} bytes; an empty listing is no proof that all was deleted. When it is meant: --yes-no-snapshots",
                totals.to_delete.count, totals.to_delete.bytes
            );
            return Err(RepoError::new(Kind::InvalidInput, what));
        }
        let alive = totals.in_use.bytes + totals.too_young.bytes + totals.to_delete.bytes + totals.to_restore.bytes;
        if breaker.trips(totals.to_delete.bytes, alive) && !allow_many {
            let what = format!(
                "this run would mark {} of {alive} bytes deleted ({} contents), more than {} %; look at `maintenance run --full --dry-run`, and when it is meant: --yes-delete-many",
                totals.to_delete.bytes, totals.to_delete.count, breaker.percent_max
            );
            return Err(RepoError::new(Kind::InvalidInput, what));
        }
        Ok(())
    }

    /// Refuses when a content to be given back has lost its pack: then more is amiss than a deletion can put right.
    ///
    /// # Errors
    /// `Corrupt`, with the pack.
    pub(super) fn check_restored(&self, census: &Census<'_>, store: &dyn BlobStore) -> Result<()> {
        let restored = census.rows().filter(|(position, _)| self.restore.has(*position));
        let packs: BTreeSet<&str> = restored.map(|(_, entry)| entry.pack).collect();
        for pack in packs {
            match store.meta(&BlobId::known(pack)) {
                Err(e) if e.is_not_found() => {
                    let what = format!(
                        "pack {pack} is missing from {}, and a snapshot uses contents in it; nothing is deleted in a damaged repository: `blockferry verify` tells which snapshots are hurt",
                        store.place()
                    );
                    return Err(RepoError::corrupt(what).because(e));
                }
                other => other?,
            };
        }
        Ok(())
    }

    /// What becomes of the content at `position`, with the entry that a run would write for it.
    pub(super) fn after<'a>(&self, position: usize, entry: EntryRef<'a>, here: Time) -> EntryRef<'a> {
        let deleted = match (self.delete.has(position), self.restore.has(position)) {
            (false, false) => return entry,
            (deleted, _) => deleted,
        };
        EntryRef {
            deleted,
            // Later than what it replaces even when the clock of that client was ahead.
            time: here.unix().max(entry.time.saturating_add(1)),
            ..entry
        }
    }

    /// The entries to write, given the time of this host: deletions, and contents given back.
    pub(super) fn entries<'a>(&'a self, census: &'a Census<'_>, here: Time) -> impl Iterator<Item = IndexEntry> + 'a {
        let changed = |(position, _): &(usize, EntryRef<'_>)| self.delete.has(*position) || self.restore.has(*position);
        let rows = census.rows().filter(changed);
        rows.map(move |(position, entry)| self.after(position, entry, here).to_entry())
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.count, self.bytes)
    }
}

impl fmt::Display for CollectTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} snapshots use {} contents; to be marked deleted {}, given back {}; unused but too young {}, marked earlier {}",
            self.census.snapshots, self.in_use, self.to_delete, self.to_restore, self.too_young, self.deleted_before
        )
    }
}
