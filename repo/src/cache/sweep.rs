//! How large the cache is, and what goes when it is too large: what was used longest ago.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tracing::{debug, info};

use super::folder::UNFINISHED;
use super::{CONTENTS, TABLES};
use crate::id::ContentId;

/// File of the cache that counts what was written since the last sweep: a byte for each MiB that was begun. Appending a
/// byte is atomic, so that processes count together without a lock.
const LEDGER: &str = "written";

/// What a byte of the ledger stands for.
const LEDGER_UNIT: u64 = 1 << 20;

/// Share of the limit that may be written between two sweeps, and that a sweep makes room for: a sweep looks at every file,
/// so it is not worth doing for less.
const SWEEP_SHARE: u64 = 16;

/// An unfinished file of this age has no writer any more: the largest is written within a minute.
const UNFINISHED_AGE: Duration = Duration::from_secs(3600);

/// Files take whole blocks of nearly every file system.
const BLOCK: u64 = 4096;

/// Hex digits of a repository's unique id, at least: what has fewer is no folder of ours.
const ID_DIGITS_MIN: usize = 32;

/// Counts what is written to the cache in `root`, and sweeps when it is due.
pub(super) struct Ledger {
    root: PathBuf,
    limit: u64,
    /// Bytes that are not in the file yet.
    pending: Mutex<u64>,
}

/// What a cached file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Table,
    Metadata,
    Data,
    Unfinished,
}

/// A file of the cache.
#[derive(Clone, Debug)]
struct Entry {
    path: PathBuf,
    kind: Kind,
    bytes: u64,
    used: SystemTime,
}

/// Files and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Files.
    pub files: u64,
    /// Bytes, in whole blocks.
    pub bytes: u64,
}

/// What the cache holds of one repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tables of index blobs.
    pub index: Amount,
    /// Manifests, folders and lists.
    pub metadata: Amount,
    /// Other contents.
    pub data: Amount,
    /// Files being written, or left by a writer that was killed.
    pub unfinished: Amount,
}

impl Usage {
    /// All of it.
    pub fn total(&self) -> Amount {
        let parts = [self.index, self.metadata, self.data, self.unfinished];
        parts.iter().fold(Amount::default(), |sum, part| Amount {
            files: sum.files + part.files,
            bytes: sum.bytes + part.bytes,
        })
    }
}

impl Ledger {
    pub(super) fn new(root: PathBuf, limit: u64) -> Self {
        Self {
            root,
            limit,
            pending: Mutex::new(0),
        }
    }

    /// Counts a file of `bytes`.
    pub(super) fn wrote(&self, bytes: u64) {
        let mut pending = self.pending.lock().expect("no panic while held");
        *pending += in_blocks(bytes);
        let units = *pending / LEDGER_UNIT;
        if units > 0 {
            *pending %= LEDGER_UNIT;
            drop(pending);
            self.count(units);
        }
    }

    /// Adds to the file, and sweeps when it says so. What goes wrong is left to the next who writes.
    fn count(&self, units: u64) {
        let path = self.root.join(LEDGER);
        let share = (self.limit / SWEEP_SHARE / LEDGER_UNIT).max(1);
        let counted = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| {
                // More than a share is as good as a share.
                file.write_all(&vec![b'.'; usize::try_from(units.min(share)).unwrap_or(1)])?;
                if file.metadata()?.len() >= share && file.try_lock().is_ok() {
                    sweep(&self.root, self.limit)?;
                    file.set_len(0)?;
                }
                Ok(())
            });
        if let Err(e) = counted {
            debug!(ledger = %path.display(), error = %e, "the cache was not swept");
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let pending = *self
            .pending
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if pending > 0 {
            self.count(1);
        }
    }
}

/// Removes what was used longest ago until `limit` leaves room for what comes before the next sweep.
fn sweep(root: &Path, limit: u64) -> io::Result<()> {
    let mut entries = Vec::new();
    each_repository(root, &mut |_, path| each_entry(path, &mut |entry| entries.push(entry)))?;
    let total: u64 = entries.iter().map(|entry| entry.bytes).sum();
    let victims = plan(entries, limit - limit / SWEEP_SHARE, SystemTime::now());
    let bytes: u64 = victims.iter().map(|entry| entry.bytes).sum();
    victims.iter().for_each(|entry| remove(&entry.path));
    info!(total, limit, files = victims.len(), bytes, "cache swept");
    Ok(())
}

/// Which of `entries` to remove so that the others have at most `keep` bytes: those used longest ago, and what nobody writes
/// any more. Pure.
fn plan(mut entries: Vec<Entry>, keep: u64, now: SystemTime) -> Vec<Entry> {
    // A time to come is a clock that was wrong; such a file is as good as one just used, but for once.
    entries.sort_by(|a, b| (a.used.min(now), &a.path).cmp(&(b.used.min(now), &b.path)));
    let mut left: u64 = entries.iter().map(|entry| entry.bytes).sum();
    entries.retain(|entry| {
        let goes = match entry.kind {
            Kind::Unfinished => now.duration_since(entry.used).is_ok_and(|age| age > UNFINISHED_AGE),
            _ => left > keep,
        };
        if goes {
            left -= entry.bytes;
        }
        goes
    });
    entries
}

/// What the cache in `root` holds, by the unique ids of repositories in hex.
///
/// # Errors
/// When the folder is there and cannot be listed.
pub fn usage(root: &Path) -> io::Result<BTreeMap<String, Usage>> {
    let mut found = BTreeMap::new();
    each_repository(root, &mut |id, path| {
        let usage: &mut Usage = found.entry(id.to_owned()).or_default();
        each_entry(path, &mut |entry| {
            let amount = match entry.kind {
                Kind::Table => &mut usage.index,
                Kind::Metadata => &mut usage.metadata,
                Kind::Data => &mut usage.data,
                Kind::Unfinished => &mut usage.unfinished,
            };
            amount.files += 1;
            amount.bytes += entry.bytes;
        })
    })?;
    Ok(found)
}

/// Removes everything from the cache in `root`, and nothing that is not the cache's: a folder that was named by mistake keeps
/// what is in it. Processes that use the cache go on.
///
/// # Errors
/// When the folder cannot be listed or a file cannot be removed.
pub fn clear(root: &Path) -> io::Result<Amount> {
    let mut removed = Amount::default();
    let mut repositories = Vec::new();
    each_repository(root, &mut |_, path| {
        repositories.push(path.to_owned());
        let mut entries = Vec::new();
        each_entry(path, &mut |entry| entries.push(entry))?;
        for entry in entries {
            match fs::remove_file(&entry.path) {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                other => {
                    other?;
                    removed.files += 1;
                    removed.bytes += entry.bytes;
                }
            }
        }
        Ok(())
    })?;
    for path in repositories {
        remove_empty_folders(&path);
    }
    if let Err(e) = File::options()
        .write(true)
        .open(root.join(LEDGER))
        .and_then(|file| file.set_len(0))
    {
        debug!(error = %e, "no ledger to set back");
    }
    Ok(removed)
}

/// Removes the folders of a repository as far as they are empty.
fn remove_empty_folders(repository: &Path) {
    let contents = repository.join(CONTENTS);
    let shards = fs::read_dir(&contents)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    for path in shards.chain([contents.clone(), repository.join(TABLES), repository.to_owned()]) {
        let _ = fs::remove_dir(path); // not empty: somebody just wrote
    }
}

fn remove(path: &Path) {
    if let Err(e) = fs::remove_file(path)
        && e.kind() != ErrorKind::NotFound
    {
        debug!(path = %path.display(), error = %e, "a cached file could not be removed");
    }
}

/// Calls `each` with the id and folder of every repository in the cache.
fn each_repository(root: &Path, each: &mut dyn FnMut(&str, &Path) -> io::Result<()>) -> io::Result<()> {
    for_each(root, &mut |name, path, meta| {
        let is_id = name.len() >= ID_DIGITS_MIN && name.bytes().all(|b| b.is_ascii_hexdigit());
        match is_id && meta.is_dir() {
            true => each(name, path),
            false => Ok(()),
        }
    })
}

/// Calls `each` with every file of a repository that has a name such as the cache gives.
fn each_entry(repository: &Path, each: &mut dyn FnMut(Entry)) -> io::Result<()> {
    let mut file = |name: &str, path: &Path, meta: &fs::Metadata, kind: Option<Kind>| {
        let kind = if name.starts_with(UNFINISHED) {
            Some(Kind::Unfinished)
        } else {
            kind
        };
        if let Some(kind) = kind.filter(|_| meta.is_file()) {
            each(Entry {
                path: path.to_owned(),
                kind,
                bytes: in_blocks(meta.len()),
                used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            });
        }
        Ok(())
    };
    for_each(&repository.join(TABLES), &mut |name, path, meta| {
        let is_table = name.len() == ID_DIGITS_MIN && name.bytes().all(|b| b.is_ascii_hexdigit());
        file(name, path, meta, is_table.then_some(Kind::Table))
    })?;
    for_each(&repository.join(CONTENTS), &mut |_, shard, meta| {
        if !meta.is_dir() {
            return Ok(());
        }
        for_each(shard, &mut |name, path, meta| {
            let kind = name.parse::<ContentId>().ok().map(|id| match id.prefix() {
                Some(_) => Kind::Metadata,
                None => Kind::Data,
            });
            file(name, path, meta, kind)
        })
    })
}

/// Calls `each` with name, path and metadata of everything in `folder`. What vanishes meanwhile is passed over.
fn for_each(folder: &Path, each: &mut dyn FnMut(&str, &Path, &fs::Metadata) -> io::Result<()>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let (Some(name), Ok(meta)) = (entry.file_name().to_str().map(str::to_owned), entry.metadata()) else {
            continue;
        };
        each(&name, &entry.path(), &meta)?;
    }
    Ok(())
}

fn in_blocks(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn entry(number: usize, used: u64, bytes: u64) -> Entry {
        Entry {
            path: PathBuf::from(format!("/{number:06}")),
            kind: Kind::Metadata,
            bytes,
            used: at(used),
        }
    }

    const NOW: u64 = 1_000_000;

    #[track_caller]
    fn check(entries: &[(u64, u64)], keep: u64, gone: &[u64]) {
        let entries = entries
            .iter()
            .enumerate()
            .map(|(n, (used, bytes))| entry(n, *used, *bytes));
        let victims = plan(entries.collect(), keep, at(NOW));
        let used: Vec<u64> = victims
            .iter()
            .map(|v| v.used.duration_since(SystemTime::UNIX_EPOCH).expect("after").as_secs())
            .collect();
        assert_eq!(used, gone);
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        check(&[(3, 10), (1, 10), (2, 10)], 30, &[]);
        check(&[(3, 10), (1, 10), (2, 10)], 29, &[1]);
        check(&[(3, 10), (1, 10), (2, 10)], 10, &[1, 2]);
        check(&[(3, 10), (1, 10), (2, 10)], 0, &[1, 2, 3]);
    }

    #[test]
    fn unfinished_files_go_by_age_alone() {
        let unfinished = |number, used| Entry {
            kind: Kind::Unfinished,
            ..entry(number, used, 10)
        };
        let young = NOW - UNFINISHED_AGE.as_secs();
        let victims = plan(vec![unfinished(1, young), unfinished(2, young - 1)], 0, at(NOW));
        assert_eq!(
            victims.iter().map(|v| &v.path).collect::<Vec<_>>(),
            [Path::new("/000002")]
        );
    }

    proptest! {
        #[test]
        fn what_stays_fits_and_is_younger_than_what_goes(sizes in vec((0..2 * NOW, 0..1_000_u64), 0..50), keep in 0..20_000_u64) {
            let entries: Vec<Entry> = sizes.iter().enumerate().map(|(n, (used, bytes))| entry(n, *used, *bytes)).collect();
            let victims = plan(entries.clone(), keep, at(NOW));
            let is_gone = |entry: &Entry| victims.iter().any(|v| v.path == entry.path);
            let left: Vec<&Entry> = entries.iter().filter(|entry| !is_gone(entry)).collect();
            let bytes = |entries: &[&Entry]| entries.iter().map(|entry| entry.bytes).sum::<u64>();
            prop_assert!(bytes(&left) <= keep);
            if let Some(last) = victims.last() {
                prop_assert!(bytes(&left) + last.bytes > keep, "more went than had to");
                prop_assert!(left.iter().all(|entry| entry.used.min(at(NOW)) >= last.used.min(at(NOW))));
            }
        }
    }

    #[test]
    fn clearing_leaves_what_is_not_the_caches() {
        let root = tempfile::tempdir().expect("folder");
        let repository = root.path().join("ab".repeat(32));
        let ours = [
            repository.join(TABLES).join("cd".repeat(16)),
            repository
                .join(CONTENTS)
                .join("ab")
                .join(format!("k{}", "ab".repeat(16))),
            repository.join(CONTENTS).join("ab").join("ab".repeat(16)),
            repository.join(TABLES).join("tmp-0123-4"),
        ];
        let foreign = [
            root.path().join("thesis.txt"),
            root.path().join("photos").join("cd".repeat(16)),
            repository.join("notes"),
            repository.join(TABLES).join("readme"),
            repository.join(CONTENTS).join("ab").join("letter"),
        ];
        for path in ours.iter().chain(&foreign) {
            fs::create_dir_all(path.parent().expect("folder")).expect("make");
            fs::write(path, b"bytes").expect("write");
        }
        let usage = usage(root.path()).expect("list");
        let usage = usage[&"ab".repeat(32)];
        let one = Amount { files: 1, bytes: BLOCK };
        assert_eq!(
            (usage.index, usage.metadata, usage.data, usage.unfinished),
            (one, one, one, one)
        );
        assert_eq!(
            clear(root.path()).expect("clear"),
            Amount {
                files: 4,
                bytes: 4 * BLOCK
            }
        );
        assert!(ours.iter().all(|path| !path.exists()));
        assert!(foreign.iter().all(|path| path.exists()));
    }

    #[test]
    fn writers_sweep_together_when_a_share_was_written() {
        let root = tempfile::tempdir().expect("folder");
        let shard = root.path().join("ab".repeat(32)).join(CONTENTS).join("ab");
        fs::create_dir_all(&shard).expect("make");
        let limit = 32 << 20; // a share is 2 MiB
        let write = |ledger: &Ledger, number: u64| {
            let path = shard.join(format!("k{number:032x}"));
            fs::write(&path, vec![0; 1 << 20]).expect("write");
            let file = File::options().write(true).open(&path).expect("open");
            file.set_modified(at(number)).expect("touch");
            ledger.wrote(1 << 20);
        };
        let (one, other) = (
            Ledger::new(root.path().into(), limit),
            Ledger::new(root.path().into(), limit),
        );
        for number in 0..100 {
            write(if number % 2 == 0 { &one } else { &other }, number);
            let total = usage(root.path()).expect("list")[&"ab".repeat(32)].total();
            assert!(total.bytes <= limit, "{} bytes after file {number}", total.bytes);
        }
        assert!(shard.join(format!("k{:032x}", 99)).exists(), "the last one stays");
    }
}
