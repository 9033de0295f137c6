//! From a location to a store, wrapped in what every store is used through.

use std::path::Path;
use std::sync::Arc;

use super::{AzureLocation, Ca, GcsLocation, Location, S3Location, Settings};
use crate::blob::retry::Retrier;
use crate::blob::{AdaptiveStore, BlobStore, Deadlines, FsStore, LimitStore, MeterStore, RetryStore, StoreOp};
use crate::error::{Kind, RepoError, Result};

/// Longest file of certificates or keys read, in bytes. The system's whole bundle has 220 KiB.
const FILE_LEN_MAX: u64 = 1 << 20;

/// What a certificate in PEM form begins with.
const PEM_BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

impl Location {
    /// Opens the store there, which counts, tries again and keeps to limits as `settings` say.
    ///
    /// # Errors
    ///
    /// `NotFound`, `NotARepository` and what else the storage says; `InvalidInput` for settings that contradict each other;
    /// `Unsupported` for a service that this program was built without.
    pub fn open(&self, settings: &Settings) -> Result<Arc<dyn BlobStore>> {
        self.wrapped(settings, |path| Ok(Arc::new(FsStore::open(path)?)))
    }

    /// Opens the store for a repository to be made there: of a directory that is empty or missing, a new one.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open), and `AlreadyExists` for a directory with anything in it.
    pub fn create(&self, settings: &Settings) -> Result<Arc<dyn BlobStore>> {
        self.wrapped(settings, |path| Ok(Arc::new(FsStore::create(path)?)))
    }

    /// From the outside in: numbers, then repetitions, each of which waits for its share of the rates and then its turn.
    fn wrapped(
        &self,
        settings: &Settings,
        directory: impl FnOnce(&Path) -> Result<Arc<dyn BlobStore>>,
    ) -> Result<Arc<dyn BlobStore>> {
        let Settings {
            retry,
            retry_budget,
            throttle,
            deadlines,
            in_flight_max,
            cancel,
            meter,
        } = settings.clone();
        let retrier = Retrier::new(retry, retry_budget, cancel.clone(), meter.clone());
        // Services are spoken to when they are opened, and fail in passing then as well.
        let again = |open: &dyn Fn() -> Result<Arc<dyn BlobStore>>| {
            let store = retrier.run(StoreOp::Get, "settings of the storage", open)?;
            Ok::<_, RepoError>(Arc::new(AdaptiveStore::new(store, in_flight_max, cancel.clone())) as Arc<dyn BlobStore>)
        };
        let store = match self {
            Self::Directory(path) => directory(path)?,
            Self::S3(s3) => again(&|| s3.open(&deadlines))?,
            Self::Gcs(gcs) => again(&|| gcs.open(&deadlines))?,
            Self::Azure(azure) => again(&|| azure.open(&deadlines))?,
        };
        let store = Arc::new(LimitStore::new(store, throttle, cancel));
        let store = Arc::new(RetryStore::with(store, retrier));
        Ok(Arc::new(MeterStore::new(store, meter)))
    }
}

/// Reads a file that a setting names.
fn read_setting(key: &str, path: &Path) -> Result<Vec<u8>> {
    let what = || format!("read {} for setting {key}", path.display());
    let len = std::fs::metadata(path).map_err(|e| unreadable(what(), e))?.len();
    if len > FILE_LEN_MAX {
        let what = format!("{}: {len} bytes, more than {FILE_LEN_MAX}", what());
        return Err(RepoError::new(Kind::InvalidInput, what));
    }
    std::fs::read(path).map_err(|e| unreadable(what(), e))
}

/// Not the kind of the missing file: "not found" is said of blobs.
fn unreadable(what: String, e: std::io::Error) -> RepoError {
    RepoError::new(Kind::InvalidInput, what).because(e)
}

impl Ca {
    /// The certificates in PEM.
    pub(crate) fn read(&self) -> Result<Vec<u8>> {
        match self {
            Self::Pem(pem) => Ok(pem.clone()),
            Self::File(path) => {
                let pem = read_setting("ca", path)?;
                match pem.windows(PEM_BEGIN.len()).any(|part| part == PEM_BEGIN) {
                    true => Ok(pem),
                    false => {
                        let what = format!(
                            "{} holds no certificate in PEM form, as setting ca asks for",
                            path.display()
                        );
                        Err(RepoError::new(Kind::InvalidInput, what))
                    }
                }
            }
        }
    }
}

#[cfg(not(all(feature = "s3", feature = "gcs", feature = "azure")))]
fn built_without(what: &str) -> Result<Arc<dyn BlobStore>> {
    let what = format!("this program was built without {what}");
    Err(RepoError::new(Kind::Unsupported, what))
}

#[cfg(feature = "s3")]
mod s3 {
    use zeroize::Zeroizing;

    use super::super::{ChecksumChoice, Encryption};
    use super::*;
    use crate::blob::s3::{Checksum, Credentials, S3Config, S3Store, ServerEncryption};

    impl S3Location {
        pub(super) fn open(&self, deadlines: &Deadlines) -> Result<Arc<dyn BlobStore>> {
            Ok(Arc::new(S3Store::open(self.config(deadlines)?)?))
        }

        /// What the store is opened with.
        pub(in crate::blob::location) fn config(&self, deadlines: &Deadlines) -> Result<S3Config> {
            Ok(S3Config {
                bucket: self.bucket.clone(),
                prefix: self.prefix.clone(),
                endpoint: self.endpoint.clone(),
                region: self.region.clone(),
                path_style: self.path_style,
                credentials: match self.anonymous {
                    true => Credentials::Anonymous,
                    false => Credentials::Chain {
                        file: self.credentials.clone(),
                        profile: self.profile.clone(),
                    },
                },
                ca: self.ca.as_ref().map(Ca::read).transpose()?,
                skip_tls_verify: self.skip_tls_verify,
                storage_class: self.storage_class.clone(),
                encryption: self.encryption.server()?,
                tags: self.tags.clone(),
                checksum: match self.checksum {
                    ChecksumChoice::Auto => Checksum::Auto,
                    ChecksumChoice::Md5 => Checksum::Md5,
                    ChecksumChoice::Crc32c => Checksum::Crc32c,
                    ChecksumChoice::None => Checksum::None,
                },
                deadlines: *deadlines,
            })
        }
    }

    impl Encryption {
        fn server(&self) -> Result<ServerEncryption> {
            Ok(match self {
                Self::Bucket => ServerEncryption::None,
                Self::Service => ServerEncryption::S3Managed,
                Self::Kms(key) => ServerEncryption::Kms { key: key.clone() },
                Self::KeyFile(path) => {
                    let bytes = Zeroizing::new(read_setting("sseKeyFile", path)?);
                    let key: [u8; 32] = bytes.as_slice().try_into().map_err(|_| {
                        let what = format!(
                            "{} holds {} bytes; an encryption key has 32, without an end of line",
                            path.display(),
                            bytes.len()
                        );
                        RepoError::new(Kind::InvalidInput, what)
                    })?;
                    ServerEncryption::Customer {
                        key: Zeroizing::new(key),
                    }
                }
            })
        }
    }
}

#[cfg(not(feature = "s3"))]
impl S3Location {
    fn open(&self, _: &Deadlines) -> Result<Arc<dyn BlobStore>> {
        built_without("Amazon S3")
    }
}

impl GcsLocation {
    #[cfg(feature = "gcs")]
    fn open(&self, deadlines: &Deadlines) -> Result<Arc<dyn BlobStore>> {
        crate::blob::cloud::open_gcs(self, deadlines)
    }

    #[cfg(not(feature = "gcs"))]
    fn open(&self, _: &Deadlines) -> Result<Arc<dyn BlobStore>> {
        built_without("Google Cloud Storage")
    }
}

impl AzureLocation {
    #[cfg(feature = "azure")]
    fn open(&self, deadlines: &Deadlines) -> Result<Arc<dyn BlobStore>> {
        crate::blob::cloud::open_azure(self, deadlines)
    }

    #[cfg(not(feature = "azure"))]
    fn open(&self, _: &Deadlines) -> Result<Arc<dyn BlobStore>> {
        built_without("Azure Blob Storage")
    }
}
