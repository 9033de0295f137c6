//! Folders of mounts: one each, in `mounts` of the state folder.
//!
//! ```text
//! mounts/ID/record      what the mount is, JSON
//!           attached    its device and server, JSON; there as long as there may be a device
//!           lock        held by the server for as long as it lives
//!           control     the server's Unix socket
//!           log         what the server said
//!           written/    what was written (nbd::Overlay), or which parts of the target count
//! ```

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{Attached, Record};
use crate::error::{JobError, Result};

const RECORD: &str = "record";
const ATTACHED: &str = "attached";
const LOCK: &str = "lock";
const CONTROL: &str = "control";
const LOG: &str = "log";
const WRITTEN: &str = "written";

/// A record or an attachment is some hundred bytes; what is longer was not written by us.
const FILE_LEN_MAX: u64 = 1 << 20;

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> JobError {
    let what = format!("{what} {}", path.display());
    move |source| JobError::File { what, source }
}

/// Where the mounts of this host are.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// The mounts in the state folder `state`.
    ///
    /// # Errors
    /// When the working folder, which a relative path starts from, is gone.
    pub fn in_state(state: &Path) -> Result<Self> {
        let full = std::path::absolute(state).map_err(failed("find", state))?;
        Ok(Self(full.join("mounts")))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where it is remembered what readers of images touched first.
    pub fn touches(&self) -> PathBuf {
        self.0.with_file_name("touches")
    }

    /// The mount called `id`, which may not be there.
    pub fn folder(&self, id: &str) -> Folder {
        Folder(self.0.join(id))
    }

    /// All mounts, by name. Files that are not ours are passed over.
    ///
    /// # Errors
    /// When the folder cannot be read; that there is none is no error.
    pub fn folders(&self) -> Result<Vec<Folder>> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &self.0)(error)),
        };
        let mut folders = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.0))?;
            if entry.path().join(RECORD).is_file() {
                folders.push(Folder(entry.path()));
            }
        }
        folders.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(folders)
    }

    /// Makes the folder, for nobody else to look into.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn make(&self) -> Result<()> {
        make(&self.0)
    }
}

fn make(path: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(path).map_err(failed("make", path))
}

/// The folder of one mount.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

/// The right to be the server of a mount, as long as it is held. The kernel takes it back from one who dies.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

impl Folder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What the mount is called.
    pub fn id(&self) -> String {
        self.0.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// What its server says.
    pub fn log(&self) -> PathBuf {
        self.0.join(LOG)
    }

    /// What was written.
    pub fn written(&self) -> PathBuf {
        self.0.join(WRITTEN)
    }

    /// The server's socket.
    pub fn control(&self) -> PathBuf {
        self.0.join(CONTROL)
    }

    /// Makes the folder, if need be, and claims it; `None` when somebody else holds it.
    ///
    /// # Errors
    /// When the folder cannot be made or locked.
    pub fn claim(&self) -> Result<Option<Claim>> {
        make(&self.0)?;
        self.try_lock()
    }

    /// Claims a mount that is there; `None` when somebody else holds it.
    ///
    /// # Errors
    /// When it is not there, or cannot be locked.
    pub fn try_lock(&self) -> Result<Option<Claim>> {
        let path = self.0.join(LOCK);
        loop {
            let mut options = File::options();
            let lock = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
            let lock = lock.map_err(failed("open", &path))?;
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(failed("lock", &path)(error.into())),
            }
            // One who unmounts removes the folder under its lock; what was locked may be gone.
            let same = |a: rustix::fs::Stat, b: rustix::fs::Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
            match (rustix::fs::fstat(&lock), rustix::fs::stat(&path)) {
                (Ok(held), Ok(there)) if same(held, there) => return Ok(Some(Claim { _lock: lock })),
                _ => continue,
            }
        }
    }

    /// What the mount is; `None` when there is none.
    ///
    /// # Errors
    /// When the file cannot be read, or is not one of ours.
    pub fn record(&self) -> Result<Option<Record>> {
        let record: Option<Record> = self.read(RECORD)?;
        match record {
            Some(record) if record.version != Record::VERSION => Err(JobError::Usage(format!(
                "{} is of version {}, known is {}",
                self.0.join(RECORD).display(),
                record.version,
                Record::VERSION
            ))),
            record => Ok(record),
        }
    }

    /// Its device, as far as a server left word.
    ///
    /// # Errors
    /// When the file cannot be read, or is not one of ours.
    pub fn attached(&self) -> Result<Option<Attached>> {
        self.read(ATTACHED)
    }

    /// Writes what the mount is, durably.
    ///
    /// # Errors
    /// When that fails; then what was there before still is.
    pub fn put_record(&self, _claim: &Claim, record: &Record) -> Result<()> {
        self.write(RECORD, record)
    }

    /// Writes what its device is, durably.
    ///
    /// # Errors
    /// When that fails; then what was there before still is.
    pub fn put_attached(&self, _claim: &Claim, attached: &Attached) -> Result<()> {
        self.write(ATTACHED, attached)
    }

    /// There is no device any more.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove_attached(&self, _claim: &Claim) -> Result<()> {
        for name in [CONTROL, ATTACHED] {
            let path = self.0.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes all of it. The record goes first: without one there is no mount, whatever else is left.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(&self, _claim: Claim) -> Result<()> {
        let record = self.0.join(RECORD);
        match fs::remove_file(&record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &record)(error)),
            _ => {}
        }
        fs::remove_dir_all(&self.0).map_err(failed("remove", &self.0))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.0.join(name);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
            Ok(found) if found.len() > FILE_LEN_MAX => {
                let text = format!("{} has {} bytes; it is not ours", path.display(), found.len());
                return Err(JobError::Usage(text));
            }
            Ok(_) => {}
        }
        let bytes = fs::read(&path).map_err(failed("read", &path))?;
        let parsed = serde_json::from_slice(&bytes);
        parsed
            .map(Some)
            .map_err(|error| JobError::Usage(format!("{} cannot be read: {error}", path.display())))
    }

    fn write<T: Serialize>(&self, name: &str, document: &T) -> Result<()> {
        let path = self.0.join(name);
        let text = serde_json::to_vec_pretty(document).expect("plain data becomes JSON");
        let write = || -> io::Result<()> {
            let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.0)?;
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            File::open(&self.0)?.sync_all()
        };
        write().map_err(failed("write", &path))
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::super::record::{Mode, boot_id};
    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::in_state(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn a_mount_is_there_from_its_record_until_it_is_removed() {
        let (_dir, root) = root();
        assert!(root.folders().unwrap().is_empty());
        let folder = root.folder("a");
        let claim = folder.claim().unwrap().unwrap();
        assert!(root.folders().unwrap().is_empty() && folder.record().unwrap().is_none());
        folder.put_record(&claim, &record(Mode::Writable)).unwrap();
        assert_eq!(folder.record().unwrap(), Some(record(Mode::Writable)));
        assert_eq!(root.folders().unwrap().len(), 1);
        let attached = Attached {
            pid: 1,
            boot: boot_id(),
            device: "/dev/loop0".into(),
            attach: nbd::attach::Kind::FuseLoop,
            logical_block: 512,
            attach_ms: 3,
        };
        folder.put_attached(&claim, &attached).unwrap();
        assert_eq!(folder.attached().unwrap(), Some(attached));
        folder.remove_attached(&claim).unwrap();
        folder.remove_attached(&claim).unwrap();
        assert_eq!(folder.attached().unwrap(), None);
        folder.remove(claim).unwrap();
        assert!(root.folders().unwrap().is_empty() && !folder.path().exists());
    }

    #[test]
    fn a_mount_is_claimed_by_one() {
        let (_dir, root) = root();
        let folder = root.folder("a");
        let claim = folder.claim().unwrap().unwrap();
        assert!(folder.claim().unwrap().is_none());
        drop(claim);
        assert!(folder.try_lock().unwrap().is_some());
    }

    #[test]
    fn files_of_others_are_errors_that_name_them() {
        let (_dir, root) = root();
        let folder = root.folder("a");
        let claim = folder.claim().unwrap().unwrap();
        for (bytes, word) in [
            (b"{".to_vec(), "cannot be read"),
            (vec![b' '; 2 << 20], "not ours"),
            (b"{}".to_vec(), "cannot be read"),
        ] {
            fs::write(folder.path().join(RECORD), bytes).unwrap();
            let text = folder.record().unwrap_err().to_string();
            assert!(text.contains(word) && text.contains("record"), "{text}");
        }
        let later = Record {
            version: 2,
            ..record(Mode::ReadOnly)
        };
        folder.put_record(&claim, &later).unwrap();
        assert!(folder.record().unwrap_err().to_string().contains("version 2"));
    }
}
