//! Google Cloud Storage.

use std::env;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use object_store::gcp::{GcpCredential, GoogleCloudStorage, GoogleCloudStorageBuilder};
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, StaticCredentialProvider};

use super::errors::Place;
use super::wire::{PutHeaders, Wire};
use super::{CloudStore, Service, no_retries};
use crate::blob::bridge::Bridge;
use crate::blob::{BlobStore, Deadlines, GcsLocation};
use crate::error::{Kind, RepoError, Result};

/// Google's own service.
const ENDPOINT: &str = "https://storage.googleapis.com";

/// Variable that names a file of credentials, as in Google's tools.
const FILE_VARIABLE: &str = "GOOGLE_APPLICATION_CREDENTIALS";

/// Requests to a bucket.
struct Gcs {
    client: GoogleCloudStorage,
    kms_key: Option<HeaderValue>,
}

/// Opens the bucket at `location`. Nothing is asked of the service.
pub(in crate::blob) fn open(location: &GcsLocation, deadlines: &Deadlines) -> Result<Arc<dyn BlobStore>> {
    let endpoint = location.endpoint.as_deref().unwrap_or(ENDPOINT);
    let wire = Wire::new(endpoint, location.ca.as_ref(), location.skip_tls_verify, deadlines)?;
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(&location.bucket)
        .with_base_url(endpoint)
        .with_http_connector(wire)
        .with_retry(no_retries());
    let file = location.credentials.clone();
    let file = file.or_else(|| {
        env::var_os(FILE_VARIABLE)
            .filter(|path| !path.is_empty())
            .map(Into::into)
    });
    let keys = match (&file, location.anonymous) {
        (_, true) => {
            let nobody = GcpCredential { bearer: String::new() };
            builder = builder
                .with_skip_signature(true)
                .with_credentials(Arc::new(StaticCredentialProvider::new(nobody)));
            "nobody: requests are not signed".to_owned()
        }
        (Some(path), false) => {
            builder = builder.with_application_credentials(path.to_string_lossy());
            format!("file {}", path.display())
        }
        (None, false) => {
            format!("the file named by {FILE_VARIABLE}, gcloud's own, the identity of the instance or workload")
        }
    };
    let client = builder.build().map_err(|e| {
        let what = format!(
            "credentials for Google Cloud Storage ({keys}) cannot be used; a service account or a user is taken"
        );
        RepoError::new(Kind::Credentials, what).because(e)
    })?;
    let kms_key = location.kms_key.as_deref().map(HeaderValue::from_str).transpose();
    let kms_key =
        kms_key.map_err(|e| RepoError::new(Kind::InvalidInput, "kmsKeyName is no name of a key").because(e))?;
    Ok(Arc::new(CloudStore {
        service: Gcs { client, kms_key },
        bridge: Bridge::open()?,
        place: Place {
            address: format!("gs://{}/{}", location.bucket, location.prefix),
            bucket: location.bucket.clone(),
            endpoint: endpoint.to_owned(),
            keys,
        },
        prefix: location.prefix.clone(),
        deadlines: *deadlines,
        storage_class: location.storage_class.clone(),
    }))
}

impl Service for Gcs {
    const LISTS_EXACT: bool = true;

    fn objects(&self) -> &dyn ObjectStore {
        &self.client
    }

    fn pages(&self) -> &dyn PaginatedListStore {
        &self.client
    }

    /// The service refuses a body that does not fit its CRC-32C.
    fn put_headers(&self, bytes: &Bytes) -> PutHeaders {
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
        let crc = u32::try_from(crc).expect("a CRC of 32 bits").to_be_bytes();
        let hash = HeaderValue::from_str(&format!("crc32c={}", STANDARD.encode(crc))).expect("base64 is ASCII");
        let mut headers = vec![(HeaderName::from_static("x-goog-hash"), hash)];
        let key = self.kms_key.clone();
        headers.extend(key.map(|key| (HeaderName::from_static("x-goog-encryption-kms-key-name"), key)));
        PutHeaders(headers)
    }

    async fn delete(&self, path: &Path) -> object_store::Result<()> {
        self.client.delete(path).await
    }
}
