//! Kopia writes, we read.

use std::fs;
use std::path::Path;

use blockferry_tests::repo::list_tree;
use blockferry_tests::volume::{Layout, Random};
use repo::compress::Codec;

use super::judge::{MIB, Shared, Taken, kopia_is_here};
use crate::golden;

/// Less than a block, less than a chunk, some chunks and a block, and several packs. The long ones are cut by content in a
/// repository of kopia's making.
const SIZES: [u64; 4] = [1, MIB - 1, 5 * MIB + 512, 40 * MIB];

/// A file and a pipe of each size.
fn take(shared: &Shared, sizes: &[u64]) -> Vec<Taken> {
    let mut taken = Vec::new();
    for (at, size) in sizes.iter().enumerate() {
        let seed = 10 * at as u64;
        taken.push(shared.kopia_takes_file(&Layout::mixed(seed + 1, *size)));
        taken.push(shared.kopia_takes_stdin(&format!("volume-{at}"), &Layout::mixed(seed + 2, *size)));
    }
    taken
}

#[test]
fn volumes_in_a_default_repository() {
    if !kopia_is_here() {
        return;
    }
    let shared = Shared::by_kopia(&[]);
    let taken = take(&shared, &SIZES);
    let before = list_tree(&shared.repo).unwrap();
    shared.we_approve(&taken);
    shared.we_describe(&taken);
    assert!(
        list_tree(&shared.repo).unwrap() == before,
        "reading changes nothing in the repository"
    );
}

#[test]
fn volumes_under_other_algorithms() {
    if !kopia_is_here() {
        return;
    }
    const HMAC_CHACHA: [&str; 2] = ["--block-hash=HMAC-SHA256", "--encryption=CHACHA20-POLY1305-HMAC-SHA256"];
    for args in [&["--block-hash=BLAKE3-256"], HMAC_CHACHA.as_slice()] {
        let shared = Shared::by_kopia(args);
        let taken = take(&shared, &SIZES[1..3]);
        shared.we_approve(&taken);
        shared.we_describe(&taken);
    }
}

#[test]
fn compressed_volumes() {
    if !kopia_is_here() {
        return;
    }
    for name in ["zstd-fastest", "gzip"] {
        let shared = Shared::by_kopia(&["--object-splitter=FIXED-1M"]);
        shared.kopia.policy_set("--global", &["--compression", name]).unwrap();
        let taken = take(&shared, &SIZES[2..]);
        shared.we_approve(&taken);
        shared.we_describe(&taken);

        let id = Codec::by_name(name).unwrap().id().get();
        let mut compressed = 0;
        let count = |entry: repo::index::IndexEntry| {
            compressed += u32::from(entry.compression == id);
            Ok(())
        };
        shared.library().each_content(0, &mut { count }).unwrap();
        assert!(
            compressed >= 10,
            "{name}: only {compressed} contents are compressed, so this proves little"
        );
    }
}

#[test]
fn a_tree_of_files() {
    if !kopia_is_here() {
        return;
    }
    let shared = Shared::by_kopia(&[]);
    let source = shared.file("tree");
    plant(&source);
    let manifest = shared.kopia.snapshot_create(&source, &[]).unwrap();
    let id = manifest["id"].as_str().expect("an id");

    let listed = shared.ours.run_json(["snapshots"]).unwrap();
    assert_eq!(
        (&listed[0]["id"], &listed[0]["root"]),
        (&id.into(), &"directory".into())
    );
    let shown = shared.ours.run_json(["show", id]).unwrap();
    assert!(
        shown["notAnImage"].as_str().expect("a reason").contains("20 entries"),
        "{shown}"
    );
    let report = shared.ours.run_json(["verify", "--percent", "100"]).unwrap();
    assert_eq!(report["damage"], serde_json::json!([]));
    assert_eq!(report["objects"], 2021, "20 folders of 100 different files: {report}");

    let repository = shared.library();
    let snapshot = repository.snapshots().unwrap().remove(0);
    let root = snapshot.root.expect("kopia writes a root");
    let mut entries = Vec::new();
    golden::list(&repository, root.kind, &root.object, String::new(), &mut entries);
    entries.sort();
    assert!(entries == list_tree(&source).unwrap(), "the tree reads differently");
}

/// 2,000 different files of up to 4 KiB in 20 folders.
fn plant(root: &Path) {
    let mut random = Random::new(2000);
    for folder in 0..20 {
        let path = root.join(format!("folder-{folder:02}"));
        fs::create_dir_all(&path).unwrap();
        for file in 0..100 {
            let words = 1 + random.below(512);
            let bytes: Vec<u8> = (0..words).flat_map(|_| random.next_u64().to_le_bytes()).collect();
            fs::write(path.join(format!("file-{file:02}")), bytes).unwrap();
        }
    }
}
