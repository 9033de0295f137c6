//! How long readers wait, cheaply: a counter for each eighth of an octave.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Classes an octave: neighbours differ by an eighth at most, which is what a comparison of latencies needs.
const STEPS: usize = 8;
/// From 1 us to more than an hour.
const CLASSES: usize = 32 * STEPS;

/// Counts waits since they were taken last.
#[derive(Debug)]
pub(super) struct Meter([AtomicU32; CLASSES]);

impl Default for Meter {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

impl Meter {
    pub(super) fn count(&self, wait: Duration) {
        self.0[class(wait)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn take(&self) -> Waits {
        Waits(std::array::from_fn(|class| self.0[class].swap(0, Ordering::Relaxed)))
    }
}

/// How many readers waited how long.
#[derive(Clone, Debug)]
pub struct Waits([u32; CLASSES]);

impl Default for Waits {
    fn default() -> Self {
        Self([0; CLASSES])
    }
}

impl Waits {
    /// How many waited.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|count| u64::from(*count)).sum()
    }

    /// What `permille` of a thousand waits were not longer than, an eighth too long at most. Zero when nobody waited.
    pub fn quantile(&self, permille: u64) -> Duration {
        let rank = (self.count() * permille).div_ceil(1000);
        let mut before = 0;
        for (class, count) in self.0.iter().enumerate() {
            before += u64::from(*count);
            if before >= rank && before > 0 {
                return end_of(class);
            }
        }
        Duration::ZERO
    }
}

fn class(wait: Duration) -> usize {
    let us = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX).max(1);
    let octave = us.ilog2() as usize;
    // The three bits behind the first one.
    let step = usize::try_from((us << 3 >> octave) & 7).expect("below 8");
    (octave * STEPS + step).min(CLASSES - 1)
}

/// The longest wait of a class.
fn end_of(class: usize) -> Duration {
    let (octave, step) = (class / STEPS, (class % STEPS) as u64);
    Duration::from_micros(((8 + step + 1) << octave >> 3).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_an_eighth_too_long_at_most() {
        let meter = Meter::default();
        assert_eq!(meter.take().quantile(990), Duration::ZERO);
        for us in 1..=1000u64 {
            meter.count(Duration::from_micros(us * 50));
        }
        let waits = meter.take();
        assert_eq!(waits.count(), 1000);
        for permille in [1, 10, 500, 900, 990, 1000] {
            let (exact, found) = (Duration::from_micros(permille * 50), waits.quantile(permille));
            assert!(
                exact <= found && found <= exact * 9 / 8 + Duration::from_micros(1),
                "{permille}: {found:?}"
            );
        }
        assert_eq!(meter.take().count(), 0, "taken once");
        for wait in [Duration::ZERO, Duration::MAX] {
            meter.count(wait);
        }
        assert_eq!(meter.take().count(), 2);
    }
}
