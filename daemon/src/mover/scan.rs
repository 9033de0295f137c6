//! Reads a device at the places of an image's pieces, and tells which of them hold what the image says.
//!
//! Each worker keeps its buffers on their way from the device, and hashes what is there in lanes while the next are read.
//! Zeros are told by looking: a piece that should be zero is not hashed, and neither is one that should not and is. What a
//! file system says to be a hole is zero without being read. What lies behind the volume counts as zeros, as in the image.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use blockio::{
    BlockBuf, BlockMap, BufPool, CHUNK_SIZE, Cancel, ChunkIndex, Completion, Device, Engine, EngineKind, EngineOptions,
    Extent, FaultPlan, OpKind, Request, is_zero,
};
use repo::crypto::Digest;
use repo::{ContentId, Image, Repository};

use super::limit::Limiter;
use crate::error::{JobError, Result, first_error};

/// Pieces of 1 MiB that one worker has read or reads: 8 being hashed, 16 on the way, as in a backup.
const SLOTS: usize = 24;

/// Buffers of one worker when pieces are longer: as much as 16 of the 4 MiB pieces of Velero's file uploader.
const SLOT_BYTES_MAX: usize = 64 << 20;

/// What a place of the device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// What the image says.
    Equal,
    /// Something else.
    Differs,
}

/// What to compare with what, and how.
pub(super) struct Scan<'a> {
    pub(super) repository: &'a Repository,
    pub(super) image: &'a Image,
    pub(super) device: &'a Arc<Device>,
    /// Only pieces with a byte in one of these chunks.
    pub(super) only: Option<&'a BlockMap>,
    pub(super) workers: usize,
    pub(super) engine: EngineKind,
    pub(super) limiter: &'a Limiter,
    pub(super) cancel: &'a Cancel,
    /// Ends the scan from another side of the job, and is set by it when it fails.
    pub(super) stop: &'a Cancel,
    pub(super) faults: Option<FaultPlan>,
}

/// What a scan did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Pieces compared.
    pub(super) pieces: u64,
    /// Their bytes in the volume.
    pub(super) bytes: u64,
    /// Of these, bytes in holes of the file.
    pub(super) hole_bytes: u64,
}

/// Takes a verdict; called by every worker.
pub(super) type Judge<'a> = dyn Fn(usize, Verdict) -> Result<()> + Sync + 'a;

struct Job<'a> {
    scan: &'a Scan<'a>,
    judge: &'a Judge<'a>,
    next: AtomicUsize,
    /// Id of a zero piece, when all are chunks.
    zero: Option<ContentId>,
    /// Chunks of the device that are no holes.
    data: Option<BlockMap>,
    longest: usize,
    align: u64,
    pieces: AtomicU64,
    bytes: AtomicU64,
    hole_bytes: AtomicU64,
}

/// A piece that was read.
struct Read {
    piece: usize,
    buf: BlockBuf,
    /// Where in `buf` it begins.
    start: usize,
}

impl Scan<'_> {
    /// Compares, and calls `judge` once for every piece that is in the volume and meant.
    pub(super) fn run(&self, judge: &Judge<'_>) -> Result<Scanned> {
        let table = &self.image.table;
        let longest = table.iter().map(|entry| entry.extent.len).max().unwrap_or(0);
        let is_chunks = table.uniform_len() == Some(CHUNK_SIZE) && !table.has_compressed();
        let job = Job {
            scan: self,
            judge,
            next: AtomicUsize::new(0),
            zero: is_chunks.then(|| self.repository.zero_content()),
            data: match is_chunks && !self.device.is_block_device() {
                true => Some(self.data_chunks()?),
                false => None,
            },
            longest: usize::try_from(longest).map_err(|_| JobError::Usage("a piece larger than memory".into()))?,
            align: u64::from(self.device.geometry().offset_align),
            pieces: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            hole_bytes: AtomicU64::new(0),
        };
        std::thread::scope(|scope| {
            let work = || {
                let result = job.work();
                if result.is_err() {
                    self.stop.cancel();
                }
                result
            };
            let threads: Vec<_> = (0..self.workers.max(1)).map(|_| scope.spawn(work)).collect();
            first_error(threads.into_iter().map(std::thread::ScopedJoinHandle::join))
        })?;
        Ok(Scanned {
            pieces: job.pieces.into_inner(),
            bytes: job.bytes.into_inner(),
            hole_bytes: job.hole_bytes.into_inner(),
        })
    }

    /// Whether piece `at` is to be compared.
    pub(super) fn means(&self, at: usize) -> bool {
        let extent = self.image.table.entry(at).extent;
        let last = ChunkIndex::of(extent.end().saturating_sub(1));
        extent.offset < self.image.size
            && self.only.is_none_or(|only| {
                let hit = only.next_set(ChunkIndex::of(extent.offset));
                hit.is_some_and(|chunk| chunk <= last)
            })
    }

    /// Chunks of a file that may hold data. What lies behind its end does not.
    fn data_chunks(&self) -> Result<BlockMap> {
        let geometry = self.device.geometry();
        let mut map = BlockMap::new(geometry.chunks());
        for extent in self.device.allocated_extents(geometry.extent())? {
            map.set_extent(extent).map_err(|e| JobError::Panic(e.to_string()))?;
        }
        Ok(map)
    }
}

impl Job<'_> {
    fn work(&self) -> Result<()> {
        let scan = self.scan;
        // A piece that begins anywhere is read with what is around it.
        let slot = (self.longest + 2 * usize::try_from(self.align).expect("4096 at most")).next_multiple_of(4096);
        let slots = (SLOT_BYTES_MAX / slot).clamp(2, SLOTS);
        let pool = BufPool::new(slot, slots)?;
        let options = EngineOptions {
            kind: scan.engine,
            faults: scan.faults.clone(),
            ..EngineOptions::default()
        };
        let mut engine = Engine::open(std::slice::from_ref(scan.device), std::slice::from_ref(&pool), &options)?;
        // Half of the buffers at most wait for others to be hashed with, so that there is always a read on its way.
        let lanes = scan.repository.contents().hasher().lanes().clamp(1, slots / 2);
        let mut waiting: Vec<Read> = Vec::new();
        let mut completions = Vec::new();
        let mut digests = Vec::new();
        loop {
            if scan.cancel.is_cancelled() || scan.stop.is_cancelled() {
                return Err(JobError::Cancelled);
            }
            self.read_ahead(&mut engine, &pool)?;
            if engine.in_flight() == 0 {
                break;
            }
            engine.wait(1, &mut completions)?;
            for completion in completions.drain(..) {
                let read = self.finished(completion)?;
                if let Some(read) = self.judge_by_zeros(read)? {
                    waiting.push(read);
                }
            }
            while waiting.len() >= lanes {
                self.judge_by_hash(&waiting[..lanes], &mut digests)?;
                waiting.drain(..lanes);
            }
        }
        self.judge_by_hash(&waiting, &mut digests)
    }

    /// Queues reads for all free buffers.
    fn read_ahead(&self, engine: &mut Engine, pool: &BufPool) -> Result<()> {
        while pool.free() > 0 {
            let Some(piece) = self.take()? else { break };
            let wanted = self.inside(piece);
            let around = wanted.align_outwards(self.align).expect("a volume ends below 2^63");
            self.scan.limiter.take(wanted.len, self.scan.cancel)?;
            let request = Request {
                device: 0,
                kind: OpKind::Read,
                offset: around.offset,
                len: around.bytes(),
                buf: Some(pool.try_take().expect("the pool is this worker's own")),
                tag: piece as u64,
            };
            engine
                .push(request)
                .map_err(|_| JobError::Panic("a ring with fewer entries than buffers".into()))?;
        }
        engine.submit()?;
        Ok(())
    }

    /// The next piece that has to be read; those in holes are judged on the way.
    fn take(&self) -> Result<Option<usize>> {
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= self.scan.image.table.count() {
                return Ok(None);
            }
            if !self.scan.means(piece) {
                continue;
            }
            let inside = self.inside(piece);
            if !self.is_hole(piece, inside) {
                return Ok(Some(piece));
            }
            self.hole_bytes.fetch_add(inside.len, Ordering::Relaxed);
            let should_be_zero = self
                .zero
                .is_some_and(|zero| zero == self.scan.image.table.content(piece));
            self.tell(piece, should_be_zero)?;
        }
    }

    /// Whether the bytes read as zeros because there are none. A file that is shorter than the volume ends in such. The id of
    /// zeros is known of whole chunks only.
    fn is_hole(&self, piece: usize, place: Extent) -> bool {
        match &self.data {
            Some(data) if self.scan.image.table.entry(piece).extent.len == CHUNK_SIZE => {
                !place.chunks().any(|chunk| data.get(chunk))
            }
            _ => place.offset >= self.scan.device.geometry().size,
        }
    }

    /// The bytes of a piece that are in the volume.
    fn inside(&self, piece: usize) -> Extent {
        let extent = self.scan.image.table.entry(piece).extent;
        Extent::between(extent.offset, extent.end().min(self.scan.image.size))
    }

    fn finished(&self, completion: Completion) -> Result<Read> {
        completion.result?;
        let piece = usize::try_from(completion.tag).expect("a piece number");
        let mut buf = completion
            .buf
            .ok_or_else(|| JobError::Panic("a read came back without its buffer".into()))?;
        let extent = self.scan.image.table.entry(piece).extent;
        let start = usize::try_from(extent.offset - completion.offset).expect("less than an alignment");
        buf[start + self.inside(piece).bytes()..start + extent.bytes()].fill(0);
        Ok(Read { piece, buf, start })
    }

    /// Judges what can be without hashing; else gives it back.
    fn judge_by_zeros(&self, read: Read) -> Result<Option<Read>> {
        let table = &self.scan.image.table;
        if table.is_compressed(read.piece) {
            // The id is that of the stream: only the piece itself can be compared.
            let piece = self.scan.repository.read_piece(&table.entry(read.piece))?;
            self.tell(read.piece, piece == self.bytes_of(&read))?;
            return Ok(None);
        }
        let Some(zero) = &self.zero else {
            return Ok(Some(read));
        };
        // The last piece may be shorter than the content its id is compared with.
        if self.bytes_of(&read).len() as u64 != CHUNK_SIZE {
            return Ok(Some(read));
        }
        let (is, should_be) = (is_zero(self.bytes_of(&read)), table.content(read.piece) == *zero);
        if !is && !should_be {
            return Ok(Some(read));
        }
        self.tell(read.piece, is == should_be)?;
        Ok(None)
    }

    fn judge_by_hash(&self, reads: &[Read], digests: &mut Vec<Digest>) -> Result<()> {
        let pieces: Vec<&[u8]> = reads.iter().map(|read| self.bytes_of(read)).collect();
        let hasher = self.scan.repository.contents().hasher();
        hasher.hash_many(&pieces, digests);
        for (read, digest) in reads.iter().zip(&*digests) {
            let wanted = self.scan.image.table.content(read.piece);
            self.tell(read.piece, wanted.hash() == digest.as_slice())?;
        }
        Ok(())
    }

    fn bytes_of<'b>(&self, read: &'b Read) -> &'b [u8] {
        let len = self.scan.image.table.entry(read.piece).extent.bytes();
        &read.buf[read.start..read.start + len]
    }

    fn tell(&self, piece: usize, equal: bool) -> Result<()> {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(self.inside(piece).len, Ordering::Relaxed);
        (self.judge)(piece, if equal { Verdict::Equal } else { Verdict::Differs })
    }
}
