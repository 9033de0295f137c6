//! The memory budget: a fixed number of aligned slots, handed out by ownership. No slot, no read.

use crate::control::{Cancel, Cancelled};
use crate::error::{BlockError, Kind, Op};
use crate::sys::alloc::{PAGE_BYTES, Slot};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a wait for a slot goes on between two looks at a [`Cancel`]: short for a person, long for a processor.
const CANCEL_LOOK: Duration = Duration::from_millis(50);

/// A fixed number of slots of equal size in one mapping. Clones are one and the same pool.
///
/// Slots are aligned to 4096 bytes, so they fit direct IO on every device. Pages come into being when first touched, so a
/// large pool that is never used costs address space only; but registering it with an `Engine` touches all of it. From 2 MiB
/// on the mapping is aligned to huge pages and asks for them.
#[derive(Clone)]
pub struct BufPool(Arc<Shared>);

struct Shared {
    slot_bytes: usize,
    /// Address of every slot, in order: handed to the kernel when a ring registers them, and never followed here.
    starts: Box<[usize]>,
    free: Mutex<Vec<Slot>>,
    returned: Condvar,
}

/// One slot, owned: `slot_bytes` bytes that nobody else sees. Goes back to its pool when dropped.
///
/// A slot that was used before holds what was in it; a fresh one holds zeros.
pub struct BlockBuf {
    /// Present until `drop`.
    slot: Option<Slot>,
    pool: Arc<Shared>,
}

impl BufPool {
    /// Maps `slots` slots of `slot_bytes` bytes, a multiple of 4096.
    ///
    /// # Errors
    /// When one of the numbers is 0 or not a multiple, or the kernel has no room.
    pub fn new(slot_bytes: usize, slots: usize) -> Result<Self, BlockError> {
        if slot_bytes == 0 || !slot_bytes.is_multiple_of(PAGE_BYTES) || slots == 0 {
            let what =
                format!("a pool of {slots} slots of {slot_bytes} bytes; at least one, of a multiple of {PAGE_BYTES}");
            return Err(BlockError::new(Op::Map, Kind::InvalidInput(what)));
        }
        let mut free = Slot::map(slot_bytes, slots).map_err(|e| BlockError::from_io(Op::Map, e))?;
        let starts = free
            .iter()
            .map(|slot| slot.start().as_ptr().expose_provenance())
            .collect();
        free.reverse(); // the first to be taken is the first of the mapping
        Ok(Self(Arc::new(Shared {
            slot_bytes,
            starts,
            free: Mutex::new(free),
            returned: Condvar::new(),
        })))
    }

    /// Bytes of a slot.
    pub fn slot_bytes(&self) -> usize {
        self.0.slot_bytes
    }

    /// Slots of the pool, taken or not.
    pub fn slots(&self) -> usize {
        self.0.starts.len()
    }

    /// Slots that are free at this moment.
    pub fn free(&self) -> usize {
        self.0.lock().len()
    }

    /// A slot; sleeps until one is free.
    pub fn take(&self) -> BlockBuf {
        let mut free = self.0.lock();
        loop {
            if let Some(slot) = free.pop() {
                return self.own(slot);
            }
            free = self.0.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A slot, if one is free.
    pub fn try_take(&self) -> Option<BlockBuf> {
        let slot = self.0.lock().pop();
        slot.map(|slot| self.own(slot))
    }

    /// A slot, if one is or becomes free within `timeout`.
    pub fn take_timeout(&self, timeout: Duration) -> Option<BlockBuf> {
        let deadline = Instant::now() + timeout;
        let mut free = self.0.lock();
        loop {
            if let Some(slot) = free.pop() {
                return Some(self.own(slot));
            }
            let left = deadline
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero())?;
            free = self
                .0
                .returned
                .wait_timeout(free, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// A slot; sleeps until one is free, or the work is cancelled. A cancel is seen within 50 ms.
    ///
    /// # Errors
    /// [`Cancelled`], and no slot is taken.
    pub fn take_cancel(&self, cancel: &Cancel) -> Result<BlockBuf, Cancelled> {
        loop {
            cancel.check()?;
            if let Some(buf) = self.take_timeout(CANCEL_LOOK) {
                return Ok(buf);
            }
        }
    }

    /// Address of every slot, in the order of [`BlockBuf::slot`].
    pub(crate) fn starts(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.starts.iter().copied()
    }

    /// Whether `buf` is a slot of this pool.
    pub(crate) fn owns(&self, buf: &BlockBuf) -> bool {
        Arc::ptr_eq(&self.0, &buf.pool)
    }

    fn own(&self, slot: Slot) -> BlockBuf {
        BlockBuf {
            slot: Some(slot),
            pool: self.0.clone(),
        }
    }
}

impl Shared {
    /// Every change of the list is one push or pop, so a panic elsewhere leaves it whole.
    fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for BufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "BufPool({} of {} slots of {} bytes free)",
            self.free(),
            self.slots(),
            self.slot_bytes()
        )
    }
}

impl BlockBuf {
    /// Position of this slot in its pool, below `slots()`.
    pub fn slot(&self) -> usize {
        self.held().index()
    }

    fn held(&self) -> &Slot {
        self.slot.as_ref().expect("present until dropped")
    }
}

impl Deref for BlockBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.held()
    }
}

impl DerefMut for BlockBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.slot.as_mut().expect("present until dropped")
    }
}

impl Drop for BlockBuf {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.pool.lock().push(slot); // within its capacity: the list was made with every slot in it
            self.pool.returned.notify_one();
        }
    }
}

impl fmt::Debug for BlockBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockBuf({} of {} bytes)", self.slot(), self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_goes_back_when_dropped() {
        let pool = BufPool::new(8192, 2).unwrap();
        let first = pool.take();
        let second = pool.try_take().unwrap();
        assert_eq!((first.slot(), second.slot(), pool.free()), (0, 1, 0));
        assert!(pool.try_take().is_none());
        assert!(pool.take_timeout(Duration::from_millis(1)).is_none());
        drop(first);
        assert_eq!(pool.take().slot(), 0);
    }

    #[test]
    fn a_waiter_gets_the_slot_that_is_given_back() {
        let pool = BufPool::new(4096, 1).unwrap();
        let held = pool.take();
        std::thread::scope(|scope| {
            let waiters: Vec<_> = (0..3).map(|_| scope.spawn(|| drop(pool.take()))).collect();
            drop(held);
            waiters.into_iter().for_each(|w| w.join().unwrap());
        });
        assert_eq!(pool.free(), 1);
    }

    #[test]
    fn a_waiter_is_released_by_a_cancel() {
        let pool = BufPool::new(4096, 1).unwrap();
        let cancel = Cancel::new();
        let held = pool.take();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| pool.take_cancel(&cancel).map(|_| ()));
            cancel.cancel();
            assert_eq!(waiter.join().unwrap(), Err(Cancelled));
        });
        drop(held);
        assert_eq!(pool.take_cancel(&cancel).map(|_| ()), Err(Cancelled));
        assert_eq!(pool.free(), 1);
    }

    #[test]
    fn memory_outlives_the_pool() {
        let pool = BufPool::new(1 << 20, 1).unwrap();
        let mut buf = pool.take();
        drop(pool);
        buf.fill(7);
        assert!(buf.iter().all(|b| *b == 7));
    }

    #[test]
    fn odd_pools_are_refused() {
        assert!(matches!(BufPool::new(4097, 1).unwrap_err().kind, Kind::InvalidInput(_)));
        assert!(BufPool::new(0, 1).is_err() && BufPool::new(4096, 0).is_err());
    }

    /// Resident pages of the process, in bytes.
    fn resident_bytes() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * PAGE_BYTES
    }

    #[test]
    fn unused_slots_cost_no_memory() {
        let before = resident_bytes();
        let pool = BufPool::new(22 << 20, 100).unwrap(); // 2.2 GiB
        let mut buf = pool.take();
        buf[0] = 1;
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 1 << 30, "{grown} bytes resident"); // other tests run beside this one, and touch some
    }
}
