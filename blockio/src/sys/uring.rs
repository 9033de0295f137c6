//! An io_uring that owns the memory it works on.
//!
//! The kernel reads and writes memory from the moment a request is submitted until its completion is taken. So a request
//! takes its buffer by value, the ring holds it meanwhile, and the completion gives it back: nobody can look at, free or
//! reuse memory in flight. A ring dropped with requests in flight keeps their buffers from being used again for good.

#![expect(
    unsafe_code,
    reason = "submission entries point to memory; buffers are registered by address"
)]

use crate::buf::{BlockBuf, BufPool};
use crate::fault::{FaultPlan, Outcome, strike};
use crate::{Op, device::Piece};
use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Buffers a ring can register: `IORING_MAX_REG_BUFFERS`, io_uring/rsrc.c of Linux. Older kernels have 1024 (`UIO_MAXIOV`)
/// and refuse more.
const REGISTERED_BUFFERS_MAX: usize = 1 << 14;

/// `IORING_UNREGISTER_FILES` (include/uapi/linux/io_uring.h).
const UNREGISTER_FILES: u8 = 3;

/// Mark of the poll for [`Ring::poll`] among completions.
const POLL: u64 = u64::MAX;

/// A ring of fixed depth over fixed files.
pub(crate) struct Ring {
    ring: IoUring,
    /// Buffer of the request in flight in each slot.
    held: Box<[Option<BlockBuf>]>,
    /// Registered pools, each with the index of its first slot in the table of the kernel. Held, so that their memory stays
    /// where it was registered.
    pools: Vec<(BufPool, u16)>,
    /// Entries handed to the queue whose completions were not taken.
    outstanding: usize,
    features: Features,
}

/// What the kernel granted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Features {
    /// Completions are worked off when this thread asks for them, not when it is interrupted.
    pub(crate) deferred: bool,
    /// Only the opcodes of this module are allowed.
    pub(crate) restricted: bool,
    /// Slots registered.
    pub(crate) buffers: usize,
    /// Why none are, although asked for.
    pub(crate) unregistered: Option<io::ErrorKind>,
}

/// A completion.
pub(crate) struct Done {
    /// The slot it was submitted with; `None` for the poll.
    pub(crate) slot: Option<usize>,
    /// Bytes, or 0.
    pub(crate) result: io::Result<usize>,
    pub(crate) buf: Option<BlockBuf>,
}

impl Ring {
    /// A ring for `depth` requests and one poll on `files`, which are known by their position.
    ///
    /// # Errors
    /// When the kernel has no io_uring, forbids it, or its io_uring cannot wait with a timeout (before Linux 5.11).
    pub(crate) fn open(
        depth: usize,
        files: &[BorrowedFd<'_>],
        pools: &[BufPool],
        faults: Option<&FaultPlan>,
    ) -> io::Result<Self> {
        if let Some(Outcome::Errno(errno)) = strike(faults, Op::Open, None) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let entries = u32::try_from(depth + 1).map_err(io::Error::other)?.next_power_of_two();
        let (ring, deferred) = build(entries)?;
        if !ring.params().is_feature_ext_arg() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "waits without a timeout, as before Linux 5.11",
            ));
        }
        let mut new = Self {
            ring,
            held: (0..depth).map(|_| None).collect(),
            pools: Vec::new(),
            outstanding: 0,
            features: Features {
                deferred,
                ..Features::default()
            },
        };
        let fds: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        new.ring.submitter().register_files(&fds)?;
        new.register_buffers(pools, faults);
        new.features.restricted = new.restrict().is_ok();
        new.ring.submitter().register_enable_rings()?;
        Ok(new)
    }

    /// Registers every slot of `pools`: halves the processor time per MiB, as pages are not looked up for each request. The
    /// kernel may refuse (RLIMIT_MEMLOCK); then requests name addresses.
    fn register_buffers(&mut self, pools: &[BufPool], faults: Option<&FaultPlan>) {
        let mut table = Vec::new();
        let mut known = Vec::new();
        for pool in pools {
            let Ok(first) = u16::try_from(table.len()) else { break };
            let iovec = |start| libc::iovec {
                iov_base: std::ptr::with_exposed_provenance_mut(start),
                iov_len: pool.slot_bytes(),
            };
            table.extend(pool.starts().map(iovec));
            known.push((pool.clone(), first));
        }
        if table.is_empty() {
            return;
        }
        let registered = match strike(faults, Op::Map, None) {
            Some(Outcome::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            _ if table.len() > REGISTERED_BUFFERS_MAX => Err(io::ErrorKind::ArgumentListTooLong.into()),
            // SAFETY: the addresses are those of slots of `pools`, mapped as long as a clone of their pool lives, and `known`
            // goes to `self.pools`, which is dropped after the ring. Registration itself only pins pages; bytes move when a
            // request names a slot, see `transfer`.
            _ => unsafe { self.ring.submitter().register_buffers(&table) },
        };
        match registered {
            Ok(()) => {
                self.features.buffers = table.len();
                self.pools = known;
            }
            Err(e) => self.features.unregistered = Some(e.kind()),
        }
    }

    /// Allows what this module does and nothing else, so that the ring is of no use to whoever may get hold of it.
    fn restrict(&self) -> io::Result<()> {
        let codes = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::ReadFixed::CODE,
            opcode::WriteFixed::CODE,
            opcode::Fsync::CODE,
            opcode::PollAdd::CODE,
        ];
        let fixed_file = Flags::FIXED_FILE.bits();
        let mut list: Vec<Restriction> = codes.into_iter().map(Restriction::sqe_op).collect();
        list.push(Restriction::sqe_flags_allowed(fixed_file));
        list.push(Restriction::sqe_flags_required(fixed_file));
        list.push(Restriction::register_op(UNREGISTER_FILES));
        self.ring.submitter().register_restrictions(&mut list)
    }

    pub(crate) fn features(&self) -> &Features {
        &self.features
    }

    /// Entries in the queue or in the kernel.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Queues a read (or a write) of one piece of `buf`. `slot` has no other request in flight.
    pub(crate) fn transfer(&mut self, slot: usize, op: Op, file: u32, piece: &Piece, mut buf: BlockBuf) {
        let part = &mut buf[piece.at..piece.at + piece.len];
        let len = u32::try_from(part.len()).expect("pieces are 1 GiB at most");
        let start = part.as_mut_ptr();
        let registered = self.pools.iter().find(|(pool, _)| pool.owns(&buf));
        let index = registered
            .map(|(_, first)| first + u16::try_from(buf.slot()).expect("below 2^14, checked at registration"));
        let (file, offset) = (Fixed(file), piece.offset);
        let entry = match (op, index) {
            (Op::Read, Some(index)) => opcode::ReadFixed::new(file, start, len, index).offset(offset).build(),
            (Op::Read, None) => opcode::Read::new(file, start, len).offset(offset).build(),
            (Op::Write, Some(index)) => opcode::WriteFixed::new(file, start, len, index).offset(offset).build(),
            (Op::Write, None) => opcode::Write::new(file, start, len).offset(offset).build(),
            _ => unreachable!("a transfer reads or writes"),
        };
        assert!(self.held[slot].is_none(), "slot {slot} is in flight");
        self.held[slot] = Some(buf);
        self.push(entry.user_data(slot as u64));
    }

    /// Queues making data durable. `slot` has no other request in flight.
    pub(crate) fn sync(&mut self, slot: usize, file: u32) {
        assert!(self.held[slot].is_none(), "slot {slot} is in flight");
        let entry = opcode::Fsync::new(Fixed(file)).flags(FsyncFlags::DATASYNC).build();
        self.push(entry.user_data(slot as u64));
    }

    /// Queues a wake-up for when `file` has something to read.
    pub(crate) fn poll(&mut self, file: u32) {
        let interest = u32::try_from(libc::POLLIN).expect("a small constant");
        self.push(opcode::PollAdd::new(Fixed(file), interest).build().user_data(POLL));
    }

    fn push(&mut self, entry: Entry) {
        // SAFETY: the memory `entry` points to, if any, is a part of the buffer that `transfer` put into `held[slot]` just
        // before, and stays there until `next_done` sees the completion of that slot, or for good (`Drop`). A slot has one
        // request at a time, so no second completion can release it early.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the queue has an entry for every slot and one for the poll");
        self.outstanding += 1;
    }

    /// Hands queued entries to the kernel, and lets it work off what is done. Does not sleep.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        settle(self.ring.submit())
    }

    /// Hands queued entries to the kernel and sleeps until `want` completions are there, or the time is over.
    pub(crate) fn wait(&mut self, want: usize, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec::from(timeout);
        settle(
            self.ring
                .submitter()
                .submit_with_args(want, &SubmitArgs::new().timespec(&timeout)),
        )
    }

    /// A completion that is there, with the buffer of its request.
    pub(crate) fn next_done(&mut self) -> Option<Done> {
        let entry = self.ring.completion().next()?;
        self.outstanding -= 1;
        let slot = (entry.user_data() != POLL).then(|| usize::try_from(entry.user_data()).expect("a slot as pushed"));
        let result = usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
        let buf = slot.and_then(|slot| self.held[slot].take());
        Some(Done { slot, result, buf })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // What is still here is in flight: closing the ring cancels nothing that a device has begun.
        self.held.iter_mut().filter_map(Option::take).for_each(mem::forget);
        // The kernel takes a closed ring apart later, in a worker of its own, and until then a device would stay claimed:
        // who mounts it right after a restore would find it busy. Only an idle ring does this: kernels before 6.13 wait
        // for the requests that use a file, and one that hangs would hang the drop.
        if self.outstanding == 0 {
            let _ = self.ring.submitter().unregister_files(); // best effort; the kernel does it later
        }
    }
}

/// A disabled ring with the best flags the kernel knows, and whether they defer completions.
fn build(entries: u32) -> io::Result<(IoUring, bool)> {
    // DEFER_TASKRUN is of Linux 6.1, SINGLE_ISSUER of 6.0, COOP_TASKRUN of 5.19, R_DISABLED of 5.10.
    let mut builder = IoUring::builder();
    builder
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag();
    let cooperative = || {
        let mut builder = IoUring::builder();
        builder
            .setup_r_disabled()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(entries)
    };
    let plain = || IoUring::builder().setup_r_disabled().build(entries);
    let unknown_flag = |e: &io::Error| e.raw_os_error() == Some(libc::EINVAL);
    match builder.build(entries) {
        Err(e) if unknown_flag(&e) => {}
        other => return other.map(|ring| (ring, true)),
    }
    match cooperative() {
        Err(e) if unknown_flag(&e) => plain().map(|ring| (ring, false)),
        other => other.map(|ring| (ring, false)),
    }
}

/// An interrupted or timed-out wait is no failure: whoever waits looks at the completions and at the clock. Neither is a
/// kernel short of memory or with completions to fetch first: the entries stay queued.
fn settle(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY)
            ) =>
        {
            Ok(())
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn other_opcodes_are_refused_by_the_kernel() {
        let file = crate::testing::scratch_file();
        let mut ring = Ring::open(1, &[file.as_file().as_fd()], &[], None).unwrap();
        assert!(
            ring.features().restricted && ring.features().deferred,
            "kernel 6.1 and later"
        );
        let tell = |ring: &mut Ring, entry: Entry| {
            ring.push(entry);
            ring.wait(1, Duration::from_secs(10)).unwrap();
            ring.next_done()
                .expect("an answer within 10 s")
                .result
                .map_err(|e| e.raw_os_error())
        };
        assert_eq!(tell(&mut ring, opcode::Nop::new().build()), Err(Some(libc::EACCES)));
        let by_number = opcode::Fsync::new(io_uring::types::Fd(file.as_raw_fd())).build();
        assert_eq!(
            tell(&mut ring, by_number),
            Err(Some(libc::EACCES)),
            "files that were not registered"
        );
        assert_eq!(tell(&mut ring, opcode::Fsync::new(Fixed(0)).build()), Ok(0));
        assert!(
            ring.ring
                .submitter()
                .register_files_update(0, &[file.as_raw_fd()])
                .is_err(),
            "and no file is put in the place of another"
        );
        ring.ring.submitter().unregister_files().expect("files can be let go");
        assert!(
            ring.ring.submitter().register_files(&[file.as_raw_fd()]).is_err(),
            "and not be taken on again"
        );
    }
}
