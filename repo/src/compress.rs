//! Content compression as Kopia stores it: a 4-byte header id, big-endian, then the codec's own stream.
//!
//! The id is also in the index, and a reader checks that both agree. The level is recorded nowhere: any valid stream
//! of a codec's kind decodes under its id, so the encoder here is free to use the levels of C zstd.
//!
//! | type                  | use                                                                |
//! |-----------------------|--------------------------------------------------------------------|
//! | [`Codec`]             | one line of Kopia's registry: id, name, kind of stream              |
//! | [`Compressor`]        | one per worker; gives up as soon as the output is not smaller       |
//! | [`Decompressor`]      | one per worker; output and memory bounded by the caller             |
//! | [`CompressionPolicy`] | what the operator asked for: `none`, `auto`, or a codec by name     |
//!
//! ```
//! use repo::compress::{Codec, Compressor, Decompressor};
//!
//! let plain = b"to and fro ".repeat(1000);
//! let codec = Codec::ZSTD_FASTEST;
//! let mut packed = Vec::new();
//! assert!(Compressor::new().compress(codec, codec.level(), &plain, &mut packed)?);
//!
//! let mut back = vec![0; plain.len()];
//! let len = Decompressor::new().decompress_into(codec.id().get(), &packed, &mut back)?;
//! assert_eq!(&back[..len], plain);
//! # Ok::<(), repo::RepoError>(())
//! ```

mod decode;
mod encode;
mod policy;
mod s2;

use std::fmt;

use crate::error::{Kind, RepoError, Result};

pub use decode::{Decompressor, OUTPUT_BYTES_MAX, decompress};
pub use encode::{Compressed, Compressor};
pub use policy::{AutoLevel, CompressionPolicy, PROBE_BYTES, PROBE_LEVEL, PROBE_SAVING_PERCENT_MIN};

/// Bytes of the header in front of every compressed stream.
pub const HEADER_BYTES: usize = 4;

/// Number of a codec in index entries and in front of its streams. The number 0 means "not compressed" in an index and
/// is no header id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeaderId(u32);

impl HeaderId {
    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for HeaderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

impl fmt::Debug for HeaderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeaderId({self})")
    }
}

/// Kind of stream behind the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stream {
    /// gzip members, one or more (RFC 1952).
    Gzip,
    /// zstd frames (RFC 8878).
    Zstd,
    /// Framed S2, a Snappy relative.
    S2,
    /// LZ4 frame. Not read, not written.
    Lz4,
    /// Raw DEFLATE (RFC 1951).
    Deflate,
}

/// A compressor of Kopia's registry.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Codec {
    id: HeaderId,
    name: &'static str,
    stream: Stream,
    level: i32,
}

/// Every codec Kopia ever registered, with the level our encoder uses under that name (0 where we do not encode).
///
/// Source of ids and names: kopia, repo/compression. Go's and C's zstd levels are different scales; the C levels are
/// those nearest to Go's in ratio: `zstd-fastest` has 2.49 in Go and 2.44 at C level 1, `zstd` 2.67 and 2.74 at C
/// level 3 (192 MiB of binaries).
const CODECS: [Codec; 18] = [
    codec(0x1000, "gzip", Stream::Gzip, 6),
    codec(0x1001, "gzip-best-speed", Stream::Gzip, 1),
    codec(0x1002, "gzip-best-compression", Stream::Gzip, 9),
    codec(0x1100, "zstd", Stream::Zstd, 3),
    Codec::ZSTD_FASTEST,
    codec(0x1102, "zstd-better-compression", Stream::Zstd, 7),
    codec(0x1103, "zstd-best-compression", Stream::Zstd, 12),
    codec(0x1200, "s2-default", Stream::S2, s2::LEVEL_DEFAULT),
    codec(0x1201, "s2-better", Stream::S2, s2::LEVEL_BETTER),
    codec(0x1202, "s2-parallel-4", Stream::S2, s2::LEVEL_DEFAULT),
    codec(0x1203, "s2-parallel-8", Stream::S2, s2::LEVEL_DEFAULT),
    codec(0x1300, "pgzip", Stream::Gzip, 6),
    codec(0x1301, "pgzip-best-speed", Stream::Gzip, 1),
    codec(0x1302, "pgzip-best-compression", Stream::Gzip, 9),
    codec(0x1400, "lz4", Stream::Lz4, 0),
    codec(0x1500, "deflate-default", Stream::Deflate, 6),
    codec(0x1501, "deflate-best-speed", Stream::Deflate, 1),
    codec(0x1502, "deflate-best-compression", Stream::Deflate, 9),
];

const fn codec(id: u32, name: &'static str, stream: Stream, level: i32) -> Codec {
    Codec {
        id: HeaderId(id),
        name,
        stream,
        level,
    }
}

impl Codec {
    /// What Kopia uses for metadata, and what `auto` writes at whatever level it chooses.
    pub const ZSTD_FASTEST: Self = codec(0x1101, "zstd-fastest", Stream::Zstd, 1);

    /// Every codec, by id.
    pub fn all() -> &'static [Self] {
        &CODECS
    }

    /// The codec with this header id.
    ///
    /// # Errors
    /// `Unsupported`, with the id, when there is none.
    pub fn by_id(id: u32) -> Result<Self> {
        CODECS.into_iter().find(|codec| codec.id.0 == id).ok_or_else(|| {
            let what = format!("compression header {} is not known to this version", HeaderId(id));
            RepoError::new(Kind::Unsupported, what)
        })
    }

    /// The codec of this name.
    ///
    /// # Errors
    /// `Unsupported`, with the name, when there is none.
    pub fn by_name(name: &str) -> Result<Self> {
        CODECS.into_iter().find(|codec| codec.name == name).ok_or_else(|| {
            RepoError::new(
                Kind::Unsupported,
                format!("compression {name:?} is not known to this version"),
            )
        })
    }

    /// Its header id.
    pub const fn id(self) -> HeaderId {
        self.id
    }

    /// Kopia's name.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// The level [`Compressor`] uses when nobody asks for another: 1 to 12 for zstd, 1 to 9 for gzip and deflate, 1 or 2
    /// for S2.
    pub const fn level(self) -> i32 {
        self.level
    }

    /// `Ok` when this version reads and writes the codec; the error names it and the way out.
    ///
    /// # Errors
    /// `Unsupported` for LZ4.
    pub fn check_supported(self) -> Result<()> {
        match self.stream {
            Stream::Gzip | Stream::Zstd | Stream::Deflate | Stream::S2 => Ok(()),
            Stream::Lz4 => Err(RepoError::new(
                Kind::Unsupported,
                format!(
                    "compression {self} is not supported: kopia v0.22.3 is the last version that reads it; move the \
                     snapshot to another compression with that version"
                ),
            )),
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.id)
    }
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Codec({self})")
    }
}

/// Whether `code` is zstd's way to say that the output did not fit.
fn is_output_full(code: zstd::zstd_safe::ErrorCode) -> bool {
    use zstd::zstd_safe::zstd_sys::ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall;
    code == (ZSTD_error_dstSize_tooSmall as usize).wrapping_neg()
}

#[cfg(test)]
mod tests;
