//! One bit for each position: which contents are in use, which have been walked, which are to go.

/// Bits by position. 10,000,000 contents take 1.2 MiB.
#[derive(Clone, Debug)]
pub(crate) struct Marks {
    words: Vec<u64>,
    count: u64,
}

impl Marks {
    /// `len` bits, all unset.
    pub(crate) fn new(len: usize) -> Self {
        Self {
            words: vec![0; len.div_ceil(64)],
            count: 0,
        }
    }

    /// Sets bit `at`; true when it was unset.
    pub(crate) fn set(&mut self, at: usize) -> bool {
        let (word, bit) = (at / 64, 1 << (at % 64));
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(new);
        new
    }

    /// Bit `at` is set.
    pub(crate) fn has(&self, at: usize) -> bool {
        self.words[at / 64] & (1 << (at % 64)) != 0
    }

    /// Bits that are set.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn marks_answer_like_a_set(positions in proptest::collection::vec(0..300_usize, 0..100)) {
            let mut marks = Marks::new(300);
            let mut set = std::collections::BTreeSet::new();
            for at in positions {
                prop_assert_eq!(marks.set(at), set.insert(at));
            }
            prop_assert!((0..300).all(|at| marks.has(at) == set.contains(&at)));
            prop_assert_eq!(marks.count(), set.len() as u64);
        }
    }
}
