//! Page-aligned memory from the kernel, cut into slots that have one owner each.

#![expect(unsafe_code, reason = "mmap, and slices over what it returned")]

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// Bytes of a page for our purposes: the base page of every platform we run on, and the largest alignment direct IO asks for.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Bytes of a transparent huge page on x86-64 and on arm64 with 4 KiB pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// An anonymous private mapping. Pages come into being, zeroed, when first touched.
struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a `Region` is an address and a length; the bytes behind it are reached only through `Slot`s, which do not overlap.
unsafe impl Send for Region {}
// SAFETY: as above; `&Region` gives access to no byte.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes; from 2 MiB on aligned to 2 MiB, and the kernel is asked for huge pages.
    fn map(len: usize) -> io::Result<Self> {
        let huge = len >= HUGE_PAGE_BYTES;
        let slack = if huge { HUGE_PAGE_BYTES } else { 0 };
        let mapped_len = len.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory of ours.
        let mapped = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapped_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapped: *mut u8 = mapped.cast();
        let lead = if huge { mapped.align_offset(HUGE_PAGE_BYTES) } else { 0 };
        let start = mapped.wrapping_add(lead);
        if huge {
            // SAFETY: `lead < slack`, so both ends lie in the mapping made above and outside `start..start + len`; nobody
            // has seen them yet. A failure leaves them mapped and unused. The advice changes no contents.
            unsafe {
                if lead > 0 {
                    libc::munmap(mapped.cast(), lead);
                }
                libc::munmap(start.wrapping_add(len).cast(), slack - lead);
                libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE);
            }
        }
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `start..start + len` was mapped by `map`, and every `Slot` holds an `Arc` of this region, so none is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// The only handle to `len` bytes of a mapping.
pub(crate) struct Slot {
    start: NonNull<u8>,
    len: usize,
    index: usize,
    _region: Arc<Region>,
}

// SAFETY: a slot is the only way to its bytes, as a `Box<[u8]>` is to its own.
unsafe impl Send for Slot {}
// SAFETY: `&Slot` gives `&[u8]` and nothing more.
unsafe impl Sync for Slot {}

impl Slot {
    /// `count` slots of `len` bytes, side by side in one mapping. `len` is a multiple of [`PAGE_BYTES`], so every slot is
    /// aligned to it.
    pub(crate) fn map(len: usize, count: usize) -> io::Result<Vec<Self>> {
        assert!(
            len > 0 && len.is_multiple_of(PAGE_BYTES) && count > 0,
            "{count} slots of {len} bytes"
        );
        let total = len.checked_mul(count).filter(|total| isize::try_from(*total).is_ok());
        let region = Arc::new(Region::map(total.ok_or(io::ErrorKind::OutOfMemory)?)?);
        let slot = |index: usize| Self {
            // SAFETY: `index < count`, so the offset is inside the `len * count` bytes mapped, which fit an `isize`.
            start: unsafe { region.start.add(index * len) },
            len,
            index,
            _region: region.clone(),
        };
        Ok((0..count).map(slot).collect())
    }

    /// Position among the slots of the mapping.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Address of the first byte, for the kernel.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes are mapped as long as `_region` lives, always initialised (the kernel zeroes fresh pages), and no
        // other slot covers them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only borrow of the only handle.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({} of {} bytes)", self.index, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_aligned_zeroed_and_apart() {
        for len in [PAGE_BYTES, 1 << 20, 3 << 20] {
            let mut slots = Slot::map(len, 3).unwrap();
            for (i, slot) in slots.iter_mut().enumerate() {
                assert_eq!((slot.index(), slot.len()), (i, len));
                assert!(slot.start().addr().get().is_multiple_of(PAGE_BYTES));
                assert!(slot.iter().all(|b| *b == 0));
                slot.fill(u8::try_from(i).unwrap() + 1);
            }
            assert!(
                slots
                    .iter()
                    .enumerate()
                    .all(|(i, s)| s.iter().all(|b| usize::from(*b) == i + 1))
            );
        }
    }

    #[test]
    fn large_mappings_begin_on_a_huge_page() {
        let slots = Slot::map(22 << 20, 2).unwrap();
        assert!(slots[0].start().addr().get().is_multiple_of(HUGE_PAGE_BYTES));
    }

    #[test]
    fn a_mapping_larger_than_memory_can_be_is_an_error() {
        assert!(Slot::map(1 << 40, 1 << 30).is_err());
    }
}
