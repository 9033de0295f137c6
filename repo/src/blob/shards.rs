//! Where a file system store keeps a blob: the `.shards` rules of Kopia's sharded stores.
//!
//! Source of the file's fields and of the path rule: kopia, repo/blob/sharded/sharded.go and parameters.go.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Kind, RepoError, Result};

/// Name of the parameter file in the root of a store.
pub(super) const FILE_NAME: &str = ".shards";

/// Ending of every blob file; other names are not blobs.
pub(super) const SUFFIX: &str = ".f";

/// Deepest path accepted. Kopia's widest default is two levels.
const LEVELS_MAX: usize = 16;

/// How blob names are cut into folders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shards {
    /// Characters for each folder level.
    pub(super) default: Vec<usize>,
    /// Blobs with names up to this long lie in the root.
    #[serde(rename = "maxNonShardedLength", default)]
    pub(super) flat_len_max: usize,
    /// Other cuts for some prefixes; the first that matches counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) overrides: Vec<Override>,
}

/// Other folder levels for names that begin with `prefix`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Override {
    prefix: String,
    shards: Vec<usize>,
}

impl Shards {
    /// What a new repository gets.
    pub(super) fn new_repository() -> Self {
        Self {
            default: vec![1, 3],
            flat_len_max: 20,
            overrides: Vec::new(),
        }
    }

    /// What a repository without a `.shards` file was written with.
    pub(super) fn without_file() -> Self {
        Self {
            default: vec![3, 3],
            ..Self::new_repository()
        }
    }

    /// Reads the parameter file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let shards: Self = serde_json::from_slice(bytes)
            .map_err(|e| RepoError::corrupt(format!("{FILE_NAME} is not the expected JSON")).because(e))?;
        let levels = shards.overrides.iter().map(|o| &o.shards).chain([&shards.default]);
        if levels.into_iter().any(|l| l.len() > LEVELS_MAX || l.contains(&0)) {
            return Err(RepoError::new(
                Kind::Unsupported,
                format!("{FILE_NAME} asks for empty or too many folder levels"),
            ));
        }
        Ok(shards)
    }

    /// The file of blob `id` below `root`.
    pub(super) fn path(&self, root: &Path, id: &str) -> PathBuf {
        let mut path = root.to_path_buf();
        let mut rest = id;
        if id.len() > self.flat_len_max {
            let levels = self
                .overrides
                .iter()
                .find(|o| id.starts_with(&o.prefix))
                .map_or(&self.default, |o| &o.shards);
            for &len in levels {
                if rest.len() <= len {
                    break;
                }
                let (folder, tail) = rest.split_at(len);
                path.push(folder);
                rest = tail;
            }
        }
        path.push(format!("{rest}{SUFFIX}"));
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(shards: &Shards, id: &str, path: &str) {
        assert_eq!(shards.path(Path::new("r"), id), Path::new("r").join(path));
    }

    #[test]
    fn paths_follow_the_default_levels() {
        let new = Shards::new_repository();
        check(&new, "kopia.repository", "kopia.repository.f");
        check(&new, "xe1", "xe1.f");
        check(&new, "p0123456789abcdef0123-s00", "p/012/3456789abcdef0123-s00.f");
        check(&new, "xn0_00ff00ff00ff00ff00ff", "x/n0_/00ff00ff00ff00ff00ff.f");
        check(
            &Shards::without_file(),
            "p0123456789abcdef0123-s00",
            "p01/234/56789abcdef0123-s00.f",
        );
    }

    #[test]
    fn the_first_override_that_matches_counts() {
        let text = br#"{"default":[1,3],"maxNonShardedLength":5,"overrides":[{"prefix":"p0","shards":[2]},{"prefix":"p","shards":[]}]}"#;
        let shards = Shards::parse(text).expect("valid");
        check(&shards, "p01234", "p0/1234.f");
        check(&shards, "p11234", "p11234.f");
        check(&shards, "q11234", "q/112/34.f");
        check(
            &Shards {
                default: vec![9],
                ..shards
            },
            "q11234",
            "q11234.f",
        );
    }

    #[test]
    fn damaged_parameters_are_refused() {
        assert!(Shards::parse(b"{").is_err());
        assert!(Shards::parse(br#"{"default":[0]}"#).is_err());
        assert_eq!(
            serde_json::to_string(&Shards::new_repository()).expect("json"),
            r#"{"default":[1,3],"maxNonShardedLength":20}"#
        );
    }
}
