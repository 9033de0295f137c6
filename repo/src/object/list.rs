//! The JSON list of an indirect object: written piece by piece, read as a stream.
//!
//! `{"stream":"kopia:indirect","entries":[{"l":1048576,"o":"…"},{"s":1048576,"l":1048576,"o":"…"}]}` and a newline;
//! `s` and `l` are left out when 0. Source: kopia, repo/object/indirect.go; pieces as in velero's block uploader.

use std::fmt;
use std::io::{BufReader, Read};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{RepoError, Result};
use crate::id::ObjectId;

/// Length of the pieces a list is itself cut into, in bytes: Velero's splitter for lists is `FIXED-128K`, and equal cuts
/// let the lists of two backups share their unchanged pieces.
pub const LIST_PIECE_LEN: usize = 128 << 10;

/// Bytes handed to the parser at once; it takes them one by one.
const READ_AHEAD: usize = 64 << 10;

pub(super) const HEAD: &str = r#"{"stream":"kopia:indirect","entries":["#;
pub(super) const TAIL: &str = "]}\n";

/// One entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// First byte in the object.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What holds them.
    pub object: ObjectId,
}

/// Writes the JSON of a list and hands it out in pieces of [`LIST_PIECE_LEN`] bytes.
pub struct ListBuilder {
    text: String,
    first: bool,
}

impl Default for ListBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl ListBuilder {
    /// The beginning of a list.
    pub fn new() -> Self {
        let mut text = String::with_capacity(LIST_PIECE_LEN + 256);
        text.push_str(HEAD);
        Self { text, first: true }
    }

    /// Adds an entry. When a whole piece is ready, `piece` takes it.
    pub fn push(&mut self, entry: &ListEntry, mut piece: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        use fmt::Write;
        let text = &mut self.text;
        text.push_str(if self.first { "{" } else { ",{" });
        self.first = false;
        if entry.start != 0 {
            write!(text, "\"s\":{},", entry.start).expect("writing to a string");
        }
        if entry.len != 0 {
            write!(text, "\"l\":{},", entry.len).expect("writing to a string");
        }
        write!(text, "\"o\":\"{}\"}}", entry.object).expect("writing to a string");
        self.hand_out(&mut piece)
    }

    /// Ends the list; `piece` takes what is left, in one or more pieces.
    pub fn finish(mut self, mut piece: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.text.push_str(TAIL);
        self.hand_out(&mut piece)?;
        if self.text.is_empty() {
            Ok(())
        } else {
            piece(self.text.as_bytes())
        }
    }

    fn hand_out(&mut self, piece: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        while self.text.len() >= LIST_PIECE_LEN {
            piece(&self.text.as_bytes()[..LIST_PIECE_LEN])?;
            self.text.drain(..LIST_PIECE_LEN);
        }
        Ok(())
    }
}

/// Reads a list from `text` and gives its entries to `each` in order, checked: sorted and without gaps from 0.
/// `name` tells the object in errors.
pub fn parse_list(name: &ObjectId, text: impl Read, each: &mut dyn FnMut(ListEntry) -> Result<()>) -> Result<()> {
    let mut refused = None;
    let mut end = 0u64;
    let mut count = 0u64;
    let mut checked = |entry: RawEntry<'_>| {
        let mut step = || {
            let damaged = |why: &str| RepoError::corrupt(format!("list {name}, entry {count}: {why}"));
            let object: ObjectId = entry
                .object
                .parse()
                .map_err(|e: RepoError| damaged("names no object").because(e))?;
            if entry.start != end {
                return Err(damaged(&format!(
                    "starts at {}, the one before ends at {end}",
                    entry.start
                )));
            }
            end = end
                .checked_add(entry.len)
                .ok_or_else(|| damaged(&format!("has a length of {}", entry.len)))?;
            count += 1;
            each(ListEntry {
                start: entry.start,
                len: entry.len,
                object,
            })
        };
        step().map_err(|e| refused = Some(e))
    };
    let mut json = serde_json::Deserializer::from_reader(BufReader::with_capacity(READ_AHEAD, text));
    let parsed = List { each: &mut checked }
        .deserialize(&mut json)
        .and_then(|()| json.end());
    match (refused, parsed) {
        (Some(e), _) => Err(e),
        (None, Ok(())) => Ok(()),
        (None, Err(e)) if e.is_io() => Err(RepoError::from_read(
            std::io::Error::from(e),
            &format!("read list {name}"),
        )),
        (None, Err(e)) => Err(RepoError::corrupt(format!("list {name} is not the expected JSON")).because(e)),
    }
}

/// Stops the parser; the reason is kept beside it.
type Step<'a> = &'a mut dyn FnMut(RawEntry<'_>) -> Result<(), ()>;

/// What makes a JSON stream a list.
const STREAM: &str = "kopia:indirect";

#[derive(Deserialize)]
struct RawEntry<'a> {
    #[serde(rename = "s", default)]
    start: u64,
    #[serde(rename = "l", default)]
    len: u64,
    #[serde(rename = "o", borrow)]
    object: std::borrow::Cow<'a, str>,
}

struct List<'a> {
    each: Step<'a>,
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of pieces")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut is_list, mut has_entries) = (false, false);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "stream" => {
                    let stream: String = map.next_value()?;
                    if stream != STREAM {
                        return Err(A::Error::custom(format_args!("a stream of {stream:?}, not {STREAM:?}")));
                    }
                    is_list = true;
                }
                "entries" if has_entries => return Err(A::Error::duplicate_field("entries")),
                "entries" => {
                    map.next_value_seed(Entries { each: &mut *self.each })?;
                    has_entries = true;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match (is_list, has_entries) {
            (true, true) => Ok(()),
            (false, _) => Err(A::Error::missing_field("stream")),
            (_, false) => Err(A::Error::missing_field("entries")),
        }
    }
}

struct Entries<'a> {
    each: Step<'a>,
}

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(entry) = seq.next_element::<RawEntry<'_>>()? {
            (self.each)(entry).map_err(|()| A::Error::custom("entry refused"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(n: u64) -> ObjectId {
        format!("{n:032x}").parse().expect("valid")
    }

    fn name() -> ObjectId {
        "x00".parse().expect("valid")
    }

    fn parse(text: &str) -> Result<Vec<ListEntry>> {
        let mut entries = Vec::new();
        parse_list(&name(), text.as_bytes(), &mut |e| {
            entries.push(e);
            Ok(())
        })?;
        Ok(entries)
    }

    #[test]
    fn a_list_is_written_as_kopia_writes_it() {
        let mut text = Vec::new();
        let mut take = |piece: &[u8]| {
            text.extend_from_slice(piece);
            Ok(())
        };
        let mut list = ListBuilder::new();
        for i in 0..2 {
            list.push(
                &ListEntry {
                    start: i << 20,
                    len: 1 << 20,
                    object: object(i),
                },
                &mut take,
            )
            .expect("push");
        }
        list.finish(&mut take).expect("finish");
        let expect = "{\"stream\":\"kopia:indirect\",\"entries\":[{\"l\":1048576,\"o\":\"00000000000000000000000000000000\"},\
                      {\"s\":1048576,\"l\":1048576,\"o\":\"00000000000000000000000000000001\"}]}\n";
        assert_eq!(String::from_utf8(text).expect("text"), expect);
        assert_eq!(parse(expect).expect("valid").len(), 2);
    }

    #[test]
    fn long_lists_come_in_equal_pieces_and_read_back() {
        let mut pieces: Vec<Vec<u8>> = Vec::new();
        let mut take = |piece: &[u8]| {
            pieces.push(piece.to_vec());
            Ok(())
        };
        let mut list = ListBuilder::new();
        let entries: Vec<_> = (0..5000)
            .map(|i| ListEntry {
                start: i << 20,
                len: 1 << 20,
                object: object(i),
            })
            .collect();
        entries.iter().for_each(|e| list.push(e, &mut take).expect("push"));
        list.finish(&mut take).expect("finish");
        let (last, whole) = pieces.split_last().expect("some");
        assert!(whole.len() == 2 && whole.iter().all(|p| p.len() == LIST_PIECE_LEN) && last.len() <= LIST_PIECE_LEN);
        assert_eq!(
            parse(&String::from_utf8(pieces.concat()).expect("text")).expect("valid"),
            entries
        );
    }

    #[test]
    fn disorder_gaps_and_damage_are_refused_with_the_place() {
        let wrap = |entries: &str| format!(r#"{{"stream":"kopia:indirect","entries":[{entries}]}}"#);
        for (entries, place) in [
            (r#"{"s":5,"l":1,"o":"00"}"#, "entry 0: starts at 5"),
            (r#"{"l":4,"o":"00"},{"s":5,"l":1,"o":"00"}"#, "entry 1: starts at 5"),
            (r#"{"l":4,"o":"00"},{"s":2,"l":1,"o":"00"}"#, "entry 1: starts at 2"),
            (r#"{"l":4,"o":"zz"}"#, "entry 0: names no object"),
            (
                r#"{"l":18446744073709551615,"o":"00"},{"s":18446744073709551615,"l":2,"o":"00"}"#,
                "entry 1: has a length",
            ),
        ] {
            let error = parse(&wrap(entries)).expect_err(entries);
            assert!(error.is_damage() && error.to_string().contains(place), "{error}");
        }
        for text in [
            "",
            "[]",
            "{}",
            r#"{"stream":"kopia:directory","entries":[]}"#,
            r#"{"entries":[]}"#,
            r#"{"stream":"kopia:indirect"}"#,
            &wrap(r#"{"l":-1,"o":"00"}"#),
            &wrap(r#"{"l":1}"#),
            &format!("{}x", wrap("")),
            &wrap("")[..20],
        ] {
            assert!(parse(text).expect_err(text).is_damage());
        }
        assert!(
            parse(&wrap(r#"{"l":1,"o":"00","new":[1,{"a":2}]}"#)).is_ok(),
            "unknown fields are passed over"
        );
    }
}
