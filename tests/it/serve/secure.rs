//! Over TCP: with TLS and a certificate, or not at all.

use std::fs;
use std::path::Path;
use std::process::Command;

use blockferry_tests::process::run;
use blockferry_tests::volume::Layout;

use super::{MIB, Serving, world};

const CERTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/certs");

#[test]
fn a_client_with_a_certificate_copies_and_one_without_gets_nothing() {
    let (world, volume) = world(&Layout::mixed(63, 9 * MIB));
    let file = |name: &str| Path::new(CERTS).join(name).display().to_string();
    let (cert, key, clients) = (file("server.pem"), file("server.key"), file("client-ca.pem"));
    let dir = tempfile::tempdir().unwrap();
    for (name, copy) in [
        ("ca.pem", "ca-cert.pem"),
        ("client.pem", "client-cert.pem"),
        ("client.key", "client-key.pem"),
    ] {
        fs::copy(Path::new(CERTS).join(name), dir.path().join(copy)).unwrap();
    }
    let certificates = dir.path().display().to_string();
    let tls = ["--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &clients];
    let args = [&["serve", "latest", "--listen", "127.0.0.1:0"][..], &tls].concat();
    let serving = Serving::spawn(world.ferry.command(&args), dir);
    let address = serving.document["listen"].as_str().unwrap().to_owned();
    let port = address.rsplit(':').next().unwrap();
    assert_eq!(
        serving.document["exports"][0]["uris"][0],
        format!("nbds://{address}/latest")
    );
    let target = serving.dir.path().join("copy");
    let uri = format!("nbds://localhost:{port}/latest?tls-certificates={certificates}");
    run(Command::new("nbdcopy").arg("--connections=4").arg(&uri).arg(&target)).unwrap();
    assert!(fs::read(&target).unwrap() == volume.bytes().unwrap());
    assert!(run(Command::new("nbdinfo").arg(format!("nbd://localhost:{port}/latest"))).is_err());
    assert_eq!(serving.stop("-TERM").code, Some(0));
}
