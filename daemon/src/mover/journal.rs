//! The journal of a running backup, so that one that was interrupted goes on where it was.
//!
//! A file in this host's state folder, appended to as the backup goes: whose session it is, which content each finished chunk has, and the index
//! entries of every pack that reached the storage but no index blob yet. After a crash the next backup of the same source, in
//! the same state, takes the packs into the index and the chunks as read. What it says is never believed on its own: a
//! chunk counts only when its content is alive in the index, a pack only when the storage still has it at its length, and a
//! sample of the chunks is read and compared before the rest is taken over.
//!
//! Layout: a line of magic, then records of tag, length and CRC ([`record`]). A record that is torn or flipped ends the
//! journal: what follows was written later and is read from the source again.

mod record;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use blockio::{ChunkIndex, Device};
use repo::index::{IndexEntry, Table, build_v2};
use repo::maintenance::Safety;
use repo::snapshot::Source;
use repo::{ContentId, Repository, SessionId};
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use record::{Record, Tag};

/// First bytes of a journal; the number is that of the layout.
const MAGIC: &[u8] = b"blockferry backup journal 1\n";

/// Longest journal read, in bytes: 24 bytes a chunk and 60 an entry are 84 MiB a TiB, so this is that of a volume of 12 TiB. A
/// longer one is not continued.
const LEN_MAX: u64 = 1 << 30;

/// Bytes of a journal in which its session is looked for: magic, the state, which is a few hundred bytes beside a path of 4096 at
/// most (twice that as JSON), and the name.
const HEAD_LEN_MAX: u64 = 64 << 10;

/// How long after its last record a journal keeps the marker of its session: maintenance passes over a marker of that age, so
/// it guards nothing any more.
const GUARD_AGE_MAX: Duration = Safety::FULL.session_age_max;

/// The state of a source. A journal is continued only by a backup of the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SourceState {
    /// Whose volume.
    source: String,
    /// Path of the device.
    path: String,
    /// Bytes.
    size: u64,
    /// Change id and volume id of the state, when it has them: then the content is known by name.
    change: Option<(String, String)>,
    /// What moves with every write, for sources without a change id.
    fingerprint: Option<String>,
}

impl SourceState {
    /// The state of `device` now.
    pub(super) fn of(device: &Device, source: &Source, change_id: Option<&str>, volume_id: Option<&str>) -> Self {
        let change = change_id.zip(volume_id);
        Self {
            source: source.to_string(),
            path: device.path().display().to_string(),
            size: device.geometry().size,
            change: change.map(|(change, volume)| (change.to_owned(), volume.to_owned())),
            fingerprint: device.fingerprint().map(|fingerprint| fingerprint.as_str().to_owned()),
        }
    }

    /// Why the content may be another one than that of `before`; nothing when it is the same as far as can be told.
    fn differs_from(&self, before: &Self) -> Option<&'static str> {
        if (&self.source, self.size) != (&before.source, before.size) {
            return Some("the source or its size is another one");
        }
        match (&self.change, &before.change) {
            (Some(now), Some(then)) if now == then => return None,
            (Some(_), Some(_)) => return Some("its change id is another one"),
            (None, None) => {}
            _ => return Some("only one of the two runs knew its change id"),
        }
        match (&self.fingerprint, &before.fingerprint) {
            _ if self.path != before.path => Some("it is at another path"),
            (Some(now), Some(then)) if now == then => None,
            (Some(_), Some(_)) => Some("it was written, attached anew, or the host was started since"),
            _ => Some("this host cannot tell whether it was written since; give --change-id and --volume-id"),
        }
    }
}

/// What an interrupted backup of the same state had done.
#[derive(Debug, Default)]
pub(super) struct Finished {
    /// Content of each finished chunk.
    pub(super) chunks: HashMap<ChunkIndex, ContentId>,
    /// Entries of packs that were stored.
    pub(super) entries: Vec<IndexEntry>,
}

/// How a journal begins.
#[derive(Debug)]
pub(super) enum Begun {
    /// There was none of an interrupted run, or none can be kept.
    Anew,
    /// There was one, of another state.
    Refused(&'static str),
    /// There was one of this state.
    Resumed(Finished),
}

/// The open journal of a running backup. Nothing is appended before [`Self::start`].
pub(super) struct Journal {
    path: PathBuf,
    state: SourceState,
    hash_len: usize,
    file: Mutex<File>,
    /// Writing failed; said once, and no more is written.
    failed: AtomicBool,
}

impl Journal {
    /// Opens the journal of backups of `state` into `repository` below `folder`, and reads what an interrupted one left. Without one
    /// (no folder, no room, another backup of the same source at work) a backup runs all the same and is not resumed; that
    /// is a warning.
    pub(super) fn begin(repository: &Repository, folder: Option<&Path>, state: &SourceState) -> (Option<Self>, Begun) {
        let Some(folder) = folder else {
            return (None, Begun::Anew);
        };
        let folder = journals(folder, repository);
        let name = repository.contents().content_id(None, state.source.as_bytes());
        let path = folder.join(name.to_string());
        match Self::open(repository, &folder, path.clone(), state) {
            Ok((journal, begun)) => (Some(journal), begun),
            Err(e) => {
                warn!(journal = %path.display(), error = %e, "no journal of this backup; if it is interrupted, the next one begins anew");
                (None, Begun::Anew)
            }
        }
    }

    fn open(repository: &Repository, folder: &Path, path: PathBuf, state: &SourceState) -> io::Result<(Self, Begun)> {
        fs::create_dir_all(folder)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        file.try_lock().map_err(|e| match e {
            fs::TryLockError::WouldBlock => io::Error::other("another backup of the same source is running"),
            fs::TryLockError::Error(e) => e,
        })?;
        let hash_len = repository.contents().hash_len();
        let begun = read(&mut file, hash_len, state)?;
        let journal = Self {
            path,
            state: state.clone(),
            hash_len,
            file: Mutex::new(file),
            failed: AtomicBool::new(false),
        };
        Ok((journal, begun))
    }

    /// Begins the file anew, for `session`, with the chunks that are taken over, whose contents the index has by now. What an
    /// interrupted run noted and this one does not rely on is gone with it: the run after this one must not find it, mixed with
    /// what this one reads.
    pub(super) fn start(&self, session: &SessionId, taken_over: &[(ChunkIndex, ContentId)]) {
        if let Err(e) = self.rewrite(session) {
            self.fail(&e);
            self.remove();
        }
        for chunks in taken_over.chunks(4096) {
            self.finished(chunks.iter().map(|(chunk, content)| (*chunk, content.hash())));
        }
    }

    fn rewrite(&self, session: &SessionId) -> io::Result<()> {
        let mut file = self.file.lock().expect("no panic while held");
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(MAGIC)?;
        let mut head = Record::bytes(Tag::State, &serde_json::to_vec(&self.state)?);
        head.extend(Record::bytes(Tag::Session, session.as_str().as_bytes()));
        file.write_all(&head)
    }

    /// Notes chunks and the hashes of their contents.
    pub(super) fn finished<'a>(&self, chunks: impl Iterator<Item = (ChunkIndex, &'a [u8])>) {
        let mut payload = Vec::new();
        for (chunk, hash) in chunks {
            debug_assert_eq!(hash.len(), self.hash_len);
            payload.extend_from_slice(&chunk.get().to_le_bytes());
            payload.extend_from_slice(hash);
        }
        if !payload.is_empty() {
            self.append(Tag::Chunks, &payload);
        }
    }

    /// Notes the entries of a pack that reached the storage.
    pub(super) fn stored(&self, entries: &[IndexEntry]) {
        if entries.is_empty() {
            return;
        }
        match build_v2(entries.to_vec()) {
            Ok(index) => self.append(Tag::Entries, &index),
            Err(e) => debug!(error = %e, "entries that make no index are not noted"),
        }
    }

    fn append(&self, tag: Tag, payload: &[u8]) {
        if self.failed.load(Ordering::Relaxed) {
            return;
        }
        let mut file = self.file.lock().expect("no panic while held");
        if let Err(e) = file.write_all(&Record::bytes(tag, payload)) {
            self.fail(&e);
        }
    }

    /// Nothing more is written.
    fn fail(&self, e: &io::Error) {
        if !self.failed.swap(true, Ordering::Relaxed) {
            warn!(journal = %self.path.display(), error = %e, "the journal of this backup ends here; if it is interrupted, what follows is read again");
        }
    }

    /// Removes the journal: the backup is complete.
    pub(super) fn remove(&self) {
        if let Err(e) = fs::remove_file(&self.path) {
            debug!(journal = %self.path.display(), error = %e, "the journal of a complete backup stays");
        }
    }
}

/// Where journals of backups into `repository` lie below the state folder `folder`.
fn journals(folder: &Path, repository: &Repository) -> PathBuf {
    folder.join("resume").join(hex::encode(&repository.format().unique_id))
}

/// Sessions whose journal stands below `folder`: the next backup of their source takes up their packs, which only their marker
/// keeps from maintenance until then.
///
/// # Errors
/// When it cannot be told; then none may be taken for useless.
pub(super) fn resumable(folder: &Path, repository: &Repository) -> io::Result<HashSet<SessionId>> {
    let mut sessions = HashSet::new();
    let entries = match fs::read_dir(journals(folder, repository)) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(sessions),
        Err(e) => return Err(e),
    };
    for entry in entries {
        match session_of(&entry?.path()) {
            Ok(session) => sessions.extend(session),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {} // its backup is complete
            Err(e) => return Err(e),
        }
    }
    Ok(sessions)
}

/// The session whose packs the journal at `path` notes, while it guards them.
fn session_of(path: &Path) -> io::Result<Option<SessionId>> {
    let file = File::open(path)?;
    let age = SystemTime::now().duration_since(file.metadata()?.modified()?);
    if age.is_ok_and(|age| age > GUARD_AGE_MAX) {
        return Ok(None);
    }
    let mut head = Vec::new();
    file.take(HEAD_LEN_MAX).read_to_end(&mut head)?;
    let records = head.strip_prefix(MAGIC).map(Record::all);
    let session = records.into_iter().flatten().find(|record| record.tag == Tag::Session);
    Ok(session.and_then(|record| SessionId::parse(std::str::from_utf8(record.payload).ok()?).ok()))
}

/// What the journal in `file` says to a backup of `state`.
fn read(file: &mut File, hash_len: usize, state: &SourceState) -> io::Result<Begun> {
    let len = file.metadata()?.len();
    if len == 0 {
        return Ok(Begun::Anew);
    }
    if len > LEN_MAX {
        return Ok(Begun::Refused("its journal is too long"));
    }
    let mut bytes = Vec::new();
    file.take(LEN_MAX).read_to_end(&mut bytes)?;
    Ok(match parse(&bytes, hash_len) {
        None => Begun::Refused("its journal cannot be read"),
        Some((before, finished)) => match state.differs_from(&before) {
            None => Begun::Resumed(finished),
            Some(why) => Begun::Refused(why),
        },
    })
}

/// Reads a journal of a repository whose hashes have `hash_len` bytes. Never fails: what makes no sense ends it.
fn parse(bytes: &[u8], hash_len: usize) -> Option<(SourceState, Finished)> {
    let mut records = Record::all(bytes.strip_prefix(MAGIC)?);
    let first = records.next().filter(|record| record.tag == Tag::State)?;
    let state = serde_json::from_slice(first.payload).ok()?;
    let mut finished = Finished::default();
    for record in records {
        match record.tag {
            Tag::State => break,
            Tag::Session => {}
            Tag::Chunks => {
                for piece in record.payload.chunks_exact(8 + hash_len) {
                    let (number, hash) = piece.split_first_chunk::<8>().expect("at least 8 bytes");
                    let Ok(content) = ContentId::new(None, hash) else {
                        return Some((state, finished));
                    };
                    finished
                        .chunks
                        .insert(ChunkIndex::new(u64::from_le_bytes(*number)), content);
                }
            }
            Tag::Entries => match Table::parse(record.payload.to_vec()) {
                Ok(table) => finished.entries.extend(table.iter()),
                Err(_) => break,
            },
        }
    }
    Some((state, finished))
}

/// For the fuzz target: a journal of anybody's bytes.
#[doc(hidden)]
pub fn parse_for_fuzzing(bytes: &[u8]) -> usize {
    parse(bytes, 16).map_or(0, |(_, finished)| finished.chunks.len() + finished.entries.len())
}

#[cfg(test)]
mod tests;
