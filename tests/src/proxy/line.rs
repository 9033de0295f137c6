//! Bytes on their way: each piece arrives later than it was sent, pieces of all connections share the bandwidth, and one
//! connection has only so much on its way.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::lock;
use crate::wait::sleep_until;

/// One direction of the network, shared by all connections: when it will have sent everything that was given to it.
#[derive(Debug, Default)]
pub(super) struct Link {
    free_at: Mutex<Option<Instant>>,
}

impl Link {
    /// When `len` bytes given to the link now have left it.
    fn sent_at(&self, len: usize, bandwidth: Option<u64>) -> Instant {
        let now = Instant::now();
        let Some(bandwidth) = bandwidth else {
            return now;
        };
        let mut free_at = lock(&self.free_at);
        let start = free_at.map_or(now, |free_at| free_at.max(now));
        let end = start + Duration::from_secs_f64(len as f64 / bandwidth as f64);
        *free_at = Some(end);
        end
    }
}

/// What arrives.
enum Parcel {
    Bytes(Vec<u8>),
    /// The end, in an orderly way or not.
    End(Ending),
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// No more bytes will come this way.
    Finish,
    /// Both ways are closed.
    Close,
    /// The peer gets a reset.
    Reset,
}

/// One way of one connection: what is on it, and whether its far end is gone.
#[derive(Default)]
struct Queue {
    parcels: VecDeque<(Instant, Parcel)>,
    bytes: u64,
    gone: bool,
}

/// See [`Queue`].
#[derive(Default)]
pub(super) struct Line {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// How a piece travels.
#[derive(Clone, Copy)]
pub(super) struct Travel<'a> {
    pub(super) link: &'a Link,
    pub(super) latency: Duration,
    pub(super) bandwidth: Option<u64>,
    pub(super) window: u64,
}

impl Line {
    /// Sends bytes; waits while the window is full.
    pub(super) fn send(&self, bytes: &[u8], travel: Travel<'_>) -> io::Result<()> {
        let at = travel.link.sent_at(bytes.len(), travel.bandwidth) + travel.latency;
        // Room comes back a way later than bytes arrive, as an acknowledgement would bring it: half of the window is on the way there.
        let room = (travel.window / 2).max(1);
        let mut queue = lock(&self.queue);
        while queue.bytes >= room && !queue.gone {
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        if queue.gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        queue.bytes += bytes.len() as u64;
        queue.parcels.push_back((at, Parcel::Bytes(bytes.to_vec())));
        self.changed.notify_all();
        Ok(())
    }

    /// Sends the end, behind all bytes.
    pub(super) fn end(&self, ending: Ending, latency: Duration) {
        let mut queue = lock(&self.queue);
        queue.parcels.push_back((Instant::now() + latency, Parcel::End(ending)));
        self.changed.notify_all();
    }

    /// Delivers to `to` what is sent, each piece in its time, up to the end. `other` is the socket of the other side of the
    /// proxy, which a close or reset ends too.
    pub(super) fn deliver(&self, to: &Arc<TcpStream>, other: &Arc<TcpStream>) {
        let ending = loop {
            let (at, parcel) = self.next();
            sleep_until(at);
            match parcel {
                Parcel::Bytes(bytes) => {
                    let sent = (&**to).write_all(&bytes);
                    let mut queue = lock(&self.queue);
                    queue.bytes -= bytes.len() as u64;
                    queue.gone |= sent.is_err();
                    self.changed.notify_all();
                    if queue.gone {
                        break Ending::Close;
                    }
                }
                Parcel::End(ending) => break ending,
            }
        };
        lock(&self.queue).gone = true;
        self.changed.notify_all();
        // Sockets may be closed already.
        match ending {
            Ending::Finish => {
                let _ = to.shutdown(Shutdown::Write);
            }
            Ending::Close => {
                let _ = to.shutdown(Shutdown::Both);
                let _ = other.shutdown(Shutdown::Both);
            }
            Ending::Reset => {
                // A socket without linger time sends a reset when its last owner drops it; those who read from it end now.
                let _ = socket2::SockRef::from(&**to).set_linger(Some(Duration::ZERO));
                let _ = to.shutdown(Shutdown::Read);
                let _ = other.shutdown(Shutdown::Both);
            }
        }
    }

    fn next(&self) -> (Instant, Parcel) {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(next) = queue.parcels.pop_front() {
                return next;
            }
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_sends_one_after_the_other() {
        let link = Link::default();
        let start = Instant::now();
        let first = link.sent_at(1000, Some(1000));
        let second = link.sent_at(500, Some(1000));
        assert!(first >= start + Duration::from_secs(1));
        assert_eq!(second - first, Duration::from_millis(500));
        assert!(link.sent_at(1 << 30, None) < first, "without a limit nothing waits");
    }
}
