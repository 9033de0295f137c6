//! What a backup did.

use blockio::{ChunkIndex, EngineChoice};
use repo::session::WriteTotals;
use repo::time::Time;
use repo::{ManifestId, ObjectId};

use crate::mover::ladder::Decision;

/// What a backup did. All of it is durable.
#[derive(Clone, Debug)]
pub struct BackupReport {
    /// The snapshot.
    pub snapshot: ManifestId,
    /// The image's object.
    pub object: ObjectId,
    /// The snapshot it continues.
    pub parent: Option<ManifestId>,
    /// What it rests on, and what it does not and why.
    pub decision: Decision,
    /// Who made the list it rests on.
    pub origin: Option<&'static str>,
    /// Bytes of the volume.
    pub source_size: u64,
    /// Bytes read from the device.
    pub read_bytes: u64,
    /// Bytes found zero, or known to be.
    pub zero_bytes: u64,
    /// Bytes the repository had already, read or not.
    pub known_bytes: u64,
    /// Bytes new to the repository.
    pub new_bytes: u64,
    /// Bytes that an interrupted run had read before.
    pub resumed_bytes: u64,
    /// Why an interrupted run was not continued, where there was one.
    pub resume_refused: Option<&'static str>,
    /// Chunks that were called unchanged and read all the same.
    pub audited_chunks: u64,
    /// Those of them that had changed. The snapshot has them as they are.
    pub mismatches: Vec<ChunkIndex>,
    /// What the session stored and looked for.
    pub totals: WriteTotals,
    /// How the device was read.
    pub engine: EngineChoice,
    /// Kernel that hashed.
    pub hash_kernel: &'static str,
    /// When reading began.
    pub start: Time,
    /// When all was durable.
    pub end: Time,
    /// Wall time in milliseconds.
    pub duration_ms: u64,
}
