//! Keyed hashes that name contents and blobs.
//!
//! A [`Hasher`] is one algorithm under one repository's secret. [`Hasher::hash_many`] gives the same digests as
//! [`Hasher::hash`] and, for the BLAKE2b family, several times as fast: equal-length messages go through SIMD lanes
//! ([`Kernel`]), which a file uploader with its content-defined chunks cannot use and a block uploader always can.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::hmac as lc_hmac;
use hmac::{KeyInit, Mac, SimpleHmac};
use sha3::{Sha3_224, Sha3_256};
use zeroize::Zeroizing;

use super::lanes::{self, Kernel};
use crate::error::{Kind, RepoError, Result};

/// Longest digest of any algorithm, in bytes.
pub const DIGEST_BYTES_MAX: usize = 32;

/// Length of the part of a digest that content encryption is bound to, in bytes (the last ones).
pub const IV_BYTES: usize = 16;

/// The hash of a repository; `hash` in the format blob.
///
/// Source of names and constructions: kopia, repo/hashing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HashAlgorithm {
    /// Keyed BLAKE2b with a 32-byte digest of which the first 16 are kept. The default of new repositories.
    Blake2b256_128,
    /// Keyed BLAKE2b with a 32-byte digest.
    Blake2b256,
    /// Keyed BLAKE2s with a 16-byte digest; not a cut BLAKE2s-256.
    Blake2s128,
    /// Keyed BLAKE2s with a 32-byte digest.
    Blake2s256,
    /// Keyed BLAKE3, 32 bytes.
    Blake3_256,
    /// Keyed BLAKE3, first 16 bytes.
    Blake3_256_128,
    /// HMAC-SHA-256, 32 bytes.
    HmacSha256,
    /// HMAC-SHA-256, first 16 bytes.
    HmacSha256_128,
    /// HMAC-SHA-224, 28 bytes.
    HmacSha224,
    /// HMAC over SHA3-224, 28 bytes.
    HmacSha3_224,
    /// HMAC over SHA3-256, 32 bytes.
    HmacSha3_256,
}

impl HashAlgorithm {
    /// Every algorithm there is.
    pub const ALL: [Self; 11] = [
        Self::Blake2b256_128,
        Self::Blake2b256,
        Self::Blake2s128,
        Self::Blake2s256,
        Self::Blake3_256,
        Self::Blake3_256_128,
        Self::HmacSha256,
        Self::HmacSha256_128,
        Self::HmacSha224,
        Self::HmacSha3_224,
        Self::HmacSha3_256,
    ];

    /// Kopia's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blake2b256_128 => "BLAKE2B-256-128",
            Self::Blake2b256 => "BLAKE2B-256",
            Self::Blake2s128 => "BLAKE2S-128",
            Self::Blake2s256 => "BLAKE2S-256",
            Self::Blake3_256 => "BLAKE3-256",
            Self::Blake3_256_128 => "BLAKE3-256-128",
            Self::HmacSha256 => "HMAC-SHA256",
            Self::HmacSha256_128 => "HMAC-SHA256-128",
            Self::HmacSha224 => "HMAC-SHA224",
            Self::HmacSha3_224 => "HMAC-SHA3-224",
            Self::HmacSha3_256 => "HMAC-SHA3-256",
        }
    }

    /// Bytes of a digest: 16, 28 or 32.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Blake2b256_128 | Self::Blake2s128 | Self::Blake3_256_128 | Self::HmacSha256_128 => 16,
            Self::HmacSha224 | Self::HmacSha3_224 => 28,
            Self::Blake2b256 | Self::Blake2s256 | Self::Blake3_256 | Self::HmacSha256 | Self::HmacSha3_256 => 32,
        }
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HashAlgorithm {
    type Err = RepoError;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| {
            RepoError::new(
                Kind::Unsupported,
                format!("hash algorithm {name:?} is not known to this version"),
            )
        })
    }
}

/// A digest of 16 to 32 bytes, as the repository's algorithm gives it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    /// Bytes past `len` are zero, so that the derived comparisons hold.
    bytes: [u8; DIGEST_BYTES_MAX],
    len: u8,
}

impl Digest {
    /// The first `len` bytes of `full`.
    fn cut(full: &[u8], len: usize) -> Self {
        let mut bytes = [0; DIGEST_BYTES_MAX];
        bytes[..len].copy_from_slice(&full[..len]);
        Self {
            bytes,
            len: u8::try_from(len).expect("a digest has at most 32 bytes"),
        }
    }

    /// The digest.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Its last 16 bytes, which bind a content's encryption to its id (all of a 128-bit digest).
    pub fn iv(&self) -> [u8; IV_BYTES] {
        let digest = self.as_slice();
        *digest.last_chunk().expect("no algorithm gives less than 16 bytes")
    }
}

impl AsRef<[u8]> for Digest {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// A hash algorithm under a repository's secret. Cheap to clone next to any message; `Debug` prints no key.
#[derive(Clone)]
pub struct Hasher {
    algorithm: HashAlgorithm,
    keyed: Keyed,
    kernel: Kernel,
}

/// The construction with its key set up.
#[derive(Clone)]
enum Keyed {
    Blake2b(Box<lanes::Blake2b>),
    Blake2s(Box<blake2s_simd::Params>),
    Blake3(Zeroizing<[u8; blake3::KEY_LEN]>),
    HmacSha2(Box<lc_hmac::Key>),
    HmacSha3_224(Box<SimpleHmac<Sha3_224>>),
    HmacSha3_256(Box<SimpleHmac<Sha3_256>>),
}

/// Context string of BLAKE3's derive-key mode, for secrets shorter than a BLAKE3 key.
/// Source: kopia, repo/hashing/blake3_hashes.go.
const BLAKE3_STRETCH_CONTEXT: &str = "kopia blake3 derived key v1";

impl Hasher {
    /// `algorithm` keyed with `secret`, on the fastest kernel of this CPU.
    ///
    /// # Errors
    /// `InvalidInput` for a secret the construction does not take: more than 64 bytes for BLAKE2B, more than 32 for
    /// BLAKE2S, none for BLAKE2S-128. An empty secret is otherwise legal, as it is in Kopia, and means an unkeyed hash.
    pub fn new(algorithm: HashAlgorithm, secret: &[u8]) -> Result<Self> {
        use HashAlgorithm as A;
        let keyed = match algorithm {
            A::Blake2b256_128 | A::Blake2b256 => {
                let max = blake2b_simd::KEYBYTES;
                Keyed::Blake2b(Box::new(lanes::Blake2b::new(within(algorithm, secret, 0, max)?)))
            }
            A::Blake2s128 | A::Blake2s256 => {
                let min = usize::from(algorithm == A::Blake2s128);
                let mut params = blake2s_simd::Params::new();
                params.hash_length(algorithm.digest_len());
                params.key(within(algorithm, secret, min, blake2s_simd::KEYBYTES)?);
                Keyed::Blake2s(Box::new(params))
            }
            A::Blake3_256 | A::Blake3_256_128 => Keyed::Blake3(Zeroizing::new(match secret.first_chunk() {
                Some(key) => *key,
                None => blake3::derive_key(BLAKE3_STRETCH_CONTEXT, secret),
            })),
            A::HmacSha256 | A::HmacSha256_128 => {
                Keyed::HmacSha2(Box::new(lc_hmac::Key::new(lc_hmac::HMAC_SHA256, secret)))
            }
            A::HmacSha224 => Keyed::HmacSha2(Box::new(lc_hmac::Key::new(lc_hmac::HMAC_SHA224, secret))),
            A::HmacSha3_224 => Keyed::HmacSha3_224(Box::new(hmac_key(secret))),
            A::HmacSha3_256 => Keyed::HmacSha3_256(Box::new(hmac_key(secret))),
        };
        Ok(Self {
            algorithm,
            keyed,
            kernel: Kernel::best(),
        })
    }

    /// The same hasher on another kernel, for tests and benchmarks; digests do not depend on it.
    ///
    /// # Errors
    /// `Unsupported` when this CPU does not have the kernel.
    pub fn with_kernel(self, kernel: Kernel) -> Result<Self> {
        if !kernel.is_available() {
            return Err(RepoError::new(
                Kind::Unsupported,
                format!("this CPU cannot run the {kernel} hash kernel"),
            ));
        }
        Ok(Self { kernel, ..self })
    }

    /// The algorithm.
    pub fn algorithm(&self) -> HashAlgorithm {
        self.algorithm
    }

    /// Bytes of a digest.
    pub fn digest_len(&self) -> usize {
        self.algorithm.digest_len()
    }

    /// Name of the kernel behind [`Self::hash_many`], for logs: `avx512x8`, `avx2x4` or `serial`.
    pub fn kernel(&self) -> &'static str {
        self.batch_kernel().name()
    }

    /// How many equal-length messages [`Self::hash_many`] takes at once: 8, 4 or 1. Batches of a multiple of it waste
    /// nothing.
    pub fn lanes(&self) -> usize {
        self.batch_kernel().lanes()
    }

    /// Only BLAKE2b has lanes; everything else is hashed one by one (BLAKE3 fills the vector unit from one message).
    fn batch_kernel(&self) -> Kernel {
        if matches!(self.keyed, Keyed::Blake2b(_)) {
            self.kernel
        } else {
            Kernel::Serial
        }
    }

    /// The digest of `message`.
    pub fn hash(&self, message: &[u8]) -> Digest {
        let len = self.digest_len();
        match &self.keyed {
            Keyed::Blake2b(key) => Digest::cut(&key.hash(message), len),
            Keyed::Blake2s(params) => Digest::cut(params.hash(message).as_bytes(), len),
            Keyed::Blake3(key) => Digest::cut(blake3::keyed_hash(key, message).as_bytes(), len),
            Keyed::HmacSha2(key) => Digest::cut(lc_hmac::sign(key, message).as_ref(), len),
            Keyed::HmacSha3_224(key) => Digest::cut(&hmac_sign(&**key, message), len),
            Keyed::HmacSha3_256(key) => Digest::cut(&hmac_sign(&**key, message), len),
        }
    }

    /// The digests of `messages`, in their order; `out` is cleared first. Lengths may differ; speed comes from messages
    /// of equal length, [`Self::lanes`] at a time.
    pub fn hash_many(&self, messages: &[&[u8]], out: &mut Vec<Digest>) {
        out.clear();
        match &self.keyed {
            Keyed::Blake2b(key) => {
                let len = self.digest_len();
                out.resize(messages.len(), Digest::cut(&[0; DIGEST_BYTES_MAX], len));
                key.hash_many(self.kernel, messages, |i, full| out[i] = Digest::cut(&full, len));
            }
            _ => out.extend(messages.iter().map(|message| self.hash(message))),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hasher({}, {})", self.algorithm, self.kernel())
    }
}

/// `secret`, if its length is one `algorithm` takes.
fn within(algorithm: HashAlgorithm, secret: &[u8], min: usize, max: usize) -> Result<&[u8]> {
    let len = secret.len();
    if (min..=max).contains(&len) {
        return Ok(secret);
    }
    let what = format!("hash secret of {len} bytes: {algorithm} takes {min} to {max}");
    Err(RepoError::new(Kind::InvalidInput, what))
}

fn hmac_key<M: KeyInit>(secret: &[u8]) -> M {
    M::new_from_slice(secret).expect("HMAC takes a key of any length")
}

fn hmac_sign<M: Mac + Clone>(keyed: &M, message: &[u8]) -> impl std::ops::Deref<Target = [u8]> + use<M> {
    keyed.clone().chain_update(message).finalize().into_bytes()
}

#[cfg(test)]
mod tests;
