//! Buffers of a connection, used again and again.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Smallest buffer: a page.
const SMALL: usize = 4 << 10;
/// Largest that is kept. Longer payloads are rare, and are given back to the system.
const LARGE: usize = 1 << 20;
/// 4 KiB to 1 MiB in powers of two.
const CLASSES: usize = (LARGE / SMALL).trailing_zeros() as usize + 1;
/// Bytes kept for later on an idle connection: sixteen chunks, what a sequential reader has in flight.
const KEPT_MAX: usize = 16 << 20;

/// The free buffers of a connection. Their memory is charged to the window of the connection while they are out.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    by_class: [Vec<Box<[u8]>>; CLASSES],
    bytes: usize,
}

/// A buffer of exactly the asked length, with undefined bytes. Goes back where it came from.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    home: Arc<Buffers>,
}

/// Memory that a buffer of `len` bytes takes up.
pub(super) fn size_for(len: usize) -> usize {
    if len > LARGE {
        len
    } else {
        len.max(SMALL).next_power_of_two()
    }
}

fn class_of(size: usize) -> Option<usize> {
    (size <= LARGE).then(|| (size / SMALL).trailing_zeros() as usize)
}

impl Buffers {
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let size = size_for(len);
        let kept = class_of(size).and_then(|class| {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = free.by_class[class].pop()?;
            free.bytes -= size;
            Some(kept)
        });
        Buffer {
            bytes: kept.unwrap_or_else(|| vec![0; size].into_boxed_slice()),
            len,
            home: self.clone(),
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let Some(class) = class_of(bytes.len()) else { return };
        let mut free = self.home.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.bytes + bytes.len() <= KEPT_MAX {
            free.bytes += bytes.len();
            free.by_class[class].push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_the_length_asked_for_and_is_used_again() {
        let buffers = Arc::new(Buffers::default());
        for len in [0, 1, 4096, 4097, 1 << 20, (1 << 20) + 1, 32 << 20] {
            assert_eq!(buffers.take(len).len(), len);
            assert!(size_for(len) >= len && size_for(len) <= (2 * len).max(SMALL));
        }
        let at = buffers.take(5000).as_ptr();
        assert_eq!(buffers.take(6000).as_ptr(), at);
    }

    #[test]
    fn no_more_is_kept_than_the_limit() {
        let buffers = Arc::new(Buffers::default());
        let out: Vec<_> = (0..20).map(|_| buffers.take(1 << 20)).collect();
        drop(out);
        assert_eq!(buffers.free.lock().unwrap().bytes, KEPT_MAX);
    }
}
