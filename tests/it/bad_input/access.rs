//! Places that are no repository, and passwords that open none.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use blockferry_tests::process;
use repo::Kind;
use repo::Repository;
use repo::blob::{FsStore, MemStore};

use super::support::{PASSWORD, World, assert_failed, assert_refused, assert_words, empty};

#[test]
fn a_wrong_password_is_told_with_the_place() {
    let world = World::new();
    let ended = blockferry_tests::blockferry::Blockferry::new(&world.repo(), "wrong")
        .unwrap()
        .ended(["snapshots"])
        .unwrap();
    assert_failed(
        &ended,
        1,
        &[
            "password does not open",
            "kopia.repository",
            &world.repo().display().to_string(),
        ],
    );

    let error = Repository::open(empty(), "wrong").err().unwrap();
    assert_eq!(error.kind(), Kind::WrongPassword);
}

#[test]
fn a_place_without_a_repository_is_told_apart_from_a_missing_one() {
    let world = World::new();
    let at = |repo: &str| blockferry_tests::blockferry::Blockferry::at(repo, PASSWORD).unwrap();
    let (nothing, missing, file) = (world.text("nothing"), world.text("missing"), world.text("file"));
    fs::create_dir(&nothing).unwrap();
    fs::write(&file, b"text").unwrap();
    for (repo, words) in [
        (&nothing, ["no Kopia repository", nothing.as_str(), "kopia.repository"]),
        (
            &missing,
            ["open repository directory", missing.as_str(), "No such file"],
        ),
        (&file, ["is not a directory", file.as_str(), "is not a directory"]),
    ] {
        for command in [&["snapshots"][..], &["repo", "status"], &["verify"], &["backup", &file]] {
            assert_failed(&at(repo).ended(command).unwrap(), 1, &words);
        }
    }
    assert!(
        fs::read_dir(&nothing).unwrap().next().is_none(),
        "looking for a repository leaves nothing behind"
    );
    assert!(fs::metadata(&missing).is_err());

    let error = Repository::open(std::sync::Arc::new(MemStore::new()), PASSWORD)
        .err()
        .unwrap();
    assert_eq!(error.kind(), Kind::NotARepository);
    assert_eq!(FsStore::open(&file).err().unwrap().kind(), Kind::NotARepository);
}

#[test]
fn a_repository_is_created_in_an_empty_place_only() {
    let world = World::new();
    let repo = world.repo().display().to_string();
    world.refuses(
        &["repo", "create", &repo],
        1,
        &["is not empty", &repo, "empty directory"],
    );
    world.assert_clean(0);

    let file = world.text("file");
    fs::write(&file, b"text").unwrap();
    world.refuses(&["repo", "create", &file], 1, &[&file]);
    assert_eq!(fs::read(&file).unwrap(), b"text");
}

#[test]
fn schemes_that_are_not_served_are_named() {
    let world = World::new();
    for repo in ["velero://ns/bsl/vol", "ftp://host"] {
        let scheme = repo.split_once("://").unwrap().0;
        world.refuses(&["--repo", repo, "snapshots"], 2, &[scheme, "directory", "s3://BUCKET"]);
    }
    let mut command = world.ferry.command(["snapshots"]);
    command.env_remove("BLOCKFERRY_REPO");
    let output = process::output(&mut command, &[]).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_words(
        &String::from_utf8_lossy(&output.stderr),
        &["no repository", "--repo", "BLOCKFERRY_REPO"],
    );
    let url = format!("file://{}", world.repo().display());
    assert_eq!(world.ferry.ended(["--repo", &url, "snapshots"]).unwrap().code, Some(0));
}

#[test]
fn without_a_usable_password_nothing_is_tried() {
    let world = World::new();
    let run = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = world.ferry.command(args);
        command
            .env_remove("BLOCKFERRY_PASSWORD")
            .env_remove("KOPIA_PASSWORD")
            .envs(variables.iter().copied());
        let output = process::output(&mut command, &[]).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        blockferry_tests::blockferry::Ended {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    };
    let way_out = ["no password", "--password-file", "BLOCKFERRY_PASSWORD"];
    assert_failed(&run(&["snapshots"], &[]), 2, &way_out);
    assert_failed(&run(&["snapshots"], &[("BLOCKFERRY_PASSWORD", "")]), 2, &way_out);
    assert_failed(&run(&["snapshots"], &[("KOPIA_PASSWORD", "")]), 2, &way_out);
    let folder = world.text("new");
    assert_failed(
        &run(&["repo", "create", &folder], &[("BLOCKFERRY_PASSWORD", "")]),
        2,
        &["password"],
    );
    assert!(
        fs::metadata(&folder).is_err(),
        "nothing is created before there is a password"
    );

    let (missing, blank, long) = (world.text("missing"), world.text("blank"), world.text("long"));
    fs::write(&blank, b"\nsecond line\n").unwrap();
    fs::write(&long, vec![b'x'; 100_000]).unwrap();
    for (file, why) in [
        (&missing, "No such file"),
        (&blank, "first line is empty"),
        (&long, "100000 bytes"),
    ] {
        assert_failed(
            &run(&["snapshots", "--password-file", file], &[]),
            2,
            &["password file", file, why],
        );
    }
    let good = world.text("good");
    fs::write(&good, format!("{PASSWORD}\r\nnote\n")).unwrap();
    fs::set_permissions(&good, fs::Permissions::from_mode(0o600)).unwrap();
    let ended = run(&["snapshots", "--password-file", &good], &[("KOPIA_PASSWORD", "wrong")]);
    assert_eq!(
        ended.code,
        Some(0),
        "the file goes before the environment: {}",
        ended.stderr
    );
    assert_eq!(
        run(
            &["snapshots"],
            &[("BLOCKFERRY_PASSWORD", ""), ("KOPIA_PASSWORD", PASSWORD)]
        )
        .code,
        Some(0)
    );
}

#[test]
fn library_errors_and_exit_codes_agree() {
    for (kind, code) in [
        (Kind::NotARepository, 1),
        (Kind::WrongPassword, 1),
        (Kind::Unsupported, 1),
        (Kind::Locked, 1),
        (Kind::Clock, 1),
        (Kind::StorageFull, 1),
        (Kind::Permission, 1),
        (Kind::Storage, 1),
        (Kind::InvalidInput, 2),
        (Kind::Cancelled, 3),
        (Kind::Corrupt, 4),
    ] {
        assert_refused(repo::RepoError::new(kind, "thing"), code, &["thing"]);
    }
}
