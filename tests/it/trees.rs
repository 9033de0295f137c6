//! Files of snapshots: `ls`, `cat` and `cp`, with kopia as the judge of metadata, and with trees and targets that set traps.
//!
//! | module | what |
//! |---|---|
//! | this one | golden trees; kopia's own restore beside ours; damage |
//! | [`traps`] | names that lead elsewhere, links in the target, things in the way |

mod traps;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::golden::Golden;
use blockferry_tests::kopia::Kopia;
use blockferry_tests::process;
use blockferry_tests::repo::{TreeKind, list_tree, sha256};
use serde_json::Value;

use crate::kopia_compat::judge::kopia_is_here;

/// Standard output of `cat`, as bytes.
fn cat(ours: &Blockferry, args: &[&str]) -> Vec<u8> {
    let output = process::output(&mut ours.command([&["cat"], args].concat()), &[]).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn golden_trees_are_listed_printed_and_copied() {
    for (name, at) in [("tree", 0), ("nested", 1)] {
        let golden = Golden::load(name).unwrap();
        let copy = golden.materialise().unwrap();
        let ours = Blockferry::new(&copy.repo, &golden.expected.password).unwrap();
        let snapshot = &golden.expected.snapshots[at];
        let (root, below) = snapshot.entries.split_first().expect("a root");
        assert_eq!(root.path, "");

        let listed = ours.run_json(["ls", &snapshot.id, "--recursive"]).unwrap();
        let text = |row: &Value, key: &str| row[key].as_str().expect("text").to_owned();
        let have: BTreeMap<String, (String, u64)> = listed
            .as_array()
            .expect("rows")
            .iter()
            .map(|row| {
                (
                    text(row, "path"),
                    (text(row, "kind"), row["size"].as_u64().expect("a number")),
                )
            })
            .collect();
        assert_eq!(have.len(), below.len(), "{name}");
        for entry in below {
            let (kind, size) = &have[&entry.path];
            let expect = match &entry.kind {
                TreeKind::Directory => ("directory", *size),
                TreeKind::File { size, .. } => ("file", *size),
                TreeKind::Symlink { target } => ("symlink", target.len() as u64),
            };
            assert_eq!((kind.as_str(), *size), expect, "{name}: {}", entry.path);
        }
        let lines = ours.run(["ls", &snapshot.id, "--recursive"]).unwrap();
        assert_eq!(lines.lines().count(), below.len());

        let files = below.iter().filter(|entry| matches!(entry.kind, TreeKind::File { .. }));
        for entry in files.step_by(below.len() / 5) {
            let bytes = cat(&ours, &[&snapshot.id, &entry.path]);
            let TreeKind::File { size, sha256: digest } = &entry.kind else {
                continue;
            };
            assert_eq!((bytes.len() as u64, &sha256(&bytes)), (*size, digest), "{}", entry.path);
        }

        let target = copy.repo.with_file_name("copied");
        let report = ours
            .run_json(["cp", &snapshot.id, "/", &target.display().to_string()])
            .unwrap();
        assert_eq!(list_tree(&target).unwrap(), snapshot.entries, "{name}");
        assert_eq!(report["skipped"], serde_json::json!([]));
        let files = below
            .iter()
            .filter(|entry| matches!(entry.kind, TreeKind::File { .. }))
            .count();
        assert_eq!(report["files"], files);
    }
}

/// A volume whose list is a list of lists is one file like others.
#[test]
fn a_file_of_many_pieces_is_printed_and_copied_piece_by_piece() {
    let golden = Golden::load("nested").unwrap();
    let copy = golden.materialise().unwrap();
    let ours = Blockferry::new(&copy.repo, &golden.expected.password).unwrap();
    let snapshot = &golden.expected.snapshots[0];
    let TreeKind::File { size, sha256: digest } = &snapshot.entries[0].kind else {
        panic!("a file")
    };
    assert_eq!(sha256(&cat(&ours, &[&snapshot.id])), *digest);
    let target = copy.repo.with_file_name("copied.img");
    let report = ours
        .run_json(["cp", &snapshot.id, "", &target.display().to_string()])
        .unwrap();
    assert_eq!((&report["files"], &report["bytes"]), (&1.into(), &(*size).into()));
    assert_eq!(sha256(&fs::read(&target).unwrap()), *digest);
}

/// What `stat` says of everything below `root`: mode, time, owner, and what it holds.
fn described(root: &Path) -> Vec<(String, u32, i64, i64, u32, u32)> {
    let describe = |entry: blockferry_tests::repo::TreeEntry| {
        let meta = fs::symlink_metadata(root.join(&entry.path)).unwrap();
        (
            entry.path,
            meta.mode(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.uid(),
            meta.gid(),
        )
    };
    list_tree(root).unwrap().into_iter().map(describe).collect()
}

fn plant(root: &Path) {
    fs::create_dir_all(root.join("folder/inner")).unwrap();
    fs::create_dir(root.join("sticky")).unwrap();
    for (path, mode) in [
        ("plain", 0o644),
        ("secret", 0o600),
        ("program", 0o755),
        ("owner's", 0o4755),
        ("group's", 0o2711),
        ("unreadable", 0o000),
        ("folder/inner/leaf", 0o440),
    ] {
        fs::write(root.join(path), path.repeat(50)).unwrap();
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    // A megabyte of zeros in the middle of a file, and at its end.
    let sparse = [vec![7; 5000], vec![0; 1 << 20], vec![8; 5000], vec![0; 300_000]].concat();
    fs::write(root.join("sparse"), sparse).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    symlink("folder/inner/leaf", root.join("link")).unwrap();
    symlink("/nowhere/at all", root.join("folder/broken")).unwrap();
    let old = SystemTime::UNIX_EPOCH - Duration::from_millis(1_234_567_890_123);
    fs::File::options()
        .write(true)
        .open(root.join("plain"))
        .unwrap()
        .set_modified(old)
        .unwrap();
    if fs::metadata(root).unwrap().uid() == 0 {
        std::os::unix::fs::chown(root.join("secret"), Some(1234), Some(4321)).unwrap();
        std::os::unix::fs::lchown(root.join("link"), Some(1234), Some(4321)).unwrap();
    }
    fs::set_permissions(root.join("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(root.join("folder/inner"), fs::Permissions::from_mode(0o550)).unwrap();
}

#[test]
fn metadata_is_restored_as_kopia_does() {
    if !kopia_is_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("repo")).unwrap();
    let kopia = Kopia::new(&path("repo"), "passw0rd").unwrap();
    kopia.create(&[]).unwrap();
    let source = path("source");
    fs::create_dir(&source).unwrap();
    plant(&source);
    let manifest = kopia.snapshot_create(&source, &[]).unwrap();
    let id = manifest["id"].as_str().expect("an id");

    let ours = Blockferry::new(&path("repo"), "passw0rd").unwrap();
    ours.run(["cp", id, "/", &path("ours").display().to_string()]).unwrap();
    kopia
        .run(["restore", id, &path("theirs").display().to_string()])
        .unwrap();
    assert_eq!(list_tree(&path("ours")).unwrap(), list_tree(&source).unwrap());
    // Kopia sets the times of links to microseconds only; against the source ours must be exact.
    let without_link_times = |name: &str| -> Vec<_> {
        let mut all = described(&path(name));
        let links = all.iter_mut().filter(|entry| entry.1 & 0o170_000 == 0o120_000);
        links.for_each(|entry| (entry.2, entry.3) = (0, 0));
        all
    };
    assert_eq!(without_link_times("ours"), without_link_times("theirs"));
    if fs::metadata(&source).unwrap().uid() == 0 {
        assert_eq!(described(&path("ours")), described(&source));
    }
    let blocks = fs::metadata(path("ours").join("sparse")).unwrap().blocks();
    assert!(blocks < 1000, "{blocks} blocks of 512 bytes: zeros are holes");

    let text = ours.run(["ls", id]).unwrap();
    for line in [
        "drwxrwxrwt",
        "-rwsr-xr-x",
        "-rwx--s--x",
        "----------",
        "lrwxrwxrwx",
        "sticky/",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
    // One folder of it, and one file into a folder that is there.
    ours.run(["cp", id, "folder/inner", &path("part").display().to_string()])
        .unwrap();
    assert_eq!(
        fs::read(path("part/leaf")).unwrap(),
        fs::read(source.join("folder/inner/leaf")).unwrap()
    );
    ours.run(["cp", id, "program", &path("part").display().to_string()])
        .unwrap();
    ours.run(["cp", id, "program", &path("renamed").display().to_string()])
        .unwrap();
    for name in ["part/program", "renamed"] {
        assert_eq!(fs::metadata(path(name)).unwrap().mode() & 0o7777, 0o755, "{name}");
    }
}

#[test]
fn what_is_missing_ends_cat_and_cp_with_an_error_and_without_half_a_file() {
    let golden = Golden::load("nested").unwrap();
    let copy = golden.materialise().unwrap();
    let ours = Blockferry::new(&copy.repo, &golden.expected.password).unwrap();
    let snapshot = &golden.expected.snapshots[0];
    // The data packs are gone; lists and index are not.
    fs::remove_dir_all(copy.repo.join("p")).unwrap();
    let target = copy.repo.with_file_name("copied.img");
    for command in [
        vec!["cat", &snapshot.id],
        vec!["cp", &snapshot.id, "", &target.display().to_string()],
    ] {
        let ended = ours.ended(&command).unwrap();
        assert_eq!(ended.code, Some(4), "{ended:?}");
        assert!(ended.stderr.contains("pack"), "{ended:?}");
        assert_eq!(ended.stdout, "");
    }
    assert!(!target.exists());
    let left: Vec<_> = fs::read_dir(target.parent().unwrap())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["repo"], "no temporary file stays");
}
