//! `blockferry changed`.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use blockio::{BlockMap, Cancel, Device, Extent, GrowingMap, MapState, OpenOptions, Progress, SnapshotHandle};
use clap::Args;
use csi_glue::cbt::{CbtClient, CbtEndpoint, Limits, Need, Next, Outcome, Question, Refusal, Token, TokenError};
use serde::Serialize;

use super::output::{Output, peak_rss_bytes};
use super::size::{parse_size, show_size};
use super::{Global, progress, signals};
use crate::error::{JobError, Result};

const EXAMPLES: &str = "\
Examples:
  # What changed since the snapshot with the handle snap-1, for `backup --changed`:
  blockferry changed --address snapshot-metadata.csi:6443 --ca ca.pem --token-file token \\
      --namespace velero --snapshot snap-2 --base snap-1 --device /dev/vdb > changed.json
  # What is allocated, asked of a driver itself:
  blockferry changed --socket /csi/csi.sock --snapshot 7c9a --size 10GiB --summary

The token is for the audience of the service (`kubectl create token ACCOUNT --audience ...`); its file is read again before
every stream. Blocks are told in whole MiB. The answer is checked and confirmed; what cannot be is an error, exit code 1.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// SnapshotMetadata service of the driver, as its SnapshotMetadataService object tells
    #[arg(
        long,
        value_name = "HOST:PORT",
        required_unless_present = "socket",
        requires_all = ["ca", "token_file", "namespace"]
    )]
    address: Option<String>,
    /// PEM of the authorities that may have signed the certificate of the service
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// File with a token for the audience of the service
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Namespace of the VolumeSnapshot
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Socket of a CSI driver, instead of a service
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with_all = ["address", "ca", "token_file", "namespace"]
    )]
    socket: Option<PathBuf>,
    /// VolumeSnapshot; with --socket the handle of the snapshot
    #[arg(long, value_name = "NAME")]
    snapshot: String,
    /// CSI handle of the snapshot to compare with; without it the allocated blocks are asked for
    #[arg(long, value_name = "HANDLE")]
    base: Option<String>,
    /// Size of the volume
    #[arg(long, value_name = "SIZE", value_parser = parse_size, required_unless_present = "device")]
    size: Option<u64>,
    /// The volume made of the snapshot, for its size
    #[arg(long, value_name = "DEV", conflicts_with = "size")]
    device: Option<PathBuf>,
    /// Print sums instead of the list
    #[arg(long)]
    summary: bool,
}

/// The document of `changed --summary --json`. Bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    volume_size: u64,
    capacity: Option<u64>,
    changed_bytes: u64,
    extents: usize,
    empty: bool,
    tuples: u64,
    messages: u64,
    streams: u64,
    retries: u64,
    duration_ms: u64,
    peak_rss_bytes: u64,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let started = std::time::Instant::now();
    let cancel = signals::cancel_on_signal()?;
    let size = size(arguments)?;
    let client = client(arguments)?;
    let base = arguments.base.as_ref().map(SnapshotHandle::new).transpose();
    let question = Question {
        namespace: arguments.namespace.clone().unwrap_or_default(),
        snapshot: arguments.snapshot.clone(),
        base: base.map_err(|e| JobError::Usage(format!("--base: {e}")))?,
    };
    let map = GrowingMap::new(size);
    let outcome = ask(&client, &question, &map, &cancel, global)?;
    let map = map.into_map();
    if outcome.empty {
        tracing::warn!("the service names no block; drivers are known to do so wrongly: compare with the volume first");
    }
    if arguments.summary {
        let summary = summary(&map, size, &outcome, started.elapsed());
        output.print(&summary, text);
    } else {
        print_list(&map, size)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Bytes of the volume, which is one there may be a map of.
fn size(arguments: &Arguments) -> Result<u64> {
    let size = match (arguments.size, &arguments.device) {
        (Some(size), _) => size,
        (None, Some(device)) => Device::open(device, &OpenOptions::read())?.geometry().size,
        (None, None) => 0,
    };
    match size.div_ceil(blockio::CHUNK_SIZE) {
        1..=BlockMap::CHUNKS_MAX => Ok(size),
        _ => Err(JobError::Usage(format!(
            "a volume of {size} bytes; there are maps for 1 byte to {}",
            show_size(BlockMap::CHUNKS_MAX * blockio::CHUNK_SIZE)
        ))),
    }
}

fn client(arguments: &Arguments) -> Result<CbtClient> {
    if let Some(socket) = &arguments.socket {
        return Ok(CbtClient::driver(socket, Limits::default()));
    }
    let (Some(address), Some(ca), Some(token_file)) = (&arguments.address, &arguments.ca, &arguments.token_file) else {
        return Err(JobError::Usage(
            "--address, --ca and --token-file go together".to_owned(),
        ));
    };
    let ca_pem = std::fs::read(ca).map_err(|source| JobError::File {
        what: format!("read {}", ca.display()),
        source,
    })?;
    let endpoint = CbtEndpoint {
        address: address.clone(),
        ca_pem,
    };
    let token_file = token_file.clone();
    let tokens = Arc::new(move |_: Need| read_token(&token_file));
    Ok(CbtClient::sidecar(&endpoint, tokens, Limits::default())?)
}

/// The token as the file has it now: whoever renews tokens replaces it.
fn read_token(file: &Path) -> Result<Token, TokenError> {
    let text = std::fs::read_to_string(file).map_err(|e| TokenError(format!("read {}: {e}", file.display())))?;
    Token::new(text.trim()).map_err(|e| TokenError(format!("{}: {e}", file.display())))
}

/// How often progress looks at the map.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

fn ask(client: &CbtClient, question: &Question, map: &GrowingMap, cancel: &Cancel, global: &Global) -> Result<Outcome> {
    let progress = Progress::new();
    progress.add_total(map.size());
    let _display = progress::Display::start(global, "changed", &progress);
    let asked = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut shown = 0;
            while map.state() == MapState::Growing && cancel.wait(PROGRESS_INTERVAL).is_ok() {
                let known = map.known();
                progress.add_done(known - shown);
                shown = known;
            }
        });
        client.ask_blocking(question, map, cancel)
    });
    asked.map_err(|refusal: Refusal| {
        if refusal.next(question.call()) == Next::Allocated {
            tracing::warn!("the service may still tell the allocated blocks: ask without --base");
        }
        refusal.into()
    })
}

/// The runs of `map` that lie on a volume of `size` bytes.
fn runs(map: &BlockMap, size: u64) -> impl Iterator<Item = Extent> + '_ {
    let volume = Extent { offset: 0, len: size };
    map.runs().filter_map(move |run| run.clip(volume))
}

fn print_list(map: &BlockMap, size: u64) -> Result<()> {
    let failed = |source| JobError::File {
        what: "write the list to standard output".to_owned(),
        source,
    };
    let mut out = BufWriter::new(std::io::stdout().lock());
    write_list(&mut out, map, size).map_err(failed)?;
    out.flush().map_err(failed)
}

/// What `backup --changed` reads, written run by run: a large volume has millions of them.
fn write_list(out: &mut impl Write, map: &BlockMap, size: u64) -> std::io::Result<()> {
    write!(out, "{{\"volumeSize\":{size},\"changed\":[")?;
    for (i, run) in runs(map, size).enumerate() {
        let comma = if i == 0 { "" } else { "," };
        write!(out, "{comma}{{\"offset\":{},\"length\":{}}}", run.offset, run.len)?;
    }
    writeln!(out, "]}}")
}

fn summary(map: &BlockMap, size: u64, outcome: &Outcome, elapsed: Duration) -> Summary {
    Summary {
        volume_size: size,
        capacity: outcome.capacity,
        changed_bytes: runs(map, size).map(|run| run.len).sum(),
        extents: runs(map, size).count(),
        empty: outcome.empty,
        tuples: outcome.tuples,
        messages: outcome.messages,
        streams: outcome.streams,
        retries: outcome.retries,
        duration_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        peak_rss_bytes: peak_rss_bytes(),
    }
}

fn text(s: &Summary) -> String {
    format!(
        "{} of {} in {} extents; {} blocks told in {} messages over {} streams, {} failed in passing; {} ms\n",
        show_size(s.changed_bytes),
        show_size(s.volume_size),
        s.extents,
        s.tuples,
        s.messages,
        s.streams,
        s.retries,
        s.duration_ms
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_ends_with_the_volume() {
        let size = (3 << 20) + 512;
        let mut map = BlockMap::new(4);
        map.set(blockio::ChunkIndex::new(0));
        map.set(blockio::ChunkIndex::new(3));
        let list = |map: &BlockMap| {
            let mut out = Vec::new();
            write_list(&mut out, map, size).unwrap();
            String::from_utf8(out).unwrap()
        };
        let expect =
            r#"{"volumeSize":3146240,"changed":[{"offset":0,"length":1048576},{"offset":3145728,"length":512}]}"#;
        assert_eq!(list(&map).trim_end(), expect);
        let empty = list(&BlockMap::new(4));
        assert_eq!(empty.trim_end(), r#"{"volumeSize":3146240,"changed":[]}"#);
        serde_json::from_str::<serde_json::Value>(&empty).unwrap();
    }
}
