//! The power of a machine goes while it writes to an overlay through a device of its kernel: what was flushed is there.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use blockferry_tests::{process, vm};
use blockio::BlockSource;
use nbd::attach::Kind;
use nbd::{MemSource, Overlay};

use super::survivor::program;
use super::{example, run};

/// Machines whose power goes.
const CUTS: (u64, u64) = (3, 20);

/// Bytes of the overlay's volume: as the example `attach` has them.
const BYTES: u64 = 32 << 20;

/// A disk with an empty file system for the overlay.
fn disk(folder: &Path) -> std::path::PathBuf {
    let disk = folder.join("disk");
    File::create(&disk).unwrap().set_len(256 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", &disk.display().to_string()]);
    disk
}

/// What is in the volume of the overlay on `disk`, as a file.
fn content(disk: &Path, folder: &Path) -> std::path::PathBuf {
    let (point, copy) = (folder.join("mounted"), folder.join("copy"));
    fs::create_dir(&point).unwrap();
    // The file system replays its own journal, as it would in the machine.
    run(
        "mount",
        &["-o", "loop", &disk.display().to_string(), &point.display().to_string()],
    );
    let opened = Overlay::open(&point.join("overlay"), Arc::new(MemSource::new(BYTES)), "zeros");
    let read = opened.map_err(|error| error.to_string()).and_then(|overlay| {
        let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
        overlay.read_at(0, &mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    });
    run("umount", &[&point.display().to_string()]);
    File::create(&copy).unwrap().write_all_at(&read.unwrap(), 0).unwrap();
    copy
}

#[test]
fn what_was_flushed_survives_the_power() {
    if !vm::is_wanted() {
        return;
    }
    let programs = [example("attach"), example("exercise"), program("blockdev")];
    for seed in 1..=blockferry_tests::rounds(CUTS.0, CUTS.1) {
        let (kind, device, module) = if seed % 2 == 0 {
            (Kind::Nbd, "/dev/nbd0", "nbd nbds_max=2")
        } else {
            (Kind::Ublk, "/dev/ublkb0", "ublk_drv")
        };
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(folder.path());
        let script = format!("KIND={kind} DEV={device} SEED={seed}\n") + include_str!("power.sh");
        let machine = vm::Machine {
            modules: &["virtio_blk", module],
            programs: &programs,
            script: &script,
            disks: &[&disk],
            ..vm::Machine::default()
        };
        // In the middle of a flush now, between two another time.
        let (word, batch) = if seed % 3 == 0 {
            ("DURABLE", 11 * seed)
        } else {
            ("FLUSHING", 17 * seed)
        };
        let console = machine.run_until(|line| line == format!("{word} {batch}")).unwrap();
        let durable = console.lines().filter_map(|line| line.strip_prefix("DURABLE "));
        let durable = durable.filter_map(|number| number.parse::<u64>().ok()).max().unwrap();
        assert!(durable + 1 >= batch, "{console}");
        let copy = content(&disk, folder.path());
        let mut check = Command::new(example("exercise"));
        check
            .arg("check")
            .arg(&copy)
            .args([seed.to_string(), durable.to_string()]);
        let said = process::run(&mut check).unwrap();
        eprintln!("{kind}: power cut at {word} {batch}: {}", said.trim());
        if seed == 1 {
            // The check tells one that lost a flush: as if many more had been durable.
            let mut wrong = Command::new(example("exercise"));
            wrong
                .arg("check")
                .arg(&copy)
                .args([seed.to_string(), (durable + 1000).to_string()]);
            assert!(process::run(&mut wrong).is_err());
        }
    }
}
