//! A cache on the local disk: what was fetched, decrypted and merged once need not be so again.
//!
//! | kind     | what                                                       | how it is kept                                       |
//! |----------|------------------------------------------------------------|------------------------------------------------------|
//! | tables   | folded index blobs, with the names of the blobs            | in the clear: names, places and lengths, no data     |
//! | contents | manifests, folders, lists; by policy other contents, too   | sealed as in their pack: no plaintext on the disk    |
//!
//! Only what cannot change is kept: an index blob and a content are named by the hash of what they say. Which of them are in
//! force is never taken from here; it is listed in the storage each time. So the cache can be old or empty, and never wrong
//! about the repository's state. What it hides is that the storage has lost something since: whoever looks for damage, or
//! relies on the index to delete, reads past it ([`Repository::bypass_cache`](crate::Repository::bypass_cache)).
//!
//! Every file carries a code under a key of the repository's own and its name (`frame`). What does not pass is removed and
//! counted, and the storage is asked. Files are written beside and renamed, so that processes share a cache without locks, and
//! it can be cleared while it is in use. What was used longest ago goes when the limit is reached (`sweep`).
//!
//! ```text
//! ROOT/CACHEDIR.TAG                      backups leave the folder out
//! ROOT/written                           a byte for each MiB written since the last sweep
//! ROOT/UNIQUE-ID/tables/HASH-OF-NAMES    one table each
//! ROOT/UNIQUE-ID/contents/HH/CONTENT     one content each
//! ```

mod contents;
mod folder;
pub mod frame;
mod sweep;
mod tables;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use tracing::{debug, warn};

pub use contents::ContentCache;
pub use sweep::{Amount, Usage, clear, usage};

use crate::crypto::key::hkdf32;
use crate::format::Format;
use folder::Folder;
use sweep::Ledger;

/// Folders of a repository in the cache.
const TABLES: &str = "tables";
const CONTENTS: &str = "contents";

/// What the key of the cache's codes is derived for.
const PURPOSE: &[u8] = b"blockferry local cache 1";

/// Tells programs that make backups that there is nothing to save here (bford.info/cachedir).
const TAG: &str = "CACHEDIR.TAG";
const TAG_TEXT: &str =
    "Signature: 8a477f597d28d172789f06886806bc55\n# Cache of blockferry. It can be deleted at any time.\n";

/// Bytes of the cache of all repositories together when no limit is given: the index of 10 million contents takes a sixth of
/// it, the rest holds the lists of some 25 snapshots of 1 TiB.
pub const LIMIT_DEFAULT: u64 = 2 << 30;

/// Where the cache is, and what goes into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// The folder, which is made if missing. Repositories and processes share it.
    pub folder: PathBuf,
    /// Bytes of the whole folder at most; for a moment one file more.
    pub limit: u64,
    /// Keep manifests, folders and lists.
    pub metadata: bool,
    /// Keep the other contents, pieces of volumes and files.
    pub data: bool,
}

/// The cache of one repository, as one process uses it.
pub struct Cache {
    folder: Folder,
    metadata: bool,
    data: bool,
    limit: u64,
    hits: Hits,
}

#[derive(Default)]
struct Hits {
    index_blobs: AtomicU64,
    contents: AtomicU64,
    misses: AtomicU64,
}

/// What the cache was good for, in this process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheStats {
    /// Where it is.
    pub place: String,
    /// Index blobs that were not fetched.
    pub index_blobs: u64,
    /// Contents that were not fetched.
    pub contents: u64,
    /// Contents that were not there.
    pub misses: u64,
    /// Files that were damaged, and removed.
    pub damaged: u64,
    /// Bytes added.
    pub written_bytes: u64,
}

impl Cache {
    /// The cache of the repository of `format`. When it cannot be made there is none, with a warning.
    pub(crate) fn open(options: &CacheOptions, format: &Format) -> Option<Self> {
        let path = options.folder.join(hex::encode(&format.unique_id));
        let key = hkdf32(format.master_key(), &format.unique_id, PURPOSE);
        let ledger = Ledger::new(options.folder.clone(), options.limit);
        match Folder::open(path, key, ledger) {
            Ok(folder) => {
                tag(&options.folder);
                Some(Self {
                    folder,
                    metadata: options.metadata,
                    data: options.data,
                    limit: options.limit,
                    hits: Hits::default(),
                })
            }
            Err(e) => {
                warn!(folder = %options.folder.display(), error = %e, "no cache; going on without");
                None
            }
        }
    }

    /// Contents in the cache.
    pub fn contents(&self) -> ContentCache<'_> {
        ContentCache::new(self)
    }

    /// What it was good for so far.
    pub fn stats(&self) -> CacheStats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            place: self.folder.path().display().to_string(),
            index_blobs: count(&self.hits.index_blobs),
            contents: count(&self.hits.contents),
            misses: count(&self.hits.misses),
            damaged: self.folder.damaged(),
            written_bytes: self.folder.written_bytes(),
        }
    }
}

/// Marks the cache as one, if nobody has.
fn tag(root: &Path) {
    let path = root.join(TAG);
    if !path.exists()
        && let Err(e) = std::fs::write(&path, TAG_TEXT)
    {
        debug!(path = %path.display(), error = %e, "the cache bears no tag");
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cache({})", self.folder.path().display())
    }
}

#[cfg(test)]
mod tests;
