//! Maintenance: what keeps a repository small and its index short, for the one client that owns it.
//!
//! Deletion has three steps, days apart, each of which the next snapshot can still undo but the last:
//!
//! | step | what it does | undone by |
//! |---|---|---|
//! | collection | contents that no snapshot uses are marked deleted | the next collection, when a snapshot uses them |
//! | forgetting | marks older than two collections become final | nothing, but nobody uses them |
//! | packs | packs that no index entry names are deleted | nothing |
//!
//! Every task computes a plan first, from listings, index, manifests and margins of time ([`Safety`]); a dry run prints it,
//! a run carries it out after looking once more.
//!
//! Source of the rules: kopia, repo/maintenance, snapshot/snapshotgc and internal/epoch.

mod census;
mod clock;
mod collect;
mod deletion;
mod dry;
mod folder;
mod forget;
mod journal;
mod lease;
mod logs;
mod marks;
mod moves;
mod numbers;
mod packs;
mod parameters;
mod report;
mod rights;
mod run;
mod safety;
mod sessions;
mod status;
mod upkeep;
mod writer;

pub use census::Totals;
pub use clock::Clock;
pub use collect::{CollectTotals, Count};
pub use deletion::{Deleted, DeletedBlob};
pub use dry::plan;
pub use forget::ForgetTotals;
pub use journal::{History, Mode, Task};
pub use logs::LogTotals;
pub use moves::MoveTotals;
pub use packs::{Kept, KeptCount, PackTotals};
pub use parameters::{Cycle, LogRetention, Parameters, set_owner};
pub use report::{Outcome, Report, TaskReport};
pub use rights::{Overrides, is_veleros};
pub use run::{Options, run};
pub use safety::{Breaker, Safety};
pub use sessions::{UnreadableMarker, unreadable_markers};
pub use status::{CycleStatus, Explanation, Status, TaskStatus, explain, status};

use crate::error::Result;
use crate::repository::Repository;
use crate::time::Time;

/// Who maintains a repository, and when it was done.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// `user@host` of the owner.
    pub owner: Option<String>,
    /// End of the last successful quick maintenance.
    pub last_quick: Option<Time>,
    /// End of the last successful full maintenance.
    pub last_full: Option<Time>,
}

/// Owner and times, as far as the repository tells.
pub fn state(repository: &Repository) -> Result<State> {
    let owner = Parameters::read(repository)?.owner;
    let history = History::read(repository)?;
    Ok(State {
        owner: Some(owner).filter(|owner| !owner.is_empty()),
        // Every full run ends with log clean-up and every quick one with an attempt to compact an epoch.
        last_quick: history
            .last_end(&["compact-single-epoch"])
            .or_else(|| history.last_end(&["advance-epoch"])),
        last_full: history.last_end(&["cleanup-logs"]),
    })
}

#[cfg(test)]
mod tests;
