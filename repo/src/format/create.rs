//! A new repository, with the parameters Velero and the kopia command give theirs.

use aws_lc_rs::rand;
use zeroize::Zeroizing;

use super::blob::{Outer, check};
use super::epoch::RawEpoch;
use super::inner::{Base64, Inner, Wrapped};
use super::{BlobConfig, BlobKeys, EpochParameters, Format, MASTER_KEY_BYTES, MAX_PACK_SIZE_DEFAULT, Retention};
use crate::crypto::{CipherAlgorithm, HashAlgorithm, KeyAlgorithm};
use crate::error::{Kind, RepoError, Result};

/// Bytes of a new unique id and of a new hash secret (kopia, repo/initialize.go).
const UNIQUE_ID_BYTES: usize = 32;
const SECRET_BYTES: usize = 32;

/// Format version of new repositories.
const VERSION: i64 = 3;

/// How Kopia cuts files of new repositories; block images are not cut by it.
const SPLITTER: &str = "DYNAMIC-4M-BUZHASH";

/// What can be chosen for a new repository, for its whole life. The default is Velero's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Hash of contents.
    pub hash: HashAlgorithm,
    /// Encryption of contents.
    pub encryption: CipherAlgorithm,
    /// How the password becomes a key.
    pub key_algorithm: KeyAlgorithm,
    /// Object lock of everything stored in it; the storage must offer them.
    pub retention: Option<Retention>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            hash: HashAlgorithm::Blake2b256_128,
            encryption: CipherAlgorithm::Aes256GcmHmacSha256,
            key_algorithm: KeyAlgorithm::Scrypt65536_8_1,
            retention: None,
        }
    }
}

/// The blobs of a new repository. `blobcfg` is stored first and `repository` last: with it the repository exists.
#[derive(Debug)]
pub struct Created {
    /// Bytes of `kopia.blobcfg`.
    pub blobcfg: Vec<u8>,
    /// Bytes of `kopia.repository`.
    pub repository: Vec<u8>,
    /// What they say.
    pub format: Format,
}

/// Makes the blobs of a new repository under `password`, with fresh random keys.
///
/// # Errors
/// `InvalidInput` for an empty password, which Kopia refuses too.
pub fn create(password: &str, options: &CreateOptions) -> Result<Created> {
    if password.is_empty() {
        return Err(RepoError::new(Kind::InvalidInput, "a repository needs a password"));
    }
    let unique_id = random::<UNIQUE_ID_BYTES>()?;
    let inner = inner(
        options,
        &random::<SECRET_BYTES>()?[..],
        &random::<MASTER_KEY_BYTES>()?[..],
    );
    let format_key = options.key_algorithm.derive(password.as_bytes(), &unique_id[..])?;
    let keys = BlobKeys::new(&format_key, &unique_id[..]);
    let wrapped = Wrapped { format: inner };
    let plaintext = Zeroizing::new(crate::json::to_vec(&wrapped));
    let outer = Outer::new(&unique_id[..], options.key_algorithm, keys.seal(&plaintext));
    let mut repository = serde_json::to_vec_pretty(&outer).expect("plain data becomes JSON");
    repository.push(b'\n');
    let format = check(wrapped.format, unique_id.to_vec(), format_key)?;
    Ok(Created {
        blobcfg: format.seal_blobcfg(&BlobConfig {
            retention: options.retention,
        }),
        repository,
        format,
    })
}

/// Parameters of a new repository.
pub(super) fn inner(options: &CreateOptions, secret: &[u8], master_key: &[u8]) -> Inner {
    Inner {
        hash: options.hash.name().into(),
        encryption: options.encryption.name().into(),
        ecc: String::new(),
        ecc_overhead_percent: 0,
        secret: Base64::new(secret.to_vec()),
        master_key: Base64::new(master_key.to_vec()),
        version: VERSION,
        max_pack_size: MAX_PACK_SIZE_DEFAULT.into(),
        index_version: 2,
        epoch_parameters: RawEpoch::from(&EpochParameters::default()),
        enable_password_change: true,
        splitter: SPLITTER.into(),
        upgrade_lock: None,
        required_features: Vec::new(),
    }
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    rand::fill(&mut bytes[..])
        .map_err(|e| RepoError::new(Kind::Storage, "the system's random source failed").because(e))?;
    Ok(bytes)
}
