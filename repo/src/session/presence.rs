//! "Already stored" is a claim: the packs of contents that a session reuses are looked for before it relies on them.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::blob::BlobStore;
use crate::error::Result;
use crate::id::{BlobId, ContentId};
use crate::index::IndexEntry;

/// Looks for the packs of reused contents in a listing made when the first is reused.
pub(super) struct Presence {
    /// Share of the contents that are looked for, in percent.
    percent: u8,
    /// Makes the share another one in every session, so that many sessions look at all.
    salt: u16,
    packs: Mutex<Packs>,
}

#[derive(Default)]
struct Packs {
    /// Length of each pack listed, by name.
    listed: HashMap<BlobId, u64>,
    /// First letters of names listed so far.
    letters: Vec<u8>,
    /// What asking for packs that were not listed gave: their length, or that they are gone.
    asked: HashMap<BlobId, Option<u64>>,
}

impl Packs {
    /// Lists the packs whose names begin as `name` does, once.
    fn list(&mut self, store: &dyn BlobStore, name: &str) -> Result<()> {
        let letter = name.as_bytes()[0];
        if !self.letters.contains(&letter) {
            let prefix = char::from(letter).to_string();
            let listing = store.list(&prefix)?;
            self.listed.extend(listing.into_iter().map(|blob| (blob.id, blob.len)));
            self.letters.push(letter);
        }
        Ok(())
    }
}

impl Presence {
    /// Looks for `percent` of the contents reused.
    pub(super) fn new(percent: u8, salt: u16) -> Self {
        Self {
            percent: percent.min(100),
            salt,
            packs: Mutex::default(),
        }
    }

    /// `id` is one of the share.
    pub(super) fn covers(&self, id: &ContentId) -> bool {
        let hash = id.hash();
        let number = u16::from_be_bytes([hash[0], hash.get(1).copied().unwrap_or(0)]) ^ self.salt;
        u32::from(number) * 100 < u32::from(self.percent) << 16
    }

    /// Nothing is looked for.
    pub(super) fn is_off(&self) -> bool {
        self.percent == 0
    }

    /// All of `packs` are in the listing; when not, each content has to be looked at.
    pub(super) fn lists_all<'n>(
        &self,
        store: &dyn BlobStore,
        mut names: impl Iterator<Item = &'n str>,
    ) -> Result<bool> {
        let mut packs = self.packs.lock().expect("no panic while held");
        for name in &mut names {
            packs.list(store, name)?;
            if !packs.listed.contains_key(name) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The pack of `entry` is there, and long enough.
    pub(super) fn holds(&self, store: &dyn BlobStore, entry: &IndexEntry) -> Result<bool> {
        let end = u64::from(entry.offset) + u64::from(entry.packed_len);
        let mut packs = self.packs.lock().expect("no panic while held");
        packs.list(store, entry.pack.as_str())?;
        if let Some(len) = packs.listed.get(&entry.pack) {
            return Ok(*len >= end);
        }
        if let Some(len) = packs.asked.get(&entry.pack) {
            return Ok(len.is_some_and(|len| len >= end));
        }
        // It may be newer than the listing.
        let len = match store.meta(&entry.pack) {
            Ok(meta) => Some(meta.len),
            Err(e) if e.is_not_found() => None,
            Err(e) => return Err(e),
        };
        packs.asked.insert(entry.pack.clone(), len);
        Ok(len.is_some_and(|len| len >= end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u16) -> ContentId {
        let mut hash = [7; 16];
        hash[..2].copy_from_slice(&n.to_be_bytes());
        ContentId::new(None, &hash).expect("valid")
    }

    #[test]
    fn the_share_is_what_was_asked_for() {
        let share = |percent| {
            let presence = Presence::new(percent, 0xA5A5);
            (0..=u16::MAX).filter(|n| presence.covers(&id(*n))).count()
        };
        assert_eq!(share(0), 0);
        assert_eq!(share(100), 65_536);
        assert!((650..=660).contains(&share(1)), "{}", share(1));
    }
}
