//! Restore of a used disk into a file.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use blockferry_benches::bars;
use blockferry_benches::measure::{Input, make_cold, measure};
use blockferry_benches::report::Report;
use blockferry_benches::rounds::{self, Contender};
use blockferry_benches::site::{Options, Site};
use blockferry_benches::tool::{Tool, installed};
use blockferry_benches::{Result, device};

use crate::report;

pub(crate) fn run(options: &Options) -> Result<Report> {
    let site = Site::mixed(&options.dir, options.size)?;
    let (tools, mut left_out) = installed(options);
    let mut ready = Vec::new();
    for tool in tools {
        match prepare(&site, &tool) {
            Ok(()) => ready.push(tool),
            Err(failure) => left_out.push(format!("{}: no backup to restore: {failure}", tool.kind.name())),
        }
    }
    let mut contenders = device::contenders(&site, options, &[device::WRITE, device::COPY]);
    contenders.extend(ready.iter().map(|tool| contender(&site, tool)));
    let rows = rounds::run(contenders, options.runs);
    for tool in &ready {
        site.vacant(tool.kind.name())?;
    }
    let about = format!(
        "Restore of a {} MiB image ({} MiB not zero) into a file that does not exist, repository cold, result durable and \
         compared with the image. Median of {}.",
        site.size >> 20,
        site.data_bytes >> 20,
        options.runs
    );
    let mut report = report("restore", about, &site, &ready, rows, left_out);
    report.bars = bars::restore(&report.rows);
    Ok(report)
}

pub(crate) fn prepare(site: &Site, tool: &Tool) -> Result<()> {
    eprintln!("backing up with {}", tool.kind.name());
    tool.create_repository(site)?;
    measure(
        &mut tool.backup(site),
        Input::Nothing,
        &site.dir,
        Some(&tool.repository(site)),
    )
    .map(drop)
}

fn contender<'a>(site: &'a Site, tool: &'a Tool) -> Contender<'a> {
    let run = || {
        let target = site.vacant("restored")?;
        fs::create_dir_all(&target).map_err(|error| format!("create {}: {error}", target.display()))?;
        let mut restore = tool.restore(site, &target)?;
        make_cold(&tool.repository(site))?;
        let mut measured = measure(&mut restore, Input::Nothing, &site.dir, Some(&target))?;
        // What a restore leaves is the image, not something stored.
        measured.stored_bytes = None;
        let same = same_bytes(&site.image, &tool.restored_file(&target)?)?;
        site.vacant("restored")?;
        if same {
            Ok(measured)
        } else {
            Err("the restored image differs".to_owned())
        }
    };
    Contender {
        name: tool.kind.name().to_owned(),
        note: tool.kind.restore_flags().to_owned(),
        run: Box::new(run),
    }
}

pub(crate) fn same_bytes(left: &Path, right: &Path) -> Result<bool> {
    let compare = || -> std::io::Result<bool> {
        let (mut left, mut right) = (File::open(left)?, File::open(right)?);
        if left.metadata()?.len() != right.metadata()?.len() {
            return Ok(false);
        }
        let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        loop {
            let len = left.read(&mut ours)?;
            if len == 0 {
                return Ok(true);
            }
            right.read_exact(&mut theirs[..len])?;
            if ours[..len] != theirs[..len] {
                return Ok(false);
            }
        }
    };
    compare().map_err(|error| format!("compare with the image: {error}"))
}
