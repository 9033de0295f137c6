//! A chain of increments with random sizes, changes, resizes, crashes and resumes, each compared with a reference copy by both
//! clients.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use blockferry_tests::kopia::Kopia;
use blockferry_tests::volume::{BlockKind, Layout, Random};
use repo::blob::FsStore;
use serde_json::{Value, json};

use crate::bad_input::support::names;
use crate::kopia_compat::judge::{MIB, PASSWORD, Shared, Taken, kopia_is_here, our_source};

/// Increments in CI, and of a soak.
const ROUNDS: (u64, u64) = (30, 100);

/// Largest volume, in bytes, but for rounds that are interrupted: several packs' worth over the chain.
const SIZE_MAX: u64 = 24 * MIB;

/// Bytes of new data in a round that is interrupted: four full packs of the chain's, of 10 MiB each, and some.
const FRESH: u64 = 48 * MIB;

/// Bytes a second of a backup that is to be interrupted, so that there is time for it.
const SLOW: &str = "24MiB";

/// How a round goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    /// To its end.
    Smooth,
    /// Interrupted by a signal, and done again; with the source written in between, or as it was.
    Interrupted { signal: &'static str, is_written: bool },
}

impl Course {
    /// Every fourth round is interrupted, in each way in turn.
    fn of(round: u64) -> Self {
        let signal = if round % 8 == 2 { "KILL" } else { "INT" };
        match round % 4 {
            2 => Self::Interrupted {
                signal,
                is_written: round % 16 >= 8,
            },
            _ => Self::Smooth,
        }
    }
}

/// A volume that changes, and what is known of its changes.
struct Changing {
    path: PathBuf,
    random: Random,
    size: u64,
    /// Bytes of each change since the last snapshot.
    changed: Vec<(u64, u64)>,
}

impl Changing {
    fn new(path: PathBuf, seed: u64) -> Self {
        let bytes = Layout::mixed(seed, 9 * MIB + 513).bytes();
        fs::write(&path, &bytes).unwrap();
        Self {
            path,
            random: Random::new(seed),
            size: bytes.len() as u64,
            changed: Vec::new(),
        }
    }

    /// Resizes now and then, aligned or not, and writes a few extents of any size; zeros among them.
    fn change(&mut self) {
        let file = OpenOptions::new().write(true).open(&self.path).unwrap();
        if self.size > SIZE_MAX || self.random.below(3) == 0 {
            let unit = [1, 512, 4096, MIB][self.below(4)];
            self.size = (1 + self.random.below(SIZE_MAX)).div_ceil(unit) * unit;
            file.set_len(self.size).unwrap();
        }
        let size = self.size;
        self.changed.retain(|(offset, _)| *offset < size);
        for (offset, len) in &mut self.changed {
            *len = (*len).min(size - *offset);
        }
        for _ in 0..self.random.below(6) {
            let offset = self.random.below(size);
            let len = (1 + self.random.below(2 * MIB)).min(size - offset);
            let bytes = match self.random.below(4) {
                0 => vec![0; usize::try_from(len).unwrap()],
                _ => {
                    let mut bytes = vec![0; usize::try_from(len).unwrap()];
                    bytes
                        .iter_mut()
                        .for_each(|byte| *byte = u8::try_from(self.random.below(256)).unwrap());
                    bytes
                }
            };
            file.write_all_at(&bytes, offset).unwrap();
            self.changed.push((offset, len));
        }
    }

    /// Brings a good deal of data that no snapshot has.
    fn refresh(&mut self) {
        let bytes = Layout::uniform(self.random.next_u64(), FRESH, BlockKind::Random).bytes();
        self.size = self.size.max(FRESH);
        let offset = self.random.below(self.size - FRESH + 1);
        self.write(offset, &bytes);
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(&self.path).unwrap();
        file.set_len(self.size).unwrap();
        file.write_all_at(bytes, offset).unwrap();
        self.changed.push((offset, bytes.len() as u64));
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.random.below(end as u64)).unwrap()
    }

    /// The list of changes since the last snapshot, over-reporting now and then, as a file. What a resize added need not be in it.
    fn list(&mut self, path: &Path) {
        let mut extents = self.changed.clone();
        if self.random.below(4) == 0 {
            let offset = self.random.below(self.size);
            extents.push((offset, self.size - offset));
        }
        extents.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (offset, len) in extents {
            match merged.last_mut() {
                Some((start, have)) if *start + *have >= offset => *have = (*have).max(offset + len - *start),
                _ => merged.push((offset, len)),
            }
        }
        let changed: Vec<Value> = merged
            .iter()
            .map(|(offset, len)| json!({"offset": offset, "length": len}))
            .collect();
        let list = json!({"volumeSize": self.size, "changed": changed});
        fs::write(path, list.to_string()).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }
}

#[test]
fn rounds_of_increments_equal_their_reference_copies() {
    if !kopia_is_here() {
        return;
    }
    let shared = Shared::by_us(&[]);
    shared.kopia.run(["maintenance", "set", "--owner=me"]).unwrap();
    let small_packs = ["repository", "set-parameters", "--max-pack-size-mb=10"];
    shared.kopia.run(small_packs).unwrap();
    let mut volume = Changing::new(shared.file("volume"), 41);
    let list = shared.file("list");
    let list_path = list.display().to_string();
    let source = our_source("chained");
    let mut taken: Vec<Taken> = Vec::new();
    let mut rungs = Vec::new();
    for round in 0..blockferry_tests::rounds(ROUNDS.0, ROUNDS.1) {
        volume.change();
        let mut args = vec!["--as", &source];
        if round > 0 && !round.is_multiple_of(5) {
            args.extend(["--changed", &list_path, "--require", "delta"]);
        }
        let course = Course::of(round);
        if let Course::Interrupted { signal, is_written } = course {
            volume.refresh();
            volume.list(&list);
            interrupt_round(&shared, &mut volume, &args, signal);
            if is_written {
                let offset = volume.random.below(volume.size);
                volume.write(offset, b"!");
            }
        }
        volume.list(&list);
        let document = shared
            .ours
            .backup(&volume.path, &[&args[..], &["--workers", "2"]].concat())
            .unwrap();
        volume.changed.clear();
        check_resumed(course, &document);
        assert_eq!(document["auditMismatches"], 0, "{document}");
        rungs.push(document["rung"].as_str().unwrap().to_owned());
        taken.push(Taken::ours(&document, volume.bytes()));
        shared.kopia.verify_full().unwrap();
        if round % 10 == 4 {
            shared
                .kopia
                .run(["maintenance", "run", "--full", "--safety=full"])
                .unwrap();
        }
        if round % 10 == 9 {
            let copy = shared.copy();
            copy.kopia.run(["maintenance", "set", "--owner=me"]).unwrap();
            copy.kopia.maintenance_full_unsafe().unwrap();
            copy.both_verify(&taken);
        }
    }
    assert!(
        rungs.iter().any(|rung| rung == "delta") && rungs.iter().any(|rung| rung == "hash-compare"),
        "{rungs:?}"
    );
    shared.both_verify(&taken);
    shared.both_restore(&taken);
}

/// Begins the backup of a round and ends it by `signal` when a random number of packs have appeared.
fn interrupt_round(shared: &Shared, volume: &mut Changing, args: &[&str], signal: &str) {
    let store = FsStore::open(&shared.repo).unwrap();
    let packs = || names(&store, "p").len();
    // A pack appears before it is noted down. When the second does, the first has been.
    let least = if signal == "KILL" { 2 } else { 1 };
    let moment = packs() + least.max(1 + volume.below(2));
    let path = volume.path.display().to_string();
    // One worker has half of the new data on its way at most.
    let slowly = ["--compression", "none", "--limit", SLOW, "--workers", "1"];
    let command = shared.ours.command(["backup", &path].iter().chain(args).chain(&slowly));
    let code = super::interrupt(command, signal, || packs() >= moment);
    assert_eq!(code, (signal == "INT").then_some(3));
}

/// What the document of a round says of the interruption before.
fn check_resumed(course: Course, document: &Value) {
    let (resumed, refused) = (&document["bytesResumed"], document["resumeRefused"].as_str());
    match course {
        Course::Smooth => assert_eq!((resumed, refused), (&json!(0), None), "{document}"),
        Course::Interrupted { is_written: true, .. } => {
            assert_eq!(resumed, 0, "{document}");
            assert!(refused.is_some_and(|why| why.contains("it was written")), "{document}");
        }
        Course::Interrupted { is_written: false, .. } => {
            assert_eq!(refused, None, "{document}");
            assert!(resumed.as_u64() > Some(0), "{document}");
        }
    }
}

/// Kopia itself lays the first list of the chain: pieces of 1 MiB, named by its own code.
#[test]
fn a_chain_begun_by_kopia_continues() {
    if !kopia_is_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    fs::create_dir(&repo).unwrap();
    let kopia = Kopia::new(&repo, PASSWORD).unwrap();
    kopia.create(&["--object-splitter=FIXED-1M"]).unwrap();
    let ours = blockferry_tests::blockferry::Blockferry::new(&repo, PASSWORD).unwrap();
    let path = folder.path().join("volume");
    for (size, rung) in [(7 * MIB, "delta"), (7 * MIB + 512, "full")] {
        fs::write(&path, Layout::mixed(42, size).bytes()).unwrap();
        let manifest = kopia.snapshot_create(&path, &[]).unwrap();
        let parent = manifest["id"].as_str().unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[7; 1000], 3 * MIB).unwrap();
        let list = folder.path().join("list");
        let extent = json!({"offset": 3 * MIB, "length": 1000});
        fs::write(&list, json!({"volumeSize": size, "changed": [extent]}).to_string()).unwrap();
        let list = list.display().to_string();
        let document = ours.backup(&path, &["--parent", parent, "--changed", &list]).unwrap();
        // A short last piece cannot be continued on the grid of block images; that is said, and everything is read.
        assert_eq!(document["rung"], rung, "{document}");
        assert_eq!(
            document["parentId"].as_str(),
            (rung == "delta").then_some(parent),
            "{document}"
        );
        let target = folder.path().join("target");
        let id = document["snapshotId"].as_str().unwrap();
        ours.restore(id, &target, &["--force", "--verify"]).unwrap();
        assert!(fs::read(&target).unwrap() == fs::read(&path).unwrap());
        kopia.verify_full().unwrap();
    }
}
