//! A dry run of full maintenance over thirty snapshots of 1 TiB: what the walk of their lists costs, in time and in memory.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use blockferry_benches::Result;
use blockferry_benches::bars;
use blockferry_benches::example::Wide;
use blockferry_benches::measure::{Input, files_below, make_cold, measure};
use blockferry_benches::report::Report;
use blockferry_benches::rounds::{self, Contender};
use blockferry_benches::site::{Options, Site};
use blockferry_benches::tool::{Kind, Tool, installed};
use blockferry_tests::process::run as run_program;

use crate::open::connected;
use crate::report;

/// Snapshots, each of another volume of the same size.
const SNAPSHOTS: usize = 30;

/// Chunks of one volume for each content that the suite `open` has: 2^20 for its million, which is 1 TiB.
const fn chunks(contents: usize) -> usize {
    contents / 1_000_000 * (1 << 20) + contents % 1_000_000
}

/// Share of the chunks in which a volume differs from the one before, in percent: a busy day.
const CHANGED_PERCENT: usize = 2;

/// Index blobs: what backups of that size leave.
const BLOBS: usize = 10;

/// Maintenance leaves contents alone that are younger than two hours, by kopia's rules and by ours. It may not come to move any
/// here, since their packs do not exist.
const AGE_MAX: Duration = Duration::from_secs(3600);

pub(crate) fn run(options: &Options) -> Result<Report> {
    let mut site = Site::sparse(&options.dir, 1 << 20, 0)?;
    let (mut tools, left_out) = installed(options);
    tools.retain(|tool| matches!(tool.kind, Kind::Blockferry | Kind::Kopia));
    let wide = Wide {
        snapshots: SNAPSHOTS,
        chunks: chunks(options.contents),
        percent: CHANGED_PERCENT,
        contents: chunks(options.contents) * 2,
        blobs: BLOBS,
    };
    let repo = wide.prepare(&site, AGE_MAX)?;
    let bytes = |path: &std::path::PathBuf| std::fs::metadata(path).map_or(0, |meta| meta.len());
    site.size = files_below(&repo)?.iter().map(bytes).sum();
    let contenders = tools.iter().map(|tool| match tool.kind {
        Kind::Blockferry => ours(&site, tool, &repo),
        _ => kopia(&site, &repo),
    });
    let rows = rounds::run(contenders.collect(), options.runs);
    site.vacant(COPY)?;
    let about = format!(
        "Full maintenance of a repository of {SNAPSHOTS} snapshots with {} list entries each, {CHANGED_PERCENT} % new from one to the \
         next, {} contents in the index and {} MiB of lists and index, cold. Median of {}. The rate counts all blobs.",
        wide.chunks,
        wide.contents,
        site.size >> 20,
        options.runs
    );
    let mut report = report("maintenance", about, &site, &tools, rows, left_out);
    report.bars = bars::maintenance(&report.rows);
    Ok(report)
}

fn ours<'a>(site: &'a Site, tool: &'a Tool, repo: &'a Path) -> Contender<'a> {
    let run = move || {
        make_cold(repo)?;
        let mut plan = tool.command(site);
        plan.args([
            "maintenance",
            "run",
            "--full",
            "--dry-run",
            "--json",
            "--as",
            &Wide::owner(),
        ]);
        plan.arg("--repo")
            .arg(repo)
            .arg("--password-file")
            .arg(&site.password_file);
        measure(&mut plan, Input::Nothing, &site.dir, None)
    };
    Contender {
        name: bars::OURS.to_owned(),
        note: "maintenance run --full --dry-run".to_owned(),
        run: Box::new(run),
    }
}

/// Folder of the repository that kopia maintains.
const COPY: &str = "wide-copy";

fn kopia<'a>(site: &'a Site, repo: &'a Path) -> Contender<'a> {
    let run = move || {
        let copy = site.vacant(COPY)?;
        // By links: no client changes a blob in place.
        run_program(Command::new("cp").arg("-rl").arg(repo).arg(&copy)).map_err(|failure| failure.to_string())?;
        let client = connected(&copy)?;
        make_cold(&copy)?;
        let mut maintain = client.command(["maintenance", "run", "--full", "--safety=full"]);
        measure(&mut maintain, Input::Nothing, &site.dir, None)
    };
    Contender {
        name: Kind::Kopia.name().to_owned(),
        note: "maintenance run --full --safety=full on a copy: it has no dry run; nothing is old enough to be deleted"
            .to_owned(),
        run: Box::new(run),
    }
}
