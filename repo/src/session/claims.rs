//! Which contents this session stores, so that each is stored once.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tracing::warn;

use super::presence::Presence;
use crate::error::Result;
use crate::id::ContentId;
use crate::repository::Repository;

/// Lost contents that are named in the log, each; the rest are only counted.
const WARNINGS_MAX: u64 = 10;

/// Contents taken on by this session.
pub(super) struct Claims {
    taken: Mutex<HashSet<ContentId>>,
    presence: Presence,
    /// Contents known to be damaged.
    damaged: Arc<HashSet<ContentId>>,
    looked_for: AtomicU64,
    healed: AtomicU64,
}

/// Who stores a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Nobody: the repository has it, or this session took it on before.
    Known,
    /// The caller. Its entry needs at least this time (unix seconds), so that it wins over the one there is.
    Yours {
        /// See there.
        floor: u64,
    },
}

impl Claims {
    pub(super) fn new(presence: Presence, damaged: Arc<HashSet<ContentId>>) -> Self {
        Self {
            taken: Mutex::default(),
            presence,
            damaged,
            looked_for: AtomicU64::new(0),
            healed: AtomicU64::new(0),
        }
    }

    /// Whether the caller is to store `id`: neither the repository has it alive and well, nor did this session take it on.
    pub(super) fn claim(&self, repository: &Repository, id: &ContentId) -> Result<Claim> {
        let floor = match repository.deleted_at(id) {
            None => 0,
            Some(Some(deleted)) => deleted.saturating_add(1),
            Some(None) => match self.lost(repository, id)? {
                None => return Ok(Claim::Known),
                Some(floor) => floor,
            },
        };
        Ok(match self.taken.lock().expect("no panic while held").insert(*id) {
            true => Claim::Yours { floor },
            false => Claim::Known,
        })
    }

    /// Whether the packs of all that the index knows are there, as far as that can be told at once; then a content that is alive is
    /// there as well. False says nothing of a single one.
    pub(super) fn all_packs_stand(&self, repository: &Repository) -> Result<bool> {
        if !self.damaged.is_empty() {
            return Ok(false);
        }
        if self.presence.is_off() {
            return Ok(true);
        }
        let (index, _) = repository.index();
        for table in index.all_tables() {
            let Some(names) = table.pack_names() else {
                return Ok(false);
            };
            if !self.presence.lists_all(&**repository.store(), names)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether `id` can be relied on without its bytes at hand: the index has it alive, and it is in its pack as far as one
    /// looks, or this session took it on. Takes nothing on.
    pub(super) fn stands(&self, repository: &Repository, id: &ContentId) -> Result<bool> {
        if self.taken.lock().expect("no panic while held").contains(id) {
            return Ok(true);
        }
        if repository.deleted_at(id) != Some(None) || self.damaged.contains(id) {
            return Ok(false);
        }
        if !self.presence.covers(id) {
            return Ok(true);
        }
        let Some(entry) = repository.lookup(id) else {
            return Ok(false);
        };
        let holds = self.presence.holds(&**repository.store(), &entry)?;
        // One that is lost is counted when it is claimed to be stored again.
        self.looked_for.fetch_add(u64::from(holds), Ordering::Relaxed);
        Ok(holds)
    }

    /// For a content that the index has alive: nothing when it is well as far as one looks, else the least time of an entry
    /// that replaces it.
    fn lost(&self, repository: &Repository, id: &ContentId) -> Result<Option<u64>> {
        let damaged = self.damaged.contains(id);
        if !damaged && !self.presence.covers(id) {
            return Ok(None);
        }
        if self.taken.lock().expect("no panic while held").contains(id) {
            return Ok(None); // our own
        }
        let Some(entry) = repository.lookup(id) else {
            return Ok(Some(0));
        };
        self.looked_for.fetch_add(1, Ordering::Relaxed);
        if !damaged && self.presence.holds(&**repository.store(), &entry)? {
            return Ok(None);
        }
        let healed = self.healed.fetch_add(1, Ordering::Relaxed) + 1;
        if healed <= WARNINGS_MAX {
            let why = if damaged {
                "is known to be damaged"
            } else {
                "is not in its pack any more"
            };
            warn!(content = %id, pack = %entry.pack, "a content that the index promises {why}; it is stored again");
        }
        Ok(Some(entry.time.saturating_add(1)))
    }

    /// Reused contents whose packs were looked for, and those that were stored again because they were lost or damaged.
    pub(super) fn counts(&self) -> (u64, u64) {
        (
            self.looked_for.load(Ordering::Relaxed),
            self.healed.load(Ordering::Relaxed),
        )
    }
}
