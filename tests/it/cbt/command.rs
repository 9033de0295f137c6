//! `blockferry changed`, the program.

use std::fs;
use std::path::PathBuf;

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::cbt_server::{AUTHORITY, Asked, CbtServer, Play, code};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{MIB, SIZE, three};

struct Site {
    folder: TempDir,
    program: Blockferry,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), AUTHORITY).unwrap();
        fs::write(folder.path().join("token"), "token-1\n").unwrap();
        let program = Blockferry::new(folder.path(), "not used").unwrap();
        Self { folder, program }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Arguments for `server`, and more.
    fn args(&self, server: &CbtServer, more: &[&str]) -> Vec<String> {
        let (ca, token) = (self.file("ca.pem"), self.file("token"));
        let fixed = [
            "changed",
            "--address",
            server.address(),
            "--ca",
            ca.to_str().unwrap(),
            "--token-file",
            token.to_str().unwrap(),
            "--namespace",
            "velero",
            "--snapshot",
            "snap-2",
        ];
        fixed.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    }
}

fn whole(_: usize, asked: &Asked) -> Play {
    Play::whole(three().pages(asked.starting_offset))
}

#[test]
fn the_list_is_the_one_that_a_backup_takes() {
    let (site, server) = (Site::new(), CbtServer::tls(whole).unwrap());
    let text = site
        .program
        .run(site.args(&server, &["--base", "handle-1", "--size", "64MiB"]))
        .unwrap();
    let list: Value = serde_json::from_str(&text).unwrap();
    let part = |chunk: u64| json!({"offset": chunk * MIB, "length": MIB});
    assert_eq!(
        list,
        json!({"volumeSize": SIZE, "changed": [part(0), part(2), part(40)]})
    );
    let asked = server.asked();
    assert_eq!(
        (asked[0].token.as_str(), asked[0].base.as_deref()),
        ("token-1", Some("handle-1"))
    );

    // The size of a device or file, here one that ends within a chunk: the last extent ends with it.
    let device = site.file("volume");
    fs::File::create(&device).unwrap().set_len(2 * MIB + 512).unwrap();
    let more = ["--device", device.to_str().unwrap()];
    let list: Value = serde_json::from_str(&site.program.run(site.args(&server, &more)).unwrap()).unwrap();
    assert_eq!(list["changed"][1], json!({"offset": 2 * MIB, "length": 512}));

    let sums = site
        .program
        .run_json(site.args(&server, &["--size", "64MiB", "--summary"]))
        .unwrap();
    assert_eq!((&sums["changedBytes"], &sums["tuples"]), (&json!(3 * MIB), &json!(3)));
    assert_eq!(sums["empty"], json!(false));
}

#[test]
fn the_token_file_is_read_again_when_the_token_is_refused() {
    let site = Site::new();
    let file = site.file("token");
    let server = CbtServer::tls(move |stream, asked| match asked.token.as_str() {
        "token-2" => whole(stream, asked),
        _ => {
            fs::write(&file, "token-2").unwrap();
            Play::status(code::UNAUTHENTICATED, "expired")
        }
    })
    .unwrap();
    let sums = site
        .program
        .run_json(site.args(&server, &["--size", "64MiB", "--summary"]))
        .unwrap();
    assert_eq!((&sums["streams"], &sums["retries"]), (&json!(3), &json!(1)));
}

#[test]
fn each_way_to_fail_has_its_exit_code_and_text() {
    let site = Site::new();
    let server = CbtServer::tls(|_, _| Play::status(code::NOT_FOUND, "no snapshot handle-1")).unwrap();
    let delta = ["--base", "handle-1", "--size", "1GiB"];
    let ended = site.program.ended(site.args(&server, &delta)).unwrap();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("no snapshot handle-1"), "{}", ended.stderr);
    assert!(ended.stderr.contains("without --base"), "{}", ended.stderr);
    assert!(ended.stdout.is_empty());

    for (more, says) in [
        (vec!["--size", "0"], "a volume of 0 bytes"),
        (vec!["--size", "5000000TiB"], "a volume of"),
        (vec!["--size", "1GiB", "--base", ""], "--base"),
        (vec![], "--size"),
        (vec!["--size", "1GiB", "--socket", "/x"], "--socket"),
    ] {
        let ended = site.program.ended(site.args(&server, &more)).unwrap();
        assert_eq!(ended.code, Some(2), "{more:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(says), "{more:?}: {}", ended.stderr);
    }
    fs::write(site.file("ca.pem"), "no PEM").unwrap();
    let ended = site.program.ended(site.args(&server, &delta)).unwrap();
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("no certificate"), "{}", ended.stderr);
}
