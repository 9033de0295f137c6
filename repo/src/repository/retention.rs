//! Retention: the object locks that a repository asks for, and the store that puts them on.

use std::sync::Arc;

use crate::blob::{BlobStore, LockedStore, ObjectLock};
use crate::error::Result;
use crate::format::{self, Format, Retention};
use crate::id::BlobId;

/// The bytes of `kopia.blobcfg`; repositories from before Kopia 0.11 have none.
pub(super) fn read_blobcfg(store: &dyn BlobStore) -> Result<Option<Vec<u8>>> {
    match store.get(&BlobId::known(format::BLOBCFG_ID)) {
        Ok(sealed) => Ok(Some(sealed)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn object_lock(retention: Retention) -> ObjectLock {
    ObjectLock {
        mode: retention.mode.name().into(),
        period: retention.period,
    }
}

/// The store under the object locks that `blobcfg` asks for, if it does.
pub(super) fn locked(
    store: Arc<dyn BlobStore>,
    blobcfg: Option<&Vec<u8>>,
    format: &Format,
) -> Result<Arc<dyn BlobStore>> {
    let config = match blobcfg {
        Some(sealed) => format.open_blobcfg(sealed)?,
        None => return Ok(store),
    };
    Ok(match config.retention {
        None => store,
        Some(retention) => {
            let lock = object_lock(retention);
            Arc::new(LockedStore::new(store, lock, move |id| config.locks(id)))
        }
    })
}
