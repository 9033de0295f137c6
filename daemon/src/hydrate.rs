//! Filling the final volume from a snapshot while it is in use.
//!
//! | file | noun |
//! |---|---|
//! | `hydrate` | [`Hydrator`]: the threads, and what they do when something fails |
//! | `hydrate::status` | [`HydrateOptions`], [`HydrateStatus`] |
//! | `hydrate::plan` | `Plan`: what comes next; no IO |
//! | `hydrate::pace` | `Pace`: how much may be under way beside readers; no IO, no clock |
//! | `hydrate::outage` | what is done while the repository does not answer |
//! | `hydrate::guess` | which chunks a file system needs first |
//!
//! # Order
//!
//! What readers touch, which is in memory then; what they touched first in an earlier mount; the first and last chunk and what the
//! file system needs to be mounted; all zeros, by one call a run; the rest as it lies in the packs, so that one read of a pack
//! brings all that is wanted of it. Readers that wait go before all of that, but for one thread ([`crate::lazy::fetcher`]).
//!
//! # When something fails
//!
//! | what | what is done |
//! |---|---|
//! | the repository does not answer | told once; tried again after 1 s, 2 s and so on up to 10 s, for ever |
//! | a content is damaged or gone, twice, while the repository answers | told once; its chunk stays absent, and reads of that fail; the rest goes on, and the volume is not complete |
//! | the target or the state cannot be written | hydration ends as failed; the volume goes on being served |
//! | the process ends | what was flushed is in the target; the rest is fetched by the next one |

mod guess;
mod outage;
mod pace;
mod plan;
mod status;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use blockio::{BlockError, BlockSink, BlockSource, ChunkIndex, Extent, Op};
use nbd::{Hydrated, Overlay};
use tracing::{info, warn};

use crate::error::{JobError, Result, chain};
use crate::lazy::{Background, Landed, LazySource};
use crate::touch::Trace;
use outage::SILENCE;
use pace::Pace;
use plan::{Plan, Work};
use status::Rate;
pub use status::{HydrateOptions, HydrateState, HydrateStatus};

/// Writes to the target at once: four of a MiB keep any disk busy.
const WRITERS: usize = 4;

/// What was hydrated is made durable when it is as much as this, or as old as [`FLUSH_INTERVAL`]: what a crash fetches again.
const FLUSH_BYTES: u64 = 64 << 20;
/// See [`FLUSH_BYTES`].
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// Between two looks at how readers fare: enough of them in it to tell, and short against what a person notices.
const TICK: Duration = Duration::from_millis(100);

/// A look at the file system is given up after this: it only serves the order.
const GUESS_PATIENCE: Duration = Duration::from_secs(5);

/// Hydration under way. Dropping it stops it.
pub struct Hydrator {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    volume: Arc<Overlay>,
    source: Arc<LazySource>,
    background: Arc<Background>,
    options: HydrateOptions,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// One flush at a time.
    flushing: Mutex<()>,
    hydrated: AtomicU64,
}

struct Inner {
    plan: Plan,
    /// The plan was made.
    is_planned: bool,
    is_stopping: bool,
    state: HydrateState,
    /// Bytes of contents sent for and not written yet.
    under_way: u64,
    /// Chunks and runs that threads are at, or that were sent for.
    jobs: usize,
    /// How much may be under way.
    window: u64,
    /// The repository does not answer, and is asked again at this time.
    outage: Option<Instant>,
    /// It is being asked now.
    is_asking: bool,
    /// What the next outage begins with.
    delay: Duration,
    /// When the repository gave something last.
    heard_at: Instant,
    /// Chunks that were damaged once.
    suspects: HashSet<ChunkIndex>,
    damaged: HashSet<ChunkIndex>,
    /// Bytes hydrated since the last flush, and when that was.
    unflushed: u64,
    flushed_at: Instant,
    bytes_per_second: u64,
}

impl Hydrator {
    /// Starts to fill `volume`, an overlay in place over `source`. What `trace` names goes early.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn start(
        volume: Arc<Overlay>,
        source: Arc<LazySource>,
        trace: Option<Trace>,
        options: HydrateOptions,
    ) -> Result<Self> {
        let background = Arc::new(Background::new(source.clone()));
        let window = background.bytes_max();
        let is_complete = volume.is_complete();
        let state = match is_complete {
            true => HydrateState::Complete,
            false => HydrateState::Running,
        };
        let shared = Arc::new(Shared {
            inner: Mutex::new(Inner {
                plan: Plan::empty(),
                is_planned: false,
                is_stopping: false,
                state,
                under_way: 0,
                jobs: 0,
                window,
                outage: None,
                is_asking: false,
                delay: options.retry_min,
                suspects: HashSet::new(),
                damaged: HashSet::new(),
                unflushed: 0,
                flushed_at: Instant::now(),
                heard_at: Instant::now(),
                bytes_per_second: 0,
            }),
            volume,
            source,
            background,
            options,
            changed: Condvar::new(),
            flushing: Mutex::default(),
            hydrated: AtomicU64::new(0),
        });
        let mut hydrator = Self {
            shared,
            threads: Vec::new(),
        };
        if is_complete {
            return Ok(hydrator);
        }
        let spawn = |run: Box<dyn FnOnce() + Send>| {
            let spawned = thread::Builder::new().name("hydrate".to_owned()).spawn(run);
            spawned.map_err(|source| JobError::File {
                what: "start a thread that hydrates".to_owned(),
                source,
            })
        };
        let shared = hydrator.shared.clone();
        hydrator.threads.push(spawn(Box::new(move || shared.control(trace)))?);
        for _ in 0..WRITERS {
            let shared = hydrator.shared.clone();
            hydrator.threads.push(spawn(Box::new(move || shared.work()))?);
        }
        Ok(hydrator)
    }

    /// How far it is.
    pub fn status(&self) -> HydrateStatus {
        let inner = self.shared.inner();
        HydrateStatus {
            present_bytes: self.shared.volume.present_bytes(),
            total_bytes: self.shared.volume.geometry().size,
            damaged_chunks: inner.damaged.len() as u64,
            bytes_per_second: inner.bytes_per_second,
            state: inner.state.clone(),
        }
    }

    /// Ends it: what is being written is written, and made durable. A state that is final stays.
    pub fn stop(&mut self) -> HydrateStatus {
        self.shared.inner().is_stopping = true;
        self.shared.changed.notify_all();
        let had_threads = !self.threads.is_empty();
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // its panic was told by the runtime, and fails nothing that was flushed
        }
        let is_open = self.shared.inner().is_open();
        if had_threads && is_open {
            self.shared.flush();
            let mut inner = self.shared.inner();
            if inner.is_open() {
                inner.state = HydrateState::Stopped;
            }
        }
        self.status()
    }
}

impl Drop for Hydrator {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    /// There may be more to do.
    fn is_open(&self) -> bool {
        matches!(
            self.state,
            HydrateState::Running | HydrateState::WaitingForRepository { .. }
        )
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, inner: MutexGuard<'a, Inner>, limit: Duration) -> MutexGuard<'a, Inner> {
        let waited = self.changed.wait_timeout(inner, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn is_over(&self) -> bool {
        let inner = self.inner();
        inner.is_stopping || !inner.is_open()
    }

    /// Plans, then looks after the rest ten times a second until all is done.
    fn control(self: &Arc<Self>, trace: Option<Trace>) {
        let planned = self.plan(trace.as_ref());
        if let Err(error) = planned {
            return self.fail(&chain(&error));
        }
        let mut pace = Pace::new(self.background.bytes_max());
        let mut rate = Rate::default();
        let mut ticked = Instant::now();
        loop {
            let mut inner = self.inner();
            inner = self.wait(inner, TICK.saturating_sub(ticked.elapsed()));
            if inner.is_stopping || !inner.is_open() {
                return;
            }
            let is_done = inner.plan.is_empty() && inner.jobs == 0;
            if ticked.elapsed() < TICK && !is_done {
                continue;
            }
            ticked = Instant::now();
            if let Some(watch) = &self.options.watch {
                inner.window = pace.tick(&watch.take_waits());
            }
            inner.bytes_per_second = rate.tick(self.hydrated.load(Ordering::Relaxed));
            let is_outage_over = inner.outage.is_some_and(|until| until <= Instant::now());
            drop(inner);
            if is_outage_over {
                self.ask_again();
            } else if is_done {
                self.finish();
            }
            self.flush_if_due();
            self.changed.notify_all();
        }
    }

    fn plan(&self, trace: Option<&Trace>) -> Result<(), BlockError> {
        let absent = self.volume.absent();
        let mut extents = Vec::new();
        let whole = self.source.geometry().extent();
        self.source.extents(whole, &mut extents)?;
        let zeros: Vec<Extent> = extents
            .into_iter()
            .filter(|(_, kind)| *kind != blockio::ExtentKind::Data)
            .map(|(extent, _)| extent)
            .collect();
        let mut plan = Plan::new(absent, &zeros, whole.end());
        plan.add_first(trace.iter().flat_map(|trace| trace.chunks()));
        let wanted = plan.wanted().clone();
        {
            let mut inner = self.inner();
            inner.plan = plan;
            inner.is_planned = true;
        }
        self.changed.notify_all();
        let guessed = guess::first_chunks(whole.end(), &mut |range| self.fetch_range(range));
        let rest = self.background.in_pack_order(&wanted);
        let mut inner = self.inner();
        inner.plan.add_first(guessed.into_iter());
        inner.plan.set_rest(rest);
        drop(inner);
        self.changed.notify_all();
        Ok(())
    }

    /// Bytes of the base, for a look at its file system. `None` when they cannot be had now.
    fn fetch_range(&self, range: Extent) -> Option<Vec<u8>> {
        let chunks: Vec<ChunkIndex> = range.chunks().collect();
        self.background.send_for(&chunks);
        let begun = Instant::now();
        let landed = |chunk: &ChunkIndex| loop {
            match self.background.wait(*chunk, TICK) {
                Landed::Pending if !self.is_over() && begun.elapsed() < GUESS_PATIENCE => {}
                landed => return landed == Landed::Whole,
            }
        };
        let mut bytes = vec![0; range.bytes()];
        let is_whole = chunks.iter().all(landed) && self.background.read_at(range.offset, &mut bytes).is_ok();
        chunks.iter().for_each(|chunk| self.background.let_go(*chunk));
        is_whole.then_some(bytes)
    }

    fn work(&self) {
        while let Some(work) = self.next() {
            let outcome = match work {
                Work::Zero(run) => self.volume.hydrate_zeroes(run).map(Some),
                Work::Chunk(chunk) => self.hydrate(chunk),
            };
            let mut inner = self.inner();
            inner.jobs -= 1;
            if let Work::Chunk(chunk) = work {
                inner.under_way -= self.background.piece_bytes(chunk);
            }
            if let Ok(Some(done)) = &outcome {
                inner.unflushed += done.bytes();
                self.hydrated.fetch_add(done.bytes(), Ordering::Relaxed);
            }
            drop(inner);
            self.changed.notify_all();
            match outcome {
                Ok(_) => self.flush_if_due(),
                Err(error) => return self.fail(&chain(&error)),
            }
        }
    }

    /// The next thing to do; waits for it. `None` at the end.
    fn next(&self) -> Option<Work> {
        let mut inner = self.inner();
        loop {
            if inner.is_stopping || !inner.is_open() {
                return None;
            }
            if inner.is_planned && inner.outage.is_none() && inner.window > 0 {
                self.send_for_more(&mut inner);
                if let Some(work) = inner.plan.take_ready() {
                    return Some(work);
                }
            }
            inner = self.wait(inner, TICK);
        }
    }

    /// Fills the window when half of it is used up, so that what is sent for comes in runs that one read of a pack can serve.
    fn send_for_more(&self, inner: &mut Inner) {
        if inner.under_way > inner.window / 2 {
            return;
        }
        if let Some(watch) = &self.options.watch {
            let touched = watch.touched(inner.plan.touches());
            inner.plan.add_touched(&touched);
        }
        let mut chunks = Vec::new();
        while inner.under_way < inner.window {
            let Some(work) = inner.plan.next() else { break };
            if let Work::Chunk(chunk) = work {
                if !self.volume.is_absent(chunk) {
                    continue;
                }
                inner.under_way += self.background.piece_bytes(chunk);
                chunks.push(chunk);
            }
            inner.jobs += 1;
            inner.plan.put_ready(work);
            if let Work::Zero(_) = work {
                break;
            }
        }
        if !chunks.is_empty() {
            self.background.send_for(&chunks);
            self.changed.notify_all();
        }
    }

    /// `None` when the repository did not give what is in `chunk`, which was taken care of.
    fn hydrate(&self, chunk: ChunkIndex) -> Result<Option<Hydrated>, BlockError> {
        let begun = Instant::now();
        let landed = loop {
            match self.background.wait(chunk, TICK) {
                Landed::Pending if !self.is_over() => {
                    if begun.elapsed() >= SILENCE {
                        self.tell_of_silence();
                    }
                }
                landed => break landed,
            }
        };
        let outcome = match landed {
            Landed::Whole => match self.volume.hydrate_from(chunk, &self.background) {
                // It only reads the base.
                Err(error) if matches!(error.op, Op::Read | Op::Map) => Err(chain(&error)),
                outcome => Ok(outcome),
            },
            Landed::Failed(why) => Err(why.to_string()),
            Landed::Damaged(why) => match self.reach() {
                Some(Ok(())) => {
                    self.suspect(chunk, &why);
                    Ok(Ok(Hydrated::default()))
                }
                Some(Err(why)) => Err(why),
                None => Ok(Ok(Hydrated::default())),
            },
            Landed::Pending => Ok(Ok(Hydrated::default())),
        };
        self.background.let_go(chunk);
        match outcome {
            Ok(Ok(done)) => {
                let mut inner = self.inner();
                if done.bytes() > 0 && inner.outage.is_none() && inner.is_open() {
                    inner.delay = self.options.retry_min;
                    inner.state = HydrateState::Running;
                    inner.heard_at = Instant::now();
                }
                Ok(Some(done))
            }
            Ok(Err(error)) => Err(error),
            Err(why) => {
                self.inner().plan.try_again(chunk);
                self.fall_out(why);
                Ok(None)
            }
        }
    }

    /// What the repository has of `chunk` is damaged, or was while it came and went: only a second time is believed.
    fn suspect(&self, chunk: ChunkIndex, why: &str) {
        let mut inner = self.inner();
        if inner.suspects.insert(chunk) {
            inner.plan.try_again(chunk);
        } else if inner.damaged.insert(chunk) {
            let is_first = inner.damaged.len() == 1;
            drop(inner);
            if is_first {
                warn!(
                    chunk = chunk.get(),
                    why,
                    "a chunk cannot be had; reads of it fail, the rest is hydrated, and the volume will not be complete"
                );
            }
        }
    }

    fn flush_if_due(&self) {
        let inner = self.inner();
        let is_due =
            inner.unflushed >= FLUSH_BYTES || (inner.unflushed > 0 && inner.flushed_at.elapsed() >= FLUSH_INTERVAL);
        drop(inner);
        if is_due && let Ok(_alone) = self.flushing.try_lock() {
            self.flush();
        }
    }

    fn flush(&self) {
        let before = {
            let mut inner = self.inner();
            inner.flushed_at = Instant::now();
            std::mem::take(&mut inner.unflushed)
        };
        if let Err(error) = self.volume.flush() {
            self.inner().unflushed += before;
            self.fail(&chain(&error));
        }
    }

    /// Everything that can be had is there.
    fn finish(&self) {
        let absent = self.volume.absent();
        let damaged = self.inner().damaged.len();
        if absent.count() == 0 {
            return match self.volume.complete() {
                Ok(()) => {
                    let bytes = self.hydrated.load(Ordering::Relaxed);
                    self.end(HydrateState::Complete);
                    info!(bytes, "the volume is complete");
                }
                Err(error) => self.fail(&chain(&error)),
            };
        }
        self.flush();
        let absent = absent.count();
        self.fail(&match damaged {
            0 => format!("{absent} chunks were left out"),
            _ => format!(
                "{absent} chunks of the volume cannot be had, because what the repository has of them is damaged; reads of \
                 them fail"
            ),
        });
    }

    fn fail(&self, why: &str) {
        let mut inner = self.inner();
        if inner.is_open() {
            inner.state = HydrateState::Failed { why: why.to_owned() };
            drop(inner);
            warn!(why, "hydration ended; the volume is served as it is");
        }
        self.changed.notify_all();
    }

    fn end(&self, state: HydrateState) {
        let mut inner = self.inner();
        if inner.is_open() {
            inner.state = state;
        }
        drop(inner);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
