//! `blockferry verify`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use blockio::Progress;
use clap::{Args, ValueEnum};
use repo::listing::{DamagedManifest, Listing};
use repo::snapshot::Snapshot;
use repo::verify::{Affected, Damage, DamageKind, Report, VerifyOptions, VerifyState, verify_with_state};
use serde::Serialize;

use super::effort::Workers;
use super::output::{Output, chain, peak_rss_bytes};
use super::size::{show_rate, show_size};
use super::{Global, image, progress, signals};
use crate::error::{JobError, Result};

#[derive(Args)]
#[command(
    after_help = "0 % checks lists, index and packs without reading data; 100 % decrypts and hashes every content; anything between\n\
                  reads a sample, another one each time. Exit code 4 when damage is found; --json tells every damage with the extents\n\
                  of the volumes that it hurts.\n\
                  Example: blockferry verify latest --depth everything --resume verify.state --repo /backups/r1 --password-file pw"
)]
pub(crate) struct Arguments {
    /// Snapshots to check [default: all]
    snapshots: Vec<String>,
    /// Share of the contents to read, decrypt and hash [default: 1]
    #[arg(long, value_name = "N")]
    percent: Option<f64>,
    /// The same in words: lists = 0 %, everything = 100 %, sampled = what --percent says
    #[arg(long, value_enum, value_name = "DEPTH")]
    depth: Option<Depth>,
    /// Keep in FILE how far it is, and go on from there when FILE is there
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    #[command(flatten)]
    workers: Workers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Depth {
    /// Lists, index and presence of packs.
    Lists,
    /// A share of the contents, too.
    Sampled,
    /// Every content.
    Everything,
}

/// Share read when nothing is asked for: of a terabyte 10 GiB, which a disk gives in a minute or two.
const PERCENT: f64 = 1.0;

/// The document of `verify --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    depth: Depth,
    percent: f64,
    snapshots: u64,
    objects: u64,
    contents: u64,
    contents_read: u64,
    bytes_read: u64,
    /// One sentence each.
    damage: Vec<String>,
    /// The same for programs.
    damages: Vec<DamageDocument>,
    /// Damages past the first 10,000.
    damages_unlisted: u64,
    /// What cannot be read of which file, all damages together.
    lost: Vec<Hit>,
    duration_ms: u64,
    peak_rss_bytes: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DamageDocument {
    kind: &'static str,
    what: String,
    content: Option<String>,
    object: Option<String>,
    /// The pack.
    blob: Option<String>,
    /// Bytes of the content in the pack.
    offset: Option<u64>,
    length: Option<u64>,
    affected: Vec<Hit>,
}

/// Bytes of a file in a snapshot; all of it, or of a folder with all below, when there is no offset.
#[derive(Serialize)]
struct Hit {
    snapshot: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<u64>,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let percent = percent(arguments)?;
    let cancel = signals::cancel_on_signal()?;
    let started = Instant::now();
    let repository = image::open_uncached(global)?;
    let listing = repository.list_snapshots()?;
    let chosen = choose(arguments, &listing)?;
    let progress = Progress::new();
    let display = progress::Display::start(global, "verify", &progress);
    let options = VerifyOptions {
        percent,
        workers: arguments.workers.count(),
    };
    let state = arguments.resume.as_deref();
    let report = verify_with_state(&repository, &chosen, &options, state, &cancel, &progress);
    drop(display);
    let mut report = report?;
    // Those that were named are there; that others are not is for who asks of all.
    if arguments.snapshots.is_empty() {
        report.damage.extend(listing.damaged.iter().map(manifest_damage));
    }
    let code = if report.damage.is_empty() { 0 } else { 4 };
    let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    output.print(&document(&report, percent, duration_ms), text);
    Ok(ExitCode::from(code))
}

fn percent(arguments: &Arguments) -> Result<f64> {
    let percent = match (arguments.depth, arguments.percent) {
        (None | Some(Depth::Sampled), Some(percent)) => percent,
        (None | Some(Depth::Sampled), None) => PERCENT,
        (Some(Depth::Lists), None) => 0.0,
        (Some(Depth::Everything), None) => 100.0,
        (Some(_), Some(_)) => {
            return Err(JobError::Usage(
                "--percent belongs to --depth sampled; the other depths have a share of their own".into(),
            ));
        }
    };
    if (0.0..=100.0).contains(&percent) {
        return Ok(percent);
    }
    Err(JobError::Usage(format!("--percent {percent} is not between 0 and 100")))
}

/// The snapshots asked for; without names those of the state that is to be gone on from, or all.
fn choose(arguments: &Arguments, listing: &Listing) -> Result<Vec<Snapshot>> {
    if !arguments.snapshots.is_empty() {
        let names = arguments.snapshots.iter();
        return names.map(|name| image::find_listed(listing, name)).collect();
    }
    let mut all = listing.snapshots.clone();
    let state = arguments
        .resume
        .as_deref()
        .map(VerifyState::load)
        .transpose()?
        .flatten();
    if let Some(state) = state {
        let known = state.snapshots();
        all.retain(|snapshot| snapshot.id.is_some_and(|id| known.contains(&id)));
    }
    Ok(all)
}

fn manifest_damage(damaged: &DamagedManifest) -> Damage {
    Damage {
        kind: DamageKind::Manifest,
        what: chain(&damaged.error),
        content: None,
        object: None,
        pack: None,
        range: None,
        affected: Vec::new(),
    }
}

fn document(report: &Report, percent: f64, duration_ms: u64) -> Document {
    Document {
        depth: match percent {
            0.0 => Depth::Lists,
            100.0 => Depth::Everything,
            _ => Depth::Sampled,
        },
        percent,
        snapshots: report.snapshots,
        objects: report.objects,
        contents: report.contents,
        contents_read: report.contents_read,
        bytes_read: report.read_bytes,
        damage: report.damage.iter().map(ToString::to_string).collect(),
        damages: report.damage.iter().map(damage_document).collect(),
        damages_unlisted: report.unlisted,
        lost: report.losses.iter().flat_map(hits).collect(),
        duration_ms,
        peak_rss_bytes: peak_rss_bytes(),
    }
}

fn damage_document(damage: &Damage) -> DamageDocument {
    DamageDocument {
        kind: damage.kind.name(),
        what: damage.what.clone(),
        content: damage.content.map(|id| id.to_string()),
        object: damage.object.map(|id| id.to_string()),
        blob: damage.pack.as_ref().map(ToString::to_string),
        offset: damage.range.as_ref().map(|range| range.start),
        length: damage.range.as_ref().map(|range| range.end - range.start),
        affected: damage.affected.iter().flat_map(hits).collect(),
    }
}

fn hits(affected: &Affected) -> Vec<Hit> {
    let hit = |extent: &blockio::Extent| Hit {
        snapshot: affected.snapshot.to_string(),
        path: affected.path.clone(),
        offset: (!extent.is_empty()).then_some(extent.offset),
        length: (!extent.is_empty()).then_some(extent.len),
    };
    affected.extents.iter().map(hit).collect()
}

fn text(d: &Document) -> String {
    let mut damage: String = d.damage.iter().map(|what| format!("damage: {what}\n")).collect();
    if d.damages_unlisted > 0 {
        damage += &format!("damage: {} more\n", d.damages_unlisted);
    }
    for hit in &d.lost {
        let what = match (hit.offset, hit.length) {
            (Some(offset), Some(length)) => format!("bytes {offset}..{}", offset + length),
            _ => "all".into(),
        };
        damage += &format!("lost: snapshot {}{}: {what}\n", hit.snapshot, hit.path);
    }
    let verdict = if d.damage.is_empty() {
        "no damage found"
    } else {
        "DAMAGE FOUND"
    };
    format!(
        "{damage}{verdict}: {} snapshots, {} objects, {} contents; {} contents ({}) read, {}\n",
        d.snapshots,
        d.objects,
        d.contents,
        d.contents_read,
        show_size(d.bytes_read),
        show_rate(d.bytes_read, d.duration_ms)
    )
}
