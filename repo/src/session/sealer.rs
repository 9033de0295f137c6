//! Turning plaintext into pack entries: claim, compress, encrypt straight into the pack buffer.

use std::sync::atomic::Ordering;

use blockio::BlockBuf;

use super::WriteSession;
use super::claims::Claim;
use crate::compress::{AutoLevel, Codec, CompressionPolicy, Compressor};
use crate::content::ContentFormat;
use crate::error::{Kind, RepoError, Result};
use crate::id::ContentId;
use crate::pack::{Kind as PackKind, PackBuilder};
use crate::time::Time;

/// What became of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The repository, or this session, has it already.
    Known,
    /// It was added; `packed_len` bytes in the pack.
    New {
        /// Bytes in the pack.
        packed_len: u32,
    },
}

/// Stores file data for one thread, through a pack of its own.
pub struct Sealer<'s> {
    session: &'s WriteSession<'s>,
    pack: OpenPack,
    encoder: Encoder,
}

impl<'s> Sealer<'s> {
    pub(super) fn new(session: &'s WriteSession<'_>) -> Self {
        Self {
            session,
            pack: OpenPack::new(PackKind::Data),
            encoder: Encoder::new(),
        }
    }

    /// Stores the unprefixed content `id`, whose plaintext is `data`, unless it is known.
    pub fn store(&mut self, id: ContentId, data: &[u8]) -> Result<Stored> {
        let Claim::Yours { floor } = self.session.claims.claim(self.session.repository(), &id)? else {
            return Ok(Stored::Known);
        };
        let packed_len = self.pack.add(
            self.session,
            id,
            data,
            self.encoder.encode(self.session.compression, data)?,
            floor,
        )?;
        if !self.pack.is_open() {
            self.encoder.step(self.session.uploaders.is_behind());
        }
        Ok(Stored::New { packed_len })
    }

    /// Hands over what is left in the open pack. A sealer dropped without this loses it, and its session must not commit.
    pub fn finish(mut self) -> Result<()> {
        self.pack.close(self.session)
    }
}

/// The metadata pack of a session.
pub(super) struct Metadata {
    pack: OpenPack,
    encoder: Encoder,
}

impl Metadata {
    pub(super) fn new() -> Self {
        Self {
            pack: OpenPack::new(PackKind::Metadata),
            encoder: Encoder::new(),
        }
    }

    pub(super) fn store(
        &mut self,
        session: &WriteSession<'_>,
        id: ContentId,
        data: &[u8],
        compress: bool,
        floor: u64,
    ) -> Result<()> {
        let codec = Codec::ZSTD_FASTEST;
        let policy = if compress {
            CompressionPolicy::Named {
                codec,
                level: codec.level(),
            }
        } else {
            CompressionPolicy::None
        };
        self.pack
            .add(session, id, data, self.encoder.encode(policy, data)?, floor)?;
        Ok(())
    }

    pub(super) fn is_open(&self) -> bool {
        self.pack.is_open()
    }

    pub(super) fn close(&mut self, session: &WriteSession<'_>) -> Result<()> {
        self.pack.close(session)
    }
}

/// What goes into a pack for a content: its plaintext, or a shorter stream.
#[derive(Clone, Copy)]
struct Payload<'a> {
    bytes: &'a [u8],
    /// Header id of the compression; 0 = plaintext.
    compression: u32,
}

/// Compresses one content after the other.
struct Encoder {
    compressor: Compressor,
    level: AutoLevel,
    room: Vec<u8>,
}

impl Encoder {
    fn new() -> Self {
        Self {
            compressor: Compressor::new(),
            level: AutoLevel::START,
            room: Vec::new(),
        }
    }

    fn encode<'a>(&'a mut self, policy: CompressionPolicy, data: &'a [u8]) -> Result<Payload<'a>> {
        if policy == CompressionPolicy::None {
            return Ok(Payload {
                bytes: data,
                compression: 0,
            });
        }
        self.room.resize(data.len(), 0);
        let compressed = self.compressor.apply(policy, self.level, data, &mut self.room)?;
        Ok(match compressed {
            Some(compressed) => Payload {
                bytes: &self.room[..compressed.len],
                compression: compressed.id.get(),
            },
            None => Payload {
                bytes: data,
                compression: 0,
            },
        })
    }

    /// Works harder while packs wait for the storage, and faster while they do not.
    fn step(&mut self, storage_is_behind: bool) {
        self.level = if storage_is_behind {
            self.level.stronger()
        } else {
            self.level.faster()
        };
    }
}

/// A pack being filled, begun with its first content.
struct OpenPack {
    kind: PackKind,
    open: Option<PackBuilder<BlockBuf>>,
}

impl OpenPack {
    fn new(kind: PackKind) -> Self {
        Self { kind, open: None }
    }

    fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Adds content `id` with plaintext `data`, to be stored as `payload`, and returns its length in the pack.
    fn add(
        &mut self,
        session: &WriteSession<'_>,
        id: ContentId,
        data: &[u8],
        payload: Payload<'_>,
        floor: u64,
    ) -> Result<u32> {
        let sealed_len = ContentFormat::sealed_len(payload.bytes.len());
        if self.open.as_ref().is_some_and(|pack| !pack.fits(sealed_len)) {
            self.close(session)?;
        }
        let pack = match &mut self.open {
            Some(pack) => pack,
            None => {
                session.open_packs.fetch_add(1, Ordering::SeqCst);
                self.open.insert(begin(session, self.kind)?)
            }
        };
        let time = Time::now().unix().max(floor);
        let contents = session.repository().contents();
        let original_len =
            u32::try_from(data.len()).map_err(|_| RepoError::new(Kind::InvalidInput, "a content of 4 GiB or more"))?;
        pack.append(id, original_len, payload.compression, time, sealed_len, |out| {
            contents.seal_into(&id, payload.bytes, out)
        })?;
        if pack.is_full() {
            self.close(session)?;
        }
        Ok(u32::try_from(sealed_len).unwrap_or(u32::MAX))
    }

    fn close(&mut self, session: &WriteSession<'_>) -> Result<()> {
        match self.open.take() {
            Some(pack) => {
                let pack = pack.finish(session.repository().contents())?;
                match self.kind {
                    PackKind::Data => session.uploaders.send(pack)?,
                    // A manifest may only be indexed after what it refers to, so its thread waits.
                    PackKind::Metadata => session.uploaders.put_now(pack)?,
                }
                session.open_packs.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Begins a pack in a buffer of the pool; waits for one when all are on their way.
fn begin(session: &WriteSession<'_>, kind: PackKind) -> Result<PackBuilder<BlockBuf>> {
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random)
        .map_err(|_| RepoError::new(Kind::Storage, "the system's random source failed"))?;
    let format = session.repository().format();
    PackBuilder::new(
        session.buffers.take(),
        kind.pack_id(random, &session.id),
        format.max_pack_size,
        format.version,
    )
}
