//! A list of an image as the repository stores it, for an increment to take parts of it over.

use std::ops::Range;

use super::list::LIST_PIECE_LEN;
use super::text::ListText;
use super::{BlockAddressTable, TableEntry};
use crate::id::{ContentId, ObjectId};

/// Prefix of the contents of lists.
pub(crate) const LIST_PREFIX: char = 'x';

/// A list whose text is exactly what we would write for its table, cut into slices of [`LIST_PIECE_LEN`] bytes: which
/// content holds which slice. Cheap to clone, and shares its memory with the table it came with.
#[derive(Clone, Debug)]
pub struct StoredList {
    object: ObjectId,
    table: BlockAddressTable,
    text: ListText,
    slices: Vec<ContentId>,
}

impl StoredList {
    /// The list of `object`, an image of the pieces `table`, whose `text` is in `pieces`; nothing when these are not slices
    /// as we cut them.
    pub(super) fn of_pieces(
        object: ObjectId,
        table: BlockAddressTable,
        text: ListText,
        pieces: &BlockAddressTable,
    ) -> Option<Self> {
        let fits = |(number, piece): (usize, TableEntry)| {
            let range = text.slice(number);
            let is_slice = piece.extent.offset == range.start && piece.extent.end() == range.end;
            let is_list = piece.content.prefix() == Some(LIST_PREFIX) && !piece.compressed;
            (is_slice && is_list).then_some(piece.content)
        };
        let slices = pieces.iter().enumerate().map(fits).collect::<Option<Vec<_>>>()?;
        Some(Self::new(object, table, text, slices))
    }

    /// The list of `object`, an image of the pieces `table`, the slices of whose `text` are in `slices`.
    pub(crate) fn new(object: ObjectId, table: BlockAddressTable, text: ListText, slices: Vec<ContentId>) -> Self {
        assert_eq!(slices.len(), text.slices(), "all of the text");
        Self {
            object,
            table,
            text,
            slices,
        }
    }

    /// The object.
    pub fn object(&self) -> ObjectId {
        self.object
    }

    /// Its pieces.
    pub fn table(&self) -> &BlockAddressTable {
        &self.table
    }

    /// Slices of its text.
    pub fn slices(&self) -> usize {
        self.slices.len()
    }

    /// For each slice of `text`, the list of `table`, the content of this list that holds the same bytes, if one does: all
    /// entries of which the slice has a part are the same in both, and the end of the list stands in the same place.
    pub(crate) fn same_slices(&self, table: &BlockAddressTable, text: &ListText) -> Vec<Option<ContentId>> {
        let mut same = vec![None; text.slices()];
        let Some(differing) = self.table.differing_pieces(table) else {
            return same;
        };
        let both = text.count().min(self.text.count());
        let end = match text.count() == self.text.count() {
            true => text.len(),
            false => text.at(both),
        };
        for (number, (same, content)) in same.iter_mut().zip(&self.slices).enumerate() {
            *same = (text.slice(number).end <= end).then_some(*content);
        }
        for run in differing.take_while(|run| run.start < both) {
            let bytes = text.at(run.start)..text.at(run.end.min(both));
            same[text.slices_of(bytes)].fill(None);
        }
        same
    }
}

impl BlockAddressTable {
    /// The shape of the list of this table, when all its pieces are whole and in contents of file data.
    pub(crate) fn list_text(&self) -> Option<ListText> {
        let text = ListText::new(self.uniform_len()?, self.hash_len(), self.count())?;
        let is_whole = self.len() == text.piece_len() * self.count() as u64;
        (is_whole && self.marks.is_empty()).then_some(text)
    }
}

impl ListText {
    /// Slices of [`LIST_PIECE_LEN`] bytes; the last one may be shorter.
    pub(crate) fn slices(&self) -> usize {
        usize::try_from(self.len().div_ceil(LIST_PIECE_LEN as u64)).expect("below the entries, which are in memory")
    }

    /// Bytes of slice `number`.
    pub(crate) fn slice(&self, number: usize) -> Range<u64> {
        let start = number as u64 * LIST_PIECE_LEN as u64;
        start..self.len().min(start + LIST_PIECE_LEN as u64).max(start)
    }

    /// Slices that have a part of `bytes`, which are some.
    fn slices_of(&self, bytes: Range<u64>) -> Range<usize> {
        let number = |at: u64| usize::try_from(at / LIST_PIECE_LEN as u64).expect("one of the slices");
        number(bytes.start)..number(bytes.end - 1) + 1
    }
}
