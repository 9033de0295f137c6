//! Backups that are interrupted go on where they were, and only where nothing changed.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use blockferry_tests::process;
use blockferry_tests::volume::{BlockKind, Layout, Volume};
use blockferry_tests::wait::wait_for;
use serde_json::Value;

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
    let mut command = world.ferry.command(args);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let store = world.store();
    wait_for("four packs", Duration::from_secs(120), || {
        assert!(
            child.try_wait().unwrap().is_none(),
            "the backup ended before it was interrupted"
        );
        names(&*store, "p").len() >= 4
    })
    .unwrap();
    process::run(Command::new("kill").args(["-s", signal, &child.id().to_string()])).unwrap();
    let status = child.wait().unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(!status.success(), "{stderr}");
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
    assert_whole(&world, volume.path());
    // Done is done: the next one begins anew.
    assert_eq!(again(&world, volume.path(), &[])["bytesResumed"], 0);
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
    let mut child = world
        .ferry
        .command(slow.iter().chain(&ids))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let store = world.store();
    wait_for("four packs", Duration::from_secs(120), || {
        names(&*store, "p").len() >= 4
    })
    .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let other = Volume::create(&Layout::uniform(62, CHUNKS * MIB, BlockKind::Random)).unwrap();
    std::fs::copy(other.path(), volume.path()).unwrap();
    let document = again(&world, volume.path(), &ids);
    assert_eq!(document["bytesResumed"], 0, "{document}");
    assert_whole(&world, volume.path());
}

#[test]
fn nothing_is_continued_when_that_is_not_wanted() {
    let world = World::new();
    let volume = volume();
    interrupt(&world, volume.path(), "KILL");
    let document = again(&world, volume.path(), &["--no-resume"]);
    assert_eq!(document["bytesResumed"], 0);
    // The packs of the killed run hold nothing that is known, so what they hold is stored once more.
    assert_eq!(document["bytesNew"], CHUNKS * MIB);
    assert_whole(&world, volume.path());
}
