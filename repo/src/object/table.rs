//! The block address table: which content holds which bytes of an object, packed.
//!
//! 1,048,576 entries (1 TiB of 1 MiB chunks) take 16 MiB with 128-bit hashes: only the hash bytes are kept, and starts
//! only when the pieces are not all of one length. Clones share memory ([`Hashes`]).

use blockio::Extent;

use super::hashes::{Hashes, HashesBuilder};

use crate::error::{RepoError, Result};
use crate::id::ContentId;

/// Most entries of one table: 64 TiB in 1 MiB chunks, 1 GiB of memory. A forged nest of lists cannot grow further.
pub(super) const ENTRIES_MAX: usize = 64 << 20;

/// The pieces of an object, in order and without gaps from 0. Cheap to clone: a clone shares the memory of its hashes until
/// it is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockAddressTable {
    len: u64,
    pub(super) hashes: Hashes,
    starts: Starts,
    /// What is special about entry `.0`: its prefix, and [`COMPRESSED`]. Most entries have neither. Sorted.
    pub(super) marks: Vec<(u32, u8)>,
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
    ///
    /// # Panics
    /// When these are not whole hashes, or the pieces together have 2^64 bytes.
    pub fn uniform(piece_len: u64, hash_len: usize, hashes: Vec<u8>) -> Self {
        Self::of_hashes(piece_len, Hashes::new(hash_len, &hashes))
    }

    /// A table of `count` pieces of `piece_len` bytes that are all in the unprefixed `content`. It takes the memory of 4096
    /// pieces, however many there are.
    ///
    /// # Panics
    /// When the pieces together have 2^64 bytes, or `content` has a prefix.
    pub fn filled(piece_len: u64, count: usize, content: &ContentId) -> Self {
        assert_eq!(content.prefix(), None, "a content of file data");
        Self::of_hashes(piece_len, Hashes::filled(content.hash(), count))
    }

    pub(super) fn of_hashes(piece_len: u64, hashes: Hashes) -> Self {
        let len = (hashes.count() as u64).checked_mul(piece_len);
        Self {
            len: len.expect("an object of less than 2^64 bytes"),
            hashes,
            starts: Starts::Uniform(piece_len),
            marks: Vec::new(),
        }
    }

    /// The table of an increment: `count` pieces of `piece_len` bytes, as far as this table, its parent, goes in the same
    /// contents, and past that in `filler`. It shares the parent's memory until a piece is [set](Self::set_content).
    ///
    /// # Errors
    /// Why this table cannot be the parent of such a table.
    pub fn child(&self, piece_len: u64, count: usize, filler: &ContentId) -> Result<Self, ParentUnfit> {
        let (have, want) = (self.hash_len(), filler.hash().len());
        if have != want {
            return Err(ParentUnfit::HashLen { have, want });
        }
        match self.starts {
            Starts::Uniform(_) if self.count() == 0 => {}
            Starts::Uniform(have) if have != piece_len => {
                return Err(ParentUnfit::PieceLen { have, want: piece_len });
            }
            Starts::Uniform(_) if !self.len.is_multiple_of(piece_len) => return Err(ParentUnfit::ShortTail),
            Starts::Uniform(_) => {}
            Starts::Listed(_) => return Err(ParentUnfit::NotUniform),
        }
        if self.has_compressed() {
            return Err(ParentUnfit::Compressed);
        }
        if !self.marks.is_empty() {
            return Err(ParentUnfit::Prefixed);
        }
        let mut hashes = self.hashes.clone();
        hashes.resize(count, filler.hash());
        Ok(Self::of_hashes(piece_len, hashes))
    }

    /// Puts the unprefixed `content` in place of piece `i`, whose length stays. Memory shared with another table is copied
    /// as far as 4096 pieces share it; nothing is done when the content is the same.
    ///
    /// # Panics
    /// When there are not so many pieces, or the content has a prefix or a hash of another length.
    pub fn set_content(&mut self, i: usize, content: &ContentId) {
        assert_eq!(content.prefix(), None, "a content of file data");
        assert_eq!(content.hash().len(), self.hash_len(), "a hash of this repository");
        self.hashes.set(i, content.hash());
        if let Ok(at) = self.mark_of(i) {
            self.marks.remove(at);
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
        self.hashes.count()
    }

    /// Bytes of the hash of every content.
    pub fn hash_len(&self) -> usize {
        self.hashes.width()
    }

    /// Hash of the content of piece `i`, for comparisons. Panics when there are not so many pieces.
    pub fn hash(&self, i: usize) -> &[u8] {
        self.hashes.get(i)
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
        let prefix = match self.mark(i) & !COMPRESSED {
            0 => None,
            prefix => Some(char::from(prefix)),
        };
        ContentId::new(prefix, self.hash(i)).expect("the builder took the parts from a content id")
    }

    /// Whether piece `i` is compressed at object level.
    pub fn is_compressed(&self, i: usize) -> bool {
        self.mark(i) & COMPRESSED != 0
    }

    /// Whether any piece is: then contents and bytes of the object are not the same.
    pub fn has_compressed(&self) -> bool {
        self.marks.iter().any(|(_, mark)| mark & COMPRESSED != 0)
    }

    /// Whether any piece is in a content with a prefix.
    pub(crate) fn has_prefixes(&self) -> bool {
        self.marks.iter().any(|(_, mark)| mark & !COMPRESSED != 0)
    }

    fn mark(&self, i: usize) -> u8 {
        self.mark_of(i).map_or(0, |at| self.marks[at].1)
    }

    fn mark_of(&self, i: usize) -> Result<usize, usize> {
        self.marks.binary_search_by_key(&(i as u64), |(at, _)| u64::from(*at))
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

/// Why a table cannot be the parent of an increment's. It can still be compared with another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParentUnfit {
    /// As the text says.
    #[error("its pieces have several lengths")]
    NotUniform,
    /// As the text says.
    #[error("its pieces have {have} bytes, not {want}")]
    PieceLen {
        /// Bytes of each.
        have: u64,
        /// Bytes of each piece of an increment.
        want: u64,
    },
    /// As the text says.
    #[error("its last piece is shorter than the others")]
    ShortTail,
    /// As the text says.
    #[error("its contents have hashes of {have} bytes, those of the repository have {want}")]
    HashLen {
        /// Bytes of each.
        have: usize,
        /// Bytes of the repository's hash.
        want: usize,
    },
    /// As the text says.
    #[error("some of its pieces are in contents with a prefix, as no file data is")]
    Prefixed,
    /// As the text says.
    #[error("some of its pieces are compressed at object level")]
    Compressed,
}

/// Collects the pieces of an object in order.
pub struct TableBuilder {
    len: u64,
    hashes: HashesBuilder,
    starts: Starts,
    marks: Vec<(u32, u8)>,
    /// Length of the entry added last.
    last_len: u64,
}

impl TableBuilder {
    /// A table without pieces whose contents have hashes of `hash_len` bytes.
    pub fn new(hash_len: usize) -> Self {
        Self {
            len: 0,
            hashes: HashesBuilder::new(hash_len),
            starts: Starts::Uniform(0),
            marks: Vec::new(),
            last_len: 0,
        }
    }

    /// Bytes covered so far: where the next piece starts.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// No piece was added.
    pub fn is_empty(&self) -> bool {
        self.len == 0
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
        let count = self.hashes.count();
        if content.hash().len() != self.hashes.width() {
            let what = format!(
                "content {content} has a hash of {} bytes in a repository of {}",
                content.hash().len(),
                self.hashes.width()
            );
            return Err(RepoError::corrupt(what));
        }
        let end = self
            .len
            .checked_add(len)
            .filter(|end| *end <= i64::MAX.unsigned_abs() && count < ENTRIES_MAX);
        let end =
            end.ok_or_else(|| RepoError::corrupt(format!("a list goes past {ENTRIES_MAX} pieces or 2^63 bytes")))?;
        match &mut self.starts {
            Starts::Uniform(each) if count == 0 => *each = len,
            // Uniform so far, and the piece before this one was whole: this one may be the short last.
            Starts::Uniform(each) if self.last_len == *each && len <= *each => {}
            Starts::Uniform(each) => {
                let each = *each;
                let starts = (0..count as u64).map(|i| i * each).chain([self.len]);
                self.starts = Starts::Listed(starts.collect());
            }
            Starts::Listed(starts) => starts.push(self.len),
        }
        let mark = mark | content.prefix_byte();
        if mark != 0 {
            let at = u32::try_from(count).expect("below the most entries");
            self.marks.push((at, mark));
        }
        self.hashes.push(content.hash());
        self.len = end;
        self.last_len = len;
        Ok(())
    }

    /// The finished table.
    pub fn finish(self) -> BlockAddressTable {
        BlockAddressTable {
            len: self.len,
            hashes: self.hashes.finish(),
            starts: self.starts,
            marks: self.marks,
        }
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

    #[test]
    fn a_child_takes_over_what_its_parent_has_and_fills_the_rest() {
        let ids: Vec<ContentId> = (1..6).map(id).collect();
        let hashes = ids[..3].iter().flat_map(|id| id.hash().to_vec()).collect();
        let parent = BlockAddressTable::uniform(1024, 16, hashes);
        let mut child = parent.child(1024, 5, &ids[4]).expect("fit");
        child.set_content(1, &ids[3]);
        let contents: Vec<_> = child.iter().map(|entry| entry.content).collect();
        assert_eq!(contents, [ids[0], ids[3], ids[2], ids[4], ids[4]]);
        assert_eq!((child.len(), parent.content(1)), (5 * 1024, ids[1]));
        assert_eq!(parent.child(1024, 1, &ids[4]).expect("fit").count(), 1);
        let nothing = TableBuilder::new(16).finish();
        assert_eq!(
            nothing.child(1024, 2, &ids[4]),
            Ok(BlockAddressTable::filled(1024, 2, &ids[4]))
        );
    }

    #[test]
    fn unfit_parents_are_told_apart() {
        let table = |pieces: &[(u64, u64)]| {
            let mut builder = TableBuilder::new(16);
            pieces
                .iter()
                .for_each(|(len, n)| builder.push(*len, &id(*n)).expect("fits"));
            builder.finish()
        };
        let check = |parent: &BlockAddressTable, why| assert_eq!(parent.child(1024, 4, &id(9)), Err(why));
        check(&table(&[(10, 1), (20, 2)]), ParentUnfit::NotUniform);
        let (have, want) = (4096, 1024);
        check(&table(&[(4096, 1), (4096, 2)]), ParentUnfit::PieceLen { have, want });
        check(&table(&[(1024, 1), (10, 2)]), ParentUnfit::ShortTail);
        check(&table(&[(1024, 7)]), ParentUnfit::Prefixed);
        let mut builder = TableBuilder::new(16);
        builder.push_compressed(1024, &id(1)).expect("fits");
        check(&builder.finish(), ParentUnfit::Compressed);
        let (have, want) = (32, 16);
        let long = BlockAddressTable::uniform(1024, 32, vec![0; 32]);
        check(&long, ParentUnfit::HashLen { have, want });
    }
}
