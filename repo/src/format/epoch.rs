//! Parameters of the epoch manager.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Kind, RepoError, Result};

/// When index epochs advance, and how long a look at them is valid.
///
/// Source of defaults and bounds: kopia, internal/epoch/epoch_manager.go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochParameters {
    /// A listing of index blobs may be acted on for this long.
    pub refresh_frequency: Duration,
    /// Epochs between range checkpoints.
    pub full_checkpoint_frequency: u32,
    /// Superseded index blobs are kept at least this long.
    pub cleanup_safety_margin: Duration,
    /// An epoch lasts at least this long.
    pub min_epoch_duration: Duration,
    /// Index blobs in an epoch from which it may end.
    pub advance_on_count: u32,
    /// Bytes of index blobs in an epoch from which it may end.
    pub advance_on_bytes: u64,
    /// Blobs that maintenance deletes at once.
    pub delete_parallelism: u32,
}

impl Default for EpochParameters {
    /// What new repositories have.
    fn default() -> Self {
        Self {
            refresh_frequency: Duration::from_secs(20 * 60),
            full_checkpoint_frequency: 7,
            cleanup_safety_margin: Duration::from_secs(4 * 3600),
            min_epoch_duration: Duration::from_secs(24 * 3600),
            advance_on_count: 20,
            advance_on_bytes: 10 << 20,
            delete_parallelism: 4,
        }
    }
}

/// Lower bounds of a repository's parameters.
const MIN_EPOCH_DURATION_MIN: Duration = Duration::from_secs(600);
const ADVANCE_ON_COUNT_MIN: u32 = 10;
const ADVANCE_ON_BYTES_MIN: u64 = 1 << 20;

/// An epoch, and the safety margin, last at least this many refreshes.
const REFRESHES_MIN: u32 = 3;

/// The JSON: durations in nanoseconds.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct RawEpoch {
    enabled: bool,
    epoch_refresh_frequency: i64,
    full_checkpoint_frequency: i64,
    cleanup_safety_margin: i64,
    min_epoch_duration: i64,
    epoch_advance_on_count_threshold: i64,
    epoch_advance_on_total_size_bytes_threshold: i64,
    delete_parallelism: i64,
}

impl From<&EpochParameters> for RawEpoch {
    fn from(p: &EpochParameters) -> Self {
        let ns = |d: Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
        Self {
            enabled: true,
            epoch_refresh_frequency: ns(p.refresh_frequency),
            full_checkpoint_frequency: p.full_checkpoint_frequency.into(),
            cleanup_safety_margin: ns(p.cleanup_safety_margin),
            min_epoch_duration: ns(p.min_epoch_duration),
            epoch_advance_on_count_threshold: p.advance_on_count.into(),
            epoch_advance_on_total_size_bytes_threshold: i64::try_from(p.advance_on_bytes).unwrap_or(i64::MAX),
            delete_parallelism: p.delete_parallelism.into(),
        }
    }
}

impl EpochParameters {
    /// The parameters, if Kopia would accept them; `None` where there are no epochs.
    pub(super) fn check(raw: &RawEpoch) -> Result<Option<Self>> {
        let refuse = |why: &str| Err(RepoError::new(Kind::Unsupported, format!("epoch parameters: {why}")));
        if !raw.enabled {
            return Ok(None);
        }
        // Negative and absurd values become 0 and fail below.
        let ns = |n: i64| Duration::from_nanos(u64::try_from(n).unwrap_or(0));
        let count = |n: i64| u32::try_from(n).unwrap_or(0);
        let p = Self {
            refresh_frequency: ns(raw.epoch_refresh_frequency),
            full_checkpoint_frequency: count(raw.full_checkpoint_frequency),
            cleanup_safety_margin: ns(raw.cleanup_safety_margin),
            min_epoch_duration: ns(raw.min_epoch_duration),
            advance_on_count: count(raw.epoch_advance_on_count_threshold),
            advance_on_bytes: u64::try_from(raw.epoch_advance_on_total_size_bytes_threshold).unwrap_or(0),
            delete_parallelism: count(raw.delete_parallelism),
        };
        if p.refresh_frequency.is_zero() {
            return refuse("EpochRefreshFrequency is not above 0");
        }
        if p.min_epoch_duration < MIN_EPOCH_DURATION_MIN {
            return refuse("MinEpochDuration is below 10 minutes");
        }
        let refreshes = p.refresh_frequency.saturating_mul(REFRESHES_MIN);
        if refreshes > p.min_epoch_duration {
            return refuse("EpochRefreshFrequency is more than a third of MinEpochDuration");
        }
        if p.cleanup_safety_margin < refreshes {
            return refuse("CleanupSafetyMargin is below three times EpochRefreshFrequency");
        }
        if p.advance_on_count < ADVANCE_ON_COUNT_MIN {
            return refuse("EpochAdvanceOnCountThreshold is below 10");
        }
        if p.advance_on_bytes < ADVANCE_ON_BYTES_MIN {
            return refuse("EpochAdvanceOnTotalSizeBytesThreshold is below 1 MiB");
        }
        if p.full_checkpoint_frequency == 0 {
            return refuse("FullCheckpointFrequency is not above 0");
        }
        Ok(Some(p))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(change: impl FnOnce(&mut EpochParameters), name: &str) {
        let mut p = EpochParameters::default();
        change(&mut p);
        let e = EpochParameters::check(&RawEpoch::from(&p)).expect_err(name);
        assert_eq!(e.kind(), Kind::Unsupported);
        assert!(e.what().contains(name), "{e}");
    }

    #[test]
    fn the_defaults_pass_and_come_back_equal() {
        let p = EpochParameters::default();
        assert_eq!(EpochParameters::check(&RawEpoch::from(&p)).expect("valid"), Some(p));
    }

    #[test]
    fn each_bound_is_kept() {
        let s = Duration::from_secs;
        refused(|p| p.refresh_frequency = s(0), "EpochRefreshFrequency");
        refused(
            |p| (p.min_epoch_duration, p.refresh_frequency) = (s(599), s(60)),
            "MinEpochDuration",
        );
        refused(|p| p.refresh_frequency = s(8 * 3600 + 1), "a third of");
        refused(|p| p.cleanup_safety_margin = s(3599), "CleanupSafetyMargin");
        refused(|p| p.advance_on_count = 9, "CountThreshold");
        refused(|p| p.advance_on_bytes = (1 << 20) - 1, "SizeBytesThreshold");
        refused(|p| p.full_checkpoint_frequency = 0, "FullCheckpointFrequency");
    }

    #[test]
    fn epochs_can_be_off_and_negative_durations_are_refused() {
        let raw = RawEpoch {
            enabled: false,
            ..RawEpoch::from(&EpochParameters::default())
        };
        assert_eq!(EpochParameters::check(&raw).expect("valid"), None);
        let raw = RawEpoch {
            epoch_refresh_frequency: -1,
            ..RawEpoch::from(&EpochParameters::default())
        };
        assert!(EpochParameters::check(&raw).is_err());
    }
}
