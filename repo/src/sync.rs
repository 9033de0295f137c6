//! Copies a repository, blob for blob, to a second store. No password is needed and none is asked for.
//!
//! The copy is at every moment, wherever it is cut off, either no repository yet (`kopia.repository` comes last) or a
//! repository whose every snapshot is whole: `order` tells why. The index is listed before the packs, so every blob that a
//! listed index blob refers to is in the listing or has been deleted since; in that case both are listed again.
//!
//! A blob is in sync when the copy has one of its length that is not older, as in `kopia repository sync-to`. Every pack
//! that was copied is found again in a fresh listing of the copy with its length, which costs one request for 1,000 blobs;
//! reading 1 TiB of packs back would cost another 1 TiB. All other blobs (below 0.1 % of a repository of 1 MiB contents)
//! are read back and compared, and with [`SyncOptions::verify`] so is everything.

mod order;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use blockio::{Cancel, Progress};
use bytes::Bytes;
use tracing::{info, warn};

use crate::blob::{BlobMeta, BlobStore};
use crate::error::{Kind, RepoError, Result};
use crate::format::{BLOBCFG_ID, FormatBlob, REPOSITORY_ID};
use crate::id::BlobId;
use order::Rank;

/// Looks at the source in one run. Each but the last found that maintenance had deleted something since it was listed;
/// maintenance deletes once a day or so, and each look copies only what came since the last.
const ROUNDS_MAX: usize = 5;

/// Bytes of blobs in memory at once: 12 packs of 20 MiB, as many as keep a link behind 50 ms busy. A larger blob goes alone.
const MEMORY_MAX: u64 = 256 << 20;

/// How to copy. There is no default for what deletes.
#[derive(Clone, Copy, Debug)]
pub struct SyncOptions {
    /// Blobs on their way at once.
    pub workers: usize,
    /// Delete from the copy what the source does not have any more.
    pub delete: bool,
    /// Read everything, copied now or earlier, from both sides and compare.
    pub verify: bool,
    /// Only look and tell.
    pub dry_run: bool,
}

/// Some blobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub blobs: u64,
    /// Their bytes together.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, len: u64) {
        self.blobs += 1;
        self.bytes += len;
    }

    fn of<'a>(blobs: impl IntoIterator<Item = &'a BlobMeta>) -> Self {
        let mut count = Self::default();
        blobs.into_iter().for_each(|blob| count.add(blob.len));
        count
    }
}

/// What was done, or in a dry run would be.
#[derive(Clone, Debug, Default)]
pub struct SyncReport {
    /// The place held no repository before.
    pub first: bool,
    /// Copied.
    pub copied: Count,
    /// In the copy already.
    pub in_sync: Count,
    /// In the copy and not in the source, and left there.
    pub extra: Count,
    /// Deleted from the copy.
    pub deleted: Count,
    /// Names of those to delete, in a dry run.
    pub to_delete: Vec<BlobId>,
    /// Read from both sides and found equal.
    pub compared: Count,
    /// Blobs whose bytes differ between the two sides.
    pub differing: Vec<BlobId>,
    /// Looks at the source; more than one when it was cleaned up meanwhile.
    pub rounds: usize,
}

/// Copies every blob of `source` that `target` lacks, has in another length, or has in an older version.
///
/// # Errors
/// `NotARepository` when there is none in `source`; `InvalidInput` when `target` is the same place, or holds something
/// else than a copy of this repository; `Corrupt` when a blob reads back other than it was stored; `Storage` when the
/// source changes faster than it is copied. What was copied stays and need not be copied again.
pub fn sync(
    source: &dyn BlobStore,
    target: &dyn BlobStore,
    options: &SyncOptions,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<SyncReport> {
    if source.place() == target.place() {
        let what = format!("{} cannot be copied onto itself", source.place());
        return Err(RepoError::new(Kind::InvalidInput, what));
    }
    let there = target.list("")?.into_iter().map(|blob| (blob.id.clone(), blob));
    let job = Job {
        source,
        target,
        options,
        cancel,
        progress,
        memory: Memory::default(),
        there: Mutex::new(there.collect()),
        report: Mutex::default(),
    };
    job.run()?;
    Ok(job.report.into_inner().expect("the workers are done"))
}

struct Job<'a> {
    source: &'a dyn BlobStore,
    target: &'a dyn BlobStore,
    options: &'a SyncOptions,
    cancel: &'a Cancel,
    progress: &'a Progress,
    memory: Memory,
    /// What is known to be in the target.
    there: Mutex<HashMap<BlobId, BlobMeta>>,
    report: Mutex<SyncReport>,
}

/// What the source holds. The index was listed before everything else.
struct Listing {
    index: Vec<BlobMeta>,
    rest: Vec<BlobMeta>,
}

impl Listing {
    fn read(source: &dyn BlobStore) -> Result<Self> {
        let mut index = Vec::new();
        for prefix in ["x", "n", "m", "l"] {
            index.extend(source.list(prefix)?);
        }
        index.sort_by_cached_key(|blob| (Rank::of(&blob.id), blob.modified, blob.id.clone()));
        let mut rest = source.list("")?;
        rest.retain(|blob| !Rank::of(&blob.id).is_index());
        if !rest.iter().any(|blob| blob.id.as_str() == REPOSITORY_ID) {
            let what = format!(
                "the listing of {} lacks {REPOSITORY_ID}, which can be read: it is out of date, or not all may be listed",
                source.place()
            );
            return Err(RepoError::new(Kind::Storage, what));
        }
        Ok(Self { index, rest })
    }

    fn all(&self) -> impl Iterator<Item = &BlobMeta> {
        self.index.iter().chain(&self.rest)
    }
}

impl Job<'_> {
    fn run(&self) -> Result<()> {
        let first = self.check_identity()?;
        let mut listing = Listing::read(self.source)?;
        let in_sync: Vec<BlobMeta> = listing.all().filter(|blob| !self.lacks(blob)).cloned().collect();
        let extra = self.extra(&listing);
        {
            let mut report = self.report.lock().expect("no panic while held");
            report.first = first;
            report.in_sync = Count::of(&in_sync);
            report.extra = Count::of(&extra);
            if self.options.dry_run {
                report.rounds = 1;
                report.copied = Count::of(listing.all().filter(|blob| self.lacks(blob)));
                if self.options.delete {
                    let disposable = extra.into_iter().filter(is_disposable);
                    report.to_delete = disposable.map(|blob| blob.id).collect();
                }
                return Ok(());
            }
        }
        let total = Count::of(listing.all().filter(|blob| self.lacks(blob)));
        self.progress.add_total(total.bytes);
        if first {
            // With it the place is known for this repository when the copy is cut short, and nobody creates another there.
            self.copy_ranks(&listing.rest, |rank| rank == Rank::Blobcfg, 1)?;
        }
        for round in 1.. {
            self.report.lock().expect("no panic while held").rounds = round;
            let packs = self.copy_ranks(&listing.rest, |rank| rank == Rank::Pack, self.options.workers)?;
            self.check_lengths(&listing)?;
            // Nobody reads a first copy, so that its index needs no order. The listed index may refer to a pack that
            // vanished, the one of the next listing does not.
            let workers = if first { self.options.workers } else { 1 };
            let index = match packs {
                0 => self.copy_ranks(&listing.index, |_| true, workers)?,
                _ => 0,
            };
            if packs + index == 0 {
                break;
            }
            if round == ROUNDS_MAX {
                let what = format!(
                    "{} is cleaned up faster than it is copied; run the copy again when its maintenance is done",
                    self.source.place()
                );
                return Err(RepoError::new(Kind::Storage, what));
            }
            info!(
                packs,
                index, "blobs vanished from the source since it was listed; looking again"
            );
            listing = Listing::read(self.source)?;
        }
        self.copy_ranks(&listing.rest, |rank| rank == Rank::Other, self.options.workers)?;
        for last in [Rank::Schedule, Rank::Blobcfg, Rank::Repository] {
            self.copy_ranks(&listing.rest, |rank| rank == last, 1)?;
        }
        if self.options.verify {
            self.compare(&in_sync)?;
        }
        if self.options.delete {
            self.delete(&listing)?;
        }
        Ok(())
    }

    /// Whether the target holds no repository yet. Refuses one that holds another, or something else.
    fn check_identity(&self) -> Result<bool> {
        let id = BlobId::known(REPOSITORY_ID);
        let read = |store: &dyn BlobStore| {
            let bytes = store.get(&id)?;
            FormatBlob::parse(&bytes).map_err(|e| e.context(store.place()))
        };
        let own = read(self.source).map_err(|e| match e.is_not_found() {
            true => RepoError::new(
                Kind::NotARepository,
                format!(
                    "no Kopia repository in {} (it has no {REPOSITORY_ID})",
                    self.source.place()
                ),
            )
            .because(e),
            false => e,
        })?;
        let refuse = |why: &str| {
            let what = format!(
                "{} {why}; give an empty place, or a copy of this repository",
                self.target.place()
            );
            Err(RepoError::new(Kind::InvalidInput, what))
        };
        match read(self.target) {
            Ok(other) if other.unique_id() == own.unique_id() => Ok(false),
            Ok(other) => refuse(&format!(
                "holds another repository ({})",
                hex::encode(other.unique_id())
            )),
            Err(e) if !e.is_not_found() => Err(e),
            Err(_) if self.is_begun_copy()? => Ok(true),
            Err(_) => refuse("holds something else"),
        }
    }

    /// Whether what is in the target without `kopia.repository` is nothing, or a copy of the source that was cut short.
    fn is_begun_copy(&self) -> Result<bool> {
        let there = self.there.lock().expect("no panic while held");
        if there.is_empty() {
            return Ok(true);
        }
        // Sealed under a random nonce: equal bytes have one origin.
        let blobcfg = BlobId::known(BLOBCFG_ID);
        if there.contains_key(&blobcfg) {
            match self.source.get(&blobcfg) {
                Ok(bytes) if bytes == self.target.get(&blobcfg)? => return Ok(true),
                Err(e) if !e.is_not_found() => return Err(e),
                _ => {}
            }
        }
        // The source has none, or its password was changed since. Names are random, so shared ones tell as much.
        let source = self.source.list("")?;
        let shared = source.iter().filter(|blob| {
            let random = matches!(Rank::of(&blob.id), Rank::Pack | Rank::Index(..));
            random && there.get(&blob.id).is_some_and(|other| other.len == blob.len)
        });
        Ok(2 * shared.count() > there.len())
    }

    /// The target lacks `blob`, or has it in another length or an older version.
    fn lacks(&self, blob: &BlobMeta) -> bool {
        let there = self.there.lock().expect("no panic while held");
        there
            .get(&blob.id)
            .is_none_or(|other| other.len != blob.len || other.modified < blob.modified)
    }

    /// Blobs of the target that the source does not have.
    fn extra(&self, listing: &Listing) -> Vec<BlobMeta> {
        let source: std::collections::HashSet<&BlobId> = listing.all().map(|blob| &blob.id).collect();
        let there = self.there.lock().expect("no panic while held");
        let mut extra: Vec<BlobMeta> = there
            .values()
            .filter(|blob| !source.contains(&blob.id))
            .cloned()
            .collect();
        extra.sort_by(|a, b| a.id.cmp(&b.id));
        extra
    }

    /// Copies those of `blobs` that are `wanted` and that the target lacks, begun in their order, and makes them durable.
    /// Returns how many vanished from the source since they were listed.
    fn copy_ranks(&self, blobs: &[BlobMeta], wanted: impl Fn(Rank) -> bool, workers: usize) -> Result<usize> {
        let lacking = |blob: &&BlobMeta| wanted(Rank::of(&blob.id)) && self.lacks(blob);
        let blobs: Vec<&BlobMeta> = blobs.iter().filter(lacking).collect();
        let vanished = AtomicUsize::new(0);
        self.each(&blobs, workers, |blob| {
            // What follows a vanished index blob may refer to what it told of.
            let stop = Rank::of(&blob.id).is_index() && vanished.load(Ordering::Relaxed) > 0;
            if !stop && !self.copy(blob)? {
                vanished.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })?;
        if !blobs.is_empty() {
            self.target.sync()?;
        }
        Ok(vanished.into_inner())
    }

    /// Copies one blob; false when it is gone.
    fn copy(&self, blob: &BlobMeta) -> Result<bool> {
        let _room = self.memory.take(blob.len);
        let bytes = match self.source.get(&blob.id) {
            Ok(bytes) => Bytes::from(bytes),
            Err(e) if e.is_not_found() => return Ok(false),
            Err(e) => return Err(e),
        };
        let rank = Rank::of(&blob.id);
        // The blobs named kopia.* are rewritten in place, all others have one length for ever.
        if bytes.len() as u64 != blob.len && rank < Rank::Schedule {
            let what = format!(
                "blob {} of {} has {} bytes where {} are listed; it is not copied",
                blob.id,
                self.source.place(),
                bytes.len(),
                blob.len
            );
            return Err(RepoError::corrupt(what));
        }
        self.target.put_shared(&blob.id, bytes.clone(), None)?;
        if rank != Rank::Pack || self.options.verify {
            if self.target.get(&blob.id)? != bytes {
                let what = format!(
                    "blob {} reads back from {} other than it was stored",
                    blob.id,
                    self.target.place()
                );
                return Err(RepoError::corrupt(what));
            }
            self.report.lock().expect("no panic while held").compared.add(blob.len);
        }
        self.progress.add_done(blob.len);
        self.progress.add_new(blob.len);
        self.there
            .lock()
            .expect("no panic while held")
            .insert(blob.id.clone(), blob.clone());
        self.report.lock().expect("no panic while held").copied.add(blob.len);
        Ok(true)
    }

    /// Finds every pack that this run believes to be in the target in a fresh listing of it, at its length: before an
    /// index blob refers to it.
    fn check_lengths(&self, listing: &Listing) -> Result<()> {
        let mut lengths = HashMap::new();
        for prefix in ["p", "q"] {
            lengths.extend(self.target.list(prefix)?.into_iter().map(|blob| (blob.id, blob.len)));
        }
        let packs = listing.rest.iter().filter(|blob| Rank::of(&blob.id) == Rank::Pack);
        for blob in packs.filter(|blob| !self.lacks(blob)) {
            let len = match lengths.get(&blob.id) {
                Some(len) => *len,
                None => self.target.meta(&blob.id)?.len, // a listing may be late
            };
            if len != blob.len {
                let what = format!(
                    "pack {} has {len} bytes in {} and {} in {}",
                    blob.id,
                    self.target.place(),
                    blob.len,
                    self.source.place()
                );
                return Err(RepoError::corrupt(what));
            }
        }
        Ok(())
    }

    /// Reads `blobs` from both sides.
    fn compare(&self, blobs: &[BlobMeta]) -> Result<()> {
        self.progress.add_total(Count::of(blobs).bytes);
        let blobs: Vec<&BlobMeta> = blobs.iter().collect();
        self.each(&blobs, self.options.workers, |blob| {
            let _room = self.memory.take(2 * blob.len);
            let source = match self.source.get(&blob.id) {
                Err(e) if e.is_not_found() => return Ok(()),
                other => other?,
            };
            let equal = source == self.target.get(&blob.id)?;
            let mut report = self.report.lock().expect("no panic while held");
            match equal {
                true => report.compared.add(blob.len),
                false => report.differing.push(blob.id.clone()),
            }
            self.progress.add_done(blob.len);
            Ok(())
        })?;
        self.report.lock().expect("no panic while held").differing.sort();
        Ok(())
    }

    /// Deletes what the source does not have: what refers before what is referred to.
    fn delete(&self, listing: &Listing) -> Result<()> {
        let mut extra: Vec<BlobMeta> = self.extra(listing).into_iter().filter(is_disposable).collect();
        extra.sort_by_key(|blob| std::cmp::Reverse(Rank::of(&blob.id)));
        let (packs, others): (Vec<_>, Vec<_>) = extra.iter().partition(|blob| Rank::of(&blob.id) == Rank::Pack);
        for (blobs, workers) in [(others, 1), (packs, self.options.workers)] {
            self.each(&blobs, workers, |blob| {
                // The listing may be late; the blob itself is not.
                match self.source.meta(&blob.id) {
                    Err(e) if e.is_not_found() => {}
                    Err(e) => return Err(e),
                    Ok(_) => {
                        warn!(blob = %blob.id, "not deleted from the copy: the source lists it not, but has it");
                        return Ok(());
                    }
                }
                self.target.delete(&blob.id)?;
                let mut report = self.report.lock().expect("no panic while held");
                report.deleted.add(blob.len);
                report.extra.blobs -= 1;
                report.extra.bytes -= blob.len;
                Ok(())
            })?;
            self.target.sync()?;
        }
        Ok(())
    }

    /// Calls `work` with each of `blobs`, begun in their order, on `workers` threads, until the first error.
    fn each(&self, blobs: &[&BlobMeta], workers: usize, work: impl Fn(&BlobMeta) -> Result<()> + Sync) -> Result<()> {
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let run = || {
            while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if self.cancel.is_cancelled() {
                    return Err(RepoError::new(
                        Kind::Cancelled,
                        "copy cancelled; what is copied need not be copied again",
                    ));
                }
                if failed.load(Ordering::Relaxed) {
                    break;
                }
                work(blob).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            }
            Ok(())
        };
        if workers <= 1 {
            return run();
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers.min(blobs.len())).map(|_| scope.spawn(run)).collect();
            let results: Vec<Result<()>> = threads
                .into_iter()
                .map(|t| {
                    t.join()
                        .unwrap_or_else(|_| Err(RepoError::new(Kind::Storage, "a copying thread panicked")))
                })
                .collect();
            results.into_iter().collect()
        })
    }
}

fn is_disposable(blob: &BlobMeta) -> bool {
    Rank::of(&blob.id).is_disposable(&blob.id)
}

/// Bytes in memory, shared by all workers.
#[derive(Default)]
struct Memory {
    used: Mutex<u64>,
    freed: Condvar,
}

/// Memory taken; given back when dropped.
struct Room<'a> {
    memory: &'a Memory,
    len: u64,
}

impl Memory {
    /// Waits until `len` bytes may be taken. More than there is at all counts as all of it.
    fn take(&self, len: u64) -> Room<'_> {
        let len = len.min(MEMORY_MAX);
        let used = self.used.lock().expect("no panic while held");
        let mut used = self
            .freed
            .wait_while(used, |used| *used + len > MEMORY_MAX)
            .expect("no panic while held");
        *used += len;
        Room { memory: self, len }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        *self.memory.used.lock().expect("no panic while held") -= self.len;
        self.memory.freed.notify_all();
    }
}

#[cfg(test)]
mod tests;
