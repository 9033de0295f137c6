//! Which sectors of a volume come from where.

use blockio::{CHUNK_SIZE, ChunkIndex, Extent};
use std::collections::{BTreeMap, BTreeSet};

/// Unit of what is changed: every device takes and keeps it whole.
pub(super) const SECTOR: u64 = 512;
/// Sectors of a whole chunk.
const SECTORS: usize = (CHUNK_SIZE / SECTOR) as usize;
const WORDS: usize = SECTORS / 64;

/// Where the bytes of a sector are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the volume below, never changed.
    Base,
    /// In the file of the overlay.
    Data,
    /// Nowhere: they are zeros.
    Zero,
}

/// The sectors of one chunk that were changed. A chunk without a state was not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// All zero.
    Zero,
    /// All in the file.
    Data,
    /// Some are, some are not.
    Mixed(Box<Sectors>),
}

/// 24 bytes an entry with its key, some 40 in a tree that is two thirds full: 40 MiB for 1 TiB that was written whole.
const _: () = assert!(size_of::<State>() <= 16);

/// A bit a sector, from the lowest bit of the first word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sectors {
    pub(super) data: [u64; WORDS],
    pub(super) zero: [u64; WORDS],
}

/// The states of all chunks, and which of them changed since they were logged.
#[derive(Debug)]
pub(super) struct Map {
    size: u64,
    pub(super) chunks: BTreeMap<u64, State>,
    pub(super) pending: BTreeSet<u64>,
    /// Everything is [`Place::Data`] for good, and `chunks` is empty: a volume that is all there costs no memory.
    complete: bool,
    /// Sectors that are not [`Place::Base`].
    present: u64,
}

impl Map {
    /// The map of a volume of `size` bytes whose chunks have these states.
    pub(super) fn new(size: u64, chunks: BTreeMap<u64, State>) -> Self {
        let mut map = Self {
            size,
            chunks,
            pending: BTreeSet::new(),
            complete: false,
            present: 0,
        };
        let present = map.chunks.iter().map(|(chunk, state)| map.present_of(*chunk, state));
        map.present = present.sum();
        map
    }

    /// The map of a volume all of which is in the data.
    pub(super) fn complete(size: u64) -> Self {
        Self {
            complete: true,
            present: size.div_ceil(SECTOR),
            ..Self::new(size, BTreeMap::new())
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Bytes that do not come from the volume below.
    pub(super) fn present_bytes(&self) -> u64 {
        // The last sector may be a part of one.
        let missing = self.size.next_multiple_of(SECTOR) - self.size;
        let mut last = Vec::new();
        self.runs(Extent::between(self.size.saturating_sub(1), self.size), &mut last);
        match last.iter().any(|(_, place)| *place != Place::Base) {
            true => self.present * SECTOR - missing,
            false => self.present * SECTOR,
        }
    }

    /// Nothing comes from the volume below.
    pub(super) fn is_all_present(&self) -> bool {
        self.present == self.size.div_ceil(SECTOR)
    }

    /// Something of `chunk` comes from the volume below.
    pub(super) fn is_absent(&self, chunk: u64) -> bool {
        let state = self.chunks.get(&chunk);
        !self.complete && state.is_none_or(|state| self.present_of(chunk, state) < self.sectors_of(chunk) as u64)
    }

    fn present_of(&self, chunk: u64, state: &State) -> u64 {
        match state {
            State::Zero | State::Data => self.sectors_of(chunk) as u64,
            State::Mixed(sectors) => (ones(&sectors.data) + ones(&sectors.zero)) as u64,
        }
    }

    /// Sectors of `chunk`, the last one cut short by the end of the volume perhaps.
    fn sectors_of(&self, chunk: u64) -> usize {
        let len = CHUNK_SIZE.min(self.size.saturating_sub(chunk * CHUNK_SIZE));
        usize::try_from(len.div_ceil(SECTOR)).expect("at most 2048")
    }

    /// Puts the whole sectors of `extent`, which lies in one chunk, to `place`; `false` when they were there.
    pub(super) fn set(&mut self, extent: Extent, place: Place) -> bool {
        if extent.is_empty() || self.complete {
            return false;
        }
        let chunk = ChunkIndex::of(extent.offset).get();
        let all = self.sectors_of(chunk);
        let from = sector_of(extent.offset - chunk * CHUNK_SIZE);
        let to = usize::try_from((extent.end() - chunk * CHUNK_SIZE).div_ceil(SECTOR)).expect("at most 2048");
        let whole = match place {
            Place::Data => State::Data,
            _ => State::Zero,
        };
        let before = self.chunks.get(&chunk);
        if before == Some(&whole) {
            return false;
        }
        let after = if from == 0 && to == all {
            whole
        } else {
            let mut sectors = match before {
                Some(State::Mixed(sectors)) => sectors.clone(),
                Some(State::Data) => Box::new(Sectors::all(all, Place::Data)),
                Some(State::Zero) => Box::new(Sectors::all(all, Place::Zero)),
                None => Box::new(Sectors::all(0, Place::Zero)),
            };
            sectors.set(from, to, place);
            if before.is_some_and(|before| matches!(before, State::Mixed(same) if *same == sectors)) {
                return false;
            }
            match (ones(&sectors.data), ones(&sectors.zero)) {
                (data, _) if data == all => State::Data,
                (_, zero) if zero == all => State::Zero,
                _ => State::Mixed(sectors),
            }
        };
        self.present += self.present_of(chunk, &after);
        if let Some(before) = self.chunks.insert(chunk, after) {
            self.present -= self.present_of(chunk, &before);
        }
        self.pending.insert(chunk);
        true
    }

    /// Cuts `extent` into runs of one place each, ascending.
    pub(super) fn runs(&self, extent: Extent, out: &mut Vec<(Extent, Place)>) {
        let mut push = |part: Extent, place: Place| match out.last_mut() {
            Some((last, same)) if *same == place && last.end() == part.offset => {
                *last = Extent::between(last.offset, part.end());
            }
            _ => out.push((part, place)),
        };
        let mut at = extent.offset;
        if self.complete && !extent.is_empty() {
            push(extent, Place::Data);
            return;
        }
        let chunks = ChunkIndex::of(at).get()..=ChunkIndex::of(extent.end().saturating_sub(1)).get();
        for (chunk, state) in self.chunks.range(chunks).filter(|_| !extent.is_empty()) {
            let whole = Extent {
                offset: chunk * CHUNK_SIZE,
                len: CHUNK_SIZE,
            };
            let Some(part) = whole.clip(extent) else { continue };
            if part.offset > at {
                push(Extent::between(at, part.offset), Place::Base);
            }
            at = part.end();
            match state {
                State::Zero => push(part, Place::Zero),
                State::Data => push(part, Place::Data),
                State::Mixed(sectors) => {
                    let mut from = part.offset;
                    while from < part.end() {
                        let next = (from / SECTOR + 1) * SECTOR;
                        let run = Extent::between(from, next.min(part.end()));
                        push(run, sectors.place(sector_of(from - whole.offset)));
                        from = run.end();
                    }
                }
            }
        }
        if at < extent.end() {
            push(Extent::between(at, extent.end()), Place::Base);
        }
    }

    /// Bytes that a log of nothing but these states would have, roughly.
    pub(super) fn logged_len(&self) -> u64 {
        let mixed = self
            .chunks
            .values()
            .filter(|state| matches!(state, State::Mixed(_)))
            .count() as u64;
        self.chunks.len() as u64 * 48 + mixed * CHUNK_SIZE / SECTOR / 4
    }
}

fn sector_of(within: u64) -> usize {
    usize::try_from(within / SECTOR).expect("at most 2048")
}

fn ones(words: &[u64; WORDS]) -> usize {
    words.iter().map(|word| word.count_ones() as usize).sum()
}

impl Sectors {
    /// The first `count` sectors at `place`.
    fn all(count: usize, place: Place) -> Self {
        let mut sectors = Self {
            data: [0; WORDS],
            zero: [0; WORDS],
        };
        if count > 0 {
            sectors.set(0, count, place);
        }
        sectors
    }

    fn set(&mut self, from: usize, to: usize, place: Place) {
        for word in from / 64..=(to - 1) / 64 {
            let low = from.max(word * 64) - word * 64;
            let high = to.min(word * 64 + 64) - word * 64;
            let mask = (u64::MAX >> (64 - (high - low))) << low;
            let (data, zero) = (&mut self.data[word], &mut self.zero[word]);
            match place {
                Place::Data => (*data, *zero) = (*data | mask, *zero & !mask),
                Place::Zero => (*data, *zero) = (*data & !mask, *zero | mask),
                Place::Base => (*data, *zero) = (*data & !mask, *zero & !mask),
            }
        }
    }

    fn place(&self, sector: usize) -> Place {
        let bit = 1 << (sector % 64);
        if self.data[sector / 64] & bit != 0 {
            Place::Data
        } else if self.zero[sector / 64] & bit != 0 {
            Place::Zero
        } else {
            Place::Base
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 2 * CHUNK_SIZE + 700;

    proptest! {
        /// Random changes against one place a sector; runs cover what was asked, once, in order.
        #[test]
        fn the_map_is_a_place_a_sector(
            ops in prop::collection::vec((0..SIZE / SECTOR, 1..3000u64, any::<bool>()), 0..20),
            offset in 0..SIZE, len in 0..SIZE,
        ) {
            let mut map = Map::new(SIZE, BTreeMap::new());
            let mut model = vec![Place::Base; usize::try_from(SIZE.div_ceil(SECTOR)).unwrap()];
            for (sector, count, data) in ops {
                let place = if data { Place::Data } else { Place::Zero };
                let extent = Extent::between(sector * SECTOR, ((sector + count) * SECTOR).min(SIZE));
                for part in extent.split_on_grid() {
                    map.set(part, place);
                }
                let to = usize::try_from(extent.end().div_ceil(SECTOR)).unwrap();
                model[usize::try_from(sector).unwrap()..to].fill(place);
            }
            let present = |model: &[Place]| model.iter().filter(|place| **place != Place::Base).count() as u64;
            prop_assert_eq!(map.present, present(&model));
            prop_assert_eq!(Map::new(SIZE, map.chunks.clone()).present, map.present);
            for (chunk, sectors) in (0..).zip(model.chunks(SECTORS)) {
                prop_assert_eq!(map.is_absent(chunk), present(sectors) < sectors.len() as u64);
            }
            let extent = Extent::between(offset, (offset + len).min(SIZE));
            let mut runs = Vec::new();
            map.runs(extent, &mut runs);
            let mut at = extent.offset;
            for (run, place) in runs {
                prop_assert_eq!(run.offset, at);
                for sector in run.offset / SECTOR..run.end().div_ceil(SECTOR) {
                    prop_assert_eq!(model[usize::try_from(sector).unwrap()], place);
                }
                at = run.end();
            }
            prop_assert_eq!(at, extent.end());
        }
    }
}
