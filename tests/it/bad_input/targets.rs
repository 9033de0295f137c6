//! Targets of a restore that are too small, in use, read-only, not empty, or no volume. What is refused is left as it was.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use blockferry_tests::process;
use blockferry_tests::volume::{BlockKind, Layout, LoopDevice, LoopOptions, Volume};
use blockio::fault::{EVERYWHERE, Fault, Outcome};
use blockio::{Device, FaultPlan, Op};
use daemon::mover::restore::RestoreOptions;

use super::support::{
    MIB, World, assert_refused, assert_same, back_up, backup_options, empty, open, random_volume, restore_options,
    restore_to,
};

/// A mounted file system, unmounted on drop.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// Makes a file system on `device` and mounts it at the new folder `path`.
    pub(crate) fn make(device: &Path, path: &Path) -> Self {
        let mkfs = process::find("mkfs.ext4", &["/usr/sbin".into(), "/sbin".into()]).expect("e2fsprogs are installed");
        process::run(Command::new(mkfs).args(["-q", "-F"]).arg(device)).unwrap();
        fs::create_dir(path).unwrap();
        process::run(Command::new("mount").arg(device).arg(path)).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(failure) = process::run(Command::new("umount").arg(&self.0)) {
            eprintln!("the mount stays: {failure}");
        }
    }
}

/// A repository with a snapshot of 4 MiB and a half sector.
fn world() -> (World, Volume) {
    let world = World::new();
    let volume = Volume::create(&Layout::mixed(31, 4 * MIB + 512)).unwrap();
    world.ferry.backup(volume.path(), &[]).unwrap();
    (world, volume)
}

fn garbage(path: &Path, bytes: u64) -> Vec<u8> {
    let garbage = Layout::uniform(99, bytes, BlockKind::Random).bytes();
    fs::write(path, &garbage).unwrap();
    garbage
}

/// Asserts that a restore to a device over a file is refused by `words`, and leaves all bytes as they were.
#[track_caller]
fn check_device(world: &World, bytes: u64, options: LoopOptions, code: i32, words: &[&str]) {
    let file = world.path("backing");
    let before = garbage(&file, bytes);
    let device = LoopDevice::attach(&file, options).unwrap();
    let path = device.path().display().to_string();
    for flags in [&[][..], &["--force"], &["--mode", "delta"]] {
        let args = [&["restore", "latest", &path], flags].concat();
        world.refuses(&args, code, &[&[path.as_str()], words].concat());
    }
    drop(device);
    assert_same(&fs::read(&file).unwrap(), &before);
}

#[test]
fn a_smaller_device_is_refused_before_the_first_byte() {
    let (world, _) = world();
    check_device(
        &world,
        4 * MIB,
        LoopOptions::default(),
        2,
        &["4194304 bytes", "4194816", "the target is smaller"],
    );
}

#[test]
fn a_read_only_device_is_refused() {
    let (world, _) = world();
    let options = LoopOptions {
        read_only: true,
        ..LoopOptions::default()
    };
    check_device(&world, 8 * MIB, options, 1, &["read-only"]);
}

#[test]
fn a_mounted_device_is_refused_with_its_place() {
    let (world, _) = world();
    let file = world.path("backing");
    fs::write(&file, vec![0; 16 << 20]).unwrap();
    let device = LoopDevice::attach(&file, LoopOptions::default()).unwrap();
    let place = world.path("mounted");
    let mount = Mount::make(device.path(), &place);
    fs::write(place.join("precious"), b"kept").unwrap();
    let path = device.path().display().to_string();
    for flags in [&[][..], &["--force"], &["--mode", "delta"]] {
        let args = [&["restore", "latest", &path], flags].concat();
        world.refuses(
            &args,
            1,
            &[&path, "mounted at", &place.display().to_string(), "unmount it first"],
        );
    }
    // Nor through another name of it, nor through the file behind it.
    let link = world.text("link");
    std::os::unix::fs::symlink(device.path(), &link).unwrap();
    world.refuses(&["restore", "latest", &link], 1, &["mounted at"]);
    let behind = file.display().to_string();
    world.refuses(&["restore", "latest", &behind, "--force"], 1, &[&behind, "loop"]);
    drop(mount);
    let check = process::find("e2fsck", &["/usr/sbin".into(), "/sbin".into()]).expect("e2fsprogs are installed");
    process::run(Command::new(check).args(["-f", "-n"]).arg(device.path())).unwrap();
    world.ferry.restore("latest", device.path(), &["--verify"]).unwrap();
}

#[test]
fn a_device_in_use_is_refused() {
    let (world, _) = world();
    let file = world.path("backing");
    let before = garbage(&file, 8 * MIB);
    let device = LoopDevice::attach(&file, LoopOptions::default()).unwrap();
    let held = Device::open(device.path(), &blockio::OpenOptions::overwrite()).unwrap();
    let path = device.path().display().to_string();
    world.refuses(&["restore", "latest", &path], 1, &[&path, "busy"]);
    drop((held, device));
    assert_same(&fs::read(&file).unwrap(), &before);
}

#[test]
fn a_file_that_is_not_empty_is_replaced_on_demand_only() {
    let (world, volume) = world();
    let path = world.path("target");
    let text = world.text("target");
    let before = garbage(&path, 9 * MIB);
    world.refuses(&["restore", "latest", &text], 2, &[&text, "9437184 bytes", "--force"]);
    assert_same(&fs::read(&path).unwrap(), &before);
    world.ferry.restore("latest", &path, &["--force"]).unwrap();
    assert_same(&fs::read(&path).unwrap(), &volume.bytes().unwrap());

    // One without bytes is as good as none.
    fs::write(&path, b"").unwrap();
    world.ferry.restore("latest", &path, &[]).unwrap();
    assert_same(&fs::read(&path).unwrap(), &volume.bytes().unwrap());
    assert_eq!(
        fs::metadata(&path).unwrap().mode() & 0o077,
        fs::metadata(&path).unwrap().mode() & 0o044,
        "nobody else may write it"
    );
}

#[test]
fn what_is_no_target_is_refused_by_name() {
    let (world, _) = world();
    let folder = world.text("folder");
    fs::create_dir(&folder).unwrap();
    let lost = world.text("missing/target");
    for (target, words) in [
        (folder.as_str(), "directory"),
        ("/dev/null", "character device"),
        (lost.as_str(), "not found"),
    ] {
        world.refuses(&["restore", "latest", target], 1, &["open on", target, words]);
        world.refuses(
            &["restore", "latest", target, "--force"],
            1,
            &["open on", target, words],
        );
    }
}

/// `--force` replaces a file only once there is something to replace it by.
#[test]
fn a_missing_snapshot_leaves_the_target_alone() {
    let (world, _) = world();
    let path = world.path("target");
    let before = garbage(&path, MIB);
    let text = world.text("target");
    world.refuses(
        &["restore", "nonesuch", &text, "--force"],
        2,
        &["no snapshot \"nonesuch\"", "blockferry snapshots"],
    );
    assert_same(&fs::read(&path).unwrap(), &before);
}

#[test]
fn a_target_that_fails_fails_the_restore() {
    let volume = random_volume(32, 6);
    let store = empty();
    let repository = open(store.clone());
    back_up(&repository, volume.path(), &backup_options()).unwrap();
    let snapshots = repository.snapshots().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("target");
    for (op, errno, words) in [
        (Op::Write, libc::EIO, ["write", "os error 5"]),
        (Op::Write, libc::ENOSPC, ["write", "no space left"]),
    ] {
        for workers in [1, 3] {
            let target = Arc::new(Device::create_file(&path, 6 * MIB, true).unwrap());
            let fault = Fault {
                op,
                range: EVERYWHERE,
                skip: 2,
                count: u64::MAX,
                outcome: Outcome::Errno(errno),
            };
            let options = RestoreOptions {
                faults: Some(FaultPlan::new().with(fault)),
                workers,
                ..restore_options()
            };
            let error = restore_to(&repository, &snapshots[0], &target, &options).unwrap_err();
            assert_refused(error, 1, &[&[path.to_str().unwrap()], &words[..]].concat());
        }
    }
    // Writes that are cut short are resumed.
    let target = Arc::new(Device::create_file(&path, 6 * MIB, true).unwrap());
    let faults = FaultPlan::always(Op::Write, Outcome::Short(65_536));
    restore_to(
        &repository,
        &snapshots[0],
        &target,
        &RestoreOptions {
            faults: Some(faults.clone()),
            ..restore_options()
        },
    )
    .unwrap();
    assert!(faults.hits() > 0);
    assert_same(&fs::read(&path).unwrap(), &volume.bytes().unwrap());
}

#[test]
fn a_target_among_the_files_of_the_repository_is_refused() {
    let (world, _volume) = world();
    let blob = world.repo().join("kopia.repository.f");
    let before = fs::read(&blob).unwrap();
    for target in [blob.clone(), world.repo().join("new"), world.repo().join("p/../new")] {
        let target = target.display().to_string();
        world.refuses(
            &["restore", "latest", &target, "--force"],
            2,
            &["lies in the repository", &target],
        );
    }
    assert_eq!(fs::read(&blob).unwrap(), before);
    assert!(!world.repo().join("new").exists());
}
