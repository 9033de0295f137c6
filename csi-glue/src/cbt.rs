//! Changed block tracking: which blocks of a CSI snapshot are allocated, or differ from an older one.
//!
//! | module | what it is |
//! |---|---|
//! | [`machine`] | the protocol as a state machine: messages, endings and the time in; what to do next and a growing map out |
//! | [`page`] | one message, read in place |
//! | [`refusal`] | why there is no answer, and what still may have one |
//! | [`limits`] | every limit and default |
//! | [`token`] | where tokens come from |
//! | [`client`] | the machine on a network: TLS to the sidecar, or the socket of a driver |
//!
//! # What is believed
//!
//! A service is believed only as far as its contract can be checked. Order, style and capacity are; a clean end is confirmed by
//! a second stream from the end of the last block, because drivers are known to end cleanly when they were cancelled; the
//! size of the map is the device's. An answer without a block is reported as such ([`Outcome::empty`]) for the caller to
//! look at the volume itself. What breaks the contract ends in a [`Refusal`], never in a shorter map.
//!
//! The answer goes straight into a [`GrowingMap`](blockio::GrowingMap): no block is stored, and reading may begin while the
//! stream still runs.

pub mod client;
mod codec;
mod connect;
pub mod limits;
pub mod machine;
mod pace;
pub mod page;
mod proto;
pub mod refusal;
pub mod token;

pub use client::{CbtClient, CbtEndpoint, Question};
pub use limits::Limits;
pub use machine::{Action, Call, End, Machine, Outcome};
pub use refusal::{Next, Refusal, Violation};
pub use token::{Need, Token, TokenError, TokenSource};
/// Status codes of gRPC.
pub use tonic::Code;
