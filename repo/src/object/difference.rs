//! What differs between two images, from their tables alone.

use std::ops::Range;

use blockio::Extent;

use super::BlockAddressTable;

impl BlockAddressTable {
    /// Runs of pieces whose contents are not the same in `other`, in order; pieces that only one of the two has differ.
    /// Nothing when the tables are not on the same grid.
    ///
    /// Memory that the two share is passed over, the rest is compared segment by segment, and hash by hash where they differ.
    pub fn differing_pieces<'a>(&'a self, other: &'a Self) -> Option<DifferingPieces<'a>> {
        let alike = self.count() == 0 || other.count() == 0 || self.uniform_len() == other.uniform_len();
        let same_grid = self.uniform_len().is_some() && other.uniform_len().is_some();
        (alike && same_grid && self.hash_len() == other.hash_len()).then(|| DifferingPieces {
            tables: (self, other),
            // With marks, or lengths that may differ in the last piece, each piece is looked at.
            plain: self.marks.is_empty() && other.marks.is_empty(),
            both: self.count().min(other.count()),
            end: self.count().max(other.count()),
            at: 0,
        })
    }

    /// Bytes that are not in the same contents in `other`, in order and merged; those past the end of one of the two
    /// differ. Tables of any shape: pieces that do not lie in the same places differ, so that of two images cut in
    /// different ways nothing is found equal.
    pub fn differing_extents<'a>(&'a self, other: &'a Self) -> Box<dyn Iterator<Item = Extent> + 'a> {
        match self.differing_pieces(other) {
            Some(runs) => {
                let longer = if self.len() < other.len() { other } else { self };
                Box::new(runs.map(|run| {
                    let (first, last) = (longer.entry(run.start).extent, longer.entry(run.end - 1).extent);
                    Extent::between(first.offset, last.end())
                }))
            }
            None => Box::new(DifferingExtents {
                tables: (self, other),
                at: (0, 0),
                done: 0,
            }),
        }
    }
}

/// Iterator over runs of differing pieces of two tables on the same grid.
pub struct DifferingPieces<'a> {
    tables: (&'a BlockAddressTable, &'a BlockAddressTable),
    plain: bool,
    /// Pieces that both have.
    both: usize,
    end: usize,
    at: usize,
}

impl DifferingPieces<'_> {
    fn is_equal(&self, i: usize) -> bool {
        self.tables.0.entry(i) == self.tables.1.entry(i)
    }

    /// The last piece that both have, which may be shorter in one.
    fn is_last_equal(&self) -> bool {
        self.both == 0 || self.is_equal(self.both - 1)
    }

    fn next_difference(&self, from: usize) -> usize {
        let (a, b) = self.tables;
        if !self.plain {
            return (from..self.both).find(|i| !self.is_equal(*i)).unwrap_or(self.both);
        }
        let found = a.hashes.next_difference(&b.hashes, from, self.both);
        match found == self.both && from < self.both && !self.is_last_equal() {
            true => self.both - 1,
            false => found,
        }
    }

    fn next_equal(&self, from: usize) -> usize {
        let (a, b) = self.tables;
        if !self.plain {
            return (from..self.both).find(|i| self.is_equal(*i)).unwrap_or(self.both);
        }
        let found = a.hashes.next_equal(&b.hashes, from, self.both);
        match found + 1 == self.both && !self.is_last_equal() {
            true => self.both,
            false => found,
        }
    }
}

impl Iterator for DifferingPieces<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let start = self.next_difference(self.at).max(self.at);
        let equal = self.next_equal(start);
        // Past what both have, all differs.
        self.at = if equal == self.both { self.end } else { equal };
        (start < self.at).then_some(start..self.at)
    }
}

/// Iterator over what differs between two tables of any shape.
struct DifferingExtents<'a> {
    tables: (&'a BlockAddressTable, &'a BlockAddressTable),
    /// Pieces to look at next.
    at: (usize, usize),
    /// Bytes looked at.
    done: u64,
}

impl DifferingExtents<'_> {
    /// The next part in which neither table begins another piece, and whether it differs.
    fn step(&mut self) -> Option<(Extent, bool)> {
        let (a, b) = self.tables;
        let piece = |table: &BlockAddressTable, at| (at < table.count()).then(|| table.entry(at));
        let (left, right) = (piece(a, self.at.0), piece(b, self.at.1));
        let ends = [left, right].into_iter().flatten().map(|piece| piece.extent.end());
        let end = ends.min()?;
        self.at.0 += usize::from(left.is_some_and(|piece| piece.extent.end() == end));
        self.at.1 += usize::from(right.is_some_and(|piece| piece.extent.end() == end));
        let part = Extent::between(self.done, end);
        self.done = end;
        Some((part, left != right))
    }
}

impl Iterator for DifferingExtents<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        let mut found: Option<Extent> = None;
        while let Some((part, differs)) = self.step() {
            match &mut found {
                Some(found) if differs => found.len += part.len,
                Some(_) => break,
                None if differs => found = Some(part),
                None => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::TableBuilder;
    use super::*;
    use crate::id::ContentId;

    fn table(pieces: &[(u64, u8)]) -> BlockAddressTable {
        let mut builder = TableBuilder::new(16);
        for (len, n) in pieces {
            let prefix = (*n == 3).then_some('x');
            let content = ContentId::new(prefix, &[n % 3; 16]).expect("valid");
            match n {
                4 => builder.push_compressed(*len, &content).expect("fits"),
                _ => builder.push(*len, &content).expect("fits"),
            }
        }
        builder.finish()
    }

    /// What holds byte `at`, and where that begins and ends.
    fn model(table: &BlockAddressTable, at: u64) -> Option<super::super::TableEntry> {
        (at < table.len()).then(|| table.entry(table.find(at)))
    }

    fn pieces(len: impl Strategy<Value = u64>) -> impl Strategy<Value = Vec<(u64, u8)>> {
        proptest::collection::vec((len, 0..5u8), 0..12)
    }

    fn check(a: &BlockAddressTable, b: &BlockAddressTable) {
        let found: Vec<Extent> = a.differing_extents(b).collect();
        assert!(found.windows(2).all(|pair| pair[0].end() < pair[1].offset), "{found:?}");
        for at in 0..a.len().max(b.len()) {
            let in_found = found.iter().any(|extent| (extent.offset..extent.end()).contains(&at));
            assert_eq!(in_found, model(a, at) != model(b, at), "byte {at} of {found:?}");
        }
        if let Some(runs) = a.differing_pieces(b) {
            let runs: Vec<_> = runs.collect();
            let longer = if a.len() < b.len() { b } else { a };
            for i in 0..longer.count() {
                let entry = |table: &BlockAddressTable| (i < table.count()).then(|| table.entry(i));
                assert_eq!(
                    runs.iter().any(|run| run.contains(&i)),
                    entry(a) != entry(b),
                    "piece {i} of {runs:?}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn differences_are_those_of_a_bytewise_look(a in pieces(1..5u64), b in pieces(1..5u64)) {
            check(&table(&a), &table(&b));
        }

        #[test]
        fn differences_on_one_grid_are_those_of_a_bytewise_look(a in pieces(Just(4)), b in pieces(Just(4)), tails in (0..5u64, 0..5u64)) {
            let with_tail = |mut pieces: Vec<(u64, u8)>, len| {
                pieces.push((len, 1));
                table(&pieces)
            };
            check(&with_tail(a, tails.0), &with_tail(b, tails.1));
        }
    }
}
