//! Restore of a used disk over a copy of it in which 1 % of the blocks are others, and the proof of a restore.

use std::fs;
use std::path::Path;

use blockferry_benches::bars;
use blockferry_benches::measure::{Input, Measured, make_cold, measure};
use blockferry_benches::report::Report;
use blockferry_benches::rounds::{self, Contender};
use blockferry_benches::site::{Options, Site};
use blockferry_benches::tool::{Kind, Tool, installed};
use blockferry_benches::{Result, device};
use blockferry_tests::volume::{BLOCK_BYTES, change_blocks};

use crate::report;
use crate::restore::{prepare, same_bytes};

/// One block of so many is changed.
const CHANGED: usize = 100;

/// The suite `delta-restore`.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let (site, tools, left_out) = ready(options)?;
    let target = site.vacant("delta.img")?;
    fs::copy(&site.image, &target).map_err(|error| format!("copy the image: {error}"))?;
    let mut contenders = vec![device::reader(&site, &target)];
    for tool in &tools {
        contenders.push(delta(&site, tool, &target, &["--mode", "delta"]));
    }
    let rows = rounds::run(contenders, options.runs);
    let about = format!(
        "Restore by delta of a {} MiB image to a file that differs in {} blocks of 1 MiB, target and repository cold, \
         result durable and compared with the image. `dd-read` reads the target. Median of {}.",
        site.size >> 20,
        changed_blocks(&site),
        options.runs
    );
    let mut report = report("delta-restore", about, &site, &tools, rows, left_out);
    report.bars = bars::delta_restore(&report.rows);
    tidy(&site, &tools)?;
    Ok(report)
}

/// The suite `verify`.
pub(crate) fn run_verify(options: &Options) -> Result<Report> {
    let (site, tools, left_out) = ready(options)?;
    let target = site.vacant("delta.img")?;
    fs::copy(&site.image, &target).map_err(|error| format!("copy the image: {error}"))?;
    let mut contenders = vec![device::reader(&site, &target)];
    for tool in &tools {
        contenders.push(delta(&site, tool, &target, &["--mode", "delta", "--verify"]));
    }
    let rows = rounds::run(contenders, options.runs);
    let about = format!(
        "The same restore, read back and compared; the bar is of the comparison alone (`proof.durationMs`) on a {} MiB file \
         without holes. `dd-read` reads that file. Median of {}.",
        site.size >> 20,
        options.runs
    );
    let mut report = report("verify", about, &site, &tools, rows, left_out);
    report.bars = bars::verify(&report.rows, site.size);
    tidy(&site, &tools)?;
    Ok(report)
}

/// The image, and a backup of it. Other tools have neither mode.
fn ready(options: &Options) -> Result<(Site, Vec<Tool>, Vec<String>)> {
    let site = Site::mixed(&options.dir, options.size)?;
    let (tools, left_out) = installed(options);
    let tools: Vec<Tool> = tools.into_iter().filter(|tool| tool.kind == Kind::Blockferry).collect();
    for tool in &tools {
        prepare(&site, tool)?;
    }
    Ok((site, tools, left_out))
}

fn tidy(site: &Site, tools: &[Tool]) -> Result<()> {
    site.vacant("delta.img")?;
    tools
        .iter()
        .try_for_each(|tool| site.vacant(tool.kind.name()).map(drop))
}

fn command(site: &Site, tool: &Tool, target: &Path, flags: &[&str]) -> std::process::Command {
    let mut command = tool.command(site);
    command.args(["restore", "latest"]).arg(target).args(flags);
    command.arg("--repo").arg(tool.repository(site));
    command.arg("--password-file").arg(&site.password_file).arg("--json");
    command
}

fn run_and_compare(site: &Site, tool: &Tool, target: &Path, flags: &[&str]) -> Result<Measured> {
    make_cold(&tool.repository(site))?;
    make_cold(target)?;
    let mut measured = measure(
        &mut command(site, tool, target, flags),
        Input::Nothing,
        &site.dir,
        Some(target),
    )?;
    measured.stored_bytes = None;
    match same_bytes(&site.image, target)? {
        true => Ok(measured),
        false => Err("the restored image differs".to_owned()),
    }
}

fn delta<'a>(site: &'a Site, tool: &'a Tool, target: &'a Path, flags: &'static [&'static str]) -> Contender<'a> {
    let mut round = 0;
    let run = move || {
        round += 1;
        change_blocks(target, site.size, round, changed_blocks(site)).map_err(|failure| failure.to_string())?;
        run_and_compare(site, tool, target, flags)
    };
    Contender {
        name: tool.kind.name().to_owned(),
        note: flags.join(" "),
        run: Box::new(run),
    }
}

fn changed_blocks(site: &Site) -> usize {
    let blocks = usize::try_from(site.size).unwrap_or(usize::MAX) / BLOCK_BYTES;
    (blocks / CHANGED).max(1)
}
