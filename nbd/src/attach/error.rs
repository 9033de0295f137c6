//! Why a volume is not attached, or not detached.

use super::holders::Holder;
use super::{Kind, Missing};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a volume could not be attached to the kernel, or not be detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// This kind was asked for, and the host lacks something. Says what works instead.
    #[error("no {kind} device here: {}; {}", Listed(missing), instead(usable))]
    Unavailable {
        /// What was asked for.
        kind: Kind,
        /// What it needs and does not find.
        missing: Vec<Missing>,
        /// Kinds that can be had.
        usable: Vec<Kind>,
    },
    /// No kind can be had.
    #[error("no block device can be made here: {}; {}", Reasons(.0), instead(&[]))]
    NoKind(Vec<(Kind, Vec<Missing>)>),
    /// Blocks of a size that devices do not have.
    #[error("the volume has logical blocks of {0} bytes; a device has 512, 1024, 2048 or 4096")]
    Block(u32),
    /// Half a block at the end of a volume that takes writes.
    #[error(
        "the volume has {size} bytes, which are not whole blocks of {block} bytes; round it up to attach it for writing"
    )]
    OddSize {
        /// Bytes of the volume.
        size: u64,
        /// Bytes of its logical block.
        block: u32,
    },
    /// Nothing to attach.
    #[error("the volume is empty")]
    Empty,
    /// A name that cannot be shown by the kernel.
    #[error("invalid identifier {0:?}: 1 to 60 letters, digits, dots, dashes and underscores are one")]
    Identifier(String),
    /// A device of this kind dies with its server, and writes that were not flushed with it.
    #[error("a {0} device does not survive the death of its server; attach it read-only, or say that this is accepted")]
    Fragile(Kind),
    /// Somebody uses the device.
    #[error("{} is in use by {}; release it first", device.display(), Listed(holders))]
    Busy {
        /// The device.
        device: PathBuf,
        /// By whom, as far as can be seen.
        holders: Vec<Holder>,
    },
    /// The volume does not answer.
    #[error("{}: the volume did not answer for {} s; what is written may not be durable", device.display(), waited.as_secs())]
    Stuck {
        /// The device.
        device: PathBuf,
        /// For so long.
        waited: Duration,
    },
    /// The device is not the one that was meant.
    #[error("{} serves {found}, not {expected}", device.display())]
    Foreign {
        /// The device.
        device: PathBuf,
        /// What was meant.
        expected: String,
        /// What it says it is.
        found: String,
    },
    /// A process that lives serves the device of this identifier.
    #[error("{identifier} is being served{}", By(*process))]
    Served {
        /// What was asked for.
        identifier: String,
        /// By which process, as it saw its own number.
        process: Option<u32>,
    },
    /// A device of this identifier is there, and its server is not.
    #[error("{} of an earlier {identifier} is still there; adopt or reclaim it", device.display())]
    Left {
        /// What was asked for.
        identifier: String,
        /// The device.
        device: PathBuf,
    },
    /// A volume that is smaller than its device.
    #[error("the volume has {new} bytes, less than the {old} of its device; devices only grow")]
    Shrunk {
        /// Bytes of the device.
        old: u64,
        /// Bytes of the volume.
        new: u64,
    },
    /// This kernel cannot change the size of such a device while it is there.
    #[error("this kernel cannot grow {}; detach it and attach it again", device.display())]
    CannotGrow {
        /// The device.
        device: PathBuf,
    },
    /// The kernel said something that its documentation does not know.
    #[error("message of the kernel: {0}")]
    Message(&'static str),
    /// A call of the system failed.
    #[error("{doing}")]
    System {
        /// What was tried.
        doing: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl AttachError {
    /// An error of the system while `doing` something, for `map_err`.
    pub(super) fn system<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            doing: doing.into(),
            source: source.into(),
        }
    }

    /// Somebody uses the device; it may be free later.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }
}

struct By(Option<u32>);

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |process| write!(f, " by process {process}"))
    }
}

struct Listed<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Listed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, item) in self.0.iter().enumerate() {
            write!(f, "{}{item}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

struct Reasons<'a>(&'a [(Kind, Vec<Missing>)]);

impl fmt::Display for Reasons<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (kind, missing)) in self.0.iter().enumerate() {
            write!(f, "{}{kind}: {}", if at == 0 { "" } else { "; " }, Listed(missing))?;
        }
        Ok(())
    }
}

/// What the one who asked can do instead.
fn instead(usable: &[Kind]) -> String {
    if usable.is_empty() {
        "serving to NBD clients over a socket needs none of these".to_owned()
    } else {
        format!(
            "{} can be had, and serving to NBD clients over a socket",
            Listed(usable)
        )
    }
}
