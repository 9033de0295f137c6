//! `blockferry diff`.

use std::process::ExitCode;
use std::time::Instant;

use blockio::Extent;
use clap::Args;
use repo::Image;
use serde::Serialize;

use super::output::Output;
use super::picture::picture;
use super::size::show_size;
use super::{Global, image};
use crate::error::Result;
use crate::mover::difference::Difference;

#[derive(Args)]
#[command(after_help = "\
Nothing but the lists of the two snapshots is read. The document of --json is also a list of changes, as --changed takes it:
what differs from A in B.

Examples:
  blockferry diff 4f2a latest --repo /backups/r1 --password-file pw
  blockferry diff latest 4f2a --json --repo /backups/r1 --password-file pw > back-to-4f2a.json
  blockferry restore 4f2a /dev/vg0/data --mode delta --changed back-to-4f2a.json --repo /backups/r1 --password-file pw")]
pub(crate) struct Arguments {
    /// The snapshot to compare with: id, unique beginning of it, latest, or latest:USER@HOST:PATH
    a: String,
    /// The snapshot whose bytes are told of
    b: String,
}

/// The document of `diff --json`. Bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    a: String,
    b: String,
    size_a: u64,
    /// Size of B, under the name that lists of changes have for it.
    volume_size: u64,
    /// Of B, what A has too.
    bytes_equal: u64,
    /// Of B, what A has otherwise.
    bytes_changed: u64,
    /// Of B, what lies behind the end of A.
    bytes_added: u64,
    /// Of A, what lies behind the end of B.
    bytes_removed: u64,
    /// Every extent holds a difference. Otherwise the snapshots are cut into pieces differently, and some may be equal.
    exact: bool,
    /// What is changed or added.
    changed: Vec<Part>,
    /// Time of the comparison, lists at hand.
    compare_us: u64,
}

#[derive(Serialize)]
struct Part {
    offset: u64,
    length: u64,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let repository = image::open(global)?;
    let load = |name| -> Result<Image> { Ok(repository.image(&image::snapshot(&repository, name)?)?) };
    let (a, b) = (load(&arguments.a)?, load(&arguments.b)?);
    let started = Instant::now();
    let difference = Difference::between(&a, &b);
    let compare_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    let id = |image: &Image| image.snapshot.id.map(|id| id.to_string()).unwrap_or_default();
    let document = Document {
        a: id(&a),
        b: id(&b),
        size_a: a.size,
        volume_size: b.size,
        bytes_equal: b.size - difference.bytes(),
        bytes_changed: difference.bytes() - difference.added,
        bytes_added: difference.added,
        bytes_removed: difference.removed,
        exact: difference.exact,
        changed: difference
            .extents
            .iter()
            .map(|extent| Part {
                offset: extent.offset,
                length: extent.len,
            })
            .collect(),
        compare_us,
    };
    output.print(&document, text);
    Ok(ExitCode::SUCCESS)
}

fn text(d: &Document) -> String {
    let extents = d.changed.iter().map(|part| Extent {
        offset: part.offset,
        len: part.length,
    });
    let (lines, cell) = picture(d.volume_size, extents);
    let note = match d.exact {
        true => "",
        false => "note: the snapshots are cut into pieces differently; some of what is shown may be equal\n",
    };
    let resized = match (d.bytes_added, d.bytes_removed) {
        (0, 0) => String::new(),
        (added, 0) => format!(", {} added at the end", show_size(added)),
        (_, removed) => format!(", {} removed from the end", show_size(removed)),
    };
    format!(
        "{lines}one cell is {cell}; {} changed{resized}, {} equal, {} extents\n{note}",
        show_size(d.bytes_changed),
        show_size(d.bytes_equal),
        d.changed.len()
    )
}
