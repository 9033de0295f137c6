//! Azurite, Microsoft's emulator of Azure Blob Storage, on loopback; each test with its own. It keeps everything in memory.

use std::env;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tempfile::TempDir;

use crate::wait::wait_for;
use crate::{Failure, Result, process};

/// Release the tests are written against.
pub const VERSION: &str = "3.35.0";

/// Container that every emulator has from the start.
pub const CONTAINER: &str = "backups";

/// The account it has.
pub const ACCOUNT: &str = "devstoreaccount1";

/// Key of that account, which Azurite and its documentation give away.
pub const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Most time for a start: many times what Node needs on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Starts that are tried when another program takes a port between our choice and the server's use of it.
const STARTS_MAX: usize = 5;

/// Whether tests may use Azurite. False only outside CI, when `cargo xtask test` could not get one and said so; then the test
/// returns at once. In any other case a missing Azurite fails the test.
pub fn available() -> bool {
    let ci = env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false" && value != "0");
    let skip = !ci && env::var_os("BLOCKFERRY_NO_AZURITE").is_some();
    if skip {
        eprintln!("SKIPPED: needs azurite");
    }
    !skip
}

/// Where the program is: on PATH, or where `npm install --prefix ~/.cache/blockferry/azurite` puts it.
fn find() -> Result<PathBuf> {
    let home = env::var_os("HOME").map(PathBuf::from);
    let bins: Vec<PathBuf> = home
        .iter()
        .map(|home| home.join(".cache/blockferry/azurite/node_modules/.bin"))
        .collect();
    process::find("azurite-blob", &bins).ok_or_else(|| {
        Failure::new(format!(
            "no azurite-blob on PATH or in ~/.cache/blockferry; \
             `npm install --prefix ~/.cache/blockferry/azurite azurite@{VERSION}` installs it"
        ))
    })
}

/// A running Azurite, ended on drop.
#[derive(Debug)]
pub struct Azurite {
    server: Child,
    port: u16,
    _folder: TempDir,
}

impl Azurite {
    /// Starts one with an empty container [`CONTAINER`] of account [`ACCOUNT`].
    ///
    /// # Errors
    /// When there is no Azurite, or it does not start.
    pub fn start() -> Result<Self> {
        let program = find()?;
        let emulator = start(|port, folder| {
            let mut command = Command::new(&program);
            command.args([
                "--silent",
                "--disableTelemetry",
                "--inMemoryPersistence",
                "--skipApiVersionCheck",
            ]);
            command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()]);
            command.current_dir(folder.path());
            Ok(command)
        })?;
        emulator.create_container(CONTAINER)?;
        Ok(emulator)
    }

    /// Address of the service of [`ACCOUNT`].
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/{ACCOUNT}", self.port)
    }

    /// A container by the name. Signed as Microsoft says (Authorize with Shared Key); Azurite looks at no date.
    fn create_container(&self, name: &str) -> Result<()> {
        const DATE: &str = "Sat, 01 Jan 2022 00:00:00 GMT";
        const VERSION: &str = "2021-08-06";
        let resource = format!("/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container");
        let signed = format!("PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{DATE}\nx-ms-version:{VERSION}\n{resource}");
        let key = STANDARD.decode(KEY).map_err(Failure::at("decode key"))?;
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).map_err(Failure::at("use key"))?;
        mac.update(signed.as_bytes());
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        let request = format!(
            "PUT /{ACCOUNT}/{name}?restype=container HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: 0\r\n\
             Connection: close\r\nx-ms-date: {DATE}\r\nx-ms-version: {VERSION}\r\n\
             Authorization: SharedKey {ACCOUNT}:{signature}\r\n\r\n",
            self.port
        );
        let mut stream = connect(self.port).map_err(Failure::at("connect to Azurite"))?;
        stream
            .write_all(request.as_bytes())
            .map_err(Failure::at("ask Azurite"))?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .map_err(Failure::at("hear Azurite"))?;
        match answer.starts_with("HTTP/1.1 201") {
            true => Ok(()),
            false => Err(Failure::new(format!("Azurite made no container: {answer}"))),
        }
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        // It may have ended by itself; the test has failed then already.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port))
}

/// Starts what `command` makes of a free port and a folder, and waits until it listens.
fn start(command: impl Fn(u16, &TempDir) -> Result<Command>) -> Result<Azurite> {
    let mut failed = Failure::new("never tried");
    for _ in 0..STARTS_MAX {
        let folder = tempfile::tempdir().map_err(Failure::at("create folder"))?;
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let port = free.map_err(Failure::at("find a free port"))?.port();
        let mut command = command(port, &folder)?;
        let line = process::describe(&command);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        let server = command.spawn().map_err(Failure::at(format!("start `{line}`")))?;
        let mut emulator = Azurite {
            server,
            port,
            _folder: folder,
        };
        let mut ended = false;
        let listening = wait_for(&format!("`{line}`"), DEADLINE, || {
            ended = emulator.server.try_wait().is_ok_and(|status| status.is_some());
            ended || connect(port).is_ok()
        });
        match (listening, ended) {
            (Ok(()), false) => return Ok(emulator),
            (Ok(()), true) => failed = Failure::new(format!("`{line}` ended at once")),
            (Err(e), _) => failed = e,
        }
    }
    Err(failed)
}
