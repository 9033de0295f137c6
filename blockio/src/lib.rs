//! Block devices, rings, buffers and the shared block vocabulary of blockferry.
//!
//! This is the leaf crate: it knows nothing of repositories, backups, Kubernetes or async runtimes. What it knows is how
//! to name parts of a volume, and how to move their bytes fast and without losing any.
//!
//! # Map
//!
//! Vocabulary, always there, no system call in it:
//!
//! | module | nouns |
//! |---|---|
//! | [`geometry`] | [`CHUNK_SIZE`], [`ChunkIndex`], [`Geometry`], rounding that says its direction |
//! | [`extent`] | [`Extent`], [`ExtentKind`], clip, split on the grid, coalesce |
//! | [`block_map`] | [`BlockMap`]: one bit per chunk |
//! | [`growing_map`] | [`GrowingMap`]: a block map that is read while it is still being told |
//! | [`change`] | [`VolumeId`], [`ChangeId`], [`SnapshotHandle`], [`ChangeSet`] |
//! | [`lent`] | [`Lent`]: bytes of somebody's memory, shared instead of copied |
//! | [`traits`] | [`BlockSource`], [`BlockSink`]: the seam between volumes, repositories and NBD |
//! | [`control`] | [`Cancel`], [`Progress`] |
//! | [`error`] | [`BlockError`] and its [`Kind`] |
//! | [`zero`] | [`is_zero`] |
//!
//! With feature `device` (the default):
//!
//! | module | nouns |
//! |---|---|
//! | `buf` | `BufPool`, `BlockBuf`: the memory budget, and one slot of it |
//! | `device` | `Device`: a block device or a file, opened for direct IO; refuses what is mounted |
//! | `ring` | `Engine`: requests in, completions out, by io_uring or by threads |
//! | `zeroing` | `Zeroer`: the cheapest way to zeros that the device does not refuse |
//! | `fault` | `FaultPlan`: errors on demand, for tests of this crate and of those above |
//!
//! Unsafe code is in the private module `sys` and nowhere else.
//!
//! # Example
//!
//! Copy the allocated chunks of one volume to another.
//!
//! ```
//! # #[cfg(feature = "device")]
//! # fn main() -> Result<(), blockio::BlockError> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let (from, to) = (dir.path().join("from"), dir.path().join("to"));
//! # std::fs::write(&from, vec![7u8; 3_000_000]).unwrap();
//! use blockio::{BlockMap, BufPool, CHUNK_BYTES, Device, Engine, EngineOptions, Extent, OpKind, OpenOptions, Request};
//! use std::sync::Arc;
//!
//! let source = Arc::new(Device::open(&from, &OpenOptions::read())?);
//! let geometry = source.geometry();
//! let target = Arc::new(Device::create_file(&to, geometry.size, false)?);
//! let mut chunks = BlockMap::new(geometry.chunks());
//! for extent in source.allocated_extents(geometry.extent())? {
//!     chunks.set_extent(extent).expect("the device names extents of its own");
//! }
//!
//! let pool = BufPool::new(CHUNK_BYTES, 16)?;
//! let mut engine = Engine::open(&[source, target], &[pool.clone()], &EngineOptions::default())?;
//! let (mut todo, mut done) = (chunks.iter().peekable(), Vec::new());
//! while todo.peek().is_some() || engine.in_flight() > 0 {
//!     while engine.room() > 0 && todo.peek().is_some() {
//!         let (Some(buf), Some(chunk)) = (pool.try_take(), todo.peek().copied()) else { break };
//!         todo.next();
//!         let extent = geometry.chunk_extent(chunk);
//!         let read = Request {
//!             device: 0,
//!             kind: OpKind::Read,
//!             offset: extent.offset,
//!             len: extent.bytes(),
//!             buf: Some(buf),
//!             tag: chunk.get(),
//!         };
//!         engine.push(read).expect("room was asked for");
//!     }
//!     engine.wait(1, &mut done)?;
//!     for completion in done.drain(..) {
//!         completion.result?;
//!         if completion.kind == OpKind::Read {
//!             let write = Request {
//!                 device: 1,
//!                 kind: OpKind::Write,
//!                 offset: completion.offset,
//!                 len: completion.len,
//!                 buf: completion.buf,
//!                 tag: completion.tag,
//!             };
//!             engine.push(write).expect("the read made room");
//!         }
//!     }
//! }
//! engine.push(Request { device: 1, kind: OpKind::Sync, offset: 0, len: 0, buf: None, tag: 0 }).expect("room");
//! engine.wait(1, &mut done)?;
//! done.remove(0).result?;
//! # assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "device"))]
//! # fn main() {}
//! ```

pub mod block_map;
#[cfg(feature = "device")]
pub mod buf;
pub mod change;
pub mod control;
#[cfg(feature = "device")]
pub mod device;
pub mod error;
pub mod extent;
#[cfg(feature = "device")]
pub mod fault;
pub mod geometry;
pub mod growing_map;
#[cfg(feature = "device")]
pub mod heap;
pub mod lent;
#[cfg(feature = "device")]
pub mod ring;
#[cfg(feature = "device")]
mod sys;
#[cfg(all(test, feature = "device"))]
mod testing;
pub mod traits;
pub mod zero;
#[cfg(feature = "device")]
pub mod zeroing;

pub use block_map::BlockMap;
pub use change::{ChangeId, ChangeSet, SnapshotHandle, VolumeId};
pub use control::{Cancel, Cancelled, Progress, ProgressSnapshot};
pub use error::{BlockError, Kind, Op};
pub use extent::{Extent, ExtentKind};
pub use geometry::{CHUNK_BYTES, CHUNK_SIZE, ChunkIndex, Geometry};
pub use growing_map::{GrowingMap, Growth, MapState, NextChunk};
pub use lent::Lent;
pub use traits::{BlockSink, BlockSource};
pub use zero::is_zero;

#[cfg(feature = "device")]
pub use {
    buf::{BlockBuf, BufPool},
    device::{Access, Device, DeviceId, OpenOptions, fingerprint::Fingerprint},
    fault::FaultPlan,
    ring::{Completion, Engine, EngineChoice, EngineKind, EngineOptions, OpKind, Request},
    zeroing::{ZeroMethod, ZeroReport, Zeroer},
};
