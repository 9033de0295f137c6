//! Who we are: keys given, a file with profiles, or the default chain of AWS.

use std::fs::File;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::config::Region;

use super::config::{Credentials, S3Config};
use super::transport::Transport;
use crate::blob::bridge::Bridge;
use crate::error::{Kind, RepoError, Result};

/// The source of keys that `config` asks for; `None` leaves requests unsigned. Roles are taken on in `region`.
pub(super) fn provider(config: &S3Config, region: &str, bridge: &Bridge) -> Result<Option<SharedCredentialsProvider>> {
    let (file, profile) = match &config.credentials {
        Credentials::Anonymous => return Ok(None),
        Credentials::Static { key_id, secret, token } => {
            let token = token.as_ref().map(|token| token.as_str().to_owned());
            let keys = aws_credential_types::Credentials::new(key_id, secret.as_str(), token, None, "settings");
            return Ok(Some(SharedCredentialsProvider::new(keys)));
        }
        Credentials::Chain { file, profile } => (file, profile),
    };
    let surroundings = ProviderConfig::without_region()
        .with_region(Some(Region::new(region.to_owned())))
        .with_http_client(Transport::for_credentials(config)?);
    let Some(file) = file else {
        let mut chain = DefaultCredentialsChain::builder()
            .configure(surroundings)
            .region(Region::new(region.to_owned()));
        if let Some(profile) = profile {
            chain = chain.profile_name(profile);
        }
        let chain = bridge.wait(chain.build());
        return Ok(Some(SharedCredentialsProvider::new(chain)));
    };
    File::open(file).map_err(|e| {
        RepoError::new(Kind::Credentials, format!("open credentials file {}", file.display())).because(e)
    })?;
    // One file may be written in either style: `[name]` with keys, or `[profile name]` with roles.
    let files = EnvConfigFiles::builder()
        .with_file(EnvConfigFileKind::Config, file)
        .with_file(EnvConfigFileKind::Credentials, file)
        .build();
    let provider = ProfileFileCredentialsProvider::builder()
        .configure(&surroundings)
        .profile_files(files)
        .profile_name(profile.as_deref().unwrap_or("default"))
        .build();
    Ok(Some(SharedCredentialsProvider::new(provider)))
}

/// Where the keys come from, for messages.
pub(super) fn told(credentials: &Credentials) -> String {
    match credentials {
        Credentials::Anonymous => "no keys: requests are not signed".into(),
        Credentials::Static { key_id, .. } => format!("access key {key_id}"),
        Credentials::Chain {
            file: None,
            profile: None,
        } => "the default chain: environment, shared files, web identity, container and instance role".into(),
        Credentials::Chain {
            file: None,
            profile: Some(profile),
        } => format!("profile {profile}"),
        Credentials::Chain {
            file: Some(file),
            profile,
        } => {
            format!(
                "profile {} of {}",
                profile.as_deref().unwrap_or("default"),
                file.display()
            )
        }
    }
}
