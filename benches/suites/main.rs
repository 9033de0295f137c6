//! `bench`: the runner behind `cargo xtask bench`.

mod backup;
mod cbt;
mod delta_restore;
mod increment;
mod latency;
mod lazy;
mod maintenance;
mod mount;
mod open;
mod restore;
mod serve;
mod sparse;
mod store;
mod store_restore;
mod wide;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use blockferry_benches::report::Report;
use blockferry_benches::rounds::Row;
use blockferry_benches::site::{Options, Site};
use blockferry_benches::tool::Tool;
use blockferry_benches::{Result, host};
use serde_json::{Map, Value};

/// A suite, by name.
type Suite = (&'static str, fn(&Options) -> Result<Report>);

const SUITES: &[Suite] = &[
    ("backup", backup::run),
    ("restore", restore::run),
    ("increment", increment::run),
    ("unchanged", increment::run_unchanged),
    ("large", increment::run_large),
    ("hash-compare", increment::run_hash_compare),
    ("delta-restore", delta_restore::run),
    ("verify", delta_restore::run_verify),
    ("open", open::run),
    ("sparse", sparse::run),
    ("serve", serve::run),
    ("lazy", lazy::run),
    ("mount", mount::run),
    ("cbt", cbt::run),
    ("store", store::run),
    ("store-restore", store_restore::run),
    ("latency", latency::run),
    ("wide", wide::run),
    ("maintenance", maintenance::run),
];

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// False when a contender failed.
fn run() -> Result<bool> {
    let names: Vec<&str> = SUITES.iter().map(|(name, _)| *name).collect();
    let options = Options::parse(env::args().skip(1), &names, work_folder()?)?;
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    let mut fine = true;
    for (_, suite) in SUITES
        .iter()
        .filter(|(name, _)| options.suites.iter().any(|wanted| wanted == name))
    {
        let report = suite(&options)?;
        println!("{}", report.markdown());
        if options.results {
            println!("Raw numbers: {}", report.save(&results, &options.dir)?.display());
        }
        fine &= report.rows.iter().all(|row| row.failure.is_none());
    }
    Ok(fine)
}

/// `target/bench`, for a runner in `target/<profile>`.
fn work_folder() -> Result<PathBuf> {
    let exe = env::current_exe().map_err(|error| format!("find own program: {error}"))?;
    let target = exe
        .ancestors()
        .nth(2)
        .ok_or("the runner has no target folder above it")?;
    Ok(target.join("bench"))
}

/// A report with the machine and the versions filled in.
fn report(suite: &str, about: String, site: &Site, tools: &[Tool], rows: Vec<Row>, left_out: Vec<String>) -> Report {
    let mut versions: Map<String, Value> = tools
        .iter()
        .map(|tool| (tool.kind.name().to_owned(), tool.version().into()))
        .collect();
    let dd = host::first_line(std::process::Command::new("dd").arg("--version"));
    versions.insert("dd".to_owned(), dd.into());
    Report {
        suite: suite.to_owned(),
        about,
        size: site.size,
        rows,
        bars: Vec::new(),
        left_out,
        details: String::new(),
        flaws: Vec::new(),
        versions: versions.into(),
        host: host::describe(&site.dir),
    }
}
