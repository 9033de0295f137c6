//! The text of a uniform list, by position.
//!
//! When all pieces of an object are of one length and in unprefixed contents, the text of its list has no freedom: how long
//! an entry is depends on its number alone, by the digits of its start. So a part of the text can be written, or checked
//! and read, without the rest.

use std::ops::Range;

use super::BlockAddressTable;
use super::list::{HEAD, TAIL};
use super::table::ENTRIES_MAX;
use crate::id::HASH_LEN_MAX;

/// `,{"s":`, 20 digits, `,"l":`, 20 digits, `,"o":"`.
const LABEL_LEN_MAX: usize = 57;

/// After the hash of an entry.
const CLOSE: &[u8; 2] = b"\"}";

/// The shape of the text of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListText {
    piece_len: u64,
    hash_len: usize,
    count: usize,
    /// Entries of one length each.
    bands: Vec<Band>,
}

/// Entries whose starts have equally many digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Band {
    /// Number of the first.
    first: usize,
    /// Where its text begins.
    at: u64,
    /// Bytes of each.
    width: usize,
}

impl ListText {
    /// The text of the list of `count` pieces of `piece_len` bytes; nothing for none, or for an object of 2^63 bytes.
    pub(super) fn new(piece_len: u64, hash_len: usize, count: usize) -> Option<Self> {
        let len = piece_len.checked_mul(count as u64)?;
        if len == 0 || len > i64::MAX.unsigned_abs() || !(1..=HASH_LEN_MAX).contains(&hash_len) {
            return None;
        }
        let mut bands: Vec<Band> = Vec::new();
        let (mut first, mut at) = (0, HEAD.len() as u64);
        while first < count {
            let start = first as u64 * piece_len;
            // The first entry whose start has more digits; the first of all has no start.
            let next = match start {
                0 => 1,
                _ => (10u128.pow(start.ilog10() + 1)).div_ceil(u128::from(piece_len)),
            };
            let next = usize::try_from(next).unwrap_or(count).min(count);
            let width = Label::new(start, piece_len).text().len() + 2 * hash_len + CLOSE.len();
            bands.push(Band { first, at, width });
            at += (next - first) as u64 * width as u64;
            first = next;
        }
        Some(Self {
            piece_len,
            hash_len,
            count,
            bands,
        })
    }

    /// The text of `len` bytes whose first bytes are `text`, if there is one: it would have to begin with a whole entry.
    pub(super) fn of_len(text: &[u8], hash_len: usize, len: u64) -> Option<Self> {
        let rest = text.strip_prefix(HEAD.as_bytes())?.strip_prefix(br#"{"l":"#)?;
        let digits = rest.iter().take(20).take_while(|byte| byte.is_ascii_digit()).count();
        let piece_len: u64 = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
        let most = i64::MAX.unsigned_abs().checked_div(piece_len)?;
        let most = usize::try_from(most).map_or(ENTRIES_MAX, |most| most.min(ENTRIES_MAX));
        let longest = Self::new(piece_len, hash_len, most)?;
        let count = longest.unit_at(len.checked_sub(TAIL.len() as u64)?)?;
        Self::new(piece_len, hash_len, count).filter(|found| found.len() == len)
    }

    /// Bytes of each piece of the object.
    pub(super) fn piece_len(&self) -> u64 {
        self.piece_len
    }

    /// Entries.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of the text.
    pub(crate) fn len(&self) -> u64 {
        self.at(self.count) + TAIL.len() as u64
    }

    /// Where entry `i` begins; for the number past the last, where the end of the list does.
    pub(super) fn at(&self, i: usize) -> u64 {
        let band = self.bands.partition_point(|band| band.first <= i) - 1;
        let band = self.bands[band];
        band.at + (i - band.first) as u64 * band.width as u64
    }

    /// The entry whose text has byte `at`: the number past the last for the end of the list, nothing for its beginning.
    fn unit_at(&self, at: u64) -> Option<usize> {
        let band = self.bands.partition_point(|band| band.at <= at).checked_sub(1)?;
        let band = self.bands[band];
        let number = band.first as u64 + (at - band.at) / band.width as u64;
        Some(usize::try_from(number).map_or(self.count, |number| number.min(self.count)))
    }

    /// Entries of which bytes `range` of the text have a part.
    pub(super) fn entries_in(&self, range: Range<u64>) -> Range<usize> {
        let first = self.unit_at(range.start).unwrap_or(0);
        let last = range.end.checked_sub(1).and_then(|at| self.unit_at(at));
        first..last.map_or(0, |last| (last + 1).min(self.count)).max(first)
    }

    /// Writes bytes `range` of the text of the list of `table`, whose shape this is, at the end of `out`.
    pub(crate) fn write(&self, table: &BlockAddressTable, range: Range<u64>, out: &mut Vec<u8>) {
        let begin = out.len();
        let entries = self.entries_in(range.clone());
        let from = match range.start < HEAD.len() as u64 {
            true => 0,
            false => self.at(entries.start).min(range.start),
        };
        if from == 0 {
            out.extend_from_slice(HEAD.as_bytes());
        }
        let mut hex = [0; 2 * HASH_LEN_MAX];
        let hex = &mut hex[..2 * self.hash_len];
        for (band, entries) in self.bands_of(entries) {
            let mut label = self.label(&entries);
            out.reserve(band.width * entries.len());
            for i in entries {
                hex::encode_to_slice(table.hash(i), hex).expect("two digits a byte");
                out.extend_from_slice(label.text());
                out.extend_from_slice(hex);
                out.extend_from_slice(CLOSE);
                label.step();
            }
        }
        if range.end > self.at(self.count) {
            out.extend_from_slice(TAIL.as_bytes());
        }
        // Whole units stand there; off with what is outside of the range.
        let wanted = usize::try_from(range.end - range.start).expect("a part in memory");
        out.drain(begin..begin + usize::try_from(range.start - from).expect("less than a unit"));
        out.truncate(begin + wanted);
    }

    /// Reads the entries that stand whole in `text`, which is the part of a text from byte `at` on: adds their hashes to
    /// `hashes` and returns their numbers and what is left before and after them. Nothing when it is another text.
    pub(super) fn read<'t>(&self, at: u64, text: &'t [u8], hashes: &mut Vec<u8>) -> Option<Read<'t>> {
        let first = match self.unit_at(at) {
            None => 0,
            Some(unit) => unit + usize::from(self.at(unit) < at),
        };
        // Past the end of the list there is no entry.
        let from = if first > self.count { self.len() } else { self.at(first) };
        let (before, mut rest) = text.split_at(text.len().min(usize::try_from(from - at).ok()?));
        let mut end = first;
        for (band, entries) in self.bands_of(first.min(self.count)..self.count) {
            let whole = (rest.len() / band.width).min(entries.len());
            let (text, after) = rest.split_at(whole * band.width);
            self.read_band(self.label(&entries), text, band.width, hashes)?;
            (rest, end) = (after, end + whole);
            if whole < entries.len() {
                break;
            }
        }
        Some(Read {
            entries: first..end,
            before,
            after: rest,
        })
    }

    fn read_band(&self, mut label: Label, text: &[u8], width: usize, hashes: &mut Vec<u8>) -> Option<()> {
        let begin = hashes.len();
        hashes.resize(begin + text.len() / width * self.hash_len, 0);
        let entries = text.chunks_exact(width);
        for (entry, hash) in entries.zip(hashes[begin..].chunks_exact_mut(self.hash_len)) {
            let (head, rest) = entry.split_at(label.text().len());
            let (digits, close) = rest.split_at(2 * self.hash_len);
            if head != label.text() || close != CLOSE {
                return None;
            }
            decode(digits, hash)?;
            label.step();
        }
        Some(())
    }

    /// Reads a part of a text that begins and ends with whole units: the beginning or end of the list, or entries.
    pub(super) fn read_whole(&self, at: u64, text: &[u8], hashes: &mut Vec<u8>) -> Option<Range<usize>> {
        let read = self.read(at, text, hashes)?;
        let begins = (read.before.is_empty() && at > 0) || (at == 0 && read.before == HEAD.as_bytes());
        let ends = read.after.is_empty() || (read.entries.end == self.count && read.after == TAIL.as_bytes());
        (begins && ends).then_some(read.entries)
    }

    /// `entries` in parts of equal length.
    fn bands_of(&self, entries: Range<usize>) -> impl Iterator<Item = (Band, Range<usize>)> {
        self.bands.iter().enumerate().filter_map(move |(number, band)| {
            let next = self.bands.get(number + 1).map_or(self.count, |next| next.first);
            let part = entries.start.max(band.first)..entries.end.min(next);
            (part.start < part.end).then_some((*band, part))
        })
    }

    fn label(&self, entries: &Range<usize>) -> Label {
        Label::new(entries.start as u64 * self.piece_len, self.piece_len)
    }
}

/// What [`ListText::read`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Read<'t> {
    /// Entries read.
    pub(super) entries: Range<usize>,
    /// Text before them.
    pub(super) before: &'t [u8],
    /// Text after them.
    pub(super) after: &'t [u8],
}

/// The text of an entry before its hash, counted up in place.
struct Label {
    text: [u8; LABEL_LEN_MAX],
    len: usize,
    /// Digits of the start.
    start: Range<usize>,
    /// Digits to add for the next entry.
    add: [u8; 20],
}

impl Label {
    fn new(start: u64, piece_len: u64) -> Self {
        let text = match start {
            0 => format!(r#"{{"l":{piece_len},"o":""#),
            _ => format!(r#",{{"s":{start},"l":{piece_len},"o":""#),
        };
        let digits = match start {
            0 => 0..0,
            _ => 6..7 + start.ilog10() as usize,
        };
        let mut label = Self {
            text: [0; LABEL_LEN_MAX],
            len: text.len(),
            start: digits,
            add: [0; 20],
        };
        label.text[..text.len()].copy_from_slice(text.as_bytes());
        let mut left = piece_len;
        for digit in label.add.iter_mut().rev() {
            *digit = (left % 10).to_le_bytes()[0];
            left /= 10;
        }
        label
    }

    fn text(&self) -> &[u8] {
        &self.text[..self.len]
    }

    /// The label of the next entry, whose start has as many digits; past the last of those it is no label.
    fn step(&mut self) {
        let digits = &mut self.text[self.start.clone()];
        let mut carry = 0;
        for (digit, add) in digits.iter_mut().rev().zip(self.add.iter().rev()) {
            let sum = *digit + add + carry;
            carry = u8::from(sum > b'9');
            *digit = sum - carry * 10;
        }
    }
}

/// Puts the bytes that lower-case hexadecimal `digits` mean into `out`, which has half as many. Nothing when one is no such
/// digit.
fn decode(digits: &[u8], out: &mut [u8]) -> Option<()> {
    let (eights, rest) = digits.as_chunks::<8>();
    let (fours, out) = out.as_chunks_mut::<4>();
    for (eight, four) in eights.iter().zip(fours) {
        *four = decode_eight(u64::from_le_bytes(*eight))?;
    }
    for ([high, low], byte) in rest.as_chunks::<2>().0.iter().zip(out) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(())
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

/// Every byte of the result is `byte`.
const fn all(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

/// Eight digits at once, in a register.
fn decode_eight(text: u64) -> Option<[u8; 4]> {
    const HIGH: u64 = all(0x80);
    // With bytes below 0x80, adding `0x80 - n` sets a byte's high bit when it is n or more, and carries nothing over.
    let at_least = |n: u8| text.wrapping_add(all(0x80 - n));
    let digits = at_least(b'0') & !at_least(b'9' + 1);
    let letters = at_least(b'a') & !at_least(b'f' + 1);
    if text & HIGH != 0 || (digits | letters) & HIGH != HIGH {
        return None;
    }
    // Letters alone have bit 6; their low bits count from 1.
    let nibbles = (text & all(0x0f)) + 9 * (text >> 6 & all(1));
    let pairs = (nibbles << 4 | nibbles >> 8) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
    let bytes = (fours | fours >> 16).to_le_bytes();
    Some([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{ListBuilder, ListEntry};
    use super::*;
    use crate::id::ObjectId;

    fn table(piece_len: u64, hash_len: usize, count: usize) -> BlockAddressTable {
        let hashes = (0..count * hash_len).map(|i| (i * 37 % 251).to_le_bytes()[0]).collect();
        BlockAddressTable::uniform(piece_len, hash_len, hashes)
    }

    fn built(table: &BlockAddressTable) -> Vec<u8> {
        let mut text = Vec::new();
        let mut take = |piece: &[u8]| {
            text.extend_from_slice(piece);
            Ok(())
        };
        let mut list = ListBuilder::new();
        for entry in table.iter() {
            let entry = ListEntry {
                start: entry.extent.offset,
                len: entry.extent.len,
                object: ObjectId::direct(entry.content),
            };
            list.push(&entry, &mut take).expect("push");
        }
        list.finish(&mut take).expect("finish");
        text
    }

    fn hashes(table: &BlockAddressTable) -> Vec<u8> {
        (0..table.count()).flat_map(|i| table.hash(i).to_vec()).collect()
    }

    proptest! {
        #[test]
        fn parts_are_those_of_the_text_the_builder_writes(
            piece_len in prop_oneof![Just(1u64 << 20), Just(4 << 20), 1..200u64, Just(1000)], hash_len in 1..33usize, count in 1..400usize,
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let table = table(piece_len, hash_len, count);
            let text = built(&table);
            let shape = ListText::new(piece_len, hash_len, count).unwrap();
            prop_assert_eq!(shape.len(), text.len() as u64);
            prop_assert_eq!(ListText::of_len(&text, hash_len, text.len() as u64), Some(shape.clone()));
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let (mut written, mut left, mut read) = (Vec::new(), Vec::new(), vec![0; table.count() * hash_len]);
            for cut in cuts.windows(2) {
                let range = cut[0] as u64..cut[1] as u64;
                shape.write(&table, range.clone(), &mut written);
                prop_assert_eq!(written.len(), cut[1]);
                for i in 0..count {
                    let inside = shape.at(i) < range.end && shape.at(i + 1) > range.start && !range.is_empty();
                    prop_assert!(!inside || shape.entries_in(range.clone()).contains(&i));
                }
                let mut found = Vec::new();
                let part = shape.read(range.start, &text[cut[0]..cut[1]], &mut found).unwrap();
                prop_assert_eq!(found.len(), part.entries.len() * hash_len);
                if !part.entries.is_empty() {
                    read[part.entries.start * hash_len..part.entries.end * hash_len].copy_from_slice(&found);
                }
                left.push((range.start, part.before.to_vec()));
                left.push((range.end - part.after.len() as u64, part.after.to_vec()));
            }
            prop_assert_eq!(&written, &text);
            let mut seams: Vec<(u64, Vec<u8>)> = Vec::new();
            for (at, bytes) in left.into_iter().filter(|(_, bytes)| !bytes.is_empty()) {
                match seams.last_mut() {
                    Some((start, seam)) if *start + seam.len() as u64 == at => seam.extend(bytes),
                    _ => seams.push((at, bytes)),
                }
            }
            for (at, seam) in seams {
                let mut found = Vec::new();
                let entries = shape.read_whole(at, &seam, &mut found);
                prop_assert!(entries.is_some(), "{} {:?}", at, String::from_utf8_lossy(&seam));
                let entries = entries.unwrap();
                if !entries.is_empty() {
                    read[entries.start * hash_len..entries.end * hash_len].copy_from_slice(&found);
                }
            }
            prop_assert_eq!(read, hashes(&table));
        }

        #[test]
        fn another_text_is_not_read(count in 1..40usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let table = table(1 << 20, 16, count);
            let mut text = built(&table);
            let at = at.index(text.len());
            let before = std::mem::replace(&mut text[at], byte);
            let mut found = Vec::new();
            let shape = ListText::new(1 << 20, 16, count).unwrap();
            let read = shape.read_whole(0, &text, &mut found);
            let strict = super::super::parse_list(&"x00".parse().unwrap(), &text[..], &mut |_| Ok(()));
            prop_assert!(read.is_none() || strict.is_ok());
            if byte == before {
                prop_assert_eq!((read, found), (Some(0..count), hashes(&table)));
            } else if read.is_some() {
                prop_assert_ne!(found, hashes(&table), "a changed text with the same meaning is not of this shape");
            }
        }

        #[test]
        fn eight_digits_are_read_as_one_by_one(text in any::<[u8; 8]>()) {
            let plain: Option<Vec<u8>> = text.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect();
            prop_assert_eq!(decode_eight(u64::from_le_bytes(text)).map(|bytes| bytes.to_vec()), plain);
        }
    }

    #[test]
    fn every_byte_is_a_digit_or_not_whatever_stands_beside_it() {
        for byte in 0..=u8::MAX {
            for place in 0..8 {
                for other in [b'0', b'9', b'a', b'f'] {
                    let mut text = [other; 8];
                    text[place] = byte;
                    let plain: Option<Vec<u8>> = text
                        .chunks(2)
                        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
                        .collect();
                    assert_eq!(
                        decode_eight(u64::from_le_bytes(text)).map(|bytes| bytes.to_vec()),
                        plain
                    );
                }
            }
        }
    }

    #[test]
    fn a_tebibyte_has_the_length_that_kopia_gives_it() {
        let shape = ListText::new(1 << 20, 16, 1 << 20).expect("a list");
        assert_eq!((shape.len(), shape.len().div_ceil(128 << 10)), (73_389_284, 560));
    }

    #[test]
    fn impossible_shapes_are_refused() {
        assert_eq!(ListText::new(1 << 20, 16, 0), None);
        assert_eq!(ListText::new(0, 16, 5), None);
        assert_eq!(ListText::new(1 << 40, 16, 1 << 23), None);
        let head = format!("{HEAD}{{\"l\":1048576,\"o\":\"");
        for len in [0, 3, 50, 95, 96] {
            assert_eq!(ListText::of_len(head.as_bytes(), 16, len), None, "{len}");
        }
        assert_eq!(ListText::of_len(head.as_bytes(), 16, u64::MAX), None);
        for text in [
            "",
            HEAD,
            &format!("{HEAD}{{\"l\":0,\"o\":\""),
            &format!("{HEAD}{{\"l\":,\"o\""),
        ] {
            assert_eq!(ListText::of_len(text.as_bytes(), 16, 1000), None, "{text}");
        }
    }
}
