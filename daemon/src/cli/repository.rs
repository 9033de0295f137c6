//! `blockferry repo create | status`, and the way to its other commands.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use repo::blob::StoreStats;
use repo::cache::{Cache, CacheStats};
use repo::crypto::{CipherAlgorithm, HashAlgorithm};
use repo::format::{CreateOptions, Retention, RetentionMode};
use repo::maintenance::{self, UnreadableMarker};
use repo::session::CLOCK_SKEW_MAX;
use repo::survey::Survey;
use repo::{RepoError, Repository};
use serde::Serialize;

use super::output::{Output, table};
use super::size::show_size;
use super::{Global, image, password, sync};
use crate::error::{JobError, Result};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Create a repository with the defaults of Velero and Kopia
    Create(Create),
    /// Parameters, counts, epoch, maintenance, warnings
    Status,
    /// Change the password
    Password(password::Arguments),
    /// Copy the repository, blob for blob, to a second place
    Sync(sync::Arguments),
}

#[derive(Args)]
#[command(after_help = "Example: blockferry repo create /backups/r1 --password-file pw")]
pub(crate) struct Create {
    /// Where: an empty or missing directory, or an empty prefix of a bucket, as for --repo [default: --repo]
    repository: Option<String>,
    /// Hash of contents, by Kopia's name
    #[arg(long, value_name = "HASH")]
    hash: Option<String>,
    /// Encryption of contents, by Kopia's name
    #[arg(long, value_name = "ENCRYPTION")]
    encryption: Option<String>,
    /// The fastest algorithms Kopia has: BLAKE3-256-128
    #[arg(long, conflicts_with = "hash")]
    fast: bool,
    /// Error correction, by Kopia's name: none is what this version writes
    #[arg(long, default_value = "none", value_name = "ECC")]
    ecc: String,
    /// Lock everything stored for so many days, by GOVERNANCE or COMPLIANCE; the bucket must have object lock enabled
    #[arg(long, value_parser = parse_lock, value_name = "MODE:DAYS")]
    object_lock: Option<Retention>,
}

/// A session marker older than this has no writer any more: sessions flush, and leave their marker, within minutes, and no
/// single volume takes a day.
const SESSION_OLD: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn run(command: &Command, global: &Global, output: &Output) -> Result<ExitCode> {
    match command {
        Command::Create(create) => run_create(create, global, output),
        Command::Status => run_status(global, output),
        Command::Password(arguments) => password::run(arguments, global, output),
        Command::Sync(arguments) => sync::run(arguments, global, output),
    }
}

/// Reads `MODE:DAYS`.
fn parse_lock(text: &str) -> Result<Retention, String> {
    let (mode, days) = text
        .split_once(':')
        .ok_or_else(|| format!("{text:?} is not MODE:DAYS"))?;
    let mode = match mode.to_ascii_lowercase().as_str() {
        "governance" => RetentionMode::Governance,
        "compliance" => RetentionMode::Compliance,
        _ => return Err(format!("mode {mode:?} is neither GOVERNANCE nor COMPLIANCE")),
    };
    // A century: longer is a slip, and nothing could be deleted before.
    match days.parse::<u64>() {
        Ok(days @ 1..=36_500) => Ok(Retention {
            mode,
            period: Duration::from_secs(days * 86_400),
        }),
        _ => Err(format!("{days:?} is not a number of days from 1 to 36500")),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    repository: String,
    hash: String,
    encryption: String,
    owner: String,
}

fn run_create(arguments: &Create, global: &Global, output: &Output) -> Result<ExitCode> {
    let location = image::location(global, arguments.repository.as_deref())?;
    let hash = if arguments.fast {
        Some("BLAKE3-256-128")
    } else {
        arguments.hash.as_deref()
    };
    let mut options = CreateOptions::default();
    if let Some(name) = hash {
        options.hash = algorithm(name, &HashAlgorithm::ALL)?;
    }
    if let Some(name) = &arguments.encryption {
        options.encryption = algorithm(name, &CipherAlgorithm::ALL)?;
    }
    if arguments.ecc != "none" {
        return Err(JobError::Usage(format!(
            "--ecc {}: this version reads repositories with error correction and does not write them; use none",
            arguments.ecc
        )));
    }
    options.retention = arguments.object_lock;
    let password = image::password(global, true)?;
    if password.is_empty() {
        return Err(JobError::Usage("an empty password; a repository needs one".into()));
    }
    let store = location.create(&image::settings(global))?;
    Repository::create(&*store, &password, &options)?;
    let repository = Repository::open(store, &password)?;
    let owner = format!("{}@{}", image::user_name(), image::host_name());
    maintenance::set_owner(&repository, &owner)?;
    let created = Created {
        repository: repository.store().place(),
        hash: options.hash.to_string(),
        encryption: options.encryption.to_string(),
        owner,
    };
    output.print(&created, |c| {
        format!("created repository {} ({}, {})\n", c.repository, c.hash, c.encryption)
    });
    Ok(ExitCode::SUCCESS)
}

/// The algorithm called `name`, one of `all`.
fn algorithm<T: FromStr<Err = RepoError> + ToString>(name: &str, all: &[T]) -> Result<T> {
    let known = || all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    name.parse()
        .map_err(|e: RepoError| JobError::Usage(format!("{e}; known are {}", known())))
}

/// The document of `repo status --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    repository: String,
    unique_id: String,
    format_version: u8,
    hash: String,
    encryption: String,
    splitter: String,
    max_pack_size: u64,
    index_version: u8,
    epoch: u64,
    index_blobs: u64,
    index_entries: u64,
    snapshots: u64,
    incomplete_snapshots: u64,
    blobs: BTreeMap<&'static str, Count>,
    maintenance_owner: Option<String>,
    last_quick_maintenance: Option<String>,
    last_full_maintenance: Option<String>,
    /// What the storage's clock is ahead of this host's at least; 0 also when it is behind.
    storage_clock_ahead_ms: u64,
    warnings: Vec<String>,
    /// What this look at the repository asked of its storage.
    storage: StoreStats,
    /// What of it the cache on this host had.
    cache: Option<CacheStats>,
}

#[derive(Serialize)]
struct Count {
    count: u64,
    bytes: u64,
}

/// Index blobs above which Kopia itself warns (kopia, internal/epoch).
const INDEX_BLOBS_MANY: u64 = 1000;

fn run_status(global: &Global, output: &Output) -> Result<ExitCode> {
    let repository = image::open(global)?;
    let snapshots = repository.snapshots()?;
    let format = repository.format();
    let epoch = repository.epoch();
    let state = maintenance::state(&repository)?;
    let survey = Survey::of(&repository)?;
    let totals = survey.totals.iter();
    let blobs = totals.map(|(kind, (count, bytes))| {
        (
            *kind,
            Count {
                count: *count,
                bytes: *bytes,
            },
        )
    });
    let incomplete = snapshots.iter().filter(|s| !s.incomplete.is_empty()).count() as u64;
    let mut warnings = Vec::new();
    if epoch.blobs.len() as u64 > INDEX_BLOBS_MANY {
        warnings.push(format!("{} index blobs; run maintenance", epoch.blobs.len()));
    }
    if survey.clock_ahead > CLOCK_SKEW_MAX {
        warnings.push(format!(
            "the storage's clock is ahead of this host's by {} s; backups are refused",
            survey.clock_ahead.as_secs()
        ));
    }
    if survey.oldest_session > SESSION_OLD {
        warnings.push(format!(
            "the oldest session marker is {} hours old: its writer has ended, and maintenance passes over it after 96 hours",
            survey.oldest_session.as_secs() / 3600
        ));
    }
    warnings.extend(survey.unreadable.iter().map(UnreadableMarker::advice));
    let passed_over = |feature: &String| format!("{feature} is not known to this version and passed over");
    warnings.extend(format.ignored_features.iter().map(passed_over));
    if state.owner.is_none() {
        warnings.push("no maintenance owner is set; nobody deletes unused data".into());
    }
    let status = Status {
        repository: repository.store().place(),
        unique_id: hex::encode(&format.unique_id),
        format_version: format.version,
        hash: format.hash.to_string(),
        encryption: format.encryption.to_string(),
        splitter: format.splitter.clone(),
        max_pack_size: u64::from(format.max_pack_size),
        index_version: format.index_version,
        epoch: epoch.write_epoch,
        index_blobs: epoch.blobs.len() as u64,
        index_entries: repository.content_count(),
        snapshots: snapshots.len() as u64 - incomplete,
        incomplete_snapshots: incomplete,
        blobs: blobs.collect(),
        maintenance_owner: state.owner,
        last_quick_maintenance: state.last_quick.map(|t| t.to_string()),
        last_full_maintenance: state.last_full.map(|t| t.to_string()),
        storage_clock_ahead_ms: u64::try_from(survey.clock_ahead.as_millis()).unwrap_or(u64::MAX),
        warnings,
        storage: image::settings(global).meter.stats(),
        cache: repository.cache().map(Cache::stats),
    };
    output.print(&status, status_text);
    Ok(ExitCode::SUCCESS)
}

fn status_text(s: &Status) -> String {
    let row = |name: &str, value: String| vec![name.to_string(), value];
    let mut rows = vec![
        row("repository", s.repository.clone()),
        row("unique id", s.unique_id.clone()),
        row(
            "format",
            format!(
                "version {}, index {}, packs of {}",
                s.format_version,
                s.index_version,
                show_size(s.max_pack_size)
            ),
        ),
        row("algorithms", format!("{}, {}, {}", s.hash, s.encryption, s.splitter)),
        row(
            "epoch",
            format!(
                "{}, {} index blobs, {} entries",
                s.epoch, s.index_blobs, s.index_entries
            ),
        ),
        row(
            "snapshots",
            format!("{} complete, {} incomplete", s.snapshots, s.incomplete_snapshots),
        ),
    ];
    rows.extend(
        s.blobs
            .iter()
            .map(|(kind, total)| row(kind, format!("{} blobs, {}", total.count, show_size(total.bytes)))),
    );
    let time = |t: &Option<String>| t.clone().unwrap_or_else(|| "never".into());
    rows.push(row(
        "maintenance owner",
        s.maintenance_owner.clone().unwrap_or_else(|| "nobody".into()),
    ));
    rows.push(row(
        "last maintenance",
        format!(
            "quick {}, full {}",
            time(&s.last_quick_maintenance),
            time(&s.last_full_maintenance)
        ),
    ));
    rows.push(row(
        "storage clock",
        match s.storage_clock_ahead_ms {
            0 => "not ahead of this host's".into(),
            ahead => format!("ahead of this host's by {ahead} ms at least"),
        },
    ));
    rows.extend(s.warnings.iter().map(|w| row("warning", w.clone())));
    table(&rows)
}
