//! What is asked of a [`Hydrator`](super::Hydrator), and what it says of itself.

use std::sync::Arc;
use std::time::Duration;

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
    /// A passing fault costs a second; a repository that is away for a day is asked 1440 times.
    pub const DEFAULT: Self = Self {
        watch: None,
        retry_min: Duration::from_secs(1),
        retry_max: Duration::from_secs(60),
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
