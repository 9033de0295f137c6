use super::*;
use crate::extent::ExtentKind;
use crate::fault::{Fault, Outcome};
use crate::testing::{LoopDevice, Mounted, pattern, patterned_file, run, scratch_dir, scratch_file};
use crate::traits::{BlockSink, BlockSource};
use proptest::prelude::*;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

fn open(path: &Path) -> Device {
    Device::open(path, &OpenOptions::overwrite()).unwrap()
}

/// The claim on a block device ends a little later if another test is just starting a program, which has a copy of every
/// descriptor until it runs.
fn open_when_free(path: &Path) -> Device {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match Device::open(path, &OpenOptions::overwrite()) {
            Err(e) if matches!(e.kind, Kind::Busy(_)) && Instant::now() < deadline => std::thread::yield_now(),
            other => return other.unwrap(),
        }
    }
}

#[track_caller]
fn refusal(path: &Path, options: &OpenOptions) -> Kind {
    Device::open(path, options).expect_err("it is to be refused").kind
}

#[test]
fn only_block_devices_and_regular_files_are_opened() {
    let dir = scratch_dir();
    let fifo = dir.path().join("fifo");
    run("mkfifo", &[fifo.to_str().unwrap()]).unwrap();
    let kind = |path: &Path| refusal(path, &OpenOptions::read());
    assert_eq!(kind(dir.path()), Kind::NotADevice("a directory".into()));
    assert_eq!(
        kind(&fifo),
        Kind::NotADevice("a FIFO".into()),
        "and nobody waited for its other end"
    );
    assert_eq!(
        kind(Path::new("/dev/null")),
        Kind::NotADevice("a character device".into())
    );
    assert_eq!(kind(&dir.path().join("none")), Kind::NotFound);
    assert_eq!(kind(Path::new("")), Kind::NotFound);
}

#[test]
fn a_file_is_opened_past_the_page_cache() {
    let (file, _) = patterned_file(5 * MIB + 512);
    let device = Device::open(file.path(), &OpenOptions::read()).unwrap();
    let geometry = device.geometry();
    assert_eq!(geometry.size, 5 * MIB as u64 + 512);
    assert!(
        device.is_direct() && device.buffered_reason().is_none(),
        "{:?}",
        device.buffered_reason()
    );
    assert!(geometry.offset_align >= 512 && geometry.offset_align.is_power_of_two());
    assert!(!device.is_block_device());
    let buffered = OpenOptions {
        direct: false,
        ..OpenOptions::read()
    };
    let device = Device::open(file.path(), &buffered).unwrap();
    assert!(!device.is_direct() && device.buffered_reason().is_some());
    assert_eq!((device.geometry().offset_align, device.geometry().memory_align), (1, 1));
}

#[derive(Clone, Debug)]
enum Step {
    Read { offset: usize, len: usize },
    Write { offset: usize, len: usize, seed: u64 },
    Zero { offset: usize, len: usize },
}

fn scripts() -> impl Strategy<Value = (usize, bool, Vec<Step>)> {
    let sizes = prop_oneof![
        Just(1),
        Just(511),
        Just(MIB - 1),
        Just(MIB),
        1usize..40_000,
        Just(2 * MIB + 4097)
    ];
    (sizes, any::<bool>()).prop_flat_map(|(size, direct)| {
        let range = move || {
            (0..size).prop_flat_map(move |offset| {
                let offset = if offset % 3 == 0 { offset / 4096 * 4096 } else { offset };
                (
                    Just(offset),
                    prop_oneof![1..=size - offset, 1..=(size - offset).min(5000)],
                )
            })
        };
        let step = prop_oneof![
            (range(), 0usize..3000).prop_map(|((offset, len), more)| Step::Read {
                offset,
                len: len + more
            }),
            (range(), any::<u64>()).prop_map(|((offset, len), seed)| Step::Write { offset, len, seed }),
            range().prop_map(|(offset, len)| Step::Zero { offset, len }),
        ];
        (Just(size), Just(direct), prop::collection::vec(step, 1..8))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn any_alignment_behaves_as_memory((size, direct, steps) in scripts()) {
        let (file, mut model) = patterned_file(size);
        let device = Device::open(file.path(), &OpenOptions { direct, ..OpenOptions::overwrite() }).unwrap();
        for step in steps {
            match step {
                Step::Read { offset, len } => {
                    let mut seen = vec![0xEE; len];
                    device.read_at(offset as u64, &mut seen).unwrap();
                    let existing = len.min(size - offset);
                    prop_assert_eq!(&seen[..existing], &model[offset..offset + existing]);
                    prop_assert!(seen[existing..].iter().all(|b| *b == 0));
                }
                Step::Write { offset, len, seed } => {
                    let bytes = pattern(len, seed);
                    device.write_at(offset as u64, &bytes).unwrap();
                    model[offset..offset + len].copy_from_slice(&bytes);
                }
                Step::Zero { offset, len } => {
                    device.write_zeroes(Extent { offset: offset as u64, len: len as u64 }).unwrap();
                    model[offset..offset + len].fill(0);
                }
            }
        }
        device.flush().unwrap();
        prop_assert!(fs::read(file.path()).unwrap() == model);
    }
}

#[test]
fn writes_to_parts_of_one_block_all_last() {
    let (file, mut model) = patterned_file(8192);
    let device = open(file.path());
    std::thread::scope(|scope| {
        for part in 0..64usize {
            let device = &device;
            scope.spawn(move || {
                device
                    .write_at(part as u64 * 128, &[u8::try_from(part).unwrap(); 128])
                    .unwrap()
            });
        }
    });
    model
        .iter_mut()
        .enumerate()
        .for_each(|(i, byte)| *byte = u8::try_from(i / 128).unwrap());
    assert_eq!(fs::read(file.path()).unwrap(), model);
}

#[test]
fn writes_past_the_end_and_without_leave_are_refused() {
    let (file, bytes) = patterned_file(MIB);
    let device = open(file.path());
    assert_eq!(
        device.write_at(MIB as u64 - 1, &[1, 2]).unwrap_err().kind,
        Kind::OutOfRange
    );
    assert_eq!(device.write_at(u64::MAX, &[1, 2]).unwrap_err().kind, Kind::OutOfRange);
    assert_eq!(
        device.read_at(u64::MAX, &mut [1, 2]).unwrap_err().kind,
        Kind::OutOfRange
    );
    drop(device);
    let device = Device::open(file.path(), &OpenOptions::read()).unwrap();
    assert!(matches!(
        device.write_at(0, &[1]).unwrap_err().kind,
        Kind::InvalidInput(_)
    ));
    assert_eq!(fs::read(file.path()).unwrap(), bytes);
}

#[test]
fn a_file_that_shrank_is_an_error_and_never_zeros() {
    let (file, _) = patterned_file(3 * MIB + 100);
    let device = open(file.path());
    let was = 3 * MIB as u64 + 100;
    file.as_file().set_len(MIB as u64 + 10).unwrap();
    let shrunk = Kind::Shrunk {
        was,
        is: MIB as u64 + 10,
    };
    assert_eq!(device.check_not_shrunk().unwrap_err().kind, shrunk);
    let mut buf = vec![0; MIB];
    for offset in [MIB, 2 * MIB, 3 * MIB, MIB - 4096, MIB + 5] {
        assert_eq!(
            device.read_at(offset as u64, &mut buf).unwrap_err().kind,
            shrunk,
            "at {offset}"
        );
    }
    device.read_at(0, &mut buf).unwrap();
    file.as_file().set_len(4 * MIB as u64).unwrap();
    device.check_not_shrunk().unwrap();
    assert_eq!(device.current_size().unwrap(), 4 * MIB as u64);
}

#[test]
fn holes_of_a_file_are_known() {
    let file = scratch_file();
    file.as_file().set_len(10 * MIB as u64 + 5).unwrap();
    let device = open(file.path());
    let mib = MIB as u64;
    device.write_at(mib + 5000, &[1; 10]).unwrap();
    device.write_at(2 * mib, &[1; 10]).unwrap();
    device.write_at(7 * mib, &vec![1; MIB]).unwrap();
    device.write_at(10 * mib, &[1; 5]).unwrap();
    let all = device.allocated_extents(device.geometry().extent()).unwrap();
    let extent = |offset, len| Extent { offset, len };
    assert_eq!(all, [extent(mib, 2 * mib), extent(7 * mib, mib), extent(10 * mib, 5)]);
    let part = device.allocated_extents(extent(mib + 512, mib)).unwrap();
    assert_eq!(part, [extent(mib + 512, mib)], "only within the range");
    let mut kinds = Vec::new();
    device.extents(extent(0, 11 * mib), &mut kinds).unwrap();
    let expect = [
        (extent(0, mib), ExtentKind::Hole),
        (extent(mib, 2 * mib), ExtentKind::Data),
        (extent(3 * mib, 4 * mib), ExtentKind::Hole),
        (extent(7 * mib, mib), ExtentKind::Data),
        (extent(8 * mib, 2 * mib), ExtentKind::Hole),
        (extent(10 * mib, 5), ExtentKind::Data),
        (extent(10 * mib + 5, mib - 5), ExtentKind::Hole),
    ];
    assert_eq!(kinds, expect);
}

#[test]
fn creating_replaces_only_when_asked() {
    let dir = scratch_dir();
    let path = dir.path().join("volume");
    let device = Device::create_file(&path, 3 * MIB as u64 + 7, false).unwrap();
    assert_eq!(device.geometry().size, 3 * MIB as u64 + 7);
    device.write_at(0, &[1; 100]).unwrap();
    assert!(matches!(
        Device::create_file(&path, 10, false).unwrap_err().kind,
        Kind::InvalidInput(_)
    ));
    assert!(
        matches!(Device::create_file(&path, 10, true).unwrap_err().kind, Kind::Busy(_)),
        "it is open and locked"
    );
    assert_eq!(
        fs::metadata(&path).unwrap().len(),
        3 * MIB as u64 + 7,
        "a refusal leaves it as it is"
    );
    drop(device);
    let device = Device::create_file(&path, 10, true).unwrap();
    assert_eq!(fs::read(device.path()).unwrap(), [0; 10]);
    assert!(matches!(
        Device::create_file(dir.path(), 10, true).unwrap_err().kind,
        Kind::NotADevice(_)
    ));
}

#[test]
fn a_file_is_claimed_by_one_at_a_time() {
    let (file, _) = patterned_file(MIB);
    let device = open(file.path());
    assert!(matches!(refusal(file.path(), &OpenOptions::overwrite()), Kind::Busy(_)));
    let reader = Device::open(file.path(), &OpenOptions::read()).unwrap();
    assert_eq!(reader.id(), device.id());
    assert!(reader.shares_storage_with(&device));
    let (other, _) = patterned_file(MIB);
    assert!(!open(other.path()).shares_storage_with(&device));
    drop(device);
    open(file.path());
}

#[test]
fn a_loop_device_and_its_file_are_one_storage() {
    let (file, bytes) = patterned_file(4 * MIB);
    let Some(disk) = LoopDevice::over(file.path(), &[]) else {
        return;
    };
    assert!(
        matches!(refusal(file.path(), &OpenOptions::overwrite()), Kind::Busy(holder) if holder.starts_with("/dev/loop"))
    );
    let below = Device::open(file.path(), &OpenOptions::read()).unwrap();
    let device = open(disk.path());
    assert!(device.is_block_device() && device.is_direct());
    assert!(device.shares_storage_with(&below) && below.shares_storage_with(&device));
    assert_ne!(device.id(), below.id());
    assert_eq!(device.geometry().size, 4 * MIB as u64);
    let mut seen = vec![0; 4 * MIB];
    device.read_at(0, &mut seen).unwrap();
    assert_eq!(seen, bytes);
    let all = device.geometry().extent();
    assert_eq!(
        device.allocated_extents(all).unwrap(),
        [all],
        "a block device cannot say"
    );
}

#[test]
fn a_block_device_is_claimed_by_one_at_a_time() {
    let (file, _) = patterned_file(4 * MIB);
    let Some(disk) = LoopDevice::over(file.path(), &[]) else {
        return;
    };
    let device = open(disk.path());
    assert!(matches!(refusal(disk.path(), &OpenOptions::overwrite()), Kind::Busy(_)));
    Device::open(disk.path(), &OpenOptions::read()).unwrap();
    drop(device);
    open_when_free(disk.path());
}

#[test]
fn a_read_only_block_device_is_refused_for_writing() {
    let (file, _) = patterned_file(4 * MIB);
    let Some(disk) = LoopDevice::over(file.path(), &["--read-only"]) else {
        return;
    };
    assert_eq!(refusal(disk.path(), &OpenOptions::overwrite()), Kind::ReadOnly);
    Device::open(disk.path(), &OpenOptions::read()).unwrap();
}

#[test]
fn a_mounted_device_is_refused_and_so_is_its_disk() {
    let Some(mounted) = Mounted::ext4() else { return };
    let place = mounted.place().to_str().unwrap().to_owned();
    assert_eq!(
        refusal(mounted.disk(), &OpenOptions::overwrite()),
        Kind::Mounted(place.clone())
    );
    let reader = Device::open(mounted.disk(), &OpenOptions::read()).unwrap();
    assert_eq!(mounted_at(reader.id()), Some(place));
    drop(mounted);
    assert_eq!(mounted_at(reader.id()), None);
}

#[test]
fn a_partition_is_part_of_its_disk() {
    let file = scratch_file();
    file.as_file().set_len(64 * MIB as u64).unwrap();
    let table = "label: dos\nstart=2048, size=40960\nstart=43008, size=40960\n";
    let script = scratch_file();
    fs::write(script.path(), table).unwrap();
    let command = format!("sfdisk -q {} < {}", file.path().display(), script.path().display());
    if let Err(why) = run("sh", &["-c", &command]) {
        eprintln!("skipped, no partitions can be made here: {why}");
        return;
    }
    let Some(disk) = LoopDevice::over(file.path(), &["--partscan"]) else {
        return;
    };
    let part = |n: u32| PathBuf::from(format!("{}p{n}", disk.path().display()));
    if !part(2).exists() {
        eprintln!("skipped, partitions of loop devices do not show here");
        return;
    }
    let whole = Device::open(disk.path(), &OpenOptions::read()).unwrap();
    let (first, second) = (open(&part(1)), open(&part(2)));
    assert!(whole.shares_storage_with(&first) && second.shares_storage_with(&whole));
    assert!(!first.shares_storage_with(&second));
    assert!(
        matches!(refusal(disk.path(), &OpenOptions::overwrite()), Kind::Busy(_)),
        "a partition is claimed"
    );
    drop(first);
    let name = part(1).to_str().unwrap().to_owned();
    run("mkfs.ext4", &["-q", &name]).unwrap();
    let place = scratch_dir();
    run("mount", &[&name, place.path().to_str().unwrap()]).unwrap();
    let refused = refusal(disk.path(), &OpenOptions::overwrite());
    run("umount", &[place.path().to_str().unwrap()]).unwrap();
    assert_eq!(refused, Kind::Mounted(place.path().to_str().unwrap().to_owned()));
}

#[test]
fn the_unreachable_end_of_a_device_is_an_error_and_never_zeros() {
    // Linux itself cannot read the last half block of such a device, direct or buffered.
    let (file, bytes) = patterned_file(5 * MIB + 512);
    let Some(disk) = LoopDevice::over(file.path(), &["--sector-size", "4096"]) else {
        return;
    };
    let device = open(disk.path());
    assert_eq!(device.geometry().size, 5 * MIB as u64 + 512);
    let mut seen = vec![9; 5 * MIB];
    device.read_at(0, &mut seen).unwrap();
    assert!(seen == bytes[..5 * MIB]);
    assert_eq!(
        device.read_at(5 * MIB as u64, &mut [0; 512]).unwrap_err().kind,
        Kind::Io
    );
    drop((device, disk));

    let disk = LoopDevice::over(file.path(), &["--sector-size", "512"]).unwrap();
    let device = open(disk.path());
    let mut seen = vec![9; 6 * MIB];
    device.read_at(0, &mut seen).unwrap();
    assert!(seen[..bytes.len()] == bytes && seen[bytes.len()..].iter().all(|b| *b == 0));
    device.write_at(bytes.len() as u64 - 3, &[1, 2, 3]).unwrap();
    device.sync().unwrap();
    assert_eq!(fs::read(file.path()).unwrap()[bytes.len() - 3..], [1, 2, 3]);
}

#[test]
fn planned_faults_strike_plain_calls() {
    let (file, bytes) = patterned_file(2 * MIB);
    let range = Extent {
        offset: MIB as u64,
        len: 1,
    };
    let eio = Outcome::Errno(5);
    let plan = FaultPlan::new()
        .with(Fault {
            op: Op::Read,
            range,
            skip: 0,
            count: 1,
            outcome: eio,
        })
        .with(Fault {
            op: Op::Read,
            range,
            skip: 1,
            count: 1,
            outcome: Outcome::Short(5000),
        })
        .with(Fault {
            op: Op::Write,
            range,
            skip: 0,
            count: 1,
            outcome: Outcome::Stuck,
        })
        .with(Fault {
            op: Op::Sync,
            range,
            skip: 0,
            count: 1,
            outcome: Outcome::Errno(28),
        });
    let device = open(file.path()).with_faults(Some(plan.clone()));
    let mut seen = vec![0; 2 * MIB];
    device.read_at(0, &mut seen[..MIB]).unwrap();
    assert_eq!(plan.hits(), 0);
    let error = device.read_at(0, &mut seen).unwrap_err();
    assert_eq!(
        (error.kind, error.op, error.extent),
        (Kind::Io, Op::Read, Some(device.geometry().extent()))
    );
    device.read_at(0, &mut seen).unwrap();
    assert!(seen == bytes, "short calls are resumed");
    assert_eq!(device.write_at(MIB as u64, &[1]).unwrap_err().kind, Kind::Stuck(0));
    assert_eq!(device.sync().unwrap_err().kind, Kind::NoSpace);
    device.sync().unwrap();
    assert_eq!(plan.hits(), 4);
}
