//! `mount --into`: the final volume is filled while it is in use.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use blockferry_tests::process::run;
use blockferry_tests::volume::{BlockKind, Layout};
use blockferry_tests::wait::{sleep_until, wait_for};
use serde_json::Value;

use super::{Mounts, bytes, device, kill};
use crate::bad_input::support::MIB;

const DEADLINE: Duration = Duration::from_secs(120);

/// A loop device over a file full of bytes that nobody may read.
pub(super) struct Target {
    pub(super) device: PathBuf,
    _file: tempfile::NamedTempFile,
}

impl Target {
    pub(super) fn new(size: u64) -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![0xee; usize::try_from(size).unwrap()]).unwrap();
        file.as_file().sync_all().unwrap();
        let device = run(Command::new("losetup").args(["-f", "--show"]).arg(file.path())).unwrap();
        Self {
            device: device.trim().into(),
            _file: file,
        }
    }

    pub(super) fn text(&self) -> String {
        self.device.display().to_string()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.device).output();
    }
}

impl Mounts {
    fn mount_into(&self, target: &Target, args: &[&str]) -> Value {
        let target = target.text();
        self.mount(&[&["--into", &target, "--accept-fragile", "--name", "v"], args].concat())
    }

    #[track_caller]
    pub(super) fn wait_until_complete(&self) {
        wait_for("the volume to be complete", DEADLINE, || {
            let row = self.only();
            assert_ne!(row["hydration"]["state"], "failed", "{row}");
            row["hydration"]["state"] == "complete"
        })
        .unwrap();
    }
}

fn write_direct(device: &std::path::Path, offset: u64, byte: u8) {
    // Through the cache of the device and out of it again.
    let file = File::options().write(true).open(device).unwrap();
    file.write_all_at(&[byte; 4096], offset).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_volume_is_used_while_it_comes_and_is_whole_at_the_end() {
    let mounts = Mounts::new(&Layout::mixed(321, 48 * MIB));
    let target = Target::new(50 * MIB);
    let mount = mounts.mount_into(&target, &[]);
    let device = device(&mount);
    let mut want = mounts.volume.bytes().unwrap();
    // Read and written at once, wherever hydration is.
    for (at, byte) in [(0u64, 1u8), (13 * MIB + 4096, 2), (47 * MIB, 3), (48 * MIB - 4096, 4)] {
        write_direct(&device, at, byte);
        let at = usize::try_from(at).unwrap();
        want[at..at + 4096].fill(byte);
    }
    assert!(bytes(&device, 48 * MIB) == want);
    mounts.wait_until_complete();
    write_direct(&device, 5 * MIB, 9);
    let at = usize::try_from(5 * MIB).unwrap();
    want[at..at + 4096].fill(9);
    mounts.refuses(&["commit", "v"], 2, &["no changes of its own", "backup"]);
    let unmounted = mounts.ok(&["unmount", "v"]);
    assert_eq!(
        (&unmounted["kept"], &unmounted["target"]),
        (&false.into(), &target.text().as_str().into())
    );
    mounts.assert_none();
    // It is free as soon as it was said to be.
    let exclusive = File::options()
        .write(true)
        .custom_flags(libc::O_EXCL)
        .open(&target.device);
    drop(exclusive.unwrap());
    let found = std::fs::read(&target.device).unwrap();
    assert!(found[..want.len()] == want, "the target is the volume");
    assert!(
        found[want.len()..].iter().all(|byte| *byte == 0xee),
        "and what is behind it was not touched"
    );
    let touches = mounts.world.path("state/touches");
    assert_eq!(
        std::fs::read_dir(touches).unwrap().count(),
        1,
        "first touches are kept for the next mount"
    );
}

#[test]
fn a_server_that_is_killed_while_it_hydrates_loses_nothing() {
    let mounts = Mounts::new(&Layout::mixed(322, 64 * MIB));
    let target = Target::new(64 * MIB);
    // Slow enough to be killed on its way.
    let mut mount = mounts.mount_into(&target, &["--limit-download", "16MiB"]);
    let mut want = mounts.volume.bytes().unwrap();
    for round in 0..3u8 {
        let at = u64::from(round) * 20 * MIB + 8192;
        write_direct(&device(&mount), at, round + 1);
        want[usize::try_from(at).unwrap()..][..4096].fill(round + 1);
        kill(&mount["pid"]);
        wait_for("the death of the server to show", DEADLINE, || {
            mounts.only()["health"] == "dead"
        })
        .unwrap();
        let adopted = mounts.ok(&["mounts", "--adopt"]);
        mount = adopted["mounts"][0].clone();
        assert_eq!(mount["health"], "serving", "{adopted}");
        assert!(mount["hydration"]["presentBytes"].as_u64().unwrap() >= 4096);
    }
    // Not whole yet: it is kept, and goes on.
    let unmounted = mounts.ok(&["unmount", "v"]);
    if unmounted["kept"] == true {
        mounts.refuses(&["unmount", "v"], 2, &["not known to be whole", "--discard"]);
        mounts.refuses(&["commit", "v"], 2, &["no changes of its own"]);
        mounts.mount_into(&target, &[]);
        mounts.wait_until_complete();
        mounts.ok(&["unmount", "v"]);
    }
    mounts.assert_none();
    assert!(bytes(&target.device, 64 * MIB) == want);
}

#[test]
fn targets_that_cannot_be_are_refused_untouched() {
    let mounts = Mounts::new(&Layout::mixed(323, 8 * MIB));
    let (small, other) = (Target::new(7 * MIB), Target::new(8 * MIB));
    let words = [
        "mount",
        "latest",
        "--attach",
        "fuse",
        "--accept-fragile",
        "--name",
        "v",
        "--into",
    ];
    let refuses =
        |target: &str, code: i32, needed: &[&str]| mounts.refuses(&[&words[..], &[target]].concat(), code, needed);
    refuses(&small.text(), 2, &["smaller", &small.text()]);
    refuses("/dev/none", 1, &["/dev/none"]);
    // Mounted.
    let folder = mounts.world.path("fs");
    std::fs::create_dir(&folder).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&other.device)).unwrap();
    run(Command::new("mount").arg(&other.device).arg(&folder)).unwrap();
    let before = std::fs::read(&small.device).unwrap();
    let ended = mounts.ended(&[&words[..], &[&other.text()]].concat());
    run(Command::new("umount").arg(&folder)).unwrap();
    crate::bad_input::support::assert_failed(&ended, 1, &["mounted", &other.text()]);
    // In use by another mount.
    mounts.mount_into(&other, &["--limit-download", "1MiB"]);
    let target = other.text();
    let second = [
        "mount",
        "latest",
        "--attach",
        "fuse",
        "--accept-fragile",
        "--name",
        "w",
        "--into",
        &target,
    ];
    mounts.refuses(&second, 1, &["in use", &target]);
    mounts.ok(&["unmount", "v", "--discard"]);
    mounts.assert_none();
    assert!(std::fs::read(&small.device).unwrap() == before);
}

/// Its return was noticed after up to a minute.
#[test]
fn a_repository_that_was_away_for_long_is_noticed_soon_when_it_is_back() {
    let mounts = Mounts::new(&Layout::uniform(324, 96 * MIB, BlockKind::Random));
    let target = Target::new(96 * MIB);
    mounts.mount_into(&target, &["--limit-download", "16MiB"]);
    let present = || mounts.only()["hydration"]["presentBytes"].as_u64().unwrap();
    let away = mounts.world.path("away");
    std::fs::rename(mounts.world.repo(), &away).unwrap();
    wait_for("hydration to wait", DEADLINE, || {
        mounts.only()["hydration"]["state"] == "waiting"
    })
    .unwrap();
    // Waits that double would have come to 32 s.
    sleep_until(Instant::now() + Duration::from_secs(33));
    let before = present();
    std::fs::rename(&away, mounts.world.repo()).unwrap();
    wait_for("hydration to go on", Duration::from_secs(15), || present() > before).unwrap();
    // A thread that had waited for long may say so once more. A folder gives the rest in no time.
    wait_for("that to be told", Duration::from_secs(15), || {
        let state = mounts.only()["hydration"]["state"].clone();
        state == "running" || state == "complete"
    })
    .unwrap();
    mounts.ok(&["unmount", "v", "--discard"]);
    mounts.assert_none();
}
