//! The last bytes of a pack: where its local index is.

use crate::error::{Kind, RepoError, Result};

/// The postamble. Numbers are unsigned LEB128, 7 bits a byte, low ones first.
///
/// | field          | bytes   | meaning                                                      |
/// |----------------|---------|--------------------------------------------------------------|
/// | version        | 1       | number 1                                                     |
/// | `iv` length    | 1       | number                                                       |
/// | `iv`           | 16..=32 | hash of the local index' plaintext                           |
/// | `index_offset` | 1..=10  | number: first byte of the sealed local index in the pack     |
/// | `index_len`    | 1..=10  | number: bytes of the sealed local index                      |
/// | checksum       | 4       | CRC-32 (IEEE) of all bytes above, big-endian                 |
/// | length         | 1       | bytes of all fields above; the last byte of the pack         |
///
/// Source: kopia, repo/content/content_index_recovery.go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Postamble {
    pub(super) iv: Vec<u8>,
    pub(super) index_offset: u64,
    pub(super) index_len: u64,
}

/// Most bytes of a postamble of ours: a 32-byte hash, and numbers below 2^35.
pub(super) const POSTAMBLE_LEN_MAX: usize = 1 + 1 + 32 + 5 + 5 + CHECKSUM_LEN + 1;

const VERSION: u64 = 1;
const CHECKSUM_LEN: usize = 4;

impl Postamble {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(POSTAMBLE_LEN_MAX);
        put_number(&mut out, VERSION);
        put_number(&mut out, self.iv.len() as u64);
        out.extend_from_slice(&self.iv);
        put_number(&mut out, self.index_offset);
        put_number(&mut out, self.index_len);
        let checksum = crc32fast::hash(&out);
        out.extend_from_slice(&checksum.to_be_bytes());
        out.push(u8::try_from(out.len()).expect("a hash has at most 32 bytes, two numbers at most 20"));
        out
    }

    /// Reads the postamble at the end of `tail`.
    pub(super) fn parse(tail: &[u8]) -> Result<Self> {
        let corrupt = |why: &str| RepoError::corrupt(format!("postamble of a pack: {why}"));
        let (len, before) = tail.split_last().ok_or_else(|| corrupt("no bytes"))?;
        let start = before
            .len()
            .checked_sub(usize::from(*len))
            .ok_or_else(|| corrupt("cut short"))?;
        let (mut rest, checksum) = before[start..]
            .split_last_chunk::<CHECKSUM_LEN>()
            .ok_or_else(|| corrupt("cut short"))?;
        if crc32fast::hash(rest) != u32::from_be_bytes(*checksum) {
            return Err(corrupt("its checksum does not match"));
        }
        let version = take_number(&mut rest).ok_or_else(|| corrupt("no version"))?;
        if version != VERSION {
            return Err(RepoError::new(
                Kind::Unsupported,
                format!("postamble of a pack: version {version}, only {VERSION} is known"),
            ));
        }
        let iv_len = take_number(&mut rest).and_then(|len| usize::try_from(len).ok());
        let iv_len = iv_len
            .filter(|len| *len <= rest.len())
            .ok_or_else(|| corrupt("its hash is cut short"))?;
        let iv = rest[..iv_len].to_vec();
        rest = &rest[iv_len..];
        let index_offset = take_number(&mut rest).ok_or_else(|| corrupt("no offset"))?;
        let index_len = take_number(&mut rest).ok_or_else(|| corrupt("no length"))?;
        Ok(Self {
            iv,
            index_offset,
            index_len,
        })
    }
}

fn put_number(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(u8::try_from(n & 0x7f).expect("7 bits") | 0x80);
        n >>= 7;
    }
    out.push(u8::try_from(n).expect("7 bits"));
}

/// Takes a number of at most 64 bits off the front of `bytes`.
fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        n |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(index_offset: u64, index_len: u64, expect: &str) {
        let iv = hex::decode("00112233445566778899aabbccddeeff").expect("hex");
        let postamble = Postamble {
            iv,
            index_offset,
            index_len,
        };
        let bytes = postamble.to_bytes();
        assert_eq!(hex::encode(&bytes), expect);
        assert_eq!(Postamble::parse(&bytes).expect("own bytes"), postamble);
        let blob = [&[0xee; 100][..], &bytes].concat();
        assert_eq!(Postamble::parse(&blob).expect("own bytes"), postamble);
    }

    #[test]
    fn postambles_are_those_kopia_writes() {
        check(4096, 300, "011000112233445566778899aabbccddeeff8020ac027e33fcaf1a");
        check(
            20_975_616,
            1234,
            "011000112233445566778899aabbccddeeff80a0800ad209438e9c481c",
        );
    }

    #[test]
    fn damage_and_truncation_are_errors() {
        let bytes = Postamble {
            iv: vec![7; 32],
            index_offset: u64::MAX,
            index_len: 1,
        }
        .to_bytes();
        assert!(Postamble::parse(&bytes).is_ok());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Postamble::parse(&damaged).is_err(), "byte {at}");
            assert!(Postamble::parse(&bytes[..at]).is_err(), "{at} bytes");
            if at > 0 {
                assert!(Postamble::parse(&bytes[at..]).is_err(), "without {at} bytes");
            }
        }
    }

    #[test]
    fn numbers_of_more_than_64_bits_and_unknown_versions_are_errors() {
        let with = |front: &[u8]| {
            let mut out = front.to_vec();
            out.extend_from_slice(&crc32fast::hash(front).to_be_bytes());
            out.push(u8::try_from(out.len()).expect("short"));
            Postamble::parse(&out)
        };
        let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert!(with(&[&[1, 0][..], &huge, &[1, 5]].concat()).is_ok());
        assert!(with(&[&[1, 0][..], &huge, &[2, 5]].concat()).is_err());
        assert!(with(&[&[1, 0][..], &huge, &[0x81, 0, 5]].concat()).is_err());
        assert!(with(&[1, 200, 0]).is_err());
        assert!(with(&[1, 0, 5]).is_err());
        assert!(with(&[]).is_err());
        assert_eq!(with(&[2, 0, 1, 1]).expect_err("version 2").kind(), Kind::Unsupported);
    }
}
