//! One message of a stream, read in place: no block of it is ever stored.
//!
//! | field | wire type | meaning |
//! |---|---|---|
//! | 1 | varint | style: 1 blocks of one size, 2 extents of any |
//! | 2 | varint, int64 | capacity of the volume in bytes |
//! | 3 | bytes, repeated | a block: field 1 its offset, field 2 its size, both varint, int64 |
//!
//! Numbers that are 0 are left out; fields may come in any order; of a field that comes twice the last counts; unknown fields
//! are passed over. Source: kubernetes-csi/external-snapshot-metadata, proto/schema.proto, and the encoding of protocol
//! buffers. `prost` is not used for it because it makes a list of the blocks of each message.

/// Bytes that are no message of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at} of a message")]
pub struct Malformed {
    /// What is wrong.
    pub what: &'static str,
    /// Where in the message, or in the block that begins at or before it.
    pub at: usize,
}

/// A block as it was told: not checked yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuple {
    /// First byte.
    pub offset: i64,
    /// Bytes.
    pub size: i64,
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<'a> {
    /// Number of the style; 0 when it is not told.
    pub style: u64,
    /// Capacity of the volume; 0 when it is not told.
    pub capacity: i64,
    /// Blocks in it.
    pub count: u64,
    bytes: &'a [u8],
}

impl<'a> Page<'a> {
    /// Reads what a message says of itself and counts its blocks; [`Self::tuples`] reads those.
    ///
    /// # Errors
    /// [`Malformed`] when the message ends in a field, or holds what no message may hold.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (mut style, mut capacity, mut count) = (0, 0, 0);
        let mut reader = Reader { bytes, at: 0 };
        while let Some(field) = reader.field()? {
            match field {
                Field::Number(1, value) => style = value,
                Field::Number(2, value) => capacity = value.cast_signed(),
                Field::Bytes(3, _) => count += 1,
                Field::Number(3, _) | Field::Bytes(1 | 2, _) | Field::Other(1..=3) => {
                    return Err(reader.wrong("a field of another type"));
                }
                _ => {}
            }
        }
        Ok(Self {
            style,
            capacity,
            count,
            bytes,
        })
    }

    /// The blocks, in the order of the message.
    pub fn tuples(&self) -> impl Iterator<Item = Result<Tuple, Malformed>> + use<'a> {
        let mut reader = Reader {
            bytes: self.bytes,
            at: 0,
        };
        std::iter::from_fn(move || {
            loop {
                match reader.field() {
                    Ok(Some(Field::Bytes(3, block))) => return Some(tuple(block)),
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(e) => return Some(Err(e)), // never after `parse`, and then the end of the bytes is reached
                }
            }
        })
    }
}

/// Reads one block. The usual form, both numbers in their order and nothing else, takes the short way.
#[inline]
fn tuple(bytes: &[u8]) -> Result<Tuple, Malformed> {
    const OFFSET: u64 = tag(1, NUMBER);
    const SIZE: u64 = tag(2, NUMBER);
    let mut tuple = Tuple::default();
    let mut reader = Reader { bytes, at: 0 };
    while reader.at < bytes.len() {
        match reader.varint()? {
            OFFSET => tuple.offset = reader.varint()?.cast_signed(),
            SIZE => tuple.size = reader.varint()?.cast_signed(),
            other => {
                if matches!(reader.value(other)?, Field::Bytes(1 | 2, _) | Field::Other(1 | 2)) {
                    return Err(reader.wrong("a field of another type"));
                }
            }
        }
    }
    Ok(tuple)
}

const NUMBER: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

/// What stands before a value: number of the field and how it is encoded.
const fn tag(field: u64, wire_type: u64) -> u64 {
    field << 3 | wire_type
}

/// Field numbers end here.
const FIELD_MAX: u64 = (1 << 29) - 1;

/// A field with its number.
enum Field<'a> {
    Number(u64, u64),
    Bytes(u64, &'a [u8]),
    /// Of a fixed width, which no field of ours has.
    Other(u64),
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn wrong(&self, what: &'static str) -> Malformed {
        Malformed { what, at: self.at }
    }

    #[inline]
    fn field(&mut self) -> Result<Option<Field<'a>>, Malformed> {
        if self.at >= self.bytes.len() {
            return Ok(None);
        }
        let tag = self.varint()?;
        self.value(tag).map(Some)
    }

    /// The value behind `tag`.
    #[inline]
    fn value(&mut self, tag: u64) -> Result<Field<'a>, Malformed> {
        let (field, wire_type) = (tag >> 3, tag & 7);
        if field == 0 || field > FIELD_MAX {
            return Err(self.wrong("a field number out of range"));
        }
        match wire_type {
            NUMBER => Ok(Field::Number(field, self.varint()?)),
            BYTES => {
                let len = self.varint()?;
                let len = usize::try_from(len).map_err(|_| self.wrong("a length past the end"))?;
                Ok(Field::Bytes(field, self.take(len)?))
            }
            FIXED_64 => self.take(8).map(|_| Field::Other(field)),
            FIXED_32 => self.take(4).map(|_| Field::Other(field)),
            _ => Err(self.wrong("a field of unknown type")),
        }
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.wrong("a length past the end"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// Seven bits a byte, the lowest first; the top bit says that more follow.
    #[inline]
    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for (i, byte) in self.bytes[self.at..].iter().take(10).enumerate() {
            if i == 9 && *byte > 1 {
                return Err(self.wrong("a number of more than 64 bits"));
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.at += i + 1;
                return Ok(value);
            }
        }
        Err(self.wrong("a number without an end"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    struct ProstPage {
        #[prost(int32, tag = "1")]
        style: i32,
        #[prost(int64, tag = "2")]
        capacity: i64,
        #[prost(message, repeated, tag = "3")]
        blocks: Vec<ProstBlock>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct ProstBlock {
        #[prost(int64, tag = "1")]
        offset: i64,
        #[prost(int64, tag = "2")]
        size: i64,
    }

    type Told = (i64, Vec<(i64, i64)>);

    fn ours(bytes: &[u8]) -> Result<Told, Malformed> {
        let page = Page::parse(bytes)?;
        let tuples: Vec<_> = page
            .tuples()
            .map(|t| t.map(|t| (t.offset, t.size)))
            .collect::<Result<_, _>>()?;
        assert_eq!(tuples.len() as u64, page.count);
        Ok((page.capacity, tuples))
    }

    fn prosts(bytes: &[u8]) -> Option<Told> {
        let page = ProstPage::decode(bytes).ok()?;
        Some((page.capacity, page.blocks.iter().map(|b| (b.offset, b.size)).collect()))
    }

    fn blocks() -> impl Strategy<Value = Vec<(i64, i64)>> {
        let number = || prop_oneof![Just(0i64), 0i64..1 << 40, any::<i64>()];
        prop::collection::vec((number(), number()), 0..20)
    }

    proptest! {
        #[test]
        fn what_prost_writes_reads_as_the_same(style in 0i32..3, capacity: i64, blocks in blocks()) {
            let page = ProstPage {
                style,
                capacity,
                blocks: blocks.iter().map(|&(offset, size)| ProstBlock { offset, size }).collect(),
            };
            let bytes = page.encode_to_vec();
            prop_assert_eq!(Page::parse(&bytes).unwrap().style, u64::from(style.cast_unsigned()));
            prop_assert_eq!(ours(&bytes).unwrap(), (capacity, blocks));
        }

        /// Both read damaged messages alike. Only prost knows groups, a form that protocol buffers gave up: those we refuse.
        #[test]
        fn damaged_messages_read_as_prost_reads_them(blocks in blocks(), cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
            let page = ProstPage {
                style: 1,
                capacity: 1 << 40,
                blocks: blocks.iter().map(|&(offset, size)| ProstBlock { offset, size }).collect(),
            };
            let mut bytes = page.encode_to_vec();
            for (at, value) in cuts {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            match (ours(&bytes), prosts(&bytes)) {
                (Ok(ours), prosts) => prop_assert_eq!(Some(ours), prosts),
                (Err(e), Some(_)) => prop_assert_eq!(e.what, "a field of unknown type"),
                (Err(_), None) => {}
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(ours) = ours(&bytes) {
                prop_assert_eq!(Some(ours), prosts(&bytes));
            }
        }
    }

    #[test]
    fn fields_may_come_in_any_order_and_twice() {
        let bytes = [
            0x1a, 4, 0x10, 5, 0x08, 7, // a block, size first
            0x10, 9, 0x10, 8, // capacity, twice
            0x1a, 2, 0x10, 3, // a block at 0
            0x22, 1, 0xff, // an unknown field
            0x08, 2, // style
        ];
        assert_eq!(ours(&bytes), Ok((8, vec![(7, 5), (0, 3)])));
    }

    #[test]
    fn the_first_wrong_byte_is_named() {
        let at = |bytes: &[u8]| ours(bytes).unwrap_err().to_string();
        assert_eq!(at(&[0x1a, 200]), "a number without an end at byte 1 of a message");
        assert_eq!(at(&[0x1a, 20, 1]), "a length past the end at byte 2 of a message");
        assert_eq!(at(&[0x08, 1, 0x0b]), "a field of unknown type at byte 3 of a message");
    }
}
