//! Opening a repository with very many contents: key derivation, index load, manifest load, one listing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use blockferry_benches::Result;
use blockferry_benches::bars;
use blockferry_benches::measure::{Input, make_cold, measure};
use blockferry_benches::report::Report;
use blockferry_benches::rounds::{self, Contender};
use blockferry_benches::site::{Options, PASSWORD, Site};
use blockferry_benches::tool::{Kind, Tool, installed};
use blockferry_tests::kopia::Kopia;

use crate::report;

pub(crate) fn run(options: &Options) -> Result<Report> {
    // The suite needs the work folder and the password, not an image.
    let mut site = Site::sparse(&options.dir, 1 << 20, 0)?;
    let (mut tools, mut left_out) = installed(options);
    tools.retain(|tool| matches!(tool.kind, Kind::Blockferry | Kind::Kopia));
    let repo = match &options.open_repo {
        Some(repo) => repo.clone(),
        None => repository_of_many_contents(&site, options.contents)?,
    };
    site.size = measure_index(&repo)?;
    let kopia = tools
        .iter()
        .any(|tool| tool.kind == Kind::Kopia)
        .then(|| connected(&repo))
        .transpose();
    let kopia = kopia.unwrap_or_else(|failure| {
        left_out.push(format!("kopia: {failure}"));
        None
    });
    let mut contenders = Vec::new();
    for tool in &tools {
        match (tool.kind, &kopia) {
            (Kind::Blockferry, _) => contenders.push(blockferry(&site, tool, &repo)),
            (_, Some(kopia)) => contenders.extend([false, true].map(|warm| list(&site, kopia, warm))),
            (_, None) => {}
        }
    }
    let rows = rounds::run(contenders, options.runs);
    let about = format!(
        "Open a repository with about {} contents ({} KiB of index blobs) and list its snapshots, blobs cold. Median of {}. \
         The rate counts index blobs.",
        options.contents,
        site.size >> 10,
        options.runs
    );
    let mut report = report("open", about, &site, &tools, rows, left_out);
    report.bars = bars::open(&report.rows);
    Ok(report)
}

/// A repository with `contents` small contents in the work folder, made on first use and kept. Kopia makes it, from as many
/// files of eight bytes: a few minutes for a million. A faster generator goes in here.
fn repository_of_many_contents(site: &Site, contents: usize) -> Result<PathBuf> {
    const FILES_IN_FOLDER: usize = 1000;
    let repo = site.dir.join(format!("contents-{contents}"));
    if repo.is_dir() {
        return Ok(repo);
    }
    eprintln!("making {} with kopia", repo.display());
    let (partial, source) = (site.vacant("contents-partial")?, site.vacant("contents-source")?);
    let failed = |error: std::io::Error| format!("make {contents} files: {error}");
    fs::create_dir_all(&partial).map_err(failed)?;
    for first in (0..contents).step_by(FILES_IN_FOLDER) {
        let folder = source.join(format!("{first:08}"));
        fs::create_dir_all(&folder).map_err(failed)?;
        for file in first..contents.min(first + FILES_IN_FOLDER) {
            fs::write(folder.join(format!("{file:08}")), (file as u64).to_le_bytes()).map_err(failed)?;
        }
    }
    let text = |failure: blockferry_tests::Failure| failure.to_string();
    let kopia = Kopia::new(&partial, PASSWORD).map_err(text)?;
    kopia.create(&[]).map_err(text)?;
    kopia.snapshot_create(&source, &["--parallel=4"]).map_err(text)?;
    site.vacant("contents-source")?;
    fs::rename(&partial, &repo).map_err(|error| format!("keep {}: {error}", repo.display()))?;
    Ok(repo)
}

pub(crate) fn connected(repo: &Path) -> Result<Kopia> {
    let kopia = Kopia::new(repo, PASSWORD).map_err(|failure| failure.to_string())?;
    kopia.connect().map_err(|failure| failure.to_string())?;
    Ok(kopia)
}

/// Bytes of the index blobs.
fn measure_index(repo: &Path) -> Result<u64> {
    let files = blockferry_benches::measure::files_below(&repo.join("x"))?;
    Ok(files
        .iter()
        .filter_map(|file| Some(fs::metadata(file).ok()?.len()))
        .sum())
}

fn blockferry<'a>(site: &'a Site, tool: &'a Tool, repo: &'a Path) -> Contender<'a> {
    let run = move || {
        make_cold(repo)?;
        let mut list: Command = tool.command(site);
        list.args(["snapshots", "--all", "--json", "--repo"])
            .arg(repo)
            .arg("--password-file")
            .arg(&site.password_file);
        measure(&mut list, Input::Nothing, &site.dir, None)
    };
    Contender {
        name: tool.kind.name().to_owned(),
        note: "snapshots --all".to_owned(),
        run: Box::new(run),
    }
}

pub(crate) fn list<'a>(site: &'a Site, kopia: &'a Kopia, warm: bool) -> Contender<'a> {
    let run = move || {
        if !warm {
            kopia.run(["cache", "clear"]).map_err(|failure| failure.to_string())?;
        }
        make_cold(kopia.repo())?;
        let mut list = kopia.command(["snapshot", "list", "--all", "--json"]);
        measure(&mut list, Input::Nothing, &site.dir, None)
    };
    let (name, note) = if warm {
        ("kopia-warm", "snapshot list --all, after one with the same caches")
    } else {
        ("kopia", "snapshot list --all, caches cleared")
    };
    Contender {
        name: name.to_owned(),
        note: note.to_owned(),
        run: Box::new(run),
    }
}
