//! Proof of a restore: reads a volume back and compares every piece with its content id.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use blockio::{Cancel, Device, EngineKind, Extent, OpenOptions, Progress};
use repo::{ContentId, Image, ObjectId, Repository};

use super::limit::Limiter;
use super::scan::{Scan, Verdict};
use crate::error::Result;

/// Mismatches kept; past this many the count alone says enough.
const MISMATCHES_MAX: usize = 1000;

/// A piece of the target that is not what the snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Where.
    pub extent: Extent,
    /// What should be there.
    pub content: ContentId,
}

/// What was compared with what, and what came of it.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The snapshot's root, from which everything else follows.
    pub root: ObjectId,
    /// The image whose ids were compared.
    pub object: ObjectId,
    /// Pieces compared: all of the volume.
    pub blocks: u64,
    /// Their bytes in the volume.
    pub bytes: u64,
    /// Of these, bytes that are holes by the word of the file system, which reading would not make truer.
    pub hole_bytes: u64,
    /// Pieces that differ.
    pub mismatches: u64,
    /// These, in order; a thousand at most.
    pub extents: Vec<Mismatch>,
    /// The bytes came from the device, not from the page cache.
    pub direct: bool,
    /// Wall time in milliseconds.
    pub duration_ms: u64,
}

/// How to read back.
pub struct Comparison<'a> {
    /// Worker threads.
    pub workers: usize,
    /// Way to the target.
    pub engine: EngineKind,
    /// Bytes a second read.
    pub limit: Option<u64>,
    /// Places of which it is known that they differ, and told elsewhere.
    pub known: &'a [Extent],
    /// Ends it.
    pub cancel: &'a Cancel,
    /// Counts what is compared as done.
    pub progress: &'a Progress,
}

/// Compares all of `target` with `image`. The writes before must have been synced.
pub fn prove(repository: &Repository, image: &Image, target: &Arc<Device>, how: &Comparison<'_>) -> Result<Proof> {
    let started = Instant::now();
    let device = past_the_cache(target)?;
    let found: Mutex<(u64, Vec<Mismatch>)> = Mutex::default();
    let scan = Scan {
        repository,
        image,
        device: &device,
        only: None,
        workers: how.workers,
        engine: how.engine,
        limiter: &Limiter::new(how.limit),
        cancel: how.cancel,
        stop: &Cancel::new(),
        faults: None,
    };
    let scanned = scan.run(&|piece, verdict| {
        let entry = image.table.entry(piece);
        let extent = Extent::between(entry.extent.offset, entry.extent.end().min(image.size));
        how.progress.add_done(extent.len);
        if verdict == Verdict::Differs && !how.known.iter().any(|known| known.contains(extent)) {
            let mut found = found.lock().expect("no panic while held");
            found.0 += 1;
            if found.1.len() < MISMATCHES_MAX {
                found.1.push(Mismatch {
                    extent,
                    content: entry.content,
                });
            }
        }
        Ok(())
    })?;
    let (mismatches, mut extents) = found.into_inner().expect("workers are done");
    extents.sort_by_key(|m| m.extent.offset);
    Ok(Proof {
        root: image.snapshot.root.as_ref().map_or(image.object, |root| root.object),
        object: image.object,
        blocks: scanned.pieces,
        bytes: scanned.bytes,
        hole_bytes: scanned.hole_bytes,
        mismatches,
        extents,
        direct: device.is_direct(),
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// [`prove`], for the mismatches alone.
pub fn compare(
    repository: &Repository,
    image: &Image,
    target: &Arc<Device>,
    workers: usize,
    engine: EngineKind,
    cancel: &Cancel,
) -> Result<Vec<Mismatch>> {
    let how = Comparison {
        workers,
        engine,
        limit: None,
        known: &[],
        cancel,
        progress: &Progress::new(),
    };
    Ok(prove(repository, image, target, &how)?.extents)
}

/// The same object for direct reading, where that is to be had and `target` is not open for it: what was just written is in
/// the page cache, and proves nothing about the medium.
fn past_the_cache(target: &Arc<Device>) -> Result<Arc<Device>> {
    if target.is_direct() {
        return Ok(target.clone());
    }
    let again = Device::open(target.path(), &OpenOptions::read())?;
    Ok(match again.id() == target.id() {
        true => Arc::new(again),
        false => target.clone(), // the path leads elsewhere by now
    })
}
