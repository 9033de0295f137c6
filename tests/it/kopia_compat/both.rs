//! Both write into one repository, in turn and at the same time, and kopia maintains it.

use std::fs;
use std::io::Read;
use std::process::{Child, Stdio};

use blockferry_tests::volume::Layout;

use super::judge::{MIB, Shared, Taken, kopia_is_here, our_source};

const ROUNDS: u64 = 3;

/// Size and rate of the backup that kopia's writes fall into: some twenty chunks and more than a pack, for over a second,
/// while a snapshot by kopia takes a fraction of one.
const LONG: u64 = 24 * MIB + 1000;
const RATE: &str = "20MiB";

/// Most snapshots kopia takes during one of our backups; past it the backup is stuck.
const DURING_MAX: u64 = 100;

#[test]
fn both_write_in_turn_and_at_once_and_kopia_maintains() {
    if !kopia_is_here() {
        return;
    }
    let shared = Shared::by_kopia(&[]);
    let mut taken = Vec::new();
    for round in 0..ROUNDS {
        let layout = |seed| Layout::mixed(1000 * (round + 1) + seed, 3 * MIB + 512);
        taken.push(shared.kopia_takes_file(&layout(1)));
        taken.push(shared.we_take("in-turn", layout(2).bytes(), &[]));
        taken.push(shared.kopia_takes_stdin("in-turn", &layout(3)));
        at_once(&shared, round, &mut taken);
        shared.both_verify(&taken);
    }

    shared.kopia_maintains();
    shared.both_approve(&taken);

    // What maintenance rewrote is found and shared, and more can be written.
    let known = Layout::mixed(1002, 3 * MIB + 512).bytes();
    let after = [
        shared.we_take("after", known, &[]),
        shared.kopia_takes_file(&Layout::mixed(9001, MIB)),
    ];
    shared.both_restore(&after);
    shared.both_verify(&[taken, after.to_vec()].concat());
}

/// Kopia takes snapshots, and maintains with its usual margins in one round, from the start to the end of our backup.
fn at_once(shared: &Shared, round: u64, taken: &mut Vec<Taken>) {
    let bytes = Layout::mixed(7000 + round, LONG).bytes();
    let path = shared.file("at-once.img");
    fs::write(&path, &bytes).unwrap();
    let source = our_source("at-once");
    let args = [
        "backup",
        &path.display().to_string(),
        "--as",
        &source,
        "--limit",
        RATE,
        "--json",
    ];
    let mut child = shared.ours.command(args).stdout(Stdio::piped()).spawn().unwrap();
    for during in 0.. {
        assert!(during < DURING_MAX, "our backup does not end");
        if round == 1 && during == 0 {
            let maintain = ["maintenance", "run", "--full", "--safety=full"];
            shared.kopia.run(maintain).unwrap();
        }
        let layout = Layout::mixed(100_000 + 1000 * round + during, MIB + 7);
        taken.push(shared.kopia_takes_file(&layout));
        if child.try_wait().unwrap().is_some() {
            break;
        }
    }
    taken.push(Taken::ours(&document(child), bytes));
}

fn document(mut child: Child) -> serde_json::Value {
    let mut text = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut text).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}: {text}");
    serde_json::from_str(&text).unwrap()
}
