//! Taking in many index blobs one after the other, without ever holding all of them beside what they make.

use super::merged::{Merged, grown_rows};
use super::table::Table;
use crate::error::Result;
use crate::id::BlobId;

/// Bytes of a row in an index blob with 128-bit hashes, its share of pack names included: 33 to 40 were seen. Only used to
/// guess how many rows will come.
const ROW_BYTES: u64 = 36;

/// Adds tables to a [`Merged`] and folds each group of them as soon as their rows make a table large enough to be left alone.
///
/// Memory is that of the result, and twice that of one group: an eighth of all rows. Folding everything at the end would need
/// twice the result.
pub(crate) struct Gather<'a> {
    merged: &'a mut Merged,
    /// First table of the group, and its rows.
    first: usize,
    rows: usize,
    grown_rows: usize,
}

impl<'a> Gather<'a> {
    /// Adds to `merged` what blobs of `blob_bytes` in all will say.
    pub(crate) fn new(merged: &'a mut Merged, blob_bytes: u64) -> Self {
        let rows = usize::try_from(blob_bytes / ROW_BYTES).unwrap_or(usize::MAX);
        Self {
            first: merged.tables(),
            rows: 0,
            grown_rows: grown_rows(merged.len().saturating_add(rows)),
            merged,
        }
    }

    /// Adds what the blob `source` says.
    ///
    /// # Errors
    /// As [`Merged::new`].
    pub(crate) fn add(&mut self, table: Table, source: BlobId) -> Result<()> {
        self.rows += table.len();
        self.merged.push(table, vec![source])?;
        if self.rows >= self.grown_rows {
            self.merged.fold_tail(self.first);
            self.first = self.merged.tables();
            self.rows = 0;
        }
        Ok(())
    }

    /// Folds what is left as [`Merged::fold`] does.
    pub(crate) fn finish(self) {
        self.merged.fold();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::entry;
    use super::super::{IndexEntry, build_v2};
    use super::*;

    fn blob(number: usize, entries: Vec<IndexEntry>) -> (BlobId, Table) {
        let table = Table::parse(build_v2(entries).expect("valid")).expect("valid");
        (BlobId::known(format!("xn0_{number:032x}")), table)
    }

    #[test]
    fn groups_are_folded_as_they_come_and_say_what_all_blobs_say() {
        let ids = |number: usize| (0..50).map(move |i| format!("{:032x}", (number * 31 + i * 7) % 900));
        let blobs = |number: usize| blob(number, ids(number).map(|id| entry(&id, number as u64, 1)).collect());
        let mut gathered = Merged::default();
        let mut gather = Gather::new(&mut gathered, 0);
        gather.grown_rows = 400;
        let mut all = Vec::new();
        for number in 0..100 {
            let (id, table) = blobs(number);
            all.push(id.clone());
            gather.add(table, id).expect("fits");
            assert!(gather.merged.tables() <= number / 8 + 9, "groups are not folded");
        }
        gather.finish();
        let plain = Merged::new((0..100).map(|number| blobs(number).1)).expect("one key length");
        assert!(gathered.iter(None).eq(plain.iter(None)));
        let mut sources: Vec<BlobId> = gathered.members().flat_map(|(_, sources)| sources.to_vec()).collect();
        sources.sort_unstable();
        assert_eq!(sources, all, "every blob is in one table");
    }
}
