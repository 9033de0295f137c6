//! Real processes, killed or asked to stop at chosen moments.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use blockferry_tests::kopia::{self, Kopia};
use blockferry_tests::process;
use blockferry_tests::volume::{Layout, Volume};
use blockferry_tests::wait::{wait_for, wait_for_some};
use repo::blob::BlobStore;
use serde_json::Value;

use crate::bad_input::support::{MIB, PASSWORD, World, assert_words, names, open, random_volume, temporary_files};

/// Far more than any step here takes, on any machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// A used disk; about 180 MiB of it is data, nine packs.
fn volume() -> Volume {
    Volume::create(&Layout::mixed(61, 256 * MIB)).unwrap()
}

/// A backup running in the background. Slow enough that there is a middle to be killed in: four to eight seconds.
struct Running(Child);

impl Running {
    fn start(world: &World, source: &Path, limit: &str) -> Self {
        let source = source.display().to_string();
        let mut command = world.ferry.command([
            "backup",
            &source,
            "--as",
            "user@host:/volume",
            "--compression",
            "none",
            "--limit",
            limit,
            "--workers",
            "2",
        ]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// Waits until `condition` holds, while the process is still at work.
    #[track_caller]
    fn until(&mut self, what: &str, mut condition: impl FnMut() -> bool) {
        let child = &mut self.0;
        let mut ended = None;
        wait_for(what, DEADLINE, || {
            ended = child.try_wait().unwrap();
            ended.is_some() || condition()
        })
        .unwrap();
        assert!(ended.is_none(), "the backup ended before {what}: {ended:?}");
    }

    fn signal(&self, name: &str) {
        process::run(Command::new("kill").args(["-s", name, &self.0.id().to_string()])).unwrap();
    }

    fn end(&mut self) -> (ExitStatus, String) {
        use std::io::Read;
        let child = &mut self.0;
        let status = wait_for_some("the end of the backup", DEADLINE, || child.try_wait().unwrap()).unwrap();
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (status, stderr)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it has ended, unless the test failed
        let _ = self.0.wait();
    }
}

fn count(store: &dyn BlobStore, prefix: &str) -> usize {
    names(store, prefix).len()
}

/// Asserts that what a dead run left is a whole repository, and that the next run completes; returns its report.
#[track_caller]
fn check_left(world: &World, volume: &Volume, snapshots: usize) -> Value {
    let verified = world.ferry.run_json(["verify", "--percent", "100"]).unwrap();
    assert_eq!(verified["snapshots"], snapshots);
    let report = world
        .ferry
        .backup(volume.path(), &["--as", "user@host:/volume"])
        .unwrap();
    let id = report["snapshotId"].as_str().unwrap();
    let verified = world.ferry.run_json(["verify", "--percent", "100"]).unwrap();
    assert_eq!(verified["snapshots"], snapshots + 1);
    let target = world.path("restored");
    world.ferry.restore(id, &target, &["--force", "--verify"]).unwrap();
    let sum = |path: &Path| blockferry_tests::repo::sha256_file(path).unwrap();
    assert_eq!(sum(&target), sum(volume.path()));
    report
}

/// Asserts that the real kopia agrees, and that its maintenance clears what the dead run left.
fn check_with_kopia(world: &World) {
    if !kopia::available() {
        return;
    }
    let kopia = Kopia::new(&world.repo(), PASSWORD).unwrap();
    kopia.connect().unwrap();
    kopia.verify_full().unwrap();
    kopia.run(["maintenance", "set", "--owner=me"]).unwrap();
    kopia.maintenance_full_unsafe().unwrap();
    kopia.verify_full().unwrap();
    let ended = world.ferry.ended(["verify", "--percent", "100"]).unwrap();
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

#[test]
fn a_killed_backup_leaves_a_whole_repository() {
    let volume = volume();
    let world = World::new();
    let store = world.store();
    let older = random_volume(62, 3);
    world.ferry.backup(older.path(), &[]).unwrap();
    // After the marker, after the first pack, and with half of the packs there. What is not indexed is not seen by the next
    // run, so each stores all of it again.
    let mut dead = Vec::new();
    for packs in [0, 1, 4] {
        let before = count(&*store, "p");
        let mut running = Running::start(&world, volume.path(), "64MiB");
        running.until("a session marker", || {
            !names(&*store, "s").is_empty() && names(&*store, "s") != dead
        });
        running.until("packs", || count(&*store, "p") >= before + packs);
        running.0.kill().unwrap();
        running.end();
        let marker = names(&*store, "s");
        assert_eq!(
            marker.len(),
            1,
            "the marker of the dead run guards what it stored, that of the one before is gone"
        );
        assert_ne!(marker, dead);
        dead = marker;
        let verified = world.ferry.run_json(["verify", "--percent", "100"]).unwrap();
        assert_eq!(
            verified["snapshots"], 1,
            "no snapshot of the dead run is seen, the older is whole"
        );
    }
    let report = check_left(&world, &volume, 1);
    assert_eq!(count(&*store, "s"), 0, "the next run cleaned up");
    assert_eq!(report["sourceSize"], 256 * MIB);
    check_with_kopia(&world);
}

#[test]
fn an_interrupted_backup_stops_cleanly_and_is_resumed() {
    let volume = volume();
    let world = World::new();
    let store = world.store();
    for (at, signal) in ["INT", "TERM"].into_iter().enumerate() {
        let before = count(&*store, "p");
        let mut running = Running::start(&world, volume.path(), "64MiB");
        if at == 0 {
            running.until("three packs", || count(&*store, "p") >= before + 3);
        } else {
            running.until("the session marker", || count(&*store, "s") > 0);
        }
        running.signal(signal);
        let (status, stderr) = running.end();
        assert_eq!(status.code(), Some(3), "{stderr}");
        assert_words(&stderr, &["stopping", "cancelled", "next run"]);
        assert_eq!(count(&*store, "s"), 0, "the session marker is gone");
        assert_eq!(temporary_files(&world.repo()), Vec::<PathBuf>::new());
        assert_eq!(open(store.clone()).snapshots().unwrap().len(), 0, "no snapshot");
    }
    let report = check_left(&world, &volume, 0);
    let data = Layout::mixed(61, 256 * MIB).data_bytes();
    let new = report["bytesNew"].as_u64().unwrap();
    assert!(
        new + 50 * MIB <= data,
        "what the first run stored is found again: {new} of {data} bytes are new"
    );
    check_with_kopia(&world);
}

/// The second signal does not wait for the clean stop; what is left is what a kill leaves.
#[test]
fn a_second_signal_ends_the_process_at_once() {
    let volume = random_volume(63, 64);
    let world = World::new();
    let store = world.store();
    let mut running = Running::start(&world, volume.path(), "16MiB");
    running.until("a pack", || count(&*store, "p") > 0);
    running.signal("STOP"); // both signals wait for it to go on, so the stop cannot be over between them
    running.signal("INT");
    running.signal("TERM");
    running.signal("CONT");
    let (status, stderr) = running.end();
    assert_eq!(status.code(), Some(130), "{stderr}");
    check_left(&world, &volume, 0);
}
