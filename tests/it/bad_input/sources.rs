//! Volumes that fail, shrink, vanish, or have odd sizes.

use std::fs::{self, OpenOptions as FileOptions};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use blockferry_tests::volume::{BlockKind, Layout, Volume};
use blockio::fault::{EVERYWHERE, Fault, Outcome};
use blockio::{Cancel, Device, EngineKind, Extent, FaultPlan, Op, OpenOptions, Progress};
use daemon::mover::backup::{BackupOptions, backup};
use repo::BlobId;
use repo::blob::{BlobMeta, BlobStore, MemStore};

use super::support::{
    MIB, World, assert_clean, assert_refused, assert_round_trip, assert_same, back_up, backup_options, empty, names,
    open, random_volume, restored, shrink_packs,
};

#[test]
fn odd_sizes_make_the_round_trip() {
    for size in [1, 511, 512, MIB - 1, MIB, MIB + 1, 5 * MIB + 512] {
        let store = empty();
        let volume = Volume::create(&Layout::mixed(size, size)).unwrap();
        let report = assert_round_trip(&store, volume.path());
        assert_eq!(report.source_size, size);
        assert_clean(&store, 1);
        // All zero, as holes and as bytes.
        let zeros = Volume::create(&Layout::uniform(1, size, BlockKind::Zero)).unwrap();
        let holes = assert_round_trip(&store, zeros.path());
        fs::write(zeros.path(), vec![0; usize::try_from(size).unwrap()]).unwrap();
        let written = assert_round_trip(&store, zeros.path());
        assert_eq!(holes.object, written.object, "holes and zeros are the same image");
        assert_eq!((holes.read_bytes, holes.new_bytes, written.new_bytes), (0, 0, 0));
        assert_clean(&store, 3);
    }
}

#[test]
fn a_volume_without_bytes_is_refused() {
    let world = World::new();
    let path = world.text("empty");
    fs::write(&path, b"").unwrap();
    let before = names(&*world.store(), "");
    world.refuses(&["backup", &path], 2, &[&path, "nothing to back up"]);
    assert_eq!(names(&*world.store(), ""), before);
    world.assert_clean(0);
}

#[test]
fn what_is_no_volume_is_refused_by_name() {
    let world = World::new();
    let (missing, folder) = (world.text("missing"), world.text("folder"));
    fs::create_dir(&folder).unwrap();
    for (source, words) in [
        (missing.as_str(), ["open on", "not found"]),
        (folder.as_str(), ["open on", "directory"]),
        ("/dev/null", ["open on", "character device"]),
    ] {
        world.refuses(&["backup", source], 1, &[&[source], &words[..]].concat());
    }
    world.assert_clean(0);
}

/// Asserts that a backup under `faults` fails by `words` with either engine and leaves nothing.
#[track_caller]
fn check_faults(faults: impl Fn() -> FaultPlan, words: &[&str]) {
    let volume = random_volume(21, 6);
    for engine in [EngineKind::Auto, EngineKind::Pread] {
        for workers in [1, 3] {
            let store = empty();
            let options = BackupOptions {
                faults: Some(faults()),
                engine,
                workers,
                ..backup_options()
            };
            let error = back_up(&open(store.clone()), volume.path(), &options).unwrap_err();
            assert_refused(error, 1, &[&[volume.path().to_str().unwrap()], words].concat());
            assert_clean(&store, 0);
            assert_round_trip(&store, volume.path());
        }
    }
}

#[test]
fn a_volume_that_fails_in_the_middle_fails_the_backup() {
    let fault = |errno: i32| Fault {
        op: Op::Read,
        range: Extent {
            offset: 3 * MIB + 4096,
            len: 1,
        },
        skip: 0,
        count: u64::MAX,
        outcome: Outcome::Errno(errno),
    };
    check_faults(
        || FaultPlan::new().with(fault(libc::EIO)),
        &["read 3145728+1048576", "input/output error", "os error 5"],
    );
    check_faults(
        || FaultPlan::new().with(fault(libc::ENODEV)),
        &["read 3145728+1048576", "os error 19"],
    );
}

#[test]
fn a_volume_that_fails_at_once_fails_the_backup() {
    check_faults(
        || FaultPlan::always(Op::Read, Outcome::Errno(libc::ENXIO)),
        &["read", "os error 6"],
    );
}

#[test]
fn short_reads_are_resumed() {
    let volume = Volume::create(&Layout::mixed(22, 5 * MIB + 700)).unwrap();
    for engine in [EngineKind::Auto, EngineKind::Pread] {
        let store = empty();
        let repository = open(store.clone());
        let faults = FaultPlan::new().with(Fault {
            op: Op::Read,
            range: EVERYWHERE,
            skip: 0,
            count: u64::MAX,
            outcome: Outcome::Short(65_536),
        });
        let options = BackupOptions {
            faults: Some(faults.clone()),
            engine,
            ..backup_options()
        };
        back_up(&repository, volume.path(), &options).unwrap();
        assert!(faults.hits() > 0, "the reads were cut short");
        assert_same(
            &restored(&repository, &repository.snapshots().unwrap()[0]).unwrap(),
            &volume.bytes().unwrap(),
        );
    }
}

#[test]
fn a_volume_that_shrank_since_it_was_opened_fails_the_backup() {
    for (chunks, left) in [(6, 3 * MIB), (6, 6 * MIB - 512), (2, 0)] {
        let volume = random_volume(23, chunks);
        let device = Arc::new(Device::open(volume.path(), &OpenOptions::read()).unwrap());
        FileOptions::new()
            .write(true)
            .open(volume.path())
            .unwrap()
            .set_len(left)
            .unwrap();
        let store = empty();
        let result = backup(
            &open(store.clone()),
            &device,
            &backup_options(),
            &Cancel::new(),
            &Progress::new(),
        );
        let path = volume.path().to_str().unwrap();
        assert_refused(
            result.unwrap_err(),
            1,
            &[path, &format!("shrank from {} to {left} bytes", chunks * MIB)],
        );
        assert_clean(&store, 0);
    }
}

/// A store that does something when the first data pack arrives.
struct Hooked {
    inner: Arc<MemStore>,
    hook: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl BlobStore for Hooked {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn put(&self, id: &BlobId, bytes: &[u8]) -> repo::Result<()> {
        if id.as_str().starts_with('p')
            && let Some(hook) = self.hook.lock().unwrap().take()
        {
            hook();
        }
        self.inner.put(id, bytes)
    }

    fn get(&self, id: &BlobId) -> repo::Result<Vec<u8>> {
        self.inner.get(id)
    }

    fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> repo::Result<Range<usize>> {
        self.inner.read_range(id, range, buf)
    }

    fn meta(&self, id: &BlobId) -> repo::Result<BlobMeta> {
        self.inner.meta(id)
    }

    fn list(&self, prefix: &str) -> repo::Result<Vec<BlobMeta>> {
        self.inner.list(prefix)
    }

    fn delete(&self, id: &BlobId) -> repo::Result<()> {
        self.inner.delete(id)
    }

    fn sync(&self) -> repo::Result<()> {
        self.inner.sync()
    }
}

/// Hooks run while workers read ahead: whether the read or the last look notices, the backup fails.
#[test]
fn a_volume_that_shrinks_during_the_backup_fails_it() {
    let volume = random_volume(24, 48);
    let path = volume.path().to_owned();
    let store = empty();
    shrink_packs(&*store);
    let shrink = move || {
        FileOptions::new()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(20 * MIB)
            .unwrap()
    };
    let hooked = Arc::new(Hooked {
        inner: store.clone(),
        hook: Mutex::new(Some(Box::new(shrink))),
    });
    let error = back_up(&open(hooked), volume.path(), &backup_options()).unwrap_err();
    assert_refused(
        error,
        1,
        &[
            volume.path().to_str().unwrap(),
            "shrank from 50331648 to 20971520 bytes",
        ],
    );
    assert_clean(&store, 0);
}

/// Growth is another backup's business: the size at the start counts.
#[test]
fn a_volume_that_grows_is_backed_up_as_large_as_it_was() {
    let volume = random_volume(25, 3);
    let before = volume.bytes().unwrap();
    let device = Arc::new(Device::open(volume.path(), &OpenOptions::read()).unwrap());
    FileOptions::new()
        .append(true)
        .open(volume.path())
        .unwrap()
        .set_len(9 * MIB)
        .unwrap();
    let store = empty();
    let repository = open(store.clone());
    let report = backup(
        &repository,
        &device,
        &backup_options(),
        &Cancel::new(),
        &Progress::new(),
    )
    .unwrap();
    assert_eq!(report.source_size, 3 * MIB);
    assert_same(
        &restored(&repository, &repository.snapshots().unwrap()[0]).unwrap(),
        &before,
    );
}

#[test]
fn a_cancelled_backup_is_told_apart_and_leaves_nothing() {
    let volume = random_volume(26, 24);
    let store = empty();
    shrink_packs(&*store);
    let cancel = Cancel::new();
    let token = cancel.clone();
    let hooked = Arc::new(Hooked {
        inner: store.clone(),
        hook: Mutex::new(Some(Box::new(move || token.cancel()))),
    });
    let device = Arc::new(Device::open(volume.path(), &OpenOptions::read()).unwrap());
    let options = BackupOptions {
        limit: Some(64 * MIB),
        ..backup_options()
    };
    let error = backup(&open(hooked), &device, &options, &cancel, &Progress::new()).unwrap_err();
    assert_refused(error, 3, &["cancelled", "next run"]);
    assert_clean(&store, 0);
    let report = back_up(&open(store.clone()), volume.path(), &backup_options()).unwrap();
    assert!(
        report.known_bytes >= 10 * MIB,
        "the pack that was stored is found again: {report:?}"
    );
    assert_clean(&store, 1);
}
