//! The real kopia and we on the same repositories, each reading what the other wrote. Kopia is the judge.
//!
//! | module | who writes | who reads |
//! |---|---|---|
//! | [`theirs`] | kopia | we |
//! | [`ours`] | we | kopia, also after it rebuilt the index and after maintenance |
//! | [`algorithms`] | we, with every hash and cipher | kopia |
//! | [`both`] | both, in turn and at the same time | both |
//! | [`delete`] | both; snapshots go, and their data with them | both |

mod algorithms;
mod both;
mod delete;
pub(crate) mod judge;
mod ours;
mod theirs;
