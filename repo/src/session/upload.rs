//! The way of full packs to the storage: a bounded queue and a few threads.
//!
//! An entry becomes fit for the index only after its pack is stored.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use blockio::BlockBuf;
use bytes::Bytes;
use crossbeam_channel::Sender;

use super::{StoredHook, WriteTotals};
use crate::blob::BlobStore;
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;
use crate::index::IndexEntry;
use crate::pack::FinishedPack;

/// Threads that store packs.
pub(super) struct Uploaders {
    store: Arc<dyn BlobStore>,
    queue: Option<Sender<FinishedPack<BlockBuf>>>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// A pack as the bytes of a request.
struct PackBytes {
    buf: BlockBuf,
    len: usize,
}

impl AsRef<[u8]> for PackBytes {
    fn as_ref(&self) -> &[u8] {
        &self.buf[..self.len]
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    settled: Condvar,
    /// Told the entries of every pack that is stored.
    on_stored: Option<StoredHook>,
}

#[derive(Default)]
struct State {
    /// Packs taken on and not settled.
    open: usize,
    stored: Vec<IndexEntry>,
    failed: Option<RepoError>,
    totals: WriteTotals,
}

impl Uploaders {
    /// Starts `count` threads (at least one).
    pub(super) fn start(store: Arc<dyn BlobStore>, count: usize, on_stored: Option<StoredHook>) -> Self {
        let (queue, packs) = crossbeam_channel::bounded::<FinishedPack<BlockBuf>>(count.max(1));
        let shared = Arc::new(Shared {
            on_stored,
            ..Shared::default()
        });
        let thread = || {
            let (store, shared, packs) = (store.clone(), shared.clone(), packs.clone());
            std::thread::spawn(move || {
                for pack in packs {
                    shared.settle(&*store, pack);
                }
            })
        };
        let threads = (0..count.max(1)).map(|_| thread()).collect();
        Self {
            store,
            queue: Some(queue),
            shared,
            threads,
        }
    }

    /// Hands over a pack; waits while as many as there are threads are queued. After a failure nothing is taken any more.
    pub(super) fn send(&self, pack: FinishedPack<BlockBuf>) -> Result<()> {
        {
            let mut state = self.shared.lock();
            if let Some(e) = &state.failed {
                return Err(again(e));
            }
            state.open += 1;
        }
        let queue = self.queue.as_ref().expect("present until drop");
        queue.send(pack).expect("the threads end only after the queue");
        Ok(())
    }

    /// Stores a pack on the caller's thread.
    pub(super) fn put_now(&self, pack: FinishedPack<BlockBuf>) -> Result<()> {
        {
            let mut state = self.shared.lock();
            if let Some(e) = &state.failed {
                return Err(again(e));
            }
            state.open += 1;
        }
        self.shared.settle(&*self.store, pack);
        self.shared.lock().failed.as_ref().map_or(Ok(()), |e| Err(again(e)))
    }

    /// Packs wait: the storage is slower than the sealers.
    pub(super) fn is_behind(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| !queue.is_empty())
    }

    /// Waits until every pack is settled; the first failure is returned.
    pub(super) fn drain(&self) -> Result<()> {
        let mut state = self.shared.lock();
        while state.open > 0 {
            state = self.shared.settled.wait(state).expect("no panic while held");
        }
        state.failed.as_ref().map_or(Ok(()), |e| Err(again(e)))
    }

    /// Takes the entries of all packs stored since the last time.
    pub(super) fn take_entries(&self) -> Vec<IndexEntry> {
        std::mem::take(&mut self.shared.lock().stored)
    }

    /// Gives entries back that could not be indexed.
    pub(super) fn give_back(&self, entries: Vec<IndexEntry>) {
        self.shared.lock().stored.extend(entries);
    }

    /// What was stored so far.
    pub(super) fn totals(&self) -> WriteTotals {
        self.shared.lock().totals
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    fn settle(&self, store: &dyn BlobStore, pack: FinishedPack<BlockBuf>) {
        let failed_before = self.lock().failed.is_some();
        let FinishedPack { id, buf, len, entries } = pack;
        // The buffer goes back to its pool when the store lets go of it, before anybody is told to go on.
        let result = match failed_before || len == 0 {
            true => Ok(()), // or nothing but deletions, which need no pack
            false => put(store, &id, Bytes::from_owner(PackBytes { buf, len })),
        };
        if let (Ok(()), false, Some(hook)) = (&result, failed_before, &self.on_stored) {
            hook.call(&entries);
        }
        let mut state = self.lock();
        state.open -= 1;
        match result {
            Ok(()) if failed_before => {}
            Ok(()) => {
                state.totals.packs += u64::from(len > 0);
                state.totals.stored_bytes += len as u64;
                state.totals.contents += entries.len() as u64;
                state.stored.extend(entries);
            }
            Err(e) => state.failed = state.failed.take().or(Some(e)),
        }
        self.settled.notify_all();
    }
}

impl Drop for Uploaders {
    fn drop(&mut self) {
        drop(self.queue.take());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an upload thread panicked");
            }
        }
    }
}

/// Stores a blob. A panic of the store becomes an error: whoever waits for the pack must not wait for ever.
fn put(store: &dyn BlobStore, id: &BlobId, bytes: Bytes) -> Result<()> {
    let stored = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| store.put_shared(id, bytes, None)));
    stored.unwrap_or_else(|_| {
        Err(RepoError::new(
            Kind::Storage,
            format!("the store panicked on blob {id}"),
        ))
    })
}

/// The same failure for another caller: the first tells the cause.
fn again(e: &RepoError) -> RepoError {
    let kind = e.kind();
    let cause = std::error::Error::source(e).map(ToString::to_string);
    let error = RepoError::new(kind, e.what());
    match (kind, cause) {
        (Kind::Cancelled, _) | (_, None) => error,
        (_, Some(cause)) => error.because(cause),
    }
}
