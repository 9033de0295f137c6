//! A volume behind the user-space block driver: the kernel's requests are read from shared memory and answered by threads of ours,
//! without a socket or a file system in between.
//!
//! The device outlives its server. When the server dies, requests wait, also those that it had, until another takes over. What
//! the driver keeps of ours is a token by which a device is known again; who serves it is in the [registry](super::registry).
//!
//! Data goes through buffers of ours, one for each request that can be under way, which the driver copies from and to while our
//! thread asks for the next one. Its other ways do not fit: with `USER_COPY` we would make a call more for each request and copy
//! no less, and with zero copy the data never comes to where a chunk of a repository could be opened into it.
//!
//! No descriptor of the block device itself is open here for longer than a call. A server that is killed while it closes one waits
//! in the kernel for a server, that is, for itself, and could not be followed by another. The kernel's look for partitions when a
//! device is started is the one such wait, so what it reads is fetched before.

pub(in crate::attach) mod abi;
pub(in crate::attach) mod control;
mod queue;
mod work;

use super::apart::{run_apart, with_only};
use super::devices;
use super::error::AttachError;
use super::sys;
use crate::export::Export;
use abi::{DeviceInfo, Params, attribute, feature, param, state};
use blockio::{CHUNK_SIZE, Extent};
use queue::Threads;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// More bring no more: each has a thread that copies, and the volume has its own.
const QUEUES_MAX: u16 = 4;

/// Requests of a queue under way: enough for reads of 1 MiB from an object store at 20 ms, with four queues more than the pool
/// of a volume has threads.
const DEPTH: u16 = 64;

/// Longest request: a chunk. With all queues full, 256 MiB of buffers are in use, as much as the window of an export; pages that
/// no request has used take nothing.
const IO_BYTES: u32 = 1 << 20;

/// Longest discard or write of zeros. Most volumes note them in a table; where they are written, this takes seconds.
const ZEROES_BYTES: u32 = 1 << 30;

/// The kernel looks for partitions when it starts a device: a few reads, most of them at hand, each of which fails after the 20 s
/// that a fetch may take.
const START_WAIT: Duration = Duration::from_secs(60);

/// Between two looks at something that changes within milliseconds.
const PAUSE: Duration = Duration::from_millis(25);

/// What is needed to attach or adopt.
pub(super) struct Request<'a> {
    /// The volume, in whole blocks.
    pub(super) export: &'a Arc<Export>,
    /// Bytes of a logical block.
    pub(super) block: u32,
    /// Kept in the device, to know it again.
    pub(super) token: u64,
}

impl Request<'_> {
    fn params(&self) -> Params {
        let read_only = self.export.flags().read_only;
        let writable = if read_only { 0 } else { u32::MAX };
        let physical = self.export.source.geometry().physical_block;
        let logical_shift = shift(self.block);
        let physical_shift = shift(physical).clamp(logical_shift, PHYSICAL_SHIFT_MAX);
        let attributes = if read_only {
            attribute::READ_ONLY
        } else {
            attribute::VOLATILE_CACHE | attribute::FUA
        };
        Params {
            len: u32::try_from(size_of::<Params>()).unwrap_or(0),
            types: param::BASIC | param::DISCARD,
            attributes,
            logical_shift,
            physical_shift,
            io_best_shift: physical_shift,
            io_min_shift: physical_shift,
            io_sectors_max: IO_BYTES / 512,
            sectors: self.export.size() / 512,
            discard_granularity: self.block,
            discard_sectors_max: writable & (ZEROES_BYTES / 512),
            zeroes_sectors_max: writable & (ZEROES_BYTES / 512),
            discard_segments_max: 1,
            ..Params::default()
        }
    }
}

/// A page: the driver takes no larger blocks.
const PHYSICAL_SHIFT_MAX: u8 = 12;

fn shift(block: u32) -> u8 {
    u8::try_from(block.max(1).ilog2()).unwrap_or(0)
}

/// A device `/dev/ublkbN` that this process serves.
pub(super) struct UblkDevice {
    number: u32,
    path: PathBuf,
    export: Arc<Export>,
    threads: Threads,
}

impl std::fmt::Debug for UblkDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UblkDevice({})", self.path.display())
    }
}

impl UblkDevice {
    /// Makes a device.
    pub(super) fn attach(request: &Request<'_>) -> Result<Self, AttachError> {
        read_ends(request.export);
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let info = control::add(&DeviceInfo {
            queues: u16::try_from(processors).unwrap_or(QUEUES_MAX).min(QUEUES_MAX),
            depth: DEPTH,
            io_bytes_max: IO_BYTES,
            device: u32::MAX,
            flags: feature::NEEDED,
            server_flags: request.token,
            ..DeviceInfo::default()
        })?;
        let begun = control::set_params(info.device, &request.params())
            .and_then(|()| Self::serve(request, &info))
            .and_then(|device| {
                control::start(info.device, START_WAIT)
                    .and_then(|()| device.settle(request))
                    .inspect_err(|_| device.give_up())?;
                Ok(device)
            });
        begun.inspect_err(|_| {
            // What was made and cannot be used is taken away again; the first error counts.
            if let Err(error) = delete(info.device, control::WAIT) {
                debug!(device = info.device, %error, "a ublk device that was not started stays");
            }
        })
    }

    /// Serves the device of this token whose server is gone.
    pub(super) fn adopt(request: &Request<'_>) -> Result<Option<Self>, AttachError> {
        let Some(info) = by_token(request.token)? else {
            return Ok(None);
        };
        if info.state == state::DEAD {
            // Its server died before anybody could use it.
            delete(info.device, control::WAIT)?;
            return Ok(None);
        }
        let (theirs, ours) = (control::params(info.device)?, request.params());
        let told = |params: &Params| {
            format!(
                "a {}volume of {} bytes in blocks of {}",
                if params.attributes & attribute::READ_ONLY != 0 {
                    "read-only "
                } else {
                    ""
                },
                params.sectors.saturating_mul(512),
                1u64 << params.logical_shift.min(63)
            )
        };
        // Another version of this program may have made it, by other numbers.
        let same = told(&theirs) == told(&ours)
            && (1..=IO_BYTES * 4).contains(&info.io_bytes_max)
            && (1..=DEPTH * 4).contains(&info.depth)
            && (1..=QUEUES_MAX * 4).contains(&info.queues)
            && control::has(info.flags, feature::NEEDED);
        if !same {
            return Err(AttachError::Foreign {
                device: path_of(info.device),
                expected: told(&ours),
                found: told(&theirs),
            });
        }
        take_over(info.device)?;
        let device = Self::serve(request, &info)?;
        control::end_recovery(info.device)?;
        device.settle(request)?;
        Ok(Some(device))
    }

    fn serve(request: &Request<'_>, info: &DeviceInfo) -> Result<Self, AttachError> {
        let path = format!("/dev/ublkc{}", info.device);
        let begun = Instant::now();
        let file = loop {
            // The node of a device that the kernel has just made may come a moment later.
            match rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
                Ok(file) => break File::from(file),
                Err(_) if begun.elapsed() < control::WAIT => thread::park_timeout(PAUSE),
                Err(error) => return Err(AttachError::system(format!("open {path}"))(error)),
            }
        };
        Ok(Self {
            number: info.device,
            path: path_of(info.device),
            export: request.export.clone(),
            threads: Threads::start(request.export, file, info)?,
        })
    }

    /// The device is what was asked for.
    fn settle(&self, request: &Request<'_>) -> Result<(), AttachError> {
        let begun = Instant::now();
        while !self.path.exists() && begun.elapsed() < control::WAIT {
            thread::park_timeout(PAUSE);
        }
        if devices::bytes(&self.path) != Some(request.export.size()) {
            return Err(AttachError::Message("the device has another size than its volume"));
        }
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The driver takes a new size at once, where it can.
    pub(super) fn resize(&self, size: u64) -> Result<(), AttachError> {
        let features = control::features().map_err(AttachError::system("ask the ublk driver"))?;
        if !control::has(features, feature::UPDATE_SIZE) {
            return Err(AttachError::CannotGrow {
                device: self.path.clone(),
            });
        }
        control::resize(self.number, size)
    }

    /// Flushes and takes the device away. Until that has begun, an error leaves everything as it was.
    pub(super) fn detach(&mut self, grace: Duration) -> Result<(), AttachError> {
        let deadline = Instant::now() + grace;
        let left = || deadline.saturating_duration_since(Instant::now());
        let stuck = || AttachError::Stuck {
            device: self.path.clone(),
            waited: grace,
        };
        if let Some(sink) = self.export.sink.clone() {
            let failed = || AttachError::system::<io::Error>(format!("flush {}", self.path.display()));
            // Nobody has it open, so that nothing is unwritten; but what could not be written may not have been told to anybody.
            let access = OFlags::RDONLY | OFlags::CLOEXEC;
            let file = rustix::fs::open(&self.path, access, Mode::empty())
                .map_err(io::Error::from)
                .map_err(failed())?;
            let written = with_only(&file.into(), "flush the device", |file| {
                sys::ublk::write_back(file.as_fd())
            })?;
            written.recv_timeout(left()).map_err(|_| stuck())?.map_err(failed())?;
            let flushed = run_apart("flush the volume", move || sink.flush())?;
            let flushed = flushed.recv_timeout(left()).map_err(|_| stuck())?;
            flushed.map_err(io::Error::other).map_err(failed())?;
        }
        self.threads.expect_end();
        if let Err(error) = control::stop(self.number, left().max(PAUSE)) {
            // What was written is durable. What is under way is for nobody.
            debug!(device = %self.path.display(), %error, "requests are failed to stop the device");
        }
        self.take_away()
    }

    /// Takes the device away; requests under way fail.
    pub(super) fn abort(&mut self) -> Result<(), AttachError> {
        self.threads.expect_end();
        self.take_away()
    }

    fn take_away(&self) -> Result<(), AttachError> {
        self.threads.fail();
        control::stop(self.number, control::WAIT)?;
        let begun = Instant::now();
        while !self.threads.have_ended() {
            if begun.elapsed() >= control::WAIT {
                return Err(AttachError::Stuck {
                    device: self.path.clone(),
                    waited: control::WAIT,
                });
            }
            thread::park_timeout(PAUSE);
        }
        delete_stopped(self.number)
    }

    /// As [`UblkDevice::take_away`], when there is nobody to tell.
    fn give_up(&self) {
        self.threads.expect_end();
        if let Err(error) = self.take_away() {
            warn!(device = %self.path.display(), %error, "a ublk device that could not be used stays");
        }
    }
}

/// Bytes of a volume's start and end where partition tables are: a chunk, the unit in which volumes are fetched.
const ENDS: u64 = CHUNK_SIZE;

/// Has what the kernel looks at for partitions at hand when it starts a device. It holds a lock of the device
/// meanwhile (Linux 6.12), and a server that is killed then leaves a device that nothing can be done with.
fn read_ends(export: &Export) {
    let size = export.size();
    let mut buffer = vec![
        0;
        Extent {
            offset: 0,
            len: ENDS.min(size)
        }
        .bytes()
    ];
    for offset in [0, size.saturating_sub(ENDS)] {
        // What cannot be read now the kernel will be told.
        if let Err(error) = export.source.read_at(offset, &mut buffer) {
            debug!(offset, %error, "where partition tables are, the volume cannot be read");
        }
    }
}

fn path_of(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{number}"))
}

/// Readies a device for this process. Its last server may still be ending: it has let go of its claim, and of the driver a moment
/// later.
fn take_over(number: u32) -> Result<(), AttachError> {
    let begun = Instant::now();
    loop {
        match control::begin_recovery(number) {
            Err(AttachError::System { source, .. })
                if source.raw_os_error() == Some(libc::EBUSY) && begun.elapsed() < control::WAIT =>
            {
                thread::park_timeout(PAUSE);
            }
            done => return done,
        }
    }
}

fn delete(number: u32, wait: Duration) -> Result<(), AttachError> {
    control::stop(number, wait)?;
    delete_stopped(number)
}

/// The driver waits for those who have files of the device open; they have them open on nothing, so that nobody else needs to.
fn delete_stopped(number: u32) -> Result<(), AttachError> {
    match control::delete(number, control::WAIT) {
        Err(AttachError::System { source, .. }) if source.kind() == io::ErrorKind::TimedOut => {
            warn!(number, "a ublk device goes when the last one closes it");
            Ok(())
        }
        Err(AttachError::System { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        done => done,
    }
}

/// The device with this token. Those of others have none of ours.
fn by_token(token: u64) -> Result<Option<DeviceInfo>, AttachError> {
    for number in control::numbers() {
        let info = control::info(number)?;
        if let Some(info) = info.filter(|info| token != 0 && info.server_flags == token) {
            return Ok(Some(info));
        }
    }
    Ok(None)
}

/// The device with this token.
pub(super) fn find(token: u64) -> Result<Option<PathBuf>, AttachError> {
    Ok(by_token(token)?.map(|info| path_of(info.device)))
}

/// Takes away the device with this token, which nobody serves. Its users get errors.
pub(super) fn take_away(token: u64) -> Result<(), AttachError> {
    let Some(info) = by_token(token)? else { return Ok(()) };
    delete(info.device, control::WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemSource;

    #[test]
    fn a_device_is_described_as_its_volume() {
        let volume = Arc::new(MemSource::new(1 << 20));
        let writable = Arc::new(Export::writable(volume.clone()));
        let params = |export: &Arc<Export>, block| {
            Request {
                export,
                block,
                token: 1,
            }
            .params()
        };
        let of = params(&writable, 512);
        assert_eq!((of.logical_shift, of.physical_shift, of.sectors), (9, 12, 2048));
        assert_eq!(of.attributes, attribute::VOLATILE_CACHE | attribute::FUA);
        assert_eq!(of.discard_sectors_max, 1 << 21);
        let of = params(&Arc::new(Export::read_only(volume)), 4096);
        assert_eq!((of.attributes, of.logical_shift), (attribute::READ_ONLY, 12));
        assert_eq!((of.discard_sectors_max, of.zeroes_sectors_max), (0, 0));
    }
}
