//! A volume that ends in the middle of a block, as whole blocks.

use blockio::{BlockError, BlockSource, Extent, ExtentKind, Geometry};
use std::sync::Arc;

/// A volume rounded up to whole blocks; what is behind its end reads as zero. Devices have no half blocks.
pub(super) struct Padded {
    inner: Arc<dyn BlockSource>,
    block: u64,
}

impl Padded {
    /// `block` is a power of two. A size within a block of 2^64 stays as it is.
    pub(super) fn new(inner: Arc<dyn BlockSource>, block: u32) -> Self {
        Self {
            inner,
            block: block.into(),
        }
    }

    /// All that the volume has, which may have grown.
    fn real(&self) -> Extent {
        Extent {
            offset: 0,
            len: self.inner.geometry().size,
        }
    }
}

impl BlockSource for Padded {
    fn geometry(&self) -> Geometry {
        let inner = self.inner.geometry();
        Geometry {
            size: inner.size.checked_next_multiple_of(self.block).unwrap_or(inner.size),
            ..inner
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        let inside = self.real().len.saturating_sub(offset).min(buf.len() as u64);
        let (data, tail) = buf.split_at_mut(Extent { offset, len: inside }.bytes());
        tail.fill(0);
        if data.is_empty() {
            return Ok(());
        }
        self.inner.read_at(offset, data)
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        if let Some(inside) = range.clip(self.real()) {
            self.inner.extents(inside, out)?;
        }
        let tail = Extent::between(range.offset.max(self.real().len), range.end());
        if !tail.is_empty() {
            out.push((tail, ExtentKind::Hole));
        }
        Ok(())
    }

    fn prefetch(&self, range: Extent) {
        if let Some(inside) = range.clip(self.real()) {
            self.inner.prefetch(inside);
        }
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        if offset.saturating_add(buf.len() as u64) > self.real().len {
            return Ok(false);
        }
        self.inner.try_read_at(offset, buf)
    }

    fn lend(&self, range: Extent) -> Option<blockio::Lent> {
        self.inner.lend(range.clip(self.real())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemSource;

    #[test]
    fn the_last_block_is_filled_up_with_zeros() {
        let volume = Padded::new(Arc::new(MemSource::from_bytes(&[7; 1000])), 512);
        assert_eq!(volume.geometry().size, 1024);
        let mut buf = [9; 512];
        volume.read_at(512, &mut buf).unwrap();
        assert!(buf[..488] == [7; 488] && buf[488..] == [0; 24]);
        let mut extents = Vec::new();
        volume.extents(volume.geometry().extent(), &mut extents).unwrap();
        assert_eq!(extents.iter().map(|(extent, _)| extent.len).sum::<u64>(), 1024);
        assert!(
            !volume.try_read_at(512, &mut buf).unwrap(),
            "only what is whole is quick"
        );
        assert!(volume.lend(Extent { offset: 1000, len: 24 }).is_none());
    }
}
