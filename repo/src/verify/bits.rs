//! A set of row numbers, one bit each, that many threads add to.

use std::sync::atomic::{AtomicU64, Ordering};

/// Rows of an index: 10,000,000 of them take 1.2 MiB.
pub(super) struct Bits(Vec<AtomicU64>);

impl Bits {
    /// No row of `count`.
    pub(super) fn new(count: usize) -> Self {
        Self((0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn set(&self, row: usize) {
        self.0[row / 64].fetch_or(1 << (row % 64), Ordering::Relaxed);
    }

    pub(super) fn clear(&self, row: usize) {
        self.0[row / 64].fetch_and(!(1 << (row % 64)), Ordering::Relaxed);
    }

    pub(super) fn has(&self, row: usize) -> bool {
        self.0[row / 64].load(Ordering::Relaxed) & 1 << (row % 64) != 0
    }

    pub(super) fn count(&self) -> u64 {
        let ones = self
            .0
            .iter()
            .map(|word| u64::from(word.load(Ordering::Relaxed).count_ones()));
        ones.sum()
    }

    /// The rows, in order.
    pub(super) fn rows(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(at, word)| {
            let mut word = word.load(Ordering::Relaxed);
            std::iter::from_fn(move || {
                let bit = word.trailing_zeros() as usize;
                word &= word.wrapping_sub(1);
                (bit < 64).then_some(at * 64 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_in_order() {
        let bits = Bits::new(200);
        for row in [199, 0, 63, 64, 0, 130] {
            bits.set(row);
        }
        bits.clear(130);
        assert_eq!(bits.rows().collect::<Vec<_>>(), [0, 63, 64, 199]);
        assert_eq!((bits.count(), bits.has(63), bits.has(130)), (4, true, false));
    }
}
