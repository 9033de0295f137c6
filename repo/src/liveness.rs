//! Whether what an increment takes over from its parent is still there.
//!
//! A client that copies entries of another snapshot's list relies on contents it does not store itself. Kopia and Velero
//! leave it to the next garbage collection to bring back what was marked as deleted; here it is looked at beforehand, and
//! again before the snapshot is published.

use crate::error::Result;
use crate::id::ManifestId;
use crate::object::BlockAddressTable;
use crate::repository::Repository;

/// What is left of a parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// The parent's manifest is there. Once it is gone, its contents live only until the next garbage collection but one.
    pub stands: bool,
    /// Pieces of its image whose contents are deleted or unknown, in order: to be read and stored again.
    pub dead: Vec<usize>,
}

impl Repository {
    /// Reads the index again and looks up every content of `table`, the image of the snapshot `parent`.
    ///
    /// Costs one refresh of the index, one reading of the manifests and a look-up (below a microsecond) a piece.
    pub fn liveness(&self, parent: &ManifestId, table: &BlockAddressTable) -> Result<Liveness> {
        self.refresh()?;
        Ok(Liveness {
            stands: self.manifests()?.get(parent).is_some(),
            dead: self.dead_pieces(table),
        })
    }

    /// Pieces of `table` whose contents are not alive in the index as last read.
    pub fn dead_pieces(&self, table: &BlockAddressTable) -> Vec<usize> {
        let alive = |at: &usize| self.deleted_at(&table.content(*at)) == Some(None);
        (0..table.count()).filter(|at| !alive(at)).collect()
    }
}
