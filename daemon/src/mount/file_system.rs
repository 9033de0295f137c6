//! What file system a device holds, and how it is mounted so that nothing is written where nothing may be.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use nbd::attach::{PartitionTable, apart};
use rustix::mount::{MountFlags, UnmountFlags};
use tracing::warn;

use crate::error::{JobError, Result};

/// A file system whose devices are known by their first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext2, ext3 or ext4; with a journal that was not played back, or not.
    Ext {
        /// Its last changes are in the journal alone.
        is_dirty: bool,
    },
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
}

/// Bytes from the start that say what it is: the superblock of btrfs ends here.
const HEAD_LEN: usize = (64 << 10) + 4096;

impl FileSystem {
    /// By the magic numbers of fs/ext4/ext4.h, fs/xfs/libxfs/xfs_format.h and include/uapi/linux/btrfs_tree.h.
    fn in_head(head: &[u8]) -> Option<Self> {
        let at = |from: usize, len: usize| head.get(from..from + len);
        if at(0x438, 2) == Some(&[0x53, 0xef]) {
            // s_feature_incompat of the superblock at 1024: bit 2 is RECOVER.
            let features = at(1024 + 0x60, 1)?;
            return Some(Self::Ext {
                is_dirty: features[0] & 4 != 0,
            });
        }
        if at(0, 4) == Some(b"XFSB") {
            return Some(Self::Xfs);
        }
        (at((64 << 10) + 0x40, 8) == Some(b"_BHRfS_M")).then_some(Self::Btrfs)
    }

    /// Its name for the kernel, and the options that make a mount read and write nothing it should not.
    fn options(self, read_only: bool) -> (&'static str, &'static str) {
        match (self, read_only) {
            // The kernel plays a journal back on read-only mounts, too, unless it is told not to.
            (Self::Ext { .. }, true) => ("ext4", "noload"),
            (Self::Ext { .. }, false) => ("ext4", ""),
            // A file system that is mounted beside the one it was copied from has the same UUID.
            (Self::Xfs, true) => ("xfs", "norecovery,nouuid"),
            (Self::Xfs, false) => ("xfs", "nouuid"),
            (Self::Btrfs, true) => ("btrfs", "rescue=nologreplay"),
            (Self::Btrfs, false) => ("btrfs", ""),
        }
    }
}

/// The first bytes of `device`, which tell what is on it.
fn head(device: &Path) -> Result<Vec<u8>> {
    let path = device.to_owned();
    let read = move || -> io::Result<Vec<u8>> {
        let file = File::open(path)?;
        let mut head = vec![0; HEAD_LEN];
        let mut len = 0;
        while len < head.len() {
            match file.read_at(&mut head[len..], len as u64)? {
                0 => break,
                more => len += more,
            }
        }
        head.truncate(len);
        Ok(head)
    };
    apart("read the device", read)?.map_err(|source| JobError::File {
        what: format!("read the first bytes of {}", device.display()),
        source,
    })
}

/// What is said of a device with `head` on which there is no file system to mount.
fn refusal(head: &[u8]) -> JobError {
    JobError::Usage(match PartitionTable::in_head(head) {
        Some(table) => format!(
            "the volume holds a table of partitions ({table}) and no file system of its own; mount it without --fs, which prints a \
             device, and mount one of its partitions by hand: `lsblk DEVICE` lists them (`partx -a DEVICE` where the kernel does \
             not), and `mount -o ro DEVICEp1 DIR` mounts the first"
        ),
        None => "the volume holds no file system that is known here (ext2-4, XFS, btrfs), and no table of partitions; mount it \
                 without --fs, and look at the device by hand"
            .to_owned(),
    })
}

/// Mounts what is on `device` at `folder`, which must be there.
///
/// # Errors
/// `Usage` when nothing known is on it; otherwise what the kernel says.
pub fn mount(device: &Path, folder: &Path, read_only: bool) -> Result<()> {
    let head = head(device)?;
    let found = FileSystem::in_head(&head).ok_or_else(|| refusal(&head))?;
    if read_only && found == (FileSystem::Ext { is_dirty: true }) {
        warn!(
            "the file system was in use when it was backed up; without its journal, which nothing may be played back from on a \
             read-only device, recent files may be missing or torn: --writable plays it back"
        );
    }
    let (name, data) = found.options(read_only);
    let mut flags = MountFlags::NODEV | MountFlags::NOSUID;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    let data = std::ffi::CString::new(data).expect("no NUL in it");
    let (from, to) = (device.to_owned(), folder.to_owned());
    let mounted = apart("mount the device", move || {
        rustix::mount::mount(from, to, name, flags, Some(data.as_c_str()))
    })?;
    mounted.map_err(|error| JobError::File {
        what: format!("mount {} ({name}) at {}", device.display(), folder.display()),
        source: error.into(),
    })
}

/// Takes the file system at `folder` away; that there is none is no error.
///
/// # Errors
/// When somebody uses it.
pub fn unmount(folder: &Path) -> Result<()> {
    let path = folder.to_owned();
    match apart("unmount the device", move || {
        rustix::mount::unmount(path, UnmountFlags::NOFOLLOW)
    })? {
        // Not a mount point, or not there: somebody else has unmounted it.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => {
            let users = match error {
                rustix::io::Errno::BUSY => users(folder),
                _ => Vec::new(),
            };
            let by = match users.is_empty() {
                true => String::new(),
                false => format!(", which {} uses", users.join(", ")),
            };
            Err(JobError::File {
                what: format!("unmount {}{by}", folder.display()),
                source: error.into(),
            })
        }
    }
}

/// Processes that have something of the file system at `folder` open, or are in it, as far as this one may see; at most
/// [`USERS_MAX`].
fn users(folder: &Path) -> Vec<String> {
    let Ok(there) = fs::metadata(folder) else {
        return Vec::new();
    };
    let is_there = |path: &Path| fs::metadata(path).is_ok_and(|found| found.dev() == there.dev());
    let mut users = Vec::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit()) {
        let process = process.path();
        let mut open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let uses = ["cwd", "root", "exe"].iter().any(|link| is_there(&process.join(link)));
        if uses || open.any(|fd| is_there(&fd.path())) {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            let id = process.file_name().unwrap_or_default().to_string_lossy().into_owned();
            users.push(format!("process {id} ({})", name.trim()));
        }
        if users.len() == USERS_MAX {
            break;
        }
    }
    users
}

/// Users of a file system that a message names: the first tells what to look for.
const USERS_MAX: usize = 8;

/// Takes the file system at `folder` out of sight, of which nothing can be had any more, or which is to be taken from its users.
pub fn give_up(folder: &Path) {
    let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
    // What is not mounted needs no unmounting; what stays shows by the mount that follows, or to the one who looks.
    let _ = rustix::mount::unmount(folder, flags);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_known_by_their_magic_numbers() {
        let mut ext = vec![0; HEAD_LEN];
        ext[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(FileSystem::in_head(&ext), Some(FileSystem::Ext { is_dirty: false }));
        ext[1024 + 0x60] = 0x46;
        assert_eq!(FileSystem::in_head(&ext), Some(FileSystem::Ext { is_dirty: true }));
        assert_eq!(FileSystem::in_head(b"XFSB\0\0"), Some(FileSystem::Xfs));
        let mut btrfs = vec![0; HEAD_LEN];
        btrfs[0x1_0040..0x1_0048].copy_from_slice(b"_BHRfS_M");
        assert_eq!(FileSystem::in_head(&btrfs), Some(FileSystem::Btrfs));
        for none in [&[][..], &[0; 2000], &[0x53; 0x438 + 1]] {
            assert_eq!(FileSystem::in_head(none), None);
        }
    }

    #[test]
    fn what_is_read_only_plays_no_journal_back() {
        for found in [FileSystem::Ext { is_dirty: true }, FileSystem::Xfs, FileSystem::Btrfs] {
            assert!(!found.options(true).1.is_empty(), "{found:?}");
        }
    }
}
