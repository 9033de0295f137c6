//! A list of snapshots that one damaged manifest does not end.
//!
//! Who deletes by such a list must use [`Repository::snapshots`] instead, which fails when it cannot tell everything: what is
//! not listed here may still be there.

use crate::error::{RepoError, Result};
use crate::id::ManifestId;
use crate::repository::Repository;
use crate::snapshot::Snapshot;

/// Snapshots, and what could not be read of them.
#[derive(Debug)]
pub struct Listing {
    /// Those that can be read, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// Manifests and contents of manifests that cannot.
    pub damaged: Vec<DamagedManifest>,
}

/// A manifest that cannot be read.
#[derive(Debug)]
pub struct DamagedManifest {
    /// Its id. None when the content it is in cannot be read, so that it is not known how many manifests were in there, nor
    /// which of those listed they would have replaced or deleted.
    pub id: Option<ManifestId>,
    /// Its source as far as labels tell: `user@host:path`.
    pub source: Option<String>,
    /// What is wrong, with the name of the manifest or content.
    pub error: RepoError,
}

impl Repository {
    /// All snapshots that can be read, and all that cannot.
    ///
    /// # Errors
    /// Of the storage. Damage is listed.
    pub fn list_snapshots(&self) -> Result<Listing> {
        let mut damaged = Vec::new();
        let manifests = match self.manifests() {
            Err(e) if e.is_damage() => self.try_manifests(&mut |content, e| match e.is_damage() {
                true => {
                    damaged.push(DamagedManifest {
                        id: None,
                        source: None,
                        error: e.context(format!("manifest content {content}")),
                    });
                    Ok(())
                }
                false => Err(e),
            })?,
            other => other?,
        };
        let mut snapshots = Vec::new();
        for manifest in manifests.find(&[("type", Snapshot::TYPE)]) {
            match Snapshot::parse(manifest) {
                Ok(snapshot) => snapshots.push(snapshot),
                Err(error) => {
                    let label = |name| manifest.labels.get(name);
                    let source = match (label("username"), label("hostname"), label("path")) {
                        (Some(user), Some(host), Some(path)) => Some(format!("{user}@{host}:{path}")),
                        _ => None,
                    };
                    damaged.push(DamagedManifest {
                        id: Some(manifest.id),
                        source,
                        error,
                    });
                }
            }
        }
        snapshots.sort_by_key(|s| (s.start, s.id));
        Ok(Listing { snapshots, damaged })
    }
}
