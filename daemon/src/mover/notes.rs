//! Notes of this host's running sessions, so that the next run removes what a crashed one left.
//!
//! A note is an empty file named after the session, in a folder of the repository it writes to, locked as long as its
//! process lives: the kernel lets go of the lock whatever ends the process. It is made before the session's marker and
//! removed after it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use repo::session::remove_markers;
use repo::{Repository, SessionId};
use tracing::{debug, warn};

use super::journal;

/// The notes on sessions of one repository.
pub(super) struct SessionNotes {
    folder: PathBuf,
    /// The state folder it is in, with the journals.
    state_folder: PathBuf,
}

/// The note on a running session; dropped when the session has ended.
pub(super) struct SessionNote {
    session: SessionId,
    path: PathBuf,
    _locked: File,
}

impl SessionNotes {
    /// The notes in `folder` on sessions of `repository`. Without them only a marker stays after a crash, so what goes wrong
    /// is a warning.
    pub(super) fn of(repository: &Repository, folder: Option<&Path>) -> Option<Self> {
        let state_folder = folder?.to_owned();
        let folder = state_folder
            .join("sessions")
            .join(hex::encode(&repository.format().unique_id));
        match fs::create_dir_all(&folder) {
            Ok(()) => Some(Self { folder, state_folder }),
            Err(e) => {
                warn!(folder = %folder.display(), error = %e, "no notes on sessions; the marker of one that crashes stays for 96 hours");
                None
            }
        }
    }

    /// Removes the markers of sessions of this host that crashed, but for those whose journal stands: until the next backup of
    /// their source has indexed their packs, be it days from now, only the marker keeps maintenance from them.
    pub(super) fn clean_up_after_crashes(&self, repository: &Repository) {
        let crashed = self.crashed();
        // After the locks are had: a journal that is begun from here on is that of a session that lives.
        let resumable = match journal::resumable(&self.state_folder, repository) {
            Ok(resumable) => resumable,
            Err(e) => {
                warn!(folder = %self.state_folder.display(), error = %e, "journals cannot be read; markers of crashed sessions stay");
                return;
            }
        };
        for (session, path, file) in crashed {
            if resumable.contains(&session) {
                debug!(%session, "a crashed session can be taken up; its marker stays");
                continue;
            }
            match remove_markers(repository, &session) {
                Ok(count) => {
                    debug!(%session, count, "cleaned up after a crashed session");
                    let _ = fs::remove_file(&path); // seen again and found clean by the next run
                }
                Err(e) => warn!(%session, error = %e, "the marker of a crashed session could not be removed"),
            }
            drop(file);
        }
    }

    /// Notes nobody holds, locked by us now.
    fn crashed(&self) -> Vec<(SessionId, PathBuf, File)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let note = |entry: fs::DirEntry| {
            let session = SessionId::parse(entry.file_name().to_str()?).ok()?;
            let file = File::options().write(true).open(entry.path()).ok()?;
            file.try_lock().ok()?;
            Some((session, entry.path(), file))
        };
        entries.filter_map(note).collect()
    }

    /// Notes down a session about to begin.
    pub(super) fn begin(&self) -> Option<SessionNote> {
        let session = SessionId::random().ok()?;
        let path = self.folder.join(session.as_str());
        let made = File::create_new(&path).and_then(|file| file.lock().map(|()| file));
        match made {
            Ok(file) => Some(SessionNote {
                session,
                path,
                _locked: file,
            }),
            Err(e) => {
                warn!(note = %path.display(), error = %e, "no note on this session; its marker stays for 96 hours if it crashes");
                None
            }
        }
    }
}

impl SessionNote {
    /// The session.
    pub(super) fn session(&self) -> &SessionId {
        &self.session
    }
}

impl Drop for SessionNote {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_file(&self.path) {
            debug!(note = %self.path.display(), error = %e, "a note on a session that ended stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use repo::blob::{BlobStore, MemStore};
    use repo::format::CreateOptions;
    use repo::session::{WriteOptions, WriteSession};

    use super::*;

    #[test]
    fn only_sessions_that_nobody_holds_are_taken_for_crashed() {
        let store = Arc::new(MemStore::new());
        Repository::create(&*store, "password", &CreateOptions::default()).expect("create");
        let repository = Repository::open(store.clone(), "password").expect("open");
        let folder = tempfile::tempdir().expect("folder");
        let notes = SessionNotes::of(&repository, Some(folder.path())).expect("notes");
        let begin = |note: &SessionNote| {
            let options = WriteOptions {
                session: Some(note.session().clone()),
                ..WriteOptions::default()
            };
            std::mem::forget(WriteSession::begin(&repository, &options).expect("begin")); // its process ends here
        };
        let alive = notes.begin().expect("note");
        begin(&alive);
        let crashed = notes.begin().expect("note");
        begin(&crashed);
        crashed._locked.unlock().expect("as the kernel does");
        std::mem::forget(crashed);

        notes.clean_up_after_crashes(&repository);
        let markers = store.list("s").expect("list");
        assert_eq!(markers.len(), 1);
        assert!(markers[0].id.as_str().ends_with(alive.session().as_str()));
        assert_eq!(fs::read_dir(&notes.folder).expect("read").count(), 1);
        drop(alive);
        assert_eq!(fs::read_dir(&notes.folder).expect("read").count(), 0);
    }
}
