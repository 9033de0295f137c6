//! An opened repository: its parameters, its index, and reading by name.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use tracing::{debug, warn};

use crate::blob::{BlobStore, READ_SLACK};
use crate::content::ContentFormat;
use crate::crypto::Kernel;
use crate::directory::{Directory, DirectoryEntry, EntryKind};
use crate::epoch::{self, EpochState};
use crate::error::{Kind, RepoError, Result};
use crate::format::{self, Format, FormatBlob};
use crate::id::{BlobId, ContentId, ObjectId};
use crate::index::{IndexEntry, Merged, Table};
use crate::manifest::{self, Manifests};
use crate::object::{BlockAddressTable, TableBuilder, parse_list};
use crate::snapshot::Snapshot;
use crate::time::Time;

/// Tries to read an index whose blobs vanish under the reader, as a compaction by another client makes them.
const INDEX_TRIES: u32 = 10;

/// Wait before the second try; it doubles up to a minute in all, as Kopia's own reader does.
const INDEX_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Deepest nest of lists inside lists.
const NESTING_MAX: u32 = 16;

/// Largest directory or other metadata object read whole, in bytes. A folder of a million files takes about 250 MiB.
const METADATA_LEN_MAX: u64 = 512 << 20;

/// A repository opened with its password.
pub struct Repository {
    store: Arc<dyn BlobStore>,
    format: Format,
    contents: ContentFormat,
    view: RwLock<View>,
    zero: OnceLock<ContentId>,
}

/// What is known of the index.
struct View {
    merged: Merged,
    epoch: EpochState,
}

/// An image in a snapshot: its pieces and its true size.
#[derive(Clone, Debug)]
pub struct Image {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// The file's object.
    pub object: ObjectId,
    /// Its pieces. They may go past `size` (padding).
    pub table: BlockAddressTable,
    /// True size of the volume in bytes.
    pub size: u64,
}

impl Repository {
    /// Makes a repository in the empty `store`.
    pub fn create(store: &dyn BlobStore, password: &str, options: &format::CreateOptions) -> Result<()> {
        if let Some(blob) = store.list("")?.first() {
            let what = format!(
                "{} already holds blob {}; a new repository needs an empty place",
                store.place(),
                blob.id
            );
            return Err(RepoError::new(Kind::AlreadyExists, what));
        }
        let made = format::create(password, options)?;
        store.put(&BlobId::known(format::BLOBCFG_ID), &made.blobcfg)?;
        store.put(&BlobId::known(format::REPOSITORY_ID), &made.repository)?;
        store.sync()
    }

    /// Opens the repository in `store`: derives its keys and reads its index.
    pub fn open(store: Arc<dyn BlobStore>, password: &str) -> Result<Self> {
        let blob = store
            .get(&BlobId::known(format::REPOSITORY_ID))
            .map_err(|e| match e.kind() {
                Kind::NotFound => RepoError::new(
                    Kind::NotARepository,
                    format!(
                        "no Kopia repository in {} (it has no {})",
                        store.place(),
                        format::REPOSITORY_ID
                    ),
                )
                .because(e),
                _ => e,
            })?;
        let place = store.place();
        let format = FormatBlob::parse(&blob)
            .and_then(|blob| blob.open(password))
            .map_err(|e| e.context(format!("repository in {place}")))?;
        format
            .check_lock(Time::now().unix())
            .map_err(|e| e.context(format!("repository in {place}")))?;
        if !format.ignored_features.is_empty() {
            warn!(features = ?format.ignored_features, "the repository uses features this version does not know and may pass over");
        }
        for feature in &format.ignored_features {
            warn!(repository = %place, feature, "the repository asks for a feature that is not known to this version; it may be passed over");
        }
        let contents = ContentFormat::new(&format)?;
        let view = View::load(&*store, &format, &contents)?;
        Ok(Self {
            store,
            format,
            contents,
            view: RwLock::new(view),
            zero: OnceLock::new(),
        })
    }

    /// The same repository, hashing on another kernel than the best this CPU has: for measurements.
    ///
    /// # Errors
    /// `Unsupported` when this CPU does not have the kernel.
    pub fn with_hash_kernel(self, kernel: Kernel) -> Result<Self> {
        let contents = self.contents.with_kernel(kernel)?;
        Ok(Self { contents, ..self })
    }

    /// Where the blobs are.
    pub fn store(&self) -> &Arc<dyn BlobStore> {
        &self.store
    }

    /// Parameters.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Hashing and encryption of contents.
    pub fn contents(&self) -> &ContentFormat {
        &self.contents
    }

    /// Index blobs in force, and the epoch, as of the last look.
    pub fn epoch(&self) -> EpochState {
        self.view().epoch.clone()
    }

    /// Rows in the index blobs: a content that was stored, deleted or moved again has several.
    pub fn content_count(&self) -> u64 {
        self.view().merged.len() as u64
    }

    fn view(&self) -> std::sync::RwLockReadGuard<'_, View> {
        self.view.read().expect("no panic while held")
    }

    /// Reads the index again, so that what other clients stored is seen.
    pub fn refresh(&self) -> Result<()> {
        let fresh = View::load(&*self.store, &self.format, &self.contents)?;
        *self.view.write().expect("no panic while held") = fresh;
        Ok(())
    }

    /// Adds this client's own index to the view, given the plaintext of its blob.
    pub(crate) fn add_index(&self, plaintext: Vec<u8>) -> Result<()> {
        let table = Table::parse(plaintext)?;
        let mut view = self.view.write().expect("no panic while held");
        view.merged.add(table)
    }

    /// The index entry of a content. A deleted one is readable as long as it is above the watermark.
    pub fn lookup(&self, id: &ContentId) -> Option<IndexEntry> {
        let view = self.view();
        view.merged.lookup(id, view.epoch.watermark)
    }

    /// Whether the index knows a content: `None` when not, `Some(None)` when it is alive, else the time of its deletion in
    /// unix seconds. Copies nothing, for who asks once a chunk.
    pub fn deleted_at(&self, id: &ContentId) -> Option<Option<u64>> {
        let view = self.view();
        let entry = view.merged.find(id, view.epoch.watermark)?;
        Some(entry.deleted.then_some(entry.time))
    }

    /// Calls `each` with the entry of every content whose prefix byte is `prefix` (0 for none).
    pub fn each_content(&self, prefix: u8, each: &mut dyn FnMut(IndexEntry) -> Result<()>) -> Result<()> {
        let view = self.view();
        view.merged.iter_prefix(prefix, view.epoch.watermark).try_for_each(each)
    }

    /// Id of the content that holds `len` zeros, for the chunk length computed once.
    pub fn zero_content(&self) -> ContentId {
        *self
            .zero
            .get_or_init(|| self.contents.content_id(None, &vec![0; blockio::CHUNK_BYTES]))
    }

    /// The plaintext of a content. When its pack is gone the index is read again: a rewrite may have moved it.
    pub fn read_content(&self, id: &ContentId) -> Result<Vec<u8>> {
        let missing = || RepoError::corrupt(format!("content {id} is not in the index of {}", self.store.place()));
        let entry = match self.lookup(id) {
            Some(entry) => entry,
            None => {
                self.refresh()?;
                self.lookup(id).ok_or_else(missing)?
            }
        };
        match self.read_entry(&entry) {
            Err(e) if e.is_not_found() => {
                self.refresh()?;
                let entry = self.lookup(id).ok_or_else(missing)?;
                self.read_entry(&entry).map_err(|e| lost_pack(e, &entry))
            }
            other => other,
        }
    }

    fn read_entry(&self, entry: &IndexEntry) -> Result<Vec<u8>> {
        let start = u64::from(entry.offset);
        let range = start..start + u64::from(entry.packed_len);
        let mut buf = vec![0; entry.packed_len as usize + 2 * READ_SLACK];
        let at = self.store.read_range(&entry.pack, range, &mut buf)?;
        self.contents.unseal(entry, &buf[at])
    }

    /// Reads a range of a pack into `buf` as [`BlobStore::read_range`] does. A pack that is gone is damage.
    pub fn read_pack(&self, pack: &BlobId, range: Range<u64>, buf: &mut [u8]) -> Result<Range<usize>> {
        self.store
            .read_range(pack, range, buf)
            .map_err(|e| match e.is_not_found() {
                true => RepoError::corrupt(format!("pack {pack} is missing from {}", self.store.place())).because(e),
                false => e,
            })
    }

    /// How far the storage's clock is ahead of this host's at least, in milliseconds: the time of the newest blob, when
    /// that is yet to come here. A clock that is behind shows only when something is written, as a session does first.
    pub fn clock_ahead_ms(&self) -> Result<u64> {
        let newest = self.store.list("")?.into_iter().map(|blob| blob.modified).max();
        let ahead = newest
            .and_then(|time| time.duration_since(std::time::SystemTime::now()).ok())
            .unwrap_or_default();
        Ok(u64::try_from(ahead.as_millis()).unwrap_or(u64::MAX))
    }

    /// The pieces of an object, lists resolved.
    pub fn table(&self, object: &ObjectId) -> Result<BlockAddressTable> {
        let mut builder = TableBuilder::new(self.contents.hash_len());
        self.add_pieces(object, None, 0, &mut builder)?;
        Ok(builder.finish())
    }

    /// Adds the pieces of `object`, which is `len` bytes long as far as the list above it says.
    fn add_pieces(&self, object: &ObjectId, len: Option<u64>, depth: u32, builder: &mut TableBuilder) -> Result<()> {
        if depth > NESTING_MAX {
            return Err(RepoError::corrupt(format!(
                "object {object} is nested more than {NESTING_MAX} lists deep"
            )));
        }
        if object.compressed {
            let what = format!(
                "object {object} is compressed as a whole, as repositories of format version 1 do; this version does not read it"
            );
            return Err(RepoError::new(Kind::Unsupported, what));
        }
        let before = builder.len();
        match object.list() {
            None => {
                let len = match len {
                    Some(len) => len,
                    None => {
                        let entry = self.lookup(&object.content);
                        let missing = || RepoError::corrupt(format!("content {} is not in the index", object.content));
                        u64::from(entry.ok_or_else(missing)?.original_len)
                    }
                };
                builder.push(len, &object.content)?;
            }
            Some(list) => {
                let pieces = self.table(&list)?;
                let text = ObjectReader::new(self, &pieces);
                parse_list(object, text, &mut |entry| {
                    let expect = before + entry.start;
                    if builder.len() != expect {
                        return Err(RepoError::corrupt(format!(
                            "list {object} reaches {} where byte {expect} begins",
                            builder.len()
                        )));
                    }
                    self.add_pieces(&entry.object, Some(entry.len), depth + 1, builder)
                })?;
            }
        }
        match len {
            Some(len) if builder.len() - before != len => Err(RepoError::corrupt(format!(
                "object {object} has {} bytes, its list says {len}",
                builder.len() - before
            ))),
            _ => Ok(()),
        }
    }

    /// A metadata object, whole.
    pub fn read_object(&self, object: &ObjectId) -> Result<Vec<u8>> {
        let table = self.table(object)?;
        if table.len() > METADATA_LEN_MAX {
            return Err(RepoError::corrupt(format!(
                "object {object} has {} bytes, more than metadata may have",
                table.len()
            )));
        }
        let mut bytes = Vec::new();
        ObjectReader::new(self, &table)
            .read_to_end(&mut bytes)
            .map_err(|e| RepoError::from_read(e, &format!("read object {object}")))?;
        Ok(bytes)
    }

    /// A directory object.
    pub fn read_directory(&self, object: &ObjectId) -> Result<Directory> {
        Directory::parse(object, &self.read_object(object)?)
    }

    /// All live manifests. When one vanishes while they are read, another client is compacting them: read again.
    pub fn manifests(&self) -> Result<Manifests> {
        match self.try_manifests() {
            Err(e) if e.is_not_found() || e.is_damage() => {
                self.refresh()?;
                self.try_manifests()
            }
            other => other,
        }
    }

    fn try_manifests(&self) -> Result<Manifests> {
        let mut ids = Vec::new();
        let prefix = u8::try_from(manifest::PREFIX).expect("ASCII");
        self.each_content(prefix, &mut |entry| {
            if !entry.deleted {
                ids.push(entry);
            }
            Ok(())
        })?;
        let mut manifests = Manifests::default();
        for entry in ids {
            let plaintext = self.read_entry(&entry).map_err(|e| lost_pack(e, &entry))?;
            manifests.add(&entry.content, &plaintext)?;
        }
        Ok(manifests)
    }

    /// All snapshots, oldest first.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let manifests = self.manifests()?;
        let found = manifests.find(&[("type", Snapshot::TYPE)]);
        let parsed = found.into_iter().map(|manifest| {
            let snapshot: Result<Snapshot, _> = serde_json::from_str(manifest.data.get());
            let mut snapshot = snapshot.map_err(|e| {
                RepoError::corrupt(format!("snapshot manifest {} is not the expected JSON", manifest.id)).because(e)
            })?;
            snapshot.id = Some(manifest.id);
            Ok(snapshot)
        });
        let mut snapshots = parsed.collect::<Result<Vec<_>>>()?;
        snapshots.sort_by_key(|s| (s.start, s.id));
        Ok(snapshots)
    }

    /// The one file of `snapshot`: its root, or the only entry of its root folder.
    pub fn image(&self, snapshot: &Snapshot) -> Result<Image> {
        let file = self.image_entry(snapshot)?;
        let table = self.table(&file.object)?;
        let size = match snapshot.tagged_size()? {
            None if file.size != 0 && file.size != table.len() => {
                let what = format!(
                    "file {:?} has {} bytes by its entry and {} by its list",
                    file.name,
                    file.size,
                    table.len()
                );
                return Err(RepoError::corrupt(what));
            }
            None => table.len(),
            Some(size) if size > table.len() => {
                return Err(RepoError::corrupt(format!(
                    "a volume of {size} bytes in an object of {} bytes",
                    table.len()
                )));
            }
            Some(size) => size,
        };
        Ok(Image {
            snapshot: snapshot.clone(),
            object: file.object,
            table,
            size,
        })
    }

    fn image_entry(&self, snapshot: &Snapshot) -> Result<DirectoryEntry> {
        let root = snapshot
            .root
            .as_ref()
            .ok_or_else(|| RepoError::new(Kind::InvalidInput, "the snapshot has no root"))?;
        match root.kind {
            EntryKind::File => Ok(root.clone()),
            EntryKind::Directory => {
                let mut entries = self.read_directory(&root.object)?.entries;
                match (entries.len(), entries.pop()) {
                    (1, Some(entry)) if entry.kind == EntryKind::File => Ok(entry),
                    (count, _) => {
                        let what = format!(
                            "the snapshot is a folder of {count} entries, not one volume; `blockferry show` lists what it is"
                        );
                        Err(RepoError::new(Kind::InvalidInput, what))
                    }
                }
            }
            _ => Err(RepoError::new(
                Kind::InvalidInput,
                "the root of the snapshot is neither a file nor a folder",
            )),
        }
    }

    /// Blobs by kind: count and bytes, for status.
    pub fn blob_totals(&self) -> Result<BTreeMap<&'static str, (u64, u64)>> {
        let mut totals = BTreeMap::new();
        for blob in self.store.list("")? {
            let kind = match blob.id.as_str().as_bytes() {
                [b'p', ..] => "data packs",
                [b'q', ..] => "metadata packs",
                [b'x' | b'n', ..] => "index",
                [b's', ..] => "sessions",
                [b'_', ..] => "logs",
                _ => "parameters",
            };
            let total: &mut (u64, u64) = totals.entry(kind).or_default();
            *total = (total.0 + 1, total.1 + blob.len);
        }
        Ok(totals)
    }
}

/// A pack that is gone though the index names it is damage, not an absent thing the caller asked for.
fn lost_pack(e: RepoError, entry: &IndexEntry) -> RepoError {
    match e.is_not_found() {
        true => RepoError::corrupt(format!(
            "pack {} is missing; content {} was in it",
            entry.pack, entry.content
        ))
        .because(e),
        false => e,
    }
}

impl View {
    fn load(store: &dyn BlobStore, format: &Format, contents: &ContentFormat) -> Result<Self> {
        let mut delay = INDEX_RETRY_DELAY;
        for tried in 1.. {
            match Self::try_load(store, format, contents) {
                Err(e) if e.is_not_found() && tried < INDEX_TRIES => {
                    debug!(error = %e, tried, "an index blob vanished while the index was read");
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "another client's compaction is awaited, which sends no signal"
                    )]
                    std::thread::sleep(delay);
                    delay *= 2;
                }
                Err(e) if e.is_not_found() => {
                    return Err(RepoError::corrupt("index blobs named by the listing are missing").because(e));
                }
                other => return other,
            }
        }
        unreachable!("the loop ends by returning")
    }

    fn try_load(store: &dyn BlobStore, format: &Format, contents: &ContentFormat) -> Result<Self> {
        let epoch = epoch::read(store, &format.epoch)?;
        let mut tables = Vec::with_capacity(epoch.blobs.len());
        for meta in &epoch.blobs {
            let sealed = store.get(&meta.id)?;
            let plaintext = contents.open_blob(&meta.id, &sealed)?;
            drop(sealed);
            tables.push(Table::parse(plaintext).map_err(|e| e.context(format!("index blob {}", meta.id)))?);
        }
        Ok(Self {
            merged: Merged::new(tables)?,
            epoch,
        })
    }
}

/// Reads an object front to back, content by content.
struct ObjectReader<'a> {
    repository: &'a Repository,
    table: &'a BlockAddressTable,
    next: usize,
    piece: Vec<u8>,
    left: Range<usize>,
}

impl<'a> ObjectReader<'a> {
    fn new(repository: &'a Repository, table: &'a BlockAddressTable) -> Self {
        Self {
            repository,
            table,
            next: 0,
            piece: Vec::new(),
            left: 0..0,
        }
    }
}

impl Read for ObjectReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.left.is_empty() {
            if self.next == self.table.count() {
                return Ok(0);
            }
            let entry = self.table.entry(self.next);
            self.piece = self
                .repository
                .read_content(&entry.content)
                .map_err(std::io::Error::other)?;
            if self.piece.len() as u64 != entry.extent.len {
                let what = format!(
                    "content {} has {} bytes, its list says {}",
                    entry.content,
                    self.piece.len(),
                    entry.extent.len
                );
                return Err(std::io::Error::other(RepoError::corrupt(what)));
            }
            self.left = 0..self.piece.len();
            self.next += 1;
        }
        let count = buf.len().min(self.left.len());
        buf[..count].copy_from_slice(&self.piece[self.left.start..self.left.start + count]);
        self.left.start += count;
        Ok(count)
    }
}
