//! Restore of a used disk from a bucket of Garage on loopback: how many requests, how many bytes.

use std::fs;

use blockferry_benches::bars;
use blockferry_benches::cloud::{self, Cloud};
use blockferry_benches::measure::{Input, make_cold, measure};
use blockferry_benches::report::Report;
use blockferry_benches::requests;
use blockferry_benches::rounds::{self, Contender};
use blockferry_benches::site::{Options, Site};
use blockferry_benches::tool::{Kind, Tool, installed};
use blockferry_benches::{MIB, Result};
use blockferry_tests::kopia::Kopia;
use blockferry_tests::process::{find, run as run_program};
use serde_json::Value;

use crate::report;
use crate::restore::same_bytes;

/// Bytes that AES-256-GCM adds to a content: nonce and tag (kopia, repo/encryption).
const SEAL_LEN: u64 = 28;

pub(crate) fn run(options: &Options) -> Result<Report> {
    let site = Site::mixed(&options.dir, options.size)?;
    let (mut tools, mut left_out) = installed(options);
    tools.retain(|tool| matches!(tool.kind, Kind::Blockferry | Kind::Kopia));
    // Both repositories lie ready; each in a server of its own, so that none is crowded by the other.
    let mut ready = Vec::new();
    let mut theirs = None;
    for tool in &tools {
        let prepared = match tool.kind {
            Kind::Blockferry => Ready::prepare(&site, tool).map(|made| ready.push((tool, made))),
            _ => kopia_prepared(&site).map(|made| theirs = Some(made)),
        };
        if let Err(failure) = prepared {
            left_out.push(format!("{}: no backup to restore: {failure}", tool.kind.name()));
        }
    }
    let mut contenders = Vec::new();
    for (tool, ready) in &ready {
        contenders.push(ours(&site, tool, ready));
        if options.wants(bars::DIRECTORY) {
            contenders.push(directory(&site, tool));
        }
        if options.wants(bars::RAW_GET) {
            match find("rclone", &[]) {
                Some(_) => contenders.push(raw_get(&site, ready)),
                None => left_out.push(format!(
                    "{}: rclone is not installed; `cargo xtask peers` does that",
                    bars::RAW_GET
                )),
            }
        }
    }
    if let Some((cloud, client, snapshot)) = &theirs {
        contenders.push(kopia(&site, cloud, client, snapshot));
    }
    let rows = rounds::run(contenders, options.runs);
    for tool in &tools {
        site.vacant(tool.kind.name())?;
    }
    let about = format!(
        "Restore of a {} MiB image ({} MiB not zero) from a bucket of Garage on this machine into a file that does not exist, \
         server cold, result durable and compared with the image. Median of {}.",
        site.size >> 20,
        site.data_bytes >> 20,
        options.runs
    );
    let mut report = report("store-restore", about, &site, &tools, rows, left_out);
    report.add_versions(cloud::versions());
    if let Some((_, ready)) = ready.first() {
        report.bars = bars::store_restore(&report.rows, ready.packs, ready.needed_bytes);
        report.about.push_str(&format!(
            " The repository has {} packs of data with {:.0} MiB of contents, all of which the snapshot needs.",
            ready.packs,
            ready.needed_bytes as f64 / MIB
        ));
    }
    report.details = requests::table(&report.rows);
    Ok(report)
}

/// A repository of ours with one snapshot in a bucket, and the same in a directory.
struct Ready {
    cloud: Cloud,
    /// Packs of data.
    packs: u64,
    /// Bytes in them that the snapshot needs: of its only snapshot, all contents.
    needed_bytes: u64,
}

impl Ready {
    fn prepare(site: &Site, tool: &Tool) -> Result<Self> {
        eprintln!("backing up with {}", tool.kind.name());
        tool.create_repository(site)?;
        measure(&mut tool.backup(site), Input::Nothing, &site.dir, None)?;
        let cloud = Cloud::start(site)?;
        cloud.create(tool, site)?;
        let stored = cloud.measure(&mut cloud.backup(tool, site, None), site, None)?;
        let new_bytes = stored.output.and_then(|output| output["bytesNew"].as_u64());
        let new_bytes = new_bytes.ok_or("the backup does not tell what was new")?;
        let mut status = cloud.blockferry(tool, site, None, &["repo", "status", "--json"]);
        let status = run_program(&mut status).map_err(|failure| failure.to_string())?;
        let status: Value = serde_json::from_str(&status).map_err(|error| format!("repo status: {error}"))?;
        let packs = status["blobs"]["data packs"]["count"].as_u64();
        let packs = packs.ok_or_else(|| format!("repo status tells no packs: {status}"))?;
        // Every chunk of the image is whole, or the last one.
        let needed_bytes = new_bytes + new_bytes.div_ceil(1 << 20) * SEAL_LEN;
        Ok(Self {
            cloud,
            packs,
            needed_bytes,
        })
    }
}

fn kopia_prepared(site: &Site) -> Result<(Cloud, Kopia, String)> {
    eprintln!("backing up with kopia");
    let cloud = Cloud::start(site)?;
    let client = cloud.kopia()?;
    let made = client.snapshot_create(&site.image, &["--parallel=2", "--no-progress"]);
    let made = made.map_err(|failure| failure.to_string())?;
    let id = made["id"]
        .as_str()
        .ok_or("kopia tells no id of its snapshot")?
        .to_owned();
    Ok((cloud, client, id))
}

fn ours<'a>(site: &'a Site, tool: &'a Tool, ready: &'a Ready) -> Contender<'a> {
    let run = move || {
        let target = site.vacant("restored")?;
        ready.cloud.make_cold()?;
        let mut restore = ready.cloud.restore(tool, site, None, &target);
        let measured = ready.cloud.measure(&mut restore, site, Some(&target))?;
        compared(site).map(|()| measured)
    };
    Contender {
        name: bars::OURS.to_owned(),
        note: "from Garage".to_owned(),
        run: Box::new(run),
    }
}

fn directory<'a>(site: &'a Site, tool: &'a Tool) -> Contender<'a> {
    let run = move || {
        let target = site.vacant("restored")?;
        fs::create_dir_all(&target).map_err(|error| format!("create {}: {error}", target.display()))?;
        let mut restore = tool.restore(site, &target)?;
        make_cold(&tool.repository(site))?;
        let mut measured = measure(&mut restore, Input::Nothing, &site.dir, Some(&target))?;
        measured.stored_bytes = None;
        let same = same_bytes(&site.image, &tool.restored_file(&target)?)?;
        site.vacant("restored")?;
        same.then_some(measured)
            .ok_or_else(|| "the restored image differs".to_owned())
    };
    Contender {
        name: bars::DIRECTORY.to_owned(),
        note: "blockferry from a directory".to_owned(),
        run: Box::new(run),
    }
}

/// Gets all objects into files: what Garage gives a client that does nothing else.
fn raw_get<'a>(site: &'a Site, ready: &'a Ready) -> Contender<'a> {
    let run = move || {
        let target = site.vacant("raw-blobs")?;
        ready.cloud.make_cold()?;
        let from = ready.cloud.rclone_repository();
        let mut copy = ready.cloud.rclone(&from, &target.display().to_string());
        let measured = ready.cloud.measure(&mut copy, site, Some(&target));
        site.vacant("raw-blobs")?;
        measured
    };
    Contender {
        name: bars::RAW_GET.to_owned(),
        note: "rclone copy of all blobs into a folder, 8 at a time".to_owned(),
        run: Box::new(run),
    }
}

fn kopia<'a>(site: &'a Site, cloud: &'a Cloud, client: &'a Kopia, snapshot: &'a str) -> Contender<'a> {
    let run = move || {
        let target = site.vacant("restored")?;
        client.run(["cache", "clear"]).map_err(|failure| failure.to_string())?;
        cloud.make_cold()?;
        let mut restore = client.command([
            "restore",
            "--no-progress",
            "--write-sparse-files",
            "--parallel=2",
            "--skip-owners",
            snapshot,
        ]);
        let measured = cloud.measure(restore.arg(&target), site, Some(&target))?;
        compared(site).map(|()| measured)
    };
    Contender {
        name: Kind::Kopia.name().to_owned(),
        note: format!("from Garage; {}", Kind::Kopia.restore_flags()),
        run: Box::new(run),
    }
}

/// Compares the restored file with the image, and removes it.
pub(crate) fn compared(site: &Site) -> Result<()> {
    let same = same_bytes(&site.image, &site.dir.join("restored"))?;
    site.vacant("restored")?;
    same.then_some(())
        .ok_or_else(|| "the restored image differs".to_owned())
}
