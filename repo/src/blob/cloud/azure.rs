//! Azure Blob Storage.

use std::collections::BTreeMap;
use std::env;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderValue};
use http::{Method, Request};
use object_store::ObjectStore;
use object_store::azure::{AzureAuthorizer, AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::client::{HttpRequestBody, HttpService};
use object_store::list::PaginatedListStore;
use object_store::path::Path;

use super::errors::Place;
use super::wire::{PutHeaders, Wire};
use super::{CloudStore, Service, no_retries};
use crate::blob::bridge::Bridge;
use crate::blob::{AzureLocation, BlobStore, Deadlines};
use crate::error::{Kind, RepoError, Result};

/// Longest file of credentials read, in bytes. Velero's has some 300.
const FILE_LEN_MAX: u64 = 64 << 10;

/// Requests to a container.
struct Azure {
    client: MicrosoftAzure,
    wire: Wire,
    account: String,
    /// URL of the container, without a slash at its end.
    container_url: String,
    anonymous: bool,
}

/// Opens the container at `location`. Nothing is asked of the service.
pub(in crate::blob) fn open(location: &AzureLocation, deadlines: &Deadlines) -> Result<Arc<dyn BlobStore>> {
    let (found, keys) = match &location.credentials {
        _ if location.anonymous => (BTreeMap::new(), "nobody: requests are not signed".to_owned()),
        Some(path) => {
            let text = read_file(path)?;
            let found = parse(&text).map_err(|why| {
                RepoError::new(Kind::Credentials, format!("credentials in {}: {why}", path.display()))
            })?;
            (found, format!("file {}", path.display()))
        }
        None => {
            let named = env::vars().filter(|(name, _)| name.starts_with("AZURE_") || name == "IDENTITY_ENDPOINT");
            (
                named.collect(),
                "the environment, the identity of the instance or workload".to_owned(),
            )
        }
    };
    open_with(location, deadlines, &found, keys)
}

/// Opens the container with the variables `found`.
fn open_with(
    location: &AzureLocation,
    deadlines: &Deadlines,
    found: &BTreeMap<String, String>,
    keys: String,
) -> Result<Arc<dyn BlobStore>> {
    let bad = |what: String| RepoError::new(Kind::InvalidInput, what);
    let parts = Account::read(found).map_err(|why| RepoError::new(Kind::Credentials, format!("{keys}: {why}")))?;
    let account = location.account.clone().or(parts.account.clone());
    let account = account.ok_or_else(|| {
        bad("no storage account is named; set account=NAME in the address, or AZURE_STORAGE_ACCOUNT_NAME".into())
    })?;
    let usable = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if account.is_empty() || !account.chars().all(usable) {
        return Err(bad(format!("{account:?} is not the name of a storage account")));
    }
    let endpoint = location.endpoint.clone().or(parts.endpoint.clone());
    let endpoint = endpoint.unwrap_or_else(|| format!("https://{account}.blob.{}", parts.cloud.suffix()));
    let wire = Wire::new(&endpoint, location.ca.as_ref(), location.skip_tls_verify, deadlines)?;
    let authority = location.authority.clone().or(parts.authority.clone());
    let mut builder = MicrosoftAzureBuilder::new()
        .with_account(&account)
        .with_container_name(&location.container)
        .with_endpoint(endpoint.clone())
        .with_authority_host(authority.unwrap_or_else(|| parts.cloud.authority().to_owned()))
        .with_http_connector(wire.clone())
        .with_skip_signature(location.anonymous)
        .with_retry(no_retries());
    for (key, value) in &parts.settings {
        builder = builder.with_config(*key, value);
    }
    let client = builder.build().map_err(|e| {
        let what = format!("credentials for Azure Blob Storage ({keys}) cannot be used");
        RepoError::new(Kind::Credentials, what).because(e)
    })?;
    Ok(Arc::new(CloudStore {
        service: Azure {
            client,
            wire,
            container_url: format!("{endpoint}/{}", location.container),
            account,
            anonymous: location.anonymous,
        },
        bridge: Bridge::open()?,
        place: Place {
            address: format!("az://{}/{}", location.container, location.prefix),
            bucket: location.container.clone(),
            endpoint,
            keys,
        },
        prefix: location.prefix.clone(),
        deadlines: *deadlines,
        storage_class: location.storage_class.clone(),
    }))
}

impl Service for Azure {
    /// The library leaves it out, as it may be a folder of an account with folders.
    const LISTS_EXACT: bool = false;

    fn objects(&self) -> &dyn ObjectStore {
        &self.client
    }

    fn pages(&self) -> &dyn PaginatedListStore {
        &self.client
    }

    /// What a key signs are the library's headers; more would break the signature.
    fn put_headers(&self, _: &Bytes) -> PutHeaders {
        PutHeaders::default()
    }

    /// The library deletes by batches, whose answers tell less, and which not every account and key may use.
    async fn delete(&self, path: &Path) -> object_store::Result<()> {
        let generic = |e: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic {
            store: "Azure",
            source: e,
        };
        let request = Request::builder()
            .method(Method::DELETE)
            .uri(format!("{}/{}", self.container_url, encode(path.as_ref())))
            .header(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let mut request = request.body(HttpRequestBody::empty()).map_err(|e| generic(e.into()))?;
        if !self.anonymous {
            let credential = self.client.credentials().get_credential().await?;
            AzureAuthorizer::new(&credential, &self.account).try_authorize(&mut request)?;
        }
        let answer = self.wire.call(request).await;
        answer.map(|_| ()).map_err(|e| generic(e.into()))
    }
}

/// Encodes the path of a URL.
fn encode(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(char::from(byte))
            }
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}

fn read_file(path: &std::path::Path) -> Result<String> {
    let failed = |e: std::io::Error| {
        RepoError::new(Kind::Credentials, format!("read credentials in {}", path.display())).because(e)
    };
    let len = std::fs::metadata(path).map_err(failed)?.len();
    if len > FILE_LEN_MAX {
        let what = format!(
            "credentials in {}: {len} bytes, more than {FILE_LEN_MAX}",
            path.display()
        );
        return Err(RepoError::new(Kind::Credentials, what));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// Variables in the text of a file: lines `NAME=VALUE`, with or without quotes, or one connection string.
fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line
            .split_once('=')
            .ok_or(format!("line {} is not NAME=VALUE", at + 1))?;
        if name.contains("AccountName") || name.contains("Endpoint") {
            found.insert(CONNECTION_STRING.into(), line.to_owned());
            continue;
        }
        let value = value.trim();
        let bare = ['"', '\'']
            .iter()
            .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        found.insert(name.trim().to_owned(), bare.unwrap_or(value).to_owned());
    }
    Ok(found)
}

const CONNECTION_STRING: &str = "AZURE_STORAGE_CONNECTION_STRING";

/// A cloud of Microsoft's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Cloud {
    #[default]
    Public,
    China,
    Government,
}

impl Cloud {
    /// By the name that Azure's tools use.
    fn named(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "" | "azurepubliccloud" | "azurecloud" => Some(Self::Public),
            "azurechinacloud" => Some(Self::China),
            "azureusgovernment" | "azureusgovernmentcloud" => Some(Self::Government),
            _ => None,
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Public => "core.windows.net",
            Self::China => "core.chinacloudapi.cn",
            Self::Government => "core.usgovcloudapi.net",
        }
    }

    fn authority(self) -> &'static str {
        match self {
            Self::Public => "https://login.microsoftonline.com",
            Self::China => "https://login.chinacloudapi.cn",
            Self::Government => "https://login.microsoftonline.us",
        }
    }
}

/// What variables, of the environment or a file, say of an account.
#[derive(Debug, Default, PartialEq, Eq)]
struct Account {
    account: Option<String>,
    endpoint: Option<String>,
    authority: Option<String>,
    cloud: Cloud,
    /// Keys and identities, as the library knows them.
    settings: Vec<(AzureConfigKey, String)>,
}

impl Account {
    fn read(found: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut account = Self::default();
        for (name, value) in found.iter().filter(|(_, value)| !value.is_empty()) {
            let mut set = |key| account.settings.push((key, value.clone()));
            match name.as_str() {
                "AZURE_STORAGE_ACCOUNT" | "AZURE_STORAGE_ACCOUNT_NAME" | "AZURE_STORAGE_ACCOUNT_ID" => {
                    account.account = Some(value.clone());
                }
                "AZURE_STORAGE_ACCOUNT_KEY"
                | "AZURE_STORAGE_ACCESS_KEY"
                | "AZURE_STORAGE_KEY"
                | "AZURE_STORAGE_ACCOUNT_ACCESS_KEY" => set(AzureConfigKey::AccessKey),
                "AZURE_STORAGE_SAS_TOKEN" | "AZURE_STORAGE_SAS_KEY" => set(AzureConfigKey::SasKey),
                "AZURE_TENANT_ID" => set(AzureConfigKey::AuthorityId),
                "AZURE_CLIENT_ID" => set(AzureConfigKey::ClientId),
                "AZURE_CLIENT_SECRET" => set(AzureConfigKey::ClientSecret),
                "AZURE_FEDERATED_TOKEN_FILE" => set(AzureConfigKey::FederatedTokenFile),
                "IDENTITY_ENDPOINT" => set(AzureConfigKey::MsiEndpoint),
                "AZURE_AUTHORITY_HOST" => account.authority = Some(value.trim_end_matches('/').to_owned()),
                "AZURE_STORAGE_ENDPOINT" => account.endpoint = Some(value.trim_end_matches('/').to_owned()),
                "AZURE_CLOUD_NAME" | "AZURE_ENVIRONMENT" => {
                    account.cloud = Cloud::named(value).ok_or(format!("{name} names a cloud that is not known"))?;
                }
                _ => {}
            }
        }
        // It says everything, and wins over what else is set.
        if let Some(text) = found.get(CONNECTION_STRING).filter(|text| !text.is_empty()) {
            account.connection_string(text)?;
        }
        Ok(account)
    }

    fn connection_string(&mut self, text: &str) -> Result<(), String> {
        let parts: BTreeMap<&str, &str> = text.trim().split(';').filter_map(|part| part.split_once('=')).collect();
        let get = |key: &str| {
            parts
                .get(key)
                .map(|value| (*value).to_owned())
                .filter(|value| !value.is_empty())
        };
        self.account = get("AccountName").or(self.account.take());
        self.endpoint = get("BlobEndpoint").map(|url| url.trim_end_matches('/').to_owned());
        if let (None, Some(name), Some(suffix)) = (&self.endpoint, &self.account, get("EndpointSuffix")) {
            let protocol = get("DefaultEndpointsProtocol").unwrap_or_else(|| "https".into());
            self.endpoint = Some(format!("{protocol}://{name}.blob.{suffix}"));
        }
        self.settings = match (get("AccountKey"), get("SharedAccessSignature")) {
            (Some(key), _) => vec![(AzureConfigKey::AccessKey, key)],
            (None, Some(sas)) => vec![(AzureConfigKey::SasKey, sas)],
            (None, None) => return Err("the connection string has neither AccountKey nor SharedAccessSignature".into()),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(text: &str) -> Account {
        Account::read(&parse(text).expect("a file")).expect("an account")
    }

    #[test]
    fn a_file_of_velero_is_understood() {
        let found = account(
            "AZURE_SUBSCRIPTION_ID=s\nAZURE_TENANT_ID=t\n\n# comment\nAZURE_CLIENT_ID=c\nAZURE_CLIENT_SECRET='p=q'\nAZURE_RESOURCE_GROUP=g\nAZURE_CLOUD_NAME=AzureUSGovernmentCloud\n",
        );
        assert_eq!(found.cloud, Cloud::Government);
        assert_eq!(
            found.settings,
            [
                (AzureConfigKey::ClientId, "c".into()),
                (AzureConfigKey::ClientSecret, "p=q".into()),
                (AzureConfigKey::AuthorityId, "t".into()),
            ]
        );
        let found = account("export AZURE_STORAGE_ACCOUNT_ACCESS_KEY=\"a2V5\"\nAZURE_STORAGE_ACCOUNT=acc\n");
        assert_eq!(found.account.as_deref(), Some("acc"));
        assert_eq!(found.settings, [(AzureConfigKey::AccessKey, "a2V5".into())]);
    }

    #[test]
    fn a_connection_string_says_everything() {
        let text =
            "DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=a2V5==;EndpointSuffix=core.chinacloudapi.cn";
        for text in [
            text.to_owned(),
            format!("AZURE_STORAGE_CONNECTION_STRING=\"{text}\"\nAZURE_CLIENT_ID=c"),
        ] {
            let found = account(&text);
            assert_eq!(found.account.as_deref(), Some("acc"), "{text}");
            assert_eq!(
                found.endpoint.as_deref(),
                Some("https://acc.blob.core.chinacloudapi.cn")
            );
            assert_eq!(found.settings, [(AzureConfigKey::AccessKey, "a2V5==".into())]);
        }
        let found =
            account("BlobEndpoint=http://127.0.0.1:10000/acc/;AccountName=acc;SharedAccessSignature=sv=1&sig=x");
        assert_eq!(found.endpoint.as_deref(), Some("http://127.0.0.1:10000/acc"));
        assert_eq!(found.settings, [(AzureConfigKey::SasKey, "sv=1&sig=x".into())]);
        let half = parse("AccountName=acc;EndpointSuffix=x").expect("a file");
        assert!(Account::read(&half).expect_err("no key").contains("AccountKey"));
    }

    #[test]
    fn files_that_are_something_else_are_refused_without_their_text() {
        let why = parse("AZURE_CLIENT_ID=c\nHUSH").expect_err("no variable");
        assert!(why.contains("line 2") && !why.contains("HUSH"), "{why}");
        let other = BTreeMap::from([("AZURE_CLOUD_NAME".to_owned(), "AzureMarsCloud".to_owned())]);
        assert!(Account::read(&other).is_err());
    }

    #[test]
    fn without_an_account_nothing_is_opened() {
        let location = AzureLocation {
            container: "c".into(),
            ..AzureLocation::default()
        };
        let open = |location: &AzureLocation| open_with(location, &Deadlines::DEFAULT, &BTreeMap::new(), "test".into());
        let error = open(&location).err().expect("no account");
        assert!(error.what().contains("account=NAME"), "{error}");
        let odd = AzureLocation {
            account: Some("evil.example/x".into()),
            ..location
        };
        assert_eq!(open(&odd).err().expect("no name").kind(), Kind::InvalidInput);
    }
}
