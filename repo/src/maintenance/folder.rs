//! A directory object read as a stream, for its objects alone: a folder of a million files is not held in memory.

use std::fmt;
use std::io::Read;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::directory::EntryKind;
use crate::error::{RepoError, Result};
use crate::id::ObjectId;

/// What makes a JSON stream a directory (kopia, snapshot/snapshotfs/dir_reader.go).
const STREAM: &str = "kopia:directory";

/// Bytes handed to the parser at once.
const READ_AHEAD: usize = 64 << 10;

/// An entry's kind and object; an entry without object has no contents.
#[derive(Deserialize)]
struct Child<'a> {
    #[serde(rename = "type", default)]
    kind: EntryKind,
    #[serde(rename = "obj", borrow, default)]
    object: std::borrow::Cow<'a, str>,
}

/// Stops the parser; the reason is kept beside it.
type Step<'a> = &'a mut dyn FnMut(Child<'_>) -> Result<(), ()>;

/// Gives kind and object of every entry of directory `name` to `each`.
///
/// # Errors
/// `Corrupt` when `text` is anything but one whole directory; those of `each` and of reading.
pub(super) fn each_child(
    name: &ObjectId,
    text: impl Read,
    each: &mut dyn FnMut(EntryKind, ObjectId) -> Result<()>,
) -> Result<()> {
    let mut refused = None;
    let mut step = |child: Child<'_>| {
        if child.object.is_empty() {
            return Ok(());
        }
        let object = child.object.parse().map_err(|e: RepoError| {
            RepoError::corrupt(format!("directory {name}: an entry names no object")).because(e)
        });
        object
            .and_then(|object| each(child.kind, object))
            .map_err(|e| refused = Some(e))
    };
    let reader = std::io::BufReader::with_capacity(READ_AHEAD, text);
    let mut json = serde_json::Deserializer::from_reader(reader);
    let parsed = Folder { each: &mut step }
        .deserialize(&mut json)
        .and_then(|()| json.end());
    match (refused, parsed) {
        (Some(e), _) => Err(e),
        (None, Ok(())) => Ok(()),
        (None, Err(e)) if e.is_io() => Err(RepoError::from_read(
            std::io::Error::from(e),
            &format!("read directory {name}"),
        )),
        (None, Err(e)) => Err(RepoError::corrupt(format!("object {name} is not a directory")).because(e)),
    }
}

struct Folder<'a> {
    each: Step<'a>,
}

impl<'de> DeserializeSeed<'de> for Folder<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Folder<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a directory")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut is_directory, mut has_entries) = (false, false);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "stream" => {
                    let stream: String = map.next_value()?;
                    if stream != STREAM {
                        return Err(A::Error::custom(format_args!("a stream of {stream:?}, not {STREAM:?}")));
                    }
                    is_directory = true;
                }
                "entries" if has_entries => return Err(A::Error::duplicate_field("entries")),
                "entries" => {
                    map.next_value_seed(Entries { each: &mut *self.each })?;
                    has_entries = true;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match is_directory {
            true => Ok(()),
            false => Err(A::Error::missing_field("stream")),
        }
    }
}

struct Entries<'a> {
    each: Step<'a>,
}

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("entries, or null for none")
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(child) = seq.next_element::<Child<'_>>()? {
            (self.each)(child).map_err(|()| A::Error::custom("entry refused"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn children(text: &str) -> Result<Vec<(EntryKind, String)>> {
        let mut found = Vec::new();
        each_child(&"k00".parse().expect("valid"), text.as_bytes(), &mut |kind, object| {
            found.push((kind, object.to_string()));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn objects_of_every_kind_of_entry_are_given() {
        let text = r#"{"stream":"kopia:directory","entries":[{"name":"a","type":"f","obj":"Ix00"},{"name":"b","type":"d","size":3,"obj":"k01"},
            {"name":"c","type":"s","obj":"02"},{"name":"d","type":"?","obj":"03"},{"name":"e"},{"obj":""}],"summary":{"size":1}}"#;
        let names: Vec<String> = children(text).expect("valid").into_iter().map(|(_, o)| o).collect();
        assert_eq!(names, ["Ix00", "k01", "02", "03"]);
        assert_eq!(children(text).expect("valid")[1].0, EntryKind::Directory);
        for empty in [
            r#"{"stream":"kopia:directory","entries":null,"summary":null}"#,
            r#"{"entries":[],"stream":"kopia:directory"}"#,
            r#"{"stream":"kopia:directory"}"#,
        ] {
            assert!(children(empty).expect(empty).is_empty());
        }
    }

    #[test]
    fn anything_else_is_damage_and_not_an_empty_folder() {
        for bad in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"entries":[]}"#,
            r#"{"stream":"kopia:indirect","entries":[]}"#,
            r#"{"stream":"kopia:directory","entries":{}}"#,
            r#"{"stream":"kopia:directory","entries":[{"obj":"zz"}]}"#,
            r#"{"stream":"kopia:directory","entries":[{"obj":7}]}"#,
            r#"{"stream":"kopia:directory","entries":[{"obj":"k01"}"#,
            r#"{"stream":"kopia:directory","entries":[]} more"#,
        ] {
            assert!(children(bad).expect_err(bad).is_damage());
        }
    }
}
