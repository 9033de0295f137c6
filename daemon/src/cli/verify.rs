//! `blockferry verify`.

use std::process::ExitCode;

use blockio::Progress;
use clap::Args;
use repo::verify::{Report, VerifyOptions, verify};
use serde::Serialize;

use super::effort::Workers;
use super::output::Output;
use super::size::show_size;
use super::{Global, image, progress, signals};
use crate::error::{JobError, Result};

#[derive(Args)]
#[command(
    after_help = "0 % checks lists, index and packs without reading data; 100 % decrypts and hashes every content.\nExit code 4 when damage is found."
)]
pub(crate) struct Arguments {
    /// Snapshots to check [default: all]
    snapshots: Vec<String>,
    /// Share of the contents to read, decrypt and hash
    #[arg(long, default_value_t = 1.0, value_name = "N")]
    percent: f64,
    #[command(flatten)]
    workers: Workers,
}

/// The document of `verify --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    snapshots: u64,
    objects: u64,
    contents: u64,
    contents_read: u64,
    bytes_read: u64,
    damage: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    if !(0.0..=100.0).contains(&arguments.percent) {
        return Err(JobError::Usage(format!(
            "--percent {} is not between 0 and 100",
            arguments.percent
        )));
    }
    let cancel = signals::cancel_on_signal()?;
    let repository = image::open(global)?;
    let all = repository.snapshots()?;
    let chosen = match arguments.snapshots.as_slice() {
        [] => all,
        names => names
            .iter()
            .map(|name| image::find_snapshot(&all, name))
            .collect::<Result<_>>()?,
    };
    let progress = Progress::new();
    let display = progress::Display::start(global, "verify", &progress);
    let options = VerifyOptions {
        percent: arguments.percent,
        workers: arguments.workers.count(),
    };
    let report = verify(&repository, &chosen, &options, &cancel, &progress);
    drop(display);
    let report = report?;
    let code = if report.damage.is_empty() { 0 } else { 4 };
    output.print(&document(&report), text);
    Ok(ExitCode::from(code))
}

fn document(report: &Report) -> Document {
    Document {
        snapshots: report.snapshots,
        objects: report.objects,
        contents: report.contents,
        contents_read: report.contents_read,
        bytes_read: report.read_bytes,
        damage: report.damage.clone(),
    }
}

fn text(d: &Document) -> String {
    let damage: String = d.damage.iter().map(|what| format!("damage: {what}\n")).collect();
    let verdict = if d.damage.is_empty() {
        "no damage found"
    } else {
        "DAMAGE FOUND"
    };
    format!(
        "{damage}{verdict}: {} snapshots, {} objects, {} contents; {} contents ({}) read\n",
        d.snapshots,
        d.objects,
        d.contents,
        d.contents_read,
        show_size(d.bytes_read)
    )
}
