//! Keyed BLAKE2b-256, alone and several messages at once.
//!
//! BLAKE2b is serial within a message, but eight messages are eight independent states: one 64-bit lane each. The
//! digests are those of RFC 7693 for every message; only the order of work differs.

#[cfg(target_arch = "x86_64")]
mod sys;

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use blake2b_simd::many::{HashManyJob, hash_many};
#[cfg(target_arch = "x86_64")]
use sys::has_avx512;
use zeroize::Zeroizing;

use crate::error::{Kind, RepoError};

/// Bytes of a BLAKE2b block.
const BLOCK_BYTES: usize = 128;

/// Bytes of a full BLAKE2b-256 digest.
const DIGEST_BYTES: usize = 32;

type Digest = [u8; DIGEST_BYTES];

/// A way to hash several BLAKE2b messages at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// One message after the other.
    Serial,
    /// Four lanes of AVX2.
    Avx2x4,
    /// Eight lanes of AVX-512.
    Avx512x8,
}

impl Kernel {
    /// Every kernel, slowest first.
    pub const ALL: [Self; 3] = [Self::Serial, Self::Avx2x4, Self::Avx512x8];

    /// The fastest kernel of this CPU; looked up once per process.
    pub fn best() -> Self {
        static BEST: OnceLock<Kernel> = OnceLock::new();
        *BEST.get_or_init(|| {
            Self::ALL
                .into_iter()
                .rfind(|kernel| kernel.is_available())
                .unwrap_or(Self::Serial)
        })
    }

    /// Whether this CPU can run it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Serial => true,
            Self::Avx2x4 => blake2b_simd::many::degree() >= 4,
            Self::Avx512x8 => has_avx512(),
        }
    }

    /// The kernel that hashes `count` messages of one length soonest, `count` being at most the lanes of `self`.
    ///
    /// A pass takes the same time however many of its lanes are of use. Measured with `examples/crypto_rates.rs`, 1 MiB
    /// messages, us of CPU per message (AMD Zen 5; a pass over four lanes 1500 us, over eight 1260 to 1315 us):
    ///
    /// | messages | serial | AVX2, padded to 4 | AVX2, 2 lanes | AVX-512, padded to 8 |
    /// |----------|--------|-------------------|---------------|----------------------|
    /// | 1        | 1219   | 1500              |               | 1260                 |
    /// | 2        | 1219   | 750               | 708           | 630                  |
    /// | 3        | 1219   | 508               |               | 421                  |
    /// | 4        | 1219   | 375               |               | 316                  |
    /// | 8        | 1219   | 375               |               | 164                  |
    ///
    /// Two messages go to the two-lane path on either kernel: on Intel (Sapphire Rapids) a pass over eight lanes takes
    /// as long as 2.1 serial messages, and on Zen 5 the difference is a tenth.
    fn for_batch(self, count: usize) -> Self {
        match (self, count) {
            (Self::Avx512x8, 3..) => Self::Avx512x8,
            (Self::Avx512x8 | Self::Avx2x4, 2..) => Self::Avx2x4,
            _ => Self::Serial,
        }
    }

    /// Messages at once.
    pub const fn lanes(self) -> usize {
        match self {
            Self::Serial => 1,
            Self::Avx2x4 => 4,
            Self::Avx512x8 => 8,
        }
    }

    /// Name for logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Serial => "serial",
            Self::Avx2x4 => "avx2x4",
            Self::Avx512x8 => "avx512x8",
        }
    }
}

impl FromStr for Kernel {
    type Err = RepoError;

    fn from_str(name: &str) -> Result<Self, RepoError> {
        let known = Self::ALL.into_iter().find(|kernel| kernel.name() == name);
        known.ok_or_else(|| {
            RepoError::new(
                Kind::InvalidInput,
                format!("no hash kernel {name:?}; there are serial, avx2x4, avx512x8"),
            )
        })
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// BLAKE2b-256 under one key.
#[derive(Clone)]
pub(super) struct Blake2b {
    params: blake2b_simd::Params,
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "only our own kernel takes the key as a block")
    )]
    key: Key,
}

/// A key of up to 64 bytes as the block it becomes: BLAKE2b hashes it, padded with zeros, before the message.
#[derive(Clone)]
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "only our own kernel takes the key as a block")
)]
struct Key {
    block: Zeroizing<[u8; BLOCK_BYTES]>,
    /// 0 means an unkeyed hash, which has no key block.
    len: usize,
}

impl Blake2b {
    /// BLAKE2b under `key`.
    ///
    /// # Panics
    /// When `key` is longer than 64 bytes.
    pub(super) fn new(key: &[u8]) -> Self {
        let mut params = blake2b_simd::Params::new();
        params.hash_length(DIGEST_BYTES).key(key);
        let mut block = Zeroizing::new([0; BLOCK_BYTES]);
        block[..key.len()].copy_from_slice(key);
        Self {
            params,
            key: Key { block, len: key.len() },
        }
    }

    /// The digest of one message.
    pub(super) fn hash(&self, message: &[u8]) -> [u8; DIGEST_BYTES] {
        digest_of(&self.params.hash(message))
    }

    /// Gives `done` the index and digest of every message, in no particular order. `kernel` must be available.
    pub(super) fn hash_many(&self, kernel: Kernel, messages: &[&[u8]], mut done: impl FnMut(usize, Digest)) {
        let mut order: Vec<usize> = (0..messages.len()).collect();
        order.sort_unstable_by_key(|&i| messages[i].len());
        for equal in order.chunk_by(|&a, &b| messages[a].len() == messages[b].len()) {
            for batch in equal.chunks(kernel.lanes()) {
                // An empty message is only a key block, or nothing: not worth a lane.
                let empty = messages[batch[0]].is_empty();
                let kernel = if empty {
                    Kernel::Serial
                } else {
                    kernel.for_batch(batch.len())
                };
                match kernel {
                    Kernel::Serial => batch.iter().for_each(|&i| done(i, self.hash(messages[i]))),
                    Kernel::Avx2x4 => self.hash_4(messages, batch, &mut done),
                    Kernel::Avx512x8 => self.hash_8(messages, batch, &mut done),
                }
            }
        }
    }

    /// Two to four messages. Three take a pass over four lanes (the fourth repeats the first message), because the
    /// library would do two of them together and the third alone, which takes 1.7 times as long.
    fn hash_4(&self, messages: &[&[u8]], batch: &[usize], done: &mut impl FnMut(usize, Digest)) {
        let lanes = if batch.len() == 2 { 2 } else { 4 };
        let lane = |lane: usize| messages[*batch.get(lane).unwrap_or(&batch[0])];
        let mut jobs: [_; 4] = std::array::from_fn(|i| HashManyJob::new(&self.params, lane(i)));
        hash_many(&mut jobs[..lanes]);
        for (&i, job) in batch.iter().zip(&jobs) {
            done(i, digest_of(&job.to_hash()));
        }
    }

    /// One to eight messages of one length, not empty. Idle lanes repeat the first message: its blocks are in the
    /// cache by then, so they cost no memory traffic.
    #[cfg(target_arch = "x86_64")]
    fn hash_8(&self, messages: &[&[u8]], batch: &[usize], done: &mut impl FnMut(usize, Digest)) {
        let lanes = std::array::from_fn(|lane| messages[*batch.get(lane).unwrap_or(&batch[0])]);
        let digests = sys::hash8(&self.key, lanes);
        for (&i, digest) in batch.iter().zip(digests) {
            done(i, digest);
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn hash_8(&self, messages: &[&[u8]], batch: &[usize], done: &mut impl FnMut(usize, Digest)) {
        batch.iter().for_each(|&i| done(i, self.hash(messages[i])));
    }
}

fn digest_of(hash: &blake2b_simd::Hash) -> Digest {
    *hash
        .as_bytes()
        .first_chunk()
        .expect("a digest of 32 bytes was asked for")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}
