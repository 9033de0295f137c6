//! Authenticated encryption of contents and blobs.
//!
//! [`Cipher`] seals contents: every content has its own key, made from the repository's master key and the content's
//! hash, so the hash a content is filed under is bound to its bytes and a swapped one does not open. [`AesGcm`] seals
//! the few blobs that have a key of their own (format, blob configuration, maintenance schedule).
//!
//! Layout of both, [`OVERHEAD`] bytes longer than the plaintext (kopia, repo/encryption):
//!
//! | offset | bytes | field                          |
//! |--------|-------|--------------------------------|
//! | 0      | 12    | nonce, random                  |
//! | 12     | n     | ciphertext                     |
//! | 12 + n | 16    | tag over ciphertext and `aad`  |

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hmac, rand};

use super::key::{Secret32, hkdf32};
use crate::error::{Kind, RepoError, Result};

/// Bytes of the tag.
const TAG_BYTES: usize = 16;

/// What sealing adds to a plaintext, in bytes: nonce and tag.
pub const OVERHEAD: usize = NONCE_LEN + TAG_BYTES;

/// The content encryption of a repository; `encryption` in the format blob.
///
/// Source of names and constructions: kopia, repo/encryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CipherAlgorithm {
    /// AES-256-GCM, the default of new repositories.
    Aes256GcmHmacSha256,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305HmacSha256,
}

impl CipherAlgorithm {
    /// Every algorithm there is.
    pub const ALL: [Self; 2] = [Self::Aes256GcmHmacSha256, Self::ChaCha20Poly1305HmacSha256];

    /// Kopia's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256GcmHmacSha256 => "AES256-GCM-HMAC-SHA256",
            Self::ChaCha20Poly1305HmacSha256 => "CHACHA20-POLY1305-HMAC-SHA256",
        }
    }

    fn aead(self) -> &'static Algorithm {
        match self {
            Self::Aes256GcmHmacSha256 => &AES_256_GCM,
            Self::ChaCha20Poly1305HmacSha256 => &CHACHA20_POLY1305,
        }
    }
}

impl fmt::Display for CipherAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CipherAlgorithm {
    type Err = RepoError;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| {
            RepoError::new(
                Kind::Unsupported,
                format!("encryption algorithm {name:?} is not known to this version"),
            )
        })
    }
}

/// The bytes were not sealed with this key and these associated data, or are damaged. For a content this means damage
/// or a wrong id; for the format blob it means a wrong password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed: the bytes are damaged or sealed under another key")]
pub struct Unauthentic;

impl From<Unauthentic> for RepoError {
    fn from(cause: Unauthentic) -> Self {
        RepoError::corrupt("encrypted bytes do not authenticate").because(cause)
    }
}

/// Content encryption of one repository. Cheap to clone; `Debug` prints no key.
#[derive(Clone)]
pub struct Cipher {
    algorithm: CipherAlgorithm,
    /// HMAC-SHA256 under the derivation secret: turns an iv into the key of its content.
    deriving: hmac::Key,
}

/// HKDF salt of the derivation secret; the info is empty. Everywhere else Kopia puts the purpose into the info.
/// Source: kopia, repo/encryption (purpose of the encryption key).
const DERIVATION_SALT: &[u8] = b"encryption";

impl Cipher {
    /// `algorithm` under a repository's master key.
    ///
    /// # Errors
    /// `InvalidInput` when the master key is empty: a repository without one cannot be told from a damaged one, and
    /// everybody knows the keys it would give.
    pub fn new(algorithm: CipherAlgorithm, master_key: &[u8]) -> Result<Self> {
        if master_key.is_empty() {
            return Err(RepoError::new(
                Kind::InvalidInput,
                "the repository format has no master key",
            ));
        }
        let secret = hkdf32(master_key, DERIVATION_SALT, b"");
        Ok(Self {
            algorithm,
            deriving: hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()),
        })
    }

    /// The algorithm.
    pub fn algorithm(&self) -> CipherAlgorithm {
        self.algorithm
    }

    /// Seals `plaintext` into `out`. `iv` is what the layer above binds the bytes to: the last 16 bytes of a content's
    /// hash, the whole hash of a pack's local index, 16 bytes of a blob's name.
    ///
    /// # Panics
    /// When `out` is not exactly [`OVERHEAD`] bytes longer than `plaintext`.
    pub fn seal_into(&self, iv: &[u8], plaintext: &[u8], out: &mut [u8]) {
        seal_with(&self.content_key(iv), random_nonce(), iv, plaintext, out);
    }

    /// Opens `sealed` into `out`.
    ///
    /// # Errors
    /// [`Unauthentic`] when `sealed` is too short to be anything, damaged, or belongs to another iv or repository;
    /// `out` then holds no plaintext.
    ///
    /// # Panics
    /// When `out` is not exactly [`OVERHEAD`] bytes shorter than a `sealed` of at least that length.
    pub fn open_into(&self, iv: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<(), Unauthentic> {
        open_with(&self.content_key(iv), iv, sealed, out)
    }

    /// [`Self::seal_into`] a new vector.
    pub fn seal(&self, iv: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut out = vec![0; plaintext.len() + OVERHEAD];
        self.seal_into(iv, plaintext, &mut out);
        out
    }

    /// [`Self::open_into`] a new vector.
    ///
    /// # Errors
    /// As [`Self::open_into`].
    pub fn open(&self, iv: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Unauthentic> {
        let mut out = vec![0; sealed.len().saturating_sub(OVERHEAD)];
        self.open_into(iv, sealed, &mut out)?;
        Ok(out)
    }

    fn content_key(&self, iv: &[u8]) -> LessSafeKey {
        aead_key(self.algorithm.aead(), hmac::sign(&self.deriving, iv).as_ref())
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cipher({})", self.algorithm)
    }
}

/// AES-256-GCM under a given key, for blobs that are not contents.
pub struct AesGcm {
    key: LessSafeKey,
}

impl AesGcm {
    /// The cipher under `key`.
    pub fn new(key: &Secret32) -> Self {
        Self {
            key: aead_key(&AES_256_GCM, key.as_bytes()),
        }
    }

    /// Seals `plaintext` bound to `aad`.
    pub fn seal(&self, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut out = vec![0; plaintext.len() + OVERHEAD];
        seal_with(&self.key, random_nonce(), aad, plaintext, &mut out);
        out
    }

    /// Opens what [`Self::seal`] gave for the same `aad`.
    ///
    /// # Errors
    /// [`Unauthentic`] for anything else.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Unauthentic> {
        let mut out = vec![0; sealed.len().saturating_sub(OVERHEAD)];
        open_with(&self.key, aad, sealed, &mut out)?;
        Ok(out)
    }
}

impl fmt::Debug for AesGcm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AesGcm(..)")
    }
}

fn aead_key(algorithm: &'static Algorithm, bytes: &[u8]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(algorithm, bytes).expect("both algorithms take keys of 32 bytes"))
}

/// A fresh nonce from the per-thread generator of aws-lc-rs, which reseeds itself, also after a fork or a cloned
/// virtual machine. A draw takes 0.3 us, 0.1 % of what a content of 1 MiB costs in hash and seal; drawing many ahead
/// would save that and keep unspent nonces for two clones to share.
fn random_nonce() -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce).expect("the random source of the system works");
    nonce
}

/// Seals without an intermediate copy where the library has a fast path for it.
///
/// aws-lc-rs can take the plaintext from one buffer and write the ciphertext to another only as "extra input" of a seal
/// in place over nothing. AES-GCM does that at full speed; ChaCha20-Poly1305 expects extra input to be a few bytes and
/// goes one byte at a time. Measured over 64 contents of 1 MiB into 64 targets, us
/// of CPU per MiB (AMD Zen 5 with AVX-512 and VAES; a copy alone is 45):
///
/// | way                         | AES-256-GCM | ChaCha20-Poly1305 |
/// |-----------------------------|-------------|-------------------|
/// | as extra input, no copy     | **62**      | 1719              |
/// | copy, then seal in place    | 103         | **425**           |
fn seal_with(key: &LessSafeKey, nonce: [u8; NONCE_LEN], aad: &[u8], plaintext: &[u8], out: &mut [u8]) {
    assert_eq!(
        out.len(),
        plaintext.len() + OVERHEAD,
        "a sealed buffer is {OVERHEAD} bytes longer than its plaintext"
    );
    let (head, rest) = out.split_at_mut(NONCE_LEN);
    head.copy_from_slice(&nonce);
    let (nonce, aad) = (Nonce::assume_unique_for_key(nonce), Aad::from(aad));
    let sealed = if key.algorithm() == &AES_256_GCM {
        key.seal_in_place_scatter(nonce, aad, &mut [], plaintext, rest)
    } else {
        let (body, tag) = rest.split_at_mut(plaintext.len());
        body.copy_from_slice(plaintext);
        key.seal_in_place_scatter(nonce, aad, body, &[], tag)
    };
    sealed.expect("a plaintext is below the 64 GiB both algorithms can take");
}

fn open_with(key: &LessSafeKey, aad: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<(), Unauthentic> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(Unauthentic)?;
    let (ciphertext, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(Unauthentic)?;
    assert_eq!(
        out.len(),
        ciphertext.len(),
        "an opened buffer is {OVERHEAD} bytes shorter than the sealed one"
    );
    let nonce = Nonce::assume_unique_for_key(*nonce);
    key.open_separate_gather(nonce, Aad::from(aad), ciphertext, tag, out)
        .map_err(|_| Unauthentic)
}

#[cfg(test)]
mod tests;
