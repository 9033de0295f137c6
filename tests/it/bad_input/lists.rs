//! Lists, folders and manifests that decrypt well and lie: written by a broken or hostile client that has the password.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockferry_tests::volume::{BlockKind, Layout};
use repo::blob::MemStore;
use repo::compress::CompressionPolicy;
use repo::directory::{Directory, DirectoryEntry, EntryKind, Mode, Summary};
use repo::manifest::Changes;
use repo::session::{WriteOptions, WriteSession};
use repo::snapshot::{Snapshot, Source, Stats, tag};
use repo::time::Time;
use repo::{ContentId, ObjectId, Repository};
use serde_json::{Value, json};

use super::support::{
    MIB, World, assert_refused, assert_same, assert_words, back_up, backup_options, damage, empty, open, random_volume,
    restored,
};

fn begin(repository: &Repository) -> WriteSession<'_> {
    let options = WriteOptions {
        sealers: 1,
        uploads: 1,
        compression: CompressionPolicy::None,
        user: "user".into(),
        host: "host".into(),
        ..WriteOptions::default()
    };
    WriteSession::begin(repository, &options).unwrap()
}

fn chunk(seed: u64) -> Vec<u8> {
    Layout::uniform(seed, MIB, BlockKind::Random).bytes()
}

/// Stores chunks and returns their ids.
fn store_chunks(session: &WriteSession<'_>, chunks: &[Vec<u8>]) -> Vec<ContentId> {
    let mut sealer = session.sealer();
    let store = |chunk: &Vec<u8>| {
        let id = session.repository().contents().content_id(None, chunk);
        sealer.store(id, chunk).unwrap();
        id
    };
    let ids = chunks.iter().map(store).collect();
    sealer.finish().unwrap();
    ids
}

fn file(object: ObjectId, size: u64) -> DirectoryEntry {
    DirectoryEntry {
        name: "image".into(),
        kind: EntryKind::File,
        mode: Mode(0o644),
        size,
        modified: Time::UNIX_EPOCH,
        uid: 0,
        gid: 0,
        object,
        summary: None,
    }
}

fn snapshot(root: DirectoryEntry, tags: &[(&str, &str)]) -> Snapshot {
    Snapshot {
        id: None,
        source: Source {
            host: "host".into(),
            user: "user".into(),
            path: "/volume".into(),
        },
        description: String::new(),
        start: Time::now(),
        end: Time::now(),
        stats: Stats::default(),
        incomplete: String::new(),
        root: Some(root),
        tags: tags.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect(),
        pins: Vec::new(),
    }
}

/// Commits a snapshot of a folder with `files`.
fn publish(session: WriteSession<'_>, files: Vec<DirectoryEntry>, tags: &[(&str, &str)]) {
    let folder = session
        .put_metadata('k', &Directory::new(files).to_bytes(), true)
        .unwrap();
    let root = DirectoryEntry {
        kind: EntryKind::Directory,
        name: String::new(),
        summary: Some(Summary::of_image(0)),
        ..file(ObjectId::direct(folder), 0)
    };
    session.commit(&snapshot(root, tags)).unwrap();
}

/// Two stored chunks, and a snapshot whose list is what `text` makes of their names.
fn with_list(text: impl FnOnce(&str, &str) -> String) -> Arc<MemStore> {
    let store = empty();
    let repository = open(store.clone());
    let session = begin(&repository);
    let ids = store_chunks(&session, &[chunk(1), chunk(2)]);
    let text = text(&ids[0].to_string(), &ids[1].to_string());
    let list = session.put_metadata('x', text.as_bytes(), true).unwrap();
    publish(session, vec![file(ObjectId::direct(list).indirect(), 0)], &[]);
    store
}

fn entries(entries: &[Value]) -> String {
    json!({"stream": "kopia:indirect", "entries": entries}).to_string()
}

/// Asserts that verification finds the lie, and that a restore ends with exit code 4.
#[track_caller]
fn check_list(text: impl FnOnce(&str, &str) -> String, words: &[&str]) {
    let store = with_list(text);
    let repository = open(store);
    let found = damage(&repository).unwrap();
    assert!(!found.is_empty(), "the verification finds nothing of {words:?}");
    assert_words(&found.concat(), words);
    let snapshots = repository.snapshots().unwrap();
    assert_refused(restored(&repository, &snapshots[0]).unwrap_err(), 4, words);
}

#[test]
fn a_list_with_gaps_overlaps_or_disorder_is_damage() {
    let at = |start: u64, object: &str| json!({"s": start, "l": MIB, "o": object});
    check_list(
        |a, b| entries(&[at(0, a), at(2 * MIB, b)]),
        &["entry 1", "starts at 2097152", "ends at 1048576"],
    );
    check_list(
        |a, b| entries(&[at(0, a), at(MIB / 2, b)]),
        &["entry 1", "starts at 524288"],
    );
    check_list(
        |a, b| entries(&[at(MIB, a), at(0, b)]),
        &["entry 0", "starts at 1048576"],
    );
    check_list(
        |a, _| entries(&[at(0, a), json!({"s": MIB, "l": u64::MAX, "o": a})]),
        &["entry 1", "has a length of 18446744073709551615"],
    );
    // In order, the same list is good.
    let repository = open(with_list(|a, b| entries(&[at(0, a), at(MIB, b)])));
    assert_same(
        &restored(&repository, &repository.snapshots().unwrap()[0]).unwrap(),
        &[chunk(1), chunk(2)].concat(),
    );
}

#[test]
fn a_list_that_lies_about_a_length_is_damage() {
    check_list(
        |a, b| entries(&[json!({"l": 512, "o": a}), json!({"s": 512, "l": MIB, "o": b})]),
        &["has 1048576 bytes, its list says 512"],
    );
    check_list(
        |a, _| entries(&[json!({"l": 2 * MIB, "o": a})]),
        &["has 1048576 bytes, its list says 2097152"],
    );
    // The same chunk, once with its length and once with another: whichever comes first.
    for (first, second) in [(MIB, 512), (512, MIB)] {
        let text = |a: &str, _: &str| entries(&[json!({"l": first, "o": a}), json!({"s": first, "l": second, "o": a})]);
        let repository = open(with_list(text));
        assert_words(
            &damage(&repository).unwrap().concat(),
            &["has 1048576 bytes, its list says 512"],
        );
        let error = restored(&repository, &repository.snapshots().unwrap()[0]).unwrap_err();
        assert_refused(error, 4, &["has 1048576 bytes, its list says 512"]);
    }
}

/// A list in a list is summed up: its length is what the list above says.
#[test]
fn a_list_of_a_list_that_lies_about_its_length_is_damage() {
    let store = empty();
    let repository = open(store.clone());
    let session = begin(&repository);
    let ids = store_chunks(&session, &[chunk(1)]);
    let inner = session
        .put_metadata(
            'x',
            entries(&[json!({"l": MIB, "o": ids[0].to_string()})]).as_bytes(),
            true,
        )
        .unwrap();
    let name = ObjectId::direct(inner).indirect();
    let outer = entries(&[json!({"l": MIB + 1, "o": name.to_string()})]);
    let outer = session.put_metadata('x', outer.as_bytes(), true).unwrap();
    publish(session, vec![file(ObjectId::direct(outer).indirect(), 0)], &[]);
    let words = ["object", &name.to_string(), "has 1048576 bytes, its list says 1048577"];
    assert_words(&damage(&repository).unwrap().concat(), &words);
    assert_refused(
        restored(&repository, &repository.snapshots().unwrap()[0]).unwrap_err(),
        4,
        &words,
    );
}

#[test]
fn a_list_that_names_what_is_not_there_is_damage() {
    let nothing = "00112233445566778899aabbccddeeff";
    check_list(
        |_, _| entries(&[json!({"l": MIB, "o": nothing})]),
        &[nothing, "is not in the index"],
    );
    check_list(
        |_, _| entries(&[json!({"l": MIB, "o": format!("Ix{nothing}")})]),
        &[nothing, "is not in the index"],
    );
    check_list(
        |_, _| entries(&[json!({"l": MIB, "o": "nonsense"})]),
        &["entry 0", "names no object", "nonsense"],
    );
    check_list(
        |a, _| entries(&[json!({"l": MIB, "o": format!("IIIIIIIII{a}")})]),
        &["entry 0", "nested too deep"],
    );
}

#[test]
fn what_is_no_list_is_damage() {
    check_list(|_, _| String::new(), &["is not the expected JSON"]);
    check_list(
        |_, _| "{\"stream\":\"kopia:indirect\",\"entries\":[".into(),
        &["is not the expected JSON"],
    );
    check_list(
        |_, _| json!({"stream": "kopia:directory", "entries": []}).to_string(),
        &["is not the expected JSON", "kopia:directory"],
    );
    check_list(
        |a, _| json!({"stream": "kopia:indirect", "entries": [{"l": -1, "o": a}]}).to_string(),
        &["is not the expected JSON"],
    );
    check_list(
        |a, _| format!("{}x", entries(&[json!({"l": MIB, "o": a})])),
        &["is not the expected JSON"],
    );
}

#[test]
fn fields_that_are_not_known_are_passed_over() {
    let text = |a: &str, _: &str| {
        json!({"new": {"x": [1]}, "stream": "kopia:indirect", "entries": [{"l": MIB, "o": a, "q": null}]}).to_string()
    };
    let repository = open(with_list(text));
    assert_same(
        &restored(&repository, &repository.snapshots().unwrap()[0]).unwrap(),
        &chunk(1),
    );

    // The same for a snapshot's manifest.
    let snapshots = repository.snapshots().unwrap();
    let mut document = serde_json::to_value(&snapshots[0]).unwrap();
    document["future"] = json!({"deep": [1, "two", null]});
    document["rootEntry"]["xattr"] = json!("text");
    let mut changes = Changes::default();
    changes.put(snapshots[0].labels(), &document).unwrap();
    begin(&repository).commit_changes(&changes).unwrap();
    let snapshots = repository.snapshots().unwrap();
    assert_eq!(snapshots.len(), 2);
    for snapshot in &snapshots {
        assert_same(&restored(&repository, snapshot).unwrap(), &chunk(1));
    }
    assert_eq!(damage(&repository).unwrap(), Vec::<String>::new());
}

#[test]
fn an_object_compressed_in_an_unknown_way_is_refused_and_is_no_damage() {
    let repository = open(with_list(|a, _| entries(&[json!({"l": MIB, "o": format!("Z{a}")})])));
    let snapshots = repository.snapshots().unwrap();
    assert_refused(
        restored(&repository, &snapshots[0]).unwrap_err(),
        1,
        &["compression header", "not known to this version"],
    );
    assert_eq!(damage(&repository).unwrap(), Vec::<String>::new());
}

#[test]
fn a_size_tag_that_lies_is_damage_and_a_smaller_one_cuts() {
    let with_size = |size: &str, entry_size: u64| {
        let store = empty();
        let repository = open(store.clone());
        let session = begin(&repository);
        let ids = store_chunks(&session, &[chunk(1)]);
        let list = session
            .put_metadata(
                'x',
                entries(&[json!({"l": MIB, "o": ids[0].to_string()})]).as_bytes(),
                true,
            )
            .unwrap();
        let tags: &[(&str, &str)] = if size.is_empty() {
            &[]
        } else {
            &[(tag::SOURCE_SIZE, size)]
        };
        publish(session, vec![file(ObjectId::direct(list).indirect(), entry_size)], tags);
        store
    };
    let restore = |store: Arc<MemStore>| {
        let repository = open(store);
        let snapshots = repository.snapshots().unwrap();
        restored(&repository, &snapshots[0])
    };
    for (size, entry_size, words) in [
        ("1048577", 0, ["1048577 bytes", "1048576 bytes"]),
        ("many", 0, ["many", tag::SOURCE_SIZE]),
        ("-1", 0, ["-1", tag::SOURCE_SIZE]),
        ("18446744073709551616", 0, ["18446744073709551616", tag::SOURCE_SIZE]),
        ("", MIB - 1, ["1048575 bytes", "1048576"]),
    ] {
        let store = with_size(size, entry_size);
        assert_refused(restore(store).unwrap_err(), 4, &words);
    }
    assert_same(&restore(with_size("1000", 0)).unwrap(), &chunk(1)[..1000]);
    assert_same(&restore(with_size("0", 0)).unwrap(), &[]);
    assert_same(&restore(with_size("", MIB)).unwrap(), &chunk(1));
}

/// One bad size tag must not hide the good snapshots beside it.
#[test]
fn a_bad_size_tag_does_not_stop_the_listing_of_others() {
    let store = empty();
    let repository = open(store.clone());
    back_up(&repository, random_volume(31, 1).path(), &backup_options()).unwrap();
    let mut bad = repository.snapshots().unwrap().remove(0);
    bad.tags.insert(tag::SOURCE_SIZE.into(), "many".into());
    begin(&repository).commit(&bad).unwrap();
    let world = World::with(&*store);
    let ended = world.ferry.ended(["snapshots"]).unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout.matches("user@host:/volume").count(), 2, "{}", ended.stdout);
}

#[test]
fn a_folder_that_is_no_volume_says_what_it_is() {
    let store = empty();
    let repository = open(store.clone());
    let session = begin(&repository);
    let ids = store_chunks(&session, &[chunk(1)]);
    let object = ObjectId::direct(ids[0]);
    let other = DirectoryEntry {
        name: "other".into(),
        ..file(object, MIB)
    };
    publish(session, vec![file(object, MIB), other], &[]);
    assert_eq!(damage(&repository).unwrap(), Vec::<String>::new());
    let world = World::with(&*store);
    let target = world.text("target");
    world.refuses(
        &["restore", "latest", &target],
        2,
        &["folder of 2 entries", "blockferry ls"],
    );
    assert!(!world.path("target").exists(), "a refused restore creates nothing");
}

#[test]
fn a_folder_or_manifest_that_is_none_is_damage() {
    let store = empty();
    let repository = open(store.clone());
    let session = begin(&repository);
    let folder = session
        .put_metadata('k', b"{\"stream\":\"kopia:directory\",\"entries\":[{\"obj\":7}]}", true)
        .unwrap();
    let root = DirectoryEntry {
        kind: EntryKind::Directory,
        ..file(ObjectId::direct(folder), 0)
    };
    session.commit(&snapshot(root, &[])).unwrap();
    assert_words(
        &damage(&repository).unwrap().concat(),
        &[&folder.to_string(), "is not a directory"],
    );
    assert_refused(
        restored(&repository, &repository.snapshots().unwrap()[0]).unwrap_err(),
        4,
        &[&folder.to_string(), "not a directory"],
    );

    // A manifest of the right type and the wrong shape is named by its id.
    let mut changes = Changes::default();
    let labels: BTreeMap<String, String> = [("type".to_string(), Snapshot::TYPE.to_string())].into();
    let id = changes.put(labels, &json!({"source": 7})).unwrap();
    begin(&repository).commit_changes(&changes).unwrap();
    assert_refused(
        repository.snapshots().unwrap_err(),
        4,
        &["snapshot manifest", &id.to_string()],
    );
    let world = World::with(&*store);
    let ended = world.ferry.ended(["snapshots"]).unwrap();
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert_words(&ended.stdout, &[&id.to_string(), "DAMAGED"]);
    world.refuses(&["show", "latest"], 4, &[&id.to_string(), "latest"]);

    // A manifest content that is no gzip stream is named by its content.
    let store = empty();
    let repository = open(store.clone());
    let session = begin(&repository);
    let content = session.put_metadata('m', b"garbage", false).unwrap();
    publish(session, Vec::new(), &[]);
    assert_refused(
        repository.snapshots().unwrap_err(),
        4,
        &["manifest content", &content.to_string(), "gzip"],
    );
}
