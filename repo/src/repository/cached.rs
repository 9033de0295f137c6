//! What a repository reads by way of the cache, and who reads past it.

use std::sync::atomic::Ordering;

use super::Repository;
use crate::blob::READ_SLACK;
use crate::cache::{Cache, ContentCache};
use crate::error::Result;
use crate::index::IndexEntry;
use crate::object::TableEntry;
use crate::view::Origin;

impl Repository {
    pub(super) fn origin<'a>(&'a self, cache: Option<&'a Cache>) -> Origin<'a> {
        Origin {
            store: &*self.store,
            contents: &self.contents,
            epochs: self.format.has_epochs.then(|| self.epoch_parameters()),
            cache,
        }
    }

    /// The cache on the local disk, unless there is none or it is passed by.
    pub fn cache(&self) -> Option<&Cache> {
        let is_used = !self.is_cache_bypassed.load(Ordering::Relaxed);
        self.cache.as_ref().filter(|_| is_used)
    }

    /// Reads past the cache from here on, and reads the index again when it came from there: for those who look for damage, or
    /// rely on the index to delete.
    pub fn bypass_cache(&self) -> Result<()> {
        self.is_cache_bypassed.store(true, Ordering::Relaxed);
        let is_from_cache = self.view().is_from_cache;
        if is_from_cache { self.reload() } else { Ok(()) }
    }

    /// What the cache has of `piece`, opened; nothing when that is not the piece its list describes. Pieces compressed at object
    /// level are left to [`read_piece`](Self::read_piece).
    pub fn cached_piece(&self, piece: &TableEntry) -> Option<Vec<u8>> {
        let cache = self.cache().map(Cache::contents)?;
        if piece.compressed || !cache.keeps(&piece.content) {
            return None;
        }
        let plaintext = self.cached_entry(cache, &self.lookup(&piece.content)?)?;
        (plaintext.len() as u64 == piece.extent.len).then_some(plaintext)
    }

    fn cached_entry(&self, cache: ContentCache<'_>, entry: &IndexEntry) -> Option<Vec<u8>> {
        let sealed = cache.get(&entry.content)?;
        let opened = self.contents.unseal(entry, &sealed);
        if opened.is_err() {
            // Stored anew since, in another form.
            cache.forget(&entry.content);
        }
        opened.ok()
    }

    /// The plaintext of the content of `entry`.
    pub(super) fn read_entry(&self, entry: &IndexEntry) -> Result<Vec<u8>> {
        let cache = self.cache().map(Cache::contents);
        if let Some(plaintext) = cache.and_then(|cache| self.cached_entry(cache, entry)) {
            return Ok(plaintext);
        }
        let start = u64::from(entry.offset);
        let range = start..start + u64::from(entry.packed_len);
        let mut buf = vec![0; entry.packed_len as usize + 2 * READ_SLACK];
        let at = self.store.read_range(&entry.pack, range, &mut buf)?;
        let plaintext = self.contents.unseal(entry, &buf[at.clone()])?;
        if let Some(cache) = cache {
            cache.put(&entry.content, &buf[at]);
        }
        Ok(plaintext)
    }
}
