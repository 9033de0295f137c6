//! `kopia.maintenance` during one run: next times first, then a line for every task, and never over another's.

use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use tracing::warn;

use super::clock::{Clock, storage_time};
use super::parameters::Parameters;
use crate::blob::BlobMeta;
use crate::error::{Kind, RepoError, Result};
use crate::format::{self, MaintenanceRun, MaintenanceSchedule, RunExtra};
use crate::id::BlobId;
use crate::repository::Repository;
use crate::time::Time;

/// Bytes of the random nonce that every version of the blob begins with: they tell versions apart.
const NONCE_LEN: usize = 12;

/// Looks before an old answer of the storage counts as one that stays.
const READS_MAX: u32 = 3;

/// What a run does, as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Upkeep of the index alone.
    Quick,
    /// Everything.
    Full,
}

/// A task by Kopia's name, which its `maintenance info` shows.
///
/// Source: kopia, repo/maintenance/maintenance_run.go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names are Kopia's and say it")]
pub enum Task {
    SnapshotGc,
    FullRewriteContents,
    FullDropDeletedContent,
    FullDeleteBlobs,
    ExtendBlobRetentionTime,
    CompactSingleEpoch,
    AdvanceEpoch,
    GenerateEpochRangeIndex,
    CleanupEpochMarkers,
    DeleteSupersededEpochIndexes,
    CleanupLogs,
}

impl Task {
    /// Kopia's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SnapshotGc => "snapshot-gc",
            Self::FullRewriteContents => "full-rewrite-contents",
            Self::FullDropDeletedContent => "full-drop-deleted-content",
            Self::FullDeleteBlobs => "full-delete-blobs",
            Self::ExtendBlobRetentionTime => "extend-blob-retention-time",
            Self::CompactSingleEpoch => "compact-single-epoch",
            Self::AdvanceEpoch => "advance-epoch",
            Self::GenerateEpochRangeIndex => "generate-epoch-range-index",
            Self::CleanupEpochMarkers => "cleanup-epoch-markers",
            Self::DeleteSupersededEpochIndexes => "delete-superseded-epoch-indexes",
            Self::CleanupLogs => "cleanup-logs",
        }
    }
}

/// Numbers of one run of a task, under the kind by which Kopia knows them.
pub(super) fn extra(kind: &str, numbers: &impl Serialize) -> RunExtra {
    let text = String::from_utf8(crate::json::to_vec(numbers)).expect("JSON is text");
    RunExtra {
        kind: kind.into(),
        data: RawValue::from_string(text).expect("JSON is JSON"),
    }
}

/// The history of past runs, read only.
#[derive(Clone, Debug)]
pub struct History(MaintenanceSchedule);

impl History {
    /// What the repository tells.
    ///
    /// # Errors
    /// Those of the storage; `Corrupt` when the blob is damaged.
    pub fn read(repository: &Repository) -> Result<Self> {
        let id = BlobId::known(format::MAINTENANCE_ID);
        match repository.store().get(&id) {
            Ok(sealed) => Ok(Self(repository.format().open_maintenance(&sealed)?)),
            Err(e) if e.is_not_found() => Ok(Self(never())),
            Err(e) => Err(e),
        }
    }

    /// A history of what `schedule` has.
    pub(super) fn of(schedule: MaintenanceSchedule) -> Self {
        Self(schedule)
    }

    /// The same history with another run of `task`, as if it had taken place.
    pub(super) fn with_run(&self, task: Task, run: MaintenanceRun) -> Self {
        let mut schedule = self.0.clone();
        schedule.add_run(task.name(), run);
        Self(schedule)
    }

    /// When full and quick maintenance are due next.
    pub fn next(&self, mode: Mode) -> Time {
        match mode {
            Mode::Full => self.0.next_full,
            Mode::Quick => self.0.next_quick,
        }
    }

    /// Runs of `task`, newest first.
    pub fn runs(&self, task: &str) -> &[MaintenanceRun] {
        self.0.runs.get(task).map_or(&[], Vec::as_slice)
    }

    /// All runs by task.
    pub fn all(&self) -> &std::collections::BTreeMap<String, Vec<MaintenanceRun>> {
        &self.0.runs
    }

    /// End of the last successful run of any of `tasks`.
    pub fn last_end(&self, tasks: &[&str]) -> Option<Time> {
        let runs = tasks.iter().flat_map(|task| self.runs(task));
        runs.filter(|run| run.success).map(|run| run.end).max()
    }

    /// What is due at `now`: full before quick, as it does more.
    pub fn due(&self, parameters: &Parameters, now: Time) -> Option<Mode> {
        let is_due = |mode, cycle: &super::parameters::Cycle| cycle.enabled && self.next(mode) <= now;
        [(Mode::Full, &parameters.full), (Mode::Quick, &parameters.quick)]
            .into_iter()
            .find(|(mode, cycle)| is_due(*mode, cycle))
            .map(|(mode, _)| mode)
    }
}

/// The schedule of a repository that was never maintained.
fn never() -> MaintenanceSchedule {
    MaintenanceSchedule {
        next_full: Time::UNIX_EPOCH,
        next_quick: Time::UNIX_EPOCH,
        runs: Default::default(),
    }
}

/// The schedule as this run keeps it.
pub(super) struct Journal<'r> {
    repository: &'r Repository,
    clock: Clock,
    id: BlobId,
    schedule: MaintenanceSchedule,
    /// Nonces of the versions seen and written, oldest first.
    versions: Vec<Vec<u8>>,
    /// The run that another client began meanwhile, once one was seen.
    disturbed: bool,
}

impl<'r> Journal<'r> {
    /// Reads the schedule.
    pub(super) fn open(repository: &'r Repository, clock: &Clock) -> Result<Self> {
        let id = BlobId::known(format::MAINTENANCE_ID);
        let (schedule, versions) = match repository.store().get(&id) {
            Ok(sealed) => (repository.format().open_maintenance(&sealed)?, vec![nonce(&sealed)]),
            Err(e) if e.is_not_found() => (never(), Vec::new()),
            Err(e) => return Err(e),
        };
        Ok(Self {
            repository,
            clock: clock.clone(),
            id,
            schedule,
            versions,
            disturbed: false,
        })
    }

    /// What is known of past runs, this one included.
    pub(super) fn history(&self) -> History {
        History::of(self.schedule.clone())
    }

    /// Writes the next times, so that a run that dies is not begun again at once, and gives the storage's time, which is
    /// "now" for the run.
    pub(super) fn begin(&mut self, mode: Mode, parameters: &Parameters) -> Result<Time> {
        let here = self.clock.now();
        if mode == Mode::Full {
            self.schedule.next_full = here.plus(parameters.full.interval());
        }
        self.schedule.next_quick = here.plus(parameters.quick.interval());
        let store = &**self.repository.store();
        let old: Option<BlobMeta> = match store.meta(&self.id) {
            Ok(meta) => Some(meta),
            Err(e) if e.is_not_found() => None,
            Err(e) => return Err(e),
        };
        let written = self.write()?;
        storage_time(store, &self.clock, &self.id, &written, old.as_ref(), here)
    }

    fn write(&mut self) -> Result<Vec<u8>> {
        let sealed = self.repository.format().seal_maintenance(&self.schedule);
        let store = self.repository.store();
        store.put(&self.id, &sealed)?;
        self.versions.push(nonce(&sealed));
        store.sync()?;
        Ok(sealed)
    }

    /// Returns when the schedule is as this run left it, and no upgrade has begun.
    ///
    /// # Errors
    /// `Locked` and what else [`Repository::keep_permitted`] says.
    /// `Busy` when another client has written it: that client maintains the repository too, and what this run believes to be
    /// unused may be in its hands. `Unavailable` when the storage answers with an older version all the time.
    pub(super) fn check_undisturbed(&mut self) -> Result<()> {
        if self.disturbed {
            return Err(busy());
        }
        self.repository.keep_permitted()?;
        for _ in 0..READS_MAX {
            let now = match self.repository.store().get(&self.id) {
                Ok(sealed) => nonce(&sealed),
                Err(e) if e.is_not_found() => Vec::new(),
                Err(e) => return Err(e),
            };
            match self.versions.iter().rposition(|version| *version == now) {
                Some(at) if at + 1 == self.versions.len() => return Ok(()),
                Some(_) => continue,
                None if now.is_empty() && self.versions.is_empty() => return Ok(()),
                None if now.is_empty() => continue,
                None => {
                    self.disturbed = true;
                    return Err(busy());
                }
            }
        }
        let what = format!(
            "{} goes on answering with an older version of {}; nothing is deleted while its answers are old",
            self.repository.store().place(),
            self.id
        );
        Err(RepoError::new(Kind::Unavailable, what))
    }

    /// Runs `work` as `task` and writes down how it went. A task that has nothing to say leaves no line.
    pub(super) fn report<T>(
        &mut self,
        task: Task,
        work: impl FnOnce(&mut Self) -> Result<(T, Option<Vec<RunExtra>>)>,
    ) -> Result<T> {
        let start = self.clock.now();
        let result = work(self);
        let end = self.clock.now();
        let (value, run) = match result {
            Ok((value, None)) => return Ok(value),
            Ok((value, Some(extra))) => (Ok(value), line(start, end, true, String::new(), extra)),
            Err(e) => {
                let error = chain(&e);
                (Err(e), line(start, end, false, error, Vec::new()))
            }
        };
        self.schedule.add_run(task.name(), run);
        // Over the history of another client nothing is written; the error that follows says why.
        let written = self.check_undisturbed().and_then(|()| self.write().map(drop));
        match (value, written) {
            (Err(e), written) => {
                if let Err(unwritten) = written {
                    warn!(task = task.name(), error = %unwritten, "the failure of this task is not in the history");
                }
                Err(e)
            }
            // A task that is not in the history must not count as done: the next steps rest on it.
            (Ok(_), Err(e)) => Err(e.context(format!("write down the run of {}", task.name()))),
            (Ok(value), Ok(())) => Ok(value),
        }
    }
}

fn line(start: Time, end: Time, success: bool, error: String, extra: Vec<RunExtra>) -> MaintenanceRun {
    MaintenanceRun {
        start,
        end,
        success,
        error,
        extra,
    }
}

fn nonce(sealed: &[u8]) -> Vec<u8> {
    sealed[..sealed.len().min(NONCE_LEN)].to_vec()
}

fn busy() -> RepoError {
    RepoError::new(
        Kind::Busy,
        format!(
            "another client wrote {} during this run, so it maintains the repository too; this run stops before it deletes anything else",
            format::MAINTENANCE_ID
        ),
    )
}

fn chain(e: &dyn std::error::Error) -> String {
    match e.source() {
        Some(source) => format!("{e}: {}", chain(source)),
        None => e.to_string(),
    }
}

/// Time up to which deletions may become final: everything deleted before the newest collection that is followed by
/// another one at least `margin` after it.
///
/// The first of the two may have raced with a client that was writing a snapshot; the second has seen that snapshot and
/// given back what the first took from it. Source: kopia, repo/maintenance/maintenance_run.go.
pub(super) fn safe_drop_time(collections: &[MaintenanceRun], margin: Duration, extra: Duration) -> Option<Time> {
    let mut done: Vec<&MaintenanceRun> = collections.iter().filter(|run| run.success).collect();
    done.sort_by_key(|run| std::cmp::Reverse(run.start));
    let (latest, earlier) = done.split_first()?;
    let confirmed = earlier.iter().find(|run| latest.start.since(run.end) > margin)?;
    Some(confirmed.start.minus(extra))
}

#[cfg(test)]
mod tests;
