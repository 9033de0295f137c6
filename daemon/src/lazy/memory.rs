//! Contents opened not long ago, bounded in bytes.
//!
//! What leaves is what was put first and not used since its last chance: a reader that goes front to back over more than
//! there is room for does not drive out what others use again and again, and a look-up takes a shared lock only.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::flight::Key;

/// The bytes of a piece. They do not change, so they are lent to whoever sends them.
pub(super) type Plaintext = Arc<Vec<u8>>;

/// Bytes of buffers that are kept for what comes, at most: a content for each thread that opens them on a large host. The allocator
/// would keep as much, but each content would then need its buffer made zero first.
const SPARE_BYTES: usize = 8 << 20;

/// Contents by name.
pub(super) struct Memory {
    /// Bytes at most, but for one content longer than that.
    limit: u64,
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    slots: HashMap<Key, Slot>,
    /// In the order in which they leave.
    order: VecDeque<Key>,
    bytes: u64,
    /// Buffers without a content, the one that was used last at the end.
    spare: Vec<Vec<u8>>,
}

struct Slot {
    plaintext: Plaintext,
    is_used: AtomicBool,
}

impl Memory {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            table: RwLock::default(),
        }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) fn get(&self, key: &Key) -> Option<Plaintext> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let slot = table.slots.get(key)?;
        // Not written when it is so already: readers on several cores share this line.
        if !slot.is_used.load(Ordering::Relaxed) {
            slot.is_used.store(true, Ordering::Relaxed);
        }
        Some(slot.plaintext.clone())
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.slots.contains_key(key)
    }

    /// A buffer of `len` bytes, whatever they are: zeros, or a content that was here.
    pub(super) fn buffer(&self, len: usize) -> Vec<u8> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let fitting = table.spare.iter().rposition(|buffer| buffer.len() == len);
        let spare = fitting.map(|at| table.spare.remove(at));
        drop(table);
        spare.unwrap_or_else(|| vec![0; len])
    }

    /// Takes back a buffer that no content came into.
    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.spare(buffer);
    }

    pub(super) fn put(&self, key: Key, plaintext: Plaintext) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.slots.contains_key(&key) {
            return;
        }
        table.make_room(self.limit.saturating_sub(plaintext.len() as u64));
        table.bytes += plaintext.len() as u64;
        let slot = Slot {
            plaintext,
            is_used: AtomicBool::new(false),
        };
        table.slots.insert(key, slot);
        table.order.push_back(key);
    }
}

impl Table {
    /// Drops contents until `left` bytes are left at most.
    fn make_room(&mut self, left: u64) {
        while self.bytes > left {
            let Some(key) = self.order.pop_front() else { return };
            let slot = self.slots.get_mut(&key).expect("both know the same keys");
            if std::mem::take(slot.is_used.get_mut()) {
                self.order.push_back(key);
                continue;
            }
            let slot = self.slots.remove(&key).expect("just seen");
            self.bytes -= slot.plaintext.len() as u64;
            // Somebody may still be lent it.
            if let Some(buffer) = Arc::into_inner(slot.plaintext) {
                self.spare(buffer);
            }
        }
    }

    /// Keeps `buffer`, in place of those that nobody wanted for the longest time.
    fn spare(&mut self, buffer: Vec<u8>) {
        self.spare.push(buffer);
        let mut bytes = 0;
        let kept = self.spare.iter().rev().take_while(|buffer| {
            bytes += buffer.len();
            bytes <= SPARE_BYTES
        });
        let unwanted = self.spare.len() - kept.count();
        self.spare.drain(..unwanted);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use repo::ContentId;

    fn key(n: u8) -> Key {
        (ContentId::new(None, &[n; 16]).expect("valid"), false)
    }

    #[test]
    fn what_is_used_again_stays() {
        let memory = Memory::new(1000);
        memory.put(key(0), Arc::new(vec![0; 300]));
        for n in 1..50 {
            assert!(memory.get(&key(0)).is_some(), "{n}");
            memory.put(key(n), Arc::new(vec![n; 300]));
        }
        assert!(memory.get(&key(1)).is_none() && memory.get(&key(49)).is_some());
    }

    #[test]
    fn one_longer_than_the_limit_is_alone() {
        let memory = Memory::new(1000);
        memory.put(key(1), Arc::new(vec![1; 500]));
        memory.put(key(2), Arc::new(vec![2; 5000]));
        assert!(memory.get(&key(1)).is_none() && memory.get(&key(2)).is_some());
        memory.put(key(3), Arc::new(vec![3; 10]));
        assert!(memory.get(&key(3)).is_some());
    }

    #[test]
    fn buffers_of_what_left_are_used_again_unless_they_are_lent() {
        let memory = Memory::new(1000);
        let lent = Arc::new(vec![1; 700]);
        memory.put(key(1), lent.clone());
        memory.put(key(2), Arc::new(vec![2; 700]));
        assert_eq!(
            memory.buffer(700),
            vec![0; 700],
            "the first is lent, the second is there"
        );
        memory.put(key(3), Arc::new(vec![3; 700]));
        assert_eq!(memory.buffer(701), vec![0; 701]);
        assert_eq!(memory.buffer(700), vec![2; 700]);
        assert_eq!(memory.buffer(700), vec![0; 700]);
        assert_eq!(*lent, vec![1; 700]);
        for n in 0..20 {
            memory.give_back(vec![n; SPARE_BYTES / 8]);
        }
        let kept: Vec<u8> = memory
            .table
            .read()
            .unwrap()
            .spare
            .iter()
            .map(|buffer| buffer[0])
            .collect();
        assert_eq!(kept, Vec::from_iter(12..20));
        memory.give_back(vec![9; SPARE_BYTES + 1]);
        assert!(memory.table.read().unwrap().spare.is_empty());
    }

    proptest! {
        /// Never more than the limit, and never other bytes than were put.
        #[test]
        fn it_is_bounded_and_honest(ops in prop::collection::vec((0u8..20, 1usize..400, any::<bool>()), 1..200)) {
            let memory = Memory::new(1000);
            for (n, len, put) in ops {
                if put {
                    memory.put(key(n), Arc::new(vec![n; len]));
                } else if let Some(found) = memory.get(&key(n)) {
                    prop_assert!(found.iter().all(|byte| *byte == n));
                }
                let table = memory.table.read().unwrap();
                let bytes: usize = table.slots.values().map(|slot| slot.plaintext.len()).sum();
                prop_assert!(bytes <= 1000 && bytes as u64 == table.bytes);
                prop_assert_eq!(table.order.len(), table.slots.len());
            }
        }
    }
}
