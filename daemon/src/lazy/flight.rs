//! A content under way.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use repo::ContentId;
use repo::object::TableEntry;

use super::memory::Plaintext;

/// What is fetched: a content, and whether its bytes are a compressed piece.
pub(super) type Key = (ContentId, bool);

/// The key of what holds `piece`.
pub(super) fn key(piece: &TableEntry) -> Key {
    (piece.content, piece.compressed)
}

/// How a fetch ended: bytes, or a sentence for the log.
pub(super) type Outcome = Result<Plaintext, Arc<str>>;

/// One fetch, and everybody who waits for it.
#[derive(Default)]
pub(super) struct Flight {
    outcome: Mutex<Option<Outcome>>,
    landed: Condvar,
}

impl Flight {
    /// One that has landed.
    pub(super) fn of(plaintext: Plaintext) -> Self {
        Self {
            outcome: Mutex::new(Some(Ok(plaintext))),
            landed: Condvar::new(),
        }
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
        let deadline = Instant::now() + limit;
        let mut slot = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(outcome) = &*slot {
                return outcome.clone().map_err(|why| io::Error::other(why.to_string()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let why = format!("no answer from the repository within {} s", limit.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            let waited = self.landed.wait_timeout(slot, left);
            slot = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
