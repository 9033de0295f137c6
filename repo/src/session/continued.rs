//! What a session takes over: the packs of one that was interrupted, and the contents of a parent.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use tracing::{info, warn};

use super::WriteSession;
use crate::error::Result;
use crate::id::{BlobId, ContentId};
use crate::index::IndexEntry;
use crate::manifest;
use crate::object::BlockAddressTable;

type Told = dyn Fn(&[IndexEntry]) + Send + Sync;

/// Is told the entries of a stored pack, on the thread that stored it.
#[derive(Clone)]
pub struct StoredHook(Arc<Told>);

impl StoredHook {
    /// Calls `hook`.
    pub fn new(hook: impl Fn(&[IndexEntry]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    pub(super) fn call(&self, entries: &[IndexEntry]) {
        (self.0)(entries);
    }
}

impl fmt::Debug for StoredHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoredHook")
    }
}

impl WriteSession<'_> {
    /// Indexes packs that an interrupted session stored, given their `entries` as its [`StoredHook`] was told them. Packs that are
    /// not in the storage, or shorter than their entries say, are passed over, and so are manifests: a snapshot that was not published
    /// is not published by another session. Returns how many contents were taken over.
    ///
    /// # Errors
    /// Of the storage.
    pub fn adopt(&self, entries: Vec<IndexEntry>) -> Result<usize> {
        let mut packs: HashMap<BlobId, Vec<IndexEntry>> = HashMap::new();
        for entry in entries {
            if entry.content.prefix() != Some(manifest::PREFIX)
                && self.repository().deleted_at(&entry.content).is_none()
            {
                packs.entry(entry.pack.clone()).or_default().push(entry);
            }
        }
        let mut adopted = Vec::new();
        for (pack, entries) in packs {
            let end = |entry: &IndexEntry| u64::from(entry.offset) + u64::from(entry.packed_len);
            let end = entries.iter().map(end).max().unwrap_or(0);
            match self.repository().store().meta(&pack) {
                Ok(meta) if meta.len >= end => adopted.extend(entries),
                Ok(meta) => warn!(%pack, len = meta.len, end, "a pack of the interrupted backup is cut short"),
                Err(e) if e.is_not_found() => warn!(%pack, "a pack of the interrupted backup is gone"),
                Err(e) => return Err(e),
            }
        }
        let count = adopted.len();
        if count > 0 {
            self.uploaders.give_back(adopted);
            self.flush_now()?;
            info!(contents = count, "took over packs of an interrupted backup");
        }
        Ok(count)
    }

    /// Those of `pieces` of `table` (ascending) whose contents are not alive in the index, or not in their packs (as far as
    /// `check_reused` has one look): they must be read and stored again.
    ///
    /// Contents are looked up in bulk, and so are packs: only where one of the index's packs is missing from the listing is each
    /// content looked at by itself, ten times as dear.
    ///
    /// # Errors
    /// Of the storage, when packs are looked for.
    pub fn absent_pieces(&self, table: &BlockAddressTable, pieces: impl Iterator<Item = usize>) -> Result<Vec<usize>> {
        let mut pieces = pieces.peekable();
        if pieces.peek().is_none() {
            return Ok(Vec::new());
        }
        let repository = self.repository();
        if self.claims.all_packs_stand(repository)? {
            let dead: HashSet<usize> = repository.dead_pieces(table).into_iter().collect();
            return Ok(pieces.filter(|piece| dead.contains(piece)).collect());
        }
        let mut absent = Vec::new();
        // Runs of one content, zeros above all, are looked up once.
        let mut last: Option<(ContentId, bool)> = None;
        for piece in pieces {
            let content = table.content(piece);
            let is_there = match last {
                Some((same, is_there)) if same == content => is_there,
                _ => self.claims.stands(repository, &content)?,
            };
            last = Some((content, is_there));
            if !is_there {
                absent.push(piece);
            }
        }
        Ok(absent)
    }
}
