//! A FUSE file behind a loop device: what comes through is the volume, its errors and nothing else; what goes leaves nothing.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use blockferry_tests::volume::Layout;
use blockferry_tests::wait;
use nbd::attach::{AttachError, Availability, Holder, InUse, Kind, Options, attach, devices, leaked, probe, reclaim};
use nbd::{Export, FileSource, MemSource};

use super::volumes::Moody;
use super::{GRACE, World, example, options, run};

const MIB: u64 = 1 << 20;

fn image(seed: u64, size: u64) -> (Vec<u8>, MemSource) {
    let bytes = Layout::mixed(seed, size).bytes();
    let volume = MemSource::from_bytes(&bytes);
    (bytes, volume)
}

#[test]
fn this_host_has_fuse_and_loop_devices() {
    let probed = probe();
    assert_eq!(probed.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), Kind::ALL);
    assert_eq!(probed[2], (Kind::FuseLoop, Availability::Usable));
}

#[test]
fn the_device_is_the_volume() {
    for (block, size) in [
        (512, 9 * MIB + 512),
        (4096, 8 * MIB),
        (512, 3 * MIB + 77),
        (4096, 5 * MIB + 512),
    ] {
        let (bytes, volume) = image(81, size);
        let world = World::new(Export::read_only(Moody::new(volume).with_blocks(block).shared()));
        let device = world.device();
        assert_eq!(device.size(), size.next_multiple_of(block.into()));
        assert_eq!(run("blockdev", &["--getss", &world.name()]).trim(), block.to_string());
        assert_eq!(
            run("blockdev", &["--getsize64", &world.name()]).trim(),
            device.size().to_string()
        );
        assert!(device.holders().is_empty());
        let mut padded = bytes.clone();
        padded.resize(usize::try_from(device.size()).unwrap(), 0);
        assert!(fs::read(device.path()).unwrap() == padded, "through the page cache");
        let copy = world.runtime.path().join("copy");
        let (from, to) = (format!("if={}", world.name()), format!("of={}", copy.display()));
        run("dd", &[&from, &to, "bs=1M", "iflag=direct", "status=none"]);
        assert!(fs::read(&copy).unwrap() == padded, "around it");
        fs::remove_file(copy).unwrap();
        assert!(device.stats().bytes_read >= 2 * size);
        world.detach();
    }
}

#[test]
fn a_file_system_is_made_used_and_sound() {
    let volume = Moody::new(MemSource::new(64 * MIB)).shared();
    let world = World::new(Export::writable(volume.clone()));
    run("mkfs.ext4", &["-q", "-F", &world.name()]);
    let point = tempfile::tempdir().unwrap();
    let at = point.path().display().to_string();
    let content = Layout::mixed(82, 5 * MIB + 99).bytes();
    run("mount", &[&world.name(), &at]);
    fs::write(point.path().join("file"), &content).unwrap();
    File::open(point.path().join("file")).unwrap().sync_all().unwrap();
    assert!(volume.flushes.load(Ordering::SeqCst) > 0, "a sync reaches the volume");
    fs::write(point.path().join("other"), &content).unwrap();
    fs::remove_file(point.path().join("other")).unwrap();
    run("fstrim", &[&at]);

    // In use it stays, and says by whom.
    let mut world = world;
    let refused = world.device.take().unwrap().detach(GRACE).unwrap_err();
    assert!(refused.error.is_busy(), "{}", refused.error);
    assert!(
        refused.error.to_string().contains(&format!("the mount at {at}")),
        "{}",
        refused.error
    );
    world.device = Some(refused.device);
    assert!(fs::read(point.path().join("file")).unwrap() == content);

    run("umount", &[&at]);
    run("e2fsck", &["-f", "-n", &world.name()]);
    world.detach();

    // What is in the volume is what was written to the device; it takes no writes when they are not wanted.
    let world = World::new(Export::read_only(volume));
    run("mount", &["-o", "ro", &world.name(), &at]);
    assert!(fs::read(point.path().join("file")).unwrap() == content);
    run("umount", &[&at]);
    world.detach();
}

#[test]
fn random_writes_are_found_again() {
    let world = World::new(Export::writable(Arc::new(MemSource::new(32 * MIB))));
    let file = format!("--filename={}", world.name());
    let common = [
        "--direct=1",
        "--ioengine=libaio",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--minimal",
        &file,
    ];
    for (name, rw, bs) in [
        ("small", "randwrite", "512-8k"),
        ("large", "randwrite", "64k-2M"),
        ("trim", "randtrim", "64k"),
    ] {
        let (name, rw, bs) = (
            format!("--name={name}"),
            format!("--rw={rw}"),
            format!("--bsrange={bs}"),
        );
        let bs = if bs.contains('-') && !bs.ends_with("=64k") {
            bs
        } else {
            "--bs=64k".to_owned()
        };
        let mut args = vec![&*name, &*rw, &*bs, "--iodepth=16", "--io_size=32M"];
        args.extend(common);
        run("fio", &args);
    }
    world.detach();
}

#[test]
fn operations_of_all_kinds_leave_what_they_should() {
    let volume = Arc::new(MemSource::new(48 * MIB));
    let world = World::new(Export::writable(volume));
    let operations = blockferry_tests::rounds(400, 4000).to_string();
    let name = world.name();
    let exercise = example("exercise").display().to_string();
    let said = run(&exercise, &["random", &name, "5", &operations]);
    assert!(said.contains("every byte is right"), "{said}");
    world.detach();
}

#[test]
fn a_mounted_device_grows_with_its_volume() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(48 * MIB).unwrap();
    let volume = Arc::new(FileSource::open(file.path(), true).unwrap());
    let world = World::new(Export::writable(volume.clone()));
    let point = tempfile::tempdir().unwrap();
    let at = point.path().display().to_string();
    run("mkfs.ext4", &["-q", "-F", &world.name()]);
    run("mount", &[&world.name(), &at]);
    assert_eq!(world.device().grow().unwrap(), 48 * MIB, "nothing has grown");

    file.as_file().set_len(96 * MIB).unwrap();
    volume.look_again().unwrap();
    assert_eq!(world.device().grow().unwrap(), 96 * MIB);
    assert_eq!(world.device().size(), 96 * MIB);
    assert_eq!(
        run("blockdev", &["--getsize64", &world.name()]).trim(),
        (96 * MIB).to_string()
    );
    // Not under the mount, which takes a right that tests may lack.
    run("umount", &[&at]);
    run("e2fsck", &["-f", "-p", &world.name()]);
    run("resize2fs", &[&world.name()]);
    run("mount", &[&world.name(), &at]);
    let content = Layout::mixed(87, 60 * MIB).bytes();
    fs::write(point.path().join("file"), &content).unwrap();
    File::open(point.path().join("file")).unwrap().sync_all().unwrap();
    run("umount", &[&at]);
    run("mount", &[&world.name(), &at]);
    assert!(fs::read(point.path().join("file")).unwrap() == content);
    run("umount", &[&at]);
    run("e2fsck", &["-f", "-n", &world.name()]);

    file.as_file().set_len(96 * MIB + 100).unwrap();
    volume.look_again().unwrap();
    let error = world.device().grow().unwrap_err();
    assert!(matches!(error, AttachError::OddSize { .. }), "{error}");
    assert_eq!(world.device().size(), 96 * MIB);
    world.detach();
}

#[test]
fn a_device_whose_server_died_is_found_and_taken_away() {
    let world = tempfile::tempdir().unwrap();
    let (runtime, file) = (world.path().join("run"), world.path().join("volume"));
    File::create(&file).unwrap().set_len(32 * MIB).unwrap();
    let mut server = Command::new(example("attach"))
        .args([
            &file.display().to_string(),
            "it-left",
            "fuse-loop",
            &runtime.display().to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let list = || devices(&runtime, "it-").unwrap();
    wait::wait_for("the device", GRACE, || list().len() == 1).unwrap();
    let found = list().remove(0);
    assert!(
        found.served && found.kind == Kind::FuseLoop && found.process == Some(server.id()),
        "{found:?}"
    );
    assert_eq!((found.size, found.identifier.as_str()), (32 * MIB, "it-left"));
    let export = Arc::new(Export::writable(Arc::new(MemSource::new(MIB))));
    let same = Options {
        identifier: "it-left".to_owned(),
        ..options(Kind::FuseLoop, &runtime)
    };
    let error = attach(&export, &same).unwrap_err();
    assert!(matches!(error, AttachError::Served { .. }), "{error}");
    assert!(leaked(&runtime, "it-").unwrap().is_empty());
    let error = reclaim(&found, &runtime, InUse::Fail).unwrap_err();
    assert!(matches!(error, AttachError::Served { .. }), "{error}");

    // Somebody who has it open keeps it from vanishing with its server.
    let user = File::open(&found.path).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(leaked(&runtime, "other-").unwrap().is_empty());
    let left = leaked(&runtime, "it-").unwrap().remove(0);
    assert_eq!(left.path, found.path);
    let error = attach(&export, &same).unwrap_err();
    assert!(matches!(error, AttachError::Left { .. }), "{error}");
    let error = reclaim(&left, &runtime, InUse::Keep).unwrap_err();
    assert!(error.is_busy(), "{error}");
    reclaim(&left, &runtime, InUse::Fail).unwrap();
    drop(user);
    wait::wait_for("the device to be unbound", GRACE, || {
        super::bound_file(&left.path).is_none()
    })
    .unwrap();
    assert!(list().is_empty());
    assert_eq!(
        fs::read_dir(&runtime)
            .unwrap()
            .filter(|entry| {
                entry
                    .as_ref()
                    .is_ok_and(|entry| entry.file_name().to_string_lossy().ends_with(".device"))
            })
            .count(),
        0
    );
}

#[test]
fn zeros_and_discards_reach_the_volume() {
    let (bytes, volume) = image(83, 16 * MIB);
    let volume = Arc::new(volume);
    let world = World::new(Export::writable(volume.clone()));
    let name = world.name();
    run(
        "blkdiscard",
        &["--zeroout", "--offset", "1048576", "--length", "2097152", &name],
    );
    run("blkdiscard", &["--offset", "8388608", "--length", "1049088", &name]);
    let mut expected = bytes;
    expected[1 << 20..3 << 20].fill(0);
    expected[8 << 20..(9 << 20) + 512].fill(0);
    assert!(fs::read(world.path()).unwrap() == expected);
    let written = world.device().stats().bytes_written;
    assert_eq!(written, 0, "zeros are told, not written");
    world.detach();
}

#[test]
fn read_only_is_read_only() {
    let (bytes, volume) = image(84, 4 * MIB);
    let volume = Arc::new(volume);
    let world = World::new(Export::read_only(volume));
    assert!(world.device().is_read_only());
    assert_eq!(run("blockdev", &["--getro", &world.name()]).trim(), "1");
    // The kernel lets some open it for writing all the same; then it takes no write.
    if let Ok(file) = OpenOptions::new().write(true).open(world.path()) {
        let error = file.write_at(&[1; 4096], 0).and_then(|_| file.sync_all()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc_eperm()));
    }
    assert!(fs::read(world.path()).unwrap() == bytes);
    world.detach();
}

/// EPERM (include/uapi/asm-generic/errno-base.h).
const fn libc_eperm() -> i32 {
    1
}

#[test]
fn what_the_volume_cannot_give_is_an_error_for_the_reader() {
    let (bytes, volume) = image(85, 8 * MIB);
    let volume = Moody::new(volume).broken_from(6 * MIB).shared();
    let world = World::new(Export::writable(volume.clone()));
    let device = OpenOptions::new().read(true).write(true).open(world.path()).unwrap();
    let mut block = vec![0; 4096];
    let error = device.read_exact_at(&mut block, 7 * MIB).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "EIO, not zeros: {error}");
    device.read_exact_at(&mut block, 5 * MIB).unwrap();
    assert!(block == bytes[5 << 20..(5 << 20) + 4096], "the rest works");
    assert!(world.device().stats().failures > 0);

    volume.fill();
    device.write_all_at(&block, 0).unwrap();
    let error = device.sync_all().unwrap_err();
    assert!([5, 28].contains(&error.raw_os_error().unwrap()), "{error}");
    drop(device);
    // The lost write is told once more, to the one who takes the device away; then it is his decision.
    let mut world = world;
    let refused = world.device.take().unwrap().detach(GRACE).unwrap_err();
    assert!(
        refused.error.to_string().starts_with("flush /dev/loop"),
        "{}",
        refused.error
    );
    world.device = Some(refused.device);
    world.detach();
}

#[test]
fn a_volume_that_hangs_holds_nothing_for_ever() {
    let (_, volume) = image(86, 8 * MIB);
    let volume = Moody::new(volume).shared();
    let mut world = World::new(Export::writable(volume.clone()));
    let path = world.path();

    // A flush that hangs: the device stays until it comes back.
    volume.shut(true);
    let refused = world
        .device
        .take()
        .unwrap()
        .detach(Duration::from_millis(300))
        .unwrap_err();
    assert!(
        refused.error.to_string().contains("did not answer"),
        "{}",
        refused.error
    );

    volume.shut(false);
    wait::wait_for("the flush to come back", GRACE, || {
        volume.waiting.load(Ordering::SeqCst) == 0
    })
    .unwrap();

    // A reader that hangs in it is named, and gets an error when the device is given up.
    volume.shut(true);
    let mut reader = Command::new("dd")
        .args([
            &format!("if={}", path.display()),
            "of=/dev/null",
            "bs=4k",
            "count=1",
            "iflag=direct",
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait::wait_for("dd to read", GRACE, || volume.waiting.load(Ordering::SeqCst) == 1).unwrap();
    let refused = refused.device.detach(GRACE).unwrap_err();
    let holders = refused.device.holders();
    assert!(
        holders.contains(&Holder::Process {
            id: reader.id(),
            name: "dd".to_owned()
        }),
        "{holders:?}"
    );
    assert!(refused.error.to_string().contains("(dd)"), "{}", refused.error);
    let begun = Instant::now();
    refused.device.abort().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let mut said = String::new();
    reader.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(
        !reader.wait().unwrap().success() && said.contains("Input/output error"),
        "{said}"
    );
    wait::wait_for("the device to be unbound", GRACE, || super::bound_file(&path).is_none()).unwrap();
    world.is_gone(&path);
    volume.shut(false);
}

#[test]
fn a_device_that_dies_with_us_is_writable_only_on_request() {
    let runtime = tempfile::tempdir().unwrap();
    let careful = Options {
        accept_fragile: false,
        ..options(Kind::FuseLoop, runtime.path())
    };
    let export = Arc::new(Export::writable(Arc::new(MemSource::new(MIB))));
    let error = attach(&export, &careful).unwrap_err();
    assert!(error.to_string().contains("does not survive"), "{error}");
    let error = attach(&export, &options(Kind::Ublk, runtime.path())).unwrap_err();
    assert!(error.to_string().contains("fuse-loop can be had"), "{error}");
}
