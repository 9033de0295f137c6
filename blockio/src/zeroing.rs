//! Making a range zero in the cheapest way the device does not refuse.
//!
//! | rung | on | what |
//! |---|---|---|
//! | 0 | block device whose blocks are to be given back | `fallocate(PUNCH_HOLE)`: an offload that unmaps, and reads as zero after it |
//! | 1 | block device | `BLKZEROOUT`: an offload of the device, or zeros written by the kernel without our memory |
//! | 1 | file to be kept sparse | `fallocate(PUNCH_HOLE)`: gives the blocks back |
//! | 2 | both | `fallocate(ZERO_RANGE)`: unwritten extents in a file; on a device a second door to rung 1 |
//! | 3 | both | zeros, written |
//!
//! `BLKZEROOUT` answers EINVAL to a range that is not of whole logical blocks. That is no reason to fail a restore: the range
//! is rounded inwards, the edges are written, and EINVAL is a refusal like any other, which sends us down a rung.

use crate::device::Device;
use crate::error::{BlockError, Op};
use crate::extent::Extent;
use crate::fault::{FaultPlan, Outcome, strike};
use crate::sys::ioctl;
use crate::traits::BlockSink;
use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A way to zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZeroMethod {
    /// The `BLKZEROOUT` call.
    ZeroOut,
    /// A hole in a file, or in what a thin device has behind it.
    PunchHole,
    /// Blocks marked as zero.
    ZeroRange,
    /// Zeros, written.
    Written,
}

/// What was zeroed how, and what was refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ZeroReport {
    /// Bytes by [`ZeroMethod::ZeroOut`].
    pub zero_out_bytes: u64,
    /// Bytes by [`ZeroMethod::PunchHole`].
    pub punch_hole_bytes: u64,
    /// Bytes by [`ZeroMethod::ZeroRange`].
    pub zero_range_bytes: u64,
    /// Bytes by [`ZeroMethod::Written`]; edges of the other methods among them.
    pub written_bytes: u64,
    /// Methods that were refused, each with the reason; one sentence each.
    pub refusals: Vec<String>,
}

/// Zeroes ranges of one device, and remembers what it refused.
#[derive(Debug, Default)]
pub struct Zeroer {
    keep_sparse: bool,
    unmap: bool,
    faults: Option<FaultPlan>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    refused: Vec<ZeroMethod>,
    report: ZeroReport,
}

impl Zeroer {
    /// For one device; nothing is refused yet. Files keep their blocks.
    pub fn new(faults: Option<FaultPlan>) -> Self {
        Self {
            faults,
            ..Self::default()
        }
    }

    /// The same for a file that is to have holes where it is zero.
    #[must_use]
    pub fn keep_sparse(mut self, keep_sparse: bool) -> Self {
        self.keep_sparse = keep_sparse;
        self
    }

    /// The same for a block device that is to give back the blocks that become zero. `BLKZEROOUT` keeps them provisioned; a plain
    /// discard promises nothing of what is read after it, so it is never used.
    #[must_use]
    pub fn unmap(mut self, unmap: bool) -> Self {
        self.unmap = unmap;
        self
    }

    /// Makes `extent` of `device` read as zero. Returns the way taken for all but its edges. Long ranges take long on slow
    /// rungs: a caller that wants to stop in between asks for pieces.
    ///
    /// # Errors
    /// When the device is not open for writing, the extent reaches past its end, or a write fails. A refusal is no error.
    pub fn zero(&self, device: &Device, extent: Extent) -> Result<ZeroMethod, BlockError> {
        device.check_write(Op::Zero, extent)?;
        let unit = if device.is_block_device() {
            u64::from(device.geometry().logical_block)
        } else {
            1
        };
        let Some(inner) = extent.align_inwards(unit) else {
            self.write(device, extent)?;
            return Ok(ZeroMethod::Written);
        };
        let method = self.zero_units(device, inner)?;
        for edge in [
            Extent::between(extent.offset, inner.offset),
            Extent::between(inner.end(), extent.end()),
        ] {
            self.write(device, edge)?;
        }
        Ok(method)
    }

    /// What was done so far.
    pub fn report(&self) -> ZeroReport {
        self.lock().report.clone()
    }

    fn zero_units(&self, device: &Device, extent: Extent) -> Result<ZeroMethod, BlockError> {
        let ladder: &[ZeroMethod] = match (device.is_block_device(), self.keep_sparse) {
            (true, _) if self.unmap => &[ZeroMethod::PunchHole, ZeroMethod::ZeroOut, ZeroMethod::ZeroRange],
            (true, _) => &[ZeroMethod::ZeroOut, ZeroMethod::ZeroRange],
            (false, true) => &[ZeroMethod::PunchHole, ZeroMethod::ZeroRange],
            (false, false) => &[ZeroMethod::ZeroRange],
        };
        for method in ladder {
            if self.lock().refused.contains(method) {
                continue;
            }
            match self.ask(device, *method, extent) {
                Ok(()) => {
                    self.count(*method, extent.len);
                    return Ok(*method);
                }
                Err(e) if is_refusal(&e) => self.remember(*method, device, &e),
                Err(e) => return Err(BlockError::from_io(Op::Zero, e).at(extent).on(device.path())),
            }
        }
        self.write(device, extent)?;
        Ok(ZeroMethod::Written)
    }

    fn ask(&self, device: &Device, method: ZeroMethod, extent: Extent) -> io::Result<()> {
        match strike(self.faults.as_ref(), Op::Zero, Some(extent)) {
            Some(Outcome::Errno(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(Outcome::Stuck) => return Err(io::ErrorKind::TimedOut.into()),
            Some(Outcome::Short(_)) | None => {}
        }
        match method {
            ZeroMethod::ZeroOut => ioctl::zero_out(device.main(), extent),
            ZeroMethod::PunchHole => ioctl::punch_hole(device.main(), extent),
            ZeroMethod::ZeroRange => ioctl::zero_range(device.main(), extent),
            ZeroMethod::Written => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn write(&self, device: &Device, extent: Extent) -> Result<(), BlockError> {
        if extent.is_empty() {
            return Ok(());
        }
        let mut zeros = device.bounce()?;
        zeros.fill(0);
        for piece in extent.split_on_grid() {
            device.write_at(piece.offset, &zeros[..piece.bytes()])?;
            self.count(ZeroMethod::Written, piece.len);
        }
        Ok(())
    }

    fn count(&self, method: ZeroMethod, bytes: u64) {
        let report = &mut self.lock().report;
        let counter = match method {
            ZeroMethod::ZeroOut => &mut report.zero_out_bytes,
            ZeroMethod::PunchHole => &mut report.punch_hole_bytes,
            ZeroMethod::ZeroRange => &mut report.zero_range_bytes,
            ZeroMethod::Written => &mut report.written_bytes,
        };
        *counter += bytes;
    }

    fn remember(&self, method: ZeroMethod, device: &Device, why: &io::Error) {
        let mut state = self.lock();
        if !state.refused.contains(&method) {
            state.refused.push(method);
            state
                .report
                .refusals
                .push(format!("{} refused {method}: {why}", device.path().display()));
        }
    }

    /// Every change of the state is complete when the lock is released; a panic in between leaves counters that are low.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error says that this way is not to be had, rather than that the device is broken. EREMOTEIO is how a SCSI
/// target refuses WRITE SAME; if it is more than that, the zeros written instead will tell.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::ENODEV | libc::EREMOTEIO)
    )
}

impl fmt::Display for ZeroMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ZeroOut => "BLKZEROOUT",
            Self::PunchHole => "punch hole",
            Self::ZeroRange => "zero range",
            Self::Written => "write",
        })
    }
}

impl ZeroReport {
    /// Bytes zeroed in any way.
    pub fn bytes(&self) -> u64 {
        self.zero_out_bytes + self.punch_hole_bytes + self.zero_range_bytes + self.written_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::OpenOptions;
    use crate::error::Kind;
    use crate::testing::{LoopDevice, scratch_file};
    use crate::traits::BlockSource;
    use std::fs;

    const MIB: u64 = 1 << 20;

    /// A file of `size` bytes of 0xAA, `range` zeroed; checks the bytes and returns what happened.
    #[track_caller]
    fn check(size: u64, range: Extent, zeroer: &Zeroer) -> ZeroMethod {
        let file = scratch_file();
        fs::write(file.path(), vec![0xAA; usize::try_from(size).unwrap()]).unwrap();
        let device = Device::open(file.path(), &OpenOptions::overwrite()).unwrap();
        let method = zeroer.zero(&device, range).unwrap();
        let mut seen = vec![1u8; usize::try_from(size).unwrap()];
        device.read_at(0, &mut seen).unwrap();
        for (i, byte) in (0u64..).zip(seen) {
            let inside = range.offset <= i && i < range.end();
            assert_eq!(byte, if inside { 0 } else { 0xAA }, "byte {i}");
        }
        method
    }

    fn extent(offset: u64, len: u64) -> Extent {
        Extent { offset, len }
    }

    #[test]
    fn a_file_keeps_its_blocks_unless_told_otherwise() {
        let dense = Zeroer::new(None);
        assert_eq!(check(4 * MIB, extent(MIB, 2 * MIB), &dense), ZeroMethod::ZeroRange);
        let sparse = Zeroer::new(None).keep_sparse(true);
        assert_eq!(check(4 * MIB, extent(MIB, 2 * MIB), &sparse), ZeroMethod::PunchHole);
        assert_eq!(
            (dense.report().zero_range_bytes, sparse.report().punch_hole_bytes),
            (2 * MIB, 2 * MIB)
        );
    }

    #[test]
    fn odd_ranges_and_odd_ends_are_zeroed_to_the_byte() {
        let zeroer = Zeroer::new(None);
        check(3 * MIB + 77, extent(5, 3 * MIB + 72), &zeroer);
        check(3 * MIB + 77, extent(2 * MIB + 1, 1), &zeroer);
        check(100, extent(10, 90), &zeroer);
        assert_eq!(zeroer.report().refusals, Vec::<String>::new());
    }

    #[test]
    fn a_refusal_is_remembered_reported_and_written_around() {
        for errno in [libc::EINVAL, libc::EOPNOTSUPP, libc::EREMOTEIO] {
            let plan = FaultPlan::always(Op::Zero, Outcome::Errno(errno));
            let zeroer = Zeroer::new(Some(plan.clone())).keep_sparse(true);
            let range = extent(MIB - 3, 2 * MIB);
            assert_eq!(check(4 * MIB + 9, range, &zeroer), ZeroMethod::Written);
            assert_eq!(check(4 * MIB + 9, range, &zeroer), ZeroMethod::Written);
            assert_eq!(plan.hits(), 2, "each of two rungs is tried once");
            let report = zeroer.report();
            assert_eq!(
                (report.written_bytes, report.bytes(), report.refusals.len()),
                (4 * MIB, 4 * MIB, 2)
            );
            assert!(
                report.refusals[0].contains("refused punch hole"),
                "{}",
                report.refusals[0]
            );
        }
    }

    #[test]
    fn a_failure_is_no_refusal() {
        let file = scratch_file();
        file.as_file().set_len(MIB).unwrap();
        let device = Device::open(file.path(), &OpenOptions::overwrite()).unwrap();
        let zeroer = Zeroer::new(Some(FaultPlan::once(Op::Zero, Outcome::Errno(libc::EIO))));
        assert_eq!(zeroer.zero(&device, extent(0, MIB)).unwrap_err().kind, Kind::Io);
        assert_eq!(
            zeroer.zero(&device, extent(0, MIB + 1)).unwrap_err().kind,
            Kind::OutOfRange
        );
        assert_eq!(zeroer.report(), ZeroReport::default());
        drop(device);
        let device = Device::open(file.path(), &OpenOptions::read()).unwrap();
        assert!(matches!(
            zeroer.zero(&device, extent(0, MIB)).unwrap_err().kind,
            Kind::InvalidInput(_)
        ));
    }

    /// Zeroes `range` of a loop device of 0xAA and checks every byte.
    #[track_caller]
    fn check_loop(sector_bytes: u32, range: Extent) -> Option<(ZeroMethod, ZeroReport)> {
        let file = scratch_file();
        fs::write(file.path(), vec![0xAA; 8 << 20]).unwrap();
        let disk = LoopDevice::over(file.path(), &["--sector-size", &sector_bytes.to_string()])?;
        let device = Device::open(disk.path(), &OpenOptions::overwrite()).unwrap();
        assert_eq!(device.geometry().logical_block, sector_bytes);
        let zeroer = Zeroer::new(None);
        let method = zeroer.zero(&device, range).unwrap();
        let mut seen = vec![1u8; 8 << 20];
        device.read_at(0, &mut seen).unwrap();
        for (i, byte) in (0u64..).zip(seen) {
            let inside = range.offset <= i && i < range.end();
            assert_eq!(byte, if inside { 0 } else { 0xAA }, "byte {i}");
        }
        Some((method, zeroer.report()))
    }

    #[test]
    fn a_block_device_is_zeroed_by_offload_but_for_the_edges() {
        // BLKZEROOUT answers EINVAL to a range of half blocks.
        let Some((method, report)) = check_loop(4096, extent(MIB + 512, 3 * MIB)) else {
            return;
        };
        assert_eq!(method, ZeroMethod::ZeroOut);
        assert_eq!((report.zero_out_bytes, report.written_bytes), (3 * MIB - 4096, 4096));
        assert_eq!(report.refusals, Vec::<String>::new());
        let (method, report) = check_loop(4096, extent(8192 + 512, 1024)).unwrap();
        assert_eq!(
            (method, report.written_bytes),
            (ZeroMethod::Written, 1024),
            "less than a block"
        );
        let (method, report) = check_loop(512, extent(MIB + 512, 3 * MIB)).unwrap();
        assert_eq!((method, report.zero_out_bytes), (ZeroMethod::ZeroOut, 3 * MIB));
    }
}
