//! What is wrong, before it is known whom it hurts.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;

use super::DAMAGE_MAX;
use crate::error::RepoError;
use crate::id::{BlobId, ContentId, ObjectId};

/// What kind of thing is damaged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DamageKind {
    /// A pack is not in the storage.
    PackMissing,
    /// A pack ends before contents in it do.
    PackShort,
    /// A content is not in the index.
    ContentMissing,
    /// A content does not decrypt, decompress or hash to what its id says.
    ContentUnreadable,
    /// A content has another length than a list gives it.
    ContentLength,
    /// A list is not the JSON it should be, or contradicts itself.
    List,
    /// A folder cannot be read.
    Directory,
    /// A manifest of a snapshot, or a content of manifests, cannot be read.
    Manifest,
}

impl DamageKind {
    /// The word for it in machine-readable output.
    pub fn name(self) -> &'static str {
        match self {
            Self::PackMissing => "pack-missing",
            Self::PackShort => "pack-short",
            Self::ContentMissing => "content-missing",
            Self::ContentUnreadable => "content-unreadable",
            Self::ContentLength => "content-length",
            Self::List => "list",
            Self::Directory => "directory",
            Self::Manifest => "manifest",
        }
    }
}

/// What is damaged. Each is reported once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Pack(BlobId),
    Content(ContentId),
    /// Uses of a content under a wrong length.
    Length(ContentId),
    Object(ObjectId),
}

/// One damage.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub(super) kind: DamageKind,
    pub(super) what: String,
    /// Where the content is, as the index says.
    pub(super) place: Option<(BlobId, Range<u64>)>,
}

/// All of them, by what is damaged.
#[derive(Default)]
pub(super) struct Findings(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    map: HashMap<Key, Finding>,
    /// Found and not kept.
    dropped: u64,
}

impl Findings {
    pub(super) fn add(&self, key: Key, finding: impl FnOnce() -> Finding) {
        let mut inner = self.0.lock().expect("no panic while held");
        if inner.map.contains_key(&key) {
            return;
        }
        match inner.map.len() < DAMAGE_MAX {
            true => drop(inner.map.insert(key, finding())),
            false => inner.dropped += 1,
        }
    }

    pub(super) fn remove(&self, key: &Key) {
        self.0.lock().expect("no panic while held").map.remove(key);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().expect("no panic while held").map.is_empty()
    }

    /// Those whose key is `wanted`.
    pub(super) fn select<T>(&self, wanted: impl FnMut((&Key, &Finding)) -> Option<T>) -> Vec<T> {
        self.0
            .lock()
            .expect("no panic while held")
            .map
            .iter()
            .filter_map(wanted)
            .collect()
    }

    /// Everything, and how many more there were.
    pub(super) fn into_parts(self) -> (HashMap<Key, Finding>, u64) {
        let inner = self.0.into_inner().expect("no panic while held");
        (inner.map, inner.dropped)
    }
}

/// An error with its causes.
pub(super) fn full(e: &RepoError) -> String {
    let mut text = e.to_string();
    let mut source = std::error::Error::source(e);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
