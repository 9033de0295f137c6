//! Parameters of the C library's allocator.

#![expect(unsafe_code, reason = "mallopt")]

use libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, c_int, mallopt};

/// One arena for all threads, blocks of `mapped_min` bytes and more mapped by themselves, and at most `kept` free bytes at the end of
/// the arena. False where that is refused.
pub(crate) fn bound(mapped_min: c_int, kept: c_int) -> bool {
    // SAFETY: `mallopt` takes two numbers and no memory of ours, and glibc sets them under the lock of its main arena
    // (malloc/malloc.c, `__libc_mallopt`), so that it is sound even beside threads that allocate.
    let set = |parameter, value| unsafe { mallopt(parameter, value) } == 1;
    set(M_ARENA_MAX, 1) & set(M_MMAP_THRESHOLD, mapped_min) & set(M_TRIM_THRESHOLD, kept)
}
