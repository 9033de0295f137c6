//! Hashes of many contents, back to back in shared segments.
//!
//! A table that is made from another shares all segments it does not change: cloning one of a million hashes copies 256
//! pointers, a child keeps only what differs from its parent, and comparing the two passes over what they share. A sparse
//! volume has one segment for all its zeros.

use std::ops::Range;
use std::sync::Arc;

/// Hashes of a segment: 64 KiB with hashes of 16 bytes. Changing one hash of a shared segment copies as much, and 10 TiB
/// take 2,560 segments.
pub(super) const SEGMENT: usize = 4096;

/// Hashes of one width, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hashes {
    width: usize,
    count: usize,
    /// Each holds [`SEGMENT`] hashes, the last one perhaps fewer.
    segments: Vec<Arc<[u8]>>,
}

impl Hashes {
    /// `bytes` cut into hashes of `width` bytes.
    pub(super) fn new(width: usize, bytes: &[u8]) -> Self {
        assert!(width > 0 && bytes.len().is_multiple_of(width), "whole hashes");
        let mut share = Share::default();
        let segments = bytes.chunks(SEGMENT * width).map(|part| share.share(width, part));
        Self {
            width,
            count: bytes.len() / width,
            segments: segments.collect(),
        }
    }

    /// `count` times the same `hash`, in the memory of one segment.
    pub(super) fn filled(hash: &[u8], count: usize) -> Self {
        let mut hashes = Self::new(hash.len(), &[]);
        hashes.resize(count, hash);
        hashes
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn get(&self, i: usize) -> &[u8] {
        let at = i % SEGMENT * self.width;
        &self.segments[i / SEGMENT][at..at + self.width]
    }

    /// Replaces hash `i`; a segment that others have too is copied before. Costs nothing when it is the same.
    pub(super) fn set(&mut self, i: usize, hash: &[u8]) {
        if self.get(i) == hash {
            return;
        }
        let at = i % SEGMENT * self.width;
        Arc::make_mut(&mut self.segments[i / SEGMENT])[at..at + self.width].copy_from_slice(hash);
    }

    /// Cuts off what is past `count`, or adds `filler` up to there.
    pub(super) fn resize(&mut self, count: usize, filler: &[u8]) {
        assert_eq!(filler.len(), self.width, "hashes of one width");
        let width = self.width;
        let kept = count.min(self.count);
        let keep = kept / SEGMENT;
        // Of a segment that is cut or filled up, what stays.
        let mut partial = match self.segments.get(keep) {
            Some(segment) => segment[..kept % SEGMENT * width].to_vec(),
            None => Vec::new(),
        };
        self.segments.truncate(keep);
        self.count = count;
        if !partial.is_empty() {
            let room = (count - keep * SEGMENT).min(SEGMENT);
            partial.extend(filler.repeat(room - partial.len() / width));
            self.segments.push(partial.into());
        }
        let whole = count / SEGMENT;
        if self.segments.len() < whole {
            self.segments.resize(whole, filler.repeat(SEGMENT).into());
        }
        if self.segments.len() * SEGMENT < count {
            self.segments.push(filler.repeat(count % SEGMENT).into());
        }
    }

    /// First number from `from` on, below `end`, whose hash is not the one in `other`; `end` when all are alike. Both have
    /// hashes up to `end`, of one width.
    pub(super) fn next_difference(&self, other: &Self, from: usize, end: usize) -> usize {
        let mut at = from;
        while at < end {
            let segment = at / SEGMENT;
            let until = end.min((segment + 1) * SEGMENT);
            let (a, b) = (&self.segments[segment], &other.segments[segment]);
            let bytes = self.bytes(at..until);
            if !Arc::ptr_eq(a, b) && a[bytes.clone()] != b[bytes] {
                let differs = (at..until).find(|i| self.get(*i) != other.get(*i));
                return differs.expect("the bytes of these hashes differ");
            }
            at = until;
        }
        end
    }

    /// First number from `from` on, below `end`, whose hash is the one in `other`; else `end`.
    pub(super) fn next_equal(&self, other: &Self, from: usize, end: usize) -> usize {
        (from..end).find(|i| self.get(*i) == other.get(*i)).unwrap_or(end)
    }

    /// Where hashes `numbers`, all in one segment, lie in it.
    fn bytes(&self, numbers: Range<usize>) -> Range<usize> {
        let start = numbers.start % SEGMENT * self.width;
        start..start + numbers.len() * self.width
    }
}

/// Keeps equal segments once, when all hashes in them are alike: those of the zeros of a sparse volume.
#[derive(Default)]
struct Share {
    alike: Option<Arc<[u8]>>,
}

impl Share {
    fn share(&mut self, width: usize, bytes: &[u8]) -> Arc<[u8]> {
        if let Some(alike) = self.alike.as_ref().filter(|alike| ***alike == *bytes) {
            return alike.clone();
        }
        let segment: Arc<[u8]> = bytes.into();
        if bytes[width..] == bytes[..bytes.len() - width] {
            self.alike = Some(segment.clone());
        }
        segment
    }
}

/// Collects hashes in order.
pub(super) struct HashesBuilder {
    hashes: Hashes,
    open: Vec<u8>,
    share: Share,
}

impl HashesBuilder {
    pub(super) fn new(width: usize) -> Self {
        Self {
            hashes: Hashes::new(width, &[]),
            open: Vec::new(),
            share: Share::default(),
        }
    }

    pub(super) fn width(&self) -> usize {
        self.hashes.width
    }

    pub(super) fn count(&self) -> usize {
        self.hashes.count
    }

    pub(super) fn push(&mut self, hash: &[u8]) {
        debug_assert_eq!(hash.len(), self.hashes.width);
        self.open.extend_from_slice(hash);
        self.hashes.count += 1;
        if self.hashes.count.is_multiple_of(SEGMENT) {
            self.close();
        }
    }

    fn close(&mut self) {
        let segment = self.share.share(self.hashes.width, &self.open);
        self.hashes.segments.push(segment);
        self.open.clear();
    }

    pub(super) fn finish(mut self) -> Hashes {
        if !self.open.is_empty() {
            self.close();
        }
        self.hashes
    }
}

/// Collects hashes that come in any order.
pub(super) struct HashesScatter {
    width: usize,
    count: usize,
    slots: Vec<Slot>,
    share: Share,
}

/// A segment that fills up. Memory is taken when the first hash of it comes.
#[derive(Clone)]
enum Slot {
    Open { bytes: Vec<u8>, filled: usize },
    Full(Arc<[u8]>),
}

impl HashesScatter {
    /// Room for `count` hashes of `width` bytes.
    pub(super) fn new(width: usize, count: usize) -> Self {
        let empty = Slot::Open {
            bytes: Vec::new(),
            filled: 0,
        };
        Self {
            width,
            count,
            slots: vec![empty; count.div_ceil(SEGMENT)],
            share: Share::default(),
        }
    }

    /// Takes hashes, the first of which has number `first`. Each number comes once.
    pub(super) fn put(&mut self, first: usize, mut bytes: &[u8]) {
        let mut at = first;
        while !bytes.is_empty() {
            let number = at / SEGMENT;
            let room = (self.count - number * SEGMENT).min(SEGMENT) * self.width;
            let start = at % SEGMENT * self.width;
            let (here, rest) = bytes.split_at(bytes.len().min(room - start));
            match &mut self.slots[number] {
                Slot::Full(_) => panic!("hash {at} came twice"),
                Slot::Open { bytes: slot, filled } => {
                    slot.resize(room, 0);
                    slot[start..start + here.len()].copy_from_slice(here);
                    *filled += here.len();
                    if *filled == room {
                        self.slots[number] = Slot::Full(self.share.share(self.width, slot));
                    }
                }
            }
            at += here.len() / self.width;
            bytes = rest;
        }
    }

    /// All hashes; nothing when some did not come.
    pub(super) fn finish(self) -> Option<Hashes> {
        let segments = self.slots.into_iter().map(|slot| match slot {
            Slot::Full(segment) => Some(segment),
            Slot::Open { .. } => None,
        });
        Some(Hashes {
            width: self.width,
            count: self.count,
            segments: segments.collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(count: usize, seed: u8) -> Vec<u8> {
        (0..count * 4)
            .map(|i| {
                if i / 4 % 3 == 0 {
                    seed
                } else {
                    (i / 4 % 251).to_le_bytes()[0]
                }
            })
            .collect()
    }

    proptest! {
        #[test]
        fn hashes_answer_like_a_plain_vector(
            count in 0..3 * SEGMENT, resized in 0..3 * SEGMENT, sets in proptest::collection::vec((0..3 * SEGMENT, any::<u32>()), 0..20),
        ) {
            let mut model = plain(count, 9);
            let original = Hashes::new(4, &model);
            let mut child = original.clone();
            child.resize(resized, &[7; 4]);
            model.resize(resized * 4, 7);
            for (at, value) in sets.into_iter().filter(|(at, _)| *at < resized) {
                child.set(at, &value.to_le_bytes());
                model[at * 4..][..4].copy_from_slice(&value.to_le_bytes());
            }
            prop_assert_eq!(&child, &Hashes::new(4, &model));
            let all: Vec<u8> = (0..child.count()).flat_map(|i| child.get(i).to_vec()).collect();
            prop_assert_eq!(&all, &model);
            prop_assert_eq!(&original, &Hashes::new(4, &plain(count, 9)), "the parent is as it was");

            let mut builder = HashesBuilder::new(4);
            model.chunks(4).for_each(|hash| builder.push(hash));
            prop_assert_eq!(&builder.finish(), &child);

            let mut scatter = HashesScatter::new(4, resized);
            for (at, part) in model.chunks(4 * 700).enumerate().collect::<Vec<_>>().into_iter().rev() {
                scatter.put(at * 700, part);
            }
            prop_assert_eq!(scatter.finish(), Some(child.clone()));

            let end = count.min(resized);
            let old = plain(count, 9);
            let differs = |i: &usize| model[i * 4..][..4] != old[i * 4..][..4];
            let mut at = 0;
            while at < end {
                let next = child.next_difference(&original, at, end);
                prop_assert_eq!(next, (at..end).find(differs).unwrap_or(end));
                at = child.next_equal(&original, next, end);
                prop_assert_eq!(at, (next..end).find(|i| !differs(i)).unwrap_or(end));
            }
        }
    }

    #[test]
    fn equal_parts_are_kept_once() {
        let zeros = Hashes::filled(&[5; 16], 3 * SEGMENT);
        assert!(Arc::ptr_eq(&zeros.segments[0], &zeros.segments[2]));
        let read = Hashes::new(16, &[5; 16 * 3 * SEGMENT]);
        assert!(Arc::ptr_eq(&read.segments[0], &read.segments[2]));
        let mut child = zeros.clone();
        child.set(SEGMENT, &[6; 16]);
        assert!(Arc::ptr_eq(&zeros.segments[0], &child.segments[0]));
        assert_eq!((zeros.get(SEGMENT), child.get(SEGMENT)), (&[5; 16][..], &[6; 16][..]));
    }

    #[test]
    fn hashes_that_did_not_come_are_missed() {
        let mut scatter = HashesScatter::new(4, 3);
        scatter.put(1, &[1; 8]);
        assert!(scatter.finish().is_none());
    }
}
