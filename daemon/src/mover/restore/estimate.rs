//! What a restore would do, without doing it.

use std::sync::Arc;

use blockio::{Cancel, Device, Extent, Progress};
use repo::plan::ReadPlan;
use repo::{Image, Repository};

use super::{RestoreOptions, Scope, ZeroPieces, check_restorable, delta, fitted, in_volume, merged};
use crate::error::Result;
use crate::mover::limit::Limiter;
use crate::mover::scan::Scan;

/// What a restore would do. Sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Of the volume, or of as much of it as the target holds.
    pub size: u64,
    /// Read from the target: before the restore by delta, and after it to verify.
    pub read_bytes: u64,
    /// Fetched from the repository.
    pub fetched_bytes: u64,
    /// Reads of the repository's packs.
    pub fetches: u64,
    /// Written.
    pub written_bytes: u64,
    /// Zeroed, without data being written.
    pub zeroed_bytes: u64,
    /// Left alone.
    pub skipped_bytes: u64,
    /// What the repository has lost of it.
    pub lost_bytes: u64,
    /// Behind the volume on the target.
    pub rest_bytes: u64,
}

/// Finds out what `restore` would do. Nothing is written. A delta restore has to read the target for that; a full one is
/// told from lists and index alone, and its target need not be there.
pub fn estimate(
    repository: &Repository,
    image: &Image,
    target: Option<&Arc<Device>>,
    options: &RestoreOptions,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<Estimate> {
    let fitted = match target {
        // A file is made as long as it has to be.
        Some(target) if target.is_block_device() => fitted(repository, image, target, options.allow_smaller)?,
        _ => std::borrow::Cow::Borrowed(image),
    };
    let image = &*fitted;
    check_restorable(image, &options.scope)?;
    let size = image.size;
    let inside = |extent: Extent| extent.len.min(size.saturating_sub(extent.offset));
    let mut estimate = Estimate {
        size,
        rest_bytes: target.map_or(0, |target| target.geometry().size.saturating_sub(size)),
        ..Estimate::default()
    };
    let wanted: Vec<usize> = match (&options.scope, target) {
        (Scope::Delta { changed }, Some(target)) => {
            progress.add_total(size);
            let scan = Scan {
                repository,
                image,
                device: target,
                only: changed.as_ref(),
                workers: options.workers,
                engine: options.engine,
                limiter: &Limiter::new(options.limit),
                cancel,
                stop: &Cancel::new(),
                faults: options.faults.clone(),
            };
            let differing = delta::differing(&scan)?;
            progress.add_done(size);
            estimate.read_bytes = differing.read_bytes;
            differing.pieces
        }
        _ => in_volume(image).collect(),
    };
    let zeros = ZeroPieces::of(repository, &image.table);
    let (zero, data): (Vec<usize>, Vec<usize>) = wanted.into_iter().partition(|piece| zeros.has(*piece));
    let (plan, lost) = ReadPlan::of_readable(repository, &image.table, data.iter().copied())?;
    let bytes = |pieces: &[usize]| -> u64 { pieces.iter().map(|at| inside(image.table.entry(*at).extent)).sum() };
    estimate.fetched_bytes = plan.fetch_bytes();
    estimate.fetches = plan.len() as u64;
    estimate.lost_bytes = bytes(&lost);
    estimate.written_bytes = bytes(&data) - estimate.lost_bytes;
    estimate.zeroed_bytes = merged(&image.table, size, zero).iter().map(|extent| extent.len).sum();
    estimate.skipped_bytes = size - estimate.written_bytes - estimate.zeroed_bytes - estimate.lost_bytes;
    if options.verify {
        estimate.read_bytes += size;
    }
    if options.zero_rest {
        estimate.zeroed_bytes += estimate.rest_bytes;
    }
    Ok(estimate)
}
