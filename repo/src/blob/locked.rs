//! Object locks on what a repository's retention covers.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::{BlobMeta, BlobStore, Habits, ObjectLock};
use crate::error::Result;
use crate::id::BlobId;

/// A store whose blobs are put under an object lock, as far as the retention covers them.
pub struct LockedStore {
    store: Arc<dyn BlobStore>,
    lock: ObjectLock,
    covers: Box<dyn Fn(&BlobId) -> bool + Send + Sync>,
}

impl LockedStore {
    /// `store`, with `lock` on every blob that `covers` names.
    pub fn new(
        store: Arc<dyn BlobStore>,
        lock: ObjectLock,
        covers: impl Fn(&BlobId) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self {
            store,
            lock,
            covers: Box::new(covers),
        }
    }

    fn lock(&self, id: &BlobId) -> Option<&ObjectLock> {
        (self.covers)(id).then_some(&self.lock)
    }
}

impl BlobStore for LockedStore {
    fn place(&self) -> String {
        self.store.place()
    }

    fn put(&self, id: &BlobId, bytes: &[u8]) -> Result<()> {
        match self.lock(id) {
            None => self.store.put(id, bytes),
            lock => self.store.put_shared(id, Bytes::copy_from_slice(bytes), lock),
        }
    }

    fn put_shared(&self, id: &BlobId, bytes: Bytes, lock: Option<&ObjectLock>) -> Result<()> {
        self.store.put_shared(id, bytes, lock.or_else(|| self.lock(id)))
    }

    fn extend_lock(&self, id: &BlobId, lock: &ObjectLock) -> Result<()> {
        self.store.extend_lock(id, lock)
    }

    fn habits(&self) -> Habits {
        self.store.habits()
    }

    fn get(&self, id: &BlobId) -> Result<Vec<u8>> {
        self.store.get(id)
    }

    fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> Result<Range<usize>> {
        self.store.read_range(id, range, buf)
    }

    fn meta(&self, id: &BlobId) -> Result<BlobMeta> {
        self.store.meta(id)
    }

    fn list(&self, prefix: &str) -> Result<Vec<BlobMeta>> {
        self.store.list(prefix)
    }

    fn delete(&self, id: &BlobId) -> Result<()> {
        self.store.delete(id)
    }

    fn sync(&self) -> Result<()> {
        self.store.sync()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::blob::MemStore;
    use crate::error::Kind;

    #[test]
    fn a_store_without_locks_refuses_covered_blobs_and_takes_the_others() {
        let lock = ObjectLock {
            mode: "COMPLIANCE".into(),
            period: Duration::from_secs(86_400),
        };
        let store = LockedStore::new(Arc::new(MemStore::new()), lock, |id| id.as_str().starts_with('p'));
        let e = store.put(&BlobId::known("p00"), b"pack").expect_err("not locked");
        assert_eq!(e.kind(), Kind::Unsupported);
        let e = store
            .put_shared(&BlobId::known("p00"), Bytes::from_static(b"pack"), None)
            .expect_err("not locked");
        assert_eq!(e.kind(), Kind::Unsupported);
        assert!(store.list("").expect("list").is_empty());
        store.put(&BlobId::known("s00"), b"marker").expect("not covered");
    }
}
