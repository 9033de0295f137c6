//! The engine over io_uring.
//!
//! Zeroing has no opcode that does all the ladder does, so one thread makes those calls, started by the first of them; a
//! pipe whose reading end the ring polls wakes the engine for it.

use super::Completion;
use super::op::{Shared, Work};
use super::pread::Threads;
use super::{EngineOptions, OpKind};
use crate::buf::BufPool;
use crate::device::Lane;
use crate::error::{BlockError, Kind, Op};
use crate::sys::uring::{Done, Ring};
use std::io::{PipeReader, PipeWriter, Read, pipe};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Uring {
    ring: Ring,
    shared: Arc<Shared>,
    /// Requests in the ring, by slot. Their buffers are in `ring`.
    works: Vec<Option<Work>>,
    zeroing: Option<Threads>,
    wake: PipeReader,
    waker: PipeWriter,
    is_polling: bool,
}

impl Uring {
    /// # Errors
    /// When the host has no io_uring for us.
    pub(super) fn open(
        depth: usize,
        shared: &Arc<Shared>,
        pools: &[BufPool],
        options: &EngineOptions,
    ) -> Result<Self, BlockError> {
        let (wake, waker) = pipe().map_err(|e| BlockError::from_io(Op::Open, e))?;
        let lanes = shared
            .devices
            .iter()
            .flat_map(|device| [device.lane(Lane::Main), device.lane(Lane::Tail)]);
        let files: Vec<_> = lanes.map(AsFd::as_fd).chain([wake.as_fd()]).collect();
        let pools = if options.register_buffers { pools } else { &[] };
        let ring = Ring::open(depth, &files, pools, options.faults.as_ref()).map_err(|e| {
            let why = match e.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => "forbidden by kernel.io_uring_disabled or a seccomp profile",
                Some(libc::ENOSYS) => "not in this kernel, or hidden by a seccomp profile",
                Some(libc::EINVAL) => "too old in this kernel (5.11 is needed)",
                Some(libc::ENOMEM) => "no memory for a ring (RLIMIT_MEMLOCK)",
                _ => "cannot be set up",
            };
            BlockError::new(Op::Open, Kind::Unsupported(format!("io_uring: {why}"))).because(e)
        })?;
        let works = (0..depth).map(|_| None).collect();
        Ok(Self {
            ring,
            shared: shared.clone(),
            works,
            zeroing: None,
            wake,
            waker,
            is_polling: false,
        })
    }

    /// What the kernel granted, in words.
    pub(super) fn describe(&self) -> String {
        let features = self.ring.features();
        let completions = if features.deferred { "deferred" } else { "prompt" };
        let opcodes = if features.restricted {
            "only our opcodes"
        } else {
            "all opcodes"
        };
        let buffers = match features.unregistered {
            Some(kind) => format!("buffers not registered ({kind}; raise RLIMIT_MEMLOCK or grant CAP_IPC_LOCK)"),
            None => format!("{} registered buffers", features.buffers),
        };
        format!("io_uring, {completions} completions, {opcodes}, {buffers}")
    }

    /// Queues a request. It is over at once if the thread for zeroing cannot be started.
    pub(super) fn push(&mut self, slot: usize, work: Work) -> Option<Completion> {
        if work.request.kind == OpKind::Zero {
            let depth = self.works.len();
            let zeroing = match &mut self.zeroing {
                Some(zeroing) => zeroing,
                none => match Threads::start(1, depth, &self.shared, Some(&self.waker)) {
                    Ok(started) => none.insert(started),
                    Err(e) => return Some(work.finish(Err(e))),
                },
            };
            zeroing.push(slot, work);
            self.arm();
        } else {
            self.issue(slot, work);
        }
        None
    }

    /// Queues the next call of a request. It has one.
    fn issue(&mut self, slot: usize, mut work: Work) {
        let request = &mut work.request;
        let file = |lane| {
            let position = request.device * 2 + usize::from(lane == Lane::Tail);
            u32::try_from(position).expect("as many files as the kernel registered")
        };
        match &work.transfer {
            None => self.ring.sync(slot, file(Lane::Main)),
            Some(transfer) => {
                let geometry = self.shared.devices[request.device].geometry();
                let piece = transfer
                    .piece(&geometry)
                    .expect("a request has bytes, and a finished one is not issued");
                let file = file(piece.lane);
                let buf = request.buf.take().expect("accepted with a buffer");
                work.piece = Some(piece);
                self.ring.transfer(slot, transfer.op(), file, &piece, buf);
            }
        }
        self.works[slot] = Some(work);
    }

    pub(super) fn submit(&mut self) -> Result<(), BlockError> {
        self.ring.submit().map_err(|e| BlockError::from_io(Op::Map, e))
    }

    /// Sleeps until about `want` completions are there, or the time is over.
    pub(super) fn wait(&mut self, want: usize, timeout: Duration) -> Result<(), BlockError> {
        // The poll completes once for any number of zeroings.
        let want = if self.is_polling {
            1
        } else {
            want.min(self.ring.outstanding()).max(1)
        };
        self.ring
            .wait(want, timeout)
            .map_err(|e| BlockError::from_io(Op::Map, e))
    }

    /// A request that is over. Resumes those that came up short.
    pub(super) fn next_done(&mut self) -> Option<(usize, Completion)> {
        loop {
            if let Some(done) = self.zeroing.as_mut().and_then(Threads::next_done) {
                return Some(done);
            }
            let done = self.ring.next_done()?;
            match done.slot {
                None => self.woken(),
                Some(slot) => {
                    if let Some(completion) = self.advance(slot, done) {
                        return Some((slot, completion));
                    }
                }
            }
        }
    }

    fn advance(&mut self, slot: usize, done: Done) -> Option<Completion> {
        let mut work = self.works[slot].take().expect("the ring answers what it was asked");
        work.request.buf = done.buf.or(work.request.buf);
        let device = &self.shared.devices[work.request.device];
        let (Some(transfer), Some(piece)) = (&mut work.transfer, work.piece.take()) else {
            let synced = done
                .result
                .map(|_| ())
                .map_err(|e| BlockError::from_io(Op::Sync, e).on(device.path()));
            return Some(work.finish(synced));
        };
        match transfer.advance(device, &piece, done.result) {
            Err(e) => Some(work.finish(Err(e))),
            Ok(()) if transfer.piece(&device.geometry()).is_none() => Some(work.finish(Ok(()))),
            Ok(()) => {
                self.issue(slot, work);
                None
            }
        }
    }

    /// Asks to be woken by the thread for zeroing.
    fn arm(&mut self) {
        if !self.is_polling {
            let position = self.shared.devices.len() * 2;
            self.ring
                .poll(u32::try_from(position).expect("as many files as the kernel registered"));
            self.is_polling = true;
        }
    }

    fn woken(&mut self) {
        self.is_polling = false;
        // There is a byte at least, so this does not sleep. An error leaves the poll to fire again.
        let _ = self.wake.read(&mut [0; 64]);
        if self.zeroing.as_ref().is_some_and(|zeroing| zeroing.in_flight() > 0) {
            self.arm();
        }
    }
}
