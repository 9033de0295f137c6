//! When nothing is deleted, and what is said then.

use std::sync::Arc;

use blockio::{Cancel, Progress};

use super::hooked::Hooked;
use super::world::*;
use super::*;
use crate::blob::{BlobStore, Fault, FaultRule, FaultStore, StoreOp};
use crate::error::{Kind, RepoError};
use crate::id::BlobId;

fn refused(world: &World, options: &Options, words: &[&str]) -> RepoError {
    let packs = world.packs();
    let error = world.maintain_with(options).expect_err("refused");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
    assert_eq!(world.packs(), packs, "nothing was deleted");
    error
}

#[test]
fn only_the_owner_maintains_unless_told() {
    let mut world = World::new();
    world.back_up(&[1]);
    let other = Options {
        user: "you@there".into(),
        ..world.options(Mode::Full)
    };
    refused(&world, &other, &["\"me@here\"", "--force-owner", "maintenance own"]);
    let forced = Options {
        overrides: Overrides {
            not_owner: true,
            ..Overrides::default()
        },
        ..other.clone()
    };
    world.maintain_with(&forced).expect("told to");
    world.set_owner("you@there");
    world.maintain_with(&other).expect("the owner");
}

#[test]
fn veleros_repositories_are_left_to_velero() {
    let mut world = World::new();
    world.back_up(&[1]);
    world
        .store
        .put(&BlobId::known("udmrepo.Repository"), b"{}")
        .expect("put");
    refused(&world, &world.options(Mode::Quick), &["Velero", "--force-velero"]);
    let forced = Options {
        overrides: Overrides {
            velero: true,
            ..Overrides::default()
        },
        ..world.options(Mode::Quick)
    };
    world.maintain_with(&forced).expect("told to");

    let world = World::new();
    world.set_owner("default@default");
    let velero = Options {
        user: "default@default".into(),
        ..world.options(Mode::Quick)
    };
    refused(&world, &velero, &["Velero"]);
}

#[test]
fn a_repository_that_lists_no_snapshot_is_not_emptied_unasked() {
    let mut world = World::new();
    let only = world.back_up(&[1, 2, 3]);
    world.delete(only);
    world.pass(30 * HOUR);
    refused(
        &world,
        &world.options(Mode::Full),
        &["no snapshot", "--yes-no-snapshots"],
    );
    let planned = world.dry_run(&world.options(Mode::Full)).expect("plan");
    assert!(planned.warnings.iter().any(|w| w.contains("--yes-no-snapshots")));
    let meant = Options {
        overrides: Overrides {
            no_snapshots: true,
            ..Overrides::default()
        },
        ..world.options(Mode::Full)
    };
    world.maintain_with(&meant).expect("meant");
}

#[test]
fn an_unlikely_share_is_not_deleted_unasked() {
    let mut world = World::new();
    world.back_up(&[1]);
    let most = world.back_up(&[2, 3, 4, 5, 6, 7, 8, 9]);
    world.delete(most);
    world.pass(30 * HOUR);
    let careful = Options {
        breaker: Breaker {
            percent_max: 50,
            bytes_min: 1000,
        },
        ..world.options(Mode::Full)
    };
    refused(&world, &careful, &["50 %", "--yes-delete-many", "dry-run"]);
    let meant = Options {
        overrides: Overrides {
            delete_many: true,
            ..Overrides::default()
        },
        ..careful
    };
    world.maintain_with(&meant).expect("meant");
    world.check("marked");
}

#[test]
fn a_snapshot_that_cannot_be_walked_keeps_everything() {
    let mut world = World::new();
    world.back_up(&[1, 2, 3]);
    let goes = world.back_up(&[4, 5]);
    world.delete(goes);
    world.pass(30 * HOUR);
    // Every pack of metadata in turn is gone for this client.
    for pack in world.names("q") {
        let fork = world.fork();
        fork.store.delete(&BlobId::known(pack)).expect("delete");
        match fork.maintain(Mode::Full) {
            Ok(report) => {
                let totals = &report.task(Task::SnapshotGc).expect("ran").numbers;
                assert_eq!(totals["inUse"]["count"], 4, "the pack of the deleted snapshot's list");
            }
            Err(error) => {
                assert!(error.is_damage() || error.is_not_found(), "{error}");
                let history = History::read(&fork.open()).expect("history");
                assert!(!history.runs("snapshot-gc").iter().any(|run| run.success));
                assert!(history.runs("full-delete-blobs").is_empty());
            }
        }
    }
    world.check("untouched");
}

#[test]
fn a_content_that_a_snapshot_lost_stops_every_deletion() {
    let mut world = World::new();
    world.back_up(&[1, 2, 3]);
    world.pass(HOUR);
    // Another client has forgotten a content that the snapshot uses.
    let repository = world.open();
    let content = repository.contents().content_id(None, &[2; CHUNK]);
    let entry = repository.lookup(&content).expect("there");
    let deletion = crate::index::IndexEntry {
        deleted: true,
        time: entry.time + 1,
        ..entry
    };
    let mut writer = super::super::writer::Writer::new(&repository, &world.clock(), OWNER).expect("writer");
    writer.put_entries(vec![deletion]).expect("put");
    writer.finish().expect("finish");
    let watermark = format!("xw{}", world.now());
    world
        .store
        .put(&BlobId::known(watermark), b"deletion-watermark")
        .expect("put");
    let error = refused(&world, &world.options(Mode::Full), &["not in the index", "verify"]);
    assert!(error.is_damage());
}

#[test]
fn another_maintenance_at_the_same_time_is_noticed_before_anything_is_deleted() {
    let mut world = World::new();
    world.back_up(&[1]);
    world.die(&[7, 8]);
    world.pass(100 * HOUR);
    let packs = world.names("p");
    // The other one writes the schedule after ours did: when we list the session markers.
    let (other, blobs) = (world.open(), world.store.clone());
    let store = Hooked::new(&world.store, move |prefix, listing| {
        if prefix == "s" {
            let id = BlobId::known("kopia.maintenance");
            let schedule = other.format().open_maintenance(&blobs.get(&id).expect("written by us"));
            let sealed = other.format().seal_maintenance(&schedule.expect("valid"));
            blobs.put(&id, &sealed).expect("put");
        }
        listing
    });
    let repository = world.open_on(store);
    let options = Options {
        safety: Safety {
            rewrite_to_delete: std::time::Duration::ZERO,
            ..Safety::FULL
        },
        ..world.options(Mode::Full)
    };
    let error = run(&repository, &options, &Cancel::new(), &Progress::new()).expect_err("noticed");
    assert_eq!(error.kind(), Kind::Busy, "{error}");
    assert_eq!(world.names("p"), packs);
}

/// Lets `rule` loose on a quick run.
fn with_fault(world: &World, op: StoreOp, skip: u64, count: u64, fault: Fault) -> crate::Result<Report> {
    let faults = Arc::new(FaultStore::new(world.store.clone()));
    faults.rule(FaultRule {
        op,
        prefix: "kopia.maintenance".into(),
        skip,
        count,
        fault,
    });
    let repository = world.open_on(faults);
    run(
        &repository,
        &world.options(Mode::Quick),
        &Cancel::new(),
        &Progress::new(),
    )
}

#[test]
fn a_wrong_clock_is_told_from_old_answers() {
    let mut world = World::new();
    world.back_up(&[1]);
    world.maintain(Mode::Quick).expect("a first version of the schedule");
    world.pass(HOUR);
    // The first look at the blob's time is before it is written.
    let skewed = with_fault(&world, StoreOp::Meta, 1, 100, Fault::Skew(600)).expect_err("ten minutes");
    assert_eq!(skewed.kind(), Kind::Clock);
    assert!(skewed.to_string().contains("differ by 600 s"), "{skewed}");
    with_fault(&world, StoreOp::Meta, 1, 2, Fault::Skew(-600)).expect("a difference that goes away");
    world.pass(HOUR);
    // Times as they were before the write: an hour, less what the skew adds to tell them apart from a match.
    let stale = with_fault(&world, StoreOp::Meta, 1, 100, Fault::Skew(-3600)).expect_err("an hour ago");
    assert_eq!(stale.kind(), Kind::Unavailable, "{stale}");
    assert!(stale.to_string().contains("not a wrong clock"), "{stale}");
    with_fault(&world, StoreOp::Meta, 1, 3, Fault::Skew(-3600)).expect("old answers that cease");
}

#[test]
fn a_cancelled_run_says_so_and_leaves_all_whole() {
    let mut world = World::new();
    world.back_up(&[1, 2]);
    world.pass(30 * HOUR);
    let cancel = Cancel::new();
    cancel.cancel();
    let error = run(&world.open(), &world.options(Mode::Full), &cancel, &Progress::new()).expect_err("cancelled");
    assert_eq!(error.kind(), Kind::Cancelled);
    world.check("cancelled");
}
