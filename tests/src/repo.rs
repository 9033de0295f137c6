//! Folders of repositories and of file trees.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Failure, Result};

/// SHA-256 in lower-case hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// SHA-256 and length of a file of any size.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_file(path: &Path) -> Result<(u64, String)> {
    let io = || -> io::Result<(u64, String)> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut buf = vec![0; 1 << 20];
        let mut total = 0;
        loop {
            let len = file.read(&mut buf)?;
            if len == 0 {
                return Ok((total, hex::encode(hasher.finalize())));
            }
            hasher.update(&buf[..len]);
            total += len as u64;
        }
    };
    io().map_err(Failure::at(format!("read {}", path.display())))
}

/// Copies a folder with its files, sub-folders and symbolic links into `target`, which is created.
///
/// # Errors
/// When something cannot be read or written, or is neither file, folder nor link.
pub fn copy_tree(source: &Path, target: &Path) -> Result<()> {
    copy_tree_io(source, target).map_err(Failure::at(format!(
        "copy {} to {}",
        source.display(),
        target.display()
    )))
}

fn copy_tree_io(source: &Path, target: &Path) -> io::Result<()> {
    fs::create_dir_all(target)?;
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let (from, to) = (entry.path(), target.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree_io(&from, &to)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
        } else if kind.is_file() {
            fs::copy(&from, &to)?;
        } else {
            return Err(io::Error::other(format!(
                "{}: neither file, folder nor link",
                from.display()
            )));
        }
    }
    Ok(())
}

/// One entry of a file tree, by its path below the root; the root itself is the empty path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TreeEntry {
    /// Path below the root with `/` between names.
    pub path: String,
    /// What it is, with what it holds.
    #[serde(flatten)]
    pub kind: TreeKind,
}

/// What an entry of a file tree is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum TreeKind {
    /// A folder.
    Directory,
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// SHA-256 of the bytes in lower-case hex.
        sha256: String,
    },
    /// A symbolic link.
    Symlink {
        /// What it points to, as stored.
        target: String,
    },
}

/// Everything below `root`, sorted by path; just the one entry when `root` is a file.
///
/// # Errors
/// When something cannot be read.
pub fn list_tree(root: &Path) -> Result<Vec<TreeEntry>> {
    let mut entries = Vec::new();
    list_into(root, String::new(), &mut entries)?;
    entries.sort();
    Ok(entries)
}

fn list_into(path: &Path, name: String, entries: &mut Vec<TreeEntry>) -> Result<()> {
    let failed = || Failure::at::<io::Error>(format!("read {}", path.display()));
    let meta = fs::symlink_metadata(path).map_err(failed())?;
    let kind = if meta.is_dir() {
        TreeKind::Directory
    } else if meta.is_symlink() {
        let target = fs::read_link(path).map_err(failed())?;
        TreeKind::Symlink {
            target: target.to_string_lossy().into_owned(),
        }
    } else {
        let (size, sha256) = sha256_file(path)?;
        TreeKind::File { size, sha256 }
    };
    let is_folder = kind == TreeKind::Directory;
    entries.push(TreeEntry {
        path: name.clone(),
        kind,
    });
    if is_folder {
        for entry in fs::read_dir(path).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let child = entry.file_name().to_string_lossy().into_owned();
            let child = if name.is_empty() {
                child
            } else {
                format!("{name}/{child}")
            };
            list_into(&entry.path(), child, entries)?;
        }
    }
    Ok(())
}

/// Longest blob name that stays in the root of a filesystem repository (kopia's `.shards` default).
const UNSHARDED_NAME_MAX: usize = 20;

/// The `.shards` file of a repository created on a file system today.
pub const SHARDS_FILE: &str = r#"{"default":[1,3],"maxNonShardedLength":20}"#;

/// File of a blob below the root of a filesystem repository with shards 1 and 3.
pub fn blob_file(blob: &str) -> PathBuf {
    let mut path = PathBuf::new();
    let mut rest = blob;
    if blob.len() > UNSHARDED_NAME_MAX {
        for len in [1, 3] {
            let Some((folder, tail)) = rest.split_at_checked(len).filter(|(_, tail)| !tail.is_empty()) else {
                break;
            };
            path.push(folder);
            rest = tail;
        }
    }
    path.push(format!("{rest}.f"));
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_lie_where_kopia_puts_them() {
        let path = |blob| blob_file(blob).to_string_lossy().into_owned();
        assert_eq!(path("kopia.repository"), "kopia.repository.f");
        assert_eq!(path("xe1"), "xe1.f");
        assert_eq!(path("p0123456789abcdef0123-s00"), "p/012/3456789abcdef0123-s00.f");
        assert_eq!(path("xn0_00ff00ff00ff00ff00ff"), "x/n0_/00ff00ff00ff00ff00ff.f");
    }

    #[test]
    fn a_copied_tree_lists_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("a");
        fs::create_dir_all(source.join("sub/empty")).unwrap();
        fs::write(source.join("sub/file"), b"abc").unwrap();
        symlink("file", source.join("sub/link")).unwrap();
        let target = folder.path().join("b");
        copy_tree(&source, &target).unwrap();
        let entries = list_tree(&target).unwrap();
        assert_eq!(entries, list_tree(&source).unwrap());
        let paths: Vec<_> = entries.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["", "sub", "sub/empty", "sub/file", "sub/link"]);
        assert_eq!(
            entries[3].kind,
            TreeKind::File {
                size: 3,
                sha256: sha256(b"abc")
            }
        );
        assert_eq!(entries[4].kind, TreeKind::Symlink { target: "file".into() });
    }
}
