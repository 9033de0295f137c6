//! The world stops after the n-th change of the storage, for every n.

use std::sync::Arc;

use blockferry_tests::kopia::{self, Kopia};
use blockferry_tests::volume::{Layout, Volume};
use repo::blob::{FaultStore, MemStore};
use repo::{ManifestId, Repository};

use crate::bad_input::support::{
    MIB, PASSWORD, assert_same, back_up, backup_options, copy, damage, empty, materialise, names, open, restored,
    shrink_packs,
};

/// A repository with an older snapshot, and the volume of the run that is cut: one that shares some of its chunks.
struct Subject {
    base: Arc<MemStore>,
    older: Volume,
    old_id: ManifestId,
    volume: Volume,
}

impl Subject {
    fn new() -> Self {
        let base = empty();
        shrink_packs(&*base);
        let older = Volume::create(&Layout::mixed(51, 3 * MIB)).unwrap();
        let old_id = back_up(&open(base.clone()), older.path(), &backup_options())
            .unwrap()
            .snapshot;
        // 24 MiB: random and records fill two small packs and begin a third.
        let volume = Volume::create(&Layout::mixed(52, 40 * MIB + 512)).unwrap();
        volume.write_at(0, &older.bytes().unwrap()).unwrap();
        Self {
            base,
            older,
            old_id,
            volume,
        }
    }

    /// Changes a clean run makes.
    fn changes(&self) -> u64 {
        let store = Arc::new(FaultStore::new(copy(&*self.base)));
        back_up(&open(store.clone()), self.volume.path(), &backup_options()).unwrap();
        store.changes()
    }

    /// A run that is cut after `changes` changes; what it leaves, and whether it took itself for done.
    fn cut(&self, changes: u64) -> (Arc<MemStore>, bool) {
        let left = copy(&*self.base);
        let store = Arc::new(FaultStore::new(left.clone()));
        let repository = open(store.clone());
        store.cut_after(changes);
        let result = back_up(&repository, self.volume.path(), &backup_options());
        if let Err(error) = &result {
            assert_eq!(error.exit_code(), 1, "cut after {changes}: {error}");
        }
        (left, result.is_ok())
    }

    /// Asserts that every snapshot is whole; returns how many there are.
    fn check(&self, repository: &Repository, case: &str) -> usize {
        assert_eq!(damage(repository).unwrap(), Vec::<String>::new(), "{case}");
        let snapshots = repository.snapshots().unwrap();
        for snapshot in &snapshots {
            let want = if snapshot.id == Some(self.old_id) {
                &self.older
            } else {
                &self.volume
            };
            assert_same(&restored(repository, snapshot).unwrap(), &want.bytes().unwrap());
        }
        assert!(
            snapshots.iter().any(|s| s.id == Some(self.old_id)),
            "{case}: the older snapshot is there"
        );
        snapshots.len()
    }
}

#[test]
fn a_cut_after_any_change_leaves_a_whole_repository() {
    let subject = Subject::new();
    let total = subject.changes();
    assert!(
        (6..40).contains(&total),
        "marker, several packs, metadata, index, marker: {total} changes"
    );
    let old_indexes = names(&*subject.base, "xn").len();
    let mut published = 0;
    for changes in 0..=total {
        let case = format!("cut after {changes} of {total}");
        let (left, done) = subject.cut(changes);
        assert_eq!(
            names(&*left, "s").len(),
            usize::from((1..total).contains(&changes)),
            "{case}: markers"
        );
        let repository = open(left.clone());
        let count = subject.check(&repository, &case);
        assert!(!done || count == 2, "{case}: a run that ended well has its snapshot");
        // The index blob holds the manifest: with it there is a snapshot, without it none.
        assert_eq!(count - 1, names(&*left, "xn").len() - old_indexes, "{case}");
        published += count - 1;

        let report = back_up(&repository, subject.volume.path(), &backup_options()).unwrap();
        let repository = open(left.clone());
        assert_eq!(subject.check(&repository, &format!("{case}, run again")), count + 1);
        let reused = if count == 2 {
            report.source_size.next_multiple_of(MIB) - report.zero_bytes
        } else {
            report.known_bytes
        };
        assert_eq!(
            report.known_bytes, reused,
            "{case}: what was indexed is not stored again"
        );
    }
    assert!(published >= 1, "the last cuts leave the snapshot");
}

/// The real kopia looks at what is left, and takes away what nothing refers to.
#[test]
fn kopia_finds_no_damage_in_what_a_cut_leaves() {
    if !kopia::available() {
        return;
    }
    let subject = Subject::new();
    let total = subject.changes();
    for changes in [0, 1, 2, total - 2, total - 1, total] {
        let (left, _) = subject.cut(changes);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("repo");
        materialise(&*left, &path);
        let kopia = Kopia::new(&path, PASSWORD).unwrap();
        kopia.connect().unwrap();
        let count = kopia.snapshot_list_json().unwrap().len();
        assert_eq!(
            count,
            if changes >= total - 1 { 2 } else { 1 },
            "cut after {changes} of {total}"
        );
        kopia.verify_full().unwrap();
        kopia.run(["maintenance", "set", "--owner=me"]).unwrap();
        kopia.maintenance_full_unsafe().unwrap();
        kopia.verify_full().unwrap();
        let repository = open(Arc::new(repo::blob::FsStore::open(&path).unwrap()));
        assert_eq!(subject.check(&repository, "after maintenance"), count);
        back_up(&repository, subject.volume.path(), &backup_options()).unwrap();
        kopia.verify_full().unwrap();
    }
}
