//! The threads that fetch: one flight a content however many wait for it, neighbours in one read, the cache on the disk first.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;
use std::{io, mem};

use repo::blob::READ_SLACK;
use repo::content::Unsealer;
use repo::object::{TableBuilder, TableEntry};
use repo::plan::{Fetch, ReadPlan};
use repo::{ContentId, Kind, RepoError, Repository};
use tracing::{debug, warn};

use super::flight::{Failure, Flight, Key, Outcome, key};
use super::memory::{Memory, Plaintext};
use super::queue::{Queue, Rank, Task, extract};
use crate::error::{JobError, Result, chain};

/// Bytes sent for ahead of one reader at most: four reads of a directory, more than one pack of an object store.
const WINDOW_BYTES: u64 = 32 << 20;

/// Share of the memory that one reader's window may take: four of them leave as much for what was read.
const WINDOW_SHARE: u64 = 8;

/// Contents in the queue that nobody waits for yet, at most: the windows of eight readers.
const AHEAD_MAX: usize = 256;

/// Contents that one thread takes at once: a pack of 20 MiB holds about as many, compressed well.
const BATCH_MAX: usize = 64;

/// Damaged contents that are remembered as told of. More of them are told of again, which is no longer what matters then.
const TOLD_MAX: usize = 4096;

/// Between two looks at whether the index has to be read again, which the repository decides by its own times.
const FRESH_INTERVAL: Duration = Duration::from_secs(60);

/// How a [`Fetcher`] works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchOptions {
    /// Bytes of opened contents in memory at most, of all volumes together.
    pub memory: u64,
    /// A reader waits so long for a content at most.
    pub deadline: Duration,
}

impl FetchOptions {
    /// 256 MiB hold the windows of four readers of 32 MiB each, and as much that was read. A deadline of 20 s leaves time for a
    /// failed request and another one, and ends before clients in the kernel give up (25 s).
    pub const DEFAULT: Self = Self {
        memory: 256 << 20,
        deadline: Duration::from_secs(20),
    };
}

/// Fetches contents of one repository for any number of volumes. Dropping it ends its threads, after what they are at.
pub struct Fetcher {
    shared: Arc<Shared>,
    deadline: Duration,
}

struct Shared {
    repository: Arc<Repository>,
    /// Threads that may be at work in the background: one is left for those who wait.
    background_max: usize,
    memory: Memory,
    queue: Mutex<Queue>,
    /// There is work, or the end.
    work: Condvar,
    /// The end.
    closed: Condvar,
    told: Mutex<HashSet<ContentId>>,
    fetched_bytes: AtomicU64,
    /// Why nothing may be fetched any more.
    ended: OnceLock<Arc<str>>,
}

impl Fetcher {
    /// Starts as many threads as the storage of `repository` takes reads at once.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn start(repository: Arc<Repository>, options: &FetchOptions) -> Result<Self> {
        let threads = repository.store().habits().reads.max(1);
        let shared = Arc::new(Shared {
            repository,
            background_max: (threads - 1).max(1),
            memory: Memory::new(options.memory),
            queue: Mutex::default(),
            work: Condvar::new(),
            closed: Condvar::new(),
            told: Mutex::default(),
            fetched_bytes: AtomicU64::new(0),
            ended: OnceLock::new(),
        });
        let fetcher = Self {
            shared,
            deadline: options.deadline,
        };
        let spawn = |work: fn(&Shared)| {
            let shared = fetcher.shared.clone();
            let spawned = thread::Builder::new()
                .name("fetch".to_owned())
                .spawn(move || work(&shared));
            spawned.map(drop).map_err(|source| JobError::File {
                what: "start a thread that fetches".to_owned(),
                source,
            })
        };
        spawn(Shared::stay_fresh)?;
        (0..threads).try_for_each(|_| spawn(Shared::work))?;
        Ok(fetcher)
    }

    /// Bytes of contents that were fetched and opened so far.
    pub fn fetched_bytes(&self) -> u64 {
        self.shared.fetched_bytes.load(Ordering::Relaxed)
    }

    /// The content of a piece of `len` zeros.
    pub(super) fn zero_content(&self, len: u64) -> ContentId {
        let repository = &self.shared.repository;
        match len == blockio::CHUNK_SIZE {
            true => repository.zero_content(),
            false => {
                let zeros = vec![0; usize::try_from(len).expect("compared with the longest piece")];
                repository.contents().content_id(None, &zeros)
            }
        }
    }

    /// Pieces of `piece_len` bytes that are sent for ahead of one reader at most.
    pub(super) fn window(&self, piece_len: u64) -> usize {
        let bytes = WINDOW_BYTES.min(self.shared.memory.limit() / WINDOW_SHARE);
        usize::try_from(bytes / piece_len.max(1)).map_or(AHEAD_MAX, |pieces| pieces.min(AHEAD_MAX))
    }

    /// The bytes of `piece`, if they are in memory.
    pub(super) fn at_hand(&self, piece: &TableEntry) -> Option<Plaintext> {
        self.shared
            .memory
            .get(&key(piece))
            .filter(|bytes| bytes.len() as u64 == piece.extent.len)
    }

    /// The bytes of `piece`, from wherever they are.
    ///
    /// # Errors
    /// What the fetch failed with; `TimedOut` when that took too long.
    pub(super) fn fetch(&self, piece: &TableEntry) -> io::Result<Plaintext> {
        let plaintext = self.shared.join(piece).wait(self.deadline)?;
        // A list may say another length of a content that another list has right.
        match plaintext.len() as u64 == piece.extent.len {
            true => Ok(plaintext),
            false => Err(io::Error::other(format!(
                "content {} has {} bytes, its list says {}",
                piece.content,
                plaintext.len(),
                piece.extent.len
            ))),
        }
    }

    /// `pieces` will be wanted, as many of them as are taken on. They come in together, so that neighbours are read together.
    pub(super) fn fetch_ahead(&self, pieces: impl Iterator<Item = TableEntry>) {
        self.shared.expect(pieces);
    }

    /// Flights of `pieces`, in their order, which give way to everybody who waits. They come in together, so that neighbours are
    /// read together. What lands is kept by its flight alone.
    pub(super) fn fetch_in_background(&self, pieces: impl Iterator<Item = TableEntry>) -> Vec<Arc<Flight>> {
        self.shared.board(pieces)
    }

    /// The repository the contents are in.
    pub(super) fn repository(&self) -> &Repository {
        &self.shared.repository
    }

    /// Bytes that background work may hold: as many as all its reads at once bring, and half the memory at most.
    pub(super) fn background_bytes(&self) -> u64 {
        let habits = self.shared.repository.store().habits();
        let reads = self.shared.background_max as u64 * habits.read_len;
        reads.min(self.shared.memory.limit() / 2)
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        queue.is_closed = true;
        queue.flights.clear();
        let left = [Rank::Demanded, Rank::Ahead, Rank::Background].map(|rank| mem::take(queue.of(rank)));
        drop(queue);
        drop(left);
        self.shared.work.notify_all();
        self.shared.closed.notify_all();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn task(&self, piece: &TableEntry, rank: Rank) -> Task {
        let flight = Flight::default();
        if rank != Rank::Background {
            flight.keep();
        }
        Task {
            piece: *piece,
            rank,
            pack: self.repository.lookup(&piece.content).map(|entry| entry.pack),
            flight: Arc::new(flight),
        }
    }

    /// The flight of `piece`, which is begun when there is none, and goes before those nobody waits for.
    fn join(&self, piece: &TableEntry) -> Arc<Flight> {
        let key = key(piece);
        if let Some(plaintext) = self.memory.get(&key) {
            return Arc::new(Flight::of(plaintext));
        }
        let task = self.task(piece, Rank::Demanded);
        let mut queue = self.queue();
        if let Some(flight) = queue.flights.get(&key).cloned() {
            let same = |task: &Task| Arc::ptr_eq(&task.flight, &flight);
            flight.keep();
            for rank in [Rank::Ahead, Rank::Background] {
                let tasks = queue.of(rank);
                if let Some(at) = tasks.iter().position(same)
                    && let Some(mut task) = tasks.remove(at)
                {
                    task.rank = Rank::Demanded;
                    queue.demanded.push_back(task);
                    // Threads that are not needed for what is in the background may be for this.
                    self.work.notify_one();
                    break;
                }
            }
            return flight;
        }
        // It may have landed since. What lands is in memory before its flight is gone.
        if let Some(plaintext) = self.memory.get(&key) {
            return Arc::new(Flight::of(plaintext));
        }
        let flight = task.flight.clone();
        if let Some(why) = self.ended.get() {
            flight.land(Err(Failure::passing(why.clone())));
        } else if !queue.is_closed {
            queue.flights.insert(key, flight.clone());
            queue.demanded.push_back(task);
            drop(queue);
            self.work.notify_one();
        }
        flight
    }

    /// Begins flights of those of `pieces` that have none and need one.
    fn expect(&self, pieces: impl Iterator<Item = TableEntry>) {
        let missing = pieces.take(AHEAD_MAX).filter(|piece| !self.memory.has(&key(piece)));
        let tasks: Vec<Task> = missing.map(|piece| self.task(&piece, Rank::Ahead)).collect();
        let mut queue = self.queue();
        let mut left_out = Vec::new();
        for task in tasks {
            let key = key(&task.piece);
            let is_known = queue.flights.contains_key(&key) || self.memory.has(&key);
            if is_known || queue.ahead.len() >= AHEAD_MAX || queue.is_closed {
                left_out.push(task);
                continue;
            }
            queue.flights.insert(key, task.flight.clone());
            queue.ahead.push_back(task);
        }
        drop(queue);
        self.work.notify_all();
    }

    /// The flights of `pieces`; those there are none of begin.
    fn board(&self, pieces: impl Iterator<Item = TableEntry>) -> Vec<Arc<Flight>> {
        let tasks: Vec<Task> = pieces.map(|piece| self.task(&piece, Rank::Background)).collect();
        let mut queue = self.queue();
        let mut left_out = Vec::new();
        let mut flights = Vec::with_capacity(tasks.len());
        for task in tasks {
            let key = key(&task.piece);
            let known = match self.memory.get(&key) {
                Some(plaintext) => Some(Arc::new(Flight::of(plaintext))),
                None => queue.flights.get(&key).cloned(),
            };
            if let Some(flight) = known {
                left_out.push(task);
                flights.push(flight);
                continue;
            }
            flights.push(task.flight.clone());
            if let Some(why) = self.ended.get() {
                task.flight.land(Err(Failure::passing(why.clone())));
            } else if queue.is_closed {
                left_out.push(task);
            } else {
                queue.flights.insert(key, task.flight.clone());
                queue.background.push_back(task);
            }
        }
        drop(queue);
        self.work.notify_all();
        flights
    }

    fn work(&self) {
        let mut unsealer = Unsealer::default();
        while let Some(batch) = self.take() {
            let is_background = batch[0].rank == Rank::Background;
            let keys: Vec<(Key, Arc<Flight>)> = batch
                .iter()
                .map(|task| (key(&task.piece), task.flight.clone()))
                .collect();
            // A panic is a fault of ours: it fails these contents and no others.
            if catch_unwind(AssertUnwindSafe(|| self.carry_out(batch, &mut unsealer))).is_err() {
                warn!("a fetch ended by a panic");
                let mut queue = self.queue();
                for (key, flight) in keys {
                    if queue.flights.get(&key).is_some_and(|same| Arc::ptr_eq(same, &flight)) {
                        queue.flights.remove(&key);
                    }
                }
            }
            if is_background {
                self.queue().background_threads -= 1;
                self.work.notify_one();
            }
        }
    }

    /// Reads format blob and index again when it is time, so that what others moved is found where it is, and what they forbid
    /// is not done.
    fn stay_fresh(&self) {
        let mut queue = self.queue();
        while !queue.is_closed && self.ended.get().is_none() {
            let waited = self.closed.wait_timeout(queue, FRESH_INTERVAL);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            if queue.is_closed {
                return;
            }
            drop(queue);
            if let Err(e) = self.repository.keep_fresh() {
                let error = chain(&e);
                if matches!(e.kind(), Kind::Locked | Kind::WrongPassword | Kind::Unsupported) {
                    warn!(
                        error,
                        "the repository may not be read any more; reads of what is not in memory fail"
                    );
                    let _ = self.ended.set(error.into()); // nobody else sets it
                } else {
                    debug!(error, "the index was not read again");
                }
            }
            queue = self.queue();
        }
    }

    /// The next content, and others that are wanted from its pack; `None` at the end.
    fn take(&self) -> Option<Vec<Task>> {
        let mut queue = self.queue();
        let first = loop {
            if queue.is_closed {
                return None;
            }
            // One thread is for the background even while readers keep all others busy: a volume that is read without a pause
            // would never be filled, and each chunk that is there is one that readers need no fetch for.
            let is_owed = queue.background_threads == 0 && self.background_max > 1;
            if is_owed && let Some(task) = queue.background.pop_front() {
                queue.background_threads += 1;
                break task;
            }
            if let Some(task) = queue.demanded.pop_front() {
                break task;
            }
            if let Some(task) = queue.ahead.pop_front() {
                break task;
            }
            if queue.background_threads < self.background_max
                && let Some(task) = queue.background.pop_front()
            {
                queue.background_threads += 1;
                break task;
            }
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        let pack = first.pack.clone();
        let mut batch = vec![first];
        if pack.is_some() {
            // Who waits does not wait for what is in the background too.
            let ranks: &[Rank] = match batch[0].rank {
                Rank::Background => &[Rank::Background],
                _ => &[Rank::Demanded, Rank::Ahead],
            };
            for rank in ranks {
                let room = BATCH_MAX - batch.len();
                batch.extend(extract(queue.of(*rank), room, |task| task.pack == pack));
            }
        }
        Some(batch)
    }

    /// Fetches `batch`, or a part of it with the first of it, and gives the rest back to the queue.
    fn carry_out(&self, batch: Vec<Task>, unsealer: &mut Unsealer) {
        let mut missing = Vec::new();
        for task in batch {
            let mut plaintext = self.buffer(&task.piece);
            if self.repository.cached_piece(&task.piece, unsealer, &mut plaintext) {
                self.land(&task, Ok(Arc::new(plaintext)));
            } else {
                self.memory.give_back(plaintext);
                missing.push(task);
            }
        }
        if missing.len() < 2 {
            return missing.iter().for_each(|task| self.fetch_alone(task));
        }
        let mut builder = TableBuilder::new(self.repository.contents().hash_len());
        for task in &missing {
            let piece = &task.piece;
            let pushed = match piece.compressed {
                true => builder.push_compressed(piece.extent.len, &piece.content),
                false => builder.push(piece.extent.len, &piece.content),
            };
            if pushed.is_err() {
                return missing.iter().for_each(|task| self.fetch_alone(task));
            }
        }
        let table = builder.finish();
        let planned = ReadPlan::of_readable(&self.repository, &table, 0..missing.len());
        let Ok((plan, lost)) = planned else {
            return missing.iter().for_each(|task| self.fetch_alone(task));
        };
        let mut tasks: Vec<Option<Task>> = missing.into_iter().map(Some).collect();
        let mut units: Vec<Vec<usize>> = (0..plan.len())
            .map(|at| {
                plan.fetch(at)
                    .pieces(&self.repository, &table)
                    .into_iter()
                    .flat_map(|piece| piece.uses)
                    .collect()
            })
            .collect();
        let first = units.iter().position(|uses| uses.contains(&0));
        // Others may do the rest meanwhile.
        if let Some(first) = first {
            let mut queue = self.queue();
            for (_, uses) in units.iter().enumerate().filter(|(at, _)| *at != first) {
                let rest = uses.iter().filter_map(|at| tasks[*at].take());
                for task in rest {
                    queue.of(task.rank).push_front(task);
                }
            }
            drop(queue);
            self.work.notify_all();
        }
        for at in lost {
            tasks[at].iter().for_each(|task| self.fetch_alone(task));
        }
        if let Some(first) = first {
            let uses = mem::take(&mut units[first]);
            let fetch = plan.fetch(first);
            match self.read(&fetch) {
                Ok(read) => {
                    for piece in fetch.pieces(&self.repository, &table) {
                        let sealed = &read.0[read.1.start + piece.at.start..read.1.start + piece.at.end];
                        for at in &piece.uses {
                            let Some(task) = &tasks[*at] else { continue };
                            self.open(task, &piece, sealed, unsealer);
                        }
                    }
                }
                // One of them may be behind the end of a pack cut short, or the pack has gone to another place.
                Err(e) if e.is_damage() || e.is_not_found() => {
                    uses.iter()
                        .filter_map(|at| tasks[*at].as_ref())
                        .for_each(|task| self.fetch_alone(task));
                }
                Err(e) => {
                    let failure = Failure::of(&e);
                    uses.iter()
                        .filter_map(|at| tasks[*at].as_ref())
                        .for_each(|task| self.land(task, Err(failure.clone())));
                }
            }
        }
    }

    /// The bytes of a read, and where in the buffer they are.
    fn read(&self, fetch: &Fetch<'_>) -> repo::Result<(Vec<u8>, std::ops::Range<usize>)> {
        let range = fetch.range();
        let len = usize::try_from(range.end - range.start).expect("a read is as long as the storage likes");
        let mut buf = vec![0; len + 2 * READ_SLACK];
        let at = self.repository.store().read_range(fetch.pack(), range, &mut buf)?;
        Ok((buf, at))
    }

    /// Room for the bytes of `piece`.
    fn buffer(&self, piece: &TableEntry) -> Vec<u8> {
        let len = usize::try_from(piece.extent.len).expect("compared with the longest piece");
        self.memory.buffer(len)
    }

    fn open(&self, task: &Task, piece: &repo::plan::Piece, sealed: &[u8], unsealer: &mut Unsealer) {
        let mut plaintext = self.buffer(&task.piece);
        let contents = self.repository.contents();
        let opened = match piece.compressed {
            true => contents.unseal_piece_into(&piece.entry, sealed, unsealer, &mut plaintext),
            false => contents.unseal_into(&piece.entry, sealed, unsealer, &mut plaintext),
        };
        if opened.is_err() {
            // Read once more by itself, and with a fresh look at the index when it is gone: that tells what is wrong.
            return self.fetch_alone(task);
        }
        if let Some(cache) = self.repository.cache() {
            cache.contents().put(&piece.entry.content, sealed);
        }
        self.land(task, Ok(Arc::new(plaintext)));
    }

    fn fetch_alone(&self, task: &Task) {
        let read = self.repository.read_piece(&task.piece);
        if let Err(e) = &read {
            self.tell(&task.piece, e);
        }
        self.land(task, read.map(Arc::new).map_err(|e| Failure::of(&e)));
    }

    fn land(&self, task: &Task, outcome: Outcome) {
        if let Ok(plaintext) = &outcome {
            self.fetched_bytes.fetch_add(plaintext.len() as u64, Ordering::Relaxed);
        }
        let key = key(&task.piece);
        let keep = || {
            outcome
                .iter()
                .for_each(|plaintext| self.memory.put(key, plaintext.clone()))
        };
        let was_kept = task.flight.is_kept();
        if was_kept {
            keep();
        }
        // Marked with the queue held: who comes later finds it in memory, or begins a flight of its own.
        let mut queue = self.queue();
        if !was_kept && task.flight.is_kept() {
            keep();
        }
        queue.flights.remove(&key);
        drop(queue);
        task.flight.land(outcome);
    }

    /// Damage is told of once. The rest is for those who wait, and their clients are told of it.
    fn tell(&self, piece: &TableEntry, error: &RepoError) {
        let error_text = chain(error);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if error.is_damage() && told.len() < TOLD_MAX && told.insert(piece.content) {
            warn!(content = %piece.content, error = error_text, "a content is damaged; reads of it fail, the rest is served");
        } else {
            debug!(content = %piece.content, error = error_text, "a fetch failed");
        }
    }
}
