//! Volumes with tables of partitions: what is in them can be reached, and whoever asks for a file system is told how.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use blockferry_tests::process::{run, run_with_input};
use blockferry_tests::vm;
use blockferry_tests::volume::{BlockKind, Layout, Volume};

use super::in_kernel::{programs, script, tool};
use super::{Mounts, device, ext4};
use crate::bad_input::support::MIB;

/// A volume of 64 MiB with two partitions, the first of 40 MiB behind the first MiB with an ext4.
fn partitioned(label: &str) -> Volume {
    let volume = Volume::create(&Layout::uniform(0, 64 * MIB, BlockKind::Zero)).unwrap();
    let table = format!("label: {label}\nstart=2048, size=81920\n,\n");
    run_with_input(
        Command::new(tool("sfdisk")).arg("-q").arg(volume.path()),
        table.as_bytes(),
    )
    .unwrap();
    volume.write_at(MIB, &ext4(40).bytes().unwrap()).unwrap();
    volume
}

/// Partition `number` of a device, made by hand where the kernel knows no tables of partitions.
fn partition(device: &Path, number: u32) -> PathBuf {
    let path = PathBuf::from(format!("{}p{number}", device.display()));
    if !path.exists() {
        run(Command::new("partx").arg("-a").arg(device)).unwrap();
    }
    path
}

#[test]
fn a_partition_is_reached_and_one_who_asks_for_a_file_system_is_told_how() {
    for (label, called) in [("gpt", "(GPT)"), ("dos", "(MBR)")] {
        let mounts = Mounts::of(partitioned(label));
        let folder = mounts.world.path("fs");
        fs::create_dir(&folder).unwrap();
        let folder_text = folder.display().to_string();
        mounts.refuses(
            &["mount", "latest", "--attach", "fuse", "--fs", &folder_text],
            2,
            &["table of partitions", called, "without --fs", "DEVICEp1"],
        );
        mounts.assert_none();

        let mount = mounts.mount(&[]);
        let (first, second) = (partition(&device(&mount), 1), partition(&device(&mount), 2));
        let mut read = vec![0; usize::try_from(40 * MIB).unwrap()];
        fs::File::open(&first).unwrap().read_exact_at(&mut read, 0).unwrap();
        assert!(read[..] == mounts.volume.bytes().unwrap()[usize::try_from(MIB).unwrap()..][..read.len()]);
        run(Command::new("mount").args(["-o", "ro,noload"]).arg(&first).arg(&folder)).unwrap();
        let before = fs::read_to_string(folder.join("first"));
        // Who uses a partition uses the device.
        let ended = mounts.ended(&["unmount", mount["id"].as_str().unwrap()]);
        run(Command::new("umount").arg(&folder)).unwrap();
        assert_eq!(before.unwrap(), "before\n");
        crate::bad_input::support::assert_failed(&ended, 1, &["in use by", &folder_text]);
        mounts.ok(&["unmount", mount["id"].as_str().unwrap()]);
        mounts.assert_none();
        assert!(
            !first.exists() && !second.exists(),
            "partitions stay behind their device"
        );
    }
}

#[test]
fn the_kernel_shows_partitions_of_every_kind_of_device() {
    if !vm::is_wanted() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let machine = vm::Machine {
        modules: &["loop", "nbd nbds_max=4", "ublk_drv"],
        programs: &programs(dir.path(), &["mkfs.ext4", "sfdisk"]),
        script: &script("PLACE=/tmp", include_str!("partitions.sh")),
        seconds: 600,
        ..vm::Machine::default()
    };
    let console = machine.run().unwrap();
    assert_eq!(console.matches("CASE ").count(), 6, "{console}");
}
