//! Hands out chunks of a map to workers, in order, a few at a time.

use std::sync::Mutex;

use blockio::{BlockMap, ChunkIndex};

/// A shared position in a block map.
pub(super) struct Cursor {
    map: BlockMap,
    next: Mutex<u64>,
}

impl Cursor {
    /// Starts before the first chunk.
    pub(super) fn new(map: BlockMap) -> Self {
        Self {
            map,
            next: Mutex::new(0),
        }
    }

    /// Chunks in the map.
    pub(super) fn count(&self) -> u64 {
        self.map.count()
    }

    /// The next chunks, at most `most`; none when the map is through.
    pub(super) fn take(&self, most: usize, out: &mut Vec<ChunkIndex>) {
        let mut next = self.next.lock().expect("no panic while held");
        while out.len() < most {
            match self.map.next_set(ChunkIndex::new(*next)) {
                Some(chunk) => {
                    out.push(chunk);
                    *next = chunk.get() + 1;
                }
                None => {
                    *next = self.map.len();
                    break;
                }
            }
        }
    }
}
