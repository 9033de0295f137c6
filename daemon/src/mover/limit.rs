//! A bandwidth limit: a token bucket that many threads draw from.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use blockio::Cancel;

use crate::error::{JobError, Result};

/// Longest single wait, so that a cancellation is seen soon.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Lets through a number of bytes a second.
pub struct Limiter {
    bytes_per_second: Option<u64>,
    /// When the bytes let through so far are paid for.
    paid_until: Mutex<Option<Instant>>,
    never: Condvar,
}

impl Limiter {
    /// A limit, or none.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second: bytes_per_second.filter(|rate| *rate > 0),
            paid_until: Mutex::new(None),
            never: Condvar::new(),
        }
    }

    /// Waits until `bytes` more may pass.
    pub fn take(&self, bytes: u64, cancel: &Cancel) -> Result<()> {
        let Some(rate) = self.bytes_per_second else {
            return Ok(());
        };
        let mut paid_until = self.paid_until.lock().expect("no panic while held");
        let start = paid_until.unwrap_or_else(Instant::now).max(Instant::now());
        *paid_until = Some(
            start
                + Duration::from_nanos(
                    u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX),
                ),
        );
        loop {
            if cancel.is_cancelled() {
                return Err(JobError::Cancelled);
            }
            let left = start.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            paid_until = self
                .never
                .wait_timeout(paid_until, left.min(WAIT_MAX))
                .expect("no panic while held")
                .0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_never_waits_and_a_limit_sees_a_cancellation() {
        let cancel = Cancel::new();
        Limiter::new(None).take(u64::MAX, &cancel).expect("no limit");
        let limit = Limiter::new(Some(1));
        limit.take(1_000_000, &cancel).expect("the first draw is on credit");
        cancel.cancel();
        assert!(matches!(limit.take(1, &cancel), Err(JobError::Cancelled)));
    }
}
