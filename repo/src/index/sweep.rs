//! Many look-ups at once: contents are asked for in ascending order, so that each table is passed through once.

use super::EntryRef;
use super::merge::head;
use super::merged::Merged;
use super::table::Table;

/// Looks up contents in ascending order of their keys.
pub(crate) struct Sweep<'a> {
    cursors: Vec<Cursor<'a>>,
}

/// A place in a table: every row before it has a lesser key than was last asked for.
struct Cursor<'a> {
    table: &'a Table,
    row: usize,
    /// First 8 bytes of the key in that row: with several tables, nearly every question to one of them ends here, without a
    /// look at the table. The greatest number at the end, which no key begins with.
    head: u64,
}

impl<'a> Sweep<'a> {
    pub(crate) fn new(merged: &'a Merged) -> Self {
        let cursors = merged.all_tables().map(|table| {
            let mut cursor = Cursor { table, row: 0, head: 0 };
            cursor.settle();
            cursor
        });
        Self {
            cursors: cursors.collect(),
        }
    }

    /// Whether the content with the index key `key` is known and not deleted. `key` is not less than the one before.
    pub(crate) fn is_alive(&mut self, key: &[u8]) -> bool {
        let wanted = head(key);
        let mut first: Option<(&Table, usize)> = None;
        let mut winner: Option<EntryRef<'_>> = None;
        for cursor in &mut self.cursors {
            if cursor.head > wanted || !cursor.seek(key) {
                continue;
            }
            let found = (cursor.table, cursor.row);
            let Some((table, row)) = first else {
                first = Some(found);
                continue;
            };
            // Only who meets a content in several tables needs to know which entry counts.
            let before = winner.unwrap_or_else(|| table.entry(row));
            let other = cursor.table.entry(cursor.row);
            winner = Some(match other.is_at_least(&before) {
                true => other,
                false => before,
            });
        }
        match (winner, first) {
            (Some(winner), _) => !winner.deleted,
            (None, Some((table, row))) => !table.is_deleted(row),
            (None, None) => false,
        }
    }
}

impl Cursor<'_> {
    /// Goes on to the first row whose key is not less than `key`: by doubled steps, then halved ones, so that near ones
    /// are found soon. Whether it is `key`.
    fn seek(&mut self, key: &[u8]) -> bool {
        let mut step = 1;
        // All rows before `row` are less, and `row + step - 1` is the next to be looked at.
        while self.row + step <= self.table.len() && self.table.key(self.row + step - 1) < key {
            self.row += step;
            step *= 2;
        }
        let mut end = self.table.len().min(self.row + step - 1);
        while self.row < end {
            let middle = self.row.midpoint(end);
            if self.table.key(middle) < key {
                self.row = middle + 1;
            } else {
                end = middle;
            }
        }
        self.settle();
        self.row < self.table.len() && self.table.key(self.row) == key
    }

    fn settle(&mut self) {
        self.head = match self.row < self.table.len() {
            true => head(self.table.key(self.row)),
            false => u64::MAX,
        };
    }
}
