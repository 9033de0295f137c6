//! A store that fails on purpose: by operation, by name, by range, by count or by chance.
//!
//! Tests use it to fail one step of a backup, to let thousands of faults rain on one, and to stop the world after the n-th
//! change of the storage, which is what a killed process leaves behind.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::clock::Chance;
use super::{BlobMeta, BlobStore, Habits, ObjectLock, StoreOp};
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;

/// What happens instead of the operation.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// An error of this kind, and the operation is not done.
    Fail(Kind),
    /// The operation is done, and then told to have failed with this kind: the answer was lost.
    FailAfter(Kind),
    /// The storage asks for fewer requests; the operation is not done.
    SlowDown,
    /// A put stores only the first half, then fails; a get or range returns only the first half.
    Truncate,
    /// The time the storage reports is off by this many seconds.
    Skew(i64),
    /// A listing as it was this many changes ago, of those since a rule of this fault is set.
    Stale(u64),
    /// A put arrives twice: now, and once more after this many further changes, whatever became of the blob meanwhile.
    Again(u64),
}

/// Which operations a fault applies to.
#[derive(Clone, Debug)]
pub struct FaultRule {
    /// The operation. `Get` stands for `Range` too.
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

/// A rule that is set.
struct Active {
    rule: FaultRule,
    /// Reads that touch these bytes.
    within: Option<Range<u64>>,
    /// How many of a thousand matching operations, and by which throws.
    chance: Option<(u64, Chance)>,
}

/// A store that follows fault rules.
pub struct FaultStore {
    inner: Arc<dyn BlobStore>,
    rules: Mutex<Vec<Active>>,
    /// Changes (put, delete) that still go through; all operations fail after the last.
    changes_left: AtomicU64,
    changes: AtomicU64,
    injected: AtomicU64,
    /// What each changed blob was before, oldest change first; kept while a rule asks for stale listings.
    before: Mutex<Vec<(BlobId, Option<BlobMeta>)>>,
    /// Second deliveries on their way, and after which change each arrives.
    late: Mutex<Vec<(u64, BlobId, Bytes)>>,
}

impl FaultStore {
    /// Wraps `inner`; without rules nothing changes.
    pub fn new(inner: Arc<dyn BlobStore>) -> Self {
        Self {
            inner,
            rules: Mutex::default(),
            changes_left: AtomicU64::new(u64::MAX),
            changes: AtomicU64::new(0),
            injected: AtomicU64::new(0),
            before: Mutex::default(),
            late: Mutex::default(),
        }
    }

    /// Adds a rule. The first of several that match an operation is followed.
    pub fn rule(&self, rule: FaultRule) {
        self.add(rule, None, None);
    }

    /// Adds a rule for reads that touch bytes `within` of a blob.
    pub fn rule_within(&self, rule: FaultRule, within: Range<u64>) {
        self.add(rule, Some(within), None);
    }

    /// Adds a rule that `per_mille` of a thousand matching operations fall under. The same `seed` and the same order of
    /// operations give the same faults.
    pub fn rule_by_chance(&self, rule: FaultRule, per_mille: u64, seed: u64) {
        self.add(rule, None, Some((per_mille, Chance::seeded(seed))));
    }

    fn add(&self, rule: FaultRule, within: Option<Range<u64>>, chance: Option<(u64, Chance)>) {
        self.rules
            .lock()
            .expect("no panic while held")
            .push(Active { rule, within, chance });
    }

    /// Takes all rules back. Second deliveries on their way still arrive.
    pub fn clear(&self) {
        self.rules.lock().expect("no panic while held").clear();
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

    /// Faults injected so far.
    pub fn injected(&self) -> u64 {
        self.injected.load(Ordering::SeqCst)
    }

    /// Lets every second delivery arrive that is on its way.
    pub fn deliver(&self) -> Result<()> {
        self.deliver_until(u64::MAX)
    }

    /// Lets the second deliveries arrive that are due after change number `change`.
    fn deliver_until(&self, change: u64) -> Result<()> {
        let due: Vec<_> = {
            let mut late = self.late.lock().expect("no panic while held");
            late.extract_if(.., |(at, ..)| *at <= change).collect()
        };
        due.into_iter()
            .try_for_each(|(_, id, bytes)| self.inner.put(&id, &bytes))
    }

    /// Does `op`, or what a rule says instead.
    fn act<T>(
        &self,
        op: StoreOp,
        name: &str,
        range: Option<&Range<u64>>,
        run: impl FnOnce(Option<Fault>) -> Result<T>,
    ) -> Result<T> {
        self.enter(op, name)?;
        let fault = self.fault_of(op, name, range);
        self.injected.fetch_add(u64::from(fault.is_some()), Ordering::SeqCst);
        let injected = |kind| RepoError::new(kind, format!("injected fault at {op:?} {name}"));
        match fault {
            Some(Fault::Fail(kind)) => Err(injected(kind)),
            Some(Fault::SlowDown) => Err(injected(Kind::Throttled)),
            Some(Fault::FailAfter(kind)) => run(None).and(Err(injected(kind))),
            other => run(other),
        }
    }

    fn enter(&self, op: StoreOp, name: &str) -> Result<()> {
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
        Ok(())
    }

    fn fault_of(&self, op: StoreOp, name: &str, range: Option<&Range<u64>>) -> Option<Fault> {
        let mut rules = self.rules.lock().expect("no panic while held");
        for Active { rule, within, chance } in rules.iter_mut() {
            let touches = |within: &Range<u64>| range.is_some_and(|r| r.start < within.end && within.start < r.end);
            let matches = (rule.op == op || (rule.op, op) == (StoreOp::Get, StoreOp::Range))
                && rule.count > 0
                && name.starts_with(&rule.prefix)
                && within.as_ref().is_none_or(touches);
            if !matches {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if chance
                .as_ref()
                .is_none_or(|(per_mille, chance)| chance.below(1000) < *per_mille)
            {
                rule.count -= 1;
                return Some(rule.fault);
            }
        }
        None
    }

    /// Does a change, noting what was there before if somebody may ask, and lets late deliveries follow.
    fn change(&self, id: &BlobId, run: impl FnOnce() -> Result<()>) -> Result<()> {
        let stale = |active: &Active| matches!(active.rule.fault, Fault::Stale(_));
        if self.rules.lock().expect("no panic while held").iter().any(stale) {
            // Held across the change, so that the order of the notes is the order of the changes.
            let mut before = self.before.lock().expect("no panic while held");
            let was = match self.inner.meta(id) {
                Err(e) if e.is_not_found() => None,
                other => Some(other?),
            };
            run()?;
            before.push((id.clone(), was));
        } else {
            run()?;
        }
        self.deliver_until(self.changes())
    }

    fn put_faulty(
        &self,
        id: &BlobId,
        bytes: &[u8],
        fault: Option<Fault>,
        put: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        match fault {
            Some(Fault::Truncate) => {
                self.change(id, || self.inner.put(id, &bytes[..bytes.len() / 2]))?;
                let what = format!("injected truncation at Put {id}");
                Err(RepoError::new(Kind::Storage, what))
            }
            Some(Fault::Again(after)) => {
                let again = (self.changes() + after, id.clone(), Bytes::copy_from_slice(bytes));
                self.change(id, put)?;
                self.late.lock().expect("no panic while held").push(again);
                self.deliver_until(self.changes()) // at once when no change is to come between
            }
            _ => self.change(id, put),
        }
    }

    /// The listing of `prefix` as it was `ago` changes ago.
    fn list_stale(&self, prefix: &str, ago: u64) -> Result<Vec<BlobMeta>> {
        let before = self.before.lock().expect("no panic while held");
        let blobs = self.inner.list(prefix)?.into_iter();
        let mut blobs: BTreeMap<BlobId, BlobMeta> = blobs.map(|meta| (meta.id.clone(), meta)).collect();
        let ago = usize::try_from(ago).unwrap_or(usize::MAX);
        for (id, was) in before.iter().rev().take(ago) {
            match was {
                Some(meta) if id.as_str().starts_with(prefix) => blobs.insert(id.clone(), meta.clone()),
                _ => blobs.remove(id),
            };
        }
        Ok(blobs.into_values().collect())
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
        self.act(StoreOp::Put, id.as_str(), None, |fault| {
            self.put_faulty(id, bytes, fault, || self.inner.put(id, bytes))
        })
    }

    fn put_shared(&self, id: &BlobId, bytes: Bytes, lock: Option<&ObjectLock>) -> Result<()> {
        self.act(StoreOp::Put, id.as_str(), None, |fault| {
            self.put_faulty(id, &bytes, fault, || self.inner.put_shared(id, bytes.clone(), lock))
        })
    }

    fn extend_lock(&self, id: &BlobId, lock: &ObjectLock) -> Result<()> {
        self.act(StoreOp::Lock, id.as_str(), None, |_| self.inner.extend_lock(id, lock))
    }

    fn habits(&self) -> Habits {
        self.inner.habits()
    }

    fn get(&self, id: &BlobId) -> Result<Vec<u8>> {
        self.act(StoreOp::Get, id.as_str(), None, |fault| {
            let mut bytes = self.inner.get(id)?;
            if let Some(Fault::Truncate) = fault {
                bytes.truncate(bytes.len() / 2);
            }
            Ok(bytes)
        })
    }

    fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> Result<Range<usize>> {
        self.act(StoreOp::Range, id.as_str(), Some(&range), |fault| {
            let at = self.inner.read_range(id, range.clone(), buf)?;
            match fault {
                Some(Fault::Truncate) => {
                    let half = at.start..at.start + at.len() / 2;
                    buf[half.end..].fill(0);
                    Ok(half)
                }
                _ => Ok(at),
            }
        })
    }

    fn meta(&self, id: &BlobId) -> Result<BlobMeta> {
        self.act(StoreOp::Meta, id.as_str(), None, |fault| {
            Ok(skewed(self.inner.meta(id)?, fault))
        })
    }

    fn list(&self, prefix: &str) -> Result<Vec<BlobMeta>> {
        self.act(StoreOp::List, prefix, None, |fault| match fault {
            Some(Fault::Stale(ago)) => self.list_stale(prefix, ago),
            _ => Ok(self.inner.list(prefix)?.into_iter().map(|m| skewed(m, fault)).collect()),
        })
    }

    fn delete(&self, id: &BlobId) -> Result<()> {
        self.act(StoreOp::Delete, id.as_str(), None, |_| {
            self.change(id, || self.inner.delete(id))
        })
    }

    fn sync(&self) -> Result<()> {
        self.act(StoreOp::Sync, "", None, |_| self.inner.sync())
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemStore;
    use super::*;

    fn world() -> (Arc<MemStore>, FaultStore) {
        let inner = Arc::new(MemStore::new());
        (inner.clone(), FaultStore::new(inner))
    }

    fn id(text: &str) -> BlobId {
        BlobId::new(text).expect("a blob id")
    }

    fn rule(op: StoreOp, prefix: &str, fault: Fault) -> FaultRule {
        FaultRule {
            op,
            prefix: prefix.into(),
            skip: 0,
            count: 1,
            fault,
        }
    }

    fn names(blobs: &[BlobMeta]) -> Vec<&str> {
        blobs.iter().map(|blob| blob.id.as_str()).collect()
    }

    #[test]
    fn an_operation_fails_before_or_after_its_effect() {
        let (inner, store) = world();
        store.rule(rule(StoreOp::Put, "p", Fault::Fail(Kind::Unavailable)));
        store.rule(rule(StoreOp::Put, "p", Fault::FailAfter(Kind::Unavailable)));
        store.rule(rule(StoreOp::Put, "p", Fault::SlowDown));
        assert_eq!(
            store.put(&id("p1"), b"x").expect_err("before").kind(),
            Kind::Unavailable
        );
        assert!(inner.list("").expect("list").is_empty());
        assert_eq!(store.put(&id("p1"), b"x").expect_err("after").kind(), Kind::Unavailable);
        assert_eq!(names(&inner.list("").expect("list")), ["p1"]);
        assert_eq!(
            store.put(&id("p2"), b"x").expect_err("slow down").kind(),
            Kind::Throttled
        );
        store
            .put_shared(&id("p2"), Bytes::from_static(b"x"), None)
            .expect("no rule left");
        store.rule(rule(StoreOp::Delete, "p", Fault::FailAfter(Kind::Unavailable)));
        store.delete(&id("p2")).expect_err("after");
        assert_eq!(names(&inner.list("").expect("list")), ["p1"]);
        assert_eq!(store.injected(), 4);
    }

    #[test]
    fn reads_are_cut_short_where_a_rule_says_so() {
        let (_, store) = world();
        store.put(&id("p1"), &[7; 100]).expect("put");
        store.rule(rule(StoreOp::Get, "p", Fault::Truncate));
        assert_eq!(store.get(&id("p1")).expect("half").len(), 50);
        store.rule_within(rule(StoreOp::Range, "p", Fault::Truncate), 40..41);
        let mut buf = vec![1; 9000];
        assert_eq!(store.read_range(&id("p1"), 41..61, &mut buf).expect("beside"), 0..20);
        assert_eq!(store.read_range(&id("p1"), 21..41, &mut buf).expect("half"), 0..10);
        assert_eq!(buf[..20], [[7; 10], [0; 10]].concat());
    }

    #[test]
    fn a_stale_listing_is_what_was_some_changes_ago() {
        let (_, store) = world();
        store.put(&id("n0"), b"x").expect("put");
        let stale = |ago| {
            store.rule(rule(StoreOp::List, "n", Fault::Stale(ago)));
            names(&store.list("n").expect("list")).join(" ")
        };
        assert_eq!(stale(9), "n0");
        // This one is not followed, and makes the store keep notes.
        store.rule(rule(StoreOp::List, "other", Fault::Stale(0)));
        store.put(&id("n1"), b"x").expect("put");
        store.put(&id("p1"), b"x").expect("put");
        store.delete(&id("n0")).expect("delete");
        let seen: Vec<_> = (0..5).map(stale).collect();
        assert_eq!(seen, ["n1", "n0 n1", "n0 n1", "n0", "n0"]);
    }

    #[test]
    fn a_second_delivery_comes_after_a_delete() {
        let (inner, store) = world();
        store.rule(rule(StoreOp::Put, "s", Fault::Again(2)));
        store.put(&id("s1"), b"x").expect("put");
        store.delete(&id("s1")).expect("delete");
        assert!(inner.list("s").expect("list").is_empty());
        store.put(&id("p1"), b"x").expect("put");
        assert_eq!(names(&inner.list("s").expect("list")), ["s1"]);
        store.rule(rule(StoreOp::Put, "s", Fault::Again(99)));
        store.put(&id("s2"), b"x").expect("put");
        inner.delete(&id("s2")).expect("delete");
        store.deliver().expect("deliver");
        assert_eq!(names(&inner.list("s").expect("list")), ["s1", "s2"]);
    }

    #[test]
    fn a_second_delivery_at_once_never_undoes_what_comes_next() {
        let (inner, store) = world();
        store.rule(rule(StoreOp::Put, "m", Fault::Again(0)));
        store.put(&id("m1"), b"old").expect("put");
        store.put(&id("m1"), b"new").expect("put");
        assert_eq!(inner.get(&id("m1")).expect("get"), b"new");
    }

    #[test]
    fn chance_is_the_same_for_the_same_seed() {
        let run = |seed| -> Vec<bool> {
            let (_, store) = world();
            let rule = FaultRule {
                count: u64::MAX,
                ..rule(StoreOp::List, "", Fault::SlowDown)
            };
            store.rule_by_chance(rule, 250, seed);
            (0..400).map(|_| store.list("").is_err()).collect()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let failed = run(3).iter().filter(|failed| **failed).count();
        assert!((60..140).contains(&failed), "{failed}");
    }

    #[test]
    fn a_store_that_is_cut_off_answers_nothing_any_more() {
        let (inner, store) = world();
        store.cut_after(1);
        store.put(&id("p1"), b"x").expect("the last change");
        store.put(&id("p2"), b"x").expect_err("dead");
        store.list("").expect_err("dead");
        assert_eq!((store.changes(), inner.list("").expect("list").len()), (1, 1));
    }
}
