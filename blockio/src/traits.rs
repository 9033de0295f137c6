//! The seam between volumes, repositories and NBD. The bulk path does not go through it: `ring` moves buffers by ownership.

use crate::error::BlockError;
use crate::extent::{Extent, ExtentKind};
use crate::geometry::Geometry;
use crate::lent::Lent;
use std::sync::Arc;

/// Random-access, read-only view of a volume's bytes. Cheap to clone handles; `&self` so many requests run at once.
pub trait BlockSource: Send + Sync {
    /// Size and blocks of the volume.
    fn geometry(&self) -> Geometry;

    /// Fills `buf` from `offset`; all of it or an error. Bytes past the real size read as zero.
    ///
    /// # Errors
    /// When the bytes cannot be had; `buf` is then undefined. Never zeros instead.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError>;

    /// Appends what is known of `range` without reading: ascending, without gaps, covering all of it. An honest
    /// [`ExtentKind::Data`] is always allowed.
    ///
    /// # Errors
    /// When the source cannot say; nothing is then known.
    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError>;

    /// `range` is likely to be read soon. A hint only, and no wait.
    fn prefetch(&self, _range: Extent) {}

    /// As [`BlockSource::read_at`], when that needs no wait for a device or a network. `false` when it would need one; `buf`
    /// is then undefined.
    ///
    /// # Errors
    /// As [`BlockSource::read_at`].
    fn try_read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<bool, BlockError> {
        Ok(false)
    }

    /// The first bytes of `range`, one at least, when they lie in memory and need not be copied. They stay as they are,
    /// whatever is written to the volume later.
    fn lend(&self, _range: Extent) -> Option<Lent> {
        None
    }
}

/// Random-access writes to a volume. What was written is durable after [`BlockSink::flush`].
pub trait BlockSink: Send + Sync {
    /// Writes all of `buf` at `offset`.
    ///
    /// # Errors
    /// When not all was taken, or some of it is past the end; what is on the volume in that range is then undefined.
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), BlockError>;

    /// Makes `range` read as zero.
    ///
    /// # Errors
    /// As [`BlockSink::write_at`].
    fn write_zeroes(&self, range: Extent) -> Result<(), BlockError>;

    /// Makes durable what was written before.
    ///
    /// # Errors
    /// When that is not certain; it does not become so by asking again.
    fn flush(&self) -> Result<(), BlockError>;

    /// Makes `range` read as zero and may give its space back, which [`BlockSink::write_zeroes`] need not.
    ///
    /// # Errors
    /// As [`BlockSink::write_at`].
    fn discard(&self, range: Extent) -> Result<(), BlockError> {
        self.write_zeroes(range)
    }

    /// Zeros of any length are a note in a table, not bytes to write.
    fn zeroes_fast(&self) -> bool {
        false
    }

    /// No call waits for a device or a network: what is written stays in memory.
    fn is_prompt(&self) -> bool {
        false
    }
}

impl<T: BlockSource + ?Sized> BlockSource for Arc<T> {
    fn geometry(&self) -> Geometry {
        (**self).geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        (**self).read_at(offset, buf)
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        (**self).extents(range, out)
    }

    fn prefetch(&self, range: Extent) {
        (**self).prefetch(range);
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        (**self).try_read_at(offset, buf)
    }

    fn lend(&self, range: Extent) -> Option<Lent> {
        (**self).lend(range)
    }
}

impl<T: BlockSink + ?Sized> BlockSink for Arc<T> {
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), BlockError> {
        (**self).write_at(offset, buf)
    }

    fn write_zeroes(&self, range: Extent) -> Result<(), BlockError> {
        (**self).write_zeroes(range)
    }

    fn flush(&self) -> Result<(), BlockError> {
        (**self).flush()
    }

    fn discard(&self, range: Extent) -> Result<(), BlockError> {
        (**self).discard(range)
    }

    fn zeroes_fast(&self) -> bool {
        (**self).zeroes_fast()
    }

    fn is_prompt(&self) -> bool {
        (**self).is_prompt()
    }
}
