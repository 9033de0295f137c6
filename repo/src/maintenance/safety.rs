//! How long things must have been useless before they go, and how much may go at once.

use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// Margins of time that make maintenance safe beside clients at work.
///
/// Source of the values: kopia, repo/maintenance/maintenance_safety.go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Safety {
    /// Contents that no snapshot uses are left alone until they are this old: a client stores contents first and the
    /// snapshot that uses them later.
    pub content_age_min: Duration,
    /// Two garbage collections count as two only with more than this between them: a snapshot that was being written
    /// during the first must be seen by the second.
    pub collection_margin: Duration,
    /// A deletion is final only after a second collection has confirmed it.
    pub two_collections: bool,
    /// Taken off the time up to which deletions become final.
    pub drop_margin: Duration,
    /// Contents are not moved to another pack before they are this old.
    pub rewrite_age_min: Duration,
    /// Packs that nothing refers to stay until they are this old: they may belong to a client that has not indexed them.
    pub pack_age_min: Duration,
    /// Packs of a session stay as long as its marker is younger than this.
    pub session_age_max: Duration,
    /// Between moving contents and deleting packs: clients with an older index still read the old ones.
    pub rewrite_to_delete: Duration,
}

impl Safety {
    /// Kopia's level "full": safe while other clients read and write.
    pub const FULL: Self = Self {
        content_age_min: HOUR.saturating_mul(24),
        collection_margin: HOUR.saturating_mul(4),
        two_collections: true,
        drop_margin: HOUR,
        rewrite_age_min: HOUR.saturating_mul(2),
        pack_age_min: HOUR.saturating_mul(24),
        session_age_max: HOUR.saturating_mul(96),
        rewrite_to_delete: HOUR,
    };

    /// Kopia's level "none": loses data of every client that is writing. For tests, and for repositories that nobody else
    /// has open.
    pub const NONE: Self = Self {
        content_age_min: Duration::ZERO,
        collection_margin: Duration::ZERO,
        two_collections: false,
        drop_margin: Duration::ZERO,
        rewrite_age_min: Duration::ZERO,
        pack_age_min: Duration::ZERO,
        session_age_max: Duration::ZERO,
        rewrite_to_delete: Duration::ZERO,
    };
}

/// Refuses a run that would delete an unlikely share of the repository, until somebody says that it is meant.
///
/// Retention frees a few percent a day; more than half at once is a clean-up that somebody planned, or a listing that lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// More than this share of all bytes, in percent.
    pub percent_max: u64,
    /// And more than this many bytes.
    pub bytes_min: u64,
}

impl Breaker {
    /// Half, because moving the contents of short packs leaves old copies of up to half of all bytes behind; from 1 GiB on,
    /// because in a small repository the trailers of short packs outweigh their contents.
    pub const STANDARD: Self = Self {
        percent_max: 50,
        bytes_min: 1 << 30,
    };

    /// Deleting `bytes` of `all` bytes needs somebody's word.
    pub fn trips(&self, bytes: u64, all: u64) -> bool {
        bytes > self.bytes_min && u128::from(bytes) * 100 > u128::from(all) * u128::from(self.percent_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_breaker_wants_both_a_share_and_a_size() {
        let breaker = Breaker {
            percent_max: 50,
            bytes_min: 100,
        };
        assert!(!breaker.trips(100, 100), "small");
        assert!(!breaker.trips(101, 202), "just half");
        assert!(breaker.trips(102, 203));
        assert!(!Breaker::STANDARD.trips(u64::MAX / 2, u64::MAX), "no overflow");
        assert!(Breaker::STANDARD.trips(u64::MAX, u64::MAX));
    }
}
