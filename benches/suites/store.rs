//! Full backup of a used disk into a bucket of Garage on loopback, beside the same into a directory.

use std::fs;
use std::path::PathBuf;

use blockferry_benches::Result;
use blockferry_benches::bars;
use blockferry_benches::cloud::{self, Cloud};
use blockferry_benches::measure::{Input, make_cold, measure};
use blockferry_benches::report::Report;
use blockferry_benches::requests;
use blockferry_benches::rounds::{self, Contender};
use blockferry_benches::site::{Options, Site};
use blockferry_benches::tool::{Kind, Tool, installed};
use blockferry_tests::process::find;

use crate::report;

/// Folder with the blobs that the plain client moves.
const BLOBS: &str = "raw-blobs";

pub(crate) fn run(options: &Options) -> Result<Report> {
    let site = Site::mixed(&options.dir, options.size)?;
    let (mut tools, mut left_out) = installed(options);
    tools.retain(|tool| matches!(tool.kind, Kind::Blockferry | Kind::Kopia));
    let mut contenders = Vec::new();
    for tool in &tools {
        match tool.kind {
            Kind::Blockferry => {
                contenders.push(ours(&site, tool));
                if options.wants(bars::DIRECTORY) {
                    contenders.push(directory(&site, tool));
                }
                if options.wants(bars::RAW_PUT) {
                    match raw_put(&site, tool) {
                        Ok(contender) => contenders.push(contender),
                        Err(why) => left_out.push(format!("{}: {why}", bars::RAW_PUT)),
                    }
                }
            }
            _ => contenders.push(kopia(&site)),
        }
    }
    let rows = rounds::run(contenders, options.runs);
    site.vacant(BLOBS)?;
    for tool in &tools {
        site.vacant(tool.kind.name())?;
    }
    let about = format!(
        "Full backup of a {} MiB image ({} MiB not zero) into an empty repository in a bucket of Garage on this machine, image cold, \
         result durable. CPU is that of the program alone, without the server. Median of {}.",
        site.size >> 20,
        site.data_bytes >> 20,
        options.runs
    );
    let mut report = report("store", about, &site, &tools, rows, left_out);
    report.add_versions(cloud::versions());
    report.bars = bars::store(&report.rows);
    report.details = requests::table(&report.rows);
    Ok(report)
}

fn ours<'a>(site: &'a Site, tool: &'a Tool) -> Contender<'a> {
    let run = move || {
        let cloud = Cloud::start(site)?;
        cloud.create(tool, site)?;
        make_cold(&site.image)?;
        cloud.measure(&mut cloud.backup(tool, site, None), site, None)
    };
    Contender {
        name: bars::OURS.to_owned(),
        note: "into Garage; --compression none".to_owned(),
        run: Box::new(run),
    }
}

fn directory<'a>(site: &'a Site, tool: &'a Tool) -> Contender<'a> {
    let run = move || {
        tool.create_repository(site)?;
        make_cold(&site.image)?;
        measure(
            &mut tool.backup(site),
            Input::Nothing,
            &site.dir,
            Some(&tool.repository(site)),
        )
    };
    Contender {
        name: bars::DIRECTORY.to_owned(),
        note: "blockferry into a directory; --compression none".to_owned(),
        run: Box::new(run),
    }
}

/// Puts the blobs of a finished repository, read from a folder: what Garage takes from a client that does nothing else.
fn raw_put<'a>(site: &'a Site, tool: &'a Tool) -> Result<Contender<'a>> {
    find("rclone", &[]).ok_or("rclone is not installed; `cargo xtask peers` does that")?;
    let blobs = blobs(site, tool)?;
    let run = move || {
        let cloud = Cloud::start(site)?;
        make_cold(&blobs)?;
        let mut copy = cloud.rclone(&blobs.display().to_string(), &cloud.rclone_place("raw"));
        cloud.measure(&mut copy, site, None)
    };
    Ok(Contender {
        name: bars::RAW_PUT.to_owned(),
        note: "rclone copy of the blobs of such a repository, 8 at a time".to_owned(),
        run: Box::new(run),
    })
}

/// The folder of a finished repository of the image.
fn blobs(site: &Site, tool: &Tool) -> Result<PathBuf> {
    eprintln!("backing up for {}", bars::RAW_PUT);
    tool.create_repository(site)?;
    measure(&mut tool.backup(site), Input::Nothing, &site.dir, None)?;
    let blobs = site.vacant(BLOBS)?;
    let kept = fs::rename(tool.repository(site), &blobs);
    kept.map_err(|error| format!("keep {}: {error}", blobs.display()))?;
    Ok(blobs)
}

fn kopia(site: &Site) -> Contender<'_> {
    let run = move || {
        let cloud = Cloud::start(site)?;
        let kopia = cloud.kopia()?;
        make_cold(&site.image)?;
        let mut create = kopia.command([
            "--no-auto-maintenance",
            "snapshot",
            "create",
            "--json",
            "--parallel=2",
            "--no-progress",
        ]);
        cloud.measure(create.arg(&site.image), site, None)
    };
    Contender {
        name: Kind::Kopia.name().to_owned(),
        note: format!("into Garage; {}", Kind::Kopia.backup_flags()),
        run: Box::new(run),
    }
}
