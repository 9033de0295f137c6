//! Trying again what failed in passing.
//!
//! Stores never do so themselves: all is decided here, in one table. A put of the same bytes may be repeated, for readers
//! see one or the other copy whole; so may a delete, for a missing blob is a deleted one.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockio::Cancel;
use bytes::Bytes;

use super::clock::{Chance, Clock, HostClock};
use super::meter::{Meter, StoreOp};
use super::{BlobMeta, BlobStore, Habits, ObjectLock};
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;

/// What is tried again: the longest first wait after a failure of this kind, or `None` when trying again changes nothing.
pub fn first_wait(kind: Kind) -> Option<Duration> {
    match kind {
        // A broken connection or a node that went away is replaced within a round trip or two.
        Kind::Unavailable | Kind::Unreachable => Some(Duration::from_millis(100)),
        // A service that counts requests counts them by the second.
        Kind::Throttled => Some(Duration::from_secs(1)),
        // The answer is the same the next time, or a person has to do something first.
        Kind::NotFound
        | Kind::NotARepository
        | Kind::AlreadyExists
        | Kind::WrongPassword
        | Kind::Corrupt
        | Kind::Unsupported
        | Kind::Locked
        | Kind::Clock
        | Kind::Busy
        | Kind::StorageFull
        | Kind::Permission
        | Kind::Storage
        | Kind::Credentials
        | Kind::NoBucket
        | Kind::WrongRegion
        | Kind::Certificate
        | Kind::InvalidInput
        | Kind::Cancelled => None,
    }
}

/// How long and how often an operation is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Longest wait between two attempts. The wait before attempt `n + 1` is drawn from zero to
    /// `first_wait * 2^(n - 1)`, at most this.
    pub wait_max: Duration,
    /// Time for an operation with all its attempts and waits: no attempt begins later.
    pub time: Duration,
    /// The same before the storage has given its first answer.
    pub time_unanswered: Duration,
}

impl Default for RetryPolicy {
    /// - `wait_max` 10 s: 5 s on average, so that after a long failure work goes on within seconds, while 16 uploaders
    ///   send 3 requests a second to a service that has enough to do already.
    /// - `time` 5 min: a fail-over of a storage cluster, a restart of a gateway or a change of an address in DNS is over by
    ///   then, and a backup of hours is not thrown away for it.
    /// - `time_unanswered` 20 s: an address that has never answered is more likely wrong than failing over, and somebody waits
    ///   for the message.
    fn default() -> Self {
        Self {
            wait_max: Duration::from_secs(10),
            time: Duration::from_secs(300),
            time_unanswered: Duration::from_secs(20),
        }
    }
}

/// Retries a second that all jobs of a process share. 16 operations that wait 5 s on average need 3; hundreds of jobs that
/// fail at once may not turn into a storm that keeps the storage down.
const RETRIES_PER_SECOND: u32 = 20;

/// Retries that may come at once: every request in flight of a few jobs, when a connection or a node breaks.
const RETRIES_AT_ONCE: u32 = 64;

/// The allowance of retries that all stores of a process share: a token bucket. A retry without a token waits for one, within
/// the time of its operation.
#[derive(Debug)]
pub struct RetryBudget {
    interval: Duration,
    at_once: u32,
    /// When the tokens given out so far are all earned.
    earned_at: Mutex<Duration>,
    clock: Arc<dyn Clock>,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::with_clock(HostClock::start())
    }
}

impl RetryBudget {
    fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self {
            interval: Duration::from_secs(1) / RETRIES_PER_SECOND,
            at_once: RETRIES_AT_ONCE,
            earned_at: Mutex::new(Duration::ZERO),
            clock,
        }
    }

    /// Takes a token and returns how long to wait for it; `None`, and no token taken, if that is longer than `longest`.
    fn take(&self, longest: Duration) -> Option<Duration> {
        // Time is counted from a full bucket, so that the subtraction below does not end at zero.
        let full = self.interval * self.at_once;
        let now = self.clock.now() + full;
        let mut earned_at = self.earned_at.lock().expect("no panic while held");
        let next = (*earned_at).max(now - full) + self.interval;
        let wait = next.saturating_sub(now);
        (wait <= longest).then(|| {
            *earned_at = next;
            wait
        })
    }
}

/// Tries operations of one storage again when they failed in passing.
#[derive(Debug)]
pub(super) struct Retrier {
    policy: RetryPolicy,
    budget: Arc<RetryBudget>,
    cancel: Cancel,
    meter: Meter,
    clock: Arc<dyn Clock>,
    chance: Chance,
    /// The storage has answered, be it with a refusal.
    answered: AtomicBool,
}

impl Retrier {
    pub(super) fn new(policy: RetryPolicy, budget: Arc<RetryBudget>, cancel: Cancel, meter: Meter) -> Self {
        Self {
            policy,
            budget,
            cancel,
            meter,
            clock: HostClock::start(),
            chance: Chance::fresh(),
            answered: AtomicBool::new(false),
        }
    }

    /// Runs `attempt` until it succeeds, fails for good, or its time is over.
    pub(super) fn run<T>(&self, op: StoreOp, name: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let start = self.clock.now();
        let mut tries = 1;
        loop {
            let error = match attempt() {
                Ok(done) => {
                    self.answered.store(true, Ordering::Relaxed);
                    return Ok(done);
                }
                Err(e) => e,
            };
            if is_answer(error.kind()) {
                self.answered.store(true, Ordering::Relaxed);
            }
            let elapsed = self.clock.now().saturating_sub(start);
            let Some(wait) = self.next_wait(error.kind(), tries, elapsed) else {
                return Err(given_up(error, tries, elapsed));
            };
            log(op, name, &error, tries, wait);
            if self.clock.wait(wait, &self.cancel).is_err() {
                let what = format!("cancelled while waiting to {} {name} again", op.name());
                return Err(RepoError::new(Kind::Cancelled, what).because(error));
            }
            self.meter.retried(op, error.kind());
            tries += 1;
        }
    }

    /// How long to wait before the next attempt, `None` when there is to be none.
    fn next_wait(&self, kind: Kind, tries: u32, elapsed: Duration) -> Option<Duration> {
        let longest = first_wait(kind)?
            .saturating_mul(2_u32.saturating_pow(tries - 1))
            .min(self.policy.wait_max);
        let time = match self.answered.load(Ordering::Relaxed) {
            true => self.policy.time,
            false => self.policy.time_unanswered.min(self.policy.time),
        };
        let left = time.checked_sub(elapsed)?;
        let wait = self.chance.up_to(longest).max(self.budget.take(left)?);
        (wait < left).then_some(wait)
    }
}

/// Whether a failure of this kind tells that the storage was spoken to.
fn is_answer(kind: Kind) -> bool {
    !matches!(kind, Kind::Unreachable | Kind::Unavailable | Kind::Certificate)
}

/// The last failure, told with how often and how long the operation was tried.
fn given_up(error: RepoError, tries: u32, elapsed: Duration) -> RepoError {
    match tries {
        1 => error,
        _ => error.context(format!("tried {tries} times in {:.1} s", elapsed.as_secs_f64())),
    }
}

/// Attempts from which on somebody may want to look: seconds have passed.
const TRIES_MANY: u32 = 4;

fn log(op: StoreOp, name: &str, error: &RepoError, tries: u32, wait: Duration) {
    let (op, kind, wait_ms) = (
        op.name(),
        error.kind(),
        u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
    );
    let cause = std::error::Error::source(error).map(ToString::to_string);
    if tries < TRIES_MANY {
        tracing::info!(op, name, ?kind, %error, cause, tries, wait_ms, "storage failed in passing, trying again");
    } else {
        tracing::warn!(op, name, ?kind, %error, cause, tries, wait_ms, "storage keeps failing, trying again");
    }
}

/// A store whose operations are tried again when they failed in passing.
pub struct RetryStore {
    inner: Arc<dyn BlobStore>,
    retrier: Retrier,
}

impl RetryStore {
    /// Repeats operations of `inner` as `policy` and `budget` allow, and counts that in `meter`. When `cancel` is asked for,
    /// waits end at once and nothing is tried twice; first attempts still go through, for a job that ends has to tidy up.
    pub fn new(
        inner: Arc<dyn BlobStore>,
        policy: RetryPolicy,
        budget: Arc<RetryBudget>,
        cancel: Cancel,
        meter: Meter,
    ) -> Self {
        Self::with(inner, Retrier::new(policy, budget, cancel, meter))
    }

    /// Repeats operations of `inner` by `retrier`, which may have been used to open it.
    pub(super) fn with(inner: Arc<dyn BlobStore>, retrier: Retrier) -> Self {
        Self { inner, retrier }
    }
}

impl BlobStore for RetryStore {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn put(&self, id: &BlobId, bytes: &[u8]) -> Result<()> {
        self.retrier
            .run(StoreOp::Put, id.as_str(), || self.inner.put(id, bytes))
    }

    fn put_shared(&self, id: &BlobId, bytes: Bytes, lock: Option<&ObjectLock>) -> Result<()> {
        self.retrier.run(StoreOp::Put, id.as_str(), || {
            self.inner.put_shared(id, bytes.clone(), lock)
        })
    }

    fn extend_lock(&self, id: &BlobId, lock: &ObjectLock) -> Result<()> {
        self.retrier
            .run(StoreOp::Lock, id.as_str(), || self.inner.extend_lock(id, lock))
    }

    fn habits(&self) -> Habits {
        self.inner.habits()
    }

    fn get(&self, id: &BlobId) -> Result<Vec<u8>> {
        self.retrier.run(StoreOp::Get, id.as_str(), || self.inner.get(id))
    }

    fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> Result<Range<usize>> {
        let len = range.end.saturating_sub(range.start);
        self.retrier.run(StoreOp::Range, id.as_str(), || {
            let at = self.inner.read_range(id, range.clone(), buf)?;
            if at.len() as u64 == len {
                return Ok(at);
            }
            // Nobody above looks again: an answer that is short and says nothing was cut on the way.
            let what = format!("read {len} bytes of {id}: only {} came", at.len());
            Err(RepoError::new(Kind::Unavailable, what))
        })
    }

    fn meta(&self, id: &BlobId) -> Result<BlobMeta> {
        self.retrier.run(StoreOp::Meta, id.as_str(), || self.inner.meta(id))
    }

    fn list(&self, prefix: &str) -> Result<Vec<BlobMeta>> {
        self.retrier.run(StoreOp::List, prefix, || self.inner.list(prefix))
    }

    fn delete(&self, id: &BlobId) -> Result<()> {
        self.retrier.run(StoreOp::Delete, id.as_str(), || self.inner.delete(id))
    }

    fn sync(&self) -> Result<()> {
        self.retrier.run(StoreOp::Sync, "", || self.inner.sync())
    }
}

#[cfg(test)]
mod tests;
