//! Three nodes with three copies: one dies in the middle, and comes back.

use std::process::{Child, Stdio};
use std::time::Duration;

use blockferry_tests::bucket::Bucket;
use blockferry_tests::garage::{BUCKET, Garage};
use blockferry_tests::volume::{Layout, Volume};
use blockferry_tests::wait::wait_for;
use serde_json::Value;

use super::servers_are_here;
use crate::kopia_compat::judge::{MIB, Shared, Taken, our_source};

/// Five packs, at a rate that leaves seconds to kill somebody in.
const VOLUME: u64 = 128 * MIB;
const RATE: &str = "24MiB";

const DEADLINE: Duration = Duration::from_secs(120);

/// Starts a backup, and returns when the bucket has grown by some packs.
fn backup_in_its_middle(garage: &Garage, shared: &Shared, volume: &Volume) -> Child {
    let (_, before) = garage.bucket_totals(BUCKET).unwrap();
    let path = volume.path().display().to_string();
    let source = our_source("volume");
    let args = [
        "backup",
        &path,
        "--as",
        &source,
        "--limit",
        RATE,
        "--compression",
        "none",
        "--json",
    ];
    let mut command = shared.ours.command(args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the first pack", DEADLINE, || {
        assert_eq!(child.try_wait().unwrap(), None, "the backup ended early");
        garage.bucket_totals(BUCKET).unwrap().1 > before + 10 * MIB
    })
    .unwrap();
    child
}

fn ended_well(child: Child) -> Value {
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_node_that_dies_in_the_middle_of_a_backup_is_not_missed() {
    if !servers_are_here() {
        return;
    }
    let mut garage = Garage::start_three().unwrap();
    let shared = Shared::in_bucket(&Bucket::of(&garage, "three/"));
    shared.we_create(&[]);
    let volume = Volume::create(&Layout::mixed(31, VOLUME)).unwrap();

    // A node we do not talk to.
    let child = backup_in_its_middle(&garage, &shared, &volume);
    garage.kill(2);
    let mut taken = vec![Taken::ours(&ended_well(child), volume.bytes().unwrap())];
    shared.both_approve(&taken);

    // The one we talk to: its requests fail until it is back.
    garage.restart(2).unwrap();
    volume.change_blocks(1, 60).unwrap();
    let child = backup_in_its_middle(&garage, &shared, &volume);
    garage.kill(0);
    garage.restart(0).unwrap();
    taken.push(Taken::ours(&ended_well(child), volume.bytes().unwrap()));
    shared.both_approve(&taken);
}
