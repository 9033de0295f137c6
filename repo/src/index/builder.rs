//! Writes version 2 indexes.

use std::collections::HashMap;

use zerocopy::IntoBytes;

use super::layout::{
    DELETED, ExtraV2, FormatRecord, HeaderV2, PackRecord, VALUE_V2_MAX, VALUE_V2_MIN, ValueV2, low24, nibble24,
};
use super::limits::{FORMATS_MAX, LENGTH_END, OFFSET_END, PACK_NAME_MAX, PACKS_MAX};
use super::table::Table;
use super::{EntryRef, IndexEntry};
use crate::error::{Kind, RepoError, Result};
use crate::id::ContentId;

/// Most entries in one index blob (kopia, repo/content/indexblob/index_blob.go).
pub const ENTRIES_PER_SHARD_MAX: usize = 16_000_000;

/// Packs that a 16-bit number can tell apart.
const PACKS_SHORT: usize = 1 << 16;

/// Lengths from here on need the 19th byte of a value.
const LENGTH_LONG: u32 = 1 << 24;

/// Bytes of pack names in one index, at most: with 16,000,000 rows of 52 bytes before them, offsets of names still fit
/// their 32 bits.
const NAME_BYTES_MAX: usize = 1 << 31;

/// The bytes of an index with `entries`, in any order. Of several entries for one content the one that counts is kept.
///
/// # Errors
/// `InvalidInput` when there are none (an empty index is never written), when their hashes differ in length, or when one
/// is beyond what the format can hold.
pub fn build_v2(mut entries: Vec<IndexEntry>) -> Result<Vec<u8>> {
    let key_len = check(&entries)?;
    entries.sort_unstable_by(|a, b| {
        a.content
            .cmp(&b.content)
            .then_with(|| b.as_ref().precedence(&a.as_ref()))
    });
    entries.dedup_by(|later, first| later.content == first.content);

    let mut numbers = Numbers::default();
    let mut long = false;
    for entry in &entries {
        numbers.of(&entry.as_ref());
        long |= entry.packed_len.max(entry.original_len) >= LENGTH_LONG;
    }
    numbers.check()?;
    let value_len = numbers.value_len(long);
    let mut writer = Writer::with_numbers(numbers, key_len, value_len, entries.len());
    entries.iter().for_each(|entry| writer.push(&entry.as_ref()));
    Ok(writer.finish())
}

/// Bytes of a pack record without the name.
pub(crate) const PACK_RECORD_LEN: usize = size_of::<PackRecord>();

/// Most bytes of a version 2 index with `entries` entries, keys of `key_len` bytes, and packs whose records and names
/// take `pack_bytes`.
pub(crate) fn v2_len_max(entries: usize, key_len: usize, pack_bytes: usize) -> usize {
    let formats = entries.min(FORMATS_MAX) * size_of::<FormatRecord>();
    size_of::<HeaderV2>() + entries * (key_len + VALUE_V2_MAX) + pack_bytes + formats
}

/// The index blobs of one flush: one, unless there are more than [`ENTRIES_PER_SHARD_MAX`] entries. Empty shards are
/// left out; no entries give no shard.
///
/// # Errors
/// As [`build_v2`], but no entries are none.
pub fn build_shards(entries: Vec<IndexEntry>) -> Result<Vec<Vec<u8>>> {
    build_shards_of(entries, ENTRIES_PER_SHARD_MAX)
}

pub(super) fn build_shards_of(entries: Vec<IndexEntry>, entries_max: usize) -> Result<Vec<Vec<u8>>> {
    let count = entries.len().div_ceil(entries_max);
    if count <= 1 {
        return if entries.is_empty() {
            Ok(Vec::new())
        } else {
            Ok(vec![build_v2(entries)?])
        };
    }
    let mut shards: Vec<Vec<IndexEntry>> = vec![Vec::new(); count];
    for entry in entries {
        shards[shard_of(&entry.content, count)].push(entry);
    }
    shards
        .into_iter()
        .filter(|shard| !shard.is_empty())
        .map(build_v2)
        .collect()
}

/// Shards for `entries` entries.
pub fn shard_count(entries: usize) -> usize {
    entries.div_ceil(ENTRIES_PER_SHARD_MAX)
}

/// The shard of `content` among `count`: FNV-1a of its text, modulo.
pub fn shard_of(content: &ContentId, count: usize) -> usize {
    // A remainder of a 32-bit number is one; a larger count leaves the upper shards empty.
    let hash = usize::try_from(fnv1a32(content.to_string().as_bytes())).unwrap_or(usize::MAX);
    hash % count
}

/// FNV-1a, 32 bits: offset basis 2166136261, prime 16777619.
fn fnv1a32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(2_166_136_261, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(16_777_619)
    })
}

/// Refuses what the format cannot hold; gives the length of a key.
fn check(entries: &[IndexEntry]) -> Result<usize> {
    let first = entries
        .first()
        .ok_or_else(|| RepoError::new(Kind::InvalidInput, "an index without entries"))?;
    let key_len = first.content.hash().len() + 1;
    for entry in entries {
        check_entry(&entry.as_ref(), key_len)?;
    }
    Ok(key_len)
}

/// Refuses an entry that an index with keys of `key_len` bytes cannot hold.
fn check_entry(entry: &EntryRef<'_>, key_len: usize) -> Result<()> {
    let refuse = |why: String| RepoError::new(Kind::InvalidInput, format!("index entry of {}: {why}", entry.content));
    let hash_len = key_len - 1;
    if entry.content.hash().len() != hash_len {
        return Err(refuse(format!(
            "its hash is not {hash_len} bytes long, as the others are"
        )));
    }
    if entry.offset >= OFFSET_END {
        return Err(refuse(format!(
            "pack offset {} is not below {OFFSET_END}",
            entry.offset
        )));
    }
    let len = entry.packed_len.max(entry.original_len);
    if len >= LENGTH_END {
        return Err(refuse(format!("length {len} is not below {LENGTH_END}")));
    }
    if u32::try_from(entry.time).is_err() {
        return Err(refuse(format!("time {} is past the year 2106", entry.time)));
    }
    if entry.pack.len() > PACK_NAME_MAX {
        return Err(refuse(format!(
            "pack name of more than {PACK_NAME_MAX} bytes: {}",
            entry.pack
        )));
    }
    Ok(())
}

/// The index of `rows`, which come in ascending order of their contents, each once; `None` when there are none. The rows
/// are walked twice, so that nothing but the index itself is held: what [`build_v2`] gives for the same entries.
pub(super) fn build_sorted<'a, I: Iterator<Item = EntryRef<'a>>>(rows: impl Fn() -> I) -> Result<Option<Vec<u8>>> {
    let Some(first) = rows().next() else {
        return Ok(None);
    };
    let key_len = first.content.hash().len() + 1;
    let mut numbers = Numbers::default();
    let (mut long, mut count) = (false, 0);
    for entry in rows() {
        check_entry(&entry, key_len)?;
        numbers.of(&entry);
        numbers.check()?;
        long |= entry.packed_len.max(entry.original_len) >= LENGTH_LONG;
        count += 1;
    }
    let value_len = numbers.value_len(long);
    let mut writer = Writer::with_numbers(numbers, key_len, value_len, count);
    rows().for_each(|entry| writer.push(&entry));
    Ok(Some(writer.finish()))
}

/// Bytes of a value that any entry of `tables` fits, told by their records alone.
pub(super) fn fold_value_len<'a>(tables: impl Iterator<Item = &'a Table>) -> usize {
    let (mut packs, mut formats, mut long) = (0, Vec::new(), false);
    for table in tables {
        packs += table.pack_count();
        long |= table.may_have_long_lengths();
        formats.extend(table.formats());
        formats.sort_unstable();
        formats.dedup();
    }
    value_len(long, packs, formats.len())
}

/// Bytes of a value with lengths that are `long` or not, and numbers below these counts.
fn value_len(long: bool, packs: usize, formats: usize) -> usize {
    match () {
        () if long => VALUE_V2_MAX,
        () if packs > PACKS_SHORT => VALUE_V2_MIN + 2,
        () if formats > 1 => VALUE_V2_MIN + 1,
        () => VALUE_V2_MIN,
    }
}

/// Numbers of packs and formats, in order of their first appearance.
#[derive(Default)]
struct Numbers<'a> {
    packs: HashMap<&'a str, usize>,
    names: Vec<&'a str>,
    name_bytes: usize,
    /// Compression and format version.
    formats: Vec<(u32, u8)>,
}

impl<'a> Numbers<'a> {
    /// Number of the pack and of the format of `entry`.
    fn of(&mut self, entry: &EntryRef<'a>) -> (usize, usize) {
        let next = self.names.len();
        let pack = *self.packs.entry(entry.pack).or_insert(next);
        if pack == next {
            self.names.push(entry.pack);
            self.name_bytes += entry.pack.len();
        }
        let format = (entry.compression, entry.format_version);
        let known = self.formats.iter().position(|f| *f == format);
        let format = known.unwrap_or_else(|| {
            self.formats.push(format);
            self.formats.len() - 1
        });
        (pack, format)
    }

    /// Bytes of a value that these numbers, and lengths that are `long` or not, need.
    fn value_len(&self, long: bool) -> usize {
        value_len(long, self.names.len(), self.formats.len())
    }

    fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(RepoError::new(Kind::InvalidInput, what));
        if self.names.len() > PACKS_MAX || self.name_bytes > NAME_BYTES_MAX {
            return refuse(format!("{} packs in one index, at most {PACKS_MAX}", self.names.len()));
        }
        if self.formats.len() > FORMATS_MAX {
            return refuse(format!(
                "{} formats in one index, at most {FORMATS_MAX}",
                self.formats.len()
            ));
        }
        Ok(())
    }
}

/// Writes the rows of an index in ascending key order, then what follows them.
pub(super) struct Writer<'a> {
    out: Vec<u8>,
    key_len: usize,
    value_len: usize,
    count: usize,
    numbers: Numbers<'a>,
}

impl<'a> Writer<'a> {
    /// A writer of values of `value_len` bytes, as [`fold_value_len`] tells for the tables that the entries come from.
    pub(super) fn new(key_len: usize, value_len: usize, rows_max: usize) -> Self {
        Self::with_numbers(Numbers::default(), key_len, value_len, rows_max)
    }

    fn with_numbers(numbers: Numbers<'a>, key_len: usize, value_len: usize, rows_max: usize) -> Self {
        let mut out = Vec::with_capacity(size_of::<HeaderV2>() + rows_max * (key_len + value_len) + numbers.len());
        out.resize(size_of::<HeaderV2>(), 0);
        Self {
            out,
            key_len,
            value_len,
            count: 0,
            numbers,
        }
    }

    /// One more entry might not fit the format.
    pub(super) fn is_full(&self) -> bool {
        self.count >= ENTRIES_PER_SHARD_MAX
            || self.numbers.names.len() >= PACKS_MAX
            || self.numbers.name_bytes > NAME_BYTES_MAX - PACK_NAME_MAX
            || self.numbers.formats.len() >= FORMATS_MAX
    }

    /// Appends a row. Its key is greater than that of the row before.
    pub(super) fn push(&mut self, entry: &EntryRef<'a>) {
        let (pack, format) = self.numbers.of(entry);
        let (key, len) = entry.content.key();
        debug_assert_eq!(len, self.key_len);
        self.out.extend_from_slice(&key[..len]);
        let value = ValueV2 {
            time: u32::try_from(entry.time)
                .expect("times are checked before rows are written")
                .into(),
            offset: (entry.offset | if entry.deleted { DELETED } else { 0 }).into(),
            original_low: low24(entry.original_len),
            packed_low: low24(entry.packed_len),
            pack_low: u16::try_from(pack & 0xffff).expect("16 bits").into(),
        };
        let extra = ExtraV2 {
            format: u8::try_from(format).expect("formats are counted before rows are written"),
            pack_high: u8::try_from(pack >> 16).expect("packs are counted before rows are written"),
            lengths_high: nibble24(entry.original_len) << 4 | nibble24(entry.packed_len),
        };
        self.out.extend_from_slice(value.as_bytes());
        self.out
            .extend_from_slice(&extra.as_bytes()[..self.value_len - VALUE_V2_MIN]);
        self.count += 1;
    }

    /// The index.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let u32_of = |n: usize| u32::try_from(n).expect("bounded by the entries of a shard");
        let header = HeaderV2 {
            version: 2,
            key_len: u8::try_from(self.key_len).expect("a hash has at most 32 bytes"),
            value_len: u16::try_from(self.value_len).expect("16 to 19").into(),
            entry_count: u32_of(self.count).into(),
            pack_count: u32_of(self.numbers.names.len()).into(),
            format_count: u8::try_from(self.numbers.formats.len())
                .expect("formats are counted before rows are written"),
            base_time: 0.into(),
        };
        self.out[..size_of::<HeaderV2>()].copy_from_slice(header.as_bytes());
        self.out.reserve_exact(self.numbers.len());
        let records =
            self.numbers.names.len() * size_of::<PackRecord>() + self.numbers.formats.len() * size_of::<FormatRecord>();
        let mut name_offset = self.out.len() + records;
        for name in &self.numbers.names {
            let name_len = u8::try_from(name.len()).expect("names are checked before rows are written");
            let record = PackRecord {
                name_len,
                name_offset: u32_of(name_offset).into(),
            };
            self.out.extend_from_slice(record.as_bytes());
            name_offset += name.len();
        }
        for (compression, format_version) in &self.numbers.formats {
            let record = FormatRecord {
                compression: (*compression).into(),
                format_version: *format_version,
                encryption_key: 0,
            };
            self.out.extend_from_slice(record.as_bytes());
        }
        self.numbers
            .names
            .iter()
            .for_each(|name| self.out.extend_from_slice(name.as_bytes()));
        self.out
    }
}

impl Numbers<'_> {
    /// Bytes of the records and names.
    fn len(&self) -> usize {
        self.names.len() * size_of::<PackRecord>() + self.formats.len() * size_of::<FormatRecord>() + self.name_bytes
    }
}
