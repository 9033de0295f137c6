//! `blockferry commit`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use blockio::Progress;
use clap::Args;
use repo::compress::CompressionPolicy;
use repo::snapshot::Source;
use serde::Serialize;

use super::effort::Workers;
use super::output::{Output, peak_rss_bytes};
use super::size::show_size;
use super::{Global, image, progress, signals, state};
use crate::error::{JobError, Result};
use crate::lazy::{FetchOptions, Fetcher, LazySource};
use crate::mover::backup::{BackupOptions, Care, Changes};
use crate::mover::commit::commit;

#[derive(Args)]
#[command(after_help = "\
The new snapshot continues the one that was served; only what was written is read and stored. It is of a source of its own, because
increments of the volume itself must not continue from what was never on it. The state stays as it is.

Example:
  blockferry serve latest --writable --state /var/tmp/disk --socket /run/disk.sock --repo /backups/r1 --password-file pw
  blockferry commit latest --state /var/tmp/disk --as root@node1:/tests/disk --repo /backups/r1 --password-file pw")]
pub(crate) struct Arguments {
    /// The snapshot that was written over: id, unique beginning of it, latest, or latest:USER@HOST:PATH
    snapshot: String,
    /// Folder given to `serve --state`; no server may be using it
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Whose volume the new snapshot is [default: this user, this host, the absolute path of the state]
    #[arg(long = "as", value_name = "USER@HOST:PATH")]
    identity: Option<Source>,
    /// Compression of new chunks: auto, none, zstd-fastest, zstd, gzip, …
    #[arg(long, default_value = "auto", value_name = "POLICY")]
    compression: CompressionPolicy,
    #[command(flatten)]
    workers: Workers,
}

/// The document of `commit --json`. Sizes in bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    snapshot_id: String,
    object_id: String,
    parent_id: String,
    source: String,
    source_size: u64,
    bytes_read: u64,
    bytes_zero: u64,
    bytes_new: u64,
    bytes_stored: u64,
    duration_ms: u64,
    peak_rss_bytes: u64,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let cancel = signals::cancel_on_signal()?;
    let repository = Arc::new(image::open(global)?);
    let snapshot = image::snapshot(&repository, &arguments.snapshot)?;
    let id = snapshot.id.map(|id| id.to_string()).unwrap_or_default();
    let folder = arguments.state.join(&id);
    if !folder.is_dir() {
        return Err(JobError::Usage(format!(
            "nothing was written over snapshot {id}: there is no {}",
            folder.display()
        )));
    }
    let source = match &arguments.identity {
        Some(source) => source.clone(),
        None => image::own_source(&arguments.state)?,
    };
    let below = repository.image(&snapshot)?;
    let fetcher = Arc::new(Fetcher::start(repository.clone(), &FetchOptions::DEFAULT)?);
    let lazy = Arc::new(LazySource::new(fetcher, below.clone())?);
    let volume = state::open(&arguments.state, &id, lazy, &state::identity(&repository, &below))?;
    let options = BackupOptions {
        source: source.clone(),
        compression: arguments.compression,
        workers: arguments.workers.count(),
        engine: blockio::EngineKind::Auto,
        limit: None,
        change_id: None,
        volume_id: None,
        tags: Default::default(),
        changes: Changes::default(),
        care: Care {
            check_reused: 100,
            notes: image::state_folder(),
            ..Care::default()
        },
        faults: None,
    };
    let counters = Progress::new();
    let display = progress::Display::start(global, "commit", &counters);
    let report = commit(
        &repository,
        &below,
        &*volume,
        &volume.changed(),
        &options,
        &cancel,
        &counters,
    );
    drop(display);
    let report = report?;
    let document = Document {
        snapshot_id: report.snapshot.to_string(),
        object_id: report.object.to_string(),
        parent_id: report.parent.to_string(),
        source: source.to_string(),
        source_size: report.size,
        bytes_read: report.read_bytes,
        bytes_zero: report.zero_bytes,
        bytes_new: report.new_bytes,
        bytes_stored: report.totals.stored_bytes,
        duration_ms: report.duration_ms,
        peak_rss_bytes: peak_rss_bytes(),
    };
    output.print(&document, |d| {
        format!(
            "snapshot {} of {}, continues {}\nread {}, new {}, zero {}, stored {}\n",
            d.snapshot_id,
            d.source,
            d.parent_id,
            show_size(d.bytes_read),
            show_size(d.bytes_new),
            show_size(d.bytes_zero),
            show_size(d.bytes_stored)
        )
    });
    Ok(ExitCode::SUCCESS)
}
