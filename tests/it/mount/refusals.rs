//! What is not mounted, or not taken away, is told in words that help, and leaves nothing.

use std::fs;

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::golden::Golden;
use blockferry_tests::volume::Layout;

use super::{Mounts, ext4};
use crate::bad_input::support::{MIB, assert_failed};

#[test]
fn wrong_words_are_wrong_usage_and_leave_no_mount() {
    let mounts = Mounts::new(&Layout::mixed(311, 4 * MIB));
    mounts.refuses(&["mount", "ffff"], 2, &["no snapshot", "ffff"]);
    mounts.refuses(&["mount", ""], 2, &["empty name"]);
    mounts.refuses(&["mount", "latest", "--name", "a/b"], 2, &["no name of a mount"]);
    mounts.refuses(&["mount", "latest", "--fs", "/none/there"], 1, &["/none/there"]);
    mounts.refuses(
        &["mount", "latest", "--attach", "fuse", "--writable"],
        2,
        &["does not survive"],
    );
    let folder = mounts.world.path("fs");
    fs::create_dir(&folder).unwrap();
    let folder = folder.display().to_string();
    mounts.refuses(
        &["mount", "latest", "--attach", "fuse", "--fs", &folder],
        2,
        &["no file system"],
    );
    for args in [
        &["mount"][..],
        &["mount", "latest", "--attach", "tape"],
        &["mount", "latest", "--writable", "--into", "/dev/x"],
        &["unmount"],
    ] {
        assert_eq!(mounts.ended(args).code, Some(2), "{args:?}");
    }
    mounts.refuses(&["unmount", "none"], 2, &["no mount", "none"]);
    mounts.refuses(&["commit", "latest"], 2, &["nothing was written"]);
    mounts.assert_none();
}

#[test]
fn a_kind_that_the_host_lacks_says_what_is_missing_and_what_works() {
    let mounts = Mounts::new(&Layout::mixed(312, MIB));
    for kind in ["ublk", "nbd"] {
        let ended = mounts.ended(&["mount", "latest", "--attach", kind]);
        match ended.code {
            Some(0) => mounts.ok(&["unmount", mounts.only()["id"].as_str().unwrap()]),
            _ => {
                assert_failed(&ended, 1, &["no", kind, "fuse-loop can be had"]);
                continue;
            }
        };
    }
    mounts.assert_none();
}

#[test]
fn a_tree_of_files_and_a_wrong_password_make_no_device() {
    let golden = Golden::load("tree").unwrap();
    let copy = golden.materialise().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().display().to_string();
    let ferry = Blockferry::new(&copy.repo, &golden.expected.password).unwrap();
    let ended = ferry.ended(["mount", "latest", "--state", &state]).unwrap();
    assert_failed(&ended, 2, &["not one volume", "blockferry ls", "cp"]);
    let ferry = Blockferry::new(&copy.repo, "wrong").unwrap();
    let ended = ferry.ended(["mount", "latest", "--state", &state]).unwrap();
    assert_failed(&ended, 1, &["password"]);
    assert!(!dir.path().join("mounts").exists() || fs::read_dir(dir.path().join("mounts")).unwrap().count() == 0);
}

#[test]
fn one_overlay_has_one_mount() {
    let mounts = Mounts::of(ext4(8));
    let args = ["--writable", "--accept-fragile", "--name", "one"];
    let mount = mounts.mount(&args);
    let again = [&["mount", "latest", "--attach", "fuse"], &args[..]].concat();
    let served = format!("process {}", mount["pid"]);
    mounts.refuses(&again, 2, &["one", "served by", &served]);
    // Nor is it another mount of the same name, served or not.
    mounts.refuses(
        &["mount", "latest", "--attach", "fuse", "--name", "one"],
        2,
        &["writable, not read-only"],
    );
    // Another name makes another one.
    let other = mounts.mount(&["--writable", "--accept-fragile", "--name", "two"]);
    assert_ne!(other["device"], mount["device"]);
    mounts.volume.write_at(0, &[9; 512]).unwrap();
    mounts.world.ferry.backup(mounts.volume.path(), &[]).unwrap();
    mounts.refuses(&again, 2, &["another one"]);
}

#[test]
fn folders_that_cannot_be_read_are_told_and_hide_no_mount() {
    let mounts = Mounts::new(&Layout::mixed(313, MIB));
    mounts.mount(&[]);
    let bad = mounts.world.path("state/mounts/bad");
    fs::create_dir(&bad).unwrap();
    fs::write(bad.join("record"), "{").unwrap();
    let document = mounts.ok(&["mounts"]);
    assert_eq!(document["mounts"].as_array().unwrap().len(), 1);
    assert!(
        document["unreadable"][0]["error"]
            .as_str()
            .unwrap()
            .contains("cannot be read"),
        "{document}"
    );
    mounts.refuses(&["unmount", "bad"], 2, &["no mount", "cannot be read"]);
    fs::remove_dir_all(bad).unwrap();
}
