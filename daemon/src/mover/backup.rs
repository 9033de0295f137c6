//! Backup of a volume: decide what to rely on, read what that leaves, store what is new, prove a share of the rest, publish.
//!
//! | step | where |
//! |---|---|
//! | find the snapshot to continue from | `super::parent` |
//! | decide how much of the lists to rely on | [`super::ladder`] |
//! | which chunks are read, taken over, zero | `super::intake` |
//! | which of those taken over are read all the same | [`super::audit`] |
//! | take up what an interrupted run left | `super::journal` |
//! | read, find zeros, hash in lanes, store | `work` |
//! | list, folder, snapshot | `super::snapshot` |

mod plan;
mod report;
mod work;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use blockio::{BlockMap, CHUNK_SIZE, Cancel, ChunkIndex, Device, EngineKind, Progress};
use repo::compress::CompressionPolicy;
use repo::session::{StoredHook, WriteOptions, WriteSession};
use repo::snapshot::{Snapshot, Source};
use repo::time::Time;
use repo::{ContentId, Repository, SessionId};
use tracing::{info, warn};

use super::audit::{self, Budget, Next};
use super::changes::ChangedFile;
use super::journal::{Begun, Finished, Journal, SourceState};
use super::ladder::Rung;
use super::notes::SessionNotes;
pub use super::parent::ParentChoice;
use super::snapshot::publish;
use crate::error::{JobError, Result};
use plan::Plan;
pub use plan::{Outlook, outlook};
pub use report::BackupReport;
use work::{Job, Round, index};

/// Packs on their way to the storage for each worker; one is written while the next fills.
const UPLOADS_PER_WORKER: usize = 1;

/// Chunks of a resumed backup that are read and compared before the others are believed.
const RESUME_SAMPLE: usize = 16;

/// What to back up, and how.
pub struct BackupOptions {
    /// Whose volume the snapshot shows.
    pub source: Source,
    /// Compression of chunks.
    pub compression: CompressionPolicy,
    /// Worker threads.
    pub workers: usize,
    /// Way to the device.
    pub engine: EngineKind,
    /// Bytes a second read from the device.
    pub limit: Option<u64>,
    /// Change id of the CSI snapshot, for the next increment.
    pub change_id: Option<String>,
    /// Volume the change id belongs to.
    pub volume_id: Option<String>,
    /// Further tags.
    pub tags: BTreeMap<String, String>,
    /// What is known of changes.
    pub changes: Changes,
    /// How the repository is treated.
    pub care: Care,
    /// Engine faults, for tests.
    pub faults: Option<blockio::FaultPlan>,
}

/// What is known of changes, and how far to rely on it.
#[derive(Clone, Debug)]
pub struct Changes {
    /// The snapshot to continue from.
    pub parent: ParentChoice,
    /// Chunks that may differ from the parent.
    pub changed: Option<Listed>,
    /// Chunks that may hold data.
    pub allocated: Option<Listed>,
    /// Change id the changed chunks are counted from; the parent must have it.
    pub base: Option<String>,
    /// The lowest rung that will do; below it the backup fails.
    pub require: Rung,
    /// Share of the unread chunks that is read all the same.
    pub audit: Budget,
    /// Believe the source's lists again though an audit failed before.
    pub trust_source: bool,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            parent: ParentChoice::Auto,
            changed: None,
            allocated: None,
            base: None,
            require: Rung::Full,
            audit: Budget::DEFAULT,
            trust_source: false,
        }
    }
}

impl Changes {
    /// A backup that continues from nothing and relies on nothing.
    pub fn none() -> Self {
        Self {
            parent: ParentChoice::None,
            ..Self::default()
        }
    }
}

/// A list of chunks, with the size of the volume it is of.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Who made it: `file`, `csi`, `mount`.
    pub origin: &'static str,
    /// Bytes of the volume by the list.
    pub volume_size: u64,
    /// Chunks of the volume by the device; those past `volume_size` are not in it.
    pub map: BlockMap,
}

impl Listed {
    /// The list in `file`, for a device of `size` bytes.
    pub fn of_file(file: &ChangedFile, size: u64) -> Self {
        Self {
            origin: "file",
            volume_size: file.volume_size,
            map: file.map(size),
        }
    }
}

/// How a backup treats the repository.
#[derive(Clone, Debug, Default)]
pub struct Care {
    /// Packs on their way to the storage at once, 22 MiB each; by the storage's habits when not given.
    pub uploads: Option<usize>,
    /// Share of reused contents whose packs are looked for, in percent.
    pub check_reused: u8,
    /// Contents to store again though the repository has them.
    pub damaged: Arc<HashSet<ContentId>>,
    /// Folder of this host's notes on running sessions and of its journals. Without it the marker of a crashed session stays until
    /// it expires, and an interrupted backup begins anew.
    pub notes: Option<PathBuf>,
    /// Do not continue an interrupted backup.
    pub begin_anew: bool,
}

/// Backs `device` up into `repository` as a new snapshot.
pub fn backup(
    repository: &Repository,
    device: &Arc<Device>,
    options: &BackupOptions,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<BackupReport> {
    let started = Instant::now();
    let start = Time::now();
    check_tags(options)?;
    let notes_folder = options.care.notes.as_deref();
    let notes = SessionNotes::of(repository, notes_folder);
    let note = notes.as_ref().and_then(SessionNotes::begin);
    let mut plan = Plan::make(repository, device, options)?;
    plan.check_rung(options.changes.require)?;
    plan.tell();
    let (change, volume) = (options.change_id.as_deref(), options.volume_id.as_deref());
    let state = SourceState::of(device, &options.source, change, volume);
    let (journal, begun) = Journal::begin(repository, notes_folder, &state);
    let journal = journal.map(Arc::new);

    let write = WriteOptions {
        on_stored: journal
            .clone()
            .map(|journal| StoredHook::new(move |entries| journal.stored(entries))),
        ..options.write(repository, note.as_ref().map(|note| note.session().clone()))
    };
    let session = WriteSession::begin(repository, &write)?;
    let about = plan.about(options, start);
    let job = Job::new(repository, device, about, &plan, journal.as_deref(), cancel, progress);
    let moved = resume(&job, &session, &mut plan, begun).and_then(|resumed| {
        // The marker of the interrupted session keeps maintenance from its packs, so it goes after they are in the index.
        if let Some(notes) = &notes {
            notes.clean_up_after_crashes(repository);
        }
        carry_out(&job, &session, &mut plan, &resumed.chunks)?;
        Ok(resumed)
    });
    let resumed = match moved {
        Ok(resumed) => resumed,
        Err(e) => {
            session.abandon();
            return Err(e);
        }
    };
    let about = plan.about(options, start);
    let published = publish(session, device, &about, &job.table());
    let (snapshot, object, totals, end) = published?;
    if let Some(journal) = &journal {
        journal.remove();
    }
    let done = progress.snapshot();
    Ok(BackupReport {
        snapshot,
        object,
        parent: plan.parent_id(),
        origin: plan.origin(),
        source_size: device.geometry().size,
        read_bytes: job.read_bytes(),
        zero_bytes: done.zero_bytes,
        known_bytes: done.unchanged_bytes,
        new_bytes: done.new_bytes,
        resumed_bytes: resumed.chunks.len() as u64 * CHUNK_SIZE,
        resume_refused: resumed.refused,
        audited_chunks: plan.audited,
        totals,
        engine: job.engine(),
        hash_kernel: repository.contents().hasher().kernel(),
        start,
        end,
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        decision: plan.decision,
        mismatches: plan.mismatches,
    })
}

impl BackupOptions {
    /// How a session for the snapshot writes.
    pub(super) fn write(&self, repository: &Repository, session: Option<SessionId>) -> WriteOptions {
        let workers = self.workers.max(1);
        let by_habit = (workers * UPLOADS_PER_WORKER).max(repository.store().habits().puts);
        WriteOptions {
            sealers: workers,
            uploads: self.care.uploads.unwrap_or(by_habit),
            compression: self.compression,
            user: self.source.user.clone(),
            host: self.source.host.clone(),
            session,
            check_reused: self.care.check_reused,
            damaged: self.care.damaged.clone(),
            on_stored: None,
        }
    }
}

fn check_tags(options: &BackupOptions) -> Result<()> {
    match options.tags.keys().find(|key| Snapshot::LABELS.contains(&key.as_str())) {
        Some(label) => Err(JobError::Usage(format!(
            "a tag may not be called {label:?}; that label belongs to the snapshot itself"
        ))),
        None => Ok(()),
    }
}

/// Moves all that has to be moved; an interrupted run has moved `resumed`.
fn carry_out(job: &Job<'_>, session: &WriteSession<'_>, plan: &mut Plan, resumed: &[ChunkIndex]) -> Result<()> {
    plan.read_again(session.absent_pieces(&plan.base, plan.taken_over())?);
    job.begin(plan, resumed);
    let mut round = Round {
        chunks: plan.first_round(),
        audited: plan.sample.clone(),
        is_first: true,
    };
    let mut wrong_before = 0;
    loop {
        let mut wrong = std::mem::take(&mut plan.false_holes);
        wrong.extend(job.run(session, &round)?);
        plan.end_round(&round.audited, &wrong);
        let next = audit::next_round(&wrong, wrong_before, &plan.intake.unread);
        wrong_before += wrong.len() as u64;
        let chunks = match next {
            Next::Done => break,
            Next::Around(chunks) => chunks,
            Next::Everything(chunks) => {
                if plan.distrust() {
                    plan.check_rung(job.options.changes.require)?;
                    plan.tell();
                }
                chunks
            }
        };
        if chunks.is_empty() {
            break;
        }
        round = Round {
            audited: chunks.clone(),
            chunks,
            is_first: false,
        };
    }
    stand_without_parent(job, session, plan)
}

/// Looks whether the parent still stands; when it does not, maintenance may take what only it held, so what was taken over is
/// looked up again, and what is gone is read and stored.
fn stand_without_parent(job: &Job<'_>, session: &WriteSession<'_>, plan: &mut Plan) -> Result<()> {
    let Some(parent) = plan.parent_id().filter(|_| !plan.intake.unread.is_empty()) else {
        return Ok(());
    };
    let repository = session.repository();
    repository.refresh()?;
    if repository.manifests()?.get(&parent).is_some() {
        return Ok(());
    }
    warn!(%parent, "the parent was deleted meanwhile; what was taken over from it is looked up again");
    let absent = session.absent_pieces(&plan.base, plan.taken_over())?;
    let chunks = plan.read_again(absent);
    let audited = BlockMap::new(chunks.len());
    let round = Round {
        chunks,
        audited,
        is_first: false,
    };
    job.run(session, &round)?;
    Ok(())
}

/// What became of an interrupted backup of the source.
#[derive(Default)]
struct Resumed {
    /// Chunks that need no reading.
    chunks: Vec<ChunkIndex>,
    /// Why it is not continued.
    refused: Option<&'static str>,
}

/// Takes up what an interrupted backup of the same state had done, as far as it is there: its packs into the index, its chunks
/// as read.
fn resume(job: &Job<'_>, session: &WriteSession<'_>, plan: &mut Plan, begun: Begun) -> Result<Resumed> {
    let taken = match begun {
        Begun::Anew => Ok(Vec::new()),
        Begun::Refused(why) => Err(why),
        Begun::Resumed(_) if job.options.care.begin_anew => Err("that is not wanted"),
        Begun::Resumed(finished) => take_up(job, session, plan, finished)?,
    };
    let (usable, refused) = match taken {
        Ok(usable) => (usable, None),
        Err(why) => {
            info!(
                why,
                "an interrupted backup of this source is not continued; this one begins anew"
            );
            (Vec::new(), Some(why))
        }
    };
    if let Some(journal) = job.journal {
        journal.start(session.id(), &usable);
    }
    job.take_up(&usable);
    let mut taken = BlockMap::new(plan.intake.read.len());
    usable.iter().for_each(|(chunk, _)| taken.set(*chunk));
    plan.intake.read.remove(&taken);
    if !usable.is_empty() {
        info!(chunks = usable.len(), "an interrupted backup is continued");
    }
    Ok(Resumed {
        chunks: usable.into_iter().map(|(chunk, _)| chunk).collect(),
        refused,
    })
}

/// Indexes the packs of an interrupted run, and tells which of its chunks can be relied on, in order; else why none can.
fn take_up(
    job: &Job<'_>,
    session: &WriteSession<'_>,
    plan: &Plan,
    finished: Finished,
) -> Result<std::result::Result<Vec<(ChunkIndex, ContentId)>, &'static str>> {
    session.adopt(finished.entries)?;
    let mut usable: Vec<(ChunkIndex, ContentId)> = (finished.chunks.into_iter())
        .filter(|(chunk, _)| plan.intake.read.get(*chunk))
        .collect();
    usable.sort_unstable_by_key(|(chunk, _)| *chunk);
    // What the index has may be lost all the same, be it since or before: then the interrupted run had stored it again.
    let mut table = plan.base.clone();
    for (chunk, content) in &usable {
        table.set_content(index(*chunk), content);
    }
    let chunks = usable.iter().map(|(chunk, _)| index(*chunk));
    let absent: HashSet<usize> = session.absent_pieces(&table, chunks)?.into_iter().collect();
    usable.retain(|(chunk, content)| *content == plan.zero || !absent.contains(&index(*chunk)));
    let step = usable.len().div_ceil(RESUME_SAMPLE).max(1);
    for (chunk, content) in usable.iter().step_by(step) {
        if job.content_of(*chunk)? != *content {
            warn!(
                offset = chunk.offset(),
                "the source is not as an interrupted backup of it left it"
            );
            return Ok(Err("a sample of its chunks is not what it read"));
        }
    }
    Ok(Ok(usable))
}
