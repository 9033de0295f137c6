//! `blockferry commit`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use blockio::{Cancel, Progress};
use clap::Args;
use nbd::Overlay;
use repo::compress::CompressionPolicy;
use repo::snapshot::{Snapshot, Source};
use repo::{Image, Repository};
use serde::{Deserialize, Serialize};

use super::effort::Workers;
use super::mount::State;
use super::output::{Output, peak_rss_bytes};
use super::size::show_size;
use super::{Global, image, progress, signals};
use crate::error::{JobError, Result};
use crate::lazy::{FetchOptions, Fetcher, LazySource};
use crate::mount::control::{self, Answer, Ask};
use crate::mount::server::Committer;
use crate::mount::survey::{Found, Health};
use crate::mount::{Survey, identity};
use crate::mover::backup::{BackupOptions, Care, Changes};
use crate::mover::commit::commit;

#[derive(Args)]
#[command(after_help = "\
The new snapshot continues the one that was written over; only what was written is read and stored. It is of a source of its own,
because increments of the volume itself must not continue from what was never on it. What was written stays as it is.

A mount that is served is committed by its server, while nobody uses the device; files have to be unmounted for that, so that
what is stored is whole.

Examples:
  blockferry mount latest --writable --name try --repo /backups/r1 --password-file pw
  blockferry commit try --as root@node1:/tests/disk
  blockferry serve latest --writable --state /var/tmp/disk --socket /run/disk.sock --repo /backups/r1 --password-file pw
  blockferry commit latest --state /var/tmp/disk --as root@node1:/tests/disk --repo /backups/r1 --password-file pw")]
pub(crate) struct Arguments {
    /// A mount: its name, unique beginning of it, or its device. With `serve --state`: the snapshot that was written over
    #[arg(value_name = "MOUNT|SNAPSHOT")]
    name: String,
    /// Folder given to `serve --state`, which no server may be using, or to `mount --state`
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Whose volume the new snapshot is [default: this user, this host, the absolute path of what was written]
    #[arg(long = "as", value_name = "USER@HOST:PATH")]
    identity: Option<Source>,
    /// Compression of new chunks: auto, none, zstd-fastest, zstd, gzip, …
    #[arg(long, default_value = "auto", value_name = "POLICY")]
    compression: CompressionPolicy,
    #[command(flatten)]
    workers: Workers,
}

/// The document of `commit --json`. Sizes in bytes.
#[derive(Serialize, Deserialize)]
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

/// What was written, where it is, and over what.
struct Written<'a> {
    repository: &'a Repository,
    below: &'a Image,
    volume: &'a Overlay,
}

/// How it is stored.
struct How<'a> {
    source: Source,
    compression: CompressionPolicy,
    workers: usize,
    cancel: &'a Cancel,
    counters: &'a Progress,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let document = match mounted(arguments)? {
        None => over_snapshot(arguments, global)?,
        Some(found) => match &found.health {
            Health::Serving(_) => by_server(arguments, &found)?,
            Health::Stopped => over_mount(arguments, global, &found)?,
            other => {
                return Err(JobError::Usage(format!(
                    "mount {} is {}; `blockferry mounts --adopt` serves it again, or unmount it",
                    found.record.id,
                    other.word()
                )));
            }
        },
    };
    output.print(&document, text);
    Ok(ExitCode::SUCCESS)
}

/// The mount that is meant; none where a snapshot that was served is.
fn mounted(arguments: &Arguments) -> Result<Option<Found>> {
    let state = State::of(arguments.state.clone());
    let Ok(root) = state.root() else { return Ok(None) };
    let mut survey = Survey::of(&root)?;
    match survey.find(&arguments.name) {
        Ok(found) => {
            let id = found.record.id.clone();
            Ok(survey.mounts.extract_if(.., |found| found.record.id == id).next())
        }
        // With a state it may be that of a server.
        Err(_) if arguments.state.is_some() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The server that has the mount does it.
fn by_server(arguments: &Arguments, found: &Found) -> Result<Document> {
    let source = source(arguments, &found.folder.written())?;
    let ask = Ask::Commit(control::Commit {
        source: source.to_string(),
        compression: arguments.compression.to_string(),
        workers: arguments.workers.count(),
    });
    match control::ask(&found.folder, &ask, COMMIT_TIMEOUT)? {
        Some(Answer::Committed { document }) => serde_json::from_value(document)
            .map_err(|error| JobError::Panic(format!("the server's document cannot be read: {error}"))),
        Some(Answer::Refused { error, exit_code }) => Err(JobError::Told { error, exit_code }),
        other => Err(JobError::Panic(format!("the server answered {other:?}"))),
    }
}

/// A day: longer than any volume takes, and an end to waiting.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Nobody serves what was written.
fn over_mount(arguments: &Arguments, global: &Global, found: &Found) -> Result<Document> {
    found.record.check_commit()?;
    let busy = || JobError::Usage(format!("mount {} is about to be served; try again", found.record.id));
    let _claim = found.folder.try_lock()?.ok_or_else(busy)?;
    let repository = Arc::new(image::open(global)?);
    let snapshot = image::snapshot(&repository, &found.record.snapshot_id)?;
    offline(arguments, global, &repository, &snapshot, &found.folder.written())
}

fn over_snapshot(arguments: &Arguments, global: &Global) -> Result<Document> {
    let state = arguments
        .state
        .clone()
        .expect("what is no mount was looked for because there is one");
    let repository = Arc::new(image::open(global)?);
    let snapshot = image::snapshot(&repository, &arguments.name)?;
    let id = image::id_of(&snapshot)?;
    let folder = state.join(&id);
    if !folder.is_dir() {
        return Err(JobError::Usage(format!(
            "nothing was written over snapshot {id}: there is no {}",
            folder.display()
        )));
    }
    offline(arguments, global, &repository, &snapshot, &folder)
}

fn offline(
    arguments: &Arguments,
    global: &Global,
    repository: &Arc<Repository>,
    snapshot: &Snapshot,
    folder: &Path,
) -> Result<Document> {
    let cancel = signals::cancel_on_signal()?;
    let source = match (&arguments.identity, &arguments.state) {
        (None, Some(state)) => image::own_source(state)?,
        _ => source(arguments, folder)?,
    };
    let below = repository.image(snapshot)?;
    let fetcher = Arc::new(Fetcher::start(repository.clone(), &FetchOptions::DEFAULT)?);
    let lazy = Arc::new(LazySource::new(fetcher, below.clone())?);
    let volume = Overlay::open(folder, lazy, &identity(repository, &below))?;
    let counters = Progress::new();
    let display = progress::Display::start(global, "commit", &counters);
    let written = Written {
        repository,
        below: &below,
        volume: &volume,
    };
    let how = How {
        source,
        compression: arguments.compression,
        workers: arguments.workers.count(),
        cancel: &cancel,
        counters: &counters,
    };
    let document = store(&written, how);
    drop(display);
    document
}

fn source(arguments: &Arguments, written: &Path) -> Result<Source> {
    match &arguments.identity {
        Some(source) => Ok(source.clone()),
        None => image::own_source(written),
    }
}

/// What the server of a mount commits with.
pub(super) fn committer(repository: &Arc<Repository>) -> Committer {
    let repository = repository.clone();
    Box::new(move |below, volume, commit| {
        let written = Written {
            repository: &repository,
            below,
            volume,
        };
        let how = How {
            source: commit.source.parse()?,
            compression: commit.compression.parse()?,
            workers: commit.workers,
            cancel: &Cancel::new(),
            counters: &Progress::new(),
        };
        Ok(serde_json::to_value(store(&written, how)?).expect("plain data becomes JSON"))
    })
}

fn store(written: &Written<'_>, how: How<'_>) -> Result<Document> {
    let options = BackupOptions {
        source: how.source.clone(),
        compression: how.compression,
        workers: how.workers,
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
    let report = commit(
        written.repository,
        written.below,
        written.volume,
        &written.volume.changed(),
        &options,
        how.cancel,
        how.counters,
    )?;
    Ok(Document {
        snapshot_id: report.snapshot.to_string(),
        object_id: report.object.to_string(),
        parent_id: report.parent.to_string(),
        source: how.source.to_string(),
        source_size: report.size,
        bytes_read: report.read_bytes,
        bytes_zero: report.zero_bytes,
        bytes_new: report.new_bytes,
        bytes_stored: report.totals.stored_bytes,
        duration_ms: report.duration_ms,
        peak_rss_bytes: peak_rss_bytes(),
    })
}

fn text(d: &Document) -> String {
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
}
