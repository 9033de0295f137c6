//! From what the library reports to an error that says what is wrong and what to do.

use std::fmt;
use std::time::{Duration, Instant};

use super::wire::{Broken, Refusal};
use crate::blob::ObjectLock;
use crate::blob::network::{find, sort_failure};
use crate::error::{Kind, RepoError};

/// The bucket, and who asks, for messages.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// `gs://bucket/prefix/`.
    pub(super) address: String,
    /// Name of the bucket or container.
    pub(super) bucket: String,
    /// URL of the service.
    pub(super) endpoint: String,
    /// Where keys or tokens come from.
    pub(super) keys: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.address, self.endpoint)
    }
}

/// What a request was for.
pub(super) struct Doing {
    /// "put blob p01".
    what: String,
    /// What the identity must be allowed: "to read objects".
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

impl Refusal {
    /// Kind, and reason with the way out.
    fn sort(&self, doing: &Doing, place: &Place) -> (Kind, String) {
        let told = |kind, reason: &str| (kind, reason.to_owned());
        if let Some(host) = &self.tokens_from {
            return self.sort_token(host, &place.keys);
        }
        match self.code.as_str() {
            // Azure: the header that is signed tells the time.
            "AuthenticationFailed" if self.message.contains("date header") => told(
                Kind::Clock,
                "the clocks of this host and of the service are more than 15 min apart; set this host's clock (NTP)",
            ),
            "AuthorizationFailure" if self.message.contains("failed to authenticate") => self.not_accepted(place),
            "AuthenticationFailed"
            | "InvalidAuthenticationInfo"
            | "NoAuthenticationInformation"
            | "AuthenticationRequired"
            | "SignatureDoesNotMatch"
            | "InvalidSecurity"
            | "ExpiredToken" => self.not_accepted(place),
            "AccountIsDisabled" | "UserProjectAccountProblem" | "AccountProblem" => {
                told(Kind::Permission, "the account is disabled, or not paid for")
            }
            "AuthorizationFailure"
            | "AuthorizationPermissionMismatch"
            | "AuthorizationServiceMismatch"
            | "AuthorizationResourceTypeMismatch"
            | "AuthorizationProtocolMismatch"
            | "AuthorizationSourceIPMismatch"
            | "InsufficientAccountPermissions"
            | "AccessDenied"
            | "KeyBasedAuthenticationNotPermitted"
            | "PublicAccessNotPermitted" => self.denied(doing, place),
            "NoSuchBucket" | "ContainerNotFound" | "ContainerBeingDeleted" | "ContainerDisabled" => (
                Kind::NoBucket,
                format!(
                    "there is no bucket or container {}; check its name, or create it",
                    place.bucket
                ),
            ),
            "InvalidBucketName" | "InvalidResourceName" => {
                (Kind::NoBucket, format!("{} is no name one can have", place.bucket))
            }
            "NoSuchKey" | "BlobNotFound" => told(Kind::NotFound, "there is no such blob"),
            "BlobImmutableDueToPolicy"
            | "BlobImmutableDueToLegalHold"
            | "ObjectUnderActiveHold"
            | "RetentionPolicyNotMet" => told(
                Kind::Permission,
                "a retention or hold of the storage keeps the blob from being replaced or deleted",
            ),
            "BlobArchived" | "BlobBeingRehydrated" => told(
                Kind::Unsupported,
                "the blob is in an archive tier; bring it back from there first",
            ),
            "InvalidRange" => told(Kind::Corrupt, "the blob ends before the range asked for"),
            "ServerBusy" | "SlowDown" | "TooManyRequests" | "rateLimitExceeded" => {
                told(Kind::Throttled, "the service asks for fewer requests")
            }
            "InternalError" | "OperationTimedOut" | "RequestTimeout" | "BackendError" => {
                told(Kind::Unavailable, "the service failed in passing")
            }
            "BadDigest" | "InvalidDigest" | "Md5Mismatch" | "Crc64Mismatch" => told(
                Kind::Unavailable,
                "the bytes that arrived do not fit their checksum: they were damaged on the way",
            ),
            _ => self.sort_by_status(doing, place),
        }
    }

    fn sort_by_status(&self, doing: &Doing, place: &Place) -> (Kind, String) {
        let told = |kind, reason: &str| (kind, reason.to_owned());
        match self.status {
            401 => self.not_accepted(place),
            403 => self.denied(doing, place),
            404 => told(Kind::NotFound, "there is no such blob"),
            405 | 501 => told(Kind::Unsupported, "the service does not do this"),
            408 | 500 | 502 | 504 => told(Kind::Unavailable, "the service failed in passing"),
            416 => told(Kind::Corrupt, "the blob ends before the range asked for"),
            429 | 503 => told(Kind::Throttled, "the service asks for fewer requests"),
            507 => told(Kind::StorageFull, "the storage is full"),
            300..=399 => told(Kind::InvalidInput, "the service sends us elsewhere; check the endpoint"),
            _ => told(Kind::Storage, "the service refused"),
        }
    }

    fn not_accepted(&self, place: &Place) -> (Kind, String) {
        let keys = &place.keys;
        let reason = format!(
            "the service does not accept the key or token ({keys}): it is wrong, expired or of another account"
        );
        (Kind::Credentials, reason)
    }

    fn denied(&self, doing: &Doing, place: &Place) -> (Kind, String) {
        let reason = format!(
            "access denied; the identity lacks the permission {} in {} ({})",
            doing.needs, place.bucket, place.keys
        );
        (Kind::Permission, reason)
    }

    /// Refused by the service that hands out tokens.
    fn sort_token(&self, host: &str, keys: &str) -> (Kind, String) {
        match self.status {
            408 | 429 | 500..=504 => (
                Kind::Unavailable,
                format!("{host}, which hands out tokens, failed in passing"),
            ),
            _ if self.message.contains("iat") && self.message.contains("reasonable timeframe") => {
                let reason = format!("{host} finds this host's clock to be wrong; set it (NTP)");
                (Kind::Clock, reason)
            }
            _ => (
                Kind::Credentials,
                format!("{host} gave no token: the credentials ({keys}) are wrong, or were taken back"),
            ),
        }
    }
}

impl Place {
    /// Why `doing` failed.
    pub(super) fn failed(&self, doing: &Doing, e: object_store::Error) -> RepoError {
        if let Some(refusal) = find::<Refusal>(&e) {
            let (kind, reason) = refusal.sort(doing, self);
            return self.error(kind, doing, &reason).because(refusal.clone());
        }
        let tried = format!("tried for {:.1} s", doing.since.elapsed().as_secs_f32());
        let (kind, reason) = match find::<Broken>(&e).and_then(|broken| broken.tokens_from.as_ref()) {
            Some(host) => match sort_failure(&e, host, &tried) {
                // An instance that hands out tokens answers at once; elsewhere nobody has that address.
                (Kind::Unreachable, _) if is_instance(host) => (
                    Kind::Credentials,
                    format!(
                        "no credentials are set, and this host is no instance of the cloud that has an identity of its own; looked in {}",
                        self.keys
                    ),
                ),
                (kind, reason) => (kind, format!("asking for a token: {reason}")),
            },
            None => sort_failure(&e, &self.endpoint, &tried),
        };
        self.error(kind, doing, &reason).because(e)
    }

    /// `doing` failed with `kind`, for `reason`.
    pub(super) fn error(&self, kind: Kind, doing: &Doing, reason: &str) -> RepoError {
        RepoError::new(kind, format!("{} in {self}: {reason}", doing.what))
    }

    /// `doing` took longer than `limit`.
    pub(super) fn too_late(&self, doing: &Doing, limit: Duration) -> RepoError {
        let reason = format!("no whole answer within {} s", limit.as_secs_f32());
        self.error(Kind::Unavailable, doing, &reason)
    }

    /// The body of an answer ended after `done` bytes of `len`.
    pub(super) fn cut_short(&self, doing: &Doing, done: u64, len: u64) -> RepoError {
        let reason = format!("the answer was cut short: {done} of {len} bytes arrived");
        self.error(Kind::Unavailable, doing, &reason)
    }

    /// The refusal to lock blobs one by one.
    pub(super) fn no_locks(&self, lock: &ObjectLock) -> RepoError {
        let what = format!(
            "the repository asks for locks of mode {} on each blob, which this version cannot set in {self}; set a retention policy on the bucket or container instead, and take the retention out of the repository's parameters",
            lock.mode
        );
        RepoError::new(Kind::Unsupported, what)
    }
}

/// Whether `host` is where instances of Google and Azure get their tokens.
fn is_instance(host: &str) -> bool {
    matches!(host, "metadata.google.internal" | "169.254.169.254")
}

#[cfg(test)]
mod tests {
    use http::header::HeaderMap;

    use super::*;

    fn place() -> Place {
        Place {
            address: "gs://bucket/a/".into(),
            bucket: "bucket".into(),
            endpoint: "https://storage.example".into(),
            keys: "file /keys.json".into(),
        }
    }

    #[track_caller]
    fn check(status: u16, text: &str, kind: Kind, words: &[&str]) {
        let refusal = Refusal::new(status, &HeaderMap::new(), text, None);
        let (seen, reason) = refusal.sort(&Doing::new("put blob p01", "to create and replace objects"), &place());
        assert_eq!(seen, kind, "{status} {text}: {reason}");
        for word in words {
            assert!(reason.contains(word), "no {word:?} in {reason}");
        }
    }

    fn xml(code: &str, message: &str) -> String {
        format!("<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>")
    }

    #[test]
    fn refusals_are_told_apart() {
        check(404, &xml("NoSuchBucket", ""), Kind::NoBucket, &["bucket"]);
        check(404, &xml("ContainerNotFound", ""), Kind::NoBucket, &["bucket"]);
        check(404, &xml("NoSuchKey", ""), Kind::NotFound, &[]);
        check(404, "", Kind::NotFound, &[]);
        check(
            403,
            &xml("AccessDenied", ""),
            Kind::Permission,
            &["to create and replace objects", "/keys.json"],
        );
        check(
            403,
            &xml("AuthorizationPermissionMismatch", ""),
            Kind::Permission,
            &["bucket"],
        );
        check(
            403,
            &xml("AuthenticationFailed", "Server failed to authenticate"),
            Kind::Credentials,
            &["/keys.json"],
        );
        check(401, "", Kind::Credentials, &["/keys.json"]);
        check(
            403,
            &xml("AuthenticationFailed", "Request date header too old"),
            Kind::Clock,
            &["NTP"],
        );
        check(
            409,
            &xml("BlobImmutableDueToPolicy", ""),
            Kind::Permission,
            &["retention"],
        );
        check(409, &xml("BlobArchived", ""), Kind::Unsupported, &["archive"]);
        check(503, &xml("ServerBusy", ""), Kind::Throttled, &[]);
        check(503, "", Kind::Throttled, &[]);
        check(429, "", Kind::Throttled, &[]);
        check(500, &xml("InternalError", ""), Kind::Unavailable, &[]);
        check(502, "<html>", Kind::Unavailable, &[]);
        check(400, &xml("BadDigest", ""), Kind::Unavailable, &["damaged"]);
        check(416, "", Kind::Corrupt, &[]);
        check(301, "", Kind::InvalidInput, &["endpoint"]);
        check(418, "", Kind::Storage, &[]);
    }

    #[test]
    fn a_code_in_the_header_counts_where_there_is_no_body() {
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-error-code", "ContainerNotFound".parse().expect("a header"));
        let refusal = Refusal::new(404, &headers, "", None);
        assert_eq!(refusal.sort(&Doing::new("x", ""), &place()).0, Kind::NoBucket);
    }

    #[test]
    fn refusals_of_tokens_are_told_apart() {
        let sort = |status, text: &str| {
            let refusal = Refusal::new(status, &HeaderMap::new(), text, Some("tokens.example".into()));
            let (kind, reason) = refusal.sort(&Doing::new("x", ""), &place());
            assert!(reason.contains("tokens.example"), "{reason}");
            kind
        };
        let answer = |message: &str| format!(r#"{{"error":"invalid_grant","error_description":"{message}"}}"#);
        assert_eq!(sort(400, &answer("account not found")), Kind::Credentials);
        assert_eq!(sort(401, ""), Kind::Credentials);
        assert_eq!(
            sort(
                400,
                &answer(
                    "Invalid JWT: Token must be a short-lived token and in a reasonable timeframe. Check your iat and exp values"
                )
            ),
            Kind::Clock
        );
        assert_eq!(sort(503, ""), Kind::Unavailable);
    }

    proptest::proptest! {
        #[test]
        fn any_answer_has_a_kind(status: u16, text in ".{0,200}") {
            for text in [xml(&text, &text), text] {
                let refusal = Refusal::new(status, &HeaderMap::new(), &text, None);
                let (kind, _) = refusal.sort(&Doing::new("x", ""), &place());
                proptest::prop_assert!(kind != Kind::Cancelled);
            }
        }
    }
}
