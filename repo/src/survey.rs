//! What lies in the storage of a repository, from one listing.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::error::Result;
use crate::maintenance::{UnreadableMarker, unreadable_markers};
use crate::repository::Repository;

/// What a listing of all blobs tells.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Blobs and their bytes by kind.
    pub totals: BTreeMap<&'static str, (u64, u64)>,
    /// How far the storage's clock is ahead of this host's at least: the time of the newest blob, when that is yet to come
    /// here. A clock that is behind shows only when something is written, as a session does first.
    pub clock_ahead: Duration,
    /// How long ago the oldest session marker was stored; zero without any. A session lasts ten minutes or so.
    pub oldest_session: Duration,
    /// Session markers that cannot be read.
    pub unreadable: Vec<UnreadableMarker>,
}

impl Survey {
    /// Lists all blobs of `repository` and reads its session markers.
    pub fn of(repository: &Repository) -> Result<Self> {
        let now = SystemTime::now();
        let mut survey = Self {
            unreadable: unreadable_markers(repository)?,
            ..Self::default()
        };
        for blob in repository.store().list("")? {
            let kind = kind(blob.id.as_str());
            let total: &mut (u64, u64) = survey.totals.entry(kind).or_default();
            *total = (total.0 + 1, total.1 + blob.len);
            match blob.modified.duration_since(now) {
                Ok(ahead) => survey.clock_ahead = survey.clock_ahead.max(ahead),
                Err(behind) if kind == SESSIONS => survey.oldest_session = survey.oldest_session.max(behind.duration()),
                Err(_) => {}
            }
        }
        Ok(survey)
    }
}

const SESSIONS: &str = "sessions";

/// What a blob is, by its name.
fn kind(name: &str) -> &'static str {
    match name.as_bytes() {
        [b'p', ..] => "data packs",
        [b'q', ..] => "metadata packs",
        [b'x' | b'n' | b'm' | b'l', ..] => "index",
        [b's', ..] => SESSIONS,
        [b'_', ..] => "logs",
        _ => "parameters",
    }
}
