//! Names of things in a repository: blobs, contents, objects, manifests, sessions.
//!
//! Each type is parsed on construction, so that a value is always well formed, and prints the text Kopia uses.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Kind, RepoError, Result};

/// Longest hash in bytes that a content id can carry (kopia, repo/content/index/id.go).
pub const HASH_LEN_MAX: usize = 32;

/// Longest blob id accepted, in bytes. Kopia's own stay below 120; object stores stop at 1024.
const BLOB_ID_LEN_MAX: usize = 512;

/// Name of a blob: printable ASCII without `/` and without a leading dot. Cheap to clone: an index entry carries one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobId(Arc<str>);

impl std::borrow::Borrow<str> for BlobId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl BlobId {
    /// Checks and takes `id`.
    pub fn new(id: impl Into<Arc<str>>) -> Result<Self> {
        let id = id.into();
        let bytes = id.as_bytes();
        let good = !bytes.is_empty()
            && bytes.len() <= BLOB_ID_LEN_MAX
            && bytes[0] != b'.'
            && bytes.iter().all(|b| b.is_ascii_graphic() && *b != b'/');
        if good {
            Ok(Self(id))
        } else {
            Err(RepoError::new(Kind::InvalidInput, format!("not a blob id: {id:?}")))
        }
    }

    /// A name written in this crate's source. Panics when it is not a blob id, which a test of the caller shows.
    pub(crate) fn known(id: impl Into<Arc<str>>) -> Self {
        Self::new(id).expect("blob ids made by this crate are well formed")
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a content: an optional prefix `g`..`z` and a keyed hash of its plaintext.
///
/// Orders like the binary keys of an index: by prefix (none first), then by hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentId {
    /// 0 when there is none.
    prefix: u8,
    len: u8,
    hash: [u8; HASH_LEN_MAX],
}

impl ContentId {
    /// The content with `prefix` (`None`, or `g`..=`z`) and `hash` (1 to 32 bytes).
    pub fn new(prefix: Option<char>, hash: &[u8]) -> Result<Self> {
        let prefix = match prefix {
            None => 0,
            Some(c @ 'g'..='z') => u8::try_from(c).unwrap_or(0),
            Some(c) => return Err(bad_content(&format!("prefix {c:?} is outside g..z"))),
        };
        Self::from_parts(prefix, hash)
    }

    /// The content whose binary index key is `key`: one prefix byte (0 for none) and the hash.
    pub fn from_key(key: &[u8]) -> Result<Self> {
        match key {
            [prefix @ (0 | b'g'..=b'z'), hash @ ..] => Self::from_parts(*prefix, hash),
            [prefix, ..] => Err(bad_content(&format!("prefix byte {prefix:#04x} in an index key"))),
            [] => Err(bad_content("an empty index key")),
        }
    }

    fn from_parts(prefix: u8, hash: &[u8]) -> Result<Self> {
        if hash.is_empty() || hash.len() > HASH_LEN_MAX {
            return Err(bad_content(&format!(
                "{} hash bytes, not 1 to {HASH_LEN_MAX}",
                hash.len()
            )));
        }
        let mut bytes = [0; HASH_LEN_MAX];
        bytes[..hash.len()].copy_from_slice(hash);
        Ok(Self {
            prefix,
            len: u8::try_from(hash.len()).unwrap_or(u8::MAX),
            hash: bytes,
        })
    }

    /// The prefix character, when there is one.
    pub fn prefix(&self) -> Option<char> {
        (self.prefix != 0).then_some(self.prefix as char)
    }

    /// First byte of the index key: 0 for no prefix.
    pub fn prefix_byte(&self) -> u8 {
        self.prefix
    }

    /// The hash bytes.
    pub fn hash(&self) -> &[u8] {
        &self.hash[..usize::from(self.len)]
    }

    /// The binary index key (prefix byte and hash) in the first `.1` bytes of `.0`.
    pub fn key(&self) -> ([u8; HASH_LEN_MAX + 1], usize) {
        let mut key = [0; HASH_LEN_MAX + 1];
        key[0] = self.prefix;
        key[1..].copy_from_slice(&self.hash);
        (key, usize::from(self.len) + 1)
    }
}

fn bad_content(why: &str) -> RepoError {
    RepoError::new(Kind::InvalidInput, format!("not a content id: {why}"))
}

impl PartialOrd for ContentId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ContentId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.prefix, self.hash()).cmp(&(other.prefix, other.hash()))
    }
}

impl FromStr for ContentId {
    type Err = RepoError;

    fn from_str(text: &str) -> Result<Self> {
        let (prefix, digits) = match text.as_bytes() {
            [prefix, rest @ ..] if text.len() % 2 == 1 => (Some(char::from(*prefix)), rest),
            all => (None, all),
        };
        if digits.len() > HASH_LEN_MAX * 2 {
            return Err(bad_content(&format!(
                "{} hex digits, at most {}",
                digits.len(),
                HASH_LEN_MAX * 2
            )));
        }
        if digits.iter().any(u8::is_ascii_uppercase) {
            return Err(bad_content(&format!("upper-case digits in {text:?}")));
        }
        let mut hash = [0; HASH_LEN_MAX];
        let hash = &mut hash[..digits.len() / 2];
        hex::decode_to_slice(digits, hash).map_err(|_| bad_content(&format!("{text:?} is not hexadecimal")))?;
        Self::new(prefix, hash)
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(prefix) = self.prefix() {
            write!(f, "{prefix}")?;
        }
        for byte in self.hash() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Deepest nesting of lists accepted. Each level divides the size by about 1,800, so 4 levels hold exabytes.
pub const INDIRECTION_MAX: u8 = 8;

/// Name of an object: `I` for each level of lists, `Z` when compressed at object level, then a content id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// Levels of lists above the content; 0 = the content is the object.
    pub indirection: u8,
    /// Compressed at object level (format version 1 only).
    pub compressed: bool,
    /// The content.
    pub content: ContentId,
}

impl ObjectId {
    /// The object stored in one content.
    pub fn direct(content: ContentId) -> Self {
        Self {
            indirection: 0,
            compressed: false,
            content,
        }
    }

    /// The object described by the list that is the object `self`.
    pub fn indirect(self) -> Self {
        Self {
            indirection: self.indirection + 1,
            ..self
        }
    }

    /// The object that holds this object's list, when it has one.
    pub fn list(self) -> Option<Self> {
        (self.indirection > 0).then(|| Self {
            indirection: self.indirection - 1,
            ..self
        })
    }
}

impl FromStr for ObjectId {
    type Err = RepoError;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| RepoError::new(Kind::InvalidInput, format!("not an object id: {text:?} ({why})"));
        let rest = text.trim_start_matches('I');
        let indirection = u8::try_from(text.len() - rest.len()).unwrap_or(u8::MAX);
        if indirection > INDIRECTION_MAX {
            return Err(bad("nested too deep"));
        }
        let (compressed, rest) = match rest.strip_prefix('Z') {
            Some(_) if indirection > 0 => return Err(bad("Z after I")),
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let rest = rest.strip_prefix('D').unwrap_or(rest);
        let content = rest.parse().map_err(|e: RepoError| bad("no content id").because(e))?;
        Ok(Self {
            indirection,
            compressed,
            content,
        })
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for _ in 0..self.indirection {
            f.write_str("I")?;
        }
        if self.compressed {
            f.write_str("Z")?;
        }
        self.content.fmt(f)
    }
}

/// Name of a manifest: 16 random bytes, printed as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ManifestId(pub [u8; 16]);

impl FromStr for ManifestId {
    type Err = RepoError;

    fn from_str(text: &str) -> Result<Self> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id)
            .map_err(|e| RepoError::new(Kind::InvalidInput, format!("not a manifest id: {text:?}")).because(e))?;
        Ok(Self(id))
    }
}

impl fmt::Display for ManifestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ManifestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Seconds from 1970 to 2000-01-01T00:00:00Z, where the month counter of session ids starts.
const SESSION_EPOCH: u64 = 946_684_800;

/// The counter's unit: 30 days in seconds (kopia, repo/content/sessions.go).
const SESSION_UNIT: u64 = 30 * 24 * 3600;

/// Name of a write session: `s`, 16 random hex digits, and the 30-day period since 2000 in hex.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(String);

impl SessionId {
    /// The session started at `unix_seconds` with 8 `random` bytes.
    pub fn new(random: [u8; 8], unix_seconds: u64) -> Self {
        let period = unix_seconds.saturating_sub(SESSION_EPOCH) / SESSION_UNIT;
        Self(format!("s{}{period:x}", hex::encode(random)))
    }

    /// A session that starts now.
    ///
    /// # Errors
    /// `Storage` when the system gives no random bytes.
    pub fn random() -> Result<Self> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random)
            .map_err(|_| RepoError::new(Kind::Storage, "the system's random source failed"))?;
        Ok(Self::new(random, crate::time::Time::now().unix()))
    }

    /// Reads the text back.
    ///
    /// # Errors
    /// `InvalidInput` when it is no session id.
    pub fn parse(text: &str) -> Result<Self> {
        let digits = text.strip_prefix('s').unwrap_or_default();
        match digits.len() > 16 && digits.len() <= 32 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => Ok(Self(text.into())),
            false => Err(RepoError::new(
                Kind::InvalidInput,
                format!("not a session id: {text:?}"),
            )),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ids_of_the_known_vectors_parse_in_ascending_order() {
        let texts = [
            "0012abcd",
            "12345678",
            "ffffffff",
            "g01234567890123",
            "yffffffff",
            "z00000000",
            "z00000001",
            "zffffffff",
        ];
        let ids: Vec<ContentId> = texts[..3]
            .iter()
            .chain(&texts[4..])
            .map(|t| t.parse().expect(t))
            .collect();
        assert!(ids.is_sorted());
        assert_eq!(ids[0].to_string(), "0012abcd");
        assert_eq!(ids[3].to_string(), "yffffffff");
        assert_eq!(ids[3].prefix(), Some('y'));
    }

    #[test]
    fn malformed_content_ids_are_refused() {
        for text in ["", "x", "x1", "xx", "A00", "@abcd", "ABCD", &"00".repeat(33)] {
            assert!(text.parse::<ContentId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn index_keys_round_trip() {
        let id: ContentId = "k00112233445566778899aabbccddeeff".parse().expect("valid");
        let (key, len) = id.key();
        assert_eq!(ContentId::from_key(&key[..len]).expect("valid"), id);
        assert_eq!(key[0], b'k');
        assert!(ContentId::from_key(&[b'a', 1]).is_err());
        assert!(ContentId::from_key(&[]).is_err());
    }

    #[test]
    fn object_ids_of_the_known_vectors() {
        for text in ["Df0f0", "IDf0f0", "IIDf0f0", "Dxf0f0", "IDxf0f0", "IIDxf0f0"] {
            let id: ObjectId = text.parse().expect(text);
            assert_eq!(id.to_string(), text.replace('D', ""));
        }
        for text in [
            "Dxf0f",
            "IDxf0f",
            "Da",
            "Daf0f0",
            "X",
            "I.",
            "I.x",
            "I1",
            "Iab.",
            "Xsomething",
            "IZabcd",
            "",
        ] {
            assert!(text.parse::<ObjectId>().is_err(), "{text:?}");
        }
        assert_eq!("Zabcd".parse::<ObjectId>().expect("valid").to_string(), "Zabcd");
        assert!(format!("{}abcd", "I".repeat(300)).parse::<ObjectId>().is_err());
    }

    #[test]
    fn session_id_matches_the_known_vector() {
        let random = [0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77];
        // 2026-08-21T00:00:00Z
        assert_eq!(SessionId::new(random, 1_787_270_400).as_str(), "s0011223344556677144");
    }

    #[test]
    fn blob_ids_stay_inside_their_store() {
        for bad in ["", "../x", "a/b", ".shards", "a b", "p\n", &"p".repeat(600)] {
            assert!(BlobId::new(bad).is_err(), "{bad:?}");
        }
        assert!(BlobId::new("xn0_00ff-s1-c1").is_ok());
    }
}
