//! A repository in memory, a clock that tests turn, and clients that back tiny volumes up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use blockio::{Cancel, Progress};

use super::super::writer::Writer;
use super::*;
use crate::blob::{BlobStore, MemStore};
use crate::error::Result;
use crate::format::CreateOptions;
use crate::id::{BlobId, ContentId, ManifestId, ObjectId};
use crate::index::IndexEntry;
use crate::manifest::{self, Changes};
use crate::object::{ListBuilder, ListEntry};
use crate::repository::Repository;
use crate::snapshot::Snapshot;
use crate::time::Time;

pub(super) const OWNER: &str = "me@here";
pub(super) const MINUTE: u64 = 60;
pub(super) const HOUR: u64 = 3600;
pub(super) const DAY: u64 = 24 * HOUR;

/// When the world begins: some day in 2027.
const BEGIN: u64 = 1_800_000_000;

/// Bytes of a chunk of a tiny volume.
pub(super) const CHUNK: usize = 1000;

/// A repository, and its blobs.
type Template = (Repository, Vec<(BlobId, Vec<u8>)>);

/// An empty repository with its keys, made once: deriving them takes a tenth of a second.
fn template() -> &'static Template {
    static MADE: OnceLock<Template> = OnceLock::new();
    MADE.get_or_init(|| {
        let store = Arc::new(MemStore::new());
        Repository::create(&*store, "password", &CreateOptions::default()).expect("create");
        let repository = Repository::open(store.clone(), "password").expect("open");
        set_owner(&repository, OWNER).expect("owner");
        let blobs = store.list("").expect("list").into_iter().map(|meta| {
            let bytes = store.get(&meta.id).expect("get");
            (meta.id, bytes)
        });
        (repository, blobs.collect())
    })
}

pub(super) struct World {
    pub(super) store: Arc<MemStore>,
    now: Arc<AtomicU64>,
    /// What every live snapshot must hold.
    pub(super) live: BTreeMap<ManifestId, Vec<u8>>,
}

impl World {
    pub(super) fn new() -> Self {
        let store = Arc::new(MemStore::new());
        let world = Self {
            store,
            now: Arc::new(AtomicU64::new(BEGIN)),
            live: BTreeMap::new(),
        };
        world.pass(0);
        for (id, bytes) in &template().1 {
            world.store.put(id, bytes).expect("put");
        }
        world
    }

    /// A copy that goes on by itself.
    pub(super) fn fork(&self) -> Self {
        let store = Arc::new(MemStore::new());
        for meta in self.store.list("").expect("list") {
            store.set_time(meta.modified);
            store
                .put(&meta.id, &self.store.get(&meta.id).expect("get"))
                .expect("put");
        }
        let fork = Self {
            store,
            now: Arc::new(AtomicU64::new(self.now.load(Ordering::SeqCst))),
            live: self.live.clone(),
        };
        fork.pass(0);
        fork
    }

    /// Lets `seconds` pass, for this host and for the storage.
    pub(super) fn pass(&self, seconds: u64) {
        let now = self.now.fetch_add(seconds, Ordering::SeqCst) + seconds;
        self.store.set_time(SystemTime::UNIX_EPOCH + Duration::from_secs(now));
    }

    pub(super) fn clock(&self) -> Clock {
        let now = self.now.clone();
        Clock::of(move || Time::from_unix(now.load(Ordering::SeqCst)))
    }

    pub(super) fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    /// The repository as a client sees it that opens it now.
    pub(super) fn open(&self) -> Repository {
        self.open_on(self.store.clone())
    }

    pub(super) fn open_on(&self, store: Arc<dyn BlobStore>) -> Repository {
        template().0.in_store(store).expect("open")
    }

    pub(super) fn options(&self, mode: Mode) -> Options {
        Options {
            clock: self.clock(),
            ..Options::new(mode, OWNER)
        }
    }

    /// Maintains with full safety.
    pub(super) fn maintain(&self, mode: Mode) -> Result<Report> {
        self.maintain_with(&self.options(mode))
    }

    pub(super) fn maintain_with(&self, options: &Options) -> Result<Report> {
        run(&self.open(), options, &Cancel::new(), &Progress::new())
    }

    pub(super) fn dry_run(&self, options: &Options) -> Result<Report> {
        plan(&self.open(), options, &Cancel::new(), &Progress::new())
    }

    /// Maintains without margins.
    pub(super) fn maintain_unsafely(&self) -> Result<Report> {
        self.maintain_with(&Options {
            safety: Safety::NONE,
            overrides: Overrides {
                no_snapshots: true,
                delete_many: true,
                ..Overrides::default()
            },
            ..self.options(Mode::Full)
        })
    }

    /// Backs `chunks` up, start to end at one moment.
    pub(super) fn back_up(&mut self, chunks: &[u8]) -> ManifestId {
        let repository = self.open();
        let running = self.begin(&repository, chunks);
        self.commit(&repository, running)
    }

    /// Stores the chunks that `repository`, as it was opened or refreshed last, does not have, and indexes them.
    pub(super) fn begin(&self, repository: &Repository, chunks: &[u8]) -> Running {
        let mut writer = Writer::new(repository, &self.clock(), "client@there").expect("writer");
        let mut put = BTreeSet::new();
        let mut list = ListBuilder::new();
        let mut text = Vec::new();
        for (i, chunk) in chunks.iter().enumerate() {
            let data = vec![*chunk; CHUNK];
            let content = repository.contents().content_id(None, &data);
            if put.insert(content) {
                store_content(repository, &mut writer, content, &data);
            }
            let entry = ListEntry {
                start: (i * CHUNK) as u64,
                len: CHUNK as u64,
                object: ObjectId::direct(content),
            };
            list.push(&entry, |piece| append(&mut text, piece)).expect("push");
        }
        list.finish(|piece| append(&mut text, piece)).expect("finish");
        let content = repository.contents().content_id(Some('x'), &text);
        store_content(repository, &mut writer, content, &text);
        writer.finish().expect("store");
        Running {
            chunks: chunks.to_vec(),
            object: ObjectId::direct(content).indirect(),
        }
    }

    /// A client that dies after its pack: a marker, a pack of chunks that nobody else has, no index.
    pub(super) fn die(&self, chunks: &[u8]) {
        let repository = self.open();
        let faults = Arc::new(crate::blob::FaultStore::new(self.store.clone()));
        let dying = self.open_on(faults.clone());
        let mut writer = Writer::new(&dying, &self.clock(), "dead@there").expect("writer");
        for chunk in chunks {
            let data = vec![*chunk; CHUNK + 1];
            let content = repository.contents().content_id(None, &data);
            store_content(&repository, &mut writer, content, &data);
        }
        faults.cut_after(1);
        writer.finish().expect_err("dead");
    }

    /// Publishes the snapshot.
    pub(super) fn commit(&mut self, repository: &Repository, running: Running) -> ManifestId {
        let now = Time::from_unix(self.now());
        let text = format!(
            r#"{{"id":"","source":{{"host":"h","userName":"u","path":"/v"}},"startTime":"{now}","endTime":"{now}","rootEntry":{{"name":"v","type":"f","size":{},"obj":"{}"}}}}"#,
            running.chunks.len() * CHUNK,
            running.object
        );
        let snapshot: Snapshot = serde_json::from_str(&text).expect("a snapshot");
        let mut changes = Changes::default();
        let id = changes.put(snapshot.labels(), &snapshot).expect("put");
        self.publish(repository, &changes);
        self.live.insert(id, running.chunks);
        id
    }

    /// Deletes a snapshot.
    pub(super) fn delete(&mut self, id: ManifestId) {
        let repository = self.open();
        let manifests = repository.manifests().expect("manifests");
        let mut changes = Changes::default();
        changes.delete(manifests.get(&id).expect("live"));
        self.publish(&repository, &changes);
        self.live.remove(&id);
    }

    /// Enters another owner.
    pub(super) fn set_owner(&self, owner: &str) {
        let repository = self.open();
        let changes = parameters::change_owner(&repository, owner).expect("change");
        self.publish(&repository, &changes);
    }

    pub(super) fn publish(&self, repository: &Repository, changes: &Changes) {
        let mut writer = Writer::new(repository, &self.clock(), "client@there").expect("writer");
        let bytes = changes.to_bytes();
        let content = repository.contents().content_id(Some(manifest::PREFIX), &bytes);
        store_content(repository, &mut writer, content, &bytes);
        writer.finish().expect("store");
    }

    /// Asserts that every live snapshot is listed and holds what it must.
    #[track_caller]
    pub(super) fn check(&self, case: &str) {
        check_on(&self.open(), &self.live, case);
    }

    /// Names of blobs with `prefix`.
    pub(super) fn names(&self, prefix: &str) -> Vec<String> {
        let listing = self.store.list(prefix).expect("list");
        listing.iter().map(|meta| meta.id.to_string()).collect()
    }

    pub(super) fn packs(&self) -> usize {
        self.names("p").len() + self.names("q").len()
    }
}

/// Asserts that `repository` has the snapshots `live`, whole.
#[track_caller]
pub(super) fn check_on(repository: &Repository, live: &BTreeMap<ManifestId, Vec<u8>>, case: &str) {
    let snapshots = repository.snapshots().expect(case);
    let ids: BTreeSet<ManifestId> = snapshots.iter().filter_map(|snapshot| snapshot.id).collect();
    assert_eq!(ids, live.keys().copied().collect(), "{case}: snapshots");
    for snapshot in &snapshots {
        let image = repository.image(snapshot).unwrap_or_else(|e| panic!("{case}: {e}"));
        let chunks = &live[&snapshot.id.expect("read")];
        assert_eq!(image.table.count(), chunks.len(), "{case}");
        for (i, chunk) in chunks.iter().enumerate() {
            let content = image.table.content(i);
            let data = repository
                .read_content(&content)
                .unwrap_or_else(|e| panic!("{case}: chunk {chunk}: {e}"));
            assert_eq!(data, vec![*chunk; CHUNK], "{case}");
        }
    }
}

/// A backup whose contents are stored and whose snapshot is not.
pub(super) struct Running {
    chunks: Vec<u8>,
    object: ObjectId,
}

fn append(text: &mut Vec<u8>, piece: &[u8]) -> Result<()> {
    text.extend_from_slice(piece);
    Ok(())
}

/// Stores a content as every client must: not when it is there and alive, and later than its deletion when it is deleted.
pub(super) fn store_content(repository: &Repository, writer: &mut Writer<'_>, content: ContentId, data: &[u8]) {
    let time = match repository.deleted_at(&content) {
        Some(None) => return,
        Some(Some(deleted)) => deleted,
        None => 0,
    };
    let mut sealed = vec![0; crate::content::ContentFormat::sealed_len(data.len())];
    repository.contents().seal_into(&content, data, &mut sealed);
    let entry = IndexEntry {
        content,
        pack: BlobId::known("p0"),
        offset: 0,
        packed_len: u32::try_from(sealed.len()).expect("small"),
        original_len: u32::try_from(data.len()).expect("small"),
        time,
        deleted: false,
        format_version: 3,
        compression: 0,
    };
    writer.put_sealed(&entry, &sealed).expect("store");
}
