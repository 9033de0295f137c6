//! Trees written by someone hostile, and targets with something in them already.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;

use repo::blob::MemStore;
use repo::compress::CompressionPolicy;
use repo::directory::{Directory, DirectoryEntry, EntryKind, Mode};
use repo::session::{WriteOptions, WriteSession};
use repo::snapshot::{Snapshot, Source, Stats};
use repo::time::Time;
use repo::{ObjectId, Repository};

use crate::bad_input::support::{World, assert_words, empty, open};

fn entry(name: &str, kind: EntryKind, object: ObjectId, size: u64) -> DirectoryEntry {
    DirectoryEntry {
        name: name.into(),
        kind,
        mode: Mode(0o755),
        size,
        modified: Time::go_unset(),
        uid: 0,
        gid: 0,
        object,
        summary: None,
    }
}

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

fn leaf(session: &WriteSession<'_>, name: &str, kind: EntryKind, bytes: &[u8]) -> DirectoryEntry {
    let id = session.repository().contents().content_id(None, bytes);
    let mut sealer = session.sealer();
    sealer.store(id, bytes).unwrap();
    sealer.finish().unwrap();
    entry(name, kind, ObjectId::direct(id), bytes.len() as u64)
}

fn folder(session: &WriteSession<'_>, name: &str, entries: Vec<DirectoryEntry>) -> DirectoryEntry {
    let bytes = Directory::new(entries).to_bytes();
    let id = session.put_metadata('k', &bytes, true).unwrap();
    entry(name, EntryKind::Directory, ObjectId::direct(id), 0)
}

/// A repository with one snapshot of the folder that `make` makes.
fn world(make: impl FnOnce(&WriteSession<'_>) -> Vec<DirectoryEntry>) -> World {
    let store: Arc<MemStore> = empty();
    let repository = open(store.clone());
    let session = begin(&repository);
    let entries = make(&session);
    let root = folder(&session, "", entries);
    let snapshot = Snapshot {
        id: None,
        source: Source {
            host: "host".into(),
            user: "user".into(),
            path: "/tree".into(),
        },
        description: String::new(),
        start: Time::now(),
        end: Time::now(),
        stats: Stats::default(),
        incomplete: String::new(),
        root: Some(root),
        tags: [].into(),
        pins: vec![],
    };
    session.commit(&snapshot).unwrap();
    World::with(&*store)
}

/// `a`, `sub/b`, and a link.
fn sample(session: &WriteSession<'_>) -> Vec<DirectoryEntry> {
    let b = leaf(session, "b", EntryKind::File, b"new b");
    vec![
        leaf(session, "a", EntryKind::File, b"new a"),
        folder(session, "sub", vec![b]),
        leaf(session, "link", EntryKind::Symlink, b"a"),
    ]
}

/// An empty folder beside the target, to see that nothing comes to lie in it.
fn outside(world: &World) -> PathBuf {
    let path = world.path("outside");
    fs::create_dir(&path).unwrap();
    path
}

#[test]
fn names_that_lead_out_of_the_target_are_refused() {
    for name in ["..", ".", "../escaped", "/escaped", "sub/escaped", "", "nul\0byte"] {
        for kind in [EntryKind::File, EntryKind::Directory, EntryKind::Symlink] {
            let world = world(|session| match kind {
                EntryKind::Directory => vec![folder(session, name, vec![])],
                kind => vec![leaf(session, name, kind, b"x")],
            });
            let target = world.path("target/inner");
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            let args = ["cp", "latest", "/", &target.display().to_string()];
            world.refuses(&args, 4, &["not a name a file can have"]);
            assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "{name:?}");
            assert!(
                !world.path("escaped").exists() && !world.path("target/escaped").exists(),
                "{name:?}"
            );
        }
    }
}

#[test]
fn links_in_the_target_are_never_followed() {
    let world = world(sample);
    let outside = outside(&world);
    let target = world.path("target");
    fs::create_dir(&target).unwrap();
    // A folder of the snapshot is a link here, and so is a file, to one that can be written.
    symlink(&outside, target.join("sub")).unwrap();
    fs::write(outside.join("victim"), "old").unwrap();
    symlink(outside.join("victim"), target.join("a")).unwrap();
    let text = target.display().to_string();
    world.refuses(&["cp", "latest", "/", &text], 2, &["target/a exists", "--force"]);
    world.refuses(
        &["cp", "latest", "/", &text, "--force"],
        2,
        &["target/sub is in the way", "not followed"],
    );
    assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "old");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    // With force the link itself was replaced by the file.
    assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "new a");
    assert!(fs::symlink_metadata(target.join("a")).unwrap().is_file());

    // The target itself is a link.
    let link = world.path("to-outside");
    symlink(&outside, &link).unwrap();
    world.refuses(
        &["cp", "latest", "/", &link.display().to_string()],
        2,
        &["to-outside is in the way"],
    );
    world.refuses(
        &["cp", "latest", "a", &link.display().to_string()],
        2,
        &["to-outside exists"],
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn a_link_from_the_snapshot_leads_no_later_file_astray() {
    // The snapshot has a link, and behind it a folder of the same name in another snapshot of the same target.
    let first = world(|session| vec![leaf(session, "sub", EntryKind::Symlink, b"../outside")]);
    let outside = outside(&first);
    let target = first.path("target").display().to_string();
    first.ferry.run(["cp", "latest", "/", &target]).unwrap();
    let second = world(sample);
    let ended = second.ferry.ended(["cp", "latest", "/", &target, "--force"]).unwrap();
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert_words(&ended.stderr, &["sub is in the way"]);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn what_is_there_stays_unless_forced() {
    let world = world(sample);
    let target = world.path("target");
    let text = target.display().to_string();
    world.ferry.run(["cp", "latest", "/", &text]).unwrap();
    fs::write(target.join("sub/b"), "changed").unwrap();
    fs::write(target.join("mine"), "mine").unwrap();
    world.refuses(&["cp", "latest", "/", &text], 2, &["exists"]);
    world.refuses(
        &["cp", "latest", "sub", &target.join("sub").display().to_string()],
        2,
        &["sub/b exists"],
    );
    assert_eq!(fs::read_to_string(target.join("sub/b")).unwrap(), "changed");
    world.ferry.run(["cp", "latest", "/", &text, "--force"]).unwrap();
    assert_eq!(fs::read_to_string(target.join("sub/b")).unwrap(), "new b");
    assert_eq!(
        fs::read_to_string(target.join("mine")).unwrap(),
        "mine",
        "what is not in the snapshot stays"
    );

    // A folder is in the way of a file, and a file in that of a folder.
    fs::remove_file(target.join("a")).unwrap();
    fs::create_dir(target.join("a")).unwrap();
    world.refuses(
        &["cp", "latest", "/", &text, "--force"],
        2,
        &["target/a is in the way", "never replaced"],
    );
    fs::remove_dir(target.join("a")).unwrap();
    fs::remove_dir_all(target.join("sub")).unwrap();
    fs::write(target.join("sub"), "").unwrap();
    world.refuses(
        &["cp", "latest", "/", &text, "--force"],
        2,
        &["target/sub is in the way"],
    );
}

#[test]
fn entries_of_no_known_kind_are_skipped_and_told() {
    let world = world(|session| {
        let device = leaf(session, "device", EntryKind::Unknown, b"x");
        vec![device, leaf(session, "a", EntryKind::File, b"a")]
    });
    let target = world.text("target");
    let report = world.ferry.run_json(["cp", "latest", "/", &target]).unwrap();
    assert_eq!(report["files"], 1);
    assert_words(&report["skipped"].to_string(), &["target/device"]);
    assert!(!world.path("target/device").exists());
    world.refuses(&["cat", "latest", "device"], 2, &["not a file"]);
}

/// Velero's file uploader keeps a device as one file, named by its whole path, in a folder.
#[test]
fn a_device_named_by_its_path_is_a_volume_and_a_file() {
    let bytes = b"device of few bytes".repeat(1000);
    let world = world(|session| vec![leaf(session, "/dev/sdb", EntryKind::File, &bytes)]);
    let listed = world.ferry.run_json(["ls", "latest"]).unwrap();
    assert_eq!(listed[0]["path"], "/dev/sdb");
    let restored = world.path("restored");
    world.ferry.restore("latest", &restored, &["--verify"]).unwrap();
    assert_eq!(fs::read(&restored).unwrap(), bytes);
    assert_eq!(super::cat(&world.ferry, &["latest", "/dev/sdb"]), bytes);
    let copied = world.path("copied");
    world
        .ferry
        .run(["cp", "latest", "/dev/sdb", &copied.display().to_string()])
        .unwrap();
    assert_eq!(fs::read(&copied).unwrap(), bytes);
    world.refuses(&["cp", "latest", "/", &world.text("target")], 4, &["not a name"]);
}

#[test]
fn paths_that_are_not_there_are_wrong_usage() {
    let world = world(sample);
    for (args, words) in [
        (&["ls", "latest", "nothing"][..], &["no \"nothing\"", "folder"][..]),
        (&["ls", "latest", "a/b"], &["\"a\" in the snapshot is no folder"]),
        (&["cat", "latest", "sub"], &["not a file"]),
        (&["cat", "latest", "link"], &["not a file"]),
        (&["cat", "latest"], &["not a file"]),
        (&["cp", "latest", "sub/../a", "/tmp/x"], &["no \"..\""]),
    ] {
        world.refuses(args, 2, words);
    }
    let ended = world.ferry.ended(["cat", "latest", "a", "--json"]).unwrap();
    assert_eq!(ended.code, Some(2), "{ended:?}");
}
