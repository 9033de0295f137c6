//! `blockferry serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use blockio::BlockSink;
use clap::Args;
use nbd::{Export, Exports, Limits, Overlay, Server, TlsSettings, UnixListen};
use repo::Repository;
use repo::snapshot::Snapshot;
use serde::Serialize;
use tracing::{debug, info, warn};

use super::output::{Output, chain};
use super::size::{parse_size, show_size};
use super::{Global, image, signals};
use crate::error::Result;
use crate::lazy::{FetchOptions, Fetcher, LazySource};
use crate::mount;

#[derive(Args)]
#[command(after_help = "\
Each snapshot is an export named by its id, and by what it was asked for as: latest, 4f2a, or NAME in NAME=SNAPSHOT. The only
export of a server is also the one without a name. Nothing is fetched but what is read, and what readers that go front to back
will want next; what cannot be read is an input/output error for exactly those bytes.

With --writable each volume takes writes. They stay in a folder of --state and are there again when the same snapshot is served
with the same state; the repository is not touched. What was flushed survives a crash.

SIGINT or SIGTERM stop the server: requests it has taken are answered.

Examples:
  blockferry serve latest --socket /run/disk.sock --repo /backups/r1 --password-file pw
  nbdinfo 'nbd+unix:///latest?socket=/run/disk.sock'
  nbdcopy 'nbd+unix:///latest?socket=/run/disk.sock' disk.img
  blockferry serve disk=latest --socket /run/disk.sock --writable --state /var/tmp/disk --repo /backups/r1 --password-file pw
  blockferry serve latest --listen 0.0.0.0:10809 --tls-cert server.pem --tls-key server.key --tls-client-ca clients.pem \\
    --repo /backups/r1 --password-file pw")]
pub(crate) struct Arguments {
    /// Snapshots: id, unique beginning of it, latest, or latest:USER@HOST:PATH; NAME=SNAPSHOT serves it as NAME too
    #[arg(required = true, value_name = "[NAME=]SNAPSHOT")]
    snapshots: Vec<String>,
    /// Unix socket to serve on, for root and the user who runs this, and those of --allow-uid
    #[arg(long, value_name = "PATH", required_unless_present = "listen")]
    socket: Option<PathBuf>,
    /// Users who may connect to the socket besides, by number; several with commas
    #[arg(long, value_name = "UID", requires = "socket", value_delimiter = ',')]
    allow_uid: Vec<u32>,
    /// TCP address to serve on, such as 0.0.0.0:10809; only with TLS and clients' certificates
    #[arg(long, value_name = "ADDR", requires_all = ["tls_cert", "tls_key", "tls_client_ca"])]
    listen: Option<SocketAddr>,
    /// Certificate of this server and those that lead to its authority, PEM
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_cert: Option<PathBuf>,
    /// Key of this server, PEM
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_key: Option<PathBuf>,
    /// Authorities that sign for clients, PEM. Nobody else is let in
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_client_ca: Option<PathBuf>,
    /// Take writes, and keep them in --state
    #[arg(long, requires = "state")]
    writable: bool,
    /// Folder of what was written, one folder a snapshot; made if missing
    #[arg(long, value_name = "DIR", requires = "writable")]
    state: Option<PathBuf>,
    /// Bytes of opened contents in memory at most [default: 256MiB]
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    memory: Option<u64>,
}

/// Time for connections to end once the server was told to stop: an answer on its way needs less.
const GRACE: Duration = Duration::from_secs(10);

/// The document of `serve --json`, printed when the sockets are there.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    socket: Option<String>,
    /// Address with the port that the system chose where none was given.
    listen: Option<SocketAddr>,
    exports: Vec<ExportDocument>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExportDocument {
    snapshot: String,
    /// By each of these it is found. The first is the one it was asked for as.
    names: Vec<String>,
    size: u64,
    writable: bool,
    /// Addresses under the first name.
    uris: Vec<String>,
}

/// A snapshot on its way to be an export.
struct Volume {
    names: Vec<String>,
    snapshot: String,
    size: u64,
    export: Arc<Export>,
    overlay: Option<Arc<Overlay>>,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let is_bounded = blockio::heap::bound();
    debug!(is_bounded, "heap of a server");
    let cancel = signals::cancel_on_signal()?;
    let tls = tls(arguments)?;
    let repository = Arc::new(image::open_for_server(global)?);
    let options = FetchOptions {
        memory: arguments.memory.unwrap_or(FetchOptions::DEFAULT.memory),
        ..FetchOptions::DEFAULT
    };
    let fetcher = Arc::new(Fetcher::start(repository.clone(), &options)?);
    let volumes = volumes(arguments, &repository, &fetcher)?;
    let exports = Arc::new(Exports::new());
    for volume in &volumes {
        for name in &volume.names {
            exports.insert(name, volume.export.clone())?;
        }
    }
    let mut server = Server::new(exports, Limits::default());
    if let Some(path) = &arguments.socket {
        server.listen_unix(&UnixListen {
            uids: arguments.allow_uid.clone(),
            ..UnixListen::at(path)
        })?;
    }
    let listen = match (arguments.listen, tls) {
        (Some(address), Some(tls)) => Some(server.listen_tcp(address, tls)?),
        _ => None,
    };
    output.print(&document(arguments, listen, &volumes), text);
    while cancel.wait(Duration::from_secs(3600)).is_ok() {}
    let stopped = server.stop(GRACE);
    info!(cut = stopped.cut, stuck = stopped.stuck, "stopped serving");
    for volume in &volumes {
        if let Some(overlay) = &volume.overlay {
            overlay.flush()?;
        }
        let stats = volume.export.stats();
        let (requests, failures) = (stats.requests, stats.failures);
        info!(
            snapshot = volume.snapshot,
            requests,
            failures,
            bytes_read = stats.bytes_read,
            "served"
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn tls(arguments: &Arguments) -> Result<Option<TlsSettings>> {
    let Arguments {
        tls_cert: Some(cert),
        tls_key: Some(key),
        tls_client_ca: Some(clients),
        ..
    } = arguments
    else {
        return Ok(None); // the parser sees to it that a listener has all of them
    };
    Ok(Some(TlsSettings::from_files(cert, key, clients)?))
}

/// The snapshots asked for; one that was asked for twice has the names of both.
fn volumes(arguments: &Arguments, repository: &Arc<Repository>, fetcher: &Arc<Fetcher>) -> Result<Vec<Volume>> {
    let listing = repository.list_snapshots()?;
    for damaged in &listing.damaged {
        let error = chain(&damaged.error);
        warn!(error, "a snapshot cannot be read and is passed over");
    }
    let mut volumes: Vec<Volume> = Vec::new();
    for asked in &arguments.snapshots {
        let (name, called) = split_name(asked);
        let snapshot = image::find_listed(&listing, called)?;
        let id = image::id_of(&snapshot)?;
        let at = match volumes.iter().position(|volume| volume.snapshot == id) {
            Some(at) => at,
            None => {
                volumes.push(volume(arguments, repository, fetcher, &snapshot, &id)?);
                volumes.len() - 1
            }
        };
        let names = &mut volumes[at].names;
        for name in [name.unwrap_or(called), called, &id] {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
    }
    Ok(volumes)
}

/// `NAME=SNAPSHOT`, or a snapshot alone. What stands before the `=` of a path is no name: a colon is in front of that.
fn split_name(asked: &str) -> (Option<&str>, &str) {
    match asked.split_once('=') {
        Some((name, snapshot)) if !name.is_empty() && !name.contains(':') => (Some(name), snapshot),
        _ => (None, asked),
    }
}

fn volume(
    arguments: &Arguments,
    repository: &Arc<Repository>,
    fetcher: &Arc<Fetcher>,
    snapshot: &Snapshot,
    id: &str,
) -> Result<Volume> {
    image::require_complete(snapshot)?;
    let image = repository.image(snapshot)?;
    let (size, identity) = (image.size, mount::identity(repository, &image));
    let source = Arc::new(LazySource::new(fetcher.clone(), image)?);
    let (export, overlay) = match &arguments.state {
        None => (Export::read_only(source), None),
        Some(folder) => {
            // A folder each.
            let overlay = Arc::new(Overlay::open(&folder.join(id), source, &identity)?);
            (Export::writable(overlay.clone()), Some(overlay))
        }
    };
    let description = format!("{} of {}", snapshot.source, snapshot.start);
    Ok(Volume {
        names: Vec::new(),
        snapshot: id.to_owned(),
        size,
        export: Arc::new(export.described(&description)),
        overlay,
    })
}

fn document(arguments: &Arguments, listen: Option<SocketAddr>, volumes: &[Volume]) -> Document {
    let socket = arguments.socket.as_ref().map(|path| path.display().to_string());
    let exports = volumes.iter().map(|volume| {
        let name = percent_encoded(&volume.names[0]);
        let unix = socket
            .as_ref()
            .map(|path| format!("nbd+unix:///{name}?socket={}", percent_encoded(path)));
        let tcp = listen.map(|address| format!("nbds://{address}/{name}"));
        ExportDocument {
            snapshot: volume.snapshot.clone(),
            names: volume.names.clone(),
            size: volume.size,
            writable: volume.overlay.is_some(),
            uris: unix.into_iter().chain(tcp).collect(),
        }
    });
    Document {
        exports: exports.collect(),
        socket: socket.clone(),
        listen,
    }
}

/// Bytes that stand for themselves in a URI's path and query stay, others are written in hex (RFC 3986).
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b'@' | b':' => {
                encoded.push(char::from(byte));
            }
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}

fn text(d: &Document) -> String {
    let line = |export: &ExportDocument| {
        let how = if export.writable { "writable" } else { "read-only" };
        let uris = export.uris.join("\n  ");
        format!(
            "snapshot {}, {}, {how}\n  {uris}\n",
            export.snapshot,
            show_size(export.size)
        )
    };
    d.exports.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_before_an_equals_sign() {
        assert_eq!(split_name("disk=latest"), (Some("disk"), "latest"));
        assert_eq!(split_name("latest"), (None, "latest"));
        assert_eq!(split_name("latest:u@h:/a=b"), (None, "latest:u@h:/a=b"));
        assert_eq!(split_name("d=latest:u@h:/a=b"), (Some("d"), "latest:u@h:/a=b"));
        assert_eq!(split_name("=x"), (None, "=x"));
    }

    #[test]
    fn addresses_are_uris() {
        assert_eq!(percent_encoded("latest:u@h:/a b?&"), "latest:u@h:/a%20b%3F%26");
    }
}
