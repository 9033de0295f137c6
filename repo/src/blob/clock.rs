//! Time and chance as the decorators of a store see them; tests put their own in their place.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blockio::{Cancel, Cancelled};

/// Tells the time and waits for it.
pub(crate) trait Clock: fmt::Debug + Send + Sync {
    /// Time since a moment in the past that stays the same.
    fn now(&self) -> Duration;

    /// Waits for `time`; ends at once when `cancel` asks to.
    fn wait(&self, time: Duration, cancel: &Cancel) -> Result<(), Cancelled>;
}

/// The clock of this host, which never goes back.
#[derive(Debug)]
pub(crate) struct HostClock(Instant);

impl HostClock {
    /// Starts at zero.
    pub(crate) fn start() -> Arc<dyn Clock> {
        Arc::new(Self(Instant::now()))
    }
}

impl Clock for HostClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn wait(&self, time: Duration, cancel: &Cancel) -> Result<(), Cancelled> {
        cancel.wait(time)
    }
}

/// Numbers without a pattern (SplitMix64); the same seed gives the same ones. Nothing secret hangs on them.
#[derive(Debug)]
pub(crate) struct Chance(AtomicU64);

impl Chance {
    /// Numbers that follow from `seed`.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// Other numbers in each process.
    pub(crate) fn fresh() -> Self {
        let mut seed = [0; 8];
        // Without it many hosts would wait in step, which is slower and not wrong.
        let _ = aws_lc_rs::rand::fill(&mut seed);
        Self::seeded(u64::from_le_bytes(seed))
    }

    /// The next number.
    pub(crate) fn next(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not zero.
    pub(crate) fn below(&self, end: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(end);
        u64::try_from(wide >> 64).expect("the upper half of a product of two halves")
    }

    /// A time from zero to `longest`.
    pub(crate) fn up_to(&self, longest: Duration) -> Duration {
        let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX - 1);
        Duration::from_nanos(self.below(nanos.saturating_add(1)))
    }
}

/// A clock that stands still until somebody waits.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct TestClock(AtomicU64);

#[cfg(test)]
impl TestClock {
    /// Moves on.
    pub(crate) fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).expect("a short time");
        self.0.fetch_add(nanos, Ordering::SeqCst);
    }
}

#[cfg(test)]
impl Clock for TestClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }

    fn wait(&self, time: Duration, cancel: &Cancel) -> Result<(), Cancelled> {
        cancel.check()?;
        self.advance(time);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_follows_its_seed_and_fills_its_range() {
        // First numbers of SplitMix64 from 0 (prng.di.unimi.it/splitmix64.c).
        let chance = Chance::seeded(0);
        assert_eq!(
            [chance.next(), chance.next()],
            [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]
        );
        let mut seen = [0; 7];
        for _ in 0..7000 {
            seen[usize::try_from(chance.below(7)).expect("below 7")] += 1;
        }
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
        assert_eq!(chance.up_to(Duration::ZERO), Duration::ZERO);
    }
}
