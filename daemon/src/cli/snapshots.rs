//! `blockferry snapshots`.

use std::process::ExitCode;

use clap::Args;
use repo::directory::EntryKind;
use repo::listing::DamagedManifest;
use repo::snapshot::{Snapshot, Source};
use serde::Serialize;

use super::output::{Output, chain, table};
use super::size::show_size;
use super::{Global, image};
use crate::error::Result;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Only those of this source
    #[arg(long, value_name = "USER@HOST:PATH")]
    source: Option<Source>,
    /// Incomplete ones too
    #[arg(long)]
    all: bool,
}

/// One snapshot in `snapshots --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) source: String,
    pub(crate) start: String,
    pub(crate) end: String,
    /// Bytes: the true size of a volume, the total of a tree.
    pub(crate) size: u64,
    /// `file`, `directory` or `unknown`.
    pub(crate) root: &'static str,
    pub(crate) description: String,
    pub(crate) incomplete: Option<String>,
    pub(crate) tags: std::collections::BTreeMap<String, String>,
    /// Why it cannot be read; then there is nothing but this, the id, and the source where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) damaged: Option<String>,
}

impl Row {
    pub(crate) fn of(snapshot: &Snapshot) -> Result<Self> {
        let root = match snapshot.root_kind() {
            EntryKind::File => "file",
            EntryKind::Directory => "directory",
            _ => "unknown",
        };
        Ok(Self {
            id: snapshot.id.map(|id| id.to_string()).unwrap_or_default(),
            source: snapshot.source.to_string(),
            start: snapshot.start.to_string(),
            end: snapshot.end.to_string(),
            size: shown_size(snapshot),
            root,
            description: snapshot.description.clone(),
            incomplete: Some(snapshot.incomplete.clone()).filter(|why| !why.is_empty()),
            tags: snapshot.tags.clone(),
            damaged: None,
        })
    }

    fn of_damaged(damaged: &DamagedManifest) -> Self {
        Self {
            id: damaged.id.map(|id| id.to_string()).unwrap_or_default(),
            source: damaged.source.clone().unwrap_or_default(),
            start: String::new(),
            end: String::new(),
            size: 0,
            root: "unknown",
            description: String::new(),
            incomplete: None,
            tags: [].into(),
            damaged: Some(chain(&damaged.error)),
        }
    }
}

/// The size to list. A tag that is no number must not hide the snapshots beside it; who restores this one is told by an error.
fn shown_size(snapshot: &Snapshot) -> u64 {
    let tagged = snapshot.tagged_size().unwrap_or_else(|e| {
        tracing::warn!(id = ?snapshot.id, error = %e, "the size of this snapshot is not known");
        None
    });
    tagged.unwrap_or(snapshot.stats.total_size)
}

/// Exit code when a manifest cannot be read: the list may not be all.
const DAMAGE: u8 = 4;

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let repository = image::open(global)?;
    let listing = repository.list_snapshots()?;
    let wanted = listing
        .snapshots
        .iter()
        .filter(|s| arguments.all || s.incomplete.is_empty())
        .filter(|s| arguments.source.as_ref().is_none_or(|source| *source == s.source));
    // Whose a damaged one is may not be known, so all are told.
    let rows = wanted
        .map(Row::of)
        .chain(listing.damaged.iter().map(|damaged| Ok(Row::of_damaged(damaged))))
        .collect::<Result<Vec<_>>>()?;
    output.print(&rows, |rows| text(rows));
    Ok(match listing.damaged.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(DAMAGE),
    })
}

fn text(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no snapshots\n".into();
    }
    let head = ["ID", "START", "SIZE", "ROOT", "SOURCE"].map(String::from).to_vec();
    let line = |row: &Row| {
        if let Some(why) = &row.damaged {
            return vec![
                row.id.clone(),
                "DAMAGED".into(),
                String::new(),
                String::new(),
                format!("{} ({why})", row.source),
            ];
        }
        let source = match &row.incomplete {
            Some(why) => format!("{} (incomplete: {why})", row.source),
            None => row.source.clone(),
        };
        vec![
            row.id.clone(),
            row.start.clone(),
            show_size(row.size),
            row.root.into(),
            source,
        ]
    };
    table(&[vec![head], rows.iter().map(line).collect()].concat())
}
