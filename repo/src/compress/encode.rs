//! Encoding that gives up as soon as it does not pay.

use std::fmt;
use std::io::{self, Cursor, Write};
use std::ops::RangeInclusive;

use flate2::write::{DeflateEncoder, GzEncoder};
use zstd::zstd_safe::{CCtx, CParameter, get_error_name};

use super::policy::{self, AutoLevel, CompressionPolicy, PROBE_BYTES, PROBE_LEVEL};
use super::{Codec, HEADER_BYTES, HeaderId, Stream, is_output_full, s2};
use crate::error::{Kind, RepoError, Result};

/// Levels of C zstd we take: below -7 speed hardly grows, above 19 memory does (hundreds of MiB per worker).
const ZSTD_LEVELS: RangeInclusive<i32> = -7..=19;

/// Levels of DEFLATE, 0 being no compression.
const DEFLATE_LEVELS: RangeInclusive<i32> = 0..=9;

/// Levels of S2: the two Kopia writes.
const S2_LEVELS: RangeInclusive<i32> = s2::LEVEL_DEFAULT..=s2::LEVEL_BETTER;

/// A stream that is worth storing: shorter than what went in, header included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// Header id for the index, also in front of the stream.
    pub id: HeaderId,
    /// Bytes of header and stream.
    pub len: usize,
}

/// Encodes contents one after the other; keeps the tables of zstd and S2 between calls. One per worker.
pub struct Compressor {
    zstd: CCtx<'static>,
    /// The level `zstd` is set to.
    zstd_level: Option<i32>,
    s2: minlz::s2::Encoder,
    /// Where a probe is compressed to; its content is never looked at.
    probe: Vec<u8>,
}

impl Compressor {
    /// A compressor. Its tables appear with the first use of a level: about 0.2 MiB at zstd -3, 1.3 MiB at 3.
    pub fn new() -> Self {
        Self {
            zstd: CCtx::create(),
            zstd_level: None,
            s2: minlz::s2::Encoder::new(),
            probe: Vec::new(),
        }
    }

    /// Compresses `input` at `level` into the front of `out` and gives the length of header and stream; `None`, with
    /// garbage in `out`, when they are not shorter than `input` or not shorter than `out` allows.
    ///
    /// The encoder sees only the room that pays, so it stops early on data that does not compress.
    ///
    /// # Errors
    /// - `Unsupported` for a codec this version does not write.
    /// - `InvalidInput` for a level outside -7 to 19 (zstd), 0 to 9 (gzip, deflate) or 1 to 2 (S2).
    pub fn compress_into(&mut self, codec: Codec, level: i32, input: &[u8], out: &mut [u8]) -> Result<Option<usize>> {
        codec.check_supported()?;
        let levels = match codec.stream {
            Stream::Zstd => ZSTD_LEVELS,
            Stream::S2 => S2_LEVELS,
            _ => DEFLATE_LEVELS,
        };
        if !levels.contains(&level) {
            let what = format!(
                "{codec} takes levels {} to {}, not {level}",
                levels.start(),
                levels.end()
            );
            return Err(RepoError::new(Kind::InvalidInput, what));
        }
        let room = out.len().min(input.len().saturating_sub(1));
        let Some((header, body)) = out[..room].split_first_chunk_mut::<HEADER_BYTES>() else {
            return Ok(None);
        };
        *header = codec.id.get().to_be_bytes();
        let len = match codec.stream {
            Stream::Zstd => self.zstd(level, input, body)?,
            Stream::Gzip => fitting(deflate(level, body, GzEncoder::new, input, GzEncoder::finish))?,
            Stream::Deflate => fitting(deflate(level, body, DeflateEncoder::new, input, DeflateEncoder::finish))?,
            Stream::S2 => s2::encode(&mut self.s2, level, input, body),
            Stream::Lz4 => unreachable!("refused above"),
        };
        Ok(len.map(|len| HEADER_BYTES + len))
    }

    /// [`Self::compress_into`] a vector, whose former content is lost; `false`, and an empty vector, when it does not
    /// pay.
    ///
    /// # Errors
    /// As [`Self::compress_into`].
    pub fn compress(&mut self, codec: Codec, level: i32, input: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        out.resize(input.len(), 0);
        let len = self
            .compress_into(codec, level, input, out)
            .inspect_err(|_| out.clear())?;
        out.truncate(len.unwrap_or(0));
        Ok(len.is_some())
    }

    /// Does what `policy` says with one content; `None` when it is to be stored plain. `auto_level` is what the mover
    /// has stepped to and matters to [`CompressionPolicy::Auto`] only.
    ///
    /// # Errors
    /// As [`Self::compress_into`].
    pub fn apply(
        &mut self,
        policy: CompressionPolicy,
        auto_level: AutoLevel,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<Option<Compressed>> {
        let (codec, level) = match policy {
            CompressionPolicy::None => return Ok(None),
            CompressionPolicy::Named { codec, level } => (codec, level),
            CompressionPolicy::Auto => {
                if input.len() > PROBE_BYTES && !self.probe(&input[..PROBE_BYTES])? {
                    return Ok(None);
                }
                (Codec::ZSTD_FASTEST, auto_level.get())
            }
        };
        let len = self.compress_into(codec, level, input, out)?;
        Ok(len.map(|len| Compressed { id: codec.id(), len }))
    }

    /// Whether the front of a content compresses well enough to try all of it.
    fn probe(&mut self, front: &[u8]) -> Result<bool> {
        let mut target = std::mem::take(&mut self.probe);
        target.resize(policy::probe_room(front.len()), 0);
        let fits = self.zstd(PROBE_LEVEL, front, &mut target);
        self.probe = target;
        Ok(fits?.is_some())
    }

    /// One zstd frame; `None` when it does not fit.
    fn zstd(&mut self, level: i32, input: &[u8], out: &mut [u8]) -> Result<Option<usize>> {
        let failed = |code| {
            RepoError::new(
                Kind::InvalidInput,
                format!("zstd level {level}: {}", get_error_name(code)),
            )
        };
        if self.zstd_level != Some(level) {
            self.zstd_level = None;
            self.zstd
                .set_parameter(CParameter::CompressionLevel(level))
                .map_err(failed)?;
            self.zstd_level = Some(level);
        }
        match self.zstd.compress2(out, input) {
            Ok(len) => Ok(Some(len)),
            Err(code) if is_output_full(code) => Ok(None),
            Err(code) => Err(failed(code)),
        }
    }
}

impl Default for Compressor {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor")
            .field("zstd_level", &self.zstd_level)
            .finish_non_exhaustive()
    }
}

/// Writer into a slice; answers 0 when the slice is full, which an encoder turns into `WriteZero`.
type Bounded<'a> = Cursor<&'a mut [u8]>;

/// One stream of an encoder from flate2, made by `start` and ended by `finish`; its length.
fn deflate<'a, E: Write>(
    level: i32,
    out: &'a mut [u8],
    start: impl FnOnce(Bounded<'a>, flate2::Compression) -> E,
    input: &[u8],
    finish: impl FnOnce(E) -> io::Result<Bounded<'a>>,
) -> io::Result<usize> {
    let level = flate2::Compression::new(level.unsigned_abs());
    let mut encoder = start(Cursor::new(out), level);
    encoder.write_all(input)?;
    let written = finish(encoder)?.position();
    Ok(usize::try_from(written).expect("within the output slice"))
}

/// Tells "did not fit" from success; a slice fails in no other way.
fn fitting(len: io::Result<usize>) -> Result<Option<usize>> {
    match len {
        Ok(len) => Ok(Some(len)),
        Err(e) if e.kind() == io::ErrorKind::WriteZero => Ok(None),
        Err(e) => Err(RepoError::new(Kind::InvalidInput, "compress a content").because(e)),
    }
}
