//! What is to be fetched, and in which order.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use repo::BlobId;
use repo::object::TableEntry;

use super::flight::{Failure, Flight, Key};

/// The contents that are wanted, until they are had.
#[derive(Default)]
pub(super) struct Queue {
    /// Under way or about to be.
    pub(super) flights: HashMap<Key, Arc<Flight>>,
    /// Somebody waits for these.
    pub(super) demanded: VecDeque<Task>,
    /// Somebody will.
    pub(super) ahead: VecDeque<Task>,
    /// Work that can wait for both; one thread is for it all the same.
    pub(super) background: VecDeque<Task>,
    /// Threads that are at tasks of `background`.
    pub(super) background_threads: usize,
    pub(super) is_closed: bool,
}

/// A content to fetch. Its flight lands when this is dropped, if nothing else made it.
pub(super) struct Task {
    pub(super) piece: TableEntry,
    /// Where it lies as far as is known, so that tasks of one pack are taken together.
    pub(super) pack: Option<BlobId>,
    pub(super) rank: Rank,
    pub(super) flight: Arc<Flight>,
}

/// Whose turn it is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rank {
    Demanded,
    Ahead,
    Background,
}

impl Queue {
    /// The tasks of `rank`, the next one first.
    pub(super) fn of(&mut self, rank: Rank) -> &mut VecDeque<Task> {
        match rank {
            Rank::Demanded => &mut self.demanded,
            Rank::Ahead => &mut self.ahead,
            Rank::Background => &mut self.background,
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.flight.land(Err(Failure::passing("the fetch was given up")));
    }
}

/// Takes up to `room` tasks for which `is_wanted` holds out of `tasks`, in order.
pub(super) fn extract(tasks: &mut VecDeque<Task>, room: usize, is_wanted: impl Fn(&Task) -> bool) -> Vec<Task> {
    let mut taken = Vec::new();
    let mut at = 0;
    while at < tasks.len() && taken.len() < room {
        match is_wanted(&tasks[at]) {
            true => taken.extend(tasks.remove(at)),
            false => at += 1,
        }
    }
    taken
}
