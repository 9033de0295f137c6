//! A copy of a repository in a second place, cut off wherever it can be, and judged by the real kopia.

use std::sync::Arc;

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::kopia::{self, Kopia};
use blockio::{Cancel, Progress};
use repo::Kind;
use repo::Repository;
use repo::blob::{BlobStore, FaultStore, FsStore, MemStore};
use repo::sync::{SyncOptions, sync};

use crate::bad_input::support::{
    PASSWORD, World, assert_same, back_up, backup_options, copy, damage, empty, names, open, random_volume, restored,
    shrink_packs,
};

fn options() -> SyncOptions {
    SyncOptions {
        workers: 1,
        delete: false,
        verify: false,
        dry_run: false,
    }
}

#[test]
fn kopia_reads_the_copy_of_a_directory() {
    let world = World::new();
    let (first, second) = (random_volume(81, 3), random_volume(82, 4));
    let one = world.ferry.backup(first.path(), &["--as", "u@h:/one"]).unwrap();
    let target = world.text("second/copy");
    let dry = world.ferry.run_json(["repo", "sync", &target, "--dry-run"]).unwrap();
    assert_eq!((&dry["firstCopy"], &dry["dryRun"]), (&true.into(), &true.into()));
    assert!(!world.path("second").exists(), "a dry run makes nothing");
    let report = world.ferry.run_json(["repo", "sync", &target]).unwrap();
    assert_eq!(report["copied"], dry["copied"]);

    world.ferry.backup(second.path(), &["--as", "u@h:/two"]).unwrap();
    world
        .ferry
        .run(["delete", one["snapshotId"].as_str().unwrap()])
        .unwrap();
    let report = world.ferry.run_json(["repo", "sync", &target, "--verify"]).unwrap();
    assert_eq!(
        (&report["firstCopy"], report["differing"].as_array().unwrap().len()),
        (&false.into(), 0)
    );
    assert!(report["inSync"]["blobs"].as_u64().unwrap() > 4, "{report}");
    let (source, there) = (world.store(), FsStore::open(world.path("second/copy")).unwrap());
    assert_eq!(names(&*source, ""), names(&there, ""));

    let at_copy = Blockferry::at(&target, PASSWORD).unwrap();
    at_copy.run(["verify", "--percent", "100"]).unwrap();
    at_copy.backup(second.path(), &[]).unwrap();
    if kopia::available() {
        let kopia = Kopia::new(&world.path("second/copy"), PASSWORD).unwrap();
        kopia.connect().unwrap();
        kopia.verify_full().unwrap();
        kopia.content_verify_full().unwrap();
        // kopia takes what we copied for the same repository, and has nothing left to copy.
        let theirs = Kopia::new(&world.repo(), PASSWORD).unwrap();
        theirs.connect().unwrap();
        theirs
            .run(["repository", "sync-to", "filesystem", "--path", &target, "--must-exist"])
            .unwrap();
    }
    let report = world.ferry.run_json(["repo", "sync", &target]).unwrap();
    assert_eq!(report["copied"]["blobs"], 0, "{report}");
    assert!(
        report["extra"]["blobs"].as_u64().unwrap() > 0,
        "the backup made in the copy stays: {report}"
    );
}

#[test]
fn a_copy_cut_off_anywhere_is_no_repository_or_one_whose_snapshots_are_whole() {
    let store = copy(&*empty());
    shrink_packs(&*store);
    let volumes = [random_volume(83, 12), random_volume(84, 12)];
    let back_up_to = |store: &Arc<MemStore>, at: usize| {
        back_up(&open(store.clone()), volumes[at].path(), &backup_options()).unwrap();
    };
    back_up_to(&store, 0);
    let folder = tempfile::tempdir().unwrap();
    let run = |source: &dyn BlobStore, target: &dyn BlobStore| {
        let target = FaultPlace(target, folder.path().display().to_string());
        sync(source, &target, &options(), &Cancel::new(), &Progress::new())
    };
    // The first copy.
    let total = names(&*store, "").len() as u64;
    let mut target = Arc::new(MemStore::new());
    for changes in 0..=total {
        target = Arc::new(MemStore::new());
        let faults = FaultStore::new(target.clone());
        faults.cut_after(changes);
        run(&*store, &faults).unwrap_err();
        match Repository::open(target.clone(), PASSWORD) {
            Err(e) => assert_eq!(
                (e.kind(), changes < total),
                (Kind::NotARepository, true),
                "cut after {changes}"
            ),
            Ok(repository) => assert_eq!(damage(&repository).unwrap(), Vec::<String>::new()),
        }
    }
    // Updates, each cut one change later than the one before, onto the copy of the older state.
    back_up_to(&store, 1);
    let new = names(&*store, "").len() as u64 - total;
    let older = target;
    let mut seen = 0;
    for changes in 0..=new {
        let target = copy(&*older);
        let faults = FaultStore::new(target.clone());
        faults.cut_after(changes);
        let _ = run(&*store, &faults);
        let repository = open(target.clone());
        assert_eq!(
            damage(&repository).unwrap(),
            Vec::<String>::new(),
            "update cut after {changes}"
        );
        let snapshots = repository.snapshots().unwrap();
        for (snapshot, volume) in snapshots.iter().zip(&volumes) {
            assert_same(&restored(&repository, snapshot).unwrap(), &volume.bytes().unwrap());
        }
        seen = snapshots.len();
        run(&*store, &*target).unwrap();
        assert_eq!(names(&*target, ""), names(&*store, ""));
    }
    assert_eq!(seen, 2);
}

/// A store in memory under a name of its own.
struct FaultPlace<'a>(&'a dyn BlobStore, String);

impl BlobStore for FaultPlace<'_> {
    fn place(&self) -> String {
        self.1.clone()
    }
    fn put(&self, id: &repo::BlobId, bytes: &[u8]) -> repo::Result<()> {
        self.0.put(id, bytes)
    }
    fn get(&self, id: &repo::BlobId) -> repo::Result<Vec<u8>> {
        self.0.get(id)
    }
    fn read_range(
        &self,
        id: &repo::BlobId,
        range: std::ops::Range<u64>,
        buf: &mut [u8],
    ) -> repo::Result<std::ops::Range<usize>> {
        self.0.read_range(id, range, buf)
    }
    fn meta(&self, id: &repo::BlobId) -> repo::Result<repo::blob::BlobMeta> {
        self.0.meta(id)
    }
    fn list(&self, prefix: &str) -> repo::Result<Vec<repo::blob::BlobMeta>> {
        self.0.list(prefix)
    }
    fn delete(&self, id: &repo::BlobId) -> repo::Result<()> {
        self.0.delete(id)
    }
    fn sync(&self) -> repo::Result<()> {
        self.0.sync()
    }
}

#[test]
fn a_copy_that_cannot_be_is_refused_and_damage_in_it_is_told() {
    let world = World::new();
    let volume = random_volume(85, 2);
    world.ferry.backup(volume.path(), &[]).unwrap();
    let repo = world.repo().display().to_string();
    world.refuses(&["repo", "sync", &repo], 2, &["one inside the other"]);
    world.refuses(&["repo", "sync", &format!("{repo}/copy")], 2, &["one inside the other"]);
    let other = World::with(&{
        let store = MemStore::new();
        Repository::create(&store, PASSWORD, &repo::format::CreateOptions::default()).unwrap();
        store
    });
    let theirs = other.repo().display().to_string();
    world.refuses(&["repo", "sync", &theirs, "--delete"], 2, &["another repository"]);
    other.assert_clean(0);
    let photos = world.path("photos");
    std::fs::create_dir(&photos).unwrap();
    std::fs::write(photos.join("photo.f"), b"bytes").unwrap();
    world.refuses(&["repo", "sync", &photos.display().to_string()], 2, &["something else"]);

    let target = world.text("copy");
    world.ferry.run(["repo", "sync", &target]).unwrap();
    let there = FsStore::open(world.path("copy")).unwrap();
    let pack = repo::BlobId::new(names(&there, "p").remove(0)).unwrap();
    let mut bytes = there.get(&pack).unwrap();
    bytes[100] ^= 1;
    there.put(&pack, &bytes).unwrap();
    let ended = world.ferry.ended(["repo", "sync", &target, "--verify"]).unwrap();
    assert_eq!(ended.code, Some(4), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains(pack.as_str()), "{}", ended.stdout);
}
