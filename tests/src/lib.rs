//! Test support: volumes with known bytes, repositories with known content, and drivers of the real programs.
//!
//! | module | what it is |
//! |---|---|
//! | [`volume`] | deterministic disk images, the same on every machine; loop devices |
//! | [`azurite`] | Microsoft's emulator of Azure Blob Storage |
//! | [`golden`] | repositories written by the real kopia, kept in `tests/golden`, with what a reader must find in them |
//! | [`kopia`] | the real `kopia` command line on a repository of its own |
//! | [`blockferry`] | our own command line, built when needed |
//! | [`bucket`] | a place in a bucket, told to both clients in their own words |
//! | [`cbt_server`] | a CSI SnapshotMetadata service that keeps its contract, or breaks it in every way known |
//! | [`garage`] | the real Garage, an S3 server, one node or three |
//! | [`proxy`] | a bad network on loopback: latency, limits, resets, wrong answers |
//! | [`repo`] | folders: copy a tree, describe a tree, blob names to file names |
//! | [`vm`] | a virtual machine with the kernel modules that a host may lack |
//! | [`wait`] | waiting for a condition with a deadline |
//! | [`process`] | running a program, with everything it said in the error |
//!
//! The library knows none of our crates: it starts programs and looks at what they leave behind.
//!
//! ```
//! use blockferry_tests::volume::{Layout, Volume};
//!
//! // 3 MiB and a bit of random, compressible, repeated and zero blocks.
//! let volume = Volume::create(&Layout::mixed(7, 3 * 1024 * 1024 + 512)).unwrap();
//! assert_eq!(std::fs::metadata(volume.path()).unwrap().len(), 3 * 1024 * 1024 + 512);
//! ```

pub mod azurite;
pub mod blockferry;
pub mod bucket;
pub mod cbt_server;
pub mod garage;
pub mod golden;
pub mod kopia;
pub mod process;
pub mod proxy;
pub mod repo;
pub mod vm;
pub mod volume;
pub mod wait;

use std::fmt;

/// Rounds of a test that repeats itself: `short` ones, or with `cargo xtask soak` (which sets `BLOCKFERRY_SOAK` to a factor) as
/// many times `long` ones.
pub fn rounds(short: u64, long: u64) -> u64 {
    let factor = std::env::var("BLOCKFERRY_SOAK")
        .ok()
        .and_then(|text| text.parse::<u64>().ok());
    factor.map_or(short, |factor| factor * long)
}

/// What went wrong, as text for the one who reads a failed test. `unwrap` shows the text as it is.
pub struct Failure(String);

/// Result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure told in a sentence.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    /// Turns an error of another kind into a failure of the form "`doing`: error", for `map_err`.
    pub fn at<E: fmt::Display>(doing: impl fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| Self(format!("{doing}: {error}"))
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}
