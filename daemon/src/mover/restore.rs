//! Restore of an image. In full: zero runs are zeroed, everything else is fetched in pack order, decrypted and written. By
//! delta: the target is read first, and only what differs is touched.
//!
//! A restore that was cut off at any point is finished by a delta restore: what it wrote is found equal.

mod delta;
mod estimate;
mod transfer;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use blockio::{BlockMap, CHUNK_SIZE, Cancel, Device, EngineChoice, EngineKind, Extent, Progress, ZeroReport, is_zero};
use repo::object::BlockAddressTable;
use repo::plan::ReadPlan;
use repo::{Image, Repository};

use super::limit::Limiter;
use super::verify::{self, Comparison, Proof};
use crate::error::{JobError, Result};
pub use estimate::{Estimate, estimate};
use transfer::Transfer;

/// Longest piece of an image that is restored, in bytes. Kopia's widest splitter makes 16 MiB.
const PIECE_LEN_MAX: u64 = 64 << 20;

/// How to restore.
pub struct RestoreOptions {
    /// What to write.
    pub scope: Scope,
    /// Worker threads.
    pub workers: usize,
    /// Way to the target.
    pub engine: EngineKind,
    /// Bytes a second read from the target, and written to it.
    pub limit: Option<u64>,
    /// Read the target back and compare every piece's id.
    pub verify: bool,
    /// Leave out what the repository has lost, and tell where that is, instead of ending at the first such place.
    pub salvage: bool,
    /// The target reads as zeros now (a file just created): zero runs need no work.
    pub target_is_zero: bool,
    /// Make zero what a larger target has behind the volume, instead of leaving it.
    pub zero_rest: bool,
    /// Have a device give back the blocks that become zero.
    pub discard: bool,
    /// Take a target that is smaller than the volume when all that does not fit is zero.
    pub allow_smaller: bool,
    /// Engine faults, for tests.
    pub faults: Option<blockio::FaultPlan>,
}

/// What of the target is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    Full,
    /// What differs from the snapshot.
    Delta {
        /// The chunks that may differ; nothing else is looked at. `None`: all.
        changed: Option<BlockMap>,
    },
}

/// What a restore did. All of it is on the target's medium.
#[derive(Clone, Debug)]
pub struct RestoreReport {
    /// Bytes restored: of the volume, or of as much of it as the target holds.
    pub size: u64,
    /// Bytes read from the target to compare them; holes of a file are not read.
    pub read_bytes: u64,
    /// Bytes fetched from packs.
    pub fetched_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes zeroed without writing data.
    pub zeroed_bytes: u64,
    /// Bytes left alone: equal ones, ones not to be looked at, and lost ones.
    pub skipped_bytes: u64,
    /// Bytes the target has behind the volume.
    pub rest_bytes: u64,
    /// They were made zero.
    pub rest_zeroed: bool,
    /// Places that could not be restored, in order; the target has there what it had before. Empty unless salvaging.
    pub lost: Vec<Extent>,
    /// How zeros were made.
    pub zero: ZeroReport,
    /// How the target was written; `None` when nothing had to be.
    pub engine: Option<EngineChoice>,
    /// What reading the target back showed, when asked for. It may show mismatches: then the target is of no use.
    pub proof: Option<Proof>,
    /// Wall time in milliseconds, of the proof too.
    pub duration_ms: u64,
}

/// True when every piece of `table` begins at a multiple of `align`, so that a target can be written past the page cache.
pub fn is_aligned(table: &BlockAddressTable, align: u64) -> bool {
    match table.uniform_len() {
        Some(len) => table.count() <= 1 || len.is_multiple_of(align),
        None => table.iter().all(|entry| entry.extent.offset.is_multiple_of(align)),
    }
}

/// Writes `image` to `target`.
///
/// # Errors
/// Also when the target is too small or the image not one that can be restored so; then nothing was written. That the proof
/// found mismatches is no error here.
pub fn restore(
    repository: &Repository,
    image: &Image,
    target: &Arc<Device>,
    options: &RestoreOptions,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<RestoreReport> {
    let started = Instant::now();
    let target_size = target.geometry().size;
    let fitted = fitted(repository, image, target, options.allow_smaller)?;
    let image = &*fitted;
    check_restorable(image, &options.scope)?;
    let rest = Extent::between(image.size, target_size);
    let zero_rest = options.zero_rest && !rest.is_empty();
    progress.add_total(image.size + if options.verify { image.size } else { 0 } + if zero_rest { rest.len } else { 0 });

    let limiter = Limiter::new(options.limit);
    let transfer = Transfer::new(repository, image, target, options, &limiter, (cancel, progress));
    let mut read_bytes = 0;
    match &options.scope {
        Scope::Full => full(&transfer)?,
        Scope::Delta { changed } => read_bytes = delta::run(&transfer, changed.as_ref())?,
    }
    let done = progress.snapshot();
    assert_eq!(done.done_bytes, image.size, "every byte of the volume is accounted for");
    if zero_rest {
        transfer.zero(rest)?;
    }
    target.sync()?;
    let (lost, engine, fetched_bytes) = transfer.outcome();
    let lost = merged(&image.table, image.size, lost);
    let proof = match options.verify {
        false => None,
        true => {
            let how = Comparison {
                workers: options.workers,
                engine: options.engine,
                limit: options.limit,
                known: &lost,
                cancel,
                progress,
            };
            Some(verify::prove(repository, image, target, &how)?)
        }
    };
    Ok(RestoreReport {
        size: image.size,
        read_bytes,
        fetched_bytes,
        written_bytes: done.new_bytes,
        zeroed_bytes: done.zero_bytes,
        skipped_bytes: done.unchanged_bytes + lost.iter().map(|extent| extent.len).sum::<u64>(),
        rest_bytes: rest.len,
        rest_zeroed: zero_rest,
        lost,
        zero: transfer.zeroer.report(),
        engine,
        proof,
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// Everything, from the lists.
fn full(transfer: &Transfer<'_>) -> Result<()> {
    let (repository, image) = (transfer.repository, transfer.image);
    let table = &image.table;
    let zeros = ZeroPieces::of(repository, table);
    let (plan, lost) = plan(transfer, in_volume(image).filter(|i| !zeros.has(*i)))?;
    transfer.lose(&lost);
    let zeros = merged(table, image.size, in_volume(image).filter(|i| zeros.has(*i)));
    transfer.run(&plan, &zeros)
}

/// The reads for `wanted`, and which of these the repository has lost; the first of them is an error unless salvaging.
fn plan(transfer: &Transfer<'_>, wanted: impl Iterator<Item = usize>) -> Result<(ReadPlan, Vec<usize>)> {
    let (repository, table) = (transfer.repository, &transfer.image.table);
    match transfer.options.salvage {
        true => Ok(ReadPlan::of_readable(repository, table, wanted)?),
        false => Ok((ReadPlan::new(repository, table, wanted)?, Vec::new())),
    }
}

/// Pieces with a byte in the volume; those behind them are padding.
fn in_volume(image: &Image) -> impl Iterator<Item = usize> + '_ {
    (0..image.table.count()).take_while(|i| image.table.entry(*i).extent.offset < image.size)
}

/// Which pieces are known to be zero by their id: chunks alone, whose zero content is computed once.
struct ZeroPieces<'a> {
    table: &'a BlockAddressTable,
    zero: Option<repo::ContentId>,
}

impl<'a> ZeroPieces<'a> {
    fn of(repository: &Repository, table: &'a BlockAddressTable) -> Self {
        Self {
            table,
            zero: (table.uniform_len() == Some(CHUNK_SIZE)).then(|| repository.zero_content()),
        }
    }

    fn has(&self, piece: usize) -> bool {
        self.zero.is_some_and(|zero| zero == self.table.content(piece))
    }
}

/// The places of `pieces` inside a volume of `size` bytes, in order, neighbours merged.
fn merged(table: &BlockAddressTable, size: u64, pieces: impl IntoIterator<Item = usize>) -> Vec<Extent> {
    let mut pieces: Vec<usize> = pieces.into_iter().collect();
    pieces.sort_unstable();
    pieces.dedup();
    let mut extents: Vec<Extent> = Vec::new();
    for at in pieces {
        let extent = table.entry(at).extent;
        let len = extent.len.min(size.saturating_sub(extent.offset));
        match extents.last_mut() {
            Some(last) if last.end() == extent.offset => last.len += len,
            _ => extents.push(Extent {
                offset: extent.offset,
                len,
            }),
        }
    }
    extents.retain(|extent| !extent.is_empty());
    extents
}

/// Refuses what this restore cannot do.
fn check_restorable(image: &Image, scope: &Scope) -> Result<()> {
    let longest = image.table.iter().map(|entry| entry.extent.len).max().unwrap_or(0);
    if longest > PIECE_LEN_MAX {
        return Err(JobError::Usage(format!(
            "the image has pieces of {longest} bytes; at most {PIECE_LEN_MAX} are restored"
        )));
    }
    if *scope != Scope::Full && image.table.has_compressed() {
        return Err(JobError::Usage(
            "the snapshot is of a repository of format version 1 with compressed pieces, whose ids are not those of their \
             bytes: the target cannot be compared with it without fetching everything; restore it with --mode full"
                .into(),
        ));
    }
    Ok(())
}

/// `image` as far as `target` holds it: all of it, or, when the rest is zero and that is allowed, less.
fn fitted<'a>(
    repository: &Repository,
    image: &'a Image,
    target: &Device,
    allow_smaller: bool,
) -> Result<Cow<'a, Image>> {
    let size = target.geometry().size;
    if size >= image.size {
        return Ok(Cow::Borrowed(image));
    }
    let refuse = |why: &str| {
        Err(JobError::Usage(format!(
            "{} has {size} bytes, the volume {}: the target is smaller{why}",
            target.path().display(),
            image.size,
        )))
    };
    if !allow_smaller {
        return refuse("; --allow-smaller restores what fits when the snapshot is zero behind that");
    }
    match first_data_behind(repository, image, size)? {
        Some(at) => refuse(&format!(", and the snapshot has data behind it, at byte {at}")),
        None => Ok(Cow::Owned(Image { size, ..image.clone() })),
    }
}

/// The first byte at or behind `start` that is not zero in the image.
fn first_data_behind(repository: &Repository, image: &Image, start: u64) -> Result<Option<u64>> {
    let zeros = ZeroPieces::of(repository, &image.table);
    for at in in_volume(image).skip_while(|at| image.table.entry(*at).extent.end() <= start) {
        if zeros.has(at) {
            continue;
        }
        let entry = image.table.entry(at);
        let bytes = repository.read_piece(&entry)?;
        let from = usize::try_from(start.saturating_sub(entry.extent.offset)).expect("inside a piece");
        if !is_zero(&bytes[from..]) {
            let ahead = bytes[from..].iter().take_while(|byte| **byte == 0).count();
            return Ok(Some(entry.extent.offset + (from + ahead) as u64));
        }
    }
    Ok(None)
}
