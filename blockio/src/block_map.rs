//! Which chunks of a volume are meant: changed, allocated, wanted. One bit per chunk.

use crate::extent::Extent;
use crate::geometry::{CHUNK_SIZE, ChunkIndex};

/// A set of chunks of one volume: 128 KiB of memory per TiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockMap {
    /// Bit `i % 64` of word `i / 64` is chunk `i`. Bits past `chunks` are zero.
    words: Vec<u64>,
    chunks: u64,
}

/// An extent that reaches past the last chunk of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "extent {extent} reaches past the last of {chunks} chunks; the listing is not of this volume, or of another size"
)]
pub struct PastEnd {
    /// The extent that was to be set.
    pub extent: Extent,
    /// Chunks of the map.
    pub chunks: u64,
}

const WORD_BITS: u64 = u64::BITS as u64;

impl BlockMap {
    /// Chunks of the largest volume there is a map for: 2^32 of 1 MiB are 4 PiB, whose map takes 512 MiB. A size claimed by
    /// somebody else is compared with this before a map is made of it.
    pub const CHUNKS_MAX: u64 = 1 << 32;

    /// No chunk of a volume of `chunks` chunks.
    ///
    /// # Panics
    /// With more than [`Self::CHUNKS_MAX`] chunks.
    pub fn new(chunks: u64) -> Self {
        Self {
            words: vec![0; word_count(chunks)],
            chunks,
        }
    }

    /// Every chunk of a volume of `chunks` chunks.
    ///
    /// # Panics
    /// With more than [`Self::CHUNKS_MAX`] chunks.
    pub fn full(chunks: u64) -> Self {
        let mut words = vec![u64::MAX; word_count(chunks)];
        let used_bits = chunks % WORD_BITS;
        if used_bits > 0
            && let Some(last) = words.last_mut()
        {
            *last = (1 << used_bits) - 1;
        }
        Self { words, chunks }
    }

    /// Chunks of the volume, set or not.
    pub fn len(&self) -> u64 {
        self.chunks
    }

    /// No chunk is set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Chunks that are set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether `chunk` is set; one past the end is not.
    pub fn get(&self, chunk: ChunkIndex) -> bool {
        chunk.get() < self.chunks && self.words[word_of(chunk)] & bit_of(chunk) != 0
    }

    /// Sets `chunk`.
    ///
    /// # Panics
    /// When the chunk is past the end: indexes come from this side, extents from outside go through [`Self::set_extent`].
    pub fn set(&mut self, chunk: ChunkIndex) {
        assert!(chunk.get() < self.chunks, "chunk {} of {}", chunk.get(), self.chunks);
        self.words[word_of(chunk)] |= bit_of(chunk);
    }

    /// Sets every chunk that `extent` touches, be it by one byte. An empty extent touches none.
    ///
    /// # Errors
    /// [`PastEnd`], and nothing is set, when a touched chunk is past the end.
    pub fn set_extent(&mut self, extent: Extent) -> Result<(), PastEnd> {
        if extent.is_empty() {
            return Ok(());
        }
        let (first, end) = (extent.offset / CHUNK_SIZE, extent.end().div_ceil(CHUNK_SIZE));
        if end > self.chunks {
            return Err(PastEnd {
                extent,
                chunks: self.chunks,
            });
        }
        let mut at = first;
        while at < end {
            let bit = at % WORD_BITS;
            let take = (WORD_BITS - bit).min(end - at);
            let mask = if take == WORD_BITS {
                u64::MAX
            } else {
                ((1 << take) - 1) << bit
            };
            self.words[word_of(ChunkIndex::new(at))] |= mask;
            at += take;
        }
        Ok(())
    }

    /// Adds every chunk of `other`.
    ///
    /// # Panics
    /// When the maps are of volumes of different size.
    pub fn union(&mut self, other: &Self) {
        assert_eq!(self.chunks, other.chunks, "maps of one volume have one length");
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// Takes every chunk of `other` out.
    ///
    /// # Panics
    /// When the maps are of volumes of different size.
    pub fn remove(&mut self, other: &Self) {
        assert_eq!(self.chunks, other.chunks, "maps of one volume have one length");
        for (word, less) in self.words.iter_mut().zip(&other.words) {
            *word &= !less;
        }
    }

    /// Takes every chunk out that is not in `other`.
    ///
    /// # Panics
    /// When the maps are of volumes of different size.
    pub fn keep(&mut self, other: &Self) {
        assert_eq!(self.chunks, other.chunks, "maps of one volume have one length");
        for (word, wanted) in self.words.iter_mut().zip(&other.words) {
            *word &= wanted;
        }
    }

    /// The chunks that are not set.
    #[must_use]
    pub fn inverted(&self) -> Self {
        let mut rest = Self::full(self.chunks);
        rest.remove(self);
        rest
    }

    /// The first chunk that is set, at or behind `from`.
    pub fn next_set(&self, from: ChunkIndex) -> Option<ChunkIndex> {
        self.next_bit(from.get(), 0)
    }

    /// The chunks that are set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = ChunkIndex> + '_ {
        std::iter::successors(self.next_set(ChunkIndex::new(0)), |chunk| self.next_set(chunk.next()))
    }

    /// The chunks that are set as the fewest extents, ascending, in whole chunks: the last may reach past the size.
    pub fn runs(&self) -> impl Iterator<Item = Extent> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.next_bit(from, 0)?.get();
            from = self.next_bit(start, u64::MAX).map_or(self.chunks, ChunkIndex::get);
            Some(Extent {
                offset: start * CHUNK_SIZE,
                len: (from - start) * CHUNK_SIZE,
            })
        })
    }

    /// The first chunk at or behind `from` whose bit differs from `flip`'s.
    fn next_bit(&self, from: u64, flip: u64) -> Option<ChunkIndex> {
        if from >= self.chunks {
            return None;
        }
        let first = word_of(ChunkIndex::new(from));
        let mut below = (1u64 << (from % WORD_BITS)) - 1;
        for (i, word) in self.words.iter().enumerate().skip(first) {
            let hits = (word ^ flip) & !below;
            below = 0;
            if hits != 0 {
                let index = i as u64 * WORD_BITS + u64::from(hits.trailing_zeros());
                return (index < self.chunks).then_some(ChunkIndex::new(index));
            }
        }
        None
    }
}

fn word_count(chunks: u64) -> usize {
    assert!(chunks <= BlockMap::CHUNKS_MAX, "a map of {chunks} chunks");
    usize::try_from(chunks.div_ceil(WORD_BITS)).expect("2^26 words at most")
}

fn word_of(chunk: ChunkIndex) -> usize {
    usize::try_from(chunk.get() / WORD_BITS).expect("2^26 words at most")
}

fn bit_of(chunk: ChunkIndex) -> u64 {
    1 << (chunk.get() % WORD_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Step {
        Set(u64),
        Extent(Extent),
        Union(Vec<u64>),
        Remove(Vec<u64>),
        Keep(Vec<u64>),
        Invert,
    }

    fn steps(chunks: u64) -> impl Strategy<Value = Step> {
        let size = chunks * CHUNK_SIZE;
        prop_oneof![
            (0..chunks).prop_map(Step::Set),
            (0..size + CHUNK_SIZE, prop_oneof![0..3 * CHUNK_SIZE, 0..size])
                .prop_map(|(offset, len)| Step::Extent(Extent { offset, len })),
            prop::collection::vec(0..chunks, 0..6).prop_map(Step::Union),
            prop::collection::vec(0..chunks, 0..6).prop_map(Step::Remove),
            prop::collection::vec(0..chunks, 0..40).prop_map(Step::Keep),
            Just(Step::Invert),
        ]
    }

    fn map_of(chunks: u64, set: &[u64]) -> BlockMap {
        let mut map = BlockMap::new(chunks);
        set.iter().for_each(|i| map.set(ChunkIndex::new(*i)));
        map
    }

    fn cases() -> impl Strategy<Value = (u64, Vec<Step>)> {
        (1u64..300).prop_flat_map(|chunks| (Just(chunks), prop::collection::vec(steps(chunks), 0..12)))
    }

    proptest! {
        #[test]
        fn behaves_as_a_plain_set_of_numbers((chunks, steps) in cases()) {
            let mut map = BlockMap::new(chunks);
            let mut model = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Set(i) => {
                        map.set(ChunkIndex::new(i));
                        model.insert(i);
                    }
                    Step::Extent(extent) => {
                        let touched: Vec<u64> = extent.chunks().map(ChunkIndex::get).collect();
                        let fits = touched.iter().all(|i| *i < chunks);
                        prop_assert_eq!(map.set_extent(extent).is_ok(), fits);
                        if fits {
                            model.extend(touched);
                        }
                    }
                    Step::Union(list) => {
                        map.union(&map_of(chunks, &list));
                        model.extend(list);
                    }
                    Step::Remove(list) => {
                        map.remove(&map_of(chunks, &list));
                        model.retain(|i| !list.contains(i));
                    }
                    Step::Keep(list) => {
                        map.keep(&map_of(chunks, &list));
                        model.retain(|i| list.contains(i));
                    }
                    Step::Invert => {
                        map = map.inverted();
                        model = (0..chunks).filter(|i| !model.contains(i)).collect();
                    }
                }
            }
            prop_assert_eq!(map.count(), model.len() as u64);
            prop_assert_eq!(map.is_empty(), model.is_empty());
            prop_assert!((0..chunks + 70).all(|i| map.get(ChunkIndex::new(i)) == model.contains(&i)));
            prop_assert_eq!(map.iter().map(ChunkIndex::get).collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            let runs: Vec<Extent> = map.runs().collect();
            prop_assert!(runs.windows(2).all(|w| w[0].end() < w[1].offset), "runs are as long as can be");
            let from_runs: Vec<u64> = runs.iter().flat_map(Extent::chunks).map(ChunkIndex::get).collect();
            prop_assert_eq!(from_runs, model.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn full_is_every_chunk_set(chunks in 0u64..300) {
            let mut one_by_one = BlockMap::new(chunks);
            (0..chunks).for_each(|i| one_by_one.set(ChunkIndex::new(i)));
            prop_assert_eq!(&BlockMap::full(chunks), &one_by_one);
            prop_assert_eq!(BlockMap::full(chunks).runs().count(), usize::from(chunks > 0));
        }
    }

    #[test]
    fn an_extent_past_the_end_sets_nothing() {
        let mut map = BlockMap::new(2);
        let extent = Extent {
            offset: CHUNK_SIZE,
            len: CHUNK_SIZE + 1,
        };
        assert_eq!(map.set_extent(extent), Err(PastEnd { extent, chunks: 2 }));
        assert!(
            map.set_extent(Extent {
                offset: u64::MAX,
                len: u64::MAX
            })
            .is_err()
        );
        assert!(map.is_empty());
    }

    #[test]
    #[should_panic(expected = "a map of")]
    fn a_map_of_an_absurd_volume_is_not_made() {
        BlockMap::new(BlockMap::CHUNKS_MAX + 1);
    }
}
