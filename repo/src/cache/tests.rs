use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use blockio::{CHUNK_BYTES, Cancel, Progress};
use tempfile::TempDir;

use super::*;
use crate::blob::{BlobStore, MemStore, Meter, MeterStore, StoreOp};
use crate::compress::CompressionPolicy;
use crate::format::CreateOptions;
use crate::index::IndexEntry;
use crate::object::BlockAddressTable;
use crate::session::{WriteOptions, WriteSession};
use crate::verify::{VerifyOptions, verify};
use crate::{ContentId, Repository};

const PASSWORD: &str = "password";

/// A repository in memory, and a cache.
struct World {
    store: Arc<MemStore>,
    root: TempDir,
    /// Opened once: deriving the key anew each time would take most of a test's time.
    opened: Repository,
}

impl World {
    fn new() -> Self {
        let store = Arc::new(MemStore::new());
        Repository::create(&*store, PASSWORD, &CreateOptions::default()).expect("create");
        let root = tempfile::tempdir().expect("folder");
        let opened = Repository::open(store.clone(), PASSWORD).expect("open");
        Self { store, root, opened }
    }

    fn options(&self) -> CacheOptions {
        CacheOptions {
            folder: self.root.path().join("cache"),
            limit: LIMIT_DEFAULT,
            metadata: true,
            data: false,
        }
    }

    fn open(&self) -> Repository {
        self.open_with(&self.options())
    }

    fn open_with(&self, options: &CacheOptions) -> Repository {
        let store = self.store.clone();
        self.opened.in_store_cached(store, Some(options)).expect("open")
    }

    fn open_uncached(&self) -> Repository {
        self.opened.in_store(self.store.clone()).expect("open")
    }

    /// Stores a snapshot of one chunk, by a client without a cache: one index blob more.
    fn store(&self, n: u8) {
        store(&self.open_uncached(), n);
    }

    /// Files of the cache of this kind.
    fn files(&self, kind: &str) -> Vec<PathBuf> {
        files(&self.root.path().join("cache"), kind)
    }

    /// What a client with the cache says is what one without says.
    #[track_caller]
    fn check_equal(&self) -> CacheStats {
        let (cached, plain) = (self.open(), self.open_uncached());
        assert_eq!(rows(&cached), rows(&plain));
        let ids = |repository: &Repository| {
            let snapshots = repository.snapshots().expect("snapshots");
            snapshots.iter().map(|s| s.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(&cached), ids(&plain));
        cached.cache().expect("a cache").stats()
    }
}

fn chunk(n: u8) -> Vec<u8> {
    vec![n; CHUNK_BYTES]
}

fn store(repository: &Repository, n: u8) {
    let options = WriteOptions {
        sealers: 1,
        uploads: 1,
        compression: CompressionPolicy::None,
        user: "u".into(),
        host: "h".into(),
        ..WriteOptions::default()
    };
    let session = WriteSession::begin(repository, &options).expect("begin");
    let id = repository.contents().content_id(None, &chunk(n));
    let mut sealer = session.sealer();
    sealer.store(id, &chunk(n)).expect("store");
    sealer.finish().expect("finish");
    let table = BlockAddressTable::uniform(1 << 20, repository.contents().hash_len(), id.hash().to_vec());
    let object = session.put_image_list(&table).expect("list");
    let snapshot = format!(
        r#"{{"id":"","source":{{"host":"h","userName":"u","path":"/{n}"}},"startTime":"2026-01-01T00:00:00Z","endTime":"2026-01-01T00:00:00Z",
            "rootEntry":{{"name":"v","type":"f","size":1048576,"obj":"{object}"}}}}"#
    );
    session
        .commit(&serde_json::from_str(&snapshot).expect("a snapshot"))
        .expect("commit");
}

fn files(root: &Path, kind: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.path().is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found.retain(|path| path.components().any(|part| part.as_os_str() == kind));
    found.sort();
    found
}

fn rows(repository: &Repository) -> Vec<IndexEntry> {
    let (merged, epoch) = repository.index();
    merged.iter(epoch.watermark).collect()
}

/// A content of a prefix, which a list or manifest is in.
fn metadata(repository: &Repository) -> ContentId {
    let rows = rows(repository);
    let found = rows.iter().find(|entry| entry.content.prefix() == Some('x'));
    found.expect("a list").content
}

#[test]
fn a_second_open_fetches_no_index_blob_and_says_the_same() {
    let world = World::new();
    (1..6).for_each(|n| world.store(n));
    assert_eq!(world.check_equal().index_blobs, 0);
    let meter = Meter::new();
    let store = Arc::new(MeterStore::new(world.store.clone(), meter.clone()));
    let repository = Repository::open_cached(store, PASSWORD, Some(&world.options())).expect("open");
    assert_eq!(repository.cache().expect("a cache").stats().index_blobs, 5);
    assert_eq!(rows(&repository), rows(&world.open_uncached()));
    let gets = meter.stats().operations[StoreOp::Get.name()].count;
    assert_eq!(gets, 2, "the format blob and kopia.blobcfg");
}

#[test]
fn one_new_blob_costs_one_fetch_and_many_are_folded_into_few_files() {
    let world = World::new();
    for n in 1..40 {
        world.store(n);
        assert_eq!(world.check_equal().index_blobs, u64::from(n) - 1);
        assert!(world.files(TABLES).len() <= 8, "{:?}", world.files(TABLES));
    }
}

#[test]
fn the_own_flush_is_in_the_cache_as_well() {
    let world = World::new();
    store(&world.open(), 1);
    assert_eq!(world.check_equal().index_blobs, 1);
}

#[test]
fn an_index_blob_that_was_taken_back_is_not_known_any_more() {
    let world = World::new();
    (1..12).for_each(|n| world.store(n));
    world.check_equal();
    let blobs = world.open_uncached().epoch().blobs;
    world.store.delete(&blobs[3].id).expect("delete");
    let entries = rows(&world.open_uncached()).len();
    world.check_equal();
    assert_eq!(rows(&world.open()).len(), entries);
}

#[test]
fn damage_anywhere_in_a_file_is_found_counted_and_removed() {
    let world = World::new();
    (1..4).for_each(|n| world.store(n));
    world.check_equal();
    type Harm = fn(&mut Vec<u8>);
    let harms: [(&str, Harm); 6] = [
        ("flipped in the head", |bytes| bytes[30] ^= 1),
        ("flipped in the note", |bytes| bytes[frame::HEAD_LEN + 1] ^= 1),
        ("flipped at the end", |bytes| {
            *bytes.last_mut().expect("not empty") ^= 0x80
        }),
        ("cut", |bytes| bytes.truncate(bytes.len() - 1)),
        ("empty", Vec::clear),
        ("zeroed, as after a power cut", |bytes| bytes.fill(0)),
    ];
    for (name, harm) in harms {
        for kind in [TABLES, CONTENTS] {
            let path = world.files(kind)[0].clone();
            let whole = fs::read(&path).expect("read");
            let mut bytes = whole.clone();
            harm(&mut bytes);
            fs::write(&path, &bytes).expect("write");
            assert_eq!(world.check_equal().damaged, 1, "{name} in {kind}");
            assert_eq!(fs::read(&path).expect("stored again"), whole, "{name} in {kind}");
            assert_eq!(world.check_equal().damaged, 0, "{name} in {kind}");
        }
    }
}

#[test]
fn files_of_another_repository_and_of_another_name_are_refused() {
    let (world, other) = (World::new(), World::new());
    (1..4).for_each(|n| world.store(n));
    (5..8).for_each(|n| other.store(n));
    world.check_equal();
    other.check_equal();
    // Of another repository, under a name that is looked for.
    for kind in [TABLES, CONTENTS] {
        for (mine, theirs) in world.files(kind).iter().zip(other.files(kind)) {
            fs::copy(theirs, mine).expect("plant");
        }
    }
    assert_eq!(world.check_equal().damaged, 3 + 3, "three tables and three manifests");
    // Of the same repository, under the name of another.
    let files = world.files(CONTENTS);
    fs::copy(&files[0], &files[1]).expect("plant");
    assert_eq!(world.check_equal().damaged, 1);
}

#[test]
fn contents_are_kept_sealed_and_by_policy() {
    let world = World::new();
    world.store(1);
    let plaintext = {
        let repository = world.open();
        let list = repository.read_content(&metadata(&repository)).expect("list");
        let data = repository.contents().content_id(None, &chunk(1));
        assert_eq!(repository.read_content(&data).expect("chunk"), chunk(1));
        assert!(!repository.cache().expect("a cache").contents().keeps(&data));
        list
    };
    let kept = world.files(CONTENTS);
    assert_eq!(kept.len(), 1, "{kept:?}");
    let bytes = fs::read(&kept[0]).expect("read");
    assert!(
        !bytes.windows(16).any(|part| part == &plaintext[..16]),
        "plaintext on the disk"
    );

    let options = CacheOptions {
        data: true,
        metadata: false,
        ..world.options()
    };
    let repository = world.open_with(&options);
    let data = repository.contents().content_id(None, &chunk(1));
    for hits in [0, 1] {
        assert_eq!(repository.read_content(&data).expect("chunk"), chunk(1));
        assert_eq!(repository.cache().expect("a cache").stats().contents, hits);
    }
}

#[test]
fn a_content_stored_anew_in_another_form_is_read_from_the_storage() {
    let world = World::new();
    world.store(1);
    let repository = world.open();
    let id = metadata(&repository);
    let cache = repository.cache().expect("a cache").contents();
    cache.put(&id, &[7; 100]); // as it would be sealed by another client
    let plain = world.open_uncached().read_content(&id).expect("list");
    assert_eq!(repository.read_content(&id).expect("list"), plain);
    assert_eq!(repository.read_content(&id).expect("list"), plain);
    assert_eq!(repository.cache().expect("a cache").stats().contents, 2);
}

#[test]
fn who_looks_for_damage_reads_past_the_cache() {
    let world = World::new();
    (1..3).for_each(|n| world.store(n));
    let cached = world.open();
    cached.snapshots().expect("snapshots");
    let list = metadata(&cached);
    cached.read_content(&list).expect("list");
    let pack = cached.lookup(&list).expect("indexed").pack;
    world.store.delete(&pack).expect("delete");
    let blob = cached.epoch().blobs[0].id.clone();
    let whole = world.store.get(&blob).expect("get");

    let cached = world.open();
    cached.read_content(&list).expect("the cache has it");
    let options = VerifyOptions {
        percent: 0.0,
        workers: 1,
    };
    let snapshots = cached.snapshots().expect("snapshots");
    let report = verify(&cached, &snapshots, &options, &Cancel::new(), &Progress::new()).expect("look");
    assert!(!report.damage.is_empty(), "the lost pack is not seen");
    assert!(cached.cache().is_none());

    let mut flipped = whole;
    flipped[40] ^= 1;
    world.store.put(&blob, &flipped).expect("put");
    let cached = world.open();
    assert!(cached.reload().expect_err("damaged index").is_damage());
    assert!(cached.bypass_cache().expect_err("damaged index").is_damage());
}

#[test]
fn without_a_folder_or_room_everything_goes_on() {
    let world = World::new();
    (1..3).for_each(|n| world.store(n));
    // A file where the folder should be.
    fs::write(world.root.path().join("cache"), b"").expect("write");
    let repository = world.open();
    assert!(repository.cache().is_none());
    assert_eq!(rows(&repository), rows(&world.open_uncached()));
    fs::remove_file(world.root.path().join("cache")).expect("remove");
    // A folder in which nothing can be made.
    let folder = world
        .root
        .path()
        .join("cache")
        .join(hex::encode(&repository.format().unique_id));
    fs::create_dir_all(&folder).expect("make");
    fs::write(folder.join(TABLES), b"").expect("write");
    fs::write(folder.join(CONTENTS), b"").expect("write");
    let stats = world.check_equal();
    assert_eq!(
        (stats.index_blobs, stats.contents, stats.written_bytes, stats.damaged),
        (0, 0, 0, 0)
    );
}

#[test]
fn a_cache_too_small_for_the_index_is_left_alone_by_it() {
    let world = World::new();
    world.store(1);
    let options = CacheOptions {
        limit: 10,
        ..world.options()
    };
    let repository = world.open_with(&options);
    assert_eq!(rows(&repository), rows(&world.open_uncached()));
    repository.snapshots().expect("snapshots");
    assert_eq!(repository.cache().expect("a cache").stats().written_bytes, 0);
}

#[test]
fn clearing_a_cache_in_use_harms_nobody() {
    let world = World::new();
    (1..4).for_each(|n| world.store(n));
    let repository = world.open();
    repository.snapshots().expect("snapshots");
    assert!(clear(&world.options().folder).expect("clear").files > 0);
    assert!(world.files(TABLES).is_empty() && world.files(CONTENTS).is_empty());
    repository.snapshots().expect("snapshots");
    assert!(!world.files(CONTENTS).is_empty(), "it is filled again");
    store(&repository, 9);
    assert!(!world.files(TABLES).is_empty());
    world.check_equal();
}

#[test]
fn only_the_owner_may_look_into_the_cache() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    world.store(1);
    world.check_equal();
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    let table = &world.files(TABLES)[0];
    assert_eq!(mode(table), 0o600);
    assert_eq!(mode(table.parent().expect("folder")), 0o700);
    assert_eq!(mode(&world.options().folder), 0o700);
    assert!(world.options().folder.join(TAG).is_file());
}
