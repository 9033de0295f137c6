//! Repositories of the first format version: index blobs without epochs, packs that begin with the parameters, objects that
//! are compressed as a whole.

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::golden::Golden;
use blockferry_tests::volume::{BlockKind, Layout, Volume};
use repo::pack;

use super::open;

#[test]
fn pieces_of_version_1_are_compressed_one_by_one() {
    let golden = Golden::load("version-1").unwrap();
    let repository = open(&golden.repo, &golden.expected.password);
    assert_eq!(
        (repository.format().version, repository.format().has_epochs),
        (1, false)
    );
    let mut kinds = Vec::new();
    for snapshot in repository.snapshots().unwrap() {
        let image = repository.image(&snapshot).unwrap();
        let compressed = image.table.iter().filter(|piece| piece.compressed).count();
        assert_eq!(image.table.has_compressed(), compressed > 0);
        kinds.push((image.table.count(), compressed));
    }
    // zstd, s2, gzip (one piece without a list), plain, standard input.
    assert_eq!(kinds, [(3, 3), (2, 2), (1, 1), (2, 0), (1, 0)]);
}

#[test]
fn replaced_index_blobs_of_version_1_are_not_in_force() {
    let golden = Golden::load("version-1").unwrap();
    let repository = open(&golden.repo, &golden.expected.password);
    let stored = repository.store().list("n").unwrap().len();
    let in_force = repository.epoch().blobs.len();
    assert!(in_force > 1 && in_force < stored, "{in_force} of {stored}");
}

/// The parameters at the front of the packs do not disturb what finds the local index from their end.
#[test]
fn packs_of_version_1_tell_of_their_contents() {
    for name in ["version-1", "upgraded"] {
        let golden = Golden::load(name).unwrap();
        let repository = open(&golden.repo, &golden.expected.password);
        let mut found = 0;
        for prefix in ["p", "q"] {
            for meta in repository.store().list(prefix).unwrap() {
                let bytes = repository.store().get(&meta.id).unwrap();
                for entry in pack::recover(repository.contents(), &meta.id, &bytes).unwrap() {
                    let known = repository.lookup(&entry.content).expect("indexed");
                    let facts = |e: &repo::index::IndexEntry| (e.offset, e.packed_len, e.original_len, e.compression);
                    assert_eq!(facts(&known), facts(&entry), "{name}: {}", entry.content);
                    found += 1;
                }
            }
        }
        assert!(found > 10, "{name}: {found} contents");
    }
}

#[test]
fn version_1_and_what_came_of_it_is_not_written() {
    let volume = Volume::create(&Layout::uniform(1, 5000, BlockKind::Records)).unwrap();
    for (name, why) in [
        ("version-1", "format version 1"),
        ("upgraded", "upgraded from format version 1"),
    ] {
        let golden = Golden::load(name).unwrap();
        let copy = golden.materialise().unwrap();
        let ours = Blockferry::new(&copy.repo, &golden.expected.password).unwrap();
        let before = blockferry_tests::repo::list_tree(&copy.repo).unwrap();
        let path = volume.path().display().to_string();
        for command in [&["backup", &path][..], &["delete", &golden.expected.snapshots[0].id]] {
            let ended = ours.ended(command).unwrap();
            assert_eq!(ended.code, Some(1), "{ended:?}");
            assert!(
                ended.stderr.contains(why) && ended.stderr.contains("read only"),
                "{ended:?}"
            );
        }
        assert_eq!(blockferry_tests::repo::list_tree(&copy.repo).unwrap(), before, "{name}");
    }
}
