//! The first pass: every object of every snapshot, and so every content that is in use.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};

use blockio::Cancel;

use super::bits::Bits;
use super::finding::{DamageKind, Finding, Findings, Key, full};
use super::visit::{Seen, visit};
use super::{DEPTH_MAX, PIECES_MAX, check};
use crate::directory::EntryKind;
use crate::epoch::EpochState;
use crate::error::{Kind, RepoError, Result};
use crate::id::{ContentId, ObjectId};
use crate::index::Merged;
use crate::repository::Repository;
use crate::snapshot::Snapshot;

/// The index as it was when verification began, and what was marked in it.
pub(super) struct Marks {
    pub(super) index: Merged,
    pub(super) watermark: Option<u64>,
    /// Rows of contents in use.
    pub(super) used: Bits,
    /// Of those, rows of contents that cannot be had.
    pub(super) damaged: Bits,
    pub(super) findings: Findings,
}

/// A folder or file to look at.
struct Todo {
    object: ObjectId,
    kind: EntryKind,
    depth: usize,
}

/// Work to be done by any thread.
#[derive(Default)]
struct Queue {
    /// Last in, first out: folders are finished before their neighbours are begun, so the stack stays short.
    todo: Vec<Todo>,
    /// Threads that may still add some.
    busy: usize,
    failed: bool,
}

struct Walk<'a> {
    repository: &'a Repository,
    marks: &'a Marks,
    cancel: &'a Cancel,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Folders and lists met before. Files of one content need no place here.
    seen: Mutex<HashSet<ObjectId>>,
    objects: AtomicU64,
}

/// Marks the contents of `snapshots` on `workers` threads; returns the number of files, folders and links.
pub(super) fn walk(
    repository: &Repository,
    snapshots: &[Snapshot],
    marks: &Marks,
    workers: usize,
    cancel: &Cancel,
) -> Result<u64> {
    let roots = snapshots.iter().rev().filter_map(|snapshot| snapshot.root.as_ref());
    let todo = roots.map(|root| Todo {
        object: root.object,
        kind: root.kind,
        depth: 0,
    });
    let walk = Walk {
        repository,
        marks,
        cancel,
        queue: Mutex::new(Queue {
            todo: todo.collect(),
            ..Queue::default()
        }),
        changed: Condvar::new(),
        seen: Mutex::default(),
        objects: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers.max(1)).map(|_| scope.spawn(|| walk.work())).collect();
        threads.into_iter().try_for_each(|t| {
            t.join()
                .unwrap_or_else(|_| Err(RepoError::new(Kind::Storage, "a verification thread panicked")))
        })
    })?;
    Ok(walk.objects.into_inner())
}

/// Ends a thread's turn, also when it panics, so that the others do not wait for it.
struct Turn<'a>(&'a Walk<'a>, bool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock().expect("no panic while held");
        queue.busy -= 1;
        queue.failed |= !self.1;
        self.0.changed.notify_all();
    }
}

impl Walk<'_> {
    fn work(&self) -> Result<()> {
        loop {
            let queue = self.queue.lock().expect("no panic while held");
            let wait = |queue: &mut Queue| queue.todo.is_empty() && queue.busy > 0 && !queue.failed;
            let mut queue = self.changed.wait_while(queue, wait).expect("no panic while held");
            let next = match queue.failed {
                true => None,
                false => queue.todo.pop(),
            };
            let Some(todo) = next else { return Ok(()) };
            queue.busy += 1;
            drop(queue);
            let mut turn = Turn(self, false);
            self.object(&todo)?;
            turn.1 = true;
        }
    }

    fn object(&self, todo: &Todo) -> Result<()> {
        check(self.cancel)?;
        self.repository.keep_permitted()?;
        let object = &todo.object;
        let is_folder = todo.kind == EntryKind::Directory;
        let is_new = || self.seen.lock().expect("no panic while held").insert(*object);
        if (is_folder || object.indirection > 0) && !is_new() {
            return Ok(());
        }
        self.objects.fetch_add(1, Ordering::Relaxed);
        if todo.depth > DEPTH_MAX {
            self.marks.findings.add(Key::Object(*object), || Finding {
                kind: DamageKind::Directory,
                what: format!("folders nested more than {DEPTH_MAX} deep"),
                place: None,
            });
            return Ok(());
        }
        let (mut is_whole, mut pieces) = (true, 0_u64);
        let visited = visit(self.repository, object, 0, None, 0, &mut |seen| {
            check(self.cancel)?;
            pieces += 1;
            if pieces > PIECES_MAX {
                let what = format!("object {object} goes past {PIECES_MAX} pieces");
                return Err(RepoError::corrupt(what));
            }
            match seen {
                Seen::Piece { extent, content, exact } => is_whole &= self.marks.content(content, extent.len, exact),
                Seen::List { content, len } => is_whole &= self.marks.content(content, len, true),
                Seen::Broken { object, content, error } => {
                    is_whole = false;
                    self.marks.broken(object, content, &error);
                }
                Seen::Lost(_) => {}
            }
            Ok(())
        });
        match visited {
            Ok(_) if is_folder => {}
            Ok(_) => return Ok(()),
            Err(e) if e.is_damage() => {
                self.marks.broken(*object, None, &e);
                return Ok(());
            }
            Err(e) => return Err(e),
        }
        match self.repository.read_directory(object) {
            Ok(directory) => {
                let entries = directory.entries.into_iter().map(|entry| Todo {
                    object: entry.object,
                    kind: entry.kind,
                    depth: todo.depth + 1,
                });
                let (folders, files): (Vec<_>, Vec<_>) =
                    entries.partition(|entry| entry.kind == EntryKind::Directory || entry.object.indirection > 0);
                let mut queue = self.queue.lock().expect("no panic while held");
                queue.todo.extend(folders);
                self.changed.notify_all();
                drop(queue);
                // Small files are many and quick: they do not go through the queue.
                files.iter().try_for_each(|file| self.object(file))
            }
            Err(e) if e.is_damage() || e.is_not_found() => {
                // When a part of it is missing, that has been told.
                if is_whole {
                    let key = match object.indirection {
                        0 => Key::Content(object.content),
                        _ => Key::Object(*object),
                    };
                    self.marks.findings.add(key, || Finding {
                        kind: DamageKind::Directory,
                        what: full(&e),
                        place: None,
                    });
                }
                Ok(())
            }
            Err(e) => Err(e),
        }
    }
}

impl Marks {
    pub(super) fn new((index, epoch): (Merged, EpochState)) -> Self {
        Self {
            watermark: epoch.watermark,
            used: Bits::new(index.len()),
            damaged: Bits::new(index.len()),
            index,
            findings: Findings::default(),
        }
    }

    /// Marks a content as used for `len` bytes; false when that cannot be.
    fn content(&self, content: ContentId, len: u64, exact: bool) -> bool {
        let Some((row, entry)) = self.index.locate(&content, self.watermark) else {
            self.findings.add(Key::Content(content), || Finding {
                kind: DamageKind::ContentMissing,
                what: format!("content {content} is not in the index"),
                place: None,
            });
            return false;
        };
        self.used.set(row);
        let fits = !exact || u64::from(entry.original_len) == len;
        if !fits {
            self.findings.add(Key::Length(content), || Finding {
                kind: DamageKind::ContentLength,
                what: format!(
                    "content {content} has {} bytes, its list says {len}",
                    entry.original_len
                ),
                place: None,
            });
        }
        fits
    }

    /// Notes that (a part of) a list cannot be read.
    pub(super) fn broken(&self, object: ObjectId, content: Option<ContentId>, error: &RepoError) {
        let (key, kind) = match content {
            Some(content) => (Key::Content(content), DamageKind::ContentUnreadable),
            None => (Key::Object(object), DamageKind::List),
        };
        self.findings.add(key, || Finding {
            kind,
            what: full(error),
            place: content.and_then(|content| self.place(&content)),
        });
    }

    /// Where the index says a content is.
    pub(super) fn place(&self, content: &ContentId) -> Option<(crate::BlobId, std::ops::Range<u64>)> {
        let (_, entry) = self.index.locate(content, self.watermark)?;
        let start = u64::from(entry.offset);
        Some((entry.to_entry().pack, start..start + u64::from(entry.packed_len)))
    }
}
