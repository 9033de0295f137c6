//! What drivers answer: pages of blocks.

use bytes::{BufMut, Bytes, BytesMut};

/// Blocks that are all of one size.
pub const FIXED: u64 = 1;
/// Extents of any size.
pub const VARIABLE: u64 = 2;

/// Blocks in one message when the client does not say, as csi-driver-host-path does it.
const PER_PAGE: usize = 256;

/// What a driver knows of one volume.
#[derive(Clone, Debug)]
pub struct Listing {
    /// [`FIXED`] or [`VARIABLE`].
    pub style: u64,
    /// Bytes of the volume.
    pub capacity: u64,
    /// Offset and size of each block, ascending.
    pub blocks: Vec<(u64, u64)>,
    /// Blocks in one message.
    pub per_page: usize,
}

impl Listing {
    /// Blocks of `block` bytes with these numbers.
    pub fn fixed(capacity: u64, block: u64, numbers: &[u64]) -> Self {
        Self {
            style: FIXED,
            capacity,
            blocks: numbers.iter().map(|number| (number * block, block)).collect(),
            per_page: PER_PAGE,
        }
    }

    /// Extents.
    pub fn variable(capacity: u64, blocks: &[(u64, u64)]) -> Self {
        Self {
            style: VARIABLE,
            capacity,
            blocks: blocks.to_vec(),
            per_page: PER_PAGE,
        }
    }

    /// The same in messages of so many blocks.
    #[must_use]
    pub fn per_page(mut self, per_page: usize) -> Self {
        self.per_page = per_page;
        self
    }

    /// The messages from `start` on, as the contract has it: the first block ends behind `start`.
    pub fn pages(&self, start: u64) -> Vec<Bytes> {
        let rest: Vec<_> = self
            .blocks
            .iter()
            .filter(|(offset, size)| offset + size > start)
            .copied()
            .collect();
        rest.chunks(self.per_page)
            .map(|blocks| page(self.style, self.capacity, blocks))
            .collect()
    }

    /// What csi-driver-host-path makes of a start that is no multiple of its blocks: it reads from there on, but numbers what it
    /// reads as if it had begun at the multiple before.
    pub fn pages_misnumbered(&self, start: u64, block: u64) -> Vec<Bytes> {
        let mut shifted = self.clone();
        for (offset, _) in &mut shifted.blocks {
            *offset = offset.saturating_sub(start % block) / block * block;
        }
        shifted.pages(start)
    }
}

/// One message.
pub fn page(style: u64, capacity: u64, blocks: &[(u64, u64)]) -> Bytes {
    let mut out = head(style, capacity, blocks.len());
    blocks
        .iter()
        .for_each(|&(offset, size)| put_block(&mut out, offset, size));
    out.freeze()
}

fn head(style: u64, capacity: u64, blocks: usize) -> BytesMut {
    // A block takes 23 bytes at the most.
    let mut out = BytesMut::with_capacity(24 + 23 * blocks);
    out.put_u8(0x08);
    put_varint(&mut out, style);
    out.put_u8(0x10);
    put_varint(&mut out, capacity);
    out
}

/// As a driver in Go writes it: numbers that are 0 are left out.
fn put_block(out: &mut BytesMut, offset: u64, size: u64) {
    let field = |number: u64| if number == 0 { 0 } else { 1 + varint_len(number) };
    out.put_u8(0x1a);
    put_varint(out, field(offset) + field(size));
    for (tag, number) in [(0x08, offset), (0x10, size)] {
        if number > 0 {
            out.put_u8(tag);
            put_varint(out, number);
        }
    }
}

fn varint_len(number: u64) -> u64 {
    u64::from(64 - (number | 1).leading_zeros()).div_ceil(7)
}

fn put_varint(out: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        #[expect(clippy::cast_possible_truncation, reason = "the low seven bits are meant")]
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 128")]
    out.put_u8(number as u8);
}

/// The pages of a volume of which every n-th block of 4 KiB is named, made one by one: a listing of any length in no memory.
#[derive(Clone, Copy, Debug)]
pub struct Sparse {
    /// Bytes of the volume.
    pub capacity: u64,
    /// Every so many blocks there is one.
    pub every: u64,
    /// Blocks in one message.
    pub per_page: u64,
}

/// Bytes of a block of [`Sparse`].
pub const BLOCK: u64 = 4096;

impl Sparse {
    /// Blocks there are.
    pub fn count(&self) -> u64 {
        (self.capacity / BLOCK).div_ceil(self.every)
    }

    /// The messages from `start` on.
    pub fn pages(self, start: u64) -> impl Iterator<Item = Bytes> + Send {
        let first = start.div_ceil(BLOCK).div_ceil(self.every);
        let step = usize::try_from(self.per_page).expect("a page fits in memory");
        (first..self.count()).step_by(step).map(move |from| {
            let mut out = head(FIXED, self.capacity, step);
            for number in from..self.count().min(from + self.per_page) {
                put_block(&mut out, number * self.every * BLOCK, BLOCK);
            }
            out.freeze()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_what_protocol_buffers_say() {
        let bytes = page(FIXED, 300, &[(0, 128), (128, 1)]);
        let expect = [8, 1, 16, 0xac, 2, 0x1a, 3, 16, 0x80, 1, 0x1a, 5, 8, 0x80, 1, 16, 1];
        assert_eq!(bytes[..], expect);
    }

    #[test]
    fn a_listing_goes_on_where_it_is_asked_to() {
        let listing = Listing::fixed(1 << 20, 4096, &[1, 2, 5]).per_page(2);
        assert_eq!(listing.pages(0).len(), 2);
        assert_eq!(listing.pages(3 * 4096), [page(FIXED, 1 << 20, &[(5 * 4096, 4096)])]);
        assert!(listing.pages(6 * 4096).is_empty());
        let sparse = Sparse {
            capacity: 1 << 20,
            every: 100,
            per_page: 2,
        };
        assert_eq!(sparse.count(), 3);
        assert_eq!(
            sparse.pages(4096).collect::<Vec<_>>(),
            [page(FIXED, 1 << 20, &[(409_600, 4096), (819_200, 4096)])]
        );
    }
}
