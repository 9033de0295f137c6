//! Answers on their way out.
//!
//! Whoever has an answer puts it here. If nobody is sending, he sends himself, as long as the socket takes it without a wait;
//! what is left is for the writer, a thread that exists once it was needed. So an answer that fits into the socket needs no
//! other thread, answers that come up while somebody sends leave together, and a client that does not read stops nobody but
//! itself.

use super::buffers::Buffer;
use super::link::Link;
use super::window::Window;
use crate::transmit::Head;
use blockio::Lent;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Answers that leave in one system call. Two pieces each: head and data.
const ANSWERS_AT_ONCE: usize = 64;
/// Bytes after which no more answers are added to one system call: their room is given back only when all are out.
const BYTES_AT_ONCE: usize = 1 << 20;

/// Data of an answer.
#[derive(Debug)]
pub(super) enum Body {
    None,
    Lent(Lent),
    Buffer(Buffer),
    Bytes(Vec<u8>),
}

/// An answer or a part of one.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) head: Head,
    pub(super) body: Body,
    /// Bytes of head and body that are out.
    sent: usize,
    /// The request is answered with this; so many bytes of the windows are free again.
    pub(super) frees: Option<u64>,
}

impl Reply {
    pub(super) fn new(head: Head, body: Body, frees: Option<u64>) -> Self {
        Self {
            head,
            body,
            sent: 0,
            frees,
        }
    }

    fn parts(&self) -> [&[u8]; 2] {
        let body: &[u8] = match &self.body {
            Body::None => &[],
            Body::Lent(lent) => lent,
            Body::Buffer(buffer) => buffer,
            Body::Bytes(bytes) => bytes,
        };
        let head = self.head.as_bytes();
        [
            head.get(self.sent..).unwrap_or_default(),
            &body[self.sent.saturating_sub(head.len()).min(body.len())..],
        ]
    }

    fn left(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Sender {
    /// Nobody; who has an answer sends it.
    Nobody,
    /// Somebody who does not wait.
    Caller,
    /// The writer, or it is about to.
    Writer,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Reply>,
    /// For use again.
    spare: VecDeque<Reply>,
    sender: Sender,
    writer: Option<std::thread::JoinHandle<()>>,
    broken: bool,
    closed: bool,
}

/// The outbox of a connection.
pub(super) struct Outbox {
    link: Arc<Link>,
    window: Arc<Window>,
    /// The window of the export. Not the export itself: who holds the last answer must not hold the volume.
    budget: Arc<Window>,
    state: Mutex<State>,
    /// The writer has something to do.
    work: Condvar,
}

impl Outbox {
    pub(super) fn new(link: Arc<Link>, window: Arc<Window>, budget: Arc<Window>) -> Arc<Self> {
        let state = State {
            queue: VecDeque::with_capacity(ANSWERS_AT_ONCE),
            spare: VecDeque::with_capacity(ANSWERS_AT_ONCE),
            sender: Sender::Nobody,
            writer: None,
            broken: false,
            closed: false,
        };
        Arc::new(Self {
            link,
            window,
            budget,
            state: Mutex::new(state),
            work: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `replies`, which is empty afterwards. Returns without waiting for the client.
    pub(super) fn push(self: &Arc<Self>, replies: &mut Vec<Reply>) {
        if replies.is_empty() {
            return;
        }
        let mut state = self.state();
        if state.broken {
            drop(state);
            return self.free(replies.drain(..));
        }
        state.queue.extend(replies.drain(..));
        if state.sender != Sender::Nobody {
            return;
        }
        state.sender = Sender::Caller;
        let mut sending = std::mem::take(&mut state.spare);
        let mut state = self.send_all(state, &mut sending, false);
        state.spare = sending;
        if state.sender == Sender::Writer && !state.broken {
            self.wake_writer(state);
        }
    }

    /// Sends until the queue is empty; without `wait` until the socket is full, which makes the writer the sender.
    fn send_all<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        sending: &mut VecDeque<Reply>,
        wait: bool,
    ) -> MutexGuard<'a, State> {
        loop {
            if state.broken {
                let dropped = std::mem::take(&mut state.queue);
                state.sender = Sender::Nobody;
                drop(state);
                self.free(dropped);
                return self.state();
            }
            let mut bytes = 0;
            while sending.len() < ANSWERS_AT_ONCE && bytes < BYTES_AT_ONCE {
                let Some(reply) = state.queue.pop_front() else { break };
                bytes += reply.left();
                sending.push_back(reply);
            }
            if sending.is_empty() {
                state.sender = Sender::Nobody;
                return state;
            }
            drop(state);
            let sent = self.send(sending, wait);
            state = self.state();
            // What is not out yet goes back in front.
            while let Some(reply) = sending.pop_back() {
                state.queue.push_front(reply);
            }
            match sent {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !wait => {
                    state.sender = Sender::Writer;
                    return state;
                }
                Err(_) => {
                    // Gone, or not reading for as long as it may: nothing will be answered any more.
                    state.broken = true;
                    self.link.cut();
                }
            }
        }
    }

    /// Sends what it can of `sending` and takes off what is out.
    fn send(&self, sending: &mut VecDeque<Reply>, wait: bool) -> io::Result<()> {
        while !sending.is_empty() {
            let mut slices = [IoSlice::new(&[]); 2 * ANSWERS_AT_ONCE];
            let mut count = 0;
            for part in sending.iter().flat_map(Reply::parts).filter(|part| !part.is_empty()) {
                slices[count] = IoSlice::new(part);
                count += 1;
            }
            let sent = self.link.send(&slices[..count], wait)?;
            self.take_off(sending, sent);
        }
        Ok(())
    }

    fn take_off(&self, sending: &mut VecDeque<Reply>, mut sent: usize) {
        let (mut requests, mut bytes) = (0, 0);
        while let Some(first) = sending.front_mut() {
            let left = first.left();
            if sent < left {
                first.sent += sent;
                break;
            }
            sent -= left;
            if let Some(frees) = first.frees {
                requests += 1;
                bytes += frees;
            }
            sending.pop_front();
        }
        self.give(requests, bytes);
    }

    fn free(&self, replies: impl IntoIterator<Item = Reply>) {
        let freed = replies.into_iter().filter_map(|reply| reply.frees);
        let (requests, bytes) = freed.fold((0, 0), |(requests, sum), bytes| (requests + 1, sum + bytes));
        self.give(requests, bytes);
    }

    fn give(&self, requests: usize, bytes: u64) {
        if requests > 0 {
            self.budget.give(requests, bytes);
            self.window.give(requests, bytes);
        }
    }

    fn wake_writer(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.writer.is_some() {
            drop(state);
            self.work.notify_one();
            return;
        }
        let outbox = self.clone();
        let spawned = std::thread::Builder::new()
            .name("nbd-send".to_owned())
            .stack_size(super::STACK)
            .spawn(move || outbox.write());
        match spawned {
            Ok(writer) => state.writer = Some(writer),
            Err(_) => {
                // Without a thread to wait for this client it cannot be served.
                state.broken = true;
                self.link.cut();
                let mut none = VecDeque::new();
                drop(self.send_all(state, &mut none, false));
            }
        }
    }

    /// The writer.
    fn write(&self) {
        let mut sending = VecDeque::with_capacity(ANSWERS_AT_ONCE);
        let mut state = self.state();
        loop {
            if state.sender == Sender::Writer {
                state = self.send_all(state, &mut sending, true);
            } else if state.closed {
                return;
            } else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Waits until all is out that was put in before, and ends the writer.
    pub(super) fn close(&self) {
        self.window.wait_empty();
        let mut state = self.state();
        state.closed = true;
        let writer = state.writer.take();
        drop(state);
        self.work.notify_one();
        if let Some(writer) = writer {
            // A panic in it was a fault of ours and has ended this connection already.
            let _ = writer.join();
        }
    }
}
