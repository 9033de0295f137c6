//! A store that fails on purpose: by operation, by name, by count.
//!
//! Tests use it to fail one step of a backup, and to stop the world after the n-th change of the storage, which is what
//! a killed process leaves behind.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::{BlobMeta, BlobStore};
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;

/// An operation of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOp {
    /// `put`.
    Put,
    /// `get` and `read_range`.
    Get,
    /// `meta`.
    Meta,
    /// `list`.
    List,
    /// `delete`.
    Delete,
    /// `sync`.
    Sync,
}

/// What happens instead of the operation.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// An error of this kind.
    Fail(Kind),
    /// A put stores only the first half, then fails; a get returns only the first half.
    Truncate,
    /// The time the storage reports is off by this many seconds.
    Skew(i64),
}

/// Which operations a fault applies to.
#[derive(Clone, Debug)]
pub struct FaultRule {
    /// The operation.
    pub op: StoreOp,
    /// Blob names (list: prefixes) that begin with this.
    pub prefix: String,
    /// Matching operations that pass first.
    pub skip: u64,
    /// Matching operations that fail then.
    pub count: u64,
    /// What happens.
    pub fault: Fault,
}

/// A store that follows fault rules.
pub struct FaultStore {
    inner: Arc<dyn BlobStore>,
    rules: Mutex<Vec<FaultRule>>,
    /// Changes (put, delete) that still go through; all operations fail after the last.
    changes_left: AtomicU64,
    changes: AtomicU64,
}

impl FaultStore {
    /// Wraps `inner`; without rules nothing changes.
    pub fn new(inner: Arc<dyn BlobStore>) -> Self {
        Self {
            inner,
            rules: Mutex::default(),
            changes_left: AtomicU64::new(u64::MAX),
            changes: AtomicU64::new(0),
        }
    }

    /// Adds a rule.
    pub fn rule(&self, rule: FaultRule) {
        self.rules.lock().expect("no panic while held").push(rule);
    }

    /// Fails the first `op` on names with `prefix` with `kind`.
    pub fn fail_once(&self, op: StoreOp, prefix: &str, kind: Kind) {
        self.rule(FaultRule {
            op,
            prefix: prefix.into(),
            skip: 0,
            count: 1,
            fault: Fault::Fail(kind),
        });
    }

    /// Lets `changes` more puts and deletes through, then fails everything: the process is dead to its storage.
    pub fn cut_after(&self, changes: u64) {
        self.changes_left.store(changes, Ordering::SeqCst);
    }

    /// Puts and deletes done so far.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    fn enter(&self, op: StoreOp, name: &str) -> Result<Option<Fault>> {
        let dead = || RepoError::new(Kind::Storage, format!("storage cut off at {op:?} {name}"));
        if matches!(op, StoreOp::Put | StoreOp::Delete) {
            let left = self
                .changes_left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            left.map_err(|_| dead())?;
            self.changes.fetch_add(1, Ordering::SeqCst);
        } else if self.changes_left.load(Ordering::SeqCst) == 0 {
            return Err(dead());
        }
        let mut rules = self.rules.lock().expect("no panic while held");
        let matching = rules
            .iter_mut()
            .filter(|r| r.op == op && r.count > 0 && name.starts_with(&r.prefix));
        for rule in matching {
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            rule.count -= 1;
            return match rule.fault {
                Fault::Fail(kind) => Err(RepoError::new(kind, format!("injected fault at {op:?} {name}"))),
                other => Ok(Some(other)),
            };
        }
        Ok(None)
    }
}

fn skewed(mut meta: BlobMeta, fault: Option<Fault>) -> BlobMeta {
    if let Some(Fault::Skew(seconds)) = fault {
        let by = Duration::from_secs(seconds.unsigned_abs());
        let moved: Option<SystemTime> = if seconds < 0 {
            meta.modified.checked_sub(by)
        } else {
            meta.modified.checked_add(by)
        };
        meta.modified = moved.unwrap_or(meta.modified);
    }
    meta
}

impl BlobStore for FaultStore {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn put(&self, id: &BlobId, bytes: &[u8]) -> Result<()> {
        match self.enter(StoreOp::Put, id.as_str())? {
            Some(Fault::Truncate) => {
                self.inner.put(id, &bytes[..bytes.len() / 2])?;
                Err(RepoError::new(
                    Kind::Storage,
                    format!("injected truncation at Put {id}"),
                ))
            }
            _ => self.inner.put(id, bytes),
        }
    }

    fn get(&self, id: &BlobId) -> Result<Vec<u8>> {
        let fault = self.enter(StoreOp::Get, id.as_str())?;
        let mut bytes = self.inner.get(id)?;
        if let Some(Fault::Truncate) = fault {
            bytes.truncate(bytes.len() / 2);
        }
        Ok(bytes)
    }

    fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> Result<Range<usize>> {
        self.enter(StoreOp::Get, id.as_str())?;
        self.inner.read_range(id, range, buf)
    }

    fn meta(&self, id: &BlobId) -> Result<BlobMeta> {
        let fault = self.enter(StoreOp::Meta, id.as_str())?;
        Ok(skewed(self.inner.meta(id)?, fault))
    }

    fn list(&self, prefix: &str) -> Result<Vec<BlobMeta>> {
        let fault = self.enter(StoreOp::List, prefix)?;
        Ok(self.inner.list(prefix)?.into_iter().map(|m| skewed(m, fault)).collect())
    }

    fn delete(&self, id: &BlobId) -> Result<()> {
        self.enter(StoreOp::Delete, id.as_str())?;
        self.inner.delete(id)
    }

    fn sync(&self) -> Result<()> {
        self.enter(StoreOp::Sync, "")?;
        self.inner.sync()
    }
}
