//! `blockferry repo sync`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use blockio::Progress;
use clap::Args;
use repo::blob::{BlobStore, Location, MemStore};
use repo::sync::{Count, SyncOptions, SyncReport, sync};
use serde::Serialize;

use super::output::{Output, table};
use super::size::{show_rate, show_size};
use super::{Global, image, progress, signals};
use crate::error::{JobError, Result};

#[derive(Args)]
#[command(
    after_help = "No password is needed. The copy opens with the repository's own, by blockferry, kopia and Velero; it is complete when the\n\
                  command says so, and until then no repository or the one of the last time. What was copied is not copied again.\n\
                  Exit code 4 when --verify finds blobs that differ.\n\
                  Example: blockferry repo sync /mnt/second/r1 --repo /backups/r1"
)]
pub(crate) struct Arguments {
    /// Where to: an empty or missing directory, an empty prefix of a bucket, or an earlier copy; as for --repo
    target: String,
    /// Delete from the copy what the repository does not have any more
    #[arg(long)]
    delete: bool,
    /// Read everything from both places, earlier copies too, and compare
    #[arg(long)]
    verify: bool,
    /// Tell what would be copied and deleted, and do nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Blobs on their way at once
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64), value_name = "N")]
    workers: Option<u16>,
}

/// Blobs on their way at once when the store has no opinion: two reads and two writes keep two devices busy.
const WORKERS: usize = 4;

/// The document of `repo sync --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    source: String,
    target: String,
    dry_run: bool,
    /// The target held no repository before.
    first_copy: bool,
    copied: Blobs,
    in_sync: Blobs,
    /// In the target only, and left there.
    extra: Blobs,
    deleted: Blobs,
    /// What a run without --dry-run would delete.
    to_delete: Vec<String>,
    compared: Blobs,
    differing: Vec<String>,
    rounds: usize,
    duration_ms: u64,
}

#[derive(Serialize)]
struct Blobs {
    blobs: u64,
    bytes: u64,
}

impl From<Count> for Blobs {
    fn from(count: Count) -> Self {
        Self {
            blobs: count.blobs,
            bytes: count.bytes,
        }
    }
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let cancel = signals::cancel_on_signal()?;
    let source = image::store(global)?;
    let target = image::location(global, Some(&arguments.target))?;
    if let (Location::Directory(source), Location::Directory(target)) = (image::location(global, None)?, &target) {
        refuse_nested(&source, target)?;
    }
    let target = open_target(arguments, &target, global)?;
    let workers = match arguments.workers {
        Some(workers) => usize::from(workers),
        None => WORKERS.max(source.habits().reads).max(target.habits().puts),
    };
    let options = SyncOptions {
        workers,
        delete: arguments.delete,
        verify: arguments.verify,
        dry_run: arguments.dry_run,
    };
    let progress = Progress::new();
    let display = progress::Display::start(global, "sync", &progress);
    let started = Instant::now();
    let report = sync(&*source, &*target, &options, &cancel, &progress);
    drop(display);
    let report = report?;
    let code = if report.differing.is_empty() { 0 } else { 4 };
    let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    output.print(&document(report, source.place(), arguments, duration_ms), text);
    Ok(ExitCode::from(code))
}

/// The place of the copy; a directory is made when it is missing.
fn open_target(arguments: &Arguments, target: &Location, global: &Global) -> Result<Arc<dyn BlobStore>> {
    let settings = image::settings(global);
    let is_vacant = match target {
        Location::Directory(folder) => match std::fs::read_dir(folder) {
            Ok(mut entries) => entries.next().is_none(),
            Err(e) => e.kind() == std::io::ErrorKind::NotFound,
        },
        _ => false,
    };
    Ok(match (is_vacant, arguments.dry_run) {
        (true, true) => Arc::new(MemStore::new()), // as empty as the place, which a dry run does not make
        (true, false) => target.create(&settings)?,
        (false, _) => target.open(&settings)?,
    })
}

/// A copy inside of the repository would be part of it, and the other way round.
fn refuse_nested(source: &Path, target: &Path) -> Result<()> {
    let absolute = |path: &Path| -> PathBuf {
        // What does not exist yet is judged by the folder it will be in.
        let mut missing = Vec::new();
        let mut at = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        loop {
            if let Ok(real) = at.canonicalize() {
                return missing.iter().rev().fold(real, |path, name| path.join(name));
            }
            match (at.file_name().map(ToOwned::to_owned), at.parent()) {
                (Some(name), Some(parent)) => {
                    missing.push(name);
                    at = parent.to_path_buf();
                }
                _ => return path.to_path_buf(),
            }
        }
    };
    let (one, other) = (absolute(source), absolute(target));
    if one.starts_with(&other) || other.starts_with(&one) {
        return Err(JobError::Usage(format!(
            "{} and {} are one inside the other; give a place of its own for the copy",
            source.display(),
            target.display()
        )));
    }
    Ok(())
}

fn document(report: SyncReport, source: String, arguments: &Arguments, duration_ms: u64) -> Document {
    let names = |blobs: Vec<repo::BlobId>| blobs.iter().map(ToString::to_string).collect();
    Document {
        source,
        target: arguments.target.clone(),
        dry_run: arguments.dry_run,
        first_copy: report.first,
        copied: report.copied.into(),
        in_sync: report.in_sync.into(),
        extra: report.extra.into(),
        deleted: report.deleted.into(),
        to_delete: names(report.to_delete),
        compared: report.compared.into(),
        differing: names(report.differing),
        rounds: report.rounds,
        duration_ms,
    }
}

fn text(d: &Document) -> String {
    let row = |name: &str, blobs: &Blobs| {
        vec![
            name.to_string(),
            format!("{} blobs, {}", blobs.blobs, show_size(blobs.bytes)),
        ]
    };
    let mut rows = vec![
        row(if d.dry_run { "to copy" } else { "copied" }, &d.copied),
        row("in sync", &d.in_sync),
    ];
    if d.extra.blobs > 0 {
        rows.push(row("in the copy only", &d.extra));
    }
    if d.deleted.blobs > 0 {
        rows.push(row("deleted", &d.deleted));
    }
    if d.compared.blobs > 0 {
        rows.push(row("compared", &d.compared));
    }
    rows.extend(d.to_delete.iter().map(|id| vec!["to delete".into(), id.clone()]));
    rows.extend(d.differing.iter().map(|id| vec!["DIFFERS".into(), id.clone()]));
    if !d.dry_run {
        rows.push(vec!["rate".into(), show_rate(d.copied.bytes, d.duration_ms)]);
    }
    table(&rows)
}
