//! Directory objects: JSON lists of named entries.
//!
//! Source of the fields and their order: kopia, snapshot/manifest.go and snapshot/dirmanifest.go.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::{RepoError, Result};
use crate::id::ObjectId;
use crate::time::Time;

/// Marks a JSON stream as a directory.
const STREAM: &str = "kopia:directory";

/// A directory object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Directory {
    stream: String,
    /// What is in it, in any order.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub entries: Vec<DirectoryEntry>,
    /// Totals of everything below.
    pub summary: Option<Summary>,
}

/// One file, folder or link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    /// File name; empty for the root of a snapshot.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Kind of entry.
    #[serde(rename = "type", default)]
    pub kind: EntryKind,
    /// Permission bits.
    #[serde(default, skip_serializing_if = "Mode::is_zero")]
    pub mode: Mode,
    /// Length in bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
    /// Modification time.
    #[serde(rename = "mtime", default = "epoch", skip_serializing_if = "is_epoch")]
    pub modified: Time,
    /// Owner.
    #[serde(default, skip_serializing_if = "is_zero_id")]
    pub uid: u32,
    /// Group.
    #[serde(default, skip_serializing_if = "is_zero_id")]
    pub gid: u32,
    /// Content of the file, list of the folder, target of the link.
    #[serde(rename = "obj", with = "text")]
    pub object: ObjectId,
    /// Totals below a folder.
    #[serde(rename = "summ", default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
}

/// Kind of a directory entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// Regular file.
    #[serde(rename = "f")]
    File,
    /// Folder.
    #[serde(rename = "d")]
    Directory,
    /// Symbolic link.
    #[serde(rename = "s")]
    Symlink,
    /// Something else.
    #[default]
    #[serde(other, rename = "")]
    Unknown,
}

/// Permission bits, in JSON an octal text with a leading 0. The three special bits stand where Go has them
/// ([`Self::unix`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode(pub u32);

/// Go's bits for set-user-id, set-group-id and sticky, and those of Unix (Go, io/fs/fs.go).
const SPECIAL_BITS: [(u32, u32); 3] = [(1 << 23, 0o4000), (1 << 22, 0o2000), (1 << 20, 0o1000)];

impl Mode {
    /// The bits as `chmod` takes them.
    pub fn unix(self) -> u32 {
        let special = SPECIAL_BITS.iter().filter(|(go, _)| self.0 & go != 0);
        special.fold(self.0 & 0o777, |bits, (_, unix)| bits | unix)
    }

    fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("0{:o}", self.0))
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let parsed = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None if text.starts_with('0') => u32::from_str_radix(&text, 8),
            None => text.parse(),
        };
        parsed
            .map(Self)
            .map_err(|_| de::Error::custom(format_args!("not a file mode: {text:?}")))
    }
}

/// Totals of a folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Bytes in files.
    #[serde(default)]
    pub size: u64,
    /// Files.
    #[serde(default)]
    pub files: u64,
    /// Links.
    #[serde(default)]
    pub symlinks: u64,
    /// Folders.
    #[serde(default)]
    pub dirs: u64,
    /// Newest modification.
    #[serde(rename = "maxTime", default = "epoch")]
    pub newest: Time,
    /// Why it is not complete.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub incomplete: String,
    /// Entries that could not be read.
    #[serde(rename = "numFailed", default)]
    pub failed: u64,
}

impl Summary {
    /// The totals Velero's block uploader writes: the size alone.
    pub fn of_image(size: u64) -> Self {
        Self {
            size,
            files: 0,
            symlinks: 0,
            dirs: 0,
            newest: Time::UNIX_EPOCH,
            incomplete: String::new(),
            failed: 0,
        }
    }
}

impl Directory {
    /// A directory of `entries`.
    pub fn new(entries: Vec<DirectoryEntry>) -> Self {
        Self {
            stream: STREAM.into(),
            entries,
            summary: None,
        }
    }

    /// Reads a directory object. `name` tells the object in errors.
    pub fn parse(name: &ObjectId, bytes: &[u8]) -> Result<Self> {
        let directory: Self = serde_json::from_slice(bytes)
            .map_err(|e| RepoError::corrupt(format!("object {name} is not a directory")).because(e))?;
        if directory.stream != STREAM {
            let what = format!("object {name} is a {:?}, not a directory", directory.stream);
            return Err(RepoError::corrupt(what));
        }
        Ok(directory)
    }

    /// The object's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = crate::json::to_vec(self);
        bytes.push(b'\n');
        bytes
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn is_zero_id(n: &u32) -> bool {
    *n == 0
}

fn epoch() -> Time {
    Time::UNIX_EPOCH
}

fn is_epoch(time: &Time) -> bool {
    *time == Time::UNIX_EPOCH
}

fn null_is_empty<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<DirectoryEntry>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Ids as text.
mod text {
    use super::{Deserialize, Deserializer, ObjectId, Serializer, de};

    pub(super) fn serialize<S: Serializer>(id: &ObjectId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ObjectId, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VELERO: &str = concat!(
        r#"{"stream":"kopia:directory","entries":[{"name":"a-b","type":"f","mode":"0777","size":2097152,"#,
        r#""mtime":"1754-08-30T22:43:41.128654848Z","obj":"Ix00112233445566778899aabbccddeeff"}],"summary":null}"#,
        "\n"
    );

    fn name() -> ObjectId {
        "k00112233445566778899aabbccddeeff".parse().expect("valid")
    }

    #[test]
    fn veleros_block_directory_round_trips_byte_for_byte() {
        let directory = Directory::parse(&name(), VELERO.as_bytes()).expect("valid");
        assert_eq!(directory.entries[0].kind, EntryKind::File);
        assert_eq!(directory.entries[0].mode, Mode(0o777));
        assert_eq!(String::from_utf8(directory.to_bytes()).expect("text"), VELERO);
    }

    #[test]
    fn special_bits_stand_where_go_has_them() {
        for (text, unix) in [
            ("0644", 0o644),
            ("040000755", 0o4755),
            ("020000755", 0o2755),
            ("04000777", 0o1777),
            ("064000111", 0o7111),
            // A folder's own bit of Go's, and Unix bits that Go does not store there.
            ("020000007755", 0o755),
        ] {
            let mode: Mode = serde_json::from_str(&format!("{text:?}")).expect(text);
            assert_eq!(mode.unix(), unix, "{text}");
        }
    }

    #[test]
    fn unknown_fields_and_kinds_are_taken_and_other_streams_are_not() {
        let text = r#"{"stream":"kopia:directory","entries":[{"name":"x","type":"b","new":1,"obj":"ab"}],"summary":{"size":1},"more":[]}"#;
        assert_eq!(
            Directory::parse(&name(), text.as_bytes()).expect("valid").entries[0].kind,
            EntryKind::Unknown
        );
        assert!(
            Directory::parse(&name(), br#"{"stream":"kopia:indirect","entries":[]}"#)
                .expect_err("other")
                .is_damage()
        );
        assert!(Directory::parse(&name(), b"{").expect_err("cut").is_damage());
        assert!(
            Directory::parse(
                &name(),
                br#"{"stream":"kopia:directory","entries":null,"summary":null}"#
            )
            .expect("valid")
            .entries
            .is_empty()
        );
    }
}
