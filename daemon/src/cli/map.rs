//! `blockferry map`.

use std::process::ExitCode;

use blockio::{CHUNK_SIZE, Extent, ExtentKind};
use clap::Args;
use repo::{Image, Repository};
use serde::Serialize;

use super::output::Output;
use super::picture::picture;
use super::size::show_size;
use super::{Global, image};
use crate::error::Result;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Snapshot: id, unique beginning of it, latest, or latest:USER@HOST:PATH
    snapshot: String,
}

/// The document of `map --json`. Bytes.
#[derive(Serialize)]
struct Document {
    size: u64,
    data: u64,
    zero: u64,
    extents: Vec<Part>,
}

#[derive(Serialize)]
struct Part {
    offset: u64,
    length: u64,
    kind: &'static str,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let repository = image::open(global)?;
    let snapshot = image::snapshot(&repository, &arguments.snapshot)?;
    let image = repository.image(&snapshot)?;
    let extents = extents(&repository, &image);
    let sum = |kind| extents.iter().filter(|(_, k)| *k == kind).map(|(e, _)| e.len).sum();
    let document = Document {
        size: image.size,
        data: sum(ExtentKind::Data),
        zero: sum(ExtentKind::Zero),
        extents: extents
            .iter()
            .map(|(e, kind)| Part {
                offset: e.offset,
                length: e.len,
                kind: name(*kind),
            })
            .collect(),
    };
    output.print(&document, |d| text(d, &extents));
    Ok(ExitCode::SUCCESS)
}

fn name(kind: ExtentKind) -> &'static str {
    match kind {
        ExtentKind::Data => "data",
        ExtentKind::Zero | ExtentKind::Hole => "zero",
    }
}

/// Runs of data and zeros, from the list alone.
fn extents(repository: &Repository, image: &Image) -> Vec<(Extent, ExtentKind)> {
    let zero = repository.zero_content();
    let mut runs: Vec<(Extent, ExtentKind)> = Vec::new();
    for entry in image.table.iter() {
        let len = entry.extent.len.min(image.size.saturating_sub(entry.extent.offset));
        let is_zero = entry.content == zero && entry.extent.len == CHUNK_SIZE;
        let kind = if is_zero { ExtentKind::Zero } else { ExtentKind::Data };
        match runs.last_mut() {
            _ if len == 0 => break,
            Some((last, same)) if *same == kind => last.len += len,
            _ => runs.push((
                Extent {
                    offset: entry.extent.offset,
                    len,
                },
                kind,
            )),
        }
    }
    runs
}

fn text(d: &Document, extents: &[(Extent, ExtentKind)]) -> String {
    let data = extents.iter().filter(|(_, kind)| *kind == ExtentKind::Data);
    let (lines, cell) = picture(d.size, data.map(|(extent, _)| *extent));
    let (data, zero) = (show_size(d.data), show_size(d.zero));
    format!(
        "{lines}one cell is {cell}; {data} data, {zero} zero, {} extents\n",
        d.extents.len()
    )
}
