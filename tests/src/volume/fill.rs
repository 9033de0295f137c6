//! Bytes of a block.

use std::sync::OnceLock;

/// SplitMix64: small, fast, and the same everywhere. Not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is small beside 2^64, so that the remainder is fair enough.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit
    }
}

/// Incompressible bytes.
pub(super) fn random(seed: u64, out: &mut [u8]) {
    let mut random = Random::new(seed);
    let mut words = out.chunks_exact_mut(8);
    for word in &mut words {
        word.copy_from_slice(&random.next_u64().to_le_bytes());
    }
    let rest = words.into_remainder();
    let last = random.next_u64().to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
}

/// Rows with a counter, a time, a few words of which some are frequent, and eight random bytes each.
pub(super) fn records(seed: u64, out: &mut [u8]) {
    let words = words();
    let mut random = Random::new(seed);
    let mut row = seed & 0xFFFF;
    let mut line = Vec::with_capacity(256);
    let mut filled = 0;
    while filled < out.len() {
        row += 1;
        line.clear();
        line.extend_from_slice(b"id=");
        digits(row, 10, &mut line);
        line.extend_from_slice(b" ts=17");
        digits(random.below(100_000_000), 8, &mut line);
        line.push(b' ');
        for _ in 0..4 + random.below(8) {
            // The least of three makes early words frequent, as in any text.
            let rank = (0..3).map(|_| random.below(WORDS)).min().unwrap_or(0);
            line.extend_from_slice(&words[usize::try_from(rank).expect("below 2000")]);
            line.push(b' ');
        }
        line.extend_from_slice(&random.next_u64().to_le_bytes());
        line.push(b'\n');
        let part = line.len().min(out.len() - filled);
        out[filled..filled + part].copy_from_slice(&line[..part]);
        filled += part;
    }
}

/// Words that records are made of.
const WORDS: u64 = 2000;

fn words() -> &'static [Vec<u8>] {
    static WORDS_MADE: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    WORDS_MADE.get_or_init(|| {
        let mut random = Random::new(77);
        (0..WORDS)
            .map(|_| (0..3 + random.below(9)).map(|_| letter(&mut random)).collect())
            .collect()
    })
}

fn letter(random: &mut Random) -> u8 {
    b'a' + u8::try_from(random.below(26)).expect("below 26")
}

/// `value` in decimal with `width` digits; higher digits are cut off.
fn digits(mut value: u64, width: usize, line: &mut Vec<u8>) {
    let start = line.len();
    line.resize(start + width, b'0');
    for digit in line[start..].iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).expect("below 10");
        value /= 10;
    }
}
