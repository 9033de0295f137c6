//! From Velero's BackupStorageLocation to the location of a repository.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::address::{bad_flag, endpoint, flag, normal_prefix, pairs};
use super::{AzureLocation, Ca, ChecksumChoice, Encryption, GcsLocation, Location, S3Location, check_tags};
use crate::error::{Kind, RepoError, Result};

/// The `spec` of a BackupStorageLocation, as far as it says where data is. `credential` and `caCertRef` name Secrets: whoever
/// can read those hands their contents over as [`Secrets`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupStorageLocation {
    /// `aws`, `velero.io/gcp` and so on.
    pub provider: String,
    /// Settings of the provider.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
    /// Bucket, prefix and CA.
    pub object_storage: Option<ObjectStorage>,
    /// `ReadWrite` or `ReadOnly`.
    pub access_mode: Option<String>,
}

/// `objectStorage` of a BackupStorageLocation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStorage {
    /// Name of the bucket or container.
    #[serde(default)]
    pub bucket: String,
    /// Path in the bucket.
    #[serde(default)]
    pub prefix: String,
    /// PEM certificates in base64.
    pub ca_cert: Option<String>,
}

/// What the Secrets hold that a BackupStorageLocation names.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    /// File with the key of the Secret named by `credential`. None is the environment of this process.
    pub credentials: Option<PathBuf>,
    /// PEM certificates of the Secret named by `caCertRef`.
    pub ca: Option<Vec<u8>>,
    /// File with the key of the Secret named by `customerKeyEncryptionSecret`.
    pub customer_key: Option<PathBuf>,
}

/// Where the repository of a volume's namespace is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromBsl {
    /// The place.
    pub location: Location,
    /// Nothing may be written, deleted or maintained there.
    pub read_only: bool,
    /// Settings that were passed over, and why.
    pub warnings: Vec<String>,
}

/// What becomes of a key of `config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// A setting of ours follows from it.
    Setting,
    /// It is for other parts of Velero, or for what we do in any case.
    Elsewhere,
    /// Passed over with a warning, for this reason.
    PassedOver(&'static str),
}

/// Keys for S3 (velero, pkg/repository/config/aws.go; velero-plugin-for-aws, backupstoragelocation.md).
const S3_KEYS: [(&str, Use); 18] = [
    ("region", Use::Setting),
    ("s3Url", Use::Setting),
    ("insecureSkipTLSVerify", Use::Setting),
    ("profile", Use::Setting),
    ("s3ForcePathStyle", Use::Setting),
    ("serverSideEncryption", Use::Setting),
    ("kmsKeyId", Use::Setting),
    ("customerKeyEncryptionFile", Use::Setting),
    ("customerKeyEncryptionSecret", Use::Setting),
    ("tagging", Use::Setting),
    ("checksumAlgorithm", Use::Setting),
    ("storageClass", Use::Setting),
    ("bucket", Use::Setting),
    ("prefix", Use::Setting),
    // The files of the AWS tools are read in any case.
    ("enableSharedConfig", Use::Elsewhere),
    // Addresses that Velero hands out for downloads of logs.
    ("publicUrl", Use::Elsewhere),
    ("signatureVersion", Use::Elsewhere),
    ("credentialsFile", CREDENTIALS_FILE),
];

/// A path from the outside would let whoever may edit the location read files of this host.
const CREDENTIALS_FILE: Use = Use::PassedOver("credentials come from the Secret named by spec.credential");

/// Keys for Google Cloud Storage (velero-plugin-for-gcp, backupstoragelocation.md).
const GCS_KEYS: [(&str, Use); 7] = [
    ("kmsKeyName", Use::Setting),
    ("storeEndpoint", Use::Setting),
    ("storageClass", Use::Setting),
    ("bucket", Use::Setting),
    ("prefix", Use::Setting),
    // Whose name signs addresses for downloads.
    ("serviceAccount", Use::Elsewhere),
    ("credentialsFile", CREDENTIALS_FILE),
];

/// Keys for Azure (velero-plugin-for-microsoft-azure, backupstoragelocation.md).
const AZURE_KEYS: [(&str, Use); 13] = [
    ("storageAccount", Use::Setting),
    ("storageAccountURI", Use::Setting),
    ("activeDirectoryAuthorityURI", Use::Setting),
    ("storageClass", Use::Setting),
    ("bucket", Use::Setting),
    ("prefix", Use::Setting),
    // For the look-up of the account's key, which the credentials file or the identity replaces.
    ("resourceGroup", Use::Elsewhere),
    ("subscriptionId", Use::Elsewhere),
    ("storageAccountKeyEnvVar", Use::Elsewhere),
    ("useAAD", Use::Elsewhere),
    // Blobs are put in one part.
    ("blockSizeInBytes", Use::Elsewhere),
    ("apiTimeout", Use::Elsewhere),
    ("credentialsFile", CREDENTIALS_FILE),
];

/// Keys for file systems.
const FS_KEYS: [(&str, Use); 3] = [
    ("fspath", Use::Setting),
    ("bucket", Use::Setting),
    ("prefix", Use::Setting),
];

impl Location {
    /// The repository of the volumes of `volume_namespace`: below `<prefix>/kopia/<volume namespace>/`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for values that cannot be used, `Unsupported` for an unknown provider.
    pub fn from_bsl(bsl: &BackupStorageLocation, volume_namespace: &str, secrets: &Secrets) -> Result<FromBsl> {
        let mut reader = Reader {
            config: &bsl.config,
            warnings: Vec::new(),
        };
        let storage = bsl.object_storage.as_ref();
        let prefix = match storage {
            Some(storage) => storage.prefix.clone(),
            None => reader.text("prefix").unwrap_or_default(),
        };
        let prefix = repository_prefix(&prefix, volume_namespace)?;
        let bucket = match storage {
            Some(storage) => storage.bucket.clone(),
            None => reader.text("bucket").unwrap_or_default(),
        };
        let ca = ca(storage, secrets)?;
        let provider = bsl.provider.strip_prefix("velero.io/").unwrap_or(&bsl.provider);
        let location = match provider {
            "azure" => {
                reader.check(&AZURE_KEYS);
                Self::Azure(reader.azure(bucket, prefix, ca, secrets)?)
            }
            "gcp" => {
                reader.check(&GCS_KEYS);
                Self::Gcs(reader.gcs(bucket, prefix, ca, secrets)?)
            }
            "fs" => {
                reader.check(&FS_KEYS);
                let root = reader.text("fspath").ok_or_else(|| bad("config.fspath is missing"))?;
                Self::Directory(PathBuf::from(root).join(prefix))
            }
            "aws" => Self::S3(reader.s3(bucket, prefix, ca, secrets)?),
            _ if bsl.config.contains_key("s3Url") => Self::S3(reader.s3(bucket, prefix, ca, secrets)?),
            _ => {
                let what = format!(
                    "backup storage location: provider {:?} is none of aws, gcp, azure and fs, and config has no s3Url",
                    bsl.provider
                );
                return Err(RepoError::new(Kind::Unsupported, what));
            }
        };
        if bucket_of(&location).is_some_and(str::is_empty) {
            return Err(bad("objectStorage.bucket is missing"));
        }
        let read_only = match bsl.access_mode.as_deref() {
            None | Some("" | "ReadWrite") => false,
            Some("ReadOnly") => true,
            Some(other) => {
                return Err(bad(&format!(
                    "accessMode is {other:?}; known are ReadWrite and ReadOnly"
                )));
            }
        };
        Ok(FromBsl {
            location,
            read_only,
            warnings: reader.warnings,
        })
    }
}

/// Reads the settings in `config`.
struct Reader<'a> {
    config: &'a BTreeMap<String, String>,
    warnings: Vec<String>,
}

impl Reader<'_> {
    /// Warns of keys that are not in `known`, or have no use.
    fn check(&mut self, known: &[(&str, Use)]) {
        for key in self.config.keys() {
            let found = known.iter().find(|(name, _)| name == key);
            let why = match found.map(|(_, used)| *used) {
                Some(Use::Setting | Use::Elsewhere) => continue,
                Some(Use::PassedOver(why)) => why,
                None => "unknown key",
            };
            self.warnings.push(format!("config.{key} is passed over: {why}"));
        }
    }

    /// The value of `key`, unless it is empty.
    fn text(&self, key: &str) -> Option<String> {
        self.config.get(key).filter(|value| !value.is_empty()).cloned()
    }

    fn flag(&self, key: &str) -> Result<bool> {
        let Some(text) = self.text(key) else {
            return Ok(false);
        };
        flag(&text).ok_or_else(|| bad_flag(&format!("config.{key}"), &text))
    }

    fn endpoint(&self, key: &str) -> Result<Option<String>> {
        let Some(text) = self.text(key) else {
            return Ok(None);
        };
        let read = endpoint(&text).map_err(|e| e.context(format!("config.{key}")))?;
        Ok(Some(read))
    }

    fn s3(&mut self, bucket: String, prefix: String, ca: Option<Ca>, secrets: &Secrets) -> Result<S3Location> {
        self.check(&S3_KEYS);
        let endpoint = self.endpoint("s3Url")?;
        if endpoint
            .as_deref()
            .is_some_and(|url| url.split("://").nth(1).is_some_and(|rest| rest.contains('/')))
        {
            return Err(bad(
                "config.s3Url has a path; write http://HOST:PORT or https://HOST:PORT",
            ));
        }
        Ok(S3Location {
            bucket,
            prefix,
            endpoint,
            region: self.text("region"),
            credentials: secrets.credentials.clone(),
            profile: self.text("profile"),
            anonymous: false,
            ca,
            skip_tls_verify: self.flag("insecureSkipTLSVerify")?,
            // "false" is what people leave there for clones as well; they are asked by path then, as Kopia does.
            path_style: self.flag("s3ForcePathStyle")?.then_some(true),
            storage_class: self.text("storageClass"),
            encryption: self.encryption(secrets)?,
            tags: check_tags(pairs(&self.text("tagging").unwrap_or_default(), '&'))?,
            checksum: self.checksum(),
        })
    }

    fn encryption(&self, secrets: &Secrets) -> Result<Encryption> {
        let file = self.text("customerKeyEncryptionFile").map(PathBuf::from);
        let secret = self.text("customerKeyEncryptionSecret");
        let customer_key = match (file, secret) {
            (Some(_), Some(_)) => {
                let why = "customerKeyEncryptionFile and customerKeyEncryptionSecret exclude each other";
                return Err(bad(why));
            }
            (Some(file), None) => Some(file),
            (None, Some(name)) => {
                let missing = || {
                    bad(&format!(
                        "the key in Secret {name} (customerKeyEncryptionSecret) was not handed over"
                    ))
                };
                Some(secrets.customer_key.clone().ok_or_else(missing)?)
            }
            (None, None) => None,
        };
        super::encryption(
            self.text("serverSideEncryption").as_deref(),
            self.text("kmsKeyId"),
            customer_key,
        )
        .map_err(|e| e.context("backup storage location"))
    }

    fn checksum(&mut self) -> ChecksumChoice {
        let Some(name) = self.config.get("checksumAlgorithm") else {
            return ChecksumChoice::Auto;
        };
        match name.as_str() {
            // Switched off for services that refuse the newer headers; all know MD5.
            "" => ChecksumChoice::Md5,
            "CRC32C" => ChecksumChoice::Crc32c,
            other => {
                let why = "is not offered; CRC32C or MD5 is used, whichever the service checks";
                self.warnings.push(format!("config.checksumAlgorithm {other} {why}"));
                ChecksumChoice::Auto
            }
        }
    }

    fn gcs(&self, bucket: String, prefix: String, ca: Option<Ca>, secrets: &Secrets) -> Result<GcsLocation> {
        Ok(GcsLocation {
            bucket,
            prefix,
            credentials: secrets.credentials.clone(),
            anonymous: false,
            endpoint: self.endpoint("storeEndpoint")?,
            ca,
            skip_tls_verify: false,
            storage_class: self.text("storageClass"),
            kms_key: self.text("kmsKeyName"),
        })
    }

    fn azure(&self, container: String, prefix: String, ca: Option<Ca>, secrets: &Secrets) -> Result<AzureLocation> {
        Ok(AzureLocation {
            container,
            prefix,
            account: self.text("storageAccount"),
            credentials: secrets.credentials.clone(),
            anonymous: false,
            endpoint: self.endpoint("storageAccountURI")?,
            authority: self.endpoint("activeDirectoryAuthorityURI")?,
            ca,
            skip_tls_verify: false,
            storage_class: self.text("storageClass"),
        })
    }
}

fn bad(why: &str) -> RepoError {
    RepoError::new(Kind::InvalidInput, format!("backup storage location: {why}"))
}

fn bucket_of(location: &Location) -> Option<&str> {
    match location {
        Location::Directory(_) => None,
        Location::S3(s3) => Some(&s3.bucket),
        Location::Gcs(gcs) => Some(&gcs.bucket),
        Location::Azure(azure) => Some(&azure.container),
    }
}

/// `<prefix>/kopia/<volume namespace>/`.
fn repository_prefix(prefix: &str, volume_namespace: &str) -> Result<String> {
    let usable = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if volume_namespace.is_empty() || !volume_namespace.chars().all(usable) {
        return Err(bad(&format!("{volume_namespace:?} is not the name of a namespace")));
    }
    let prefix = normal_prefix(prefix.trim_matches('/')).map_err(|why| bad(&format!("objectStorage.prefix: {why}")))?;
    Ok(format!("{prefix}kopia/{volume_namespace}/"))
}

fn ca(storage: Option<&ObjectStorage>, secrets: &Secrets) -> Result<Option<Ca>> {
    let written = storage
        .and_then(|storage| storage.ca_cert.as_deref())
        .filter(|text| !text.is_empty());
    match (written, &secrets.ca) {
        (Some(_), Some(_)) => Err(bad("objectStorage.caCert and caCertRef exclude each other")),
        (Some(text), None) => {
            let pem = STANDARD
                .decode(text)
                .map_err(|e| bad("objectStorage.caCert is not base64").because(e))?;
            Ok(Some(Ca::Pem(pem)))
        }
        (None, Some(pem)) => Ok(Some(Ca::Pem(pem.clone()))),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests;
