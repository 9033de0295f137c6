//! Backups that are interrupted go on where they were, and only where nothing changed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use blockferry_tests::volume::{BlockKind, Layout, Volume};
use serde_json::{Value, json};

use crate::bad_input::support::{MIB, World, names};

const CHUNKS: u64 = 160;

/// Bytes of packs that may be on their way when a backup is killed: two workers' open packs, two queued, two being stored.
const UNDER_WAY: u64 = 6 * 22 * MIB;

fn volume() -> Volume {
    Volume::create(&Layout::uniform(61, CHUNKS * MIB, BlockKind::Random)).unwrap()
}

/// Runs a slow backup until some packs are stored, and ends it by `signal`.
fn interrupt(world: &World, source: &Path, signal: &str) {
    let source = source.display().to_string();
    let args = [
        "backup",
        &source,
        "--as",
        "u@h:/v",
        "--compression",
        "none",
        "--workers",
        "2",
        "--limit",
        "40MiB",
    ];
    let store = world.store();
    super::interrupt(world.ferry.command(args), signal, || names(&*store, "p").len() >= 4);
}

fn again(world: &World, source: &Path, args: &[&str]) -> Value {
    let fixed = ["--as", "u@h:/v", "--compression", "none", "--workers", "2"];
    world.ferry.backup(source, &[&fixed, args].concat()).unwrap()
}

#[track_caller]
fn assert_whole(world: &World, source: &Path) {
    let target = world.path("target");
    world
        .ferry
        .restore("latest", &target, &["--force", "--verify"])
        .unwrap();
    assert!(std::fs::read(&target).unwrap() == std::fs::read(source).unwrap());
    let verified = world.ferry.run_json(["verify", "--percent", "100"]).unwrap();
    assert_eq!(verified["damages"].as_array().map(Vec::len), Some(0), "{verified}");
}

/// That an interrupted run is not continued is told, and why.
#[track_caller]
fn assert_refused(document: &Value, words: &str) {
    let why = document["resumeRefused"].as_str();
    assert!(why.is_some_and(|why| why.contains(words)), "{document}");
}

#[track_caller]
fn check_resumed(signal: &str) {
    let world = World::new();
    let volume = volume();
    interrupt(&world, volume.path(), signal);
    let packed = names(&*world.store(), "p").len() as u64;
    let document = again(&world, volume.path(), &[]);
    let resumed = document["bytesResumed"].as_u64().unwrap();
    // What was stored is not read again: at least the packs that were there, and at most a little more than those.
    assert!(resumed >= (packed - 1) * 18 * MIB, "{packed} packs, {document}");
    assert_eq!(document["bytesRead"].as_u64().unwrap() + resumed, CHUNKS * MIB);
    assert!(
        document["bytesNew"].as_u64().unwrap() <= CHUNKS * MIB - resumed,
        "{document}"
    );
    assert!(document["bytesRead"].as_u64().unwrap() <= (CHUNKS * MIB).saturating_sub(packed * 18 * MIB) + UNDER_WAY);
    assert_eq!(document["resumeRefused"], Value::Null);
    assert_whole(&world, volume.path());
    // Done is done: the next one begins anew.
    let next = again(&world, volume.path(), &[]);
    assert_eq!(
        (&next["bytesResumed"], &next["resumeRefused"]),
        (&json!(0), &Value::Null)
    );
}

#[test]
fn a_killed_backup_goes_on_where_it_was() {
    check_resumed("KILL");
}

#[test]
fn a_cancelled_backup_goes_on_where_it_was() {
    check_resumed("INT");
}

#[test]
fn a_source_that_was_written_meanwhile_is_read_from_the_start() {
    let world = World::new();
    let volume = volume();
    interrupt(&world, volume.path(), "KILL");
    let file = File::options().write(true).open(volume.path()).unwrap();
    file.write_all_at(b"changed", 3).unwrap();
    drop(file);
    let document = again(&world, volume.path(), &[]);
    assert_eq!(
        (document["bytesResumed"].as_u64(), document["bytesRead"].as_u64()),
        (Some(0), Some(CHUNKS * MIB))
    );
    assert_refused(&document, "it was written");
    assert_whole(&world, volume.path());
}

/// The state has the same name, but is not the same: the sample sees it.
#[test]
fn a_change_id_that_lies_is_found_by_the_sample() {
    let world = World::new();
    let volume = volume();
    let ids = ["--change-id", "c1", "--volume-id", "v"];
    let source = volume.path().display().to_string();
    let slow = [
        "backup",
        &source,
        "--as",
        "u@h:/v",
        "--compression",
        "none",
        "--limit",
        "40MiB",
    ];
    let store = world.store();
    let command = world.ferry.command(slow.iter().chain(&ids));
    super::interrupt(command, "KILL", || names(&*store, "p").len() >= 4);
    let other = Volume::create(&Layout::uniform(62, CHUNKS * MIB, BlockKind::Random)).unwrap();
    std::fs::copy(other.path(), volume.path()).unwrap();
    let document = again(&world, volume.path(), &ids);
    assert_eq!(document["bytesResumed"], 0, "{document}");
    assert_refused(&document, "a sample");
    assert_whole(&world, volume.path());
}

#[test]
fn nothing_is_continued_when_that_is_not_wanted() {
    let world = World::new();
    let volume = volume();
    interrupt(&world, volume.path(), "KILL");
    let document = again(&world, volume.path(), &["--no-resume"]);
    assert_eq!(document["bytesResumed"], 0);
    assert_refused(&document, "not wanted");
    // The packs of the killed run hold nothing that is known, so what they hold is stored once more.
    assert_eq!(document["bytesNew"], CHUNKS * MIB);
    assert_whole(&world, volume.path());
}
