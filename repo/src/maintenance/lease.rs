//! One maintenance of a repository at a time on this host.
//!
//! A lock file, held by the kernel for as long as the process lives: a killed run leaves nothing to clean up. Against other
//! hosts the schedule blob guards ([`super::journal`]); Kopia has no lock in the repository either.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Kind, RepoError, Result};
use crate::format::Format;

/// Bytes of a repository's unique id in the name of its lock file; they tell repositories apart.
const ID_BYTES: usize = 16;

/// Held while it lives.
#[derive(Debug)]
pub(super) struct Lease {
    _file: File,
}

impl Lease {
    /// Takes the lease of the repository with these parameters, in the folder `folder` of this host.
    ///
    /// # Errors
    /// `Busy` when another process of this host has it.
    pub(super) fn take(folder: &Path, format: &Format) -> Result<Self> {
        let id = &format.unique_id[..format.unique_id.len().min(ID_BYTES)];
        let path = folder.join(format!("blockferry-maintenance-{}.lock", hex::encode(id)));
        let failed = |e| RepoError::storage(format!("open the lock file {}", path.display()), e);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => {
                let what = format!(
                    "another process of this host maintains the repository (it holds {}); wait until it is done",
                    path.display()
                );
                Err(RepoError::new(Kind::Busy, what))
            }
            Err(TryLockError::Error(e)) => Err(RepoError::storage(format!("lock {}", path.display()), e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_is_refused_until_the_first_is_over() {
        let folder = tempfile::tempdir().expect("folder");
        let format = crate::format::tests::known_format();
        let first = Lease::take(folder.path(), &format).expect("free");
        let refused = Lease::take(folder.path(), &format).expect_err("held");
        assert_eq!(refused.kind(), Kind::Busy);
        drop(first);
        Lease::take(folder.path(), &format).expect("free again");
    }
}
