//! Connections for the library, and its window on answers: what is refused comes out as a [`Refusal`] that tells status, code
//! and text, which the library's own errors keep to themselves.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, Uri};
use http_body_util::{BodyExt, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use reqwest::{Client, Method};

use crate::blob::network::{Connections, element};
use crate::blob::{Ca, Deadlines};
use crate::error::{Kind, RepoError, Result};

/// Longest answer taken that is not a blob, in bytes: a page of 5,000 names (Azure) of 1 KiB each, with what is told of them.
const ANSWER_LEN_MAX: usize = 16 << 20;

/// Bytes of a refusal that are read and told.
const REFUSAL_LEN_MAX: usize = 16 << 10;

/// Headers that go along with a put, beside the library's: an extension of its request.
#[derive(Clone, Debug, Default)]
pub(super) struct PutHeaders(pub(super) Vec<(HeaderName, HeaderValue)>);

/// Connections to a storage, and to the services that hand out tokens for it.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    storage: Client,
    authority: Authority,
    /// Their certificates are always checked.
    tokens: Arc<OnceLock<Result<Client, String>>>,
    ca: Option<Vec<u8>>,
    connect_timeout: Duration,
}

impl Wire {
    /// Connections to the service at `endpoint`.
    pub(super) fn new(endpoint: &str, ca: Option<&Ca>, skip_verify: bool, deadlines: &Deadlines) -> Result<Self> {
        let bad = || RepoError::new(Kind::InvalidInput, format!("endpoint {endpoint:?} is no URL"));
        let uri: Uri = endpoint.parse().map_err(|e| bad().because(e))?;
        let authority = uri.authority().cloned().ok_or_else(bad)?;
        let plain = uri.scheme_str() == Some("http");
        if skip_verify && !plain {
            tracing::warn!(%authority, "the certificate of the storage is not checked: whoever is in between can read keys and change data");
        }
        let ca = ca.map(Ca::read).transpose()?;
        let connections = Connections {
            ca: ca.as_deref(),
            connect_timeout: deadlines.connect,
            plain,
            skip_verify,
        };
        Ok(Self {
            storage: connections.client()?,
            authority,
            tokens: Arc::default(),
            ca,
            connect_timeout: deadlines.connect,
        })
    }

    fn tokens(&self) -> Result<Client, HttpError> {
        let made = self.tokens.get_or_init(|| {
            let connections = Connections {
                ca: self.ca.as_deref(),
                connect_timeout: self.connect_timeout,
                plain: false,
                skip_verify: false,
            };
            connections.client().map_err(|e| e.to_string())
        });
        made.clone()
            .map_err(|what| HttpError::new(HttpErrorKind::Connect, RepoError::new(Kind::Certificate, what)))
    }

    async fn send(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if let Some(PutHeaders(headers)) = request.extensions_mut().remove::<PutHeaders>() {
            request.headers_mut().extend(headers);
        }
        let host = request.uri().authority().cloned();
        let is_storage = host.as_ref() == Some(&self.authority);
        let is_list = |query: &str| query.contains("list-type=") || query.contains("comp=list");
        let is_blob = is_storage && request.method() == Method::GET && !request.uri().query().is_some_and(is_list);
        let client = match is_storage {
            true => self.storage.clone(),
            false => self.tokens()?,
        };
        let tokens_from = host.filter(|_| !is_storage).map(|host| host.host().to_owned());
        let response = match HttpService::call(&client, request).await {
            Ok(response) => response,
            Err(e) => {
                return Err(HttpError::new(e.kind(), Broken { tokens_from, source: e }));
            }
        };
        if response.status().is_success() {
            return Ok(match is_blob {
                true => response,
                false => response.map(limited),
            });
        }
        let refusal = Refusal::read(response, tokens_from).await;
        Err(HttpError::new(HttpErrorKind::Unknown, refusal))
    }
}

/// `body`, which ends with an error when it is longer than an answer may be.
fn limited(body: HttpResponseBody) -> HttpResponseBody {
    let body = Limited::new(body, ANSWER_LEN_MAX);
    HttpResponseBody::new(body.map_err(|e| HttpError::new_boxed(HttpErrorKind::Decode, e)))
}

impl HttpService for Wire {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(self.send(request))
    }
}

impl HttpConnector for Wire {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// A request that brought no answer.
#[derive(Debug)]
pub(super) struct Broken {
    /// Host of the service that was asked for a token, when it was not the storage.
    pub(super) tokens_from: Option<String>,
    source: HttpError,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)
    }
}

impl Error for Broken {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

/// What a service answered instead of doing it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// Empty when the answer had none.
    pub(super) code: String,
    pub(super) message: String,
    /// Host of the service that was asked for a token, when it was not the storage.
    pub(super) tokens_from: Option<String>,
}

impl Refusal {
    async fn read(response: HttpResponse, tokens_from: Option<String>) -> Self {
        let (parts, body) = response.into_parts();
        let text = read_text(body).await;
        Self::new(parts.status.as_u16(), &parts.headers, &text, tokens_from)
    }

    pub(super) fn new(status: u16, headers: &HeaderMap, text: &str, tokens_from: Option<String>) -> Self {
        let code = headers.get("x-ms-error-code").and_then(|code| code.to_str().ok());
        let json = |key: &str| json_text(text, key);
        let code = code
            .map(str::to_owned)
            .or_else(|| element(text, "Code"))
            .or_else(|| json("error"));
        let message = element(text, "Message").map(|message| match element(text, "Details") {
            Some(details) => format!("{message} {details}"),
            None => message,
        });
        let message = message.or_else(|| json("error_description"));
        Self {
            status,
            code: code.unwrap_or_default(),
            message: message.unwrap_or_else(|| text.trim().to_owned()),
            tokens_from,
        }
    }
}

/// The beginning of a body; what breaks off is enough.
async fn read_text(body: HttpResponseBody) -> String {
    let mut text = Vec::new();
    let mut body = body.bytes_stream();
    while let Some(Ok(piece)) = std::future::poll_fn(|context| body.as_mut().poll_next(context)).await {
        text.extend_from_slice(&piece[..piece.len().min(REFUSAL_LEN_MAX - text.len())]);
        if text.len() == REFUSAL_LEN_MAX {
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Text `key` of a flat JSON object, as services that hand out tokens answer.
fn json_text(text: &str, key: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    Some(value.get(key)?.as_str()?.to_owned())
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {}", self.status)?;
        for part in [&self.code, &self.message].into_iter().filter(|part| !part.is_empty()) {
            write!(f, ", {part}")?;
        }
        Ok(())
    }
}

impl Error for Refusal {}
