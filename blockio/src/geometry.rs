//! Sizes of a volume: the chunk grid, the block sizes of the device, and rounding that says its direction.

use crate::extent::Extent;

/// Bytes of a chunk: 1 MiB, the grid of change bitmaps, block address tables and writes.
///
/// The number is Velero's (block data mover design, "Deduplication"); a repository begun by either can only be continued by
/// the other on the same grid.
pub const CHUNK_SIZE: u64 = 1 << 20;

/// [`CHUNK_SIZE`] as a length in memory.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Position of a chunk on the volume grid: `offset / CHUNK_SIZE`. Indexes are 0-based.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ChunkIndex(u64);

impl ChunkIndex {
    /// The chunk with this number.
    pub const fn new(index: u64) -> Self {
        Self(index)
    }

    /// The chunk that holds byte `offset`.
    pub const fn of(offset: u64) -> Self {
        Self(offset / CHUNK_SIZE)
    }

    /// The number of this chunk.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// First byte of this chunk. Saturates for an index of 2^44 and more, which is on no volume (2^64 bytes).
    pub const fn offset(self) -> u64 {
        self.0.saturating_mul(CHUNK_SIZE)
    }

    /// The chunk behind this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What a volume is like: its size, its blocks, and what direct IO on it asks for. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Real size of the volume. Need not be a multiple of anything.
    pub size: u64,
    /// Smallest unit the device addresses (BLKSSZGET); 512 or 4096 in practice.
    pub logical_block: u32,
    /// Smallest unit the device writes without reading first (BLKPBSZGET).
    pub physical_block: u32,
    /// Offsets and lengths of direct IO are multiples of this. 1 where IO is buffered. A power of two.
    pub offset_align: u32,
    /// Addresses of memory for direct IO are multiples of this. 1 where IO is buffered. A power of two.
    pub memory_align: u32,
}

impl Geometry {
    /// A volume of `size` bytes that asks for no alignment: memory, an object of a repository.
    pub const fn of_bytes(size: u64) -> Self {
        Self {
            size,
            logical_block: 512,
            physical_block: 4096,
            offset_align: 1,
            memory_align: 1,
        }
    }

    /// Chunks that hold at least one byte of the volume.
    pub const fn chunks(&self) -> u64 {
        self.size.div_ceil(CHUNK_SIZE)
    }

    /// The size rounded up to whole chunks. Saturates for a size within a chunk of 2^64.
    pub const fn padded_size(&self) -> u64 {
        self.chunks().saturating_mul(CHUNK_SIZE)
    }

    /// The whole volume.
    pub const fn extent(&self) -> Extent {
        Extent {
            offset: 0,
            len: self.size,
        }
    }

    /// The bytes of the volume in `chunk`: a full chunk, less at the end, none past it.
    pub fn chunk_extent(&self, chunk: ChunkIndex) -> Extent {
        let offset = chunk.offset().min(self.size);
        Extent {
            offset,
            len: (self.size - offset).min(CHUNK_SIZE),
        }
    }
}

/// `value` rounded down to a multiple of `align`.
///
/// # Panics
/// When `align` is 0.
pub const fn align_down(value: u64, align: u64) -> u64 {
    value - value % align
}

/// `value` rounded up to a multiple of `align`; `None` when that is past 2^64.
///
/// # Panics
/// When `align` is 0.
pub const fn align_up(value: u64, align: u64) -> Option<u64> {
    value.checked_next_multiple_of(align)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(size: u64, chunks: u64, padded: u64, last: Extent) {
        let geometry = Geometry::of_bytes(size);
        assert_eq!(geometry.chunks(), chunks);
        assert_eq!(geometry.padded_size(), padded);
        assert_eq!(geometry.chunk_extent(ChunkIndex::new(chunks.saturating_sub(1))), last);
        assert!(geometry.chunk_extent(ChunkIndex::new(chunks)).is_empty());
    }

    #[test]
    fn the_last_chunk_is_clipped_to_the_size() {
        let mib = CHUNK_SIZE;
        check(0, 0, 0, Extent { offset: 0, len: 0 });
        check(1, 1, mib, Extent { offset: 0, len: 1 });
        check(
            mib - 1,
            1,
            mib,
            Extent {
                offset: 0,
                len: mib - 1,
            },
        );
        check(mib, 1, mib, Extent { offset: 0, len: mib });
        check(
            5 * mib + 512,
            6,
            6 * mib,
            Extent {
                offset: 5 * mib,
                len: 512,
            },
        );
    }

    #[test]
    fn absurd_sizes_and_indexes_do_not_wrap() {
        let geometry = Geometry::of_bytes(u64::MAX);
        assert_eq!(geometry.chunks(), 1 << 44);
        assert_eq!(geometry.padded_size(), u64::MAX);
        assert_eq!(
            geometry.chunk_extent(ChunkIndex::new((1 << 44) - 1)).len,
            CHUNK_SIZE - 1
        );
        assert!(geometry.chunk_extent(ChunkIndex::new(u64::MAX)).is_empty());
    }

    proptest! {
        #[test]
        fn alignment_brackets_the_value(value: u64, shift in 0u32..21) {
            let align = 1u64 << shift;
            let down = align_down(value, align);
            prop_assert!(down <= value && value - down < align && down.is_multiple_of(align));
            match align_up(value, align) {
                Some(up) => prop_assert!(up >= value && up - value < align && up.is_multiple_of(align)),
                None => prop_assert!(down.checked_add(align).is_none()),
            }
        }

        #[test]
        fn a_chunk_holds_its_own_offset(offset: u64) {
            let chunk = ChunkIndex::of(offset);
            prop_assert!(chunk.offset() <= offset && offset - chunk.offset() < CHUNK_SIZE);
            prop_assert_eq!(ChunkIndex::of(chunk.offset()), chunk);
        }
    }
}
