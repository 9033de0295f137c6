//! `blockferry show`.

use std::collections::HashSet;
use std::process::ExitCode;

use blockio::CHUNK_SIZE;
use clap::Args;
use serde::Serialize;

use super::output::{Output, table};
use super::size::show_size;
use super::snapshots::Row;
use super::{Global, image};
use crate::error::Result;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Snapshot: id, unique beginning of it, latest, or latest:USER@HOST:PATH
    snapshot: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(flatten)]
    row: Row,
    /// Absent for a tree of files.
    image: Option<Volume>,
    /// Why it is not one volume, when it is not.
    not_an_image: Option<String>,
}

/// The volume in a snapshot. Sizes in bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    object_id: String,
    size: u64,
    padded_size: u64,
    logical_block: Option<u64>,
    pieces: u64,
    /// Length of every piece but the last, when they are alike.
    piece_length: Option<u64>,
    zero_pieces: u64,
    /// Different contents among the others.
    unique_pieces: u64,
    /// Velero's own block mover can take it as the parent of an increment.
    velero_layout: bool,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let repository = image::open(global)?;
    let snapshot = image::snapshot(&repository, &arguments.snapshot)?;
    let (volume, not_an_image) = match repository.image(&snapshot) {
        Ok(image) => {
            let zero = repository.zero_content();
            let (mut zeros, mut unique) = (0, HashSet::new());
            for entry in image.table.iter() {
                match entry.content == zero {
                    true => zeros += 1,
                    false => drop(unique.insert(entry.content)),
                }
            }
            let uniform = image.table.uniform_len();
            let volume = Volume {
                object_id: image.object.to_string(),
                size: image.size,
                padded_size: image.table.len(),
                logical_block: snapshot.logical_block()?,
                pieces: image.table.count() as u64,
                piece_length: uniform,
                zero_pieces: zeros,
                unique_pieces: unique.len() as u64,
                velero_layout: uniform == Some(CHUNK_SIZE)
                    && image.table.len().is_multiple_of(CHUNK_SIZE)
                    && image.object.indirection > 0,
            };
            (Some(volume), None)
        }
        Err(e) if e.kind() == repo::Kind::InvalidInput => (None, Some(e.to_string())),
        Err(e) => return Err(e.into()),
    };
    output.print(
        &Document {
            row: Row::of(&snapshot)?,
            image: volume,
            not_an_image,
        },
        text,
    );
    Ok(ExitCode::SUCCESS)
}

fn text(d: &Document) -> String {
    let row = |name: &str, value: String| vec![name.to_string(), value];
    let mut rows = vec![
        row("snapshot", d.row.id.clone()),
        row("source", d.row.source.clone()),
        row("start", d.row.start.clone()),
        row("end", d.row.end.clone()),
    ];
    rows.extend(d.row.incomplete.iter().map(|why| row("incomplete", why.clone())));
    if let Some(v) = &d.image {
        rows.push(row("size", format!("{} ({} bytes)", show_size(v.size), v.size)));
        rows.push(row("object", v.object_id.clone()));
        let length = v.piece_length.map_or("various lengths".into(), show_size);
        rows.push(row(
            "pieces",
            format!(
                "{} of {length}: {} zero, {} different",
                v.pieces, v.zero_pieces, v.unique_pieces
            ),
        ));
        rows.push(row(
            "logical block",
            v.logical_block.map_or("unknown".into(), show_size),
        ));
        rows.push(row("Velero layout", if v.velero_layout { "yes" } else { "no" }.into()));
    }
    rows.extend(d.not_an_image.iter().map(|why| row("not a volume", why.clone())));
    rows.extend(
        d.row
            .tags
            .iter()
            .map(|(key, value)| row("tag", format!("{key}={value}"))),
    );
    table(&rows)
}
