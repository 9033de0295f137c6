//! What programs rely on: fields of documents, and how much a repository is asked.

use std::fs::{self, File};

use blockferry_tests::blockferry::Blockferry;
use serde_json::{Value, json};

use crate::bad_input::support::{MIB, PASSWORD, World, random_volume};

#[track_caller]
fn assert_fields(document: &Value, fields: &[&str]) {
    for field in fields {
        assert!(document.get(field).is_some(), "no {field} in {document}");
    }
}

#[test]
fn documents_have_the_fields_that_scripts_use() {
    let world = World::new();
    let volume = random_volume(64, 3);
    let backup = world.ferry.backup(volume.path(), &[]).unwrap();
    assert_fields(
        &backup,
        &[
            "snapshotId",
            "objectId",
            "parentId",
            "rung",
            "rungReason",
            "sourceSize",
            "bytesRead",
            "bytesZero",
            "bytesUnchanged",
            "bytesNew",
            "bytesStored",
            "auditedBlocks",
            "auditMismatches",
            "bytesResumed",
            "resumeRefused",
            "durationMs",
            "peakRssBytes",
        ],
    );
    let fields = [
        "bytesFetched",
        "bytesWritten",
        "bytesZeroed",
        "bytesSkipped",
        "verified",
        "durationMs",
        "peakRssBytes",
    ];
    for mode in ["full", "delta"] {
        let args = ["--mode", mode, "--force", "--verify"];
        let restore = world.ferry.restore("latest", &world.path("target"), &args).unwrap();
        assert_fields(&restore, &fields);
        let proof = &restore["proof"];
        assert_eq!(
            (&proof["blocks"], &proof["mismatches"]),
            (&json!(3), &json!(0)),
            "{proof}"
        );
        assert_fields(proof, &["rootObject"]);
    }
}

/// The list of 65,536 chunks is 36 contents. They lie together, and are read together.
#[test]
fn the_list_of_a_parent_is_read_in_a_few_requests() {
    let world = World::new();
    let volume = world.path("volume");
    let size = 64 << 10;
    File::create(&volume).unwrap().set_len(size * MIB).unwrap();
    world.ferry.backup(&volume, &["--as", "u@h:/v"]).unwrap();
    let list = world.path("list");
    fs::write(&list, json!({"volumeSize": size * MIB, "changed": []}).to_string()).unwrap();
    // Another host: it has no cache of the repository.
    let other = Blockferry::new(&world.repo(), PASSWORD).unwrap();
    let args = [
        "--as",
        "u@h:/v",
        "--changed",
        &list.display().to_string(),
        "--require",
        "delta",
    ];
    let document = other.backup(&volume, &args).unwrap();
    let count = |op: &str| document["storage"]["operations"][op]["count"].as_u64().unwrap();
    assert!(count("range") + count("get") <= 16, "{document}");
    assert!(document["storage"]["requests"].as_u64().unwrap() <= 40, "{document}");
}
