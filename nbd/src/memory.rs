//! A volume in memory: for tests, benchmarks, and whoever has the bytes already.

use blockio::{BlockError, BlockSink, BlockSource, CHUNK_SIZE, Extent, ExtentKind, Geometry, Kind, Lent, Op, is_zero};
use std::sync::{Arc, PoisonError, RwLock};

/// A volume in memory, by chunks. Reads share its memory; what is written to a chunk while it is lent goes into a copy.
#[derive(Debug)]
pub struct MemSource {
    size: u64,
    chunks: Vec<RwLock<Content>>,
}

#[derive(Clone, Debug)]
enum Content {
    Hole,
    Zero,
    /// All bytes of the chunk that the volume has.
    Data(Arc<Vec<u8>>),
}

impl MemSource {
    /// A volume of `size` bytes, never written. Chunks take memory once something is written to them.
    pub fn new(size: u64) -> Self {
        let chunks = (0..size.div_ceil(CHUNK_SIZE)).map(|_| RwLock::new(Content::Hole));
        Self {
            size,
            chunks: chunks.collect(),
        }
    }

    /// A volume of these bytes. Chunks of zeros become holes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let volume = Self::new(bytes.len() as u64);
        let chunk_len = usize::try_from(CHUNK_SIZE).expect("1 MiB fits");
        for (slot, chunk) in volume.chunks.iter().zip(bytes.chunks(chunk_len)) {
            if !is_zero(chunk) {
                *slot.write().unwrap_or_else(PoisonError::into_inner) = Content::Data(Arc::new(chunk.to_vec()));
            }
        }
        volume
    }

    fn content(&self, at: u64) -> Content {
        let slot = &self.chunks[index(at)];
        slot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn check(&self, op: Op, extent: Extent) -> Result<(), BlockError> {
        if extent.end() > self.size {
            return Err(BlockError::new(op, Kind::OutOfRange).at(extent));
        }
        Ok(())
    }

    /// Replaces what `range` covers whole by `whole`, and writes zeros over what it covers in part.
    fn make_zero(&self, range: Extent, whole: &Content) -> Result<(), BlockError> {
        self.check(Op::Zero, range)?;
        for part in range.split_on_grid() {
            let chunk_len = CHUNK_SIZE.min(self.size - part.offset / CHUNK_SIZE * CHUNK_SIZE);
            let mut content = self.chunks[index(part.offset)]
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if part.len == chunk_len {
                *content = whole.clone();
            } else if let Content::Data(bytes) = &mut *content {
                let from = within(part.offset);
                Arc::make_mut(bytes)[from..from + part.bytes()].fill(0);
            }
        }
        Ok(())
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at / CHUNK_SIZE).expect("chunks in memory are counted by a usize")
}

fn within(at: u64) -> usize {
    usize::try_from(at % CHUNK_SIZE).expect("less than 1 MiB")
}

impl BlockSource for MemSource {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(self.size)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        let range = Extent {
            offset,
            len: buf.len() as u64,
        };
        self.check(Op::Read, range)?;
        for part in range.split_on_grid() {
            let to = usize::try_from(part.offset - offset).expect("inside the buffer");
            let target = &mut buf[to..to + part.bytes()];
            match &*self.chunks[index(part.offset)]
                .read()
                .unwrap_or_else(PoisonError::into_inner)
            {
                Content::Data(bytes) => target.copy_from_slice(&bytes[within(part.offset)..][..part.bytes()]),
                Content::Hole | Content::Zero => target.fill(0),
            }
        }
        Ok(())
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        self.check(Op::Map, range)?;
        for part in range.split_on_grid() {
            let kind = match &*self.chunks[index(part.offset)]
                .read()
                .unwrap_or_else(PoisonError::into_inner)
            {
                Content::Data(_) => ExtentKind::Data,
                Content::Zero => ExtentKind::Zero,
                Content::Hole => ExtentKind::Hole,
            };
            out.push((part, kind));
        }
        Ok(())
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        self.read_at(offset, buf).map(|()| true)
    }

    fn lend(&self, range: Extent) -> Option<Lent> {
        let part = range.split_on_grid().next()?;
        if part.end() > self.size {
            return None;
        }
        let Content::Data(bytes) = self.content(part.offset) else {
            return None;
        };
        let from = within(part.offset);
        Lent::new(bytes, from..from + part.bytes())
    }
}

impl BlockSink for MemSource {
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), BlockError> {
        let range = Extent {
            offset,
            len: buf.len() as u64,
        };
        self.check(Op::Write, range)?;
        for part in range.split_on_grid() {
            let from = usize::try_from(part.offset - offset).expect("inside the buffer");
            let chunk_len = CHUNK_SIZE.min(self.size - part.offset / CHUNK_SIZE * CHUNK_SIZE);
            let mut content = self.chunks[index(part.offset)]
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if !matches!(&*content, Content::Data(_)) {
                *content = Content::Data(Arc::new(vec![0; usize::try_from(chunk_len).expect("at most 1 MiB")]));
            }
            if let Content::Data(bytes) = &mut *content {
                let to = within(part.offset);
                Arc::make_mut(bytes)[to..to + part.bytes()].copy_from_slice(&buf[from..from + part.bytes()]);
            }
        }
        Ok(())
    }

    fn write_zeroes(&self, range: Extent) -> Result<(), BlockError> {
        self.make_zero(range, &Content::Zero)
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    fn discard(&self, range: Extent) -> Result<(), BlockError> {
        self.make_zero(range, &Content::Hole)
    }

    fn zeroes_fast(&self) -> bool {
        true
    }

    fn is_prompt(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 3 * CHUNK_SIZE + 1000;

    #[test]
    fn what_is_lent_stays_as_it_was() {
        let volume = MemSource::from_bytes(&vec![1; 5000]);
        let lent = volume.lend(Extent { offset: 10, len: 20 }).unwrap();
        volume.write_at(0, &[2; 5000]).unwrap();
        assert_eq!(&*lent, [1; 20]);
        let mut buf = [0; 4];
        volume.read_at(10, &mut buf).unwrap();
        assert_eq!(buf, [2; 4]);
    }

    #[test]
    fn nothing_past_the_end_is_read_or_written() {
        let volume = MemSource::new(1000);
        assert!(volume.read_at(999, &mut [0; 2]).is_err() && volume.write_at(1000, &[0]).is_err());
        assert!(volume.discard(Extent { offset: 0, len: 1001 }).is_err());
        assert!(volume.lend(Extent { offset: 990, len: 20 }).is_none());
    }

    proptest! {
        /// Random writes, zeros and discards against a plain array; extents never call data a hole.
        #[test]
        fn the_volume_is_an_array(ops in prop::collection::vec((0..SIZE, 1..2 * CHUNK_SIZE, 0u8..3), 1..12)) {
            let volume = MemSource::new(SIZE);
            let mut model = vec![0u8; usize::try_from(SIZE).unwrap()];
            for (number, (offset, len, op)) in ops.into_iter().enumerate() {
                let range = Extent::between(offset, (offset + len).min(SIZE));
                let slice = usize::try_from(offset).unwrap()..usize::try_from(range.end()).unwrap();
                let byte = u8::try_from(number).unwrap() + 1;
                match op {
                    0 => volume.write_at(offset, &vec![byte; range.bytes()]).unwrap(),
                    1 => volume.write_zeroes(range).unwrap(),
                    _ => volume.discard(range).unwrap(),
                }
                model[slice].fill(if op == 0 { byte } else { 0 });
            }
            let mut read = vec![9; model.len()];
            volume.read_at(0, &mut read).unwrap();
            prop_assert!(read == model);
            let mut extents = Vec::new();
            volume.extents(Extent { offset: 0, len: SIZE }, &mut extents).unwrap();
            for (extent, kind) in extents {
                let from = usize::try_from(extent.offset).unwrap();
                prop_assert!(kind == ExtentKind::Data || is_zero(&model[from..from + extent.bytes()]));
            }
        }
    }
}
