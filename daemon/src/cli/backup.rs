//! `blockferry backup`.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use blockio::{Device, OpenOptions, Progress};
use clap::Args;
use repo::ContentId;
use repo::blob::StoreStats;
use repo::compress::CompressionPolicy;
use repo::crypto::Kernel;
use repo::snapshot::{Source, tag};
use serde::{Deserialize, Serialize};

use super::effort::Effort;
use super::output::{Output, peak_rss_bytes};
use super::size::{show_rate, show_size};
use super::{Global, image, progress, signals};
use crate::error::{JobError, Result};
use crate::mover::backup::{BackupOptions, BackupReport, Care, backup};

#[derive(Args)]
#[command(
    after_help = "Example: blockferry backup /dev/vg0/data --repo /backups/r1 --password-file pw --as root@node1:/pvc/data"
)]
pub(crate) struct Arguments {
    /// Block device or regular file
    source: PathBuf,
    /// Whose volume it is [default: this user, this host, the absolute path]
    #[arg(long = "as", value_name = "USER@HOST:PATH")]
    identity: Option<Source>,
    /// Compression of new chunks: auto, none, zstd-fastest, zstd, gzip, …
    #[arg(long, default_value = "auto", value_name = "POLICY")]
    compression: CompressionPolicy,
    /// Tag the snapshot; may be repeated
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
    /// Change id of the CSI snapshot this device shows
    #[arg(long, requires = "volume_id", value_name = "ID")]
    change_id: Option<String>,
    /// Volume the change id belongs to
    #[arg(long, requires = "change_id", value_name = "ID")]
    volume_id: Option<String>,
    #[command(flatten)]
    effort: Effort,
    /// Share of the chunks the repository already has whose packs are looked for; what is lost is stored again
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(0..=100), value_name = "PERCENT")]
    check_reused: u8,
    /// Store again the contents that this document of `verify --json` names as damaged, where the source still has them
    #[arg(long, value_name = "FILE")]
    heal: Option<PathBuf>,
    /// Packs on their way to the storage at once, about 22 MiB of memory each [default: one a worker; 8 for an object store]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256), value_name = "N")]
    uploads: Option<u16>,
    /// Hash kernel other than the best of this CPU, to measure: serial, avx2x4, avx512x8
    #[arg(long, hide = true, value_name = "KERNEL")]
    hash_kernel: Option<Kernel>,
}

/// Tags that say how a backup was made.
const OWN_TAGS: [&str; 5] = [
    tag::SOURCE_SIZE,
    tag::LOGICAL_BLOCK,
    tag::UPLOADER,
    tag::VERSION,
    tag::RUNG,
];

fn parse_tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

/// The document of `backup --json`. Sizes in bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    snapshot_id: String,
    object_id: String,
    parent_id: Option<String>,
    source: String,
    rung: &'static str,
    rung_reason: &'static str,
    source_size: u64,
    bytes_read: u64,
    bytes_zero: u64,
    bytes_unchanged: u64,
    bytes_new: u64,
    bytes_stored: u64,
    audited_blocks: u64,
    audit_mismatches: u64,
    duration_ms: u64,
    peak_rss_bytes: u64,
    reused_checked: u64,
    healed: u64,
    engine: String,
    engine_reason: String,
    hash_kernel: &'static str,
    /// What was asked of the repository's storage.
    storage: StoreStats,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let cancel = signals::cancel_on_signal()?;
    let device = Arc::new(Device::open(&arguments.source, &OpenOptions::read())?);
    let source = match &arguments.identity {
        Some(source) => source.clone(),
        None => own_identity(&arguments.source)?,
    };
    let mut tags: BTreeMap<String, String> = BTreeMap::new();
    for (key, value) in &arguments.tags {
        if tags.insert(key.clone(), value.clone()).is_some() {
            return Err(JobError::Usage(format!("tag {key:?} is given twice")));
        }
    }
    if let Some(key) = tags.keys().find(|key| OWN_TAGS.contains(&key.as_str())) {
        return Err(JobError::Usage(format!("tag {key:?} is set by the backup itself")));
    }
    if let Some(key) = tags
        .keys()
        .find(|key| [tag::CHANGE_ID, tag::VOLUME_ID].contains(&key.as_str()))
    {
        return Err(JobError::Usage(format!(
            "tag {key:?} is set by --change-id and --volume-id"
        )));
    }
    let options = BackupOptions {
        source: source.clone(),
        compression: arguments.compression,
        workers: arguments.effort.workers.count(),
        engine: arguments.effort.engine,
        limit: arguments.effort.limit,
        change_id: arguments.change_id.clone(),
        volume_id: arguments.volume_id.clone(),
        tags,
        care: Care {
            uploads: arguments.uploads.map(usize::from),
            check_reused: arguments.check_reused,
            damaged: Arc::new(arguments.heal.as_deref().map_or(Ok(HashSet::new()), damaged_contents)?),
            notes: image::state_folder(),
        },
        faults: None,
    };
    let repository = match arguments.hash_kernel {
        Some(kernel) => image::open(global)?.with_hash_kernel(kernel)?,
        None => image::open(global)?,
    };
    let progress = Progress::new();
    let display = progress::Display::start(global, "backup", &progress);
    let report = backup(&repository, &device, &options, &cancel, &progress);
    drop(display);
    let storage = image::settings(global).meter.stats();
    output.print(&document(&report?, &source, storage), text);
    Ok(ExitCode::SUCCESS)
}

/// The part of a document of `verify --json` that tells what is damaged.
#[derive(Deserialize)]
struct Damages {
    damages: Vec<Damage>,
}

#[derive(Deserialize)]
struct Damage {
    content: Option<String>,
}

/// Contents that the document in `file` names as damaged.
fn damaged_contents(file: &Path) -> Result<HashSet<ContentId>> {
    let bad = |why: String| JobError::Usage(format!("{}: {why}; give what `verify --json` printed", file.display()));
    let text = std::fs::read(file).map_err(|e| bad(e.to_string()))?;
    let document: Damages = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    let ids = document.damages.into_iter().filter_map(|damage| damage.content);
    ids.map(|id| id.parse::<ContentId>().map_err(|e| bad(e.to_string())))
        .collect()
}

fn own_identity(path: &Path) -> Result<Source> {
    let full = std::path::absolute(path).map_err(|e| JobError::Usage(format!("{}: {e}", path.display())))?;
    Ok(Source {
        host: image::host_name(),
        user: image::user_name(),
        path: full.display().to_string(),
    })
}

fn document(report: &BackupReport, source: &Source, storage: StoreStats) -> Document {
    Document {
        snapshot_id: report.snapshot.to_string(),
        object_id: report.object.to_string(),
        parent_id: None,
        source: source.to_string(),
        rung: "full",
        rung_reason: "no parent was asked for",
        source_size: report.source_size,
        bytes_read: report.read_bytes,
        bytes_zero: report.zero_bytes,
        bytes_unchanged: report.known_bytes,
        bytes_new: report.new_bytes,
        bytes_stored: report.totals.stored_bytes,
        audited_blocks: 0,
        audit_mismatches: 0,
        duration_ms: report.duration_ms,
        peak_rss_bytes: peak_rss_bytes(),
        reused_checked: report.totals.reused_checked,
        healed: report.totals.healed,
        engine: report.engine.kind.to_string(),
        engine_reason: report.engine.reason.clone(),
        hash_kernel: report.hash_kernel,
        storage,
    }
}

fn text(d: &Document) -> String {
    let healed = match d.healed {
        0 => String::new(),
        count => format!("healed: {count} contents that the repository had lost or damaged are stored again\n"),
    };
    format!(
        "snapshot {}\n{} in {:.1} s ({}): {} read, {} zero, {} known, {} new, {} stored\n{healed}",
        d.snapshot_id,
        show_size(d.source_size),
        std::time::Duration::from_millis(d.duration_ms).as_secs_f64(),
        show_rate(d.source_size, d.duration_ms),
        show_size(d.bytes_read),
        show_size(d.bytes_zero),
        show_size(d.bytes_unchanged),
        show_size(d.bytes_new),
        show_size(d.bytes_stored),
    )
}
