//! Eight BLAKE2b-256 states in the eight 64-bit lanes of AVX-512 registers: the only `unsafe` of this crate.
//!
//! A register holds one state or message word of all eight messages. Messages lie in memory one after the other, so
//! every block is transposed on its way in; the rounds are RFC 7693 section 3.2 on vectors.
//!
//! Eight states are as many as the registers hold: sixteen state words and sixteen message words are all 32 of them.
//! Sixteen states interleaved, to hide the latency of the rounds, were measured at 183 us per MiB against 164 (AMD
//! Zen 5): what is won in latency is lost in spills.

#![expect(
    unsafe_code,
    reason = "SIMD loads, stores and the call into code compiled for AVX-512"
)]

use std::arch::x86_64::{
    __m512i, _mm512_add_epi64, _mm512_loadu_si512, _mm512_ror_epi64, _mm512_set1_epi64, _mm512_setzero_si512,
    _mm512_shuffle_i64x2, _mm512_storeu_si512, _mm512_ternarylogic_epi64, _mm512_unpackhi_epi64, _mm512_unpacklo_epi64,
    _mm512_xor_si512,
};

use super::{BLOCK_BYTES, DIGEST_BYTES, Key};

/// Messages at once.
const LANES: usize = 8;

/// Words of a state.
const STATE_WORDS: usize = 8;

/// Initial state. Source: RFC 7693, section 2.6.
const IV: [u64; STATE_WORDS] = [
    0x6a09_e667_f3bc_c908,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
    0x9b05_688c_2b3e_6c1f,
    0x1f83_d9ab_fb41_bd6b,
    0x5be0_cd19_137e_2179,
];

/// Which message word goes where in each round; rounds 10 and 11 repeat 0 and 1. Source: RFC 7693, section 2.7.
const SIGMA: [[usize; 16]; 10] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
];

/// Whether this CPU has what [`hash8`] needs.
pub(super) fn has_avx512() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
}

/// The digests of eight messages of one length, which is not zero.
///
/// # Panics
/// When the CPU has no AVX-512, when the lengths differ, when they are zero.
pub(super) fn hash8(key: &Key, messages: [&[u8]; LANES]) -> [[u8; DIGEST_BYTES]; LANES] {
    assert!(has_avx512(), "the kernel is chosen by what the CPU has");
    // SAFETY: the one requirement of a safe function with `target_feature` is that the CPU has the feature, and the
    // line above stopped a CPU without `avx512f`. (The look-up is one atomic load; a call hashes up to 8 MiB.)
    unsafe { hash8_avx512(key, messages) }
}

#[target_feature(enable = "avx512f")]
fn hash8_avx512(key: &Key, messages: [&[u8]; LANES]) -> [[u8; DIGEST_BYTES]; LANES] {
    let len = messages[0].len();
    assert!(
        len > 0 && messages.iter().all(|m| m.len() == len),
        "the lanes hold messages of one length, not empty"
    );

    let mut state = [_mm512_setzero_si512(); STATE_WORDS];
    for i in 0..STATE_WORDS {
        state[i] = splat(IV[i]);
    }
    // Parameter block, first word: digest length, key length, fanout 1, depth 1 (RFC 7693, section 2.5).
    state[0] = _mm512_xor_si512(
        state[0],
        splat(0x0101_0000 ^ (key.len as u64) << 8 ^ DIGEST_BYTES as u64),
    );
    let mut count = 0;
    if key.len > 0 {
        count += BLOCK_BYTES as u64;
        compress(&mut state, [&*key.block; LANES], count, false);
    }

    // The last block is the only one that may be short and the only one that is marked, so it goes through a copy.
    let last_index = (len - 1) / BLOCK_BYTES;
    let bodies = messages.map(|m| &m.as_chunks::<BLOCK_BYTES>().0[..last_index]);
    for index in 0..last_index {
        count += BLOCK_BYTES as u64;
        compress(&mut state, bodies.map(|body| &body[index]), count, false);
    }
    let mut last = [[0; BLOCK_BYTES]; LANES];
    let last_len = len - last_index * BLOCK_BYTES;
    for (block, message) in last.iter_mut().zip(messages) {
        block[..last_len].copy_from_slice(&message[last_index * BLOCK_BYTES..]);
    }
    count += last_len as u64;
    compress(&mut state, last.each_ref(), count, true);

    let mut digests = [[0; DIGEST_BYTES]; LANES];
    for (word, vector) in state.into_iter().take(DIGEST_BYTES / 8).enumerate() {
        for (digest, lane) in digests.iter_mut().zip(store(vector)) {
            digest[word * 8..][..8].copy_from_slice(&lane.to_le_bytes());
        }
    }
    digests
}

/// One mixing of two message words into a column or diagonal. The message word is added to `a`, which is ready before
/// `b` is: one addition less on the critical path than in the order of the RFC (sums are the same).
macro_rules! mix {
    ($v:ident, $a:literal, $b:literal, $c:literal, $d:literal, $x:expr, $y:expr) => {
        $v[$a] = _mm512_add_epi64(_mm512_add_epi64($v[$a], $x), $v[$b]);
        $v[$d] = _mm512_ror_epi64::<32>(_mm512_xor_si512($v[$d], $v[$a]));
        $v[$c] = _mm512_add_epi64($v[$c], $v[$d]);
        $v[$b] = _mm512_ror_epi64::<24>(_mm512_xor_si512($v[$b], $v[$c]));
        $v[$a] = _mm512_add_epi64(_mm512_add_epi64($v[$a], $y), $v[$b]);
        $v[$d] = _mm512_ror_epi64::<16>(_mm512_xor_si512($v[$d], $v[$a]));
        $v[$c] = _mm512_add_epi64($v[$c], $v[$d]);
        $v[$b] = _mm512_ror_epi64::<63>(_mm512_xor_si512($v[$b], $v[$c]));
    };
}

/// The named rounds of one block. A macro, not a function: the indexes must be constants for the sixteen words to stay
/// in registers, and `#[inline(always)]` does not go with `#[target_feature]`.
macro_rules! rounds {
    ($v:ident, $m:ident, $($round:literal)*) => {$(
        const { assert!($round < SIGMA.len()) };
        mix!($v, 0, 4, 8, 12, $m[SIGMA[$round][0]], $m[SIGMA[$round][1]]);
        mix!($v, 1, 5, 9, 13, $m[SIGMA[$round][2]], $m[SIGMA[$round][3]]);
        mix!($v, 2, 6, 10, 14, $m[SIGMA[$round][4]], $m[SIGMA[$round][5]]);
        mix!($v, 3, 7, 11, 15, $m[SIGMA[$round][6]], $m[SIGMA[$round][7]]);
        mix!($v, 0, 5, 10, 15, $m[SIGMA[$round][8]], $m[SIGMA[$round][9]]);
        mix!($v, 1, 6, 11, 12, $m[SIGMA[$round][10]], $m[SIGMA[$round][11]]);
        mix!($v, 2, 7, 8, 13, $m[SIGMA[$round][12]], $m[SIGMA[$round][13]]);
        mix!($v, 3, 4, 9, 14, $m[SIGMA[$round][14]], $m[SIGMA[$round][15]]);
    )*};
}

/// Takes one block of every message into `state`. `count` is the number of bytes hashed with it, the key block
/// included; it stays below 2^64, so the high word of the counter is always zero.
#[inline]
#[target_feature(enable = "avx512f")]
fn compress(state: &mut [__m512i; STATE_WORDS], blocks: [&[u8; BLOCK_BYTES]; LANES], count: u64, last: bool) {
    let m = transpose(blocks);
    let mut v = [_mm512_setzero_si512(); 16];
    for i in 0..STATE_WORDS {
        v[i] = state[i];
        v[8 + i] = splat(IV[i]);
    }
    v[12] = _mm512_xor_si512(v[12], splat(count));
    if last {
        v[14] = _mm512_xor_si512(v[14], splat(u64::MAX));
    }
    rounds!(v, m, 0 1 2 3 4 5 6 7 8 9 0 1);
    for i in 0..STATE_WORDS {
        // 0x96: exclusive or of all three.
        state[i] = _mm512_ternarylogic_epi64::<0x96>(state[i], v[i], v[8 + i]);
    }
}

/// From eight blocks of sixteen words to sixteen vectors: vector `w` holds word `w` of every block.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(blocks: [&[u8; BLOCK_BYTES]; LANES]) -> [__m512i; 16] {
    let mut out = [_mm512_setzero_si512(); 16];
    for half in 0..2 {
        let mut rows = [_mm512_setzero_si512(); LANES];
        for i in 0..LANES {
            rows[i] = load(&blocks[i].as_chunks().0[half]);
        }
        // After this, even and odd words of two neighbouring blocks alternate: a = words 0 2 4 6, b = words 1 3 5 7.
        let mut pairs = [_mm512_setzero_si512(); LANES];
        for i in 0..LANES / 2 {
            pairs[2 * i] = _mm512_unpacklo_epi64(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_epi64(rows[2 * i], rows[2 * i + 1]);
        }
        // 0x88 takes the first and third 128-bit piece of both arguments, 0xdd the second and fourth.
        for odd in 0..2 {
            let low = _mm512_shuffle_i64x2::<0x88>(pairs[odd], pairs[odd + 2]);
            let low_next = _mm512_shuffle_i64x2::<0xdd>(pairs[odd], pairs[odd + 2]);
            let high = _mm512_shuffle_i64x2::<0x88>(pairs[odd + 4], pairs[odd + 6]);
            let high_next = _mm512_shuffle_i64x2::<0xdd>(pairs[odd + 4], pairs[odd + 6]);
            out[half * 8 + odd] = _mm512_shuffle_i64x2::<0x88>(low, high);
            out[half * 8 + odd + 2] = _mm512_shuffle_i64x2::<0x88>(low_next, high_next);
            out[half * 8 + odd + 4] = _mm512_shuffle_i64x2::<0xdd>(low, high);
            out[half * 8 + odd + 6] = _mm512_shuffle_i64x2::<0xdd>(low_next, high_next);
        }
    }
    out
}

#[inline]
#[target_feature(enable = "avx512f")]
fn splat(word: u64) -> __m512i {
    _mm512_set1_epi64(word.cast_signed())
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the reference guarantees 64 readable bytes, which is all the instruction reads; it asks for no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(vector: __m512i) -> [u64; LANES] {
    let mut words = [0; LANES];
    // SAFETY: `words` is 64 writable bytes of this frame, which is all the instruction writes; it asks for no alignment.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) };
    words
}
