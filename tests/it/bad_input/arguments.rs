//! The command line: what is wrong usage ends with exit code 2, says what would be right, and does nothing.

use std::fs;

use repo::compress::CompressionPolicy;
use repo::manifest::Changes;
use repo::session::{WriteOptions, WriteSession};
use serde_json::Value;

use super::support::{World, assert_failed, assert_words, back_up, backup_options, empty, names, open, random_volume};

/// A repository with one snapshot, and a source.
fn world() -> (World, String) {
    let world = World::new();
    let source = world.text("source");
    fs::copy(random_volume(41, 1).path(), &source).unwrap();
    world.ferry.backup(&world.path("source"), &[]).unwrap();
    (world, source)
}

#[test]
fn wrong_usage_ends_with_2_and_does_nothing() {
    let (world, source) = world();
    let target = world.text("target");
    let before = names(&*world.store(), "");
    let cases: &[(&[&str], &[&str])] = &[
        (&["nonesuch"], &["nonesuch", "Usage"]),
        (&["backup"], &["<SOURCE>", "Usage"]),
        (
            &["backup", &source, "--limit", "1.5GiB"],
            &["1.5GiB", "--limit", "is not a size", "4KiB"],
        ),
        (&["backup", &source, "--limit", "-1"], &["-1"]),
        (
            &["backup", &source, "--limit", "99999999999TiB"],
            &["99999999999TiB", "is not a size"],
        ),
        (&["backup", &source, "--limit", ""], &["--limit", "is not a size"]),
        (&["backup", &source, "--workers", "0"], &["--workers", "1..=64"]),
        (&["backup", &source, "--workers", "65"], &["--workers", "1..=64"]),
        (&["backup", &source, "--engine", "warp"], &["warp", "uring", "pread"]),
        (&["backup", &source, "--compression", "warp"], &["warp", "none, auto"]),
        (&["backup", &source, "--as", "nobody"], &["nobody", "user@host:path"]),
        (&["backup", &source, "--change-id", "c"], &["--volume-id"]),
        (&["backup", &source, "--volume-id", "v"], &["--change-id"]),
        (&["backup", &source, "--tag", "novalue"], &["novalue", "KEY=VALUE"]),
        (&["backup", &source, "--tag", "=v"], &["=v", "KEY=VALUE"]),
        (&["restore", "latest", &target, "--mode", "warp"], &["warp", "full"]),
        (&["restore", "latest"], &["<TARGET>"]),
        (&["verify", "--percent", "101"], &["--percent 101", "between 0 and 100"]),
        (&["verify", "--percent=-1"], &["--percent -1", "between 0 and 100"]),
        (&["verify", "--percent", "NaN"], &["--percent NaN", "between 0 and 100"]),
        (&["snapshots", "--source", "x"], &["user@host:path"]),
        (
            &["repo", "create", &target, "--hash", "SHA-1"],
            &["SHA-1", "BLAKE2B-256-128"],
        ),
        (
            &["repo", "create", &target, "--encryption", "NONE"],
            &["NONE", "AES256-GCM-HMAC-SHA256"],
        ),
        (
            &["repo", "create", &target, "--hash", "BLAKE3-256", "--fast"],
            &["--fast"],
        ),
        (&["delete"], &["<SNAPSHOTS>"]),
    ];
    for (args, words) in cases {
        let ended = world.ferry.ended(*args).unwrap();
        assert_failed(&ended, 2, words);
    }
    assert_eq!(names(&*world.store(), ""), before);
    assert!(!world.path("target").exists());
    world.assert_clean(1);
}

#[test]
fn tags_do_not_collide_with_what_the_backup_itself_says() {
    let (world, source) = world();
    let refused = |args: &[&str], words: &[&str]| {
        world.refuses(&[&["backup", &source], args].concat(), 2, words);
    };
    refused(&["--tag", "a=1", "--tag", "a=2"], &["\"a\"", "given twice"]);
    for label in ["type", "hostname", "username", "path"] {
        refused(&["--tag", &format!("{label}=x")], &[label, "belongs to the snapshot"]);
    }
    for tag in [
        "bdev-source-size",
        "blockferry-logical-block",
        "snapshot-uploader",
        "blockferry-version",
        "blockferry-rung",
    ] {
        refused(&["--tag", &format!("{tag}=x")], &[tag, "set by the backup itself"]);
    }
    for tag in ["cbt-change-id", "cbt-volume-id"] {
        refused(&["--tag", &format!("{tag}=x")], &[tag, "--change-id"]);
    }
    world.assert_clean(1);

    // A value may be empty or hold anything; a key may be a name of Velero's.
    world
        .ferry
        .backup(
            &world.path("source"),
            &["--tag", "a=", "--tag", "b=x=y \u{e4}", "--tag", "snapshot-requester=me"],
        )
        .unwrap();
    let snapshots = world.ferry.run_json(["snapshots"]).unwrap();
    let tags = &snapshots[1]["tags"];
    assert_eq!(
        (&tags["a"], &tags["b"], &tags["snapshot-requester"]),
        (&"".into(), &"x=y \u{e4}".into(), &"me".into())
    );
}

#[test]
fn a_snapshot_is_named_exactly_or_not_at_all() {
    let (world, _) = world();
    let target = world.text("target");
    let id = world.ferry.run_json(["snapshots"]).unwrap()[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for command in [
        &["restore", "NAME", &target][..],
        &["show", "NAME"],
        &["map", "NAME"],
        &["verify", "NAME"],
        &["delete", "NAME"],
    ] {
        for (name, words) in [
            ("nonesuch", &["no snapshot \"nonesuch\"", "blockferry snapshots"][..]),
            (&format!("{id}0"), &["no snapshot"]),
            ("latestx", &["latest"]),
            ("", &["empty"]),
            ("latest:nobody", &[]),
            ("latest:a@b:/c", &[]),
        ] {
            let args: Vec<&str> = command
                .iter()
                .map(|arg| if *arg == "NAME" { name } else { *arg })
                .collect();
            world.refuses(&args, 2, words);
        }
    }
    world.refuses(&["delete", "latest"], 2, &["ids", "latest"]);
    world.refuses(&["restore", "latest:nobody", &target], 2, &["nobody", "user@host:path"]);
    world.refuses(&["delete", &id, "nonesuch"], 2, &["nonesuch"]);
    world.assert_clean(1);
    assert!(!world.path("target").exists());
    assert_eq!(world.ferry.ended(["show", &id[..8]]).unwrap().code, Some(0));
    let ended = world.ferry.ended(["delete", &id, &id[..6]]).unwrap();
    assert_eq!(ended.code, Some(0), "the same twice is once: {}", ended.stderr);
    world.assert_clean(0);
    world.refuses(&["restore", "latest", &target], 2, &["no snapshot \"latest\""]);
}

/// Seventeen ids cannot all begin with different hex digits.
#[test]
fn an_ambiguous_beginning_of_an_id_is_refused() {
    let store = empty();
    let repository = open(store.clone());
    back_up(&repository, random_volume(42, 1).path(), &backup_options()).unwrap();
    let snapshot = repository.snapshots().unwrap().remove(0);
    let mut changes = Changes::default();
    for _ in 0..16 {
        changes.put(snapshot.labels(), &snapshot).unwrap();
    }
    let options = WriteOptions {
        sealers: 0,
        uploads: 1,
        compression: CompressionPolicy::None,
        user: "user".into(),
        host: "host".into(),
        ..WriteOptions::default()
    };
    WriteSession::begin(&repository, &options)
        .unwrap()
        .commit_changes(&changes)
        .unwrap();
    let ids: Vec<String> = repository
        .snapshots()
        .unwrap()
        .iter()
        .map(|s| s.id.unwrap().to_string())
        .collect();
    let count = |digit: char| ids.iter().filter(|id| id.starts_with(digit)).count();
    let digit = "0123456789abcdef".chars().find(|digit| count(*digit) > 1).unwrap();
    let world = World::with(&*store);
    let name = digit.to_string();
    for args in [
        &["show", &name][..],
        &["delete", &name],
        &["restore", &name, &world.text("target")],
    ] {
        world.refuses(
            args,
            2,
            &[
                &format!("{} snapshots begin with \"{name}\"", count(digit)),
                "more of the id",
            ],
        );
    }
    world.assert_clean(17);
}

#[test]
fn an_error_with_json_is_one_document() {
    let (world, source) = world();
    let target = world.text("target");
    let cases: &[(&[&str], i64)] = &[
        (&["restore", "nonesuch", &target], 2),
        (&["backup", "/nonexistent/source"], 1),
        (&["--repo", "/nonexistent/repo", "snapshots"], 1),
        (&["--repo", "ftp://host", "snapshots"], 2),
        (&["verify", "--percent", "101"], 2),
        (&["backup", &source, "--workers", "0"], 2),
        (&["backup"], 2),
        (&["nonesuch"], 2),
    ];
    for (args, code) in cases {
        let ended = world.ferry.ended(args.iter().chain(&["--json"])).unwrap();
        assert_eq!(
            ended.code.map(i64::from),
            Some(*code),
            "{args:?}: {}{}",
            ended.stdout,
            ended.stderr
        );
        let document: Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {:?}", ended.stdout));
        assert_eq!(document["exitCode"], *code, "{args:?}");
        let error = document["error"].as_str().unwrap();
        assert!(error.len() > 10 && !error.contains('\u{1b}'), "{args:?}: {error:?}");
        assert!(!ended.stderr.is_empty(), "people see it too");
    }
    // Help asked for is no error.
    let ended = world.ferry.ended(["--json", "--help"]).unwrap();
    assert_eq!(ended.code, Some(0));
    assert_words(&ended.stdout, &["Usage", "backup", "Exit codes"]);
}
