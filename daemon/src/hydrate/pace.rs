//! How much hydration may have under way beside readers. No IO, no clock: it is told every tick how long readers waited.
//!
//! The rule: where fewer than [`BUSY`] readers waited in a tick, all that there is room for. Else every [`ROUND`] ticks there are
//! [`QUIET`] in which nothing new is begun; how long readers wait in the last of them is what they wait by themselves. In the others the
//! window is halved when a tenth of the readers waits longer than [`SLOWER`] times as long, and grows by an eighth of the whole when
//! not. So nine in ten wait about three times as long at most, and hydration keeps all the rest: the quiet ticks take a twentieth
//! of the time. The first of them come at the end of a round: while hardly anything is there, readers wait for the repository by
//! themselves, and what is hydrated first is what they need.

use std::time::Duration;

use crate::touch::Waits;

/// Readers that have to wait in a tick to be heeded: fewer tell nothing of a tenth of them.
const BUSY: u64 = 8;
/// Ticks from one quiet time to the next: 4 s.
const ROUND: u32 = 40;
/// Ticks without anything new: in the first what is under way comes to its end, in the second readers are alone.
const QUIET: u32 = 2;
/// Times that waits may become longer.
const SLOWER: u32 = 3;
/// Waits shorter than this are never too long: a disk answers in as much.
const FINE: Duration = Duration::from_micros(500);
/// Least that is under way: hydration slows down, and does not stop.
const WINDOW_MIN: u64 = blockio::CHUNK_SIZE;

/// How much may be under way.
#[derive(Debug)]
pub(super) struct Pace {
    window_max: u64,
    window: u64,
    /// Ticks of this round that are over.
    at: u32,
    /// What a tenth of the readers waited longer than when they were alone.
    alone: Option<Duration>,
}

impl Pace {
    /// At most `window_max` bytes.
    pub(super) fn new(window_max: u64) -> Self {
        Self {
            window_max,
            window: window_max,
            at: QUIET + 1,
            alone: None,
        }
    }

    /// In the tick that is over readers waited like this. Returns the bytes that may be under way in the next one; 0 when nothing is to
    /// be begun.
    pub(super) fn tick(&mut self, waits: &Waits) -> u64 {
        let is_busy = waits.count() >= BUSY;
        let slow = waits.quantile(900);
        let was_alone = self.at == QUIET;
        if was_alone && is_busy {
            self.alone = Some(slow);
        }
        if self.at > QUIET || (self.at == 0 && self.alone.is_some()) {
            let limit = self.alone.map(|alone| (alone * SLOWER).max(FINE));
            self.window = match limit {
                Some(limit) if is_busy && slow > limit => (self.window / 2).max(WINDOW_MIN),
                _ => (self.window + self.window_max / 8).min(self.window_max),
            };
        }
        // A round begins when there is somebody to measure.
        self.at = match self.at {
            0 if !is_busy => 0,
            at => (at + 1) % ROUND,
        };
        match (1..=QUIET).contains(&self.at) {
            true => 0,
            false if is_busy || self.at > 0 => self.window,
            false => self.window_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::touch::testing::waits;

    const MAX: u64 = 32 << 20;

    #[test]
    fn without_readers_there_is_no_limit() {
        let mut pace = Pace::new(MAX);
        for _ in 0..100 {
            assert_eq!(pace.tick(&waits(3, Duration::from_secs(5))), MAX);
        }
    }

    /// Readers that wait `alone` by themselves and `slower` times as long at the full window, in between in proportion.
    fn settle(alone: Duration, slower: u32) -> (u64, u64) {
        let mut pace = Pace::new(MAX);
        let mut window = MAX;
        let (mut sum, mut quiet) = (0, 0);
        for tick in 0..400u64 {
            let part = f64::from(u32::try_from(window >> 20).unwrap()) / 32.0;
            let wait = alone.mul_f64(1.0 + f64::from(slower - 1) * part);
            window = pace.tick(&waits(50, wait));
            if tick >= 200 {
                sum += window;
                quiet += u64::from(window == 0);
            }
        }
        (sum / 200, quiet)
    }

    #[test]
    fn readers_that_are_not_hindered_cost_the_quiet_ticks_only() {
        let (mean, quiet) = settle(Duration::from_millis(3), 1);
        assert_eq!(quiet, 10);
        assert_eq!(mean, MAX * 19 / 20);
        let (mean, _) = settle(Duration::from_micros(50), 5);
        assert_eq!(mean, MAX * 19 / 20, "a wait that is short in any case");
    }

    #[test]
    fn readers_that_are_hindered_are_given_way_to() {
        let (mean, _) = settle(Duration::from_millis(3), 9);
        // Three times as long is at a quarter of the window.
        assert!((MAX / 16..MAX / 4).contains(&mean), "{mean}");
    }

    #[test]
    fn the_first_seconds_are_without_a_quiet_time() {
        let mut pace = Pace::new(MAX);
        for _ in QUIET + 1..ROUND {
            assert_eq!(pace.tick(&waits(50, Duration::from_millis(9))), MAX);
        }
        assert_eq!(pace.tick(&waits(50, Duration::from_millis(9))), 0);
    }

    #[test]
    fn it_never_stops_for_good() {
        let (mean, _) = settle(Duration::from_millis(1), 1000);
        assert!(mean >= WINDOW_MIN / 2, "{mean}");
    }
}
