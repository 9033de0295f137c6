//! Verification: are all lists readable, all contents indexed, all packs present and long enough, and do contents
//! decrypt to what their ids say? What is damaged is told down to the bytes of the volumes that it hurts, and no damage
//! hides another.
//!
//! | pass | module | reads | takes |
//! |---|---|---|---|
//! | walk | `walk`, `visit`, `scan` | folders and lists of every snapshot | 1 bit for each row of the index |
//! | presence | `packs` | a listing of the packs | 100 bytes a pack |
//! | reading | `read` | a share of the contents, by ranges of packs | 8 bytes a content read, and the buffers |
//! | blame | `blame` | the lists again, when there is damage | what it tells |
//!
//! Another client may store, move and delete meanwhile: what is missing is looked up in a fresh index before it counts.

mod bits;
mod blame;
mod finding;
mod packs;
mod read;
mod salvage;
mod scan;
mod state;
mod visit;
mod walk;

use std::fmt;
use std::ops::Range;
use std::path::Path;

use blockio::{Cancel, Extent, Progress};

use crate::error::{Kind, RepoError, Result};
use crate::id::{BlobId, ContentId, ManifestId, ObjectId};
use crate::repository::Repository;
use crate::snapshot::Snapshot;

pub use finding::DamageKind;
pub use salvage::{Salvage, salvage};
pub use scan::ListScan;
pub use state::VerifyState;

/// Damages listed; past this many the repository is in a state that the list cannot help. The losses stay complete.
const DAMAGE_MAX: usize = 10_000;

/// Deepest folder.
const DEPTH_MAX: usize = 1024;

/// Most pieces of one object: 64 TiB in 1 MiB chunks, as in a block address table.
const PIECES_MAX: u64 = 64 << 20;

/// What to read.
#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions {
    /// Share of the contents that are read, decrypted and hashed, in percent. With 0 nothing but lists, index and the
    /// listing of the packs is read, with 100 everything, and with anything between a sample that is another each time.
    pub percent: f64,
    /// Threads.
    pub workers: usize,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Snapshots walked.
    pub snapshots: u64,
    /// Files, folders and links.
    pub objects: u64,
    /// Different contents.
    pub contents: u64,
    /// Contents read, those of an earlier part of the same verification included.
    pub contents_read: u64,
    /// Bytes read from packs for them.
    pub read_bytes: u64,
    /// What is damaged.
    pub damage: Vec<Damage>,
    /// Damages found and not listed, past the first 10,000.
    pub unlisted: u64,
    /// What no reader can have of which file, whatever the cause.
    pub losses: Vec<Loss>,
}

impl Report {
    /// Bytes of the image in `snapshot` that cannot be read, in order, merged. An empty extent at 0 stands for a file of
    /// which nothing is known.
    pub fn lost(&self, snapshot: ManifestId) -> Vec<Extent> {
        let of_it = self.losses.iter().filter(|loss| loss.snapshot == snapshot);
        of_it.flat_map(|loss| loss.extents.iter().copied()).collect()
    }
}

/// One damaged thing.
#[derive(Clone, Debug)]
pub struct Damage {
    /// What kind of thing, and how.
    pub kind: DamageKind,
    /// The same in words, with the names of things.
    pub what: String,
    /// The content, when it is one.
    pub content: Option<ContentId>,
    /// The object, when it is a list or folder.
    pub object: Option<ObjectId>,
    /// The pack it is in.
    pub pack: Option<BlobId>,
    /// Its bytes in the pack.
    pub range: Option<Range<u64>>,
    /// Whom it hurts. A content that no list uses hurts nobody.
    pub affected: Vec<Affected>,
}

/// The part of a file that a damage makes unreadable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affected {
    /// The snapshot.
    pub snapshot: ManifestId,
    /// The file in it; empty when the root of the snapshot is the file.
    pub path: String,
    /// Bytes of the file, in order, merged. An empty extent at 0 stands for all of it, and for a folder with all below.
    pub extents: Vec<Extent>,
}

/// What is lost of a file by all damages together; fields as in [`Affected`].
pub type Loss = Affected;

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(first) = self.affected.first() {
            write!(f, "snapshot {}{}", first.snapshot, first.path)?;
            match first.extents.first() {
                Some(extent) if !extent.is_empty() => write!(f, " at byte {}: ", extent.offset)?,
                _ => write!(f, ": ")?,
            }
        }
        f.write_str(&self.what)
    }
}

/// Verifies `snapshots`. Damage is reported, not an error; an error means that the look itself failed.
///
/// # Errors
/// When the storage cannot be read, `Unsupported` for what this version does not read, `Cancelled`.
pub fn verify(
    repository: &Repository,
    snapshots: &[Snapshot],
    options: &VerifyOptions,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<Report> {
    verify_with_state(repository, snapshots, options, None, cancel, progress)
}

/// [`verify`] that keeps in the file `state` how far it has read, every ten seconds and at an error, and goes on from it
/// when the file is there. Lists and the presence of packs are looked at anew. A verification that came to its end
/// removes the file.
///
/// # Errors
/// As [`verify`], and `InvalidInput` when the file is of another verification.
pub fn verify_with_state(
    repository: &Repository,
    snapshots: &[Snapshot],
    options: &VerifyOptions,
    state: Option<&Path>,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<Report> {
    repository.keep_permitted()?;
    repository.bypass_cache()?;
    let mut packs = packs::Packs::list(repository)?;
    let mut resume = state::Resume::open(state, repository, snapshots, options, packs.newest())?;
    let marks = walk::Marks::new(repository.index());
    let objects = walk::walk(repository, snapshots, &marks, options.workers, cancel)?;
    let moved = packs::check_packs(repository, &marks, &mut packs, cancel)?;
    let reading = read::Reading {
        repository,
        marks: &marks,
        packs: &packs,
        percent: options.percent,
        workers: options.workers,
        cancel,
        progress,
    };
    if let Err(e) = reading.run(&moved, &mut resume) {
        resume.save()?;
        return Err(e);
    }
    let (contents_read, read_bytes) = (resume.state.contents_read, resume.state.read_bytes);
    let mut report = Report {
        snapshots: snapshots.len() as u64,
        objects,
        contents: marks.used.count(),
        contents_read,
        read_bytes,
        ..Report::default()
    };
    if !marks.findings.is_empty() {
        let mut marks = marks;
        let (findings, unlisted) = std::mem::take(&mut marks.findings).into_parts();
        (report.damage, report.losses) = blame::blame(repository, snapshots, &marks, &findings, cancel)?;
        report.unlisted = unlisted;
    }
    resume.finish()?;
    Ok(report)
}

fn check(cancel: &Cancel) -> Result<()> {
    match cancel.is_cancelled() {
        true => Err(RepoError::new(Kind::Cancelled, "verification cancelled")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;
