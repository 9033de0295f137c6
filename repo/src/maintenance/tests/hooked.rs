//! A store that counts, takes notes, and lets a test in on its listings.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::Result;
use crate::blob::{BlobMeta, BlobStore, MemStore, ObjectLock};
use crate::id::BlobId;

/// What becomes of a listing, given its prefix.
type OnList = Box<dyn Fn(&str, Vec<BlobMeta>) -> Vec<BlobMeta> + Send + Sync>;

pub(super) struct Hooked {
    inner: Arc<MemStore>,
    on_list: OnList,
    /// Ranges read.
    pub(super) reads: AtomicU64,
    /// Locks extended.
    pub(super) extended: Mutex<Vec<(String, ObjectLock)>>,
}

impl Hooked {
    pub(super) fn new(
        inner: &Arc<MemStore>,
        on_list: impl Fn(&str, Vec<BlobMeta>) -> Vec<BlobMeta> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner: inner.clone(),
            on_list: Box::new(on_list),
            reads: AtomicU64::new(0),
            extended: Mutex::default(),
        })
    }
}

impl BlobStore for Hooked {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn put(&self, id: &BlobId, bytes: &[u8]) -> Result<()> {
        self.inner.put(id, bytes)
    }

    fn extend_lock(&self, id: &BlobId, lock: &ObjectLock) -> Result<()> {
        self.extended.lock().expect("free").push((id.to_string(), lock.clone()));
        Ok(())
    }

    fn get(&self, id: &BlobId) -> Result<Vec<u8>> {
        self.inner.get(id)
    }

    fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> Result<Range<usize>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.inner.read_range(id, range, buf)
    }

    fn meta(&self, id: &BlobId) -> Result<BlobMeta> {
        self.inner.meta(id)
    }

    fn list(&self, prefix: &str) -> Result<Vec<BlobMeta>> {
        Ok((self.on_list)(prefix, self.inner.list(prefix)?))
    }

    fn delete(&self, id: &BlobId) -> Result<()> {
        self.inner.delete(id)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
}
