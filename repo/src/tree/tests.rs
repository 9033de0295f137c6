//! Trees made in memory.

use std::sync::Arc;

use super::*;
use crate::blob::MemStore;
use crate::compress::CompressionPolicy;
use crate::directory::{Directory, Mode};
use crate::format::CreateOptions;
use crate::id::ObjectId;
use crate::session::{WriteOptions, WriteSession};
use crate::snapshot::{Snapshot, Source, Stats};
use crate::time::Time;

fn repository() -> Repository {
    let store = Arc::new(MemStore::new());
    Repository::create(&*store, "password", &CreateOptions::default()).unwrap();
    Repository::open(store, "password").unwrap()
}

fn begin(repository: &Repository) -> WriteSession<'_> {
    let options = WriteOptions {
        sealers: 1,
        uploads: 1,
        compression: CompressionPolicy::None,
        user: "u".into(),
        host: "h".into(),
        ..WriteOptions::default()
    };
    WriteSession::begin(repository, &options).unwrap()
}

fn entry(name: &str, kind: EntryKind, object: ObjectId, size: u64) -> DirectoryEntry {
    DirectoryEntry {
        name: name.into(),
        kind,
        mode: Mode(0o644),
        size,
        modified: Time::UNIX_EPOCH,
        uid: 0,
        gid: 0,
        object,
        summary: None,
    }
}

fn file(session: &WriteSession<'_>, name: &str, bytes: &[u8]) -> DirectoryEntry {
    let id = session.repository().contents().content_id(None, bytes);
    let mut sealer = session.sealer();
    sealer.store(id, bytes).unwrap();
    sealer.finish().unwrap();
    entry(name, EntryKind::File, ObjectId::direct(id), bytes.len() as u64)
}

fn folder(session: &WriteSession<'_>, name: &str, entries: Vec<DirectoryEntry>) -> DirectoryEntry {
    let id = session
        .put_metadata('k', &Directory::new(entries).to_bytes(), true)
        .unwrap();
    entry(name, EntryKind::Directory, ObjectId::direct(id), 0)
}

fn snapshot(root: Option<DirectoryEntry>) -> Snapshot {
    Snapshot {
        id: None,
        source: Source {
            host: "h".into(),
            user: "u".into(),
            path: "/p".into(),
        },
        description: String::new(),
        start: Time::now(),
        end: Time::now(),
        stats: Stats::default(),
        incomplete: String::new(),
        root,
        tags: [].into(),
        pins: vec![],
    }
}

/// A repository with the tree that `make` makes, seen by `check`.
fn with_tree(make: impl FnOnce(&WriteSession<'_>) -> DirectoryEntry, check: impl FnOnce(&Tree<'_>)) {
    let repository = repository();
    let session = begin(&repository);
    let root = make(&session);
    session.commit(&snapshot(Some(root.clone()))).unwrap();
    check(&Tree::new(&repository, &snapshot(Some(root))).unwrap());
}

fn paths(tree: &Tree<'_>, from: &str, recursive: bool) -> Vec<String> {
    let mut paths = Vec::new();
    let folder = tree.find(from).unwrap();
    tree.walk::<RepoError>(&folder, recursive, &mut |path, _| {
        paths.push(path.to_owned());
        Ok(())
    })
    .unwrap();
    paths
}

fn sample(session: &WriteSession<'_>) -> DirectoryEntry {
    let deep = folder(
        session,
        "deep",
        vec![file(session, "z", b"zz"), file(session, "a", b"a")],
    );
    let sub = folder(session, "sub", vec![deep, file(session, "b", b"b")]);
    let link = DirectoryEntry {
        kind: EntryKind::Symlink,
        ..file(session, "link", b"sub/deep")
    };
    folder(session, "", vec![sub, link, file(session, "/dev/sdb", b"device")])
}

#[test]
fn entries_are_found_by_path_and_links_are_not_followed() {
    with_tree(sample, |tree| {
        for (path, name) in [
            ("", ""),
            ("/", ""),
            ("sub", "sub"),
            ("/sub/deep/", "deep"),
            ("sub//deep/z", "z"),
            ("link", "link"),
            ("/dev/sdb", "/dev/sdb"),
            ("dev/sdb", "/dev/sdb"),
        ] {
            assert_eq!(tree.find(path).unwrap().name, name, "{path:?}");
        }
        for (path, word) in [
            ("nothing", "no \"nothing\" in the folder \"\""),
            ("sub/deep/y", "no \"y\" in the folder \"sub/deep\""),
            ("sub/b/c", "\"sub/b\" in the snapshot is no folder"),
            ("link/z", "links are not followed"),
            ("sub/..", "no \"..\""),
            ("dev", "no \"dev\""),
        ] {
            let error = tree.find(path).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidInput, "{path:?}");
            assert!(error.what().contains(word), "{path:?}: {error}");
        }
    });
}

#[test]
fn a_walk_goes_by_name_and_down_only_when_asked() {
    with_tree(sample, |tree| {
        assert_eq!(paths(tree, "", false), ["/dev/sdb", "link", "sub"]);
        let all = [
            "/dev/sdb",
            "link",
            "sub",
            "sub/b",
            "sub/deep",
            "sub/deep/a",
            "sub/deep/z",
        ];
        assert_eq!(paths(tree, "", true), all);
        assert_eq!(paths(tree, "sub", true), ["b", "deep", "deep/a", "deep/z"]);
    });
}

#[test]
fn files_and_links_are_read() {
    with_tree(sample, |tree| {
        let bytes = tree.open(&tree.find("sub/deep/z").unwrap()).unwrap();
        let mut read = Vec::new();
        bytes
            .each_piece::<RepoError>(&mut |piece| {
                read.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
        assert_eq!((bytes.len(), &read[..]), (2, &b"zz"[..]));
        assert_eq!(tree.link_target(&tree.find("link").unwrap()).unwrap(), b"sub/deep");
    });
}

#[test]
fn lies_about_files_are_damage() {
    with_tree(sample, |tree| {
        let good = tree.find("sub/b").unwrap();
        let longer = DirectoryEntry {
            size: 2,
            ..good.clone()
        };
        let missing = DirectoryEntry {
            object: "00112233445566778899aabbccddeeff".parse().unwrap(),
            ..good.clone()
        };
        for (file, word) in [(longer, "2 bytes by its entry"), (missing, "not in the index")] {
            let error = tree.open(&file).err().expect(word);
            assert!(error.is_damage() && error.what().contains(word), "{error}");
        }
        assert!(tree.list(&good).unwrap_err().is_damage(), "a file is no folder");
    });
    let long = |session: &WriteSession<'_>| {
        let link = file(session, "link", &[b'x'; 4097]);
        folder(session, "", vec![link, file(session, "none", b"")])
    };
    with_tree(long, |tree| {
        for name in ["link", "none"] {
            assert!(tree.link_target(&tree.find(name).unwrap()).unwrap_err().is_damage());
        }
    });
}

#[test]
fn two_entries_of_one_name_are_damage() {
    let twins =
        |session: &WriteSession<'_>| folder(session, "", vec![file(session, "a", b"1"), file(session, "a", b"2")]);
    with_tree(twins, |tree| {
        let error = tree.find("a").unwrap_err();
        assert!(error.is_damage() && error.what().contains("two entries"), "{error}");
    });
}

#[test]
fn folders_without_end_end() {
    let nested = |session: &WriteSession<'_>| {
        (0..DEPTH_MAX + 2).fold(folder(session, "x", vec![]), |inner, _| {
            folder(session, "x", vec![inner])
        })
    };
    with_tree(nested, |tree| {
        let root = tree.find("").unwrap();
        let error = tree.walk::<RepoError>(&root, true, &mut |_, _| Ok(())).unwrap_err();
        assert!(error.is_damage() && error.what().contains("1024"), "{error}");
        assert_eq!(paths(tree, "x/x/x", false), ["x"]);
    });
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let named = |name: &str| entry(name, EntryKind::File, "00".parse().unwrap(), 0);
    for bad in ["", ".", "..", "a/b", "/", "../x", "a\0"] {
        let refused = named(bad);
        assert!(file_name(&refused).unwrap_err().is_damage(), "{bad:?}");
    }
    for good in ["a", "...", ".x", "a\nb", "-rf", "ü", "a\\b"] {
        assert_eq!(file_name(&named(good)).unwrap(), good);
    }
}

#[test]
fn a_snapshot_without_a_root_has_no_tree() {
    let repository = repository();
    let error = Tree::new(&repository, &snapshot(None)).err().expect("no root");
    assert_eq!(error.kind(), Kind::InvalidInput);
}
