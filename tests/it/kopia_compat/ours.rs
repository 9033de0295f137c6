//! We write, kopia reads: what is there, what it rebuilds from the packs alone, and what its maintenance leaves.

use blockferry_tests::volume::Layout;

use super::judge::{MIB, Shared, Taken, kopia_is_here};

/// Compression and size of each backup. Sizes off every grid, below a chunk, and of several packs.
const BACKUPS: [(&str, u64); 12] = [
    ("none", 1),
    ("auto", MIB - 1),
    ("zstd-fastest", 5 * MIB + 512),
    ("gzip", 3 * MIB + 777),
    ("none", 40 * MIB),
    ("auto", 24 * MIB + 4096),
    ("none", 2 * MIB),
    ("gzip", 1),
    ("s2-default", 4 * MIB + 512),
    ("s2-better", 3 * MIB + 1),
    ("s2-parallel-8", MIB),
    ("pgzip", 2 * MIB + 5),
];

fn take(shared: &Shared, seed: u64, backups: &[(&str, u64)]) -> Vec<Taken> {
    let each = |(at, (compression, size)): (usize, &(&str, u64))| {
        let bytes = Layout::mixed(seed + at as u64, *size).bytes();
        shared.we_take(&format!("{compression}-{at}"), bytes, &["--compression", compression])
    };
    backups.iter().enumerate().map(each).collect()
}

/// Kopia looks at the repository as it is, at a copy with the index rebuilt, and at a copy after maintenance, which is
/// then rebuilt too. We read what maintenance left.
fn stands_trial(shared: &Shared, taken: &[Taken]) {
    shared.kopia_approves(taken);

    let rebuilt = shared.copy();
    rebuilt.kopia.index_recover().unwrap();
    rebuilt.kopia_approves(taken);

    let maintained = shared.copy();
    maintained.kopia_maintains();
    maintained.both_approve(taken);
    maintained.kopia.index_recover().unwrap();
    maintained.kopia_approves(taken);
}

#[test]
fn backups_with_every_compression_stand_trial() {
    if !kopia_is_here() {
        return;
    }
    let shared = Shared::by_us(&[]);
    let taken = take(&shared, 100, &BACKUPS);
    shared.we_describe(&taken);
    stands_trial(&shared, &taken);
}

#[test]
fn backups_in_a_fast_repository_stand_trial() {
    if !kopia_is_here() {
        return;
    }
    let shared = Shared::by_us(&["--fast"]);
    let status = shared.kopia.run_json(["repository", "status", "--json"]).unwrap();
    assert_eq!(status["contentFormat"]["hash"], "BLAKE3-256-128");
    let taken = take(&shared, 200, &BACKUPS[1..3]);
    stands_trial(&shared, &taken);
}

/// The same volume twice, the second time partly changed: contents are shared, and the second list is its own.
#[test]
fn a_second_backup_shares_contents_and_stands_trial() {
    if !kopia_is_here() {
        return;
    }
    let shared = Shared::by_us(&[]);
    let mut bytes = Layout::mixed(300, 12 * MIB + 100).bytes();
    let first = shared.we_take("volume", bytes.clone(), &[]);
    let changed = 4 << 20;
    bytes[changed..changed + 10].copy_from_slice(b"new bytes!");
    let packs = pack_bytes(&shared);
    let second = shared.we_take("volume", bytes, &[]);
    let grown = pack_bytes(&shared) - packs;
    assert!(grown < 2 * MIB, "{grown} bytes for one changed chunk");
    let taken = [first, second];
    shared.we_describe(&taken);
    stands_trial(&shared, &taken);
}

fn pack_bytes(shared: &Shared) -> u64 {
    repo::survey::Survey::of(&shared.library())
        .unwrap()
        .totals
        .values()
        .map(|(_, bytes)| bytes)
        .sum()
}
