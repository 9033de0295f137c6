//! Storage that is full, forbidden, cut off, or has another time. A backup that fails leaves the repository as it was.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use blockferry_tests::blockferry::Ended;
use blockferry_tests::process;
use blockio::{Cancel, Progress};
use repo::Kind;
use repo::blob::{Fault, FaultRule, FaultStore, MemStore, StoreOp};
use repo::maintenance::{self, Mode, Safety};

use super::support::{
    MIB, PASSWORD, World, assert_clean, assert_failed, assert_refused, assert_words, back_up, backup_options, damage,
    empty, names, open, random_volume, restored, shrink_packs, temporary_files,
};

/// A repository with one snapshot, and the same behind faults.
fn subject() -> (Arc<MemStore>, Arc<FaultStore>) {
    let store = empty();
    shrink_packs(&*store);
    back_up(&open(store.clone()), random_volume(11, 1).path(), &backup_options()).unwrap();
    let faulty = Arc::new(FaultStore::new(store.clone()));
    (store, faulty)
}

fn rule(op: StoreOp, prefix: &str, skip: u64, count: u64, fault: Fault) -> FaultRule {
    FaultRule {
        op,
        prefix: prefix.into(),
        skip,
        count,
        fault,
    }
}

/// Asserts that a backup fails under the rule, leaves nothing, and succeeds when the fault is over.
#[track_caller]
fn check_failure(rule: FaultRule, words: &[&str]) {
    let (store, faulty) = subject();
    let volume = random_volume(12, 24);
    let repository = open(faulty.clone());
    let count = rule.count;
    faulty.rule(rule);
    let error = back_up(&repository, volume.path(), &backup_options()).unwrap_err();
    assert_refused(error, 1, words);
    assert_clean(&store, 1);
    if count == 1 {
        back_up(&repository, volume.path(), &backup_options()).expect("the fault is over");
        assert_clean(&store, 2);
    }
}

#[test]
fn a_full_storage_fails_the_backup_and_publishes_nothing() {
    for count in [1, u64::MAX] {
        for prefix in ["s", "p", "q", "xn"] {
            let rule = rule(StoreOp::Put, prefix, 0, count, Fault::Fail(Kind::StorageFull));
            check_failure(rule, &["injected fault at Put", prefix]);
        }
        // The second data pack: the first is stored by then.
        check_failure(
            rule(StoreOp::Put, "p", 1, count, Fault::Fail(Kind::StorageFull)),
            &["injected fault at Put p"],
        );
    }
}

#[test]
fn forbidden_storage_fails_the_backup_and_publishes_nothing() {
    for prefix in ["s", "p", "q", "xn"] {
        check_failure(
            rule(StoreOp::Put, prefix, 0, u64::MAX, Fault::Fail(Kind::Permission)),
            &["injected fault at Put", prefix],
        );
    }
}

/// A failed sync means that nobody knows what is durable; that must not become a snapshot.
#[test]
fn a_failed_sync_before_or_after_the_index_fails_the_backup() {
    for skip in [0, 1] {
        check_failure(
            rule(StoreOp::Sync, "", skip, 1, Fault::Fail(Kind::Storage)),
            &["injected fault at Sync"],
        );
    }
}

#[test]
fn a_failed_look_at_the_index_fails_the_backup() {
    let (store, faulty) = subject();
    let repository = open(faulty.clone());
    faulty.rule(rule(StoreOp::List, "x", 0, u64::MAX, Fault::Fail(Kind::Storage)));
    assert_refused(
        back_up(&repository, random_volume(13, 2).path(), &backup_options()).unwrap_err(),
        1,
        &["injected fault at List x"],
    );
    assert_clean(&store, 1);
}

#[test]
fn half_a_pack_is_nothing_to_a_reader() {
    for prefix in ["p", "q"] {
        check_failure(
            rule(StoreOp::Put, prefix, 0, 1, Fault::Truncate),
            &["injected truncation at Put", prefix],
        );
    }
}

/// What was stored before a failure is found again by the next run.
#[test]
fn packs_stored_before_a_failure_are_reused() {
    let (store, faulty) = subject();
    let volume = random_volume(14, 24);
    faulty.rule(rule(StoreOp::Put, "q", 0, 1, Fault::Fail(Kind::StorageFull)));
    back_up(&open(faulty.clone()), volume.path(), &backup_options()).unwrap_err();
    let report = back_up(&open(store.clone()), volume.path(), &backup_options()).unwrap();
    assert_eq!(
        (report.known_bytes, report.new_bytes),
        (24 * MIB, 0),
        "all chunks were stored and indexed by the failed run"
    );
    assert_clean(&store, 2);
}

/// One marker that cannot be read stops kopia from deleting anything, for ever.
#[test]
fn a_session_marker_that_was_stored_by_half_is_taken_back() {
    let (store, faulty) = subject();
    let repository = open(faulty.clone());
    faulty.rule(rule(StoreOp::Put, "s", 0, 1, Fault::Truncate));
    back_up(&repository, random_volume(16, 1).path(), &backup_options()).unwrap_err();
    assert_clean(&store, 1);

    // The other writer of markers: two short packs are merged.
    back_up(&repository, random_volume(17, 1).path(), &backup_options()).unwrap();
    maintenance::set_owner(&repository, "user@host").unwrap();
    let options = maintenance::Options {
        safety: Safety::NONE,
        ..maintenance::Options::new(Mode::Full, "user@host")
    };
    let run = || maintenance::run(&repository, &options, &Cancel::new(), &Progress::new());
    for fault in [Fault::Truncate, Fault::FailAfter(Kind::Storage)] {
        for prefix in ["s", "p", "xn"] {
            faulty.rule(rule(StoreOp::Put, prefix, 0, 1, fault));
            run().expect_err(prefix);
            assert_clean(&store, 2);
        }
    }
    run().unwrap();
    assert_clean(&store, 2);
}

/// The marker is a guard for packs, no lock: a backup that is complete does not fail over one that cannot be deleted.
#[test]
fn a_marker_that_cannot_be_deleted_does_not_undo_a_backup() {
    let (store, faulty) = subject();
    faulty.rule(rule(StoreOp::Delete, "s", 0, 1, Fault::Fail(Kind::Permission)));
    back_up(&open(faulty), random_volume(15, 1).path(), &backup_options()).unwrap();
    assert_eq!(names(&*store, "s").len(), 1);
    let repository = open(store);
    assert_eq!(repository.snapshots().unwrap().len(), 2);
    assert_eq!(damage(&repository).unwrap(), Vec::<String>::new());
}

#[test]
fn a_storage_that_fails_to_read_is_no_damage() {
    let (_, faulty) = subject();
    let repository = open(faulty.clone());
    let snapshots = repository.snapshots().unwrap();
    for kind in [Kind::Storage, Kind::Permission] {
        faulty.fail_once(StoreOp::Range, "p", kind);
        assert_refused(
            restored(&repository, &snapshots[0]).unwrap_err(),
            1,
            &["injected fault at Range p"],
        );
        faulty.fail_once(StoreOp::Range, "p", kind);
        assert_eq!(damage(&repository).unwrap_err().kind(), kind);
    }
    faulty.rule(rule(StoreOp::Get, "xn", 0, 1, Fault::Truncate));
    assert_refused(repository.reload().unwrap_err(), 1, &["blob xn", "the listing says"]);
}

#[test]
fn a_clock_more_than_five_minutes_off_refuses_to_write() {
    for seconds in [400, -400, 100_000] {
        let (store, faulty) = subject();
        faulty.rule(rule(StoreOp::Meta, "s", 0, u64::MAX, Fault::Skew(seconds)));
        let error = back_up(&open(faulty), random_volume(16, 1).path(), &backup_options()).unwrap_err();
        assert_refused(error, 1, &["clock", "memory", "more than 300 s", "set the clock right"]);
        assert_clean(&store, 1);
    }
}

#[test]
fn a_small_difference_or_one_stale_answer_does_not() {
    for (count, seconds) in [(u64::MAX, 290), (u64::MAX, -290), (1, 4000), (1, -4000), (2, -100_000)] {
        let (store, faulty) = subject();
        faulty.rule(rule(StoreOp::Meta, "s", 0, count, Fault::Skew(seconds)));
        back_up(&open(faulty), random_volume(17, 1).path(), &backup_options()).unwrap();
        assert_clean(&store, 2);
    }
}

/// A small file system in memory, mounted for a test. Needs root.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path, size: &str) -> Self {
        fs::create_dir(path).unwrap();
        process::run(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
                .arg(path),
        )
        .unwrap();
        Self(path.to_owned())
    }

    fn resize(&self, size: &str) {
        process::run(
            Command::new("mount")
                .args(["-o", &format!("remount,size={size}")])
                .arg(&self.0),
        )
        .unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(failure) = process::run(Command::new("umount").arg(&self.0)) {
            eprintln!("the small disk stays: {failure}");
        }
    }
}

#[test]
fn a_file_system_that_runs_full_keeps_what_it_had() {
    let world = World::new();
    let disk = SmallDisk::mount(&world.path("disk"), "40m");
    let repo = world.path("disk").join("repo");
    super::support::materialise(&*empty(), &repo);
    let ferry = blockferry_tests::blockferry::Blockferry::new(&repo, PASSWORD).unwrap();
    ferry.backup(random_volume(18, 4).path(), &[]).unwrap();
    let volume = random_volume(19, 64);
    let text = volume.path().display().to_string();
    let ended = ferry.ended(["backup", &text, "--workers", "2"]).unwrap();
    assert_failed(
        &ended,
        1,
        &["write blob p", &repo.display().to_string(), "No space left"],
    );
    assert_eq!(temporary_files(&repo), Vec::<PathBuf>::new());
    let store = Arc::new(repo::blob::FsStore::open(&repo).unwrap());
    assert_eq!(names(&*store, "s"), Vec::<String>::new());
    assert_eq!(open(store.clone()).snapshots().unwrap().len(), 1);
    assert_eq!(ferry.ended(["verify", "--percent", "100"]).unwrap().code, Some(0));

    disk.resize("200m");
    ferry.backup(volume.path(), &[]).unwrap();
    assert_eq!(open(store).snapshots().unwrap().len(), 2);
    assert_eq!(ferry.ended(["verify", "--percent", "100"]).unwrap().code, Some(0));
}

/// User and group of nobody.
const NOBODY: &str = "65534";

/// Runs the command line as a user who owns nothing; `None` where the host has no `setpriv` or refuses it.
fn as_nobody(world: &World, args: &[&str]) -> Option<Ended> {
    let setpriv = process::find("setpriv", &["/usr/bin".into()]);
    let Some(setpriv) = setpriv
        .filter(|_| fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0))
    else {
        eprintln!("SKIPPED: needs root and setpriv, to run as another user");
        return None;
    };
    // The build folder may be closed to others.
    let program = world.path("blockferry");
    if !program.exists() {
        fs::copy(blockferry_tests::blockferry::program().unwrap(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(world.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(setpriv);
    command
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--no-new-privs"])
        .arg(program)
        .args(args)
        .arg("--no-cache");
    command
        .env("BLOCKFERRY_REPO", world.repo())
        .env("BLOCKFERRY_PASSWORD", PASSWORD)
        .env_remove("KOPIA_PASSWORD");
    let output = process::output(&mut command, &[]).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Some(Ended {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    })
}

/// Opens a tree to the reading of others, or closes it.
fn set_modes(path: &Path, folders: u32, files: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            set_modes(&entry.unwrap().path(), folders, files);
        }
    }
    fs::set_permissions(
        path,
        fs::Permissions::from_mode(if path.is_dir() { folders } else { files }),
    )
    .unwrap();
}

#[test]
fn a_read_only_repository_is_read_and_not_written() {
    let world = World::new();
    let volume = random_volume(20, 2);
    let source = world.text("source");
    fs::copy(volume.path(), &source).unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o644)).unwrap();
    world.ferry.backup(volume.path(), &[]).unwrap();
    let place = world.repo().display().to_string();

    set_modes(&world.repo(), 0o555, 0o444);
    let Some(ended) = as_nobody(&world, &["verify", "--percent", "100"]) else {
        return;
    };
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let before = names(&*world.store(), "");
    for args in [
        &["backup", &source][..],
        &[
            "delete",
            &open(world.store()).snapshots().unwrap()[0].id.unwrap().to_string(),
        ],
    ] {
        assert_failed(
            &as_nobody(&world, args).unwrap(),
            1,
            &["write blob s", &place, "Permission denied"],
        );
    }
    assert_eq!(names(&*world.store(), ""), before);
    world.assert_clean(1);

    set_modes(&world.repo(), 0o700, 0o600);
    assert_failed(
        &as_nobody(&world, &["snapshots"]).unwrap(),
        1,
        &[&place, "Permission denied"],
    );
    let (new, target) = (world.text("new"), world.text("target"));
    assert_failed(
        &as_nobody(&world, &["repo", "create", &new]).unwrap(),
        1,
        &[&new, "Permission denied"],
    );
    set_modes(&world.repo(), 0o555, 0o444);
    assert_failed(
        &as_nobody(&world, &["restore", "latest", &target]).unwrap(),
        1,
        &[&target, "permission denied"],
    );
    fs::set_permissions(&source, fs::Permissions::from_mode(0o600)).unwrap();
    assert_failed(
        &as_nobody(&world, &["backup", &source]).unwrap(),
        1,
        &[&source, "permission denied"],
    );
    assert_words(
        &fs::read_dir(world.path(""))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect::<Vec<_>>()
            .join(" "),
        &["source"],
    );
    assert!(!world.path("target").exists() && !world.path("new").exists());
}
