//! `blockferry backup`.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use blockio::{CHUNK_SIZE, ChunkIndex, Device, OpenOptions, Progress};
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
use crate::mover::audit::Budget;
use crate::mover::backup::{
    BackupOptions, BackupReport, Care, Changes, Listed, Outlook, ParentChoice, backup, outlook,
};
use crate::mover::changes::ChangedFile;
use crate::mover::ladder::{Decision, Rung, Step};

const EXAMPLES: &str = "\
Examples:
  blockferry backup /dev/vg0/data --repo /backups/r1 --password-file pw --as root@node1:/pvc/data
  blockferry backup /dev/vg0/data --changed changes.json --as root@node1:/pvc/data    # reads what changed, and a sample
  blockferry backup /dev/vg0/data --changed changes.json --require delta              # fails rather than read everything
  blockferry backup /dev/vg0/data --changed changes.json --dry-run

A list is JSON: {\"volumeSize\":N,\"changed\":[{\"offset\":O,\"length\":L},...]} in bytes; - reads it from standard input.
Without a list an increment reads the whole source and compares it with the parent. An interrupted backup of the same
source in the same state goes on where it was.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
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
    /// Snapshot to continue from: auto (the newest of this source that fits), none, or a snapshot
    #[arg(long, default_value = "auto", value_name = "auto|none|SNAPSHOT")]
    parent: String,
    /// List of what changed since the parent; the rest is taken over unread, but for the audit
    #[arg(long, value_name = "FILE")]
    changed: Option<PathBuf>,
    /// Change id the list of changes starts from; the parent must have it
    #[arg(long, requires = "changed", value_name = "ID")]
    base_change_id: Option<String>,
    /// List of what is allocated, in the same form; the rest is zero, but for what the audit finds
    #[arg(long, value_name = "FILE")]
    allocated: Option<PathBuf>,
    /// Fail rather than rest on less: delta, allocated, hash-compare, full
    #[arg(long, default_value = "full", value_name = "RUNG")]
    require: Rung,
    /// Share of the unchanged chunks that is read and compared all the same, at least 16 chunks; 0 reads none
    #[arg(long, default_value = "0.5", value_name = "PERCENT")]
    audit: Budget,
    /// Rely on lists of this source again though an audit found one wrong
    #[arg(long)]
    trust_source: bool,
    /// Begin anew even where an interrupted backup could be continued
    #[arg(long)]
    no_resume: bool,
    /// Tell what would be read and taken over, and store nothing
    #[arg(long)]
    dry_run: bool,
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
const OWN_TAGS: [&str; 9] = [
    tag::SOURCE_SIZE,
    tag::LOGICAL_BLOCK,
    tag::UPLOADER,
    tag::VERSION,
    tag::RUNG,
    tag::RUNG_REASON,
    tag::PARENT,
    tag::AUDIT_WALK,
    tag::UNTRUSTED,
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
    rung: Rung,
    rung_reason: String,
    /// Rungs above that could not be had, from the top.
    rung_steps: Vec<StepDocument>,
    /// Who made the list it rests on.
    changes_from: Option<&'static str>,
    source_size: u64,
    bytes_read: u64,
    bytes_zero: u64,
    bytes_unchanged: u64,
    bytes_new: u64,
    bytes_stored: u64,
    audited_blocks: u64,
    audit_mismatches: u64,
    /// Where the audit found changes the list did not name; the first 1000 extents.
    audit_mismatch_extents: Vec<Extent>,
    bytes_resumed: u64,
    /// Why an interrupted backup of the source was not continued, where there was one.
    resume_refused: Option<&'static str>,
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

/// A rung that could not be had.
#[derive(Serialize)]
struct StepDocument {
    rung: Rung,
    code: &'static str,
    reason: String,
}

/// The document of `backup --dry-run --json`. Sizes in bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutlookDocument {
    dry_run: bool,
    source: String,
    parent_id: Option<String>,
    rung: Rung,
    rung_reason: String,
    rung_steps: Vec<StepDocument>,
    source_size: u64,
    bytes_to_read: u64,
    bytes_to_audit: u64,
    bytes_unread: u64,
    bytes_zero: u64,
    /// What is read may all be new.
    bytes_stored_at_most: u64,
}

/// A part of the volume in a document. Bytes.
#[derive(Serialize)]
struct Extent {
    offset: u64,
    #[serde(rename = "length")]
    len: u64,
}

/// Extents of mismatches in a document: enough to see a pattern.
const EXTENTS_TOLD: usize = 1000;

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let cancel = signals::cancel_on_signal()?;
    let device = Arc::new(Device::open(&arguments.source, &OpenOptions::read())?);
    let source = match &arguments.identity {
        Some(source) => source.clone(),
        None => image::own_source(&arguments.source)?,
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
    let changed = listed(arguments.changed.as_deref(), &device)?;
    let allocated = listed(arguments.allocated.as_deref(), &device)?;
    let repository = match arguments.hash_kernel {
        Some(kernel) => image::open(global)?.with_hash_kernel(kernel)?,
        None => image::open(global)?,
    };
    let options = BackupOptions {
        changes: Changes {
            parent: match arguments.parent.as_str() {
                "auto" => ParentChoice::Auto,
                "none" => ParentChoice::None,
                name => ParentChoice::Named(Box::new(image::snapshot(&repository, name)?)),
            },
            changed,
            allocated,
            base: arguments.base_change_id.clone(),
            require: arguments.require,
            audit: arguments.audit,
            trust_source: arguments.trust_source,
        },
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
            begin_anew: arguments.no_resume,
        },
        faults: None,
    };
    if arguments.dry_run {
        let outlook = outlook(&repository, &device, &options)?;
        output.print(&outlook_document(&outlook, &source), outlook_text);
        return Ok(ExitCode::SUCCESS);
    }
    let progress = Progress::new();
    let display = progress::Display::start(global, "backup", &progress);
    let report = backup(&repository, &device, &options, &cancel, &progress);
    drop(display);
    let storage = image::settings(global).meter.stats();
    output.print(&document(&report?, &source, storage), text);
    Ok(ExitCode::SUCCESS)
}

/// The list in `file`, for this device.
fn listed(file: Option<&Path>, device: &Device) -> Result<Option<Listed>> {
    let Some(file) = file else { return Ok(None) };
    let list = ChangedFile::read(file)?;
    Ok(Some(Listed::of_file(&list, device.geometry().size)))
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

fn document(report: &BackupReport, source: &Source, storage: StoreStats) -> Document {
    Document {
        snapshot_id: report.snapshot.to_string(),
        object_id: report.object.to_string(),
        parent_id: report.parent.map(|id| id.to_string()),
        source: source.to_string(),
        rung: report.decision.rung,
        rung_reason: report.decision.reason(),
        rung_steps: steps(&report.decision),
        changes_from: report.origin,
        source_size: report.source_size,
        bytes_read: report.read_bytes,
        bytes_zero: report.zero_bytes,
        bytes_unchanged: report.known_bytes,
        bytes_new: report.new_bytes,
        bytes_stored: report.totals.stored_bytes,
        audited_blocks: report.audited_chunks,
        audit_mismatches: report.mismatches.len() as u64,
        audit_mismatch_extents: extents(&report.mismatches),
        bytes_resumed: report.resumed_bytes,
        resume_refused: report.resume_refused,
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

fn steps(decision: &Decision) -> Vec<StepDocument> {
    let document = |step: &Step| StepDocument {
        rung: step.rung,
        code: step.reason.code(),
        reason: step.reason.to_string(),
    };
    decision.steps.iter().map(document).collect()
}

/// Chunks (ascending or not) as the fewest extents, the first few.
fn extents(chunks: &[ChunkIndex]) -> Vec<Extent> {
    let mut sorted = chunks.to_vec();
    sorted.sort_unstable();
    let mut extents: Vec<Extent> = Vec::new();
    for chunk in sorted {
        let count = extents.len();
        match extents.last_mut() {
            Some(last) if last.offset + last.len == chunk.offset() => last.len += CHUNK_SIZE,
            _ if count == EXTENTS_TOLD => break,
            _ => extents.push(Extent {
                offset: chunk.offset(),
                len: CHUNK_SIZE,
            }),
        }
    }
    extents
}

fn outlook_document(outlook: &Outlook, source: &Source) -> OutlookDocument {
    OutlookDocument {
        dry_run: true,
        source: source.to_string(),
        parent_id: outlook.parent.map(|id| id.to_string()),
        rung: outlook.decision.rung,
        rung_reason: outlook.decision.reason(),
        rung_steps: steps(&outlook.decision),
        source_size: outlook.source_size,
        bytes_to_read: outlook.read_bytes,
        bytes_to_audit: outlook.audit_bytes,
        bytes_unread: outlook.unread_bytes,
        bytes_zero: outlook.zero_bytes,
        bytes_stored_at_most: outlook.read_bytes,
    }
}

fn outlook_text(d: &OutlookDocument) -> String {
    let parent = d.parent_id.as_deref().unwrap_or("none");
    format!(
        "would be {} ({})\nparent {parent}\n{} of {} read ({} of it for the audit), {} taken over unread, {} known to be zero; \
         {} stored at most\n",
        d.rung,
        d.rung_reason,
        show_size(d.bytes_to_read),
        show_size(d.source_size),
        show_size(d.bytes_to_audit),
        show_size(d.bytes_unread),
        show_size(d.bytes_zero),
        show_size(d.bytes_stored_at_most),
    )
}

fn text(d: &Document) -> String {
    let healed = match d.healed {
        0 => String::new(),
        count => format!("healed: {count} contents that the repository had lost or damaged are stored again\n"),
    };
    let audit = match (d.audited_blocks, d.audit_mismatches) {
        (0, 0) => String::new(),
        (count, 0) => format!("audit: {count} chunks called unchanged are unchanged\n"),
        (count, wrong) => format!(
            "AUDIT: {wrong} of {count} chunks called unchanged had changed. The snapshot has them as they are; the source's lists are \
             not relied on until --trust-source\n"
        ),
    };
    let resumed = match (d.bytes_resumed, d.resume_refused) {
        (0, None) => String::new(),
        (0, Some(why)) => format!("begun anew: an interrupted run is not continued, {why}\n"),
        (bytes, _) => format!("resumed: {} were read by an interrupted run\n", show_size(bytes)),
    };
    format!(
        "snapshot {}\n{} ({})\n{} in {:.1} s ({}): {} read, {} zero, {} known, {} new, {} stored\n{audit}{resumed}{healed}",
        d.snapshot_id,
        d.rung,
        d.rung_reason,
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
