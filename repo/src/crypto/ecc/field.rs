//! Arithmetic in GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1 and the generator 2.
//!
//! Source: klauspost/reedsolomon, galois.go.

/// The polynomial without its highest term.
const POLYNOMIAL: u8 = 0x1d;

/// Powers of 2, twice over, so that a sum of two logarithms needs no remainder.
const EXP: [u8; 510] = exp_table();

/// Logarithms to base 2; that of 0 is not used.
const LOG: [u8; 256] = log_table();

#[expect(
    clippy::cast_possible_truncation,
    reason = "a constant function has no `try_from`; the loops stay below 255"
)]
const fn log_table() -> [u8; 256] {
    let mut table = [0; 256];
    let mut power = 0;
    while power < 255 {
        table[EXP[power] as usize] = power as u8;
        power += 1;
    }
    table
}

const fn exp_table() -> [u8; 510] {
    let mut table = [0; 510];
    let (mut power, mut value) = (0, 1_u8);
    while power < 510 {
        table[power] = value;
        value = (value << 1) ^ if value & 0x80 != 0 { POLYNOMIAL } else { 0 };
        power += 1;
    }
    table
}

/// Product.
pub(super) fn mul(a: u8, b: u8) -> u8 {
    match (a, b) {
        (0, _) | (_, 0) => 0,
        _ => EXP[log(a) + log(b)],
    }
}

/// The number whose product with `a` is 1. `a` is not 0.
pub(super) fn inverse(a: u8) -> u8 {
    EXP[255 - log(a)]
}

/// `base` to the power of `exponent`; anything to the power of 0 is 1.
pub(super) fn pow(base: u8, exponent: usize) -> u8 {
    match (base, exponent) {
        (_, 0) => 1,
        (0, _) => 0,
        _ => EXP[log(base) * exponent % 255],
    }
}

/// Adds `factor` times `input` to `sum`, byte by byte.
pub(super) fn add_mul(sum: &mut [u8], factor: u8, input: &[u8]) {
    let products: [u8; 256] = std::array::from_fn(|byte| mul(factor, u8::try_from(byte).expect("256 of them")));
    for (sum, byte) in sum.iter_mut().zip(input) {
        *sum ^= products[usize::from(*byte)];
    }
}

fn log(a: u8) -> usize {
    usize::from(LOG[usize::from(a)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_polynomials() {
        let slow = |a: u8, b: u8| {
            let (mut product, mut a) = (0, a);
            for bit in 0..8 {
                product ^= if b >> bit & 1 == 1 { a } else { 0 };
                a = (a << 1) ^ if a & 0x80 != 0 { POLYNOMIAL } else { 0 };
            }
            product
        };
        for a in 0..=255 {
            for b in 0..=255 {
                assert_eq!(mul(a, b), slow(a, b), "{a} * {b}");
            }
            if a != 0 {
                assert_eq!(mul(a, inverse(a)), 1, "{a}");
            }
            let power = (0..300).fold(1, |power, exponent| {
                assert_eq!(pow(a, exponent), power, "{a}^{exponent}");
                mul(power, a)
            });
            assert!(a == 0 || power != 0);
        }
    }
}
