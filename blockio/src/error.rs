//! The one error type of this crate: a kind to match on, what it happened to, and the cause.

use crate::control::Cancelled;
use crate::extent::Extent;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why an operation on a volume failed, and on what. The cause is in [`std::error::Error::source`], not in the text.
#[derive(Debug)]
pub struct BlockError {
    /// What went wrong.
    pub kind: Kind,
    /// What was tried.
    pub op: Op,
    /// On which bytes, where that is known.
    pub extent: Option<Extent>,
    /// On which device, file or thing. Empty where there is none.
    pub path: PathBuf,
    source: Option<io::Error>,
}

/// What went wrong, as callers need to tell it apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Kind {
    /// No such device or file.
    #[error("not found")]
    NotFound,
    /// Neither a block device nor a regular file; says what it is.
    #[error("neither a block device nor a regular file, but {0}")]
    NotADevice(String),
    /// In use; says by whom, where that is known.
    #[error("in use by {0}; release it first")]
    Busy(String),
    /// Mounted; says where.
    #[error("mounted at {0}; unmount it first")]
    Mounted(String),
    /// The device, or its file system, takes no writes.
    #[error("read-only")]
    ReadOnly,
    /// The kernel refused access.
    #[error("permission denied")]
    Permission,
    /// The device failed.
    #[error("input/output error")]
    Io,
    /// Fewer bytes than the volume has there, although its size is as it was.
    #[error("the device gave or took fewer bytes than it has there")]
    Short,
    /// The volume became smaller while it was open.
    #[error("the volume shrank from {was} to {is} bytes while it was open")]
    Shrunk {
        /// Bytes when it was opened.
        was: u64,
        /// Bytes at the time of the error.
        is: u64,
    },
    /// Bytes that the volume does not have.
    #[error("past the end of the volume")]
    OutOfRange,
    /// No answer from the device for this many seconds.
    #[error("no answer from the device for {0} s; the buffer of the request stays reserved")]
    Stuck(u64),
    /// No room on the device or file system.
    #[error("no space left")]
    NoSpace,
    /// The host, kernel or device cannot do it; says what.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The caller gave something that cannot be used; says what.
    #[error("invalid: {0}")]
    InvalidInput(String),
}

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Open or create.
    Open,
    /// Ask for size, geometry, identity.
    Stat,
    /// Read.
    Read,
    /// Write.
    Write,
    /// Make zero.
    Zero,
    /// Make durable.
    Sync,
    /// Map or register memory; list extents.
    Map,
}

impl BlockError {
    /// An error of `kind` while doing `op`.
    pub fn new(op: Op, kind: Kind) -> Self {
        Self {
            kind,
            op,
            extent: None,
            path: PathBuf::new(),
            source: None,
        }
    }

    /// An error of the operating system while doing `op`, sorted into a kind.
    pub fn from_io(op: Op, source: io::Error) -> Self {
        Self {
            source: Some(source),
            ..Self::new(op, Kind::Io)
        }
        .sorted()
    }

    /// The same error, about `path`.
    #[must_use]
    pub fn on(mut self, path: &Path) -> Self {
        self.path = path.to_owned();
        self
    }

    /// The same error, about these bytes.
    #[must_use]
    pub fn at(mut self, extent: Extent) -> Self {
        self.extent = Some(extent);
        self
    }

    /// The same error with its cause.
    #[must_use]
    pub fn because(mut self, source: io::Error) -> Self {
        self.source = Some(source);
        self
    }

    /// Worth trying again as is; the job decides how often.
    pub fn is_transient(&self) -> bool {
        let transient_cause = self.source.as_ref().is_some_and(|e| {
            use io::ErrorKind as E;
            matches!(e.kind(), E::Interrupted | E::WouldBlock | E::TimedOut | E::OutOfMemory)
        });
        matches!(self.kind, Kind::Busy(_)) || (self.kind == Kind::Io && transient_cause)
    }

    fn sorted(mut self) -> Self {
        use io::ErrorKind as E;
        let Some(source) = &self.source else { return self };
        self.kind = match source.kind() {
            E::NotFound => Kind::NotFound,
            E::ResourceBusy => Kind::Busy("another user".to_owned()),
            E::ReadOnlyFilesystem => Kind::ReadOnly,
            E::PermissionDenied => Kind::Permission,
            E::StorageFull | E::QuotaExceeded => Kind::NoSpace,
            E::UnexpectedEof => Kind::Short,
            E::Unsupported => Kind::Unsupported(source.to_string()),
            _ => Kind::Io,
        };
        self
    }
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.op)?;
        if let Some(extent) = self.extent {
            write!(f, " {extent}")?;
        }
        if !self.path.as_os_str().is_empty() {
            write!(f, " on {}", self.path.display())?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl std::error::Error for BlockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}

impl From<Cancelled> for BlockError {
    fn from(_: Cancelled) -> Self {
        Self::new(Op::Map, Kind::Cancelled)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Open => "open",
            Op::Stat => "stat",
            Op::Read => "read",
            Op::Write => "write",
            Op::Zero => "zero",
            Op::Sync => "sync",
            Op::Map => "map",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

    #[test]
    fn the_text_names_what_where_and_why() {
        let error = BlockError::from_io(Op::Read, io::Error::from_raw_os_error(5))
            .on(Path::new("/dev/sdb"))
            .at(Extent {
                offset: 1 << 20,
                len: 4096,
            });
        assert_eq!(error.to_string(), "read 1048576+4096 on /dev/sdb: input/output error");
        assert!(
            error.source().unwrap().to_string().contains("os error 5"),
            "the cause is kept, not repeated"
        );
        assert!(!error.is_transient());
    }

    #[test]
    fn numbers_of_the_system_are_sorted_into_kinds() {
        let kind = |errno| BlockError::from_io(Op::Open, io::Error::from_raw_os_error(errno)).kind;
        assert_eq!(kind(2), Kind::NotFound);
        assert!(matches!(kind(16), Kind::Busy(_)));
        assert_eq!(kind(30), Kind::ReadOnly);
        assert_eq!(kind(1), Kind::Permission);
        assert_eq!(kind(13), Kind::Permission);
        assert_eq!(kind(28), Kind::NoSpace);
        assert!(matches!(kind(95), Kind::Unsupported(_)));
        assert_eq!(kind(5), Kind::Io);
    }

    #[test]
    fn only_what_may_pass_by_itself_is_transient() {
        let transient = |errno| BlockError::from_io(Op::Read, io::Error::from_raw_os_error(errno)).is_transient();
        assert!(transient(4) && transient(11) && transient(16) && transient(110));
        assert!(!transient(5) && !transient(28) && !transient(2));
    }
}
