//! Benchmarks: blockferry, the programs people use today and the bare device, on the same image in the same run.
//!
//! | module | what it is |
//! |---|---|
//! | [`measure`] | one program from start to durable result: wall time, processor time, peak memory |
//! | [`site`] | work folder, image, options |
//! | [`tool`] | blockferry, kopia, restic, borg: how each is set up, started and what it leaves |
//! | [`cloud`] | the same programs with their repository in a bucket of Garage |
//! | [`device`] | `dd` on the same file system |
//! | [`requests`] | what a run asked of its storage |
//! | [`example`] | repositories of a size that nobody backs up for a benchmark |
//! | [`bars`] | what has to be reached, and what was |
//! | [`rounds`] | tools in turn, round by round; medians and ratios |
//! | [`report`] | the table for people, the raw numbers for later |
//! | [`host`] | what the numbers were measured on |
//!
//! The suites themselves are in `suites/`; README.md says what makes a number void.

pub mod bars;
pub mod cloud;
pub mod device;
pub mod example;
pub mod host;
pub mod measure;
pub mod report;
pub mod requests;
pub mod rounds;
pub mod site;
mod sys;
pub mod tool;

/// Result with a sentence as error.
pub type Result<T> = std::result::Result<T, String>;

/// Bytes in a MiB, as a float for rates.
pub const MIB: f64 = 1_048_576.0;
