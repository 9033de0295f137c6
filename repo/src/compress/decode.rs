//! Decoding into bounded memory.
//!
//! Every decoder here writes into a slice and stops when it is full. No window is allocated to a frame's wish: zstd
//! decodes in one shot, so its window is the output itself, and the state of the others is of fixed size.

use std::fmt;
use std::io::Read;

use flate2::bufread::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use zstd::zstd_safe::{DCtx, get_error_name};

use super::{Codec, HEADER_BYTES, HeaderId, Stream, is_output_full, s2};
use crate::error::{RepoError, Result};

/// Longest content there can be, in bytes, for callers who know no better limit: an index has 28 bits for the original
/// length. Source: kopia, repo/content/index (limits tested there: 2^28 is rejected, 2^28 - 1 accepted).
pub const OUTPUT_BYTES_MAX: usize = (1 << 28) - 1;

/// First guess at an output whose length is not known, in bytes: the chunk of a block image. Later guesses grow by
/// [`ROOM_GROWTH`], each only after a stream has really filled the one before.
const ROOM_BYTES_START: usize = 1 << 20;
const ROOM_GROWTH: usize = 4;

/// Decodes streams one after the other; keeps zstd's tables between calls. One per worker.
pub struct Decompressor {
    zstd: DCtx<'static>,
}

/// Why a decoder stopped.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The output is full and the stream goes on.
    Full,
    /// The stream is damaged or cut; the decoder's words.
    Broken(String),
}

impl Decompressor {
    /// A decompressor; about 100 KiB.
    pub fn new() -> Self {
        Self { zstd: DCtx::create() }
    }

    /// Decodes `stream`, which begins with its header, into `out` and gives the number of bytes written. A caller who
    /// knows the length from an index compares it with that number.
    ///
    /// # Errors
    /// - `Corrupt` when the header is not `header_id` (which the index names), when the stream is damaged, cut, or
    ///   followed by other bytes, and when it is longer than `out`.
    /// - `Unsupported` for a codec this version does not read, with its name, id and the way out, and for an id nobody
    ///   knows.
    pub fn decompress_into(&mut self, header_id: u32, stream: &[u8], out: &mut [u8]) -> Result<usize> {
        let (codec, body) = split_header(header_id, stream)?;
        self.decode(codec, body, out)
            .map_err(|fault| fault.told(codec, out.len()))
    }

    /// [`Self::decompress_into`] a vector of at most `limit` bytes: the original length from the index, or
    /// [`OUTPUT_BYTES_MAX`]. What `out` held is lost. Memory follows what the stream really gives (up to 4 times that,
    /// or 1 MiB), not what its header or `limit` claim; after an error `out` is empty.
    ///
    /// # Errors
    /// As [`Self::decompress_into`], `limit` being the length of the output.
    pub fn decompress(&mut self, header_id: u32, stream: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<()> {
        let (codec, body) = split_header(header_id, stream).inspect_err(|_| out.clear())?;
        let mut room = limit.min(ROOM_BYTES_START.max(body.len().saturating_mul(ROOM_GROWTH)));
        loop {
            out.reserve_exact(room.saturating_sub(out.len()));
            out.resize(room, 0);
            match self.decode(codec, body, out) {
                Ok(len) => {
                    out.truncate(len);
                    return Ok(());
                }
                Err(Fault::Full) if room < limit => room = limit.min(room.saturating_mul(ROOM_GROWTH)),
                Err(fault) => {
                    out.clear();
                    return Err(fault.told(codec, limit));
                }
            }
        }
    }

    /// [`Self::decompress`] of a stream whose header nothing else names: a piece compressed at object level.
    ///
    /// # Errors
    /// As [`Self::decompress`].
    pub fn decompress_any(&mut self, stream: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<()> {
        let id = header_id(stream).inspect_err(|_| out.clear())?;
        self.decompress(id, stream, limit, out)
    }

    /// [`Self::decompress_into`] of a stream whose header nothing else names.
    ///
    /// # Errors
    /// As [`Self::decompress_into`].
    pub fn decompress_any_into(&mut self, stream: &[u8], out: &mut [u8]) -> Result<usize> {
        self.decompress_into(header_id(stream)?, stream, out)
    }

    fn decode(&mut self, codec: Codec, body: &[u8], out: &mut [u8]) -> Result<usize, Fault> {
        if body.is_empty() {
            return Err(Fault::Broken("nothing after the header".to_owned()));
        }
        match codec.stream {
            Stream::Zstd => self.zstd.decompress(out, body).map_err(|code| {
                if is_output_full(code) {
                    Fault::Full
                } else {
                    Fault::Broken(get_error_name(code).to_owned())
                }
            }),
            Stream::Gzip => decode_gzip(body, out),
            Stream::Deflate => decode_deflate(body, out),
            Stream::S2 => s2::decode(body, out),
            Stream::Lz4 => unreachable!("split_header refuses what is not supported"),
        }
    }
}

impl Default for Decompressor {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decompressor")
    }
}

/// [`Decompressor::decompress`] for once. Workers keep a [`Decompressor`].
///
/// # Errors
/// As there.
pub fn decompress(header_id: u32, stream: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<()> {
    Decompressor::new().decompress(header_id, stream, limit, out)
}

impl Fault {
    fn told(self, codec: Codec, limit: usize) -> RepoError {
        RepoError::corrupt(match self {
            Self::Full => format!("{codec} stream gives more than the {limit} bytes it may"),
            Self::Broken(why) => format!("{codec} stream does not decode: {why}"),
        })
    }
}

/// The header id that `stream` begins with.
fn header_id(stream: &[u8]) -> Result<u32> {
    let short = || RepoError::corrupt(format!("compressed bytes, {} of them, without a header", stream.len()));
    let (header, _) = stream.split_first_chunk::<HEADER_BYTES>().ok_or_else(short)?;
    Ok(u32::from_be_bytes(*header))
}

/// The codec of a stream we can read, and what follows its header.
fn split_header(header_id: u32, stream: &[u8]) -> Result<(Codec, &[u8])> {
    let codec = Codec::by_id(header_id)?;
    codec.check_supported()?;
    let Some((header, body)) = stream.split_first_chunk::<HEADER_BYTES>() else {
        let what = format!("{codec} stream of {} bytes is shorter than its header", stream.len());
        return Err(RepoError::corrupt(what));
    };
    let found = HeaderId(u32::from_be_bytes(*header));
    if found != codec.id {
        return Err(RepoError::corrupt(format!(
            "compressed bytes begin with header {found}, the index says {codec}"
        )));
    }
    Ok((codec, body))
}

/// All members of a gzip stream.
fn decode_gzip(body: &[u8], out: &mut [u8]) -> Result<usize, Fault> {
    let mut reader = MultiGzDecoder::new(body);
    let broken = |e: std::io::Error| Fault::Broken(e.to_string());
    let mut len = 0;
    while len < out.len() {
        match reader.read(&mut out[len..]).map_err(broken)? {
            0 => return Ok(len),
            n => len += n,
        }
    }
    // Full: the stream must end here, which also lets the reader check the last trailer.
    if reader.read(&mut [0]).map_err(broken)? == 0 {
        Ok(len)
    } else {
        Err(Fault::Full)
    }
}

/// A raw DEFLATE stream. Not through flate2's reader, which takes the end of its input for the end of the stream and so
/// would pass a cut stream as a short one.
fn decode_deflate(body: &[u8], out: &mut [u8]) -> Result<usize, Fault> {
    let mut inflate = Decompress::new(false);
    let (mut taken, mut len) = (0, 0);
    loop {
        let full = len == out.len();
        let mut spare = [0];
        let target = if full { &mut spare[..] } else { &mut out[len..] };
        let (taken_before, given_before) = (inflate.total_in(), inflate.total_out());
        let status = inflate.decompress(&body[taken..], target, FlushDecompress::None);
        let status = status.map_err(|e| Fault::Broken(e.to_string()))?;
        let step = usize::try_from(inflate.total_out() - given_before).expect("within the output slice");
        taken += usize::try_from(inflate.total_in() - taken_before).expect("within the input slice");
        if full && step > 0 {
            return Err(Fault::Full);
        }
        len += step;
        match status {
            Status::StreamEnd if taken == body.len() => return Ok(len),
            Status::StreamEnd => {
                return Err(Fault::Broken(format!("{} bytes after its end", body.len() - taken)));
            }
            Status::Ok | Status::BufError if inflate.total_in() == taken_before && step == 0 => {
                return Err(Fault::Broken("it is cut short".to_owned()));
            }
            Status::Ok | Status::BufError => {}
        }
    }
}
