//! Read plans: which ranges of which packs hold the wanted pieces of an object, in pack order.
//!
//! Pieces that lie close together in a pack are fetched by one read. A content used several times is fetched once.

use std::collections::HashMap;
use std::ops::Range;

use crate::blob::Habits;
use crate::content::ContentFormat;
use crate::error::{RepoError, Result};
use crate::id::{BlobId, ContentId};
use crate::index::IndexEntry;
use crate::object::BlockAddressTable;
use crate::repository::Repository;

/// What to read from where.
pub struct ReadPlan {
    packs: Vec<BlobId>,
    items: Vec<Item>,
    units: Vec<Unit>,
    compressions: Vec<u32>,
}

/// One use of a content. 28 bytes each, so that the plan of 1 TiB takes 28 MiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    pack: u32,
    offset: u32,
    packed_len: u32,
    original_len: u32,
    compression: u8,
    piece: u32,
}

/// One read: items with neighbouring places in one pack.
struct Unit {
    items: Range<usize>,
    range: Range<u64>,
}

/// One read of a plan.
pub struct Fetch<'a> {
    plan: &'a ReadPlan,
    unit: &'a Unit,
}

/// A content in the bytes of a fetch.
pub struct Piece {
    /// What the index says of it, with the fetch's pack.
    pub entry: IndexEntry,
    /// Where its sealed bytes lie in the fetched range.
    pub at: Range<usize>,
    /// Pieces of the table it is used for.
    pub uses: Vec<usize>,
    /// It holds them compressed ([`ContentFormat::unseal_piece_into`]).
    pub compressed: bool,
}

impl ReadPlan {
    /// Plans to read the pieces `wanted` of `table`. Every content must be in the index; the first that is not is named.
    pub fn new(
        repository: &Repository,
        table: &BlockAddressTable,
        wanted: impl Iterator<Item = usize>,
    ) -> Result<Self> {
        Self::build(repository, table, wanted, &mut |_, e| Err(e))
    }

    /// The same, and the pieces whose contents the index does not have or does not describe as the list does.
    pub fn of_readable(
        repository: &Repository,
        table: &BlockAddressTable,
        wanted: impl Iterator<Item = usize>,
    ) -> Result<(Self, Vec<usize>)> {
        let mut lost = Vec::new();
        let plan = Self::build(repository, table, wanted, &mut |piece, e| match e.is_damage() {
            true => {
                lost.push(piece);
                Ok(())
            }
            false => Err(e),
        })?;
        Ok((plan, lost))
    }

    fn build(
        repository: &Repository,
        table: &BlockAddressTable,
        wanted: impl Iterator<Item = usize>,
        unreadable: &mut dyn FnMut(usize, RepoError) -> Result<()>,
    ) -> Result<Self> {
        let mut packs: HashMap<BlobId, u32> = HashMap::new();
        let mut compressions: Vec<u32> = Vec::new();
        let mut items = Vec::new();
        for piece in wanted {
            let content = table.content(piece);
            let entry = match find(repository, &content, table, piece) {
                Ok(entry) => entry,
                Err(e) => {
                    unreadable(piece, e)?;
                    continue;
                }
            };
            let next = packs.len();
            let pack = *packs
                .entry(entry.pack)
                .or_insert(u32::try_from(next).expect("fewer packs than contents"));
            let compression = match compressions.iter().position(|known| *known == entry.compression) {
                Some(at) => at,
                None => {
                    compressions.push(entry.compression);
                    compressions.len() - 1
                }
            };
            let compression = u8::try_from(compression).expect("an index has at most 255 formats of known codecs");
            let piece = u32::try_from(piece).expect("below the most entries of a table");
            let (offset, packed_len, original_len) = (entry.offset, entry.packed_len, entry.original_len);
            items.push(Item {
                pack,
                offset,
                packed_len,
                original_len,
                compression,
                piece,
            });
        }
        let mut names: Vec<(BlobId, u32)> = packs.into_iter().collect();
        names.sort_by_key(|(_, number)| *number);
        items.sort_unstable();
        let units = units(&items, &repository.store().habits());
        Ok(Self {
            packs: names.into_iter().map(|(id, _)| id).collect(),
            items,
            units,
            compressions,
        })
    }

    /// Reads.
    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// Nothing is to be read.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// Bytes all reads fetch.
    pub fn fetch_bytes(&self) -> u64 {
        self.units.iter().map(|unit| unit.range.end - unit.range.start).sum()
    }

    /// The longest single read in bytes.
    pub fn fetch_len_max(&self) -> u64 {
        self.units
            .iter()
            .map(|unit| unit.range.end - unit.range.start)
            .max()
            .unwrap_or(0)
    }

    /// Read number `i`.
    pub fn fetch(&self, i: usize) -> Fetch<'_> {
        Fetch {
            plan: self,
            unit: &self.units[i],
        }
    }
}

fn find(repository: &Repository, content: &ContentId, table: &BlockAddressTable, piece: usize) -> Result<IndexEntry> {
    let entry = repository.lookup(content).ok_or_else(|| {
        let at = table.entry(piece).extent;
        RepoError::corrupt(format!(
            "content {content} of bytes {}..{} is not in the index",
            at.offset,
            at.offset + at.len
        ))
    })?;
    let len = table.entry(piece).extent.len;
    // A compressed piece is as long as its stream says, which is seen when it is read.
    if u64::from(entry.original_len) != len && !table.is_compressed(piece) {
        return Err(RepoError::corrupt(format!(
            "content {content} has {} bytes, its list says {len}",
            entry.original_len
        )));
    }
    if (entry.packed_len as usize) < ContentFormat::sealed_len(0) {
        return Err(RepoError::corrupt(format!(
            "content {content} has {} bytes in its pack, fewer than encryption adds",
            entry.packed_len
        )));
    }
    Ok(entry)
}

/// Items side by side in a pack become one read, as the storage likes it.
fn units(items: &[Item], habits: &Habits) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let (start, end) = (
            u64::from(item.offset),
            u64::from(item.offset) + u64::from(item.packed_len),
        );
        if let Some(unit) = units.last_mut() {
            let same_pack = items[unit.items.start].pack == item.pack;
            let close = start <= unit.range.end.saturating_add(habits.read_gap);
            if same_pack && close && end - unit.range.start <= habits.read_len {
                unit.items.end = at + 1;
                unit.range.end = unit.range.end.max(end);
                continue;
            }
        }
        units.push(Unit {
            items: at..at + 1,
            range: start..end,
        });
    }
    units
}

impl Fetch<'_> {
    /// The pack to read from.
    pub fn pack(&self) -> &BlobId {
        &self.plan.packs[self.plan.items[self.unit.items.start].pack as usize]
    }

    /// The bytes of the pack to read.
    pub fn range(&self) -> Range<u64> {
        self.unit.range.clone()
    }

    /// The contents in these bytes.
    pub fn pieces(&self, repository: &Repository, table: &BlockAddressTable) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        for item in &self.plan.items[self.unit.items.clone()] {
            if let Some(last) = pieces
                .last_mut()
                .filter(|p| p.entry.offset == item.offset && p.entry.packed_len == item.packed_len)
                .filter(|p| p.compressed == table.is_compressed(item.piece as usize))
            {
                last.uses.push(item.piece as usize);
                continue;
            }
            let start = usize::try_from(u64::from(item.offset) - self.unit.range.start).expect("inside one fetch");
            let entry = IndexEntry {
                content: table.content(item.piece as usize),
                pack: self.pack().clone(),
                offset: item.offset,
                packed_len: item.packed_len,
                original_len: item.original_len,
                time: 0,
                deleted: false,
                format_version: repository.format().version,
                compression: self.plan.compressions[usize::from(item.compression)],
            };
            pieces.push(Piece {
                entry,
                at: start..start + item.packed_len as usize,
                uses: vec![item.piece as usize],
                compressed: table.is_compressed(item.piece as usize),
            });
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(pack: u32, offset: u32, packed_len: u32, piece: u32) -> Item {
        Item {
            pack,
            offset,
            packed_len,
            original_len: packed_len,
            compression: 0,
            piece,
        }
    }

    #[track_caller]
    fn check(items: &[Item], expect: &[(Range<usize>, Range<u64>)]) {
        let have: Vec<_> = units(items, &Habits::LOCAL)
            .into_iter()
            .map(|u| (u.items, u.range))
            .collect();
        assert_eq!(have, expect);
    }

    #[test]
    fn neighbours_share_a_read_and_far_ones_do_not() {
        let mib = 1 << 20;
        check(
            &[item(0, 0, mib, 0), item(0, mib, mib, 1), item(0, 2 * mib, mib, 5)],
            &[(0..3, 0..3 << 20)],
        );
        check(
            &[item(0, 0, mib, 0), item(0, 3 * mib, mib, 1)],
            &[(0..1, 0..1 << 20), (1..2, 3 << 20..4 << 20)],
        );
        check(
            &[item(0, 0, mib, 0), item(1, mib, mib, 1)],
            &[(0..1, 0..1 << 20), (1..2, 1 << 20..2 << 20)],
        );
        check(&[item(0, 0, mib, 0), item(0, 0, mib, 9)], &[(0..2, 0..1 << 20)]);
        let many: Vec<_> = (0..20).map(|i| item(0, i * mib, mib, i)).collect();
        check(
            &many,
            &[
                (0..8, 0..8 << 20),
                (8..16, 8 << 20..16 << 20),
                (16..20, 16 << 20..20 << 20),
            ],
        );
    }

    #[test]
    fn a_content_longer_than_the_most_of_a_read_is_one_read() {
        check(&[item(0, 0, 20 << 20, 0)], &[(0..1, 0..20 << 20)]);
    }
}
