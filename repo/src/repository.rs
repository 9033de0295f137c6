//! An opened repository: its parameters, its index, and reading by name.

use std::io::Read;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::blob::BlobStore;
use crate::cache::{Cache, CacheOptions};
use crate::content::ContentFormat;
use crate::crypto::Kernel;
use crate::directory::{Directory, DirectoryEntry, EntryKind};
use crate::epoch::EpochState;
use crate::error::{Kind, RepoError, Result};
use crate::format::{self, EpochParameters, Format, FormatBlob};
use crate::id::{BlobId, ContentId, ObjectId};
use crate::index::{IndexEntry, Merged, Table};
use crate::manifest::{self, Manifests};
use crate::object::{BlockAddressTable, LoadedList, ObjectReader, StoredList, TableBuilder, parse_list};
use crate::snapshot::Snapshot;
use crate::time::Time;
use crate::view::{Origin, View};

use retention::{locked, object_lock, read_blobcfg};

/// A job that goes on looks at format blob and index again after this time. Clients may rely on a format blob for 15
/// minutes (kopia, repo/format/format_manager.go); 12 leave room for the reading itself.
const LOOK_INTERVAL: Duration = Duration::from_secs(12 * 60);

/// Deepest nest of lists inside lists.
const NESTING_MAX: u32 = 16;

/// Largest directory or other metadata object read whole, in bytes. A folder of a million files takes about 250 MiB.
const METADATA_LEN_MAX: u64 = 512 << 20;

/// A repository opened with its password.
pub struct Repository {
    store: Arc<dyn BlobStore>,
    format: Format,
    contents: ContentFormat,
    /// Taken from the format blob whenever it is read again.
    epoch_parameters: RwLock<EpochParameters>,
    view: RwLock<View>,
    /// When format blob and index were last read.
    looked: Mutex<Instant>,
    /// When the format blob was last read for a job that keeps the index it began with.
    asked: Mutex<Instant>,
    zero: OnceLock<ContentId>,
    cache: Option<Cache>,
    is_cache_bypassed: AtomicBool,
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
    /// Its list, for an increment to take parts of it over; nothing when it is not as we write lists.
    pub list: Option<StoredList>,
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
        let lock = options.retention.map(object_lock);
        let put = |id, bytes: Vec<u8>| store.put_shared(&BlobId::known(id), bytes.into(), lock.as_ref());
        put(format::BLOBCFG_ID, made.blobcfg)?;
        put(format::REPOSITORY_ID, made.repository)?;
        store.sync()
    }

    /// Opens the repository in `store`: derives its keys and reads its index.
    pub fn open(store: Arc<dyn BlobStore>, password: &str) -> Result<Self> {
        Self::open_cached(store, password, None)
    }

    /// The same with a cache on the local disk.
    pub fn open_cached(store: Arc<dyn BlobStore>, password: &str, cache: Option<&CacheOptions>) -> Result<Self> {
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
        let looked = Instant::now();
        let blobcfg = read_blobcfg(&*store)?;
        let named = |e: RepoError| e.context(format!("repository in {place}"));
        let store = locked(store, blobcfg.as_ref(), &format).map_err(named)?;
        let cache = cache.and_then(|options| Cache::open(options, &format));
        let origin = Origin {
            store: &*store,
            contents: &contents,
            epochs: format.has_epochs.then_some(format.epoch),
            cache: cache.as_ref(),
        };
        let view = View::load(&origin).map_err(named)?;
        Ok(Self {
            store,
            contents,
            epoch_parameters: RwLock::new(format.epoch),
            format,
            view: RwLock::new(view),
            looked: Mutex::new(looked),
            asked: Mutex::new(looked),
            zero: OnceLock::new(),
            cache,
            is_cache_bypassed: AtomicBool::new(false),
        })
    }

    /// The same repository in another store, or as another client sees it: opened without asking for the password again.
    #[cfg(test)]
    pub(crate) fn in_store(&self, store: Arc<dyn BlobStore>) -> Result<Self> {
        self.in_store_cached(store, None)
    }

    /// The same with a cache.
    #[cfg(test)]
    pub(crate) fn in_store_cached(&self, store: Arc<dyn BlobStore>, cache: Option<&CacheOptions>) -> Result<Self> {
        let cache = cache.and_then(|options| Cache::open(options, &self.format));
        let view = View::load(&Origin {
            store: &*store,
            ..self.origin(cache.as_ref())
        })?;
        Ok(Self {
            store,
            format: self.format.clone(),
            contents: self.contents.clone(),
            epoch_parameters: RwLock::new(self.format.epoch),
            view: RwLock::new(view),
            looked: Mutex::new(Instant::now()),
            asked: Mutex::new(Instant::now()),
            zero: OnceLock::new(),
            cache,
            is_cache_bypassed: AtomicBool::new(false),
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

    /// The index as of the last look, sharing its tables, and the blobs it is made of.
    pub(crate) fn index(&self) -> (Merged, EpochState) {
        let view = self.view();
        (view.merged.clone(), view.epoch.clone())
    }

    /// Deletions up to `watermark` are final from here on, as maintenance has just made them.
    pub(crate) fn moved_watermark(&self, watermark: u64) {
        let mut view = self.view.write().expect("no panic while held");
        view.epoch.watermark = view.epoch.watermark.max(Some(watermark));
    }

    /// Reads the index again, so that what other clients stored is seen.
    pub fn refresh(&self) -> Result<()> {
        let before = self.view().clone(); // shares its tables
        let fresh = before.refreshed(&self.origin(self.cache()))?;
        *self.view.write().expect("no panic while held") = fresh;
        Ok(())
    }

    /// Reads the whole index again, whatever is known of it: for those who look for damage in it, or rely on it to delete.
    pub fn reload(&self) -> Result<()> {
        let fresh = View::load(&self.origin(None))?;
        *self.view.write().expect("no panic while held") = fresh;
        Ok(())
    }

    /// What a long job calls again and again, cheap most of the time: reads format blob and index again when the last look
    /// is 12 minutes ago, so that an upgrade lock, other clients' contents and deletions are seen.
    ///
    /// # Errors
    /// `Locked` when an upgrade began, `WrongPassword` when the password was changed, `Unsupported` when parameters changed
    /// that an open repository cannot follow: the job must end. Besides what reading fails with.
    pub fn keep_fresh(&self) -> Result<()> {
        let Ok(mut looked) = self.looked.try_lock() else {
            return Ok(()); // another thread is at it
        };
        if looked.elapsed() < LOOK_INTERVAL {
            return Ok(());
        }
        let began = Instant::now();
        self.look_again()?;
        *looked = began;
        Ok(())
    }

    /// [`keep_fresh`](Self::keep_fresh) for a long job that rests on the index it began with, such as a verification or a
    /// maintenance run: only the format blob is read again.
    ///
    /// # Errors
    /// As [`keep_fresh`](Self::keep_fresh).
    pub fn keep_permitted(&self) -> Result<()> {
        let Ok(mut asked) = self.asked.try_lock() else {
            return Ok(()); // another thread is at it
        };
        if asked.elapsed() < LOOK_INTERVAL {
            return Ok(());
        }
        let began = Instant::now();
        self.read_format_again()?;
        *asked = began;
        Ok(())
    }

    /// Reads format blob and index again.
    fn look_again(&self) -> Result<()> {
        self.read_format_again()?;
        self.refresh()
    }

    fn read_format_again(&self) -> Result<()> {
        let place = self.store.place();
        let bytes = self.store.get(&BlobId::known(format::REPOSITORY_ID))?;
        let fresh = self
            .format
            .read_again(&bytes)
            .and_then(|fresh| fresh.check_lock(Time::now().unix()).map(|()| fresh))
            .map_err(|e| e.context(format!("repository in {place}, read again while in use")))?;
        *self.epoch_parameters.write().expect("no panic while held") = fresh.epoch;
        Ok(())
    }

    /// Epoch parameters, as of the last look at the format blob.
    pub(crate) fn epoch_parameters(&self) -> EpochParameters {
        *self.epoch_parameters.read().expect("no panic while held")
    }

    /// Adds this client's own index blob `id` to the view, given its plaintext.
    pub(crate) fn add_index(&self, id: BlobId, plaintext: Vec<u8>) -> Result<()> {
        let table = Table::parse(plaintext)?;
        self.view.write().expect("no panic while held").add(id, table)?;
        if let Some(cache) = self.cache() {
            let (merged, _) = self.index();
            cache.keep_tables(&merged);
        }
        Ok(())
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

    /// The pieces of an object, lists resolved.
    pub fn table(&self, object: &ObjectId) -> Result<BlockAddressTable> {
        Ok(self.load_list(object)?.table)
    }

    /// Adds the pieces of `object`, which is `len` bytes long as far as the list above it says.
    pub(crate) fn add_pieces(
        &self,
        object: &ObjectId,
        len: Option<u64>,
        depth: u32,
        builder: &mut TableBuilder,
    ) -> Result<()> {
        if depth > NESTING_MAX {
            return Err(RepoError::corrupt(format!(
                "object {object} is nested more than {NESTING_MAX} lists deep"
            )));
        }
        let before = builder.len();
        match object.list() {
            None if object.compressed => {
                // Only the stream knows how long it is, unless a list does.
                let len = match len {
                    Some(len) => len,
                    None => self.read_compressed(&object.content, u64::MAX)?.len() as u64,
                };
                builder.push_compressed(len, &object.content)?;
            }
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
                self.add_list(object, ObjectReader::new(self, &pieces), depth, builder)?;
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

    /// Adds the pieces that the list of `object` names, whose JSON is `text`.
    pub(crate) fn add_list(
        &self,
        object: &ObjectId,
        text: impl Read,
        depth: u32,
        builder: &mut TableBuilder,
    ) -> Result<()> {
        let before = builder.len();
        parse_list(object, text, &mut |entry| {
            let expect = before + entry.start;
            if builder.len() != expect {
                return Err(RepoError::corrupt(format!(
                    "list {object} reaches {} where byte {expect} begins",
                    builder.len()
                )));
            }
            self.add_pieces(&entry.object, Some(entry.len), depth + 1, builder)
        })
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
        let strict = &mut |_: &ContentId, e| Err(e);
        match self.try_manifests(strict) {
            Err(e) if e.is_not_found() || e.is_damage() => {
                self.refresh()?;
                self.try_manifests(strict)
            }
            other => other,
        }
    }

    /// Reads every manifest content; `failed` decides about one that cannot be read.
    pub(crate) fn try_manifests(
        &self,
        failed: &mut dyn FnMut(&ContentId, RepoError) -> Result<()>,
    ) -> Result<Manifests> {
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
            let plaintext = self.read_entry(&entry).map_err(|e| lost_pack(e, &entry));
            let added = plaintext.and_then(|plaintext| manifests.add(&entry.content, &plaintext));
            added.or_else(|e| failed(&entry.content, e))?;
        }
        Ok(manifests)
    }

    /// All snapshots, oldest first.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let manifests = self.manifests()?;
        let found = manifests.find(&[("type", Snapshot::TYPE)]);
        let parsed = found.into_iter().map(Snapshot::parse);
        let mut snapshots = parsed.collect::<Result<Vec<_>>>()?;
        snapshots.sort_by_key(|s| (s.start, s.id));
        Ok(snapshots)
    }

    /// The one file of `snapshot`: its root, or the only entry of its root folder.
    pub fn image(&self, snapshot: &Snapshot) -> Result<Image> {
        let file = self.image_entry(snapshot)?;
        let LoadedList { table, list } = self.load_list(&file.object)?;
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
            list,
            size,
        })
    }

    pub(crate) fn image_entry(&self, snapshot: &Snapshot) -> Result<DirectoryEntry> {
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
                            "the snapshot is a folder of {count} entries, not one volume; `blockferry ls` lists what is in it, `blockferry cp` and `cat` copy it out"
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

mod cached;
mod retention;

#[cfg(test)]
mod tests;
