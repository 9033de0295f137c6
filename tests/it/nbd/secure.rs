//! TCP: nothing before TLS, nobody without a certificate, and exports by the names in it.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use blockferry_tests::process::{output, run};
use nbd::{Export, Exports, Limits, Server, TlsSettings};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::raw::{ask, option_header, word};
use super::{DEADLINE, MIB, image, memory};

const CERTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/certs");

struct Secure {
    address: SocketAddr,
    _server: Server,
    dir: tempfile::TempDir,
}

fn pem(name: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(Path::new(CERTS).join(name))
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

impl Secure {
    /// `disk` for anybody with a certificate, `ours` for the client of the tests, `theirs` for somebody else.
    fn new() -> Self {
        let exports = Arc::new(Exports::new());
        let export = || Export::read_only(Arc::new(memory(9 * MIB)));
        exports.insert("disk", Arc::new(export())).unwrap();
        let ours = export().only_for(["uri:spiffe://blockferry.test/client".to_owned()]);
        exports.insert("ours", Arc::new(ours)).unwrap();
        exports
            .insert("by-name", Arc::new(export().only_for(["cn:client".to_owned()])))
            .unwrap();
        exports
            .insert("theirs", Arc::new(export().only_for(["cn:other".to_owned()])))
            .unwrap();
        let key = PrivateKeyDer::from_pem_file(Path::new(CERTS).join("server.key")).unwrap();
        let tls = TlsSettings::new(pem("server.pem"), key, pem("client-ca.pem")).unwrap();
        let mut server = Server::new(exports, Limits::default());
        let address = server.listen_tcp("127.0.0.1:0".parse().unwrap(), tls).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for (name, copy) in [
            ("ca.pem", "ca-cert.pem"),
            ("client.pem", "client-cert.pem"),
            ("client.key", "client-key.pem"),
        ] {
            fs::copy(Path::new(CERTS).join(name), dir.path().join(copy)).unwrap();
        }
        Self {
            address,
            _server: server,
            dir,
        }
    }

    fn uri(&self, export: &str) -> String {
        let port = self.address.port();
        format!(
            "nbds://localhost:{port}/{export}?tls-certificates={}",
            self.dir.path().display()
        )
    }

    /// A connection in clear that has said hello.
    fn clear(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        stream
    }
}

fn nbdinfo(uri: &str) -> bool {
    output(Command::new("nbdinfo").args(["--size", uri]), b"")
        .unwrap()
        .status
        .success()
}

fn reply(stream: &mut TcpStream) -> u32 {
    let mut head = [0; 20];
    stream.read_exact(&mut head).unwrap();
    let mut text = vec![0; word(&head, 16) as usize];
    stream.read_exact(&mut text).unwrap();
    word(&head, 12)
}

#[track_caller]
fn is_closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    if let Err(error) = stream.read_to_end(&mut rest) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "still open: {error}");
    }
}

#[test]
fn a_client_with_a_certificate_copies_and_gets_what_is_its_own() {
    let secure = Secure::new();
    let out = secure.dir.path().join("out");
    run(Command::new("nbdcopy")
        .args(["--connections=4", &secure.uri("disk")])
        .arg(&out))
    .unwrap();
    assert!(fs::read(&out).unwrap() == image(9 * MIB));
    assert!(nbdinfo(&secure.uri("ours")) && nbdinfo(&secure.uri("by-name")));
    assert!(!nbdinfo(&secure.uri("theirs")));
}

#[test]
fn a_client_without_a_certificate_gets_nothing() {
    let secure = Secure::new();
    fs::remove_file(secure.dir.path().join("client-cert.pem")).unwrap();
    fs::remove_file(secure.dir.path().join("client-key.pem")).unwrap();
    assert!(!nbdinfo(&secure.uri("disk")));
    // One that the wrong authority signed.
    for (name, copy) in [("server.pem", "client-cert.pem"), ("server.key", "client-key.pem")] {
        fs::copy(Path::new(CERTS).join(name), secure.dir.path().join(copy)).unwrap();
    }
    assert!(!nbdinfo(&secure.uri("disk")));
    assert!(!nbdinfo(&format!("nbd://localhost:{}/disk", secure.address.port())));
}

#[test]
fn in_clear_everything_is_refused_but_tls() {
    let secure = Secure::new();
    let mut stream = secure.clear();
    for (option, data) in [(3, vec![]), (7, ask(b"disk", &[])), (8, vec![]), (99, vec![1, 2, 3])] {
        stream
            .write_all(&option_header(option, u32::try_from(data.len()).unwrap()))
            .unwrap();
        stream.write_all(&data).unwrap();
        assert_eq!(reply(&mut stream), (1 << 31) + 5, "TLS_REQD");
    }
    stream.write_all(&option_header(1, 4)).unwrap();
    stream.write_all(b"disk").unwrap();
    is_closed(stream);
    // Behind STARTTLS in the same packet, or later, clear text ends the connection.
    let mut stream = secure.clear();
    stream
        .write_all(&[option_header(5, 0), option_header(3, 0)].concat())
        .unwrap();
    is_closed(stream);
    let mut stream = secure.clear();
    stream.write_all(&option_header(5, 0)).unwrap();
    assert_eq!(reply(&mut stream), 1);
    stream.write_all(&option_header(3, 0)).unwrap();
    is_closed(stream);
    assert!(nbdinfo(&secure.uri("disk")));
}

#[test]
fn half_open_handshakes_of_one_address_are_bounded() {
    let secure = Secure::new();
    let held: Vec<TcpStream> = (0..32).map(|_| secure.clear()).collect();
    let mut one_more = TcpStream::connect(secure.address).unwrap();
    let mut greeting = Vec::new();
    let refused = one_more.read_to_end(&mut greeting);
    assert!(greeting.is_empty(), "{refused:?}");
    drop(held);
    blockferry_tests::wait::wait_for("room for a handshake", DEADLINE, || nbdinfo(&secure.uri("disk"))).unwrap();
}
