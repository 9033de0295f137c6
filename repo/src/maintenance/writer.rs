//! What maintenance stores: index entries of contents that stay where they are, and packs of contents that move.

use std::time::{Duration, Instant};

use tracing::warn;

use super::clock::Clock;
use super::sessions::PREFIX;
use crate::epoch::IndexWriter;
use crate::error::{Kind, RepoError, Result};
use crate::id::{BlobId, SessionId};
use crate::index::{IndexEntry, build_shards};
use crate::pack::{Kind as PackKind, PackBuilder, buffer_capacity};
use crate::repository::Repository;
use crate::session::Marker;

/// The index of moved contents is stored at least this often, as every writer's: half of Kopia's ten minutes.
const FLUSH_INTERVAL: Duration = Duration::from_secs(300);

/// And at least after so many packs: 1.3 GiB of work, which is what a crash may cost.
const FLUSH_PACKS: usize = 64;

/// One writing session of a maintenance run.
pub(super) struct Writer<'r> {
    repository: &'r Repository,
    clock: Clock,
    session: SessionId,
    /// `user@host` in the marker.
    owner: String,
    /// Left before the first pack.
    marker: Option<BlobId>,
    open: [Option<PackBuilder<Vec<u8>>>; 2],
    /// A buffer that no pack is in.
    spare: Option<Vec<u8>>,
    /// Entries of packs that are stored.
    stored: Vec<IndexEntry>,
    packs: usize,
    last_flush: Instant,
    blobs: Vec<BlobId>,
}

impl<'r> Writer<'r> {
    pub(super) fn new(repository: &'r Repository, clock: &Clock, owner: &str) -> Result<Self> {
        let session = SessionId::new(random::<8>()?, clock.now().unix());
        Ok(Self {
            repository,
            clock: clock.clone(),
            session,
            owner: owner.into(),
            marker: None,
            open: [None, None],
            spare: None,
            stored: Vec::new(),
            packs: 0,
            last_flush: Instant::now(),
            blobs: Vec::new(),
        })
    }

    /// Stores index entries about contents that stay where they are.
    pub(super) fn put_entries(&mut self, entries: Vec<IndexEntry>) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let store = &**self.repository.store();
        let shards = build_shards(entries)?;
        let writer = IndexWriter {
            store,
            contents: self.repository.contents(),
            parameters: &self.repository.format().epoch,
            session: &self.session,
        };
        let mut blobs = writer.write(&shards, None)?;
        if let Err(e) = store.sync() {
            writer.take_back(&mut blobs);
            return Err(e);
        }
        self.blobs.extend(blobs.iter().cloned());
        blobs
            .into_iter()
            .zip(shards)
            .try_for_each(|(blob, shard)| self.repository.add_index(blob, shard))
    }

    /// Copies the `sealed` bytes of a content, which its entry describes, into a new pack.
    pub(super) fn put_sealed(&mut self, entry: &IndexEntry, sealed: &[u8]) -> Result<()> {
        let kind = PackKind::of(&entry.content);
        let slot = usize::from(kind == PackKind::Metadata);
        if self.open[slot].as_ref().is_some_and(|pack| !pack.fits(sealed.len())) {
            self.close(slot)?;
        }
        let mut pack = match self.open[slot].take() {
            Some(pack) => pack,
            None => self.begin(kind)?,
        };
        let time = self.clock.now().unix().max(entry.time.saturating_add(1));
        let appended = pack.append(
            entry.content,
            entry.original_len,
            entry.compression,
            time,
            sealed.len(),
            |out| out.copy_from_slice(sealed),
        );
        let full = pack.is_full();
        self.open[slot] = Some(pack);
        appended?;
        if full {
            self.close(slot)?;
            if self.packs >= FLUSH_PACKS || self.last_flush.elapsed() >= FLUSH_INTERVAL {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, kind: PackKind) -> Result<PackBuilder<Vec<u8>>> {
        if self.marker.is_none() {
            self.marker = Some(self.put_marker()?);
        }
        let format = self.repository.format();
        let capacity = buffer_capacity(format.max_pack_size);
        let buf = self.spare.take().unwrap_or_else(|| vec![0; capacity]);
        let id = kind.pack_id(random()?, &self.session);
        PackBuilder::new(buf, id, format.max_pack_size, format.version)
    }

    /// Leaves the marker that keeps other maintenance away from this session's packs.
    fn put_marker(&self) -> Result<BlobId> {
        let now = self.clock.now();
        let (user, host) = self.owner.split_once('@').unwrap_or((&self.owner, ""));
        let marker = Marker {
            id: self.session.to_string(),
            start: now,
            checkpoint: now,
            username: user.into(),
            hostname: host.into(),
        };
        let text = crate::json::to_vec(&marker);
        let contents = self.repository.contents();
        let (blob, sealed) = contents.seal_blob(PREFIX, Some(self.session.as_str()), &text)?;
        let store = self.repository.store();
        if let Err(e) = store.put(&blob, &sealed) {
            // It may have come to pass, or by half: a marker that cannot be read stops Kopia from deleting anything.
            let _ = store.delete(&blob);
            return Err(e);
        }
        Ok(blob)
    }

    fn close(&mut self, slot: usize) -> Result<()> {
        let Some(pack) = self.open[slot].take() else {
            return Ok(());
        };
        let pack = pack.finish(self.repository.contents())?;
        // Deletions alone make entries but no pack.
        if pack.len > 0 {
            self.repository.store().put(&pack.id, &pack.buf[..pack.len])?;
            self.packs += 1;
        }
        self.stored.extend(pack.entries);
        self.spare = Some(pack.buf);
        Ok(())
    }

    /// Makes what is stored durable, then known.
    fn flush(&mut self) -> Result<()> {
        if !self.stored.is_empty() {
            self.repository.store().sync()?;
            let entries = std::mem::take(&mut self.stored);
            self.put_entries(entries)?;
        }
        self.packs = 0;
        self.last_flush = Instant::now();
        Ok(())
    }

    /// Ends the session: everything is stored and known. Gives the index blobs written.
    pub(super) fn finish(mut self) -> Result<Vec<BlobId>> {
        let stored = (0..self.open.len()).try_for_each(|slot| self.close(slot));
        let stored = stored.and_then(|()| self.flush());
        // Also after a failure: nobody will index the packs that the marker guards.
        if let Some(marker) = &self.marker {
            let store = self.repository.store();
            if let Err(e) = store.delete(marker).and_then(|()| store.sync()) {
                warn!(blob = %marker, error = %e, "the session marker stays; maintenance passes over it after 96 hours");
            }
        }
        stored.map(|()| self.blobs)
    }
}

/// `N` bytes nobody can foresee.
fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| RepoError::new(Kind::Storage, "the system's random source failed"))?;
    Ok(bytes)
}
