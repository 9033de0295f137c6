//! Threads of an export for requests that wait for its volume: made when needed, gone when idle.

use super::STACK;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use tracing::warn;

/// Requests of an export that wait for its volume at once. Twice what other servers have: ours wait for networks, not disks.
const WORKERS_MAX: usize = 32;

/// An idle thread is kept this long. Longer than the pauses of a client at work.
const IDLE: Duration = Duration::from_secs(10);

/// A request that waits for its volume.
pub(crate) trait Job: Send + 'static {
    /// Carries it out, waiting as long as that takes, and answers it.
    fn run(self);
}

/// The pool of one export.
pub(crate) struct Pool<J> {
    shared: Arc<Shared<J>>,
}

impl<J> std::fmt::Debug for Pool<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pool")
    }
}

struct Shared<J> {
    state: Mutex<State<J>>,
    work: Condvar,
}

struct State<J> {
    jobs: VecDeque<J>,
    workers: usize,
    idle: usize,
}

impl<J: Job> Shared<J> {
    fn state(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job.run();
                state = self.state();
                continue;
            }
            state.idle += 1;
            let (locked, timeout) = self
                .work
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = locked;
            state.idle -= 1;
            if timeout.timed_out() && state.jobs.is_empty() {
                state.workers -= 1;
                return;
            }
        }
    }
}

impl<J: Job> Pool<J> {
    pub(crate) fn new() -> Self {
        let state = State {
            jobs: VecDeque::new(),
            workers: 0,
            idle: 0,
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                work: Condvar::new(),
            }),
        }
    }

    /// Has `job` done by a thread of the pool. Jobs are bounded by the windows of their connections, or the tags of their device.
    pub(crate) fn push(&self, job: J) {
        let mut state = self.shared.state();
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() || state.workers >= WORKERS_MAX {
            drop(state);
            self.shared.work.notify_one();
            return;
        }
        state.workers += 1;
        let lonely = state.workers == 1;
        drop(state);
        let shared = self.shared.clone();
        let spawned = thread::Builder::new()
            .name("nbd-io".to_owned())
            .stack_size(STACK)
            .spawn(move || shared.work());
        if let Err(error) = spawned {
            let mut state = self.shared.state();
            state.workers -= 1;
            // Others will come to it. Where there are none, it is done here, which is slow but no loss.
            let orphan = if lonely { state.jobs.pop_back() } else { None };
            drop(state);
            warn!(%error, "no thread for requests that wait");
            if let Some(job) = orphan {
                job.run();
            }
        }
    }
}
