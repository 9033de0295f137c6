//! HTTP for the SDK.
//!
//! The SDK's own client offers HTTP/2, which sends all packs over one connection and one flow-control window, and has no
//! way to skip the check of certificates. `reqwest`, which the other object stores use as well, does both as wanted.

use std::fmt;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use http_body_util::Limited;
use reqwest::{Client, Method};

use super::config::S3Config;
use crate::blob::GET_LEN_MAX;
use crate::blob::network::Connections;
use crate::error::Result;

/// Longest answer taken that is not a blob, in bytes: a page of 1,000 keys of 1 KiB, each byte told as `%XX`, is 3 MiB.
const ANSWER_LEN_MAX: usize = 16 << 20;

/// A pool of connections.
#[derive(Clone)]
pub(super) struct Transport(Client);

impl Transport {
    /// Connections to the bucket of `config`. `plain` is for a service without TLS.
    pub(super) fn new(config: &S3Config, plain: bool) -> Result<Self> {
        Self::build(config, plain, config.skip_tls_verify)
    }

    /// Connections to the services that hand out credentials, whose certificates are always checked.
    pub(super) fn for_credentials(config: &S3Config) -> Result<Self> {
        // A host without the system's certificates can still use keys from a file; where TLS is needed it is told then.
        Self::build(config, false, false).or_else(|_| Self::build(config, true, false))
    }

    fn build(config: &S3Config, plain: bool, skip_verify: bool) -> Result<Self> {
        let connections = Connections {
            ca: config.ca.as_deref(),
            connect_timeout: config.deadlines.connect,
            plain,
            skip_verify,
        };
        connections.client().map(Self)
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transport")
    }
}

impl HttpClient for Transport {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Transport {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|e| ConnectorError::user(e.into()))?;
            let is_blob =
                request.method() == Method::GET && !request.uri().query().is_some_and(|q| q.contains("list-type="));
            let request = reqwest::Request::try_from(request.map(reqwest::Body::wrap)).map_err(told)?;
            let response: http::Response<reqwest::Body> = client.execute(request).await.map_err(told)?.into();
            let limit = match is_blob && response.status().is_success() {
                true => usize::try_from(GET_LEN_MAX).unwrap_or(usize::MAX),
                false => ANSWER_LEN_MAX,
            };
            let response = response.map(|body| SdkBody::from_body_1_x(Limited::new(body, limit)));
            HttpResponse::try_from(response).map_err(|e| ConnectorError::other(e.into(), None))
        })
    }
}

/// The error as the SDK carries it. Its source stays a `reqwest::Error`, which says whether a connection was made.
fn told(e: reqwest::Error) -> ConnectorError {
    let e = e.without_url();
    match e.is_timeout() {
        true => ConnectorError::timeout(e.into()),
        false => ConnectorError::io(e.into()),
    }
}
