//! Receiving from a client whose next request is about to come: looked for a moment before the thread sleeps.
//!
//! A client with one request in flight sends the next a few microseconds after its answer. To put a thread to sleep and wake it
//! again takes longer than that, on a virtual machine many times as long, and would be most of the latency. With many in flight
//! there is little to gain: while one thread sleeps several come together, which is cheaper for both sides. So now and then it
//! is slept in any case, to see how many come.

use super::link::Link;
use std::io;
use std::sync::{Mutex, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

/// Looked for at most this long: a client that is woken on another processor of a virtual machine needs some 35 us of it.
const LOOK: Duration = Duration::from_micros(50);
/// Looked for at all when the last request came within this in sleep, the time of waking included.
const SOON: Duration = Duration::from_micros(100);
/// Receives between two sleeps: to sleep costs some 40 us more, so this is a microsecond or so of each.
const LOOKS: u32 = 32;

/// Held by the one connection of a server that looks at a time: it costs a processor no more than once.
pub(super) type Turn = Mutex<()>;

/// The receiving side of a connection.
#[derive(Debug)]
pub(super) struct Eager<'a> {
    turn: &'a Turn,
    /// The last receive was a short sleep.
    dozed: bool,
    /// Receives until the next sleep.
    looks: u32,
}

impl<'a> Eager<'a> {
    pub(super) fn new(turn: &'a Turn) -> Self {
        Self {
            turn,
            dozed: false,
            looks: 0,
        }
    }

    /// As [`Link::recv`]. The last receive brought `requests`.
    pub(super) fn recv(&mut self, link: &Link, buf: &mut [u8], requests: usize) -> io::Result<usize> {
        if self.dozed && requests == 1 {
            self.looks = LOOKS;
        }
        self.dozed = false;
        if self.looks > 0 {
            self.looks -= 1;
            if let Some(received) = self.look(link, buf) {
                return received;
            }
            self.looks = 0;
        }
        let begun = Instant::now();
        let received = link.recv(buf);
        self.dozed = begun.elapsed() < SOON;
        received
    }

    /// `None` when it is time to sleep.
    fn look(&self, link: &Link, buf: &mut [u8]) -> Option<io::Result<usize>> {
        let _turn = match self.turn.try_lock() {
            Err(TryLockError::WouldBlock) => return None,
            free => free,
        };
        let begun = Instant::now();
        loop {
            match link.recv_now(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return Some(received),
            }
            if begun.elapsed() >= LOOK {
                return None;
            }
            // Whoever else wants this processor has it first; it may be the client.
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
    use std::os::fd::OwnedFd;

    struct Pair {
        link: Link,
        client: OwnedFd,
    }

    impl Pair {
        fn new() -> Self {
            let (ours, client) =
                socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
            let link = Link::new(ours);
            link.set_patience(Duration::from_millis(200)).unwrap();
            Self { link, client }
        }

        fn send(&self) {
            assert_eq!(send(&self.client, b"x", SendFlags::empty()).unwrap(), 1);
        }

        /// Receives what is there already, after as many requests as that.
        fn recv(&self, eager: &mut Eager<'_>, requests: usize) {
            self.send();
            assert_eq!(eager.recv(&self.link, &mut [0; 8], requests).unwrap(), 1);
        }
    }

    #[test]
    fn a_client_of_one_request_at_a_time_is_looked_for_and_others_are_not() {
        let (turn, pair) = (Turn::default(), Pair::new());
        let mut eager = Eager::new(&turn);
        pair.recv(&mut eager, 0);
        // Where a sleep took longer on a busy machine, the next one may be short.
        while !eager.dozed {
            pair.recv(&mut eager, 0);
        }
        pair.recv(&mut eager, 2);
        assert_eq!(eager.looks, 0, "two came together");
        while !eager.dozed {
            pair.recv(&mut eager, 0);
        }
        pair.recv(&mut eager, 1);
        assert_eq!(eager.looks, LOOKS - 1);
        for _ in 1..LOOKS {
            pair.recv(&mut eager, 1);
        }
        assert_eq!(eager.looks, 0, "and now it is slept once");
    }

    #[test]
    fn one_that_lets_wait_is_slept_for() {
        let (turn, pair) = (Turn::default(), Pair::new());
        let mut eager = Eager::new(&turn);
        eager.looks = LOOKS;
        let error = eager.recv(&pair.link, &mut [0; 8], 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(eager.looks == 0 && !eager.dozed);
    }

    #[test]
    fn one_connection_looks_at_a_time() {
        let (turn, pair) = (Turn::default(), Pair::new());
        let eager = Eager::new(&turn);
        pair.send();
        let held = turn.lock().unwrap();
        assert!(eager.look(&pair.link, &mut [0; 8]).is_none());
        drop(held);
        assert_eq!(eager.look(&pair.link, &mut [0; 8]).unwrap().unwrap(), 1);
    }
}
