//! `blockferry repo create | status`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use clap::{Args, Subcommand};
use repo::blob::{BlobStore, FsStore};
use repo::crypto::{CipherAlgorithm, HashAlgorithm};
use repo::format::CreateOptions;
use repo::maintenance;
use repo::{RepoError, Repository};
use serde::Serialize;

use super::output::{Output, table};
use super::size::show_size;
use super::{Global, image};
use crate::error::{JobError, Result};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Create a repository with the defaults of Velero and Kopia
    Create(Create),
    /// Parameters, counts, epoch, maintenance, warnings
    Status,
}

#[derive(Args)]
#[command(after_help = "Example: blockferry repo create /backups/r1 --password-file pw")]
pub(crate) struct Create {
    /// Where: an empty or missing directory [default: --repo]
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
}

pub(crate) fn run(command: &Command, global: &Global, output: &Output) -> Result<ExitCode> {
    match command {
        Command::Create(create) => run_create(create, global, output),
        Command::Status => run_status(global, output),
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
    let directory = image::directory(global, arguments.repository.as_deref())?;
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
    let password = image::password(global, true)?;
    if password.is_empty() {
        return Err(JobError::Usage("an empty password; a repository needs one".into()));
    }
    let store: Arc<dyn BlobStore> = Arc::new(FsStore::create(&directory)?);
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
    let blobs: BTreeMap<_, _> = repository
        .blob_totals()?
        .into_iter()
        .map(|(k, (count, bytes))| (k, Count { count, bytes }))
        .collect();
    let storage_clock_ahead_ms = repository.clock_ahead_ms()?;
    let incomplete = snapshots.iter().filter(|s| !s.incomplete.is_empty()).count() as u64;
    let mut warnings = Vec::new();
    if epoch.blobs.len() as u64 > INDEX_BLOBS_MANY {
        warnings.push(format!("{} index blobs; run maintenance", epoch.blobs.len()));
    }
    if storage_clock_ahead_ms > u64::try_from(repo::session::CLOCK_SKEW_MAX.as_millis()).unwrap_or(u64::MAX) {
        warnings.push(format!(
            "the storage's clock is ahead of this host's by {} s; backups are refused",
            storage_clock_ahead_ms / 1000
        ));
    }
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
        blobs,
        maintenance_owner: state.owner,
        last_quick_maintenance: state.last_quick.map(|t| t.to_string()),
        last_full_maintenance: state.last_full.map(|t| t.to_string()),
        storage_clock_ahead_ms,
        warnings,
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
