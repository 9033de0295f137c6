//! `blockferry mounts`: what is mounted, and new servers for what lost its own.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use tracing::warn;

use super::mount::{Order, State, start};
use super::output::{Output, chain, table};
use super::size::show_size;
use super::{Global, image};
use crate::error::{JobError, Result};
use crate::mount::control::Hydration;
use crate::mount::survey::{Found, Health};
use crate::mount::{Mode, Survey, server};

#[derive(Args)]
#[command(after_help = "\
States: serving; dead: its server died, its device waits (ublk, nbd) or is gone (fuse); stopped: no device, but what was written
is kept; hanging: its server does not answer.

With --adopt what is dead gets a new server, on the same device where that is still there, and devices of ours that belong to no
mount any more are taken away. The password is read from the file
that was given to `mount`; without one, as for every command. Have a timer do this, or run it after a crash.

Examples:
  blockferry mounts
  blockferry mounts --adopt")]
pub(crate) struct Arguments {
    /// Start servers for mounts whose own have died
    #[arg(long)]
    adopt: bool,
    #[command(flatten)]
    state: State,
}

/// The document of `mounts --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    mounts: Vec<Row>,
    /// Folders of mounts that cannot be read.
    unreadable: Vec<Unreadable>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Unreadable {
    folder: PathBuf,
    error: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: String,
    health: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    device: Option<PathBuf>,
    attach: Option<String>,
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<PathBuf>,
    snapshot_id: String,
    source: String,
    size: u64,
    written_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hydration: Option<Hydration>,
    file_system: Option<PathBuf>,
    pid: Option<u32>,
    fetched_bytes: Option<u64>,
    requests: Option<u64>,
    failures: Option<u64>,
    /// What the server says.
    log: PathBuf,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let root = arguments.state.root()?;
    let mut survey = Survey::of(&root)?;
    let mut failures = 0;
    if arguments.adopt {
        for found in survey
            .mounts
            .iter()
            .filter(|found| matches!(found.health, Health::Dead(_)))
        {
            let id = &found.record.id;
            match order_for(found, global).and_then(|order| start(&root, &order)) {
                Ok((status, _)) => warn!(mount = id, device = %status.attached.device.display(), "served again"),
                Err(error) => {
                    failures += 1;
                    warn!(mount = id, error = chain(&error), "cannot be served again");
                }
            }
        }
        for device in server::reclaim_leaked(&root)? {
            warn!(device = %device.path.display(), identifier = device.identifier, "taken away: its mount is no more");
        }
        survey = Survey::of(&root)?;
    }
    server::forget_vanished(&root);
    let document = Document {
        mounts: survey.mounts.iter().map(row).collect(),
        unreadable: survey
            .unreadable
            .iter()
            .map(|(folder, error)| Unreadable {
                folder: folder.path().to_owned(),
                error: error.clone(),
            })
            .collect(),
    };
    output.print(&document, text);
    match failures {
        0 => Ok(ExitCode::SUCCESS),
        _ => Ok(ExitCode::FAILURE),
    }
}

/// What the server that died was told, for the same snapshot under its id.
fn order_for(found: &Found, global: &Global) -> Result<Order> {
    let wish = found.record.wish.clone();
    let password = match (&global.password_file, &wish.password_file) {
        (None, Some(file)) => image::password_from(file)?,
        _ => image::password(global, false)?,
    };
    Ok(Order {
        password,
        wish,
        file_system: found.record.file_system.clone(),
    })
}

fn row(found: &Found) -> Row {
    let record = &found.record;
    let attached = found.attached();
    let status = match &found.health {
        Health::Serving(status) => Some(status),
        _ => None,
    };
    let reason = match &found.health {
        Health::Hanging(why) => Some(why.clone()),
        Health::Dead(attached) if !attached.is_of_this_boot() => Some("the system was started again".to_owned()),
        Health::Dead(attached) if !attached.attach.survives() => Some("its device went with its server".to_owned()),
        _ => None,
    };
    Row {
        id: record.id.clone(),
        health: found.health.word(),
        reason,
        device: attached.map(|attached| attached.device.clone()),
        attach: attached.map(|attached| attached.attach.to_string()),
        mode: record.wish.mode.word(),
        target: match &record.wish.mode {
            Mode::Into { target } => Some(target.clone()),
            _ => None,
        },
        snapshot_id: record.snapshot_id.clone(),
        source: record.source.clone(),
        size: record.size,
        written_bytes: status.map(|status| status.written_bytes),
        hydration: status.and_then(|status| status.hydration.clone()),
        file_system: record.file_system.clone(),
        pid: attached.map(|attached| attached.pid),
        fetched_bytes: status.map(|status| status.fetched_bytes),
        requests: status.map(|status| status.requests),
        failures: status.map(|status| status.failures),
        log: found.folder.log(),
    }
}

fn text(document: &Document) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    if !document.mounts.is_empty() {
        let heads = [
            "ID", "DEVICE", "MODE", "KIND", "SIZE", "WRITTEN", "HYDRATED", "PID", "STATE",
        ];
        rows.push(heads.map(str::to_owned).to_vec());
    }
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for row in &document.mounts {
        let hydrated = row.hydration.as_ref().map(|hydration| {
            let percent = hydration.present_bytes as f64 / row.size.max(1) as f64 * 100.0;
            format!("{percent:.1}% {}", hydration.state)
        });
        let is_at = row.file_system.as_ref().filter(|_| row.device.is_some());
        let at = is_at.map(|folder| format!(" at {}", folder.display()));
        rows.push(vec![
            row.id.clone(),
            or_dash(row.device.as_ref().map(|device| device.display().to_string())),
            row.mode.to_owned(),
            or_dash(row.attach.clone()),
            show_size(row.size),
            or_dash(row.written_bytes.map(show_size)),
            or_dash(hydrated),
            or_dash(row.pid.map(|pid| pid.to_string())),
            format!("{}{}", row.health, at.unwrap_or_default()),
        ]);
    }
    let mut text = table(&rows);
    for row in document.mounts.iter().filter(|row| row.reason.is_some()) {
        text += &format!("{}: {}\n", row.id, row.reason.as_deref().unwrap_or_default());
    }
    let hydration = |row: &Row| row.hydration.as_ref()?.reason.clone();
    for (row, reason) in document.mounts.iter().filter_map(|row| Some((row, hydration(row)?))) {
        text += &format!("{}: {reason}\n", row.id);
    }
    for unreadable in &document.unreadable {
        text += &format!("{}: {}\n", unreadable.folder.display(), unreadable.error);
    }
    text
}

/// A mount of which nothing is left but what was written, as a message of another command.
pub(super) fn stopped(found: &Found) -> JobError {
    let id = &found.record.id;
    JobError::Usage(match &found.record.wish.mode {
        Mode::Into { target } => format!(
            "mount {id} has no device, and {} is not known to be whole: mount it into that again, or give it up with --discard",
            target.display()
        ),
        _ => format!(
            "mount {id} has no device; what was written is kept in {}: mount it again, commit it, or give it up with --discard",
            found.folder.written().display()
        ),
    })
}
