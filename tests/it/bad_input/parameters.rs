//! Parameters of a repository that this version does not know, or that forbid what is asked.

use blockferry_tests::volume::{BlockKind, Layout, Volume};
use repo::blob::BlobStore;
use repo::format::REPOSITORY_ID;
use repo::{BlobId, Kind, Repository};
use serde_json::{Value, json};

use super::support::{
    PASSWORD, World, alter_parameters, assert_clean, assert_refused, assert_round_trip, back_up, backup_options, empty,
    names, open, random_volume,
};

/// Asserts that a repository with changed parameters is not opened.
#[track_caller]
fn check_refused(change: impl FnOnce(&mut Value), kind: Kind, words: &[&str]) {
    let store = empty();
    alter_parameters(&*store, change);
    let error = Repository::open(store, PASSWORD).err().expect("refused");
    assert_eq!(error.kind(), kind, "{error}");
    let code = if kind == Kind::Corrupt { 4 } else { 1 };
    assert_refused(error, code, &[&["memory", "kopia.repository"], words].concat());
}

#[test]
fn unknown_algorithms_are_refused_by_name() {
    for (field, name) in [
        ("hash", "SHA-1"),
        ("hash", ""),
        ("encryption", "NONE"),
        ("encryption", "AES256-GCM-HMAC-SHA512"),
        ("ecc", "REED-SOLOMON-CRC64"),
    ] {
        let change = |format: &mut Value| {
            format["eccOverheadPercent"] = 1.into();
            format[field] = name.into();
        };
        check_refused(change, Kind::Unsupported, &[name]);
    }
}

#[test]
fn unknown_versions_are_refused_with_the_way_out() {
    let version = |number: i64| move |format: &mut Value| format["version"] = number.into();
    check_refused(version(0), Kind::Unsupported, &["format version 0", "1 to 3"]);
    check_refused(version(4), Kind::Unsupported, &["format version 4", "newer"]);
    check_refused(
        version(i64::MAX),
        Kind::Unsupported,
        &["format version 9223372036854775807"],
    );
    check_refused(
        |format| format["indexVersion"] = 3.into(),
        Kind::Unsupported,
        &["index version 3"],
    );
    check_refused(
        |format| format["epochParameters"]["EpochRefreshFrequency"] = 0.into(),
        Kind::Unsupported,
        &["epoch parameters"],
    );
}

#[test]
fn parameters_out_of_bounds_are_refused() {
    for size in [1, -1, (10 << 20) - 1, (120 << 20) + 1, i64::MAX] {
        check_refused(
            |format| format["maxPackSize"] = size.into(),
            Kind::Unsupported,
            &["maxPackSize", &size.to_string()],
        );
    }
    check_refused(
        |format| format["masterKey"] = "AAAA".into(),
        Kind::Unsupported,
        &["master key of 3 bytes"],
    );
    check_refused(
        |format| format["masterKey"] = Value::Null,
        Kind::Unsupported,
        &["master key of 0 bytes"],
    );
    check_refused(
        |format| format["secret"] = "not base64!".into(),
        Kind::Corrupt,
        &["not the expected JSON"],
    );
    check_refused(
        |format| *format = json!("text"),
        Kind::Corrupt,
        &["not the expected JSON"],
    );
}

#[test]
fn keys_never_appear_in_messages() {
    let store = empty();
    let mut secret = String::new();
    alter_parameters(&*store, |format| {
        secret = format["secret"].as_str().unwrap().to_owned();
        format["version"] = format["secret"].clone();
    });
    let error = Repository::open(store, PASSWORD).err().unwrap();
    assert!(
        error.is_damage() && !super::support::chain(&error).contains(&secret),
        "{error}"
    );
}

#[test]
fn an_unknown_required_feature_is_refused_unless_it_only_warns() {
    let feature = |warn: bool| {
        move |format: &mut Value| {
            let hint =
                json!({"warn": warn, "message": "get kopia 9", "url": "https://example.com", "upgradeToVersion": "9"});
            format["requiredFeatures"] = json!([{"feature": "index-v2"}, {"feature": "warp", "ifNotUnderstood": hint}]);
        }
    };
    check_refused(
        feature(false),
        Kind::Unsupported,
        &["warp", "get kopia 9", "https://example.com"],
    );

    let store = empty();
    alter_parameters(&*store, feature(true));
    assert_eq!(open(store.clone()).format().ignored_features.len(), 1);
    assert_round_trip(&store, random_volume(1, 1).path());
    let world = World::with(&*store);
    let ended = world.ferry.ended(["repo", "status"]).unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    super::support::assert_words(&ended.stdout, &["warning", "warp", "get kopia 9"]);
}

#[test]
fn a_locked_repository_is_neither_read_nor_written() {
    let lock = json!({
        "ownerID": "upgrader@host", "creationTime": "2026-01-01T00:00:00Z", "advanceNoticeDuration": 0,
        "ioDrainTimeout": 900_000_000_000_i64, "statusPollInterval": 60_000_000_000_i64, "message": "", "maxPermittedClockDrift": 300_000_000_000_i64,
    });
    check_refused(
        |format| format["upgradeLock"] = lock.clone(),
        Kind::Locked,
        &["locked for an upgrade", "upgrader@host", "try again"],
    );

    // One that is announced for later does not keep anybody out yet.
    let mut later = lock;
    later["creationTime"] = "2096-01-01T00:00:00Z".into();
    later["advanceNoticeDuration"] = 3_600_000_000_000_i64.into();
    let store = empty();
    alter_parameters(&*store, |format| format["upgradeLock"] = later);
    assert_round_trip(&store, random_volume(2, 1).path());
}

#[test]
fn old_layouts_are_read_and_not_written() {
    let volume = random_volume(3, 1);
    for change in [("indexVersion", json!(1)), ("enablePasswordChange", json!(false))] {
        let store = empty();
        assert_round_trip(&store, volume.path());
        alter_parameters(&*store, |format| format[change.0] = change.1);
        let before = names(&*store, "");
        let repository = open(store.clone());
        assert_eq!(repository.snapshots().unwrap().len(), 1, "{}", change.0);
        let error = back_up(&repository, volume.path(), &backup_options()).unwrap_err();
        assert_refused(error, 1, &["kopia.repository", "read only"]);
        assert_eq!(names(&*store, ""), before, "a refused backup stores nothing");
    }
}

#[test]
fn the_splitter_does_not_matter_to_block_images() {
    let volume = Volume::create(&Layout::uniform(4, (2 << 20) + 512, BlockKind::Records)).unwrap();
    for splitter in ["FIXED-8M", "", "SOMETHING-NEW"] {
        let store = empty();
        alter_parameters(&*store, |format| format["splitter"] = splitter.into());
        assert_round_trip(&store, volume.path());
        assert_clean(&store, 1);
    }
}

#[test]
fn the_outer_part_is_checked_before_the_password() {
    let id = BlobId::new(REPOSITORY_ID).unwrap();
    let bytes = empty().get(&id).unwrap();
    let outer: Value = serde_json::from_slice(&bytes).unwrap();
    let with = |field: &str, value: Value| {
        let mut outer = outer.clone();
        outer[field] = value;
        serde_json::to_vec(&outer).unwrap()
    };
    let cases: [(Vec<u8>, Kind, &str); 10] = [
        (
            with("keyAlgo", "testing-only-insecure".into()),
            Kind::Unsupported,
            "testing-only-insecure",
        ),
        (with("keyAlgo", Value::Null), Kind::Corrupt, "not the expected JSON"),
        (with("encryption", "NONE".into()), Kind::Unsupported, "NONE"),
        (with("uniqueID", "AAAA".into()), Kind::Corrupt, "unique id has 3 bytes"),
        (with("uniqueID", "?".into()), Kind::Corrupt, "not the expected JSON"),
        (
            with("encryptedBlockFormat", "".into()),
            Kind::Corrupt,
            "no encrypted part",
        ),
        (
            with("encryptedBlockFormat", "AAAA".into()),
            Kind::WrongPassword,
            "or that blob is damaged",
        ),
        (Vec::new(), Kind::Corrupt, "not the expected JSON"),
        (b"{}".to_vec(), Kind::Corrupt, "not the expected JSON"),
        (vec![b' '; 300_000], Kind::Corrupt, "300000 bytes"),
    ];
    for (bytes, kind, word) in cases {
        let store = empty();
        store.put(&id, &bytes).unwrap();
        let error = Repository::open(store, PASSWORD).err().expect(word);
        assert_eq!(error.kind(), kind, "{error}");
        assert_refused(error, if kind == Kind::Corrupt { 4 } else { 1 }, &["memory", word]);
    }
    let store = empty();
    store.put(&id, &bytes[..bytes.len() / 2]).unwrap();
    let world = World::with(&*store);
    world.refuses(
        &["snapshots"],
        4,
        &["kopia.repository", &world.repo().display().to_string()],
    );
}
