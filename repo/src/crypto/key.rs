//! From a password to the keys of a repository.
//!
//! A password and the repository's unique id give the *format key*; the format key opens the format blob, which holds
//! the master key and the hash secret; HKDF turns those into one key per purpose.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use aws_lc_rs::{hkdf as lc_hkdf, pbkdf2};
use zeroize::Zeroizing;

use crate::error::{Kind, RepoError, Result};

/// 32 secret bytes, wiped when dropped. `Debug` prints none of them.
#[derive(Clone)]
pub struct Secret32(Zeroizing<[u8; 32]>);

impl Secret32 {
    /// Takes over `bytes`. The caller's own copy, if it keeps one, is the caller's to wipe.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl AsRef<[u8]> for Secret32 {
    fn as_ref(&self) -> &[u8] {
        &self.0[..]
    }
}

impl fmt::Debug for Secret32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret32(..)")
    }
}

/// How a repository turns its password into the format key; `keyAlgo` in the format blob.
///
/// Source of names and numbers: kopia, internal/crypto/pb_key_deriver_scrypt.go and pb_key_deriver_pbkdf2.go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyAlgorithm {
    /// scrypt with N = 65536, r = 8, p = 1; needs 64 MiB of memory while it runs. The default of new repositories.
    Scrypt65536_8_1,
    /// PBKDF2 over HMAC-SHA256, 600 000 iterations.
    Pbkdf2Sha256_600000,
}

/// Shortest salt Kopia accepts for either algorithm, in bytes. Its unique ids have 32.
const SALT_BYTES_MIN: usize = 16;
const PBKDF2_ITERATIONS: NonZeroU32 = NonZeroU32::new(600_000).unwrap();
const SCRYPT_LOG_N: u8 = 16;

impl KeyAlgorithm {
    /// Every algorithm there is.
    pub const ALL: [Self; 2] = [Self::Scrypt65536_8_1, Self::Pbkdf2Sha256_600000];

    /// Kopia's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scrypt65536_8_1 => "scrypt-65536-8-1",
            Self::Pbkdf2Sha256_600000 => "pbkdf2-sha256-600000",
        }
    }

    /// The format key of the repository `unique_id` under `password` (UTF-8 bytes). Takes 0.1 to 0.5 s by design.
    ///
    /// # Errors
    /// `Corrupt` when `unique_id` is shorter than 16 bytes: it comes from the format blob and is the salt.
    pub fn derive(self, password: &[u8], unique_id: &[u8]) -> Result<Secret32> {
        if unique_id.len() < SALT_BYTES_MIN {
            return Err(RepoError::corrupt(format!(
                "format blob: unique id has {} bytes, a salt of at least {SALT_BYTES_MIN} is needed",
                unique_id.len()
            )));
        }
        let mut key = Zeroizing::new([0; 32]);
        match self {
            Self::Scrypt65536_8_1 => {
                let params = scrypt::Params::new(SCRYPT_LOG_N, 8, 1).expect("constants within the limits of scrypt");
                scrypt::scrypt(password, unique_id, &params, &mut key[..]).expect("scrypt gives any 32 bytes");
            }
            Self::Pbkdf2Sha256_600000 => {
                pbkdf2::derive(
                    pbkdf2::PBKDF2_HMAC_SHA256,
                    PBKDF2_ITERATIONS,
                    unique_id,
                    password,
                    &mut key[..],
                );
            }
        }
        Ok(Secret32(key))
    }
}

impl fmt::Display for KeyAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KeyAlgorithm {
    type Err = RepoError;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| {
            RepoError::new(
                Kind::Unsupported,
                format!("key derivation algorithm {name:?} is not known to this version"),
            )
        })
    }
}

/// HKDF-SHA256 (RFC 5869): fills `out` from `ikm` under `salt` and `info`. Any of the inputs may be empty.
///
/// # Panics
/// When `out` is longer than 8160 bytes, the limit of the function; Kopia asks for 16 or 32.
pub fn hkdf(ikm: &[u8], salt: &[u8], info: &[u8], out: &mut [u8]) {
    let prk = lc_hkdf::Salt::new(lc_hkdf::HKDF_SHA256, salt).extract(ikm);
    let info = [info];
    let okm = prk
        .expand(&info, OutLen(out.len()))
        .expect("HKDF-SHA256 gives at most 255 x 32 bytes");
    okm.fill(out).expect("the length asked for is the length of the buffer");
}

/// [`hkdf`] to 32 bytes, the length of nearly every key of the format.
pub fn hkdf32(ikm: &[u8], salt: &[u8], info: &[u8]) -> Secret32 {
    let mut key = Secret32::new([0; 32]);
    hkdf(ikm, salt, info, &mut key.0[..]);
    key
}

/// Tells aws-lc-rs how many bytes are wanted.
struct OutLen(usize);

impl lc_hkdf::KeyType for OutLen {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &[u8] = b"a5ba5d2da4b14b518b9501b64b5d87ca";
    const MK: &[u8] = b"01234567890123456789012345678901";
    const SECRET: &[u8] = b"a-repository-testing-hmac-secret";

    #[track_caller]
    fn check_password(name: &str, password: &str, expect: &str) {
        let key = name
            .parse::<KeyAlgorithm>()
            .unwrap()
            .derive(password.as_bytes(), UID)
            .unwrap();
        assert_eq!(hex::encode(key.as_bytes()), expect);
    }

    #[track_caller]
    fn check_hkdf(ikm: &[u8], salt: &[u8], info: &str, expect: &str) {
        let mut out = vec![0; expect.len() / 2];
        hkdf(ikm, salt, info.as_bytes(), &mut out);
        assert_eq!(hex::encode(out), expect);
    }

    #[test]
    fn passwords_give_the_format_keys_kopia_gives() {
        let long = "foobarbazfoobarbaz";
        check_password(
            "scrypt-65536-8-1",
            long,
            "bc8d786a7eae986d588f775688c584dc9ad23b74d57062847a7bd34fd11c33a7",
        );
        check_password(
            "pbkdf2-sha256-600000",
            long,
            "f63236a23c170fa59dda1edfadd116ef26a20e3f2d5e0b188db287df4dc70289",
        );
        let velero = "static-passw0rd";
        check_password(
            "scrypt-65536-8-1",
            velero,
            "cae9806b31c1039305b71cdd7a40c8f1dca346971f1d9ec60a63de59b48b39d2",
        );
    }

    #[test]
    fn hkdf_gives_the_purpose_keys_kopia_gives() {
        let fk = hex::decode("cae9806b31c1039305b71cdd7a40c8f1dca346971f1d9ec60a63de59b48b39d2").unwrap();
        let vector = "828769ee8969bc37f11dbaa32838f8db6c19daa6e3ae5f5eed2da2d94d8faddb";
        check_hkdf(b"ABCDEFGHIJKLMNOP", b"0123456789012345", "the-test-purpose", vector);
        check_hkdf(
            &fk,
            UID,
            "AES",
            "7e7bedbfb97b8de5ef4bd64f06383335d9bc57ad30c9c16a95f80f4e42c0fdf2",
        );
        check_hkdf(
            &fk,
            UID,
            "CHECKSUM",
            "4f66032dcf35d343163eb6726a09b0d82777239424992c320db6aac8f80aae77",
        );
        check_hkdf(
            MK,
            UID,
            "maintenance schedule",
            "a438fc5d80f07f608690eb0db519c8dd2a6b50db5427d622db37aa537a449cf2",
        );
        check_hkdf(SECRET, UID, "local-cache-integrity", "43cbb05b4b79ad0f95087c3980c653ec");
        check_hkdf(
            MK,
            b"encryption",
            "",
            "88aac0fcc646ffc04813cc17f4c7a17f8a73b53e4add438898256a7c87ad45d2",
        );
        assert_eq!(hkdf32(MK, b"encryption", b"").as_bytes()[..2], [0x88, 0xaa]);
    }

    #[test]
    fn a_short_salt_is_refused() {
        for algorithm in KeyAlgorithm::ALL {
            assert_eq!(
                algorithm.derive(b"password", &UID[..15]).unwrap_err().kind(),
                Kind::Corrupt
            );
        }
    }

    #[test]
    fn an_unknown_name_is_an_error_with_the_name() {
        let error = "testing-only-insecure".parse::<KeyAlgorithm>().unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.what().contains("testing-only-insecure"), "{error}");
    }

    #[test]
    fn debug_prints_nothing_secret() {
        assert_eq!(format!("{:?}", Secret32::new([7; 32])), "Secret32(..)");
    }
}
