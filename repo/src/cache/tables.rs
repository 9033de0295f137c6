//! Tables of the index in the cache: each says what certain index blobs say together, and names them.
//!
//! A table is of use as long as all of its blobs are in force, whatever was added beside them: one new blob costs one fetch. A
//! fold takes the place of the tables it was made of.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use tracing::{debug, info};

use super::folder::Opened;
use super::{Cache, TABLES};
use crate::id::BlobId;
use crate::index::{Merged, Table};

/// A table that is of no use stays for so long: another process may hold a listing of before or after ours, and clients may
/// rely on what they read for 15 minutes.
const UNUSED_AGE: Duration = Duration::from_secs(15 * 60);

/// Threads that read tables: hashing and checking are bound by the processor.
const READERS_MAX: usize = 4;

/// A table found in the cache, and the blobs it stands for.
struct Found {
    file: Opened,
    sources: Vec<BlobId>,
}

impl Cache {
    /// Tables that stand for blobs in `missing`, each with their names. `in_force` are all blobs of a listing just made.
    pub(crate) fn load_tables(&self, missing: &[BlobId], in_force: &HashSet<&BlobId>) -> Vec<(Table, Vec<BlobId>)> {
        let found = self.found_tables();
        let wanted: HashSet<&BlobId> = missing.iter().collect();
        let sources: Vec<&[BlobId]> = found.iter().map(|found| &*found.sources).collect();
        let chosen: HashSet<usize> = choose(&sources, &wanted).into_iter().collect();
        let mut used = Vec::new();
        for (at, found) in found.into_iter().enumerate() {
            if chosen.contains(&at) {
                used.push(found);
            } else if !found.sources.iter().all(|id| in_force.contains(id)) && is_old(found.file.modified) {
                self.folder.remove(&found.file.name);
            }
        }
        let tables = self.read_tables(used);
        let blobs: usize = tables.iter().map(|(_, sources)| sources.len()).sum();
        self.hits.index_blobs.fetch_add(blobs as u64, Ordering::Relaxed);
        debug!(
            tables = tables.len(),
            blobs,
            missing = missing.len(),
            "index taken from the cache"
        );
        tables
    }

    /// Keeps the tables of `merged` that are not there yet, and removes those they take the place of.
    pub(crate) fn keep_tables(&self, merged: &Merged) {
        if !self.folder.is_writable() {
            return;
        }
        // Half of it would go again before it is ever used.
        if merged.memory() as u64 > self.limit {
            info!(
                bytes = merged.memory(),
                limit = self.limit,
                "the index is larger than the cache and not kept in it"
            );
            return;
        }
        let mut kept = Vec::new();
        let mut has_added = false;
        for (table, sources) in merged.members().filter(|(_, sources)| !sources.is_empty()) {
            let note = note(sources);
            let name = name(&note);
            if !self.folder.has(&name) {
                if !self.folder.write(&name, note.as_bytes(), table.bytes()) {
                    return;
                }
                has_added = true;
            }
            kept.push((name, sources));
        }
        if !has_added {
            return;
        }
        for Found { file, sources } in self.found_tables() {
            let is_kept = kept.iter().any(|(name, _)| *name == file.name);
            if !is_kept
                && kept
                    .iter()
                    .any(|(_, of)| sources.iter().all(|id| of.binary_search(id).is_ok()))
            {
                self.folder.remove(&file.name);
            }
        }
    }

    /// Every table whose head and note are whole.
    fn found_tables(&self) -> Vec<Found> {
        let names = self.folder.names(TABLES);
        let files = names.iter().filter_map(|name| self.folder.open_file(name));
        let found = files.filter_map(|file| match sources(&file.note) {
            Some(sources) => Some(Found { file, sources }),
            None => {
                self.folder.reject(&file.name, "its note is not a list of index blobs");
                None
            }
        });
        found.collect()
    }

    /// Reads and checks tables, several at once.
    fn read_tables(&self, found: Vec<Found>) -> Vec<(Table, Vec<BlobId>)> {
        let read = |found: Found| {
            let name = found.file.name.clone();
            let bytes = self.folder.read_body(found.file)?;
            match Table::parse(bytes) {
                Ok(table) => Some((table, found.sources)),
                Err(e) => {
                    self.folder.reject(&name, &e.to_string());
                    None
                }
            }
        };
        let readers = thread::available_parallelism().map_or(1, usize::from);
        let readers = readers.min(READERS_MAX).min(found.len());
        if readers < 2 {
            return found.into_iter().filter_map(read).collect();
        }
        let found: Vec<_> = found
            .into_iter()
            .map(|found| std::sync::Mutex::new(Some(found)))
            .collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let mut tables = Vec::new();
            while let Some(found) = found.get(next.fetch_add(1, Ordering::Relaxed)) {
                let found = found.lock().expect("no panic while held").take();
                tables.extend(found.and_then(read));
            }
            tables
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..readers).map(|_| scope.spawn(work)).collect();
            let tables = threads.into_iter().flat_map(|thread| match thread.join() {
                Ok(tables) => tables,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            tables.collect()
        })
    }
}

/// Which of the tables with these `sources` to use: those whose blobs are all wanted, the ones with most blobs first, as long
/// as they bring one that none before has. Pure.
fn choose(sources: &[&[BlobId]], wanted: &HashSet<&BlobId>) -> Vec<usize> {
    let usable = |at: &usize| sources[*at].iter().all(|id| wanted.contains(id));
    let mut order: Vec<usize> = (0..sources.len()).filter(usable).collect();
    order.sort_by_key(|at| std::cmp::Reverse(sources[*at].len()));
    let mut covered: HashSet<&BlobId> = HashSet::new();
    order.retain(|at| {
        let brings = sources[*at].iter().any(|id| !covered.contains(id));
        if brings {
            covered.extend(sources[*at]);
        }
        brings
    });
    order
}

fn is_old(modified: SystemTime) -> bool {
    modified.elapsed().is_ok_and(|age| age > UNUSED_AGE)
}

/// The names of blobs as a file has them.
fn note(sources: &[BlobId]) -> String {
    let names: Vec<&str> = sources.iter().map(BlobId::as_str).collect();
    names.join("\n")
}

/// The names in a note: valid, in ascending order, one at least.
fn sources(note: &[u8]) -> Option<Vec<BlobId>> {
    let text = std::str::from_utf8(note).ok()?;
    let ids: Vec<BlobId> = text.split('\n').map(BlobId::new).collect::<Result<_, _>>().ok()?;
    ids.is_sorted_by(|a, b| a < b).then_some(ids)
}

/// File of the table with this note.
fn name(note: &str) -> String {
    let hash = blake3::hash(note.as_bytes());
    format!("{TABLES}/{}", hex::encode(&hash.as_bytes()[..16]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<BlobId> {
        text.split(' ').map(BlobId::known).collect()
    }

    #[track_caller]
    fn check(tables: &[&str], wanted: &str, expect: &[usize]) {
        let tables: Vec<Vec<BlobId>> = tables.iter().map(|text| ids(text)).collect();
        let tables: Vec<&[BlobId]> = tables.iter().map(Vec::as_slice).collect();
        let wanted = ids(wanted);
        assert_eq!(choose(&tables, &wanted.iter().collect()), expect);
    }

    #[test]
    fn tables_of_blobs_that_are_all_in_force_are_used_large_ones_first() {
        check(&["a", "a b c", "d"], "a b c d", &[1, 2]);
        check(&["a b", "b c"], "a b c", &[0, 1]);
        check(&[], "a", &[]);
    }

    #[test]
    fn a_table_with_a_blob_that_is_not_in_force_is_never_used() {
        check(&["a b c", "a b"], "a b", &[1]);
        check(&["a b c"], "a b", &[]);
    }

    #[test]
    fn a_note_is_a_sorted_list_of_valid_names() {
        let list = ids("xn0_aa xn0_bb");
        assert_eq!(sources(note(&list).as_bytes()), Some(list));
        for bad in ["", "xn0_bb\nxn0_aa", "xn0_aa\nxn0_aa", "xn0_aa\n", "../../etc/passwd"] {
            assert_eq!(sources(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(sources(&[0xff, 0xfe]), None);
    }
}
