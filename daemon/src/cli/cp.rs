//! `blockferry cp`.

use std::path::PathBuf;
use std::process::ExitCode;

use blockio::Progress;
use clap::Args;
use repo::tree::Tree;
use serde::Serialize;

use super::output::Output;
use super::size::show_size;
use super::{Global, image, progress, signals};
use crate::error::Result;
use crate::mover::copy::{CopyOptions, copy};

#[derive(Args)]
#[command(
    after_help = "What is in a folder goes into TARGET, which is made when it is missing; a file becomes TARGET, or goes into it when that is a folder.\nOwners are restored when run by root. Links in TARGET are not followed.\n\nExample: blockferry cp latest etc /tmp/etc --repo /backups/r1 --password-file pw"
)]
pub(crate) struct Arguments {
    /// Snapshot: id, unique beginning of it, latest, or latest:USER@HOST:PATH
    snapshot: String,
    /// File or folder in it; "" or / for all of it
    path: String,
    /// Where to
    target: PathBuf,
    /// Replace files and links that are in the way
    #[arg(long)]
    force: bool,
}

/// The document of `cp --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    target: String,
    files: u64,
    folders: u64,
    links: u64,
    bytes: u64,
    /// Entries that are neither file, folder nor link.
    skipped: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let cancel = signals::cancel_on_signal()?;
    let repository = image::open(global)?;
    let snapshot = image::snapshot(&repository, &arguments.snapshot)?;
    let tree = Tree::new(&repository, &snapshot)?;
    let source = tree.find(&arguments.path)?;
    let options = CopyOptions { force: arguments.force };
    let counters = Progress::new();
    let display = progress::Display::start(global, "cp", &counters);
    let report = copy(&tree, &source, &arguments.target, &options, &cancel, &counters);
    drop(display);
    let report = report?;
    let document = Document {
        target: arguments.target.display().to_string(),
        files: report.files,
        folders: report.folders,
        links: report.links,
        bytes: report.bytes,
        skipped: report.skipped,
    };
    output.print(&document, |d| {
        let skipped = match d.skipped.len() {
            0 => String::new(),
            n => format!("; {n} entries that are neither file, folder nor link were skipped"),
        };
        format!(
            "{} files ({}), {} folders, {} links to {}{skipped}\n",
            d.files,
            show_size(d.bytes),
            d.folders,
            d.links,
            d.target
        )
    });
    Ok(ExitCode::SUCCESS)
}
