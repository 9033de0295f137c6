//! Who serves which device: a small file for each in the runtime folder.
//!
//! The file `IDENTIFIER.device` says what the device is, and is locked (`flock`) by whoever serves it, for as long as it lives.
//! The kernel lets a lock go with the last of its process, so that no number of a process has to be believed, two servers never
//! take up the same device, and processes that see other numbers agree. The folder must not outlive a boot: neither do devices.

use super::error::AttachError;
use super::kind::Kind;
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs::{self, DirBuilder, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// End of the name of a record.
const SUFFIX: &str = ".device";

/// Bytes of a record, the rest of it filled with line feeds: written in one call, which a kill does not cut in two.
const RECORD: usize = 512;

/// Who lists devices holds a lock for a moment. Tried so often, with [`PAUSE`] between: half a second.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(25);

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    /// A number that nobody else has, in the device itself where its kind has room for one.
    pub(super) token: u64,
    /// Empty until the kernel has named it.
    pub(super) path: PathBuf,
    /// Its server, as that server saw its own number.
    pub(super) process: u32,
}

impl Record {
    /// Of a device that this process is about to make.
    pub(super) fn new(kind: Kind) -> Self {
        // Two keys of the system's random numbers; only that it is another every time counts.
        let token = RandomState::new().build_hasher().finish();
        Self {
            kind,
            token: token.max(1),
            path: PathBuf::new(),
            process: std::process::id(),
        }
    }

    fn encode(&self) -> [u8; RECORD] {
        let Self {
            kind,
            token,
            path,
            process,
        } = self;
        let text = format!(
            "kind {kind}\ntoken {token:016x}\nprocess {process}\npath {}\n",
            path.display()
        );
        let mut bytes = [b'\n'; RECORD];
        let len = text.len().min(RECORD);
        bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let field = |name: &str| {
            let mut values = text
                .lines()
                .filter_map(|line| line.split_once(' ').filter(|(key, _)| *key == name));
            values.next().map(|(_, value)| value)
        };
        let kind = field("kind")?;
        Some(Self {
            kind: Kind::ALL.into_iter().find(|known| known.to_string() == kind)?,
            token: u64::from_str_radix(field("token")?, 16).ok()?,
            process: field("process")?.parse().ok()?,
            path: field("path")?.into(),
        })
    }
}

/// The right to serve the device of an identifier. Others can have it when this is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    file: File,
    path: PathBuf,
    identifier: String,
}

impl Claim {
    /// Takes it, whether there is a record or not.
    ///
    /// # Errors
    /// [`AttachError::Served`] when somebody else has it.
    pub(super) fn take(runtime: &Path, identifier: &str) -> Result<Self, AttachError> {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(runtime);
        made.map_err(AttachError::system(format!("create {}", runtime.display())))?;
        let path = path_of(runtime, identifier);
        for _ in 0..TRIES {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let opened = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR);
            let file: File = opened
                .map_err(AttachError::system(format!("open {}", path.display())))?
                .into();
            if !lock(&file, FlockOperation::NonBlockingLockExclusive, &path)? {
                thread::park_timeout(PAUSE);
                continue;
            }
            let links = file
                .metadata()
                .map_err(AttachError::system(format!("ask {}", path.display())))?
                .nlink();
            // Who had it may have removed it between our opening and our locking it.
            if links > 0 {
                return Ok(Self {
                    file,
                    path,
                    identifier: identifier.to_owned(),
                });
            }
        }
        Err(AttachError::Served {
            identifier: identifier.to_owned(),
            process: look(runtime, identifier)?
                .and_then(|seen| seen.record)
                .map(|r| r.process),
        })
    }

    /// What was written last.
    pub(super) fn record(&self) -> Result<Option<Record>, AttachError> {
        read(&self.file, &self.path)
    }

    pub(super) fn write(&self, record: &Record) -> Result<(), AttachError> {
        let written = self.file.write_all_at(&record.encode(), 0);
        written.map_err(AttachError::system(format!("write {}", self.path.display())))
    }

    pub(super) fn identifier(&self) -> &str {
        &self.identifier
    }

    /// Gives it up together with its record: there is no such device any more.
    pub(super) fn remove(self) -> Result<(), AttachError> {
        fs::remove_file(&self.path).map_err(AttachError::system(format!("remove {}", self.path.display())))
    }
}

/// A record as seen from outside.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) identifier: String,
    /// Absent when a server died before it wrote one.
    pub(super) record: Option<Record>,
    /// Somebody has the claim.
    pub(super) served: bool,
}

/// The record of this identifier.
pub(super) fn look(runtime: &Path, identifier: &str) -> Result<Option<Seen>, AttachError> {
    let path = path_of(runtime, identifier);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(AttachError::system(format!("open {}", path.display()))(error)),
    };
    // Closing the file lets the lock go.
    let served = !lock(&file, FlockOperation::NonBlockingLockShared, &path)?;
    Ok(Some(Seen {
        identifier: identifier.to_owned(),
        record: read(&file, &path)?,
        served,
    }))
}

/// All records of identifiers with this prefix, in order.
pub(super) fn list(runtime: &Path, prefix: &str) -> Result<Vec<Seen>, AttachError> {
    let failed = || AttachError::system(format!("list {}", runtime.display()));
    let entries = match fs::read_dir(runtime) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed()(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed())?.file_name();
        let identifier = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
        names.extend(identifier.filter(|name| name.starts_with(prefix)).map(str::to_owned));
    }
    names.sort_unstable();
    let seen = names.iter().map(|identifier| look(runtime, identifier));
    seen.filter_map(Result::transpose).collect()
}

fn path_of(runtime: &Path, identifier: &str) -> PathBuf {
    runtime.join(format!("{identifier}{SUFFIX}"))
}

fn lock(file: &File, operation: FlockOperation, path: &Path) -> Result<bool, AttachError> {
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(AttachError::system(format!("lock {}", path.display()))(error)),
    }
}

fn read(file: &File, path: &Path) -> Result<Option<Record>, AttachError> {
    let mut bytes = [0; RECORD];
    let failed = || AttachError::system(format!("read {}", path.display()));
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        // Locked and not written yet, or never.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(failed()(error)),
    }
    let record = Record::parse(&bytes);
    record.map(Some).ok_or_else(|| {
        failed()(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is no record of a device",
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_had_by_one_and_its_record_by_all() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = folder.path().join("run");
        assert!(list(&runtime, "").unwrap().is_empty());
        let claim = Claim::take(&runtime, "bf-a").unwrap();
        assert_eq!(claim.record().unwrap(), None);
        let record = Record {
            path: "/dev/ublkb3".into(),
            ..Record::new(Kind::Ublk)
        };
        claim.write(&record).unwrap();
        assert_eq!(claim.record().unwrap().as_ref(), Some(&record));
        let error = Claim::take(&runtime, "bf-a").unwrap_err();
        assert!(
            matches!(&error, AttachError::Served { process, .. } if *process == Some(std::process::id())),
            "{error}"
        );
        let seen = list(&runtime, "bf-").unwrap();
        assert!(seen.len() == 1 && seen[0].served && seen[0].record.as_ref() == Some(&record));
        assert!(list(&runtime, "other-").unwrap().is_empty());

        // Its server dies: the record stays, and another may have it.
        drop(claim);
        assert!(!look(&runtime, "bf-a").unwrap().unwrap().served);
        let claim = Claim::take(&runtime, "bf-a").unwrap();
        assert_eq!(claim.record().unwrap(), Some(record));
        claim.remove().unwrap();
        assert!(look(&runtime, "bf-a").unwrap().is_none());
    }

    #[test]
    fn what_is_no_record_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bf-a.device");
        fs::write(&path, [b'x'; RECORD]).unwrap();
        let error = look(folder.path(), "bf-a").unwrap_err();
        assert!(error.to_string().contains("read"), "{error}");
        for text in [
            "kind nbd\ntoken 1\nprocess 2\n",
            "kind x\ntoken 1\nprocess 2\npath /dev/x\n",
        ] {
            assert_eq!(Record::parse(text.as_bytes()), None);
        }
    }

    #[test]
    fn tokens_differ() {
        assert_ne!(Record::new(Kind::Ublk).token, Record::new(Kind::Ublk).token);
    }
}
