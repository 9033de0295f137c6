//! The two system calls that the standard library lacks: resource use of one child, and dropping a file from the page cache.
#![expect(unsafe_code, reason = "wait4 and posix_fadvise have no safe face in std")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::Duration;

/// What a child used, its own waited-for children included.
pub(crate) struct Usage {
    pub(crate) status: ExitStatus,
    pub(crate) user: Duration,
    pub(crate) system: Duration,
    /// Peak resident memory in bytes. The kernel starts counting at what the parent held when it forked.
    pub(crate) rss_bytes: u64,
}

/// Waits for `child` and tells what it used. Takes the child, since its id is free for reuse afterwards.
pub(crate) fn wait(child: Child) -> io::Result<Usage> {
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to live, writable memory of the right type; `pid` is a child that nobody else waits for,
        // since we own its handle.
        let waited = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
        if waited == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: a structure of integers, all zero before and filled by the successful wait4 above.
    let usage = unsafe { usage.assume_init() };
    Ok(Usage {
        status: ExitStatus::from_raw(status),
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
        // Linux counts ru_maxrss in KiB (getrusage(2)).
        rss_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
    })
}

/// Asks the kernel to forget the cached pages of `file`; dirty ones stay, so sync it before.
pub(crate) fn drop_cache(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the call touches no memory of ours.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn duration(time: libc::timeval) -> Duration {
    let micros = u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_micros(micros)
}
