//! NBD protocol and server: serves any `blockio::BlockSource` as a block device.
//!
//! This crate knows nothing of Kopia. It is the place of the instant mount and holds nothing yet.

pub mod error;
pub mod negotiate;
pub mod proto;
pub mod transmit;
