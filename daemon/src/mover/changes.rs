//! The list of changed extents that `--changed FILE` takes: `{"volumeSize":N,"changed":[{"offset":O,"length":L},…]}`.
//!
//! Who wrote it is not known, and what it leaves out is not looked at. So everything that hints at a broken list is refused
//! with the index of the first extent at fault: a bad number, an empty extent, one past the volume, one said twice.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use blockio::{BlockMap, CHUNK_SIZE, Extent};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::JobError;

/// Longest list read, in bytes: 5 million extents as they are commonly written. A list held in memory takes less than its
/// text, and a volume changed in more places is compared whole in less time than its list is made.
const FILE_LEN_MAX: u64 = 256 << 20;

/// Largest volume of a list: that of the largest [`BlockMap`], 4 PiB.
const VOLUME_SIZE_MAX: u64 = BlockMap::CHUNKS_MAX * CHUNK_SIZE;

/// A list of changed extents that holds together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedFile {
    /// Bytes of the volume, as the list has it. Whoever uses the list compares it with the size of what it works on.
    pub volume_size: u64,
    /// What changed: in the volume, ascending, none empty, none touching another one's bytes.
    pub extents: Vec<Extent>,
}

/// Why a list is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadList {
    /// It is not such a document.
    #[error(
        "not a list of changes: {0}; it should read {{\"volumeSize\":N,\"changed\":[{{\"offset\":O,\"length\":L}},...]}}"
    )]
    Form(String),
    /// A volume that large does not exist.
    #[error("volumeSize is {0}, more than any volume has")]
    VolumeSize(u64),
    /// An extent is wrong.
    #[error("changed[{index}] {why}")]
    Extent {
        /// Position in the list, from 0.
        index: usize,
        /// What is wrong with it.
        why: BadExtent,
    },
}

/// What is wrong with an extent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadExtent {
    /// A field is below zero.
    #[error("has a negative {0}")]
    Negative(&'static str),
    /// A field is not a whole number that fits 64 bits.
    #[error("has {0} that is not a whole number below 2^64")]
    NotWhole(&'static str),
    /// A field is not there.
    #[error("has no {0}")]
    Missing(&'static str),
    /// It is not an object of offset and length.
    #[error("is not an extent: {0}")]
    Form(String),
    /// It ends past 2^64.
    #[error("({offset}, {len} bytes) ends past 2^64")]
    Overflow {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// It has no bytes: a tool that rounds lengths down would say that of a change.
    #[error("at {0} is empty")]
    Empty(u64),
    /// It is not, or not all, in the volume.
    #[error("({extent}) is outside the volume of {volume_size} bytes")]
    Outside {
        /// The extent.
        extent: Extent,
        /// Bytes of the volume.
        volume_size: u64,
    },
    /// It has bytes of an extent before it in the list.
    #[error("({extent}) overlaps changed[{with}]")]
    Overlap {
        /// The extent.
        extent: Extent,
        /// Position of the earlier one.
        with: usize,
    },
}

impl ChangedFile {
    /// Reads the list in `bytes`. Order does not matter.
    ///
    /// # Errors
    /// What is wrong with it; of wrong extents, with the first in the list.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadList> {
        let raw: RawList = serde_json::from_slice(bytes).map_err(|e| BadList::Form(e.to_string()))?;
        let volume_size = raw.volume_size;
        if volume_size > VOLUME_SIZE_MAX {
            return Err(BadList::VolumeSize(volume_size));
        }
        let mut extents = check_extents(&raw.changed.good, volume_size)?;
        if let Some((index, why)) = raw.changed.bad {
            return Err(BadList::Extent { index, why });
        }
        extents.sort_unstable_by_key(|extent| extent.offset);
        Ok(Self { volume_size, extents })
    }

    /// Reads the list in the file at `path`, or on standard input when that is `-`.
    ///
    /// # Errors
    /// `Usage`, which names the file, when it is not there, too long, or refused by [`Self::parse`].
    pub fn read(path: &Path) -> Result<Self, JobError> {
        let (name, bytes) = match path.to_str() {
            Some("-") => ("standard input".to_owned(), read_all(io::stdin().lock())),
            _ => (path.display().to_string(), File::open(path).and_then(read_all)),
        };
        let bad = |why: String| JobError::Usage(format!("list of changes {name}: {why}"));
        let bytes = bytes.map_err(|e| bad(e.to_string()))?;
        if bytes.len() as u64 > FILE_LEN_MAX {
            return Err(bad(format!("longer than {FILE_LEN_MAX} bytes")));
        }
        Self::parse(&bytes).map_err(|e| bad(e.to_string()))
    }

    /// Bytes said to have changed.
    pub fn changed_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.len).sum()
    }

    /// The chunks of a volume of `size` bytes that the list touches. What the list has behind that size is left out, and
    /// nothing is known of what the volume has behind [`volume_size`](Self::volume_size): compare the two first.
    ///
    /// # Panics
    /// When `size` is larger than any [`BlockMap`].
    pub fn map(&self, size: u64) -> BlockMap {
        let mut map = BlockMap::new(size.div_ceil(CHUNK_SIZE));
        let volume = Extent::between(0, size);
        for extent in self.extents.iter().filter_map(|extent| extent.clip(volume)) {
            map.set_extent(extent).expect("clipped to the volume");
        }
        map
    }
}

fn read_all(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than may be there tells a longer one.
    from.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `good` as extents, in the same order.
fn check_extents(good: &[(u64, u64)], volume_size: u64) -> Result<Vec<Extent>, BadList> {
    let volume = Extent::between(0, volume_size);
    let mut extents = Vec::with_capacity(good.len());
    let mut seen = Seen::default();
    for (index, &(offset, len)) in good.iter().enumerate() {
        let refuse = |why| Err(BadList::Extent { index, why });
        let Some(extent) = Extent::new(offset, len) else {
            return refuse(BadExtent::Overflow { offset, len });
        };
        if extent.is_empty() {
            return refuse(BadExtent::Empty(offset));
        }
        if !volume.contains(extent) {
            return refuse(BadExtent::Outside { extent, volume_size });
        }
        if let Some(with) = seen.add(extent, &extents) {
            return refuse(BadExtent::Overlap { extent, with });
        }
        extents.push(extent);
    }
    Ok(extents)
}

/// The extents seen so far. A list in order, which is the common one, costs a comparison an extent; the first that is out of
/// order pays for a search tree.
#[derive(Default)]
struct Seen {
    end: u64,
    /// Start of each extent, and its position in the list.
    by_start: Option<BTreeMap<u64, usize>>,
}

impl Seen {
    /// Adds `extent`, which comes after `earlier`. Position of an earlier one that has some of its bytes, if there is one.
    fn add(&mut self, extent: Extent, earlier: &[Extent]) -> Option<usize> {
        if self.by_start.is_none() {
            if extent.offset >= self.end {
                self.end = extent.end();
                return None;
            }
            self.by_start = Some((0..).zip(earlier).map(|(at, extent)| (extent.offset, at)).collect());
        }
        let by_start = self.by_start.as_mut().expect("made above");
        let below = by_start.range(..extent.end()).next_back();
        if let Some((_, &at)) = below.filter(|(_, at)| earlier[**at].end() > extent.offset) {
            return Some(at);
        }
        by_start.insert(extent.offset, earlier.len());
        None
    }
}

#[derive(Deserialize)]
/// Other fields beside these say nothing of what changed; `blockferry diff --json` has some.
#[serde(rename_all = "camelCase")]
struct RawList {
    volume_size: u64,
    changed: RawExtents,
}

/// The extents up to the first that cannot be one, and why that is none.
struct RawExtents {
    good: Vec<(u64, u64)>,
    bad: Option<(usize, BadExtent)>,
}

impl<'de> Deserialize<'de> for RawExtents {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Extents;
        impl<'de> Visitor<'de> for Extents {
            type Value = RawExtents;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of extents")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawExtents, A::Error> {
                let mut good = Vec::new();
                loop {
                    match list.next_element()? {
                        None => return Ok(RawExtents { good, bad: None }),
                        Some(RawExtent(Ok(extent))) => good.push(extent),
                        Some(RawExtent(Err(why))) => {
                            while list.next_element::<IgnoredAny>()?.is_some() {}
                            let index = good.len();
                            return Ok(RawExtents {
                                good,
                                bad: Some((index, why)),
                            });
                        }
                    }
                }
            }
        }
        deserializer.deserialize_seq(Extents)
    }
}

/// Offset and length, or why it is no extent.
struct RawExtent(Result<(u64, u64), BadExtent>);

impl<'de> Deserialize<'de> for RawExtent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ExtentFields)
    }
}

/// What stands for a field of an extent.
type Field = Option<Result<u64, fn(&'static str) -> BadExtent>>;

struct ExtentFields;

impl<'de> Visitor<'de> for ExtentFields {
    type Value = RawExtent;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an extent")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<RawExtent, A::Error> {
        let (mut offset, mut length): (Field, Field) = (None, None);
        let mut odd = None;
        while let Some(name) = fields.next_key::<std::borrow::Cow<'de, str>>()? {
            let field = match &*name {
                "offset" => &mut offset,
                "length" => &mut length,
                other => {
                    odd.get_or_insert(BadExtent::Form(format!("unknown field {other:?}")));
                    fields.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let value: serde_json::Value = fields.next_value()?;
            let told_before = field.replace(whole(&value)).is_some();
            if told_before {
                odd.get_or_insert(BadExtent::Form(format!("{name} is there twice")));
            }
        }
        let value = |field: Field, name| field.unwrap_or(Err(BadExtent::Missing)).map_err(|why| why(name));
        let extent = value(offset, "offset").and_then(|offset| Ok((offset, value(length, "length")?)));
        Ok(RawExtent(odd.map_or(extent, Err)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawExtent, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(no_object("a list"))
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<RawExtent, E> {
        Ok(no_object("a truth value"))
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<RawExtent, E> {
        Ok(no_object("a number"))
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<RawExtent, E> {
        Ok(no_object("a number"))
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<RawExtent, E> {
        Ok(no_object("a number"))
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<RawExtent, E> {
        Ok(no_object("a text"))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<RawExtent, E> {
        Ok(no_object("null"))
    }
}

fn no_object(what: &str) -> RawExtent {
    RawExtent(Err(BadExtent::Form(format!(
        "{what} where {{\"offset\",\"length\"}} should be"
    ))))
}

/// The number in `value`; else what to say of it.
fn whole(value: &serde_json::Value) -> Result<u64, fn(&'static str) -> BadExtent> {
    match value.as_u64() {
        Some(number) => Ok(number),
        None if value.as_f64().is_some_and(|number| number < 0.0) => Err(BadExtent::Negative),
        None => Err(BadExtent::NotWhole),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockio::ChunkIndex;

    const MIB: u64 = 1 << 20;

    fn list(volume_size: u64, changed: &str) -> Result<ChangedFile, BadList> {
        ChangedFile::parse(format!(r#"{{"volumeSize":{volume_size},"changed":[{changed}]}}"#).as_bytes())
    }

    fn extent(offset: i128, length: i128) -> String {
        format!(r#"{{"offset":{offset},"length":{length}}}"#)
    }

    /// The error of a list with these extents in a volume of 10 MiB.
    #[track_caller]
    fn check_bad(changed: &[String], expect: &str) {
        let error = list(10 * MIB, &changed.join(",")).expect_err("refused");
        assert_eq!(error.to_string(), expect);
    }

    #[test]
    fn a_list_in_any_order_becomes_a_map_of_the_chunks_it_touches() {
        let text = [extent(3 * 1048576 + 5, 1), extent(0, 1048577), extent(1048577, 7)].join(",");
        let changed = list(10 * MIB + 1, &text).expect("good");
        assert_eq!((changed.volume_size, changed.changed_bytes()), (10 * MIB + 1, MIB + 9));
        let chunks = |size| changed.map(size).iter().map(ChunkIndex::get).collect::<Vec<_>>();
        assert_eq!(chunks(10 * MIB + 1), [0, 1, 3]);
        assert_eq!(changed.map(10 * MIB + 1).len(), 11);
        assert_eq!(chunks(3 * MIB), [0, 1], "what is behind a smaller volume is left out");
        assert_eq!(chunks(0), [0u64; 0]);
        let more = br#"{"more":[{}],"changed":[{"length":1,"offset":0}],"volumeSize":1}"#;
        assert_eq!(ChangedFile::parse(more).expect("good").changed_bytes(), 1);
        assert!(list(0, "").expect("nothing changed in nothing").extents.is_empty());
    }

    #[test]
    fn the_first_bad_extent_is_named() {
        let good = extent(0, 100);
        let mib = 1 << 20;
        check_bad(&[good.clone(), extent(-1, 5)], "changed[1] has a negative offset");
        check_bad(&[extent(0, -4096), good.clone()], "changed[0] has a negative length");
        check_bad(
            &[good.clone(), extent(50, 100)],
            "changed[1] (50+100) overlaps changed[0]",
        );
        check_bad(
            &[good.clone(), extent(10 * mib - 1, 2)],
            "changed[1] (10485759+2) is outside the volume of 10485760 bytes",
        );
        check_bad(
            &[good.clone(), extent(i128::from(u64::MAX), 1)],
            "changed[1] (18446744073709551615, 1 bytes) ends past 2^64",
        );
        check_bad(
            &[extent(1 << 64, 1)],
            "changed[0] has offset that is not a whole number below 2^64",
        );
        check_bad(
            &[r#"{"offset":1.5,"length":1}"#.into()],
            "changed[0] has offset that is not a whole number below 2^64",
        );
        check_bad(&[good.clone(), extent(200, 0)], "changed[1] at 200 is empty");
        check_bad(&[good.clone(), r#"{"offset":1}"#.into()], "changed[1] has no length");
        check_bad(
            &[r#"{"offset":1,"len":2}"#.into()],
            "changed[0] is not an extent: unknown field \"len\"",
        );
        check_bad(
            &[r#"{"offset":1,"offset":2,"length":1}"#.into()],
            "changed[0] is not an extent: offset is there twice",
        );
        for other in ["[1,2]", "7", "-7", "1.5", "null", "true", r#""0+1""#] {
            let error = list(10 * MIB, &[&good, other].join(",")).expect_err("refused");
            assert!(matches!(error, BadList::Extent { index: 1, .. }), "{other}: {error}");
        }
        // The first at fault, whichever way it is found.
        check_bad(
            &[good.clone(), extent(10 * mib, 1), extent(-1, 1)],
            "changed[1] (10485760+1) is outside the volume of 10485760 bytes",
        );
        check_bad(
            &[extent(500, 10), good.clone(), extent(90, 11), extent(505, 1)],
            "changed[2] (90+11) overlaps changed[1]",
        );
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"volumeSize":1}"#,
            r#"{"changed":[]}"#,
            r#"{"volumeSize":-1,"changed":[]}"#,
            r#"{"volumeSize":1,"changed":{}}"#,
            r#"{"volumeSize":1,"volumeSize":2,"changed":[]}"#,
            r#"{"volumeSize":1,"changed":[]} x"#,
            r#"{"volumeSize":1,"changed":[{"offset":0,"length":1}"#,
        ] {
            assert!(
                matches!(ChangedFile::parse(text.as_bytes()), Err(BadList::Form(_))),
                "{text}"
            );
        }
        assert_eq!(
            list(VOLUME_SIZE_MAX + 1, ""),
            Err(BadList::VolumeSize(VOLUME_SIZE_MAX + 1))
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = ChangedFile::read(Path::new("/nowhere/list.json")).expect_err("not there");
        assert!(
            error.to_string().starts_with("list of changes /nowhere/list.json: "),
            "{error}"
        );
        assert_eq!(error.exit_code(), 2);
    }

    mod against_a_model {
        use super::*;
        use proptest::prelude::*;

        proptest! {
            /// Lists near the edges of a small volume, against a look at every byte.
            #[test]
            fn the_same_extent_is_refused(extents in prop::collection::vec((0u64..40, 0u64..8), 0..12)) {
                let text: Vec<_> = extents.iter().map(|(o, l)| extent(i128::from(*o), i128::from(*l))).collect();
                let mut bytes = [false; 32];
                let first_bad = extents.iter().position(|(offset, len)| {
                    let range = *offset..offset + len;
                    let bad = *len == 0 || range.end > 32 || range.clone().any(|at| bytes[usize::try_from(at).unwrap()]);
                    if !bad {
                        range.for_each(|at| bytes[usize::try_from(at).unwrap()] = true);
                    }
                    bad
                });
                match list(32, &text.join(",")) {
                    Err(BadList::Extent { index, .. }) => prop_assert_eq!(Some(index), first_bad),
                    Err(e) => prop_assert!(false, "{}", e),
                    Ok(changed) => {
                        prop_assert_eq!(None, first_bad);
                        prop_assert_eq!(changed.changed_bytes(), bytes.iter().filter(|b| **b).count() as u64);
                        prop_assert!(changed.extents.is_sorted_by(|a, b| a.end() <= b.offset));
                    }
                }
            }

            #[test]
            fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
                let _ = ChangedFile::parse(&bytes);
            }
        }
    }
}
