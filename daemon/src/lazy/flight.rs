//! A content under way.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use repo::object::TableEntry;
use repo::{ContentId, RepoError};

use super::memory::Plaintext;
use crate::error::chain;

/// What is fetched: a content, and whether its bytes are a compressed piece.
pub(super) type Key = (ContentId, bool);

/// The key of what holds `piece`.
pub(super) fn key(piece: &TableEntry) -> Key {
    (piece.content, piece.compressed)
}

/// Why a fetch failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// A sentence for the log.
    pub(super) why: Arc<str>,
    /// What the repository has of it is damaged, or gone, as far as this fetch could tell. Else another one may succeed.
    pub(super) is_damage: bool,
}

impl Failure {
    /// One that says nothing of the repository's bytes.
    pub(super) fn passing(why: impl Into<Arc<str>>) -> Self {
        Self {
            why: why.into(),
            is_damage: false,
        }
    }

    pub(super) fn of(error: &RepoError) -> Self {
        Self {
            why: chain(error).into(),
            is_damage: error.is_damage() || error.is_not_found(),
        }
    }
}

/// How a fetch ended.
pub(super) type Outcome = Result<Plaintext, Failure>;

/// One fetch, and everybody who waits for it.
#[derive(Default)]
pub(super) struct Flight {
    outcome: Mutex<Option<Outcome>>,
    landed: Condvar,
    /// A reader of the volume waits or will: what is fetched is kept in memory.
    is_kept: AtomicBool,
}

impl Flight {
    /// One that has landed.
    pub(super) fn of(plaintext: Plaintext) -> Self {
        Self {
            outcome: Mutex::new(Some(Ok(plaintext))),
            landed: Condvar::new(),
            is_kept: AtomicBool::new(true),
        }
    }

    pub(super) fn keep(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_kept(&self) -> bool {
        self.is_kept.load(Ordering::Relaxed)
    }

    /// Tells everybody. The first outcome stands.
    pub(super) fn land(&self, outcome: Outcome) {
        let mut slot = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(outcome);
        drop(slot);
        self.landed.notify_all();
    }

    /// Waits for the outcome, for `limit` at most.
    ///
    /// # Errors
    /// `TimedOut` when there is none by then: the fetch goes on, for whoever asks next. Else what it failed with.
    pub(super) fn wait(&self, limit: Duration) -> io::Result<Plaintext> {
        match self.wait_for(limit) {
            Some(outcome) => outcome.map_err(|failure| io::Error::other(failure.why.to_string())),
            None => {
                let why = format!("no answer from the repository within {} s", limit.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            }
        }
    }

    /// The outcome, waited for for `limit` at most; `None` when there is none by then.
    pub(super) fn wait_for(&self, limit: Duration) -> Option<Outcome> {
        let deadline = Instant::now() + limit;
        let mut slot = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(outcome) = &*slot {
                return Some(outcome.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = self.landed.wait_timeout(slot, left);
            slot = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
