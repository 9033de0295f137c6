//! Blob storage: a flat namespace of named, whole blobs.
//!
//! [`BlobStore`] is synchronous: movers are plain threads, and a store that talks to a network keeps its own runtime
//! behind this face. Many calls may run at once.

mod fault;
mod fs;
mod mem;
mod shards;

use std::ops::Range;
use std::time::SystemTime;

pub use fault::{Fault, FaultRule, FaultStore, StoreOp};
pub use fs::FsStore;
pub use mem::MemStore;

use crate::error::Result;
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

/// Where a repository keeps its blobs.
pub trait BlobStore: Send + Sync {
    /// The place, for messages: a path or URL without secrets.
    fn place(&self) -> String;

    /// Stores `bytes` under `id`, replacing what was there: readers see the old blob or the new one, whole.
    /// It survives a power cut once a later [`sync`](Self::sync) has returned.
    fn put(&self, id: &BlobId, bytes: &[u8]) -> Result<()>;

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
