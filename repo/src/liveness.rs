//! Whether what an increment takes over from its parent is still there.
//!
//! A client that copies entries of another snapshot's list relies on contents it does not store itself. Kopia and Velero
//! leave it to the next garbage collection to bring back what was marked as deleted; here it is looked at beforehand, and
//! again before the snapshot is published.

use std::ops::Range;

use crate::error::Result;
use crate::id::{HASH_LEN_MAX, ManifestId};
use crate::index::{Merged, Sweep};
use crate::object::BlockAddressTable;
use crate::repository::Repository;

/// What is left of a parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// The parent's manifest is there. Once it is gone, its contents live only until the next garbage collection but one.
    pub stands: bool,
    /// Pieces of its image whose contents are deleted or unknown, in order: to be read and stored again.
    pub dead: Vec<usize>,
}

impl Repository {
    /// Reads the index again and looks up every content of `table`, the image of the snapshot `parent`.
    ///
    /// Costs one refresh of the index, one reading of the manifests and the look-ups of [`Self::dead_pieces`].
    pub fn liveness(&self, parent: &ManifestId, table: &BlockAddressTable) -> Result<Liveness> {
        self.refresh()?;
        Ok(Liveness {
            stands: self.manifests()?.get(parent).is_some(),
            dead: self.dead_pieces(table),
        })
    }

    /// Pieces of `table` whose contents are not alive in the index as last read, in order.
    ///
    /// Contents are asked for in the order of the index, neighbours with the same content once: 1,048,576 distinct ones cost
    /// 300 ms CPU where one by one they cost 4,380 ms (both beside much other work on two cores; example `list_rates`).
    pub fn dead_pieces(&self, table: &BlockAddressTable) -> Vec<usize> {
        if table.has_prefixes() {
            let alive = |at: &usize| self.deleted_at(&table.content(*at)) == Some(None);
            return (0..table.count()).filter(|at| !alive(at)).collect();
        }
        let (index, _) = self.index();
        let look = |pieces: Range<usize>| {
            let batches = pieces.clone().step_by(BATCH);
            let mut runs = Vec::new();
            let dead =
                batches.flat_map(|first| dead_of(&index, table, first..pieces.end.min(first + BATCH), &mut runs));
            dead.collect::<Vec<_>>()
        };
        if table.count() < PARALLEL_MIN {
            return look(0..table.count());
        }
        let half = table.count() / 2;
        std::thread::scope(|scope| {
            let second = scope.spawn(|| look(half..table.count()));
            let mut dead = look(0..half);
            dead.extend(second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            dead
        })
    }
}

/// Pieces sorted and looked up at a time: 16 MiB in each of two threads, and enough that keys that follow each other lie
/// about ten rows (400 bytes) apart in an index of 10,000,000.
const BATCH: usize = 1 << 20;

/// Pieces from which a second thread is started: four segments of a table, well above what starting a thread costs.
const PARALLEL_MIN: usize = 1 << 14;

/// Neighbouring pieces in the same content.
struct Run {
    /// First eight bytes of the hash: nearly every comparison ends here.
    head: u64,
    first: u32,
    count: u32,
}

/// Those of `pieces` whose contents are not alive, in order. `runs` is memory to work in.
fn dead_of(index: &Merged, table: &BlockAddressTable, pieces: Range<usize>, runs: &mut Vec<Run>) -> Vec<usize> {
    let number = |n: usize| u32::try_from(n).expect("below the most entries of a table");
    let at = |n: u32| usize::try_from(n).expect("a number of a piece");
    runs.clear();
    let mut before: &[u8] = &[];
    for piece in pieces {
        let hash = table.hash(piece);
        match runs.last_mut() {
            Some(run) if before == hash => run.count += 1,
            _ => runs.push(Run {
                head: head(hash),
                first: number(piece),
                count: 1,
            }),
        }
        before = hash;
    }
    let hash = |run: &Run| table.hash(at(run.first));
    runs.sort_unstable_by(|a, b| a.head.cmp(&b.head).then_with(|| hash(a).cmp(hash(b))));
    let mut sweep = Sweep::new(index);
    let mut key = [0; HASH_LEN_MAX + 1]; // no prefix
    let mut dead = Vec::new();
    for run in &*runs {
        let hash = hash(run);
        let key = &mut key[..=hash.len()];
        key[1..].copy_from_slice(hash);
        if !sweep.is_alive(key) {
            dead.extend(at(run.first)..at(run.first) + at(run.count));
        }
    }
    dead.sort_unstable();
    dead
}

fn head(hash: &[u8]) -> u64 {
    let mut head = [0; 8];
    let len = hash.len().min(8);
    head[..len].copy_from_slice(&hash[..len]);
    u64::from_be_bytes(head)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, OnceLock};

    use proptest::prelude::*;

    use super::*;
    use crate::blob::MemStore;
    use crate::format::CreateOptions;
    use crate::id::{BlobId, ContentId};
    use crate::index::{IndexEntry, build_shards};
    use crate::object::TableBuilder;

    fn id(n: u32) -> ContentId {
        let mut hash = *blake3::hash(&n.to_le_bytes()).as_bytes();
        // Some have the same first half, so that it does not decide.
        if n.is_multiple_of(3) {
            hash[..8].fill(7);
        }
        ContentId::new(None, &hash[..16]).expect("valid")
    }

    /// Contents below 1000 in four index blobs: some deleted, some deleted and stored again.
    fn repository() -> &'static Repository {
        static MADE: OnceLock<Repository> = OnceLock::new();
        MADE.get_or_init(|| {
            let store = Arc::new(MemStore::new());
            Repository::create(&*store, "password", &CreateOptions::default()).expect("create");
            let repository = Repository::open(store, "password").expect("open");
            let blobs = [(1, 1, false), (5, 2, true), (10, 3, false), (35, 4, true)];
            for (step, time, deleted) in blobs {
                let entry = |n| IndexEntry {
                    content: id(n),
                    pack: BlobId::known("p00"),
                    offset: 32,
                    packed_len: 100,
                    original_len: 72,
                    time,
                    deleted,
                    format_version: 2,
                    compression: 0,
                };
                let entries = (0..1000).step_by(step).map(entry).collect();
                let shard = build_shards(entries).expect("build").remove(0);
                let name = format!("xn0_{step}");
                repository.add_index(BlobId::known(name), shard).expect("add");
            }
            repository
        })
    }

    fn check(contents: &[ContentId]) {
        let mut builder = TableBuilder::new(16);
        contents.iter().for_each(|id| builder.push(1, id).expect("fits"));
        let one_by_one = |at: &usize| repository().deleted_at(&contents[*at]) != Some(None);
        let expect: Vec<usize> = (0..contents.len()).filter(one_by_one).collect();
        assert_eq!(repository().dead_pieces(&builder.finish()), expect);
    }

    proptest! {
        #[test]
        fn looking_up_in_bulk_finds_what_looking_up_one_by_one_does(
            runs in proptest::collection::vec((0..1500u32, 1..4usize), 0..200), prefixed in any::<bool>(),
        ) {
            let mut contents: Vec<_> = runs.into_iter().flat_map(|(n, count)| vec![id(n); count]).collect();
            if prefixed {
                contents.push(ContentId::new(Some('x'), id(1).hash()).unwrap());
            }
            check(&contents);
        }
    }

    #[test]
    fn large_tables_are_looked_up_in_parts() {
        let count = u32::try_from(3 * PARALLEL_MIN).expect("small");
        check(&(0..count).map(|n| id(n % 1300)).collect::<Vec<_>>());
        check(&vec![id(5); 2 * PARALLEL_MIN]);
        check(&vec![id(1); 2 * PARALLEL_MIN]);
    }
}
