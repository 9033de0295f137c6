//! A place in a bucket, told to both clients in their own words.

use std::path::PathBuf;

use crate::garage::{self, Garage, Key};

/// Bucket, prefix, server and key. Fields may be changed before a client is made, to make them wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// `http://` or `https://`, host and port.
    pub endpoint: String,
    /// Region that requests are signed for.
    pub region: String,
    /// Name of the bucket.
    pub bucket: String,
    /// What all names begin with.
    pub prefix: String,
    /// Key.
    pub key: Key,
    /// File with the certificates (PEM) that may sign the server's; those of the system when absent.
    pub authority: Option<PathBuf>,
}

impl Bucket {
    /// The prefix `prefix` of [`garage::BUCKET`], by way of the first node.
    pub fn of(garage: &Garage, prefix: &str) -> Self {
        Self {
            endpoint: garage.endpoint(),
            region: garage::REGION.to_owned(),
            bucket: garage::BUCKET.to_owned(),
            prefix: prefix.to_owned(),
            key: garage.key().clone(),
            authority: None,
        }
    }

    /// The same by way of another endpoint, such as that of a proxy.
    pub fn through(&self, endpoint: String) -> Self {
        Self {
            endpoint,
            ..self.clone()
        }
    }

    /// As blockferry is told: `s3://bucket/prefix/?endpoint=..&region=..`. The key goes by the environment.
    pub fn url(&self) -> String {
        let prefix = encoded(&self.prefix);
        // A path always ends in a slash; any other prefix is told as a setting.
        let (path, exact) = match self.prefix.is_empty() || self.prefix.ends_with('/') {
            true => (prefix, String::new()),
            false => (String::new(), format!("&keyPrefix={prefix}")),
        };
        let mut url = format!(
            "s3://{}/{path}?endpoint={}&region={}{exact}",
            self.bucket, self.endpoint, self.region
        );
        if let Some(authority) = &self.authority {
            url.push_str(&format!("&ca={}", encoded(&authority.display().to_string())));
        }
        url
    }

    /// The key, as environment of blockferry. What the user has of AWS configuration is out of the way.
    pub fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ACCESS_KEY_ID", self.key.id.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.key.secret.clone()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("AWS_CONFIG_FILE", "/dev/null".to_owned()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null".to_owned()),
        ]
    }

    /// As kopia is told: options of `repository create s3` and `connect s3`.
    pub fn kopia_args(&self) -> Vec<String> {
        let (scheme, address) = self.endpoint.split_once("://").unwrap_or(("http", &self.endpoint));
        let mut args = vec![
            format!("--bucket={}", self.bucket),
            format!("--prefix={}", self.prefix),
            format!("--endpoint={address}"),
            format!("--region={}", self.region),
            format!("--access-key={}", self.key.id),
            format!("--secret-access-key={}", self.key.secret),
        ];
        if scheme == "http" {
            args.push("--disable-tls".to_owned());
        }
        if let Some(authority) = &self.authority {
            args.push(format!("--root-ca-pem-path={}", authority.display()));
        }
        args
    }
}

/// Percent-encodes what may not stand in a path or query of a URL; `/` stays.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_characters_are_encoded() {
        let bucket = Bucket {
            endpoint: "http://127.0.0.1:1".into(),
            region: "r".into(),
            bucket: "b".into(),
            prefix: "a b/ü?&/".into(),
            key: Key {
                id: "i".into(),
                secret: "s".into(),
            },
            authority: None,
        };
        assert_eq!(
            bucket.url(),
            "s3://b/a%20b/%C3%BC%3F%26/?endpoint=http://127.0.0.1:1&region=r"
        );
        assert!(bucket.kopia_args().contains(&"--disable-tls".to_owned()));
        let tls = bucket.through("https://127.0.0.1:1".into());
        assert!(!tls.kopia_args().contains(&"--disable-tls".to_owned()));
    }
}
