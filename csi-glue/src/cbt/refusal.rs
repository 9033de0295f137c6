//! Why there is no answer, in the words of the one who decides what to do instead.

use std::time::Duration;

use tonic::Code;

use super::machine::Call;
use super::page::Malformed;

/// What of the contract a service broke. It may also have left something out, so nothing it said counts as complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Bytes that are no message.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Blocks of a style that does not exist.
    #[error("blocks of style {0}; there are 1 and 2")]
    Style(u64),
    /// The style changed.
    #[error("the style of blocks changed from {was} to {is}")]
    StyleChanged {
        /// As first told.
        was: u64,
        /// As told now.
        is: u64,
    },
    /// A capacity that no volume has.
    #[error("a volume of {0} bytes")]
    Capacity(i64),
    /// The capacity changed.
    #[error("the capacity of the volume changed from {was} to {is} bytes")]
    CapacityChanged {
        /// As first told.
        was: u64,
        /// As told now.
        is: u64,
    },
    /// A block with a negative number, of no bytes, or with an end past the largest number.
    #[error("block {index}: {size} bytes at {offset}")]
    Block {
        /// Blocks received before.
        index: u64,
        /// As told.
        offset: i64,
        /// As told.
        size: i64,
    },
    /// A block that begins before the one before it ended.
    #[error("block {index} begins at {offset}, before {end}, where the one before it ends")]
    Order {
        /// Blocks received before.
        index: u64,
        /// Where it begins.
        offset: u64,
        /// Where the one before it ends.
        end: u64,
    },
    /// The first block of a stream that was asked to begin behind it.
    #[error("block {index} ends at {end}, but the stream was asked to begin at {start}")]
    BeforeStart {
        /// Blocks received before.
        index: u64,
        /// Where it ends.
        end: u64,
        /// What was asked for.
        start: u64,
    },
    /// A block of another size than the others, where all are of one size.
    #[error("block {index} has {size} bytes, the others have {fixed}")]
    FixedSize {
        /// Blocks received before.
        index: u64,
        /// Its size.
        size: u64,
        /// That of the others.
        fixed: u64,
    },
    /// A block that begins at or reaches past the end of the volume, where that is not allowed.
    #[error("block {index}, {size} bytes at {offset}, is past the end of the volume of {capacity} bytes")]
    PastEnd {
        /// Blocks received before.
        index: u64,
        /// Where it begins.
        offset: u64,
        /// Its size.
        size: u64,
        /// Bytes of the volume.
        capacity: u64,
    },
    /// More blocks than fit in the volume.
    #[error("more than {0} blocks, which is more than the volume has")]
    Blocks(u64),
    /// Messages without a block, without end.
    #[error("more than {0} messages without a block")]
    IdleMessages(u64),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// NOT_FOUND on a delta: most often the base is gone.
    #[error("the storage does not know the base or the snapshot: {0}")]
    BaseGone(String),
    /// NOT_FOUND on the allocated blocks.
    #[error("the storage does not know the snapshot: {0}")]
    SnapshotGone(String),
    /// FAILED_PRECONDITION.
    #[error("the storage does not track changed blocks of this volume: {0}")]
    TrackingOff(String),
    /// INVALID_ARGUMENT: also snapshots of two volumes, and volumes with a file system in some drivers.
    #[error("the service does not accept the question: {0}")]
    Rejected(String),
    /// UNAUTHENTICATED, with a new token too.
    #[error("the service does not accept the token, nor a new one (has its audience changed?): {0}")]
    Unauthenticated(String),
    /// PERMISSION_DENIED.
    #[error("the token's account may not `get volumesnapshots` in the namespace: {0}")]
    Denied(String),
    /// There is no token.
    #[error("no token for the service: {0}")]
    NoToken(String),
    /// UNIMPLEMENTED.
    #[error("the service does not answer such questions: {0}")]
    Unimplemented(String),
    /// OUT_OF_RANGE somewhere else than at the end.
    #[error("byte {offset} is past the end, says the service: {text}")]
    OutOfRange {
        /// What was asked for.
        offset: u64,
        /// What it says.
        text: String,
    },
    /// The certificate is not signed by the given authority, is for another host, or the other side speaks no TLS.
    #[error("no trusted connection: {0}")]
    Tls(String),
    /// Address, certificate authority or another setting that cannot be used.
    #[error("{0}")]
    Setting(String),
    /// It failed in passing, more often or longer than is waited for.
    #[error("{} failures in a row over {} s, the last: {text}{}", .failures, .lasted.as_secs(), old_service(*.call, *.code))]
    Unavailable {
        /// What was asked.
        call: Call,
        /// The last status; none when there was no answer at all.
        code: Option<Code>,
        /// What it said.
        text: String,
        /// Failures without a block received between them.
        failures: u32,
        /// From the first of them to the last.
        lasted: Duration,
    },
    /// Streams that end again and again.
    #[error("not finished after {0} streams")]
    Streams(u64),
    /// Another error that no repetition would change.
    #[error("{code:?}: {text}")]
    Other {
        /// The status.
        code: Code,
        /// What it said.
        text: String,
    },
    /// The service broke its contract.
    #[error("the service broke its contract: {0}")]
    Broken(Violation),
    /// We were asked to stop.
    #[error("cancelled")]
    Cancelled,
}

/// A hint that goes with a delta that was answered UNAVAILABLE to the end.
fn old_service(call: Call, code: Option<Code>) -> &'static str {
    match (call, code) {
        (Call::Delta, Some(Code::Unavailable)) => {
            "; if the snapshots exist, the sidecar may be v0.1.0, which takes the base for the name of a VolumeSnapshot: \
             update it to v1.0.0 or later"
        }
        _ => "",
    }
}

/// What still may have an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The same service may tell the allocated blocks.
    Allocated,
    /// Nothing of this service; every block is to be read.
    Full,
    /// Nothing; the job ends.
    Stop,
}

impl Refusal {
    /// What to try when `call` was refused. Whoever decides may know better; that the service is of no further use is certain
    /// where this says [`Next::Full`].
    pub fn next(&self, call: Call) -> Next {
        match (self, call) {
            (Self::Cancelled, _) => Next::Stop,
            (
                Self::Unauthenticated(_)
                | Self::Denied(_)
                | Self::NoToken(_)
                | Self::Tls(_)
                | Self::Setting(_)
                | Self::Unavailable { code: None, .. },
                _,
            )
            | (_, Call::Allocated) => Next::Full,
            (_, Call::Delta) => Next::Allocated,
        }
    }

    /// The service said what cannot be, so nothing it says should be relied on without a look at the volume.
    pub fn is_lie(&self) -> bool {
        matches!(self, Self::Broken(_))
    }

    /// A short word for tags, status and metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::BaseGone(_) => "base-gone",
            Self::SnapshotGone(_) => "snapshot-gone",
            Self::TrackingOff(_) => "tracking-off",
            Self::Rejected(_) => "rejected",
            Self::Unauthenticated(_) => "unauthenticated",
            Self::Denied(_) => "denied",
            Self::NoToken(_) => "no-token",
            Self::Unimplemented(_) => "unimplemented",
            Self::OutOfRange { .. } => "out-of-range",
            Self::Tls(_) => "tls",
            Self::Setting(_) => "setting",
            Self::Unavailable { .. } => "unavailable",
            Self::Streams(_) => "streams",
            Self::Other { .. } => "other",
            Self::Broken(_) => "contract-broken",
            Self::Cancelled => "cancelled",
        }
    }
}
