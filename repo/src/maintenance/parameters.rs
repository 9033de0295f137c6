//! Who maintains a repository, how often, and for how long logs are kept: the manifest `type=maintenance`.
//!
//! Source: kopia, repo/maintenance/maintenance_params.go and cleanup_logs.go.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{RepoError, Result};
use crate::manifest::{Changes, Labels};
use crate::repository::Repository;
use crate::session::{WriteOptions, WriteSession};

/// Value of the manifest label `type`.
pub(super) const TYPE: &str = "maintenance";

const HOUR_NS: u64 = 3_600_000_000_000;

/// The parameters as stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    /// `user@host` of the client that maintains; empty when nobody does.
    #[serde(default)]
    pub owner: String,
    /// Index upkeep.
    #[serde(default)]
    pub quick: Cycle,
    /// Everything.
    #[serde(default)]
    pub full: Cycle,
    /// What is kept of Kopia's logs.
    #[serde(rename = "logRetention", default)]
    pub logs: LogRetention,
    /// Object locks are extended by every full maintenance.
    #[serde(rename = "extendObjectLocks", default)]
    pub extend_locks: bool,
    /// Listings at once; 0 = as the client likes.
    #[serde(rename = "listParallelism", default)]
    pub list_parallelism: u32,
    /// What a later version of Kopia may add.
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// One kind of maintenance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cycle {
    /// It runs when due.
    pub enabled: bool,
    /// Nanoseconds from the start of one run to that of the next.
    #[serde(rename = "interval")]
    pub interval_ns: u64,
}

impl Cycle {
    /// From the start of one run to that of the next.
    pub fn interval(&self) -> Duration {
        Duration::from_nanos(self.interval_ns)
    }
}

/// Logs beyond any of these go. 0 = no such limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogRetention {
    /// Bytes.
    #[serde(rename = "maxTotalSize")]
    pub bytes_max: u64,
    /// Blobs.
    #[serde(rename = "maxCount")]
    pub count_max: u64,
    /// Nanoseconds since they were written.
    #[serde(rename = "maxAge")]
    pub age_ns_max: u64,
}

impl LogRetention {
    /// Kopia's default: 1 GiB, 10,000 blobs, 30 days.
    pub const STANDARD: Self = Self {
        bytes_max: 1 << 30,
        count_max: 10_000,
        age_ns_max: 30 * 24 * HOUR_NS,
    };

    /// These limits, or the standard ones where none is set.
    #[must_use]
    pub fn or_standard(self) -> Self {
        if self == Self::default() { Self::STANDARD } else { self }
    }
}

impl Default for Parameters {
    /// Kopia's: an hour, a day, nobody.
    fn default() -> Self {
        let every = |hours| Cycle {
            enabled: true,
            interval_ns: hours * HOUR_NS,
        };
        Self {
            owner: String::new(),
            quick: every(1),
            full: every(24),
            logs: LogRetention::STANDARD,
            extend_locks: false,
            list_parallelism: 0,
            other: Map::new(),
        }
    }
}

impl Parameters {
    /// The parameters of `repository`: the latest when several clients wrote some at the same time, the default when nobody
    /// did.
    ///
    /// # Errors
    /// `Corrupt` when they are not the expected JSON.
    pub fn read(repository: &Repository) -> Result<Self> {
        match repository.manifests()?.find(&[("type", TYPE)]).last() {
            Some(manifest) => parse(manifest.data.get()),
            None => Ok(Self::default()),
        }
    }
}

/// Names `owner` (`user@host`) as the client that runs maintenance; all else stays, or is Kopia's default.
///
/// # Errors
/// Those of writing to the repository.
pub fn set_owner(repository: &Repository, owner: &str) -> Result<()> {
    let changes = change_owner(repository, owner)?;
    let (user, host) = owner.split_once('@').unwrap_or((owner, ""));
    let options = WriteOptions {
        user: user.into(),
        host: host.into(),
        ..WriteOptions::default()
    };
    WriteSession::begin(repository, &options)?.commit_changes(&changes)?;
    Ok(())
}

/// The parameters with another owner, in place of those there are.
pub(super) fn change_owner(repository: &Repository, owner: &str) -> Result<Changes> {
    let manifests = repository.manifests()?;
    let old = manifests.find(&[("type", TYPE)]);
    let parameters = Parameters {
        owner: owner.into(),
        ..match old.last() {
            Some(manifest) => parse(manifest.data.get())?,
            None => Parameters::default(),
        }
    };
    let mut changes = Changes::default();
    changes.put(Labels::from([("type".to_string(), TYPE.to_string())]), &parameters)?;
    old.iter().for_each(|manifest| changes.delete(manifest));
    Ok(changes)
}

fn parse(text: &str) -> Result<Parameters> {
    serde_json::from_str(text)
        .map_err(|e| RepoError::corrupt("the maintenance parameters are not the expected JSON").because(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As written by Velero.
    const TEXT: &str = r#"{"owner":"default@default","quick":{"enabled":true,"interval":3600000000000},"full":{"enabled":true,"interval":86400000000000},"logRetention":{"maxTotalSize":1073741824,"maxCount":10000,"maxAge":2592000000000000},"extendObjectLocks":false,"listParallelism":0}"#;

    #[test]
    fn parameters_round_trip_with_what_is_not_known_of_them() {
        let parameters = parse(TEXT).expect("valid");
        assert_eq!(
            parameters,
            Parameters {
                owner: "default@default".into(),
                ..Parameters::default()
            }
        );
        assert_eq!(crate::json::to_vec(&parameters), TEXT.as_bytes());
        let more = TEXT.replace("\"listParallelism\":0", "\"listParallelism\":0,\"newer\":[1,{\"a\":2}]");
        assert_eq!(crate::json::to_vec(&parse(&more).expect("valid")), more.as_bytes());
        for bad in [
            "",
            "[]",
            r#"{"owner":1}"#,
            r#"{"quick":{"enabled":true,"interval":-1}}"#,
        ] {
            assert!(parse(bad).expect_err(bad).is_damage());
        }
    }

    #[test]
    fn logs_without_limits_have_the_standard_ones() {
        assert_eq!(LogRetention::default().or_standard(), LogRetention::STANDARD);
        let some = LogRetention {
            count_max: 3,
            ..LogRetention::default()
        };
        assert_eq!(some.or_standard(), some);
    }
}
