//! Volumes that fail, and volumes that wait.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use blockio::{BlockError, BlockSink, BlockSource, Extent, ExtentKind, Geometry, Kind, Op};
use nbd::MemSource;

/// A volume in memory with blocks of some size. Reads at and behind `broken` fail; while the gate is shut, reads of the first
/// chunk and flushes wait.
pub(super) struct Moody {
    inner: MemSource,
    block: u32,
    broken: u64,
    full: AtomicBool,
    shut: Mutex<bool>,
    changed: Condvar,
    pub(super) waiting: AtomicUsize,
    pub(super) flushes: AtomicUsize,
}

impl Moody {
    pub(super) fn new(inner: MemSource) -> Self {
        Self {
            inner,
            block: 512,
            broken: u64::MAX,
            full: AtomicBool::new(false),
            shut: Mutex::new(false),
            changed: Condvar::new(),
            waiting: AtomicUsize::new(0),
            flushes: AtomicUsize::new(0),
        }
    }

    pub(super) fn with_blocks(mut self, block: u32) -> Self {
        self.block = block;
        self
    }

    pub(super) fn broken_from(mut self, offset: u64) -> Self {
        self.broken = offset;
        self
    }

    pub(super) fn shared(self) -> Arc<Self> {
        Arc::new(self)
    }

    /// Writes find no room from now on.
    pub(super) fn fill(&self) {
        self.full.store(true, Ordering::SeqCst);
    }

    pub(super) fn shut(&self, shut: bool) {
        *self.shut.lock().unwrap() = shut;
        self.changed.notify_all();
    }

    fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut shut = self.shut.lock().unwrap();
        while *shut {
            shut = self.changed.wait(shut).unwrap();
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl BlockSource for Moody {
    fn geometry(&self) -> Geometry {
        Geometry {
            logical_block: self.block,
            ..self.inner.geometry()
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        if offset < 1 << 20 {
            self.pass();
        }
        if offset.saturating_add(buf.len() as u64) > self.broken {
            return Err(BlockError::new(Op::Read, Kind::NotFound));
        }
        self.inner.read_at(offset, buf)
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        self.inner.extents(range, out)
    }
}

impl BlockSink for Moody {
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), BlockError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(BlockError::new(Op::Write, Kind::NoSpace));
        }
        self.inner.write_at(offset, buf)
    }

    fn write_zeroes(&self, range: Extent) -> Result<(), BlockError> {
        self.inner.write_zeroes(range)
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.pass();
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.inner.flush()
    }
}
