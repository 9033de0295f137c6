use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::blob::{FaultStore, MemStore, StoreOp};
use crate::format::{CreateOptions, create};

/// A store in memory that has a name, shows its blobs older than they are, and may lose one when another is read.
struct Named {
    name: &'static str,
    blobs: MemStore,
    age: Duration,
    /// When the first blob is read, the second is replaced by the third.
    change: Mutex<Option<[BlobId; 3]>>,
}

impl Named {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            blobs: MemStore::new(),
            age: Duration::ZERO,
            change: Mutex::default(),
        }
    }

    fn aged(&self, mut blob: BlobMeta) -> BlobMeta {
        blob.modified -= self.age;
        blob
    }
}

impl BlobStore for Named {
    fn place(&self) -> String {
        self.name.into()
    }
    fn put(&self, id: &BlobId, bytes: &[u8]) -> Result<()> {
        self.blobs.put(id, bytes)
    }
    fn get(&self, id: &BlobId) -> Result<Vec<u8>> {
        let change = self.change.lock().unwrap().take_if(|[at, ..]| at == id);
        if let Some([_, old, new]) = change {
            self.blobs.put(&new, b"in its place").unwrap();
            self.blobs.delete(&old).unwrap();
        }
        self.blobs.get(id)
    }
    fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> Result<Range<usize>> {
        self.blobs.read_range(id, range, buf)
    }
    fn meta(&self, id: &BlobId) -> Result<BlobMeta> {
        self.blobs.meta(id).map(|blob| self.aged(blob))
    }
    fn list(&self, prefix: &str) -> Result<Vec<BlobMeta>> {
        Ok(self
            .blobs
            .list(prefix)?
            .into_iter()
            .map(|blob| self.aged(blob))
            .collect())
    }
    fn delete(&self, id: &BlobId) -> Result<()> {
        self.blobs.delete(id)
    }
    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

const NAMES: [&str; 12] = [
    "p0123456789abcdef0123456789abcde0-s1",
    "p0123456789abcdef0123456789abcde1-s1",
    "q0123456789abcdef0123456789abcde2-s1",
    "xn0_0123456789abcdef0123456789abcde3-s1-c1",
    "xn1_0123456789abcdef0123456789abcde4-s1-c1",
    "xs0_0123456789abcdef0123456789abcde5-s1-c1",
    "xe1",
    "xw1767225600",
    "s0123456789abcdef0123456789abcde6-s1",
    "_log_20260101",
    "udmrepo.Repository",
    "kopia.maintenance",
];

fn id(text: &str) -> BlobId {
    BlobId::new(text).expect("a blob id")
}

fn source() -> Named {
    let store = Named::new("source");
    let made = create("words", &CreateOptions::default()).unwrap();
    store.put(&id(BLOBCFG_ID), &made.blobcfg).unwrap();
    store.put(&id(REPOSITORY_ID), &made.repository).unwrap();
    for name in NAMES {
        store.put(&id(name), format!("bytes of {name}").as_bytes()).unwrap();
    }
    store
}

fn options() -> SyncOptions {
    SyncOptions {
        workers: 3,
        delete: false,
        verify: false,
        dry_run: false,
    }
}

fn run(source: &dyn BlobStore, target: &dyn BlobStore, options: &SyncOptions) -> Result<SyncReport> {
    sync(source, target, options, &Cancel::new(), &Progress::new())
}

fn names(store: &dyn BlobStore) -> Vec<String> {
    let mut names: Vec<String> = store
        .list("")
        .unwrap()
        .into_iter()
        .map(|blob| blob.id.to_string())
        .collect();
    names.sort();
    names
}

#[track_caller]
fn assert_equal(source: &dyn BlobStore, target: &dyn BlobStore) {
    assert_eq!(names(source), names(target));
    for name in names(source) {
        assert_eq!(
            source.get(&id(&name)).unwrap(),
            target.get(&id(&name)).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn everything_is_copied_once_and_then_in_sync() {
    let (source, target) = (source(), Named::new("target"));
    let dry = run(
        &source,
        &target,
        &SyncOptions {
            dry_run: true,
            ..options()
        },
    )
    .unwrap();
    assert_eq!((dry.copied.blobs, dry.first), (14, true));
    assert_eq!(names(&target), Vec::<String>::new());

    let report = run(&source, &target, &options()).unwrap();
    assert_eq!((report.copied, report.first, report.rounds), (dry.copied, true, 1));
    assert_eq!(report.compared.blobs, 11, "all but packs are read back");
    assert_equal(&source, &target);

    let report = run(&source, &target, &options()).unwrap();
    assert_eq!(
        (report.copied.blobs, report.in_sync.blobs, report.first),
        (0, 14, false)
    );
    let report = run(
        &source,
        &target,
        &SyncOptions {
            verify: true,
            ..options()
        },
    )
    .unwrap();
    assert_eq!((report.compared.blobs, report.differing.len()), (14, 0));
}

#[test]
fn newer_and_longer_blobs_replace_older_ones() {
    let (source, mut target) = (source(), Named::new("target"));
    run(&source, &target, &options()).unwrap();
    target.put(&id("kopia.maintenance"), b"short").unwrap();
    assert_eq!(run(&source, &target, &options()).unwrap().copied.blobs, 1);
    source
        .put(&id("kopia.maintenance"), b"bytes of kopia.maintenancE")
        .unwrap();
    assert_eq!(run(&source, &target, &options()).unwrap().copied.blobs, 1);
    assert_equal(&source, &target);
    target.age = Duration::from_secs(3600);
    assert_eq!(run(&source, &target, &options()).unwrap().copied.blobs, 14);
}

#[test]
fn a_cut_copy_is_no_repository_or_a_whole_one_and_goes_on_where_it_was() {
    let source = source();
    for changes in 0..=14 {
        let target = Arc::new(Named::new("target"));
        let faults = FaultStore::new(target.clone());
        faults.cut_after(changes);
        assert!(
            run(
                &source,
                &faults,
                &SyncOptions {
                    workers: 1,
                    ..options()
                }
            )
            .is_err()
        );
        let there = names(&*target);
        assert_eq!(there.iter().any(|name| name == REPOSITORY_ID), changes == 14);
        let report = run(&source, &*target, &options()).unwrap();
        assert_eq!(report.copied.blobs, 14 - changes, "cut after {changes}");
        assert_equal(&source, &*target);
    }
}

#[test]
fn an_update_shows_nothing_before_what_it_refers_to() {
    let source = source();
    let target = Arc::new(Named::new("target"));
    let faults = FaultStore::new(target.clone());
    target
        .put(&id(REPOSITORY_ID), &source.get(&id(REPOSITORY_ID)).unwrap())
        .unwrap();
    let mut last = Vec::new();
    for changes in 1..=13 {
        faults.cut_after(1);
        let _ = run(
            &source,
            &faults,
            &SyncOptions {
                workers: 1,
                ..options()
            },
        );
        let there = names(&*target);
        let new: Vec<_> = there
            .iter()
            .filter(|name| !last.contains(*name) && *name != REPOSITORY_ID)
            .collect();
        assert_eq!(new.len(), 1, "change {changes}: {new:?}");
        let rank = Rank::of(&id(new[0]));
        let greater = source
            .list("")
            .unwrap()
            .into_iter()
            .filter(|blob| Rank::of(&blob.id) < rank);
        for blob in greater {
            assert!(there.contains(&blob.id.to_string()), "{} before {}", new[0], blob.id);
        }
        last = there;
    }
}

#[test]
fn what_vanishes_meanwhile_is_looked_for_again() {
    let (mut pack, mut index) = (source(), source());
    let [first, second, ..] = NAMES;
    pack.change = Mutex::new(Some([
        id(first),
        id(second),
        id("p0123456789abcdef0123456789abcdef-s2"),
    ]));
    index.change = Mutex::new(Some([
        id("xe1"),
        id(NAMES[3]),
        id("xs1_0123456789abcdef0123456789abcdef-s2-c1"),
    ]));
    for source in [pack, index] {
        let target = Named::new("target");
        let report = run(
            &source,
            &target,
            &SyncOptions {
                workers: 1,
                ..options()
            },
        )
        .unwrap();
        assert_eq!((report.rounds, report.copied.blobs), (2, 14));
        assert_equal(&source, &target);
    }
}

#[test]
fn other_places_and_other_repositories_are_refused() {
    let (one, other) = (source(), source());
    let refused = |target: &dyn BlobStore, words: &str| {
        let before = names(target);
        for delete in [false, true] {
            let error = run(&one, target, &SyncOptions { delete, ..options() }).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidInput);
            assert!(error.what().contains(words), "{error}");
        }
        assert_eq!(names(target), before);
    };
    refused(&one, "onto itself");
    let mut target = Named::new("target");
    target.blobs = other.blobs;
    refused(&target, "another repository");
    target.delete(&id(REPOSITORY_ID)).unwrap();
    NAMES.iter().for_each(|name| target.delete(&id(name)).unwrap());
    refused(&target, "something else");
    target.delete(&id(BLOBCFG_ID)).unwrap();
    target.put(&id("photo.jpg"), b"bytes").unwrap();
    refused(&target, "something else");

    let empty = run(&Named::new("empty"), &Named::new("target"), &options()).unwrap_err();
    assert_eq!(empty.kind(), Kind::NotARepository);
}

#[test]
fn only_what_the_source_certainly_lacks_is_deleted() {
    let (source, target) = (source(), Arc::new(Named::new("target")));
    run(&source, &*target, &options()).unwrap();
    for gone in [NAMES[0], NAMES[3], NAMES[8], "udmrepo.Repository"] {
        source.delete(&id(gone)).unwrap();
    }
    let report = run(&source, &*target, &options()).unwrap();
    assert_eq!((report.extra.blobs, report.deleted.blobs), (4, 0), "append-only");
    let delete = SyncOptions {
        delete: true,
        ..options()
    };
    let dry = run(
        &source,
        &*target,
        &SyncOptions {
            dry_run: true,
            ..delete
        },
    )
    .unwrap();
    assert_eq!(dry.to_delete.len(), 3, "what is not of the format stays");
    let report = run(&source, &*target, &delete).unwrap();
    assert_eq!((report.extra.blobs, report.deleted.blobs), (1, 3));

    // A listing that leaves a blob out is not believed.
    struct Late(Named);
    impl BlobStore for Late {
        fn place(&self) -> String {
            self.0.place()
        }
        fn put(&self, id: &BlobId, bytes: &[u8]) -> Result<()> {
            self.0.put(id, bytes)
        }
        fn get(&self, id: &BlobId) -> Result<Vec<u8>> {
            self.0.get(id)
        }
        fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> Result<Range<usize>> {
            self.0.read_range(id, range, buf)
        }
        fn meta(&self, id: &BlobId) -> Result<BlobMeta> {
            self.0.meta(id)
        }
        fn list(&self, prefix: &str) -> Result<Vec<BlobMeta>> {
            let mut listed = self.0.list(prefix)?;
            listed.retain(|blob| blob.id.as_str() != NAMES[1]);
            Ok(listed)
        }
        fn delete(&self, id: &BlobId) -> Result<()> {
            self.0.delete(id)
        }
        fn sync(&self) -> Result<()> {
            Ok(())
        }
    }
    let late = Late(source);
    assert_eq!(run(&late, &*target, &delete).unwrap().deleted.blobs, 0);
    late.0.delete(&id(REPOSITORY_ID)).unwrap();
    assert!(run(&late, &*target, &delete).is_err(), "no repository, nothing deleted");
    assert!(target.get(&id(NAMES[1])).is_ok());
}

#[test]
fn damage_on_the_way_is_found() {
    let (source, target) = (source(), Arc::new(Named::new("target")));
    let faults = FaultStore::new(target.clone());
    faults.rule(crate::blob::FaultRule {
        op: StoreOp::Get,
        prefix: "xn".into(),
        skip: 0,
        count: 1,
        fault: crate::blob::Fault::Truncate,
    });
    let error = run(&source, &faults, &options()).unwrap_err();
    assert!(error.is_damage() && error.what().contains("reads back"), "{error}");
    run(&source, &*target, &options()).unwrap();
    target
        .put(&id(NAMES[0]), format!("Bytes of {}", NAMES[0]).as_bytes())
        .unwrap();
    let report = run(
        &source,
        &*target,
        &SyncOptions {
            verify: true,
            ..options()
        },
    )
    .unwrap();
    assert_eq!(report.differing, [id(NAMES[0])]);
}

#[test]
fn a_blob_larger_than_the_memory_goes_alone() {
    let memory = Memory::default();
    let room = memory.take(u64::MAX);
    assert_eq!(*memory.used.lock().unwrap(), MEMORY_MAX);
    drop(room);
    let rooms = [memory.take(1), memory.take(MEMORY_MAX - 1)];
    assert_eq!(*memory.used.lock().unwrap(), MEMORY_MAX);
    drop(rooms);
    assert_eq!(*memory.used.lock().unwrap(), 0);
}
