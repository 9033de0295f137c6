//! Serving exports over sockets: one thread a connection, a second one where a client is slower than we are, and a pool a
//! export for what has to wait for its volume.
//!
//! The way of a request: the connection's thread receives what has arrived, decodes every request in it, answers those that
//! need no wait, and sends all these answers in one system call. Requests that need a wait go to the pool of their export and
//! are answered from there, in any order. Nothing is copied that the source can lend.

mod buffers;
mod connection;
mod eager;
mod execute;
mod link;
mod listen;
mod order;
mod outbox;
mod pool;
mod tls;
mod window;

pub(crate) use connection::Waiting;
pub(crate) use connection::direct::kernel_flags;
pub(crate) use link::Link;
pub use listen::UnixListen;
pub(crate) use pool::{Job, Pool};
pub use tls::TlsSettings;
pub(crate) use window::Window;

use crate::error::NbdError;
use crate::export::Exports;
use listen::{Listening, Peer};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// What clients may take up. The defaults are for a node that serves volumes to its own clients.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Time for the whole handshake. A client on a slow line needs less than one second.
    pub handshake: Duration,
    /// Connections of one listener in the handshake.
    pub handshakes: usize,
    /// Of these, from one address. Clients on one Unix socket have no address.
    pub handshakes_per_peer: usize,
    /// Connections of the server. Each is a thread or two and up to 64 MiB in flight, if it asks for that.
    pub connections: usize,
    /// A client that neither takes an answer nor finishes what it began to send is cut off after this. One that asks for
    /// nothing may stay for days.
    pub stall: Duration,
    /// Requests in flight on a connection; no more are read then.
    pub requests: usize,
    /// Bytes in flight on a connection: two requests of the longest kind.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            handshakes: 256,
            handshakes_per_peer: 32,
            connections: 512,
            stall: Duration::from_secs(60),
            requests: 256,
            bytes: 64 << 20,
        }
    }
}

/// Stack of a thread of the server. TLS needs most of it.
const STACK: usize = 512 << 10;

/// How long a server that is dropped waits for its connections.
const DROP_GRACE: Duration = Duration::from_secs(5);

/// A server of exports. Dropping it stops it.
pub struct Server {
    shared: Arc<Shared>,
    listening: Vec<Listening>,
    stopped: bool,
}

/// What a listener, all connections and the server itself look at.
pub(crate) struct Shared {
    pub(crate) exports: Arc<Exports>,
    pub(crate) limits: Limits,
    turn: eager::Turn,
    closing: AtomicBool,
    table: Mutex<Table>,
    /// A connection ended.
    ended: Condvar,
}

#[derive(Default)]
struct Table {
    next: u64,
    links: HashMap<u64, Arc<Link>>,
    /// In the handshake, by listener and by address.
    handshakes: HashMap<u64, usize>,
    by_address: HashMap<IpAddr, usize>,
}

/// How a stop went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Connections that did not end by themselves and were cut off.
    pub cut: usize,
    /// Connections whose volume did not come back from what it was asked; their threads are left behind.
    pub stuck: usize,
}

impl Server {
    /// A server of `exports` that listens nowhere yet.
    pub fn new(exports: Arc<Exports>, limits: Limits) -> Self {
        let shared = Shared {
            exports,
            limits,
            turn: eager::Turn::default(),
            closing: AtomicBool::new(false),
            table: Mutex::default(),
            ended: Condvar::new(),
        };
        Self {
            shared: Arc::new(shared),
            listening: Vec::new(),
            stopped: false,
        }
    }

    /// Listens on a Unix socket.
    ///
    /// # Errors
    /// When something answers there, something else is there, or the socket cannot be made.
    pub fn listen_unix(&mut self, listen: &UnixListen) -> Result<(), NbdError> {
        let id = self.listening.len() as u64;
        self.listening.push(Listening::unix(&self.shared, id, listen)?);
        Ok(())
    }

    /// Listens on TCP. Nothing but STARTTLS is served before TLS, and no client without a certificate. Returns the address,
    /// which tells the port where `address` left it open.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn listen_tcp(&mut self, address: SocketAddr, tls: TlsSettings) -> Result<SocketAddr, NbdError> {
        let id = self.listening.len() as u64;
        let (listening, address) = Listening::tcp(&self.shared, id, address, tls)?;
        self.listening.push(listening);
        Ok(address)
    }

    /// Stops: no connection is accepted any more, requests that were accepted are answered, later ones refused. What has not
    /// ended within `grace` is cut off.
    pub fn stop(mut self, grace: Duration) -> Stopped {
        self.stop_now(grace)
    }

    fn stop_now(&mut self, grace: Duration) -> Stopped {
        self.stopped = true;
        self.shared.closing.store(true, Ordering::Release);
        self.listening.clear();
        for link in self.shared.table().links.values() {
            link.stop_reading();
        }
        let left = self.shared.wait_ended(grace);
        for link in self.shared.table().links.values() {
            link.cut();
        }
        // Cut off, a connection ends as soon as its volume comes back.
        let stuck = self.shared.wait_ended(Duration::from_secs(1));
        Stopped { cut: left, stuck }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.stopped {
            self.stop_now(DROP_GRACE);
        }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Waits until no connection is left, or `grace` has passed. Returns how many are.
    fn wait_ended(&self, grace: Duration) -> usize {
        let deadline = Instant::now() + grace;
        let mut table = self.table();
        while !table.links.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            table = self
                .ended
                .wait_timeout(table, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        table.links.len()
    }

    /// Serves a connection that was accepted, on a thread of its own; closes it when there are too many.
    fn accept(self: &Arc<Self>, listener: u64, socket: OwnedFd, peer: Peer) {
        let link = Arc::new(Link::new(socket));
        let mut table = self.table();
        let in_handshake = table.handshakes.get(&listener).copied().unwrap_or(0);
        let of_peer = peer
            .address
            .and_then(|address| table.by_address.get(&address).copied())
            .unwrap_or(0);
        let full = table.links.len() >= self.limits.connections
            || in_handshake >= self.limits.handshakes
            || of_peer >= self.limits.handshakes_per_peer;
        if full || self.is_closing() {
            debug!(in_handshake, of_peer, "connection refused: too many, or stopping");
            return;
        }
        let id = table.next;
        table.next += 1;
        table.links.insert(id, link.clone());
        *table.handshakes.entry(listener).or_default() += 1;
        if let Some(address) = peer.address {
            *table.by_address.entry(address).or_default() += 1;
        }
        drop(table);
        let entry = Entry {
            shared: self.clone(),
            id,
            handshake: Some((listener, peer.address)),
        };
        let serve = move || {
            let mut entry = entry;
            // A panic is a fault of ours or of a volume: it ends this connection and no other.
            let served = catch_unwind(AssertUnwindSafe(|| connection::run(&mut entry, &link, &peer)));
            link.cut();
            if served.is_err() {
                warn!("a connection ended by a panic");
            }
        };
        let spawned = thread::Builder::new()
            .name("nbd-conn".to_owned())
            .stack_size(STACK)
            .spawn(serve);
        if let Err(error) = spawned {
            warn!(%error, "no thread for a connection; it is closed");
        }
    }
}

/// A connection in the table of the server, for as long as its thread runs.
pub(crate) struct Entry {
    pub(crate) shared: Arc<Shared>,
    id: u64,
    handshake: Option<(u64, Option<IpAddr>)>,
}

impl Entry {
    /// The handshake is over: the connection does not count as one in it any more.
    pub(crate) fn leave_handshake(&mut self) {
        let Some((listener, address)) = self.handshake.take() else {
            return;
        };
        let mut table = self.shared.table();
        if let Some(count) = table.handshakes.get_mut(&listener) {
            *count = count.saturating_sub(1);
        }
        if let Some(address) = address
            && let Some(count) = table.by_address.get_mut(&address)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                table.by_address.remove(&address);
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.leave_handshake();
        self.shared.table().links.remove(&self.id);
        self.shared.ended.notify_all();
    }
}
