//! The lie detector: which of the chunks called unchanged are read all the same, and what follows when one was changed.
//!
//! Of `n` chunks that a list calls unchanged (or unallocated) a budget of `k` is read and compared with what the snapshot would say
//! of them. Half of it goes where damage hurts and where lists err: the ends of the volume, the metadata of its file system, the
//! neighbours of what the list names. The other half walks: its position is kept in the snapshot's tags, and the steps between
//! two chunks are a golden section of the volume, so that each run looks evenly at all of it, and after at most
//! `ceil(chunks / half)` runs every chunk was looked at or changed since.
//!
//! **What it finds.** Where `d` of the `n` chunks are not what the list says, one run misses all of them with a probability of at most
//! `(1 - d/n)^w`, `w` being the walking half: the hot half can only add to that. With the default of 0.5 % (`w = n/400`) and
//! large `n` that is `exp(-d/400)`: 1 lost chunk is found with 0.25 % a run, 100 with 22 %, 1000 with 92 %, and all of them for certain
//! within 400 runs. A lost range of more than `3n/w` neighbouring chunks is found by one run for certain: the gaps of the walk are
//! of three lengths, and the longest stays below that.

pub(super) mod areas;

use blockio::{BlockMap, ChunkIndex};

/// Fewest chunks an audit reads, where so many are called unchanged: a volume of 1 GiB is then looked at whole within 128 runs.
const CHUNKS_MIN: u64 = 16;

/// Around a chunk that was wrongly called unchanged, so many on each side are read as well: lists lose ranges, and 64 MiB
/// are four times the least that an audit reads.
const WIDEN_CHUNKS: u64 = 32;

/// The share of a volume's unchanged chunks that is read, in parts per million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    parts_per_million: u32,
}

impl Budget {
    /// Half a percent.
    pub const DEFAULT: Self = Self {
        parts_per_million: 5_000,
    };

    /// No audit.
    pub const NONE: Self = Self { parts_per_million: 0 };

    /// The chunks to read out of `unread`.
    fn chunks(self, unread: u64) -> u64 {
        if self.parts_per_million == 0 {
            return 0;
        }
        let share = u128::from(unread) * u128::from(self.parts_per_million);
        let share = u64::try_from(share.div_ceil(1_000_000)).unwrap_or(u64::MAX);
        share.max(CHUNKS_MIN).min(unread)
    }
}

impl std::str::FromStr for Budget {
    type Err = String;

    /// A percentage with up to four decimals, such as `0.5`; `0` switches the audit off.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a percentage from 0 to 100, such as 0.5");
        let percent: f64 = text.trim_end_matches('%').parse().map_err(|_| bad())?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(bad());
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1,000,000")]
        let parts_per_million = (percent * 10_000.0).round() as u32;
        match parts_per_million {
            0 if percent > 0.0 => Err(format!("{text:?} is less than a ten-thousandth of a percent")),
            parts_per_million => Ok(Self { parts_per_million }),
        }
    }
}

/// Where the walk over the volume stands: `position` of `chunks` steps. In the snapshot's tags as `position/chunks`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    position: u64,
    chunks: u64,
}

impl Walk {
    /// The walk of a snapshot, from its tag. What cannot be read begins anew: it is a hint where to look.
    pub fn of_tag(text: Option<&str>) -> Self {
        let numbers = text.and_then(|text| text.split_once('/'));
        let walk = numbers.and_then(|(position, chunks)| {
            Some(Self {
                position: position.parse().ok()?,
                chunks: chunks.parse().ok()?,
            })
        });
        walk.filter(|walk| walk.position < walk.chunks).unwrap_or_default()
    }

    /// As a tag.
    pub fn to_tag(self) -> String {
        format!("{}/{}", self.position, self.chunks)
    }

    /// A number that differs from run to run.
    pub(super) fn turn(self) -> u64 {
        self.position
    }

    /// The same share of the way in a volume of `chunks` chunks.
    fn scaled(self, chunks: u64) -> Self {
        let position = match self.chunks {
            0 => 0,
            was if was == chunks => self.position,
            was => u64::try_from(u128::from(self.position) * u128::from(chunks) / u128::from(was)).unwrap_or(0),
        };
        Self { position, chunks }
    }

    /// The chunk at the position, and a step on.
    fn next(&mut self, stride: u64) -> ChunkIndex {
        let at = u128::from(self.position) * u128::from(stride) % u128::from(self.chunks);
        self.position = (self.position + 1) % self.chunks;
        ChunkIndex::new(u64::try_from(at).expect("below a u64"))
    }
}

/// Steps between two chunks of the walk: the golden section of the volume, moved on to the next number that shares no divisor
/// with it, so that the walk meets each chunk once.
fn stride(chunks: u64) -> u64 {
    fn gcd(a: u64, b: u64) -> u64 {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    // 0.6180339887 as a fraction.
    let golden = u64::try_from(u128::from(chunks) * 6_180_339_887 / 10_000_000_000).unwrap_or(1);
    (golden.max(1)..)
        .find(|stride| gcd(*stride, chunks) == 1)
        .expect("one more than a multiple comes by")
}

/// Chunks to read though they are called unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The chunks.
    pub chunks: BlockMap,
    /// Where the next run goes on.
    pub walk: Walk,
}

/// The sample out of `unread`, the chunks that would be taken over unread; `read` are those that are read anyway, `hot` chunks worth
/// a look, the most important first.
pub fn sample(unread: &BlockMap, read: &BlockMap, hot: &[ChunkIndex], budget: Budget, walk: Walk) -> Sample {
    let count = unread.len();
    let mut chunks = BlockMap::new(count);
    let mut walk = walk.scaled(count);
    let mut left = budget.chunks(unread.count());
    if left == 0 {
        return Sample { chunks, walk };
    }
    let ends = [ChunkIndex::new(0), ChunkIndex::new(count - 1)];
    let mut hot_left = left / 2;
    for chunk in ends.into_iter().chain(hot.iter().copied()).chain(beside(read)) {
        if hot_left == 0 {
            break;
        }
        if unread.get(chunk) && !chunks.get(chunk) {
            chunks.set(chunk);
            hot_left -= 1;
            left -= 1;
        }
    }
    let stride = stride(count);
    for _ in 0..count {
        if left == 0 {
            break;
        }
        let chunk = walk.next(stride);
        if unread.get(chunk) && !chunks.get(chunk) {
            chunks.set(chunk);
            left -= 1;
        }
    }
    Sample { chunks, walk }
}

/// The chunks just before and behind each run of `read`: where a list that is off by something errs first.
fn beside(read: &BlockMap) -> impl Iterator<Item = ChunkIndex> + '_ {
    read.runs().flat_map(|run| {
        let (first, end) = (ChunkIndex::of(run.offset), ChunkIndex::of(run.end()));
        let before = first.get().checked_sub(1).map(ChunkIndex::new);
        before.into_iter().chain([end])
    })
}

/// What follows a round of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: all was as it should be.
    Done,
    /// These chunks around the one that was wrong.
    Around(BlockMap),
    /// All that is still unread: the list is wrong in more than one place.
    Everything(BlockMap),
}

/// What is read after a round that found `wrong` chunks, and rounds before it `wrong_before`, out of those still `unread`: their
/// neighbourhood after the first, everything after a second.
pub fn next_round(wrong: &[ChunkIndex], wrong_before: u64, unread: &BlockMap) -> Next {
    if wrong.is_empty() {
        return Next::Done;
    }
    if wrong_before + wrong.len() as u64 > 1 {
        return Next::Everything(unread.clone());
    }
    let mut around = BlockMap::new(unread.len());
    for chunk in wrong {
        let start = chunk.get().saturating_sub(WIDEN_CHUNKS);
        let end = (chunk.get() + WIDEN_CHUNKS + 1).min(unread.len());
        (start..end).for_each(|at| around.set(ChunkIndex::new(at)));
    }
    around.keep(unread);
    Next::Around(around)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(chunks: u64, set: impl IntoIterator<Item = u64>) -> BlockMap {
        let mut map = BlockMap::new(chunks);
        set.into_iter().for_each(|at| map.set(ChunkIndex::new(at)));
        map
    }

    #[test]
    fn the_budget_is_a_share_with_a_floor() {
        assert_eq!(Budget::DEFAULT.chunks(1_048_576), 5_243);
        assert_eq!(Budget::DEFAULT.chunks(1000), 16);
        assert_eq!(Budget::DEFAULT.chunks(3), 3);
        assert_eq!(Budget::NONE.chunks(1000), 0);
        assert_eq!("0.5".parse(), Ok(Budget::DEFAULT));
        assert_eq!("0".parse(), Ok(Budget::NONE));
        assert_eq!("100%".parse::<Budget>().unwrap().chunks(77), 77);
        for bad in ["", "-1", "101", "NaN", "inf", "0.00001", "half"] {
            assert!(bad.parse::<Budget>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn the_walk_meets_every_chunk_once(chunks in 1u64..5000) {
            let stride = stride(chunks);
            let mut walk = Walk::default().scaled(chunks);
            let met = map(chunks, (0..chunks).map(|_| walk.next(stride).get()));
            prop_assert_eq!(met.count(), chunks);
            prop_assert_eq!(walk.position, 0);
        }

        #[test]
        fn the_sample_is_of_unread_chunks_and_of_the_size_asked_for(
            chunks in 1u64..3000,
            unread in prop::collection::vec(any::<bool>(), 3000),
            hot in prop::collection::vec(0u64..3000, 0..40),
            position in 0u64..3000,
        ) {
            let unread = map(chunks, (0..chunks).filter(|at| unread[usize::try_from(*at).unwrap()]));
            let hot: Vec<_> = hot.into_iter().map(ChunkIndex::new).collect();
            let walk = Walk { position: position % chunks, chunks };
            let sample = sample(&unread, &unread.inverted(), &hot, Budget::DEFAULT, walk);
            let mut outside = sample.chunks.clone();
            outside.remove(&unread);
            prop_assert!(outside.is_empty());
            prop_assert_eq!(sample.chunks.count(), Budget::DEFAULT.chunks(unread.count()));
        }
    }

    #[test]
    fn the_whole_volume_is_covered_in_a_known_number_of_runs() {
        let chunks = 4096;
        let unread = BlockMap::full(chunks);
        let read = BlockMap::new(chunks);
        let mut covered = BlockMap::new(chunks);
        let mut walk = Walk::default();
        let half = Budget::DEFAULT.chunks(chunks) / 2;
        let runs = chunks.div_ceil(half);
        for _ in 0..runs {
            let sample = sample(&unread, &read, &[], Budget::DEFAULT, walk);
            covered.union(&sample.chunks);
            walk = Walk::of_tag(Some(&sample.walk.to_tag()));
        }
        assert_eq!(covered.count(), chunks);
    }

    #[test]
    fn a_lost_range_longer_than_the_gaps_of_the_walk_is_met_by_every_run() {
        let chunks = 1 << 16;
        let unread = BlockMap::full(chunks);
        let budget: Budget = "1".parse().unwrap();
        let walking = budget.chunks(chunks) / 2;
        let mut walk = Walk::default();
        for _ in 0..50 {
            let sample = sample(&unread, &BlockMap::new(chunks), &[], budget, walk);
            walk = sample.walk;
            // Three gaps of the golden walk differ in length; the longest is below three times the mean.
            let longest = sample
                .chunks
                .inverted()
                .runs()
                .map(|run| run.chunks().count() as u64)
                .max();
            assert!(longest.unwrap() <= 3 * chunks / walking, "{longest:?}");
        }
    }

    #[test]
    fn ends_areas_and_the_neighbours_of_changes_come_first() {
        let read = map(4000, 1000..1010);
        let hot = [ChunkIndex::new(2000)];
        let sample = sample(&read.inverted(), &read, &hot, Budget::DEFAULT, Walk::default());
        for at in [0, 3999, 2000, 999, 1010] {
            assert!(sample.chunks.get(ChunkIndex::new(at)), "{at}");
        }
    }

    #[test]
    fn one_wrong_chunk_widens_the_look_and_a_second_ends_it() {
        let unread = map(1000, (0..1000).filter(|at| *at != 500));
        assert_eq!(next_round(&[], 0, &unread), Next::Done);
        let around = map(1000, (468..=532).filter(|at| *at != 500));
        assert_eq!(next_round(&[ChunkIndex::new(500)], 0, &unread), Next::Around(around));
        let everything = Next::Everything(unread.clone());
        assert_eq!(next_round(&[ChunkIndex::new(480)], 1, &unread), everything);
        assert_eq!(
            next_round(&[ChunkIndex::new(1), ChunkIndex::new(2)], 0, &unread),
            everything
        );
        let at_the_end = Next::Around(map(1000, 967..1000));
        assert_eq!(next_round(&[ChunkIndex::new(999)], 0, &unread), at_the_end);
    }

    #[test]
    fn a_walk_survives_resizes_and_damaged_tags() {
        let walk = Walk::of_tag(Some("50/100"));
        assert_eq!(
            walk.scaled(1000),
            Walk {
                position: 500,
                chunks: 1000
            }
        );
        for bad in ["", "1", "5/4", "x/9", "-1/9", "1/0", "18446744073709551616/3"] {
            assert_eq!(Walk::of_tag(Some(bad)), Walk::default(), "{bad}");
        }
        assert_eq!(Walk::of_tag(None), Walk::default());
    }
}
