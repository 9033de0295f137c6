//! The code itself: which parity belongs to which data, and data computed anew from what is left.

use super::field::{add_mul, inverse, mul, pow};

/// Rows of a matrix.
type Rows = Vec<Vec<u8>>;

/// A code of some data and parity shards.
pub(super) struct Code {
    /// One row for each parity shard, one column for each data shard: the parity is the sum of products.
    parity: Rows,
}

impl Code {
    /// The code that Kopia's library makes by default: the powers matrix of `data + parity` rows, multiplied by what turns its
    /// top into a unit matrix, so that the data stand in the shards as they are. At most 256 shards.
    ///
    /// Source: klauspost/reedsolomon, reedsolomon.go (`buildMatrix`) and matrix.go.
    pub(super) fn new(data: usize, parity: usize) -> Self {
        let powers = |row: usize| -> Vec<u8> {
            let row = u8::try_from(row).expect("at most 256 shards");
            (0..data).map(|column| pow(row, column)).collect()
        };
        let top = invert((0..data).map(powers).collect());
        let parity = (data..data + parity).map(|row| multiply(&powers(row), &top)).collect();
        Self { parity }
    }

    /// The missing shards of `data` in order, computed from the others and as many of `parity`, of which enough are there. All
    /// shards have `len` bytes.
    pub(super) fn repair(&self, data: &[Option<&[u8]>], parity: &[Option<&[u8]>], len: usize) -> Rows {
        let missing: Vec<usize> = (0..data.len()).filter(|at| data[*at].is_none()).collect();
        let present = parity
            .iter()
            .zip(&self.parity)
            .filter_map(|(shard, row)| Some(((*shard)?, row)));
        let (mut sums, mut system) = (Vec::new(), Vec::new());
        for (shard, row) in present.take(missing.len()) {
            // What the missing shards contribute to this parity.
            let mut sum = shard.to_vec();
            for (factor, known) in row.iter().zip(data) {
                known.iter().for_each(|known| add_mul(&mut sum, *factor, known));
            }
            sums.push(sum);
            system.push(missing.iter().map(|at| row[*at]).collect());
        }
        assert_eq!(sums.len(), missing.len(), "the caller counts the shards");
        let solution = invert(system);
        let solve = |factors: &Vec<u8>| {
            let mut shard = vec![0; len];
            factors
                .iter()
                .zip(&sums)
                .for_each(|(factor, sum)| add_mul(&mut shard, *factor, sum));
            shard
        };
        solution.iter().map(solve).collect()
    }

    /// Parity of whole `data`, for tests.
    #[cfg(test)]
    pub(super) fn encode(&self, data: &[&[u8]]) -> Rows {
        let sum = |row: &Vec<u8>| {
            let mut shard = vec![0; data[0].len()];
            row.iter()
                .zip(data)
                .for_each(|(factor, data)| add_mul(&mut shard, *factor, data));
            shard
        };
        self.parity.iter().map(sum).collect()
    }
}

/// A row times a matrix.
fn multiply(row: &[u8], matrix: &Rows) -> Vec<u8> {
    let mut product = vec![0; matrix[0].len()];
    row.iter()
        .zip(matrix)
        .for_each(|(factor, row)| add_mul(&mut product, *factor, row));
    product
}

/// The inverse of a square matrix by elimination. Every square part of a powers matrix with different bases has one, and so has
/// every square part of the parity made from it.
fn invert(mut left: Rows) -> Rows {
    let size = left.len();
    let mut right: Rows = (0..size)
        .map(|row| (0..size).map(|column| u8::from(row == column)).collect())
        .collect();
    for at in 0..size {
        let pivot = (at..size)
            .find(|row| left[*row][at] != 0)
            .expect("a powers matrix has an inverse");
        left.swap(at, pivot);
        right.swap(at, pivot);
        let factor = inverse(left[at][at]);
        for row in [&mut left[at], &mut right[at]] {
            row.iter_mut().for_each(|value| *value = mul(*value, factor));
        }
        let (left_row, right_row) = (left[at].clone(), right[at].clone());
        for row in (0..size).filter(|row| *row != at) {
            let factor = left[row][at];
            if factor != 0 {
                add_mul(&mut left[row], factor, &left_row);
                add_mul(&mut right[row], factor, &right_row);
            }
        }
    }
    right
}
