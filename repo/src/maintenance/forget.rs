//! Forgetting: deletions that two collections have confirmed become final, by moving the watermark.
//!
//! From then on nobody sees those contents any more, and packs that only they held can go.

use serde::Serialize;

use super::census::Census;
use super::collect::Count;
use super::journal::{History, Task, safe_drop_time};
use super::safety::Safety;
use crate::error::{RepoError, Result};
use crate::index::EntryRef;
use crate::time::Time;

/// What would be forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ForgetTotals {
    /// Deletions up to this moment become final; none when it is too early for any.
    pub up_to: Option<Time>,
    /// Contents that they concern.
    pub to_forget: Count,
    /// Contents whose deletion is not old enough.
    pub waiting: Count,
}

impl std::fmt::Display for ForgetTotals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.up_to {
            None => f.write_str("no deletion can become final before another collection confirms it")?,
            Some(up_to) => write!(f, "deletions up to {up_to} become final: {}", self.to_forget)?,
        }
        write!(f, "; {} wait", self.waiting)
    }
}

/// Up to when deletions can become final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ForgetPlan {
    pub(super) totals: ForgetTotals,
    /// The new watermark in unix seconds, when there is reason to move it.
    pub(super) watermark: Option<u64>,
}

impl ForgetPlan {
    /// Decides from the history, which has this run's collection, and the winning entries. `here` is the host's time.
    pub(super) fn new<'a>(
        history: &History,
        here: Time,
        safety: &Safety,
        watermark: Option<u64>,
        rows: impl Iterator<Item = EntryRef<'a>>,
    ) -> Self {
        let up_to = if safety.two_collections {
            let runs = history.runs(Task::SnapshotGc.name());
            safe_drop_time(runs, safety.collection_margin, safety.drop_margin)
        } else {
            Some(here)
        };
        let up_to = up_to.filter(|up_to| watermark.is_none_or(|watermark| up_to.unix() > watermark));
        let mut totals = ForgetTotals {
            up_to,
            ..ForgetTotals::default()
        };
        for entry in rows.filter(|entry| entry.deleted && !entry.is_forgotten(watermark)) {
            let final_now = up_to.is_some_and(|up_to| entry.time <= up_to.unix());
            let count = if final_now {
                &mut totals.to_forget
            } else {
                &mut totals.waiting
            };
            count.add(u64::from(entry.packed_len));
        }
        Self {
            totals,
            // Without a deletion to forget, another watermark blob would only be one more blob.
            watermark: up_to.filter(|_| totals.to_forget.count > 0).map(Time::unix),
        }
    }
}

/// Refuses when a content that a snapshot uses would be forgotten.
///
/// # Errors
/// `Corrupt`: a collection of this run should have given that content back.
pub(super) fn guard<'a>(census: &Census<'_>, rows: impl Iterator<Item = EntryRef<'a>>, watermark: u64) -> Result<()> {
    for entry in rows {
        if entry.is_forgotten(Some(watermark))
            && !entry.is_forgotten(census.watermark())
            && census.uses_content(&entry.content)
        {
            let what = format!(
                "content {} is used by a snapshot and marked deleted at {}; deletions up to {} do not become final",
                entry.content,
                Time::from_unix(entry.time),
                Time::from_unix(watermark)
            );
            return Err(RepoError::corrupt(what));
        }
    }
    Ok(())
}
