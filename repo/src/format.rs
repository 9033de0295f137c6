//! The parameters of a repository: what is in `kopia.repository`, `kopia.blobcfg` and `kopia.maintenance`.
//!
//! [`FormatBlob::parse`] reads the outer JSON, [`FormatBlob::open`] turns a password into a [`Format`] that has been checked
//! whole: an algorithm, feature or version this crate does not know is refused here, with its name, and nowhere later.
//! Only [`change_password`] rewrites `kopia.repository`.
//!
//! Source: kopia, repo/format.

mod blob;
mod blobcfg;
mod create;
mod epoch;
mod inner;
mod maintenance;
mod password;
mod upgrade;

use std::fmt;

use zeroize::Zeroizing;

pub use blob::FormatBlob;
pub use blobcfg::{BlobConfig, Retention, RetentionMode};
pub use create::{CreateOptions, Created, create};
pub use epoch::EpochParameters;
pub use maintenance::{MaintenanceRun, MaintenanceSchedule, RunExtra};
pub use password::{PasswordChange, change_password};
pub use upgrade::UpgradeLock;

use crate::crypto::ecc::Ecc;
use crate::crypto::{AesGcm, CipherAlgorithm, HashAlgorithm, Secret32};
use crate::error::{Kind, RepoError, Result};

/// Blob with the parameters.
pub const REPOSITORY_ID: &str = "kopia.repository";

/// Blob with the retention settings. Old repositories have none.
pub const BLOBCFG_ID: &str = "kopia.blobcfg";

/// Blob with the maintenance schedule. Missing until the first maintenance.
pub const MAINTENANCE_ID: &str = "kopia.maintenance";

/// Format versions this crate reads. Version 1 keeps its index in another way and is not written ([`Format::check_writable`]).
pub const VERSIONS: std::ops::RangeInclusive<u8> = 1..=3;

/// Pack sizes Kopia allows in bytes (kopia, repo/format/format_provider.go).
pub const MAX_PACK_SIZES: std::ops::RangeInclusive<u32> = 10 << 20..=120 << 20;

/// Pack size of a repository that names none, and of new ones, in bytes.
pub const MAX_PACK_SIZE_DEFAULT: u32 = 20 << 20;

/// Bytes of the master key in every repository there is.
pub const MASTER_KEY_BYTES: usize = 32;

/// Checked parameters and keys of a repository. `Debug` prints no key.
#[derive(Clone)]
pub struct Format {
    /// Salt of most keys; tells repositories apart.
    pub unique_id: Vec<u8>,
    /// Hash of contents.
    pub hash: HashAlgorithm,
    /// Encryption of contents.
    pub encryption: CipherAlgorithm,
    /// Error correction of contents and whole blobs.
    pub ecc: Option<Ecc>,
    /// Format version, 1 to 3.
    pub version: u8,
    /// Bytes at which a pack is full.
    pub max_pack_size: u32,
    /// Version in which index blobs are written, 1 or 2.
    pub index_version: u8,
    /// Index blobs are kept in epochs. Without, they are kept as in format version 1 ([`crate::index::v0`]).
    pub has_epochs: bool,
    /// Parameters of the epoch manager; the defaults when there are no epochs.
    pub epoch: EpochParameters,
    /// The password can be changed: keys do not depend on it.
    pub enable_password_change: bool,
    /// How files are cut into contents, by Kopia's name. Block images are cut at a fixed size whatever it says.
    pub splitter: String,
    /// An upgrade by some client that is announced or under way.
    pub upgrade_lock: Option<UpgradeLock>,
    /// Features the repository asks for that this crate does not know and that may be passed over, with a warning.
    pub ignored_features: Vec<String>,
    secret: Zeroizing<Vec<u8>>,
    master_key: Zeroizing<Vec<u8>>,
    format_key: Secret32,
}

impl Format {
    /// Key of the content hash. May be empty.
    pub(crate) fn secret(&self) -> &[u8] {
        &self.secret
    }

    /// Key that content encryption derives its keys from.
    pub(crate) fn master_key(&self) -> &[u8] {
        &self.master_key
    }

    /// Refuses while another client upgrades the repository. To be asked again at least every 15 minutes with a freshly
    /// read format blob. `now` is unix seconds.
    ///
    /// # Errors
    /// `Locked`, with the owner of the lock.
    pub fn check_lock(&self, now: u64) -> Result<()> {
        match &self.upgrade_lock {
            Some(lock) if lock.is_locked(now) => Err(RepoError::new(
                Kind::Locked,
                format!(
                    "{REPOSITORY_ID}: locked for an upgrade by {:?} since {}; try again when it is done",
                    lock.owner, lock.created
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The parameters in `bytes`, a newer `kopia.repository` of this repository, by the key of this one.
    ///
    /// # Errors
    /// As [`FormatBlob::open_with_key`]; `WrongPassword` when the password was changed since; `Unsupported` when parameters
    /// changed that decide how contents are named or encrypted, or how packs and indexes are written.
    pub fn read_again(&self, bytes: &[u8]) -> Result<Self> {
        let blob = FormatBlob::parse(bytes)?;
        let fresh = blob.open_with_key(&self.format_key).map_err(|e| match e.kind() {
            Kind::WrongPassword => RepoError::new(
                Kind::WrongPassword,
                format!("{REPOSITORY_ID}: the password was changed; open the repository again with the new one"),
            )
            .because(e),
            _ => e,
        })?;
        let same = fresh.unique_id == self.unique_id
            && fresh.hash == self.hash
            && fresh.encryption == self.encryption
            && fresh.version == self.version
            && fresh.index_version == self.index_version
            && fresh.secret == self.secret
            && fresh.master_key == self.master_key;
        match same {
            true => Ok(fresh),
            false => Err(RepoError::new(
                Kind::Unsupported,
                format!("{REPOSITORY_ID}: its parameters were changed; open the repository again"),
            )),
        }
    }

    /// Refuses repositories that this crate can read but not write.
    ///
    /// # Errors
    /// `Unsupported`, with what to do.
    pub fn check_writable(&self) -> Result<()> {
        let refuse = |why: &str| {
            Err(RepoError::new(
                Kind::Unsupported,
                format!("{REPOSITORY_ID}: {why}; read only"),
            ))
        };
        if !self.has_epochs {
            return refuse(
                "format version 1, whose index this version does not write; let kopia write to it, or copy its snapshots to a \
                 new repository with `kopia snapshot migrate`",
            );
        }
        if self.ecc.is_some() {
            return refuse("its blobs carry error correction, which this version reads and does not write");
        }
        if !self.enable_password_change {
            return refuse("upgraded from format version 1, packs must carry a copy of the format blob");
        }
        if self.index_version != 2 {
            return refuse("index version 1; `kopia repository upgrade` raises it");
        }
        Ok(())
    }
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Format")
            .field("unique_id", &hex::encode(&self.unique_id))
            .field("hash", &self.hash)
            .field("encryption", &self.encryption)
            .field("ecc", &self.ecc)
            .field("version", &self.version)
            .field("max_pack_size", &self.max_pack_size)
            .field("index_version", &self.index_version)
            .field("epoch", &self.epoch)
            .field("splitter", &self.splitter)
            .finish_non_exhaustive()
    }
}

/// The two keys of `kopia.repository` and `kopia.blobcfg`.
struct BlobKeys {
    cipher: AesGcm,
    aad: Secret32,
}

impl BlobKeys {
    fn new(format_key: &Secret32, unique_id: &[u8]) -> Self {
        let derive = |purpose: &[u8]| crate::crypto::key::hkdf32(format_key.as_bytes(), unique_id, purpose);
        Self {
            cipher: AesGcm::new(&derive(b"AES")),
            aad: derive(b"CHECKSUM"),
        }
    }

    fn seal(&self, plaintext: &[u8]) -> Vec<u8> {
        self.cipher.seal(self.aad.as_bytes(), plaintext)
    }

    fn open(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, crate::crypto::Unauthentic> {
        self.cipher.open(self.aad.as_bytes(), sealed).map(Zeroizing::new)
    }
}

#[cfg(test)]
pub(crate) mod tests;
