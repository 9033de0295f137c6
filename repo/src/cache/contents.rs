//! Contents in the cache, sealed as their packs have them.
//!
//! Sealed, because then the cache holds no plaintext, nothing is encrypted twice, and reading a content takes the same steps
//! wherever its bytes come from: opening it authenticates it once more as the content of its name.

use std::sync::atomic::Ordering;

use super::{CONTENTS, Cache};
use crate::id::ContentId;

/// Contents in the cache of a repository. Many threads may use it at once.
#[derive(Clone, Copy, Debug)]
pub struct ContentCache<'a> {
    cache: &'a Cache,
}

impl<'a> ContentCache<'a> {
    pub(super) fn new(cache: &'a Cache) -> Self {
        Self { cache }
    }

    /// Contents such as `id` are kept.
    pub fn keeps(&self, id: &ContentId) -> bool {
        match id.prefix() {
            Some(_) => self.cache.metadata,
            None => self.cache.data,
        }
    }

    /// The sealed bytes of `id`, as they were put.
    pub fn get(&self, id: &ContentId) -> Option<Vec<u8>> {
        if !self.keeps(id) {
            return None;
        }
        let folder = &self.cache.folder;
        let sealed = folder.open_file(&name(id)).and_then(|file| folder.read_body(file));
        let counter = match sealed {
            Some(_) => &self.cache.hits.contents,
            None => &self.cache.hits.misses,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        sealed
    }

    /// Keeps the sealed bytes of `id`, if its kind is kept. To be called when they were found to be good.
    pub fn put(&self, id: &ContentId, sealed: &[u8]) {
        // One content that takes a large share of the cache would drive everything else out.
        if self.keeps(id) && sealed.len() as u64 <= self.cache.limit / 16 {
            self.cache.folder.write(&name(id), &[], sealed);
        }
    }

    /// Removes `id`: its sealed bytes do not fit its index entry, as after another client stored it anew, compressed.
    pub fn forget(&self, id: &ContentId) {
        self.cache.folder.remove(&name(id));
    }
}

/// File of a content; 256 folders keep each of them short.
fn name(id: &ContentId) -> String {
    let text = id.to_string();
    let shard = &text[text.len() - 2..];
    format!("{CONTENTS}/{shard}/{text}")
}
