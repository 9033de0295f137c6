//! How much freed memory a process keeps.

/// Blocks of so many bytes and more go back to the kernel as soon as they are freed: a server's reads of packs (8 MiB and more). Opened
/// contents (1 MiB) do not: with 1 MiB here serving took 1.8 times the CPU, all of it in the kernel.
#[cfg(target_env = "gnu")]
const MAPPED_MIN: i32 = 4 << 20;

/// Free bytes that stay at the end of the heap: what hydration and readers have in flight. With glibc's own 128 KiB nearly each opened
/// content is given back, and the kernel has to make its pages zero for the next one.
#[cfg(target_env = "gnu")]
const KEPT: i32 = 32 << 20;

/// For a process that runs long beside others: freed memory goes back to the kernel, or to all threads, instead of staying with the
/// thread that freed it. To be called before there are other threads. False where the C library has no such parameters.
///
/// glibc raises the size from which on blocks are mapped by themselves to that of the largest that was ever freed, up to 32 MiB, and
/// gives each thread a heap of its own, which then keeps such blocks. A server with `--memory 64MiB` over 1 TiB had 285 to 343 MiB
/// resident after sequential and random reads; with this 157 MiB (of one arena; 188 with two), for the same CPU: by hand, in the dev
/// profile and beside much other work, so that only their order says something.
pub fn bound() -> bool {
    #[cfg(target_env = "gnu")]
    return crate::sys::heap::bound(MAPPED_MIN, KEPT);
    #[cfg(not(target_env = "gnu"))]
    return false;
}
