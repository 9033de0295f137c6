//! How many requests are in flight: as many as the storage is faster with, and no more.
//!
//! Packs and ranges pass a gate, one for each direction. A gate opens further while the rate grows with it, goes back when it
//! does not, and closes by half when the storage is overloaded, as TCP does. Requests without data pass freely.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use blockio::Cancel;
use bytes::Bytes;

use super::clock::{Clock, HostClock};
use super::{BlobMeta, BlobStore, Habits, ObjectLock};
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;

/// Requests in flight at first: enough to fill a near storage, few enough for a small one.
const START: usize = 4;

/// Requests by which a width is judged, for each one in flight: two, so that the first, whose connections are new, do not
/// decide alone.
const WINDOW_TURNS: usize = 2;

/// Fewest requests by which a width is judged. Of less the mean says little.
const WINDOW_MIN: usize = 8;

/// Windows without a change after which another width is tried: the storage or the way to it may have become faster. At
/// 16 packs of 20 MiB in flight that is every 5 GiB.
const WINDOWS_STEADY: u32 = 8;

/// The share of the rate that added requests would bring, if the storage had room for them, which is worth adding them.
const GAIN_MIN: f64 = 1.0 / 3.0;

/// A mean latency this many times what it was at no better a rate shows that others crowd the storage.
const LATENCY_WORSE: u32 = 2;

/// Decides how wide a gate is. It has no clock and no threads: it is told what happened.
#[derive(Debug)]
struct Width {
    now: usize,
    max: usize,
    phase: Phase,
    /// Whether the next trial from a steady width is a wider one.
    widen_next: bool,
    window: Window,
    /// Overload was seen, and answered, so many times. A request that began before the last answer says nothing new.
    overloads: u64,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Growing fast: nothing has shown where the end is.
    Start(Option<Seen>),
    /// Wider than `Seen`, to see whether that is faster.
    Widen(Seen),
    /// Narrower than `Seen`, to see whether that is as fast.
    Narrow(Seen),
    /// `Seen` is as good as it gets; so many windows since.
    Steady { best: Seen, windows: u32 },
}

/// What a width brought.
#[derive(Clone, Copy, Debug)]
struct Seen {
    width: usize,
    /// Bytes a second.
    rate: f64,
    latency: Duration,
}

/// Requests that ended since the last judgement.
#[derive(Debug, Default)]
struct Window {
    start: Option<Duration>,
    ended: usize,
    bytes: u64,
    latency_total: Duration,
    /// Somebody had to wait: the width was what limited the rate.
    was_full: bool,
}

/// How a request went, as far as its gate wants to know.
struct Ended {
    began: Duration,
    at: Duration,
    bytes: u64,
    overloads: u64,
    is_overload: bool,
}

impl Width {
    fn new(max: usize) -> Self {
        let max = max.max(1);
        Self {
            now: START.min(max),
            max,
            phase: Phase::Start(None),
            widen_next: true,
            window: Window::default(),
            overloads: 0,
        }
    }

    /// Takes the end of a request into account.
    fn ended(&mut self, request: &Ended) {
        if request.is_overload {
            if request.overloads == self.overloads {
                self.overloads += 1;
                self.set(self.now / 2);
                self.phase = Phase::Widen(Seen::UNKNOWN);
            }
            return;
        }
        let window = &mut self.window;
        let start = *window.start.get_or_insert(request.began);
        window.ended += 1;
        window.bytes += request.bytes;
        window.latency_total += request.at.saturating_sub(request.began);
        if window.ended < WINDOW_MIN.max(WINDOW_TURNS * self.now) {
            return;
        }
        let elapsed = request.at.saturating_sub(start);
        if elapsed.is_zero() || window.bytes == 0 {
            self.window = Window::default();
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate is compared by percents")]
        let seen = Seen {
            width: self.now,
            rate: window.bytes as f64 / elapsed.as_secs_f64(),
            latency: window.latency_total / u32::try_from(window.ended).unwrap_or(u32::MAX),
        };
        let was_full = std::mem::take(window).was_full;
        if was_full {
            self.judge(seen);
        }
        // The next window begins where this one ends: what began before is still in flight and counts in it.
        self.window.start = Some(request.at);
    }

    /// Changes the width by what the present one brought.
    fn judge(&mut self, seen: Seen) {
        let steady = |best| Phase::Steady { best, windows: 0 };
        let narrower = seen.width.saturating_sub(1);
        let (phase, width) = match self.phase {
            Phase::Start(before) if before.is_none_or(|before| seen.gains_on(&before)) => {
                (Phase::Start(Some(seen)), seen.width + (seen.width / 2).max(1))
            }
            Phase::Widen(before) if seen.gains_on(&before) => (Phase::Widen(seen), seen.width + 1),
            // What is wide in vain may have been too wide before: a step of the start is a big one.
            Phase::Start(before) => {
                let before = before.unwrap_or(seen);
                (Phase::Narrow(before), before.width.saturating_sub(1))
            }
            Phase::Narrow(before) if !before.gains_on(&seen) => (Phase::Narrow(seen), narrower),
            Phase::Widen(before) | Phase::Narrow(before) => (steady(before), before.width),
            Phase::Steady { best, .. } if seen.is_crowded(&best) => {
                let less = (seen.width / 4).max(1);
                (Phase::Narrow(seen), seen.width.saturating_sub(less))
            }
            Phase::Steady { best, windows } if windows < WINDOWS_STEADY => {
                let windows = windows + 1;
                (Phase::Steady { best, windows }, seen.width)
            }
            Phase::Steady { .. } if self.widen_next => (Phase::Widen(seen), seen.width + 1),
            Phase::Steady { .. } => (Phase::Narrow(seen), narrower),
        };
        if matches!(
            (self.phase, phase),
            (Phase::Steady { .. }, Phase::Widen(_) | Phase::Narrow(_))
        ) {
            self.widen_next = !self.widen_next;
        }
        self.phase = phase;
        self.set(width);
        if self.now == seen.width {
            // As wide or narrow as may be, or steady already.
            self.phase = match phase {
                Phase::Steady { .. } => phase,
                _ => steady(seen),
            };
        }
    }

    fn set(&mut self, width: usize) {
        self.now = width.clamp(1, self.max);
        self.window = Window::default();
    }
}

impl Seen {
    /// Everything is better.
    const UNKNOWN: Self = Self {
        width: 1,
        rate: 0.0,
        latency: Duration::MAX,
    };

    /// Whether this is worth being wider than `narrow`.
    fn gains_on(&self, narrow: &Self) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "widths are small")]
        let added = self.width.saturating_sub(narrow.width) as f64 / narrow.width as f64;
        self.rate >= narrow.rate * (1.0 + GAIN_MIN * added)
    }

    /// Whether requests wait in the storage longer than for `best`, and bring nothing by it.
    fn is_crowded(&self, best: &Self) -> bool {
        self.latency >= best.latency.saturating_mul(LATENCY_WORSE) && self.rate <= best.rate
    }
}

/// Lets as many through at once as its width says.
#[derive(Debug)]
struct Gate {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    in_flight: usize,
    width: Width,
}

/// Longest wait between two looks at the cancellation.
const WAIT_MAX: Duration = Duration::from_millis(100);

impl Gate {
    fn new(max: usize) -> Self {
        Self {
            state: Mutex::new(State {
                in_flight: 0,
                width: Width::new(max),
            }),
            freed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// Waits for room.
    fn enter<'a>(&'a self, clock: &'a dyn Clock, cancel: &Cancel) -> Result<Pass<'a>> {
        let tidying_up = cancel.is_cancelled();
        let mut state = self.lock();
        while state.in_flight >= state.width.now {
            state.width.window.was_full = true;
            if !tidying_up && cancel.is_cancelled() {
                return Err(RepoError::new(
                    Kind::Cancelled,
                    "cancelled while waiting to send a request",
                ));
            }
            state = self.freed.wait_timeout(state, WAIT_MAX).expect("no panic while held").0;
        }
        state.in_flight += 1;
        Ok(Pass {
            gate: self,
            clock,
            began: clock.now(),
            overloads: state.width.overloads,
        })
    }
}

/// Room for one request, given back on drop.
struct Pass<'a> {
    gate: &'a Gate,
    clock: &'a dyn Clock,
    began: Duration,
    overloads: u64,
}

impl Pass<'_> {
    /// Tells how the request went.
    fn told<T>(self, result: Result<T>, bytes: impl FnOnce(&T) -> u64) -> Result<T> {
        let overload = |e: &RepoError| matches!(e.kind(), Kind::Throttled | Kind::Unavailable | Kind::Unreachable);
        let is_overload = result.as_ref().err().is_some_and(overload);
        let ended = Ended {
            began: self.began,
            at: self.clock.now(),
            bytes: result.as_ref().map_or(0, bytes),
            overloads: self.overloads,
            is_overload,
        };
        // A request refused for another reason says nothing of the rate.
        if result.is_ok() || is_overload {
            let mut state = self.gate.lock();
            let before = state.width.now;
            state.width.ended(&ended);
            let now = state.width.now;
            if now != before {
                tracing::debug!(before, now, "requests in flight");
            }
        }
        result
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.gate.lock().in_flight -= 1;
        // All, for the width may have grown by more than one.
        self.gate.freed.notify_all();
    }
}

/// A store with as many requests in flight as it likes best.
pub struct AdaptiveStore {
    inner: Arc<dyn BlobStore>,
    puts: Gate,
    reads: Gate,
    habits: Habits,
    cancel: Cancel,
    clock: Arc<dyn Clock>,
}

impl AdaptiveStore {
    /// Gates for `inner`, as wide at most as its habits say, or `in_flight_max` for each direction. When `cancel` is asked for,
    /// waits end; what comes after still gets its turn.
    pub fn new(inner: Arc<dyn BlobStore>, in_flight_max: Option<usize>, cancel: Cancel) -> Self {
        let mut habits = inner.habits();
        if let Some(max) = in_flight_max {
            (habits.puts, habits.reads) = (max.max(1), max.max(1));
        }
        Self {
            inner,
            puts: Gate::new(habits.puts),
            reads: Gate::new(habits.reads),
            habits,
            cancel,
            clock: HostClock::start(),
        }
    }

    /// Puts and reads that may be in flight at the moment.
    pub fn in_flight(&self) -> (usize, usize) {
        (self.puts.lock().width.now, self.reads.lock().width.now)
    }
}

impl BlobStore for AdaptiveStore {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn put(&self, id: &BlobId, bytes: &[u8]) -> Result<()> {
        let pass = self.puts.enter(&*self.clock, &self.cancel)?;
        pass.told(self.inner.put(id, bytes), |()| bytes.len() as u64)
    }

    fn put_shared(&self, id: &BlobId, bytes: Bytes, lock: Option<&ObjectLock>) -> Result<()> {
        let len = bytes.len() as u64;
        let pass = self.puts.enter(&*self.clock, &self.cancel)?;
        pass.told(self.inner.put_shared(id, bytes, lock), |()| len)
    }

    fn extend_lock(&self, id: &BlobId, lock: &ObjectLock) -> Result<()> {
        self.inner.extend_lock(id, lock)
    }

    fn habits(&self) -> Habits {
        self.habits
    }

    fn get(&self, id: &BlobId) -> Result<Vec<u8>> {
        let pass = self.reads.enter(&*self.clock, &self.cancel)?;
        pass.told(self.inner.get(id), |bytes| bytes.len() as u64)
    }

    fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> Result<Range<usize>> {
        let len = range.end.saturating_sub(range.start);
        let pass = self.reads.enter(&*self.clock, &self.cancel)?;
        pass.told(self.inner.read_range(id, range, buf), |_| len)
    }

    fn meta(&self, id: &BlobId) -> Result<BlobMeta> {
        self.inner.meta(id)
    }

    fn list(&self, prefix: &str) -> Result<Vec<BlobMeta>> {
        self.inner.list(prefix)
    }

    fn delete(&self, id: &BlobId) -> Result<()> {
        self.inner.delete(id)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
}

#[cfg(test)]
mod tests;
