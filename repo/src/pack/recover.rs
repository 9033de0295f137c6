//! Reads back what a pack says of itself.

use std::ops::Range;

use super::postamble::Postamble;
use crate::content::ContentFormat;
use crate::error::{RepoError, Result};
use crate::id::BlobId;
use crate::index::{IndexEntry, Table};

/// Bytes at the end of a pack that hold its postamble and nearly always its local index.
pub const TAIL_LEN: u64 = 8192;

/// A local index that has been found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalIndex {
    iv: Vec<u8>,
    range: Range<u64>,
}

impl LocalIndex {
    /// Finds the local index of a pack of `pack_len` bytes by its last bytes, of which `tail` has some ([`TAIL_LEN`], or
    /// the whole pack).
    ///
    /// # Errors
    /// `Corrupt` when they do not end in a postamble that makes sense, `Unsupported` when it is of a version nobody
    /// defined yet.
    pub fn find(pack_len: u64, tail: &[u8]) -> Result<Self> {
        let Postamble {
            iv,
            index_offset,
            index_len,
        } = Postamble::parse(tail)?;
        match index_offset.checked_add(index_len).filter(|end| *end < pack_len) {
            Some(end) => Ok(Self {
                iv,
                range: index_offset..end,
            }),
            None => {
                let what = format!(
                    "postamble of a pack: local index of {index_len} bytes at {index_offset} in {pack_len} bytes"
                );
                Err(RepoError::corrupt(what))
            }
        }
    }

    /// Where the sealed local index is in the pack.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// The entries in it, given its `sealed` bytes. Those of contents in the pack itself lie before the local index.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are not those the postamble spoke of.
    pub fn open(&self, format: &ContentFormat, pack: &BlobId, sealed: &[u8]) -> Result<Vec<IndexEntry>> {
        let plaintext = format.open_bound(&self.iv, sealed, &|| format!("pack {pack}"))?;
        let entries: Vec<IndexEntry> = Table::parse(plaintext)?.iter().collect();
        let end = |entry: &IndexEntry| u64::from(entry.offset) + u64::from(entry.packed_len);
        match entries
            .iter()
            .find(|entry| entry.pack == *pack && end(entry) > self.range.start)
        {
            Some(entry) => Err(RepoError::corrupt(format!(
                "content {} lies outside of the pack's contents",
                entry.content
            ))),
            None => Ok(entries),
        }
    }
}

/// The entries in the local index of the whole pack `id`.
///
/// # Errors
/// As [`LocalIndex::find`] and [`LocalIndex::open`].
pub fn recover(format: &ContentFormat, id: &BlobId, pack: &[u8]) -> Result<Vec<IndexEntry>> {
    let found = LocalIndex::find(pack.len() as u64, pack).and_then(|local| {
        let index = |n: u64| usize::try_from(n).expect("the range lies within the slice");
        local.open(format, id, &pack[index(local.range.start)..index(local.range.end)])
    });
    found.map_err(|e| e.context(format!("local index of pack {id}")))
}
