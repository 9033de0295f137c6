//! Packs: blobs of about 20 MiB that hold sealed contents back to back.
//!
//! | part        | bytes                                                                                            |
//! |-------------|--------------------------------------------------------------------------------------------------|
//! | preamble    | 32 random ones                                                                                   |
//! | contents    | as sealed, no framing; the index says where                                                      |
//! | padding     | random ones up to a multiple of 4096; 4096 of them when there is nothing to fill                 |
//! | local index | an index of this pack alone and 32 random bytes, sealed under their whole hash                   |
//! | postamble   | version, hash, offset and length of the local index, checksum                                    |
//!
//! A normal read needs the contents only. The rest is the last safety net: from it `kopia index recover`, and
//! [`recover`] here, rebuild a lost index.
//!
//! Source: kopia, repo/content/content_manager.go and content_index_recovery.go.

mod builder;
mod postamble;
mod recover;

pub use builder::{FinishedPack, PackBuilder, buffer_capacity};
pub use recover::{LocalIndex, TAIL_LEN, recover};

use crate::id::{BlobId, ContentId, SessionId};

/// Random bytes before the first content (kopia, repo/content/content_manager.go).
pub const PREAMBLE_LEN: usize = 32;

/// The local index begins at a multiple of this (same source).
pub const ALIGNMENT: usize = 4096;

/// Random bytes after the index in the plaintext of a local index.
const LOCAL_INDEX_SUFFIX_LEN: usize = 32;

/// What a pack holds. Kinds are kept apart so that reading metadata does not fetch data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Contents without prefix: file data.
    Data,
    /// Contents with one: directories, lists, manifests.
    Metadata,
}

impl Kind {
    /// The kind of pack that `content` goes to.
    pub fn of(content: &ContentId) -> Self {
        if content.prefix().is_some() {
            Self::Metadata
        } else {
            Self::Data
        }
    }

    /// First letter of the pack's name.
    pub const fn letter(self) -> char {
        match self {
            Self::Data => 'p',
            Self::Metadata => 'q',
        }
    }

    /// Name of a pack with 16 `random` bytes. The session in it keeps maintenance away while the session lives.
    pub fn pack_id(self, random: [u8; 16], session: &SessionId) -> BlobId {
        BlobId::known(format!("{}{}-{session}", self.letter(), hex::encode(random)))
    }
}

#[cfg(test)]
mod tests;
