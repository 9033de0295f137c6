//! One index blob: everything about it is checked when it is parsed, so that looking something up cannot fail.

use std::fmt;
use std::ops::Range;

use zerocopy::FromBytes;

use super::layout::{
    DELETED, ExtraV2, FormatRecord, HeaderV1, HeaderV2, KEY_LEN_EMPTY, PackRecord, SEAL_OVERHEAD, VALUE_V2_MAX,
    VALUE_V2_MIN, ValueV1, ValueV2, u24,
};
use super::limits::LENGTH_END;
use super::{EntryRef, IndexEntry};
use crate::error::{Kind, RepoError, Result};
use crate::id::{BlobId, ContentId, HASH_LEN_MAX};

/// A sorted table of contents, kept as the bytes of its blob: 33 to 40 bytes a content with 128-bit hashes.
pub struct Table {
    bytes: Vec<u8>,
    shape: Shape,
}

/// Where things stand in the bytes.
#[derive(Clone, Copy)]
struct Shape {
    version: Version,
    key_len: usize,
    row_len: usize,
    /// First row.
    rows: usize,
    count: usize,
    /// First pack record, and how many there are (version 2).
    packs: usize,
    pack_count: usize,
    /// First format record, and how many there are (version 2).
    formats: usize,
    format_count: usize,
    base_time: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Table {
    /// Takes the bytes of an opened index blob.
    ///
    /// # Errors
    /// `Corrupt` when anything in them contradicts the format, `Unsupported` for a version or key that nobody defined
    /// yet. Bytes after the described structure are allowed, as Kopia appends random ones at times.
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        let shape = match bytes.first() {
            Some(1) => Shape::of_v1(&bytes)?,
            Some(2) => Shape::of_v2(&bytes)?,
            Some(version) => {
                return Err(RepoError::new(
                    Kind::Unsupported,
                    format!("index of version {version}, known are 1 and 2"),
                ));
            }
            None => return Err(RepoError::corrupt("index of no bytes")),
        };
        let table = Self { bytes, shape };
        table.check_records()?;
        table.check_rows()?;
        Ok(table)
    }

    /// Contents in the table.
    pub fn len(&self) -> usize {
        self.shape.count
    }

    /// No content is in the table.
    pub fn is_empty(&self) -> bool {
        self.shape.count == 0
    }

    /// Bytes of memory the table holds.
    pub fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    /// The bytes that [`Self::parse`] takes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Packs that entries can name, at most.
    pub(super) fn pack_count(&self) -> usize {
        match self.shape.version {
            Version::V1 => self.shape.count,
            Version::V2 => self.shape.pack_count,
        }
    }

    /// Names of the packs that rows can be in; none in version 1, which keeps them in the rows.
    pub(crate) fn pack_names(&self) -> Option<impl Iterator<Item = &str>> {
        let name = |number| self.pack_name(self.record(self.shape.packs, number));
        let names =
            (0..self.shape.pack_count).map(move |number| name(number).expect("checked when the table is parsed"));
        (self.shape.version == Version::V2).then_some(names)
    }

    /// A length in an entry may need more than 24 bits.
    pub(super) fn may_have_long_lengths(&self) -> bool {
        self.shape.version == Version::V1 || self.shape.row_len - self.shape.key_len == VALUE_V2_MAX
    }

    /// Pairs of compression and format version that entries can have; version 1 keeps them in the rows.
    pub(super) fn formats(&self) -> impl Iterator<Item = (u32, u8)> {
        (0..self.shape.format_count).map(|number| {
            let record: &FormatRecord = self.record(self.shape.formats, number);
            (record.compression.get(), record.format_version)
        })
    }

    /// What the table says of `content`, deletions included.
    pub fn find(&self, content: &ContentId) -> Option<EntryRef<'_>> {
        self.row_of(content).map(|row| self.entry(row))
    }

    /// Row of `content`.
    pub(super) fn row_of(&self, content: &ContentId) -> Option<usize> {
        let (key, len) = content.key();
        let row = self.lower_bound(&key[..len]);
        (row < self.len() && self.key(row) == &key[..len]).then_some(row)
    }

    /// All entries, in order of their contents.
    pub fn iter(&self) -> impl Iterator<Item = IndexEntry> + '_ {
        self.rows(0..self.len())
    }

    /// The entries whose contents have the prefix byte `prefix` (0 = none), in order.
    pub fn range(&self, prefix: u8) -> impl Iterator<Item = IndexEntry> + '_ {
        self.rows(self.prefix_rows(prefix))
    }

    fn rows(&self, rows: Range<usize>) -> impl Iterator<Item = IndexEntry> + '_ {
        rows.map(|row| self.entry(row).to_entry())
    }

    /// Rows of the contents with the prefix byte `prefix`.
    pub(super) fn prefix_rows(&self, prefix: u8) -> Range<usize> {
        let end = prefix
            .checked_add(1)
            .map_or(self.len(), |next| self.lower_bound(&[next]));
        self.lower_bound(&[prefix])..end
    }

    /// First row whose key is not less than `key`.
    fn lower_bound(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle) < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Bytes of a key; 0 in an empty table.
    pub(super) fn key_len(&self) -> usize {
        self.shape.key_len
    }

    /// Key of row `row`.
    pub(super) fn key(&self, row: usize) -> &[u8] {
        let start = self.shape.rows + row * self.shape.row_len;
        &self.bytes[start..start + self.shape.key_len]
    }

    /// Entry in row `row`, which `check_rows` has accepted.
    pub(super) fn entry(&self, row: usize) -> EntryRef<'_> {
        self.decode(row).expect("rows are checked when the table is parsed")
    }

    /// Whether the content in row `row` is deleted: without a look at its pack, whose name lies anywhere in the table.
    pub(super) fn is_deleted(&self, row: usize) -> bool {
        let value = self.value(row);
        let offset = match self.shape.version {
            Version::V1 => ValueV1::ref_from_prefix(value)
                .ok()
                .map(|(value, _)| value.offset.get()),
            Version::V2 => ValueV2::ref_from_prefix(value)
                .ok()
                .map(|(value, _)| value.offset.get()),
        };
        offset.expect("rows are checked when the table is parsed") & DELETED != 0
    }

    /// Entry in row `row`, or what is wrong with it.
    fn decode(&self, row: usize) -> Result<EntryRef<'_>, &'static str> {
        let content = ContentId::from_key(self.key(row)).map_err(|_| "a key is no content id")?;
        match self.shape.version {
            Version::V1 => self.decode_v1(content, self.value(row)),
            Version::V2 => self.decode_v2(content, self.value(row)),
        }
    }

    fn value(&self, row: usize) -> &[u8] {
        let end = self.shape.rows + (row + 1) * self.shape.row_len;
        &self.bytes[end - self.shape.row_len + self.shape.key_len..end]
    }

    fn decode_v2(&self, content: ContentId, value: &[u8]) -> Result<EntryRef<'_>, &'static str> {
        let (value, rest) = ValueV2::ref_from_prefix(value).map_err(|_| "a value is cut short")?;
        let extra = ExtraV2 {
            format: rest.first().copied().unwrap_or(0),
            pack_high: rest.get(1).copied().unwrap_or(0),
            lengths_high: rest.get(2).copied().unwrap_or(0),
        };
        let pack = usize::from(extra.pack_high) << 16 | usize::from(value.pack_low.get());
        let format = usize::from(extra.format);
        if pack >= self.shape.pack_count {
            return Err("a pack number is out of range");
        }
        if format >= self.shape.format_count {
            return Err("a format number is out of range");
        }
        let format: &FormatRecord = self.record(self.shape.formats, format);
        let time = value
            .time
            .get()
            .checked_add(self.shape.base_time)
            .ok_or("a time is past the year 2106")?;
        Ok(EntryRef {
            content,
            pack: self.pack_name(self.record(self.shape.packs, pack))?,
            offset: value.offset.get() & !DELETED,
            packed_len: u24(value.packed_low) | u32::from(extra.lengths_high & 0x0f) << 24,
            original_len: u24(value.original_low) | u32::from(extra.lengths_high >> 4) << 24,
            time: u64::from(time),
            deleted: value.offset.get() & DELETED != 0,
            format_version: format.format_version,
            compression: format.compression.get(),
        })
    }

    fn decode_v1(&self, content: ContentId, value: &[u8]) -> Result<EntryRef<'_>, &'static str> {
        let value = ValueV1::ref_from_bytes(value).map_err(|_| "a value is cut short")?;
        if value.time_high.get() != 0 {
            return Err("a time is past the year 2106");
        }
        let packed_len = value.packed_len.get();
        if packed_len >= LENGTH_END {
            return Err("a content is longer than 256 MiB");
        }
        Ok(EntryRef {
            content,
            pack: self.name(value.name_offset.get(), value.name_len)?,
            offset: value.offset.get() & !DELETED,
            packed_len,
            original_len: packed_len
                .checked_sub(SEAL_OVERHEAD)
                .ok_or("a content is shorter than its encryption")?,
            time: u64::from(value.time_low.get()),
            deleted: value.offset.get() & DELETED != 0,
            format_version: value.format_version,
            compression: 0,
        })
    }

    /// Record `number` of those that begin at `start`; the caller has compared the number with their count.
    fn record<T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned>(
        &self,
        start: usize,
        number: usize,
    ) -> &T {
        let start = start + number * size_of::<T>();
        T::ref_from_bytes(&self.bytes[start..start + size_of::<T>()]).expect("unaligned, of exactly this size")
    }

    fn pack_name(&self, record: &PackRecord) -> Result<&str, &'static str> {
        self.name(record.name_offset.get(), record.name_len)
    }

    fn name(&self, offset: u32, len: u8) -> Result<&str, &'static str> {
        let start = usize::try_from(offset).map_err(|_| "a pack name is outside of the index")?;
        let bytes = start
            .checked_add(usize::from(len))
            .and_then(|end| self.bytes.get(start..end));
        let bytes = bytes.ok_or("a pack name is outside of the index")?;
        std::str::from_utf8(bytes).map_err(|_| "a pack name is not text")
    }

    /// Pack and format records, whether a row uses them or not.
    fn check_records(&self) -> Result<()> {
        for number in 0..self.shape.pack_count {
            let name = self.pack_name(self.record(self.shape.packs, number));
            let name = name.map_err(|why| RepoError::corrupt(format!("index: pack {number}: {why}")))?;
            BlobId::new(name).map_err(|e| RepoError::corrupt(format!("index: pack {number}")).because(e))?;
        }
        for number in 0..self.shape.format_count {
            let record: &FormatRecord = self.record(self.shape.formats, number);
            if record.encryption_key != 0 {
                let what = format!(
                    "index: contents under encryption key {}, only key 0 is known",
                    record.encryption_key
                );
                return Err(RepoError::new(Kind::Unsupported, what));
            }
        }
        Ok(())
    }

    fn check_rows(&self) -> Result<()> {
        let mut last_name = None;
        for row in 0..self.len() {
            let corrupt = |why: &str| RepoError::corrupt(format!("index: row {row} of {}: {why}", self.len()));
            let entry = self.decode(row).map_err(corrupt)?;
            if row > 0 && self.key(row - 1) >= self.key(row) {
                return Err(corrupt("keys are not in ascending order"));
            }
            // Version 2 names have been checked with their records.
            if self.shape.version == Version::V1 && last_name != Some(entry.pack) {
                BlobId::new(entry.pack).map_err(|e| corrupt("pack name").because(e))?;
                last_name = Some(entry.pack);
            }
        }
        Ok(())
    }
}

impl Shape {
    fn of_v2(bytes: &[u8]) -> Result<Self> {
        let (header, _) = HeaderV2::ref_from_prefix(bytes).map_err(|_| short(bytes, size_of::<HeaderV2>() as u64))?;
        let value_len = usize::from(header.value_len.get());
        if !(VALUE_V2_MIN..=VALUE_V2_MAX).contains(&value_len) {
            return Err(RepoError::corrupt(format!(
                "index: values of {value_len} bytes, not 16 to 19"
            )));
        }
        let key_len = key_len(header.key_len)?;
        let (count, pack_count) = (header.entry_count.get(), header.pack_count.get());
        // In 64 bits no claim can overflow: at most 2^32 rows of 52 bytes.
        let rows = size_of::<HeaderV2>() as u64;
        let packs = rows + u64::from(count) * (key_len + value_len) as u64;
        let formats = packs + u64::from(pack_count) * size_of::<PackRecord>() as u64;
        let end = formats + u64::from(header.format_count) * size_of::<FormatRecord>() as u64;
        Ok(Self {
            version: Version::V2,
            key_len,
            row_len: key_len + value_len,
            rows: within(bytes, rows)?,
            count: within(bytes, end).and(to_usize(count))?,
            packs: within(bytes, packs)?,
            pack_count: to_usize(pack_count)?,
            formats: within(bytes, formats)?,
            format_count: usize::from(header.format_count),
            base_time: header.base_time.get(),
        })
    }

    fn of_v1(bytes: &[u8]) -> Result<Self> {
        let (header, _) = HeaderV1::ref_from_prefix(bytes).map_err(|_| short(bytes, size_of::<HeaderV1>() as u64))?;
        let rows = size_of::<HeaderV1>();
        let empty = Self {
            version: Version::V1,
            key_len: 0,
            row_len: 0,
            rows,
            count: 0,
            packs: rows,
            pack_count: 0,
            formats: rows,
            format_count: 0,
            base_time: 0,
        };
        if header.key_len == KEY_LEN_EMPTY {
            return Ok(empty);
        }
        if usize::from(header.value_len.get()) != size_of::<ValueV1>() {
            return Err(RepoError::corrupt(format!(
                "index: values of {} bytes, not 20",
                header.value_len
            )));
        }
        let key_len = key_len(header.key_len)?;
        let row_len = key_len + size_of::<ValueV1>();
        let count = header.entry_count.get();
        within(bytes, rows as u64 + u64::from(count) * row_len as u64)?;
        Ok(Self {
            key_len,
            row_len,
            count: to_usize(count)?,
            ..empty
        })
    }
}

/// Bytes of a key, if it is a prefix byte and a hash that a content id can have.
fn key_len(len: u8) -> Result<usize> {
    let len = usize::from(len);
    if (2..=HASH_LEN_MAX + 1).contains(&len) {
        Ok(len)
    } else {
        Err(RepoError::corrupt(format!(
            "index: keys of {len} bytes, not 2 to {}",
            HASH_LEN_MAX + 1
        )))
    }
}

/// `end`, if the bytes reach as far.
fn within(bytes: &[u8], end: u64) -> Result<usize> {
    usize::try_from(end)
        .ok()
        .filter(|end| *end <= bytes.len())
        .ok_or_else(|| short(bytes, end))
}

fn short(bytes: &[u8], need: u64) -> RepoError {
    RepoError::corrupt(format!("index: {} bytes, but its header asks for {need}", bytes.len()))
}

fn to_usize(n: u32) -> Result<usize> {
    usize::try_from(n).map_err(|e| RepoError::corrupt("index: a count beyond this machine").because(e))
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({} contents, {} bytes)", self.len(), self.bytes.len())
    }
}
