//! What is hydrated next. No IO: tests feed it facts.

use std::collections::VecDeque;

use blockio::{BlockMap, CHUNK_SIZE, ChunkIndex, Extent};

/// Bytes of a run of zeros that are one step: between two of them it can be stopped.
const ZERO_STEP: u64 = 256 << 20;

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Make a run zero that is zero in the base.
    Zero(Extent),
    /// Fetch a chunk.
    Chunk(ChunkIndex),
}

/// The chunks that are not in the target, in the order in which they will be.
pub(super) struct Plan {
    /// Chunks to fetch.
    wanted: BlockMap,
    /// Those of them that were taken.
    taken: BlockMap,
    retry: VecDeque<ChunkIndex>,
    touched: VecDeque<ChunkIndex>,
    /// Touches that were looked at.
    touches: usize,
    first: VecDeque<ChunkIndex>,
    zeros: VecDeque<Extent>,
    rest: VecDeque<ChunkIndex>,
    /// The rest is known.
    has_rest: bool,
    /// Taken and sent for; nobody is at it yet.
    ready: VecDeque<Work>,
}

impl Plan {
    /// For a volume of `size` bytes of which `absent` is not in the target, and `zeros` are zero in the base, ascending.
    pub(super) fn new(absent: BlockMap, zeros: &[Extent], size: u64) -> Self {
        let mut wanted = absent;
        let mut whole = BlockMap::new(wanted.len());
        let mut runs = VecDeque::new();
        for zero in zeros {
            let mut at = zero.offset;
            while at < zero.end() {
                let run = Extent::between(at, zero.end().min((at / ZERO_STEP + 1) * ZERO_STEP));
                at = run.end();
                // What is there already needs nothing.
                if run.chunks().any(|chunk| wanted.get(chunk)) {
                    runs.push_back(run);
                }
            }
            let inside = zero.chunks().filter(|chunk| {
                let end = (chunk.offset() + CHUNK_SIZE).min(size);
                zero.offset <= chunk.offset() && end <= zero.end()
            });
            inside.for_each(|chunk| whole.set(chunk));
        }
        wanted.remove(&whole);
        Self {
            taken: BlockMap::new(wanted.len()),
            wanted,
            retry: VecDeque::new(),
            touched: VecDeque::new(),
            touches: 0,
            first: VecDeque::new(),
            zeros: runs,
            rest: VecDeque::new(),
            has_rest: false,
            ready: VecDeque::new(),
        }
    }

    /// A plan with nothing in it.
    pub(super) fn empty() -> Self {
        Self::new(BlockMap::new(0), &[], 0)
    }

    /// The chunks that have to be fetched.
    pub(super) fn wanted(&self) -> &BlockMap {
        &self.wanted
    }

    /// `chunks` go early, in this order, behind those that do already.
    pub(super) fn add_first(&mut self, chunks: impl Iterator<Item = ChunkIndex>) {
        self.first.extend(chunks);
    }

    /// The order of all that is wanted.
    pub(super) fn set_rest(&mut self, rest: Vec<ChunkIndex>) {
        self.rest = rest.into();
        self.has_rest = true;
    }

    /// How many touches it was told.
    pub(super) fn touches(&self) -> usize {
        self.touches
    }

    /// More chunks were touched by readers.
    pub(super) fn add_touched(&mut self, chunks: &[ChunkIndex]) {
        self.touches += chunks.len();
        self.touched.extend(chunks);
    }

    /// A chunk that was taken is wanted again.
    pub(super) fn try_again(&mut self, chunk: ChunkIndex) {
        self.retry.push_back(chunk);
    }

    /// Takes what comes next. Each chunk comes once.
    pub(super) fn next(&mut self) -> Option<Work> {
        for list in [&mut self.touched, &mut self.first] {
            while let Some(chunk) = list.pop_front() {
                if take(&self.wanted, &mut self.taken, chunk) {
                    return Some(Work::Chunk(chunk));
                }
            }
        }
        if let Some(run) = self.zeros.pop_front() {
            return Some(Work::Zero(run));
        }
        while let Some(chunk) = self.rest.pop_front() {
            if take(&self.wanted, &mut self.taken, chunk) {
                return Some(Work::Chunk(chunk));
            }
        }
        self.retry.pop_front().map(Work::Chunk)
    }

    /// Nothing is left to take.
    pub(super) fn is_empty(&self) -> bool {
        self.has_rest
            && [&self.retry, &self.touched, &self.first, &self.rest]
                .iter()
                .all(|list| list.is_empty())
            && self.zeros.is_empty()
            && self.ready.is_empty()
    }

    /// `work` was sent for.
    pub(super) fn put_ready(&mut self, work: Work) {
        self.ready.push_back(work);
    }

    /// Takes out what was sent for and is not to stay.
    pub(super) fn remove_ready(&mut self, is_to_stay: impl Fn(ChunkIndex) -> bool) -> Vec<ChunkIndex> {
        let mut removed = Vec::new();
        self.ready.retain(|work| match work {
            Work::Chunk(chunk) if !is_to_stay(*chunk) => {
                removed.push(*chunk);
                false
            }
            _ => true,
        });
        removed
    }

    /// What was sent for first.
    pub(super) fn take_ready(&mut self) -> Option<Work> {
        self.ready.pop_front()
    }
}

/// Whether `chunk` is wanted and was not taken before; it is then.
fn take(wanted: &BlockMap, taken: &mut BlockMap, chunk: ChunkIndex) -> bool {
    let is_due = wanted.get(chunk) && !taken.get(chunk);
    if is_due {
        taken.set(chunk);
    }
    is_due
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn chunks(numbers: &[u64]) -> Vec<ChunkIndex> {
        numbers.iter().copied().map(ChunkIndex::new).collect()
    }

    /// All that is left to do: the number of a chunk, or of the first one of a run of zeros and its length.
    fn drain(plan: &mut Plan) -> Vec<String> {
        let show = |work| match work {
            Work::Chunk(chunk) => chunk.get().to_string(),
            Work::Zero(run) => format!("zero {}+{}", run.offset / MIB, run.len.div_ceil(MIB)),
        };
        std::iter::from_fn(|| plan.next()).map(show).collect()
    }

    #[test]
    fn touched_chunks_go_first_then_recorded_ones_zeros_and_the_rest_each_once() {
        let zeros = [Extent::between(2 * MIB, 5 * MIB)];
        let mut plan = Plan::new(BlockMap::full(10), &zeros, 10 * MIB);
        plan.add_first(chunks(&[7, 3, 9, 99]).into_iter());
        plan.set_rest(chunks(&[9, 8, 7, 6, 5, 1, 0]));
        assert_eq!(plan.next(), Some(Work::Chunk(ChunkIndex::new(7))));
        plan.add_touched(&chunks(&[6, 7]));
        assert_eq!(plan.touches(), 2);
        plan.try_again(ChunkIndex::new(7));
        assert!(!plan.is_empty());
        assert_eq!(drain(&mut plan), ["6", "9", "zero 2+3", "8", "5", "1", "0", "7"]);
        assert!(plan.is_empty());
    }

    #[test]
    fn a_chunk_that_is_zero_in_part_is_fetched_and_one_that_is_there_is_not() {
        let mut absent = BlockMap::full(6);
        let mut there = BlockMap::new(6);
        there.set(ChunkIndex::new(0));
        there.set(ChunkIndex::new(3));
        absent.remove(&there);
        let size = 5 * MIB + 700;
        let zeros = [
            Extent::between(0, MIB),
            Extent::between(MIB + 512, 4 * MIB),
            Extent::between(5 * MIB, size),
        ];
        let mut plan = Plan::new(absent, &zeros, size);
        plan.set_rest(chunks(&[0, 1, 2, 3, 4, 5]));
        assert_eq!(drain(&mut plan), ["zero 1+3", "zero 5+1", "1", "4"]);
    }

    #[test]
    fn a_long_run_of_zeros_is_several_steps() {
        let mut plan = Plan::new(BlockMap::full(600), &[Extent::between(0, 600 * MIB)], 600 * MIB);
        plan.set_rest(Vec::new());
        assert_eq!(drain(&mut plan), ["zero 0+256", "zero 256+256", "zero 512+88"]);
    }
}
