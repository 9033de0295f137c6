//! Steering a job from outside: cancel it, watch how far it is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A request to stop that many threads can see. Clones are one and the same.
///
/// It is a flag, not a signal: who works looks at it between two units of work, stops submitting, awaits what is in flight
/// and reports.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Flag>);

#[derive(Debug, Default)]
struct Flag {
    asked: AtomicBool,
    /// Held for the moment of asking, so that no waiter looks just before and sleeps just after.
    asking: Mutex<()>,
    wake: Condvar,
}

/// The work was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

impl Cancel {
    /// Not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everybody who holds a clone to stop. Cannot be taken back.
    pub fn cancel(&self) {
        let _asking = self.0.asking.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.asked.store(true, Ordering::Release);
        self.0.wake.notify_all();
    }

    /// Whether somebody asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.asked.load(Ordering::Acquire)
    }

    /// For use with `?` between two units of work.
    ///
    /// # Errors
    /// [`Cancelled`] when somebody asked to stop.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }

    /// Waits for `time`, or until somebody asks to stop.
    ///
    /// # Errors
    /// [`Cancelled`] as soon as somebody asks to stop.
    pub fn wait(&self, time: Duration) -> Result<(), Cancelled> {
        let start = Instant::now();
        let mut asking = self.0.asking.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(left) = time.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
            self.check()?;
            asking = (self.0.wake.wait_timeout(asking, left)).map_or_else(|e| e.into_inner().0, |waited| waited.0);
        }
        self.check()
    }
}

/// How far a job is. Clones count into the same numbers; all are bytes.
///
/// Done counts what needs no more work in this job: for a backup what is in a pack or known to be stored, for a restore what
/// the device has taken.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    total: AtomicU64,
    done: AtomicU64,
    zero: AtomicU64,
    unchanged: AtomicU64,
    new: AtomicU64,
    stored: AtomicU64,
}

/// The numbers of a [`Progress`] at one moment; each is exact, they may be of slightly different moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgressSnapshot {
    /// Bytes the job is about.
    pub total_bytes: u64,
    /// Bytes that are dealt with, in whichever way.
    pub done_bytes: u64,
    /// Of these, bytes that are all zero and were neither stored nor fetched.
    pub zero_bytes: u64,
    /// Of these, bytes known to be unchanged and not read.
    pub unchanged_bytes: u64,
    /// Of these, bytes the target did not have.
    pub new_bytes: u64,
    /// Bytes written for them, after compression and with overhead.
    pub stored_bytes: u64,
}

impl Progress {
    /// All zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds to the bytes the job is about.
    pub fn add_total(&self, bytes: u64) {
        self.0.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds bytes that are dealt with.
    pub fn add_done(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds bytes that are all zero.
    pub fn add_zero(&self, bytes: u64) {
        self.0.zero.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds bytes that are unchanged.
    pub fn add_unchanged(&self, bytes: u64) {
        self.0.unchanged.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds bytes the target did not have.
    pub fn add_new(&self, bytes: u64) {
        self.0.new.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds bytes written to the target.
    pub fn add_stored(&self, bytes: u64) {
        self.0.stored.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The numbers as they are.
    pub fn snapshot(&self) -> ProgressSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ProgressSnapshot {
            total_bytes: get(&self.0.total),
            done_bytes: get(&self.0.done),
            zero_bytes: get(&self.0.zero),
            unchanged_bytes: get(&self.0.unchanged),
            new_bytes: get(&self.0.new),
            stored_bytes: get(&self.0.stored),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancel_reaches_every_clone() {
        let cancel = Cancel::new();
        let other = cancel.clone();
        assert_eq!(other.check(), Ok(()));
        cancel.cancel();
        assert_eq!(other.check(), Err(Cancelled));
    }

    #[test]
    fn a_wait_ends_with_its_time_or_at_once_when_cancelled() {
        let cancel = Cancel::new();
        assert_eq!(cancel.wait(Duration::from_millis(1)), Ok(()));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| cancel.wait(Duration::from_secs(3600)));
            cancel.cancel();
            assert_eq!(waiter.join().expect("no panic"), Err(Cancelled));
        });
    }

    #[test]
    fn progress_counts_from_every_clone() {
        let progress = Progress::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let progress = progress.clone();
                scope.spawn(move || (0..1000).for_each(|_| progress.add_done(3)));
            }
        });
        progress.add_stored(5);
        let seen = progress.snapshot();
        assert_eq!(
            seen,
            ProgressSnapshot {
                done_bytes: 12_000,
                stored_bytes: 5,
                ..ProgressSnapshot::default()
            }
        );
    }
}
