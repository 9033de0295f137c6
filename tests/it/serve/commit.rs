//! What was written over a snapshot becomes one of its own, from the map of what was written alone.

use blockferry_tests::kopia::{self, Kopia};
use blockferry_tests::volume::{BlockKind, Layout, Volume};

use super::{MIB, Serving, world};
use crate::bad_input::support::{PASSWORD, World};

#[test]
fn a_commit_continues_the_snapshot_it_was_written_over() {
    let (world, volume) = world(&Layout::mixed(31, 40 * MIB + 512));
    let parent = world.ferry.run_json(["show", "latest"]).unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let state = world.text("state");
    let serving = Serving::start(&world.ferry, &["latest", "--writable", "--state", &state]);
    serving.script(
        "h.pwrite(b'x' * 700, 3 * M - 100)\n\
         h.pwrite(b'y' * 512, 40 * M)\n\
         h.zero(2 * M, 9 * M)\n\
         h.flush()",
    );
    let written = serving.bytes();
    world.refuses(&["commit", &parent, "--state", &state], 1, &["in use"]);
    assert_eq!(serving.stop("-KILL").code, None);

    let report = world
        .ferry
        .run_json(["commit", &parent, "--state", &state, "--as", "u@h:/written"])
        .unwrap();
    assert_eq!(report["parentId"], parent.as_str());
    // Chunks 2 and 3, 9 and 10, and the 512 bytes behind 40 MiB.
    assert_eq!(report["bytesRead"], 4 * MIB + 512, "{report}");
    assert_eq!(report["bytesZero"], 2 * MIB, "{report}");
    let target = world.path("restored");
    world
        .ferry
        .restore("latest:u@h:/written", &target, &["--verify"])
        .unwrap();
    assert!(std::fs::read(&target).unwrap() == written);
    let map = world.ferry.run_json(["diff", &parent, "latest:u@h:/written"]).unwrap();
    assert_eq!(map["changed"][0]["offset"], 2 * MIB, "{map}");
    if kopia::available() {
        let kopia = Kopia::new(&world.repo(), PASSWORD).unwrap();
        kopia.connect().unwrap();
        kopia.verify_full().unwrap();
    }
    // The state is still there, still of the snapshot below; again is the same.
    let again = world
        .ferry
        .run_json(["commit", &parent, "--state", &state, "--as", "u@h:/written"])
        .unwrap();
    assert_eq!(
        (&again["objectId"], &again["bytesNew"]),
        (&report["objectId"], &0.into())
    );

    // Not as a snapshot of the volume itself, which increments continue from.
    let source = world.ferry.run_json(["show", &parent]).unwrap()["source"]
        .as_str()
        .unwrap()
        .to_owned();
    world.refuses(
        &["commit", &parent, "--state", &state, "--as", &source],
        2,
        &["a source of its own"],
    );
    let before = world.ferry.run_json(["show", &format!("latest:{source}")]).unwrap();
    assert_eq!(before["id"], parent.as_str());
    world.refuses(
        &["commit", "latest:u@h:/written", "--state", &state],
        2,
        &["nothing was written"],
    );
    assert_eq!(volume.size(), 40 * MIB + 512);
}

#[test]
fn images_of_other_shapes_are_refused() {
    if !kopia::available() {
        eprintln!("SKIPPED: kopia is not installed");
        return;
    }
    let world = World::new();
    let kopia = Kopia::new(&world.repo(), PASSWORD).unwrap();
    kopia.connect().unwrap();
    let volume = Volume::create(&Layout::uniform(32, 20 * MIB, BlockKind::Random)).unwrap();
    kopia.snapshot_create(volume.path(), &[]).unwrap();
    let state = world.text("state");
    let serving = Serving::start(&world.ferry, &["latest", "--writable", "--state", &state]);
    serving.script("h.pwrite(b'x' * 512, 0)\nh.flush()\nassert h.pread(512, 0) == b'x' * 512");
    assert_eq!(serving.stop("-TERM").code, Some(0));
    let before = world.ferry.run_json(["snapshots", "--all"]).unwrap();
    world.refuses(&["commit", "latest", "--state", &state], 2, &["cannot be continued"]);
    assert_eq!(world.ferry.run_json(["snapshots", "--all"]).unwrap(), before);
}
