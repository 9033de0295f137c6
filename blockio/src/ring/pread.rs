//! The engine for hosts without io_uring: threads that make plain calls.
//!
//! At 1 MiB a request, a few threads keep a device as busy as a ring does; what they cost is processor time.

use super::Completion;
use super::op::{Shared, Work};
use crate::error::{BlockError, Op};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::io::{PipeWriter, Write};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// Threads of an engine at most. 8 requests of 1 MiB at once are 8 GiB/s at a latency of 1 ms, more than one volume has.
pub(super) const THREADS_MAX: usize = 8;

/// Threads that work off requests in no particular order.
pub(super) struct Threads {
    jobs: Option<Sender<(usize, Work)>>,
    done: Receiver<(usize, Completion)>,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
}

impl Threads {
    /// `count` threads for up to `depth` requests. Each completion writes a byte to `notify`, if there is one.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(super) fn start(
        count: usize,
        depth: usize,
        shared: &Arc<Shared>,
        notify: Option<&PipeWriter>,
    ) -> Result<Self, BlockError> {
        // Neither channel is ever full: no more than `depth` requests are in flight.
        let (jobs, queue) = bounded::<(usize, Work)>(depth);
        let (sender, done) = bounded(depth);
        let failed = |e| BlockError::from_io(Op::Open, e);
        let mut threads = Vec::with_capacity(count);
        for _ in 0..count {
            let (queue, sender, shared) = (queue.clone(), sender.clone(), shared.clone());
            let notify = notify.map(PipeWriter::try_clone).transpose().map_err(failed)?;
            let thread = Builder::new()
                .name("blockio".to_owned())
                .spawn(move || work(&queue, &sender, &shared, notify));
            threads.push(thread.map_err(failed)?);
        }
        Ok(Self {
            jobs: Some(jobs),
            done,
            threads,
            in_flight: 0,
        })
    }

    pub(super) fn push(&mut self, slot: usize, work: Work) {
        let jobs = self.jobs.as_ref().expect("present until dropped");
        jobs.send((slot, work))
            .expect("the threads run as long as there is a queue");
        self.in_flight += 1;
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// A completion that is there.
    pub(super) fn next_done(&mut self) -> Option<(usize, Completion)> {
        let done = self.done.try_recv().ok()?;
        self.in_flight -= 1;
        Some(done)
    }

    /// Sleeps until a completion is there, and takes it, or the time is over.
    pub(super) fn wait(&mut self, timeout: Duration) -> Option<(usize, Completion)> {
        match self.done.recv_timeout(timeout) {
            Ok(done) => {
                self.in_flight -= 1;
                Some(done)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => unreachable!("threads end when the queue does"),
        }
    }
}

impl Drop for Threads {
    /// Ends the threads. If a request is in flight after the engine has drained, its thread hangs in the kernel and has the
    /// buffer: it is left to itself.
    fn drop(&mut self) {
        self.jobs = None;
        if self.in_flight == 0 {
            for thread in self.threads.drain(..) {
                let _ = thread.join(); // a panic in there was reported by the panic hook
            }
        }
    }
}

fn work(
    queue: &Receiver<(usize, Work)>,
    done: &Sender<(usize, Completion)>,
    shared: &Shared,
    mut notify: Option<PipeWriter>,
) {
    while let Ok((slot, mut work)) = queue.recv() {
        let result = work.run(shared);
        if done.send((slot, work.finish(result))).is_err() {
            return; // the engine is gone, and waits for nothing
        }
        if let Some(notify) = &mut notify {
            let _ = notify.write_all(&[0]); // fails when the engine is gone
        }
    }
}
