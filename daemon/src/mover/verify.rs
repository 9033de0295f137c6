//! Proof of a restore: reads a volume back and compares every piece with its content id.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use blockio::{BlockSource, BufPool, Cancel, Device, Engine, EngineKind, EngineOptions, Extent, OpKind, Request};
use repo::{ContentId, Image, Repository};

use crate::error::{JobError, Result, first_error};

/// Mismatches kept; past this many the count alone says enough.
const MISMATCHES_MAX: usize = 1000;

/// Pieces one worker reads at once.
const READS: usize = 16;

/// A piece of the target that is not what the snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Where.
    pub extent: Extent,
    /// What should be there.
    pub content: ContentId,
}

/// Compares `target` with `image`, piece by piece. Bytes past the volume's size count as zeros, as in the image.
pub fn compare(
    repository: &Repository,
    image: &Image,
    target: &Arc<Device>,
    workers: usize,
    engine: EngineKind,
    cancel: &Cancel,
) -> Result<Vec<Mismatch>> {
    let job = Job {
        repository,
        image,
        target,
        engine,
        cancel,
        next: AtomicUsize::new(0),
        found: Mutex::default(),
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers.max(1)).map(|_| scope.spawn(|| job.work())).collect();
        first_error(threads.into_iter().map(std::thread::ScopedJoinHandle::join))
    })?;
    let mut found = job.found.into_inner().expect("workers are done");
    found.sort_by_key(|m| m.extent.offset);
    Ok(found)
}

struct Job<'a> {
    repository: &'a Repository,
    image: &'a Image,
    target: &'a Arc<Device>,
    engine: EngineKind,
    cancel: &'a Cancel,
    next: AtomicUsize,
    found: Mutex<Vec<Mismatch>>,
}

impl Job<'_> {
    fn work(&self) -> Result<()> {
        let table = &self.image.table;
        let align = u64::from(self.target.geometry().offset_align);
        let direct = table.uniform_len().is_some_and(|len| len.is_multiple_of(align)) && !table.has_compressed();
        if !direct {
            return self.work_unaligned();
        }
        let len = usize::try_from(table.uniform_len().unwrap_or(0)).expect("a piece fits memory");
        let slot = len.next_multiple_of(4096).max(4096);
        let pool = BufPool::new(slot, READS.min((64 << 20) / slot).max(1))?;
        let options = EngineOptions {
            kind: self.engine,
            ..EngineOptions::default()
        };
        let mut engine = Engine::open(std::slice::from_ref(self.target), std::slice::from_ref(&pool), &options)?;
        let mut completions = Vec::new();
        loop {
            if self.cancel.is_cancelled() {
                return Err(JobError::Cancelled);
            }
            while pool.free() > 0 {
                let at = self.next.fetch_add(1, Ordering::Relaxed);
                if at >= table.count() {
                    break;
                }
                let Some(buf) = pool.try_take() else { break };
                let request = Request {
                    device: 0,
                    kind: OpKind::Read,
                    offset: table.entry(at).extent.offset,
                    len,
                    buf: Some(buf),
                    tag: at as u64,
                };
                engine
                    .push(request)
                    .map_err(|_| JobError::Panic("a ring with fewer entries than buffers".into()))?;
            }
            if engine.in_flight() == 0 {
                return Ok(());
            }
            engine.submit()?;
            engine.wait(engine.in_flight().min(pool.slots()), &mut completions)?;
            let mut read = Vec::with_capacity(completions.len());
            for completion in completions.drain(..) {
                completion.result?;
                let buf = completion
                    .buf
                    .ok_or_else(|| JobError::Panic("a read came back without its buffer".into()))?;
                read.push((usize::try_from(completion.tag).expect("a piece number"), buf));
            }
            for (at, buf) in &mut read {
                self.clear_past_end(*at, &mut buf[..len]);
            }
            let pieces: Vec<&[u8]> = read
                .iter()
                .map(|(at, buf)| &buf[..usize::try_from(table.entry(*at).extent.len).unwrap_or(0)])
                .collect();
            let mut digests = Vec::with_capacity(pieces.len());
            self.repository.contents().hasher().hash_many(&pieces, &mut digests);
            for ((at, _), digest) in read.iter().zip(&digests) {
                self.check(*at, digest.as_slice());
            }
        }
    }

    /// Pieces of any length at any place, one at a time through the page cache.
    fn work_unaligned(&self) -> Result<()> {
        let table = &self.image.table;
        let mut buf = Vec::new();
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            if at >= table.count() {
                return Ok(());
            }
            if self.cancel.is_cancelled() {
                return Err(JobError::Cancelled);
            }
            let extent = table.entry(at).extent;
            buf.resize(usize::try_from(extent.len).expect("a piece fits memory"), 0);
            let inside = extent
                .len
                .min(self.target.geometry().size.saturating_sub(extent.offset));
            self.target
                .read_at(extent.offset, &mut buf[..usize::try_from(inside).unwrap_or(0)])?;
            self.clear_past_end(at, &mut buf);
            if table.is_compressed(at) {
                // The id is that of the stream: only the piece itself can be compared.
                let piece = self.repository.read_piece(&table.entry(at))?;
                if piece != buf {
                    self.found(at);
                }
                continue;
            }
            let digest = self.repository.contents().hasher().hash(&buf);
            self.check(at, digest.as_slice());
        }
    }

    /// What lies behind the volume on a larger target is not part of it; the image is padded with zeros there.
    fn clear_past_end(&self, at: usize, piece: &mut [u8]) {
        let offset = self.image.table.entry(at).extent.offset;
        let inside = usize::try_from(self.image.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        if let Some(past) = piece.get_mut(inside..) {
            past.fill(0);
        }
    }

    fn check(&self, at: usize, hash: &[u8]) {
        if self.image.table.content(at).hash() != hash {
            self.found(at);
        }
    }

    fn found(&self, at: usize) {
        let entry = self.image.table.entry(at);
        let mut found = self.found.lock().expect("no panic while held");
        if found.len() < MISMATCHES_MAX {
            found.push(Mismatch {
                extent: entry.extent,
                content: entry.content,
            });
        }
    }
}
