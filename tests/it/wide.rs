//! An index of very many contents in a thousand blobs, as years of backups leave it where nobody maintains: both clients read
//! it, and agree on what its latest entries say.

use std::collections::BTreeSet;
use std::sync::Arc;

use blockferry_tests::kopia::{self, Kopia};
use repo::blob::MemStore;
use repo::epoch::IndexWriter;
use repo::index::{IndexEntry, build_shards};
use repo::{BlobId, ContentId, Repository, SessionId};

use crate::bad_input::support::{
    PASSWORD, World, assert_same, assert_words, back_up, backup_options, empty, names, open, random_volume, restored,
};

/// Index blobs.
const BLOBS: u64 = 1000;

/// Contents of each, in CI and with soak: 100,000 and 1,000,000 in all.
const CONTENTS: (u64, u64) = (100, 1000);

/// When the first blob was written; each later one a second after the one before.
const BEGIN: u64 = 1_700_000_000;

/// Writes index blobs about contents that are in no pack.
struct Index<'a> {
    repository: &'a Repository,
    /// Contents that each blob is the first to name.
    each: u64,
}

impl Index<'_> {
    fn content(number: u64) -> ContentId {
        // Spread over all hashes, and never the same for two numbers.
        let high = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = [high.to_be_bytes(), number.to_be_bytes()].concat();
        ContentId::new(None, &hash).unwrap()
    }

    /// The pack that blob `blob` says its contents are in.
    fn pack(blob: u64) -> BlobId {
        BlobId::new(format!("p{blob:032x}-{}", Self::session(blob))).unwrap()
    }

    fn session(blob: u64) -> SessionId {
        SessionId::new(blob.to_be_bytes(), BEGIN)
    }

    fn entry(&self, blob: u64, number: u64, deleted: bool) -> IndexEntry {
        IndexEntry {
            content: Self::content(number),
            pack: Self::pack(blob),
            offset: 32 + u32::try_from(number % self.each).unwrap() * 100,
            packed_len: 100,
            original_len: 72,
            time: BEGIN + blob,
            deleted,
            format_version: self.repository.contents().format_version(),
            compression: 0,
        }
    }

    /// Blob `blob` names contents of its own, and of the blob before says that the first was moved and the second deleted.
    fn write(&self, blob: u64) {
        let own = blob * self.each;
        let mut entries: Vec<_> = (own..own + self.each).map(|n| self.entry(blob, n, false)).collect();
        if let Some(before) = own.checked_sub(self.each) {
            entries.push(self.entry(blob, before, false));
            entries.push(self.entry(blob, before + 1, true));
        }
        let writer = IndexWriter {
            store: &**self.repository.store(),
            contents: self.repository.contents(),
            parameters: &self.repository.format().epoch,
            session: &Self::session(blob),
        };
        writer.write(&build_shards(entries).unwrap(), None).unwrap();
    }

    /// What somebody who opens the repository anew finds for the contents of blob `blob`.
    fn check(&self, fresh: &Repository, blob: u64) {
        let is_last = blob + 1 == BLOBS;
        for number in blob * self.each..(blob + 1) * self.each {
            let found = fresh.lookup(&Self::content(number)).unwrap();
            let want = match number % self.each {
                0 if !is_last => self.entry(blob + 1, number, false),
                1 if !is_last => self.entry(blob + 1, number, true),
                _ => self.entry(blob, number, false),
            };
            assert_eq!(found, want, "content {number}");
        }
    }
}

/// What `kopia content stats --raw` counts.
fn counted(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("Count:"));
    line.unwrap_or_else(|| panic!("no count in {text}"))
        .trim()
        .parse()
        .unwrap()
}

#[test]
fn a_thousand_index_blobs_say_what_their_latest_entries_say() {
    let each = blockferry_tests::rounds(CONTENTS.0, CONTENTS.1);
    let store: Arc<MemStore> = empty();
    let volume = random_volume(71, 3);
    let taken = back_up(&open(store.clone()), volume.path(), &backup_options()).unwrap();
    let before = open(store.clone()).content_count();
    let repository = open(store.clone());
    let index = Index {
        repository: &repository,
        each,
    };
    (0..BLOBS).for_each(|blob| index.write(blob));
    assert!(names(&*store, "xn").len() as u64 > BLOBS);

    let fresh = open(store.clone());
    // Rows that a later one overrides go when small tables are merged.
    let contents = before + BLOBS * each;
    assert!((contents..=contents + 2 * (BLOBS - 1)).contains(&fresh.content_count()));
    (0..BLOBS).for_each(|blob| index.check(&fresh, blob));
    assert_eq!(fresh.lookup(&Index::content(BLOBS * each)), None);
    // An increment among them: what is known is found, and nothing is stored twice.
    let again = back_up(&fresh, volume.path(), &backup_options()).unwrap();
    assert_eq!((again.new_bytes, again.object), (0, taken.object));

    let world = World::with(&*store);
    let snapshots = open(world.store()).snapshots().unwrap();
    assert_same(
        &restored(&open(world.store()), &snapshots[0]).unwrap(),
        &volume.bytes().unwrap(),
    );
    assert_words(
        &world.ferry.run(["repo", "status"]).unwrap(),
        &["index blobs; run maintenance"],
    );
    if kopia::available() {
        kopia_agrees(&world, &fresh, each);
    }
}

/// Kopia counts as many contents as we know, and restores the volume from among them.
fn kopia_agrees(world: &World, fresh: &Repository, each: u64) {
    let kopia = Kopia::new(&world.repo(), PASSWORD).unwrap();
    kopia.connect().unwrap();
    let mut alive = BTreeSet::new();
    for prefix in [0, b'k', b'm', b'x'] {
        fresh
            .each_content(prefix, &mut |entry| {
                if !entry.deleted {
                    alive.insert(entry.content);
                }
                Ok(())
            })
            .unwrap();
    }
    let count = counted(&kopia.run(["content", "stats", "--raw"]).unwrap());
    assert_eq!(count, alive.len() as u64);
    assert!(count >= BLOBS * each - (BLOBS - 1), "{count}");
    kopia.verify_full().unwrap();
    let blobs = kopia.run(["index", "list"]).unwrap();
    assert!(blobs.lines().count() as u64 > BLOBS, "{blobs}");
}
