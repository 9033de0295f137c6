//! When a stream that failed is opened again, and when that ends.

use std::time::Duration;

use super::limits::Limits;

/// Failures in a row.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    failures: u32,
    since: Duration,
    /// State of the generator of jitter (xorshift); never 0.
    random: u64,
}

impl Pace {
    /// `seed` makes clients that started together differ.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            failures: 0,
            since: Duration::ZERO,
            random: seed | 1,
        }
    }

    /// Something was received that was not known before.
    pub(super) fn progressed(&mut self) {
        self.failures = 0;
    }

    /// Failures since something was received.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Time from the first of them.
    pub(super) fn failing_for(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since)
    }

    /// A failure at `now`: how long to wait, or nothing when the budget is spent.
    pub(super) fn failed(&mut self, now: Duration, limits: &Limits) -> Option<Duration> {
        if self.failures == 0 {
            self.since = now;
        }
        self.failures += 1;
        let doubled = limits.wait_first.saturating_mul(1 << (self.failures - 1).min(20));
        let wait = doubled.min(limits.wait_max);
        let wait = wait / 2 + (wait / 2).mul_f64(self.share());
        let spent = now.saturating_sub(self.since) + wait;
        (self.failures < limits.failures_max && spent <= limits.failing_max).then_some(wait)
    }

    /// A number from 0 to 1.
    fn share(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        #[expect(clippy::cast_precision_loss, reason = "20 bits are exact")]
        let share = (self.random >> 44) as f64 / f64::from(1 << 20);
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_are_jittered_and_end() {
        let limits = Limits::default();
        let mut pace = Pace::new(7);
        for most in [1, 2, 4, 8].map(Duration::from_secs) {
            let wait = pace.failed(Duration::ZERO, &limits).unwrap();
            assert!(wait >= most / 2 && wait <= most, "{wait:?} of {most:?}");
        }
        assert_eq!(pace.failed(Duration::ZERO, &limits), None);
        assert_eq!(pace.failures(), 5);
        pace.progressed();
        assert!(pace.failed(Duration::from_secs(1000), &limits).is_some());
        assert_eq!(
            pace.failed(Duration::from_secs(1121), &limits),
            None,
            "failing for two minutes"
        );
    }
}
