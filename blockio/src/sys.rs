//! The only unsafe code of this crate, each module a safe face over one corner of the kernel.

pub(crate) mod alloc;
pub(crate) mod ioctl;
pub(crate) mod uring;
