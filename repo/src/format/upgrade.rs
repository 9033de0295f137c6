//! What keeps clients out: an upgrade under way, and features they do not know.

use serde::{Deserialize, Serialize};

use super::REPOSITORY_ID;
use crate::error::{Kind, RepoError, Result};
use crate::time::Time;

/// An announced upgrade of the repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpgradeLock {
    /// Client that upgrades.
    #[serde(rename = "ownerID", default)]
    pub owner: String,
    /// When the lock was placed.
    #[serde(rename = "creationTime")]
    pub created: Time,
    /// Notice given to other clients, in nanoseconds.
    #[serde(default)]
    pub advance_notice_duration: i64,
    /// Time that clients get to end what they do, in nanoseconds.
    #[serde(rename = "ioDrainTimeout", default)]
    pub io_drain_timeout: i64,
    /// How often the owner looks, in nanoseconds.
    #[serde(default)]
    pub status_poll_interval: i64,
    /// Text for operators.
    #[serde(default)]
    pub message: String,
    /// Clock difference between clients that the owner allows for, in nanoseconds.
    #[serde(default)]
    pub max_permitted_clock_drift: i64,
}

impl UpgradeLock {
    /// Everyone but the owner must stop reading and writing at `now` (unix seconds). Parts of a second are rounded so that
    /// the lock begins early rather than late.
    pub fn is_locked(&self, now: u64) -> bool {
        let notice = i128::from(self.advance_notice_duration);
        let drain = i128::from(self.max_permitted_clock_drift) + 2 * i128::from(self.io_drain_timeout);
        let now = (i128::from(now) + 1) * 1_000_000_000;
        let created = i128::from(self.created.unix()) * 1_000_000_000;
        notice < drain || now > created + notice - drain
    }
}

/// Something a client must understand to use the repository.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RequiredFeature {
    feature: String,
    #[serde(default)]
    if_not_understood: IfNotUnderstood,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct IfNotUnderstood {
    warn: bool,
    message: String,
    url: String,
    upgrade_to_version: String,
}

/// Features this crate understands (kopia, repo/open.go).
const KNOWN: [&str; 2] = ["index-v1", "index-v2"];

/// The unknown features that may be passed over with a warning.
pub(super) fn ignored_features(required: &[RequiredFeature]) -> Result<Vec<String>> {
    let unknown = required.iter().filter(|r| !KNOWN.contains(&r.feature.as_str()));
    unknown
        .map(|r| {
            let hint = &r.if_not_understood;
            let texts = [&hint.message, &hint.url, &hint.upgrade_to_version];
            let text: Vec<&str> = texts
                .into_iter()
                .map(String::as_str)
                .filter(|t| !t.is_empty())
                .collect();
            let what = format!("required feature {:?} ({})", r.feature, text.join("; "));
            if hint.warn {
                Ok(what)
            } else {
                Err(RepoError::new(
                    Kind::Unsupported,
                    format!("{REPOSITORY_ID}: {what} is not known to this version"),
                ))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000_000_000;
    const CREATED: u64 = 1_787_270_400;

    fn lock(notice_minutes: i64) -> UpgradeLock {
        UpgradeLock {
            owner: "host".into(),
            created: Time::from_unix(CREATED),
            advance_notice_duration: notice_minutes * MINUTE,
            io_drain_timeout: 15 * MINUTE,
            status_poll_interval: MINUTE,
            message: String::new(),
            max_permitted_clock_drift: 5 * MINUTE,
        }
    }

    #[test]
    fn a_lock_with_little_notice_holds_at_once_and_forever() {
        assert!(lock(0).is_locked(0));
        assert!(lock(34).is_locked(CREATED));
        assert!(lock(34).is_locked(u64::MAX));
    }

    #[test]
    fn a_lock_with_notice_holds_when_clients_must_have_drained() {
        let begin = CREATED + (60 - 35) * 60;
        assert!(!lock(60).is_locked(CREATED));
        assert!(!lock(60).is_locked(begin - 1));
        assert!(lock(60).is_locked(begin));
        assert!(lock(60).is_locked(begin + 1_000_000));
    }

    #[test]
    fn absurd_durations_do_not_overflow() {
        let extreme = UpgradeLock {
            io_drain_timeout: i64::MAX,
            max_permitted_clock_drift: i64::MAX,
            ..lock(0)
        };
        assert!(extreme.is_locked(u64::MAX));
        let extreme = UpgradeLock {
            io_drain_timeout: i64::MIN,
            advance_notice_duration: i64::MAX,
            ..lock(0)
        };
        assert!(!extreme.is_locked(0));
    }

    #[test]
    fn unknown_features_are_refused_unless_they_only_warn() {
        let parse = |json: &str| ignored_features(&serde_json::from_str::<Vec<RequiredFeature>>(json).expect("json"));
        assert!(
            parse(r#"[{"feature":"index-v1"},{"feature":"index-v2","ifNotUnderstood":{}}]"#)
                .expect("known")
                .is_empty()
        );
        let e = parse(r#"[{"feature":"warp","ifNotUnderstood":{"warn":false,"message":"get a newer one"}}]"#)
            .expect_err("unknown");
        assert_eq!(e.kind(), Kind::Unsupported);
        assert!(e.what().contains("warp") && e.what().contains("get a newer one"), "{e}");
        let ignored = parse(r#"[{"feature":"warp","ifNotUnderstood":{"warn":true}}]"#).expect("only warns");
        assert_eq!(ignored.len(), 1);
    }
}
