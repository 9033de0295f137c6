//! What ends a job, with the exit code it maps to.

use std::fmt::Write as _;

use blockio::BlockError;
use repo::RepoError;

/// Why a job ended without its result.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A device or file.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepoError),
    /// A service that tells changed blocks.
    #[error(transparent)]
    Changes(#[from] csi_glue::cbt::Refusal),
    /// A server of exports.
    #[error(transparent)]
    Serve(#[from] nbd::NbdError),
    /// A device of this host.
    #[error(transparent)]
    Attach(#[from] nbd::attach::AttachError),
    /// A file or folder that was to be written.
    #[error("{what}")]
    File {
        /// What was tried, on which path.
        what: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The user, or a signal, ended it. Nothing is half-published.
    #[error("cancelled; what was stored so far is kept and found again by the next run")]
    Cancelled,
    /// Bytes that are not what the snapshot says.
    #[error("{0}")]
    Damage(String),
    /// Something the user can put right.
    #[error("{0}")]
    Usage(String),
    /// Another process of ours says so.
    #[error("{error}")]
    Told {
        /// Its words.
        error: String,
        /// Its exit code.
        exit_code: u8,
    },
    /// A thread of ours stopped on a broken assumption.
    #[error("internal error: {0}")]
    Panic(String),
}

/// Result of a step of a job.
pub type Result<T, E = JobError> = std::result::Result<T, E>;

impl JobError {
    /// Exit code of the command line.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Cancelled => 3,
            Self::Told { exit_code, .. } => *exit_code,
            Self::Damage(_) => 4,
            Self::Changes(csi_glue::cbt::Refusal::Cancelled) => 3,
            Self::Changes(csi_glue::cbt::Refusal::Setting(_)) => 2,
            Self::Attach(
                nbd::attach::AttachError::Fragile(_)
                | nbd::attach::AttachError::Identifier(_)
                | nbd::attach::AttachError::OddSize { .. },
            ) => 2,
            Self::Serve(nbd::NbdError::Name(_) | nbd::NbdError::Exists(_) | nbd::NbdError::Tls(_)) => 2,
            Self::Repository(e) if e.kind() == repo::Kind::Cancelled => 3,
            Self::Repository(e) if e.is_damage() => 4,
            Self::Repository(e) if e.kind() == repo::Kind::InvalidInput => 2,
            Self::Block(e) if matches!(e.kind, blockio::Kind::Cancelled) => 3,
            Self::Block(e) if matches!(e.kind, blockio::Kind::InvalidInput(_)) => 2,
            _ => 1,
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The first error of several threads, panics included; a cancellation only when nothing else went wrong.
pub(crate) fn first_error(results: impl IntoIterator<Item = std::thread::Result<Result<()>>>) -> Result<()> {
    let mut first = Ok(());
    for result in results {
        let result = result.unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            Err(JobError::Panic(text.unwrap_or("a worker panicked").to_string()))
        });
        match (&first, &result) {
            (Ok(()), Err(_)) => first = result,
            (Err(JobError::Cancelled), Err(e)) if !matches!(e, JobError::Cancelled) => first = result,
            _ => {}
        }
    }
    first
}
