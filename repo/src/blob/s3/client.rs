//! The SDK's client, set up so that it does what is asked and nothing else: no retries, no checksums of its own, no
//! second guess about clocks.

use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Config, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};

use super::endpoint::Endpoint;
use super::transport::Transport;

/// A client for the service at `endpoint` that signs for `region` with keys from `credentials`, when there are any.
pub(super) fn client(
    endpoint: &Endpoint,
    region: &str,
    transport: Transport,
    credentials: Option<SharedCredentialsProvider>,
) -> Client {
    let mut builder = Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new(region.to_owned()))
        .http_client(transport)
        .force_path_style(endpoint.path_style)
        // `blob::retry` decides what is tried again, and limits of time are kept around whole requests.
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // Clones refuse or ignore the SDK's trailing checksums.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        // A clock that is off is told, not worked around: the repository's safety rests on times.
        .disable_clock_skew_correction(true);
    if let Some(url) = &endpoint.url {
        builder = builder.endpoint_url(url);
    }
    let config = match credentials {
        Some(credentials) => builder.credentials_provider(credentials).build(),
        None => builder.allow_no_auth().build(),
    };
    Client::from_conf(config)
}
