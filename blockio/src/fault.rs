//! Faults on demand: which operation, on which bytes, after how many, how often, with what outcome.
//!
//! Tests of this crate and of those above give a plan to an `Engine`, a `Device` or a `Zeroer`; without one the cost is a
//! look at an `Option`.

use crate::error::{BlockError, Kind, Op};
use crate::extent::Extent;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Faults to come. Clones are one and the same plan, so a test can keep one and ask it what happened.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan(Arc<Mutex<Vec<Planned>>>);

/// A fault, and when it happens.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The operation that fails. For an `Engine`, [`Op::Map`] is the registration of buffers and [`Op::Open`] the set-up of
    /// the ring.
    pub op: Op,
    /// Operations that touch one of these bytes; operations without bytes (sync, set-up) always match.
    pub range: Extent,
    /// Matches that pass unharmed first.
    pub skip: u64,
    /// Matches that fail after them.
    pub count: u64,
    /// How they fail.
    pub outcome: Outcome,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this number of the system (5 is EIO), before the device sees it.
    Errno(i32),
    /// Not at all, but only so many bytes are transferred at once, rounded down to what the device can, at least that.
    Short(usize),
    /// Never answers. Where there is no watchdog (a `Device` used directly) it is reported as stuck at once.
    Stuck,
}

#[derive(Debug)]
struct Planned {
    fault: Fault,
    seen: u64,
}

/// All bytes there are.
pub const EVERYWHERE: Extent = Extent {
    offset: 0,
    len: u64::MAX,
};

impl FaultPlan {
    /// No fault.
    pub fn new() -> Self {
        Self::default()
    }

    /// One fault of `op`, on any bytes, the first time.
    pub fn once(op: Op, outcome: Outcome) -> Self {
        Self::new().with(Fault {
            op,
            range: EVERYWHERE,
            skip: 0,
            count: 1,
            outcome,
        })
    }

    /// Every `op` fails, on any bytes.
    pub fn always(op: Op, outcome: Outcome) -> Self {
        Self::new().with(Fault {
            op,
            range: EVERYWHERE,
            skip: 0,
            count: u64::MAX,
            outcome,
        })
    }

    /// The same plan with one more fault. The first one that matches decides; all that match count.
    #[must_use]
    pub fn with(self, fault: Fault) -> Self {
        self.lock().push(Planned { fault, seen: 0 });
        self
    }

    /// Faults that happened so far.
    pub fn hits(&self) -> u64 {
        self.lock()
            .iter()
            .map(|p| p.seen.saturating_sub(p.fault.skip).min(p.fault.count))
            .sum()
    }

    /// The outcome planned for this operation, which is counted.
    pub(crate) fn strike(&self, op: Op, extent: Option<Extent>) -> Option<Outcome> {
        let mut outcome = None;
        for planned in self.lock().iter_mut() {
            let fault = planned.fault;
            let touches = extent.is_none_or(|extent| extent.clip(fault.range).is_some());
            if fault.op == op && touches {
                let turn = planned.seen;
                planned.seen += 1;
                if turn >= fault.skip && turn - fault.skip < fault.count {
                    outcome = outcome.or(Some(fault.outcome));
                }
            }
        }
        outcome
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Planned>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The outcome planned for an operation, if there is a plan.
pub(crate) fn strike(plan: Option<&FaultPlan>, op: Op, extent: Option<Extent>) -> Option<Outcome> {
    plan.and_then(|plan| plan.strike(op, extent))
}

impl Outcome {
    /// The outcome where nobody watches the clock: an error, or a limit to the bytes transferred at once.
    pub(crate) fn at_once(self, op: Op) -> Result<usize, BlockError> {
        match self {
            Self::Errno(errno) => Err(BlockError::from_io(op, io::Error::from_raw_os_error(errno))),
            Self::Short(bytes) => Ok(bytes),
            Self::Stuck => Err(BlockError::new(op, Kind::Stuck(0))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_waits_its_turn_and_ends() {
        let range = Extent { offset: 100, len: 10 };
        let plan = FaultPlan::new().with(Fault {
            op: Op::Read,
            range,
            skip: 1,
            count: 2,
            outcome: Outcome::Errno(5),
        });
        let read = |offset, len| plan.strike(Op::Read, Some(Extent { offset, len })).is_some();
        assert_eq!(plan.strike(Op::Write, Some(range)), None, "another operation");
        assert!(!read(0, 100) && !read(110, 5), "other bytes");
        let turns: Vec<bool> = (0..5).map(|_| read(109, 1)).collect();
        assert_eq!(turns, [false, true, true, false, false]);
        assert_eq!(plan.hits(), 2);
    }

    #[test]
    fn an_operation_without_bytes_matches_any_range() {
        let plan = FaultPlan::once(Op::Sync, Outcome::Errno(28));
        assert_eq!(plan.strike(Op::Sync, None), Some(Outcome::Errno(28)));
        assert_eq!(plan.strike(Op::Sync, None), None);
    }
}
