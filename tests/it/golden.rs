//! Repositories that the real kopia wrote and that are kept in `tests/golden`: we list, read, verify and restore them. No
//! kopia is needed here.

mod ecc;
mod unread;
mod version_1;

use std::path::Path;
use std::sync::Arc;

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::golden::{self, Expected, ExpectedSnapshot, Golden, Materialised};
use blockferry_tests::repo::{TreeEntry, TreeKind, sha256};
use repo::blob::FsStore;
use repo::directory::EntryKind;
use repo::snapshot::Snapshot;
use repo::{ContentId, ObjectId, Repository};

use crate::kopia_compat::judge::check_map;

/// Golden repositories with a snapshot that is not one volume.
const TREES: [&str; 1] = ["tree"];

fn open(folder: &Path, password: &str) -> Repository {
    let store = FsStore::open(folder).unwrap();
    Repository::open(Arc::new(store), password).unwrap()
}

/// Opens a copy of each golden repository and hands it to `check`.
fn for_each(check: impl Fn(&Golden, &Materialised, &Repository)) {
    let all = Golden::all().unwrap();
    assert_eq!(all.len(), golden::NAMES.len());
    for golden in all {
        let copy = golden.materialise().unwrap();
        let repository = open(&copy.repo, &golden.expected.password);
        check(&golden, &copy, &repository);
    }
}

#[test]
fn snapshots_are_the_ones_kopia_took() {
    for_each(|golden, _, repository| {
        let name = &golden.name;
        let Expected {
            hash,
            encryption,
            splitter,
            snapshots,
            deleted,
            ..
        } = &golden.expected;
        let format = repository.format();
        assert_eq!(
            (&format.hash.to_string(), &format.encryption.to_string()),
            (hash, encryption),
            "{name}"
        );
        assert_eq!(format.splitter, *splitter, "{name}");
        let have: Vec<_> = repository.snapshots().unwrap().iter().map(facts).collect();
        let want: Vec<_> = snapshots
            .iter()
            .map(|s| [&s.id, &s.source, &s.root_kind, &s.root_object].map(String::clone))
            .collect();
        assert_eq!(have, want, "{name}");
        for id in deleted {
            assert!(have.iter().all(|facts| facts[0] != *id), "{name}: {id} is deleted");
        }
    });
}

/// Id, source, kind and object of the root.
fn facts(snapshot: &Snapshot) -> [String; 4] {
    let root = snapshot.root.as_ref().expect("kopia writes a root");
    let kind = match root.kind {
        EntryKind::File => "f",
        EntryKind::Directory => "d",
        other => panic!("a root of kind {other:?}"),
    };
    let id = snapshot.id.expect("read from storage");
    [
        id.to_string(),
        snapshot.source.to_string(),
        kind.into(),
        root.object.to_string(),
    ]
}

#[test]
fn every_file_has_the_bytes_kopia_was_given() {
    for_each(|golden, _, repository| {
        for (snapshot, expected) in repository.snapshots().unwrap().iter().zip(&golden.expected.snapshots) {
            let root = snapshot.root.as_ref().expect("kopia writes a root");
            let mut entries = Vec::new();
            list(repository, root.kind, &root.object, String::new(), &mut entries);
            entries.sort();
            assert_eq!(entries, expected.entries, "{}: {}", golden.name, expected.source);
        }
    });
}

/// Adds `object`, called `path`, and all below it.
pub(crate) fn list(
    repository: &Repository,
    kind: EntryKind,
    object: &ObjectId,
    path: String,
    entries: &mut Vec<TreeEntry>,
) {
    let kind = match kind {
        EntryKind::Directory => {
            for child in repository.read_directory(object).unwrap().entries {
                let name = if path.is_empty() {
                    child.name
                } else {
                    format!("{path}/{}", child.name)
                };
                list(repository, child.kind, &child.object, name, entries);
            }
            TreeKind::Directory
        }
        EntryKind::Symlink => TreeKind::Symlink {
            target: String::from_utf8(bytes_of(repository, object).unwrap()).expect("text"),
        },
        EntryKind::File => {
            let bytes = bytes_of(repository, object).unwrap();
            TreeKind::File {
                size: bytes.len() as u64,
                sha256: sha256(&bytes),
            }
        }
        EntryKind::Unknown => panic!("{path}: an entry of no known kind"),
    };
    entries.push(TreeEntry { path, kind });
}

/// The bytes of an object, content by content.
fn bytes_of(repository: &Repository, object: &ObjectId) -> repo::Result<Vec<u8>> {
    let table = repository.table(object)?;
    let mut bytes = Vec::new();
    for piece in table.iter() {
        bytes.extend(repository.read_piece(&piece)?);
        assert_eq!(bytes.len() as u64, piece.extent.offset + piece.extent.len, "{object}");
    }
    Ok(bytes)
}

#[test]
fn volumes_are_mapped_shown_and_restored_by_the_command_line() {
    for_each(|golden, copy, _| {
        let ours = Blockferry::new(&copy.repo, &golden.expected.password).unwrap();
        if TREES.contains(&golden.name.as_str()) {
            return;
        }
        let volumes = some(&golden.expected.snapshots);
        for (at, snapshot) in volumes.iter().filter(|s| is_volume(s)).enumerate() {
            restores(&ours, snapshot, &file(copy, at));
        }
    });
}

/// First, middle and last of many; all of a few.
fn some(snapshots: &[ExpectedSnapshot]) -> Vec<&ExpectedSnapshot> {
    const FEW: usize = 5;
    match snapshots {
        [first, middle @ .., last] if snapshots.len() > FEW => vec![first, &middle[middle.len() / 2], last],
        few => few.iter().collect(),
    }
}

/// The root is a file, or a folder with one.
fn is_volume(snapshot: &ExpectedSnapshot) -> bool {
    snapshot.entries.len() <= 2
}

fn file(copy: &Materialised, at: usize) -> String {
    copy.repo.with_file_name(format!("restored-{at}")).display().to_string()
}

fn restores(ours: &Blockferry, snapshot: &ExpectedSnapshot, target: &str) {
    let (size, digest) = match &snapshot.entries.last().expect("not empty").kind {
        TreeKind::File { size, sha256 } => (*size, sha256),
        other => panic!("not a volume: {other:?}"),
    };
    let restored = ours.restore(&snapshot.id, Path::new(target), &["--verify"]).unwrap();
    assert_eq!(
        (&restored["size"], &restored["verified"]),
        (&size.into(), &true.into()),
        "{restored}"
    );
    let bytes = std::fs::read(target).unwrap();
    assert_eq!(
        (bytes.len() as u64, &sha256(&bytes)),
        (size, digest),
        "{}",
        snapshot.source
    );

    check_map(&ours.run_json(["map", &snapshot.id]).unwrap(), &bytes);
    let shown = ours.run_json(["show", &snapshot.id]).unwrap();
    assert_eq!(shown["id"], snapshot.id.as_str());
    assert_eq!(shown["source"], snapshot.source.as_str());
    assert_eq!(shown["image"]["size"], size, "{shown}");
}

#[test]
fn no_damage_is_found() {
    for_each(|golden, copy, _| {
        let ours = Blockferry::new(&copy.repo, &golden.expected.password).unwrap();
        let ids: Vec<&str> = golden.expected.snapshots.iter().map(|s| s.id.as_str()).collect();
        let report = ours
            .run_json(["verify", "--percent", "100"].iter().chain(&ids))
            .unwrap();
        assert_eq!(report["damage"], serde_json::json!([]), "{}", golden.name);
        assert_eq!(report["snapshots"], ids.len(), "{}", golden.name);
        assert_eq!(report["contents"], report["contentsRead"], "{}: {report}", golden.name);
    });
}

#[test]
fn a_tree_of_files_is_listed_verified_and_refused_as_a_volume() {
    for name in TREES {
        let golden = Golden::load(name).unwrap();
        let copy = golden.materialise().unwrap();
        let ours = Blockferry::new(&copy.repo, &golden.expected.password).unwrap();
        let [snapshot] = golden.expected.snapshots.as_slice() else {
            panic!("one snapshot in {name}")
        };
        let files = snapshot
            .entries
            .iter()
            .filter(|entry| matches!(entry.kind, TreeKind::File { .. }))
            .count();
        assert!(files >= 2000, "{files} files");

        let listed = ours.run_json(["snapshots"]).unwrap();
        assert_eq!(listed[0]["id"], snapshot.id.as_str());
        assert_eq!(listed[0]["root"], "directory");
        let shown = ours.run_json(["show", "latest"]).unwrap();
        assert!(shown["image"].is_null(), "{shown}");
        assert!(
            shown["notAnImage"].as_str().expect("a reason").contains("entries"),
            "{shown}"
        );
        let report = ours.run_json(["verify", "--percent", "100"]).unwrap();
        assert_eq!(report["damage"], serde_json::json!([]));
        // Equal files are one object; nearly all differ.
        assert!(report["objects"].as_u64().expect("a number") > 1500, "{report}");

        for command in [vec!["map", "latest"], vec!["restore", "latest", &file(&copy, 0)]] {
            let ended = ours.ended(&command).unwrap();
            assert_eq!(ended.code, Some(2), "{ended:?}");
            assert!(ended.stderr.contains("not one volume"), "{ended:?}");
        }
        assert!(!Path::new(&file(&copy, 0)).exists(), "a refused restore leaves nothing");
    }
}

#[test]
fn a_wrong_password_is_told_from_damage() {
    let golden = Golden::load("default").unwrap();
    let ours = Blockferry::new(&golden.repo, "wrong").unwrap();
    let ended = ours.ended(["snapshots"]).unwrap();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("password"), "{ended:?}");
}

#[test]
fn repositories_of_kopias_library_code_are_read() {
    let vectors = golden::vectors().unwrap();
    assert_eq!(vectors.len(), 2);
    for vector in vectors {
        let copy = vector.materialise().unwrap();
        let repository = open(&copy.repo, golden::VECTORS_PASSWORD);
        let format = repository.format();
        assert_eq!(format!("{} + {}", format.hash, format.encryption), vector.algorithms);

        let manifests = repository.manifests().unwrap();
        let found = manifests.find(&[("type", "test")]);
        let [manifest] = found.as_slice() else {
            panic!("{} manifests", found.len())
        };
        assert_eq!(manifest.id.to_string(), vector.expect["manifestID"]);
        let data: serde_json::Value = serde_json::from_str(manifest.data.get()).unwrap();
        assert_eq!(
            (&data["oid"], &data["sha"]),
            (&vector.expect["oid"], &vector.expect["sha256"])
        );

        let object: ObjectId = data["oid"].as_str().expect("text").parse().unwrap();
        let bytes = bytes_of(&repository, &object).unwrap();
        assert_eq!(bytes.len(), vector.expect["length"]);
        assert_eq!(sha256(&bytes), vector.expect["sha256"]);

        let mut count = 0;
        for prefix in [0].into_iter().chain(b'g'..=b'z') {
            let each = &mut |_| {
                count += 1;
                Ok(())
            };
            repository.each_content(prefix, each).unwrap();
        }
        assert_eq!(
            count,
            vector.expect["contents"].as_u64().expect("a number"),
            "deleted ones included"
        );
        for id in vector.expect["deleted"].as_array().expect("ids") {
            let id: ContentId = id.as_str().expect("text").parse().unwrap();
            assert!(repository.lookup(&id).expect("a tombstone is an entry").deleted, "{id}");
        }
    }
}
