//! The lists of images: written whole, or as far as they differ from a parent's.

use super::WriteSession;
use crate::crypto::Digest;
use crate::error::Result;
use crate::id::{ContentId, ObjectId};
use crate::object::{BlockAddressTable, LIST_PIECE_LEN, LIST_PREFIX, ListBuilder, ListEntry, ListText, StoredList};

/// Slices built and hashed at once: what the widest hash kernel has lanes for. They take 1 MiB.
const SLICES_AT_ONCE: usize = 8;

/// What [`WriteSession::put_image_list_from`] did.
#[derive(Clone, Debug)]
pub struct PutList {
    /// The image's object.
    pub object: ObjectId,
    /// Its list, a parent for the next once the session has committed; nothing when the pieces are not all of one length.
    pub list: Option<StoredList>,
    /// Slices whose text was made.
    pub built: usize,
    /// Slices taken over from the parent.
    pub reused: usize,
}

impl WriteSession<'_> {
    /// Stores the list of an image in the layout of Velero's block uploader and returns the image's object.
    pub fn put_image_list(&self, table: &BlockAddressTable) -> Result<ObjectId> {
        Ok(self.put_image_list_from(table, None)?.object)
    }

    /// The same, byte for byte, without making the text of slices that are in the list of `parent` already.
    ///
    /// A slice is taken over when all its entries are the same in both tables, whatever anybody says of what has changed,
    /// and when the content that holds it is alive in the index; else it is made.
    pub fn put_image_list_from(&self, table: &BlockAddressTable, parent: Option<&StoredList>) -> Result<PutList> {
        let Some(text) = table.list_text() else {
            let object = self.put_uneven_list(table)?;
            return Ok(PutList {
                object,
                list: None,
                built: 0,
                reused: 0,
            });
        };
        let mut slices = match parent {
            Some(parent) => parent.same_slices(table, &text),
            None => vec![None; text.slices()],
        };
        for slice in &mut slices {
            if let Some(content) = slice
                && !self.claims.stands(self.repository, content)?
            {
                *slice = None;
            }
        }
        let missing: Vec<usize> = (0..slices.len()).filter(|number| slices[*number].is_none()).collect();
        let mut maker = SliceMaker::default();
        for numbers in missing.chunks(SLICES_AT_ONCE) {
            maker.put(self, table, &text, numbers, &mut slices)?;
        }
        let slices: Vec<ContentId> = slices
            .into_iter()
            .map(|slice| slice.expect("made when it was missing"))
            .collect();
        let len = |number| {
            let range = text.slice(number);
            range.end - range.start
        };
        let pieces: Vec<_> = slices
            .iter()
            .enumerate()
            .map(|(number, content)| (len(number), *content))
            .collect();
        let object = self.put_list_of_pieces(&pieces)?;
        Ok(PutList {
            object,
            built: missing.len(),
            reused: slices.len() - missing.len(),
            list: Some(StoredList::new(object, table.clone(), text, slices)),
        })
    }

    /// The list of pieces of several lengths, which increments do not have.
    fn put_uneven_list(&self, table: &BlockAddressTable) -> Result<ObjectId> {
        let mut pieces = Vec::new();
        let take = |piece: &[u8], pieces: &mut Vec<(u64, ContentId)>| {
            pieces.push((piece.len() as u64, self.put_metadata(LIST_PREFIX, piece, true)?));
            Ok(())
        };
        let mut list = ListBuilder::new();
        for entry in table.iter() {
            let entry = ListEntry {
                start: entry.extent.offset,
                len: entry.extent.len,
                object: ObjectId::direct(entry.content),
            };
            list.push(&entry, |piece| take(piece, &mut pieces))?;
        }
        list.finish(|piece| take(piece, &mut pieces))?;
        self.put_list_of_pieces(&pieces)
    }

    /// The object whose bytes are `pieces`: the only one, or a list of them in one content, made an object of.
    fn put_list_of_pieces(&self, pieces: &[(u64, ContentId)]) -> Result<ObjectId> {
        if let [(_, only)] = pieces {
            return Ok(ObjectId::direct(*only).indirect());
        }
        let mut text = Vec::new();
        let mut list = ListBuilder::new();
        let mut start = 0;
        for (len, content) in pieces {
            let entry = ListEntry {
                start,
                len: *len,
                object: ObjectId::direct(*content),
            };
            list.push(&entry, |piece| append(&mut text, piece))?;
            start += len;
        }
        list.finish(|piece| append(&mut text, piece))?;
        // 8 MiB is the most a piece of Kopia's default splitter has; a list of lists reaches it at 120 TiB.
        if text.len() > 64 * LIST_PIECE_LEN {
            let mut upper = Vec::new();
            for piece in text.chunks(64 * LIST_PIECE_LEN) {
                upper.push((piece.len() as u64, self.put_metadata(LIST_PREFIX, piece, false)?));
            }
            return Ok(self.put_list_of_pieces(&upper)?.indirect());
        }
        Ok(ObjectId::direct(self.put_metadata(LIST_PREFIX, &text, false)?)
            .indirect()
            .indirect())
    }
}

/// Makes the text of slices, in memory that it keeps.
#[derive(Default)]
struct SliceMaker {
    texts: [Vec<u8>; SLICES_AT_ONCE],
    digests: Vec<Digest>,
}

impl SliceMaker {
    /// Makes and stores slices `numbers` of the list of `table`, and notes their contents in `slices`.
    fn put(
        &mut self,
        session: &WriteSession<'_>,
        table: &BlockAddressTable,
        text: &ListText,
        numbers: &[usize],
        slices: &mut [Option<ContentId>],
    ) -> Result<()> {
        for (number, bytes) in numbers.iter().zip(&mut self.texts) {
            bytes.clear();
            text.write(table, text.slice(*number), bytes);
        }
        let texts = self.texts[..numbers.len()].iter().map(Vec::as_slice);
        let contents = session.repository.contents();
        contents
            .hasher()
            .hash_many(&texts.clone().collect::<Vec<_>>(), &mut self.digests);
        for ((number, bytes), digest) in numbers.iter().zip(texts).zip(&self.digests) {
            let id = contents.content_id_of(Some(LIST_PREFIX), digest);
            session.put_metadata_as(id, bytes, true)?;
            slices[*number] = Some(id);
        }
        Ok(())
    }
}

fn append(text: &mut Vec<u8>, piece: &[u8]) -> Result<()> {
    text.extend_from_slice(piece);
    Ok(())
}

#[cfg(test)]
mod tests;
