//! The cache on this host: it changes how much is fetched and never what is said.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::bucket::Bucket;
use blockferry_tests::garage::{self, Garage};
use blockferry_tests::kopia::{self, Kopia};
use blockferry_tests::process;
use serde_json::Value;
use tempfile::TempDir;

use crate::bad_input::support::{PASSWORD, World, random_volume};

/// What the client says of snapshots and of one image.
fn said(ferry: &Blockferry, more: &[&str]) -> (Value, Value) {
    let run = |args: &[&str]| ferry.run_json(args.iter().chain(more)).unwrap();
    (run(&["snapshots", "--all"]), run(&["map", "latest"]))
}

/// With and without the cache the client says the same; gives how the cache was used.
#[track_caller]
fn check_equal(ferry: &Blockferry) -> Value {
    assert_eq!(said(ferry, &[]), said(ferry, &["--no-cache"]));
    let status = ferry.run_json(["repo", "status"]).unwrap();
    let without = ferry.run_json(["repo", "status", "--no-cache"]).unwrap();
    for key in ["indexEntries", "indexBlobs", "snapshots", "epoch"] {
        assert_eq!(status[key], without[key], "{key}");
    }
    assert_eq!(without["cache"], Value::Null);
    status["cache"].clone()
}

/// Files of tables and of contents below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    files_of(folder, &["tables", "contents"])
}

/// Files of contents below the folder of a cache.
pub(crate) fn contents(folder: &Path) -> Vec<PathBuf> {
    files_of(folder, &["contents"])
}

fn files_of(folder: &Path, kinds: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path().is_dir() {
            true => found.extend(files_of(&entry.path(), kinds)),
            false => found.push(entry.path()),
        }
    }
    found.retain(|path| {
        path.components()
            .any(|part| kinds.iter().any(|kind| part.as_os_str() == *kind))
    });
    found.sort();
    found
}

/// A repository of a few snapshots, one index blob or two each.
fn world(snapshots: u64) -> World {
    let world = World::new();
    for n in 0..snapshots {
        let volume = random_volume(900 + n, 2);
        world
            .ferry
            .backup(volume.path(), &["--as", &format!("u@h:/{n}")])
            .unwrap();
    }
    world
}

#[test]
fn what_kopia_compacts_and_deletes_is_seen_through_the_cache() {
    if !kopia::available() {
        eprintln!("SKIPPED: kopia is not installed");
        return;
    }
    let world = world(4);
    let kopia = Kopia::new(&world.repo(), PASSWORD).unwrap();
    kopia.connect().unwrap();
    let before = check_equal(&world.ferry);
    assert!(before["indexBlobs"].as_u64().unwrap() >= 4, "{before}");

    // Another client stores, deletes, and maintains without its margins; then the compacted index is what counts.
    let volume = random_volume(950, 3);
    kopia.snapshot_create(volume.path(), &[]).unwrap();
    check_equal(&world.ferry);
    let id = said(&world.ferry, &[]).0[0]["id"].as_str().unwrap().to_owned();
    kopia.snapshot_delete(&id).unwrap();
    kopia.maintenance_full_unsafe().unwrap();
    kopia.maintenance_full_unsafe().unwrap();
    check_equal(&world.ferry);
    let ours = said(&world.ferry, &[]).0.as_array().unwrap().len();
    assert_eq!(ours, kopia.snapshot_list_json().unwrap().len());
    let after = check_equal(&world.ferry);
    assert_eq!(after["damaged"], 0, "{after}");
    // What we add by the cached index, kopia reads.
    world.ferry.backup(volume.path(), &["--as", "u@h:/after"]).unwrap();
    kopia.verify_full().unwrap();
}

#[test]
fn a_damaged_cache_is_found_and_the_repository_asked_instead() {
    let world = world(3);
    check_equal(&world.ferry);
    let kept = files(&world.ferry.cache());
    assert!(!kept.is_empty());
    for (round, path) in kept.iter().cycle().take(12).enumerate() {
        let mut bytes = fs::read(path).unwrap();
        let at = (round * 7919) % bytes.len();
        bytes[at] ^= 1 << (round % 8);
        fs::write(path, bytes).unwrap();
        let run = world.ferry.ended(["snapshots", "--json"]).unwrap();
        assert_eq!(run.code, Some(0));
        assert_eq!(run.stderr.matches("WARN").count(), 1, "{}", run.stderr);
        assert!(
            run.stderr.contains("a damaged file of the cache was removed"),
            "{}",
            run.stderr
        );
        assert_eq!(
            check_equal(&world.ferry)["damaged"],
            0,
            "bit {at} of {}",
            path.display()
        );
    }
}

#[test]
fn processes_share_a_cache_that_is_cleared_under_them() {
    let world = world(3);
    let expect = said(&world.ferry, &["--no-cache"]).0;
    for _ in 0..3 {
        let start = |args: &[&str]| {
            let mut command = world.ferry.command(args.iter().chain(&["--json"]));
            let (out, err) = (std::process::Stdio::piped(), std::process::Stdio::piped());
            command.stdout(out).stderr(err).spawn().unwrap()
        };
        let mut running: Vec<_> = (0..4).map(|_| start(&["snapshots", "--all"])).collect();
        let clearing = start(&["cache", "clear"]);
        running.extend((0..2).map(|_| start(&["snapshots", "--all"])));
        assert!(clearing.wait_with_output().unwrap().status.success());
        for child in running {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
            assert_eq!(String::from_utf8_lossy(&output.stderr), "");
            assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), expect);
        }
    }
    check_equal(&world.ferry);
}

/// A file system of its own in memory, gone when dropped.
pub(crate) struct Tmpfs(TempDir);

impl Tmpfs {
    pub(crate) fn mount(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(folder.path());
        match process::run(&mut mount) {
            Ok(_) => Some(Self(folder)),
            Err(e) => {
                eprintln!("SKIPPED: needs to mount a tmpfs: {e}");
                None
            }
        }
    }

    /// The same files at another place, which can be made read-only by itself.
    pub(crate) fn bind(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        process::run(mount.arg("--bind").args([self.path(), folder.path()])).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = process::run(Command::new("umount").arg("--lazy").arg(self.0.path()));
    }
}

/// The repository works with its cache in `folder`, with one warning that has `words`.
#[track_caller]
fn check_goes_on(world: &World, folder: &Path, words: &str) {
    let run = world
        .ferry
        .ended(["snapshots", "--all", "--json", "--cache-dir", folder.to_str().unwrap()])
        .unwrap();
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(run.stderr.matches("WARN").count(), 1, "{}", run.stderr);
    assert!(run.stderr.contains(words), "{}", run.stderr);
    let expect = said(&world.ferry, &["--no-cache"]).0;
    assert_eq!(serde_json::from_str::<Value>(&run.stdout).unwrap(), expect);
}

#[test]
fn a_full_or_read_only_disk_is_one_warning_and_no_cache() {
    let Some(small) = Tmpfs::mount("size=64k") else { return };
    let world = world(2);
    let folder = small.path().join("cache");
    fs::create_dir(&folder).unwrap();
    let filler = small.path().join("filler");
    let _ = fs::write(&filler, vec![1; 1 << 20]); // as much as there is room for
    check_goes_on(&world, &folder, "No space left on device");
    fs::remove_file(&filler).unwrap();
    world
        .ferry
        .run(["snapshots", "--cache-dir", folder.to_str().unwrap()])
        .unwrap();
    assert!(!files(&folder).is_empty(), "with room it is filled");

    let remount = |options: &str| process::run(Command::new("mount").args(["-o", options]).arg(small.path())).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    remount("remount,ro");
    check_goes_on(&world, &folder, "Read-only file system");
    remount("remount,rw");
}

#[test]
fn verification_does_not_ask_the_cache() {
    let world = world(2);
    check_equal(&world.ferry);
    let blob = files_of_index(&world.repo()).remove(0);
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, bytes).unwrap();
    world.ferry.run(["snapshots"]).unwrap();
    assert_eq!(world.ferry.ended(["verify"]).unwrap().code, Some(4));
    assert_eq!(
        world
            .ferry
            .ended(["maintenance", "run", "--full", "--dry-run"])
            .unwrap()
            .code,
        Some(4)
    );
}

fn files_of_index(repo: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![repo.join("x")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            match entry.path().is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found
}

#[test]
fn the_cache_is_told_of_and_cleared() {
    let world = world(2);
    let id = world.ferry.run_json(["repo", "status"]).unwrap()["uniqueId"]
        .as_str()
        .unwrap()
        .to_owned();
    let status = world.ferry.run_json(["cache", "status"]).unwrap();
    assert_eq!(status["place"], world.ferry.cache().display().to_string());
    assert!(
        status["repositories"][&id]["index"]["files"].as_u64().unwrap() > 0,
        "{status}"
    );
    assert_eq!(
        status["repositories"][&id]["metadata"]["files"], 0,
        "a directory is as near as the cache"
    );
    let text = world.ferry.run(["cache", "status"]).unwrap();
    assert!(text.contains("index") && text.contains("of 2.0 GiB"), "{text}");
    let cleared = world.ferry.run_json(["cache", "clear"]).unwrap();
    assert_eq!(cleared["bytes"], status["bytes"]);
    assert!(files(&world.ferry.cache()).is_empty());
    let after = world.ferry.run_json(["cache", "status"]).unwrap();
    assert_eq!(
        (&after["bytes"], &after["repositories"]),
        (&0.into(), &serde_json::json!({}))
    );
}

#[test]
fn a_second_look_at_a_bucket_asks_for_little() {
    if !garage::available() {
        eprintln!("SKIPPED: garage is not installed");
        return;
    }
    let garage = Garage::start().unwrap();
    let ferry = Blockferry::in_bucket(&Bucket::of(&garage, "cached/"), PASSWORD).unwrap();
    ferry.run(["repo", "create"]).unwrap();
    for n in 0..3 {
        let volume = random_volume(970 + n, 2);
        ferry.backup(volume.path(), &["--as", &format!("u@h:/{n}")]).unwrap();
    }
    ferry.run(["cache", "clear"]).unwrap();
    let requests = |status: &Value| status["storage"]["requests"].as_u64().unwrap();
    let first = ferry.run_json(["repo", "status"]).unwrap();
    let second = ferry.run_json(["repo", "status"]).unwrap();
    let cache = &second["cache"];
    assert_eq!(cache["indexBlobs"], second["indexBlobs"], "{second}");
    assert!(cache["contents"].as_u64().unwrap() >= 3, "{second}");
    // Manifests are read twice by a status: what the first one had to fetch is what the second is spared.
    let spared = cache["indexBlobs"].as_u64().unwrap() + first["cache"]["misses"].as_u64().unwrap();
    assert_eq!(requests(&first) - requests(&second), spared, "{first}\n{second}");
    check_equal(&ferry);
}
