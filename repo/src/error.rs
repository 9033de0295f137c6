//! The one error type of this crate: a kind to match on, what it happened to, and the cause.

use std::fmt;
use std::io;

/// Why an operation on a repository failed, and on what.
///
/// `Display` names the thing and the way out; the cause is in [`std::error::Error::source`].
#[derive(Debug)]
pub struct RepoError {
    kind: Kind,
    what: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What went wrong, as callers need to tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The named blob, content, object or manifest does not exist.
    NotFound,
    /// No repository at this place.
    NotARepository,
    /// A repository or file exists where none may be.
    AlreadyExists,
    /// The password does not open the repository.
    WrongPassword,
    /// Bytes that are not what the format says: damage, truncation, or a forged blob.
    Corrupt,
    /// Valid, but made with something this version does not do.
    Unsupported,
    /// The repository is locked for an upgrade.
    Locked,
    /// The clock of this host and of the storage differ too much to write safely.
    Clock,
    /// The storage has no room left.
    StorageFull,
    /// The storage refused access.
    Permission,
    /// The storage failed in another way.
    Storage,
    /// The storage cannot be reached: no such host, connection refused, no route.
    Unreachable,
    /// The storage failed in passing: an internal error of the service, a broken connection, a time-out, a body cut short.
    Unavailable,
    /// The storage asks for fewer requests.
    Throttled,
    /// The storage does not know the key, or the signature, token or secret is wrong or out of date.
    Credentials,
    /// The bucket or container does not exist.
    NoBucket,
    /// The bucket is in another region than the one asked.
    WrongRegion,
    /// The certificate of the storage is not trusted.
    Certificate,
    /// The caller gave something that cannot be used.
    InvalidInput,
    /// Another client, or another process of this host, is at the same work.
    Busy,
    /// The operation was cancelled.
    Cancelled,
}

impl RepoError {
    /// An error of `kind` about `what` (a sentence fragment that names the thing, the place and the way out).
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            source: None,
        }
    }

    /// Damage found in `what`.
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, what)
    }

    /// The same error with its cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// An error of the storage, sorted into a kind by its `io::ErrorKind`.
    pub fn storage(what: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::NotFound => Kind::NotFound,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::StorageFull,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Kind::Permission,
            _ => Kind::Storage,
        };
        Self::new(kind, what).because(source)
    }

    /// The repository error that passed through an `io::Read`, or damage found by the reader itself.
    pub(crate) fn from_read(e: io::Error, what: &str) -> Self {
        match e.downcast::<Self>() {
            Ok(e) => e.context(what),
            Err(e) => Self::corrupt(what).because(e),
        }
    }

    /// The same error, told with where it was met: `"{context}: {what}"`.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.what = format!("{context}: {}", self.what);
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What it happened to.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The thing asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        self.kind == Kind::NotFound
    }

    /// Bytes in the repository are damaged.
    pub fn is_damage(&self) -> bool {
        self.kind == Kind::Corrupt
    }
}

impl fmt::Display for RepoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for RepoError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

/// Result of an operation on a repository.
pub type Result<T, E = RepoError> = std::result::Result<T, E>;
