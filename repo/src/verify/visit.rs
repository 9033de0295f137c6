//! Every piece of one object, in so far as its lists can be read.

use std::io::Read;

use blockio::Extent;

use super::scan::ListScan;
use crate::error::{RepoError, Result};
use crate::id::{ContentId, ObjectId};
use crate::object::parse_list;
use crate::repository::Repository;

/// Deepest nest of lists in lists.
const NESTING_MAX: u32 = 16;

/// What a visit meets.
pub(super) enum Seen {
    /// Bytes `extent` of the object are the plaintext of `content`; when `exact`, all of it.
    Piece {
        extent: Extent,
        content: ContentId,
        exact: bool,
    },
    /// `content` holds `len` bytes of a list.
    List { content: ContentId, len: u64 },
    /// The list of `object` is not what it should be; `content` is the part that cannot be read, if it is one.
    Broken {
        object: ObjectId,
        content: Option<ContentId>,
        error: RepoError,
    },
    /// No list that can be read tells of these bytes.
    Lost(Extent),
}

/// Takes what a visit meets; an error ends it.
pub(super) type Each<'a> = &'a mut dyn FnMut(Seen) -> Result<()>;

/// Visits the pieces of `object`, whose first byte is byte `at`, and which is `len` bytes long as far as is known.
/// Returns its length. Pieces of a list that is broken may be met twice.
///
/// # Errors
/// When the storage cannot be read, or `each` fails. Damage is no error: it is met.
pub(super) fn visit(
    repository: &Repository,
    object: &ObjectId,
    at: u64,
    len: Option<u64>,
    depth: u32,
    each: Each<'_>,
) -> Result<u64> {
    let Some(list) = object.list() else {
        let known = || {
            repository
                .lookup(&object.content)
                .map(|entry| u64::from(entry.original_len))
        };
        let len = len.or_else(known).unwrap_or(0);
        each(Seen::Piece {
            extent: Extent { offset: at, len },
            content: object.content,
            exact: !object.compressed,
        })?;
        return Ok(len);
    };
    if depth > NESTING_MAX {
        let error = RepoError::corrupt(format!("object {object} is nested more than {NESTING_MAX} lists deep"));
        broken(*object, None, error, each)?;
        each(lost(at, len.unwrap_or(0)))?;
        return Ok(len.unwrap_or(0));
    }
    let parts = parts(repository, &list, depth, each)?;
    let end = std::cell::Cell::new(0);
    let strict = parse_list(object, Text::new(repository, &parts), &mut |entry| {
        end.set(entry.start + entry.len);
        let have = visit(
            repository,
            &entry.object,
            at.saturating_add(entry.start),
            Some(entry.len),
            depth + 1,
            each,
        )?;
        debug_assert_eq!(have, entry.len, "a length that is told is returned");
        Ok(())
    });
    match strict {
        Ok(()) => {
            let have = end.get();
            match len {
                Some(len) if len != have => {
                    let error = RepoError::corrupt(format!("object {object} has {have} bytes, its list says {len}"));
                    broken(*object, None, error, each)?;
                    // What is where is not certain any more.
                    each(lost(at, len))?;
                    Ok(len)
                }
                _ => Ok(have),
            }
        }
        Err(e) if e.is_damage() => rescue(repository, object, &parts, e, (at, len), depth, each),
        Err(e) => Err(e),
    }
}

fn broken(object: ObjectId, content: Option<ContentId>, error: RepoError, each: Each<'_>) -> Result<()> {
    each(Seen::Broken { object, content, error })
}

fn lost(offset: u64, len: u64) -> Seen {
    Seen::Lost(Extent { offset, len })
}

/// A piece of the text of a list, or a gap in it.
struct Part {
    content: Option<ContentId>,
    extent: Extent,
}

/// The pieces of the text of a list. They are met as parts of a list by `each`.
fn parts(repository: &Repository, list: &ObjectId, depth: u32, each: Each<'_>) -> Result<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    visit(repository, list, 0, None, depth + 1, &mut |seen| match seen {
        Seen::Piece { extent, content, .. } => {
            parts.push(Part {
                content: Some(content),
                extent,
            });
            each(Seen::List {
                content,
                len: extent.len,
            })
        }
        Seen::Lost(extent) => {
            parts.push(Part { content: None, extent });
            Ok(())
        }
        other => each(other),
    })?;
    // In order, and once each, also after a broken list.
    parts.sort_by_key(|part| (part.extent.offset, part.content.is_none()));
    parts.dedup_by_key(|part| part.extent.offset);
    Ok(parts)
}

fn read_part(repository: &Repository, content: &ContentId, len: u64) -> Result<Vec<u8>> {
    let bytes = repository.read_content(content)?;
    if bytes.len() as u64 == len {
        return Ok(bytes);
    }
    let what = format!("content {content} has {} bytes, its list says {len}", bytes.len());
    Err(RepoError::corrupt(what))
}

/// Reads on after what is missing: finds the entries in what is left of a list, and tells what no entry covers.
fn rescue(
    repository: &Repository,
    object: &ObjectId,
    parts: &[Part],
    error: RepoError,
    (at, len): (u64, Option<u64>),
    depth: u32,
    each: Each<'_>,
) -> Result<u64> {
    let (mut scan, mut entries) = (ListScan::new(), Vec::new());
    let mut end = 0;
    let mut is_torn = false;
    for part in parts {
        if part.extent.offset > end {
            scan.gap();
            is_torn = true;
        }
        end = part.extent.offset + part.extent.len;
        let text = part
            .content
            .map(|content| (content, read_part(repository, &content, part.extent.len)));
        match text {
            Some((_, Ok(text))) => scan.take(&text, |entry| entries.push(entry)),
            Some((content, Err(error))) if error.is_damage() || error.is_not_found() => {
                scan.gap();
                is_torn = true;
                broken(*object, Some(content), error, each)?;
            }
            Some((_, Err(error))) => return Err(error),
            None => {
                scan.gap();
                is_torn = true;
            }
        }
    }
    // A list with a hole in it is not what it should be because of the hole, which has been told.
    if !is_torn {
        broken(*object, None, error, each)?;
    }
    entries.sort_by_key(|entry| entry.start);
    let mut covered = 0;
    for entry in entries {
        let entry_end = entry.start + entry.len;
        if entry.start < covered || len.is_some_and(|len| entry_end > len) {
            continue; // it contradicts the one before, or the object
        }
        if entry.start > covered {
            each(lost(at.saturating_add(covered), entry.start - covered))?;
        }
        visit(
            repository,
            &entry.object,
            at.saturating_add(entry.start),
            Some(entry.len),
            depth + 1,
            each,
        )?;
        covered = entry_end;
    }
    let len = len.unwrap_or(covered);
    if len > covered {
        each(lost(at.saturating_add(covered), len - covered))?;
    }
    Ok(len)
}

/// The text of a list up to the first part that is missing.
struct Text<'a> {
    repository: &'a Repository,
    parts: &'a [Part],
    piece: Vec<u8>,
    read: usize,
    end: u64,
}

impl<'a> Text<'a> {
    fn new(repository: &'a Repository, parts: &'a [Part]) -> Self {
        Self {
            repository,
            parts,
            piece: Vec::new(),
            read: 0,
            end: 0,
        }
    }

    fn next_part(&mut self) -> Result<bool> {
        let Some((part, rest)) = self.parts.split_first() else {
            return Ok(false);
        };
        let Some(content) = part.content.filter(|_| part.extent.offset == self.end) else {
            return Err(RepoError::corrupt(format!(
                "bytes {} and on of the list are missing",
                self.end
            )));
        };
        self.piece = read_part(self.repository, &content, part.extent.len).map_err(|e| match e.is_not_found() {
            true => RepoError::corrupt(format!("content {content} is missing")).because(e),
            false => e,
        })?;
        (self.parts, self.read, self.end) = (rest, 0, part.extent.offset + part.extent.len);
        Ok(true)
    }
}

impl Read for Text<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        while self.read == self.piece.len() {
            if !self.next_part().map_err(std::io::Error::other)? {
                return Ok(0);
            }
        }
        let count = buf.len().min(self.piece.len() - self.read);
        buf[..count].copy_from_slice(&self.piece[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}
