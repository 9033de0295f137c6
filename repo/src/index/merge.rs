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

/// A row of one of the tables that are merged.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) table: &'a Table,
    /// Which of the tables, in the order they were given.
    pub(super) part: usize,
    pub(super) row: usize,
    /// Position among the rows of all tables.
    position: usize,
    head: u64,
}

impl<'a> Row<'a> {
    pub(super) fn entry(&self) -> EntryRef<'a> {
        self.table.entry(self.row)
    }

    fn key(&self) -> &'a [u8] {
        self.table.key(self.row)
    }
}

/// Rows of one table that are still to come; never empty while it is in the heap.
struct Cursor<'a> {
    table: &'a Table,
    part: usize,
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
        let cursors = parts.enumerate().filter_map(|(part, (table, rows))| {
            let cursor = Cursor {
                table,
                part,
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

    /// The winning row of the next content, and the position of its first row: rows are counted through the tables in the
    /// order they were given.
    pub(super) fn next_row(&mut self) -> Option<(usize, Row<'a>)> {
        let mut winner = Self::take(self.heap.peek_mut()?);
        let mut first = winner.position;
        while let Some(top) = self.heap.peek_mut() {
            if top.head != winner.head || top.table.key(top.row) != winner.key() {
                break;
            }
            let other = Self::take(top);
            first = first.min(other.position);
            if other.entry().precedence(&winner.entry()) == Ordering::Greater {
                winner = other;
            }
        }
        Some((first, winner))
    }

    /// Takes the first row of the heap and moves its table on.
    fn take(mut top: PeekMut<'_, Cursor<'a>>) -> Row<'a> {
        let row = Row {
            table: top.table,
            part: top.part,
            row: top.row,
            position: top.base + top.row,
            head: top.head,
        };
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
        self.next_row().map(|(_, row)| row.entry())
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

/// The first 8 bytes of a key as a number; fewer are filled with zeros.
pub(super) fn head(key: &[u8]) -> u64 {
    if let Some(head) = key.first_chunk() {
        return u64::from_be_bytes(*head);
    }
    let mut head = [0; 8];
    head[..key.len()].copy_from_slice(key);
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
