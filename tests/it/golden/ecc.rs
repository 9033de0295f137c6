//! Repositories with error correction: read as they are, read with damage within its bound, refused past it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::golden::{Golden, Materialised};
use blockferry_tests::repo::{TreeKind, blob_file, list_tree};
use repo::Repository;
use repo::blob::FsStore;
use repo::cache::{CacheOptions, LIMIT_DEFAULT};
use repo::index::IndexEntry;

use super::{file, open, restores};
use crate::cache::contents;

const NAMES: [&str; 4] = ["ecc-1", "ecc-2", "ecc-5", "ecc-10"];

/// Every content of every prefix.
fn entries(copy: &Materialised, password: &str) -> Vec<IndexEntry> {
    let repository = open(&copy.repo, password);
    let mut entries = Vec::new();
    for prefix in [0].into_iter().chain(b'g'..=b'z') {
        let take = &mut |entry| {
            entries.push(entry);
            Ok(())
        };
        repository.each_content(prefix, take).unwrap();
    }
    entries
}

/// Flips a bit of each of `bytes` of a file.
fn flip(file: &Path, bytes: impl IntoIterator<Item = usize>) {
    let mut content = fs::read(file).unwrap();
    bytes.into_iter().for_each(|at| content[at] ^= 0x10);
    fs::write(file, content).unwrap();
}

#[test]
fn two_damaged_bytes_anywhere_in_every_content_and_index_blob_are_repaired() {
    for name in NAMES {
        let golden = Golden::load(name).unwrap();
        let copy = golden.materialise().unwrap();
        let contents = entries(&copy, &golden.expected.password);
        assert!(contents.len() >= 6, "{name}: {} contents", contents.len());
        for (seed, entry) in contents.iter().enumerate() {
            // Two shards are repaired in every layout.
            let at = |share: usize| entry.offset as usize + entry.packed_len as usize * share / 100;
            flip(
                &copy.repo.join(blob_file(entry.pack.as_str())),
                [at(seed % 30), at(60 + seed % 40)],
            );
        }
        for blob in list_tree(&copy.repo).unwrap() {
            if let TreeKind::File { size, .. } = blob.kind
                && blob.path.starts_with("x/n0_")
            {
                let size = usize::try_from(size).unwrap();
                flip(&copy.repo.join(&blob.path), [size / 7, size - 1]);
            }
        }
        let ours = Blockferry::new(&copy.repo, &golden.expected.password).unwrap();
        for (at, snapshot) in golden.expected.snapshots.iter().enumerate() {
            restores(&ours, snapshot, &file(&copy, at));
        }
        let ended = ours.ended(["verify", "--percent", "100"]).unwrap();
        assert_eq!(ended.code, Some(0), "{name}: {ended:?}");
        assert!(
            ended.stderr.contains("were repaired by error correction"),
            "{name}: {ended:?}"
        );
    }
}

/// A damaged file of the cache was mended by the error correction of its repository, and the storage was blamed for it.
#[test]
fn damage_in_the_cache_is_no_damage_of_the_storage() {
    for name in NAMES {
        let golden = Golden::load(name).unwrap();
        let copy = golden.materialise().unwrap();
        let entries = entries(&copy, &golden.expected.password);
        let place = tempfile::tempdir().unwrap();
        let options = CacheOptions {
            folder: place.path().to_owned(),
            limit: LIMIT_DEFAULT,
            metadata: true,
            data: true,
        };
        // What the contents are, and how many files were damaged.
        let read = || {
            let store = Arc::new(FsStore::open(&copy.repo).unwrap());
            let repository = Repository::open_cached(store, &golden.expected.password, Some(&options)).unwrap();
            let contents = entries
                .iter()
                .map(|entry| repository.read_content(&entry.content).unwrap());
            let contents: Vec<Vec<u8>> = contents.collect();
            (contents, repository.cache().unwrap().stats().damaged)
        };
        let first = read();
        let kept = contents(place.path());
        assert_eq!((kept.len(), first.1), (entries.len(), 0), "{name}");
        for path in &kept {
            let len = usize::try_from(fs::metadata(path).unwrap().len()).unwrap();
            flip(path, [len - 1]);
        }
        assert!(read() == (first.0.clone(), kept.len() as u64), "{name}");
        assert!(read() == (first.0, 0), "{name}: it was fetched, and is kept again");
    }
}

#[test]
fn damage_past_the_bound_is_told() {
    for name in NAMES {
        let golden = Golden::load(name).unwrap();
        let copy = golden.materialise().unwrap();
        let contents = entries(&copy, &golden.expected.password);
        let data = contents.iter().filter(|entry| entry.content.prefix().is_none());
        let data = data.max_by_key(|entry| entry.packed_len).expect("data");
        let (start, len) = (data.offset as usize, data.packed_len as usize);
        flip(
            &copy.repo.join(blob_file(data.pack.as_str())),
            start + len / 2..start + len / 2 + len / 4,
        );
        let ours = Blockferry::new(&copy.repo, &golden.expected.password).unwrap();
        let ended = ours.ended(["verify", "--percent", "100"]).unwrap();
        assert_eq!(ended.code, Some(4), "{name}: {ended:?}");
        assert!(ended.stdout.contains("error correction repairs"), "{name}: {ended:?}");
    }
}

#[test]
fn repositories_with_error_correction_are_not_written() {
    let golden = Golden::load("ecc-1").unwrap();
    let copy = golden.materialise().unwrap();
    let ours = Blockferry::new(&copy.repo, &golden.expected.password).unwrap();
    let before = list_tree(&copy.repo).unwrap();
    let ended = ours.ended(["delete", &golden.expected.snapshots[0].id]).unwrap();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("error correction") && ended.stderr.contains("read only"),
        "{ended:?}"
    );
    assert_eq!(list_tree(&copy.repo).unwrap(), before);
}
