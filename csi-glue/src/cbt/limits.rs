//! Limits and defaults of a question.

use std::time::Duration;

/// How much is taken from a service, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Blocks asked for in one message. 4096 are about 60 KiB: few messages, and a map that grows in small steps.
    pub results_max: i32,
    /// Bytes of the largest message accepted. A driver that ignores [`Self::results_max`] and sends a million blocks at once
    /// stays below 64 MiB.
    pub message_bytes_max: usize,
    /// Failures in a row, without a block received between them, after which it ends. Of 5 the waits are 1, 2, 4 and 8 s at
    /// most: a restart of the service passes, a snapshot that is not there is given up in 15 s.
    pub failures_max: u32,
    /// Time from the first of such failures after which it ends, however few there were.
    pub failing_max: Duration,
    /// Wait after the first failure; it doubles with each, and a random half of it is left out so that many clients do not
    /// come back at once.
    pub wait_first: Duration,
    /// Longest wait.
    pub wait_max: Duration,
    /// Time without a block after which a stream is given up and counts as failed. The sidecar cuts streams after 10 minutes
    /// unless told otherwise, so one that is silent for 11 has nobody at its other end. A driver that scans may be silent for
    /// minutes.
    pub silence_max: Duration,
    /// Streams of one question. With a cut every 10 minutes 4096 last four weeks; a service that needs more cuts after every
    /// few messages.
    pub streams_max: u64,
    /// Messages without a block. They carry nothing, so a service that sends many is stuck.
    pub idle_messages_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            results_max: 4096,
            message_bytes_max: 64 << 20,
            failures_max: 5,
            failing_max: Duration::from_secs(120),
            wait_first: Duration::from_secs(1),
            wait_max: Duration::from_secs(30),
            silence_max: Duration::from_secs(11 * 60),
            streams_max: 4096,
            idle_messages_max: 65_536,
        }
    }
}

/// Smallest block of any device: a listing with more blocks than these fit in a volume is none of it.
pub(super) const BLOCK_MIN: u64 = 512;

/// Blocks that may come twice because a stream that goes on may begin before where it was asked to.
pub(super) const TUPLES_SPARE: u64 = 65_536;
