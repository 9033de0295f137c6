//! Volumes that wait, fail, or count.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use blockio::{BlockError, BlockSink, BlockSource, Extent, ExtentKind, Geometry, Kind, Op};
use nbd::MemSource;

/// Reads and writes that touch chunk 0 wait until the gate is open; all others wait for nobody.
pub(super) struct Gated {
    inner: MemSource,
    gate: Mutex<bool>,
    opened: Condvar,
    pub(super) waiting: AtomicUsize,
    pub(super) flushes: AtomicU64,
}

impl Gated {
    pub(super) fn new(inner: MemSource) -> Arc<Self> {
        Arc::new(Self {
            inner,
            gate: Mutex::new(false),
            opened: Condvar::new(),
            waiting: AtomicUsize::new(0),
            flushes: AtomicU64::new(0),
        })
    }

    pub(super) fn open(&self) {
        *self.gate.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn pass(&self, offset: u64) {
        if offset >= 1 << 20 {
            return;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut open = self.gate.lock().unwrap();
        while !*open {
            open = self.opened.wait(open).unwrap();
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl BlockSource for Gated {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.pass(offset);
        self.inner.read_at(offset, buf)
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        self.inner.extents(range, out)
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        if offset < 1 << 20 {
            return Ok(false);
        }
        self.inner.try_read_at(offset, buf)
    }
}

impl BlockSink for Gated {
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), BlockError> {
        self.pass(offset);
        self.inner.write_at(offset, buf)
    }

    fn write_zeroes(&self, range: Extent) -> Result<(), BlockError> {
        self.pass(range.offset);
        self.inner.write_zeroes(range)
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Reads that touch one of these offsets fail in this way.
pub(super) struct Damaged {
    pub(super) inner: MemSource,
    pub(super) at: BTreeMap<u64, Kind>,
}

impl BlockSource for Damaged {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        let range = offset..offset + buf.len() as u64;
        if let Some((_, kind)) = self.at.range(range).next() {
            return Err(BlockError::new(Op::Read, kind.clone()));
        }
        self.inner.read_at(offset, buf)
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        self.inner.extents(range, out)
    }
}

/// Writes fail in this way; reads do not.
pub(super) struct Full {
    pub(super) inner: MemSource,
    pub(super) kind: Kind,
}

impl BlockSource for Full {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.inner.read_at(offset, buf)
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        self.inner.extents(range, out)
    }
}

impl BlockSink for Full {
    fn write_at(&self, _: u64, _: &[u8]) -> Result<(), BlockError> {
        Err(BlockError::new(Op::Write, self.kind.clone()))
    }

    fn write_zeroes(&self, _: Extent) -> Result<(), BlockError> {
        Err(BlockError::new(Op::Zero, self.kind.clone()))
    }

    fn flush(&self) -> Result<(), BlockError> {
        Err(BlockError::new(Op::Sync, self.kind.clone()))
    }
}

/// Panics when it is read.
pub(super) struct Trap(pub(super) u64);

impl BlockSource for Trap {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(self.0)
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), BlockError> {
        panic!("a fault of the volume, on purpose")
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        out.push((range, ExtentKind::Data));
        Ok(())
    }
}
