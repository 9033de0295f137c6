//! From a mount to its end, and over the deaths in between.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::bucket::Bucket;
use blockferry_tests::garage::{self, Garage};
use blockferry_tests::process::run;
use blockferry_tests::proxy::{Proxy, Weather};
use blockferry_tests::repo::list_tree;
use blockferry_tests::volume::Layout;
use blockferry_tests::wait::wait_for;

use super::{Mounts, bytes, device, ext4, kill};
use crate::bad_input::support::{MIB, PASSWORD, World};

const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn a_snapshot_is_a_device_at_once_and_leaves_nothing_behind() {
    let mounts = Mounts::new(&Layout::mixed(301, 20 * MIB + 512));
    let before = list_tree(&mounts.world.repo()).unwrap();
    let mount = mounts.mount(&[]);
    let keys = [
        "id",
        "device",
        "attach",
        "size",
        "logicalBlock",
        "attachMs",
        "snapshotId",
        "source",
        "pid",
    ];
    for key in keys {
        assert!(!mount[key].is_null(), "{key}: {mount}");
    }
    assert_eq!(mount["attach"], "fuse-loop");
    assert_eq!(mount["size"], mounts.volume.size());
    let device = device(&mount);
    assert!(bytes(&device, mounts.volume.size()) == mounts.volume.bytes().unwrap());
    let read_only = run(Command::new("blockdev").arg("--getro").arg(&device)).unwrap();
    assert_eq!(read_only.trim(), "1");

    // Asked for again it is the same one.
    let again = mounts.mount(&[]);
    assert_eq!((&again["device"], &again["pid"]), (&mount["device"], &mount["pid"]));
    assert_eq!(
        (&mount["alreadyMounted"], &again["alreadyMounted"]),
        (&false.into(), &true.into())
    );
    let row = mounts.only();
    assert_eq!((&row["health"], &row["mode"]), (&"serving".into(), &"ro".into()));
    assert!(row["requests"].as_u64().unwrap() > 0, "{row}");

    // The device's path is one of its names.
    let unmounted = mounts.ok(&["unmount", &device.display().to_string()]);
    assert_eq!(unmounted["kept"], false);
    mounts.assert_none();
    assert!(list_tree(&mounts.world.repo()).unwrap() == before);
}

#[test]
fn what_is_written_is_kept_committed_and_given_up() {
    let mounts = Mounts::of(ext4(40));
    let folder = mounts.world.path("fs");
    fs::create_dir(&folder).unwrap();
    let folder_text = folder.display().to_string();
    let args = ["--writable", "--accept-fragile", "--name", "try", "--fs", &folder_text];
    let mount = mounts.mount(&args);
    assert_eq!(
        (&mount["id"], &mount["fileSystem"]),
        (&"try".into(), &folder_text.as_str().into())
    );
    assert_eq!(fs::read_to_string(folder.join("first")).unwrap(), "before\n");
    fs::write(folder.join("second"), vec![7; 3_000_000]).unwrap();

    // In use by a file system it is not committed, and its holder is named.
    mounts.refuses(&["commit", "try"], 1, &["in use by", &folder_text]);
    // In use by a process it is not unmounted, and that is named.
    let held = fs::File::open(folder.join("first")).unwrap();
    mounts.refuses(
        &["unmount", "try"],
        1,
        &["unmount", &format!("process {}", std::process::id())],
    );
    drop(held);
    let unmounted = mounts.ok(&["unmount", &folder_text]);
    assert_eq!(unmounted["kept"], true);
    assert!(!folder.join("first").exists());
    let row = mounts.only();
    assert_eq!(
        (&row["health"], &row["device"]),
        (&"stopped".into(), &serde_json::Value::Null)
    );
    mounts.refuses(&["unmount", "try"], 2, &["no device", "--discard"]);

    // Mounted again it is there.
    mounts.mount(&args);
    assert!(fs::read(folder.join("second")).unwrap() == vec![7; 3_000_000]);
    run(Command::new("umount").arg(&folder)).unwrap();
    // By the server, while it serves; then without one: both are the same volume.
    let served = mounts.ok(&["commit", "try", "--as", "t@h:/served"]);
    let read = bytes(&device(&mounts.only()), mounts.volume.size());
    mounts.ok(&["unmount", "try"]);
    let stopped = mounts.ok(&["commit", "try", "--as", "t@h:/stopped"]);
    assert_eq!(
        served["objectId"].as_str().map(str::len),
        stopped["objectId"].as_str().map(str::len)
    );
    assert_eq!(
        (&served["bytesRead"], &served["bytesZero"]),
        (&stopped["bytesRead"], &stopped["bytesZero"])
    );
    assert_eq!(stopped["bytesNew"], 0, "it was stored before: {stopped}");
    for document in [&served, &stopped] {
        let target = mounts.world.path("restored");
        let id = document["snapshotId"].as_str().unwrap();
        mounts
            .world
            .ferry
            .run(["restore", id, &target.display().to_string(), "--force", "--verify"])
            .unwrap();
        assert!(fs::read(&target).unwrap() == read);
    }
    let discarded = mounts.ok(&["unmount", "try", "--discard"]);
    assert_eq!(discarded["kept"], false);
    mounts.assert_none();
}

#[test]
fn a_writable_mount_that_nobody_wrote_to_leaves_nothing() {
    let mounts = Mounts::new(&Layout::mixed(302, 4 * MIB));
    mounts.mount(&["--writable", "--accept-fragile"]);
    assert_eq!(
        mounts.ok(&["unmount", mounts.only()["id"].as_str().unwrap()])["kept"],
        false
    );
    mounts.assert_none();
}

#[test]
fn a_server_that_is_killed_has_a_successor_and_no_answered_write_is_lost() {
    let mounts = Mounts::new(&Layout::mixed(303, 8 * MIB));
    let mount = mounts.mount(&["--writable", "--accept-fragile", "--name", "k"]);
    let mut want = mounts.volume.bytes().unwrap();
    // Past the cache of the device, so that it is answered by the server, and never flushed.
    write_direct(&device(&mount), 8192, 0xa5);
    want[8192..8192 + 4096].fill(0xa5);
    kill(&mount["pid"]);
    wait_for("the death of the server to show", DEADLINE, || {
        mounts.only()["health"] == "dead"
    })
    .unwrap();
    assert!(
        mounts.only()["reason"]
            .as_str()
            .unwrap()
            .contains("went with its server")
    );
    let adopted = mounts.ok(&["mounts", "--adopt"]);
    let row = &adopted["mounts"][0];
    assert_eq!(row["health"], "serving", "{adopted}");
    assert_ne!(row["pid"], mount["pid"]);
    assert!(bytes(&device(row), mounts.volume.size()) == want);
    mounts.ok(&["unmount", "k", "--discard"]);
    mounts.assert_none();
}

/// Writes 4096 bytes with O_DIRECT.
fn write_direct(device: &Path, offset: u64, byte: u8) {
    let source = tempfile::NamedTempFile::new().unwrap();
    source.as_file().write_all_at(&[byte; 4096], 0).unwrap();
    run(Command::new("dd").args([
        &format!("if={}", source.path().display()),
        &format!("of={}", device.display()),
        "bs=4096",
        "count=1",
        &format!("seek={}", offset / 4096),
        "oflag=direct",
        "conv=notrunc",
    ]))
    .unwrap();
}

#[test]
fn a_mount_that_died_is_mounted_again_by_its_own_command() {
    let mounts = Mounts::new(&Layout::mixed(304, 4 * MIB));
    let mount = mounts.mount(&[]);
    kill(&mount["pid"]);
    wait_for("the death of the server to show", DEADLINE, || {
        mounts.only()["health"] == "dead"
    })
    .unwrap();
    let again = mounts.mount(&[]);
    assert!(bytes(&device(&again), mounts.volume.size()) == mounts.volume.bytes().unwrap());
    kill(&again["pid"]);
    wait_for("the death of the server to show", DEADLINE, || {
        mounts.only()["health"] == "dead"
    })
    .unwrap();
    // Nothing was written: it is simply gone.
    mounts.ok(&["unmount", again["id"].as_str().unwrap()]);
    mounts.assert_none();
}

#[test]
fn a_server_that_is_told_to_stop_ends_when_nobody_uses_its_device() {
    let mounts = Mounts::new(&Layout::mixed(305, 4 * MIB));
    let mount = mounts.mount(&[]);
    let file = fs::File::open(device(&mount)).unwrap();
    run(Command::new("kill").arg(mount["pid"].to_string())).unwrap();
    let log = mounts.only()["log"].as_str().unwrap().to_owned();
    wait_for("the server to say that it goes on", DEADLINE, || {
        fs::read_to_string(&log).unwrap().contains("goes on")
    })
    .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 4 * MIB - 1).unwrap();
    assert_eq!(byte[0], *mounts.volume.bytes().unwrap().last().unwrap());
    drop(file);
    mounts.ok(&["unmount", mount["id"].as_str().unwrap()]);

    let mount = mounts.mount(&[]);
    run(Command::new("kill").arg(mount["pid"].to_string())).unwrap();
    wait_for("the server to end", DEADLINE, || {
        mounts.ok(&["mounts"])["mounts"].as_array().unwrap().is_empty()
    })
    .unwrap();
    mounts.assert_none();
}

/// A server that was killed while it mounted what is on its device hung there for ever, with the connection to the kernel open by
/// which it served it: no read of the device ended, and nothing could take the device away.
#[test]
fn a_server_that_is_killed_while_it_mounts_its_device_is_gone() {
    if !garage::available() {
        eprintln!("SKIPPED: garage is not installed");
        return;
    }
    let garage = Garage::start().unwrap();
    let line = Proxy::start(&garage.address(0), 1, Weather::default()).unwrap();
    let bucket = Bucket::of(&garage, "killed/").through(line.endpoint());
    let ferry = Blockferry::in_bucket(&bucket, PASSWORD).unwrap();
    ferry.run(["repo", "create"]).unwrap();
    let volume = ext4(40);
    ferry.backup(volume.path(), &[]).unwrap();
    let world = World::of(tempfile::tempdir().unwrap(), ferry);
    let mounts = Mounts { world, volume };
    let folder = mounts.world.path("fs");
    fs::create_dir(&folder).unwrap();
    let folder_text = folder.display().to_string();
    let args = [
        "--attach",
        "fuse",
        "--writable",
        "--accept-fragile",
        "--fs",
        &folder_text,
    ];
    let args = [&["mount", "latest"], &args[..]].concat();

    // Each read of the volume takes a second: the journal's, which the mount waits for, too.
    line.set(Weather {
        latency: Duration::from_secs(1),
        ..Weather::default()
    });
    let mut command = mounts.command(&args);
    let mut starter = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut server = None;
    wait_for("the server to be in mount(2)", DEADLINE, || {
        server = children(starter.id()).into_iter().find(|pid| is_mounting(*pid));
        server.is_some()
    })
    .unwrap();
    let server = server.unwrap();
    kill(&server.into());
    wait_for("the server to be gone", DEADLINE, || {
        let is_dead = |state: String| state.contains("State:\tZ") || state.contains("State:\tX");
        of_threads(server, "status").into_iter().all(is_dead)
    })
    .unwrap();
    wait_for("the command to end", DEADLINE, || starter.try_wait().unwrap().is_some()).unwrap();
    assert!(!starter.wait().unwrap().success());
    assert!(!folder.join("first").exists());

    line.set(Weather::default());
    mounts.ok(&args);
    assert_eq!(fs::read_to_string(folder.join("first")).unwrap(), "before\n");
    mounts.ok(&["unmount", &folder_text, "--discard"]);
    mounts.assert_none();
}

/// Processes that `pid` started.
fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// What `/proc` has in `file` of each thread of `pid` that was not waited for.
fn of_threads(pid: u32, file: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join(file)).ok())
        .collect()
}

/// A thread of `pid` is in mount(2).
fn is_mounting(pid: u32) -> bool {
    let is_mount = |call: String| call.split(' ').next() == Some(&libc::SYS_mount.to_string());
    of_threads(pid, "syscall").into_iter().any(is_mount)
}

/// Names of the records of devices in the folder of what lives as long as the system, of mounts called `name`.
fn device_records(name: &str) -> Vec<String> {
    let files = fs::read_dir("/run/blockferry").into_iter().flatten().flatten();
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    let ending = format!("-{name}.device");
    names.filter(|file| file.ends_with(&ending)).collect()
}

/// The record of a FUSE device whose server was killed stayed until the system ended.
#[test]
fn the_record_of_a_device_that_went_with_its_server_is_taken_away() {
    let mounts = Mounts::new(&Layout::mixed(306, 4 * MIB));
    let other = Mounts::new(&Layout::mixed(307, MIB));
    // A name that no other test has.
    let name = format!("stale{}", std::process::id());
    let mount = mounts.mount(&["--name", &name]);
    let beside = mounts.mount(&["--name", &format!("{name}-beside")]);
    let [record] = &device_records(&name)[..1] else {
        panic!()
    };
    let path = Path::new("/run/blockferry").join(record);
    let (prefix, _) = record.split_once(&name).unwrap();
    // Of another state folder, and of nobody; a record that was never written; one that somebody serves who is no mount.
    let foreign = Path::new("/run/blockferry").join(format!("bf-00000000-{name}.device"));
    fs::copy(&path, &foreign).unwrap();
    let unwritten = Path::new("/run/blockferry").join(format!("{prefix}unwritten{name}.device"));
    fs::write(&unwritten, "").unwrap();
    let held = Path::new("/run/blockferry").join(format!("{prefix}held{name}.device"));
    fs::write(&held, "").unwrap();
    let holder = fs::File::open(&held).unwrap();
    holder.lock().unwrap();

    mounts.ok(&["mounts"]);
    assert!(path.exists(), "its server lives");
    assert!(!unwritten.exists());
    kill(&mount["pid"]);
    let is_dead = || {
        let rows = mounts.ok(&["mounts"]);
        let rows = rows["mounts"].as_array().unwrap().clone();
        rows.iter()
            .any(|row| row["id"] == name.as_str() && row["health"] == "dead")
    };
    wait_for("the death of the server to show", DEADLINE, is_dead).unwrap();
    other.ok(&["mounts"]);
    wait_for("the record to be taken away", DEADLINE, || {
        mounts.ok(&["mounts"]);
        !path.exists()
    })
    .unwrap();
    assert!(foreign.exists() && held.exists());
    assert_eq!(device_records(&format!("{name}-beside")).len(), 1);
    assert!(bytes(&device(&beside), mounts.volume.size()) == mounts.volume.bytes().unwrap());

    // It is mounted again as if nothing had been; killed again, its end takes the record along.
    let again = mounts.ok(&["mounts", "--adopt"]);
    let row = again["mounts"].as_array().unwrap();
    let row = row.iter().find(|row| row["id"] == name.as_str()).unwrap();
    assert!(bytes(&device(row), mounts.volume.size()) == mounts.volume.bytes().unwrap());
    assert!(path.exists());
    kill(&row["pid"]);
    wait_for("the device to go", DEADLINE, || {
        let file = device(row).file_name().unwrap().to_string_lossy().into_owned();
        !Path::new("/sys/block").join(file).join("loop").exists()
    })
    .unwrap();
    mounts.ok(&["unmount", &name]);
    assert!(!path.exists());
    mounts.ok(&["unmount", &format!("{name}-beside")]);
    mounts.assert_none();
    drop(holder);
    fs::remove_file(foreign).unwrap();
    fs::remove_file(held).unwrap();
}
