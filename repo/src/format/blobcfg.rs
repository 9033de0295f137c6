//! `kopia.blobcfg`: how long the storage must keep blobs from being deleted.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BLOBCFG_ID, BlobKeys, Format};
use crate::error::{RepoError, Result};
use crate::id::BlobId;

/// Shortest retention Kopia accepts (kopia, repo/format/blobcfg_blob.go).
const PERIOD_MIN: Duration = Duration::from_secs(24 * 3600);

/// Blobs under retention: packs, index, and the parameters. Session markers, logs and the schedule are not.
const LOCKED_PREFIXES: [&str; 6] = ["n", "x", "kopia.repository", "kopia.blobcfg", "p", "q"];

/// Retention settings. The default, also of a repository without this blob, is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlobConfig {
    /// Object lock of new blobs, if any.
    pub retention: Option<Retention>,
}

/// An object lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Who may lift it.
    pub mode: RetentionMode,
    /// How long it holds from the time of writing; at least 24 h.
    pub period: Duration,
}

/// Who may lift an object lock; names are those of the storages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetentionMode {
    /// Users with a special permission.
    Governance,
    /// Nobody.
    Compliance,
    /// Nobody; the name that Azure uses.
    Locked,
}

impl RetentionMode {
    /// The name, as in `kopia.blobcfg` and in requests to the storage.
    pub fn name(self) -> &'static str {
        match self {
            Self::Governance => "GOVERNANCE",
            Self::Compliance => "COMPLIANCE",
            Self::Locked => "Locked",
        }
    }
}

/// The JSON: both fields or none; the period in nanoseconds.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    #[serde(skip_serializing_if = "String::is_empty")]
    retention_mode: String,
    #[serde(skip_serializing_if = "is_zero")]
    retention_period: i64,
}

// By reference, as serde asks for it.
fn is_zero(n: &i64) -> bool {
    *n == 0
}

impl BlobConfig {
    /// Blob `id` must be stored with the object lock of [`Self::retention`].
    pub fn locks(&self, id: &BlobId) -> bool {
        self.retention.is_some() && LOCKED_PREFIXES.iter().any(|prefix| id.as_str().starts_with(prefix))
    }

    fn parse(json: &[u8]) -> Result<Self> {
        let corrupt = |why: String| RepoError::corrupt(format!("{BLOBCFG_ID}: {why}"));
        let raw: Raw = serde_json::from_slice(json).map_err(|e| corrupt("not the expected JSON".into()).because(e))?;
        if raw.retention_mode.is_empty() && raw.retention_period == 0 {
            return Ok(Self::default());
        }
        let mode = match raw.retention_mode.as_str() {
            "GOVERNANCE" => RetentionMode::Governance,
            "COMPLIANCE" => RetentionMode::Compliance,
            "Locked" => RetentionMode::Locked,
            other => return Err(corrupt(format!("retention mode {other:?} is not known"))),
        };
        let period = Duration::from_nanos(u64::try_from(raw.retention_period).unwrap_or(0));
        if period < PERIOD_MIN {
            return Err(corrupt(format!("retention period {period:?} is below 24 hours")));
        }
        Ok(Self {
            retention: Some(Retention { mode, period }),
        })
    }

    fn to_json(self) -> Vec<u8> {
        let raw = self.retention.map_or_else(Raw::default, |retention| Raw {
            retention_mode: retention.mode.name().into(),
            retention_period: i64::try_from(retention.period.as_nanos()).unwrap_or(i64::MAX),
        });
        crate::json::to_vec(&raw)
    }
}

impl Format {
    /// Reads the bytes of `kopia.blobcfg`.
    ///
    /// # Errors
    /// `Corrupt` when they were not sealed for this repository, or say something impossible.
    pub fn open_blobcfg(&self, sealed: &[u8]) -> Result<BlobConfig> {
        let plaintext = BlobKeys::new(&self.format_key, &self.unique_id).open(sealed);
        BlobConfig::parse(&plaintext.map_err(|e| RepoError::from(e).context(BLOBCFG_ID))?)
    }

    /// The bytes of `kopia.blobcfg` for `config`.
    pub fn seal_blobcfg(&self, config: &BlobConfig) -> Vec<u8> {
        BlobKeys::new(&self.format_key, &self.unique_id).seal(&config.to_json())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_is_both_fields_or_none() {
        let day = 86_400_000_000_000_i64;
        let with = |json: &str| BlobConfig::parse(json.as_bytes());
        assert_eq!(with("{}").expect("none"), BlobConfig::default());
        let config = with(&format!(r#"{{"retentionMode":"GOVERNANCE","retentionPeriod":{day}}}"#)).expect("both");
        assert_eq!(
            config.retention,
            Some(Retention {
                mode: RetentionMode::Governance,
                period: PERIOD_MIN
            })
        );
        assert_eq!(
            config.to_json(),
            format!(r#"{{"retentionMode":"GOVERNANCE","retentionPeriod":{day}}}"#).into_bytes()
        );
        for bad in [
            r#"{"retentionMode":"GOVERNANCE"}"#.to_owned(),
            format!(r#"{{"retentionPeriod":{day}}}"#),
            format!(r#"{{"retentionMode":"SOMETIMES","retentionPeriod":{day}}}"#),
            format!(r#"{{"retentionMode":"Locked","retentionPeriod":{}}}"#, day - 1),
            r#"{"retentionMode":"Locked","retentionPeriod":-1}"#.to_owned(),
            "7".to_owned(),
        ] {
            assert!(with(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn packs_index_and_parameters_are_locked_but_sessions_are_not() {
        let config = BlobConfig {
            retention: Some(Retention {
                mode: RetentionMode::Locked,
                period: PERIOD_MIN,
            }),
        };
        let id = |id: &str| BlobId::new(id).expect("valid");
        for locked in ["p00-s1", "q00-s1", "xn0_00", "n00", "kopia.repository", "kopia.blobcfg"] {
            assert!(config.locks(&id(locked)), "{locked}");
            assert!(!BlobConfig::default().locks(&id(locked)), "{locked}");
        }
        for free in ["s00-s1", "_log_2026", "kopia.maintenance", "udmrepo.Repository"] {
            assert!(!config.locks(&id(free)), "{free}");
        }
    }
}
