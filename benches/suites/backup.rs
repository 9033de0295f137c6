//! Full backup of a used disk into an empty repository.

use blockferry_benches::bars;
use blockferry_benches::measure::{Input, make_cold, measure};
use blockferry_benches::report::Report;
use blockferry_benches::rounds::{self, Contender};
use blockferry_benches::site::{Options, Site};
use blockferry_benches::tool::{Kind, Tool, installed};
use blockferry_benches::{Result, device};

use crate::report;

pub(crate) fn run(options: &Options) -> Result<Report> {
    let site = Site::mixed(&options.dir, options.size)?;
    let (tools, left_out) = installed(options);
    let mut contenders = device::contenders(&site, options, &[device::READ, device::COPY, device::WRITE]);
    contenders.extend(tools.iter().map(|tool| contender(&site, tool, &[])));
    if let Some(ours) = tools.iter().find(|tool| tool.kind == Kind::Blockferry) {
        // What a CPU without AVX-512 would do, on the same run.
        let avx2 = contender(&site, ours, &["--hash-kernel", "avx2x4"]);
        contenders.push(Contender {
            name: bars::OURS_AVX2.to_owned(),
            ..avx2
        });
    }
    let rows = rounds::run(contenders, options.runs);
    for tool in &tools {
        site.vacant(tool.kind.name())?;
    }
    let about = format!(
        "Full backup of a {} MiB image ({} MiB not zero) into an empty repository on the same file system, image cold, \
         result durable. Median of {}.",
        site.size >> 20,
        site.data_bytes >> 20,
        options.runs
    );
    let mut report = report("backup", about, &site, &tools, rows, left_out);
    report.bars = bars::backup(&report.rows);
    Ok(report)
}

fn contender<'a>(site: &'a Site, tool: &'a Tool, flags: &'a [&'a str]) -> Contender<'a> {
    let run = move || {
        tool.create_repository(site)?;
        make_cold(&site.image)?;
        measure(
            tool.backup(site).args(flags),
            Input::Nothing,
            &site.dir,
            Some(&tool.repository(site)),
        )
    };
    Contender {
        name: tool.kind.name().to_owned(),
        note: format!("{} {}", tool.kind.backup_flags(), flags.join(" "))
            .trim()
            .to_owned(),
        run: Box::new(run),
    }
}
