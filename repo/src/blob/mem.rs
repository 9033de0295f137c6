//! A blob store in memory, for tests and for trying a format out.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::time::SystemTime;

use super::{BlobMeta, BlobStore};
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;

/// Blobs in memory.
#[derive(Default)]
pub struct MemStore {
    blobs: Mutex<BTreeMap<BlobId, (Vec<u8>, SystemTime)>>,
    /// Time of the next puts, where a test set one; else the host's.
    time: Mutex<Option<SystemTime>>,
}

impl MemStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts the storage's clock at `time`, where it stays: for tests that live in virtual time.
    pub fn set_time(&self, time: SystemTime) {
        *self.time.lock().expect("no panic while held") = Some(time);
    }

    fn with<T>(&self, id: &BlobId, read: impl FnOnce(&[u8], SystemTime) -> T) -> Result<T> {
        let blobs = self.blobs.lock().expect("no panic while held");
        let (bytes, modified) = blobs
            .get(id)
            .ok_or_else(|| RepoError::new(Kind::NotFound, format!("blob {id} in memory")))?;
        Ok(read(bytes, *modified))
    }
}

impl BlobStore for MemStore {
    fn place(&self) -> String {
        "memory".into()
    }

    fn put(&self, id: &BlobId, bytes: &[u8]) -> Result<()> {
        let time = *self.time.lock().expect("no panic while held");
        self.blobs
            .lock()
            .expect("no panic while held")
            .insert(id.clone(), (bytes.to_vec(), time.unwrap_or_else(SystemTime::now)));
        Ok(())
    }

    fn get(&self, id: &BlobId) -> Result<Vec<u8>> {
        self.with(id, |bytes, _| bytes.to_vec())
    }

    fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> Result<Range<usize>> {
        let bounds =
            usize::try_from(range.start).unwrap_or(usize::MAX)..usize::try_from(range.end).unwrap_or(usize::MAX);
        self.with(id, |bytes, _| {
            let part = bytes
                .get(bounds)
                .ok_or_else(|| RepoError::corrupt(format!("blob {id} in memory ends before byte {}", range.end)))?;
            buf[..part.len()].copy_from_slice(part);
            Ok(0..part.len())
        })?
    }

    fn meta(&self, id: &BlobId) -> Result<BlobMeta> {
        self.with(id, |bytes, modified| BlobMeta {
            id: id.clone(),
            len: bytes.len() as u64,
            modified,
        })
    }

    fn list(&self, prefix: &str) -> Result<Vec<BlobMeta>> {
        let blobs = self.blobs.lock().expect("no panic while held");
        let matching = blobs.iter().filter(|(id, _)| id.as_str().starts_with(prefix));
        Ok(matching
            .map(|(id, (bytes, modified))| BlobMeta {
                id: id.clone(),
                len: bytes.len() as u64,
                modified: *modified,
            })
            .collect())
    }

    fn delete(&self, id: &BlobId) -> Result<()> {
        self.blobs.lock().expect("no panic while held").remove(id);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}
