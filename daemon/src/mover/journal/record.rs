//! Records of a journal.
//!
//! | offset | bytes | field | meaning |
//! |---|---|---|---|
//! | 0 | 1 | tag | what the payload is |
//! | 1 | 4 | length | bytes of the payload, little-endian |
//! | 5 | 4 | checksum | CRC-32 of tag, length and payload, little-endian |
//! | 9 | length | payload | |

/// Bytes before the payload.
const HEADER_LEN: usize = 9;

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// State of the source, as JSON.
    State,
    /// Name of the session whose packs these are.
    Session,
    /// Chunks: number (8 bytes, little-endian) and hash of the content, again and again.
    Chunks,
    /// Entries of stored packs: an index as the repository has it.
    Entries,
}

impl Tag {
    fn byte(self) -> u8 {
        match self {
            Self::State => b's',
            Self::Session => b'n',
            Self::Chunks => b'c',
            Self::Entries => b'e',
        }
    }

    fn of(byte: u8) -> Option<Self> {
        [Self::State, Self::Session, Self::Chunks, Self::Entries]
            .into_iter()
            .find(|tag| tag.byte() == byte)
    }
}

/// One whole record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) tag: Tag,
    pub(super) payload: &'a [u8],
}

impl<'a> Record<'a> {
    /// A record as it is written, in one piece so that one call appends it.
    pub(super) fn bytes(tag: Tag, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).expect("records are of one batch or pack");
        let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
        bytes.push(tag.byte());
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&checksum(&bytes, payload).to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// The records in `bytes`, up to the first that is not whole.
    pub(super) fn all(bytes: &'a [u8]) -> impl Iterator<Item = Self> {
        let mut rest = bytes;
        std::iter::from_fn(move || {
            let (record, behind) = Self::split(rest)?;
            rest = behind;
            Some(record)
        })
    }

    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (header, rest) = bytes.split_at_checked(HEADER_LEN)?;
        let len = u32::from_le_bytes(header[1..5].try_into().ok()?);
        let stored = u32::from_le_bytes(header[5..9].try_into().ok()?);
        let (payload, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        let tag = Tag::of(header[0])?;
        (checksum(&header[..5], payload) == stored).then_some((Self { tag, payload }, rest))
    }
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_torn_or_flipped_record_ends_the_journal_and_harms_none_before_it(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..8),
            cut in 0usize..400,
            flip in 0usize..400,
            bit in 0u8..8,
        ) {
            let tags = [Tag::State, Tag::Chunks, Tag::Entries];
            let mut bytes = Vec::new();
            let mut ends = Vec::new();
            for (at, payload) in payloads.iter().enumerate() {
                bytes.extend(Record::bytes(tags[at % 3], payload));
                ends.push(bytes.len());
            }
            let whole: Vec<_> = Record::all(&bytes).map(|record| record.payload.to_vec()).collect();
            prop_assert_eq!(&whole, &payloads);

            let torn = &bytes[..cut.min(bytes.len())];
            let kept = ends.iter().filter(|end| **end <= torn.len()).count();
            prop_assert_eq!(Record::all(torn).count(), kept);

            let at = flip % bytes.len();
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let kept = ends.iter().filter(|end| **end <= at).count();
            prop_assert_eq!(Record::all(&flipped).count(), kept);
        }
    }
}
