//! Lists that lie, many times over: what the audit touches is right in the snapshot, and it finds lies as often as computed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use blockferry_tests::volume::Random;
use blockio::{BlockMap, ChunkIndex, Device, OpenOptions};
use daemon::mover::audit::Budget;
use daemon::mover::backup::{BackupOptions, Changes, Listed, ParentChoice};
use daemon::mover::ladder::Rung;
use repo::ContentId;
use repo::compress::CompressionPolicy;
use tempfile::NamedTempFile;

use crate::bad_input::support::{MIB, back_up, backup_options, empty, open};

/// Chunks of the volume. Each has a page of data, so that reading one costs little.
const CHUNKS: u64 = 256;

/// Chunks the audit reads of them: all but two or so called unchanged, and 16 is the least it takes.
const AUDITED: u64 = 16;

/// Runs in CI, and of a soak.
const ROUNDS: (u64, u64) = (200, 2000);

/// Compressed: thousands of backups of pages in chunks of zeros stay in memory.
fn compressed() -> BackupOptions {
    BackupOptions {
        compression: CompressionPolicy::Auto,
        ..backup_options()
    }
}

/// How a list lies.
#[derive(Clone, Copy, Debug)]
enum Lie {
    /// So many chunks that changed are left out.
    Drops(u64),
    /// Everything is told one chunk too late.
    Shifted,
    /// Everything changed, it says.
    Everything,
    /// Nothing changed, it says, though ten chunks did.
    Nothing,
}

struct Volume {
    file: NamedTempFile,
}

impl Volume {
    fn new() -> Self {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(CHUNKS * MIB).unwrap();
        let volume = Self { file };
        (0..CHUNKS).for_each(|chunk| volume.write(chunk, 1));
        volume
    }

    /// Gives a chunk content of its own for this `version`.
    fn write(&self, chunk: u64, version: u64) {
        let page: Vec<u8> = (0..512u64)
            .flat_map(|at| (chunk * 1_000_003 + version * 7919 + at).to_le_bytes())
            .collect();
        let file: &File = self.file.as_file();
        file.write_all_at(&page, chunk * MIB).unwrap();
    }
}

fn map(chunks: &[u64]) -> BlockMap {
    let mut map = BlockMap::new(CHUNKS);
    chunks.iter().for_each(|chunk| map.set(ChunkIndex::new(*chunk)));
    map
}

/// A run: chunks of the volume that changed, and what the list says.
fn told(lie: Lie, random: &mut Random) -> (Vec<u64>, BlockMap) {
    let mut some = |count: u64| -> Vec<u64> {
        let mut chunks: Vec<u64> = (0..CHUNKS).collect();
        for at in 0..usize::try_from(count).unwrap() {
            let other = at + usize::try_from(random.below(CHUNKS - at as u64)).unwrap();
            chunks.swap(at, other);
        }
        chunks.truncate(usize::try_from(count).unwrap());
        chunks
    };
    match lie {
        Lie::Drops(count) => (some(count), map(&[])),
        Lie::Shifted => {
            let changed = some(4);
            let late: Vec<u64> = changed.iter().map(|chunk| (chunk + 1) % CHUNKS).collect();
            (changed, map(&late))
        }
        Lie::Everything => (some(10), BlockMap::full(CHUNKS)),
        Lie::Nothing => (some(10), map(&[])),
    }
}

/// The chance that none of `count` chunks chosen at random is among `AUDITED` of `CHUNKS`.
fn chance_to_miss(count: u64) -> f64 {
    (0..count)
        .map(|at| (CHUNKS - AUDITED - at) as f64 / (CHUNKS - at) as f64)
        .product()
}

#[test]
fn rounds_of_lies_are_found_as_often_as_computed_and_never_where_the_audit_looked() {
    let volume = Volume::new();
    let repository = open(empty());
    let rounds = blockferry_tests::rounds(ROUNDS.0, ROUNDS.1);
    let lies = [
        Lie::Drops(1),
        Lie::Drops(10),
        Lie::Shifted,
        Lie::Everything,
        Lie::Nothing,
    ];
    let mut random = Random::new(7);
    let mut found = [0u64; 5];
    let first = back_up(&repository, volume.file.path(), &compressed()).unwrap();
    let mut parent = repository
        .snapshots()
        .unwrap()
        .into_iter()
        .find(|s| s.id == Some(first.snapshot))
        .unwrap();
    for round in 0..rounds {
        let kind = usize::try_from(round % 5).unwrap();
        let (changed, list) = told(lies[kind], &mut random);
        changed.iter().for_each(|chunk| volume.write(*chunk, 2 + round));
        let options = BackupOptions {
            changes: Changes {
                parent: ParentChoice::Named(Box::new(parent.clone())),
                changed: Some(Listed {
                    origin: "test",
                    volume_size: CHUNKS * MIB,
                    map: list.clone(),
                }),
                trust_source: true,
                ..Changes::default()
            },
            ..compressed()
        };
        let report = back_up(&repository, volume.file.path(), &options).unwrap();
        let snapshots = repository.snapshots().unwrap();
        let snapshot = snapshots.into_iter().find(|s| s.id == Some(report.snapshot)).unwrap();
        let image = repository.image(&snapshot).unwrap();
        let truth = truth(&repository, &volume);
        let wrong: Vec<usize> = (0..truth.len())
            .filter(|at| image.table.content(*at) != truth[*at])
            .collect();
        let caught = !report.mismatches.is_empty();
        found[kind] += u64::from(caught);
        for chunk in &wrong {
            assert!(!list.get(ChunkIndex::new(*chunk as u64)), "a listed chunk is wrong");
        }
        if report.decision.rung == Rung::HashCompare {
            assert!(
                wrong.is_empty(),
                "{:?}: wrong after everything was read: {wrong:?}",
                lies[kind]
            );
        }
        if !caught && !matches!(lies[kind], Lie::Everything) {
            // Missed as a whole: what is wrong is what the audit did not look at.
            let unlisted = changed
                .iter()
                .filter(|chunk| !list.get(ChunkIndex::new(**chunk)))
                .count();
            assert_eq!(wrong.len(), unlisted);
        }
        // The next round starts from the truth.
        let options = BackupOptions {
            changes: Changes::none(),
            ..compressed()
        };
        let honest = back_up(&repository, volume.file.path(), &options).unwrap();
        parent = repository
            .snapshots()
            .unwrap()
            .into_iter()
            .find(|s| s.id == Some(honest.snapshot))
            .unwrap();
    }
    let each = rounds / 5;
    eprintln!("found of {each} each: {:?} by {found:?}", lies);
    assert_eq!(found[3], 0, "what over-reports is no lie that harms");
    for (kind, dropped) in [(0, 1), (1, 10), (4, 10)] {
        let expect = (1.0 - chance_to_miss(dropped)) * each as f64;
        let deviation = (expect * chance_to_miss(dropped)).sqrt();
        let have = found[kind] as f64;
        assert!(
            (have - expect).abs() <= 4.0 * deviation + 1.0,
            "{:?}: {have} found, {expect:.1} expected",
            lies[kind]
        );
    }
    // The chunk before each listed one is looked at first: that is where a list that is late errs.
    assert_eq!(found[2], each, "every shifted list is found");
}

/// Content of each chunk as the volume has it.
fn truth(repository: &repo::Repository, volume: &Volume) -> Vec<ContentId> {
    let mut bytes = vec![0; usize::try_from(MIB).unwrap()];
    let file = volume.file.as_file();
    let read = |chunk: u64| {
        file.read_exact_at(&mut bytes, chunk * MIB).unwrap();
        repository.contents().content_id(None, &bytes)
    };
    (0..CHUNKS).map(read).collect()
}

#[test]
fn a_wrong_chunk_found_once_costs_its_neighbourhood_only() {
    let volume = Volume::new();
    let repository = open(empty());
    back_up(&repository, volume.file.path(), &compressed()).unwrap();
    volume.write(0, 99); // the first chunk is always looked at
    let device = Arc::new(Device::open(volume.file.path(), &OpenOptions::read()).unwrap());
    let listed = || {
        Some(Listed {
            origin: "test",
            volume_size: device.geometry().size,
            map: BlockMap::new(CHUNKS),
        })
    };
    let options = BackupOptions {
        changes: Changes {
            changed: listed(),
            ..Changes::default()
        },
        ..compressed()
    };
    let report = back_up(&repository, volume.file.path(), &options).unwrap();
    assert_eq!(report.mismatches, [ChunkIndex::new(0)]);
    assert_eq!(report.decision.rung, Rung::Delta);
    assert!(
        report.audited_chunks > AUDITED && report.audited_chunks <= AUDITED + 32,
        "{}",
        report.audited_chunks
    );
    // From now on the source is not believed.
    let report = back_up(&repository, volume.file.path(), &options).unwrap();
    assert_eq!(report.decision.rung, Rung::HashCompare);
    // Where a delta is required, doubt is an error.
    let strict = BackupOptions {
        changes: Changes {
            changed: listed(),
            require: Rung::Delta,
            audit: Budget::DEFAULT,
            ..Changes::default()
        },
        ..compressed()
    };
    let error = back_up(&repository, volume.file.path(), &strict).unwrap_err();
    assert!(error.to_string().contains("--trust-source"), "{error}");
}
