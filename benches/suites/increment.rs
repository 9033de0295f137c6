//! Increments: what changed, nothing changed, little of much changed, and no list of changes at all.
//!
//! The time of the data path alone is `durationMs` of the document: what a resident process would take, which has its repository
//! open. The whole command is the wall time.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use blockferry_benches::bars::{self, ALONE, OPEN};
use blockferry_benches::measure::{Input, Measured, make_cold, measure};
use blockferry_benches::report::Report;
use blockferry_benches::rounds::{self, Contender};
use blockferry_benches::site::{Options, Site};
use blockferry_benches::tool::{Kind, Tool, installed};
use blockferry_benches::{Result, device};
use blockferry_tests::process;
use blockferry_tests::volume::{BLOCK_BYTES, BlockKind, Change, Layout, change_blocks, changes_json};

use crate::report;

/// One block of so many is changed.
const CHANGED: usize = 100;

/// Apparent sizes of the sparse volumes.
const TIB: u64 = 1 << 40;
/// See [`TIB`].
const LARGE: u64 = 10 * TIB;
/// Places of the large volume that change, and MiB in each: 1 GiB in all.
const CLUSTERS: u64 = 100;
/// See [`CLUSTERS`].
const CLUSTER_MIB: u64 = 10;

/// The suite `increment`.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let mixed = Site::mixed(&options.dir, options.size)?;
    let (site, _) = changing(&mixed)?;
    let (tools, left_out) = installed(options);
    for tool in &tools {
        first_backup(&site, tool)?;
    }
    let latest: RefCell<(usize, Vec<Change>)> = RefCell::default();
    // The image changes once a round, before whoever comes first in it.
    let change = |round: usize| -> Result<Vec<Change>> {
        let mut latest = latest.borrow_mut();
        if latest.0 < round {
            let blocks = (usize::try_from(site.size).unwrap_or(usize::MAX) / BLOCK_BYTES / CHANGED).max(1);
            let changes = change_blocks(&site.image, site.size, round as u64, blocks).map_err(|e| e.to_string())?;
            *latest = (round, changes);
        }
        Ok(latest.1.clone())
    };
    let mut contenders = Vec::new();
    for tool in &tools {
        let (site, change) = (&site, &change);
        let mut round = 0;
        contenders.push(Contender {
            name: tool.kind.name().to_owned(),
            note: match tool.kind {
                Kind::Blockferry => "--changed with the blocks that changed".into(),
                _ => tool.kind.backup_flags().to_owned(),
            },
            run: Box::new(move || {
                round += 1;
                let changes = change(round)?;
                let mut command = tool.backup_as(site, &format!("increment-{round}"));
                if tool.kind == Kind::Blockferry {
                    command.arg("--changed").arg(list(site, site.size, &changes)?);
                }
                cold(site, tool, &mut command)
            }),
        });
        if tool.kind == Kind::Blockferry {
            contenders.push(opening(site, tool));
        }
    }
    let rows = rounds::run(contenders, options.runs);
    let about = format!(
        "Backup after 1 % of the blocks of a {} MiB image changed at random, image cold, result durable. Median of {}.",
        site.size >> 20,
        options.runs
    );
    let mut report = report("increment", about, &site, &tools, rows, left_out);
    report.bars = bars::increment(&report.rows);
    tidy(&site, &tools)?;
    Ok(report)
}

/// The suite `unchanged`.
pub(crate) fn run_unchanged(options: &Options) -> Result<Report> {
    let site = Site::sparse(&options.dir, TIB, 1024)?;
    let (tools, left_out) = ours(options);
    let nothing = list(&site, TIB, &[])?;
    let mut contenders = Vec::new();
    for tool in &tools {
        first_backup(&site, tool)?;
        let (site, nothing) = (&site, &nothing);
        contenders.push(Contender {
            name: tool.kind.name().to_owned(),
            note: "--changed with an empty list".into(),
            run: Box::new(move || cold(site, tool, tool.backup(site).arg("--changed").arg(nothing))),
        });
    }
    let rows = rounds::run(contenders, options.runs);
    let about = format!(
        "Backup of an unchanged sparse 1 TiB volume (1,048,576 chunks) with an empty list of changes. Median of {}.",
        options.runs
    );
    let mut report = report("unchanged", about, &site, &tools, rows, left_out);
    report.bars = bars::unchanged(&report.rows);
    for tool in &tools {
        site.vacant(tool.kind.name())?;
    }
    Ok(report)
}

/// The suite `large`.
pub(crate) fn run_large(options: &Options) -> Result<Report> {
    let mut site = Site::sparse(&options.dir, (CLUSTERS * CLUSTER_MIB) << 20, 1)?;
    let alone = Site {
        image: site.vacant("alone.raw")?,
        ..site.clone()
    };
    site.image = site.vacant("large.raw")?;
    site.size = LARGE;
    let made = File::create(&site.image).and_then(|file| file.set_len(LARGE));
    made.map_err(|e| format!("make {}: {e}", site.image.display()))?;
    let (tools, left_out) = ours(options);
    let mut contenders = Vec::new();
    for tool in &tools {
        first_backup(&site, tool)?;
        let (site, alone) = (&site, &alone);
        let mut round = 0;
        contenders.push(Contender {
            name: tool.kind.name().to_owned(),
            note: format!("--changed with {CLUSTERS} extents of {CLUSTER_MIB} MiB"),
            run: Box::new(move || {
                round += 1;
                let changes = write_clusters(site, alone, round)?;
                cold(
                    site,
                    tool,
                    tool.backup(site).arg("--changed").arg(list(site, LARGE, &changes)?),
                )
            }),
        });
        contenders.push(Contender {
            name: ALONE.to_owned(),
            note: "a volume of the changed bytes alone, full".into(),
            run: Box::new(move || cold(alone, tool, tool.backup(alone).args(["--parent", "none"]))),
        });
    }
    let rows = rounds::run(contenders, options.runs);
    let about = format!(
        "Backup of a sparse 10 TiB volume in which {} MiB changed in {CLUSTERS} places. Median of {}.",
        CLUSTERS * CLUSTER_MIB,
        options.runs
    );
    let mut report = report("large", about, &site, &tools, rows, left_out);
    report.bars = bars::large(&report.rows);
    for name in ["alone.raw", "large.raw"] {
        site.vacant(name)?;
    }
    for tool in &tools {
        site.vacant(tool.kind.name())?;
    }
    Ok(report)
}

/// The suite `hash-compare`.
pub(crate) fn run_hash_compare(options: &Options) -> Result<Report> {
    let site = Site::mixed(&options.dir, options.size)?;
    let (tools, left_out) = ours(options);
    let mut contenders = vec![device::reader(&site, &site.image)];
    for tool in &tools {
        first_backup(&site, tool)?;
        let site = &site;
        contenders.push(Contender {
            name: tool.kind.name().to_owned(),
            note: "no list".into(),
            run: Box::new(move || cold(site, tool, &mut tool.backup(site))),
        });
    }
    let rows = rounds::run(contenders, options.runs);
    let about = format!(
        "Backup of an unchanged {} MiB image without a list of changes, image cold. `dd-read` reads it. Median of {}.",
        site.size >> 20,
        options.runs
    );
    let mut report = report("hash-compare", about, &site, &tools, rows, left_out);
    report.bars = bars::hash_compare(&report.rows, site.size);
    for tool in &tools {
        site.vacant(tool.kind.name())?;
    }
    Ok(report)
}

fn ours(options: &Options) -> (Vec<Tool>, Vec<String>) {
    let (tools, left_out) = installed(options);
    let ours = tools.into_iter().filter(|tool| tool.kind == Kind::Blockferry);
    (ours.collect(), left_out)
}

/// A copy of the image that may change.
fn changing(mixed: &Site) -> Result<(Site, PathBuf)> {
    let image = mixed.vacant("changing.raw")?;
    fs::copy(&mixed.image, &image).map_err(|e| format!("copy the image: {e}"))?;
    let site = Site {
        image: image.clone(),
        ..mixed.clone()
    };
    Ok((site, image))
}

fn first_backup(site: &Site, tool: &Tool) -> Result<()> {
    tool.create_repository(site)?;
    process::run(&mut tool.backup(site))
        .map(drop)
        .map_err(|failure| failure.to_string())
}

fn cold(site: &Site, tool: &Tool, command: &mut Command) -> Result<Measured> {
    make_cold(&site.image)?;
    measure(command, Input::Nothing, &site.dir, Some(&tool.repository(site)))
}

/// What every command pays: the key of the password, and opening the repository.
fn opening<'a>(site: &'a Site, tool: &'a Tool) -> Contender<'a> {
    let run = || {
        let mut command = tool.command(site);
        command.arg("snapshots").arg("--repo").arg(tool.repository(site));
        command.arg("--password-file").arg(&site.password_file).arg("--json");
        measure(&mut command, Input::Nothing, &site.dir, None)
    };
    Contender {
        name: OPEN.to_owned(),
        note: "blockferry snapshots: key derivation and opening".into(),
        run: Box::new(run),
    }
}

fn list(site: &Site, size: u64, changes: &[Change]) -> Result<PathBuf> {
    let path = site.dir.join("changes.json");
    fs::write(&path, changes_json(size, changes)).map_err(|e| format!("write {}: {e}", path.display()))?;
    Ok(path)
}

/// New bytes in every cluster of the large volume, and the same in the small one.
fn write_clusters(site: &Site, alone: &Site, round: u64) -> Result<Vec<Change>> {
    let open = |path: &Path| {
        let file = File::options().write(true).create(true).truncate(false).open(path);
        file.map_err(|e| format!("open {}: {e}", path.display()))
    };
    let (large, small) = (open(&site.image)?, open(&alone.image)?);
    let len = CLUSTER_MIB << 20;
    let mut changes = Vec::new();
    for cluster in 0..CLUSTERS {
        let bytes = Layout::uniform(round * CLUSTERS + cluster, len, BlockKind::Random).bytes();
        let offset = cluster * (LARGE / CLUSTERS);
        let written = large
            .write_all_at(&bytes, offset)
            .and_then(|()| small.write_all_at(&bytes, cluster * len));
        written.map_err(|e| format!("write a cluster: {e}"))?;
        changes.push(Change { offset, length: len });
    }
    let synced = large.sync_all().and_then(|()| small.sync_all());
    synced.map_err(|e| format!("sync: {e}"))?;
    Ok(changes)
}

fn tidy(site: &Site, tools: &[Tool]) -> Result<()> {
    site.vacant("changing.raw")?;
    tools
        .iter()
        .try_for_each(|tool| site.vacant(tool.kind.name()).map(drop))
}
