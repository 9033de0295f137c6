//! What a delta restore and its list refuse, and the documents of dry runs and differences.

use std::fs;

use blockferry_tests::volume::{BlockKind, Layout, Volume, change_blocks, changes_json};

use crate::bad_input::support::{MIB, World, assert_same};

fn world() -> (World, Volume) {
    let world = World::new();
    let volume = Volume::create(&Layout::mixed(91, 6 * MIB + 512)).unwrap();
    world.ferry.backup(volume.path(), &[]).unwrap();
    (world, volume)
}

#[test]
fn a_list_that_is_wrong_leaves_the_target_alone() {
    let (world, volume) = world();
    let (target, list) = (world.text("target"), world.text("list"));
    let before = vec![7; volume.bytes().unwrap().len()];
    fs::write(&target, &before).unwrap();
    let size = volume.size();
    let extent = |offset: i64, length: i64| format!(r#"{{"offset":{offset},"length":{length}}}"#);
    let of = |extents: &[String]| format!(r#"{{"volumeSize":{size},"changed":[{}]}}"#, extents.join(","));
    let past = i64::try_from(size).unwrap();
    for (text, word) in [
        (of(&[extent(0, 5), extent(past, 1)]), "changed[1]"),
        (
            of(&[extent(0, 5), extent(9, 1), extent(-1, 1)]),
            "changed[2] has a negative offset",
        ),
        (
            of(&[extent(0, 5), extent(4, 1)]),
            "changed[1] (4+1) overlaps changed[0]",
        ),
        (of(&[extent(i64::MAX, i64::MAX)]), "changed[0]"),
        (
            of(&[r#"{"offset":18446744073709551615,"length":2}"#.into()]),
            "past 2^64",
        ),
        ("{".into(), "not a list of changes"),
        (r#"{"volumeSize":4096,"changed":[]}"#.into(), "4096 bytes"),
        (
            r#"{"volumeSize":18446744073709551615,"changed":[]}"#.into(),
            "volumeSize",
        ),
    ] {
        fs::write(&list, text).unwrap();
        world.refuses(
            &["restore", "latest", &target, "--mode", "delta", "--changed", &list],
            2,
            &[word],
        );
        assert_same(&fs::read(&target).unwrap(), &before);
    }
    fs::write(&list, of(&[])).unwrap();
    world.refuses(
        &["restore", "latest", &target, "--changed", &list, "--force"],
        2,
        &["--mode delta"],
    );
    assert_same(&fs::read(&target).unwrap(), &before);
    let lost = world.text("lost");
    world.refuses(
        &["restore", "latest", &target, "--mode", "delta", "--changed", &lost],
        2,
        &[&lost],
    );
    let missing = world.text("missing");
    world.refuses(
        &["restore", "latest", &missing, "--mode", "delta", "--changed", &list],
        2,
        &[&missing, "is empty"],
    );
    assert!(!world.path("missing").exists());
}

#[test]
fn a_dry_run_tells_what_the_restore_then_does_and_writes_nothing() {
    let (world, volume) = world();
    let want = volume.bytes().unwrap();
    let target = world.path("target");
    let fields = ["bytesFetched", "bytesWritten", "bytesZeroed", "bytesSkipped", "size"];
    // Into a file that is not there.
    let dry = world.ferry.restore("latest", &target, &["--dry-run"]).unwrap();
    assert!(!target.exists());
    assert_eq!((&dry["dryRun"], &dry["bytesRead"]), (&true.into(), &0.into()));
    let real = world.ferry.restore("latest", &target, &[]).unwrap();
    for field in fields {
        assert_eq!(dry[field], real[field], "{field}");
    }
    // Into one that differs.
    let mut bytes = want.clone();
    bytes[0] ^= 1;
    bytes[2 << 20..3 << 20].fill(9);
    bytes[6 << 20] ^= 1;
    fs::write(&target, &bytes).unwrap();
    let args = ["--mode", "delta"];
    let dry = world
        .ferry
        .restore("latest", &target, &[&args[..], &["--dry-run"]].concat())
        .unwrap();
    assert_same(&fs::read(&target).unwrap(), &bytes);
    let real = world.ferry.restore("latest", &target, &args).unwrap();
    for field in fields {
        assert_eq!(dry[field], real[field], "{field}");
    }
    assert_eq!((&real["mode"], &real["verified"]), (&"delta".into(), &false.into()));
    assert_same(&fs::read(&target).unwrap(), &want);
    let text = world.ferry.run([
        "restore",
        "latest",
        &world.text("target"),
        "--mode",
        "delta",
        "--dry-run",
    ]);
    assert!(text.unwrap().contains("the target was read to find that out"));
}

#[test]
fn a_difference_is_told_from_the_lists_and_is_a_list_of_changes() {
    let world = World::new();
    let volume = Volume::create(&Layout::uniform(92, 20 * MIB + 512, BlockKind::Random)).unwrap();
    let old = volume.bytes().unwrap();
    let first = world.ferry.backup(volume.path(), &[]).unwrap();
    let changes = change_blocks(volume.path(), volume.size(), 5, 3).unwrap();
    let second = world.ferry.backup(volume.path(), &[]).unwrap();
    let id = |report: &serde_json::Value| report["snapshotId"].as_str().unwrap().to_owned();
    let (a, b) = (id(&first), id(&second));
    let diff = world.ferry.run_json(["diff", &a, &b]).unwrap();
    let bytes: u64 = changes.iter().map(|change| change.length).sum();
    assert_eq!((&diff["bytesChanged"], &diff["exact"]), (&bytes.into(), &true.into()));
    assert_eq!(diff["bytesEqual"], volume.size() - bytes);
    let want: serde_json::Value = serde_json::from_str(&changes_json(volume.size(), &changes)).unwrap();
    let covered = |document: &serde_json::Value| -> u64 {
        let changed = document["changed"].as_array().unwrap();
        changed.iter().map(|part| part["length"].as_u64().unwrap()).sum()
    };
    assert_eq!(covered(&diff), covered(&want));
    assert_eq!(
        world.ferry.run_json(["diff", &a, &a]).unwrap()["changed"],
        serde_json::json!([])
    );
    let text = world.ferry.run(["diff", &a, &b]).unwrap();
    assert!(text.contains('█') && text.contains("equal"), "{text}");

    // Back to the first, by the list alone.
    let (target, list) = (world.path("target"), world.text("list"));
    fs::copy(volume.path(), &target).unwrap();
    fs::write(&list, world.ferry.run(["diff", &b, &a, "--json"]).unwrap()).unwrap();
    let report = world
        .ferry
        .restore(&a, &target, &["--mode", "delta", "--changed", &list, "--verify"])
        .unwrap();
    assert_eq!(
        (&report["verified"], &report["bytesWritten"]),
        (&true.into(), &bytes.into())
    );
    assert_eq!(report["proof"]["mismatches"], 0);
    assert_eq!(report["proof"]["blocks"], 21);
    assert_same(&fs::read(&target).unwrap(), &old);

    // A volume that grew: what is added is told apart.
    let file = fs::OpenOptions::new().write(true).open(volume.path()).unwrap();
    file.set_len(23 * MIB).unwrap();
    let third = id(&world.ferry.backup(volume.path(), &[]).unwrap());
    let diff = world.ferry.run_json(["diff", &b, &third]).unwrap();
    assert_eq!(
        (&diff["bytesAdded"], &diff["bytesChanged"]),
        (&(3 * MIB - 512).into(), &0.into())
    );
    let diff = world.ferry.run_json(["diff", &third, &b]).unwrap();
    assert_eq!(
        (&diff["bytesRemoved"], &diff["changed"]),
        (&(3 * MIB - 512).into(), &serde_json::json!([]))
    );
    world.refuses(&["diff", &a, "nonesuch"], 2, &["no snapshot"]);
}
