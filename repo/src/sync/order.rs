//! In which order blobs are copied, so that a reader of the copy never meets something that refers to what is not there.

use crate::format::{BLOBCFG_ID, MAINTENANCE_ID, REPOSITORY_ID};
use crate::id::BlobId;

/// Place of a blob in the order of copying. What is greater may refer to what is less, never the other way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// Packs refer to nothing.
    Pack,
    /// Epoch markers come before the index: when compactions arrive, a reader must already take them for settled.
    /// A marker without its index hides nothing, since a reader goes on with the blobs it has.
    Epoch,
    /// Index blobs by the last epoch they tell of: a snapshot is in the same epoch as its contents or in a later one.
    /// Within an epoch range checkpoints (0), then compactions (1), then single flushes (2) by their time.
    Index(u64, u8),
    /// Logs of index compaction (`m`, `l`) in the way of format version 1: they take index blobs out of force.
    Superseded,
    /// Watermarks make deleted entries vanish, so the entries that add the same contents again must be there.
    Watermark,
    /// Session markers, logs, and whatever else there is.
    Other,
    /// `kopia.maintenance`.
    Schedule,
    /// `kopia.blobcfg`, beside the blob that is read together with it.
    Blobcfg,
    /// `kopia.repository`: a place without it is no repository.
    Repository,
}

impl Rank {
    /// Rank of the blob `id`.
    pub(super) fn of(id: &BlobId) -> Self {
        let id = id.as_str();
        match id {
            REPOSITORY_ID => return Self::Repository,
            BLOBCFG_ID => return Self::Blobcfg,
            MAINTENANCE_ID => return Self::Schedule,
            _ => {}
        }
        match id.as_bytes() {
            [b'p' | b'q', ..] => Self::Pack,
            [b'x', b'e', ..] => Self::Epoch,
            [b'x', b'w', ..] => Self::Watermark,
            [b'x', b'r', ..] => Self::Index(number(id[2..].split('_').nth(1)), 0),
            [b'x', b's', ..] => Self::Index(number(id[2..].split('_').next()), 1),
            [b'x', b'n', ..] => Self::Index(number(id[2..].split('_').next()), 2),
            [b'x' | b'n', ..] => Self::Index(u64::MAX, 2),
            [b'm' | b'l', ..] => Self::Superseded,
            _ => Self::Other,
        }
    }

    /// The blob belongs to the index, which is listed before the packs it refers to.
    pub(super) fn is_index(self) -> bool {
        matches!(self, Self::Epoch | Self::Index(..) | Self::Superseded | Self::Watermark)
    }

    /// A blob of this kind that the source does not have may be deleted from the copy.
    pub(super) fn is_disposable(self, id: &BlobId) -> bool {
        self == Self::Pack || self.is_index() || id.as_str().starts_with(['s', '_'])
    }
}

/// The epoch in a name; a name without one comes last.
fn number(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_refers_comes_after_what_is_referred_to() {
        let order = [
            "p00-s1",
            "xe7",
            "xr0_3_aa-s1-c1",
            "xs3_aa-s1-c1",
            "xn3_aa-s1-c1",
            "xs4_aa-s1-c1",
            "xn4_aa-s1-c1",
            "xn10_aa-s1-c1",
            "naabb",
            "maabb",
            "xw1767225600",
            "s00-s1",
            "kopia.maintenance",
            "kopia.blobcfg",
            "kopia.repository",
        ];
        let rank = |id: &&str| Rank::of(&BlobId::new(*id).expect("valid"));
        for pair in order.windows(2) {
            assert!(rank(&pair[0]) < rank(&pair[1]), "{pair:?}");
        }
        for odd in ["x", "xr", "xr5", "xn", "xnq_", "udmrepo.Repository", "_log_1"] {
            assert!(rank(&odd) > Rank::Epoch, "{odd}");
        }
    }

    #[test]
    fn only_blobs_of_the_format_are_ever_deleted() {
        let disposable = |id: &str| {
            let id = BlobId::new(id).expect("valid");
            Rank::of(&id).is_disposable(&id)
        };
        for id in ["p00-s1", "q00-s1", "xn0_aa", "xe1", "s00-s1", "_log_2026", "naa"] {
            assert!(disposable(id), "{id}");
        }
        for id in [
            "kopia.repository",
            "kopia.blobcfg",
            "kopia.maintenance",
            "udmrepo.Repository",
        ] {
            assert!(!disposable(id), "{id}");
        }
    }
}
