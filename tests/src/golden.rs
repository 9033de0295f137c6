//! Repositories that the real kopia wrote, kept in `tests/golden`.
//!
//! Each folder there holds `repo/` (files as kopia left them), `expected.json` ([`Expected`]: what a reader must find) and
//! `recipe.md` (the commands that made it). `cargo xtask golden` makes them again. `vectors.json` is of another kind: two small
//! repositories as base64, written by Kopia's library code, see [`vectors`].

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;

use crate::repo::{SHARDS_FILE, TreeEntry, blob_file, copy_tree};
use crate::{Failure, Result};

/// All golden repositories by name.
pub const NAMES: &[&str] = &[
    "default",
    "blake3",
    "hmac-chacha",
    "zstd",
    "tree",
    "deleted",
    "epochs",
    "version-1",
    "upgraded",
    "ecc-1",
    "ecc-2",
    "ecc-5",
    "ecc-10",
    "nested",
];

/// Password of every golden repository.
pub const PASSWORD: &str = "golden-passw0rd";

/// What a reader must find in a golden repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Expected {
    /// Release of kopia that made it.
    pub kopia: String,
    /// Password of the repository.
    pub password: String,
    /// Kopia's name of the content hash.
    pub hash: String,
    /// Kopia's name of the content encryption.
    pub encryption: String,
    /// Kopia's name of the default splitter.
    pub splitter: String,
    /// Snapshots that are there, in the order they were taken.
    pub snapshots: Vec<ExpectedSnapshot>,
    /// Manifest ids of snapshots that were deleted and must not be found.
    pub deleted: Vec<String>,
}

/// One snapshot of a golden repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExpectedSnapshot {
    /// Manifest id.
    pub id: String,
    /// `user@host:path`.
    pub source: String,
    /// Type of the root entry as kopia writes it: `f` or `d`.
    pub root_kind: String,
    /// Object id of the root entry.
    pub root_object: String,
    /// Everything below the root, sorted by path; the root itself is the empty path.
    pub entries: Vec<TreeEntry>,
}

/// A golden repository on disk. Not to be written to: see [`Golden::materialise`].
#[derive(Clone, Debug)]
pub struct Golden {
    /// Its name, one of [`NAMES`].
    pub name: String,
    /// Folder of the repository as committed.
    pub repo: PathBuf,
    /// What is in it.
    pub expected: Expected,
}

/// A copy of a repository in a folder of its own, removed on drop.
#[derive(Debug)]
pub struct Materialised {
    /// Folder of the repository.
    pub repo: PathBuf,
    _folder: TempDir,
}

/// Folder of all golden data in the source tree.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

impl Golden {
    /// Loads the golden repository `name`.
    ///
    /// # Errors
    /// When there is none of that name, or its listing cannot be read.
    pub fn load(name: &str) -> Result<Self> {
        Self::load_from(&folder(), name)
    }

    /// Loads the golden repository `name` from another folder than the source tree's.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_from(folder: &Path, name: &str) -> Result<Self> {
        let file = folder.join(name).join("expected.json");
        let failed = |error: &dyn std::fmt::Display| Failure::new(format!("read {}: {error}", file.display()));
        let text = fs::read_to_string(&file).map_err(|error| failed(&error))?;
        let expected = serde_json::from_str(&text).map_err(|error| failed(&error))?;
        Ok(Self {
            name: name.to_owned(),
            repo: folder.join(name).join("repo"),
            expected,
        })
    }

    /// All of them.
    ///
    /// # Errors
    /// When one cannot be loaded.
    pub fn all() -> Result<Vec<Self>> {
        NAMES.iter().map(|name| Self::load(name)).collect()
    }

    /// A copy that may be written to.
    ///
    /// # Errors
    /// When the copy cannot be made.
    pub fn materialise(&self) -> Result<Materialised> {
        let folder = tempfile::tempdir().map_err(Failure::at("create folder for a golden repository"))?;
        let repo = folder.path().join("repo");
        copy_tree(&self.repo, &repo)?;
        Ok(Materialised { repo, _folder: folder })
    }
}

/// A repository of `vectors.json`.
#[derive(Clone, Debug)]
pub struct Vector {
    /// Names of hash and encryption, joined by ` + `.
    pub algorithms: String,
    /// Blob names and their bytes.
    pub blobs: Vec<(String, Vec<u8>)>,
    /// Manifest id, object id, length and SHA-256 of the content, and more, as Kopia's code reported them.
    pub expect: Value,
}

/// Password of the repositories of [`vectors`].
pub const VECTORS_PASSWORD: &str = "static-passw0rd";

/// The repositories of `vectors.json`.
///
/// # Errors
/// When the file cannot be read.
pub fn vectors() -> Result<Vec<Vector>> {
    let file = folder().join("vectors.json");
    let text = fs::read_to_string(&file).map_err(Failure::at(format!("read {}", file.display())))?;
    let document: Value = serde_json::from_str(&text).map_err(Failure::at("parse vectors.json"))?;
    let repositories = document["repositories"]
        .as_array()
        .ok_or_else(|| Failure::new("vectors.json: no repositories"))?;
    repositories.iter().map(vector).collect()
}

fn vector(repository: &Value) -> Result<Vector> {
    let blobs = repository["blobs"]
        .as_object()
        .ok_or_else(|| Failure::new("vectors.json: no blobs"))?;
    let decode = |(name, bytes): (&String, &Value)| {
        let bytes = STANDARD.decode(bytes.as_str().unwrap_or_default());
        bytes
            .map(|bytes| (name.clone(), bytes))
            .map_err(Failure::at(format!("vectors.json: blob {name}")))
    };
    Ok(Vector {
        algorithms: repository["algorithms"].as_str().unwrap_or_default().to_owned(),
        blobs: blobs.iter().map(decode).collect::<Result<_>>()?,
        expect: repository["expect"].clone(),
    })
}

impl Vector {
    /// Writes the blobs as files of a filesystem repository.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn materialise(&self) -> Result<Materialised> {
        let folder = tempfile::tempdir().map_err(Failure::at("create folder for a repository"))?;
        let repo = folder.path().join("repo");
        let write = |path: PathBuf, bytes: &[u8]| {
            let parent = path.parent().unwrap_or(&repo);
            fs::create_dir_all(parent)
                .and_then(|()| fs::write(&path, bytes))
                .map_err(Failure::at("write blob"))
        };
        write(repo.join(".shards"), SHARDS_FILE.as_bytes())?;
        for (name, bytes) in &self.blobs {
            write(repo.join(blob_file(name)), bytes)?;
        }
        Ok(Materialised { repo, _folder: folder })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kopia::{self, Kopia};
    use crate::repo::list_tree;

    /// Kopia reads the committed files as it wrote them: nothing was lost on the way through version control.
    #[test]
    fn golden_repositories_hold_what_their_listing_says() {
        if !kopia::available() {
            return;
        }
        for golden in Golden::all().unwrap() {
            let copy = golden.materialise().unwrap();
            let kopia = Kopia::new(&copy.repo, &golden.expected.password).unwrap();
            kopia.connect().unwrap();
            let mut found: Vec<_> = kopia
                .snapshot_list_json()
                .unwrap()
                .iter()
                .map(|s| s["id"].clone())
                .collect();
            let mut expected: Vec<_> = golden
                .expected
                .snapshots
                .iter()
                .map(|s| Value::from(s.id.clone()))
                .collect();
            found.sort_by_key(Value::to_string);
            expected.sort_by_key(Value::to_string);
            assert_eq!(found, expected, "{}", golden.name);
            let last = golden.expected.snapshots.last().unwrap();
            let target = copy.repo.with_file_name("restored");
            kopia.restore(&last.id, &target).unwrap();
            assert_eq!(list_tree(&target).unwrap(), last.entries, "{}", golden.name);
        }
    }

    #[test]
    fn vectors_become_repositories_that_kopia_opens() {
        if !kopia::available() {
            return;
        }
        let vectors = vectors().unwrap();
        assert_eq!(vectors.len(), 2);
        for vector in vectors {
            let copy = vector.materialise().unwrap();
            let kopia = Kopia::new(&copy.repo, VECTORS_PASSWORD).unwrap();
            kopia.connect().unwrap();
            let object = vector.expect["oid"].as_str().unwrap();
            let bytes = crate::process::output(&mut kopia.command(["show", object]), &[]).unwrap();
            assert!(bytes.status.success(), "{}", String::from_utf8_lossy(&bytes.stderr));
            assert_eq!(
                crate::repo::sha256(&bytes.stdout),
                vector.expect["sha256"].as_str().unwrap()
            );
        }
    }
}
