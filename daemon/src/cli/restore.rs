//! `blockferry restore`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use blockio::{Device, OpenOptions, Progress};
use clap::{Args, ValueEnum};
use repo::Image;
use repo::blob::{Location, StoreStats};
use serde::Serialize;

use super::effort::Effort;
use super::output::{Output, peak_rss_bytes};
use super::size::{show_rate, show_size};
use super::{Global, image, progress, signals};
use crate::error::{JobError, Result};
use crate::mover::restore::{RestoreOptions, RestoreReport, is_aligned, restore};

#[derive(Args)]
#[command(
    after_help = "Example: blockferry restore latest /dev/vg0/restored --verify --repo /backups/r1 --password-file pw"
)]
pub(crate) struct Arguments {
    /// Snapshot: id, unique beginning of it, latest, or latest:USER@HOST:PATH
    snapshot: String,
    /// Block device, or a file (created, sparse)
    target: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = Mode::Full, value_name = "MODE")]
    mode: Mode,
    /// Read the target back and compare every chunk with its content id
    #[arg(long)]
    verify: bool,
    /// Restore what can be read, leave out what is lost, list those places, and exit with 4
    #[arg(long)]
    salvage: bool,
    /// Replace a file that is not empty
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    effort: Effort,
}

/// Exit code when something is lost.
const DAMAGE: u8 = 4;

/// Largest alignment direct IO asks for anywhere, in bytes.
const DIRECT_ALIGN: u64 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Everything.
    Full,
}

/// The document of `restore --json`. Sizes in bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    snapshot_id: String,
    target: String,
    size: u64,
    bytes_fetched: u64,
    bytes_written: u64,
    bytes_zeroed: u64,
    bytes_skipped: u64,
    verified: bool,
    verified_pieces: Option<u64>,
    zero_refusals: Vec<String>,
    /// Places that could not be restored.
    lost: Vec<Place>,
    duration_ms: u64,
    peak_rss_bytes: u64,
    engine: Option<String>,
    engine_reason: Option<String>,
    /// What was asked of the repository's storage.
    storage: StoreStats,
}

/// A range of bytes of the volume.
#[derive(Serialize)]
struct Place {
    offset: u64,
    length: u64,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let cancel = signals::cancel_on_signal()?;
    let Mode::Full = arguments.mode;
    let repository = match arguments.salvage {
        true => image::open_uncached(global)?, // it tells what is lost
        false => image::open(global)?,
    };
    let snapshot = image::snapshot(&repository, &arguments.snapshot)?;
    if !snapshot.incomplete.is_empty() {
        return Err(JobError::Usage(format!(
            "snapshot {} is incomplete ({}); restore a complete one",
            arguments.snapshot, snapshot.incomplete
        )));
    }
    let image = repository.image(&snapshot)?;
    if let Location::Directory(repository) = image::location(global, None)? {
        refuse_inside(&repository, &arguments.target)?;
    }
    let is_new = !arguments.target.exists();
    let (target, target_is_zero) = open_target(arguments, &image)?;
    let options = RestoreOptions {
        workers: arguments.effort.workers.count(),
        engine: arguments.effort.engine,
        limit: arguments.effort.limit,
        verify: arguments.verify,
        target_is_zero,
        salvage: arguments.salvage,
        faults: None,
    };
    let progress = Progress::new();
    let display = progress::Display::start(global, "restore", &progress);
    let report = restore(&repository, &image, &target, &options, &cancel, &progress);
    drop(display);
    // Half a volume under the name of a whole one is a trap. One that was read back and differs is kept for inspection.
    if is_new && report.as_ref().is_err_and(|e| !matches!(e, JobError::Damage(_))) {
        let _ = std::fs::remove_file(&arguments.target); // the error of the restore says more
    }
    let storage = image::settings(global).meter.stats();
    let document = document(&report?, &image, &arguments.target, storage);
    output.print(&document, text);
    if !document.lost.is_empty() {
        return Ok(ExitCode::from(DAMAGE));
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses a target among the files of the repository: replacing one would destroy what others restore from.
fn refuse_inside(repository: &Path, target: &Path) -> Result<()> {
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).canonicalize();
    match (repository.canonicalize(), folder) {
        (Ok(repository), Ok(folder)) if folder.starts_with(&repository) => Err(JobError::Usage(format!(
            "{} lies in the repository {}; restore to another place",
            target.display(),
            repository.display()
        ))),
        _ => Ok(()), // a folder that is not there is told by who creates the target
    }
}

/// Opens the target; true when it reads as zeros.
fn open_target(arguments: &Arguments, image: &Image) -> Result<(Arc<Device>, bool)> {
    let path = &arguments.target;
    // Pieces that begin anywhere go through the page cache, which puts their shared blocks together.
    let options = OpenOptions {
        direct: is_aligned(&image.table, DIRECT_ALIGN),
        ..OpenOptions::overwrite()
    };
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Ok((Arc::new(Device::open(path, &options)?), false)),
        Ok(meta) if meta.len() > 0 && !arguments.force => Err(JobError::Usage(format!(
            "{} holds {} bytes; --force replaces it",
            path.display(),
            meta.len()
        ))),
        existing => Ok((
            Arc::new(Device::create_file_with(path, image.size, existing.is_ok(), &options)?),
            true,
        )),
    }
}

fn document(report: &RestoreReport, image: &Image, target: &Path, storage: StoreStats) -> Document {
    Document {
        snapshot_id: image.snapshot.id.map(|id| id.to_string()).unwrap_or_default(),
        target: target.display().to_string(),
        size: report.size,
        bytes_fetched: report.fetched_bytes,
        bytes_written: report.written_bytes,
        bytes_zeroed: report.zeroed_bytes,
        bytes_skipped: report.skipped_bytes,
        verified: report.verified_pieces.is_some(),
        verified_pieces: report.verified_pieces,
        zero_refusals: report.zero.refusals.clone(),
        lost: report
            .lost
            .iter()
            .map(|e| Place {
                offset: e.offset,
                length: e.len,
            })
            .collect(),
        duration_ms: report.duration_ms,
        peak_rss_bytes: peak_rss_bytes(),
        engine: report.engine.as_ref().map(|choice| choice.kind.to_string()),
        engine_reason: report.engine.as_ref().map(|choice| choice.reason.clone()),
        storage,
    }
}

fn text(d: &Document) -> String {
    let proof = d.verified_pieces.map_or(String::new(), |pieces| {
        format!("verified: {pieces} pieces read back and equal\n")
    });
    let refusals: String = d.zero_refusals.iter().map(|r| format!("note: {r}\n")).collect();
    let places = d
        .lost
        .iter()
        .map(|p| format!("lost: {} bytes at {}\n", p.length, p.offset));
    let lost: String = places.collect();
    format!(
        "restored snapshot {} to {}\n{} in {:.1} s ({}): {} fetched, {} written, {} zeroed\n{refusals}{proof}{lost}",
        d.snapshot_id,
        d.target,
        show_size(d.size),
        std::time::Duration::from_millis(d.duration_ms).as_secs_f64(),
        show_rate(d.size, d.duration_ms),
        show_size(d.bytes_fetched),
        show_size(d.bytes_written),
        show_size(d.bytes_zeroed),
    )
}
