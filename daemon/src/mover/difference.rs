//! What differs between two images, from their lists alone.

use blockio::Extent;
use repo::Image;
use repo::object::BlockAddressTable;

/// What of image B is not what image A has there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Differing bytes of B, ascending, apart from each other. What B has behind the end of A is among them.
    pub extents: Vec<Extent>,
    /// Bytes B has behind the end of A.
    pub added: u64,
    /// Bytes A has behind the end of B.
    pub removed: u64,
    /// Every extent holds a piece that differs. Otherwise the images are cut into pieces at different places, and where two
    /// pieces have no common place their bytes may differ or not: they are among the extents.
    pub exact: bool,
}

impl Difference {
    /// Compares two images of one repository.
    pub fn between(a: &Image, b: &Image) -> Self {
        Self::of(&a.table, a.size, &b.table, b.size)
    }

    fn of(a: &BlockAddressTable, a_size: u64, b: &BlockAddressTable, b_size: u64) -> Self {
        let common = a_size.min(b_size);
        let mut found = Self {
            extents: Vec::new(),
            added: b_size - common,
            removed: a_size - common,
            exact: true,
        };
        let (mut i, mut j) = (0, 0);
        while i < a.count() && j < b.count() {
            let (ours, theirs) = (a.entry(i), b.entry(j));
            let both = Extent::between(
                ours.extent.offset.max(theirs.extent.offset),
                ours.extent.end().min(theirs.extent.end()),
            );
            if both.offset >= common {
                break;
            }
            if ours != theirs {
                found.add(Extent::between(both.offset, both.end().min(common)));
                found.exact &= ours.extent == theirs.extent;
            }
            i += usize::from(ours.extent.end() == both.end());
            j += usize::from(theirs.extent.end() == both.end());
        }
        found.add(Extent::between(common, b_size));
        found
    }

    /// Bytes of B that differ, added ones among them.
    pub fn bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.len).sum()
    }

    fn add(&mut self, extent: Extent) {
        match self.extents.last_mut() {
            _ if extent.is_empty() => {}
            Some(last) if last.end() == extent.offset => last.len += extent.len,
            _ => self.extents.push(extent),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use repo::ContentId;
    use repo::object::TableBuilder;

    use super::*;

    /// A table of pieces of these lengths and contents.
    fn table(pieces: &[(u64, u8)]) -> BlockAddressTable {
        let mut builder = TableBuilder::new(16);
        for (len, content) in pieces {
            let content = ContentId::new(None, &[*content; 16]).expect("valid");
            builder.push(*len, &content).expect("fits");
        }
        builder.finish()
    }

    #[track_caller]
    fn check(a: &[(u64, u8)], a_size: u64, b: &[(u64, u8)], b_size: u64, expect: &[(u64, u64)], exact: bool) {
        let found = Difference::of(&table(a), a_size, &table(b), b_size);
        let have: Vec<_> = found.extents.iter().map(|e| (e.offset, e.len)).collect();
        assert_eq!((have.as_slice(), found.exact), (expect, exact));
        assert_eq!(found.added, b_size.saturating_sub(a_size));
        assert_eq!(found.removed, a_size.saturating_sub(b_size));
    }

    #[test]
    fn changed_pieces_are_merged_and_clipped_to_the_volume() {
        let a = [(10, 1), (10, 2), (10, 3), (10, 4)];
        check(&a, 40, &a, 40, &[], true);
        check(&a, 40, &[(10, 1), (10, 9), (10, 8), (10, 4)], 40, &[(10, 20)], true);
        check(&a, 35, &[(10, 1), (10, 2), (10, 3), (10, 9)], 35, &[(30, 5)], true);
        check(&[], 0, &[], 0, &[], true);
    }

    #[test]
    fn a_volume_that_grew_or_shrank_differs_behind_the_shorter_end() {
        let a = [(10, 1), (10, 2)];
        let b = [(10, 1), (10, 2), (10, 3), (10, 4)];
        check(&a, 20, &b, 40, &[(20, 20)], true);
        check(&b, 40, &a, 20, &[], true);
        // The padded last piece of the smaller one.
        check(&a, 15, &[(10, 1), (10, 9), (10, 3)], 25, &[(10, 15)], true);
        check(&[], 0, &a, 20, &[(0, 20)], true);
    }

    #[test]
    fn pieces_cut_elsewhere_are_called_different_and_not_exactly_so() {
        check(&[(10, 1), (10, 2)], 20, &[(20, 3)], 20, &[(0, 20)], false);
        check(
            &[(7, 1), (5, 2), (8, 3)],
            20,
            &[(4, 9), (8, 8), (8, 3)],
            20,
            &[(0, 12)],
            false,
        );
    }

    fn pieces() -> impl Strategy<Value = Vec<(u64, u8)>> {
        prop::collection::vec((prop_oneof![Just(4u64), 1..9u64], 0u8..3), 0..12)
    }

    proptest! {
        /// Against a look at every byte: a byte is equal when the pieces around it begin and end alike and have one content.
        #[test]
        fn every_byte_is_judged_by_its_pieces(a in pieces(), b in pieces(), cut in 0u64..4) {
            let bytes = |pieces: &[(u64, u8)]| -> Vec<(u64, u64, u8)> {
                let mut start = 0;
                let mut all = Vec::new();
                for (len, content) in pieces {
                    all.extend((0..*len).map(|_| (start, *len, *content)));
                    start += len;
                }
                all
            };
            let (a_bytes, b_bytes) = (bytes(&a), bytes(&b));
            let a_size = (a_bytes.len() as u64).saturating_sub(cut);
            let b_size = (b_bytes.len() as u64).saturating_sub(cut);
            let found = Difference::of(&table(&a), a_size, &table(&b), b_size);
            for at in 0..b_size {
                let i = usize::try_from(at).unwrap();
                let equal = at < a_size && a_bytes[i] == b_bytes[i];
                let told = found.extents.iter().any(|e| e.offset <= at && at < e.end());
                prop_assert_eq!(told, !equal, "byte {}", at);
            }
            prop_assert!(found.extents.is_sorted_by(|x, y| x.end() < y.offset));
            prop_assert!(found.extents.iter().all(|e| e.end() <= b_size));
        }
    }
}
