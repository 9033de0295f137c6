//! Maintenance as far as a writer has to do with it: who owns it, and when it last ran.
//!
//! Source of the parameters: kopia, repo/maintenance/maintenance_params.go and maintenance_schedule.go.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::compress::CompressionPolicy;
use crate::error::{RepoError, Result};
use crate::format;
use crate::id::BlobId;
use crate::manifest::{Changes, Labels};
use crate::repository::Repository;
use crate::session::{WriteOptions, WriteSession};
use crate::time::Time;

/// Value of the manifest label `type`.
const TYPE: &str = "maintenance";

const HOUR_NS: u64 = 3_600_000_000_000;

/// The parameters manifest. Durations in nanoseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Parameters {
    owner: String,
    #[serde(default)]
    quick: Cycle,
    #[serde(default)]
    full: Cycle,
    #[serde(rename = "logRetention", default)]
    log_retention: LogRetention,
    #[serde(rename = "extendObjectLocks", default)]
    extend_object_locks: bool,
    #[serde(rename = "listParallelism", default)]
    list_parallelism: u32,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Cycle {
    enabled: bool,
    interval: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LogRetention {
    max_total_size: u64,
    max_count: u64,
    max_age: u64,
}

/// Who maintains a repository, and when it was done.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// `user@host` of the owner.
    pub owner: Option<String>,
    /// End of the last successful quick maintenance.
    pub last_quick: Option<Time>,
    /// End of the last successful full maintenance.
    pub last_full: Option<Time>,
}

/// Names `owner` (`user@host`) as the client that runs maintenance, with Kopia's default intervals.
pub fn set_owner(repository: &Repository, owner: &str) -> Result<()> {
    let manifests = repository.manifests()?;
    let old = manifests.find(&[("type", TYPE)]);
    let parameters = match old.last() {
        Some(manifest) => Parameters {
            owner: owner.into(),
            ..parse(manifest.data.get())?
        },
        None => Parameters {
            owner: owner.into(),
            quick: Cycle {
                enabled: true,
                interval: HOUR_NS,
            },
            full: Cycle {
                enabled: true,
                interval: 24 * HOUR_NS,
            },
            log_retention: LogRetention {
                max_total_size: 1 << 30,
                max_count: 10_000,
                max_age: 30 * 24 * HOUR_NS,
            },
            extend_object_locks: false,
            list_parallelism: 0,
        },
    };
    let mut changes = Changes::default();
    changes.put(Labels::from([("type".to_string(), TYPE.to_string())]), &parameters)?;
    old.iter().for_each(|manifest| changes.delete(manifest));
    let (user, host) = owner.split_once('@').unwrap_or((owner, ""));
    let options = WriteOptions {
        sealers: 0,
        uploads: 1,
        compression: CompressionPolicy::None,
        user: user.into(),
        host: host.into(),
    };
    WriteSession::begin(repository, &options)?.commit_changes(&changes)?;
    Ok(())
}

/// Owner and times, as far as the repository tells.
pub fn state(repository: &Repository) -> Result<State> {
    let manifests = repository.manifests()?;
    let owner = match manifests.find(&[("type", TYPE)]).last() {
        Some(manifest) => Some(parse(manifest.data.get())?.owner).filter(|owner| !owner.is_empty()),
        None => None,
    };
    let runs = match repository.store().get(&BlobId::known(format::MAINTENANCE_ID)) {
        Ok(sealed) => repository.format().open_maintenance(&sealed)?.runs,
        Err(e) if e.is_not_found() => BTreeMap::new(),
        Err(e) => return Err(e),
    };
    // Every full run ends with log clean-up and every quick one with an attempt to compact an epoch.
    let last = |task: &str| runs.get(task)?.iter().find(|run| run.success).map(|run| run.end);
    Ok(State {
        owner,
        last_quick: last("compact-single-epoch").or_else(|| last("advance-epoch")),
        last_full: last("cleanup-logs"),
    })
}

fn parse(text: &str) -> Result<Parameters> {
    serde_json::from_str(text)
        .map_err(|e| RepoError::corrupt("the maintenance parameters are not the expected JSON").because(e))
}
