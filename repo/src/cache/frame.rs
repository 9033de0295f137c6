//! The bytes of a cache file: a head, a note and a body under the repository's cache key.
//!
//! A file that was torn by a crash, flipped by its disk, planted by somebody, or moved from another name or repository does
//! not pass; nothing of it is used then. The note can be checked without reading the body.

use crate::crypto::Secret32;

/// First bytes of every file: the format and its version. Another version is another file, and is not read.
const MAGIC: [u8; 8] = *b"bfcache1";

/// Bytes of a head.
pub const HEAD_LEN: usize = 84;

/// Longest note: the names of 200,000 index blobs, a hundred times those at which Kopia warns.
const NOTE_LEN_MAX: usize = 16 << 20;

/// Longest body: 16,000,000 index entries of 52 bytes and their packs, the largest blob that is read whole.
const BODY_LEN_MAX: u64 = crate::blob::GET_LEN_MAX;

/// Head of a cache file. After it: the note, the body, and nothing else. Integers are little-endian.
///
/// | offset | bytes | field      | meaning                                                             |
/// |--------|-------|------------|---------------------------------------------------------------------|
/// | 0      | 8     | magic      | `bfcache1`                                                          |
/// | 8      | 4     | `note_len` | bytes of the note                                                   |
/// | 12     | 8     | `body_len` | bytes of the body                                                   |
/// | 20     | 32    | `note_mac` | keyed BLAKE3 of bytes 0..20, the length of the name, name and note  |
/// | 52     | 32    | `body_mac` | keyed BLAKE3 of `note_mac` and the body                             |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the note.
    pub note_len: usize,
    /// Bytes of the body.
    pub body_len: u64,
    note_mac: [u8; 32],
    body_mac: [u8; 32],
}

/// Why a file is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Not as long as its head says, or without one.
    Torn,
    /// Of another version of the format.
    OtherFormat,
    /// Not what this cache stored under this name.
    Forged,
}

impl Flaw {
    /// In words.
    pub fn why(self) -> &'static str {
        match self {
            Self::Torn => "it is not as long as its head says",
            Self::OtherFormat => "it has another format",
            Self::Forged => "its bytes are not those that were stored under its name",
        }
    }
}

impl Head {
    /// The head of a file called `name` with `note` and `body`; none when they are too long to be kept.
    pub fn seal(key: &Secret32, name: &str, note: &[u8], body: &[u8]) -> Option<[u8; HEAD_LEN]> {
        if note.len() > NOTE_LEN_MAX || body.len() as u64 > BODY_LEN_MAX {
            return None;
        }
        let lens = lens(note.len(), body.len() as u64);
        let note_mac = note_mac(key, &lens, name, note);
        let mut head = [0; HEAD_LEN];
        head[..20].copy_from_slice(&lens);
        head[20..52].copy_from_slice(note_mac.as_bytes());
        head[52..].copy_from_slice(body_mac(key, note_mac.as_bytes(), body).as_bytes());
        Some(head)
    }

    /// Takes the first bytes of a file of `file_len` bytes. No length in a head that is accepted goes past the file.
    ///
    /// # Errors
    /// What contradicts the file or the format.
    pub fn parse(bytes: &[u8], file_len: u64) -> Result<Self, Flaw> {
        let bytes: &[u8; HEAD_LEN] = bytes.first_chunk().ok_or(Flaw::Torn)?;
        if bytes[..8] != MAGIC {
            return Err(Flaw::OtherFormat);
        }
        let note_len = u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes"));
        let body_len = u64::from_le_bytes(bytes[12..20].try_into().expect("8 bytes"));
        let note_len = usize::try_from(note_len).map_err(|_| Flaw::Torn)?;
        let len = (HEAD_LEN as u64 + note_len as u64).checked_add(body_len);
        if note_len > NOTE_LEN_MAX || body_len > BODY_LEN_MAX || len != Some(file_len) {
            return Err(Flaw::Torn);
        }
        Ok(Self {
            note_len,
            body_len,
            note_mac: bytes[20..52].try_into().expect("32 bytes"),
            body_mac: bytes[52..].try_into().expect("32 bytes"),
        })
    }

    /// The head and `note` are those that were stored under `name`.
    ///
    /// # Errors
    /// When they are not.
    pub fn check_note(&self, key: &Secret32, name: &str, note: &[u8]) -> Result<(), Flaw> {
        let mac = note_mac(key, &lens(self.note_len, self.body_len), name, note);
        (note.len() == self.note_len && mac == self.note_mac)
            .then_some(())
            .ok_or(Flaw::Forged)
    }

    /// `body` is what was stored with this head, whose note was checked.
    ///
    /// # Errors
    /// When it is not.
    pub fn check_body(&self, key: &Secret32, body: &[u8]) -> Result<(), Flaw> {
        let right = body.len() as u64 == self.body_len && body_mac(key, &self.note_mac, body) == self.body_mac;
        right.then_some(()).ok_or(Flaw::Forged)
    }
}

/// The fixed beginning of a head.
fn lens(note_len: usize, body_len: u64) -> [u8; 20] {
    let mut lens = [0; 20];
    lens[..8].copy_from_slice(&MAGIC);
    let note_len = u32::try_from(note_len).expect("notes are bounded");
    lens[8..12].copy_from_slice(&note_len.to_le_bytes());
    lens[12..].copy_from_slice(&body_len.to_le_bytes());
    lens
}

fn note_mac(key: &Secret32, lens: &[u8; 20], name: &str, note: &[u8]) -> blake3::Hash {
    let mut mac = blake3::Hasher::new_keyed(key.as_bytes());
    mac.update(lens);
    mac.update(&(name.len() as u64).to_le_bytes());
    mac.update(name.as_bytes());
    mac.update(note);
    mac.finalize()
}

fn body_mac(key: &Secret32, note_mac: &[u8; 32], body: &[u8]) -> blake3::Hash {
    let mut mac = blake3::Hasher::new_keyed(key.as_bytes());
    mac.update(note_mac);
    mac.update(body);
    mac.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const NAME: &str = "tables/0123";

    fn key(byte: u8) -> Secret32 {
        Secret32::new([byte; 32])
    }

    fn file(note: &[u8], body: &[u8]) -> Vec<u8> {
        let head = Head::seal(&key(1), NAME, note, body).expect("short");
        [&head[..], note, body].concat()
    }

    /// The body of `file`, as a reader with `key` has it who looks for `name`.
    fn open<'a>(file: &'a [u8], key: &Secret32, name: &str) -> Result<&'a [u8], Flaw> {
        let head = Head::parse(file, file.len() as u64)?;
        let (note, body) = file[HEAD_LEN..].split_at(head.note_len);
        head.check_note(key, name, note)?;
        head.check_body(key, body)?;
        Ok(body)
    }

    #[test]
    fn only_the_same_name_and_key_open_a_file() {
        let file = file(b"note", b"body");
        assert_eq!(open(&file, &key(1), NAME), Ok(&b"body"[..]));
        assert_eq!(open(&file, &key(2), NAME), Err(Flaw::Forged), "of another repository");
        assert_eq!(open(&file, &key(1), "tables/0124"), Err(Flaw::Forged), "moved");
        assert_eq!(open(b"", &key(1), NAME), Err(Flaw::Torn));
        assert_eq!(
            open(&[b"bfcache2", &file[8..]].concat(), &key(1), NAME),
            Err(Flaw::OtherFormat)
        );
    }

    #[test]
    fn the_border_between_note_and_body_is_bound() {
        let mut file = file(b"note", b"body");
        file[8] = 3;
        file[12] = 5;
        assert_eq!(open(&file, &key(1), NAME), Err(Flaw::Forged));
    }

    #[test]
    fn a_length_past_the_file_is_refused_before_it_is_believed() {
        let mut file = file(b"", b"body");
        file[12..20].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(Head::parse(&file, file.len() as u64), Err(Flaw::Torn));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_anywhere_is_found(note in vec(any::<u8>(), 0..40), body in vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
            let whole = file(&note, &body);
            let mut flipped = whole.clone();
            let at = at.index(flipped.len());
            flipped[at] ^= 1_u8 << bit;
            prop_assert!(open(&flipped, &key(1), NAME).is_err());
            prop_assert_eq!(open(&whole, &key(1), NAME), Ok(&body[..]));
        }

        #[test]
        fn a_file_cut_or_grown_is_found(body in vec(any::<u8>(), 0..200), len in 0..300_usize) {
            let whole = file(b"note", &body);
            let mut other = whole.clone();
            other.resize(len, 0);
            prop_assert_eq!(open(&other, &key(1), NAME).is_ok(), len == whole.len());
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in vec(any::<u8>(), 0..200), len in any::<u64>()) {
            if let Ok(head) = Head::parse(&bytes, len) {
                prop_assert!(HEAD_LEN as u64 + head.note_len as u64 + head.body_len == len);
            }
        }
    }
}
