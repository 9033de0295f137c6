//! Kubernetes glue: turns objects of the API server into node jobs and back. It never touches a block of data.
//!
//! | module | what it is |
//! |---|---|
//! | [`cbt`] | asks a CSI SnapshotMetadata service which blocks of a snapshot are allocated or changed |
//!
//! It knows `blockio`'s vocabulary and nothing else of ours.

pub mod cbt;
