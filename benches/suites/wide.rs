//! Opening a repository with ten million contents in a thousand index blobs: first with an empty local cache, then with what the
//! first left there. And what an increment asks of an index that large: whether ten million contents that it takes over are alive.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use blockferry_benches::Result;
use blockferry_benches::bars;
use blockferry_benches::example::{self, Wide};
use blockferry_benches::measure::{Input, files_below, make_cold, measure};
use blockferry_benches::report::Report;
use blockferry_benches::rounds::{self, Contender};
use blockferry_benches::site::{Options, PASSWORD, Site};
use blockferry_benches::tool::{Kind, Tool, installed};
use blockferry_tests::process::run as run_program;

use crate::open::{connected, list};
use crate::report;

/// Contents of the repository for each that the suite `open` has.
const CONTENTS_FACTOR: usize = 10;

/// Chunks of the volume whose contents are looked up, as a fraction of what the suite `open` has: 10,485,760 of 1,000,000, a volume
/// of 10 TiB. All are distinct and in the index.
const CHUNKS_FACTOR: (usize, usize) = (1 << 20, 100_000);

/// Index blobs.
const BLOBS: usize = 1000;

/// Folder of our local cache.
const CACHE: &str = "wide-cache";

/// It is used for as long as nobody removes it: a look at it writes nothing.
const AGE_MAX: Duration = Duration::MAX;

pub(crate) fn run(options: &Options) -> Result<Report> {
    let mut site = Site::sparse(&options.dir, 1 << 20, 0)?;
    let (mut tools, mut left_out) = installed(options);
    tools.retain(|tool| matches!(tool.kind, Kind::Blockferry | Kind::Kopia));
    let wide = Wide {
        snapshots: 1,
        chunks: (options.contents * CONTENTS_FACTOR / 10).min(1 << 20),
        percent: 0,
        contents: options.contents * CONTENTS_FACTOR,
        blobs: BLOBS,
    };
    let repo = wide.prepare(&site, AGE_MAX)?;
    let alive = Wide {
        snapshots: 1,
        chunks: options.contents * CHUNKS_FACTOR.0 / CHUNKS_FACTOR.1,
        percent: 0,
        contents: 0, // those of its chunks
        blobs: BLOBS,
    };
    let alive_repo = alive.prepare(&site, AGE_MAX)?;
    let index = files_below(&repo.join("x"))?;
    let bytes = |path: &std::path::PathBuf| std::fs::metadata(path).map_or(0, |meta| meta.len());
    site.size = index.iter().map(bytes).sum();
    let kopia = match tools.iter().any(|tool| tool.kind == Kind::Kopia) {
        true => connected(&repo)
            .map_err(|failure| left_out.push(format!("kopia: {failure}")))
            .ok(),
        false => None,
    };
    let mut contenders = Vec::new();
    for tool in &tools {
        match (tool.kind, &kopia) {
            (Kind::Blockferry, _) => contenders.extend(ours(&site, tool, &repo)?),
            (_, Some(kopia)) => contenders.extend([false, true].map(|warm| list(&site, kopia, warm))),
            (_, None) => {}
        }
    }
    if options.wants(bars::OURS) {
        contenders.push(liveness(&site, &alive_repo, alive.chunks));
    }
    let rows = rounds::run(contenders, options.runs);
    site.vacant(CACHE)?;
    let about = format!(
        "Open a repository with {} contents in {} index blobs ({} KiB) and list its snapshots, blobs cold. Median of {}. \
         The rate counts index blobs. `{}`: time is that of the look-up alone, in the index as it was just read; processor time \
         and memory are those of a program that opens the repository, loads the list and looks.",
        wide.contents,
        index.len(),
        site.size >> 10,
        options.runs,
        bars::OURS_LIVENESS
    );
    let mut report = report("wide", about, &site, &tools, rows, left_out);
    report.bars = bars::wide(&report.rows);
    Ok(report)
}

/// With an empty cache, and with the one that an open before has filled.
fn ours<'a>(site: &'a Site, tool: &'a Tool, repo: &'a Path) -> Result<Vec<Contender<'a>>> {
    let help = run_program(tool.command(site).arg("--help")).map_err(|failure| failure.to_string())?;
    let has_cache = help.contains("--cache-dir");
    let contender = move |name: &str, filled: bool| {
        let command = move || {
            let mut list: Command = tool.command(site);
            list.args(["snapshots", "--all", "--json", "--repo"])
                .arg(repo)
                .arg("--password-file")
                .arg(&site.password_file);
            if has_cache {
                list.arg("--cache-dir").arg(site.dir.join(CACHE));
            }
            list
        };
        let run = move || {
            let cache = site.vacant(CACHE)?;
            if filled {
                run_program(&mut command()).map_err(|failure| failure.to_string())?;
            }
            make_cold(repo)?;
            make_cold(&cache)?;
            measure(&mut command(), Input::Nothing, &site.dir, None)
        };
        let state = match (has_cache, filled) {
            (true, true) => "a cache that one open before has filled, cold too",
            (true, false) => "empty local cache",
            (false, _) => "this version has no local cache",
        };
        Contender {
            name: name.to_owned(),
            note: format!("snapshots --all; {state}"),
            run: Box::new(run) as Box<dyn FnMut() -> Result<_>>,
        }
    };
    Ok(vec![contender(bars::OURS, false), contender(bars::OURS_CACHED, true)])
}

/// Are all contents of an image alive: an example of the crate `repo`, beside the runner.
fn liveness<'a>(site: &'a Site, repo: &'a Path, chunks: usize) -> Contender<'a> {
    let run = move || {
        let mut look = Command::new(example::program("liveness")?);
        look.arg(repo).arg(PASSWORD);
        let mut measured = measure(&mut look, Input::Nothing, &site.dir, None)?;
        let said = measured
            .output
            .as_ref()
            .and_then(|said| said["checkedSeconds"].as_f64());
        measured.wall_s = said.ok_or("the example tells no time")?;
        Ok(measured)
    };
    Contender {
        name: bars::OURS_LIVENESS.to_owned(),
        note: format!("{chunks} distinct contents of a list, all in the index"),
        run: Box::new(run),
    }
}
