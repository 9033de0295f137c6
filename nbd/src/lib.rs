//! NBD protocol and server: serves any [`blockio::BlockSource`] as a block device.
//!
//! This crate knows nothing of Kopia, and nothing of where bytes come from: it asks a source for them, on a thread that may
//! wait, or finds them ready and sends them without a copy.
//!
//! # Map
//!
//! | module | nouns |
//! |---|---|
//! | [`proto`] | numbers and messages as they stand on the wire |
//! | [`negotiate`] | `Negotiation`: the handshake over bytes; no IO |
//! | [`transmit`] | `Session`, `Request`, `Encoder`: requests and replies over bytes; no IO |
//! | [`export`] | [`Export`], [`ExportFlags`], [`Exports`]: what is served, by name, while servers run |
//! | [`server`] | [`Server`], [`Limits`]: Unix sockets, TCP behind TLS, windows, shutdown |
//! | [`overlay`] | [`Overlay`]: writes over a volume that is only read, and what a crash leaves of them |
//! | [`attach`] | [`attach::AttachedDevice`]: an export as a device of this host: ublk, the kernel's NBD client, FUSE and a loop device |
//! | [`memory`], [`mod@file`] | [`MemSource`], [`FileSource`]: volumes for tests and simple uses |
//! | [`error`] | [`NbdError`], and which failure gets which number on the wire |
//!
//! # Example
//!
//! Serve a volume in memory on a Unix socket, as long as somebody may want it.
//!
//! ```
//! use nbd::{Export, Exports, Limits, MemSource, Server, UnixListen};
//! use std::io::Read;
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("nbd.sock");
//! let exports = Arc::new(Exports::new());
//! exports.insert("disk", Arc::new(Export::writable(Arc::new(MemSource::new(64 << 20)))))?;
//! let mut server = Server::new(exports.clone(), Limits::default());
//! server.listen_unix(&UnixListen::at(&path))?;
//!
//! // Any client will do: nbdinfo "nbd+unix:///disk?socket=nbd.sock"
//! let mut greeting = [0; 8];
//! std::os::unix::net::UnixStream::connect(&path).unwrap().read_exact(&mut greeting).unwrap();
//! assert_eq!(&greeting, b"NBDMAGIC");
//!
//! exports.withdraw("disk");
//! server.stop(Duration::from_secs(5));
//! # Ok::<(), nbd::NbdError>(())
//! ```

pub mod attach;
pub mod error;
pub mod export;
pub mod file;
pub mod memory;
pub mod negotiate;
pub mod overlay;
pub mod proto;
pub mod server;
pub mod transmit;

pub use error::NbdError;
pub use export::{Export, ExportFlags, ExportStats, Exports};
pub use file::FileSource;
pub use memory::MemSource;
pub use overlay::{Hydrated, Overlay};
pub use server::{Limits, Server, Stopped, TlsSettings, UnixListen};
