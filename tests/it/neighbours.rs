//! Days beside another client: rounds in which we write, kopia writes, snapshots go, and maintenance runs between and meanwhile.
//!
//! After each round both find everything whole; at the end both restore every snapshot that is left, byte for byte, and kopia's
//! looks into the repository take what they see.

mod state;

use std::fs;
use std::process::{Child, Stdio};

use blockferry_tests::volume::{Layout, Random, Volume};
pub(crate) use state::kopia_accepts;

use serde_json::Value;

use crate::kopia_compat::judge::{MIB, Shared, Taken, kopia_is_here, our_source};

/// Rounds in CI, and the number of the acceptance.
const ROUNDS: (u64, u64) = (3, 20);

/// Size of the volume we back up again and again: some packs, and not on the grid.
const VOLUME: u64 = 40 * MIB + 512;

/// Rate of the backup that kopia maintains beside: over a second for what changes in a round.
const RATE: &str = "16MiB";

/// Blocks of our volume that change from round to round.
const CHANGES: usize = 12;

/// Who maintains.
const OWNER: &str = "tester@testhost";

/// Snapshots that are kept at least, so that something is left to be wrong.
const KEEP: usize = 4;

#[test]
fn rounds_of_writing_deleting_and_maintaining_lose_nothing() {
    if !kopia_is_here() {
        return;
    }
    rounds(&Shared::by_kopia(&[]), blockferry_tests::rounds(ROUNDS.0, ROUNDS.1));
}

#[test]
fn rounds_of_the_same_in_a_repository_of_ours() {
    if !kopia_is_here() {
        return;
    }
    rounds(&Shared::by_us(&[]), blockferry_tests::rounds(1, ROUNDS.1));
}

/// As many rounds as told, and the judgement at their end.
pub(crate) fn rounds(shared: &Shared, rounds: u64) {
    shared.kopia.run(["maintenance", "set", "--owner=me"]).unwrap();
    let mut random = Random::new(rounds);
    let volume = Volume::create(&Layout::mixed(1, VOLUME)).unwrap();
    let tree = shared.file("tree");
    let mut left: Vec<Taken> = Vec::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}, {} snapshots", left.len());
        volume.change_blocks(round, CHANGES).unwrap();
        grow(&tree, round);
        left.push(beside_maintenance(shared, &volume, round));
        left.push(shared.we_take("other", Layout::mixed(100 + round, 5 * MIB + 7).bytes(), &[]));
        left.push(shared.kopia_takes_file(&Layout::mixed(200 + round, 3 * MIB + 1)));
        left.push(shared.kopia_takes_tree(&tree));
        if left.len() > KEEP {
            let victim = left.remove(at(&mut random, left.len()));
            delete(shared, &victim, round);
            // One of the two that stand in the way of an earlier one: what they share must stay.
            let victim = left.remove(at(&mut random, left.len()));
            delete(shared, &victim, round + 1);
        }
        // Without any margin: nobody is writing.
        maintain(shared, round, "none");
        shared.both_verify(&left);
        kopia_accepts(shared, &left);
    }
    shared.both_restore(&left);
}

/// We back the volume up while maintenance runs with all its safety margins, again and again until we are done; in turn by kopia
/// and by another process of ours.
fn beside_maintenance(shared: &Shared, volume: &Volume, turn: u64) -> Taken {
    let (path, source) = (volume.path().display().to_string(), our_source("changing"));
    let args = ["backup", &path, "--as", &source, "--limit", RATE, "--json"];
    let mut backup = shared.ours.command(args).stdout(Stdio::piped()).spawn().unwrap();
    loop {
        maintain(shared, turn, "full");
        if backup.try_wait().unwrap().is_some() {
            break;
        }
    }
    Taken::ours(&document(backup), volume.bytes().unwrap())
}

fn document(backup: Child) -> Value {
    let output = backup.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}: {text}", output.status);
    serde_json::from_str(&text).unwrap()
}

/// In turn by each of the two, whoever took it.
fn delete(shared: &Shared, victim: &Taken, turn: u64) {
    if turn.is_multiple_of(2) {
        shared.ours.run(["delete", &victim.id]).unwrap();
    } else {
        shared.kopia.snapshot_delete(&victim.id).unwrap();
    }
}

/// Everything that maintenance does, in turn by each of the two, who go by the same name: there is one owner.
fn maintain(shared: &Shared, turn: u64, safety: &str) {
    let safety = format!("--safety={safety}");
    let fixed = ["maintenance", "run", "--full", &safety];
    if turn.is_multiple_of(2) {
        let report = shared.ours.run_json(fixed.iter().chain(&["--as", OWNER])).unwrap();
        assert!(report["tasks"].is_array(), "{report}");
    } else {
        shared.kopia.run(fixed).unwrap();
    }
}

/// A folder that gets a file more each round, and has another changed.
fn grow(tree: &std::path::Path, round: u64) {
    let folder = tree.join(format!("folder-{}", round % 3));
    fs::create_dir_all(&folder).unwrap();
    fs::write(
        folder.join(format!("file-{round}")),
        Layout::mixed(300 + round, MIB / 4).bytes(),
    )
    .unwrap();
    fs::write(tree.join("changing"), format!("round {round}\n").repeat(1000)).unwrap();
}

fn at(random: &mut Random, len: usize) -> usize {
    usize::try_from(random.below(len as u64)).expect("64-bit machine")
}
