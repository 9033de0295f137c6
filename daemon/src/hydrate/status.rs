//! What is asked of a [`Hydrator`](super::Hydrator), and what it says of itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::touch::Watch;

/// How hydration works.
#[derive(Clone, Debug)]
pub struct HydrateOptions {
    /// Who reads the volume meanwhile, to go before and to give way to. `None`: nobody is asked.
    pub watch: Option<Arc<Watch>>,
    /// Wait before the first new try when the repository does not answer. It doubles up to [`Self::retry_max`].
    pub retry_min: Duration,
    /// Longest wait.
    pub retry_max: Duration,
}

impl HydrateOptions {
    /// A passing fault costs a second, and work goes on within 10 s of the repository's return; one that is away for a day is asked
    /// 8640 times for a small blob.
    pub const DEFAULT: Self = Self {
        watch: None,
        retry_min: Duration::from_secs(1),
        retry_max: Duration::from_secs(10),
    };
}

/// What hydration is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HydrateState {
    /// At work.
    Running,
    /// The repository does not answer; it is asked again.
    WaitingForRepository {
        /// What it, or its storage, said last.
        why: String,
    },
    /// The target has the whole volume, durably.
    Complete,
    /// Stopped before it was complete.
    Stopped,
    /// It cannot go on. The volume is served as before.
    Failed {
        /// A sentence.
        why: String,
    },
}

/// How far hydration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HydrateStatus {
    /// Bytes of the volume in the target: hydrated, or written by its user.
    pub present_bytes: u64,
    /// Bytes of the volume.
    pub total_bytes: u64,
    /// Chunks that cannot be had, because what the repository has of them is damaged.
    pub damaged_chunks: u64,
    /// Bytes hydrated a second, of late.
    pub bytes_per_second: u64,
    /// What it is at.
    pub state: HydrateState,
}

/// Bytes a second over the last seconds.
#[derive(Debug, Default)]
pub(super) struct Rate {
    last: Option<(Instant, u64)>,
    per_second: u64,
}

impl Rate {
    /// The rate, when `bytes` were hydrated until now.
    pub(super) fn tick(&mut self, bytes: u64) -> u64 {
        let (at, before) = *self.last.get_or_insert((Instant::now(), bytes));
        let elapsed = at.elapsed();
        if elapsed >= Duration::from_secs(1) {
            let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
            let fresh = (bytes - before).saturating_mul(1000) / millis;
            // A half of it is of the last second.
            self.per_second = if self.per_second == 0 {
                fresh
            } else {
                (self.per_second + fresh) / 2
            };
            self.last = Some((Instant::now(), bytes));
        }
        self.per_second
    }
}
