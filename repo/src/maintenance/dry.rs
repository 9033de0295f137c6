//! A dry run: every plan of a run, one resting on the other, and nothing written.

use blockio::{Cancel, Progress};

use super::census::Census;
use super::collect::CollectPlan;
use super::forget::ForgetPlan;
use super::journal::{History, Mode, Task};
use super::logs;
use super::moves::MovePlan;
use super::packs::{PackPlan, PackRules, pack_uses};
use super::parameters::Parameters;
use super::report::{Outcome, Report};
use super::rights;
use super::run::{DELETING_TASKS, MOVING_TASKS, Options};
use super::sessions::Sessions;
use crate::epoch::compact::Inventory;
use crate::error::Result;
use crate::format::MaintenanceRun;
use crate::index::EntryRef;
use crate::repository::Repository;
use crate::time::Time;

/// What [`run`](super::run()) would do now. "Now" is the time of this host: without a write the storage does not tell its
/// own. What would make a run refuse is a warning here.
///
/// # Errors
/// Those of reading; `Corrupt` when a snapshot cannot be walked.
pub fn plan(repository: &Repository, options: &Options, cancel: &Cancel, progress: &Progress) -> Result<Report> {
    repository.bypass_cache()?;
    let parameters = Parameters::read(repository)?;
    let now = options.clock.now();
    let mut dry = Dry {
        repository,
        options,
        now,
        history: History::read(repository)?,
        report: Report::new(options.mode, true, now),
    };
    dry.warn(rights::check(
        repository,
        &parameters,
        &options.user,
        &options.overrides,
    ));
    if options.mode == Mode::Full {
        dry.contents(cancel, progress)?;
        dry.logs(&parameters)?;
    }
    dry.epochs()?;
    Ok(dry.report)
}

struct Dry<'r> {
    repository: &'r Repository,
    options: &'r Options,
    now: Time,
    history: History,
    report: Report,
}

/// Planned, when there is something to do.
fn outcome(something: bool) -> Outcome {
    match something {
        true => Outcome::Planned,
        false => Outcome::Idle,
    }
}

impl Dry<'_> {
    /// A run would refuse for this reason.
    fn warn(&mut self, checked: Result<()>) {
        if let Err(e) = checked {
            self.report.warnings.push(format!("a run would refuse: {e}"));
        }
    }

    /// Collection, moves, forgetting and deletion of packs, each as if those before had been carried out.
    fn contents(&mut self, cancel: &Cancel, progress: &Progress) -> Result<()> {
        let (repository, options, now) = (self.repository, self.options, self.now);
        let census = Census::take(repository, cancel, progress)?;
        let collect = CollectPlan::new(&census, now, &options.safety);
        self.warn(collect.check(
            &options.breaker,
            options.overrides.delete_many,
            options.overrides.no_snapshots,
        ));
        self.warn(collect.check_restored(&census, &**repository.store()));
        let totals = &collect.totals;
        let changes = totals.to_delete.count + totals.to_restore.count > 0;
        let summary = totals.to_string();
        self.report.add(Task::SnapshotGc, outcome(changes), summary, totals);
        let rows = || {
            census
                .rows()
                .map(|(position, entry)| collect.after(position, entry, now))
        };

        let movable_before = now.minus(options.safety.rewrite_age_min);
        let (moved, deleted) = (
            self.history.last_end(&MOVING_TASKS),
            self.history.last_end(&DELETING_TASKS),
        );
        let delayed = !options.safety.rewrite_to_delete.is_zero();
        let moves = match delayed && moved.is_some() && deleted < moved {
            true => MovePlan::default(),
            false => {
                let uses = pack_uses(rows(), census.watermark(), movable_before);
                MovePlan::new(&uses, repository.format().max_pack_size)
            }
        };
        let totals = &moves.totals;
        let summary = totals.to_string();
        self.report
            .add(Task::FullRewriteContents, outcome(totals.packs > 0), summary, totals);

        let history = self.history.with_run(
            Task::SnapshotGc,
            MaintenanceRun {
                start: now,
                end: now,
                success: true,
                error: String::new(),
                extra: Vec::new(),
            },
        );
        let forget = ForgetPlan::new(&history, now, &options.safety, census.watermark(), rows());
        let totals = &forget.totals;
        let summary = totals.to_string();
        let something = forget.watermark.is_some();
        self.report
            .add(Task::FullDropDeletedContent, outcome(something), summary, totals);

        let watermark = census.watermark().max(forget.watermark);
        // What moves in this run holds its old pack no longer.
        let staying = |entry: &EntryRef<'_>| !moves.moves(entry, movable_before);
        let uses = pack_uses(rows().filter(staying), watermark, Time::UNIX_EPOCH);
        let sessions = Sessions::read(repository)?;
        self.report.unreadable_markers = sessions.unreadable().to_vec();
        let rules = PackRules {
            uses: &uses,
            sessions: &sessions,
            now,
            safety: &options.safety,
            moved: moved.max(Some(now).filter(|_| moves.totals.packs > 0)),
        };
        let packs = PackPlan::new(&**repository.store(), &rules)?;
        self.warn(packs.check(&options.breaker, options.overrides.delete_many));
        let totals = &packs.totals;
        let something = !packs.victims.is_empty();
        let summary = totals.to_string();
        self.report
            .add(Task::FullDeleteBlobs, outcome(something), summary, totals);
        Ok(())
    }

    fn logs(&mut self, parameters: &Parameters) -> Result<()> {
        let listing = self.repository.store().list(logs::PREFIX)?;
        let (totals, victims) = logs::plan(listing, &parameters.logs.or_standard(), self.now);
        let summary = totals.to_string();
        self.report
            .add(Task::CleanupLogs, outcome(!victims.is_empty()), summary, &totals);
        Ok(())
    }

    fn epochs(&mut self) -> Result<()> {
        let inventory = Inventory::read(&**self.repository.store())?;
        let parameters = &self.repository.format().epoch;
        let full = self.options.mode == Mode::Full;
        let single = inventory.plan_single();
        let summary = single.as_ref().map_or("no epoch waits for compaction".into(), |plan| {
            format!(
                "{} index blobs of epoch {} would be merged",
                plan.blobs.len(),
                plan.epoch
            )
        });
        self.report
            .add(Task::CompactSingleEpoch, outcome(single.is_some()), summary, &());
        let (fill, advance) = inventory.plan_advance(parameters);
        let summary = format!(
            "write epoch {} has {} index blobs of {} bytes over {} h",
            inventory.write_epoch,
            fill.blobs,
            fill.bytes,
            fill.span.as_secs() / 3600
        );
        self.report.add(Task::AdvanceEpoch, outcome(advance), summary, &());
        if !full {
            return Ok(());
        }
        let range = inventory.plan_range(parameters);
        let summary = range.as_ref().map_or("too few epochs for a checkpoint".into(), |plan| {
            format!("epochs {} to {} would become one checkpoint", plan.first, plan.last)
        });
        self.report
            .add(Task::GenerateEpochRangeIndex, outcome(range.is_some()), summary, &());
        let (markers, watermarks) = inventory.plan_markers(parameters);
        let count = markers.len() + watermarks.len();
        let summary = format!("{count} markers would be deleted");
        self.report
            .add(Task::CleanupEpochMarkers, outcome(count > 0), summary, &());
        let superseded = inventory.plan_superseded(parameters);
        let count: usize = superseded.iter().map(|(_, blobs, _)| blobs.len()).sum();
        let summary = format!("{count} index blobs were replaced by compactions");
        self.report
            .add(Task::DeleteSupersededEpochIndexes, outcome(count > 0), summary, &());
        Ok(())
    }
}
