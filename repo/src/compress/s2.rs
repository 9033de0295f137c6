//! The S2 stream: chunks of at most 4 MiB, each with a checksum of what it decodes to.
//!
//! | bytes | field                                                                                       |
//! |-------|---------------------------------------------------------------------------------------------|
//! | 1     | kind: 0x00 compressed, 0x01 plain, 0xff beginning of a stream, 0x80..=0xfe to be passed over |
//! | 3     | length of what follows, little-endian                                                       |
//! | 4     | masked CRC-32C of the decoded bytes, little-endian; data chunks only                        |
//! | n     | an S2 block, or the bytes themselves                                                        |
//!
//! The framing is done here and not by the codec's own reader, which allocates what a block claims (up to 256 MiB) before
//! it compares that with a limit and takes a stream cut inside a chunk's head for a complete one.
//!
//! Source: google/snappy, framing_format.txt; klauspost/compress, s2/README.md and s2/reader.go.

use minlz::s2::{Encoder, decode_into, decode_len};

use super::decode::Fault;

/// What a stream begins with.
const MAGIC: &[u8; 10] = b"\xff\x06\x00\x00S2sTwO";

/// The same of a Snappy stream, which is valid S2 in smaller blocks.
const MAGIC_SNAPPY: &[u8; 10] = b"\xff\x06\x00\x00sNaPpY";

const CHUNK_COMPRESSED: u8 = 0x00;
const CHUNK_PLAIN: u8 = 0x01;
const CHUNK_STREAM: u8 = 0xff;
/// First of the kinds a reader passes over.
const CHUNK_SKIPPED: u8 = 0x80;

/// Bytes of kind and length, and of a checksum.
const HEAD_BYTES: usize = 4;
const CHECKSUM_BYTES: usize = 4;

/// Longest block there is, decoded, in bytes.
const BLOCK_BYTES_MAX: usize = 4 << 20;

/// Length of the blocks written here, in bytes: the default of Kopia's writer, and one block for a chunk of an image.
const BLOCK_BYTES: usize = 1 << 20;

/// What Kopia's `s2-default` does, and the faster of the two.
pub(super) const LEVEL_DEFAULT: i32 = 1;

/// What Kopia's `s2-better` does.
pub(super) const LEVEL_BETTER: i32 = 2;

/// Writes `input` as one stream to the front of `out`; its length, or `None` when it does not fit.
pub(super) fn encode(encoder: &mut Encoder, level: i32, input: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut len = put(out, 0, MAGIC)?;
    for block in input.chunks(BLOCK_BYTES) {
        let packed = match level {
            LEVEL_DEFAULT => encoder.encode(block),
            _ => encoder.encode_better(block),
        };
        let (kind, bytes) = match packed.len() < block.len() {
            true => (CHUNK_COMPRESSED, &packed[..]),
            false => (CHUNK_PLAIN, block),
        };
        let chunk_len = u32::try_from(CHECKSUM_BYTES + bytes.len()).expect("a block has at most 1 MiB");
        let [a, b, c, _] = chunk_len.to_le_bytes();
        len = put(out, len, &[kind, a, b, c])?;
        len = put(out, len, &checksum(block).to_le_bytes())?;
        len = put(out, len, bytes)?;
    }
    Some(len)
}

/// Copies `bytes` to `at` in `out`; where they end, when there is room.
fn put(out: &mut [u8], at: usize, bytes: &[u8]) -> Option<usize> {
    let end = at + bytes.len();
    out.get_mut(at..end)?.copy_from_slice(bytes);
    Some(end)
}

/// Decodes all of `stream` into the front of `out`; the number of bytes written.
pub(super) fn decode(stream: &[u8], out: &mut [u8]) -> Result<usize, Fault> {
    let mut rest = match stream.split_first_chunk() {
        Some((magic, rest)) if magic == MAGIC || magic == MAGIC_SNAPPY => rest,
        _ => return Err(broken("it does not begin as an S2 stream does")),
    };
    let (mut len, mut has_data) = (0, false);
    while !rest.is_empty() {
        let (kind, body, behind) = chunk(rest)?;
        rest = behind;
        match kind {
            CHUNK_COMPRESSED | CHUNK_PLAIN => {
                len += data(kind, body, &mut out[len..])?;
                has_data = true;
            }
            CHUNK_STREAM if *body == MAGIC[HEAD_BYTES..] || *body == MAGIC_SNAPPY[HEAD_BYTES..] => {}
            CHUNK_STREAM => return Err(broken("a stream of another kind begins in it")),
            CHUNK_SKIPPED.. => {}
            _ => return Err(Fault::Broken(format!("a chunk of unknown kind {kind:#04x}"))),
        }
    }
    match has_data {
        true => Ok(len),
        // Contents of no bytes are stored plain, so this is a stream whose end is missing.
        false => Err(broken("no data in it")),
    }
}

/// Kind and body of the chunk that `stream` begins with, and what follows it.
fn chunk(stream: &[u8]) -> Result<(u8, &[u8], &[u8]), Fault> {
    let cut = || broken("it is cut short");
    let ([kind, len @ ..], rest) = stream.split_first_chunk::<HEAD_BYTES>().ok_or_else(cut)?;
    let len = len.iter().rev().fold(0, |len, byte| len << 8 | usize::from(*byte));
    let (body, behind) = rest.split_at_checked(len).ok_or_else(cut)?;
    Ok((*kind, body, behind))
}

/// Decodes the body of a data chunk into the front of `out`.
fn data(kind: u8, body: &[u8], out: &mut [u8]) -> Result<usize, Fault> {
    let (expect, block) = body
        .split_first_chunk::<CHECKSUM_BYTES>()
        .ok_or_else(|| broken("a chunk is shorter than its checksum"))?;
    let len = match kind {
        CHUNK_PLAIN => block.len(),
        _ => decode_len(block).map_err(|e| Fault::Broken(e.to_string()))?.0,
    };
    if len > BLOCK_BYTES_MAX {
        return Err(Fault::Broken(format!(
            "a block of {len} bytes, at most {BLOCK_BYTES_MAX} are possible"
        )));
    }
    let out = out.get_mut(..len).ok_or(Fault::Full)?;
    match kind {
        CHUNK_PLAIN => out.copy_from_slice(block),
        _ => drop(decode_into(out, block).map_err(|e| Fault::Broken(e.to_string()))?),
    }
    match checksum(out) == u32::from_le_bytes(*expect) {
        true => Ok(len),
        false => Err(broken("a block does not have its checksum")),
    }
}

fn broken(why: &str) -> Fault {
    Fault::Broken(why.to_owned())
}

/// CRC-32C, rotated and shifted so that a checksum over bytes that hold checksums stays meaningful.
///
/// Not the codec's own function: that makes 477 MiB/s, less than the codec itself, and this one 12,000 (AMD EPYC, 1 MiB
/// blocks).
fn checksum(bytes: &[u8]) -> u32 {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    let crc = u32::try_from(crc).expect("a checksum of 32 bits");
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_the_codecs() {
        for len in [0_usize, 1, 15, 16, 255, 256, 4096, 70_001] {
            let bytes = vec![len.to_le_bytes()[0]; len];
            assert_eq!(checksum(&bytes), minlz::crc::crc(&bytes));
        }
    }

    fn stream(chunks: &[&[u8]]) -> Vec<u8> {
        [&[&MAGIC[..]], chunks].concat().concat()
    }

    fn plain(bytes: &[u8]) -> Vec<u8> {
        let len = u8::try_from(bytes.len() + CHECKSUM_BYTES).expect("short");
        [&[CHUNK_PLAIN, len, 0, 0], &checksum(bytes).to_le_bytes()[..], bytes].concat()
    }

    #[track_caller]
    fn check(stream: &[u8], expect: Result<&[u8], &str>) {
        let mut out = [0; 16];
        match (decode(stream, &mut out), expect) {
            (Ok(len), Ok(bytes)) => assert_eq!(&out[..len], bytes),
            (Err(Fault::Broken(why)), Err(part)) => assert!(why.contains(part), "{why}"),
            (found, _) => panic!("{found:?} for {expect:?}"),
        }
    }

    #[test]
    fn padding_an_index_and_a_second_stream_are_passed_over() {
        let ab = plain(b"ab");
        check(&stream(&[&ab]), Ok(b"ab"));
        check(
            &stream(&[&[0xfe, 3, 0, 0, 7, 7, 7], &ab, &[0x99, 1, 0, 0, 1]]),
            Ok(b"ab"),
        );
        check(&stream(&[&ab, MAGIC, &ab, MAGIC_SNAPPY]), Ok(b"abab"));
        check(&[MAGIC_SNAPPY, &ab[..]].concat(), Ok(b"ab"));
    }

    #[test]
    fn a_stream_of_another_kind_is_told() {
        let ab = plain(b"ab");
        for bad in [&b""[..], &ab, b"\xff\x06\x00\x00S2sTwo", &MAGIC[..9]] {
            check(bad, Err("does not begin"));
        }
        check(&stream(&[]), Err("no data"));
        check(&stream(&[&[0xfe, 0, 0, 0]]), Err("no data"));
        check(&stream(&[&ab, &[0x02, 0, 0, 0]]), Err("unknown kind 0x02"));
        check(&stream(&[&ab, &[0x7f, 0, 0, 0]]), Err("unknown kind 0x7f"));
        check(&stream(&[&ab, b"\xff\x06\x00\x00MnLzMn"]), Err("another kind"));
    }

    #[test]
    fn a_block_that_lies_about_its_length_takes_no_memory() {
        // 256 MiB by the head of the block.
        let block = [CHUNK_COMPRESSED, 9, 0, 0, 0, 0, 0, 0, 0x80, 0x80, 0x80, 0x80, 0x01];
        check(&stream(&[&block]), Err("a block of 268435456 bytes"));
        check(
            &stream(&[&[CHUNK_PLAIN, 3, 0, 0, 1, 2, 3]]),
            Err("shorter than its checksum"),
        );
        check(&stream(&[&[CHUNK_PLAIN, 0xff, 0xff, 0xff]]), Err("cut short"));
    }

    #[test]
    fn a_flipped_bit_in_a_plain_chunk_is_found() {
        let mut bytes = stream(&[&plain(b"abcdef")]);
        for at in MAGIC.len() + HEAD_BYTES..bytes.len() {
            bytes[at] ^= 4;
            check(&bytes, Err("checksum"));
            bytes[at] ^= 4;
        }
    }

    #[test]
    fn blocks_that_do_not_shrink_stand_plain_among_the_others() {
        let mut noise = vec![0; BLOCK_BYTES];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let input = [vec![0; BLOCK_BYTES], noise, vec![1; 1000]].concat();
        for level in [LEVEL_DEFAULT, LEVEL_BETTER] {
            let mut out = vec![0; input.len()];
            let len = encode(&mut Encoder::new(), level, &input, &mut out).expect("shrinks");
            assert!(len < BLOCK_BYTES + 60_000, "{len}");
            let mut back = vec![0; input.len()];
            assert_eq!(decode(&out[..len], &mut back).expect("valid"), input.len());
            assert!(back == input);
        }
    }
}
