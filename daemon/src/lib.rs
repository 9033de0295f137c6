//! The blockferry movers and command line.
//!
//! | module | what it is |
//! |---|---|
//! | [`mover`] | backup, restore, comparison: volumes to repositories and back |
//! | [`cli`] | the command line |
//! | [`error`] | what ends a job, and its exit code |
//!
//! This crate joins `blockio` (devices) and `repo` (the Kopia format); it holds no format knowledge of its own.

pub mod cli;
pub mod error;
pub mod mover;

pub use error::{JobError, Result};
