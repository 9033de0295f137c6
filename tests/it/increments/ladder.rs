//! Which rung a backup stands on, and that every step down is told.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use blockferry_tests::volume::{BlockKind, Layout, Volume};
use repo::BlobId;
use repo::blob::BlobStore;
use serde_json::{Value, json};

use crate::bad_input::support::{MIB, World, names};

const CHUNKS: u64 = 40;

fn volume() -> Volume {
    Volume::create(&Layout::uniform(51, CHUNKS * MIB, BlockKind::Random)).unwrap()
}

fn list(world: &World, name: &str, size: u64, extents: &[(u64, u64)]) -> PathBuf {
    let changed: Vec<Value> = extents
        .iter()
        .map(|(offset, len)| json!({"offset": offset, "length": len}))
        .collect();
    let path = world.path(name);
    fs::write(&path, json!({"volumeSize": size, "changed": changed}).to_string()).unwrap();
    path
}

#[test]
fn each_rung_is_named_with_the_reasons_for_those_above() {
    let world = World::new();
    let volume = volume();
    let none = list(&world, "none", CHUNKS * MIB, &[]).display().to_string();
    let larger = list(&world, "larger", CHUNKS * MIB + 1, &[]).display().to_string();
    let first_two = list(&world, "two", CHUNKS * MIB, &[(0, 2 * MIB)]).display().to_string();
    let back_up = |args: &[&str]| {
        world
            .ferry
            .backup(volume.path(), &[&["--as", "u@h:/v"], args].concat())
            .unwrap()
    };
    let codes = |document: &Value| -> Vec<String> {
        let steps = document["rungSteps"].as_array().unwrap();
        steps
            .iter()
            .map(|step| format!("{}:{}", step["rung"], step["code"]).replace('"', ""))
            .collect()
    };

    let first = back_up(&["--changed", &none]);
    assert_eq!(first["rung"], "full");
    assert_eq!(first["parentId"], Value::Null);
    let expect = ["delta:no-parent-yet", "allocated:no-list", "hash-compare:no-parent-yet"];
    assert_eq!(codes(&first), expect);

    let delta = back_up(&["--changed", &none]);
    assert_eq!(
        (&delta["rung"], &delta["changesFrom"]),
        (&json!("delta"), &json!("file"))
    );
    assert_eq!(delta["parentId"], first["snapshotId"]);
    assert_eq!(delta["objectId"], first["objectId"]);
    assert_eq!(delta["auditedBlocks"], 16);
    assert_eq!(delta["bytesRead"], 16 * MIB);

    let unaudited = back_up(&["--changed", &first_two, "--audit", "0"]);
    assert_eq!(
        (&unaudited["bytesRead"], &unaudited["auditedBlocks"]),
        (&json!(2 * MIB), &json!(0))
    );

    let compared = back_up(&["--changed", &larger]);
    assert_eq!(compared["rung"], "hash-compare");
    assert_eq!(codes(&compared), ["delta:list-unfit", "allocated:no-list"]);
    assert_eq!(compared["bytesUnchanged"], CHUNKS * MIB);

    let fresh = back_up(&["--parent", "none"]);
    assert_eq!(fresh["rung"], "full");
    assert_eq!(codes(&fresh)[0], "delta:no-list");

    let shown = world
        .ferry
        .run_json(["show", delta["snapshotId"].as_str().unwrap()])
        .unwrap();
    assert_eq!(shown["tags"]["blockferry-rung"], "delta", "{shown}");
    assert_eq!(shown["tags"]["blockferry-parent"], first["snapshotId"], "{shown}");
}

#[test]
fn a_fallback_is_an_error_where_a_rung_is_required() {
    let world = World::new();
    let volume = volume();
    let path = volume.path().display().to_string();
    let ended = world.ferry.ended(["backup", &path, "--require", "delta"]).unwrap();
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("delta is required") && ended.stderr.contains("no list"),
        "{}",
        ended.stderr
    );
    world.assert_clean(0);
}

#[test]
fn what_is_not_allocated_is_zero_and_a_sample_of_it_is_looked_at() {
    let world = World::new();
    let volume = volume();
    let all = list(&world, "all", CHUNKS * MIB, &[(0, CHUNKS * MIB)])
        .display()
        .to_string();
    let back_up = |list: &str| {
        world
            .ferry
            .backup(volume.path(), &["--as", "u@h:/v", "--allocated", list])
            .unwrap()
    };
    let whole = back_up(&all);
    assert_eq!(
        (&whole["rung"], &whole["auditMismatches"]),
        (&json!("allocated"), &json!(0))
    );
    // A list that leaves data out is caught by the sample, and nothing of it is lost.
    let half = list(&world, "half", CHUNKS * MIB, &[(0, CHUNKS / 2 * MIB)])
        .display()
        .to_string();
    let caught = back_up(&half);
    assert_eq!(caught["rung"], "hash-compare", "{caught}");
    assert_eq!(caught["auditMismatches"], CHUNKS / 2);
    assert_eq!(caught["objectId"], whole["objectId"]);
    // And the next list of this source is not relied on, until it is trusted again.
    let doubted = back_up(&all);
    assert_eq!(doubted["rung"], "hash-compare");
    assert_eq!(doubted["rungSteps"][1]["code"], "source-untrusted");
    let args = ["--as", "u@h:/v", "--allocated", &all, "--trust-source"];
    assert_eq!(world.ferry.backup(volume.path(), &args).unwrap()["rung"], "allocated");
}

#[test]
fn a_dry_run_tells_what_would_be_read_and_stores_nothing() {
    let world = World::new();
    let volume = volume();
    world.ferry.backup(volume.path(), &["--as", "u@h:/v"]).unwrap();
    let two = list(&world, "two", CHUNKS * MIB, &[(MIB, 10), (5 * MIB, MIB)])
        .display()
        .to_string();
    let path = volume.path().display().to_string();
    let before = names(&*world.store(), "");
    let args = ["backup", &path, "--as", "u@h:/v", "--changed", &two, "--dry-run"];
    let outlook = world.ferry.run_json(args).unwrap();
    assert_eq!(outlook["rung"], "delta", "{outlook}");
    assert_eq!(
        (&outlook["bytesToRead"], &outlook["bytesToAudit"]),
        (&json!(18 * MIB), &json!(16 * MIB))
    );
    assert_eq!(outlook["bytesUnread"], (CHUNKS - 18) * MIB);
    assert_eq!(names(&*world.store(), ""), before);
}

/// A hole needs no reading to be known as zero, whatever the list says of it.
#[test]
fn a_hole_punched_behind_the_lists_back_is_seen_without_reading() {
    let world = World::new();
    let volume = volume();
    let back_up = |args: &[&str]| {
        world
            .ferry
            .backup(volume.path(), &[&["--as", "u@h:/v"], args].concat())
            .unwrap()
    };
    back_up(&[]);
    let file = fs::File::options().write(true).open(volume.path()).unwrap();
    let tail = vec![9; usize::try_from(MIB).unwrap()];
    file.set_len(10 * MIB).unwrap();
    file.set_len((CHUNKS - 1) * MIB).unwrap();
    file.write_all_at(&tail, (CHUNKS - 1) * MIB).unwrap();
    let last = [((CHUNKS - 1) * MIB, MIB)];
    let said = list(&world, "said", CHUNKS * MIB, &last).display().to_string();
    let document = back_up(&["--changed", &said, "--audit", "0"]);
    assert_eq!(document["auditMismatches"], CHUNKS - 11, "{document}");
    let target = world.path("target");
    world.ferry.restore("latest", &target, &["--verify"]).unwrap();
    assert!(fs::read(&target).unwrap() == volume.bytes().unwrap());
}

/// What is taken over is there: a pack that is gone is found missing, and what it held is read and stored again.
#[test]
fn what_the_repository_lost_is_not_taken_over() {
    let world = World::new();
    let volume = volume();
    let none = list(&world, "none", CHUNKS * MIB, &[]).display().to_string();
    let back_up = || {
        world
            .ferry
            .backup(volume.path(), &["--as", "u@h:/v", "--changed", &none, "--audit", "0"])
            .unwrap()
    };
    back_up();
    assert_eq!(back_up()["bytesRead"], 0);
    let store = world.store();
    let pack = BlobId::new(names(&*store, "p").remove(0)).unwrap();
    store.delete(&pack).unwrap();
    let document = back_up();
    assert_eq!(document["rung"], "delta", "{document}");
    let read = document["bytesRead"].as_u64().unwrap();
    assert!(read > 0 && read <= 21 * MIB, "{document}");
    assert_eq!(document["bytesNew"], read);
    let target = world.path("target");
    world.ferry.restore("latest", &target, &["--verify"]).unwrap();
    assert!(fs::read(&target).unwrap() == volume.bytes().unwrap());
    let verified = world.ferry.run_json(["verify", "--percent", "100"]).unwrap();
    assert_eq!(verified["damages"].as_array().map(Vec::len), Some(0), "{verified}");
}
