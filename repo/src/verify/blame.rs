//! The last pass, when something is damaged: which bytes of which snapshot that is.

use std::collections::{BTreeMap, HashMap, HashSet};

use blockio::{Cancel, Extent};

use super::finding::{Finding, Key};
use super::visit::{Seen, visit};
use super::walk::Marks;
use super::{Affected, DEPTH_MAX, Damage, Loss, PIECES_MAX, check};
use crate::directory::EntryKind;
use crate::error::{RepoError, Result};
use crate::id::{ContentId, ManifestId, ObjectId};
use crate::repository::Repository;
use crate::snapshot::Snapshot;

/// Extents kept for one damage; neighbours count as one. Past that the rest is one extent up to the last byte hit.
const EXTENTS_MAX: usize = 10_000;

/// A file or folder of a snapshot: number of the snapshot, and path.
type Place = (usize, String);

struct Blame<'a> {
    repository: &'a Repository,
    marks: &'a Marks,
    cancel: &'a Cancel,
    findings: &'a HashMap<Key, Finding>,
    /// Objects without any damage below them.
    clean: HashSet<ObjectId>,
    /// Where each damage shows; an empty extent stands for a whole file or folder.
    hits: HashMap<Key, BTreeMap<Place, Vec<Extent>>>,
    losses: BTreeMap<Place, Vec<Extent>>,
}

/// Finds the places in `snapshots` that `findings` and the damaged rows of `marks` make unreadable.
pub(super) fn blame(
    repository: &Repository,
    snapshots: &[Snapshot],
    marks: &Marks,
    findings: &HashMap<Key, Finding>,
    cancel: &Cancel,
) -> Result<(Vec<Damage>, Vec<Loss>)> {
    let mut blame = Blame {
        repository,
        marks,
        cancel,
        findings,
        clean: HashSet::new(),
        hits: HashMap::new(),
        losses: BTreeMap::new(),
    };
    for (number, snapshot) in snapshots.iter().enumerate() {
        if let Some(root) = &snapshot.root {
            blame.object(&(number, String::new()), &root.object, root.kind, root.size, 0)?;
        }
    }
    let id = |number: usize| snapshots[number].id.unwrap_or(ManifestId([0; 16]));
    let Blame { mut hits, losses, .. } = blame;
    let mut damage: Vec<Damage> = findings
        .iter()
        .map(|(key, finding)| {
            let affected = hits
                .remove(key)
                .unwrap_or_default()
                .into_iter()
                .map(|((number, path), mut extents)| {
                    merge(&mut extents);
                    Affected {
                        snapshot: id(number),
                        path,
                        extents,
                    }
                });
            let (pack, range) = finding.place.clone().unzip();
            let (content, object) = match key {
                Key::Content(content) | Key::Length(content) => (Some(*content), None),
                Key::Object(object) => (Some(object.content), Some(*object)),
                Key::Pack(_) => (None, None),
            };
            Damage {
                kind: finding.kind,
                what: finding.what.clone(),
                content,
                object,
                pack,
                range: range.filter(|_| content.is_some()),
                affected: affected.collect(),
            }
        })
        .collect();
    damage.sort_by_cached_key(|damage| (damage.to_string(), damage.kind));
    let losses = losses.into_iter().map(|((number, path), mut extents)| {
        merge(&mut extents);
        Loss {
            snapshot: id(number),
            path,
            extents,
        }
    });
    Ok((damage, losses.collect()))
}

impl Blame<'_> {
    /// Notes the damage in one object and what is below it; true when there is none.
    fn object(&mut self, place: &Place, object: &ObjectId, kind: EntryKind, size: u64, depth: usize) -> Result<bool> {
        check(self.cancel)?;
        if self.clean.contains(object) {
            return Ok(true);
        }
        if depth > DEPTH_MAX {
            return Ok(!self.hit(&Key::Object(*object), place, Extent { offset: 0, len: 0 }));
        }
        let is_folder = kind == EntryKind::Directory;
        let (repository, mut is_clean) = (self.repository, true);
        // The damage that explains why bytes are lost, and whether some are.
        let (mut broken, mut is_lost, mut pieces) = (None, false, 0_u64);
        let whole = Extent { offset: 0, len: 0 };
        let visited = visit(repository, object, 0, None, 0, &mut |seen| {
            pieces += 1;
            if pieces > PIECES_MAX {
                return Err(RepoError::corrupt(format!(
                    "object {object} goes past {PIECES_MAX} pieces"
                )));
            }
            match seen {
                Seen::Piece { extent, content, exact } => {
                    if let Some(key) = self.verdict(&content, extent.len, exact) {
                        is_clean = false;
                        self.hit(&key, place, if is_folder { whole } else { extent });
                    }
                }
                Seen::List { content, len } => {
                    broken = self.verdict(&content, len, true).or(broken.take());
                }
                Seen::Broken { object, content, .. } => {
                    broken = Some(content.map_or(Key::Object(object), Key::Content));
                }
                Seen::Lost(extent) => {
                    (is_clean, is_lost) = (false, true);
                    let key = broken.clone().unwrap_or(Key::Object(*object));
                    self.hit(&key, place, if is_folder { whole } else { extent });
                }
            }
            Ok(())
        });
        let len = match visited {
            Ok(len) => len,
            Err(e) if e.is_damage() => {
                broken = Some(Key::Object(*object));
                0
            }
            Err(e) => return Err(e),
        };
        if let Some(key) = broken {
            is_clean = false;
            if size > len && !is_folder {
                self.hit(&key, place, Extent::between(len, size));
            } else if !is_lost {
                self.hit(&key, place, whole);
            }
        }
        if is_folder {
            match repository.read_directory(object) {
                Ok(directory) => {
                    for entry in directory.entries {
                        let below = (place.0, format!("{}/{}", place.1, entry.name));
                        is_clean &= self.object(&below, &entry.object, entry.kind, entry.size, depth + 1)?;
                    }
                }
                Err(e) if e.is_damage() || e.is_not_found() => {
                    is_clean = false;
                    for key in [Key::Content(object.content), Key::Object(*object)] {
                        if self.findings.contains_key(&key) {
                            self.hit(&key, place, whole);
                        }
                    }
                }
                Err(e) => return Err(e),
            }
        }
        if is_clean && (is_folder || object.indirection > 0) {
            self.clean.insert(*object);
        }
        Ok(is_clean)
    }

    /// Why `len` bytes cannot be had from `content`, when they cannot.
    fn verdict(&self, content: &ContentId, len: u64, exact: bool) -> Option<Key> {
        let Some((row, entry)) = self.marks.index.locate(content, self.marks.watermark) else {
            // Not damaged when another client has stored it since.
            return self
                .repository
                .lookup(content)
                .is_none()
                .then_some(Key::Content(*content));
        };
        if exact && u64::from(entry.original_len) != len {
            return Some(Key::Length(*content));
        }
        if !self.marks.damaged.has(row) {
            let key = Key::Content(*content);
            return self.findings.contains_key(&key).then_some(key);
        }
        let pack = Key::Pack(entry.to_entry().pack);
        Some(match self.findings.contains_key(&pack) {
            true => pack,
            false => Key::Content(*content),
        })
    }

    /// Notes that `extent` at `place` is hit. Always true.
    fn hit(&mut self, key: &Key, place: &Place, extent: Extent) -> bool {
        if self.findings.contains_key(key) {
            let places = self.hits.entry(key.clone()).or_default();
            push(places.entry(place.clone()).or_default(), extent);
        }
        push(self.losses.entry(place.clone()).or_default(), extent);
        true
    }
}

/// Adds an extent, to the last one when they touch.
fn push(extents: &mut Vec<Extent>, extent: Extent) {
    let is_full = extents.len() >= EXTENTS_MAX;
    match extents.last_mut() {
        Some(last) if extent.offset == last.end() || is_full && extent.offset > last.offset => {
            *last = Extent::between(last.offset, last.end().max(extent.end()));
        }
        _ => extents.push(extent),
    }
}

/// In order, each byte once; empty ones go when others say more.
fn merge(extents: &mut Vec<Extent>) {
    extents.sort_by_key(|extent| extent.offset);
    extents.dedup_by(|next, last| {
        let touches = next.offset <= last.end();
        if touches {
            *last = Extent::between(last.offset, last.end().max(next.end()));
        }
        touches
    });
    if extents.len() > 1 {
        extents.retain(|extent| !extent.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_merged_and_bounded() {
        let extent = |offset, len| Extent { offset, len };
        let mut extents = vec![extent(8, 2), extent(0, 0), extent(4, 4), extent(20, 1), extent(9, 3)];
        merge(&mut extents);
        assert_eq!(extents, [extent(4, 8), extent(20, 1)]);
        let mut whole = vec![extent(0, 0), extent(0, 0)];
        merge(&mut whole);
        assert_eq!(whole, [extent(0, 0)]);
        let mut many = Vec::new();
        (0..EXTENTS_MAX as u64 + 5).for_each(|at| push(&mut many, extent(at * 2, 1)));
        assert_eq!(many.len(), EXTENTS_MAX);
        assert_eq!(many.last().map(Extent::end), Some((EXTENTS_MAX as u64 + 4) * 2 + 1));
    }
}
