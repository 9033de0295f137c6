//! Carrying out a request of the driver.

use super::abi::{Descriptor, operation};
use crate::export::Export;
use blockio::{BlockError, CHUNK_SIZE, Extent, Kind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use tracing::warn;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) command: Command,
    /// Empty for a flush.
    pub(super) extent: Extent,
    /// Durable before it is answered.
    pub(super) fua: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Write,
    Flush,
    Discard,
    /// Zeros whose space stays.
    WriteZeroes,
}

impl Request {
    /// Of a descriptor, when it is inside the volume, and its data inside a buffer of `buffer` bytes.
    pub(super) fn parse(descriptor: &Descriptor, size: u64, buffer: usize) -> Option<Self> {
        let flags = descriptor.operation_flags;
        let command = match flags.to_le_bytes()[0] {
            operation::READ => Command::Read,
            operation::WRITE => Command::Write,
            operation::FLUSH => Command::Flush,
            operation::DISCARD => Command::Discard,
            operation::WRITE_ZEROES if flags & operation::NOUNMAP != 0 => Command::WriteZeroes,
            operation::WRITE_ZEROES => Command::Discard,
            _ => return None,
        };
        let extent = if command == Command::Flush {
            Extent { offset: 0, len: 0 }
        } else {
            let offset = descriptor.start_sector.checked_mul(512)?;
            Extent::new(offset, u64::from(descriptor.sectors) * 512)?
        };
        let carries = matches!(command, Command::Read | Command::Write);
        let fits = extent.end() <= size && (!carries || extent.len <= buffer as u64);
        fits.then_some(Self {
            command,
            extent,
            fua: flags & operation::FUA != 0,
        })
    }

    /// What the driver wants to hear when all went well: the bytes of a transfer.
    fn success(&self) -> i32 {
        match self.command {
            Command::Read | Command::Write => i32::try_from(self.extent.len).unwrap_or(i32::MAX),
            _ => 0,
        }
    }
}

/// Counts a request that has come.
pub(super) fn count(export: &Export, request: &Request) {
    let counters = &export.counters;
    counters.requests.fetch_add(1, Ordering::Relaxed);
    match request.command {
        Command::Read => &counters.bytes_read,
        Command::Write => &counters.bytes_written,
        _ => return,
    }
    .fetch_add(request.extent.len, Ordering::Relaxed);
}

/// Carries out a request if that needs no wait. The result for the driver, or `None`, and then nothing has happened but that
/// `buffer` may have other bytes.
pub(super) fn now(export: &Export, request: &Request, buffer: &mut [u8]) -> Option<i32> {
    match (request.command, &export.sink) {
        (Command::Read, _) => guarded(export, request, || try_read(export, request.extent, buffer)),
        (_, Some(sink)) if !sink.is_prompt() => None,
        _ => Some(wait(export, request, buffer)),
    }
}

/// Carries out a request, however long that takes. The result for the driver.
pub(super) fn wait(export: &Export, request: &Request, buffer: &mut [u8]) -> i32 {
    let done = guarded(export, request, || match request.command {
        Command::Read => export
            .source
            .read_at(request.extent.offset, &mut buffer[..request.extent.bytes()])
            .map(|()| true),
        _ => change(export, request, buffer).map(|()| true),
    });
    // Only a read that must not wait is left undone.
    done.unwrap_or(-libc::EIO)
}

/// Does it; what goes wrong becomes a number. A panic is a fault of the volume. `None` when `work` left it undone.
fn guarded(export: &Export, request: &Request, work: impl FnOnce() -> Result<bool, BlockError>) -> Option<i32> {
    let (number, error) = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(true)) => return Some(request.success()),
        Ok(Ok(false)) => return None,
        Ok(Err(error)) => (errno_of(&error), error.to_string()),
        Err(_) => (libc::EIO, "a panic of the volume".to_owned()),
    };
    let count = export.counters.failures.fetch_add(1, Ordering::Relaxed) + 1;
    // A reader that tries again and again must not fill the log.
    if count.is_power_of_two() {
        warn!(count, error, "a request failed on its volume");
    }
    Some(-number)
}

/// Of what a volume says, what the block layer passes on. It must not be a number that it takes for "later".
fn errno_of(error: &BlockError) -> i32 {
    match error.kind {
        Kind::NoSpace => libc::ENOSPC,
        _ => libc::EIO,
    }
}

fn change(export: &Export, request: &Request, buffer: &[u8]) -> Result<(), BlockError> {
    let Some(sink) = &export.sink else {
        // The device was made read-only; a flush of it has nothing to do.
        return match request.command {
            Command::Flush => Ok(()),
            _ => Err(BlockError::new(blockio::Op::Write, Kind::ReadOnly).at(request.extent)),
        };
    };
    match request.command {
        Command::Write => sink.write_at(request.extent.offset, &buffer[..request.extent.bytes()])?,
        Command::Discard => sink.discard(request.extent)?,
        Command::WriteZeroes => sink.write_zeroes(request.extent)?,
        Command::Read | Command::Flush => {}
    }
    if request.fua || request.command == Command::Flush {
        sink.flush()?;
    }
    Ok(())
}

/// Reads what is at hand: lent, or read without a wait. `false` when some of it is not.
fn try_read(export: &Export, extent: Extent, buffer: &mut [u8]) -> Result<bool, BlockError> {
    let mut at = extent.offset;
    while at < extent.end() {
        // Sources know their chunks.
        let chunk_end = (at / CHUNK_SIZE + 1).saturating_mul(CHUNK_SIZE);
        let mut piece = Extent::between(at, extent.end().min(chunk_end));
        let from = Extent::between(extent.offset, at).bytes();
        match export.source.lend(piece) {
            Some(lent) if !lent.is_empty() && lent.len() as u64 <= piece.len => {
                piece.len = lent.len() as u64;
                buffer[from..from + lent.len()].copy_from_slice(&lent);
            }
            _ => {
                let target = &mut buffer[from..from + piece.bytes()];
                if !export.source.try_read_at(piece.offset, target)? {
                    return Ok(false);
                }
            }
        }
        at = piece.end();
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemSource;
    use std::sync::Arc;

    fn descriptor(operation_flags: u32, start_sector: u64, sectors: u32) -> Descriptor {
        Descriptor {
            operation_flags,
            sectors,
            start_sector,
            address: 0,
        }
    }

    fn parse(operation_flags: u32, start_sector: u64, sectors: u32) -> Option<Request> {
        Request::parse(&descriptor(operation_flags, start_sector, sectors), 1 << 20, 4096)
    }

    #[test]
    fn only_what_is_inside_is_taken() {
        let read = parse(operation::READ.into(), 1, 8).unwrap();
        assert_eq!(
            (read.command, read.extent),
            (Command::Read, Extent { offset: 512, len: 4096 })
        );
        assert_eq!(parse(operation::READ.into(), 2048, 1), None, "behind the end");
        assert_eq!(parse(operation::READ.into(), 0, 9), None, "longer than its buffer");
        assert_eq!(
            parse(operation::WRITE.into(), u64::MAX / 256, 1),
            None,
            "past all numbers"
        );
        assert_eq!(parse(operation::DISCARD.into(), 0, 2048).unwrap().extent.len, 1 << 20);
        assert_eq!(
            parse(operation::FLUSH.into(), u64::MAX, 7).unwrap().command,
            Command::Flush
        );
        assert_eq!(parse(4, 0, 1), None, "an operation that nobody has");
        let zeroes = u32::from(operation::WRITE_ZEROES);
        assert_eq!(parse(zeroes, 0, 1).unwrap().command, Command::Discard);
        assert_eq!(
            parse(zeroes | operation::NOUNMAP, 0, 1).unwrap().command,
            Command::WriteZeroes
        );
        assert!(parse(u32::from(operation::WRITE) | operation::FUA, 0, 1).unwrap().fua);
    }

    #[test]
    fn requests_reach_the_volume() {
        let volume = Arc::new(MemSource::from_bytes(&[7; 1 << 20]));
        let export = Export::writable(volume.clone());
        let mut buffer = [1; 4096];
        let write = parse(operation::WRITE.into(), 8, 8).unwrap();
        assert_eq!(wait(&export, &write, &mut buffer), 4096);
        let mut buffer = [0; 4096];
        let read = parse(operation::READ.into(), 7, 8).unwrap();
        assert_eq!(now(&export, &read, &mut buffer), Some(4096));
        assert!(buffer[..512] == [7; 512] && buffer[512..] == [1; 3584]);
        assert_eq!(
            wait(&export, &parse(operation::DISCARD.into(), 0, 16).unwrap(), &mut buffer),
            0
        );
        assert_eq!(now(&export, &read, &mut buffer), Some(4096));
        assert!(buffer == [0; 4096]);

        let read_only = Export::read_only(volume);
        assert_eq!(wait(&read_only, &write, &mut buffer), -libc::EIO);
        assert_eq!(
            wait(&read_only, &parse(operation::FLUSH.into(), 0, 0).unwrap(), &mut buffer),
            0
        );
        assert_eq!(read_only.stats().failures, 1);
    }
}
