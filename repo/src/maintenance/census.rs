//! What the snapshots use: every snapshot's folders and lists walked, one bit for each content.
//!
//! A census is exact or it fails: an unreadable list, a folder of another form, a content that no index knows end it with an
//! error, and who would delete does not. It is taken once in a run and then extended ([`Census::catch_up`]) by the snapshots
//! that appeared since: objects never change, so what was walked needs no second walk.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use blockio::{Cancel, Progress};
use tracing::{debug, info};

use super::folder::each_child;
use super::marks::Marks;
use crate::directory::EntryKind;
use crate::epoch;
use crate::error::{Kind, RepoError, Result};
use crate::id::{BlobId, ContentId, ManifestId, ObjectId};
use crate::index::{EntryRef, Merged};
use crate::manifest;
use crate::object::{ObjectReader, parse_list};
use crate::repository::Repository;
use crate::snapshot::Snapshot;

/// Deepest nest of lists inside lists, as for reading.
const NESTING_MAX: u32 = 16;

/// Entries of a list between two looks at the cancel flag: a fraction of a second of work.
const CANCEL_STRIDE: u64 = 100_000;

/// Contents in use that the index does not know, of which an error names so many.
const LOST_NAMED_MAX: usize = 5;

/// The contents that snapshots use.
pub(super) struct Census<'r> {
    repository: &'r Repository,
    /// The index as it was when the run began: positions count its rows.
    base: Merged,
    watermark: Option<u64>,
    /// Index blobs whose entries are known to the repository's view.
    blobs: HashSet<BlobId>,
    in_use: Marks,
    /// Objects walked, by levels of lists and whether they are folders: by position of the content they name.
    walked: BTreeMap<(u8, bool), Marks>,
    /// In use, and stored after the run began.
    newer: HashSet<ContentId>,
    snapshots: BTreeSet<ManifestId>,
    totals: Totals,
}

/// What a census has walked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Snapshots, incomplete ones included: what they refer to is in use.
    pub snapshots: u64,
    /// Folders.
    pub folders: u64,
    /// Lists.
    pub lists: u64,
    /// Entries of lists, those seen before included.
    pub list_entries: u64,
}

/// An object to walk.
struct Visit {
    object: ObjectId,
    is_folder: bool,
    depth: u32,
}

impl<'r> Census<'r> {
    /// Reads the index anew and walks all snapshots.
    ///
    /// # Errors
    /// Whatever keeps it from being complete: nothing may be deleted then.
    pub(super) fn take(repository: &'r Repository, cancel: &Cancel, progress: &Progress) -> Result<Self> {
        repository.refresh()?;
        let (base, epoch) = repository.index();
        let mut census = Self {
            repository,
            in_use: Marks::new(base.len()),
            base,
            watermark: epoch.watermark,
            blobs: epoch.blobs.into_iter().map(|meta| meta.id).collect(),
            walked: BTreeMap::new(),
            newer: HashSet::new(),
            snapshots: BTreeSet::new(),
            totals: Totals::default(),
        };
        census.walk_snapshots(&repository.snapshots()?, cancel, progress)?;
        census.check_complete()?;
        info!(
            snapshots = census.totals.snapshots,
            folders = census.totals.folders,
            lists = census.totals.lists,
            list_entries = census.totals.list_entries,
            in_use = census.in_use.count(),
            "census of the snapshots taken"
        );
        Ok(census)
    }

    /// What was walked.
    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// The index that positions refer to, with every content's winning entry.
    pub(super) fn rows(&self) -> impl Iterator<Item = (usize, EntryRef<'_>)> {
        self.base.rows()
    }

    /// Rows that [`Self::rows`] counts through.
    pub(super) fn len(&self) -> usize {
        self.base.len()
    }

    /// Deletions up to this time are final.
    pub(super) fn watermark(&self) -> Option<u64> {
        self.watermark
    }

    /// This run made deletions up to `watermark` final.
    pub(super) fn moved_watermark(&mut self, watermark: u64) {
        self.watermark = self.watermark.max(Some(watermark));
    }

    /// A snapshot uses the content at `position`.
    pub(super) fn uses(&self, position: usize) -> bool {
        self.in_use.has(position)
    }

    /// A snapshot uses `content`.
    pub(super) fn uses_content(&self, content: &ContentId) -> bool {
        match self.base.position(content) {
            Some(position) => self.in_use.has(position),
            None => self.newer.contains(content),
        }
    }

    /// Index blobs that this run wrote and has added to the view itself.
    pub(super) fn knows_blobs(&mut self, blobs: impl IntoIterator<Item = BlobId>) {
        self.blobs.extend(blobs);
    }

    /// Takes in what other clients stored since: their index blobs and the snapshots in them.
    ///
    /// # Errors
    /// `Busy` when another client moved the watermark; else as [`Self::take`].
    pub(super) fn catch_up(&mut self, cancel: &Cancel, progress: &Progress) -> Result<()> {
        let store = &**self.repository.store();
        let fresh = epoch::read(store, &self.repository.format().epoch)?;
        if fresh.watermark != self.watermark {
            let what = format!(
                "another client moved the deletion watermark from {:?} to {:?} during this run, so it maintains the repository too; this run stops before it deletes anything else",
                self.watermark, fresh.watermark
            );
            return Err(RepoError::new(Kind::Busy, what));
        }
        for meta in &fresh.blobs {
            if !self.blobs.contains(&meta.id) {
                let sealed = store.get(&meta.id)?;
                let plaintext = self.repository.contents().open_blob(&meta.id, &sealed)?;
                let added = self.repository.add_index(meta.id.clone(), plaintext);
                added.map_err(|e| e.context(format!("index blob {}", meta.id)))?;
                self.blobs.insert(meta.id.clone());
                debug!(blob = %meta.id, "index blob taken in that appeared during this run");
            }
        }
        self.walk_snapshots(&self.repository.snapshots()?, cancel, progress)?;
        self.check_complete()
    }

    fn walk_snapshots(&mut self, snapshots: &[Snapshot], cancel: &Cancel, progress: &Progress) -> Result<()> {
        for snapshot in snapshots {
            let id = snapshot.id.expect("filled in when read");
            if self.snapshots.contains(&id) {
                continue;
            }
            let place = || format!("snapshot {id} of {} started {}", snapshot.source, snapshot.start);
            let root = snapshot.root.as_ref().ok_or_else(|| {
                let what = format!(
                    "{} has no root, so nobody can tell what it uses; delete it, then maintain again",
                    place()
                );
                RepoError::corrupt(what)
            })?;
            let visit = Visit {
                object: root.object,
                is_folder: root.kind == EntryKind::Directory,
                depth: 0,
            };
            self.walk(visit, cancel, progress).map_err(|e| e.context(place()))?;
            // Only now: a walk that failed is no walk.
            self.snapshots.insert(id);
            self.totals.snapshots += 1;
        }
        Ok(())
    }

    /// Walks an object and all below it. What is still to be walked is kept on a heap of its own: folders nest as deep as
    /// somebody made them.
    fn walk(&mut self, root: Visit, cancel: &Cancel, progress: &Progress) -> Result<()> {
        let mut open = vec![root];
        while let Some(visit) = open.pop() {
            if cancel.is_cancelled() {
                return Err(RepoError::new(Kind::Cancelled, "walk the snapshots"));
            }
            self.repository.keep_permitted()?;
            if visit.depth > NESTING_MAX {
                let what = format!("object {} is nested more than {NESTING_MAX} lists deep", visit.object);
                return Err(RepoError::corrupt(what));
            }
            if !self.enter(&visit)? {
                continue;
            }
            let object = visit.object;
            if let Some(list) = object.list() {
                open.push(Visit {
                    object: list,
                    is_folder: false,
                    depth: visit.depth + 1,
                });
                self.walk_list(&object, &list, visit.depth, &mut open, cancel, progress)?;
            }
            if visit.is_folder {
                self.walk_folder(&object, &mut open)?;
            }
        }
        Ok(())
    }

    /// Marks the object walked; false when it was before.
    fn enter(&mut self, visit: &Visit) -> Result<bool> {
        let content = visit.object.content;
        let Some(position) = self.base.position(&content) else {
            self.note_newer(&content)?;
            // Few, and walked again when they are met again.
            return Ok(visit.object.indirection > 0 || visit.is_folder);
        };
        if visit.object.indirection == 0 {
            self.in_use.set(position);
            if !visit.is_folder {
                return Ok(false);
            }
        }
        let rows = self.base.len();
        let walked = self.walked.entry((visit.object.indirection, visit.is_folder));
        Ok(walked.or_insert_with(|| Marks::new(rows)).set(position))
    }

    fn walk_list(
        &mut self,
        object: &ObjectId,
        list: &ObjectId,
        depth: u32,
        open: &mut Vec<Visit>,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<()> {
        let repository = self.repository;
        let pieces = repository.table(list)?;
        progress.add_total(pieces.len());
        self.totals.lists += 1;
        let mut count = 0;
        parse_list(object, ObjectReader::new(repository, &pieces), &mut |entry| {
            count += 1;
            if count % CANCEL_STRIDE == 0 && cancel.is_cancelled() {
                return Err(RepoError::new(Kind::Cancelled, "walk the snapshots"));
            }
            if entry.object.indirection == 0 {
                return self.mark(&entry.object.content);
            }
            open.push(Visit {
                object: entry.object,
                is_folder: false,
                depth: depth + 1,
            });
            Ok(())
        })?;
        self.totals.list_entries += count;
        progress.add_done(pieces.len());
        Ok(())
    }

    fn walk_folder(&mut self, object: &ObjectId, open: &mut Vec<Visit>) -> Result<()> {
        let repository = self.repository;
        let pieces = repository.table(object)?;
        self.totals.folders += 1;
        each_child(object, ObjectReader::new(repository, &pieces), &mut |kind, object| {
            let is_folder = kind == EntryKind::Directory;
            if object.indirection == 0 && !is_folder {
                return self.mark(&object.content);
            }
            open.push(Visit {
                object,
                is_folder,
                depth: 0,
            });
            Ok(())
        })
    }

    fn mark(&mut self, content: &ContentId) -> Result<()> {
        match self.base.position(content) {
            Some(position) => {
                self.in_use.set(position);
                Ok(())
            }
            None => self.note_newer(content),
        }
    }

    /// A content that was not in the index when the run began: stored since, or lost.
    fn note_newer(&mut self, content: &ContentId) -> Result<()> {
        if self.newer.contains(content) {
            return Ok(());
        }
        if self.repository.lookup(content).is_none() {
            return Err(lost(1, &[*content], self.repository));
        }
        self.newer.insert(*content);
        Ok(())
    }

    /// Every content in use exists: one that was deleted for good makes every other deletion doubtful.
    fn check_complete(&self) -> Result<()> {
        let (mut count, mut named) = (0, Vec::new());
        for (position, entry) in self.base.rows() {
            let gone = self.in_use.has(position)
                && entry.is_forgotten(self.watermark)
                && self.repository.lookup(&entry.content).is_none();
            if gone {
                count += 1;
                if named.len() < LOST_NAMED_MAX {
                    named.push(entry.content);
                }
            }
        }
        match count {
            0 => Ok(()),
            _ => Err(lost(count, &named, self.repository)),
        }
    }
}

fn lost(count: u64, named: &[ContentId], repository: &Repository) -> RepoError {
    let names: Vec<String> = named.iter().map(ToString::to_string).collect();
    RepoError::corrupt(format!(
        "{count} contents that snapshots use are not in the index of {} (such as {}); nothing is deleted in a damaged repository: `blockferry verify` tells which snapshots are hurt",
        repository.store().place(),
        names.join(", ")
    ))
}

/// Manifests are always in use: the index is where they are found.
pub(super) fn is_system(entry: &EntryRef<'_>) -> bool {
    entry.content.prefix() == Some(manifest::PREFIX)
}
