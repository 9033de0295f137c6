//! Backup of a 1 TiB file with 1 GiB of data: what is zero and known to be so must cost nothing.

use std::process::Command;

use blockferry_benches::Result;
use blockferry_benches::bars;
use blockferry_benches::measure::{Input, make_cold, measure};
use blockferry_benches::report::Report;
use blockferry_benches::rounds::{self, Contender};
use blockferry_benches::site::{Options, Site};
use blockferry_benches::tool::{Kind, Tool, installed};
use blockferry_tests::process::find;

use crate::report;

/// Apparent size: the largest common volume size of clouds is a few times that, and 2^20 blocks show every cost per block.
const SIZE: u64 = 1 << 40;
/// Blocks of data, 1 MiB each.
const DATA_BLOCKS: usize = 1024;
/// Name of the contender that copies with holes known.
const QEMU: &str = "qemu-img";

pub(crate) fn run(options: &Options) -> Result<Report> {
    let site = Site::sparse(&options.dir, SIZE, DATA_BLOCKS)?;
    let (mut tools, mut left_out) = installed(options);
    // These read every byte of a hole, which is a quarter of an hour at the best: a number nobody needs.
    tools.retain(|tool| {
        let hole_aware = matches!(tool.kind, Kind::Blockferry | Kind::Borg);
        if !hole_aware {
            left_out.push(format!("{}: reads holes as data, 1 TiB of them", tool.kind.name()));
        }
        hole_aware
    });
    let mut contenders: Vec<Contender<'_>> = tools.iter().map(|tool| backup(&site, tool)).collect();
    if options.wants(QEMU) {
        match find(QEMU, &[]) {
            Some(_) => contenders.push(convert(&site)),
            None => left_out.push(format!("{QEMU}: not installed; `cargo xtask peers` does that")),
        }
    }
    let rows = rounds::run(contenders, options.runs);
    for tool in &tools {
        site.vacant(tool.kind.name())?;
    }
    let about = format!(
        "Full backup of a sparse {} GiB file with {} MiB of data, cold, result durable. Median of {}. The rate counts the \
         apparent size.",
        SIZE >> 30,
        DATA_BLOCKS,
        options.runs
    );
    let mut report = report("sparse", about, &site, &tools, rows, left_out);
    report.bars = bars::sparse(&report.rows);
    Ok(report)
}

fn backup<'a>(site: &'a Site, tool: &'a Tool) -> Contender<'a> {
    let run = || {
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
        name: tool.kind.name().to_owned(),
        note: tool.kind.backup_flags().to_owned(),
        run: Box::new(run),
    }
}

/// No backup, but the fastest way to a file that holds just the data.
fn convert(site: &Site) -> Contender<'_> {
    let run = || {
        let out = site.vacant("sparse.qcow2")?;
        make_cold(&site.image)?;
        let mut convert = Command::new(QEMU);
        convert.args([
            "convert", "-f", "raw", "-O", "qcow2", "-T", "none", "-t", "none", "-m", "8", "-W",
        ]);
        convert.arg(&site.image).arg(&out);
        let measured = measure(&mut convert, Input::Nothing, &site.dir, Some(&out));
        site.vacant("sparse.qcow2")?;
        measured
    };
    let note = "convert raw to qcow2, -m 8 -W, no cache; no hash, no encryption";
    Contender {
        name: QEMU.to_owned(),
        note: note.to_owned(),
        run: Box::new(run),
    }
}
