//! Requests on their way: checked when they are accepted, finished in one place.

use super::{Completion, OpKind, Request};
use crate::buf::BlockBuf;
use crate::device::{Device, Piece, Transfer};
use crate::error::{BlockError, Kind, Op};
use crate::extent::Extent;
use crate::fault::{FaultPlan, Outcome, strike};
use crate::geometry::align_down;
use crate::zeroing::Zeroer;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the engine and its threads share.
pub(super) struct Shared {
    pub(super) devices: Vec<Arc<Device>>,
    /// One per device.
    pub(super) zeroers: Vec<Zeroer>,
}

/// A request that was accepted.
pub(super) struct Work {
    pub(super) request: Request,
    /// For reads and writes.
    pub(super) transfer: Option<Transfer>,
    /// The call that is in the kernel.
    pub(super) piece: Option<Piece>,
    /// Bytes of a read that exist; the rest is filled with zeros.
    existing: usize,
}

/// What becomes of a request.
pub(super) enum Accepted {
    /// It goes to the device.
    Work(Work),
    /// It is to get no answer; a fault's doing.
    Stuck(Work),
    /// It is over already.
    Over(Completion),
}

impl Work {
    /// Checks a request, and strikes it with the fault planned for it.
    pub(super) fn accept(request: Request, devices: &[Arc<Device>], faults: Option<&FaultPlan>) -> Accepted {
        let Some(device) = devices.get(request.device) else {
            let what = format!("device {} of {}", request.device, devices.len());
            let error = BlockError::new(request.kind.op(), Kind::InvalidInput(what));
            return Accepted::Over(over(request, Err(error)));
        };
        let (transfer, existing) = match plan(&request, device) {
            Ok(planned) => planned,
            Err(error) => return Accepted::Over(over(request, Err(error))),
        };
        let op = request.kind.op();
        let extent = request.extent();
        let struck = strike(faults, op, (request.kind != OpKind::Sync).then_some(extent));
        let mut work = Self {
            request,
            transfer,
            piece: None,
            existing,
        };
        match struck {
            None => Accepted::Work(work),
            Some(Outcome::Stuck) => Accepted::Stuck(work),
            Some(outcome) => match outcome.at_once(op) {
                Err(error) => Accepted::Over(work.finish(Err(error.at(extent).on(device.path())))),
                Ok(bytes) => {
                    work.transfer = work.transfer.map(|transfer| transfer.in_calls_of(bytes));
                    Accepted::Work(work)
                }
            },
        }
    }

    /// Does all of it in the calling thread.
    pub(super) fn run(&mut self, shared: &Shared) -> Result<(), BlockError> {
        let device = &shared.devices[self.request.device];
        match (self.request.kind, &mut self.request.buf, self.transfer.take()) {
            (OpKind::Read, Some(buf), Some(transfer)) => device.run_read(transfer, buf),
            (OpKind::Write, Some(buf), Some(transfer)) => device.run_write(transfer, buf),
            (OpKind::Zero, ..) => shared.zeroers[self.request.device]
                .zero(device, self.request.extent())
                .map(|_| ()),
            (OpKind::Sync, ..) => device.sync_file(),
            (OpKind::Read | OpKind::Write, ..) => unreachable!("accepted with a buffer and a transfer"),
        }
    }

    /// The completion. A read that went well has zeros behind the end of the volume.
    pub(super) fn finish(mut self, result: Result<(), BlockError>) -> Completion {
        if result.is_ok()
            && self.request.kind == OpKind::Read
            && let Some(buf) = &mut self.request.buf
        {
            buf[self.existing..self.request.len].fill(0);
        }
        over(self.request, result)
    }
}

fn over(request: Request, result: Result<(), BlockError>) -> Completion {
    let Request {
        kind,
        offset,
        len,
        buf,
        tag,
        ..
    } = request;
    Completion {
        tag,
        kind,
        offset,
        len,
        buf,
        result,
    }
}

/// The transfer a request asks for, and its bytes that exist.
fn plan(request: &Request, device: &Device) -> Result<(Option<Transfer>, usize), BlockError> {
    let op = request.kind.op();
    let extent = request.extent();
    let refuse = |kind| Err(BlockError::new(op, kind).at(extent).on(device.path()));
    match request.kind {
        OpKind::Sync => return Ok((None, 0)),
        OpKind::Zero => return device.check_write(op, extent).map(|()| (None, 0)),
        OpKind::Write => device.check_write(op, extent)?,
        OpKind::Read => device.check_read(extent)?,
    }
    let room = request.buf.as_ref().map_or(0, |buf: &BlockBuf| buf.len());
    if request.len == 0 || request.len > room {
        return refuse(Kind::InvalidInput(format!(
            "{} bytes with a buffer of {room}",
            request.len
        )));
    }
    let geometry = device.geometry();
    let Some(existing) = extent.clip(geometry.extent()) else {
        return refuse(Kind::OutOfRange);
    };
    let align = u64::from(geometry.offset_align);
    let tail = align_down(geometry.size, align);
    if !existing.offset.is_multiple_of(align) || (existing.end() < tail && !existing.end().is_multiple_of(align)) {
        return refuse(Kind::InvalidInput(format!(
            "direct IO on this device is in units of {align} bytes"
        )));
    }
    Ok((Some(Transfer::new(op, existing)), existing.bytes()))
}

/// Numbered places for requests in flight, and since when each is taken.
pub(super) struct Slots {
    taken: Vec<Option<Taken>>,
    free: Vec<usize>,
}

/// A request in flight, as the watchdog reports it.
#[derive(Clone, Copy)]
pub(super) struct Taken {
    pub(super) since: Instant,
    pub(super) device: usize,
    pub(super) op: Op,
    pub(super) extent: Extent,
}

impl Slots {
    pub(super) fn new(depth: usize) -> Self {
        Self {
            taken: vec![None; depth],
            free: (0..depth).rev().collect(),
        }
    }

    pub(super) fn take(&mut self, work: &Work) -> Option<usize> {
        let slot = self.free.pop()?;
        let request = &work.request;
        let (device, op, extent) = (request.device, request.kind.op(), request.extent());
        self.taken[slot] = Some(Taken {
            since: Instant::now(),
            device,
            op,
            extent,
        });
        Some(slot)
    }

    pub(super) fn release(&mut self, slot: usize) {
        let taken = self.taken[slot].take();
        assert!(taken.is_some(), "a request completes once");
        self.free.push(slot);
    }

    pub(super) fn in_flight(&self) -> usize {
        self.taken.len() - self.free.len()
    }

    /// The request that has waited longest.
    pub(super) fn oldest(&self) -> Option<Taken> {
        self.taken.iter().flatten().min_by_key(|taken| taken.since).copied()
    }

    /// When the last of the requests will be overdue that are not yet.
    pub(super) fn patience(&self, stuck_after: Duration, now: Instant) -> Option<Instant> {
        self.taken
            .iter()
            .flatten()
            .map(|taken| taken.since + stuck_after)
            .filter(|deadline| *deadline > now)
            .max()
    }
}
