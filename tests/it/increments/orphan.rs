//! The parent of an increment goes while the increment is at work.

use std::sync::Arc;
use std::time::Duration;

use blockferry_tests::wait::wait_for;
use blockio::{BlockMap, ChunkIndex};
use daemon::mover::audit::Budget;
use daemon::mover::backup::{BackupOptions, Changes, Listed};
use daemon::mover::ladder::Rung;
use repo::epoch::IndexWriter;
use repo::index::{IndexEntry, build_shards};
use repo::manifest;
use repo::session::{WriteOptions, WriteSession};
use repo::time::Time;
use repo::{ManifestId, Repository, SessionId};

use crate::bad_input::support::{
    MIB, assert_same, back_up, backup_options, damage, empty, names, open, random_volume, restored, shrink_packs,
};

const CHUNKS: u64 = 64;

/// Chunks that the list names: four packs of them, so that there is a middle.
const LISTED: usize = 40;

/// Deletes the snapshot, and marks what only it refers to as deleted, as maintenance does in two runs.
fn delete(repository: &Repository, parent: ManifestId) {
    let snapshots = repository.snapshots().unwrap();
    let snapshot = snapshots.iter().find(|snapshot| snapshot.id == Some(parent)).unwrap();
    let table = repository.image(snapshot).unwrap().table;
    let options = WriteOptions {
        uploads: 1,
        ..WriteOptions::default()
    };
    let mut changes = manifest::Changes::default();
    changes.delete(repository.manifests().unwrap().get(&parent).unwrap());
    let session = WriteSession::begin(repository, &options).unwrap();
    session.commit_changes(&changes).unwrap();
    let gone = |piece| IndexEntry {
        deleted: true,
        time: Time::now().unix() + 1,
        ..repository.lookup(&table.content(piece)).unwrap()
    };
    let writer = IndexWriter {
        store: &**repository.store(),
        contents: repository.contents(),
        parameters: &repository.format().epoch,
        session: &SessionId::random().unwrap(),
    };
    let shards = build_shards((0..table.count()).map(gone).collect()).unwrap();
    writer.write(&shards, None).unwrap();
}

/// Nothing holds what was taken over from a parent that is gone: it is looked up again before the end, read, and stored.
#[test]
fn what_was_taken_over_from_a_parent_that_is_deleted_meanwhile_is_stored_again() {
    let left = empty();
    shrink_packs(&*left);
    let volume = random_volume(71, CHUNKS);
    let first = back_up(&open(left.clone()), volume.path(), &backup_options()).unwrap();
    let mut map = BlockMap::new(CHUNKS);
    for change in volume.change_blocks(100, LISTED).unwrap() {
        map.set(ChunkIndex::of(change.offset));
    }
    let options = BackupOptions {
        limit: Some(8 * MIB),
        changes: Changes {
            changed: Some(Listed {
                origin: "test",
                volume_size: CHUNKS * MIB,
                map,
            }),
            require: Rung::Delta,
            audit: Budget::NONE,
            ..Changes::default()
        },
        ..backup_options()
    };
    let (at_work, other) = (open(left.clone()), open(left.clone()));
    let packs = names(&*left, "p").len();
    let report = std::thread::scope(|scope| {
        let job = scope.spawn(|| back_up(&at_work, volume.path(), &options).unwrap());
        wait_for("a pack of the increment", Duration::from_secs(60), || {
            names(&*left, "p").len() > packs
        })
        .unwrap();
        assert!(!job.is_finished());
        delete(&other, first.snapshot);
        assert!(!job.is_finished(), "the increment was still at work");
        job.join().unwrap()
    });
    assert_eq!(report.parent, Some(first.snapshot));
    assert_eq!(
        report.read_bytes,
        CHUNKS * MIB,
        "what is not in the list is read in the end"
    );

    let repository = open(Arc::clone(&left) as Arc<_>);
    let snapshot = repository.snapshots().unwrap().remove(0);
    assert_eq!(snapshot.id, Some(report.snapshot));
    let image = repository.image(&snapshot).unwrap();
    assert_eq!(repository.dead_pieces(&image.table), Vec::<usize>::new());
    assert_eq!(damage(&repository).unwrap(), Vec::<String>::new());
    assert_same(&restored(&repository, &snapshot).unwrap(), &volume.bytes().unwrap());
}
