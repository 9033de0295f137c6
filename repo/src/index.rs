//! Content index: which pack holds a content, and where in it.
//!
//! [`Table`] is one index blob, checked once and then searched as the bytes it came as. [`Merged`] is many of them seen
//! as one. [`build_shards`] writes what a flush stores. Bytes come from an opened blob, so everything here is pure.
//!
//! | module     | answers                                                   |
//! |------------|-----------------------------------------------------------|
//! | `layout`   | where each field of versions 1 and 2 stands               |
//! | `table`    | what one index blob says of a content                     |
//! | `merged`   | what all of them say together                             |
//! | `sweep`    | many look-ups in ascending order                          |
//! | `gather`   | what many blobs say, taken in one by one                  |
//! | `merge`    | rows of many tables in key order, one for each content    |
//! | `builder`  | the bytes of a version 2 index for a list of entries      |
//! | [`v0`]     | which blobs of a repository without epochs are in force   |
//!
//! Source of the format: kopia, repo/content/index.

mod builder;
mod gather;
mod layout;
mod merge;
mod merged;
mod sweep;
mod table;
pub mod v0;

use std::cmp::Ordering;

pub use builder::{ENTRIES_PER_SHARD_MAX, build_shards, build_v2, shard_count, shard_of};
pub(crate) use builder::{PACK_RECORD_LEN, v2_len_max};
pub(crate) use gather::Gather;
pub use merged::Merged;
pub(crate) use sweep::Sweep;
pub use table::Table;

use crate::id::{BlobId, ContentId};

/// What a writer may put into a version 2 index (kopia, repo/content/index/index_v2.go).
pub mod limits {
    /// Pack offsets stay below this: 30 of the 31 bits of the field.
    pub const OFFSET_END: u32 = 1 << 30;
    /// Packed and original lengths stay below this: 28 bits.
    pub const LENGTH_END: u32 = 1 << 28;
    /// Distinct packs: 24 bits.
    pub const PACKS_MAX: usize = 1 << 24;
    /// Distinct pairs of compression and format version: one byte, of which Kopia leaves one value unused.
    pub const FORMATS_MAX: usize = 255;
    /// Bytes of a pack name: one byte tells the length.
    pub const PACK_NAME_MAX: usize = 255;
}

/// Where one content is stored, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The content.
    pub content: ContentId,
    /// The pack that holds it.
    pub pack: BlobId,
    /// First byte of the sealed content in the pack.
    pub offset: u32,
    /// Bytes of the sealed content.
    pub packed_len: u32,
    /// Bytes of the plaintext.
    pub original_len: u32,
    /// When the entry was made, in unix seconds.
    pub time: u64,
    /// The content was deleted at [`time`](Self::time).
    pub deleted: bool,
    /// Format version of the repository that wrote it.
    pub format_version: u8,
    /// Header id of the compression; 0 = none.
    pub compression: u32,
}

/// An entry as it stands in a table, without a copy of the pack's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// The content.
    pub content: ContentId,
    /// Name of the pack that holds it; a valid blob id.
    pub pack: &'a str,
    /// First byte of the sealed content in the pack.
    pub offset: u32,
    /// Bytes of the sealed content.
    pub packed_len: u32,
    /// Bytes of the plaintext.
    pub original_len: u32,
    /// When the entry was made, in unix seconds.
    pub time: u64,
    /// The content was deleted at [`time`](Self::time).
    pub deleted: bool,
    /// Format version of the repository that wrote it.
    pub format_version: u8,
    /// Header id of the compression; 0 = none.
    pub compression: u32,
}

impl EntryRef<'_> {
    /// The entry with its own copy of the pack's name.
    pub fn to_entry(&self) -> IndexEntry {
        IndexEntry {
            content: self.content,
            pack: BlobId::known(self.pack),
            offset: self.offset,
            packed_len: self.packed_len,
            original_len: self.original_len,
            time: self.time,
            deleted: self.deleted,
            format_version: self.format_version,
            compression: self.compression,
        }
    }

    /// Greater for the entry that counts when two tables tell of one content: the later one; at the same second the one
    /// that is not deleted; then the one in the pack with the larger name, so that every client picks the same.
    fn precedence(&self, other: &EntryRef<'_>) -> Ordering {
        (self.time, !self.deleted, self.pack).cmp(&(other.time, !other.deleted, other.pack))
    }

    /// The entry counts as much as `other`, or more.
    pub(crate) fn is_at_least(&self, other: &EntryRef<'_>) -> bool {
        self.precedence(other) != Ordering::Less
    }

    /// The entry says nothing any more: a deletion that every client has seen.
    pub(crate) fn is_forgotten(&self, watermark: Option<u64>) -> bool {
        self.deleted && watermark.is_some_and(|watermark| self.time <= watermark)
    }
}

impl IndexEntry {
    /// The entry with its pack's name borrowed.
    pub fn as_ref(&self) -> EntryRef<'_> {
        EntryRef {
            content: self.content,
            pack: self.pack.as_str(),
            offset: self.offset,
            packed_len: self.packed_len,
            original_len: self.original_len,
            time: self.time,
            deleted: self.deleted,
            format_version: self.format_version,
            compression: self.compression,
        }
    }
}

#[cfg(test)]
mod tests;
