//! Delta restores: only what differs is fetched and written, whatever was done to the target, and the result is the snapshot.

mod bad_input;
mod killed;
mod places;
mod sizes;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use blockferry_tests::golden::Golden;
use blockferry_tests::volume::{BlockKind, Layout, Random, Volume};
use blockio::fault::{Fault, Outcome};
use blockio::{BlockMap, Cancel, ChunkIndex, Device, EngineKind, Extent, FaultPlan, Op, OpenOptions, Progress};
use daemon::mover::restore::{Estimate, RestoreOptions, RestoreReport, Scope, estimate, restore};
use proptest::prelude::*;
use repo::blob::FsStore;
use repo::{Image, Repository};

use crate::bad_input::support::{
    MIB, assert_refused, assert_same, back_up, backup_options, empty, fast_folder, open, restore_options,
};

fn delta() -> RestoreOptions {
    RestoreOptions {
        scope: Scope::Delta { changed: None },
        verify: true,
        workers: 2,
        ..restore_options()
    }
}

/// A repository with one snapshot of `layout`, and its image.
fn image_of(layout: &Layout) -> (Repository, Image) {
    let repository = open(empty());
    let volume = Volume::create(layout).unwrap();
    back_up(&repository, volume.path(), &backup_options()).unwrap();
    let snapshot = repository.snapshots().unwrap().remove(0);
    let image = repository.image(&snapshot).unwrap();
    (repository, image)
}

fn run(repository: &Repository, image: &Image, path: &Path, options: &RestoreOptions) -> daemon::Result<RestoreReport> {
    let target = Arc::new(Device::open_grown(path, image.size, &OpenOptions::overwrite())?);
    restore(repository, image, &target, options, &Cancel::new(), &Progress::new())
}

fn dry_run(repository: &Repository, image: &Image, path: &Path, options: &RestoreOptions) -> Estimate {
    let target = Arc::new(Device::open(path, &OpenOptions::read()).unwrap());
    let (cancel, progress) = (Cancel::new(), Progress::new());
    estimate(repository, image, Some(&target), options, &cancel, &progress).unwrap()
}

/// What was done to a target.
#[derive(Clone, Debug)]
enum Harm {
    /// A bit of this byte.
    Flip(usize),
    /// Zeros from here, so many.
    Zero(usize, usize),
    /// Other bytes from here, so many.
    Garble(usize, usize),
    /// Two chunks change places.
    Swap(usize, usize),
    /// The end is cut off.
    Cut(usize),
    /// Something is written behind the end.
    Extend(usize),
}

fn harms() -> impl Strategy<Value = Vec<Harm>> {
    let place = 0usize..(8 << 20);
    prop::collection::vec(
        prop_oneof![
            place.clone().prop_map(Harm::Flip),
            (place.clone(), 1usize..(3 << 20)).prop_map(|(at, len)| Harm::Zero(at, len)),
            (place.clone(), 1usize..(3 << 20)).prop_map(|(at, len)| Harm::Garble(at, len)),
            (0usize..8, 0usize..8).prop_map(|(a, b)| Harm::Swap(a, b)),
            (1usize..(4 << 20)).prop_map(Harm::Cut),
            (1usize..(2 << 20)).prop_map(Harm::Extend),
        ],
        0..5,
    )
}

fn harm(bytes: &mut Vec<u8>, harm: &Harm) {
    let len = bytes.len();
    let range = |at: usize, n: usize| {
        let start = at % len.max(1);
        start..(start + n).min(len)
    };
    match *harm {
        _ if len == 0 => {}
        Harm::Flip(at) => bytes[at % len] ^= 0x10,
        Harm::Zero(at, n) => bytes[range(at, n)].fill(0),
        Harm::Garble(at, n) => bytes[range(at, n)].fill(0xEE),
        Harm::Swap(a, b) => {
            let chunks = len >> 20;
            if chunks > 1 && a % chunks != b % chunks {
                let (a, b) = ((a % chunks) << 20, (b % chunks) << 20);
                (0..1 << 20).for_each(|i| bytes.swap(a + i, b + i));
            }
        }
        Harm::Cut(n) => bytes.truncate(len.saturating_sub(n).max(1)),
        Harm::Extend(n) => bytes.extend(std::iter::repeat_n(0xCC, n)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens to a target, the volume on it is brought back, and what lies behind the volume is left.
    #[test]
    fn any_damage_is_undone(size in (MIB..8 * MIB), seed in 0u64..1000, harms in harms(), workers in 1usize..4) {
        let layout = Layout::mixed(seed, size);
        let (repository, image) = image_of(&layout);
        let folder = fast_folder();
        let path = folder.path().join("target");
        let mut bytes = layout.bytes();
        harms.iter().for_each(|one| harm(&mut bytes, one));
        fs::write(&path, &bytes).unwrap();
        let options = RestoreOptions { workers, ..delta() };
        // A file that is too short is grown by the restore; its length alone is no difference.
        let mut grown = bytes.clone();
        grown.resize(bytes.len().max(usize::try_from(size).unwrap()), 0);
        let told = dry_run(&repository, &image, &path, &options);
        assert_same(&fs::read(&path).unwrap(), &bytes);
        let report = run(&repository, &image, &path, &options).unwrap();
        let have = fs::read(&path).unwrap();
        let (volume, rest) = have.split_at(usize::try_from(size).unwrap());
        assert_same(volume, &layout.bytes());
        assert_same(rest, &grown[volume.len()..]);
        let differing: u64 = grown[..volume.len()]
            .chunks(1 << 20)
            .zip(layout.bytes().chunks(1 << 20))
            .filter(|(have, want)| have != want)
            .map(|(have, _)| have.len() as u64)
            .sum();
        prop_assert_eq!(report.written_bytes + report.zeroed_bytes, differing);
        prop_assert_eq!(report.skipped_bytes, size - differing);
        prop_assert_eq!(report.rest_bytes, rest.len() as u64);
        let proof = report.proof.unwrap();
        prop_assert_eq!((proof.mismatches, proof.bytes), (0, size));
        if bytes.len() == grown.len() {
            prop_assert_eq!((told.written_bytes, told.zeroed_bytes), (report.written_bytes, report.zeroed_bytes));
            prop_assert_eq!(told.skipped_bytes, report.skipped_bytes);
        }
        // Again there is nothing to do.
        let again = run(&repository, &image, &path, &options).unwrap();
        prop_assert_eq!((again.written_bytes, again.zeroed_bytes, again.fetched_bytes), (0, 0, 0));
        prop_assert!(again.engine.is_none(), "nothing is opened for writing");
    }
}

/// Writes to what is equal fail, so a restore that succeeds made none.
#[test]
fn equal_chunks_are_not_written() {
    let layout = Layout::uniform(81, 40 * MIB + 512, BlockKind::Random);
    let (repository, image) = image_of(&layout);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("target");
    let mut bytes = layout.bytes();
    let harmed = [0usize, 7, 8, 33, 40];
    harmed.iter().for_each(|chunk| bytes[chunk << 20] ^= 1);
    for engine in [EngineKind::Auto, EngineKind::Pread] {
        fs::write(&path, &bytes).unwrap();
        let equal = (0..41usize).filter(|chunk| !harmed.contains(chunk));
        let faults = equal.fold(FaultPlan::new(), |plan, chunk| {
            plan.with(Fault {
                op: Op::Write,
                range: Extent {
                    offset: chunk as u64 * MIB,
                    len: MIB,
                },
                skip: 0,
                count: u64::MAX,
                outcome: Outcome::Errno(libc::EIO),
            })
        });
        let options = RestoreOptions {
            engine,
            faults: Some(faults.clone()),
            ..delta()
        };
        let report = run(&repository, &image, &path, &options).unwrap();
        assert_eq!(faults.hits(), 0);
        assert_eq!(report.written_bytes, 4 * MIB + 512);
        assert!(
            report.fetched_bytes <= 5 * MIB + 5 * 1024,
            "{} fetched for five chunks",
            report.fetched_bytes
        );
        assert_eq!(report.read_bytes, 40 * MIB + 512);
        assert_same(&fs::read(&path).unwrap(), &layout.bytes());
    }
}

/// 16 contents at 200 places in more batches than one: each is fetched once, and copied from the target afterwards.
#[test]
fn a_content_is_fetched_once_however_often_it_is_used() {
    let layout = Layout::uniform(82, 200 * MIB, BlockKind::Duplicate);
    let (repository, image) = image_of(&layout);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("target");
    fs::write(&path, vec![0xAA; 200 << 20]).unwrap();
    let report = run(&repository, &image, &path, &delta()).unwrap();
    assert_eq!((report.written_bytes, report.skipped_bytes), (200 * MIB, 0));
    assert!(report.fetched_bytes <= 17 * MIB, "{} fetched", report.fetched_bytes);
    assert_same(&fs::read(&path).unwrap(), &layout.bytes());
}

#[test]
fn a_list_limits_what_is_read_and_written() {
    let layout = Layout::mixed(83, 12 * MIB + 512);
    let (repository, image) = image_of(&layout);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("target");
    let mut bytes = layout.bytes();
    [1usize, 2, 6, 12].iter().for_each(|chunk| bytes[chunk << 20] ^= 1);
    fs::write(&path, &bytes).unwrap();
    let mut changed = BlockMap::new(13);
    [2, 3, 12].iter().for_each(|chunk| changed.set(ChunkIndex::new(*chunk)));
    let options = RestoreOptions {
        scope: Scope::Delta { changed: Some(changed) },
        ..delta()
    };
    let report = run(&repository, &image, &path, &options).unwrap();
    assert_eq!(report.read_bytes, 2 * MIB + 512, "nothing else is looked at");
    assert_eq!(report.written_bytes + report.zeroed_bytes, MIB + 512);
    assert_eq!(report.skipped_bytes, 11 * MIB);
    // What the list kept still differs, and the proof finds it.
    let found: Vec<u64> = report
        .proof
        .unwrap()
        .extents
        .iter()
        .map(|m| m.extent.offset / MIB)
        .collect();
    assert_eq!(found, [1, 6]);
}

/// Chunks of other lengths: what kopia cuts at places of its own is compared piece by piece; where ids are not those of the
/// bytes, a delta restore says so and leaves the target alone.
#[test]
fn images_of_every_shape_are_restored_by_delta_or_refused() {
    let mut shapes = Vec::new();
    for golden in Golden::all().unwrap() {
        let copy = golden.materialise().unwrap();
        let store = Arc::new(FsStore::open(&copy.repo).unwrap());
        let repository = Repository::open(store, &golden.expected.password).unwrap();
        for snapshot in repository.snapshots().unwrap() {
            let Ok(image) = repository.image(&snapshot) else {
                continue;
            };
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("target");
            if image.size == 0 {
                continue;
            }
            let direct = daemon::mover::restore::is_aligned(&image.table, 4096);
            let how = OpenOptions {
                direct,
                ..OpenOptions::overwrite()
            };
            let (cancel, progress) = (Cancel::new(), Progress::new);
            let full = RestoreOptions {
                target_is_zero: true,
                verify: true,
                ..restore_options()
            };
            let target = Arc::new(Device::create_file_with(&path, image.size, true, &how).unwrap());
            let report = restore(&repository, &image, &target, &full, &cancel, &progress()).unwrap();
            assert_eq!(report.proof.unwrap().mismatches, 0, "{}", golden.name);
            drop(target);
            let whole = fs::read(&path).unwrap();
            let mut harmed = whole.clone();
            let mut random = Random::new(84);
            for _ in 0..3 {
                let at = usize::try_from(random.below(image.size)).unwrap();
                harmed[at] ^= 0x40;
            }
            fs::write(&path, &harmed).unwrap();
            let target = Arc::new(Device::open(&path, &how).unwrap());
            let result = restore(&repository, &image, &target, &delta(), &cancel, &progress());
            drop(target);
            if image.table.has_compressed() {
                assert_refused(result.unwrap_err(), 2, &["format version 1", "--mode full"]);
                assert_same(&fs::read(&path).unwrap(), &harmed);
                shapes.push("compressed");
                continue;
            }
            let report = result.unwrap();
            assert_eq!(report.proof.unwrap().mismatches, 0, "{}", golden.name);
            assert!(report.written_bytes > 0, "{}", golden.name);
            assert_same(&fs::read(&path).unwrap(), &whole);
            shapes.push(match (image.table.count(), image.table.uniform_len()) {
                (1, _) => "one piece",
                (_, Some(MIB)) => "chunks",
                (_, Some(_)) => "even pieces",
                (_, None) => "pieces of any length",
            });
        }
    }
    for shape in ["compressed", "pieces of any length"] {
        assert!(
            shapes.contains(&shape),
            "no golden image of the shape {shape:?}: {shapes:?}"
        );
    }
}
