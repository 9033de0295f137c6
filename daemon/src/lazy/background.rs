//! The same volume for work that can wait: pieces are sent for many at once, in the order of packs, and give way to readers.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blockio::{BlockError, BlockMap, BlockSource, CHUNK_SIZE, ChunkIndex, Extent, ExtentKind, Geometry, Kind, Op};
use repo::BlobId;
use repo::format::REPOSITORY_ID;
use repo::object::TableEntry;

use super::flight::{Failure, Flight, Key, key};
use super::memory::Plaintext;
use super::{LazySource, copy};
use crate::error::chain;

/// A [`LazySource`] read by chunks that were sent for before. Readers of the volume go first, and are not taken for it.
pub struct Background {
    source: Arc<LazySource>,
    held: Mutex<HashMap<Key, Held>>,
}

/// A content that chunks sent for need.
#[derive(Default)]
struct Held {
    flight: Arc<Flight>,
    /// How many chunks.
    users: usize,
}

/// How what was sent for came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Landed {
    /// All of it is there.
    Whole,
    /// Not all of it, yet.
    Pending,
    /// Some of it could not be had, and another fetch may get it.
    Failed(Arc<str>),
    /// What the repository has of it is damaged or gone, as far as the fetch could tell.
    Damaged(Arc<str>),
}

impl Background {
    /// Another way to the bytes of `source`.
    pub fn new(source: Arc<LazySource>) -> Self {
        Self {
            source,
            held: Mutex::default(),
        }
    }

    /// Bytes that may be sent for at once.
    pub fn bytes_max(&self) -> u64 {
        self.source.fetcher.background_bytes()
    }

    /// `chunks` in the order in which the packs hold what is in them. 12 bytes each while this runs.
    pub fn in_pack_order(&self, chunks: &BlockMap) -> Vec<ChunkIndex> {
        let repository = self.source.fetcher.repository();
        let mut packs: HashMap<BlobId, u32> = HashMap::new();
        let mut places: Vec<(u32, u32, u32)> = Vec::new();
        for chunk in chunks.iter() {
            // Kept in 32 bits: the table of a volume with more chunks would not fit anywhere.
            let Ok(number) = u32::try_from(chunk.get()) else { break };
            let found = self.pieces(chunk).find_map(|piece| repository.lookup(&piece.content));
            // What is in no pack goes last; the fetch finds out why.
            let place = found.map_or((u32::MAX, 0), |entry| {
                let next = u32::try_from(packs.len()).unwrap_or(u32::MAX);
                (*packs.entry(entry.pack).or_insert(next), entry.offset)
            });
            places.push((place.0, place.1, number));
        }
        places.sort_unstable();
        places
            .into_iter()
            .map(|(_, _, chunk)| ChunkIndex::new(chunk.into()))
            .collect()
    }

    /// Sends for what is in `chunks`, together, and keeps it until each of them is let go.
    pub fn send_for(&self, chunks: &[ChunkIndex]) {
        let (mut wanted, mut order) = (HashSet::new(), Vec::new());
        let mut held = self.held();
        for piece in chunks.iter().flat_map(|chunk| self.pieces(*chunk)) {
            let slot = held.entry(key(&piece)).or_default();
            slot.users += 1;
            // What failed for another chunk is tried again for this one.
            let is_new = slot.users == 1 || matches!(slot.flight.wait_for(Duration::ZERO), Some(Err(_)));
            if is_new && wanted.insert(key(&piece)) {
                order.push(piece);
            }
        }
        let flights = self.source.fetcher.fetch_in_background(order.iter().copied());
        for (piece, flight) in order.iter().zip(flights) {
            held.get_mut(&key(piece)).expect("put there above").flight = flight;
        }
    }

    /// Bytes of the contents that have to be fetched for `chunk`.
    pub fn piece_bytes(&self, chunk: ChunkIndex) -> u64 {
        self.pieces(chunk).map(|piece| piece.extent.len).sum()
    }

    /// Waits for what was sent for of `chunk`, for `limit` at most.
    pub fn wait(&self, chunk: ChunkIndex, limit: Duration) -> Landed {
        let deadline = Instant::now() + limit;
        for piece in self.pieces(chunk) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.flight(&piece).map(|flight| flight.wait_for(left)) {
                Some(Some(Ok(plaintext))) if plaintext.len() as u64 == piece.extent.len => {}
                Some(Some(Ok(_))) => {
                    let why = format!("content {} is not as long as its list says", piece.content);
                    return Landed::Damaged(why.into());
                }
                Some(Some(Err(Failure { why, is_damage: true }))) => return Landed::Damaged(why),
                Some(Some(Err(Failure { why, .. }))) => return Landed::Failed(why),
                Some(None) => return Landed::Pending,
                None => return Landed::Failed("it was not sent for".into()),
            }
        }
        Landed::Whole
    }

    /// Lets go of what was sent for of `chunk`.
    pub fn let_go(&self, chunk: ChunkIndex) {
        let mut held = self.held();
        for piece in self.pieces(chunk) {
            if let Some(found) = held.get_mut(&key(&piece)) {
                found.users -= 1;
                if found.users == 0 {
                    held.remove(&key(&piece));
                }
            }
        }
    }

    /// Whether the repository answers at all. What it says of one content is believed only then.
    ///
    /// # Errors
    /// What the storage said.
    pub fn reach(&self) -> Result<(), String> {
        let id = BlobId::new(REPOSITORY_ID).expect("a name of the format");
        let store = self.source.fetcher.repository().store();
        store.get(&id).map(drop).map_err(|e| chain(&e))
    }

    /// The pieces with bytes in `chunk` that have to be fetched.
    fn pieces(&self, chunk: ChunkIndex) -> impl Iterator<Item = TableEntry> + '_ {
        let start = chunk.get().saturating_mul(CHUNK_SIZE).min(self.source.size);
        let range = Extent::between(start, start.saturating_add(CHUNK_SIZE).min(self.source.size));
        let pieces = self.source.parts(range).map(|(_, piece, _)| piece);
        pieces.filter(|piece| !self.source.is_zero(piece))
    }

    fn flight(&self, piece: &TableEntry) -> Option<Arc<Flight>> {
        self.held().get(&key(piece)).map(|held| held.flight.clone())
    }

    fn plaintext(&self, piece: &TableEntry) -> io::Result<Plaintext> {
        let failed = |why: &str| io::Error::other(why.to_owned());
        let flight = self.flight(piece).ok_or_else(|| failed("it was not sent for"))?;
        match flight.wait_for(Duration::ZERO) {
            Some(Ok(plaintext)) if plaintext.len() as u64 == piece.extent.len => Ok(plaintext),
            Some(Ok(_)) => Err(failed("it is not as long as its list says")),
            Some(Err(failure)) => Err(failed(&failure.why)),
            None => Err(failed("it was not waited for")),
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Key, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockSource for Background {
    fn geometry(&self) -> Geometry {
        self.source.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        let range = Extent {
            offset,
            len: buf.len() as u64,
        };
        self.source.check(Op::Read, range)?;
        for (_, piece, part) in self.source.parts(range) {
            let from = usize::try_from(part.offset - offset).expect("inside the buffer");
            let target = &mut buf[from..from + part.bytes()];
            if self.source.is_zero(&piece) {
                target.fill(0);
                continue;
            }
            let failed = |why: io::Error| BlockError::new(Op::Read, Kind::Io).at(part).because(why);
            copy(&piece, &self.plaintext(&piece).map_err(failed)?, part, target);
        }
        Ok(())
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        self.source.extents(range, out)
    }
}
