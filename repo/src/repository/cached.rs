//! What a repository reads by way of the cache, and who reads past it.

use std::mem;
use std::sync::atomic::Ordering;

use super::Repository;
use crate::blob::READ_SLACK;
use crate::cache::{Cache, ContentCache};
use crate::content::Unsealer;
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

    /// Opens what the cache has of `piece` into `out`, which is as long as the piece. False when it has nothing, or not the piece its
    /// list describes: what `out` holds then is of no use. Pieces compressed at object level are left to
    /// [`read_piece`](Self::read_piece).
    pub fn cached_piece(&self, piece: &TableEntry, unsealer: &mut Unsealer, out: &mut [u8]) -> bool {
        let Some(cache) = self.cache().map(Cache::contents) else {
            return false;
        };
        if piece.compressed || !cache.keeps(&piece.content) {
            return false;
        }
        let Some(entry) = self.lookup(&piece.content) else {
            return false;
        };
        if entry.original_len as usize != out.len() {
            return false;
        }
        let mut sealed = mem::take(&mut unsealer.sealed);
        let open = |sealed: &[u8]| self.contents.unseal_into(&entry, sealed, unsealer, out);
        let opened = self.cached_entry(cache, &entry, &mut sealed, open);
        unsealer.sealed = sealed;
        opened.is_some()
    }

    /// What `open` makes of the sealed bytes that the cache has of `entry`. They are read to `sealed`.
    fn cached_entry<T>(
        &self,
        cache: ContentCache<'_>,
        entry: &IndexEntry,
        sealed: &mut Vec<u8>,
        open: impl FnOnce(&[u8]) -> Result<T>,
    ) -> Option<T> {
        let kept = cache.get(&entry.content, sealed)?;
        // Error correction would mend a damaged file, and blame the storage for it.
        if self.contents.corrects_errors() && !kept.is_whole(sealed) {
            return None;
        }
        let opened = open(sealed);
        if opened.is_err() {
            kept.give_up(sealed);
        }
        opened.ok()
    }

    /// The plaintext of the content of `entry`.
    pub(super) fn read_entry(&self, entry: &IndexEntry) -> Result<Vec<u8>> {
        let cache = self.cache().map(Cache::contents);
        let open = |sealed: &[u8]| self.contents.unseal(entry, sealed);
        let cached = cache.and_then(|cache| self.cached_entry(cache, entry, &mut Vec::new(), open));
        if let Some(plaintext) = cached {
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
