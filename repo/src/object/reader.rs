//! Reading an object as a stream.

use std::io::Read;
use std::ops::Range;

use super::{BlockAddressTable, TableEntry};
use crate::compress::{Decompressor, OUTPUT_BYTES_MAX};
use crate::error::{RepoError, Result};
use crate::id::ContentId;
use crate::repository::Repository;

/// Reads an object front to back, content by content.
pub struct ObjectReader<'a> {
    repository: &'a Repository,
    table: &'a BlockAddressTable,
    next: usize,
    piece: Vec<u8>,
    left: Range<usize>,
}

impl<'a> ObjectReader<'a> {
    /// A reader of the object whose pieces are `table`.
    pub fn new(repository: &'a Repository, table: &'a BlockAddressTable) -> Self {
        Self {
            repository,
            table,
            next: 0,
            piece: Vec::new(),
            left: 0..0,
        }
    }

    /// The same, when the bytes of the first piece are at hand. An object without pieces has none.
    pub(crate) fn with_first(repository: &'a Repository, table: &'a BlockAddressTable, first: Vec<u8>) -> Self {
        Self {
            next: table.count().min(1),
            left: 0..first.len(),
            piece: first,
            ..Self::new(repository, table)
        }
    }
}

impl Read for ObjectReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.left.is_empty() {
            if self.next == self.table.count() {
                return Ok(0);
            }
            let entry = self.table.entry(self.next);
            self.piece = self.repository.read_piece(&entry).map_err(std::io::Error::other)?;
            self.left = 0..self.piece.len();
            self.next += 1;
        }
        let count = buf.len().min(self.left.len());
        buf[..count].copy_from_slice(&self.piece[self.left.start..self.left.start + count]);
        self.left.start += count;
        Ok(count)
    }
}

impl Repository {
    /// The bytes of one piece of an object.
    ///
    /// # Errors
    /// As [`Repository::read_content`], and `Corrupt` when the piece has another length than its list says.
    pub fn read_piece(&self, piece: &TableEntry) -> Result<Vec<u8>> {
        let bytes = match piece.compressed {
            false => self.read_content(&piece.content)?,
            // One byte more than it may have, so that a longer one is told from one that ends there.
            true => self.read_compressed(&piece.content, piece.extent.len.saturating_add(1))?,
        };
        match bytes.len() as u64 == piece.extent.len {
            true => Ok(bytes),
            false => Err(RepoError::corrupt(format!(
                "content {} has {} bytes, its list says {}",
                piece.content,
                bytes.len(),
                piece.extent.len
            ))),
        }
    }

    /// What `content` holds compressed, at most `limit` bytes.
    pub(crate) fn read_compressed(&self, content: &ContentId, limit: u64) -> Result<Vec<u8>> {
        let stream = self.read_content(content)?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(OUTPUT_BYTES_MAX);
        let mut bytes = Vec::new();
        Decompressor::new()
            .decompress_any(&stream, limit, &mut bytes)
            .map_err(|e| e.context(format!("content {content}")))?;
        Ok(bytes)
    }
}
