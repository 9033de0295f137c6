//! Which contents this session stores, so that each is stored once.

use std::collections::HashSet;
use std::sync::Mutex;

use crate::id::ContentId;
use crate::repository::Repository;

/// Contents taken on by this session.
#[derive(Default)]
pub(super) struct Claims {
    taken: Mutex<HashSet<ContentId>>,
}

impl Claims {
    /// True when the caller is to store `id`: neither the repository has it alive, nor did this session take it on.
    pub(super) fn claim(&self, repository: &Repository, id: &ContentId) -> bool {
        let alive = repository.deleted_at(id).is_some_and(|deleted| deleted.is_none());
        !alive && self.taken.lock().expect("no panic while held").insert(*id)
    }
}
