//! The only unsafe code of this crate, each module a safe face over one corner of the kernel.

pub(crate) mod alloc;
#[cfg(target_env = "gnu")]
pub(crate) mod heap;
pub(crate) mod ioctl;
pub(crate) mod uring;
