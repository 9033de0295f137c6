//! The bulk path: requests with owned buffers in, completions with the buffers out, many at once.
//!
//! An [`Engine`] belongs to the thread that opened it: one per worker, none shared. It runs on io_uring where the host lets
//! it, else on threads that make plain calls; [`Engine::choice`] says which and why. Whichever it is:
//!
//! - A buffer belongs to the request from [`Engine::push`] to its completion. Short transfers are resumed inside.
//! - Requests run at once and complete in any order. A sync covers the writes whose completions were taken before it was
//!   pushed, and no others.
//! - Dropping an engine awaits what is in flight. What does not answer within [`EngineOptions::stuck_after`] is given up, and
//!   its buffer never used again.
//! - Nothing spins: who waits sleeps in the kernel.

mod op;
mod pread;
mod uring;

use crate::buf::{BlockBuf, BufPool};
use crate::device::Device;
use crate::error::{BlockError, Kind, Op};
use crate::extent::Extent;
use crate::fault::FaultPlan;
use crate::zeroing::{ZeroReport, Zeroer};
use op::{Accepted, Shared, Slots, Work};
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Requests in flight at most that an engine can be asked for. 32 reads of 1 MiB saturate every volume we know of; a bound
/// keeps queues and file tables small.
const DEPTH_MAX: u32 = 1024;

/// Which engine to open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring where it can be set up, else threads.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Threads with plain calls.
    Pread,
}

/// The engine that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineChoice {
    /// [`EngineKind::Uring`] or [`EngineKind::Pread`].
    pub kind: EngineKind,
    /// Why, and how it is set up; for people.
    pub reason: String,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// Fill the buffer from the device.
    Read,
    /// Write the buffer to the device.
    Write,
    /// Make a range zero.
    Zero,
    /// Make durable what was written.
    Sync,
}

/// Something to do, and the buffer to do it with.
#[derive(Debug)]
pub struct Request {
    /// Position among the devices the engine was opened with.
    pub device: usize,
    /// What to do.
    pub kind: OpKind,
    /// First byte on the device, a multiple of the device's `offset_align`. Unused by a sync.
    pub offset: u64,
    /// Bytes: a multiple of the device's `offset_align`, or up to the end of the device. A read may ask for more than there
    /// is and gets zeros for the rest. Unused by a sync.
    pub len: usize,
    /// For a read or write; the first `len` bytes are used. Others may have one, and get it back.
    pub buf: Option<BlockBuf>,
    /// Comes back with the completion. Means nothing here.
    pub tag: u64,
}

/// Something that was done, or was not.
#[derive(Debug)]
pub struct Completion {
    /// Of the request.
    pub tag: u64,
    /// Of the request.
    pub kind: OpKind,
    /// Of the request.
    pub offset: u64,
    /// Of the request.
    pub len: usize,
    /// The buffer of the request. After a failed read its contents are undefined.
    pub buf: Option<BlockBuf>,
    /// Whether all of it was done.
    pub result: Result<(), BlockError>,
}

/// How to open an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Which one.
    pub kind: EngineKind,
    /// Requests in flight at most; 1 to 1024.
    pub depth: u32,
    /// A request without an answer for so long fails [`Engine::wait`].
    pub stuck_after: Duration,
    /// Faults to come, for tests.
    pub faults: Option<FaultPlan>,
    /// Register the buffers of the pools with the ring. That touches and pins all their memory.
    pub register_buffers: bool,
    /// Zeroing a file punches holes.
    pub keep_sparse: bool,
}

impl Default for EngineOptions {
    /// io_uring or threads, 64 requests (two batches of reads and as many writes for each of two volumes), registered buffers,
    /// files keep their blocks. 120 s without an answer is stuck: four times the 30 s after which the SCSI layer of Linux
    /// begins to recover a device, so that its retries have an end before ours.
    fn default() -> Self {
        Self {
            kind: EngineKind::Auto,
            depth: 64,
            stuck_after: Duration::from_secs(120),
            faults: None,
            register_buffers: true,
            keep_sparse: false,
        }
    }
}

/// Reads and writes on a set of devices, many at once, for one thread.
pub struct Engine {
    way: Way,
    shared: Arc<Shared>,
    slots: Slots,
    /// Over without reaching a device; these hold no slot.
    over: VecDeque<Completion>,
    /// Never to be answered; a fault's doing.
    stuck: Vec<Work>,
    choice: EngineChoice,
    depth: usize,
    stuck_after: Duration,
    faults: Option<FaultPlan>,
    /// The kernel takes submissions from the thread that enabled the ring only.
    _one_thread: PhantomData<*const ()>,
}

enum Way {
    Uring(Box<uring::Uring>),
    Pread(pread::Threads),
}

impl Engine {
    /// An engine for these devices, in the calling thread. Requests with buffers of `pools` are cheapest; others work too.
    ///
    /// # Errors
    /// When io_uring is insisted on and is not to be had, threads cannot be started, or the depth is out of bounds.
    pub fn open(devices: &[Arc<Device>], pools: &[BufPool], options: &EngineOptions) -> Result<Self, BlockError> {
        if options.depth == 0 || options.depth > DEPTH_MAX {
            let what = format!("a depth of {}; 1 to {DEPTH_MAX}", options.depth);
            return Err(BlockError::new(Op::Open, Kind::InvalidInput(what)));
        }
        let depth = usize::try_from(options.depth).expect("1024 at most");
        let zeroer = |_: &Arc<Device>| Zeroer::new(options.faults.clone()).keep_sparse(options.keep_sparse);
        let shared = Arc::new(Shared {
            devices: devices.to_vec(),
            zeroers: devices.iter().map(zeroer).collect(),
        });
        let uring = || uring::Uring::open(depth, &shared, pools, options).map(Box::new);
        let threads = || pread::Threads::start(depth.min(pread::THREADS_MAX), depth, &shared, None);
        let (way, reason) = match options.kind {
            EngineKind::Pread => (Way::Pread(threads()?), "asked for".to_owned()),
            EngineKind::Uring => with_reason(uring()?),
            EngineKind::Auto => match uring() {
                Ok(uring) => with_reason(uring),
                Err(e) => (Way::Pread(threads()?), e.kind.to_string()),
            },
        };
        let kind = match way {
            Way::Uring(_) => EngineKind::Uring,
            Way::Pread(_) => EngineKind::Pread,
        };
        Ok(Self {
            way,
            shared,
            slots: Slots::new(depth),
            over: VecDeque::new(),
            stuck: Vec::new(),
            choice: EngineChoice { kind, reason },
            depth,
            stuck_after: options.stuck_after,
            faults: options.faults.clone(),
            _one_thread: PhantomData,
        })
    }

    /// Which engine it is, and why.
    pub fn choice(&self) -> &EngineChoice {
        &self.choice
    }

    /// Requests whose completions were not taken.
    pub fn in_flight(&self) -> usize {
        self.slots.in_flight() + self.over.len()
    }

    /// Requests that can be pushed now.
    pub fn room(&self) -> usize {
        self.depth - self.in_flight()
    }

    /// What was zeroed on a device of this engine, and how; `None` for a device it does not have.
    pub fn zero_report(&self, device: usize) -> Option<ZeroReport> {
        self.shared.zeroers.get(device).map(Zeroer::report)
    }

    /// Takes a request. It is under way at the next [`Self::submit`] or [`Self::wait`] at the latest. One that cannot be done
    /// is taken too; its completion says why.
    ///
    /// # Errors
    /// The request itself, when there is no room.
    pub fn push(&mut self, request: Request) -> Result<(), Request> {
        if self.room() == 0 {
            return Err(request);
        }
        let work = match Work::accept(request, &self.shared.devices, self.faults.as_ref()) {
            Accepted::Over(completion) => {
                self.over.push_back(completion);
                return Ok(());
            }
            Accepted::Stuck(work) => {
                self.slots.take(&work).expect("there is room");
                self.stuck.push(work);
                return Ok(());
            }
            Accepted::Work(work) => work,
        };
        let slot = self.slots.take(&work).expect("there is room");
        match &mut self.way {
            Way::Pread(threads) => threads.push(slot, work),
            Way::Uring(uring) => {
                if let Some(completion) = uring.push(slot, work) {
                    self.slots.release(slot);
                    self.over.push_back(completion);
                }
            }
        }
        Ok(())
    }

    /// Hands to the kernel what was pushed. Does not sleep.
    ///
    /// # Errors
    /// When the kernel takes no requests any more; the engine is then of no further use.
    pub fn submit(&mut self) -> Result<(), BlockError> {
        match &mut self.way {
            Way::Uring(uring) => uring.submit(),
            Way::Pread(_) => Ok(()),
        }
    }

    /// Sleeps until `min` requests are over, or all in flight if they are fewer, and appends every completion there is to
    /// `out`. With 0 it takes what is there.
    ///
    /// # Errors
    /// [`Kind::Stuck`] when a request has had no answer for too long. Completions that are there are in `out` nonetheless.
    pub fn wait(&mut self, min: usize, out: &mut Vec<Completion>) -> Result<(), BlockError> {
        let enough = out.len() + min.min(self.in_flight());
        out.extend(self.over.drain(..));
        if out.len() >= enough {
            self.submit()?;
        }
        loop {
            self.take_done(out);
            if out.len() >= enough {
                return Ok(());
            }
            let Some(oldest) = self.slots.oldest() else {
                return Ok(());
            };
            let left = self.stuck_after.saturating_sub(oldest.since.elapsed());
            if left.is_zero() {
                let path = self.shared.devices[oldest.device].path();
                return Err(BlockError::new(oldest.op, Kind::Stuck(self.stuck_after.as_secs()))
                    .at(oldest.extent)
                    .on(path));
            }
            let want = enough - out.len();
            self.sleep(want, left, out)?;
        }
    }

    fn sleep(&mut self, want: usize, timeout: Duration, out: &mut Vec<Completion>) -> Result<(), BlockError> {
        match &mut self.way {
            Way::Uring(uring) => uring.wait(want, timeout),
            Way::Pread(threads) => {
                if let Some((slot, completion)) = threads.wait(timeout) {
                    self.slots.release(slot);
                    out.push(completion);
                }
                Ok(())
            }
        }
    }

    fn take_done(&mut self, out: &mut Vec<Completion>) {
        let slots = &mut self.slots;
        let over = |(slot, completion)| {
            slots.release(slot);
            completion
        };
        match &mut self.way {
            Way::Uring(uring) => out.extend(std::iter::from_fn(|| uring.next_done()).map(over)),
            Way::Pread(threads) => out.extend(std::iter::from_fn(|| threads.next_done()).map(over)),
        }
    }
}

impl Drop for Engine {
    /// Awaits what is in flight, each request until it is overdue. What is overdue is left to the kernel with its buffer.
    fn drop(&mut self) {
        let mut done = Vec::new();
        while let now = Instant::now()
            && let Some(deadline) = self.slots.patience(self.stuck_after, now)
            && self.slots.in_flight() > self.stuck.len()
        {
            self.take_done(&mut done);
            let want = self.slots.in_flight() - self.stuck.len();
            if want > 0 && self.sleep(want, deadline - now, &mut done).is_err() {
                break;
            }
            done.clear();
        }
        self.stuck.drain(..).for_each(std::mem::forget);
    }
}

impl Request {
    /// Bytes on the device.
    pub(crate) fn extent(&self) -> Extent {
        Extent {
            offset: self.offset,
            len: self.len as u64,
        }
    }
}

impl OpKind {
    pub(crate) fn op(self) -> Op {
        match self {
            Self::Read => Op::Read,
            Self::Write => Op::Write,
            Self::Zero => Op::Zero,
            Self::Sync => Op::Sync,
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Engine({}, {} of {} in flight)",
            self.choice.kind,
            self.in_flight(),
            self.depth
        )
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Pread => "pread",
        })
    }
}

impl FromStr for EngineKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "pread" => Ok(Self::Pread),
            other => Err(format!("no engine is called {other:?}; auto, uring or pread")),
        }
    }
}

fn with_reason(uring: Box<uring::Uring>) -> (Way, String) {
    let reason = uring.describe();
    (Way::Uring(uring), reason)
}

#[cfg(test)]
mod tests;
