//! Copy of files out of a snapshot, with Kopia's metadata: mode, owner, time, links.
//!
//! Names in a snapshot are not to be trusted, nor is what lies in the target meanwhile. So every step goes from the open folder
//! to one name in it, which is never followed when it is a link: nothing is written outside of the target. A file gets its name
//! when it is whole.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use blockio::{Cancel, Progress, is_zero};
use repo::directory::{DirectoryEntry, EntryKind};
use repo::tree::{DEPTH_MAX, Tree, file_name};
use repo::{Kind, RepoError};
use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use tracing::warn;

use crate::error::{JobError, Result};

/// Zeros of at least this many bytes in a row are left out of a file: the block of common file systems.
const HOLE_BYTES: usize = 4096;

/// Permission bits without those that give the file's owner to who runs it.
const MODE_WITHOUT_OWNER: u32 = 0o1777;

/// How to copy.
#[derive(Clone, Copy, Debug)]
pub struct CopyOptions {
    /// Replace files and links that are in the way. Folders are never replaced.
    pub force: bool,
}

/// What a copy did. All of it is on the target's medium.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Files copied.
    pub files: u64,
    /// Folders gone into, the target itself included.
    pub folders: u64,
    /// Links made.
    pub links: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Paths of entries that are none of these.
    pub skipped: Vec<String>,
}

/// Copies `source` to `target`. What is in a folder goes into `target`, which is made when it is missing; a file or link becomes
/// `target`, or goes into it under its own name when that is a folder.
///
/// # Errors
/// `Usage` for what is in the way, `File` for what the system refuses, and of the repository. What was copied until then stays;
/// no file is half there.
pub fn copy(
    tree: &Tree<'_>,
    source: &DirectoryEntry,
    target: &Path,
    options: &CopyOptions,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<CopyReport> {
    let mut job = Job {
        tree,
        options,
        cancel,
        progress,
        is_root: rustix::process::geteuid().is_root(),
        path: target.to_owned(),
        temporary: 0,
        report: CopyReport::default(),
    };
    let folder = if source.kind == EntryKind::Directory {
        let (folder, made) = job.enter(fs::CWD, target)?;
        job.fill(&folder, source, 0)?;
        if made {
            job.set_attributes(&folder, source)?;
        }
        folder
    } else {
        let (folder, name) = job.place(source, target)?;
        job.entry(&folder, &name, source, 0)?;
        folder
    };
    fs::syncfs(&folder).map_err(job.failed("sync the file system of"))?;
    Ok(job.report)
}

struct Job<'a> {
    tree: &'a Tree<'a>,
    options: &'a CopyOptions,
    cancel: &'a Cancel,
    progress: &'a Progress,
    is_root: bool,
    /// What is being made, for messages.
    path: PathBuf,
    /// Number of the next temporary name.
    temporary: u64,
    report: CopyReport,
}

impl Job<'_> {
    /// The folder that the file or link `source` goes to, and its name there.
    fn place(&mut self, source: &DirectoryEntry, target: &Path) -> Result<(OwnedFd, OsString)> {
        let is_folder = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
        if is_folder(target) {
            let name = file_name(source)?;
            let folder = open_folder(fs::CWD, target).map_err(self.failed("open the folder"))?;
            self.path = target.join(name);
            return Ok((folder, name.into()));
        }
        let name = match target.components().next_back() {
            Some(Component::Normal(name)) => name.to_owned(),
            _ => {
                return Err(JobError::Usage(format!(
                    "{} cannot be the name of a file",
                    target.display()
                )));
            }
        };
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        // The way to the target is the user's own, links in it included.
        let folder = fs::open(
            parent.unwrap_or(Path::new(".")),
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        Ok((folder.map_err(self.failed("open the folder of"))?, name))
    }

    /// Copies everything in the folder `source` into `folder`, which is `depth` folders below the target.
    fn fill(&mut self, folder: &OwnedFd, source: &DirectoryEntry, depth: usize) -> Result<()> {
        if depth >= DEPTH_MAX {
            let what = format!("{}: folders nested more than {DEPTH_MAX} deep", self.path.display());
            return Err(RepoError::new(Kind::Corrupt, what).into());
        }
        self.report.folders += 1;
        for child in self.tree.list(source).map_err(|e| e.context(self.path.display()))? {
            let name = file_name(&child).map_err(|e| e.context(self.path.display()))?;
            self.path.push(name);
            self.entry(folder, name.as_ref(), &child, depth)?;
            self.path.pop();
        }
        Ok(())
    }

    /// Makes `source` as `name` in `folder`.
    fn entry(&mut self, folder: &OwnedFd, name: &std::ffi::OsStr, source: &DirectoryEntry, depth: usize) -> Result<()> {
        self.cancel.check().map_err(|_| JobError::Cancelled)?;
        let name = Path::new(name);
        match source.kind {
            EntryKind::Directory => {
                let (inner, made) = self.enter(folder.as_fd(), name)?;
                self.fill(&inner, source, depth + 1)?;
                if made {
                    self.set_attributes(&inner, source)?;
                }
            }
            EntryKind::File => self.file(folder, name, source)?,
            EntryKind::Symlink => self.link(folder, name, source)?,
            EntryKind::Unknown => {
                warn!(path = %self.path.display(), "neither file, folder nor link; skipped");
                self.report.skipped.push(self.path.display().to_string());
            }
        }
        Ok(())
    }

    /// Opens the folder `name` in `folder`; true when it was made for this.
    fn enter(&self, folder: BorrowedFd<'_>, name: &Path) -> Result<(OwnedFd, bool)> {
        let made = match fs::mkdirat(folder, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(self.failed("make the folder")(e)),
        };
        match open_folder(folder, name) {
            Err(Errno::LOOP | Errno::NOTDIR) => Err(JobError::Usage(format!(
                "{} is in the way: it is not a folder, and links are not followed",
                self.path.display()
            ))),
            opened => Ok((opened.map_err(self.failed("open the folder"))?, made)),
        }
    }

    fn file(&mut self, folder: &OwnedFd, name: &Path, source: &DirectoryEntry) -> Result<()> {
        self.check_free(folder, name)?;
        let path = self.path.display().to_string();
        let bytes = self.tree.open(source).map_err(|e| e.context(&path))?;
        self.progress.add_total(bytes.len());
        let temporary = self.temporary_name();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(folder, &temporary, flags, Mode::RUSR | Mode::WUSR).map_err(self.failed("create"))?;
        let file = File::from(file);
        let mut offset = 0;
        let written = bytes
            .each_piece(&mut |piece| {
                self.cancel.check().map_err(|_| JobError::Cancelled)?;
                write_piece(&file, offset, piece).map_err(|source| self.io_failed("write", source))?;
                offset += piece.len() as u64;
                self.progress.add_done(piece.len() as u64);
                Ok(())
            })
            .map_err(|e| match e {
                JobError::Repository(e) => e.context(&path).into(),
                other => other,
            });
        let finished = written.and_then(|()| {
            // The end may be a hole.
            file.set_len(offset)
                .map_err(|source| self.io_failed("set the length of", source))?;
            self.set_attributes(&file, source)?;
            self.publish(folder, &temporary, name)
        });
        if finished.is_err() {
            let _ = fs::unlinkat(folder, &temporary, AtFlags::empty()); // what failed before says more
        }
        finished?;
        self.report.files += 1;
        self.report.bytes += offset;
        Ok(())
    }

    fn link(&mut self, folder: &OwnedFd, name: &Path, source: &DirectoryEntry) -> Result<()> {
        self.check_free(folder, name)?;
        let target = self
            .tree
            .link_target(source)
            .map_err(|e| e.context(self.path.display()))?;
        if target.contains(&0) {
            let what = format!("{}: the target of a link with a NUL in it", self.path.display());
            return Err(RepoError::new(Kind::Corrupt, what).into());
        }
        let temporary = self.temporary_name();
        fs::symlinkat(OsString::from_vec(target), folder, &temporary).map_err(self.failed("make the link"))?;
        let finished = self
            .set_link_attributes(folder, &temporary, source)
            .and_then(|()| self.publish(folder, &temporary, name));
        if finished.is_err() {
            let _ = fs::unlinkat(folder, &temporary, AtFlags::empty()); // what failed before says more
        }
        finished?;
        self.report.links += 1;
        Ok(())
    }

    /// Says early, before anything is fetched, that a name is taken.
    fn check_free(&self, folder: &OwnedFd, name: &Path) -> Result<()> {
        match fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.failed("look at")(e)),
            Ok(stat) if fs::FileType::from_raw_mode(stat.st_mode).is_dir() => Err(JobError::Usage(format!(
                "{} is in the way: it is a folder, which is never replaced",
                self.path.display()
            ))),
            Ok(_) if self.options.force => Ok(()),
            Ok(_) => Err(self.taken()),
        }
    }

    fn taken(&self) -> JobError {
        JobError::Usage(format!("{} exists; --force replaces it", self.path.display()))
    }

    /// Gives what is whole its name.
    fn publish(&self, folder: &OwnedFd, temporary: &Path, name: &Path) -> Result<()> {
        let flags = match self.options.force {
            true => RenameFlags::empty(),
            false => RenameFlags::NOREPLACE,
        };
        match fs::renameat_with(folder, temporary, folder, name, flags) {
            Err(Errno::EXIST) => Err(self.taken()),
            // File systems that cannot refuse; that the name is free was seen a moment ago.
            Err(Errno::INVAL | Errno::NOSYS) if !self.options.force => {
                self.check_free(folder, name)?;
                fs::renameat(folder, temporary, folder, name).map_err(self.failed("name"))
            }
            renamed => renamed.map_err(self.failed("name")),
        }
    }

    /// A name nobody else uses: a leading dot, and the process.
    fn temporary_name(&mut self) -> PathBuf {
        self.temporary += 1;
        PathBuf::from(format!(".blockferry-{}-{}.tmp", std::process::id(), self.temporary))
    }

    /// Owner, mode and time of a file or folder.
    fn set_attributes(&self, file: impl AsFd, source: &DirectoryEntry) -> Result<()> {
        let owned = self.is_root
            && self.is_owned(fs::fchown(
                &file,
                Some(Uid::from_raw(source.uid)),
                Some(Gid::from_raw(source.gid)),
            ));
        let mode = match owned {
            true => source.mode.unix(),
            false => source.mode.unix() & MODE_WITHOUT_OWNER,
        };
        fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(self.failed("set the mode of"))?;
        match times(source) {
            Some(times) => fs::futimens(&file, &times).map_err(self.failed("set the time of")),
            None => Ok(()),
        }
    }

    fn set_link_attributes(&self, folder: &OwnedFd, name: &Path, source: &DirectoryEntry) -> Result<()> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if self.is_root {
            let (uid, gid) = (Uid::from_raw(source.uid), Gid::from_raw(source.gid));
            self.is_owned(fs::chownat(folder, name, Some(uid), Some(gid), flags));
        }
        match times(source) {
            Some(times) => fs::utimensat(folder, name, &times, flags).map_err(self.failed("set the time of")),
            None => Ok(()),
        }
    }

    /// Whether the owner was set. Root in a container may not know the owner, or the file system no owners.
    fn is_owned(&self, result: rustix::io::Result<()>) -> bool {
        result
            .inspect_err(|e| warn!(path = %self.path.display(), error = %e, "the owner is not restored"))
            .is_ok()
    }

    fn failed(&self, verb: &'static str) -> impl Fn(Errno) -> JobError + '_ {
        move |e| self.io_failed(verb, e.into())
    }

    fn io_failed(&self, verb: &str, source: io::Error) -> JobError {
        JobError::File {
            what: format!("{verb} {}", self.path.display()),
            source,
        }
    }
}

fn open_folder(folder: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    fs::openat(folder, name, flags, Mode::empty())
}

/// Writes `piece` at `offset`, leaving out zeros.
fn write_piece(file: &File, offset: u64, piece: &[u8]) -> io::Result<()> {
    let mut at = 0;
    while at < piece.len() {
        let data = |bytes: &&[u8]| !is_zero(bytes);
        let skipped: usize = piece[at..]
            .chunks(HOLE_BYTES)
            .take_while(|bytes| !data(bytes))
            .map(<[u8]>::len)
            .sum();
        at += skipped;
        let len: usize = piece[at..].chunks(HOLE_BYTES).take_while(data).map(<[u8]>::len).sum();
        file.write_all_at(&piece[at..at + len], offset + at as u64)?;
        at += len;
    }
    Ok(())
}

/// Both times as the snapshot has the one; `None` when it has none.
fn times(source: &DirectoryEntry) -> Option<Timestamps> {
    if source.modified.is_unset() {
        return None;
    }
    let (tv_sec, nanoseconds) = source.modified.unix_parts();
    let time = Timespec {
        tv_sec,
        tv_nsec: nanoseconds.into(),
    };
    Some(Timestamps {
        last_access: time,
        last_modification: time,
    })
}
