//! Snapshots of all makes: ours, Velero's block uploader's and file uploader's, files that kopia took.

use std::sync::Arc;
use std::time::Duration;

use blockferry_tests::golden::Golden;
use blockferry_tests::kopia::{self, Kopia};
use blockferry_tests::volume::{Layout, Volume};
use blockio::{BlockSource, Extent, ExtentKind};
use daemon::lazy::{FetchOptions, Fetcher, LazySource};
use repo::Repository;
use repo::blob::FsStore;

use super::{MIB, Serving};
use crate::bad_input::support::{PASSWORD, World};

#[test]
fn every_golden_volume_is_served_as_it_is_restored() {
    let mut volumes = 0;
    for golden in Golden::all().unwrap() {
        let copy = golden.materialise().unwrap();
        let store = Arc::new(FsStore::open(&copy.repo).unwrap());
        let repository = Arc::new(Repository::open(store, &golden.expected.password).unwrap());
        let options = FetchOptions {
            memory: 8 << 20,
            deadline: Duration::from_secs(60),
        };
        let fetcher = Arc::new(Fetcher::start(repository.clone(), &options).unwrap());
        for snapshot in repository.snapshots().unwrap() {
            let Ok(image) = repository.image(&snapshot) else {
                continue;
            };
            volumes += 1;
            let mut expect = Vec::new();
            for piece in image.table.iter() {
                expect.extend(repository.read_piece(&piece).unwrap());
            }
            expect.truncate(usize::try_from(image.size).unwrap());
            let source = LazySource::new(fetcher.clone(), image).unwrap();
            let size = source.geometry().size;
            assert_eq!(size, expect.len() as u64, "{}", golden.name);
            let whole = Extent { offset: 0, len: size };
            let mut read = vec![1; expect.len()];
            source.read_at(0, &mut read).unwrap();
            assert!(read == expect, "{}", golden.name);
            let mut extents = Vec::new();
            source.extents(whole, &mut extents).unwrap();
            for (extent, _) in extents.iter().filter(|(_, kind)| *kind != ExtentKind::Data) {
                let from = usize::try_from(extent.offset).unwrap();
                assert!(
                    expect[from..from + extent.bytes()].iter().all(|byte| *byte == 0),
                    "{}",
                    golden.name
                );
            }
        }
    }
    assert!(volumes > 10, "{volumes}");
}

#[test]
fn a_file_that_kopia_took_is_served_as_it_is() {
    if !kopia::available() {
        eprintln!("SKIPPED: kopia is not installed");
        return;
    }
    let world = World::new();
    let kopia = Kopia::new(&world.repo(), PASSWORD).unwrap();
    kopia.connect().unwrap();
    kopia.policy_set("--global", &["--splitter=DYNAMIC-4M-BUZHASH"]).ok();
    for size in [70 * MIB + 12345, 100, 3 * MIB] {
        let volume = Volume::create(&Layout::mixed(81 + size, size)).unwrap();
        kopia.snapshot_create(volume.path(), &[]).unwrap();
        let serving = Serving::start(&world.ferry, &["latest"]);
        assert!(serving.bytes() == volume.bytes().unwrap(), "{size}");
        let source = volume.path().display().to_string();
        if size.is_multiple_of(512) {
            serving.client(&format!("qemu-img compare -f raw -F raw {source} {{uri}}"));
        }
        assert_eq!(serving.stop("-TERM").code, Some(0));
    }
}
