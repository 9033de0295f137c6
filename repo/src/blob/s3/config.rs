//! What an S3 store is opened with.

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::blob::Deadlines;

/// Where a bucket is and how it is used. `Debug` shows no secret.
#[derive(Clone)]
pub struct S3Config {
    /// Name of the bucket.
    pub bucket: String,
    /// Put before every blob id: empty, or text that ends in `/`, unless somebody chose a repository without.
    pub prefix: String,
    /// URL of the service: `http` or `https`, host, optional port. `None` is Amazon's, of the region.
    pub endpoint: Option<String>,
    /// `None` asks the bucket.
    pub region: Option<String>,
    /// Whether the bucket is named in the path of a URL instead of its host. `None`: yes for everything that is not Amazon's.
    pub path_style: Option<bool>,
    /// Who we are.
    pub credentials: Credentials,
    /// Certificates to trust beside the system's, in PEM.
    pub ca: Option<Vec<u8>>,
    /// Whether any certificate is trusted. Whoever is between us and the service then can read keys and change data.
    pub skip_tls_verify: bool,
    /// Storage class of blobs that `.storageconfig` in the bucket says nothing of. `None` leaves it to the bucket.
    pub storage_class: Option<String>,
    /// Encryption by the service, on top of the repository's own.
    pub encryption: ServerEncryption,
    /// Tags of every blob: key and value.
    pub tags: Vec<(String, String)>,
    /// Proof against damage on the way.
    pub checksum: Checksum,
    /// Time to connect, and for one whole request by the bytes it moves.
    pub deadlines: Deadlines,
}

impl S3Config {
    /// `bucket` at Amazon, with the default chain of credentials and nothing out of the ordinary.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: String::new(),
            endpoint: None,
            region: None,
            path_style: None,
            credentials: Credentials::Chain {
                file: None,
                profile: None,
            },
            ca: None,
            skip_tls_verify: false,
            storage_class: None,
            encryption: ServerEncryption::None,
            tags: Vec::new(),
            checksum: Checksum::Auto,
            deadlines: Deadlines::DEFAULT,
        }
    }
}

impl fmt::Debug for S3Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Config")
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("path_style", &self.path_style)
            .field("credentials", &self.credentials)
            .field("ca_bytes", &self.ca.as_ref().map(Vec::len))
            .field("skip_tls_verify", &self.skip_tls_verify)
            .field("storage_class", &self.storage_class)
            .field("encryption", &self.encryption)
            .field("tags", &self.tags)
            .field("checksum", &self.checksum)
            .field("deadlines", &self.deadlines)
            .finish()
    }
}

/// Where the keys come from. `Debug` shows no secret.
#[derive(Clone)]
pub enum Credentials {
    /// A file in the format of AWS, when one is given; else environment, shared files, web identity, container and
    /// instance role, in the order of the AWS tools.
    Chain {
        /// Credentials or config file. It wins over everything in the environment.
        file: Option<PathBuf>,
        /// Profile in the file: `role_arn` with `source_profile` is followed. `None`: `default`.
        profile: Option<String>,
    },
    /// Keys given outright.
    Static {
        /// Access key id.
        key_id: String,
        /// Secret access key.
        secret: Zeroizing<String>,
        /// Session token of keys on loan.
        token: Option<Zeroizing<String>>,
    },
    /// Requests are not signed.
    Anonymous,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain { file, profile } => f
                .debug_struct("Chain")
                .field("file", file)
                .field("profile", profile)
                .finish(),
            Self::Static { key_id, .. } => f.debug_struct("Static").field("key_id", key_id).finish_non_exhaustive(),
            Self::Anonymous => f.write_str("Anonymous"),
        }
    }
}

/// Encryption by the service. `Debug` shows no secret.
#[derive(Clone)]
pub enum ServerEncryption {
    /// What the bucket does by itself.
    None,
    /// SSE-S3: with keys of the service.
    S3Managed,
    /// SSE-KMS: with a key of the key service.
    Kms {
        /// Id or ARN. `None`: the default key of the account.
        key: Option<String>,
    },
    /// SSE-C: with a key sent along with each request, reads included; the service keeps only its fingerprint.
    Customer {
        /// AES-256 key.
        key: Zeroizing<[u8; 32]>,
    },
}

impl fmt::Debug for ServerEncryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::S3Managed => f.write_str("S3Managed"),
            Self::Kms { key } => f.debug_struct("Kms").field("key", key).finish(),
            Self::Customer { .. } => f.write_str("Customer"),
        }
    }
}

/// What goes along with a put so that the service can tell a damaged body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// CRC-32C where the service is found to check it, MD5 elsewhere.
    Auto,
    /// `Content-MD5`, which every service checks. Costs about 1.5 ms of a core for each MiB.
    Md5,
    /// `x-amz-checksum-crc32c`.
    Crc32c,
    /// Nothing. Refused by services when an object lock is set, and then MD5 is sent after all.
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let mut config = S3Config::new("bucket");
        config.credentials = Credentials::Static {
            key_id: "AKID".into(),
            secret: Zeroizing::new("hush-secret".into()),
            token: Some(Zeroizing::new("hush-token".into())),
        };
        config.encryption = ServerEncryption::Customer {
            key: Zeroizing::new([211; 32]),
        };
        let shown = format!("{config:?}");
        assert!(shown.contains("AKID"), "{shown}");
        assert!(!shown.contains("hush") && !shown.contains("211"), "{shown}");
    }
}
