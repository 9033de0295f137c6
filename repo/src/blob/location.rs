//! Where a repository is, as people and clusters write it, and the way from there to an open store.

mod address;
mod bsl;
mod open;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use blockio::Cancel;

pub use self::bsl::{BackupStorageLocation, FromBsl, ObjectStorage, Secrets};

use self::address::{Address, AddressWriter, bad};
use super::{Deadlines, Meter, RetryBudget, RetryPolicy, Throttle};
use crate::error::{Kind, RepoError, Result};

/// The place of a repository. It holds no secret: keys come from files and the environment when it is opened.
///
/// Parsed from a directory, `file:///DIRECTORY`, `s3://BUCKET/PREFIX/?…`, `gs://BUCKET/PREFIX/?…` or
/// `az://CONTAINER/PREFIX/?…`; `Display` writes what reads back as the same, but for a CA that was not given as a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory of this host.
    Directory(PathBuf),
    /// A bucket of Amazon S3 or one of its clones.
    S3(S3Location),
    /// A bucket of Google Cloud Storage.
    Gcs(GcsLocation),
    /// A container of Azure Blob Storage.
    Azure(AzureLocation),
}

/// A bucket of S3, and how to use it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Location {
    /// Name of the bucket.
    pub bucket: String,
    /// Put before every blob id: empty, text that ends in a slash, or what `keyPrefix` says.
    pub prefix: String,
    /// `endpoint`: URL of the service; none is Amazon's.
    pub endpoint: Option<String>,
    /// `region`: none asks the bucket.
    pub region: Option<String>,
    /// `credentials`: a file in the format of AWS. None is the chain of the AWS tools.
    pub credentials: Option<PathBuf>,
    /// `profile` in that file, or in those of the chain.
    pub profile: Option<String>,
    /// `anonymous`: requests are not signed.
    pub anonymous: bool,
    /// `ca`: what to trust beside the system's certificates.
    pub ca: Option<Ca>,
    /// `insecureSkipTlsVerify`: any certificate is trusted.
    pub skip_tls_verify: bool,
    /// `pathStyle`: whether the bucket is named in the path; none is yes, but for Amazon's.
    pub path_style: Option<bool>,
    /// `storageClass` of blobs that `.storageconfig` says nothing of.
    pub storage_class: Option<String>,
    /// `sse`, `kmsKeyId`, `sseKeyFile`: encryption by the service.
    pub encryption: Encryption,
    /// `tags` of every blob, written `key=value,key=value`.
    pub tags: Vec<(String, String)>,
    /// `checksum` that goes along with a put.
    pub checksum: ChecksumChoice,
}

/// Certificates to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ca {
    /// In a PEM file.
    File(PathBuf),
    /// As PEM text.
    Pem(Vec<u8>),
}

/// Encryption by the service, on top of the repository's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// What the bucket does by itself.
    #[default]
    Bucket,
    /// `sse=AES256`: with keys of the service (SSE-S3).
    Service,
    /// `sse=aws:kms`: with a key of the key service, named by `kmsKeyId` or the account's default (SSE-KMS).
    Kms(Option<String>),
    /// `sseKeyFile`: with the 32 bytes in this file (SSE-C).
    KeyFile(PathBuf),
}

/// What goes along with a put so that the service can tell a damaged body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChecksumChoice {
    /// `auto`: CRC-32C where the service is found to check it, MD5 elsewhere.
    #[default]
    Auto,
    /// `md5`.
    Md5,
    /// `crc32c`.
    Crc32c,
    /// `none`.
    None,
}

/// A bucket of Google Cloud Storage, and how to use it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcsLocation {
    /// Name of the bucket.
    pub bucket: String,
    /// Put before every blob id: empty, or text that ends in a slash.
    pub prefix: String,
    /// `credentials`: file of a service account, a user or a workload. None is what Google's tools find.
    pub credentials: Option<PathBuf>,
    /// `anonymous`: requests carry no token.
    pub anonymous: bool,
    /// `endpoint`: URL of another service with the same interface.
    pub endpoint: Option<String>,
    /// `ca`: what to trust beside the system's certificates.
    pub ca: Option<Ca>,
    /// `insecureSkipTlsVerify`: any certificate is trusted.
    pub skip_tls_verify: bool,
    /// `storageClass` of every blob; none leaves it to the bucket.
    pub storage_class: Option<String>,
    /// `kmsKeyName`: key of the key service that blobs are encrypted with.
    pub kms_key: Option<String>,
}

/// A container of Azure Blob Storage, and how to use it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AzureLocation {
    /// Name of the container.
    pub container: String,
    /// Put before every blob id: empty, or text that ends in a slash.
    pub prefix: String,
    /// `account`: name of the storage account; none is the one in the credentials.
    pub account: Option<String>,
    /// `credentials`: file of lines `AZURE_…=…`, or of one connection string. None is the environment, or the identity of the
    /// host or workload.
    pub credentials: Option<PathBuf>,
    /// `anonymous`: requests are not signed.
    pub anonymous: bool,
    /// `endpoint`: URL of the service of this account, in other clouds.
    pub endpoint: Option<String>,
    /// `authority`: URL that tokens are had from, in other clouds.
    pub authority: Option<String>,
    /// `ca`: what to trust beside the system's certificates.
    pub ca: Option<Ca>,
    /// `insecureSkipTlsVerify`: any certificate is trusted.
    pub skip_tls_verify: bool,
    /// `storageClass`: access tier of every blob; none leaves it to the account.
    pub storage_class: Option<String>,
}

/// How a store is used, wherever it is. Clones share budget, rates, cancellation and numbers.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What is tried again for how long.
    pub retry: RetryPolicy,
    /// Allowance of retries. A process has one.
    pub retry_budget: Arc<RetryBudget>,
    /// Rates. A process has one for each set of limits.
    pub throttle: Arc<Throttle>,
    /// Time limits of requests.
    pub deadlines: Deadlines,
    /// Puts, and as many reads, in flight at most; none leaves it to the store.
    pub in_flight_max: Option<usize>,
    /// Ends waits: for a retry, a rate, or a turn.
    pub cancel: Cancel,
    /// Counts requests.
    pub meter: Meter,
}

/// Settings of an `s3://` address.
const S3_KEYS: [&str; 15] = [
    "keyPrefix",
    "endpoint",
    "region",
    "credentials",
    "profile",
    "anonymous",
    "ca",
    "insecureSkipTlsVerify",
    "pathStyle",
    "storageClass",
    "sse",
    "kmsKeyId",
    "sseKeyFile",
    "tags",
    "checksum",
];

/// Settings of a `gs://` address.
const GCS_KEYS: [&str; 7] = [
    "credentials",
    "anonymous",
    "endpoint",
    "ca",
    "insecureSkipTlsVerify",
    "storageClass",
    "kmsKeyName",
];

/// Settings of an `az://` address.
const AZURE_KEYS: [&str; 8] = [
    "account",
    "credentials",
    "anonymous",
    "endpoint",
    "authority",
    "ca",
    "insecureSkipTlsVerify",
    "storageClass",
];

/// Where keys belong instead of an address.
const S3_SECRETS: &str =
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file in the format of AWS with credentials=FILE";
const GCS_SECRETS: &str = "set GOOGLE_APPLICATION_CREDENTIALS, or name the file with credentials=FILE";
const AZURE_SECRETS: &str =
    "set AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or name a file with such lines with credentials=FILE";

impl FromStr for Location {
    type Err = RepoError;

    fn from_str(text: &str) -> Result<Self> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return directory(text, text);
        };
        match scheme {
            "file" => {
                let path = address::decode(rest).filter(|path| path.starts_with('/'));
                let path = path.ok_or_else(|| bad(scheme, "write file:///DIRECTORY, a percent sign as %25"))?;
                directory(&path, text)
            }
            "s3" => Ok(Self::S3(S3Location::parse(Address::parse(
                scheme, rest, &S3_KEYS, S3_SECRETS,
            )?)?)),
            "gs" => Ok(Self::Gcs(GcsLocation::parse(Address::parse(
                scheme,
                rest,
                &GCS_KEYS,
                GCS_SECRETS,
            )?)?)),
            "az" => Ok(Self::Azure(AzureLocation::parse(Address::parse(
                scheme,
                rest,
                &AZURE_KEYS,
                AZURE_SECRETS,
            )?)?)),
            _ => {
                let why = "not a kind of repository; known are a directory, file:///DIRECTORY, s3://BUCKET/PREFIX/, gs://BUCKET/PREFIX/ and az://CONTAINER/PREFIX/";
                Err(bad(scheme, why))
            }
        }
    }
}

fn directory(path: &str, text: &str) -> Result<Location> {
    if path.is_empty() || path.contains('\0') {
        let what = format!("{text:?} is not a repository; give a directory or an address");
        return Err(RepoError::new(Kind::InvalidInput, what));
    }
    Ok(Location::Directory(PathBuf::from(path)))
}

impl S3Location {
    fn parse(address: Address) -> Result<Self> {
        let Address {
            bucket,
            prefix,
            mut settings,
        } = address;
        let prefix = match settings.text("keyPrefix") {
            None => prefix,
            Some(exact) if prefix.is_empty() => address::exact_prefix(exact).map_err(|why| bad("s3", why))?,
            Some(_) => return Err(bad("s3", "a prefix in the path and another as keyPrefix")),
        };
        let location = Self {
            bucket,
            prefix,
            endpoint: settings.endpoint("endpoint")?,
            region: settings.text("region"),
            credentials: settings.path("credentials"),
            profile: settings.text("profile"),
            anonymous: settings.flag("anonymous")?.unwrap_or(false),
            ca: settings.path("ca").map(Ca::File),
            skip_tls_verify: settings.flag("insecureSkipTlsVerify")?.unwrap_or(false),
            path_style: settings.flag("pathStyle")?,
            storage_class: settings.text("storageClass"),
            encryption: encryption(
                settings.text("sse").as_deref(),
                settings.text("kmsKeyId"),
                settings.path("sseKeyFile"),
            )?,
            tags: check_tags(settings.pairs("tags"))?,
            checksum: checksum(settings.text("checksum").as_deref())?,
        };
        if location.anonymous && (location.credentials.is_some() || location.profile.is_some()) {
            return Err(bad("s3", "anonymous=true leaves no use for credentials and profile"));
        }
        Ok(location)
    }
}

impl GcsLocation {
    fn parse(address: Address) -> Result<Self> {
        let Address {
            bucket,
            prefix,
            mut settings,
        } = address;
        let location = Self {
            bucket,
            prefix,
            credentials: settings.path("credentials"),
            anonymous: settings.flag("anonymous")?.unwrap_or(false),
            endpoint: settings.endpoint("endpoint")?,
            ca: settings.path("ca").map(Ca::File),
            skip_tls_verify: settings.flag("insecureSkipTlsVerify")?.unwrap_or(false),
            storage_class: settings.text("storageClass"),
            kms_key: settings.text("kmsKeyName"),
        };
        if location.anonymous && location.credentials.is_some() {
            return Err(bad("gs", "anonymous=true leaves no use for credentials"));
        }
        Ok(location)
    }
}

impl AzureLocation {
    fn parse(address: Address) -> Result<Self> {
        let Address {
            bucket,
            prefix,
            mut settings,
        } = address;
        let location = Self {
            container: bucket,
            prefix,
            account: settings.text("account"),
            credentials: settings.path("credentials"),
            anonymous: settings.flag("anonymous")?.unwrap_or(false),
            endpoint: settings.endpoint("endpoint")?,
            authority: settings.endpoint("authority")?,
            ca: settings.path("ca").map(Ca::File),
            skip_tls_verify: settings.flag("insecureSkipTlsVerify")?.unwrap_or(false),
            storage_class: settings.text("storageClass"),
        };
        if location.anonymous && location.credentials.is_some() {
            return Err(bad("az", "anonymous=true leaves no use for credentials"));
        }
        Ok(location)
    }
}

fn encryption(sse: Option<&str>, kms_key: Option<String>, key_file: Option<PathBuf>) -> Result<Encryption> {
    match (sse, kms_key, key_file) {
        (None, None, None) => Ok(Encryption::Bucket),
        (Some("AES256"), None, None) => Ok(Encryption::Service),
        (None | Some("aws:kms"), key, None) => Ok(Encryption::Kms(key)),
        (None, None, Some(file)) => Ok(Encryption::KeyFile(file)),
        (Some(other), ..) if !matches!(other, "AES256" | "aws:kms") => {
            Err(bad("s3", format!("sse is {other:?}; known are AES256 and aws:kms")))
        }
        _ => Err(bad(
            "s3",
            "sse=AES256, a KMS key and an encryption key of your own exclude each other",
        )),
    }
}

fn checksum(text: Option<&str>) -> Result<ChecksumChoice> {
    match text {
        None | Some("auto") => Ok(ChecksumChoice::Auto),
        Some("md5") => Ok(ChecksumChoice::Md5),
        Some("crc32c") => Ok(ChecksumChoice::Crc32c),
        Some("none") => Ok(ChecksumChoice::None),
        Some(other) => Err(bad(
            "s3",
            format!("checksum is {other:?}; known are auto, md5, crc32c and none"),
        )),
    }
}

/// Tags a service takes (Amazon S3: 10 tags of 128 and 256 characters).
const TAGS_MAX: usize = 10;
const TAG_KEY_LEN_MAX: usize = 128;
const TAG_VALUE_LEN_MAX: usize = 256;

/// Refuses tags that no service takes, before the first put is refused for them.
fn check_tags(tags: Vec<(String, String)>) -> Result<Vec<(String, String)>> {
    if tags.len() > TAGS_MAX {
        return Err(bad("s3", format!("{} tags, more than {TAGS_MAX}", tags.len())));
    }
    for (at, (key, value)) in tags.iter().enumerate() {
        if key.is_empty() || key.chars().count() > TAG_KEY_LEN_MAX || value.chars().count() > TAG_VALUE_LEN_MAX {
            let why = format!(
                "tag {key:?}: a key of 1 to {TAG_KEY_LEN_MAX} characters and a value of up to {TAG_VALUE_LEN_MAX} are taken"
            );
            return Err(bad("s3", why));
        }
        if tags[..at].iter().any(|(known, _)| known == key) {
            return Err(bad("s3", format!("tag {key:?} is there twice")));
        }
    }
    Ok(tags)
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::S3(s3) => f.write_str(&s3.address()),
            Self::Gcs(gcs) => f.write_str(&gcs.address()),
            Self::Azure(azure) => f.write_str(&azure.address()),
        }
    }
}

fn yes(flag: bool) -> Option<&'static str> {
    flag.then_some("true")
}

fn ca_file(ca: Option<&Ca>) -> Option<&Path> {
    match ca {
        Some(Ca::File(path)) => Some(path),
        _ => None,
    }
}

impl S3Location {
    fn address(&self) -> String {
        // Kopia takes a prefix as it is, so repositories may have one that ends in no slash.
        let is_path = self.prefix.is_empty() || self.prefix.ends_with('/');
        let mut address = AddressWriter::new("s3", &self.bucket, if is_path { &self.prefix } else { "" });
        address.set("keyPrefix", (!is_path).then_some(self.prefix.as_str()));
        address.set("endpoint", self.endpoint.as_deref());
        address.set("region", self.region.as_deref());
        address.set_path("credentials", self.credentials.as_deref());
        address.set("profile", self.profile.as_deref());
        address.set("anonymous", yes(self.anonymous));
        address.set_path("ca", ca_file(self.ca.as_ref()));
        address.set("insecureSkipTlsVerify", yes(self.skip_tls_verify));
        address.set(
            "pathStyle",
            self.path_style.map(|yes| if yes { "true" } else { "false" }),
        );
        address.set("storageClass", self.storage_class.as_deref());
        match &self.encryption {
            Encryption::Bucket => {}
            Encryption::Service => address.set("sse", Some("AES256")),
            Encryption::Kms(key) => {
                address.set("sse", Some("aws:kms"));
                address.set("kmsKeyId", key.as_deref());
            }
            Encryption::KeyFile(file) => address.set_path("sseKeyFile", Some(file)),
        }
        address.set_pairs("tags", &self.tags);
        address.set(
            "checksum",
            match self.checksum {
                ChecksumChoice::Auto => None,
                ChecksumChoice::Md5 => Some("md5"),
                ChecksumChoice::Crc32c => Some("crc32c"),
                ChecksumChoice::None => Some("none"),
            },
        );
        address.finish()
    }
}

impl GcsLocation {
    fn address(&self) -> String {
        let mut address = AddressWriter::new("gs", &self.bucket, &self.prefix);
        address.set_path("credentials", self.credentials.as_deref());
        address.set("anonymous", yes(self.anonymous));
        address.set("endpoint", self.endpoint.as_deref());
        address.set_path("ca", ca_file(self.ca.as_ref()));
        address.set("insecureSkipTlsVerify", yes(self.skip_tls_verify));
        address.set("storageClass", self.storage_class.as_deref());
        address.set("kmsKeyName", self.kms_key.as_deref());
        address.finish()
    }
}

impl AzureLocation {
    fn address(&self) -> String {
        let mut address = AddressWriter::new("az", &self.container, &self.prefix);
        address.set("account", self.account.as_deref());
        address.set_path("credentials", self.credentials.as_deref());
        address.set("anonymous", yes(self.anonymous));
        address.set("endpoint", self.endpoint.as_deref());
        address.set("authority", self.authority.as_deref());
        address.set_path("ca", ca_file(self.ca.as_ref()));
        address.set("insecureSkipTlsVerify", yes(self.skip_tls_verify));
        address.set("storageClass", self.storage_class.as_deref());
        address.finish()
    }
}
