//! The block address table: which content holds which bytes of an object, packed.
//!
//! 1,048,576 entries (1 TiB of 1 MiB chunks) take 16 MiB with 128-bit hashes: only the hash bytes are kept, and starts
//! only when the pieces are not all of one length.

use blockio::Extent;

use crate::error::{RepoError, Result};
use crate::id::ContentId;

/// Most entries of one table: 64 TiB in 1 MiB chunks, 1 GiB of memory. A forged nest of lists cannot grow further.
const ENTRIES_MAX: usize = 64 << 20;

/// The pieces of an object, in order and without gaps from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockAddressTable {
    len: u64,
    hash_len: usize,
    hashes: Vec<u8>,
    starts: Starts,
    /// What is special about entry `.0`: its prefix, and [`COMPRESSED`]. Most entries have neither. Sorted.
    marks: Vec<(u32, u8)>,
}

/// Mark of a piece that is compressed at object level. Prefixes are ASCII, so the bit is free.
const COMPRESSED: u8 = 0x80;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Starts {
    /// Entry `i` starts at `i * .0`; only the last may be shorter.
    Uniform(u64),
    /// Entry `i` starts at `.0[i]`.
    Listed(Vec<u64>),
}

/// One piece of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// Its bytes in the object.
    pub extent: Extent,
    /// The content that holds them.
    pub content: ContentId,
    /// The content holds them compressed, as pieces of format version 1 are: a header id and a stream.
    pub compressed: bool,
}

impl BlockAddressTable {
    /// A table of pieces of `piece_len` bytes whose unprefixed contents have the `hashes`, back to back, each of
    /// `hash_len` bytes.
    pub fn uniform(piece_len: u64, hash_len: usize, hashes: Vec<u8>) -> Self {
        assert!(hash_len > 0 && hashes.len().is_multiple_of(hash_len), "whole hashes");
        let len = (hashes.len() / hash_len) as u64 * piece_len;
        Self {
            len,
            hash_len,
            hashes,
            starts: Starts::Uniform(piece_len),
            marks: Vec::new(),
        }
    }

    /// Length of the object in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The object has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Pieces.
    pub fn count(&self) -> usize {
        self.hashes.len().checked_div(self.hash_len).unwrap_or(0)
    }

    /// Length of every piece but perhaps the last, in bytes, when they are alike.
    pub fn uniform_len(&self) -> Option<u64> {
        match self.starts {
            Starts::Uniform(len) => Some(len),
            Starts::Listed(_) => None,
        }
    }

    /// Piece `i`. Panics when there are not so many.
    pub fn entry(&self, i: usize) -> TableEntry {
        let start = self.start(i);
        let end = if i + 1 < self.count() {
            self.start(i + 1)
        } else {
            self.len
        };
        TableEntry {
            extent: Extent {
                offset: start,
                len: end - start,
            },
            content: self.content(i),
            compressed: self.is_compressed(i),
        }
    }

    /// Content of piece `i`. Panics when there are not so many.
    pub fn content(&self, i: usize) -> ContentId {
        let hash = &self.hashes[i * self.hash_len..(i + 1) * self.hash_len];
        let prefix = match self.mark(i) & !COMPRESSED {
            0 => None,
            prefix => Some(char::from(prefix)),
        };
        ContentId::new(prefix, hash).expect("the builder took the parts from a content id")
    }

    /// Whether piece `i` is compressed at object level.
    pub fn is_compressed(&self, i: usize) -> bool {
        self.mark(i) & COMPRESSED != 0
    }

    /// Whether any piece is: then contents and bytes of the object are not the same.
    pub fn has_compressed(&self) -> bool {
        self.marks.iter().any(|(_, mark)| mark & COMPRESSED != 0)
    }

    fn mark(&self, i: usize) -> u8 {
        let found = self.marks.binary_search_by_key(&(i as u64), |(at, _)| u64::from(*at));
        found.map_or(0, |at| self.marks[at].1)
    }

    fn start(&self, i: usize) -> u64 {
        match &self.starts {
            Starts::Uniform(len) => i as u64 * len,
            Starts::Listed(starts) => starts[i],
        }
    }

    /// The piece that holds byte `offset`, which is below [`len`](Self::len).
    pub fn find(&self, offset: u64) -> usize {
        debug_assert!(offset < self.len);
        match &self.starts {
            Starts::Uniform(len) => usize::try_from(offset / len).expect("below the entry count"),
            Starts::Listed(starts) => starts.partition_point(|start| *start <= offset) - 1,
        }
    }

    /// All pieces in order.
    pub fn iter(&self) -> impl Iterator<Item = TableEntry> + '_ {
        (0..self.count()).map(|i| self.entry(i))
    }
}

/// Collects the pieces of an object in order.
pub struct TableBuilder {
    table: BlockAddressTable,
    /// Length of the entry added last.
    last_len: u64,
}

impl TableBuilder {
    /// A table without pieces whose contents have hashes of `hash_len` bytes.
    pub fn new(hash_len: usize) -> Self {
        let starts = Starts::Uniform(0);
        let table = BlockAddressTable {
            len: 0,
            hash_len,
            hashes: Vec::new(),
            starts,
            marks: Vec::new(),
        };
        Self { table, last_len: 0 }
    }

    /// Bytes covered so far: where the next piece starts.
    pub fn len(&self) -> u64 {
        self.table.len
    }

    /// No piece was added.
    pub fn is_empty(&self) -> bool {
        self.table.len == 0
    }

    /// Adds the next `len` bytes, held by `content`. Empty pieces are left out.
    pub fn push(&mut self, len: u64, content: &ContentId) -> Result<()> {
        self.push_marked(len, content, 0)
    }

    /// [`Self::push`] for `len` bytes that `content` holds compressed.
    pub fn push_compressed(&mut self, len: u64, content: &ContentId) -> Result<()> {
        self.push_marked(len, content, COMPRESSED)
    }

    fn push_marked(&mut self, len: u64, content: &ContentId, mark: u8) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let table = &mut self.table;
        let count = table.count();
        if content.hash().len() != table.hash_len {
            let what = format!(
                "content {content} has a hash of {} bytes in a repository of {}",
                content.hash().len(),
                table.hash_len
            );
            return Err(RepoError::corrupt(what));
        }
        let end = table
            .len
            .checked_add(len)
            .filter(|end| *end <= i64::MAX.unsigned_abs() && count < ENTRIES_MAX);
        let end =
            end.ok_or_else(|| RepoError::corrupt(format!("a list goes past {ENTRIES_MAX} pieces or 2^63 bytes")))?;
        match &mut table.starts {
            Starts::Uniform(each) if count == 0 => *each = len,
            // Uniform so far, and the piece before this one was whole: this one may be the short last.
            Starts::Uniform(each) if self.last_len == *each && len <= *each => {}
            Starts::Uniform(each) => {
                let each = *each;
                let starts = (0..count as u64).map(|i| i * each).chain([table.len]);
                table.starts = Starts::Listed(starts.collect());
            }
            Starts::Listed(starts) => starts.push(table.len),
        }
        let mark = mark | content.prefix_byte();
        if mark != 0 {
            let at = u32::try_from(count).expect("below the most entries");
            table.marks.push((at, mark));
        }
        table.hashes.extend_from_slice(content.hash());
        table.len = end;
        self.last_len = len;
        Ok(())
    }

    /// The finished table.
    pub fn finish(mut self) -> BlockAddressTable {
        self.table.hashes.shrink_to_fit();
        self.table
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u64) -> ContentId {
        let mut hash = [0; 16];
        hash[8..].copy_from_slice(&n.to_be_bytes());
        ContentId::new(n.is_multiple_of(7).then_some('x'), &hash).expect("valid")
    }

    proptest! {
        #[test]
        fn a_table_answers_like_a_plain_list(lens in proptest::collection::vec(prop_oneof![Just(1024u64), 1..3000u64], 0..60)) {
            let mut builder = TableBuilder::new(16);
            let mut plain = Vec::new();
            for (i, len) in lens.iter().enumerate() {
                let (content, compressed) = (id(i as u64), i % 5 == 3);
                plain.push(TableEntry { extent: Extent { offset: builder.len(), len: *len }, content, compressed });
                match compressed {
                    true => builder.push_compressed(*len, &content).unwrap(),
                    false => builder.push(*len, &content).unwrap(),
                }
            }
            let table = builder.finish();
            prop_assert_eq!(table.len(), lens.iter().sum::<u64>());
            prop_assert_eq!(table.has_compressed(), lens.len() > 3);
            prop_assert_eq!(table.iter().collect::<Vec<_>>(), plain.clone());
            for offset in (0..table.len()).step_by(97) {
                let extent = plain[table.find(offset)].extent;
                prop_assert!(extent.offset <= offset && offset < extent.offset + extent.len);
            }
        }
    }

    #[test]
    fn equal_pieces_stay_packed_even_with_a_short_last_one() {
        let mut builder = TableBuilder::new(16);
        for (len, n) in [(1024, 1), (1024, 2), (10, 3)] {
            builder.push(len, &id(n)).expect("fits");
        }
        let table = builder.finish();
        assert_eq!(table.uniform_len(), Some(1024));
        assert_eq!(table.entry(2).extent, Extent { offset: 2048, len: 10 });
    }

    #[test]
    fn foreign_hashes_and_overlong_objects_are_refused() {
        let mut builder = TableBuilder::new(16);
        let long = ContentId::new(None, &[1; 32]).expect("valid");
        assert!(builder.push(1, &long).expect_err("hash length").is_damage());
        builder.push(i64::MAX.unsigned_abs(), &id(1)).expect("fits");
        assert!(builder.push(1, &id(1)).expect_err("too long").is_damage());
    }
}
