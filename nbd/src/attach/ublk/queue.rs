//! Threads that serve the queues of a device.
//!
//! One thread a queue: the driver takes commands for it from no other. It answers what is at hand by itself. What may wait goes to
//! the pool of the device, which puts its result in the mailbox of the queue and sets off its alarm; the thread of the queue
//! tells the driver.

use super::abi::{self, Descriptor};
use super::work::{self, Request};
use crate::attach::error::AttachError;
use crate::attach::sys::ublk::{Heard, Queue};
use crate::export::Export;
use crate::server::{Job, Pool};
use rustix::event::EventfdFlags;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use tracing::{debug, warn};

/// All that the threads of a device share.
pub(super) struct Shared {
    export: Arc<Export>,
    pool: Pool<Waiting>,
    /// Bytes of a buffer.
    buffer: usize,
    /// Every request fails from now on, also those that wait for the volume.
    failing: AtomicBool,
    /// The device is being taken away: the driver's goodbye is no surprise.
    stopping: AtomicBool,
    mailboxes: Vec<Mailbox>,
}

/// Results for the thread of a queue.
struct Mailbox {
    results: Mutex<Vec<Finished>>,
    /// An eventfd that is not zero when the thread is to look.
    alarm: OwnedFd,
}

impl Mailbox {
    fn new() -> io::Result<Self> {
        Ok(Self {
            results: Mutex::default(),
            alarm: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    fn set_off(&self) {
        // Fails only when its count is at the end of all numbers, and then it is set off.
        let _ = rustix::io::write(&self.alarm, &1u64.to_ne_bytes());
    }
}

/// A request that waits for the volume.
pub(super) struct Waiting {
    shared: Arc<Shared>,
    queue: u16,
    slot: Slot,
    request: Request,
    buffer: Box<[u8]>,
}

/// A request among all that ever had its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    tag: u16,
    /// Counts those that were answered in place of the volume.
    round: u32,
}

struct Finished {
    slot: Slot,
    result: i32,
    buffer: Box<[u8]>,
}

impl Job for Waiting {
    fn run(mut self) {
        let result = work::wait(&self.shared.export, &self.request, &mut self.buffer);
        let mailbox = &self.shared.mailboxes[usize::from(self.queue)];
        let finished = Finished {
            slot: self.slot,
            result,
            buffer: self.buffer,
        };
        let mut results = mailbox.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.push(finished);
        let first = results.len() == 1;
        drop(results);
        // Whoever put in the first one has set it off, and the thread takes all.
        if first {
            mailbox.set_off();
        }
    }
}

/// The threads of a device.
pub(super) struct Threads {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts a thread for each queue of `device`, and returns when each has given the driver all its buffers.
    pub(super) fn start(export: &Arc<Export>, device: File, info: &abi::DeviceInfo) -> Result<Self, AttachError> {
        let failed = || AttachError::system("serve the queues of the device");
        let mailboxes: io::Result<_> = (0..info.queues).map(|_| Mailbox::new()).collect();
        let shared = Arc::new(Shared {
            export: export.clone(),
            pool: Pool::new(),
            buffer: usize::try_from(info.io_bytes_max).map_err(|error| failed()(io::Error::other(error)))?,
            failing: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            mailboxes: mailboxes.map_err(failed())?,
        });
        let device = Arc::new(device);
        let (ready, is_ready) = channel();
        let mut handles = Vec::new();
        for queue in 0..info.queues {
            let (shared, device, ready, depth) = (shared.clone(), device.clone(), ready.clone(), info.depth);
            let serve = move || serve(&shared, &device, queue, depth, &ready);
            let spawned = thread::Builder::new().name("ublk-queue".to_owned()).spawn(serve);
            handles.push(spawned.map_err(failed())?);
        }
        drop((ready, device));
        for _ in 0..info.queues {
            let begun = is_ready
                .recv()
                .unwrap_or_else(|_| Err(io::Error::other("a thread is gone")));
            begun.map_err(failed())?;
        }
        Ok(Self { shared, handles })
    }

    /// What the driver takes back from now on is no surprise.
    pub(super) fn expect_end(&self) {
        self.shared.stopping.store(true, Ordering::Release);
    }

    /// Fails every request under way and to come.
    pub(super) fn fail(&self) {
        self.shared.failing.store(true, Ordering::Release);
        for mailbox in &self.shared.mailboxes {
            mailbox.set_off();
        }
    }

    /// All have ended: the driver has given back all that it had.
    pub(super) fn have_ended(&self) -> bool {
        self.handles.iter().all(JoinHandle::is_finished)
    }
}

/// The thread of one queue.
fn serve(shared: &Arc<Shared>, device: &Arc<File>, id: u16, depth: u16, ready: &Sender<io::Result<()>>) {
    let alarm = shared.mailboxes[usize::from(id)].alarm.as_fd();
    let opened = Queue::open(device, id, depth, alarm).and_then(|mut queue| {
        for tag in 0..depth {
            queue.fetch(tag, vec![0; shared.buffer].into_boxed_slice())?;
        }
        queue.submit()?;
        Ok(queue)
    });
    let queue = match opened {
        Ok(queue) => queue,
        Err(error) => {
            // Who waits for it may be gone.
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let mut serving = Serving {
        shared,
        queue,
        id,
        rounds: vec![0; depth.into()],
        waiting: vec![false; depth.into()],
        ended: false,
    };
    match serving.run() {
        Ok(()) => debug!(queue = id, "a ublk queue ended"),
        Err(error) => {
            warn!(queue = id, %error, "a ublk queue is not served any more; its requests wait for another server")
        }
    }
}

struct Serving<'a> {
    shared: &'a Arc<Shared>,
    queue: Queue,
    id: u16,
    /// See [`Slot`].
    rounds: Vec<u32>,
    /// Tags whose requests are with the pool.
    waiting: Vec<bool>,
    /// The driver has begun to take back its commands.
    ended: bool,
}

impl Serving<'_> {
    fn run(&mut self) -> io::Result<()> {
        let mut heard = Vec::new();
        while !self.ended || self.queue.with_kernel() > 0 {
            self.queue.wait(&mut heard)?;
            for heard in heard.drain(..) {
                match heard {
                    Heard::Request {
                        tag,
                        descriptor,
                        buffer,
                    } => self.take(tag, &descriptor, buffer)?,
                    Heard::Ended { result } => self.end(result),
                }
            }
            self.deliver()?;
            if self.shared.failing.load(Ordering::Acquire) {
                self.give_up()?;
            }
        }
        Ok(())
    }

    fn end(&mut self, result: i32) {
        if !self.ended && (result != abi::ABORTED || !self.shared.stopping.load(Ordering::Acquire)) {
            warn!(queue = self.id, result, "the driver gives up a ublk queue");
        }
        self.ended = true;
    }

    fn take(&mut self, tag: u16, descriptor: &Descriptor, mut buffer: Box<[u8]>) -> io::Result<()> {
        let export = &self.shared.export;
        let Some(request) = Request::parse(descriptor, export.size(), buffer.len()) else {
            warn!(?descriptor, "a request that the device does not have");
            return self.answer(tag, -libc::EIO, buffer);
        };
        work::count(export, &request);
        if self.shared.failing.load(Ordering::Acquire) {
            return self.answer(tag, -libc::EIO, buffer);
        }
        if let Some(result) = work::now(export, &request, &mut buffer) {
            return self.answer(tag, result, buffer);
        }
        let at = usize::from(tag);
        self.waiting[at] = true;
        self.shared.pool.push(Waiting {
            shared: self.shared.clone(),
            queue: self.id,
            slot: Slot {
                tag,
                round: self.rounds[at],
            },
            request,
            buffer,
        });
        Ok(())
    }

    /// After the driver has begun to take back its commands it hears no more results: it has seen to these requests.
    fn answer(&mut self, tag: u16, result: i32, buffer: Box<[u8]>) -> io::Result<()> {
        if self.ended {
            return Ok(());
        }
        self.queue.commit(tag, result, buffer)
    }

    /// Tells the driver what the pool has done.
    fn deliver(&mut self) -> io::Result<()> {
        let mailbox = &self.shared.mailboxes[usize::from(self.id)];
        let results = std::mem::take(&mut *mailbox.results.lock().unwrap_or_else(PoisonError::into_inner));
        for Finished { slot, result, buffer } in results {
            let at = usize::from(slot.tag);
            // One that was given up has been answered.
            if self.rounds[at] == slot.round {
                self.waiting[at] = false;
                self.answer(slot.tag, result, buffer)?;
            }
        }
        Ok(())
    }

    /// Fails what is with the pool. Its buffers stay there, and the driver gets others.
    fn give_up(&mut self) -> io::Result<()> {
        for tag in 0..self.waiting.len() {
            if std::mem::take(&mut self.waiting[tag]) {
                self.rounds[tag] = self.rounds[tag].wrapping_add(1);
                let buffer = vec![0; self.shared.buffer].into_boxed_slice();
                let tag = u16::try_from(tag).map_err(io::Error::other)?;
                self.answer(tag, -libc::EIO, buffer)?;
            }
        }
        Ok(())
    }
}
