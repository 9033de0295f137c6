//! The clock of the storage against this host's.

use std::time::{Duration, Instant, SystemTime};

use crate::blob::BlobStore;
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;

/// Largest difference between the clocks of this host and of the storage. Content times come from this host, deletion
/// rules compare them with the storage's: Kopia's maintenance refuses the same difference.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);

/// Looks at the storage's clock before a difference counts: one can be a stale answer, not a wrong clock.
const SAMPLES: usize = 4;

/// Between two looks. Object stores tell times in whole seconds.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(1100);

/// A clock that goes right keeps its distance from ours; readings that differ by more than this are not readings of one
/// clock. Twice the resolution, and a second for the request.
const SPREAD_MAX: Duration = Duration::from_secs(3);

/// Seconds that the storage's clock is ahead of ours (negative: behind), as one look tells.
type Offset = f64;

/// Stores `bytes` as `blob` and compares the time that the storage gives it with this host's. When they differ too much it
/// is stored and looked at again, so that an old answer is not taken for a wrong clock.
///
/// # Errors
/// `Clock` when the clocks differ by more than [`CLOCK_SKEW_MAX`]; `Storage` when the storage's answers contradict one
/// another, which is a stale read; and what the storage fails with.
pub(super) fn put_and_check(store: &dyn BlobStore, blob: &BlobId, bytes: &[u8]) -> Result<()> {
    let mut offsets = Vec::with_capacity(SAMPLES);
    for sample in 0..SAMPLES {
        if sample > 0 {
            #[expect(clippy::disallowed_methods, reason = "the storage's clock must go on by a second")]
            std::thread::sleep(SAMPLE_INTERVAL);
        }
        let began = Instant::now();
        let here = SystemTime::now();
        store.put(blob, bytes)?;
        let there = store.meta(blob)?.modified;
        // The blob was stored at some moment of the put: a slow one is no difference.
        let offset = offset(here, there);
        let took = began.elapsed().as_secs_f64();
        let beyond = if offset > 0.0 { (offset - took).max(0.0) } else { offset };
        if beyond.abs() <= CLOCK_SKEW_MAX.as_secs_f64() {
            return Ok(());
        }
        offsets.push(offset);
    }
    Err(verdict(&offsets, &store.place()))
}

fn offset(here: SystemTime, there: SystemTime) -> Offset {
    match there.duration_since(here) {
        Ok(ahead) => ahead.as_secs_f64(),
        Err(behind) => -behind.duration().as_secs_f64(),
    }
}

/// What `offsets`, all beyond the limit, mean.
fn verdict(offsets: &[Offset], place: &str) -> RepoError {
    let least = offsets.iter().copied().fold(f64::INFINITY, f64::min);
    let most = offsets.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if most - least > SPREAD_MAX.as_secs_f64() {
        let what = format!(
            "{place} tells times for a blob just written that contradict one another ({least:+.0} s to {most:+.0} s from this host's clock): its answers are stale, not its clock wrong; look for a cache in front of the storage"
        );
        return RepoError::new(Kind::Storage, what);
    }
    let (side, by) = if least > 0.0 {
        ("ahead of", most)
    } else {
        ("behind", -least)
    };
    let what = format!(
        "the clock of {place} is {by:.0} s {side} this host's in {} looks, more than {} s; set the clock right (content times decide what maintenance deletes)",
        offsets.len(),
        CLOCK_SKEW_MAX.as_secs()
    );
    RepoError::new(Kind::Clock, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(offsets: &[Offset], kind: Kind, says: &str) {
        let e = verdict(offsets, "s3://b/");
        assert_eq!(e.kind(), kind, "{e}");
        assert!(e.what().contains(says), "{e}");
    }

    #[test]
    fn a_steady_difference_is_a_wrong_clock() {
        check(&[400.0, 400.9, 400.2, 401.0], Kind::Clock, "401 s ahead of this host's");
        check(
            &[-3600.0, -3600.9, -3600.1, -3601.0],
            Kind::Clock,
            "3601 s behind this host's",
        );
    }

    #[test]
    fn a_time_that_does_not_move_is_a_stale_answer() {
        check(&[-400.0, -401.1, -402.2, -403.3], Kind::Storage, "stale");
        check(&[-400.0, -90_000.0], Kind::Storage, "stale");
    }
}
