//! Many look-ups at once: contents are asked for in ascending order, so that each table is passed through once.

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
}

impl<'a> Sweep<'a> {
    pub(crate) fn new(merged: &'a Merged) -> Self {
        let cursors = merged.all_tables().map(|table| Cursor { table, row: 0 });
        Self {
            cursors: cursors.collect(),
        }
    }

    /// Whether the content with the index key `key` is known and not deleted. `key` is not less than the one before.
    pub(crate) fn is_alive(&mut self, key: &[u8]) -> bool {
        let rows = self.cursors.iter_mut().filter_map(|cursor| {
            cursor.seek(key);
            let found = cursor.row < cursor.table.len() && cursor.table.key(cursor.row) == key;
            found.then(|| cursor.table.entry(cursor.row))
        });
        rows.max_by(|a, b| a.precedence(b))
            .is_some_and(|winner| !winner.deleted)
    }
}

impl Cursor<'_> {
    /// Goes on to the first row whose key is not less than `key`: by doubled steps, then halved ones, so that near ones
    /// are found soon.
    fn seek(&mut self, key: &[u8]) {
        let mut step = 1;
        // All rows before `row` are less, and `row + step` is the next to be looked at.
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
    }
}
