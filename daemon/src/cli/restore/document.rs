//! What `blockferry restore` tells of what it did, or would do.

use std::fmt::Write as _;
use std::path::Path;

use blockio::Extent;
use repo::Image;
use repo::blob::StoreStats;
use serde::Serialize;

use crate::cli::output::peak_rss_bytes;
use crate::cli::size::{show_rate, show_size};
use crate::error::JobError;
use crate::mover::restore::{Estimate, RestoreReport};
use crate::mover::verify;

/// Mismatches told of in a message; the document has more.
const MISMATCHES_TOLD: usize = 20;

/// The document of `restore --json`. Sizes in bytes.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    snapshot_id: String,
    target: String,
    /// `full` or `delta`.
    mode: &'static str,
    /// Nothing was done: the numbers are what would be.
    dry_run: bool,
    size: u64,
    /// Read from the target.
    bytes_read: u64,
    bytes_fetched: u64,
    /// Reads of packs.
    #[serde(skip_serializing_if = "Option::is_none")]
    fetches: Option<u64>,
    bytes_written: u64,
    bytes_zeroed: u64,
    bytes_skipped: u64,
    /// Behind the volume on the target.
    bytes_rest: u64,
    rest_zeroed: bool,
    /// The target was read back, and is what the snapshot says.
    verified: bool,
    proof: Option<Proof>,
    zero_refusals: Vec<String>,
    /// Places that could not be restored.
    lost: Vec<Place>,
    /// Their bytes.
    bytes_lost: u64,
    duration_ms: u64,
    peak_rss_bytes: u64,
    engine: Option<String>,
    engine_reason: Option<String>,
    /// What was asked of the repository's storage.
    storage: Option<StoreStats>,
}

/// What was compared, and what came of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Proof {
    root_object: String,
    object_id: String,
    blocks: u64,
    bytes: u64,
    /// Of these, in holes by the word of the file system.
    hole_bytes: u64,
    mismatches: u64,
    /// A thousand of them at most.
    mismatch_extents: Vec<Mismatch>,
    /// The bytes came from the device, past the page cache.
    direct: bool,
    duration_ms: u64,
}

#[derive(Serialize)]
struct Mismatch {
    offset: u64,
    length: u64,
    content: String,
}

/// A range of bytes of the volume.
#[derive(Serialize)]
struct Place {
    offset: u64,
    length: u64,
}

impl Document {
    /// The document of a restore that begins.
    pub(crate) fn of(image: &Image, target: &Path, delta: bool) -> Self {
        Self {
            snapshot_id: image.snapshot.id.map(|id| id.to_string()).unwrap_or_default(),
            target: target.display().to_string(),
            mode: if delta { "delta" } else { "full" },
            ..Self::default()
        }
    }

    /// The same with what would be done.
    pub(crate) fn dry(self, estimate: &Estimate) -> Self {
        Self {
            dry_run: true,
            size: estimate.size,
            bytes_read: estimate.read_bytes,
            bytes_fetched: estimate.fetched_bytes,
            fetches: Some(estimate.fetches),
            bytes_written: estimate.written_bytes,
            bytes_zeroed: estimate.zeroed_bytes,
            bytes_skipped: estimate.skipped_bytes,
            bytes_rest: estimate.rest_bytes,
            bytes_lost: estimate.lost_bytes,
            peak_rss_bytes: peak_rss_bytes(),
            ..self
        }
    }

    /// The same with what was done.
    pub(crate) fn done(self, report: &RestoreReport, storage: StoreStats) -> Self {
        let place = |extent: &Extent| Place {
            offset: extent.offset,
            length: extent.len,
        };
        Self {
            size: report.size,
            bytes_read: report.read_bytes + report.proof.as_ref().map_or(0, |p| p.bytes - p.hole_bytes),
            bytes_fetched: report.fetched_bytes,
            bytes_written: report.written_bytes,
            bytes_zeroed: report.zeroed_bytes,
            bytes_skipped: report.skipped_bytes,
            bytes_rest: report.rest_bytes,
            rest_zeroed: report.rest_zeroed,
            verified: report.proof.as_ref().is_some_and(|proof| proof.mismatches == 0),
            proof: report.proof.as_ref().map(Proof::of),
            zero_refusals: report.zero.refusals.clone(),
            lost: report.lost.iter().map(place).collect(),
            bytes_lost: report.lost.iter().map(|extent| extent.len).sum(),
            duration_ms: report.duration_ms,
            peak_rss_bytes: peak_rss_bytes(),
            engine: report.engine.as_ref().map(|choice| choice.kind.to_string()),
            engine_reason: report.engine.as_ref().map(|choice| choice.reason.clone()),
            storage: Some(storage),
            ..self
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let d = self;
        let delta = d.mode == "delta";
        let mut text = match d.dry_run {
            true => format!(
                "a {} restore of snapshot {} to {} would take\n",
                d.mode, d.snapshot_id, d.target
            ),
            false => format!(
                "restored snapshot {} to {}\n{} in {:.1} s ({}): ",
                d.snapshot_id,
                d.target,
                show_size(d.size),
                std::time::Duration::from_millis(d.duration_ms).as_secs_f64(),
                show_rate(d.size, d.duration_ms),
            ),
        };
        let mut parts = vec![
            format!("{} fetched", show_size(d.bytes_fetched)),
            format!("{} written", show_size(d.bytes_written)),
            format!("{} zeroed", show_size(d.bytes_zeroed)),
        ];
        if delta || d.bytes_skipped > 0 {
            parts.push(format!("{} left alone", show_size(d.bytes_skipped)));
        }
        if d.bytes_read > 0 {
            parts.push(format!("{} of the target read", show_size(d.bytes_read)));
        }
        let _ = writeln!(text, "{}", parts.join(", "));
        match d.bytes_rest {
            0 => {}
            rest if d.rest_zeroed => _ = writeln!(text, "{} behind the volume made zero", show_size(rest)),
            rest => _ = writeln!(text, "{} behind the volume left as they were", show_size(rest)),
        }
        if d.dry_run && delta && d.bytes_read > 0 {
            text.push_str("the target was read to find that out\n");
        }
        if d.dry_run && d.bytes_lost > 0 {
            let _ = writeln!(text, "{} are lost in the repository", show_size(d.bytes_lost));
        }
        for refusal in &d.zero_refusals {
            let _ = writeln!(text, "note: {refusal}");
        }
        if let Some(proof) = &d.proof {
            let way = match proof.direct {
                true => "past the page cache",
                false => "through the page cache, which the file system does not let us pass",
            };
            let _ = writeln!(
                text,
                "verified: {} blocks read back {way}, {} mismatches, root {}",
                proof.blocks, proof.mismatches, proof.root_object
            );
        }
        for place in &d.lost {
            let _ = writeln!(text, "lost: {} bytes at {}", place.length, place.offset);
        }
        text
    }
}

impl Proof {
    fn of(proof: &verify::Proof) -> Self {
        let mismatch = |m: &verify::Mismatch| Mismatch {
            offset: m.extent.offset,
            length: m.extent.len,
            content: m.content.to_string(),
        };
        Self {
            root_object: proof.root.to_string(),
            object_id: proof.object.to_string(),
            blocks: proof.blocks,
            bytes: proof.bytes,
            hole_bytes: proof.hole_bytes,
            mismatches: proof.mismatches,
            mismatch_extents: proof.extents.iter().map(mismatch).collect(),
            direct: proof.direct,
            duration_ms: proof.duration_ms,
        }
    }
}

/// What reading back found, as an error; `None` when all is well, or nothing was read back.
pub(crate) fn mismatches(report: &RestoreReport, target: &Path) -> Option<JobError> {
    let proof = report.proof.as_ref().filter(|proof| proof.mismatches > 0)?;
    let mut text = format!(
        "{}: {} pieces differ from the snapshot after the restore; the target is not usable. They are",
        target.display(),
        proof.mismatches
    );
    for m in proof.extents.iter().take(MISMATCHES_TOLD) {
        let _ = write!(
            text,
            "\n  at byte {}: {} bytes, content {}",
            m.extent.offset, m.extent.len, m.content
        );
    }
    if proof.mismatches > MISMATCHES_TOLD as u64 {
        text.push_str("\n  and others; --json names up to 1000");
    }
    Some(JobError::Damage(text))
}
