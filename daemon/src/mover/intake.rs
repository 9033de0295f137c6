//! What becomes of each chunk of a volume in a backup, before anything is read: read, taken over unread, or known to be zero.

use blockio::{BlockMap, CHUNK_SIZE, ChunkIndex};

use super::ladder::Rung;

/// The chunks of a volume in three parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Intake {
    /// To be read.
    pub(super) read: BlockMap,
    /// Not read: as the parent has them (delta), or zero by a list (allocated).
    pub(super) unread: BlockMap,
    /// Holes of a file: zero, and known to be.
    pub(super) holes: BlockMap,
}

impl Intake {
    /// Of a volume of `size` bytes of which `data` may hold data. `parent_size` is that of the parent, `list` the changed (delta) or
    /// allocated chunks; each is there on the rungs that need it.
    pub(super) fn new(
        rung: Rung,
        size: u64,
        data: BlockMap,
        parent_size: Option<u64>,
        list: Option<&BlockMap>,
    ) -> Self {
        let holes = data.inverted();
        let read = match (rung, list) {
            (Rung::Delta, Some(changed)) => {
                let mut read = resized(parent_size.expect("a delta has a parent"), size);
                read.union(changed);
                read.keep(&data);
                read
            }
            (Rung::Allocated, Some(allocated)) => {
                let mut read = allocated.clone();
                read.keep(&data);
                read
            }
            _ => data.clone(),
        };
        let mut unread = data;
        unread.remove(&read);
        Self { read, unread, holes }
    }
}

/// The chunks of a volume of `size` bytes that a parent of `parent_size` bytes says nothing of, or something else: those past
/// its end, and the one in which the smaller of the two ends, whose padding was or becomes data.
fn resized(parent_size: u64, size: u64) -> BlockMap {
    let chunks = size.div_ceil(CHUNK_SIZE);
    let mut map = BlockMap::new(chunks);
    if parent_size == size {
        return map;
    }
    (parent_size.div_ceil(CHUNK_SIZE)..chunks).for_each(|at| map.set(ChunkIndex::new(at)));
    let end = parent_size.min(size);
    if !end.is_multiple_of(CHUNK_SIZE) {
        map.set(ChunkIndex::of(end));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A byte of the volume and, when it was read into a snapshot, its padding.
    fn padded(bytes: &[u8]) -> Vec<u8> {
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(SCALE), 0);
        padded
    }

    /// The model works on chunks of 4 bytes; sizes are scaled up for the real thing.
    const SCALE: usize = 4;
    const UNIT: u64 = CHUNK_SIZE / SCALE as u64;

    fn map_of(count: usize, set: impl Fn(usize) -> bool) -> BlockMap {
        let mut map = BlockMap::new(count as u64);
        (0..count)
            .filter(|at| set(*at))
            .for_each(|at| map.set(ChunkIndex::new(at as u64)));
        map
    }

    proptest! {
        /// Whatever the sizes, an honest list, however it over-reports, gives a snapshot equal to one that read everything.
        #[test]
        fn growing_and_shrinking_equal_a_full_read(
            old in prop::collection::vec(0u8..3, 0..60),
            new in prop::collection::vec(0u8..3, 1..60),
            more in prop::collection::vec(any::<bool>(), 60),
        ) {
            let chunks = new.len().div_ceil(SCALE);
            // Honest: names every chunk in which a byte that both have differs.
            let common = old.len().min(new.len());
            let changed = map_of(chunks, |at| {
                let mut bytes = at * SCALE..((at + 1) * SCALE).min(common);
                bytes.any(|byte| old[byte] != new[byte]) || more[at]
            });
            let intake = Intake::new(
                Rung::Delta,
                new.len() as u64 * UNIT,
                BlockMap::full(chunks as u64),
                Some(old.len() as u64 * UNIT),
                Some(&changed),
            );
            let mut snapshot = padded(&old);
            snapshot.resize(chunks * SCALE, 0);
            let truth = padded(&new);
            for chunk in intake.read.iter() {
                let at = usize::try_from(chunk.get()).unwrap() * SCALE;
                snapshot[at..at + SCALE].copy_from_slice(&truth[at..at + SCALE]);
            }
            prop_assert_eq!(snapshot, truth);
        }

        #[test]
        fn every_chunk_is_in_one_part(
            chunks in 1usize..50,
            data in prop::collection::vec(any::<bool>(), 50),
            list in prop::collection::vec(any::<bool>(), 50),
            parent_chunks in 0u64..60,
            rung in prop::sample::select(vec![Rung::Delta, Rung::Allocated, Rung::HashCompare, Rung::Full]),
        ) {
            let (data, list) = (map_of(chunks, |at| data[at]), map_of(chunks, |at| list[at]));
            let size = chunks as u64 * CHUNK_SIZE;
            let intake = Intake::new(rung, size, data, Some(parent_chunks * CHUNK_SIZE), Some(&list));
            let counts = [&intake.read, &intake.unread, &intake.holes].map(BlockMap::count);
            prop_assert_eq!(counts.iter().sum::<u64>(), chunks as u64);
            let mut all = intake.read.clone();
            all.union(&intake.unread);
            all.union(&intake.holes);
            prop_assert_eq!(all, BlockMap::full(chunks as u64));
            if matches!(rung, Rung::Full | Rung::HashCompare) {
                prop_assert!(intake.unread.is_empty());
            }
        }
    }

    #[track_caller]
    fn check(parent_size: u64, size: u64, expect: &[u64]) {
        let read: Vec<u64> = resized(parent_size, size).iter().map(ChunkIndex::get).collect();
        assert_eq!(read, expect);
    }

    #[test]
    fn only_new_chunks_and_the_padded_one_are_read_after_a_resize() {
        let mib = CHUNK_SIZE;
        check(5 * mib, 5 * mib, &[]);
        check(5 * mib + 1, 5 * mib + 1, &[]);
        check(5 * mib, 7 * mib, &[5, 6]);
        check(5 * mib + 512, 7 * mib, &[5, 6]);
        check(5 * mib + 512, 5 * mib + 1024, &[5]);
        check(7 * mib, 5 * mib, &[]);
        check(7 * mib, 5 * mib + 512, &[5]);
        check(7 * mib + 512, 7 * mib, &[]);
        check(0, mib, &[0]);
    }
}
