//! Questions to the kernel about a descriptor, and the calls that make ranges zero.
//!
//! Numbers are those of include/uapi/linux/fs.h and include/uapi/linux/falloc.h, where libc does not name them.

#![expect(unsafe_code, reason = "ioctl, statx, fallocate and lseek")]

use crate::extent::Extent;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// `_IO(0x12, 94)`: is the device read-only. Fills an `int`.
const BLKROGET: libc::Ioctl = libc::_IO(0x12, 94);
/// `_IOR(0x12, 114, size_t)`: size in bytes. Fills a `u64`, whatever the macro says.
const BLKGETSIZE64: libc::Ioctl = libc::_IOR::<usize>(0x12, 114);
/// `_IO(0x12, 127)`: write zeros, by an offload of the device or by the kernel. Argument `u64[2]` of offset and length.
const BLKZEROOUT: libc::Ioctl = libc::_IO(0x12, 127);

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Bytes of a block device.
pub(crate) fn size(device: &File) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: the kernel writes 8 bytes through the pointer, and `size` has 8.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64, &raw mut size) })?;
    Ok(size)
}

/// Bytes of a logical block.
pub(crate) fn logical_block(device: &File) -> io::Result<u32> {
    int(device, libc::BLKSSZGET)
}

/// Bytes of a physical block.
pub(crate) fn physical_block(device: &File) -> io::Result<u32> {
    int(device, libc::BLKPBSZGET)
}

/// Whether the device takes no writes.
pub(crate) fn is_read_only(device: &File) -> io::Result<bool> {
    Ok(int(device, BLKROGET)? != 0)
}

fn int(device: &File, request: libc::Ioctl) -> io::Result<u32> {
    let mut value = 0u32;
    // SAFETY: each of the requests above fills one 32-bit integer, and `value` is one.
    check(unsafe { libc::ioctl(device.as_raw_fd(), request, &raw mut value) })?;
    Ok(value)
}

/// Writes zeros to a range of a block device.
pub(crate) fn zero_out(device: &File, extent: Extent) -> io::Result<()> {
    let range = [extent.offset, extent.len];
    // SAFETY: the kernel reads two `u64` through the pointer, and `range` has two.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKZEROOUT, &raw const range) })
}

/// What direct IO asks for: (alignment of memory, alignment of offsets and lengths). `None` where the kernel does not say
/// (before Linux 6.1, and for file systems that never learned to); zeros where direct IO is not to be had.
pub(crate) fn direct_io_alignment(file: &File) -> io::Result<Option<(u32, u32)>> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string, as AT_EMPTY_PATH wants, and the kernel fills one `statx` at most.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            stat.as_mut_ptr(),
        )
    };
    check(result)?;
    // SAFETY: all zero is a valid `statx` (integers only), and the kernel wrote into it what it knows.
    let stat = unsafe { stat.assume_init() };
    let said = stat.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(said.then_some((stat.stx_dio_mem_align, stat.stx_dio_offset_align)))
}

/// Makes a range of a file, or a device, read as zero and keeps its blocks. The size stays.
pub(crate) fn zero_range(file: &File, extent: Extent) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, extent)
}

/// Makes a range of a file read as zero and gives its blocks back. The size stays.
pub(crate) fn punch_hole(file: &File, extent: Extent) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, extent)
}

fn fallocate(file: &File, mode: libc::c_int, extent: Extent) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fallocate64(file.as_raw_fd(), mode, offset(extent.offset)?, offset(extent.len)?) })
}

/// First byte of data at or behind `from`; `None` when there is none.
pub(crate) fn seek_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    seek(file, from, libc::SEEK_DATA)
}

/// First byte of a hole at or behind `from`, the end of the file being one; `None` when `from` is past the end.
pub(crate) fn seek_hole(file: &File, from: u64) -> io::Result<Option<u64>> {
    seek(file, from, libc::SEEK_HOLE)
}

/// Moves the position of the descriptor, which nothing in this crate uses: all its IO names its offset.
fn seek(file: &File, from: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    // SAFETY: no memory is passed.
    let at = unsafe { libc::lseek64(file.as_raw_fd(), offset(from)?, whence) };
    match u64::try_from(at) {
        Ok(at) => Ok(Some(at)),
        Err(_) => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            e => Err(e),
        },
    }
}

fn offset(value: u64) -> io::Result<libc::off64_t> {
    libc::off64_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}
