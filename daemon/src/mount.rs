//! Mounts: snapshots as block devices of this host, each served by a process of its own.
//!
//! # Map
//!
//! | module | nouns |
//! |---|---|
//! | [`record`] | [`Wish`], [`Record`], [`Attached`]: what was asked for, what a mount is, what its server made of it |
//! | [`folder`] | [`Root`], [`Folder`], [`Claim`]: where that is kept, and who may change it |
//! | [`control`] | [`Ask`], [`Answer`]: what a server is asked over its socket |
//! | [`server`] | [`Server`]: from a wish to a device, and to its end |
//! | [`survey`] | [`Survey`]: what all mounts of this host are at |
//! | `mount::volume` | `Volume`: what is behind the device; what is written, hydrated, and remembered of its readers |
//! | [`file_system`] | what is on the device, and how it is mounted |
//!
//! # The states of a mount
//!
//! ```text
//!            mount                        unmount
//!   (none) --------> starting --> serving --------> (none)      read-only; hydrated volumes
//!                                  |   ^  \--------> stopped    with what was written, until commit, mount or --discard
//!                        it dies   |   |  adopt or mount
//!                                  v   |
//!                                  dead
//! ```
//!
//! What stands where, and what a crash at any moment leaves, follows from one order: the record of a mount is durable before its
//! volume is opened, the volume is open before there is a device, the device is there before `attached` says so; and the other
//! way round at the end. A server holds the lock of its folder for as long as it lives, so that whether it does needs no guess.

pub mod control;
pub mod file_system;
pub mod folder;
pub mod record;
pub mod server;
pub mod survey;
mod volume;

pub use control::{Answer, Ask};
pub use folder::{Claim, Folder, Root};
pub use record::{Attached, Mode, Record, Wish, identity};
pub use server::Server;
pub use survey::Survey;
