//! What is served, by name: a live registry. Exports come and go while servers run.

use crate::error::NbdError;
use crate::negotiate::{Offer, Refusal};
use crate::proto::STRING_MAX;
use crate::server::{Link, Pool, Waiting, Window};
use blockio::{BlockSink, BlockSource, Geometry};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

/// Connections to one export. Clients use 4 to 8; each may hold a thread and 64 MiB.
pub const CONNECTIONS_PER_EXPORT: usize = 16;

/// Bytes in flight on all connections of an export together: four connections with full windows.
const EXPORT_BYTES_MAX: u64 = 256 << 20;

/// Best length of requests to an export that takes writes: a page.
const PREFERRED_WRITABLE: u32 = 4 << 10;
/// Best length of requests to one that does not: a chunk, the unit in which repositories are read.
const PREFERRED_READ_ONLY: u32 = 1 << 20;
/// Largest block size that the protocol lets a server ask for.
const BLOCK_MIN_MAX: u32 = 64 << 10;

/// What an export can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportFlags {
    /// Takes no writes, whatever is asked.
    pub read_only: bool,
    /// Zeros of any length are a note in a table.
    pub fast_zero: bool,
}

/// A volume as it is served: the source, the sink if it may be written, who may have it.
pub struct Export {
    description: String,
    pub(crate) source: Arc<dyn BlockSource>,
    pub(crate) sink: Option<Arc<dyn BlockSink>>,
    geometry: Geometry,
    /// Bytes that are served. Only grows.
    size: AtomicU64,
    /// Names of peers; all that a listener lets in when there are none.
    peers: Option<BTreeSet<String>>,
    withdrawn: AtomicBool,
    connections: AtomicUsize,
    links: Mutex<Vec<Weak<Link>>>,
    pub(crate) pool: Pool<Waiting>,
    pub(crate) budget: Arc<Window>,
    pub(crate) counters: Counters,
}

/// What was done on an export since it was made.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) failures: AtomicU64,
}

/// What was done on an export since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportStats {
    /// Requests accepted.
    pub requests: u64,
    /// Bytes asked for by reads.
    pub bytes_read: u64,
    /// Bytes of writes.
    pub bytes_written: u64,
    /// Requests that the volume failed.
    pub failures: u64,
    /// Connections now.
    pub connections: usize,
}

impl Export {
    /// A volume that is only read, whatever it could do.
    pub fn read_only(source: Arc<dyn BlockSource>) -> Self {
        Self {
            description: String::new(),
            geometry: source.geometry(),
            size: AtomicU64::new(source.geometry().size),
            source,
            sink: None,
            peers: None,
            withdrawn: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            links: Mutex::default(),
            pool: Pool::new(),
            budget: Arc::new(Window::new(usize::MAX, EXPORT_BYTES_MAX)),
            counters: Counters::default(),
        }
    }

    /// A volume that is read and written.
    pub fn writable<V: BlockSource + BlockSink + 'static>(volume: Arc<V>) -> Self {
        Self {
            sink: Some(volume.clone()),
            ..Self::read_only(volume)
        }
    }

    /// The same with a text for people.
    #[must_use]
    pub fn described(mut self, description: &str) -> Self {
        description[..description.floor_char_boundary(STRING_MAX)].clone_into(&mut self.description);
        self
    }

    /// The same, only for peers of one of these names: `uri:` and `dns:` names or the `cn:` of their certificate. Others are
    /// not told of it. Peers without a certificate have no name.
    #[must_use]
    pub fn only_for<I: IntoIterator<Item = String>>(mut self, peers: I) -> Self {
        self.peers = Some(peers.into_iter().collect());
        self
    }

    /// What it can do.
    pub fn flags(&self) -> ExportFlags {
        ExportFlags {
            read_only: self.sink.is_none(),
            fast_zero: self.sink.as_ref().is_some_and(|sink| sink.zeroes_fast()),
        }
    }

    /// What was done on it.
    pub fn stats(&self) -> ExportStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExportStats {
            requests: get(&self.counters.requests),
            bytes_read: get(&self.counters.bytes_read),
            bytes_written: get(&self.counters.bytes_written),
            failures: get(&self.counters.failures),
            connections: self.connections.load(Ordering::Relaxed),
        }
    }

    /// Bytes that are served.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// The volume has grown: what is behind the old end is served as well.
    pub(crate) fn grow_to(&self, size: u64) {
        self.size.fetch_max(size, Ordering::AcqRel);
    }

    pub(crate) fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::Acquire)
    }

    fn is_for(&self, peer: &BTreeSet<String>) -> bool {
        self.peers.as_ref().is_none_or(|peers| !peers.is_disjoint(peer))
    }

    fn offer(&self, name: &str) -> Offer {
        let flags = self.flags();
        let block_min = self.geometry.offset_align.clamp(1, BLOCK_MIN_MAX);
        let preferred = if flags.read_only {
            PREFERRED_READ_ONLY
        } else {
            PREFERRED_WRITABLE
        };
        Offer {
            name: name.to_owned(),
            description: self.description.clone(),
            size: self.size(),
            writable: !flags.read_only,
            fast_zero: flags.fast_zero,
            block_min,
            block_preferred: preferred.max(block_min),
        }
    }
}

/// Holds an export open for one connection.
pub struct Ticket {
    pub(crate) export: Arc<Export>,
}

impl Ticket {
    fn new(export: &Arc<Export>) -> Option<Self> {
        // Counted first, so that two that come at once cannot both be the last.
        let before = export.connections.fetch_add(1, Ordering::AcqRel);
        let ticket = Self { export: export.clone() };
        (before < CONNECTIONS_PER_EXPORT).then_some(ticket)
    }

    /// This connection is to end when the export is withdrawn.
    pub(crate) fn bind(&self, link: &Arc<Link>) {
        let mut links = self.export.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|link| link.strong_count() > 0);
        links.push(Arc::downgrade(link));
        drop(links);
        if self.export.is_withdrawn() {
            link.stop_reading();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.export.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Exports by name. Shared between servers and those who add and withdraw.
#[derive(Default)]
pub struct Exports {
    by_name: RwLock<BTreeMap<String, Arc<Export>>>,
}

impl Exports {
    /// No export yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves `export` as `name` from now on. One export may have several names.
    ///
    /// # Errors
    /// When the name is taken, empty, longer than 4096 bytes, or holds a NUL.
    pub fn insert(&self, name: &str, export: Arc<Export>) -> Result<(), NbdError> {
        if name.is_empty() {
            return Err(NbdError::Name("it is empty; that stands for the only export there is"));
        }
        if name.len() > STRING_MAX || name.contains('\0') {
            return Err(NbdError::Name("it is longer than 4096 bytes or holds a NUL"));
        }
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        if by_name.contains_key(name) {
            return Err(NbdError::Exists(name.to_owned()));
        }
        by_name.insert(name.to_owned(), export);
        Ok(())
    }

    /// Takes the export of this name away, under all its names. Its connections get answers to what they asked, an error to
    /// what they ask from now on, and are closed. `false` when there was none.
    pub fn withdraw(&self, name: &str) -> bool {
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        let Some(export) = by_name.get(name).cloned() else {
            return false;
        };
        by_name.retain(|_, other| !Arc::ptr_eq(other, &export));
        drop(by_name);
        export.withdrawn.store(true, Ordering::Release);
        let links = std::mem::take(&mut *export.links.lock().unwrap_or_else(PoisonError::into_inner));
        for link in links.iter().filter_map(Weak::upgrade) {
            link.stop_reading();
        }
        true
    }

    /// Names and descriptions of what `peer` may see.
    pub(crate) fn list(&self, peer: &BTreeSet<String>) -> Vec<(String, String)> {
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        let visible = by_name.iter().filter(|(_, export)| export.is_for(peer));
        visible
            .map(|(name, export)| (name.clone(), export.description.clone()))
            .collect()
    }

    /// What `peer` is told of the export named `name`.
    pub(crate) fn look(&self, name: &str, peer: &BTreeSet<String>) -> Result<Offer, Refusal> {
        self.find(name, peer).map(|(name, export)| export.offer(&name))
    }

    /// Opens the export named `name` for `peer`.
    pub(crate) fn enter(&self, name: &str, peer: &BTreeSet<String>) -> Result<(Ticket, Offer), Refusal> {
        let (name, export) = self.find(name, peer)?;
        let ticket = Ticket::new(&export).ok_or(Refusal::Policy("too many connections to this export"))?;
        Ok((ticket, export.offer(&name)))
    }

    /// The empty name finds the export that is the only one this peer may see, by however many names.
    fn find(&self, name: &str, peer: &BTreeSet<String>) -> Result<(String, Arc<Export>), Refusal> {
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        let mut visible = by_name.iter().filter(|(_, export)| export.is_for(peer));
        let found = if name.is_empty() {
            let first = visible.next();
            let alone = first.is_some_and(|(_, first)| visible.all(|(_, other)| Arc::ptr_eq(first, other)));
            first.filter(|_| alone)
        } else {
            visible.find(|(other, _)| *other == name)
        };
        found
            .map(|(name, export)| (name.clone(), export.clone()))
            .ok_or(Refusal::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemSource;

    fn export() -> Arc<Export> {
        Arc::new(Export::read_only(Arc::new(MemSource::new(4096))))
    }

    fn peer(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_empty_name_is_the_only_export() {
        let (exports, anyone) = (Exports::new(), peer(&[]));
        assert_eq!(exports.look("", &anyone), Err(Refusal::Unknown));
        let first = export();
        exports.insert("a", first.clone()).unwrap();
        exports.insert("alias", first).unwrap();
        assert_eq!(exports.look("", &anyone).unwrap().name, "a");
        exports.insert("b", export()).unwrap();
        assert_eq!(exports.look("", &anyone), Err(Refusal::Unknown));
        assert!(exports.withdraw("b") && !exports.withdraw("b"));
        assert!(exports.look("", &anyone).is_ok());
    }

    #[test]
    fn a_peer_sees_what_is_its_own() {
        let exports = Exports::new();
        let theirs = Export::read_only(Arc::new(MemSource::new(1))).only_for(["uri:spiffe://x/them".to_owned()]);
        exports.insert("theirs", Arc::new(theirs)).unwrap();
        let (us, them) = (peer(&["uri:spiffe://x/us", "cn:us"]), peer(&["uri:spiffe://x/them"]));
        assert_eq!(exports.look("theirs", &us), Err(Refusal::Unknown));
        assert!(exports.list(&us).is_empty());
        assert!(exports.look("theirs", &them).is_ok());
    }

    #[test]
    fn connections_to_an_export_are_bounded() {
        let (exports, anyone) = (Exports::new(), peer(&[]));
        exports.insert("a", export()).unwrap();
        let mut held: Vec<_> = (0..CONNECTIONS_PER_EXPORT)
            .map(|_| exports.enter("a", &anyone).unwrap())
            .collect();
        assert!(matches!(exports.enter("a", &anyone), Err(Refusal::Policy(_))));
        held.pop();
        assert!(exports.enter("a", &anyone).is_ok());
    }

    #[test]
    fn a_name_is_used_once_and_is_a_name() {
        let exports = Exports::new();
        exports.insert("a", export()).unwrap();
        assert!(matches!(exports.insert("a", export()), Err(NbdError::Exists(_))));
        for bad in ["", "a\0b", &"x".repeat(5000)] {
            assert!(matches!(exports.insert(bad, export()), Err(NbdError::Name(_))));
        }
    }
}
