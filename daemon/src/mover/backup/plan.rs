//! What a backup is going to do, decided before the first chunk is read.

use blockio::{BlockMap, BlockSource, ChunkIndex, Device, Geometry};
use repo::object::BlockAddressTable;
use repo::time::Time;
use repo::{ContentId, ManifestId, Repository};
use tracing::{info, warn};

use super::work::index;
use super::{BackupOptions, Listed};
use crate::error::{JobError, Result};
use crate::mover::audit::{self, Sample, Walk, areas};
use crate::mover::intake::Intake;
use crate::mover::ladder::{Decision, Facts, Reason, Rung, Step, decide};
use crate::mover::parent::{Found, Parent, Wanted};
use crate::mover::snapshot::About;

/// The plan of a backup, and what has become of it.
pub(super) struct Plan {
    /// What it rests on.
    pub(super) decision: Decision,
    /// Id of the content all zero chunks refer to.
    pub(super) zero: ContentId,
    /// What the snapshot says of each chunk before anything is read.
    pub(super) base: BlockAddressTable,
    /// Which chunks are read.
    pub(super) intake: Intake,
    /// Those of the unread chunks that are read for the audit.
    pub(super) sample: BlockMap,
    /// Chunks audited.
    pub(super) audited: u64,
    /// Chunks that were not as the list said.
    pub(super) mismatches: Vec<ChunkIndex>,
    /// Holes of the file that the list calls unchanged though the parent has data there: found without reading.
    pub(super) false_holes: Vec<ChunkIndex>,
    parent: Option<Parent>,
    origin: Option<&'static str>,
    walk: Walk,
    /// When an audit of this source failed.
    doubt: Option<String>,
}

impl Plan {
    /// Decides what to do. Reads manifests, the parent's list and the first blocks of the device.
    pub(super) fn make(repository: &Repository, device: &Device, options: &BackupOptions) -> Result<Self> {
        let geometry = device.geometry();
        if geometry.size == 0 {
            let what = format!("{} has no bytes; there is nothing to back up", device.path().display());
            return Err(JobError::Usage(what));
        }
        let count = usize::try_from(geometry.chunks()).ok();
        let count = count.filter(|_| geometry.chunks() <= BlockMap::CHUNKS_MAX);
        let count = count.ok_or_else(|| {
            let what = format!("{} is larger than this host can address", device.path().display());
            JobError::Usage(what)
        })?;
        let changes = &options.changes;
        let zero = repository.zero_content();
        let found = find_parent(repository, options)?;
        let continued = found
            .parent
            .and_then(|parent| Ok((parent.continued(count, &zero)?, parent)));
        let decision = decide(&Facts {
            parent: continued.as_ref().map(|_| ()).map_err(Clone::clone),
            changed: usable(changes.changed.as_ref(), geometry),
            allocated: usable(changes.allocated.as_ref(), geometry),
            untrusted: found.doubt.clone().filter(|_| !changes.trust_source),
        });
        let data = chunks_with_data(device)?;
        let list = match decision.rung {
            Rung::Delta => changes.changed.as_ref(),
            Rung::Allocated => changes.allocated.as_ref(),
            Rung::HashCompare | Rung::Full => None,
        };
        let map = list.map(|list| list.whole(geometry));
        let (taken, parent) = match continued {
            Ok((taken, parent)) => (Some(taken), Some(parent)),
            Err(_) => (None, None),
        };
        let parent_size = parent.as_ref().map(|parent| parent.image.size);
        let intake = Intake::new(decision.rung, geometry.size, data, parent_size, map.as_ref());
        let base = match (decision.rung, taken) {
            (Rung::Delta, Some(taken)) => taken,
            _ => BlockAddressTable::filled(blockio::CHUNK_SIZE, count, &zero),
        };
        let hot = hot_areas(device, &intake, found.walk)?;
        let Sample { chunks, walk } = audit::sample(&intake.unread, &intake.read, &hot, changes.audit, found.walk);
        let mut plan = Self {
            decision,
            zero,
            base,
            intake,
            sample: chunks,
            audited: 0,
            mismatches: Vec::new(),
            false_holes: Vec::new(),
            parent,
            origin: list.map(|list| list.origin),
            walk,
            doubt: found.doubt.filter(|_| !changes.trust_source),
        };
        plan.settle_holes(map.as_ref());
        Ok(plan)
    }

    /// Holes are zero whatever the parent has there. Where the list calls them unchanged, it is wrong.
    fn settle_holes(&mut self, list: Option<&BlockMap>) {
        for chunk in self.intake.holes.iter() {
            let at = index(chunk);
            if self.base.hash(at) != self.zero.hash() {
                self.base.set_content(at, &self.zero);
                if list.is_some_and(|list| !list.get(chunk)) {
                    self.false_holes.push(chunk);
                }
            }
        }
    }

    /// # Errors
    /// When the backup rests on less than `require`.
    pub(super) fn check_rung(&self, require: Rung) -> Result<()> {
        if self.decision.rung <= require {
            return Ok(());
        }
        Err(JobError::Usage(format!(
            "the backup would be {} and {require} is required ({})",
            self.decision.rung,
            self.decision.reason()
        )))
    }

    /// Says in the log what the backup rests on.
    pub(super) fn tell(&self) {
        info!(rung = %self.decision.rung, reason = self.decision.reason(), read_chunks = self.intake.read.count(), unread_chunks = self.intake.unread.count(), "what the backup rests on");
    }

    /// The snapshot it continues.
    pub(super) fn parent_id(&self) -> Option<ManifestId> {
        self.parent.as_ref().map(|parent| parent.id)
    }

    /// Who made the list it rests on.
    pub(super) fn origin(&self) -> Option<&'static str> {
        self.origin
    }

    /// Chunks that are taken over from the parent without being read.
    pub(super) fn taken_over(&self) -> impl Iterator<Item = usize> + '_ {
        let is_delta = self.decision.rung == Rung::Delta;
        let unread = is_delta.then(|| self.intake.unread.iter().map(index));
        unread.into_iter().flatten()
    }

    /// Chunks read in the first round.
    pub(super) fn first_round(&self) -> BlockMap {
        let mut chunks = self.intake.read.clone();
        chunks.union(&self.sample);
        chunks
    }

    /// Reads `pieces` that were to be taken over: the repository does not have them any more. Zero ones need no reading. Returns them.
    pub(super) fn read_again(&mut self, pieces: Vec<usize>) -> BlockMap {
        let mut again = BlockMap::new(self.intake.read.len());
        for piece in pieces {
            if self.base.hash(piece) != self.zero.hash() {
                again.set(ChunkIndex::new(piece as u64));
            }
        }
        if !again.is_empty() {
            warn!(
                chunks = again.count(),
                "contents of the parent are gone from the repository; they are read and stored again"
            );
        }
        self.intake.read.union(&again);
        self.intake.unread.remove(&again);
        self.sample.remove(&again);
        again
    }

    /// Notes what a round that looked at `audited` found.
    pub(super) fn end_round(&mut self, audited: &BlockMap, wrong: &[ChunkIndex]) {
        self.audited += audited.count();
        self.intake.unread.remove(audited);
        if wrong.is_empty() {
            return;
        }
        self.doubt = Some(Time::now().to_string());
        for chunk in wrong.iter().take(MISMATCHES_TOLD) {
            warn!(
                offset = chunk.offset(),
                "a chunk that was called unchanged has changed; the snapshot has it as it is"
            );
        }
        self.mismatches.extend_from_slice(wrong);
    }

    /// Leaves the list: all is read. False when that was decided before.
    pub(super) fn distrust(&mut self) -> bool {
        let left = std::mem::replace(&mut self.decision.rung, Rung::HashCompare);
        if left == Rung::HashCompare {
            return false;
        }
        self.decision.steps.push(Step {
            rung: left,
            reason: Reason::AuditFailed,
        });
        warn!("the audit found the list of changes wrong in several places; the whole volume is compared");
        true
    }

    /// What the snapshot says of its making.
    pub(super) fn about<'a>(&self, options: &'a BackupOptions, start: Time) -> About<'a> {
        let parent = self.parent.as_ref();
        About {
            options,
            rung: self.decision.rung,
            codes: self.decision.codes(),
            parent: parent.map(|parent| parent.id),
            parent_list: parent.and_then(|parent| parent.image.list.clone()),
            walk: self.walk,
            doubt: self.doubt.clone(),
            start,
        }
    }
}

/// Chunks of a failed audit that are named in the log, each; the report has them all.
const MISMATCHES_TOLD: usize = 10;

fn find_parent(repository: &Repository, options: &BackupOptions) -> Result<Found> {
    let changes = &options.changes;
    if changes.changed.is_some() {
        repository.refresh()?; // what is taken over is looked up in an index as fresh as can be
    }
    Parent::find(
        repository,
        &Wanted {
            choice: &changes.parent,
            source: &options.source,
            volume_id: options.volume_id.as_deref(),
            base: changes.base.as_deref(),
            has_list: changes.changed.is_some(),
        },
    )
}

/// Whether a list can be used for a device of this geometry. One of a larger volume is of another volume, or of one that was cut
/// since; one of a smaller says nothing of the rest, which is read.
fn usable(list: Option<&Listed>, geometry: Geometry) -> std::result::Result<(), Reason> {
    match list {
        None => Err(Reason::NoList),
        Some(list) if list.volume_size > geometry.size => Err(Reason::ListUnfit(format!(
            "it is of a volume of {} bytes, the source has {}",
            list.volume_size, geometry.size
        ))),
        Some(list) if list.map.len() != geometry.chunks() => Err(Reason::ListUnfit("it is of another source".into())),
        Some(_) => Ok(()),
    }
}

impl Listed {
    /// The map with everything past the list's volume: nobody said anything of that.
    fn whole(&self, geometry: Geometry) -> BlockMap {
        let mut map = self.map.clone();
        if self.volume_size < geometry.size {
            let first = self.volume_size / blockio::CHUNK_SIZE;
            (first..geometry.chunks()).for_each(|at| map.set(ChunkIndex::new(at)));
        }
        map
    }
}

/// The chunks that may hold data: all of a device; of a file what SEEK_DATA tells.
fn chunks_with_data(device: &Device) -> Result<BlockMap> {
    let geometry = device.geometry();
    let mut map = BlockMap::new(geometry.chunks());
    for extent in device.allocated_extents(geometry.extent())? {
        map.set_extent(extent).map_err(|e| JobError::Panic(e.to_string()))?;
    }
    Ok(map)
}

/// Metadata of the file system on the device, where something is to be audited.
fn hot_areas(device: &Device, intake: &Intake, walk: Walk) -> Result<Vec<ChunkIndex>> {
    if intake.unread.is_empty() {
        return Ok(Vec::new());
    }
    let mut head = vec![0; areas::HEAD_LEN];
    device.read_at(0, &mut head)?;
    Ok(areas::areas(&head, device.geometry().size, walk.turn()))
}

/// What a backup would do.
#[derive(Clone, Debug)]
pub struct Outlook {
    /// What it would rest on.
    pub decision: Decision,
    /// The snapshot it would continue.
    pub parent: Option<ManifestId>,
    /// Bytes of the volume.
    pub source_size: u64,
    /// Bytes it would read, the audit included.
    pub read_bytes: u64,
    /// Of these, for the audit.
    pub audit_bytes: u64,
    /// Bytes it would take over unread.
    pub unread_bytes: u64,
    /// Bytes known to be zero without reading.
    pub zero_bytes: u64,
}

/// What [`super::backup`] would do, as far as can be told without reading the volume. Stores nothing.
///
/// # Errors
/// As the backup itself before it reads.
pub fn outlook(repository: &Repository, device: &Device, options: &BackupOptions) -> Result<Outlook> {
    let mut plan = Plan::make(repository, device, options)?;
    plan.check_rung(options.changes.require)?;
    let dead: Vec<usize> = (plan.taken_over())
        .filter(|at| repository.deleted_at(&plan.base.content(*at)) != Some(None))
        .collect();
    plan.read_again(dead);
    let bytes = |map: &BlockMap| -> u64 {
        let geometry = device.geometry();
        map.iter().map(|chunk| geometry.chunk_extent(chunk).len).sum()
    };
    let audit_bytes = bytes(&plan.sample);
    Ok(Outlook {
        parent: plan.parent_id(),
        source_size: device.geometry().size,
        read_bytes: bytes(&plan.intake.read) + audit_bytes,
        audit_bytes,
        unread_bytes: bytes(&plan.intake.unread) - audit_bytes,
        zero_bytes: bytes(&plan.intake.holes),
        decision: plan.decision,
    })
}
