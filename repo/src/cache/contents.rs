//! Contents in the cache, sealed as their packs have them.
//!
//! Sealed, because then the cache holds no plaintext, nothing is encrypted twice, and reading a content takes the same steps
//! wherever its bytes come from: opening it authenticates it once more as the content of its name. The code of the file is
//! checked only for one that does not open, to tell damage from another form, and where error correction would mend it.

use std::sync::atomic::Ordering;

use super::folder::Opened;
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

    /// The sealed bytes kept of `id`, in place of what `sealed` has. What does not open is to be given up.
    pub(crate) fn get(&self, id: &ContentId, sealed: &mut Vec<u8>) -> Option<Kept<'a>> {
        if !self.keeps(id) {
            return None;
        }
        let folder = &self.cache.folder;
        let mut opened = folder.open_file(&name(id));
        let read = opened.as_mut().and_then(|file| folder.read_unchecked(file, sealed));
        let counter = match read {
            Some(()) => &self.cache.hits.contents,
            None => &self.cache.hits.misses,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        read?;
        opened.map(|file| Kept {
            cache: self.cache,
            file,
        })
    }

    /// Keeps the sealed bytes of `id`, if its kind is kept. To be called when they were found to be good.
    pub fn put(&self, id: &ContentId, sealed: &[u8]) {
        // One content that takes a large share of the cache would drive everything else out.
        if self.keeps(id) && sealed.len() as u64 <= self.cache.limit / 16 {
            self.cache.folder.write(&name(id), &[], sealed);
        }
    }
}

/// A file that sealed bytes were read from.
pub(crate) struct Kept<'a> {
    cache: &'a Cache,
    file: Opened,
}

impl Kept<'_> {
    /// `sealed` is what was stored in the file. One that is damaged is removed, and told of.
    pub(crate) fn is_whole(&self, sealed: &[u8]) -> bool {
        self.cache.folder.check_body(&self.file, sealed)
    }

    /// Removes the file, whose bytes `sealed` did not open: it is damaged, or it is whole and does not fit the index, as after another
    /// client stored the content anew, compressed. Only damage is told of.
    pub(crate) fn give_up(self, sealed: &[u8]) {
        if self.is_whole(sealed) {
            self.cache.folder.remove(&self.file.name);
        }
    }
}

/// File of a content; 256 folders keep each of them short.
fn name(id: &ContentId) -> String {
    let text = id.to_string();
    let shard = &text[text.len() - 2..];
    format!("{CONTENTS}/{shard}/{text}")
}
