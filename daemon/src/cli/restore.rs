//! `blockferry restore`.

mod document;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use blockio::{Access, BlockMap, Device, OpenOptions, Progress};
use clap::{Args, ValueEnum};
use repo::Image;
use repo::blob::Location;
use tracing::warn;

use super::effort::Effort;
use super::output::Output;
use super::{Global, image, progress, signals};
use crate::error::{JobError, Result};
use crate::mover::changes::ChangedFile;
use crate::mover::restore::{RestoreOptions, Scope, estimate, is_aligned, restore};
use document::{Document, mismatches};

#[derive(Args)]
#[command(after_help = "\
Modes:
  full   writes everything; a file that is not empty needs --force, and is replaced
  delta  reads the target and writes only what differs from the snapshot, so it is meant for a target that holds something
         and needs no --force; it also finishes a restore of either mode that was interrupted

A device that is mounted or in use is refused in any case. A larger target keeps what it has behind the volume, unless
--zero-rest is given.

Examples:
  blockferry restore latest /dev/vg0/restored --verify --repo /backups/r1 --password-file pw
  blockferry restore latest /dev/vg0/data --mode delta --verify --repo /backups/r1 --password-file pw
  blockferry restore latest /dev/vg0/data --mode delta --changed list.json --repo /backups/r1 --password-file pw
  blockferry restore latest /dev/vg0/data --mode delta --dry-run --repo /backups/r1 --password-file pw")]
pub(crate) struct Arguments {
    /// Snapshot: id, unique beginning of it, latest, or latest:USER@HOST:PATH
    snapshot: String,
    /// Block device, or a file (created, sparse)
    target: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = Mode::Full, value_name = "MODE")]
    mode: Mode,
    /// With --mode delta: the places that may differ, as {"volumeSize":N,"changed":[{"offset":O,"length":L},...]};
    /// nothing else is read. - is standard input
    #[arg(long, value_name = "FILE")]
    changed: Option<PathBuf>,
    /// Read the target back and compare every chunk with its content id
    #[arg(long)]
    verify: bool,
    /// Tell what would be read, fetched, written and zeroed, and write nothing. With --mode delta the target is read for it
    #[arg(long)]
    dry_run: bool,
    /// Restore what can be read, leave out what is lost, list those places, and exit with 4
    #[arg(long)]
    salvage: bool,
    /// Make zero what a larger target has behind the volume
    #[arg(long)]
    zero_rest: bool,
    /// Have a thin device give back the blocks that become zero, where it can; it keeps them otherwise
    #[arg(long)]
    discard: bool,
    /// Take a smaller device when all of the snapshot that does not fit is zero
    #[arg(long)]
    allow_smaller: bool,
    /// Replace a file that is not empty
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    effort: Effort,
}

/// Exit code when something is lost, or differs.
const DAMAGE: u8 = 4;

/// Largest alignment direct IO asks for anywhere, in bytes.
const DIRECT_ALIGN: u64 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Everything
    Full,
    /// What differs from the snapshot
    Delta,
}

/// The target, as far as it is there.
struct Target {
    /// None in a dry run that would create it.
    device: Option<Arc<Device>>,
    /// It reads as zeros.
    is_zero: bool,
    /// It was made just now.
    is_new: bool,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let cancel = signals::cancel_on_signal()?;
    if arguments.changed.is_some() && arguments.mode != Mode::Delta {
        return Err(JobError::Usage(
            "--changed limits what is compared; give --mode delta with it".into(),
        ));
    }
    let changed = arguments.changed.as_deref().map(ChangedFile::read).transpose()?;
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
    let target = open_target(arguments, &image)?;
    let options = RestoreOptions {
        scope: scope(arguments, &image, &target, changed.as_ref())?,
        workers: arguments.effort.workers.count(),
        engine: arguments.effort.engine,
        limit: arguments.effort.limit,
        verify: arguments.verify,
        target_is_zero: target.is_zero,
        salvage: arguments.salvage,
        zero_rest: arguments.zero_rest,
        discard: arguments.discard,
        allow_smaller: arguments.allow_smaller,
        faults: None,
    };
    let progress = Progress::new();
    let display = progress::Display::start(global, "restore", &progress);
    let start = Document::of(&image, &arguments.target, arguments.mode == Mode::Delta);
    if arguments.dry_run {
        let estimate = estimate(
            &repository,
            &image,
            target.device.as_ref(),
            &options,
            &cancel,
            &progress,
        );
        drop(display);
        output.print(&start.dry(&estimate?), Document::text);
        return Ok(ExitCode::SUCCESS);
    }
    let device = target.device.as_ref().expect("opened unless it is a dry run");
    let report = restore(&repository, &image, device, &options, &cancel, &progress);
    drop(display);
    if let Err(e) = &report {
        after_failure(arguments, &target, e);
    }
    let report = report?;
    let storage = image::settings(global).meter.stats();
    let lost = !report.lost.is_empty();
    let differs = mismatches(&report, &arguments.target);
    let document = start.done(&report, storage);
    match differs {
        Some(error) if !output.is_json() => return Err(error),
        Some(error) => {
            output.print(&document, Document::text);
            tracing::error!("{error}");
            return Ok(ExitCode::from(DAMAGE));
        }
        None => output.print(&document, Document::text),
    }
    Ok(if lost {
        ExitCode::from(DAMAGE)
    } else {
        ExitCode::SUCCESS
    })
}

/// Half a volume under the name of a whole one is a trap: a file that a full restore made goes. A delta restore was chosen by
/// somebody who knows that the target may hold a part, and continues from it.
fn after_failure(arguments: &Arguments, target: &Target, error: &JobError) {
    let untouched = matches!(error, JobError::Usage(_));
    if target.is_new && (arguments.mode == Mode::Full || untouched) {
        let _ = std::fs::remove_file(&arguments.target); // the error of the restore says more
    } else if !untouched {
        let target = arguments.target.display().to_string();
        warn!(
            target,
            "the target may hold a part of the snapshot; the same restore with --mode delta finishes it"
        );
    }
}

/// What is to be written, once the list of changes, if there is one, is known to be of this volume.
fn scope(arguments: &Arguments, image: &Image, target: &Target, changed: Option<&ChangedFile>) -> Result<Scope> {
    let size = target.device.as_ref().map_or(0, |device| device.geometry().size);
    let map = |changed: &ChangedFile| -> Result<BlockMap> {
        if changed.volume_size != image.size && changed.volume_size != size {
            return Err(JobError::Usage(format!(
                "the list of changes is of a volume of {} bytes; the snapshot's has {}, the target {size}",
                changed.volume_size, image.size
            )));
        }
        Ok(changed.map(image.size))
    };
    match arguments.mode {
        Mode::Full => Ok(Scope::Full),
        // Nothing is in it to compare with.
        Mode::Delta if changed.is_none() && (target.is_zero || target.device.is_none()) => Ok(Scope::Full),
        Mode::Delta if target.is_zero || target.device.is_none() => Err(JobError::Usage(format!(
            "{} is empty; with --changed only a part of the snapshot would be in it",
            arguments.target.display()
        ))),
        Mode::Delta => Ok(Scope::Delta {
            changed: changed.map(map).transpose()?,
        }),
    }
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

/// Opens or creates the target.
fn open_target(arguments: &Arguments, image: &Image) -> Result<Target> {
    let path = &arguments.target;
    // Pieces that begin anywhere go through the page cache, which puts their shared blocks together.
    let overwrite = OpenOptions {
        direct: is_aligned(&image.table, DIRECT_ALIGN),
        ..OpenOptions::overwrite()
    };
    let look = OpenOptions {
        access: Access::Read,
        ..overwrite
    };
    let existing = |device: Device| Target {
        device: Some(Arc::new(device)),
        is_zero: false,
        is_new: false,
    };
    let meta = std::fs::metadata(path);
    let (delta, dry) = (arguments.mode == Mode::Delta, arguments.dry_run);
    match &meta {
        Ok(meta) if !meta.is_file() => Ok(existing(Device::open(path, if dry { &look } else { &overwrite })?)),
        Ok(meta) if meta.len() > 0 && delta && dry => Ok(existing(Device::open(path, &look)?)),
        Ok(meta) if meta.len() > 0 && delta => Ok(existing(Device::open_grown(path, image.size, &overwrite)?)),
        Ok(meta) if meta.len() > 0 && !arguments.force => Err(JobError::Usage(format!(
            "{} holds {} bytes; --force replaces it, --mode delta writes what differs",
            path.display(),
            meta.len()
        ))),
        _ if arguments.changed.is_some() || dry => Ok(Target {
            device: None,
            is_zero: true,
            is_new: false,
        }),
        found => Ok(Target {
            device: Some(Arc::new(Device::create_file_with(
                path,
                image.size,
                found.is_ok(),
                &overwrite,
            )?)),
            is_zero: true,
            is_new: found.is_err(),
        }),
    }
}
