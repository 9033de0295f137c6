//! The world stops after the n-th change of the storage, for every n.

use std::sync::Arc;

use blockio::{Cancel, Progress};

use super::world::*;
use super::*;
use crate::blob::FaultStore;

/// A repository in which a full run has everything to do.
fn subject() -> World {
    let mut world = World::new();
    for day in 0..30_u8 {
        world.back_up(&[day, day + 1, 100]);
        world.die(&[200 + day]);
        if day % 3 == 0 {
            let oldest = *world.live.keys().next().expect("one");
            world.delete(oldest);
        }
        world.pass(10 * HOUR);
        if day % 4 == 3 {
            world.maintain(Mode::Full).expect("run");
        }
    }
    world.store_log();
    world.pass(31 * DAY);
    world
}

trait Logs {
    fn store_log(&self);
}

impl Logs for World {
    fn store_log(&self) {
        let id = crate::id::BlobId::known("_log_20270101000000_0000_1_2_3_00112233445566778899aabbccddeeff");
        crate::blob::BlobStore::put(&*self.store, &id, b"log").expect("put");
    }
}

fn check_every_cut(safety: &Safety) {
    let world = subject();
    let options = |world: &World| Options {
        safety: safety.clone(),
        ..world.options(Mode::Full)
    };
    let whole = world.fork();
    let faults = Arc::new(FaultStore::new(whole.store.clone()));
    let opened = whole.open_on(faults.clone());
    run(&opened, &options(&whole), &Cancel::new(), &Progress::new()).expect("a whole run");
    whole.check("a whole run");
    let total = faults.changes();
    assert!(total > 20, "{total} changes");
    for changes in 0..total {
        let case = format!("cut after {changes} of {total}");
        let fork = world.fork();
        let faults = Arc::new(FaultStore::new(fork.store.clone()));
        let opened = fork.open_on(faults.clone());
        faults.cut_after(changes);
        run(&opened, &options(&fork), &Cancel::new(), &Progress::new()).expect_err(&case);
        fork.check(&case);
        // The next runs finish the work, and lose nothing either.
        fork.pass(2 * HOUR);
        fork.maintain_with(&options(&fork)).expect(&case);
        fork.check(&case);
        fork.pass(26 * HOUR);
        fork.maintain_with(&options(&fork)).expect(&case);
        fork.check(&case);
    }
}

#[test]
fn a_cut_after_any_change_of_a_safe_run_loses_nothing() {
    check_every_cut(&Safety::FULL);
}

#[test]
fn a_cut_after_any_change_of_a_run_without_margins_loses_nothing() {
    check_every_cut(&Safety::NONE);
}
