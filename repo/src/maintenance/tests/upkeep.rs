//! Upkeep of index and object locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blockio::{Cancel, Progress};

use super::hooked::Hooked;
use super::world::*;
use super::*;
use crate::blob::{BlobStore, Fault, FaultRule, FaultStore, StoreOp};
use crate::format::{BlobConfig, Retention, RetentionMode};
use crate::id::BlobId;
use crate::manifest::{Changes, Labels};

#[test]
fn object_locks_are_extended_when_both_parameters_and_retention_say_so() {
    let mut world = World::new();
    world.back_up(&[1, 2]);
    let store = Hooked::new(&world.store, |_, listing| listing);
    let maintain = |world: &World| {
        let repository = world.open_on(store.clone());
        run(
            &repository,
            &world.options(Mode::Full),
            &Cancel::new(),
            &Progress::new(),
        )
        .expect("run")
    };
    let period = Duration::from_secs(30 * 24 * 3600);
    let config = BlobConfig {
        retention: Some(Retention {
            mode: RetentionMode::Governance,
            period,
        }),
    };
    let sealed = world.open().format().seal_blobcfg(&config);
    world.store.put(&BlobId::known("kopia.blobcfg"), &sealed).expect("put");
    maintain(&world);
    assert!(
        store.extended.lock().expect("free").is_empty(),
        "the parameters do not ask for it"
    );

    let mut parameters = Parameters::default();
    (parameters.owner, parameters.extend_locks) = (OWNER.into(), true);
    let mut changes = Changes::default();
    let labels = Labels::from([("type".to_owned(), "maintenance".to_owned())]);
    changes.put(labels, &parameters).expect("put");
    world.publish(&world.open(), &changes);
    let report = maintain(&world);
    let extended = store.extended.lock().expect("free").clone();
    let mut names: Vec<String> = extended.iter().map(|(name, _)| name.clone()).collect();
    names.sort();
    let locked =
        |name: &String| name.starts_with(['p', 'q', 'x', 'n']) || name == "kopia.repository" || name == "kopia.blobcfg";
    let mut want: Vec<String> = world.names("").into_iter().filter(locked).collect();
    want.sort();
    assert_eq!(names, want);
    assert!(
        extended
            .iter()
            .all(|(_, lock)| lock.mode == "GOVERNANCE" && lock.period == period)
    );
    let task = report.task(Task::ExtendBlobRetentionTime).expect("ran");
    assert_eq!(
        (task.outcome, &task.numbers["count"]),
        (Outcome::Done, &serde_json::json!(want.len()))
    );
}

#[test]
fn a_lock_that_cannot_be_extended_fails_the_task_and_a_blob_that_is_gone_does_not() {
    let mut world = World::new();
    world.back_up(&[1, 2, 3]);
    let config = BlobConfig {
        retention: Some(Retention {
            mode: RetentionMode::Compliance,
            period: Duration::from_secs(24 * 3600),
        }),
    };
    let sealed = world.open().format().seal_blobcfg(&config);
    let mut parameters = Parameters::default();
    (parameters.owner, parameters.extend_locks) = (OWNER.into(), true);
    let mut changes = Changes::default();
    let labels = Labels::from([("type".to_owned(), "maintenance".to_owned())]);
    changes.put(labels, &parameters).expect("put");
    world.publish(&world.open(), &changes);
    world.store.put(&BlobId::known("kopia.blobcfg"), &sealed).expect("put");
    let store = Hooked::new(&world.store, |_, listing| listing);
    let faulty = std::sync::Arc::new(FaultStore::new(store.clone()));
    let run = || {
        let repository = world.open_on(faulty.clone());
        run(
            &repository,
            &world.options(Mode::Full),
            &Cancel::new(),
            &Progress::new(),
        )
    };
    let extended = || std::mem::take(&mut *store.extended.lock().expect("free")).len();
    faulty.fail_once(StoreOp::Lock, "p", crate::Kind::NotFound);
    run().expect("what is gone is passed over");
    let all_but_one = extended();
    faulty.fail_once(StoreOp::Lock, "p", crate::Kind::Permission);
    let error = run().expect_err("not permitted");
    assert_eq!(error.kind(), crate::Kind::Permission);
    assert!(error.to_string().contains("extend the lock of p"), "{error}");
    extended();
    run().expect("nothing fails any more");
    assert!(extended() > all_but_one);
}

#[test]
fn a_late_index_blob_of_a_compacted_epoch_is_kept_and_reported() {
    let mut world = World::new();
    // Epochs 0 to 3, the first of them compacted; its own blobs are still there.
    world.back_up(&[1]);
    for epoch in 1..=3 {
        world.pass(DAY);
        let id = BlobId::known(format!("xe{epoch}"));
        world.store.put(&id, b"epoch-marker").expect("put");
    }
    world.back_up(&[2]);
    world.maintain(Mode::Quick).expect("run");
    assert_eq!(world.names("xs0_").len(), 1);
    // A client that slept for days stores its index under epoch 0.
    let sleeper = world.fork();
    for id in sleeper.names("xe") {
        sleeper.store.delete(&BlobId::known(id)).expect("delete");
    }
    let before = sleeper.names("xn0_");
    let repository = sleeper.open();
    sleeper.begin(&repository, &[77]);
    let late: Vec<String> = sleeper
        .names("xn0_")
        .into_iter()
        .filter(|name| !before.contains(name))
        .collect();
    assert_eq!(late.len(), 1);
    let id = BlobId::known(late[0].clone());
    world
        .store
        .put(&id, &sleeper.store.get(&id).expect("get"))
        .expect("put");
    world.pass(5 * HOUR);
    world.back_up(&[3]);
    let report = world.maintain(Mode::Full).expect("run");
    assert_eq!(world.names("xn0_"), late, "the others are replaced");
    assert!(
        report.warnings.iter().any(|warning| warning.contains(&late[0])),
        "{:?}",
        report.warnings
    );
    world.check("nothing else is lost");
}

#[test]
fn an_index_that_lists_differently_each_time_is_not_compacted() {
    let mut world = World::new();
    world.back_up(&[1]);
    for epoch in 1..=3 {
        let id = BlobId::known(format!("xe{epoch}"));
        world.store.put(&id, b"epoch-marker").expect("put");
    }
    // Every other listing of the index lacks the blobs of writers.
    let listings = AtomicU64::new(0);
    let store = Hooked::new(&world.store, move |prefix, mut listing| {
        if prefix == "x" && listings.fetch_add(1, Ordering::SeqCst) % 2 == 1 {
            listing.retain(|meta| !meta.id.as_str().starts_with("xn"));
        }
        listing
    });
    let repository = world.open_on(store);
    let error = run(
        &repository,
        &world.options(Mode::Quick),
        &Cancel::new(),
        &Progress::new(),
    )
    .expect_err("flapping");
    assert_eq!(error.kind(), crate::Kind::Unavailable, "{error}");
    assert!(world.names("xs").is_empty());
}

#[test]
fn a_compaction_cut_short_in_its_last_blob_is_not_left_for_readers() {
    let mut world = World::new();
    world.back_up(&[1]);
    for epoch in 1..=3 {
        let id = BlobId::known(format!("xe{epoch}"));
        world.store.put(&id, b"epoch-marker").expect("put");
    }
    let faulty = Arc::new(FaultStore::new(world.store.clone()));
    faulty.rule(FaultRule {
        op: StoreOp::Put,
        prefix: "xs".into(),
        skip: 0,
        count: 1,
        fault: Fault::Truncate,
    });
    let repository = world.open_on(faulty.clone());
    let options = world.options(Mode::Quick);
    run(&repository, &options, &Cancel::new(), &Progress::new()).expect_err("cut short");
    assert_eq!(faulty.injected(), 1);
    assert!(world.names("xs").is_empty());
    world.check("everybody can open it");
}
