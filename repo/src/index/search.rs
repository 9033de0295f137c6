//! Where a key stands among sorted rows.

use std::ops::Range;

use super::merge::head;

/// Guesses before the steps. Each brings the error of `n` rows down to about its square root: 10,000,000 to 3,000, to 60, to 8.
const GUESSES: usize = 3;

/// Rows between which no more guesses are made: they stand side by side in a few cache lines.
const FEW: usize = 16;

/// First of `rows` whose key is not less than `key`; all keys have the same first byte, the one of `key`.
///
/// Hashes are spread evenly, so the rest of a key tells about where it is. Steps that double lead on from the last guess, so that
/// the result does not depend on it: with keys that are not spread at all it costs `2 log2(n)` looks at a row instead of 5 or 6.
pub(super) fn lower_bound<'a>(rows: Range<usize>, key: &[u8], key_of: impl Fn(usize) -> &'a [u8]) -> usize {
    // Every row before `low` is less, none from `high` on is.
    let (mut low, mut high) = (rows.start, rows.end);
    let wanted = spread(key);
    let (mut least, mut most) = (0, u64::MAX);
    let mut is_low_near = true;
    for _ in 0..GUESSES {
        if high - low <= FEW {
            break;
        }
        let guess = low + part(high - low, wanted.saturating_sub(least), most - least);
        let found = key_of(guess);
        is_low_near = is_less(found, key);
        if is_low_near {
            (low, least) = (guess + 1, spread(found));
        } else {
            (high, most) = (guess, spread(found));
        }
    }
    let mut step = 1;
    while high - low > step {
        let row = if is_low_near { low + step - 1 } else { high - step };
        let is_less = is_less(key_of(row), key);
        if is_less {
            low = row + 1;
        } else {
            high = row;
        }
        if is_less != is_low_near {
            break;
        }
        step *= 2;
    }
    while low < high {
        let middle = low.midpoint(high);
        if is_less(key_of(middle), key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// `a` is less than `b`: nearly always told by their first 8 bytes, which are compared as a number.
pub(super) fn is_less(a: &[u8], b: &[u8]) -> bool {
    (head(a), a) < (head(b), b)
}

/// What is spread evenly in a key: its hash.
fn spread(key: &[u8]) -> u64 {
    head(key.get(1..).unwrap_or_default())
}

/// The row in so many rows that is `part` of `whole` from the first, at most the last.
fn part(rows: usize, part: u64, whole: u64) -> usize {
    let row = rows as u128 * u128::from(part) / (u128::from(whole) + 1);
    usize::try_from(row).unwrap_or(usize::MAX).min(rows - 1)
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_set;
    use proptest::prelude::*;

    use super::*;

    /// Keys of one prefix: spread evenly, crowded together, or short.
    fn keys() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let hash = prop_oneof![
            any::<[u8; 16]>().prop_map(|hash| hash.to_vec()),
            (any::<u8>(), any::<u8>()).prop_map(|(a, b)| [&[7; 14][..], &[a & 3, b]].concat()),
            any::<u64>().prop_map(|n| [&u64::MAX.to_be_bytes()[..], &n.to_be_bytes()].concat()),
        ];
        btree_set(hash, 0..600).prop_map(|hashes| hashes.into_iter().map(|hash| [&b"k"[..], &hash].concat()).collect())
    }

    proptest! {
        #[test]
        fn a_key_is_found_wherever_it_stands_and_its_place_when_it_is_not_there(
            keys in keys(),
            others in keys(),
            start in any::<prop::sample::Index>(),
        ) {
            let start = start.index(keys.len() + 1);
            for key in keys.iter().chain(&others) {
                let want = start + keys[start..].partition_point(|k| k < key);
                prop_assert_eq!(lower_bound(start..keys.len(), key, |row| &keys[row]), want);
            }
        }
    }

    #[test]
    fn short_hashes_are_told_apart() {
        let keys: Vec<Vec<u8>> = (0..=255).map(|byte| vec![0, byte]).collect();
        for (row, key) in keys.iter().enumerate() {
            assert_eq!(lower_bound(0..keys.len(), key, |row| &keys[row]), row);
        }
    }

    #[test]
    fn few_rows_are_looked_at_among_many() {
        let rows = 1 << 20;
        let keys: Vec<Vec<u8>> = (0..rows)
            .map(|row: u64| [&[0_u8][..], &(row << 44 | 0x5555).to_be_bytes(), &[0; 8]].concat())
            .collect();
        let looks = std::cell::Cell::new(0);
        let key_of = |row: usize| {
            looks.set(looks.get() + 1);
            &keys[row][..]
        };
        for row in (0..keys.len()).step_by(997) {
            assert_eq!(lower_bound(0..keys.len(), &keys[row], key_of), row);
        }
        let each = looks.get() / keys.len().div_ceil(997);
        assert!(each <= 6, "{each} looks");
    }
}
