//! Logs that Kopia's clients leave in the repository: how many stay.

use std::time::SystemTime;

use serde::Serialize;

use super::collect::Count;
use super::parameters::LogRetention;
use crate::blob::BlobMeta;
use crate::time::Time;

/// Prefix of Kopia's logs.
pub(super) const PREFIX: &str = "_log_";

/// What would go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogTotals {
    /// Logs to be deleted.
    pub to_delete: Count,
    /// Logs that stay.
    pub retained: Count,
}

impl std::fmt::Display for LogTotals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} logs go, {} stay", self.to_delete, self.retained)
    }
}

/// Logs beyond the limits, oldest last, given all of them. From the newest on they stay until a limit is met.
pub(super) fn plan(mut logs: Vec<BlobMeta>, retention: &LogRetention, now: Time) -> (LogTotals, Vec<BlobMeta>) {
    logs.sort_by_key(|log| std::cmp::Reverse((log.modified, log.id.clone())));
    let mut totals = LogTotals::default();
    let age_ns = |modified: SystemTime| now.since(Time::from(modified)).as_nanos();
    let stays = |log: &BlobMeta, so_far: Count| {
        (retention.bytes_max == 0 || so_far.bytes + log.len <= retention.bytes_max)
            && (retention.count_max == 0 || so_far.count < retention.count_max)
            && (retention.age_ns_max == 0 || age_ns(log.modified) <= u128::from(retention.age_ns_max))
    };
    let mut keep = 0;
    while let Some(log) = logs.get(keep).filter(|log| stays(log, totals.retained)) {
        totals.retained.add(log.len);
        keep += 1;
    }
    let victims = logs.split_off(keep);
    victims.iter().for_each(|log| totals.to_delete.add(log.len));
    (totals, victims)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::id::BlobId;

    fn logs(ages: &[u64]) -> Vec<BlobMeta> {
        let log = |age: &u64| BlobMeta {
            id: BlobId::known(format!("_log_{age}")),
            len: 10,
            modified: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age),
        };
        ages.iter().map(log).collect()
    }

    #[track_caller]
    fn check(retention: LogRetention, ages: &[u64], gone: &[&str]) {
        let (totals, victims) = plan(logs(ages), &retention, Time::from_unix(1_000_000));
        let names: Vec<_> = victims.iter().map(|log| log.id.as_str()).collect();
        assert_eq!(names, gone);
        assert_eq!(totals.to_delete.count + totals.retained.count, ages.len() as u64);
    }

    #[test]
    fn the_newest_stay_within_every_limit() {
        let limits = |bytes_max, count_max, seconds: u64| LogRetention {
            bytes_max,
            count_max,
            age_ns_max: seconds * 1_000_000_000,
        };
        check(limits(0, 0, 0), &[5, 1, 9], &[]);
        check(limits(0, 2, 0), &[5, 1, 9], &["_log_9"]);
        check(limits(15, 0, 0), &[5, 1, 9], &["_log_5", "_log_9"]);
        check(limits(0, 0, 4), &[5, 1, 9], &["_log_5", "_log_9"]);
        check(limits(0, 1, 4), &[], &[]);
    }
}
