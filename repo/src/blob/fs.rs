//! A directory as blob store, in Kopia's layout of sharded folders.
//!
//! Write: a temporary file beside the target, synced, renamed over it; the folder is synced by [`BlobStore::sync`].
//! Large blobs in aligned memory go past the page cache (`O_DIRECT`): at 20 MiB a pack that saves the copy and the
//! write-back, and leaves the host's cache to its applications.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::shards::{FILE_NAME, SUFFIX, Shards};
use super::{BlobMeta, BlobStore, GET_LEN_MAX, READ_SLACK};
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;

/// Alignment of memory, offset and length for direct IO; the largest logical block in use.
const DIRECT_ALIGN: usize = 4096;

/// Blobs and ranges from this size on go past the page cache. Below it one buffered call is cheaper than two direct ones.
const DIRECT_LEN_MIN: usize = 1 << 20;

/// Deepest folder nesting walked by a listing; a loop of links cannot hold it up.
const DEPTH_MAX: usize = 16;

/// Blobs in the files of a directory.
pub struct FsStore {
    root: PathBuf,
    shards: Shards,
    /// Folders whose entries changed since the last sync.
    dirty: Mutex<BTreeSet<PathBuf>>,
}

impl FsStore {
    /// Opens the store in directory `root`. A directory without `.shards` is read by the rules of old repositories.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let folder = fs::metadata(&root)
            .map_err(|e| RepoError::storage(format!("open repository directory {}", root.display()), e))?;
        if !folder.is_dir() {
            return Err(RepoError::new(
                Kind::NotARepository,
                format!("{} is not a directory", root.display()),
            ));
        }
        let file = root.join(FILE_NAME);
        let shards = match fs::read(&file) {
            Ok(bytes) => Shards::parse(&bytes).map_err(|e| e.context(root.display()))?,
            Err(e) if e.kind() == ErrorKind::NotFound => Shards::without_file(),
            Err(e) => return Err(RepoError::storage(format!("read {}", file.display()), e)),
        };
        Ok(Self {
            root,
            shards,
            dirty: Mutex::default(),
        })
    }

    /// Makes directory `root` when missing and begins a store in it. A directory with anything in it is refused.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let failed = |e| RepoError::storage(format!("create repository directory {}", root.display()), e);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .map_err(failed)?;
        if fs::read_dir(&root).map_err(failed)?.next().is_some() {
            let what = format!(
                "{} is not empty; a new repository needs an empty directory",
                root.display()
            );
            return Err(RepoError::new(Kind::AlreadyExists, what));
        }
        let shards = Shards::new_repository();
        let text = serde_json::to_vec(&shards).expect("plain data becomes JSON");
        let store = Self {
            root,
            shards,
            dirty: Mutex::default(),
        };
        store.write_file(&store.root.join(FILE_NAME), &text)?;
        Ok(store)
    }

    fn path(&self, id: &BlobId) -> PathBuf {
        self.shards.path(&self.root, id.as_str())
    }

    fn fail(&self, verb: &str, id: &BlobId, e: io::Error) -> RepoError {
        RepoError::storage(format!("{verb} blob {id} in {}", self.root.display()), e)
    }

    fn mark_dirty(&self, folder: &Path) {
        self.dirty
            .lock()
            .expect("no panic while held")
            .insert(folder.to_path_buf());
    }

    /// Makes `folder` and its missing parents, noting each parent whose entries that changed.
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(folder) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound && folder != self.root => {
                self.make_folder(folder.parent().unwrap_or(&self.root))?;
                return self.make_folder(folder);
            }
            Err(e) => return Err(e),
        }
        self.mark_dirty(folder.parent().unwrap_or(&self.root));
        Ok(())
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.try_write(path, bytes)
            .map_err(|e| RepoError::storage(format!("write {}", path.display()), e))
    }

    fn try_write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let folder = path.parent().unwrap_or(&self.root);
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("the system's random source failed"))?;
        name.push(format!(".tmp.{}", hex::encode(random)));
        let temporary = folder.join(name);

        let written = match write_new(&temporary, bytes) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.make_folder(folder)?;
                write_new(&temporary, bytes)
            }
            other => other,
        };
        if let Err(e) = written.and_then(|()| fs::rename(&temporary, path)) {
            let _ = fs::remove_file(&temporary); // the error being returned says more than this one would
            return Err(e);
        }
        self.mark_dirty(folder);
        Ok(())
    }

    fn walk(
        &self,
        folder: &Path,
        joined: &str,
        depth: usize,
        prefix: &str,
        found: &mut Vec<BlobMeta>,
    ) -> io::Result<()> {
        let entries = match fs::read_dir(folder) {
            Err(e) if e.kind() == ErrorKind::NotFound && depth > 0 => return Ok(()), // removed since its parent was read
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if entry.file_type()?.is_dir() {
                let joined = format!("{joined}{name}");
                if depth < DEPTH_MAX && (joined.starts_with(prefix) || prefix.starts_with(&joined)) {
                    self.walk(&entry.path(), &joined, depth + 1, prefix, found)?;
                }
                continue;
            }
            let Some(stem) = name.strip_suffix(SUFFIX) else {
                continue;
            };
            let Ok(id) = BlobId::new(format!("{joined}{stem}")) else {
                continue;
            };
            if !id.as_str().starts_with(prefix) {
                continue;
            }
            match entry.metadata() {
                Ok(meta) => found.push(BlobMeta {
                    id,
                    len: meta.len(),
                    modified: meta.modified()?,
                }),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl BlobStore for FsStore {
    fn place(&self) -> String {
        self.root.display().to_string()
    }

    fn put(&self, id: &BlobId, bytes: &[u8]) -> Result<()> {
        self.try_write(&self.path(id), bytes)
            .map_err(|e| self.fail("write", id, e))
    }

    fn get(&self, id: &BlobId) -> Result<Vec<u8>> {
        let failed = |e| self.fail("read", id, e);
        let mut file = File::open(self.path(id)).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        if len > GET_LEN_MAX {
            return Err(RepoError::corrupt(format!(
                "blob {id} in {} has {len} bytes, more than {GET_LEN_MAX}",
                self.root.display()
            )));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        file.read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> Result<Range<usize>> {
        let failed = |e: io::Error| match e.kind() {
            ErrorKind::UnexpectedEof => RepoError::corrupt(format!(
                "blob {id} in {} ends before byte {}",
                self.root.display(),
                range.end
            )),
            _ => self.fail("read", id, e),
        };
        let len = usize::try_from(range.end - range.start).expect("a range fits the buffer that takes it");
        assert!(
            buf.len() >= len + 2 * READ_SLACK,
            "room for the range and the slack on both sides"
        );
        let path = self.path(id);
        if len >= DIRECT_LEN_MIN && is_aligned(buf) {
            // A file system without direct IO is read through its cache, below.
            if let Some(file) = open_direct(&path, OpenOptions::new().read(true)).map_err(failed)? {
                return read_direct(&file, &range, len, buf).map_err(failed);
            }
        }
        let file = File::open(&path).map_err(failed)?;
        file.read_exact_at(&mut buf[..len], range.start).map_err(failed)?;
        Ok(0..len)
    }

    fn meta(&self, id: &BlobId) -> Result<BlobMeta> {
        let meta = fs::metadata(self.path(id)).map_err(|e| self.fail("look up", id, e))?;
        let modified = meta.modified().map_err(|e| self.fail("look up", id, e))?;
        Ok(BlobMeta {
            id: id.clone(),
            len: meta.len(),
            modified,
        })
    }

    fn list(&self, prefix: &str) -> Result<Vec<BlobMeta>> {
        let mut found = Vec::new();
        self.walk(&self.root, "", 0, prefix, &mut found)
            .map_err(|e| RepoError::storage(format!("list blobs {prefix}* in {}", self.root.display()), e))?;
        Ok(found)
    }

    fn delete(&self, id: &BlobId) -> Result<()> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(self.fail("delete", id, e)),
            _ => {
                self.mark_dirty(path.parent().unwrap_or(&self.root));
                Ok(())
            }
        }
    }

    fn sync(&self) -> Result<()> {
        let dirty = std::mem::take(&mut *self.dirty.lock().expect("no panic while held"));
        for folder in &dirty {
            match File::open(folder).and_then(|f| f.sync_all()) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    // What is not known to be durable stays on the list, so that trying again means something.
                    self.dirty
                        .lock()
                        .expect("no panic while held")
                        .extend(dirty.iter().cloned());
                    return Err(RepoError::storage(format!("sync folder {}", folder.display()), e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(DIRECT_ALIGN)
}

/// Opens `path` past the page cache; `None` where its file system cannot.
fn open_direct(path: &Path, options: &mut OpenOptions) -> io::Result<Option<File>> {
    match options.custom_flags(libc::O_DIRECT).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Reads the aligned bytes around `range`, as far as the file goes.
fn read_direct(file: &File, range: &Range<u64>, len: usize, buf: &mut [u8]) -> io::Result<Range<usize>> {
    let align = DIRECT_ALIGN as u64;
    let start = range.start - range.start % align;
    let skipped = usize::try_from(range.start - start).expect("below the alignment");
    let wanted = skipped + len;
    let full = wanted.next_multiple_of(DIRECT_ALIGN);
    let mut done = 0;
    while done < wanted {
        // Only the end of the file leaves `done` unaligned, and there the loop ends.
        match file.read_at(&mut buf[done..full], start + done as u64) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(skipped..wanted)
}

/// Writes and syncs a file that must not exist yet.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let direct = if bytes.len() >= DIRECT_LEN_MIN && is_aligned(bytes) {
        open_direct(path, &mut options)?
    } else {
        None
    };
    let file = match direct {
        Some(file) => {
            write_direct(&file, bytes)?;
            file
        }
        None => {
            // A refused direct open may have left the file behind.
            let file = options
                .custom_flags(0)
                .create_new(false)
                .create(true)
                .truncate(true)
                .open(path)?;
            file.write_all_at(bytes, 0)?;
            file
        }
    };
    file.sync_data()
}

/// Writes whole blocks from where they are, the rest of the last one padded, and cuts the file to its length.
fn write_direct(file: &File, bytes: &[u8]) -> io::Result<()> {
    let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % DIRECT_ALIGN);
    file.write_all_at(whole, 0)?;
    if !rest.is_empty() {
        let mut room = vec![0; 2 * DIRECT_ALIGN];
        let start = room.as_ptr().align_offset(DIRECT_ALIGN);
        let block = &mut room[start..start + DIRECT_ALIGN];
        block[..rest.len()].copy_from_slice(rest);
        file.write_all_at(block, whole.len() as u64)?;
        file.set_len(bytes.len() as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use blockio::BufPool;

    use super::*;

    fn id(text: &str) -> BlobId {
        BlobId::new(text).expect("a blob id")
    }

    fn store() -> (tempfile::TempDir, FsStore) {
        let folder = tempfile::tempdir().expect("temporary directory");
        let store = FsStore::create(folder.path().join("r")).expect("create");
        (folder, store)
    }

    #[test]
    fn blobs_round_trip_and_list_by_prefix() {
        let (_folder, store) = store();
        let names = [
            "kopia.repository",
            "xe1",
            "p0123456789abcdef0123456789abcdef-s00",
            "q0123456789abcdef0123456789abcdef-s00",
        ];
        for name in names {
            store.put(&id(name), name.as_bytes()).expect("put");
        }
        store.sync().expect("sync");
        for name in names {
            assert_eq!(store.get(&id(name)).expect("get"), name.as_bytes());
            assert_eq!(store.meta(&id(name)).expect("meta").len, name.len() as u64);
        }
        let listed = |prefix: &str| {
            let mut ids: Vec<_> = store
                .list(prefix)
                .expect("list")
                .into_iter()
                .map(|m| m.id.to_string())
                .collect();
            ids.sort();
            ids
        };
        assert_eq!(
            listed(""),
            names
                .iter()
                .map(ToString::to_string)
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
        );
        assert_eq!(listed("p01"), [names[2]]);
        assert_eq!(listed("p0123456"), [names[2]]);
        assert!(listed("p1").is_empty());
        store.delete(&id(names[2])).expect("delete");
        store.delete(&id(names[2])).expect("delete again");
        assert!(store.get(&id(names[2])).expect_err("gone").is_not_found());
    }

    #[test]
    fn aligned_packs_of_odd_length_are_written_and_read_past_the_cache() {
        let (_folder, store) = store();
        let pool = BufPool::new(4 << 20, 2).expect("pool");
        let mut buf = pool.take();
        let len = (3 << 20) + 517;
        for (i, byte) in buf[..len].iter_mut().enumerate() {
            *byte = u8::try_from(i % 251).expect("below 256");
        }
        let pack = id("p0123456789abcdef0123456789abcdef-s01");
        store.put(&pack, &buf[..len]).expect("put");
        assert_eq!(store.get(&pack).expect("get"), &buf[..len]);

        let mut out = pool.take();
        for range in [
            32..(1u64 << 20) + 60,
            4096..3 << 20,
            0..len as u64,
            5..6,
            (2 << 20) + 1..len as u64,
        ] {
            let at = store.read_range(&pack, range.clone(), &mut out).expect("read range");
            let expect = usize::try_from(range.start).expect("small")..usize::try_from(range.end).expect("small");
            assert_eq!(out[at], buf[expect], "{range:?}");
        }
        let past = store
            .read_range(&pack, 1 << 20..len as u64 + 1, &mut out)
            .expect_err("past the end");
        assert_eq!(past.kind(), Kind::Corrupt);
    }

    #[test]
    fn temporary_and_foreign_files_are_not_listed() {
        let (folder, store) = store();
        store.put(&id("xe1"), b"epoch-marker").expect("put");
        fs::write(folder.path().join("r/xe2.f.tmp.0011223344556677"), b"x").expect("write");
        fs::write(folder.path().join("r/xe3"), b"x").expect("write");
        assert_eq!(store.list("x").expect("list").len(), 1);
    }

    #[test]
    fn a_directory_in_use_is_not_made_a_repository() {
        let folder = tempfile::tempdir().expect("temporary directory");
        fs::write(folder.path().join("file"), b"x").expect("write");
        assert_eq!(
            FsStore::create(folder.path()).err().expect("refused").kind(),
            Kind::AlreadyExists
        );
        assert!(
            FsStore::open(folder.path().join("missing"))
                .err()
                .expect("refused")
                .is_not_found()
        );
        assert_eq!(
            FsStore::open(folder.path().join("file")).err().expect("refused").kind(),
            Kind::NotARepository
        );
    }

    #[test]
    fn a_failed_write_leaves_no_temporary_file() {
        let (folder, store) = store();
        // The target is a folder, so the rename fails after the data was written.
        fs::create_dir(folder.path().join("r/xe1.f")).expect("mkdir");
        assert!(store.put(&id("xe1"), b"epoch-marker").is_err());
        let left = fs::read_dir(folder.path().join("r"))
            .expect("read")
            .filter(|e| {
                e.as_ref()
                    .is_ok_and(|e| e.file_name().to_string_lossy().contains(".tmp."))
            })
            .count();
        assert_eq!(left, 0);
    }
}
