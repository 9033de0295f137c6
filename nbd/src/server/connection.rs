//! One connection: the handshake, then requests until the client leaves.

pub(crate) mod direct;

use super::buffers::{Buffer, Buffers, size_for};
use super::eager::Eager;
use super::execute::{self, Scratch};
use super::link::Link;
use super::listen::Peer;
use super::order::Order;
use super::outbox::{Body, Outbox, Reply};
use super::pool::Job;
use super::window::Window;
use super::{Entry, Limits, Shared};
use crate::error::Errno;
use crate::export::{Exports, Ticket};
use crate::negotiate::{Directory, Negotiation, Next, Offer, Policy, Refusal, Tls};
use crate::transmit::{Command, Decoded, Encoder, Request, Session};
use std::collections::BTreeSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tracing::{debug, warn};

/// Bytes received at once. Some two thousand requests, or the start of a payload, whose rest goes straight to its buffer.
const INPUT: usize = 64 << 10;
const _: () = assert!(
    INPUT <= Negotiation::INPUT_MAX,
    "the handshake grows its input to what it needs"
);

/// Window charge of a BLOCK_STATUS: the longest list of extents, so that lists nobody reads stay within the window too.
const STATUS_CHARGE: u64 = 1 << 20;

/// All that serves one client after the handshake.
pub(super) struct Conn {
    pub(super) session: Session,
    pub(super) ticket: Ticket,
    pub(super) outbox: Arc<Outbox>,
    pub(super) buffers: Arc<Buffers>,
    window: Arc<Window>,
    order: Order,
}

impl Conn {
    /// What was agreed, with the size that the export has grown to since.
    fn session(&self) -> Session {
        Session {
            size: self.ticket.export.size(),
            ..self.session
        }
    }
}

/// A request that waits for its volume.
pub(crate) struct Waiting {
    conn: Arc<Conn>,
    request: Request,
    payload: Option<Buffer>,
    charge: u64,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Waiting({:?})", self.request)
    }
}

impl Job for Waiting {
    fn run(self) {
        let Self {
            conn,
            request,
            payload,
            charge,
        } = self;
        let mut replies = Vec::new();
        let waiting = AssertUnwindSafe(|| {
            execute::wait(&conn, &request, payload.as_deref(), charge, &mut replies);
        });
        if catch_unwind(waiting).is_err() {
            warn!("a request ended by a panic; the client gets an error");
            replies.clear();
            replies.push(refusal(
                &conn.session,
                request.cookie,
                request.extent.offset,
                Errno::Io,
                "internal error",
                charge,
            ));
        }
        if conn.session.writable {
            conn.order
                .leave(request.cookie, request.extent, request.command.writes());
        }
        drop(payload);
        // Once this is out the connection may be over, and who stopped it may want the volume for himself.
        let outbox = conn.outbox.clone();
        drop(conn);
        outbox.push(&mut replies);
    }
}

impl Command {
    /// Changes the volume.
    pub(super) fn writes(self) -> bool {
        matches!(self, Command::Write | Command::Trim | Command::WriteZeroes { .. })
    }
}

/// An answer that is an error and the end of its request.
pub(super) fn refusal(session: &Session, cookie: u64, offset: u64, error: Errno, text: &str, charge: u64) -> Reply {
    let encoder = Encoder {
        style: session.style,
        cookie,
        offset,
    };
    let (head, body) = encoder.error(error, text, None);
    Reply::new(head, Body::Bytes(body), Some(charge))
}

/// Serves a connection from its first byte to its last.
pub(super) fn run(entry: &mut Entry, link: &Arc<Link>, peer: &Peer) {
    let shared = entry.shared.clone();
    let mut input = Input::default();
    let begun = handshake(&shared, link, peer, &mut input);
    entry.leave_handshake();
    let (ticket, session) = match begun {
        Ok(begun) => begun,
        Err(why) => {
            debug!(%why, "connection ended in the handshake");
            finish(link);
            return;
        }
    };
    ticket.bind(link);
    let window = Arc::new(Window::new(shared.limits.requests, shared.limits.bytes));
    let conn = Arc::new(Conn {
        session,
        outbox: Outbox::new(link.clone(), window.clone(), ticket.export.budget.clone()),
        ticket,
        buffers: Arc::default(),
        window,
        order: Order::default(),
    });
    let why = match link.set_patience(shared.limits.stall) {
        Ok(()) => Reader::new(&conn, link, &shared, input).run(),
        Err(_) => "the socket is gone",
    };
    // All that was accepted is answered, even when what came after it was nonsense or the end.
    conn.outbox.close();
    finish(link);
    debug!(why, "connection ended");
}

fn finish(link: &Link) {
    if let Some(secure) = link.tls() {
        secure.finish(link);
    }
}

/// Bytes received and not taken yet.
#[derive(Default)]
struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    fn data(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn take(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Receives more, into room of `room` bytes in all. 0 at the end.
    fn fill(&mut self, room: usize, recv: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        if self.bytes.len() < room {
            self.bytes.resize(room, 0);
        }
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let count = recv(&mut self.bytes[self.end..])?;
        self.end += count;
        Ok(count)
    }
}

/// The exports as this peer sees them.
struct View<'a> {
    exports: &'a Exports,
    shared: &'a Shared,
    names: BTreeSet<String>,
}

impl Directory for View<'_> {
    type Ticket = Ticket;

    fn list(&self) -> Vec<(String, String)> {
        self.exports.list(&self.names)
    }

    fn look(&self, name: &str) -> Result<Offer, Refusal> {
        self.exports.look(name, &self.names)
    }

    fn enter(&self, name: &str) -> Result<(Ticket, Offer), Refusal> {
        self.exports.enter(name, &self.names)
    }

    fn is_closing(&self) -> bool {
        self.shared.is_closing()
    }
}

fn handshake(shared: &Shared, link: &Link, peer: &Peer, input: &mut Input) -> Result<(Ticket, Session), String> {
    let deadline = Instant::now() + shared.limits.handshake;
    let said = |doing: &'static str| move |error: io::Error| format!("{doing}: {error}");
    let mut view = View {
        exports: &shared.exports,
        shared,
        names: BTreeSet::new(),
    };
    let policy = Policy {
        tls: if peer.tls.is_some() { Tls::Required } else { Tls::Absent },
        listing: peer.listing,
    };
    let mut out = Vec::new();
    let mut negotiation = Negotiation::new(policy, &mut out);
    loop {
        let (taken, next) = negotiation.step(input.data(), &mut out, &view);
        input.take(taken);
        if !out.is_empty() {
            link.set_deadline(deadline).map_err(said("answer"))?;
            link.send_bytes(&out).map_err(said("answer"))?;
            out.clear();
        }
        match next {
            Next::More => {
                link.set_deadline(deadline).map_err(said("receive"))?;
                let received = input.fill(Negotiation::INPUT_MAX, |buf| link.recv(buf));
                if received.map_err(said("receive"))? == 0 {
                    return Err("the client left".to_owned());
                }
            }
            Next::StartTls => {
                let Some(config) = &peer.tls else {
                    return Err("STARTTLS without TLS".to_owned());
                };
                link.start_tls(config, deadline).map_err(said("TLS"))?;
                view.names = link.tls().map(super::tls::Secure::peer_names).unwrap_or_default();
                negotiation = negotiation.after_tls();
            }
            Next::Begin(ticket, session) => return Ok((ticket, session)),
            Next::Close(why) => return Err(why.to_owned()),
        }
    }
}

/// The thread that receives.
struct Reader<'a> {
    conn: &'a Arc<Conn>,
    link: &'a Link,
    shared: &'a Shared,
    limits: &'a Limits,
    input: Input,
    eager: Eager<'a>,
    /// Requests since bytes were received.
    together: usize,
    /// Answers that leave together.
    replies: Vec<Reply>,
    scratch: Scratch,
    /// Since when a request is incomplete.
    partial_since: Option<Instant>,
}

/// Why no more is read.
type Ended = &'static str;

impl<'a> Reader<'a> {
    fn new(conn: &'a Arc<Conn>, link: &'a Link, shared: &'a Shared, input: Input) -> Self {
        Self {
            conn,
            link,
            shared,
            limits: &shared.limits,
            input,
            eager: Eager::new(&shared.turn),
            together: 0,
            replies: Vec::with_capacity(64),
            scratch: Scratch::default(),
            partial_since: None,
        }
    }

    fn run(mut self) -> Ended {
        let ended = loop {
            if let Err(ended) = self.step() {
                break ended;
            }
        };
        self.flush();
        ended
    }

    /// Sends the answers that have come together.
    fn flush(&mut self) {
        self.conn.outbox.push(&mut self.replies);
    }

    /// Takes one request, or receives more.
    fn step(&mut self) -> Result<(), Ended> {
        let session = &self.conn.session();
        match session.decode(self.input.data()) {
            Decoded::Incomplete => self.receive(),
            Decoded::Disconnect => Err("the client said so"),
            Decoded::Broken(why) => Err(why),
            Decoded::Refused {
                cookie,
                offset,
                error,
                text,
                drain,
            } => {
                self.input.take(session.header_len());
                self.drain(drain)?;
                self.admit(0);
                self.replies.push(refusal(session, cookie, offset, error, text, 0));
                Ok(())
            }
            Decoded::Request(request) => {
                self.input.take(session.header_len());
                self.together += 1;
                self.request(request)
            }
        }
    }

    /// Receives some bytes of a header.
    fn receive(&mut self) -> Result<(), Ended> {
        self.flush();
        if self.input.data().is_empty() {
            self.partial_since = None;
        } else {
            let since = *self.partial_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.limits.stall {
                return Err("half a request, and no more of it");
            }
        }
        let together = std::mem::take(&mut self.together);
        match self.input.fill(INPUT, |buf| self.eager.recv(self.link, buf, together)) {
            Ok(0) => Err("the client left"),
            Ok(_) => Ok(()),
            // Nothing for a while: fine between requests, checked above in the middle of one.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err("the connection broke"),
        }
    }

    /// Receives into `buf`, all of it.
    fn receive_exact(&mut self, buf: &mut [u8]) -> Result<(), Ended> {
        let held = self.input.data();
        let now = held.len().min(buf.len());
        buf[..now].copy_from_slice(&held[..now]);
        self.input.take(now);
        let mut at = now;
        if at < buf.len() {
            self.flush();
        }
        while at < buf.len() {
            match self.link.recv(&mut buf[at..]) {
                Ok(0) => return Err("the client left in the middle of a payload"),
                Ok(count) => at += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err("half a payload, and no more of it");
                }
                Err(_) => return Err("the connection broke"),
            }
        }
        Ok(())
    }

    /// Receives `count` bytes and forgets them.
    fn drain(&mut self, count: u64) -> Result<(), Ended> {
        let mut left = count;
        while left > 0 {
            if self.input.data().is_empty() {
                self.flush();
                match self.input.fill(INPUT, |buf| self.link.recv(buf)) {
                    Ok(0) => return Err("the client left in the middle of a payload"),
                    Ok(_) => {}
                    Err(_) => return Err("half a payload, and no more of it"),
                }
            }
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(self.input.data().len());
            self.input.take(now);
            left -= now as u64;
        }
        Ok(())
    }

    /// Takes room for a request in both windows. What is answered already leaves before a wait.
    fn admit(&mut self, charge: u64) {
        let conn = self.conn;
        if !conn.window.try_take(charge) {
            self.flush();
            conn.window.take(charge);
        }
        if !conn.ticket.export.budget.try_take(charge) {
            self.flush();
            conn.ticket.export.budget.take(charge);
        }
    }

    fn request(&mut self, request: Request) -> Result<(), Ended> {
        let conn = self.conn;
        let export = &conn.ticket.export;
        let charge = match request.command {
            Command::Read { .. } | Command::Write => size_for(request.extent.bytes()) as u64,
            Command::BlockStatus { .. } => STATUS_CHARGE,
            _ => 0,
        };
        self.admit(charge);
        let payload = if request.payload > 0 {
            // At most 32 MiB, and charged above.
            let len = usize::try_from(request.payload).map_err(|_| "a payload past all memory")?;
            let mut buffer = conn.buffers.take(len);
            if let Err(ended) = self.receive_exact(&mut buffer) {
                // It was never whole, so it is not answered; but it is not in flight either.
                export.budget.give(1, charge);
                conn.window.give(1, charge);
                return Err(ended);
            }
            Some(buffer)
        } else {
            None
        };
        if self.shared.is_closing() || export.is_withdrawn() {
            let (cookie, offset) = (request.cookie, request.extent.offset);
            let refused = refusal(
                &conn.session,
                cookie,
                offset,
                Errno::Shutdown,
                "the export is going away",
                charge,
            );
            self.replies.push(refused);
            return Ok(());
        }
        let counters = &export.counters;
        counters.requests.fetch_add(1, Ordering::Relaxed);
        match request.command {
            Command::Read { .. } => counters.bytes_read.fetch_add(request.extent.len, Ordering::Relaxed),
            Command::Write => counters.bytes_written.fetch_add(request.extent.len, Ordering::Relaxed),
            _ => 0,
        };
        let ordered = conn.session.writable && !request.extent.is_empty();
        let writes = request.command.writes();
        if ordered && !conn.order.is_free(request.extent, writes) {
            self.flush();
            conn.order.wait(request.extent, writes);
        }
        if execute::now(
            conn,
            &request,
            payload.as_deref(),
            charge,
            &mut self.replies,
            &mut self.scratch,
        ) {
            return Ok(());
        }
        if conn.session.writable {
            conn.order.enter(request.cookie, request.extent, writes);
        }
        export.pool.push(Waiting {
            conn: conn.clone(),
            request,
            payload,
            charge,
        });
        Ok(())
    }
}
