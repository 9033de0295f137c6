//! The file from which a verification that was cut short goes on.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::VerifyOptions;
use crate::error::{Kind, RepoError, Result};
use crate::id::{ContentId, ManifestId};
use crate::repository::Repository;
use crate::snapshot::Snapshot;
use crate::time::Time;

/// Version of the file.
const VERSION: u32 = 1;

/// Longest file read, in bytes. Each damage takes about 300, and 10,000 are kept.
const FILE_LEN_MAX: u64 = 64 << 20;

/// Time between two writes of the file: what is read again after a cut.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);

/// What is in the file, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyState {
    version: u32,
    /// Unique id of the repository, in hex.
    repository: String,
    /// The snapshots.
    snapshots: BTreeSet<String>,
    percent: f64,
    /// Where the sample begins, 0 to 100.
    pub(super) phase: f64,
    /// Time of the newest pack when the verification began, by the storage's clock.
    pub(super) newest: Time,
    /// Name of the last pack that is done; packs are done in order of their names.
    pub(super) done: String,
    pub(super) contents_read: u64,
    pub(super) read_bytes: u64,
    /// Contents that could not be read.
    pub(super) damage: Vec<Unreadable>,
}

/// A content that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Unreadable {
    pub(super) content: String,
    pub(super) what: String,
}

impl VerifyState {
    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// `InvalidInput` when they are not what this version writes.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let bad = |why: &str| RepoError::new(Kind::InvalidInput, format!("not the state of a verification: {why}"));
        let state: Self = serde_json::from_slice(bytes).map_err(|e| bad("not the expected JSON").because(e))?;
        if state.version != VERSION {
            return Err(bad("of another version"));
        }
        if !(0.0..=100.0).contains(&state.percent) || !(0.0..100.0).contains(&state.phase) {
            return Err(bad("a share outside 0 to 100"));
        }
        for unreadable in &state.damage {
            unreadable
                .content
                .parse::<ContentId>()
                .map_err(|e| bad("a content id").because(e))?;
        }
        for snapshot in &state.snapshots {
            snapshot
                .parse::<ManifestId>()
                .map_err(|e| bad("a snapshot id").because(e))?;
        }
        Ok(state)
    }

    /// The state kept in the file `path`, when there is one.
    ///
    /// # Errors
    /// When it cannot be read, or is no state.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let failed = |e| RepoError::storage(format!("read {}", path.display()), e);
        match fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
            Ok(meta) if meta.len() > FILE_LEN_MAX => {
                let what = format!("{} has {} bytes, more than a state has", path.display(), meta.len());
                return Err(RepoError::new(Kind::InvalidInput, what));
            }
            Ok(_) => {}
        }
        let bytes = fs::read(path).map_err(failed)?;
        Self::parse(&bytes).map(Some).map_err(|e| e.context(path.display()))
    }

    /// The snapshots it is about.
    pub fn snapshots(&self) -> Vec<ManifestId> {
        self.snapshots.iter().filter_map(|id| id.parse().ok()).collect()
    }

    /// The beginning of a verification.
    pub(super) fn begin(
        repository: &Repository,
        snapshots: &[Snapshot],
        options: &VerifyOptions,
        newest: SystemTime,
    ) -> Self {
        // Another sample each time: over many runs every content is read.
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            version: VERSION,
            repository: hex::encode(&repository.format().unique_id),
            snapshots: names(snapshots),
            percent: options.percent,
            phase: f64::from(now.subsec_nanos() % 100_000) / 1000.0,
            newest: newest.into(),
            done: String::new(),
            contents_read: 0,
            read_bytes: 0,
            damage: Vec::new(),
        }
    }

    /// Refuses the state of another verification than this one.
    fn check(&self, repository: &Repository, snapshots: &[Snapshot], options: &VerifyOptions) -> Result<()> {
        let differs = if self.repository != hex::encode(&repository.format().unique_id) {
            "another repository"
        } else if (self.percent - options.percent).abs() > 1e-9 {
            // A number may change its last digit on the way through text.
            "another share of the contents"
        } else if !names(snapshots).is_subset(&self.snapshots) {
            "other snapshots"
        } else {
            return Ok(());
        };
        let what = format!("it is the state of a verification of {differs}; give another file, or remove it");
        Err(RepoError::new(Kind::InvalidInput, what))
    }
}

fn names(snapshots: &[Snapshot]) -> BTreeSet<String> {
    snapshots.iter().filter_map(|s| s.id).map(|id| id.to_string()).collect()
}

/// A state and the file it is kept in, if it is kept.
pub(super) struct Resume {
    pub(super) state: VerifyState,
    path: Option<PathBuf>,
    saved: Instant,
}

impl Resume {
    /// Goes on from the file `path` when it is there, and begins otherwise.
    pub(super) fn open(
        path: Option<&Path>,
        repository: &Repository,
        snapshots: &[Snapshot],
        options: &VerifyOptions,
        newest: SystemTime,
    ) -> Result<Self> {
        let loaded = path.map(VerifyState::load).transpose()?.flatten();
        if let (Some(state), Some(path)) = (&loaded, path) {
            let checked = state.check(repository, snapshots, options);
            checked.map_err(|e| e.context(path.display()))?;
        }
        Ok(Self {
            state: loaded.unwrap_or_else(|| VerifyState::begin(repository, snapshots, options, newest)),
            path: path.map(Path::to_path_buf),
            saved: Instant::now(),
        })
    }

    /// Writes the file when it is time to.
    pub(super) fn save_when_due(&mut self) -> Result<()> {
        match self.saved.elapsed() >= SAVE_INTERVAL {
            true => self.save(),
            false => Ok(()),
        }
    }

    /// Writes the file: the old one or the new one is there, whole, whatever happens.
    pub(super) fn save(&mut self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".tmp");
        let temporary = path.with_file_name(name);
        let text = serde_json::to_vec(&self.state).expect("plain data becomes JSON");
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(&text)?;
            file.sync_data()?;
            fs::rename(&temporary, path)
        };
        write().map_err(|e| RepoError::storage(format!("write {}", path.display()), e))?;
        self.saved = Instant::now();
        Ok(())
    }

    /// Removes the file: there is nothing to go on with.
    pub(super) fn finish(&self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        match fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(RepoError::storage(format!("remove {}", path.display()), e))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_back_and_nothing_else_is_taken_for_one() {
        let state = VerifyState {
            version: VERSION,
            repository: "aa".into(),
            snapshots: BTreeSet::from(["00112233445566778899aabbccddeeff".into()]),
            percent: 100.0,
            phase: 1.5,
            newest: Time::from_unix(7),
            done: "p00".into(),
            contents_read: 1,
            read_bytes: 2,
            damage: vec![Unreadable {
                content: "aabb".into(),
                what: "why".into(),
            }],
        };
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(VerifyState::parse(text.as_bytes()).unwrap(), state);
        for (old, new) in [
            ("\"version\":1", "\"version\":2"),
            ("100.0", "100.5"),
            ("1.5", "-1"),
            ("aabb", "xx"),
            ("0011", "0"),
            ("{", "["),
        ] {
            let error = VerifyState::parse(text.replacen(old, new, 1).as_bytes()).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidInput, "{new}");
        }
    }
}
