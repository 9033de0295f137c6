//! Checkpoints: incomplete snapshots that keep a long session's contents from being collected.
//!
//! Maintenance deletes contents that no snapshot refers to once two of its runs agree. A session of many hours could lose
//! its first contents to it, so every 45 minutes, as Kopia does (kopia, snapshot/upload/upload.go), it publishes a snapshot
//! of what it has and takes the one before away.

use std::time::{Duration, Instant};

use tracing::{debug, info};

use super::WriteSession;
use crate::error::Result;
use crate::id::ManifestId;
use crate::manifest::{self, Changes};
use crate::object::BlockAddressTable;
use crate::snapshot::Snapshot;
use crate::time::Time;

/// Between two checkpoints.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(45 * 60);

/// What [`Snapshot::incomplete`] says of a checkpoint.
pub const CHECKPOINT: &str = "checkpoint";

/// The state of a session's checkpoints.
pub(super) struct Checkpoints {
    /// When the last one was made, or the session began.
    pub(super) last: Instant,
    /// The one that stands, and when it was written.
    pub(super) published: Option<(ManifestId, Time)>,
}

impl WriteSession<'_> {
    /// Publishes a checkpoint when the last one is [`CHECKPOINT_INTERVAL`] ago. `make` stores what the snapshot refers to,
    /// by this session, and returns it; nothing when it cannot yet. Cheap while none is due.
    pub fn checkpoint_when_due(&self, make: &mut dyn FnMut() -> Result<Option<Snapshot>>) -> Result<()> {
        let Ok(mut state) = self.checkpoints.try_lock() else {
            return Ok(()); // another thread is at it
        };
        if state.last.elapsed() < self.checkpoint_interval {
            return Ok(());
        }
        self.flush_now()?; // so that all that is stored is indexed, and `make` sees it
        let Some(mut snapshot) = make()? else {
            debug!(session = %self.id, "nothing to make a checkpoint of yet");
            return Ok(());
        };
        snapshot.incomplete = CHECKPOINT.into();
        let mut changes = Changes::default();
        let id = changes.put(snapshot.labels(), &snapshot)?;
        if let Some((old, since)) = state.published {
            changes.delete_own(old, since);
        }
        self.put_metadata(manifest::PREFIX, &changes.to_bytes(), true)?;
        self.close_metadata()?;
        self.flush_now()?;
        info!(session = %self.id, manifest = %id, "checkpoint");
        *state = Checkpoints {
            last: Instant::now(),
            published: Some((id, Time::now())),
        };
        Ok(())
    }

    /// `table` with every piece whose content is not indexed yet replaced by the zero content; nothing while that one is
    /// not indexed itself. All pieces are as long as the zero content.
    pub fn indexed_part(&self, table: &BlockAddressTable) -> Option<BlockAddressTable> {
        let repository = self.repository();
        let zero = repository.zero_content();
        if repository.deleted_at(&zero) != Some(None) || table.uniform_len().is_none() {
            return None;
        }
        let mut part = table.clone();
        repository
            .dead_pieces(table)
            .into_iter()
            .for_each(|at| part.set_content(at, &zero));
        Some(part)
    }
}
