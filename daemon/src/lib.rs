//! The blockferry movers and command line.
//!
//! | module | what it is |
//! |---|---|
//! | [`mover`] | backup, restore, comparison: volumes to repositories and back |
//! | [`lazy`] | snapshots as volumes that are there at once, fetched as they are read |
//! | [`touch`] | what the readers of a volume do: the order of first touches, and how long they wait |
//! | [`hydrate`] | filling the final volume from a snapshot while it is in use |
//! | [`mount`] | snapshots as block devices of this host, each with a server of its own |
//! | [`cli`] | the command line |
//! | [`error`] | what ends a job, and its exit code |
//!
//! This crate joins `blockio` (devices), `repo` (the Kopia format) and `nbd` (block devices over sockets); it holds no format knowledge of its own.

pub mod cli;
pub mod error;
pub mod hydrate;
pub mod lazy;
pub mod mount;
pub mod mover;
pub mod touch;

pub use error::{JobError, Result};
