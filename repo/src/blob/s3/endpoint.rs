//! Where requests go: the service's address, its region as far as the address tells, and how a bucket is named in a URL.

use reqwest::Url;

use super::config::S3Config;
use crate::error::{Kind, RepoError, Result};

/// Region that AWS, and everything that copies it, starts from when none is known.
pub(super) const REGION_START: &str = "us-east-1";

/// A checked address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Scheme, host and port as given; `None` is Amazon's own of whatever region.
    pub(super) url: Option<String>,
    /// Whether the service is Amazon's.
    pub(super) amazon: bool,
    /// Whether requests go unencrypted.
    pub(super) plain: bool,
    /// Whether the bucket is named in the path.
    pub(super) path_style: bool,
    /// Region: as set, or as the host name says.
    pub(super) region: Option<String>,
}

impl Endpoint {
    /// Checks the address in `config`.
    pub(super) fn parse(config: &S3Config) -> Result<Self> {
        let Some(text) = &config.endpoint else {
            return Ok(Self {
                url: None,
                amazon: true,
                plain: false,
                path_style: config.path_style.unwrap_or(false),
                region: config.region.clone(),
            });
        };
        let url = Url::parse(text).map_err(|e| bad(text, "it is no URL").because(e))?;
        let plain = match url.scheme() {
            "https" => false,
            "http" => true,
            _ => return Err(bad(text, "its scheme must be http or https")),
        };
        let host = url.host_str().ok_or_else(|| bad(text, "it names no host"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("(not shown)", "keys do not belong into it"));
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(bad(
                text,
                "it must end after host and port; bucket and prefix are settings of their own",
            ));
        }
        let amazon = is_amazon(host);
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        Ok(Self {
            url: Some(format!("{}://{host}{port}", url.scheme())),
            amazon,
            plain,
            path_style: config.path_style.unwrap_or(!amazon),
            region: config.region.clone().or_else(|| region_of(host)),
        })
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.url.as_deref().unwrap_or("Amazon S3"))
    }
}

fn bad(text: &str, why: &str) -> RepoError {
    RepoError::new(Kind::InvalidInput, format!("S3 endpoint {text}: {why}"))
}

fn is_amazon(host: &str) -> bool {
    host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn")
}

/// The region in a host name of Amazon's: `s3.REGION.amazonaws.com`, `s3-REGION.amazonaws.com` and
/// `s3.dualstack.REGION.amazonaws.com`.
fn region_of(host: &str) -> Option<String> {
    let stem = host
        .strip_suffix(".amazonaws.com")
        .or_else(|| host.strip_suffix(".amazonaws.com.cn"))?;
    let rest = stem.strip_prefix("s3")?.strip_prefix(['.', '-'])?;
    let region = rest.strip_prefix("dualstack.").unwrap_or(rest);
    (region.contains('-') && !region.contains('.')).then(|| region.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Result<Endpoint> {
        let mut config = S3Config::new("bucket");
        config.endpoint = Some(text.into());
        Endpoint::parse(&config)
    }

    #[test]
    fn a_clone_is_asked_by_path_and_amazon_by_host() {
        let clone = endpoint("http://127.0.0.1:3900/").unwrap();
        assert_eq!(clone.url.as_deref(), Some("http://127.0.0.1:3900"));
        assert!(clone.path_style && clone.plain && !clone.amazon);
        let amazon = endpoint("https://s3.eu-central-1.amazonaws.com").unwrap();
        assert!(!amazon.path_style && !amazon.plain && amazon.amazon);
        assert_eq!(amazon.region.as_deref(), Some("eu-central-1"));
        assert!(!Endpoint::parse(&S3Config::new("bucket")).unwrap().path_style);
    }

    #[test]
    fn an_explicit_style_and_region_win() {
        let mut config = S3Config::new("bucket");
        config.endpoint = Some("https://s3-eu-west-1.amazonaws.com".into());
        config.path_style = Some(true);
        config.region = Some("eu-west-3".into());
        let endpoint = Endpoint::parse(&config).unwrap();
        assert!(endpoint.path_style);
        assert_eq!(endpoint.region.as_deref(), Some("eu-west-3"));
    }

    #[test]
    fn regions_are_read_from_amazons_host_names_only() {
        for (host, region) in [
            ("s3.eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("s3-us-gov-west-1.amazonaws.com", Some("us-gov-west-1")),
            ("s3.dualstack.eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("s3.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("s3.amazonaws.com", None),
            ("s3.eu-west-1.example.com", None),
        ] {
            assert_eq!(region_of(host).as_deref(), region, "{host}");
        }
    }

    #[test]
    fn an_address_with_more_than_host_and_port_is_refused() {
        for (text, why) in [
            ("minio:9000", "scheme"),
            ("minio", "no URL"),
            ("ftp://minio", "scheme"),
            ("http://minio/bucket", "end after host"),
            ("http://minio/?x=1", "end after host"),
        ] {
            let e = endpoint(text).unwrap_err();
            assert_eq!(e.kind(), Kind::InvalidInput, "{text}");
            assert!(e.to_string().contains(why), "{text}: {e}");
        }
        let e = endpoint("http://key:hush@minio").unwrap_err();
        assert!(!e.to_string().contains("hush"), "{e}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_an_address_or_an_error(text in "\\PC*") {
            let _ = endpoint(&text);
        }
    }
}
