//! What is known of a volume and of its changes, in the words of the one who tracks them. Opaque strings, never compared
//! but for equality.

use crate::block_map::BlockMap;
use std::fmt;

/// Bytes of the longest identifier that is accepted. CSI limits a string field to 128 bytes unless it says otherwise; eight
/// times that is room for drivers that do not keep to it, and small enough for an annotation or a manifest.
pub const ID_BYTES_MAX: usize = 1024;

/// An identifier that is empty, longer than [`ID_BYTES_MAX`], or holds control characters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {why}")]
pub struct InvalidId {
    what: &'static str,
    why: &'static str,
}

fn check(what: &'static str, text: &str) -> Result<(), InvalidId> {
    let why = if text.is_empty() {
        "is empty"
    } else if text.len() > ID_BYTES_MAX {
        "is longer than 1024 bytes"
    } else if text.chars().any(char::is_control) {
        "holds control characters"
    } else {
        return Ok(());
    };
    Err(InvalidId { what, why })
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// Accepts any text of 1 to [`ID_BYTES_MAX`] bytes without control characters.
            ///
            /// # Errors
            /// [`InvalidId`], which says what is wrong with it.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                check($what, &text)?;
                Ok(Self(text))
            }

            /// The text as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// The volume, as its storage names it (the CSI volume handle).
    VolumeId,
    "volume id"
);
id!(
    /// A state of the volume, as the change tracker names it. Often, not always, the handle of a snapshot.
    ChangeId,
    "change id"
);
id!(
    /// A snapshot of the volume, as its storage names it (the CSI snapshot handle).
    SnapshotHandle,
    "snapshot handle"
);

/// The chunks of a snapshot that may differ from a base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeSet {
    /// The volume both belong to.
    pub volume: VolumeId,
    /// The snapshot to read from.
    pub snapshot: SnapshotHandle,
    /// The state the snapshot holds; what the next increment names as its base.
    pub change: ChangeId,
    /// The state it is compared with. `None`: with nothing, and `map` says what is allocated.
    pub base: Option<ChangeId>,
    /// A chunk that is not set is unchanged (with a base) or reads as zero (without).
    pub map: BlockMap,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_checked_when_made() {
        assert_eq!(VolumeId::new("vol-1").unwrap().as_str(), "vol-1");
        assert_eq!(ChangeId::new("").unwrap_err().to_string(), "change id is empty");
        assert!(SnapshotHandle::new("a\nb").is_err());
        assert!(VolumeId::new("x".repeat(ID_BYTES_MAX)).is_ok());
        assert!(VolumeId::new("x".repeat(ID_BYTES_MAX + 1)).is_err());
    }
}
