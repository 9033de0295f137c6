//! Requests and bytes in flight, bounded.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A bound on requests and bytes in flight. Who wants more waits.
#[derive(Debug)]
pub(crate) struct Window {
    requests_max: usize,
    bytes_max: u64,
    used: Mutex<Used>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Used {
    requests: usize,
    bytes: u64,
    waiting: usize,
}

impl Window {
    pub(crate) fn new(requests_max: usize, bytes_max: u64) -> Self {
        Self {
            requests_max,
            bytes_max,
            used: Mutex::default(),
            freed: Condvar::new(),
        }
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request of any size fits when nothing else is in flight.
    fn fits(&self, used: &Used, bytes: u64) -> bool {
        used.requests == 0 || (used.requests < self.requests_max && used.bytes + bytes <= self.bytes_max)
    }

    /// Takes room for one request, if there is any.
    pub(crate) fn try_take(&self, bytes: u64) -> bool {
        let mut used = self.used();
        let fits = self.fits(&used, bytes);
        if fits {
            used.requests += 1;
            used.bytes += bytes;
        }
        fits
    }

    /// Takes room for one request, and waits for it.
    pub(crate) fn take(&self, bytes: u64) {
        let mut used = self.used();
        used.waiting += 1;
        while !self.fits(&used, bytes) {
            used = self.freed.wait(used).unwrap_or_else(PoisonError::into_inner);
        }
        used.waiting -= 1;
        used.requests += 1;
        used.bytes += bytes;
    }

    /// Gives back the room of `requests` with `bytes` together.
    pub(crate) fn give(&self, requests: usize, bytes: u64) {
        let mut used = self.used();
        debug_assert!(used.requests >= requests && used.bytes >= bytes);
        used.requests = used.requests.saturating_sub(requests);
        used.bytes = used.bytes.saturating_sub(bytes);
        if used.waiting > 0 {
            drop(used);
            self.freed.notify_all();
        }
    }

    /// Waits until nothing is in flight.
    pub(crate) fn wait_empty(&self) {
        let mut used = self.used();
        used.waiting += 1;
        while used.requests > 0 {
            used = self.freed.wait(used).unwrap_or_else(PoisonError::into_inner);
        }
        used.waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_flight_is_bounded_in_both_ways() {
        let window = Window::new(2, 100);
        assert!(window.try_take(500), "alone, anything fits");
        assert!(!window.try_take(1));
        window.give(1, 500);
        assert!(window.try_take(50) && window.try_take(50) && !window.try_take(0));
        std::thread::scope(|scope| {
            scope.spawn(|| window.take(10));
            window.give(2, 100);
        });
        window.give(1, 10);
        window.wait_empty();
    }
}
