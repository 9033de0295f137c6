//! The second pass: are the packs there, and long enough.

use std::collections::HashMap;
use std::collections::HashSet;
use std::time::SystemTime;

use blockio::Cancel;

use super::check;
use super::finding::{DamageKind, Finding, Key};
use super::walk::Marks;
use crate::content::ContentFormat;
use crate::error::Result;
use crate::id::{BlobId, ContentId};
use crate::repository::Repository;

/// Length and time of every pack, by name; `None` for one that is certainly not there.
pub(super) struct Packs(HashMap<String, Option<(u64, SystemTime)>>);

impl Packs {
    /// Lists them: one request for 1,000 packs.
    pub(super) fn list(repository: &Repository) -> Result<Self> {
        let mut packs = HashMap::new();
        for prefix in ["p", "q"] {
            let listed = repository.store().list(prefix)?.into_iter();
            packs.extend(listed.map(|pack| (pack.id.as_str().to_owned(), Some((pack.len, pack.modified)))));
        }
        Ok(Self(packs))
    }

    /// Time of the newest pack by the storage's clock.
    pub(super) fn newest(&self) -> SystemTime {
        let times = self.0.values().flatten().map(|(_, modified)| *modified);
        times.max().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Time of a pack.
    pub(super) fn modified(&self, pack: &str) -> Option<SystemTime> {
        self.0.get(pack).copied().flatten().map(|(_, modified)| modified)
    }

    /// Length of a pack. One that is not listed is asked for by name, once: a listing may be late.
    fn len(&mut self, repository: &Repository, pack: &str) -> Result<Option<u64>> {
        if let Some(known) = self.0.get(pack) {
            return Ok(known.map(|(len, _)| len));
        }
        let found = match repository.store().meta(&BlobId::known(pack)) {
            Ok(meta) => Some((meta.len, meta.modified)),
            Err(e) if e.is_not_found() => None,
            Err(e) => return Err(e),
        };
        self.0.insert(pack.to_owned(), found);
        Ok(found.map(|(len, _)| len))
    }
}

/// Compares every content in use with the packs. Returns the contents that another client's maintenance has moved
/// elsewhere since the index was read; they are whole as far as an index can tell.
pub(super) fn check_packs(
    repository: &Repository,
    marks: &Marks,
    packs: &mut Packs,
    cancel: &Cancel,
) -> Result<Vec<ContentId>> {
    for (at, row) in marks.used.rows().enumerate() {
        if at.is_multiple_of(1 << 16) {
            check(cancel)?;
        }
        let entry = marks.index.row(row);
        let (start, end) = (
            u64::from(entry.offset),
            u64::from(entry.offset) + u64::from(entry.packed_len),
        );
        let pack = || BlobId::known(entry.pack);
        let (key, kind, what) = match packs.len(repository, entry.pack)? {
            None => (
                Key::Pack(pack()),
                DamageKind::PackMissing,
                format!("pack {} is missing from {}", entry.pack, repository.store().place()),
            ),
            Some(len) if len < end => (
                Key::Pack(pack()),
                DamageKind::PackShort,
                format!(
                    "pack {} has {len} bytes; content {} ends at {end}",
                    entry.pack, entry.content
                ),
            ),
            Some(_) if (entry.packed_len as usize) < ContentFormat::sealed_len(0) => (
                Key::Content(entry.content),
                DamageKind::ContentUnreadable,
                format!(
                    "content {} has {} bytes in its pack, fewer than encryption adds",
                    entry.content, entry.packed_len
                ),
            ),
            Some(_) => continue,
        };
        marks.damaged.set(row);
        marks.findings.add(key, || Finding {
            kind,
            what,
            place: Some((pack(), start..end)),
        });
    }
    find_again(repository, marks, packs)
}

/// Looks up in a fresh index what is missing by the old one.
fn find_again(repository: &Repository, marks: &Marks, packs: &mut Packs) -> Result<Vec<ContentId>> {
    let absent = marks.findings.select(|(key, finding)| match key {
        Key::Content(content) if finding.kind == DamageKind::ContentMissing => Some(*content),
        _ => None,
    });
    let mut moved = Vec::new();
    if absent.is_empty() && marks.damaged.count() == 0 {
        return Ok(moved);
    }
    repository.refresh()?;
    let mut is_good = |content: &ContentId| -> Result<bool> {
        let Some(entry) = repository.lookup(content) else {
            return Ok(false);
        };
        let end = u64::from(entry.offset) + u64::from(entry.packed_len);
        let is_sealed = entry.packed_len as usize >= ContentFormat::sealed_len(0);
        Ok(is_sealed
            && packs
                .len(repository, entry.pack.as_str())?
                .is_some_and(|len| end <= len))
    };
    for content in absent {
        if is_good(&content)? {
            marks.findings.remove(&Key::Content(content));
            moved.push(content);
        }
    }
    let mut bad_packs = HashSet::new();
    for row in marks.damaged.rows() {
        let entry = marks.index.row(row);
        if is_good(&entry.content)? {
            marks.damaged.clear(row);
            moved.push(entry.content);
        } else {
            bad_packs.insert(entry.pack);
        }
    }
    let good_again = marks.findings.select(|(key, _)| match key {
        Key::Pack(pack) if !bad_packs.contains(pack.as_str()) => Some(key.clone()),
        _ => None,
    });
    good_again.iter().for_each(|key| marks.findings.remove(key));
    Ok(moved)
}
