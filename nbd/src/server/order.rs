//! Requests that touch the same bytes are carried out in the order in which they came, on one connection.

use blockio::Extent;
use std::sync::{Condvar, Mutex, PoisonError};

/// Ranges of the requests of one connection that are being carried out by others. At most as many as its window allows, so a
/// list is enough.
#[derive(Debug, Default)]
pub(super) struct Order {
    busy: Mutex<Vec<Range>>,
    left: Condvar,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    cookie: u64,
    extent: Extent,
    writes: bool,
}

impl Range {
    fn conflicts(&self, extent: Extent, writes: bool) -> bool {
        (self.writes || writes) && self.extent.clip(extent).is_some()
    }
}

impl Order {
    /// Nothing is under way that has to be over before this begins.
    pub(super) fn is_free(&self, extent: Extent, writes: bool) -> bool {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        !busy.iter().any(|range| range.conflicts(extent, writes))
    }

    /// Waits until [`Order::is_free`].
    pub(super) fn wait(&self, extent: Extent, writes: bool) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while busy.iter().any(|range| range.conflicts(extent, writes)) {
            busy = self.left.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// This is under way. Cookies need not differ: equal ones stand for equal entries only if all of it is equal.
    pub(super) fn enter(&self, cookie: u64, extent: Extent, writes: bool) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.push(Range { cookie, extent, writes });
    }

    /// What was entered so is over.
    pub(super) fn leave(&self, cookie: u64, extent: Extent, writes: bool) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |range: &Range| range.cookie == cookie && range.extent == extent && range.writes == writes;
        if let Some(at) = busy.iter().position(same) {
            busy.swap_remove(at);
        }
        drop(busy);
        self.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writes_conflict_and_only_where_they_touch() {
        let order = Order::default();
        let at = |offset, len| Extent { offset, len };
        order.enter(1, at(0, 10), false);
        order.enter(2, at(10, 10), true);
        assert!(order.is_free(at(0, 10), false) && !order.is_free(at(0, 10), true));
        assert!(!order.is_free(at(19, 1), false) && order.is_free(at(20, 1), true) && order.is_free(at(10, 0), true));
        order.leave(2, at(10, 10), true);
        assert!(order.is_free(at(10, 10), true));
    }
}
