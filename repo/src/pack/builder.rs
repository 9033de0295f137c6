//! Fills a pack in a buffer the caller owns: contents are sealed straight into their place.

use std::fmt;
use std::ops::DerefMut;

use aws_lc_rs::rand;

use super::postamble::{POSTAMBLE_LEN_MAX, Postamble};
use super::{ALIGNMENT, LOCAL_INDEX_SUFFIX_LEN, PREAMBLE_LEN};
use crate::content::ContentFormat;
use crate::crypto::OVERHEAD;
use crate::error::{Kind, RepoError, Result};
use crate::id::{BlobId, ContentId};
use crate::index::{self, IndexEntry, limits};

/// Buffers are a multiple of this: the size of a huge page.
const CAPACITY_UNIT: usize = 2 << 20;

/// Contents that [`buffer_capacity`] makes room for past the pack size: one chunk of a block image.
const CONTENT_LEN: usize = 1 << 20;

/// Room for the local index of an ordinary pack: 20 chunks take 3 KiB, and 64 KiB hold 1,800 contents. A pack of smaller
/// ones becomes full a little early ([`PackBuilder::fits`]).
const LOCAL_INDEX_LEN: usize = 64 << 10;

/// Bytes of a buffer that takes packs of `max_pack_size` bytes with contents of up to 1 MiB; 22 MiB for 20 MiB.
pub fn buffer_capacity(max_pack_size: u32) -> usize {
    let data = max_pack_size as usize + CONTENT_LEN + OVERHEAD;
    (data + ALIGNMENT + LOCAL_INDEX_LEN + POSTAMBLE_LEN_MAX).next_multiple_of(CAPACITY_UNIT)
}

/// A pack being filled. `B` is a buffer that is handed on with the finished pack, in production an aligned one of a pool.
pub struct PackBuilder<B> {
    id: BlobId,
    buf: B,
    len: usize,
    max_pack_size: usize,
    format_version: u8,
    entries: Vec<IndexEntry>,
    /// Most bytes that records and names of packs can take in the local index.
    pack_bytes: usize,
    contents: usize,
}

/// A pack ready to be stored: the first `len` bytes of `buf`.
#[derive(Debug)]
pub struct FinishedPack<B> {
    /// Name.
    pub id: BlobId,
    /// The buffer.
    pub buf: B,
    /// Bytes of the pack; 0 when there were only deletions, which make index entries but no pack.
    pub len: usize,
    /// What the index is to say once the pack is stored, and not before.
    pub entries: Vec<IndexEntry>,
}

impl<B: DerefMut<Target = [u8]>> PackBuilder<B> {
    /// Begins the pack `id` in `buf`. It is full at `max_pack_size` bytes; `format_version` goes into its entries.
    ///
    /// # Errors
    /// `InvalidInput` when the buffer holds no pack at all, `Storage` when the system gives no random bytes.
    pub fn new(mut buf: B, id: BlobId, max_pack_size: u32, format_version: u8) -> Result<Self> {
        let pack_bytes = pack_record_len(&id);
        if buf.len() < PREAMBLE_LEN + trailer_len(PREAMBLE_LEN, 1, 33, pack_bytes) {
            let what = format!("a buffer of {} bytes is too small for a pack", buf.len());
            return Err(RepoError::new(Kind::InvalidInput, what));
        }
        random(&mut buf[..PREAMBLE_LEN])?;
        Ok(Self {
            id,
            buf,
            len: PREAMBLE_LEN,
            max_pack_size: max_pack_size as usize,
            format_version,
            entries: Vec::new(),
            pack_bytes,
            contents: 0,
        })
    }

    /// Name of the pack.
    pub fn id(&self) -> &BlobId {
        &self.id
    }

    /// Bytes so far, preamble included.
    pub fn fill(&self) -> usize {
        self.len
    }

    /// The pack is to be finished.
    pub fn is_full(&self) -> bool {
        self.len >= self.max_pack_size
    }

    /// A content of `sealed_len` bytes fits, with what must come after it. When it does not fit an empty pack, it is too
    /// large for the buffer altogether.
    pub fn fits(&self, sealed_len: usize) -> bool {
        let offset_fits = u32::try_from(self.len).is_ok_and(|offset| offset < limits::OFFSET_END);
        let length_fits = u32::try_from(sealed_len).is_ok_and(|len| len < limits::LENGTH_END);
        offset_fits && length_fits && self.has_room(sealed_len, 0)
    }

    /// The deletion `entry` fits.
    pub fn fits_deletion(&self, entry: &IndexEntry) -> bool {
        self.has_room(0, pack_record_len(&entry.pack))
    }

    fn has_room(&self, sealed_len: usize, pack_bytes: usize) -> bool {
        let key_len = self.entries.first().map_or(33, |entry| entry.content.hash().len() + 1);
        let end = self.len + sealed_len;
        end + trailer_len(end, self.entries.len() + 1, key_len, self.pack_bytes + pack_bytes) <= self.buf.len()
    }

    /// Adds a content: `seal` writes its `sealed_len` bytes into their place in the pack. `original_len` is the length of
    /// the plaintext, `compression` the header id (0 = none), `time` in unix seconds. A content is added once.
    ///
    /// # Errors
    /// `InvalidInput` when it does not [fit](Self::fits) or its original length is beyond the format; `seal` is not called.
    pub fn append(
        &mut self,
        content: ContentId,
        original_len: u32,
        compression: u32,
        time: u64,
        sealed_len: usize,
        seal: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        if !self.fits(sealed_len) || original_len >= limits::LENGTH_END {
            return Err(self.refused(&content, sealed_len));
        }
        let offset = u32::try_from(self.len).expect("compared with the limit of offsets");
        let packed_len = u32::try_from(sealed_len).expect("compared with the limit of lengths");
        seal(&mut self.buf[self.len..self.len + sealed_len]);
        self.len += sealed_len;
        self.contents += 1;
        self.entries.push(IndexEntry {
            content,
            pack: self.id.clone(),
            offset,
            packed_len,
            original_len,
            time,
            deleted: false,
            format_version: self.format_version,
            compression,
        });
        Ok(())
    }

    /// Adds the deletion `entry`: what the index said of the content, marked deleted, with the time of the deletion.
    ///
    /// # Errors
    /// `InvalidInput` when it does not [fit](Self::fits_deletion), or is no deletion.
    pub fn delete(&mut self, entry: IndexEntry) -> Result<()> {
        if !entry.deleted {
            let what = format!("content {}: an entry that is not deleted, as a deletion", entry.content);
            return Err(RepoError::new(Kind::InvalidInput, what));
        }
        if !self.fits_deletion(&entry) {
            return Err(self.refused(&entry.content, 0));
        }
        self.pack_bytes += pack_record_len(&entry.pack);
        self.entries.push(entry);
        Ok(())
    }

    fn refused(&self, content: &ContentId, len: usize) -> RepoError {
        let (fill, capacity) = (self.len, self.buf.len());
        let what = format!(
            "content {content} of {len} bytes does not fit pack {} ({fill} of {capacity} bytes used)",
            self.id
        );
        RepoError::new(Kind::InvalidInput, what)
    }

    /// Ends the pack: padding, local index, postamble.
    ///
    /// # Errors
    /// `InvalidInput` when an entry is beyond the format, `Storage` when the system gives no random bytes.
    pub fn finish(mut self, format: &ContentFormat) -> Result<FinishedPack<B>> {
        if self.contents == 0 {
            return Ok(FinishedPack {
                id: self.id,
                buf: self.buf,
                len: 0,
                entries: self.entries,
            });
        }
        let index_at = index_offset(self.len);
        random(&mut self.buf[self.len..index_at])?;

        let mut plaintext = index::build_v2(self.entries.clone())?;
        let index_len = plaintext.len();
        plaintext.resize(index_len + LOCAL_INDEX_SUFFIX_LEN, 0);
        random(&mut plaintext[index_len..])?;
        let digest = format.hasher().hash(&plaintext);
        let index_end = index_at + plaintext.len() + OVERHEAD;
        format
            .cipher()
            .seal_into(digest.as_slice(), &plaintext, &mut self.buf[index_at..index_end]);

        let postamble = Postamble {
            iv: digest.as_slice().to_vec(),
            index_offset: index_at as u64,
            index_len: (index_end - index_at) as u64,
        };
        let postamble = postamble.to_bytes();
        let len = index_end + postamble.len();
        self.buf[index_end..len].copy_from_slice(&postamble);
        Ok(FinishedPack {
            id: self.id,
            buf: self.buf,
            len,
            entries: self.entries,
        })
    }
}

impl<B> fmt::Debug for PackBuilder<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PackBuilder({}, {} entries, {} bytes)",
            self.id,
            self.entries.len(),
            self.len
        )
    }
}

/// Where the local index begins after `len` bytes: at the next multiple of 4096 above.
fn index_offset(len: usize) -> usize {
    (len + 1).next_multiple_of(ALIGNMENT)
}

/// Most bytes that padding, local index and postamble can take after `len` bytes.
fn trailer_len(len: usize, entries: usize, key_len: usize, pack_bytes: usize) -> usize {
    let index = index::v2_len_max(entries, key_len, pack_bytes);
    index_offset(len) - len + index + LOCAL_INDEX_SUFFIX_LEN + OVERHEAD + POSTAMBLE_LEN_MAX
}

/// Bytes that a pack takes in an index.
fn pack_record_len(pack: &BlobId) -> usize {
    index::PACK_RECORD_LEN + pack.as_str().len()
}

fn random(bytes: &mut [u8]) -> Result<()> {
    rand::fill(bytes).map_err(|e| RepoError::new(Kind::Storage, "the system's random source failed").because(e))
}
