//! What is lost, and what brings it back: packs that move, packs that vanish, contents that are stored again.

use std::fs;
use std::sync::Arc;

use blockio::{Device, Extent};
use daemon::mover::backup::{BackupOptions, Care};
use daemon::mover::restore::RestoreOptions;
use repo::blob::BlobStore;

use super::support::*;

/// Deletes all data packs of the store but the first `keep`, by name.
fn lose_packs(store: &dyn BlobStore, keep: usize) -> usize {
    let packs = names(store, "p");
    for pack in &packs[keep..] {
        store.delete(&repo::BlobId::new(pack.as_str()).unwrap()).unwrap();
    }
    packs.len() - keep
}

fn watchful() -> BackupOptions {
    BackupOptions {
        care: Care {
            check_reused: 100,
            ..Care::default()
        },
        ..backup_options()
    }
}

#[test]
fn a_pack_rewritten_while_its_contents_are_wanted_is_found_where_it_went() {
    let store = empty();
    let volume = random_volume(1, 4);
    let reader = open(store.clone());
    back_up(&reader, volume.path(), &backup_options()).unwrap();
    // Another client stores the contents in new packs; the old ones are gone. The reader knows nothing of it.
    lose_packs(&*store, 0);
    let report = back_up(&open(store.clone()), volume.path(), &watchful()).unwrap();
    assert_eq!(report.totals.healed, 4);

    let snapshot = reader.snapshots().unwrap().remove(0);
    assert_same(&restored(&reader, &snapshot).unwrap(), &volume.bytes().unwrap());
}

#[test]
fn a_backup_heals_what_the_repository_lost_and_older_snapshots_with_it() {
    let store = empty();
    shrink_packs(&*store);
    let volume = random_volume(2, 25);
    back_up(&open(store.clone()), volume.path(), &backup_options()).unwrap();
    assert!(lose_packs(&*store, 1) > 0);
    assert!(!damage(&open(store.clone())).unwrap().is_empty());

    let blind = back_up(&open(store.clone()), volume.path(), &backup_options()).unwrap();
    assert_eq!(blind.totals.healed, 0, "not asked to look");
    let healing = back_up(&open(store.clone()), volume.path(), &watchful()).unwrap();
    assert!(healing.totals.healed >= 10, "{:?}", healing.totals);
    assert_clean(&store, 3);
}

#[test]
fn a_salvaging_restore_writes_what_is_there_and_names_what_is_not() {
    let store = empty();
    shrink_packs(&*store);
    let volume = random_volume(3, 25);
    let repository = open(store.clone());
    back_up(&repository, volume.path(), &backup_options()).unwrap();
    let snapshot = repository.snapshots().unwrap().remove(0);
    lose_packs(&*store, 1);
    assert_refused(restored(&repository, &snapshot).unwrap_err(), 4, &["pack", "missing"]);

    let folder = fast_folder();
    let path = folder.path().join("salvaged");
    let target = Arc::new(Device::create_file(&path, 25 * MIB, true).unwrap());
    let options = RestoreOptions {
        target_is_zero: true,
        salvage: true,
        verify: true,
        ..restore_options()
    };
    let report = restore_to(&repository, &snapshot, &target, &options).unwrap();
    let lost: u64 = report.lost.iter().map(|extent| extent.len).sum();
    assert!((10 * MIB..25 * MIB).contains(&lost), "{:?}", report.lost);
    let (have, want) = (fs::read(&path).unwrap(), volume.bytes().unwrap());
    for chunk in 0..25 {
        let place = Extent {
            offset: chunk * MIB,
            len: MIB,
        };
        let range = usize::try_from(place.offset).unwrap()..usize::try_from(place.end()).unwrap();
        if report.lost.iter().any(|lost| lost.contains(place)) {
            assert!(have[range].iter().all(|byte| *byte == 0), "chunk {chunk} is untouched");
        } else {
            assert_same(&have[range.clone()], &want[range]);
        }
    }
}

#[test]
fn a_salvaging_restore_of_a_sound_snapshot_loses_nothing() {
    let store = empty();
    let volume = random_volume(4, 3);
    let repository = open(store.clone());
    back_up(&repository, volume.path(), &backup_options()).unwrap();
    let snapshot = repository.snapshots().unwrap().remove(0);
    let folder = fast_folder();
    let path = folder.path().join("salvaged");
    let target = Arc::new(Device::create_file(&path, 3 * MIB, true).unwrap());
    let options = RestoreOptions {
        salvage: true,
        ..restore_options()
    };
    let report = restore_to(&repository, &snapshot, &target, &options).unwrap();
    assert!(report.lost.is_empty());
    assert_same(&fs::read(&path).unwrap(), &volume.bytes().unwrap());
}
