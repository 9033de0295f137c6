//! How it stands with maintenance, and why a blob is still there: from listings and index alone, without a walk of the
//! snapshots.

use serde::Serialize;

use super::collect::Count;
use super::journal::{History, Mode, Task};
use super::packs::{PackPlan, PackRules, PackTotals, is_pack, pack_uses};
use super::parameters::{Cycle, Parameters};
use super::rights;
use super::run::{MOVING_TASKS, Options};
use super::sessions::{Guard, Sessions, UnreadableMarker, session_of};
use crate::epoch::compact::Inventory;
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;
use crate::repository::Repository;
use crate::time::Time;

/// How it stands with maintenance.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `user@host` of the owner; empty when nobody is.
    pub owner: String,
    /// This client is the owner.
    pub is_owner: bool,
    /// The repository is one of Velero's.
    pub is_veleros: bool,
    /// What is due now.
    pub due: Option<Mode>,
    /// When each kind runs next, and whether it runs at all.
    pub quick: CycleStatus,
    /// The same for the full one.
    pub full: CycleStatus,
    /// Last run of every task.
    pub tasks: Vec<TaskStatus>,
    /// Epoch that writers store under.
    pub epoch: u64,
    /// Epochs whose index blobs have not been put into a checkpoint.
    pub open_epochs: u64,
    /// Index blobs in force.
    pub index_blobs: u64,
    /// Deletions up to this moment are final.
    pub watermark: Option<Time>,
    /// Sessions that may be at work.
    pub live_sessions: u64,
    /// Markers that cannot be read.
    pub unreadable_markers: Vec<UnreadableMarker>,
    /// Contents that exist.
    pub contents: Count,
    /// Contents marked deleted, not for good yet.
    pub deleted_contents: Count,
    /// Packs, and why those stay that nothing refers to.
    pub packs: PackTotals,
}

/// One kind of maintenance.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CycleStatus {
    /// It runs when due.
    pub enabled: bool,
    /// Seconds between runs.
    pub interval_s: u64,
    /// When it is due.
    pub next: Time,
}

/// A task's last run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskStatus {
    /// Kopia's name.
    pub task: String,
    /// When it began.
    pub start: Time,
    /// It did what it should.
    pub success: bool,
    /// Why it did not.
    pub error: String,
    /// Runs in the history.
    pub runs: usize,
}

/// Why a blob is there, and when it can go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The blob.
    pub blob: String,
    /// Its length.
    pub bytes: u64,
    /// When it was stored.
    pub stored: Time,
    /// The session that stored it, by its name.
    pub session: Option<String>,
    /// What holds it, one sentence each.
    pub held_by: Vec<String>,
    /// The next full maintenance deletes it.
    pub can_go: bool,
}

/// How it stands with maintenance of `repository`, for a client with `options`.
///
/// # Errors
/// Those of reading.
pub fn status(repository: &Repository, options: &Options) -> Result<Status> {
    let parameters = Parameters::read(repository)?;
    let history = History::read(repository)?;
    let now = options.clock.now();
    let sessions = Sessions::read(repository)?;
    let inventory = Inventory::read(&**repository.store())?;
    let (index, epoch) = repository.index();
    let (mut contents, mut deleted_contents) = (Count::default(), Count::default());
    for (_, entry) in index.rows().filter(|(_, entry)| !entry.is_forgotten(epoch.watermark)) {
        let count = if entry.deleted {
            &mut deleted_contents
        } else {
            &mut contents
        };
        count.add(u64::from(entry.packed_len));
    }
    let uses = pack_uses(index.rows().map(|(_, entry)| entry), epoch.watermark, Time::UNIX_EPOCH);
    let rules = PackRules {
        uses: &uses,
        sessions: &sessions,
        now,
        safety: &options.safety,
        moved: history.last_end(&MOVING_TASKS),
    };
    let packs = PackPlan::new(&**repository.store(), &rules)?.totals;
    let cycle = |mode, cycle: Cycle| CycleStatus {
        enabled: cycle.enabled,
        interval_s: cycle.interval().as_secs(),
        next: history.next(mode),
    };
    Ok(Status {
        is_owner: parameters.owner == options.user,
        is_veleros: rights::is_veleros(repository, &parameters)?,
        due: history.due(&parameters, now),
        quick: cycle(Mode::Quick, parameters.quick),
        full: cycle(Mode::Full, parameters.full),
        tasks: last_runs(&history),
        epoch: inventory.write_epoch,
        open_epochs: inventory.open_epochs(),
        index_blobs: epoch.blobs.len() as u64,
        watermark: epoch.watermark.map(Time::from_unix),
        live_sessions: sessions.live(now, options.safety.session_age_max),
        unreadable_markers: sessions.unreadable().to_vec(),
        contents,
        deleted_contents,
        packs,
        owner: parameters.owner,
    })
}

fn last_runs(history: &History) -> Vec<TaskStatus> {
    let last = |(task, runs): (&String, &Vec<crate::format::MaintenanceRun>)| {
        let run = runs.first()?;
        Some(TaskStatus {
            task: task.clone(),
            start: run.start,
            success: run.success,
            error: run.error.clone(),
            runs: runs.len(),
        })
    };
    history.all().iter().filter_map(last).collect()
}

/// Why blob `id` is there, and when it can go.
///
/// # Errors
/// `NotFound` when it is not; `InvalidInput` for a blob that is no pack and no session marker.
pub fn explain(repository: &Repository, id: &BlobId, options: &Options) -> Result<Explanation> {
    let name = id.as_str();
    if !is_pack(name) && !name.starts_with(super::sessions::PREFIX) {
        let what = format!("{name:?} is neither a pack nor a session marker; only those are explained");
        return Err(RepoError::new(Kind::InvalidInput, what));
    }
    let meta = repository.store().meta(id)?;
    let (now, safety) = (options.clock.now(), &options.safety);
    let history = History::read(repository)?;
    let sessions = Sessions::read(repository)?;
    let (index, epoch) = repository.index();
    let of_pack = index.rows().map(|(_, entry)| entry).filter(|entry| entry.pack == name);
    let uses = pack_uses(of_pack, epoch.watermark, Time::UNIX_EPOCH);
    let mut held_by = Vec::new();
    if let Some(usage) = uses.get(name) {
        if usage.alive > 0 {
            held_by.push(format!(
                "{} contents of {} bytes in it exist; the next full maintenance finds out whether a snapshot uses them",
                usage.alive, usage.alive_bytes
            ));
        }
        if usage.deleted_bytes > 0 {
            held_by.push(format!(
                "contents of {} bytes in it are marked deleted, the last at {}; {}",
                usage.deleted_bytes,
                Time::from_unix(usage.deleted_at),
                final_when(&history, usage.deleted_at, options)
            ));
        }
    }
    let stored = Time::from(meta.modified);
    if now.since(stored) < safety.pack_age_min {
        let until = stored.plus(safety.pack_age_min);
        held_by.push(format!("it is young: its writer has until {until} to index it"));
    }
    match sessions.guard(id, now, safety.session_age_max) {
        Some(Guard::Until(until)) => held_by.push(format!("its session may be at work until {until}")),
        Some(Guard::Unreadable) => held_by.extend(sessions.unreadable().iter().map(UnreadableMarker::advice)),
        None => {}
    }
    let rules = PackRules {
        uses: &uses,
        sessions: &sessions,
        now,
        safety,
        moved: history.last_end(&MOVING_TASKS),
    };
    if let Some(calm) = rules.calm_from() {
        held_by.push(format!(
            "contents were moved a short while ago; packs are deleted from {calm} on"
        ));
    }
    Ok(Explanation {
        blob: name.to_owned(),
        bytes: meta.len,
        stored,
        session: session_of(name).map(str::to_owned),
        can_go: held_by.is_empty(),
        held_by,
    })
}

/// When a deletion of `deleted_at` becomes final.
fn final_when(history: &History, deleted_at: u64, options: &Options) -> String {
    let safety = &options.safety;
    if !safety.two_collections {
        return "the next full maintenance makes that final".into();
    }
    let deleted = Time::from_unix(deleted_at);
    // The deletion is final once a collection that began after it, by the margin, has a successor.
    let confirming = history
        .runs(Task::SnapshotGc.name())
        .iter()
        .filter(|run| run.success && run.start.minus(safety.drop_margin) >= deleted);
    match confirming.map(|run| run.end).min() {
        Some(end) => format!(
            "that becomes final with the first collection after {}",
            end.plus(safety.collection_margin)
        ),
        None => format!(
            "that becomes final with the second collection from {} on, the two {} h apart",
            deleted.plus(safety.drop_margin),
            safety.collection_margin.as_secs() / 3600
        ),
    }
}
