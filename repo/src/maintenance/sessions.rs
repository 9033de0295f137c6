//! Sessions of writing clients, as far as their markers tell: whose packs must not be touched.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tracing::warn;

use crate::blob::BlobMeta;
use crate::error::Result;
use crate::id::BlobId;
use crate::repository::Repository;
use crate::session::Marker;
use crate::time::Time;

/// Prefix of session markers.
pub(super) const PREFIX: &str = "s";

/// A marker that cannot be read. What it guards is guarded for ever: nobody can tell that the session is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnreadableMarker {
    /// The blob.
    pub blob: String,
    /// Its session, when the name tells.
    pub session: Option<String>,
    /// What is wrong with it.
    pub why: String,
}

impl UnreadableMarker {
    /// What to do about it.
    pub fn advice(&self) -> String {
        let guards = match &self.session {
            Some(session) => format!("packs of session {session} stay"),
            None => "no pack at all is deleted, as its name tells no session".into(),
        };
        format!(
            "session marker {} cannot be read ({}): {guards}, and kopia's own maintenance fails at it; when no client is writing, move the blob out of the repository",
            self.blob, self.why
        )
    }
}

/// Why a blob is kept for the sake of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// A session that may be at work, until then unless it says otherwise.
    Until(Time),
    /// An unreadable marker.
    Unreadable,
}

/// All sessions with markers.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    /// Last sign of life by session.
    live: BTreeMap<String, Time>,
    unreadable: Vec<UnreadableMarker>,
}

/// The session in the name of a pack, marker or index blob: the first part after a `-` that begins with `s`.
pub(super) fn session_of(name: &str) -> Option<&str> {
    name.split('-').skip(1).find(|part| part.starts_with('s'))
}

/// Session markers of `repository` that cannot be read.
pub fn unreadable_markers(repository: &Repository) -> Result<Vec<UnreadableMarker>> {
    Ok(Sessions::read(repository)?.unreadable)
}

impl Sessions {
    /// Reads all markers. One that vanishes meanwhile belongs to a session that ended.
    pub(super) fn read(repository: &Repository) -> Result<Self> {
        let mut sessions = Self::default();
        for meta in repository.store().list(PREFIX)? {
            let sealed = match repository.store().get(&meta.id) {
                Err(e) if e.is_not_found() => continue,
                other => other?,
            };
            let opened = repository.contents().open_blob(&meta.id, &sealed);
            let parsed = opened.map_err(|e| e.to_string()).and_then(|text| {
                serde_json::from_slice::<Marker>(&text).map_err(|e| format!("not the expected JSON: {e}"))
            });
            sessions.add(&meta, parsed);
        }
        for marker in &sessions.unreadable {
            warn!(blob = marker.blob, why = marker.why, "{}", marker.advice());
        }
        Ok(sessions)
    }

    fn add(&mut self, meta: &BlobMeta, marker: Result<Marker, String>) {
        let name = meta.id.as_str();
        let session = session_of(name).map(str::to_owned);
        match (session, marker) {
            (Some(session), Ok(marker)) => {
                let last = self.live.entry(session).or_insert(marker.checkpoint);
                *last = marker.checkpoint.max(*last);
            }
            (session, marker) => self.unreadable.push(UnreadableMarker {
                blob: name.to_owned(),
                why: marker.err().unwrap_or_else(|| "its name tells no session".into()),
                session,
            }),
        }
    }

    /// Markers that cannot be read.
    pub(super) fn unreadable(&self) -> &[UnreadableMarker] {
        &self.unreadable
    }

    /// Sessions whose markers say that they may be at work at `now`.
    pub(super) fn live(&self, now: Time, age_max: Duration) -> u64 {
        let live = self.live.values().filter(|last| now.since(**last) < age_max);
        live.count() as u64
    }

    /// What keeps blob `id` at `now`, when a session does.
    pub(super) fn guard(&self, id: &BlobId, now: Time, age_max: Duration) -> Option<Guard> {
        let session = session_of(id.as_str());
        let unreadable = |marker: &UnreadableMarker| {
            marker.session.is_none() || marker.session.as_deref() == session || marker.blob == id.as_str()
        };
        if self.unreadable.iter().any(unreadable) {
            return Some(Guard::Unreadable);
        }
        let last = *self.live.get(session?)?;
        (now.since(last) < age_max).then(|| Guard::Until(last.plus(age_max)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86400);

    fn sessions(markers: &[(&str, Result<u64, &str>)]) -> Sessions {
        let mut sessions = Sessions::default();
        for (name, checkpoint) in markers {
            let meta = BlobMeta {
                id: BlobId::known(*name),
                len: 1,
                modified: std::time::SystemTime::UNIX_EPOCH,
            };
            let marker = checkpoint.map_err(str::to_owned).map(|seconds| Marker {
                id: String::new(),
                start: Time::UNIX_EPOCH,
                checkpoint: Time::from_unix(seconds),
                username: String::new(),
                hostname: String::new(),
            });
            sessions.add(&meta, marker);
        }
        sessions
    }

    fn guard(sessions: &Sessions, name: &str, now: u64) -> Option<Guard> {
        sessions.guard(&BlobId::known(name), Time::from_unix(now), DAY)
    }

    #[test]
    fn a_session_guards_its_packs_for_as_long_as_its_last_marker_is_young() {
        let sessions = sessions(&[("s0a-s11", Ok(1000)), ("s0b-s11", Ok(5000)), ("s0c-s22", Ok(0))]);
        let until = Some(Guard::Until(Time::from_unix(5000).plus(DAY)));
        assert_eq!(guard(&sessions, "p00-s11", 6000), until);
        assert_eq!(
            guard(&sessions, "p00-s11", 4000),
            until,
            "a clock that is ahead is no death"
        );
        assert_eq!(guard(&sessions, "p00-s11", 5000 + 86400), None);
        assert_eq!(guard(&sessions, "p00-s33", 0), None);
        assert_eq!(guard(&sessions, "p00", 0), None);
        assert_eq!(sessions.live(Time::from_unix(86400), DAY), 1);
    }

    #[test]
    fn an_unreadable_marker_guards_for_ever_and_without_a_session_everything() {
        let named = sessions(&[("s0a-s11", Err("damaged"))]);
        assert_eq!(guard(&named, "p00-s11", u64::MAX), Some(Guard::Unreadable));
        assert_eq!(
            guard(&named, "s0a-s11", u64::MAX),
            Some(Guard::Unreadable),
            "itself too"
        );
        assert_eq!(guard(&named, "p00-s12", 0), None);
        let unnamed = sessions(&[("sonnet", Err("foreign"))]);
        assert_eq!(guard(&unnamed, "p00-s12", u64::MAX), Some(Guard::Unreadable));
        assert!(unnamed.unreadable()[0].advice().contains("sonnet"));
    }
}
