//! The tasks that keep the index short, and object locks long.

use std::sync::atomic::{AtomicUsize, Ordering};

use blockio::Cancel;
use serde::Serialize;

use super::collect::Count;
use super::deletion::{Deleted, delete};
use super::journal::Task;
use super::numbers;
use super::report::Outcome;
use super::run::Run;
use crate::blob::{BlobMeta, BlobStore, ObjectLock};
use crate::epoch::compact::{self, Inventory};
use crate::error::{Kind, RepoError, Result};
use crate::format::{self, Retention, RetentionMode};
use crate::id::BlobId;
use crate::repository::Repository;
use crate::time::Time;

/// Prefixes of blobs with object locks (kopia, repo/maintenance/blob_retain.go).
const LOCKED_PREFIXES: [&str; 6] = ["p", "q", "n", "x", format::REPOSITORY_ID, format::BLOBCFG_ID];

/// Locks extended at once: what hides a round trip and troubles no store. A million blobs behind 50 ms then take 2 hours.
const LOCKS_IN_FLIGHT: usize = 8;

/// An epoch and how much was done about it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EpochNumbers {
    epoch: u64,
    #[serde(flatten)]
    blobs: Count,
}

fn count(blobs: &[BlobMeta]) -> Count {
    let mut count = Count::default();
    blobs.iter().for_each(|blob| count.add(blob.len));
    count
}

impl Run<'_> {
    fn store(&self) -> &dyn BlobStore {
        &**self.repository.store()
    }

    /// Merges the index blobs of the oldest epoch that is over.
    pub(super) fn compact_single(&mut self) -> Result<()> {
        let task = Task::CompactSingleEpoch;
        let repository = self.repository;
        let store = &**repository.store();
        let plan = self.journal.report(task, |journal| {
            let Some(plan) = Inventory::read_settled(store)?.plan_single() else {
                return Ok((None, Some(Vec::new())));
            };
            journal.check_undisturbed()?;
            compact::compact_single(repository, &plan)?;
            let numbers = numbers::epoch_compacted(plan.epoch, count(&plan.blobs));
            Ok((Some(plan), Some(numbers)))
        })?;
        match plan {
            None => self
                .report
                .add(task, Outcome::Idle, "no epoch waits for compaction".into(), &()),
            Some(plan) => {
                let blobs = count(&plan.blobs);
                let summary = format!("the index blobs of epoch {} are one set now: {blobs}", plan.epoch);
                let epoch = plan.epoch;
                self.report
                    .add(task, Outcome::Done, summary, &EpochNumbers { epoch, blobs });
            }
        }
        Ok(())
    }

    /// Lets the next epoch begin when this one is full.
    pub(super) fn advance(&mut self) -> Result<()> {
        let task = Task::AdvanceEpoch;
        let repository = self.repository;
        let store = &**repository.store();
        let parameters = &repository.format().epoch;
        let (epoch, fill, advanced) = self.journal.report(task, |journal| {
            let inventory = Inventory::read(store)?;
            let (fill, full) = inventory.plan_advance(parameters);
            let epoch = if full {
                journal.check_undisturbed()?;
                compact::advance(store, inventory.write_epoch)?
            } else {
                inventory.write_epoch
            };
            Ok(((epoch, fill, full), Some(numbers::epoch_advanced(epoch, full))))
        })?;
        let (outcome, verb) = match advanced {
            true => (Outcome::Done, "begins"),
            false => (Outcome::Idle, "goes on"),
        };
        let summary = format!(
            "epoch {epoch} {verb}; the write epoch had {} index blobs of {} bytes over {} h",
            fill.blobs,
            fill.bytes,
            fill.span.as_secs() / 3600
        );
        let blobs = Count {
            count: fill.blobs,
            bytes: fill.bytes,
        };
        self.report.add(task, outcome, summary, &EpochNumbers { epoch, blobs });
        Ok(())
    }

    /// Merges many compacted epochs into one checkpoint.
    pub(super) fn compact_range(&mut self) -> Result<()> {
        let task = Task::GenerateEpochRangeIndex;
        let repository = self.repository;
        let store = &**repository.store();
        let parameters = &repository.format().epoch;
        let plan = self.journal.report(task, |journal| {
            let Some(plan) = Inventory::read_settled(store)?.plan_range(parameters) else {
                return Ok((None, Some(Vec::new())));
            };
            journal.check_undisturbed()?;
            compact::compact_range(repository, &plan)?;
            let numbers = numbers::range_generated(plan.first, plan.last);
            Ok((Some(plan), Some(numbers)))
        })?;
        match plan {
            None => self
                .report
                .add(task, Outcome::Idle, "too few epochs for a checkpoint".into(), &()),
            Some(plan) => {
                let blobs = count(&plan.blobs);
                let summary = format!("epochs {} to {} are one checkpoint now: {blobs}", plan.first, plan.last);
                let epoch = plan.last;
                self.report
                    .add(task, Outcome::Done, summary, &EpochNumbers { epoch, blobs });
            }
        }
        Ok(())
    }

    /// Deletes markers of past epochs and watermarks that a later one replaced.
    pub(super) fn clean_markers(&mut self) -> Result<()> {
        let task = Task::CleanupEpochMarkers;
        let store = &**self.repository.store();
        let (parameters, cancel) = (&self.repository.format().epoch, self.cancel);
        let deleted = self.journal.report(task, |journal| {
            let (markers, watermarks) = Inventory::read(store)?.plan_markers(parameters);
            let victims = [markers.clone(), watermarks.clone()].concat();
            let why = |id: &BlobId| match id.as_str().starts_with("xe") {
                true => "the epoch it began is over".to_owned(),
                false => "a later watermark replaced it".to_owned(),
            };
            let deleted = delete(store, journal, &victims, cancel, &why, &mut |victims| {
                let (markers, watermarks) = Inventory::read(store)?.plan_markers(parameters);
                still_planned(victims, markers.iter().chain(&watermarks))
            })?;
            let numbers = numbers::markers_deleted(markers.len() as u64, watermarks.len() as u64, &deleted);
            Ok((deleted, Some(numbers)))
        })?;
        self.report_deleted(task, "markers", &deleted);
        Ok(())
    }

    /// Deletes index blobs that a compaction replaced long enough ago, and that say nothing it does not.
    pub(super) fn delete_superseded(&mut self) -> Result<()> {
        let task = Task::DeleteSupersededEpochIndexes;
        let repository = self.repository;
        let store = &**repository.store();
        let (parameters, cancel) = (&repository.format().epoch, self.cancel);
        let (deleted, late) = self.journal.report(task, |journal| {
            let inventory = Inventory::read(store)?;
            let (mut victims, mut late) = (Vec::new(), Vec::new());
            for (_, blobs, set) in inventory.plan_superseded(parameters) {
                let missing = compact::not_covered(repository, &blobs, &set)?;
                victims.extend(blobs.into_iter().filter(|blob| !missing.contains(&blob.id)));
                late.extend(missing);
            }
            let why = |_: &BlobId| "the compaction of its epoch says all that it says".to_owned();
            let deleted = delete(store, journal, &victims, cancel, &why, &mut |victims| {
                let planned = Inventory::read(store)?.plan_superseded(parameters);
                still_planned(victims, planned.iter().flat_map(|(_, blobs, _)| blobs))
            })?;
            let before = inventory
                .replaced_before(parameters)
                .map_or(Time::UNIX_EPOCH, Time::from);
            let numbers = numbers::superseded_deleted(before, &deleted);
            Ok(((deleted, late), Some(numbers)))
        })?;
        self.report_deleted(task, "index blobs", &deleted);
        if let Some(blob) = late.first() {
            let what = format!(
                "{} index blobs say more than the compaction of their epoch (such as {blob}): they were stored too late, and no client reads them; they stay",
                late.len()
            );
            self.report.warnings.push(what);
        }
        Ok(())
    }

    fn report_deleted(&mut self, task: Task, what: &str, deleted: &Deleted) {
        let outcome = Outcome::of(deleted.totals.count > 0);
        let summary = format!("{what} deleted: {}", deleted.totals);
        self.report.add(task, outcome, summary, deleted);
    }

    /// Locks every blob of the repository for another period, when its parameters say so.
    pub(super) fn extend_locks(&mut self) -> Result<()> {
        let task = Task::ExtendBlobRetentionTime;
        let retention = match self.parameters.extend_locks {
            true => self.retention()?,
            false => None,
        };
        let Some(retention) = retention else {
            self.report
                .add(task, Outcome::Idle, "object locks are not extended here".into(), &());
            return Ok(());
        };
        let lock = ObjectLock {
            mode: mode_name(retention.mode).into(),
            period: retention.period,
        };
        let (repository, cancel) = (self.repository, self.cancel);
        let blobs = self.journal.report(task, |_| {
            let mut blobs = Count::default();
            for prefix in LOCKED_PREFIXES {
                let listing = repository.store().list(prefix)?;
                let extended = extend_all(repository, &listing, &lock, cancel)?;
                blobs.count += extended.count;
                blobs.bytes += extended.bytes;
            }
            let numbers = numbers::locks_extended(blobs.count, blobs.count, lock.period);
            Ok((blobs, Some(numbers)))
        })?;
        let summary = format!("{blobs} locked for {} h from now", lock.period.as_secs() / 3600);
        self.report.add(task, Outcome::Done, summary, &blobs);
        Ok(())
    }

    fn retention(&self) -> Result<Option<Retention>> {
        match self.store().get(&BlobId::known(format::BLOBCFG_ID)) {
            Ok(sealed) => Ok(self.repository.format().open_blobcfg(&sealed)?.retention),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Locks every blob of `listing` for another period, several at once; those that are gone meanwhile are passed over.
fn extend_all(repository: &Repository, listing: &[BlobMeta], lock: &ObjectLock, cancel: &Cancel) -> Result<Count> {
    let (store, next) = (&**repository.store(), AtomicUsize::new(0));
    let work = || {
        let mut extended = Count::default();
        while let Some(meta) = listing.get(next.fetch_add(1, Ordering::Relaxed)) {
            if cancel.is_cancelled() {
                return Err(RepoError::new(Kind::Cancelled, "extend object locks"));
            }
            repository.keep_permitted()?;
            match store.extend_lock(&meta.id, lock) {
                Ok(()) => extended.add(meta.len),
                Err(e) if e.is_not_found() => {}
                Err(e) => {
                    next.store(listing.len(), Ordering::Relaxed); // the others need not go on
                    return Err(e.context(format!("extend the lock of {}", meta.id)));
                }
            }
        }
        Ok(extended)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..LOCKS_IN_FLIGHT.min(listing.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let mut all = Count::default();
        for thread in threads {
            let extended = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            all.count += extended.count;
            all.bytes += extended.bytes;
        }
        Ok(all)
    })
}

/// The name of a mode in `kopia.blobcfg`.
fn mode_name(mode: RetentionMode) -> &'static str {
    match mode {
        RetentionMode::Governance => "GOVERNANCE",
        RetentionMode::Compliance => "COMPLIANCE",
        RetentionMode::Locked => "Locked",
    }
}

/// Refuses when another look does not give all of `victims` up.
fn still_planned<'a>(
    victims: &std::collections::HashSet<&str>,
    planned: impl Iterator<Item = &'a BlobMeta>,
) -> Result<()> {
    let planned: std::collections::HashSet<&str> = planned.map(|blob| blob.id.as_str()).collect();
    match victims.iter().find(|victim| !planned.contains(**victim)) {
        None => Ok(()),
        Some(victim) => Err(RepoError::new(
            Kind::Busy,
            format!(
                "blob {victim} was to be deleted, but is needed by another look at the index; the next run plans anew"
            ),
        )),
    }
}
