//! Calls to the kernel that have no safe face elsewhere: loop devices, marks of block devices, netlink memberships, threads with
//! files of their own.
//!
//! Numbers are those of include/uapi/linux/loop.h, fs.h and netlink.h.

#![expect(
    unsafe_code,
    reason = "ioctl, setsockopt, unshare, close_range, mmap, and entries of io_uring"
)]

pub(super) mod ublk;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, RawFd};
use zerocopy::FromZeros;

/// Finds or makes a free loop device; the result is its number.
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
/// Binds a file with all its settings at once. Since Linux 5.8.
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
/// Unbinds when the last one closes the device.
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
/// What is bound.
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
/// Changes settings of what is bound.
const LOOP_SET_STATUS64: libc::Ioctl = 0x4C04;
/// Takes up the size of the bound file.
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
/// `_IO(0x12, 93)`: marks a device as taking no writes. Argument: pointer to an `int`.
const BLKROSET: libc::Ioctl = libc::_IO(0x12, 93);
/// `_IO(0x12, 94)`: whether a device takes no writes. Fills an `int`.
const BLKROGET: libc::Ioctl = libc::_IO(0x12, 94);
/// `_IOR(0x12, 114, size_t)`: size in bytes. Fills a `u64`, whatever the macro says.
const BLKGETSIZE64: libc::Ioctl = libc::_IOR::<usize>(0x12, 114);

/// Flags of a loop device.
pub(super) mod loop_flag {
    /// Takes no writes.
    pub(crate) const READ_ONLY: u32 = 1;
    /// Unbound when the last one closes it, also when that one dies.
    pub(crate) const AUTOCLEAR: u32 = 4;
    /// Its table of partitions is read, and its partitions go with it.
    pub(crate) const PARTITIONS: u32 = 8;
    /// The file is read and written without the page cache.
    pub(crate) const DIRECT_IO: u32 = 16;
}

/// `struct loop_info64`.
#[derive(Clone, Copy, FromZeros)]
#[repr(C)]
pub(super) struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    pub(super) flags: u32,
    pub(super) file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}
const _: () = assert!(size_of::<LoopInfo>() == 232);

/// `struct loop_config`.
#[derive(Clone, Copy, FromZeros)]
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}
const _: () = assert!(size_of::<LoopConfig>() == 304);

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Gives the calling thread a table of open files of its own, with this one and no other in it. The rest of the process keeps its
/// table.
///
/// # Errors
/// When the kernel refuses. The thread must then end: it may have lost files that it relies on.
pub(super) fn isolate(fd: RawFd) -> io::Result<File> {
    let number = fd.cast_unsigned();
    // SAFETY: no memory is passed, and the thread shares no file with anybody afterwards.
    check(unsafe { libc::unshare(libc::CLONE_FILES) })?;
    if let Some(below) = number.checked_sub(1) {
        close_range(0, below)?;
    }
    close_range(number.saturating_add(1), libc::c_uint::MAX)?;
    // SAFETY: in the table of this thread the number is open, was copied from the caller's, and has no other owner.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> io::Result<()> {
    let flags: libc::c_uint = 0;
    // SAFETY: `isolate` has given this thread a table of its own; nothing that lives on another thread has its files in it.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if closed < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Number of a free loop device. It may be taken by somebody else before it is used.
pub(super) fn free_loop(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: the call takes no argument.
    let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
    u32::try_from(number).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// How a file is bound to a loop device.
pub(super) struct LoopSettings<'a> {
    pub(super) file: BorrowedFd<'a>,
    /// Bytes of a logical block.
    pub(super) block: u32,
    /// Of [`loop_flag`].
    pub(super) flags: u32,
    /// Shown by tools; cut to 63 bytes.
    pub(super) name: &'a str,
}

/// Binds a file to a loop device.
pub(super) fn configure_loop(device: BorrowedFd<'_>, settings: &LoopSettings<'_>) -> io::Result<()> {
    let mut config = LoopConfig::new_zeroed();
    config.fd = settings.file.as_raw_fd().cast_unsigned();
    config.block_size = settings.block;
    config.info.flags = settings.flags;
    let name = settings.name.as_bytes();
    let len = name.len().min(config.info.file_name.len() - 1);
    config.info.file_name[..len].copy_from_slice(&name[..len]);
    // SAFETY: the kernel reads one `loop_config` through the pointer, and `config` is one, of the size asserted above.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) })?;
    Ok(())
}

/// What is bound to a loop device; `None` when nothing is, or it is about to be unbound.
pub(super) fn loop_status(device: BorrowedFd<'_>) -> io::Result<Option<LoopInfo>> {
    let mut info = LoopInfo::new_zeroed();
    // SAFETY: the kernel writes one `loop_info64` through the pointer, and `info` is one, of the size asserted above.
    match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) }) {
        Ok(_) => Ok(Some(info)),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Unbinds a loop device when the last one closes it. When that is the caller, nobody can open it any more.
pub(super) fn clear_loop(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) })?;
    Ok(())
}

/// A loop device has the size of its file from now on.
pub(super) fn refresh_loop(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY) })?;
    Ok(())
}

/// Has the kernel read the partition table of a loop device. Waits for the file that is bound.
pub(super) fn find_loop_partitions(device: BorrowedFd<'_>) -> io::Result<()> {
    let mut info = loop_status(device)?.ok_or(io::ErrorKind::NotFound)?;
    info.flags |= loop_flag::PARTITIONS;
    // SAFETY: the kernel reads one `loop_info64` through the pointer, and `info` is one, of the size asserted above.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_STATUS64, &raw const info) })?;
    Ok(())
}

/// Marks a block device as taking no writes.
pub(super) fn set_read_only(device: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one `int` through the pointer, and `on` is one.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKROSET, &raw const on) })?;
    Ok(())
}

/// Whether a block device takes no writes.
pub(super) fn is_read_only(device: BorrowedFd<'_>) -> io::Result<bool> {
    let mut on: libc::c_int = 0;
    // SAFETY: the kernel writes one `int` through the pointer, and `on` is one.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKROGET, &raw mut on) })?;
    Ok(on != 0)
}

/// Bytes of a block device.
pub(super) fn size(device: BorrowedFd<'_>) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: the kernel writes 8 bytes through the pointer, and `size` has 8.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64, &raw mut size) })?;
    Ok(size)
}

/// Lets a netlink socket hear what is sent to `group`.
pub(super) fn join_group(socket: impl AsFd, group: u32) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<u32>()).unwrap_or(4);
    // SAFETY: the kernel reads `len` bytes through the pointer, and `group` has as many.
    check(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            (&raw const group).cast(),
            len,
        )
    })?;
    Ok(())
}
