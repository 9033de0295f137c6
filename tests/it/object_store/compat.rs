//! In a bucket as in a folder: either creates, both write, both read, kopia maintains and rebuilds.

use blockferry_tests::bucket::Bucket;
use blockferry_tests::garage::{BUCKET, Garage};
use blockferry_tests::volume::Layout;

use super::servers_are_here;
use crate::kopia_compat::judge::{MIB, Shared, Taken};
use crate::neighbours;

/// Both write, in turn and about the same, with and without compression.
fn both_take(shared: &Shared) -> Vec<Taken> {
    let volume = |seed| Layout::mixed(seed, 24 * MIB + 4096);
    let mut taken = vec![
        shared.we_take("first", volume(1).bytes(), &["--compression", "none"]),
        shared.kopia_takes_file(&volume(2)),
        shared.kopia_takes_stdin("piped", &Layout::mixed(3, MIB - 1)),
        shared.we_take("small", Layout::mixed(4, 1).bytes(), &["--compression", "zstd-fastest"]),
    ];
    // Mostly known: contents are shared.
    let mut bytes = volume(1).bytes();
    bytes[5_000_000..5_000_100].fill(7);
    taken.push(shared.we_take("first", bytes, &[]));
    taken
}

/// Both read everything; so they do after maintenance, and kopia after it made the index anew from the packs.
fn stands_trial(shared: &Shared, mut taken: Vec<Taken>) {
    shared.both_approve(&taken);
    let ours = taken.remove(0);
    let theirs = taken.remove(0);
    shared.kopia.snapshot_delete(&ours.id).unwrap();
    shared.ours.run(["delete", &theirs.id]).unwrap();
    shared.kopia_maintains();
    shared.both_approve(&taken);
    neighbours::kopia_accepts(shared, &taken);
    shared.kopia.index_recover().unwrap();
    shared.kopia_approves(&taken);
}

#[test]
fn a_repository_of_ours_in_a_bucket_stands_trial() {
    if !servers_are_here() {
        return;
    }
    let (_garage, _, shared) = super::started();
    let taken = both_take(&shared);
    stands_trial(&shared, taken);
}

#[test]
fn a_repository_of_kopia_in_a_bucket_stands_trial() {
    if !servers_are_here() {
        return;
    }
    let garage = Garage::start().unwrap();
    let shared = Shared::in_bucket(&Bucket::of(&garage, "kopia/"));
    shared.kopia_creates(&[]);
    let before = garage.bucket_totals(BUCKET).unwrap();
    let taken = [shared.kopia_takes_file(&Layout::mixed(8, 5 * MIB + 512))];
    assert!(garage.bucket_totals(BUCKET).unwrap() > before);
    shared.we_approve(&taken);
    let taken = [taken.to_vec(), both_take(&shared)].concat();
    stands_trial(&shared, taken);
}

#[test]
fn rounds_of_writing_and_maintaining_in_a_bucket_lose_nothing() {
    if !servers_are_here() {
        return;
    }
    let (_garage, _, shared) = super::started();
    neighbours::rounds(&shared, blockferry_tests::rounds(1, 20));
}
