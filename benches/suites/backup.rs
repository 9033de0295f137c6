//! Full backup of a used disk into an empty repository.

use blockferry_benches::measure::{Input, make_cold, measure};
use blockferry_benches::report::Report;
use blockferry_benches::rounds::{self, Contender};
use blockferry_benches::site::{Options, Site};
use blockferry_benches::tool::{Tool, installed};
use blockferry_benches::{Result, device};

use crate::report;

pub(crate) fn run(options: &Options) -> Result<Report> {
    let site = Site::mixed(&options.dir, options.size)?;
    let (tools, left_out) = installed(options);
    let mut contenders = device::contenders(&site, options, &[device::READ, device::COPY, device::WRITE]);
    contenders.extend(tools.iter().map(|tool| contender(&site, tool)));
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
    Ok(report("backup", about, &site, &tools, rows, left_out))
}

fn contender<'a>(site: &'a Site, tool: &'a Tool) -> Contender<'a> {
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
