//! Errors: the numbers that go to clients, which failure gets which, and the error of this crate.

use blockio::{BlockError, Kind};
use std::io;
use std::path::PathBuf;

/// An error as a client is told of it. There are no others on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// Not permitted: a write to a read-only export.
    Perm,
    /// The data could not be had, or is not certain to be durable.
    Io,
    /// The request makes no sense.
    Inval,
    /// No room, or a write past the end.
    NoSpc,
    /// More than fits into one chunk.
    Overflow,
    /// Zeros are not fast here.
    NotSup,
    /// The export is going away.
    Shutdown,
}

impl Errno {
    /// Its number.
    pub const fn code(self) -> u32 {
        match self {
            Errno::Perm => 1,
            Errno::Io => 5,
            Errno::Inval => 22,
            Errno::NoSpc => 28,
            Errno::Overflow => 75,
            Errno::NotSup => 95,
            Errno::Shutdown => 108,
        }
    }

    /// The number for a failure of a volume, and a text for the client: no path, no name, no key.
    pub fn of(error: &BlockError) -> (Self, &'static str) {
        match error.kind {
            Kind::NoSpace => (Errno::NoSpc, "no space left for what is written"),
            Kind::ReadOnly => (Errno::Perm, "the volume takes no writes"),
            Kind::OutOfRange => (Errno::Inval, "past the end of the volume"),
            Kind::Cancelled => (Errno::Shutdown, "the work was cancelled"),
            Kind::Stuck(_) => (Errno::Io, "no answer from where the data lies"),
            Kind::NotFound => (Errno::Io, "data of the volume is missing"),
            _ => (Errno::Io, "input/output error"),
        }
    }
}

/// Why a server could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The socket cannot be made.
    #[error("listen on {place}")]
    Listen {
        /// Path or address.
        place: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something else listens there.
    #[error("{0} is in use: something answers on it")]
    InUse(PathBuf),
    /// A path that holds something else.
    #[error("{0} exists and is not a socket; remove it or choose another path")]
    NotASocket(PathBuf),
    /// Certificates or keys that do not fit.
    #[error("set up TLS: {0}")]
    Tls(String),
    /// A name that cannot be an export's.
    #[error("invalid export name: {0}")]
    Name(&'static str),
    /// A name that is taken.
    #[error("an export named {0:?} exists")]
    Exists(String),
    /// A thread or the like that the system refused.
    #[error("{doing}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockio::Op;
    use std::path::Path;

    #[test]
    fn texts_for_clients_name_no_path() {
        let kinds = [
            Kind::NotFound,
            Kind::Io,
            Kind::Busy("/dev/sda".into()),
            Kind::Mounted("/mnt".into()),
            Kind::Short,
        ];
        for kind in kinds {
            let error = BlockError::new(Op::Read, kind).on(Path::new("/secret"));
            let (errno, text) = Errno::of(&error);
            assert_eq!(errno, Errno::Io);
            assert!(!text.contains('/') || text == "input/output error", "{text}");
        }
    }

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        assert_eq!(Errno::of(&BlockError::new(Op::Write, Kind::NoSpace)).0.code(), 28);
        assert_eq!(Errno::of(&BlockError::new(Op::Sync, Kind::Io)).0.code(), 5);
    }
}
