//! Connections of the kernel's own client: no handshake, transmission from the first byte.

use super::{Buffers, Conn, Input, Order, Outbox, Reader, Window};
use crate::error::NbdError;
use crate::proto::flag;
use crate::server::{Entry, Link, STACK, Server, Shared};
use crate::transmit::{Session, Style};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use tracing::{debug, warn};

/// Transmission flags for the kernel. It asks for no block status, no prefetch and no fragments.
pub(crate) fn kernel_flags(read_only: bool) -> u16 {
    let common = flag::HAS_FLAGS | flag::CAN_MULTI_CONN;
    if read_only {
        common | flag::READ_ONLY
    } else {
        common | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES
    }
}

impl Server {
    /// Serves the only export of this server on one end of a socket pair, as if everything had been agreed.
    ///
    /// # Errors
    /// When the export has too many connections, or there is no thread.
    pub(crate) fn serve_kernel(&self, socket: OwnedFd) -> Result<(), NbdError> {
        let refused = |_| NbdError::System {
            doing: "serve the kernel",
            source: io::ErrorKind::ResourceBusy.into(),
        };
        let (ticket, offer) = self.shared.exports.enter("", &BTreeSet::new()).map_err(refused)?;
        let session = Session {
            style: Style::Simple,
            status: false,
            size: offer.size,
            block_min: offer.block_min,
            writable: offer.writable,
            fast_zero: offer.fast_zero,
            flags: kernel_flags(!offer.writable),
        };
        let link = Arc::new(Link::new(socket));
        let entry = enter(&self.shared, &link);
        let serve = move || {
            let shared = entry.shared.clone();
            let served = catch_unwind(AssertUnwindSafe(|| {
                ticket.bind(&link);
                let window = Arc::new(Window::new(shared.limits.requests, shared.limits.bytes));
                let conn = Arc::new(Conn {
                    session,
                    outbox: Outbox::new(link.clone(), window.clone(), ticket.export.budget.clone()),
                    ticket,
                    buffers: Arc::<Buffers>::default(),
                    window,
                    order: Order::default(),
                });
                let why = match link.set_patience(shared.limits.stall) {
                    Ok(()) => Reader::new(&conn, &link, &shared, Input::default()).run(),
                    Err(_) => "the socket is gone",
                };
                conn.outbox.close();
                debug!(why, "connection of the kernel ended");
            }));
            link.cut();
            if served.is_err() {
                warn!("a connection of the kernel ended by a panic");
            }
            drop(entry);
        };
        let spawned = thread::Builder::new()
            .name("nbd-kernel".to_owned())
            .stack_size(STACK)
            .spawn(serve);
        spawned.map(drop).map_err(|source| NbdError::System {
            doing: "start a thread for the kernel's connection",
            source,
        })
    }
}

fn enter(shared: &Arc<Shared>, link: &Arc<Link>) -> Entry {
    let mut table = shared.table();
    let id = table.next;
    table.next += 1;
    table.links.insert(id, link.clone());
    drop(table);
    Entry {
        shared: shared.clone(),
        id,
        handshake: None,
    }
}
