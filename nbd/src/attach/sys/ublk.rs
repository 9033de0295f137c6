//! Commands to the user-space block driver: entries that hold addresses, and the memory that it shares.

use crate::attach::ublk::abi::{ControlCommand, DESCRIPTORS, Descriptor, IoCommand, io_command};
use io_uring::cqueue::Entry as Completion;
use io_uring::squeue::Entry128;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;
use zerocopy::IntoBytes;

/// A command to `/dev/ublk-control`.
#[derive(Clone, Copy, Debug)]
pub(in crate::attach) struct Control {
    /// Of [`crate::attach::ublk::abi::command`].
    pub(in crate::attach) command: u32,
    /// All ones lets the driver choose.
    pub(in crate::attach) device: u32,
    /// A number that belongs to the command.
    pub(in crate::attach) inline: u64,
    /// The kernel goes on with a command that takes longer, and nobody hears of its result.
    pub(in crate::attach) wait: Duration,
}

/// Gives a command, with `data` for the kernel to read and write.
///
/// # Errors
/// What the kernel said; [`io::ErrorKind::TimedOut`] when it said nothing in time.
pub(in crate::attach) fn control(device: &File, control: Control, data: &mut [u8]) -> io::Result<()> {
    let mut ring: IoUring<Entry128, Completion> = IoUring::builder().build(1)?;
    let mut memory: Box<[u8]> = data.into();
    let command = ControlCommand {
        device: control.device,
        queue: u16::MAX,
        len: u16::try_from(memory.len()).map_err(io::Error::other)?,
        address: if memory.is_empty() {
            0
        } else {
            memory.as_mut_ptr().expose_provenance() as u64
        },
        inline: control.inline,
        reserved: 0,
    };
    let mut bytes = [0; 80];
    bytes[..size_of::<ControlCommand>()].copy_from_slice(command.as_bytes());
    let entry = opcode::UringCmd80::new(Fd(device.as_raw_fd()), control.command)
        .cmd(bytes)
        .build();
    // SAFETY: `device` is open until this returns, which is after the kernel took a hold of it. `memory` is on the heap and is
    // freed only below, after the completion; where that does not come, it is leaked.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    let wait = Timespec::from(control.wait);
    let args = SubmitArgs::new().timespec(&wait);
    let waited = loop {
        match ring.submitter().submit_with_args(1, &args) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
            Ok(_) => break Ok(()),
        }
    };
    let Some(completion) = ring.completion().next() else {
        mem::forget(memory);
        return Err(match waited {
            Err(error) if error.raw_os_error() != Some(libc::ETIME) => error,
            _ => io::ErrorKind::TimedOut.into(),
        });
    };
    if completion.result() < 0 {
        return Err(io::Error::from_raw_os_error(-completion.result()));
    }
    data.copy_from_slice(&memory);
    Ok(())
}

/// Descriptors of a queue, as the driver shows them.
struct Descriptors {
    start: NonNull<Descriptor>,
    len: usize,
    depth: u16,
}

impl Descriptors {
    fn map(device: &File, queue: u16, depth: u16) -> io::Result<Self> {
        // The driver wants the length in whole pages.
        let len = (usize::from(depth) * size_of::<Descriptor>()).next_multiple_of(rustix::param::page_size());
        let offset = libc::off_t::try_from(usize::from(queue) * DESCRIPTORS).map_err(io::Error::other)?;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ, flags, device.as_raw_fd(), offset) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(mapped.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len, depth })
    }

    fn read(&self, tag: u16) -> Descriptor {
        assert!(tag < self.depth, "tags are those that we fetched");
        // SAFETY: the mapping has room for `depth` descriptors and is aligned to a page. The driver wrote this one before it
        // completed our fetch, and does not write it again until the next fetch of this tag, which this thread has yet to give.
        unsafe { self.start.add(tag.into()).read_volatile() }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this start and length, and nobody else has its address.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Mark of the poll of the alarm among completions; tags are less.
const ALARM: u64 = u64::MAX;

/// One queue of a device. Made and used by one thread: the driver takes commands for a queue from no other.
pub(in crate::attach) struct Queue {
    ring: IoUring,
    device: Arc<File>,
    descriptors: Descriptors,
    /// Buffers of tags whose commands the kernel has.
    held: Box<[Option<Box<[u8]>>]>,
    with_kernel: usize,
    alarm: OwnedFd,
    alarm_armed: bool,
    id: u16,
}

/// What a queue hears.
#[derive(Debug)]
pub(in crate::attach) enum Heard {
    /// A request, with the buffer that has its data or is to have it.
    Request {
        tag: u16,
        descriptor: Descriptor,
        buffer: Box<[u8]>,
    },
    /// No request comes with this tag any more; why.
    Ended { result: i32 },
}

impl Queue {
    /// `alarm` is an eventfd that ends [`Queue::wait`] when it is not zero.
    pub(in crate::attach) fn open(device: &Arc<File>, id: u16, depth: u16, alarm: BorrowedFd<'_>) -> io::Result<Self> {
        // A command for each tag, and the poll.
        let entries = (u32::from(depth) + 1).next_power_of_two();
        // The driver copies data when this thread asks for completions, not when it is interrupted. Since Linux 6.1, as the
        // driver itself is nearly; and nothing else is lost without.
        let deferred = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries);
        Ok(Self {
            ring: deferred.or_else(|_| IoUring::new(entries))?,
            device: device.clone(),
            descriptors: Descriptors::map(device, id, depth)?,
            held: (0..depth).map(|_| None).collect(),
            with_kernel: 0,
            alarm: alarm.as_fd().try_clone_to_owned()?,
            alarm_armed: false,
            id,
        })
    }

    /// Tags whose commands the kernel has.
    pub(in crate::attach) fn with_kernel(&self) -> usize {
        self.with_kernel
    }

    /// Wants a request with this tag.
    pub(in crate::attach) fn fetch(&mut self, tag: u16, buffer: Box<[u8]>) -> io::Result<()> {
        self.push(io_command::FETCH_REQ, tag, 0, buffer)
    }

    /// Answers the request with this tag, and wants another. `buffer` has the data of a read, and need not be the one of the
    /// request for anything else.
    pub(in crate::attach) fn commit(&mut self, tag: u16, result: i32, buffer: Box<[u8]>) -> io::Result<()> {
        self.push(io_command::COMMIT_AND_FETCH_REQ, tag, result, buffer)
    }

    fn push(&mut self, command: u32, tag: u16, result: i32, mut buffer: Box<[u8]>) -> io::Result<()> {
        let slot = &mut self.held[usize::from(tag)];
        assert!(slot.is_none(), "one command at a time for each tag");
        let io = IoCommand {
            queue: self.id,
            tag,
            result,
            address: buffer.as_mut_ptr().expose_provenance() as u64,
        };
        let mut bytes = [0; 16];
        bytes.copy_from_slice(io.as_bytes());
        let entry = opcode::UringCmd16::new(Fd(self.device.as_raw_fd()), command)
            .cmd(bytes)
            .build()
            .user_data(tag.into());
        *slot = Some(buffer);
        self.with_kernel += 1;
        // SAFETY: the buffer is in `held` until the completion of this command is taken; the device is open as long as `self`.
        // When a queue is dropped before, `Drop` leaks the buffers.
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)
    }

    /// Hands over what was pushed without waiting for anything.
    pub(in crate::attach) fn submit(&mut self) -> io::Result<()> {
        self.ring.submit()?;
        Ok(())
    }

    /// Hands over what was pushed and waits until something is heard, or the alarm goes off. What was heard goes to `heard`.
    pub(in crate::attach) fn wait(&mut self, heard: &mut Vec<Heard>) -> io::Result<()> {
        if !self.alarm_armed {
            let poll = opcode::PollAdd::new(Fd(self.alarm.as_raw_fd()), libc::POLLIN as u32)
                .build()
                .user_data(ALARM);
            // SAFETY: the entry holds no address, and `alarm` is open as long as `self`.
            unsafe { self.ring.submission().push(&poll) }.map_err(io::Error::other)?;
            self.alarm_armed = true;
        }
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(error) => return Err(error),
        }
        for completion in self.ring.completion() {
            if completion.user_data() == ALARM {
                self.alarm_armed = false;
                // Its count means nothing; that there was one was heard.
                let _ = rustix::io::read(&self.alarm, &mut [0; 8]);
                continue;
            }
            let tag = u16::try_from(completion.user_data()).map_err(io::Error::other)?;
            let buffer = self.held.get_mut(usize::from(tag)).and_then(Option::take);
            let Some(buffer) = buffer else { continue };
            self.with_kernel -= 1;
            heard.push(if completion.result() == 0 {
                Heard::Request {
                    tag,
                    descriptor: self.descriptors.read(tag),
                    buffer,
                }
            } else {
                Heard::Ended {
                    result: completion.result(),
                }
            });
        }
        Ok(())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.with_kernel > 0 {
            // The driver may still copy to them, as long as this thread lives.
            mem::forget(mem::take(&mut self.held));
            warn!(
                queue = self.id,
                buffers = self.with_kernel,
                "buffers of a ublk queue are left to the kernel"
            );
        }
    }
}

/// Waits for what is being written back of a block device, and tells of what could not be. Asks the device for nothing: a server
/// may call it for a device of its own.
pub(in crate::attach) fn write_back(device: BorrowedFd<'_>) -> io::Result<()> {
    let how = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: no memory is passed.
    if unsafe { libc::sync_file_range(device.as_raw_fd(), 0, 0, how) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
