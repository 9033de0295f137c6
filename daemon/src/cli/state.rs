//! What was written over snapshots: a folder each, in the folder that `--state` names.

use std::path::Path;
use std::sync::Arc;

use blockio::BlockSource;
use nbd::Overlay;

use crate::error::Result;

/// What was written over the snapshot called `id`, whose bytes are in `below`; nothing yet when there is no such folder.
pub(crate) fn open(state: &Path, id: &str, below: Arc<dyn BlockSource>, identity: &str) -> Result<Arc<Overlay>> {
    Ok(Arc::new(Overlay::open(&state.join(id), below, identity)?))
}
