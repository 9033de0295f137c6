//! What cannot be served is refused before there is a socket, in words that help.

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::golden::Golden;
use blockferry_tests::volume::Layout;

use super::{MIB, Serving, answers, world};
use crate::bad_input::support::assert_failed;

#[test]
fn unknown_snapshots_and_half_given_flags_are_wrong_usage() {
    let (world, _volume) = world(&Layout::mixed(61, MIB));
    let socket = world.text("s");
    world.refuses(&["serve", "ffff", "--socket", &socket], 2, &["no snapshot", "ffff"]);
    world.refuses(&["serve", "", "--socket", &socket], 2, &["empty name"]);
    world.refuses(&["serve", "latest", "x=ffff", "--socket", &socket], 2, &["no snapshot"]);
    for args in [
        &["serve", "--socket", &socket][..],
        &["serve", "latest"],
        &["serve", "latest", "--listen", "127.0.0.1:0"],
        &[
            "serve",
            "latest",
            "--listen",
            "127.0.0.1:0",
            "--tls-cert",
            "x",
            "--tls-key",
            "x",
        ],
        &["serve", "latest", "--socket", &socket, "--writable"],
        &["serve", "latest", "--socket", &socket, "--state", "x"],
        &["serve", "latest", "--socket", &socket, "--tls-key", "x"],
    ] {
        assert_eq!(world.ferry.ended(args).unwrap().code, Some(2), "{args:?}");
    }
    let tls = ["--tls-cert", "/none", "--tls-key", "/none", "--tls-client-ca", "/none"];
    let args = [&["serve", "latest", "--listen", "127.0.0.1:0"][..], &tls].concat();
    world.refuses(&args, 2, &["TLS", "/none"]);
    assert!(!world.path("s").exists());
}

#[test]
fn a_tree_of_files_is_refused_with_what_to_do_instead() {
    let golden = Golden::load("tree").unwrap();
    let copy = golden.materialise().unwrap();
    let ferry = Blockferry::new(&copy.repo, &golden.expected.password).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s").display().to_string();
    let ended = ferry.ended(["serve", "latest", "--socket", &socket]).unwrap();
    assert_failed(&ended, 2, &["not one volume", "blockferry ls", "cp"]);
}

#[test]
fn a_socket_that_answers_is_not_taken_over() {
    let (world, _volume) = world(&Layout::mixed(62, MIB));
    let serving = Serving::start(&world.ferry, &["latest"]);
    let socket = serving.socket().display().to_string();
    world.refuses(&["serve", "latest", "--socket", &socket], 1, &["is in use"]);
    assert!(answers(&serving.socket()));
    let file = world.text("file");
    std::fs::write(&file, "x").unwrap();
    world.refuses(&["serve", "latest", "--socket", &file], 1, &["not a socket"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"x");
}
