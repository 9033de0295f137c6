//! What was written over snapshots: a folder each, in the folder that `--state` names.

use std::path::Path;
use std::sync::Arc;

use blockio::BlockSource;
use nbd::Overlay;
use repo::{Image, Repository};

use crate::error::Result;

/// What an overlay belongs to: this object of this repository, wherever that is.
pub(crate) fn identity(repository: &Repository, image: &Image) -> String {
    format!("{}/{}", hex::encode(&repository.format().unique_id), image.object)
}

/// What was written over the snapshot called `id`, whose bytes are in `below`; nothing yet when there is no such folder.
pub(crate) fn open(state: &Path, id: &str, below: Arc<dyn BlockSource>, identity: &str) -> Result<Arc<Overlay>> {
    Ok(Arc::new(Overlay::open(&state.join(id), below, identity)?))
}
