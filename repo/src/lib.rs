//! Kopia repository format: read, write, block image objects.
//!
//! A repository is a set of blobs ([`blob`]). Its parameters and keys are in the format blob ([`mod@format`]). Contents are
//! named by keyed hashes of their plaintext, encrypted one by one and gathered in packs ([`content`], [`pack`]); index
//! blobs say which pack holds which content ([`index`], [`epoch`]). Objects are contents or lists of contents
//! ([`object`]); manifests and directories tell what the objects are ([`manifest`], [`snapshot`], [`directory`]).
//! [`Repository`] reads all of that; [`session`] writes it, in an order that leaves a valid repository at every step.
//!
//! The crate knows nothing of devices, NBD or Kubernetes. Apart from [`blob`], the files of [`mod@cache`], the lock file of
//! [`maintenance`] and the state file of [`verify`] it does no input or output of its own.
//!
//! ```
//! use std::sync::Arc;
//!
//! use blockio::CHUNK_BYTES;
//! use repo::blob::MemStore;
//! use repo::compress::CompressionPolicy;
//! use repo::format::CreateOptions;
//! use repo::object::BlockAddressTable;
//! use repo::session::{WriteOptions, WriteSession};
//! use repo::{ContentId, Repository};
//!
//! # fn main() -> repo::Result<()> {
//! let store = Arc::new(MemStore::new());
//! Repository::create(&*store, "password", &CreateOptions::default())?;
//! let repository = Repository::open(store, "password")?;
//!
//! // Store one chunk and the list of an image that consists of it.
//! let options = WriteOptions { sealers: 1, uploads: 1, compression: CompressionPolicy::None, user: "u".into(), host: "h".into(), ..WriteOptions::default() };
//! let session = WriteSession::begin(&repository, &options)?;
//! let chunk = vec![7; CHUNK_BYTES];
//! let id = repository.contents().content_id(None, &chunk);
//! let mut sealer = session.sealer();
//! sealer.store(id, &chunk)?;
//! sealer.finish()?;
//! let table = BlockAddressTable::uniform(1 << 20, repository.contents().hash_len(), id.hash().to_vec());
//! let image = session.put_image_list(&table)?;
//! session.abandon(); // no snapshot is published, the contents stay usable
//!
//! assert_eq!(repository.table(&image)?, table);
//! assert_eq!(repository.read_content(&id)?, chunk);
//! # Ok(())
//! # }
//! ```

pub mod blob;
pub mod cache;
pub mod compress;
pub mod content;
pub mod crypto;
pub mod directory;
pub mod epoch;
pub mod error;
pub mod format;
pub mod id;
pub mod index;
mod json;
pub mod listing;
pub mod liveness;
pub mod maintenance;
pub mod manifest;
pub mod object;
pub mod pack;
pub mod plan;
mod repository;
pub mod session;
pub mod snapshot;
pub mod survey;
pub mod sync;
pub mod time;
pub mod tree;
pub mod verify;
mod view;

pub use error::{Kind, RepoError, Result};
pub use id::{BlobId, ContentId, ManifestId, ObjectId, SessionId};
pub use repository::{Image, Repository};
