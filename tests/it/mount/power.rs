//! The power of a machine goes while a disk is hydrated and written to: what was flushed is there, the rest is the snapshot's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use blockferry_tests::process::run;
use blockferry_tests::vm;
use blockferry_tests::volume::{Layout, Volume};

use super::in_kernel::{programs, script};
use crate::attach::example;
use crate::bad_input::support::{MIB, World};

/// Disks whose power goes.
const CUTS: (u64, u64) = (2, 20);

/// Bytes of the volume, three quarters of which are data.
const BYTES: u64 = 48 * MIB;

/// Bytes of the target behind it.
const BEHIND: u64 = 2 * MIB;

/// What is in the target before.
const OLD: u8 = 0xee;

/// When the power goes.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// In the middle of this flush.
    Flushing(u64),
    /// Between this flush and the next.
    Durable(u64),
    /// As soon as the volume is said to be complete.
    Complete,
}

impl Moment {
    fn is(self, line: &str) -> bool {
        match self {
            Moment::Flushing(batch) => number(line, "FLUSHING ") >= Some(batch),
            Moment::Durable(batch) => number(line, "DURABLE ") >= Some(batch),
            Moment::Complete => line == "COMPLETE",
        }
    }
}

/// The number in a line that begins with `word`.
fn number(line: &str, word: &str) -> Option<u64> {
    line.strip_prefix(word)?.parse().ok()
}

/// The largest of the numbers behind `word` in what a machine printed.
fn last(console: &str, word: &str) -> Option<u64> {
    console.lines().filter_map(|line| number(line, word)).max()
}

/// A machine with two disks: one with a repository and room for a state, and the target.
struct Disks {
    world: World,
    volume: Volume,
    images: [PathBuf; 2],
    programs: Vec<PathBuf>,
}

impl Disks {
    fn new() -> Self {
        let (world, volume) = (World::new(), Volume::create(&Layout::mixed(321, BYTES)).unwrap());
        world.ferry.backup(volume.path(), &[]).unwrap();
        fs::copy(volume.path(), world.path("volume")).unwrap();
        let place = tempfile::tempdir().unwrap();
        let disk = place.path().join("disk");
        File::create(&disk).unwrap().set_len(256 * MIB).unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-d"])
            .arg(world.path(""))
            .arg(&disk))
        .unwrap();
        fs::rename(&disk, world.path("disk")).unwrap();
        fs::write(
            world.path("target"),
            vec![OLD; usize::try_from(BYTES + BEHIND).unwrap()],
        )
        .unwrap();
        let mut programs = programs(&world.path(""), &[]);
        programs.push(example("exercise"));
        Self {
            images: ["disk", "target"].map(|name| image(&world.path(name))),
            world,
            volume,
            programs,
        }
    }

    /// Runs the machine until its power goes.
    fn boot(&self, settings: &str, is_enough: impl FnMut(&str) -> bool) -> String {
        let module = if settings.contains("KIND=nbd") {
            "nbd nbds_max=4"
        } else {
            "ublk_drv"
        };
        let machine = vm::Machine {
            modules: &["virtio_blk", module],
            programs: &self.programs,
            script: &script(&format!("PLACE=/mnt/disk {settings}"), include_str!("power.sh")),
            disks: &[&self.images[0], &self.images[1]],
            ..vm::Machine::default()
        };
        machine.run_until(is_enough).unwrap()
    }

    /// The target is the volume with `durable` batches flushed, and as it was behind it.
    fn check(&self, seed: u64, durable: u64) -> String {
        let copy = self.world.path("copy");
        run(Command::new("qemu-img")
            .args(["convert", "-O", "raw"])
            .args([&self.images[1], &copy]))
        .unwrap();
        let bytes = fs::read(&copy).unwrap();
        let (volume, behind) = bytes.split_at(usize::try_from(BYTES).unwrap());
        assert!(behind.len() as u64 == BEHIND && behind.iter().all(|byte| *byte == OLD));
        fs::write(&copy, volume).unwrap();
        let check = |durable: u64| {
            let mut check = Command::new(example("exercise"));
            check
                .arg("check")
                .arg(&copy)
                .args([seed, durable].map(|number| number.to_string()));
            run(check.arg(self.volume.path()))
        };
        // It would tell of flushes that were lost.
        assert!(check(durable + 1000).is_err());
        check(durable).unwrap()
    }
}

/// An image over the file `base`, which is written to in its place.
fn image(base: &Path) -> PathBuf {
    let image = base.with_extension("qcow2");
    let mut make = Command::new("qemu-img");
    make.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
    run(make.args([base, &image])).unwrap();
    image
}

fn cut(seed: u64, moment: Moment, is_away: bool) {
    if !vm::is_wanted() {
        return;
    }
    let disks = Disks::new();
    let kind = if seed.is_multiple_of(2) { "nbd" } else { "ublk" };
    let flag = |is: bool| if is { "yes" } else { "" };
    let is_told = matches!(moment, Moment::Complete);
    let is_adopted = seed % 4 >= 2;
    let settings = format!(
        "KIND={kind} SEED={seed} AWAY={} TOLD={} ADOPT={}",
        flag(is_away),
        flag(is_told),
        flag(is_adopted)
    );
    let console = disks.boot(&format!("{settings} DURABLE=0"), |line| moment.is(line));
    let durable = last(&console, "DURABLE ").unwrap();
    // Some go a second time before hydration ends, and all right after the end.
    let ends: &[&str] = if seed.is_multiple_of(3) {
        &["PRESENT", "WHOLE"]
    } else {
        &["WHOLE"]
    };
    let mut told = format!("{kind}: power cut at {moment:?}, {durable} batches flushed");
    for end in ends {
        let console = disks.boot(&format!("{settings} DURABLE={durable}"), |line| line.starts_with(end));
        let present = last(&console, "PRESENT ").unwrap();
        assert_eq!(present == BYTES, is_told, "{present} bytes were present\n{console}");
        assert!(present > 4 * MIB, "{present} bytes were present\n{console}");
        told += &format!(", taken up with {} KiB", present >> 10);
    }
    eprintln!("{told}: {}", disks.check(seed, durable).trim());
}

#[test]
fn a_volume_whose_power_goes_while_it_is_hydrated_is_whole_in_the_end() {
    for seed in 1..=blockferry_tests::rounds(CUTS.0, CUTS.1) {
        let moment = match seed % 4 {
            0 => Moment::Complete,
            1 => Moment::Flushing(17 * seed),
            _ => Moment::Durable(13 * seed),
        };
        cut(seed, moment, false);
    }
}

#[test]
fn a_volume_whose_power_goes_while_its_repository_is_away_is_whole_when_that_is_back() {
    cut(7, Moment::Flushing(40), true);
}
