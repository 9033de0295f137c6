//! One run: who may, when it is, then task after task, each planned, looked at again, carried out and written down.

use std::path::PathBuf;

use blockio::{Cancel, Progress};

use super::census::Census;
use super::clock::Clock;
use super::collect::CollectPlan;
use super::deletion::{Deleted, delete, guard_packs};
use super::forget::{self, ForgetPlan};
use super::journal::{Journal, Mode, Task};
use super::lease::Lease;
use super::moves::{MovePlan, Moved, move_contents};
use super::packs::{PackPlan, PackRules, pack_uses, reason};
use super::parameters::Parameters;
use super::report::{Outcome, Report};
use super::rights::{self, Overrides};
use super::safety::{Breaker, Safety};
use super::sessions::Sessions;
use super::writer::Writer;
use super::{logs, numbers};
use crate::epoch::compact;
use crate::error::Result;
use crate::index::EntryRef;
use crate::repository::Repository;
use crate::time::Time;

/// Entries of one index blob that a collection writes: 20 MiB of memory, as many as Kopia stores at once.
const ENTRIES_PER_BLOB: usize = 100_000;

/// How maintenance is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to do.
    pub mode: Mode,
    /// Margins of time.
    pub safety: Safety,
    /// Shares that nobody deletes unasked.
    pub breaker: Breaker,
    /// This client, `user@host`.
    pub user: String,
    /// What is allowed beyond that.
    pub overrides: Overrides,
    /// Folder of this host's lock files; none when somebody else keeps runs apart.
    pub lock_folder: Option<PathBuf>,
    /// The host's clock.
    pub clock: Clock,
}

impl Options {
    /// A safe run of `mode` by `user`.
    pub fn new(mode: Mode, user: impl Into<String>) -> Self {
        Self {
            mode,
            safety: Safety::FULL,
            breaker: Breaker::STANDARD,
            user: user.into(),
            overrides: Overrides::default(),
            lock_folder: None,
            clock: Clock::host(),
        }
    }
}

/// Tasks that moved contents, and tasks that deleted packs: Kopia's quick ones count as ours do.
pub(super) const MOVING_TASKS: [&str; 2] = ["full-rewrite-contents", "quick-rewrite-contents"];
pub(super) const DELETING_TASKS: [&str; 2] = ["full-delete-blobs", "quick-delete-blobs"];

/// Maintains `repository`.
///
/// # Errors
/// `InvalidInput` when this client may not, or when the run would delete an unlikely share; `Busy` when another one is at
/// it; `Clock`; `Corrupt` when a snapshot cannot be walked: nothing is deleted then. Whatever fails ends the run; every step
/// leaves a whole repository.
pub fn run(repository: &Repository, options: &Options, cancel: &Cancel, progress: &Progress) -> Result<Report> {
    let parameters = Parameters::read(repository)?;
    rights::check(repository, &parameters, &options.user, &options.overrides)?;
    repository.format().check_lock(options.clock.now().unix())?;
    repository.bypass_cache()?;
    let lease = options.lock_folder.as_deref();
    let _lease = lease
        .map(|folder| Lease::take(folder, repository.format()))
        .transpose()?;
    let mut journal = Journal::open(repository, &options.clock)?;
    let now = journal.begin(options.mode, &parameters)?;
    let mut run = Run {
        repository,
        options,
        parameters: &parameters,
        cancel,
        progress,
        journal,
        now,
        report: Report::new(options.mode, false, now),
    };
    match options.mode {
        Mode::Quick => run.quick()?,
        Mode::Full => run.full()?,
    }
    Ok(run.report)
}

pub(super) struct Run<'r> {
    pub(super) repository: &'r Repository,
    pub(super) options: &'r Options,
    pub(super) parameters: &'r Parameters,
    pub(super) cancel: &'r Cancel,
    progress: &'r Progress,
    pub(super) journal: Journal<'r>,
    /// The storage's time when the run began.
    pub(super) now: Time,
    pub(super) report: Report,
}

impl<'r> Run<'r> {
    fn quick(&mut self) -> Result<()> {
        self.compact_single()?;
        self.advance()
    }

    fn full(&mut self) -> Result<()> {
        let mut census = self.collect()?;
        self.move_contents(&mut census)?;
        self.forget(&mut census)?;
        self.delete_packs(&mut census)?;
        drop(census);
        self.extend_locks()?;
        self.compact_single()?;
        self.advance()?;
        self.compact_range()?;
        self.clean_markers()?;
        self.delete_superseded()?;
        self.clean_logs()
    }

    fn writer(&self) -> Result<Writer<'r>> {
        Writer::new(self.repository, &self.options.clock, &self.options.user)
    }

    /// Marks what no snapshot uses, and gives back what one uses.
    fn collect(&mut self) -> Result<Census<'r>> {
        let (repository, options) = (self.repository, self.options);
        let (cancel, progress, now) = (self.cancel, self.progress, self.now);
        let mut writer = self.writer()?;
        let (census, totals) = self.journal.report(Task::SnapshotGc, |journal| {
            let mut census = Census::take(repository, cancel, progress)?;
            // A second look: a snapshot that appeared during a long walk is walked now instead of healed by the next run.
            census.catch_up(cancel, progress)?;
            let plan = CollectPlan::new(&census, now, &options.safety);
            plan.check(
                &options.breaker,
                options.overrides.delete_many,
                options.overrides.no_snapshots,
            )?;
            plan.check_restored(&census, &**repository.store())?;
            let mut entries = plan.entries(&census, options.clock.now()).peekable();
            while entries.peek().is_some() {
                journal.check_undisturbed()?;
                writer.put_entries(entries.by_ref().take(ENTRIES_PER_BLOB).collect())?;
            }
            drop(entries);
            census.knows_blobs(writer.finish()?);
            let totals = plan.totals;
            Ok(((census, totals), Some(numbers::collected(&totals))))
        })?;
        let outcome = Outcome::of(totals.to_delete.count + totals.to_restore.count > 0);
        self.report.add(Task::SnapshotGc, outcome, totals.to_string(), &totals);
        Ok(census)
    }

    /// Moves contents of short packs.
    fn move_contents(&mut self, census: &mut Census<'r>) -> Result<()> {
        let task = Task::FullRewriteContents;
        let (repository, options) = (self.repository, self.options);
        let history = self.journal.history();
        let (moved, deleted) = (history.last_end(&MOVING_TASKS), history.last_end(&DELETING_TASKS));
        if !options.safety.rewrite_to_delete.is_zero() && moved.is_some() && deleted < moved {
            let summary = "the packs that the last move emptied are still to be deleted".into();
            self.report.add(task, Outcome::Idle, summary, &());
            return Ok(());
        }
        let movable_before = self.now.minus(options.safety.rewrite_age_min);
        let (index, _) = repository.index();
        let uses = pack_uses(entries(&index), census.watermark(), movable_before);
        let plan = MovePlan::new(&uses, repository.format().max_pack_size);
        let totals = plan.totals;
        if plan.packs.is_empty() {
            // No line in the history: after a move Kopia's rules put the deletion of packs off.
            self.report.add(task, Outcome::Idle, totals.to_string(), &totals);
            return Ok(());
        }
        let moving: Vec<_> = entries(&index)
            .filter(|entry| plan.moves(entry, movable_before))
            .map(|entry| entry.to_entry())
            .collect();
        let mut writer = self.writer()?;
        let (cancel, progress) = (self.cancel, self.progress);
        let (done, blobs): (Moved, _) = self.journal.report(task, |journal| {
            journal.check_undisturbed()?;
            let result = move_contents(repository, &mut writer, moving, cancel, progress);
            // What is moved is moved, also when the rest is not: it is indexed, and the marker goes.
            let blobs = writer.finish();
            let (done, blobs) = (result?, blobs?);
            Ok(((done, blobs), Some(numbers::moved(&totals, &done))))
        })?;
        census.knows_blobs(blobs);
        if done.damaged > 0 {
            let what = format!(
                "{} contents in short packs cannot be read; run `blockferry verify`",
                done.damaged
            );
            self.report.warnings.push(what);
        }
        self.report.add(task, Outcome::Done, totals.to_string(), &totals);
        Ok(())
    }

    /// Makes old deletions final.
    fn forget(&mut self, census: &mut Census<'r>) -> Result<()> {
        let task = Task::FullDropDeletedContent;
        let (repository, options) = (self.repository, self.options);
        let (cancel, progress) = (self.cancel, self.progress);
        let (index, _) = repository.index();
        let here = options.clock.now();
        let history = self.journal.history();
        let plan = ForgetPlan::new(&history, here, &options.safety, census.watermark(), entries(&index));
        let totals = plan.totals;
        let Some(watermark) = plan.watermark else {
            self.report.add(task, Outcome::Idle, totals.to_string(), &totals);
            return Ok(());
        };
        drop(index);
        self.journal.report(task, |journal| {
            census.catch_up(cancel, progress)?;
            let (index, _) = repository.index();
            forget::guard(census, entries(&index), watermark)?;
            journal.check_undisturbed()?;
            compact::put_watermark(&**repository.store(), watermark)?;
            repository.moved_watermark(watermark);
            census.moved_watermark(watermark);
            Ok(((), Some(numbers::forgotten(&totals))))
        })?;
        self.report.add(task, Outcome::Done, totals.to_string(), &totals);
        Ok(())
    }

    /// Deletes packs that nothing refers to.
    fn delete_packs(&mut self, census: &mut Census<'r>) -> Result<()> {
        let task = Task::FullDeleteBlobs;
        let (repository, options) = (self.repository, self.options);
        let (cancel, progress) = (self.cancel, self.progress);
        let store = &**repository.store();
        let sessions = Sessions::read(repository)?;
        self.report.unreadable_markers = sessions.unreadable().to_vec();
        let history = self.journal.history();
        let (index, _) = repository.index();
        let uses = pack_uses(entries(&index), census.watermark(), Time::UNIX_EPOCH);
        let rules = PackRules {
            uses: &uses,
            sessions: &sessions,
            now: self.now,
            safety: &options.safety,
            moved: history.last_end(&MOVING_TASKS),
        };
        if let Some(calm) = rules.calm_from() {
            let summary = format!("contents were moved a short while ago; packs are deleted from {calm} on");
            self.report.add(task, Outcome::Idle, summary, &());
            return Ok(());
        }
        let plan = PackPlan::new(store, &rules)?;
        drop(uses);
        drop(index);
        plan.check(&options.breaker, options.overrides.delete_many)?;
        let deleted = self.journal.report(task, |journal| {
            let why = |id: &crate::id::BlobId| reason(id).to_owned();
            let deleted = delete(store, journal, &plan.victims, cancel, &why, &mut |victims| {
                census.catch_up(cancel, progress)?;
                let (index, _) = repository.index();
                guard_packs(entries(&index), census.watermark(), victims)
            })?;
            let numbers = numbers::packs_deleted(&plan.totals, &deleted);
            Ok((deleted, Some(numbers)))
        })?;
        let outcome = Outcome::of(deleted.totals.count > 0);
        let numbers = PackNumbers {
            packs: &plan.totals,
            deleted: &deleted,
        };
        self.report.add(task, outcome, plan.totals.to_string(), &numbers);
        Ok(())
    }

    /// Deletes logs beyond their limits.
    fn clean_logs(&mut self) -> Result<()> {
        let store = &**self.repository.store();
        let (cancel, now) = (self.cancel, self.now);
        let retention = self.parameters.logs.or_standard();
        let (totals, deleted) = self.journal.report(Task::CleanupLogs, |journal| {
            let (totals, victims) = logs::plan(store.list(logs::PREFIX)?, &retention, now);
            let why = |_: &crate::id::BlobId| "a log beyond the limits of size, number or age".to_owned();
            let deleted = delete(store, journal, &victims, cancel, &why, &mut |_| Ok(()))?;
            let numbers = numbers::logs_deleted(&totals, &deleted);
            Ok(((totals, deleted), Some(numbers)))
        })?;
        let outcome = Outcome::of(deleted.totals.count > 0);
        self.report.add(Task::CleanupLogs, outcome, totals.to_string(), &totals);
        Ok(())
    }
}

/// The winning entries of an index.
pub(super) fn entries(index: &crate::index::Merged) -> impl Iterator<Item = EntryRef<'_>> {
    index.rows().map(|(_, entry)| entry)
}

#[derive(serde::Serialize)]
struct PackNumbers<'a> {
    #[serde(flatten)]
    packs: &'a super::packs::PackTotals,
    deleted: &'a Deleted,
}
