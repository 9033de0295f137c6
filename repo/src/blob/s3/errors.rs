//! From what the SDK reports to an error that says what is wrong and what to do. Every service words its refusals in its
//! own way, so the table goes by error code first, then by status, and the clock is looked at beside both.

use std::error::Error;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_types::date_time::{DateTime, Format};

use super::endpoint::Endpoint;
use crate::blob::network::{element, find, sort_failure};
use crate::error::{Kind, RepoError};

/// Difference between the clocks from which services refuse signatures (Amazon S3: `RequestTimeTooSkewed`).
const SKEW_MAX: Duration = Duration::from_secs(15 * 60);

/// Bytes of a refusal that are looked through and told.
const TOLD_MAX: usize = 4096;

/// Longest name of a region, in bytes: that of a part of a host name.
const REGION_LEN_MAX: usize = 63;

/// What is wrong, and the way out, when a lock is asked for and cannot be set.
pub(super) const NO_LOCK: &str = "the bucket has no object lock; use one made with object lock, or take the retention out of the repository's parameters";

/// The bucket, and who asks, for messages.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) bucket: String,
    pub(super) prefix: String,
    pub(super) endpoint: Endpoint,
    pub(super) region: String,
    /// Where the keys come from.
    pub(super) keys: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{} at {}", self.bucket, self.prefix, self.endpoint)
    }
}

/// What a request was for.
pub(super) struct Doing {
    /// "put blob p01".
    what: String,
    /// What the key must be allowed to do.
    needs: &'static str,
    /// When it began.
    since: Instant,
}

impl Doing {
    pub(super) fn new(what: impl Into<String>, needs: &'static str) -> Self {
        Self {
            what: what.into(),
            needs,
            since: Instant::now(),
        }
    }
}

/// What a service answered instead of doing it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    status: u16,
    /// Empty when the answer had none, as those to `HEAD`.
    code: String,
    message: String,
    /// Region named in the answer.
    region: Option<String>,
    /// What this host's clock is off by, when the answer had a date.
    skew: Duration,
}

impl Refusal {
    /// What `response` and the code and message found in it say.
    fn new(response: &HttpResponse, code: Option<&str>, message: Option<&str>) -> Self {
        let text = response.body().bytes().unwrap_or_default();
        let text = String::from_utf8_lossy(&text[..text.len().min(TOLD_MAX)]);
        let header = |name: &str| response.headers().get(name).map(str::to_owned);
        let message = match message {
            Some(message) => message.to_owned(),
            None => element(&text, "Message").unwrap_or_else(|| text.trim().to_owned()),
        };
        let date = header("date").and_then(|date| DateTime::from_str(&date, Format::HttpDate).ok());
        Self {
            status: response.status().as_u16(),
            code: code
                .map(str::to_owned)
                .or_else(|| element(&text, "Code"))
                .unwrap_or_default(),
            message,
            region: header("x-amz-bucket-region")
                .or_else(|| element(&text, "Region"))
                .filter(|region| is_region(region)),
            skew: date
                .and_then(|date| SystemTime::try_from(date).ok())
                .map(skew_to)
                .unwrap_or_default(),
        }
    }

    /// Whether the answer, as those to `HEAD`, does not say why.
    pub(super) fn is_bare(&self) -> bool {
        self.code.is_empty() && matches!(self.status, 300..=403)
    }

    /// Whether the service understood the request and does not want it; asking again is of no use.
    pub(super) fn is_final(&self) -> bool {
        matches!(self.status, 400..=499)
    }

    /// Whether the bytes and the checksum sent along did not fit together.
    pub(super) fn is_wrong_checksum(&self) -> bool {
        let code = self.code.as_str();
        matches!(
            code,
            "BadDigest" | "InvalidDigest" | "XAmzContentChecksumMismatch" | "XAmzContentSHA256Mismatch"
        )
    }

    /// Kind, and reason with the way out.
    fn sort(&self, doing: &Doing, place: &Place) -> (Kind, String) {
        let keys = &place.keys;
        let text = self.message.as_str();
        if matches!(
            self.code.as_str(),
            "RequestTimeTooSkewed" | "RequestInTheFuture" | "RequestExpired"
        ) || (matches!(self.status, 400 | 401 | 403) && self.skew > SKEW_MAX)
        {
            let seconds = self.skew.as_secs();
            return (
                Kind::Clock,
                format!(
                    "the clocks of this host and of the service are {seconds} s apart, and signatures are refused from {} s on; set this host's clock (NTP)",
                    SKEW_MAX.as_secs()
                ),
            );
        }
        let told = |kind, reason: &str| (kind, reason.to_owned());
        match self.code.as_str() {
            "InvalidAccessKeyId" | "InvalidClientTokenId" | "UnrecognizedClientException" => {
                (Kind::Credentials, unknown_key(keys))
            }
            "SignatureDoesNotMatch" | "InvalidSignature" => (Kind::Credentials, wrong_secret(keys)),
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => (
                Kind::Credentials,
                format!("the session token has expired ({keys}); get a new one"),
            ),
            "InvalidToken" | "MissingSecurityHeader" => {
                (Kind::Credentials, format!("the session token is not valid ({keys})"))
            }
            "NoSuchBucket" | "NoSuchBucketException" => (
                Kind::NoBucket,
                format!("there is no bucket {}; check its name, or create it", place.bucket),
            ),
            "InvalidBucketName" => (Kind::NoBucket, format!("{} is no name a bucket can have", place.bucket)),
            "NoSuchKey" | "NotFound" | "NoSuchVersion" => told(Kind::NotFound, "there is no such blob"),
            "InvalidObjectState" => told(
                Kind::Unsupported,
                "the blob is in an archive storage class; restore it there first",
            ),
            "InvalidBucketState" | "ObjectLockConfigurationNotFoundError" => (Kind::Unsupported, NO_LOCK.to_owned()),
            "InvalidRequest" if text.to_ascii_lowercase().contains("object lock") => {
                (Kind::Unsupported, NO_LOCK.to_owned())
            }
            "MethodNotAllowed" | "NotImplemented" => told(Kind::Unsupported, "the service does not do this"),
            "AccessDenied" | "Forbidden" | "AllAccessDisabled" | "UnauthorizedAccess" | "AccountProblem" => {
                self.denied(doing, place)
            }
            "QuotaExceeded"
            | "StorageFull"
            | "XMinioStorageFull"
            | "XMinioAdminBucketQuotaExceeded"
            | "InsufficientCapacity" => told(Kind::StorageFull, "the storage, or its quota, is full"),
            "SlowDown"
            | "SlowDownRead"
            | "SlowDownWrite"
            | "Throttling"
            | "ThrottlingException"
            | "ThrottledException"
            | "RequestThrottled"
            | "TooManyRequests"
            | "TooManyRequestsException"
            | "RequestLimitExceeded"
            | "Busy"
            | "ServiceUnavailable" => told(Kind::Throttled, "the service asks for fewer requests"),
            "InternalError"
            | "InternalServerError"
            | "OperationAborted"
            | "RequestTimeout"
            | "RequestTimeoutException"
            | "IncompleteBody"
            | "ServerNotInitialized"
            | "XMinioServerNotInitialized" => told(Kind::Unavailable, "the service failed in passing"),
            _ if self.is_wrong_checksum() => told(
                Kind::Unavailable,
                "the bytes that arrived do not fit their checksum: they were damaged on the way",
            ),
            _ if self.names_another_region() => (Kind::WrongRegion, self.wrong_region(place)),
            _ => self.sort_by_status(doing, place),
        }
    }

    fn sort_by_status(&self, doing: &Doing, place: &Place) -> (Kind, String) {
        let told = |kind, reason: &str| (kind, reason.to_owned());
        match self.status {
            400 if self.message.contains("HTTP request to an HTTPS server") => told(
                Kind::InvalidInput,
                "the service speaks TLS; write the endpoint with https://",
            ),
            401 | 403 => self.denied(doing, place),
            404 if self.code.is_empty() && !self.message.is_empty() => {
                told(Kind::Storage, "what answers is no S3 service; check the endpoint")
            }
            404 => told(Kind::NotFound, "there is no such blob"),
            405 | 501 => told(Kind::Unsupported, "the service does not do this"),
            408 | 500 | 502 | 504 => told(Kind::Unavailable, "the service failed in passing"),
            416 => told(Kind::Corrupt, "the blob ends before the range asked for"),
            429 | 503 => told(Kind::Throttled, "the service asks for fewer requests"),
            507 => told(Kind::StorageFull, "the storage is full"),
            300..400 => told(
                Kind::WrongRegion,
                "the service sends us elsewhere; check endpoint and region",
            ),
            _ => told(Kind::Storage, "the service refused"),
        }
    }

    /// Refused as not allowed. Garage says the same of keys it does not know and of wrong signatures.
    fn denied(&self, doing: &Doing, place: &Place) -> (Kind, String) {
        let text = self.message.to_ascii_lowercase();
        if text.contains("no such key") {
            (Kind::Credentials, unknown_key(&place.keys))
        } else if text.contains("signature") {
            (Kind::Credentials, wrong_secret(&place.keys))
        } else {
            let reason = format!(
                "access denied; the key lacks the permission {} on bucket {} ({})",
                doing.needs, place.bucket, place.keys
            );
            (Kind::Permission, reason)
        }
    }

    /// Whether the answer says that the bucket, or the signature, belongs to another region.
    fn names_another_region(&self) -> bool {
        matches!(
            self.code.as_str(),
            "AuthorizationHeaderMalformed"
                | "PermanentRedirect"
                | "TemporaryRedirect"
                | "Redirect"
                | "MovedPermanently"
                | "IllegalLocationConstraintException"
                | "InvalidRegion"
        ) || (matches!(self.status, 301 | 307 | 400) && self.code.is_empty() && self.region.is_some())
    }

    fn wrong_region(&self, place: &Place) -> String {
        match &self.region {
            Some(region) => format!(
                "the bucket is in region {region}, not {}; set region={region}",
                place.region
            ),
            None => format!("the bucket is not in region {}; set the region it is in", place.region),
        }
    }
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

/// Whether `text` can be the name of a region; it may become part of a host name.
fn is_region(text: &str) -> bool {
    let named = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    !text.is_empty() && text.len() <= REGION_LEN_MAX && text.bytes().all(named)
}

fn unknown_key(keys: &str) -> String {
    format!("the service does not know the access key ({keys})")
}

fn wrong_secret(keys: &str) -> String {
    format!("the secret does not belong to the access key ({keys})")
}

fn skew_to(other: SystemTime) -> Duration {
    let now = SystemTime::now();
    now.duration_since(other).unwrap_or_else(|e| e.duration())
}

/// The refusal that `e`, an error of this store, came from.
pub(super) fn refusal_in(e: &RepoError) -> Option<&Refusal> {
    e.source()?.downcast_ref()
}

/// The region that the bucket is in, when `e` came from asking in another.
pub(super) fn region_named(e: &RepoError) -> Option<String> {
    refusal_in(e)
        .filter(|refusal| refusal.names_another_region())?
        .region
        .clone()
}

/// What the service refused with, when it was the service that did.
fn refusal<E: ProvideErrorMetadata>(e: &SdkError<E, HttpResponse>) -> Option<Refusal> {
    match e {
        SdkError::ServiceError(e) if !e.raw().status().is_success() || e.err().code().is_some() => {
            Some(Refusal::new(e.raw(), e.err().code(), e.err().message()))
        }
        SdkError::ResponseError(e) if !e.raw().status().is_success() => Some(Refusal::new(e.raw(), None, None)),
        _ => None,
    }
}

impl Place {
    /// Why `doing` failed.
    pub(super) fn failed<E>(&self, doing: &Doing, e: SdkError<E, HttpResponse>) -> RepoError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        if let Some(refusal) = refusal(&e) {
            return self.refused(doing, refusal);
        }
        let (kind, reason) = self.sort_failure(doing, &e);
        let e: Box<dyn Error + Send + Sync> = match e {
            SdkError::DispatchFailure(_) | SdkError::ResponseError(_) | SdkError::ConstructionFailure(_) => {
                e.into_source().unwrap_or_else(|e| Box::new(e))
            }
            e => Box::new(e),
        };
        self.error(kind, doing, &reason).because(e)
    }

    /// Why `doing` was refused.
    fn refused(&self, doing: &Doing, refusal: Refusal) -> RepoError {
        let (kind, reason) = refusal.sort(doing, self);
        self.error(kind, doing, &reason).because(refusal)
    }

    /// `doing` failed with `kind`, for `reason`.
    pub(super) fn error(&self, kind: Kind, doing: &Doing, reason: &str) -> RepoError {
        RepoError::new(kind, format!("{} in {self}: {reason}", doing.what))
    }

    /// `doing` took longer than `limit`.
    pub(super) fn too_late(&self, doing: &Doing, limit: Duration) -> RepoError {
        self.error(
            Kind::Unavailable,
            doing,
            &format!("no whole answer within {} s", limit.as_secs_f32()),
        )
    }

    /// The body of an answer ended after `done` bytes of `len`.
    pub(super) fn cut_short(&self, doing: &Doing, done: u64, len: Option<u64>) -> RepoError {
        let of = len.map(|len| format!(" of {len}")).unwrap_or_default();
        self.error(
            Kind::Unavailable,
            doing,
            &format!("the answer was cut short: {done}{of} bytes arrived"),
        )
    }

    /// Kind and reason of a request that brought no answer.
    fn sort_failure(&self, doing: &Doing, e: &(dyn Error + 'static)) -> (Kind, String) {
        let tried = format!("tried for {:.1} s", doing.since.elapsed().as_secs_f32());
        if find::<CredentialsError>(e).is_some() {
            let kind = match find::<reqwest::Error>(e) {
                Some(_) => Kind::Unavailable,
                None => Kind::Credentials,
            };
            return (kind, format!("no keys were to be had from {} ({tried})", self.keys));
        }
        sort_failure(e, &self.endpoint, &tried)
    }
}
