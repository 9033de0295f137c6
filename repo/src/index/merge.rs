//! Rows of many tables in key order, one for each content: the one that counts.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::ops::Range;

use super::EntryRef;
use super::table::Table;

/// Iterator over the winning entries of several tables.
pub(super) struct Merge<'a> {
    heap: BinaryHeap<Cursor<'a>>,
}

/// Rows of one table that are still to come; never empty while it is in the heap.
struct Cursor<'a> {
    table: &'a Table,
    row: usize,
    end: usize,
    /// Position of the table's first row among those of all tables.
    base: usize,
    /// First 8 bytes of the current key (fewer are filled with zeros): nearly every comparison ends here, without a
    /// look at the table.
    head: u64,
}

impl<'a> Merge<'a> {
    /// Merges the given rows of tables.
    pub(super) fn new(parts: impl Iterator<Item = (&'a Table, Range<usize>)>) -> Self {
        let mut base = 0;
        let cursors = parts.filter_map(|(table, rows)| {
            let cursor = Cursor {
                table,
                row: rows.start,
                end: rows.end,
                base,
                head: 0,
            };
            base += table.len();
            cursor.settle()
        });
        Self {
            heap: cursors.collect(),
        }
    }

    /// The winning entry of the next content, and the position of its first row: rows are counted through the tables in
    /// the order they were given.
    pub(super) fn next_row(&mut self) -> Option<(usize, EntryRef<'a>)> {
        let (mut first, mut winner) = Self::take(self.heap.peek_mut()?);
        while let Some(top) = self.heap.peek_mut() {
            let (key, len) = winner.content.key();
            if top.table.key(top.row) != &key[..len] {
                break;
            }
            let (position, other) = Self::take(top);
            first = first.min(position);
            if other.precedence(&winner) == Ordering::Greater {
                winner = other;
            }
        }
        Some((first, winner))
    }

    /// Takes the first row of the heap and moves its table on.
    fn take(mut top: PeekMut<'_, Cursor<'a>>) -> (usize, EntryRef<'a>) {
        let row = (top.base + top.row, top.table.entry(top.row));
        top.row += 1;
        if top.row < top.end {
            top.head = head(top.table.key(top.row));
        } else {
            PeekMut::pop(top);
        }
        row
    }
}

impl<'a> Iterator for Merge<'a> {
    type Item = EntryRef<'a>;

    fn next(&mut self) -> Option<EntryRef<'a>> {
        self.next_row().map(|(_, entry)| entry)
    }
}

impl<'a> Cursor<'a> {
    /// The cursor with the head of its row, unless there is none.
    fn settle(mut self) -> Option<Self> {
        (self.row < self.end).then(|| {
            self.head = head(self.table.key(self.row));
            self
        })
    }

    fn key(&self) -> (u64, &'a [u8]) {
        (self.head, self.table.key(self.row))
    }
}

pub(super) fn head(key: &[u8]) -> u64 {
    let mut head = [0; 8];
    let len = key.len().min(8);
    head[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(head)
}

// The heap gives its greatest element first, so the order is that of the keys reversed.
impl Ord for Cursor<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

impl PartialOrd for Cursor<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Cursor<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Cursor<'_> {}
