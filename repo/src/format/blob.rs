//! `kopia.repository` as it is stored: plain JSON with an encrypted part.

use serde::{Deserialize, Serialize};

use super::inner::{Base64, Inner, Wrapped};
use super::upgrade::ignored_features;
use super::{
    BlobKeys, EpochParameters, Format, MASTER_KEY_BYTES, MAX_PACK_SIZE_DEFAULT, MAX_PACK_SIZES, REPOSITORY_ID, VERSIONS,
};
use crate::crypto::ecc::Ecc;
use crate::crypto::{KeyAlgorithm, Secret32};
use crate::error::{Kind, RepoError, Result};

/// Largest `kopia.repository` accepted, in bytes. Kopia keeps it below 65,000, so that packs can carry a copy.
const BLOB_LEN_MAX: usize = 256 << 10;

/// The only encryption of the inner part.
const ENCRYPTION: &str = "AES256_GCM";

/// A parsed `kopia.repository`; its parameters need the password.
#[derive(Clone, Debug)]
pub struct FormatBlob {
    pub(super) unique_id: Vec<u8>,
    key_algorithm: KeyAlgorithm,
    pub(super) sealed: Vec<u8>,
}

/// The outer JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Outer {
    #[serde(default)]
    pub(super) tool: String,
    #[serde(default)]
    pub(super) build_version: String,
    #[serde(default)]
    pub(super) build_info: String,
    #[serde(rename = "uniqueID")]
    pub(super) unique_id: Base64,
    pub(super) key_algo: String,
    pub(super) encryption: String,
    #[serde(default)]
    pub(super) encrypted_block_format: Base64,
}

impl Outer {
    /// A blob made by this crate, for a format sealed under the key of `key_algorithm`.
    pub(super) fn new(unique_id: &[u8], key_algorithm: KeyAlgorithm, sealed: Vec<u8>) -> Self {
        Self {
            tool: "https://github.com/kopia/kopia".into(),
            build_version: env!("CARGO_PKG_VERSION").into(),
            build_info: "blockferry".into(),
            unique_id: Base64::new(unique_id.to_vec()),
            key_algo: key_algorithm.name().into(),
            encryption: ENCRYPTION.into(),
            encrypted_block_format: Base64::new(sealed),
        }
    }
}

impl FormatBlob {
    /// Parses the outer JSON.
    ///
    /// # Errors
    /// `Corrupt` when it is not that, `Unsupported` for an algorithm this crate does not know.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let corrupt = |why: String| RepoError::corrupt(format!("{REPOSITORY_ID}: {why}"));
        if bytes.len() > BLOB_LEN_MAX {
            return Err(corrupt(format!(
                "{} bytes, at most {BLOB_LEN_MAX} are expected",
                bytes.len()
            )));
        }
        let outer: Outer =
            serde_json::from_slice(bytes).map_err(|e| corrupt("not the expected JSON".into()).because(e))?;
        if outer.encryption != ENCRYPTION {
            return Err(unsupported(format!(
                "format encryption {:?}, only {ENCRYPTION} is known",
                outer.encryption
            )));
        }
        let key_algorithm = outer
            .key_algo
            .parse()
            .map_err(|e: RepoError| e.context(REPOSITORY_ID))?;
        let sealed = outer.encrypted_block_format.into_vec();
        if sealed.is_empty() {
            return Err(corrupt("no encrypted part".into()));
        }
        Ok(Self {
            unique_id: outer.unique_id.into_vec(),
            key_algorithm,
            sealed,
        })
    }

    /// Salt of most keys; tells repositories apart.
    pub fn unique_id(&self) -> &[u8] {
        &self.unique_id
    }

    /// The key that `password` gives. Slow on purpose: a tenth of a second or more and 64 MiB. Worth keeping for as long
    /// as the repository is open, since the blob is to be read again every 15 minutes.
    ///
    /// # Errors
    /// `Corrupt` when the unique id is too short to be one.
    pub fn derive_key(&self, password: &str) -> Result<Secret32> {
        self.key_algorithm.derive(password.as_bytes(), &self.unique_id)
    }

    /// The parameters, by password.
    ///
    /// # Errors
    /// As [`Self::open_with_key`].
    pub fn open(&self, password: &str) -> Result<Format> {
        self.open_with_key(&self.derive_key(password)?)
    }

    /// The parameters, by a key from [`Self::derive_key`].
    ///
    /// # Errors
    /// `WrongPassword` when the key does not open it, which damage to the blob looks like too; `Unsupported` for anything
    /// valid that this crate does not do, with its name; `Corrupt` for the rest. An upgrade lock is not looked at here.
    pub fn open_with_key(&self, key: &Secret32) -> Result<Format> {
        let plaintext = BlobKeys::new(key, &self.unique_id).open(&self.sealed).map_err(|e| {
            let what = format!("the password does not open {REPOSITORY_ID}, or that blob is damaged");
            RepoError::new(Kind::WrongPassword, what).because(e)
        })?;
        let wrapped: Wrapped = serde_json::from_slice(&plaintext).map_err(|e| {
            // The parser's message may quote what it met, which can be a key: only the place is told.
            RepoError::corrupt(format!(
                "{REPOSITORY_ID}: its parameters are not the expected JSON (line {}, column {})",
                e.line(),
                e.column()
            ))
        })?;
        check(wrapped.format, self.unique_id.clone(), key.clone())
    }
}

fn unsupported(what: String) -> RepoError {
    RepoError::new(Kind::Unsupported, format!("{REPOSITORY_ID}: {what}"))
}

/// Turns parameters as stored into parameters that hold.
pub(super) fn check(inner: Inner, unique_id: Vec<u8>, format_key: Secret32) -> Result<Format> {
    let named = |e: RepoError| e.context(REPOSITORY_ID);
    let ignored_features = ignored_features(&inner.required_features)?;
    let version = u8::try_from(inner.version)
        .ok()
        .filter(|v| VERSIONS.contains(v))
        .ok_or_else(|| {
            unsupported(format!(
                "format version {}, known are {} to {}; a newer release may know it",
                inner.version,
                VERSIONS.start(),
                VERSIONS.end()
            ))
        })?;
    let ecc = Ecc::new(&inner.ecc, inner.ecc_overhead_percent).map_err(named)?;
    let max_pack_size = match inner.max_pack_size {
        0 => MAX_PACK_SIZE_DEFAULT,
        size => u32::try_from(size)
            .ok()
            .filter(|size| MAX_PACK_SIZES.contains(size))
            .ok_or_else(|| {
                unsupported(format!(
                    "maxPackSize {size}, known are {} to {}",
                    MAX_PACK_SIZES.start(),
                    MAX_PACK_SIZES.end()
                ))
            })?,
    };
    let index_version = match inner.index_version {
        0 | 1 => 1,
        2 => 2,
        other => return Err(unsupported(format!("index version {other}, known are 1 and 2"))),
    };
    let hash = inner.hash.parse().map_err(named)?;
    let encryption = inner.encryption.parse().map_err(named)?;
    let (secret, master_key) = (inner.secret.into_secret(), inner.master_key.into_secret());
    if master_key.len() != MASTER_KEY_BYTES {
        return Err(unsupported(format!(
            "a master key of {} bytes, known are {MASTER_KEY_BYTES}",
            master_key.len()
        )));
    }
    // The hash refuses lengths it does not take; better here than at the first content.
    crate::crypto::Hasher::new(hash, &secret)
        .map_err(|e| unsupported("a hash secret that its algorithm does not take".into()).because(e))?;
    let epoch = EpochParameters::check(&inner.epoch_parameters).map_err(named)?;
    Ok(Format {
        unique_id,
        hash,
        encryption,
        ecc,
        version,
        max_pack_size,
        index_version,
        has_epochs: epoch.is_some(),
        epoch: epoch.unwrap_or_default(),
        enable_password_change: inner.enable_password_change,
        splitter: if inner.splitter.is_empty() {
            "FIXED".into()
        } else {
            inner.splitter
        },
        upgrade_lock: inner.upgrade_lock,
        ignored_features,
        secret,
        master_key,
        format_key,
    })
}
