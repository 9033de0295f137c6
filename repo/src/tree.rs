//! The tree of files in a snapshot, read folder by folder.
//!
//! Links are entries like others and are never followed. Nothing is read before it is asked for; a folder is in memory while its
//! entries are gone through, a file only piece by piece.
//!
//! Names come from whoever wrote the snapshot. Velero's file uploader names a device by its whole path, so a name with `/` is
//! listed and found; who makes a file of an entry asks [`file_name`] first.

use crate::directory::{DirectoryEntry, EntryKind};
use crate::error::{Kind, RepoError, Result};
use crate::object::BlockAddressTable;
use crate::repository::Repository;
use crate::snapshot::Snapshot;

/// Deepest nest of folders gone into. Linux opens no path deeper than this at once either (4,096 bytes).
pub const DEPTH_MAX: usize = 1024;

/// Longest target of a link read, in bytes: Linux has none longer.
const LINK_LEN_MAX: u64 = 4096;

/// The files of one snapshot.
pub struct Tree<'r> {
    repository: &'r Repository,
    root: DirectoryEntry,
}

/// The bytes of a file, as far as they are known without reading them.
pub struct FileBytes<'r> {
    repository: &'r Repository,
    table: BlockAddressTable,
}

impl<'r> Tree<'r> {
    /// The tree of `snapshot`.
    ///
    /// # Errors
    /// `InvalidInput` when the snapshot has no root.
    pub fn new(repository: &'r Repository, snapshot: &Snapshot) -> Result<Self> {
        let root = snapshot
            .root
            .clone()
            .ok_or_else(|| RepoError::new(Kind::InvalidInput, "the snapshot has no root"))?;
        Ok(Self { repository, root })
    }

    /// The entry at `path` below the root, whose names are separated by `/`; the root itself for an empty path.
    ///
    /// # Errors
    /// `InvalidInput` when there is none, with the folder that lacks it; else as [`Self::list`].
    pub fn find(&self, path: &str) -> Result<DirectoryEntry> {
        let path = path.trim_matches('/');
        let (mut entry, mut rest) = (self.root.clone(), path);
        while !rest.is_empty() {
            let place = path[..path.len() - rest.len()].trim_end_matches('/');
            if entry.kind != EntryKind::Directory {
                let what =
                    format!("{place:?} in the snapshot is no folder that could hold {rest:?}; links are not followed");
                return Err(RepoError::new(Kind::InvalidInput, what));
            }
            let entries = self.list(&entry)?;
            let (name, behind) = rest.split_once('/').unwrap_or((rest, ""));
            let named = entries.iter().find(|entry| entry.name == name);
            // A device that is named by its path.
            let whole = || entries.iter().find(|entry| entry.name.trim_matches('/') == rest);
            (entry, rest) = match (named, whole()) {
                (Some(found), _) => (found.clone(), behind.trim_start_matches('/')),
                (None, Some(found)) => (found.clone(), ""),
                (None, None) => {
                    let what = format!("no {name:?} in the folder {place:?} of the snapshot; `blockferry ls` lists it");
                    return Err(RepoError::new(Kind::InvalidInput, what));
                }
            };
        }
        Ok(entry)
    }

    /// What is in `folder`, by name.
    ///
    /// # Errors
    /// Of the storage, and `Corrupt` when it is not a folder, or has two entries of one name.
    pub fn list(&self, folder: &DirectoryEntry) -> Result<Vec<DirectoryEntry>> {
        let mut entries = self.repository.read_directory(&folder.object)?.entries;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        match entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
            Some(pair) => Err(RepoError::corrupt(format!(
                "folder {} has two entries of the name {:?}",
                folder.object, pair[0].name
            ))),
            None => Ok(entries),
        }
    }

    /// Calls `each` with the path below `folder` and the entry of everything in it, a folder before what it holds; with
    /// `recursive` also of everything in its folders.
    ///
    /// # Errors
    /// Of `each`; as [`Self::list`], and `Corrupt` past [`DEPTH_MAX`].
    pub fn walk<E: From<RepoError>>(
        &self,
        folder: &DirectoryEntry,
        recursive: bool,
        each: &mut dyn FnMut(&str, DirectoryEntry) -> Result<(), E>,
    ) -> Result<(), E> {
        // For every folder on the way down: what is left of it, and the length of the path to it.
        let mut open = vec![(self.list(folder)?.into_iter(), 0)];
        let mut path = String::new();
        while let Some((entries, len)) = open.last_mut() {
            path.truncate(*len);
            let Some(entry) = entries.next() else {
                open.pop();
                continue;
            };
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(&entry.name);
            let inner = match recursive && entry.kind == EntryKind::Directory {
                true if open.len() >= DEPTH_MAX => {
                    let what = format!("{path:?}: folders nested more than {DEPTH_MAX} deep");
                    return Err(RepoError::corrupt(what).into());
                }
                true => Some(entry.clone()),
                false => None,
            };
            each(&path, entry)?;
            if let Some(folder) = inner {
                let entries = self.list(&folder).map_err(|e| e.context(format!("{path:?}")))?;
                open.push((entries.into_iter(), path.len()));
            }
        }
        Ok(())
    }

    /// The bytes of `file`: all lists are read and every piece is in the index, so that what fails later is damage.
    ///
    /// # Errors
    /// `Corrupt` when a piece is missing or the length is not the one of the entry.
    pub fn open(&self, file: &DirectoryEntry) -> Result<FileBytes<'r>> {
        let repository = self.repository;
        let table = repository.table(&file.object)?;
        // Velero and old versions of Kopia leave the size out where they do not know it.
        if file.size != 0 && file.size != table.len() {
            return Err(RepoError::corrupt(format!(
                "file {:?} has {} bytes by its entry and {} by its list",
                file.name,
                file.size,
                table.len()
            )));
        }
        let missing = |i: &usize| repository.deleted_at(&table.content(*i)).is_none();
        if let Some(at) = (0..table.count()).find(missing) {
            let piece = table.entry(at);
            return Err(RepoError::corrupt(format!(
                "file {:?}: content {} of byte {} is not in the index",
                file.name, piece.content, piece.extent.offset
            )));
        }
        Ok(FileBytes { repository, table })
    }

    /// Where the link `entry` points.
    ///
    /// # Errors
    /// `Corrupt` when that is longer than any link, or empty; else of the storage.
    pub fn link_target(&self, entry: &DirectoryEntry) -> Result<Vec<u8>> {
        let table = self.repository.table(&entry.object)?;
        if table.is_empty() || table.len() > LINK_LEN_MAX {
            let what = format!("link {:?} has a target of {} bytes", entry.name, table.len());
            return Err(RepoError::corrupt(what));
        }
        self.repository.read_object(&entry.object)
    }
}

impl FileBytes<'_> {
    /// How many there are.
    #[expect(
        clippy::len_without_is_empty,
        reason = "a number of bytes; nothing is a container here"
    )]
    pub fn len(&self) -> u64 {
        self.table.len()
    }

    /// Reads them from the front and gives them to `each`, one piece (of up to 16 MiB, as Kopia cuts them) at a time.
    ///
    /// # Errors
    /// Of `each`, and of [`Repository::read_piece`].
    pub fn each_piece<E: From<RepoError>>(&self, each: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        for piece in self.table.iter() {
            self.repository.keep_fresh()?;
            each(&self.repository.read_piece(&piece)?)?;
        }
        Ok(())
    }
}

/// The name of `entry`, when a file can have it.
///
/// # Errors
/// `Corrupt` for an empty name, `.`, `..`, and names with `/` or NUL.
pub fn file_name(entry: &DirectoryEntry) -> Result<&str> {
    let name = entry.name.as_str();
    match matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
        true => Err(RepoError::corrupt(format!(
            "{name:?} in the snapshot is not a name a file can have"
        ))),
        false => Ok(name),
    }
}

#[cfg(test)]
mod tests;
