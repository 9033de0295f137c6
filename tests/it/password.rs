//! Another password for a repository, judged by the real kopia.

use std::fs;

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::kopia::{self, Kopia};
use repo::blob::{BlobStore, FaultStore};
use repo::format::change_password;

use crate::bad_input::support::{
    PASSWORD, World, assert_failed, assert_words, copy, empty, materialise, random_volume,
};

const NEW: &str = "new password, with spaces";

#[test]
fn kopia_opens_with_the_new_password_and_not_with_the_old_one() {
    let world = World::new();
    let volume = random_volume(71, 3);
    let report = world.ferry.backup(volume.path(), &[]).unwrap();
    let file = world.text("new");
    fs::write(&file, format!("{NEW}\nsecond line\n")).unwrap();
    let document = world
        .ferry
        .run_json(["repo", "password", "--new-password-file", &file])
        .unwrap();
    assert_eq!(
        (&document["changed"], &document["resumed"]),
        (&true.into(), &false.into())
    );
    assert_failed(
        &world.ferry.ended(["snapshots"]).unwrap(),
        1,
        &["password does not open"],
    );

    let ferry = Blockferry::new(&world.repo(), NEW).unwrap();
    ferry.run(["verify", "--percent", "100"]).unwrap();
    ferry.backup(volume.path(), &[]).unwrap();
    if !kopia::available() {
        return;
    }
    let old = Kopia::new(&world.repo(), PASSWORD).unwrap();
    assert_words(
        &old.connect().unwrap_err().to_string(),
        &["invalid repository password"],
    );
    let kopia = Kopia::new(&world.repo(), NEW).unwrap();
    kopia.connect().unwrap();
    kopia.verify_full().unwrap();
    let target = world.path("restored");
    kopia.restore(report["snapshotId"].as_str().unwrap(), &target).unwrap();

    // And back again, by kopia's own command.
    kopia
        .run(["repository", "change-password", "--new-password", PASSWORD])
        .unwrap();
    world.ferry.run(["verify", "--percent", "100"]).unwrap();
}

#[test]
fn kopia_opens_what_a_cut_leaves_with_one_of_the_two_passwords() {
    if !kopia::available() {
        return;
    }
    for changes in 0..=3 {
        let store = copy(&*empty());
        let faults = FaultStore::new(store.clone());
        faults.cut_after(changes);
        assert!(change_password(&faults, PASSWORD, NEW).is_err());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("repo");
        materialise(&*store, &path);
        let opens = |password: &str| Kopia::new(&path, password).unwrap().connect().is_ok();
        assert_eq!(
            [opens(PASSWORD), opens(NEW)],
            [changes < 2, changes >= 2],
            "cut after {changes}"
        );
        let store: &dyn BlobStore = &repo::blob::FsStore::open(&path).unwrap();
        change_password(store, PASSWORD, NEW).unwrap();
        assert_eq!(
            [opens(PASSWORD), opens(NEW)],
            [false, true],
            "cut after {changes}, completed"
        );
    }
}

#[test]
fn passwords_that_cannot_be_are_refused() {
    let world = World::new();
    let file = world.text("new");
    fs::write(&file, "\n").unwrap();
    let given = ["repo", "password", "--new-password-file", &file];
    world.refuses(&given, 2, &["first line is empty"]);
    fs::write(&file, PASSWORD).unwrap();
    world.refuses(&given, 2, &["the new password is the one"]);
    world.refuses(
        &["repo", "password"],
        2,
        &["--new-password-file", "BLOCKFERRY_NEW_PASSWORD"],
    );
    let wrong = Blockferry::new(&world.repo(), "wrong").unwrap();
    fs::write(&file, NEW).unwrap();
    assert_failed(&wrong.ended(given).unwrap(), 1, &["password does not open"]);
    world.assert_clean(0);
}
