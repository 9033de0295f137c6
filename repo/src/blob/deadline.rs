//! How long one request may take.
//!
//! A time limit is kept by the network client of a store: it can drop the request and its connection. A decorator above a
//! synchronous call cannot end it, only stop listening, and would leave a thread, a connection and the bytes of a pack
//! behind. So this is a rule that each network store is opened with and asks per request, and there is no store of this
//! name. A request that runs out of time is [`Kind::Unavailable`](crate::Kind::Unavailable) and tried again.

use std::time::Duration;

/// Time limits of requests, by the bytes that they move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// Time to connect, TLS included.
    pub connect: Duration,
    /// Time for a request without a body.
    pub base: Duration,
    /// Bytes a second at least, of one request. Not 0.
    pub rate_min: u64,
}

impl Deadlines {
    /// Limits for services on the internet.
    ///
    /// - `connect` 10 s: a packet lost thrice on the way is sent again after 7 s in all (Linux: 1 s, 2 s, 4 s).
    /// - `base` 30 s: a service in the middle of a fail-over holds requests for 10 to 20 s and then answers them; what has not
    ///   answered after 30 s has lost the request.
    /// - `rate_min` 128 KiB/s: 1 Mbit/s for one request of several at a time. A 20 MiB pack then has 190 s, so that one
    ///   that hangs leaves time for another attempt within the 5 minutes of [`RetryPolicy`](super::RetryPolicy).
    pub const DEFAULT: Self = Self {
        connect: Duration::from_secs(10),
        base: Duration::from_secs(30),
        rate_min: 128 << 10,
    };

    /// Time for a request that moves `bytes`.
    pub fn of(&self, bytes: u64) -> Duration {
        let millis = u128::from(bytes) * 1000 / u128::from(self.rate_min.max(1));
        self.base
            .saturating_add(Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)))
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::RetryPolicy;
    use super::*;

    #[test]
    fn a_pack_that_hangs_leaves_time_for_another_attempt() {
        assert_eq!(Deadlines::DEFAULT.of(0), Duration::from_secs(30));
        assert_eq!(Deadlines::DEFAULT.of(20 << 20), Duration::from_secs(190));
        assert!(Deadlines::DEFAULT.of(20 << 20) < RetryPolicy::default().time);
    }

    proptest! {
        #[test]
        fn more_bytes_never_have_less_time(a: u64, b: u64, rate_min in 0u64..1 << 40) {
            let deadlines = Deadlines { rate_min, ..Deadlines::DEFAULT };
            prop_assert!(deadlines.of(a.min(b)) <= deadlines.of(a.max(b)));
            prop_assert!(deadlines.of(a) >= deadlines.base);
        }
    }
}
