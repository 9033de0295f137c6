//! The cache's files of one repository: written beside and renamed, so that processes share them without a lock.
//!
//! Nothing in here fails: what cannot be read or written is as if it were not there. The first trouble of each kind is a
//! warning, those after it are debug lines.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tracing::{debug, warn};

use super::frame::{HEAD_LEN, Head};
use super::sweep::Ledger;
use crate::crypto::Secret32;

/// Only the owner reads cached files: tables are not encrypted.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// What names of unfinished files begin with.
pub(super) const UNFINISHED: &str = "tmp-";

/// A use is noted in the time of a file at most so often: the order of uses matters by the hour, and each note is a write.
const TOUCH_INTERVAL: Duration = Duration::from_secs(3600);

/// Tries to write a file whose folder vanishes. Two are needed at the start; somebody who clears again and again may win.
const WRITE_TRIES: u32 = 3;

/// Files of one repository in the cache.
pub(super) struct Folder {
    path: PathBuf,
    key: Secret32,
    ledger: Ledger,
    /// Tells apart the unfinished files of processes and hosts that share the folder.
    random: u64,
    next: AtomicU64,
    /// Nothing is written any more.
    is_read_only: AtomicBool,
    has_warned_of_reading: AtomicBool,
    has_warned_of_damage: AtomicBool,
    damaged: AtomicU64,
    written_bytes: AtomicU64,
}

/// A file whose head and note were checked. It stays readable when another process removes it.
pub(super) struct Opened {
    pub(super) name: String,
    pub(super) note: Vec<u8>,
    file: File,
    head: Head,
    pub(super) modified: SystemTime,
}

impl Folder {
    /// The files in `path` under `key`, made if missing. Writes are counted in `ledger`.
    ///
    /// # Errors
    /// When there is no such folder and none can be made.
    pub(super) fn open(path: PathBuf, key: Secret32, ledger: Ledger) -> io::Result<Self> {
        make_folder(&path)?;
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("the system's random source failed"))?;
        Ok(Self {
            path,
            key,
            ledger,
            random: u64::from_le_bytes(random),
            next: AtomicU64::new(0),
            is_read_only: AtomicBool::new(false),
            has_warned_of_reading: AtomicBool::new(false),
            has_warned_of_damage: AtomicBool::new(false),
            damaged: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
        })
    }

    /// Where the files are.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Files found damaged by this process.
    pub(super) fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Bytes written by this process.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Files are written, as far as is known.
    pub(super) fn is_writable(&self) -> bool {
        !self.is_read_only.load(Ordering::Relaxed)
    }

    /// Names of the files in the folder `folder`, unfinished ones left out.
    pub(super) fn names(&self, folder: &str) -> Vec<String> {
        let entries = match fs::read_dir(self.path.join(folder)) {
            Ok(entries) => entries,
            Err(e) => {
                self.cannot_read(&self.path.join(folder), &e);
                return Vec::new();
            }
        };
        let names = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter(|name| !name.starts_with(UNFINISHED))
            .map(|name| format!("{folder}/{name}"))
            .collect()
    }

    /// There is a file called `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.path.join(name).exists()
    }

    /// Opens the file `name` and checks its head and note. One that does not pass is removed.
    pub(super) fn open_file(&self, name: &str) -> Option<Opened> {
        let path = self.path.join(name);
        // A link leads elsewhere, and a pipe in place of a file would make the open wait.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(&path);
        let read = opened.and_then(|mut file| {
            let meta = file.metadata()?;
            let mut head = Vec::with_capacity(HEAD_LEN);
            (&mut file).take(HEAD_LEN as u64).read_to_end(&mut head)?;
            let head = match Head::parse(&head, meta.len()) {
                Ok(head) => head,
                Err(flaw) => return Ok(Err(flaw)),
            };
            let mut note = Vec::new();
            read_into(&mut file, head.note_len, &mut note)?;
            let checked = head.check_note(&self.key, name, &note);
            let modified = meta.modified()?;
            Ok(checked.map(|()| Opened {
                name: name.to_owned(),
                note,
                file,
                head,
                modified,
            }))
        });
        match read {
            Ok(Ok(opened)) => Some(opened),
            Ok(Err(flaw)) => {
                self.reject(name, flaw.why());
                None
            }
            Err(e) => {
                self.cannot_read(&path, &e);
                None
            }
        }
    }

    /// The body of a file, checked. One that does not pass is removed with its file.
    pub(super) fn read_body(&self, mut opened: Opened) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        self.read_unchecked(&mut opened, &mut body)?;
        self.check_body(&opened, &body).then_some(body)
    }

    /// The body of a file in place of what `body` has, and a note that it was used. For bodies that show in another way that they are
    /// what was stored; one that does not is for [`Self::check_body`], which tells why.
    pub(super) fn read_unchecked(&self, opened: &mut Opened, body: &mut Vec<u8>) -> Option<()> {
        let len = usize::try_from(opened.head.body_len).expect("bounded when the head was parsed");
        if let Err(e) = read_into(&mut opened.file, len, body) {
            self.cannot_read(&self.path.join(&opened.name), &e);
            return None;
        }
        let now = SystemTime::now();
        if now
            .duration_since(opened.modified)
            .is_ok_and(|age| age > TOUCH_INTERVAL)
        {
            let _ = opened.file.set_modified(now); // it goes earlier than it would have to
        }
        Some(())
    }

    /// `body` is what was stored in the file. One that is not is removed with its file.
    pub(super) fn check_body(&self, opened: &Opened, body: &[u8]) -> bool {
        let checked = opened.head.check_body(&self.key, body);
        if let Err(flaw) = checked {
            self.reject(&opened.name, flaw.why());
        }
        checked.is_ok()
    }

    /// Stores a file, unless this turns out to be impossible. Tells whether it is there.
    pub(super) fn write(&self, name: &str, note: &[u8], body: &[u8]) -> bool {
        if !self.is_writable() {
            return false;
        }
        let Some(head) = Head::seal(&self.key, name, note, body) else {
            debug!(name, bytes = body.len(), "too large to be cached");
            return false;
        };
        let path = self.path.join(name);
        let mut written = self.try_write(&path, &[&head, note, body]);
        // The first file of its folder, or the cache was cleared under our hands.
        for _ in 0..WRITE_TRIES {
            if !written.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound) {
                break;
            }
            written = make_folder(path.parent().unwrap_or(&self.path))
                .and_then(|()| self.try_write(&path, &[&head, note, body]));
        }
        match &written {
            Ok(()) => {
                let len = (HEAD_LEN + note.len() + body.len()) as u64;
                self.written_bytes.fetch_add(len, Ordering::Relaxed);
                self.ledger.wrote(len);
            }
            Err(e) if e.kind() == ErrorKind::NotFound => debug!(name, "not cached: the cache is being cleared"),
            Err(e) => self.cannot_write(&path, e),
        }
        written.is_ok()
    }

    fn try_write(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let unfinished = path.with_file_name(format!("{UNFINISHED}{:016x}-{number}", self.random));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&unfinished)?;
        let filled = parts.iter().try_for_each(|part| file.write_all(part));
        // Not synced: what a power cut leaves torn is found when it is read.
        let named = filled.and_then(|()| fs::rename(&unfinished, path));
        if named.is_err() {
            let _ = fs::remove_file(&unfinished); // the next sweep does it
        }
        named
    }

    /// Removes a file that is of no use any more.
    pub(super) fn remove(&self, name: &str) {
        if let Err(e) = fs::remove_file(self.path.join(name))
            && e.kind() != ErrorKind::NotFound
        {
            debug!(name, error = %e, "a cached file of no use stays");
        }
    }

    /// Removes a file that is not what it should be. The storage is asked instead.
    pub(super) fn reject(&self, name: &str, why: &str) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
        self.remove(name);
        let path = self.path.join(name);
        if self.has_warned_of_damage.swap(true, Ordering::Relaxed) {
            debug!(path = %path.display(), why, "a damaged file of the cache was removed");
        } else {
            warn!(path = %path.display(), why, "a damaged file of the cache was removed; the repository is asked instead");
        }
    }

    fn cannot_read(&self, path: &Path, error: &io::Error) {
        if error.kind() == ErrorKind::NotFound {
            return; // not cached
        }
        if self.has_warned_of_reading.swap(true, Ordering::Relaxed) {
            debug!(path = %path.display(), %error, "a cached file cannot be read");
        } else {
            warn!(path = %path.display(), %error, "a cached file cannot be read; the repository is asked instead");
        }
    }

    /// Nothing more is written from here on: the next try would fail as well, a gigabyte later.
    fn cannot_write(&self, path: &Path, error: &io::Error) {
        if !self.is_read_only.swap(true, Ordering::Relaxed) {
            warn!(path = %path.display(), %error, "the cache cannot be written; going on without adding to it");
        }
    }
}

/// Makes a folder that only its owner may look into.
fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)
}

/// The next `len` bytes, which the file has by its length, in place of what `bytes` has. One that was cut since gives fewer, which
/// its code does not fit.
fn read_into(file: &mut File, len: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
    bytes.clear();
    bytes.reserve_exact(len);
    file.take(len as u64).read_to_end(bytes).map(drop)
}
