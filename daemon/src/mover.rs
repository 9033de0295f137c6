//! Movers: the wiring between a volume and a repository.
//!
//! Workers share nothing but a cursor, the claim table of the write session and a pool of buffers. The crate holds no
//! knowledge of the repository format.

pub mod audit;
pub mod backup;
pub mod changes;
pub mod commit;
pub mod copy;
mod cursor;
pub mod difference;
mod intake;
mod journal;
pub mod ladder;
mod limit;
mod notes;
mod parent;
pub mod restore;
mod scan;
mod snapshot;
pub mod verify;

pub use journal::parse_for_fuzzing as parse_journal_for_fuzzing;
pub use limit::Limiter;
