//! Blob storage: a flat namespace of named, whole blobs.
//!
//! [`BlobStore`] is synchronous: movers are plain threads, and a store that talks to a network keeps its own runtime
//! behind this face. Many calls may run at once.

mod adaptive;
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
mod bridge;
mod clock;
#[cfg(any(feature = "gcs", feature = "azure"))]
mod cloud;
mod deadline;
mod fault;
mod fs;
mod limit;
mod location;
mod locked;
#[cfg(all(test, any(feature = "s3", feature = "gcs", feature = "azure")))]
mod loopback;
mod mem;
mod meter;
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
mod network;
mod retry;
#[cfg(feature = "s3")]
pub mod s3;
mod shards;

use std::ops::Range;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

pub use adaptive::AdaptiveStore;
pub use deadline::Deadlines;
pub use fault::{Fault, FaultRule, FaultStore};
pub use fs::FsStore;
pub use limit::{LimitStore, Limits, Throttle};
pub use location::{
    AzureLocation, BackupStorageLocation, Ca, ChecksumChoice, Encryption, FromBsl, GcsLocation, Location,
    ObjectStorage, S3Location, Secrets, Settings,
};
pub use locked::LockedStore;
pub use mem::MemStore;
pub use meter::{Meter, MeterStore, OperationStats, StoreOp, StoreStats};
pub use retry::{RetryBudget, RetryPolicy, RetryStore, first_wait};

use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;

/// Bytes a store may read before and after a wanted range; callers of [`BlobStore::read_range`] leave this room on both
/// sides. It is the direct-IO block of nearly every file system.
pub const READ_SLACK: usize = 4096;

/// Largest blob read whole, in bytes. Kopia's packs end at about 121 MiB and index blobs of 16,000,000 entries at 600 MiB.
pub const GET_LEN_MAX: u64 = 1 << 30;

/// What a listing says of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobMeta {
    /// Name.
    pub id: BlobId,
    /// Length in bytes.
    pub len: u64,
    /// Modification time by the clock of the storage.
    pub modified: SystemTime,
}

/// How long a blob may not be deleted or replaced, as the storage enforces it (object lock).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectLock {
    /// `GOVERNANCE`, `COMPLIANCE` (S3) or `Locked` (Google Cloud Storage, Azure): as in `kopia.blobcfg`.
    pub mode: String,
    /// From the moment of the put.
    pub period: Duration,
}

/// How a store likes to be used. Hints: nothing breaks when they are not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Habits {
    /// Bytes of one ranged read at which another byte costs as much as another request. Reads are merged up to this.
    pub read_len: u64,
    /// Bytes between two wanted ranges that cost less to read than a second request does.
    pub read_gap: u64,
    /// Ranged reads in flight that keep the storage busy.
    pub reads: usize,
    /// Puts in flight that keep the storage busy.
    pub puts: usize,
}

impl Habits {
    /// A local directory: 4 reads of 8 MiB reach the rate of the devices measured, and a device delivers 256 KiB in the
    /// time of one request. Each worker has one pack on its way.
    pub const LOCAL: Self = Self {
        read_len: 8 << 20,
        read_gap: 256 << 10,
        reads: 4,
        puts: 0,
    };

    /// A service behind a network: a request costs a round trip and money, so a pack is read at one go; 8 in flight fill a
    /// link of 1 Gbit/s behind 1 s of latency. 1 MiB is one chunk between two others.
    pub const REMOTE: Self = Self {
        read_len: 24 << 20,
        read_gap: 1 << 20,
        reads: 8,
        puts: 8,
    };
}

/// Where a repository keeps its blobs.
pub trait BlobStore: Send + Sync {
    /// The place, for messages: a path or URL without secrets.
    fn place(&self) -> String;

    /// Stores `bytes` under `id`, replacing what was there: readers see the old blob or the new one, whole.
    /// It survives a power cut once a later [`sync`](Self::sync) has returned.
    fn put(&self, id: &BlobId, bytes: &[u8]) -> Result<()>;

    /// [`put`](Self::put) of bytes that are shared, so that sending them, and sending them again, copies nothing; under
    /// `lock` when one is given. A store that cannot lock refuses: a blob that is thought to be locked must be.
    fn put_shared(&self, id: &BlobId, bytes: Bytes, lock: Option<&ObjectLock>) -> Result<()> {
        match lock {
            None => self.put(id, &bytes),
            Some(_) => Err(no_locks(&self.place())),
        }
    }

    /// Locks a blob that is there for `lock.period` from now.
    fn extend_lock(&self, _id: &BlobId, _lock: &ObjectLock) -> Result<()> {
        Err(no_locks(&self.place()))
    }

    /// How this store likes to be used.
    fn habits(&self) -> Habits {
        Habits::LOCAL
    }

    /// The whole blob, at most [`GET_LEN_MAX`] bytes.
    fn get(&self, id: &BlobId) -> Result<Vec<u8>>;

    /// Reads bytes `range` of a blob into `buf` and returns where in `buf` they are. Up to [`READ_SLACK`] bytes before
    /// and after them may be overwritten, so `buf` holds at least `range` and twice that. A blob that ends before
    /// `range` does is [`Corrupt`](crate::Kind::Corrupt).
    fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> Result<Range<usize>>;

    /// Length and time of a blob.
    fn meta(&self, id: &BlobId) -> Result<BlobMeta>;

    /// Every blob whose name begins with `prefix`, in any order.
    fn list(&self, prefix: &str) -> Result<Vec<BlobMeta>>;

    /// Deletes a blob. One that is missing is already deleted.
    fn delete(&self, id: &BlobId) -> Result<()>;

    /// Returns when every put and delete that returned before is durable.
    fn sync(&self) -> Result<()>;
}

/// The refusal of a store without object locks.
fn no_locks(place: &str) -> RepoError {
    let what = format!(
        "the repository asks for object locks, which {place} cannot set; use a bucket with object lock enabled, or take the retention out of the repository's parameters"
    );
    RepoError::new(Kind::Unsupported, what)
}
