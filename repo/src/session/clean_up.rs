//! What a crashed session leaves, removed by a later one.

use tracing::info;

use crate::error::Result;
use crate::id::SessionId;
use crate::manifest::Changes;
use crate::repository::Repository;
use crate::snapshot::{Snapshot, Source, tag};

use super::CHECKPOINT;

/// Deletes the markers of the session `id`, which the caller knows to be dead and its own; returns how many there were.
///
/// Its packs go with the next maintenance of the repository, which spares those of sessions with a marker for 96 hours. Its
/// index blobs stay: each was put when its packs were durable, so what they say is true.
pub fn remove_markers(repository: &Repository, id: &SessionId) -> Result<usize> {
    let suffix = format!("-{id}");
    let store = repository.store();
    let mut removed = 0;
    for blob in store.list("s")? {
        if blob.id.as_str().ends_with(&suffix) {
            store.delete(&blob.id)?;
            removed += 1;
        }
    }
    if removed > 0 {
        store.sync()?;
        info!(session = %id, "removed what a crashed session left");
    }
    Ok(removed)
}

/// Deletes, with `changes`, the checkpoints of `source` that were written by blockferry sessions which left no marker: they
/// ended, so a complete snapshot takes their place.
pub fn supersede_checkpoints(repository: &Repository, source: &Source, changes: &mut Changes) -> Result<usize> {
    let labels = [
        ("type", Snapshot::TYPE),
        ("hostname", source.host.as_str()),
        ("username", source.user.as_str()),
        ("path", source.path.as_str()),
    ];
    let manifests = repository.manifests()?;
    let ours: Vec<_> = manifests
        .find(&labels)
        .into_iter()
        .filter_map(|manifest| Some((manifest, manifest.labels.get(tag::SESSION)?)))
        .filter(|(manifest, _)| {
            manifest
                .data
                .get()
                .contains(&format!("\"incomplete\":\"{CHECKPOINT}\""))
        })
        .collect();
    if ours.is_empty() {
        return Ok(0);
    }
    let markers = repository.store().list("s")?;
    let is_live = |session: &str| {
        markers
            .iter()
            .any(|blob| blob.id.as_str().ends_with(&format!("-{session}")))
    };
    let mut removed = 0;
    for (manifest, session) in ours {
        if !is_live(session) {
            changes.delete(manifest);
            removed += 1;
        }
    }
    Ok(removed)
}
