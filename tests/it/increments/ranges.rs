//! Lists that lose ranges of a large volume, up to a thousand at once, whole chunks and parts of them: found as often as computed.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use blockferry_tests::volume::Random;
use blockio::{BlockMap, ChunkIndex};
use daemon::mover::audit::Budget;
use daemon::mover::backup::{BackupOptions, BackupReport, Changes, Listed, ParentChoice};
use daemon::mover::changes::ChangedFile;
use daemon::mover::ladder::Rung;
use repo::compress::{Codec, CompressionPolicy};
use repo::snapshot::Snapshot;
use repo::{ContentId, Repository};
use tempfile::NamedTempFile;

use crate::bad_input::support::{MIB, back_up, backup_options, chain, empty, fast_folder, open};

/// Chunks of the volume, 4 GiB: a thousand lost ranges are a quarter of it. Each has a page of data, so that the file takes 16 MiB.
const CHUNKS: u64 = 4096;

/// What the source reports in, in bytes.
const BLOCK: u64 = 4096;

/// Blocks of a chunk.
const BLOCKS: u64 = MIB / BLOCK;

/// Longest range that is smaller than a chunk, in blocks.
const SMALL_MAX: u64 = 8;

/// Ranges that the list does name, beside those it loses: enough for chunks that have both, few enough to be read at once.
const NAMED: u64 = 16;

/// Ranges that the list loses.
const LOST: [u64; 4] = [1, 10, 100, 1000];

/// Runs for each of them in CI, and of a soak.
const ROUNDS: (u64, u64) = (12, 1000);

/// What one range is.
#[derive(Clone, Copy, Debug)]
enum Grain {
    /// A chunk.
    Chunk,
    /// Some blocks, perhaps over the edge of two chunks.
    Blocks,
}

/// Blocks that changed.
#[derive(Clone, Copy, Debug)]
struct Range {
    first: u64,
    count: u64,
}

impl Range {
    fn random(grain: Grain, random: &mut Random) -> Self {
        match grain {
            Grain::Chunk => Self {
                first: random.below(CHUNKS) * BLOCKS,
                count: BLOCKS,
            },
            Grain::Blocks => {
                let count = 1 + random.below(SMALL_MAX);
                let first = random.below(CHUNKS * BLOCKS - count + 1);
                Self { first, count }
            }
        }
    }

    fn chunks(self) -> std::ops::RangeInclusive<u64> {
        self.first / BLOCKS..=(self.first + self.count - 1) / BLOCKS
    }
}

/// What happened to the volume, and what is told of it.
struct Told {
    named: Vec<Range>,
    lost: Vec<Range>,
}

impl Told {
    fn random(grain: Grain, lost: u64, random: &mut Random) -> Self {
        let mut some = |count: u64| (0..count).map(|_| Range::random(grain, random)).collect();
        Self {
            named: some(NAMED),
            lost: some(lost),
        }
    }

    fn all(&self) -> impl Iterator<Item = Range> + '_ {
        self.named.iter().chain(&self.lost).copied()
    }

    /// The list, as a source writes it: block by block, each once.
    fn list(&self) -> Listed {
        let mut blocks: Vec<u64> = self.named.iter().flat_map(|r| r.first..r.first + r.count).collect();
        blocks.sort_unstable();
        blocks.dedup();
        let size = CHUNKS * MIB;
        let extents: Vec<_> = blocks
            .iter()
            .map(|block| serde_json::json!({"offset": block * BLOCK, "length": BLOCK}))
            .collect();
        let document = serde_json::json!({"volumeSize": size, "changed": extents}).to_string();
        Listed::of_file(&ChangedFile::parse(document.as_bytes()).unwrap(), size)
    }

    /// Chunks that changed and that the list does not name, not even for another range of theirs.
    fn lost_chunks(&self) -> BlockMap {
        let mut chunks = chunks_of(&self.lost);
        chunks.remove(&chunks_of(&self.named));
        chunks
    }

    fn changed_chunks(&self) -> BlockMap {
        chunks_of(&self.all().collect::<Vec<_>>())
    }
}

fn chunks_of(ranges: &[Range]) -> BlockMap {
    let mut map = BlockMap::new(CHUNKS);
    let chunks = ranges.iter().flat_map(|range| range.chunks());
    chunks.for_each(|chunk| map.set(ChunkIndex::new(chunk)));
    map
}

struct Volume {
    file: NamedTempFile,
}

impl Volume {
    fn new(folder: &std::path::Path) -> Self {
        let mut file = NamedTempFile::new_in(folder).unwrap();
        file.as_file_mut().set_len(CHUNKS * MIB).unwrap();
        file.flush().unwrap();
        let volume = Self { file };
        (0..CHUNKS).for_each(|chunk| volume.write(chunk * BLOCKS, Some(1)));
        volume
    }

    /// Gives a block content of its own for this `version`; zeros without one.
    fn write(&self, block: u64, version: Option<u64>) {
        let word = |at: u64| version.map_or(0, |version| block * 1_000_003 + version * 7919 + at);
        let page: Vec<u8> = (0..BLOCK / 8).flat_map(|at| word(at).to_le_bytes()).collect();
        let file: &File = self.file.as_file();
        file.write_all_at(&page, block * BLOCK).unwrap();
    }

    /// Writes the edges of each range, which is enough to change the chunks it is in.
    fn change(&self, told: &Told, version: u64) {
        for range in told.all() {
            self.write(range.first, Some(version));
            self.write(range.first + range.count - 1, Some(version));
        }
    }

    /// Undoes that.
    fn change_back(&self, told: &Told) {
        for range in told.all() {
            for block in [range.first, range.first + range.count - 1] {
                self.write(block, block.is_multiple_of(BLOCKS).then_some(1));
            }
        }
    }

    fn content(&self, repository: &Repository, chunk: u64) -> ContentId {
        let mut bytes = vec![0; usize::try_from(MIB).unwrap()];
        self.file.as_file().read_exact_at(&mut bytes, chunk * MIB).unwrap();
        repository.contents().content_id(None, &bytes)
    }
}

/// Compressed, so that what thousands of chunks take in memory is what they hold.
fn options(changes: Changes) -> BackupOptions {
    BackupOptions {
        compression: CompressionPolicy::Named {
            codec: Codec::ZSTD_FASTEST,
            level: Codec::ZSTD_FASTEST.level(),
        },
        changes,
        ..backup_options()
    }
}

/// The chance that none of the `lost` is among those read of `unread`: 0.5 %, and no fewer than 16.
fn chance_to_miss(lost: u64, unread: u64) -> f64 {
    let read = (unread * 5).div_ceil(1000).max(16);
    (0..lost.min(unread - read + 1))
        .map(|at| (unread - read - at) as f64 / (unread - at) as f64)
        .product()
}

struct World {
    volume: Volume,
    repository: Repository,
    parent: Snapshot,
    before: Vec<ContentId>,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = fast_folder();
        let volume = Volume::new(folder.path());
        let repository = open(empty());
        let first = back_up(&repository, volume.file.path(), &options(Changes::none())).unwrap();
        let parent = snapshot(&repository, &first);
        let before = contents(&repository, &parent);
        Self {
            volume,
            repository,
            parent,
            before,
            _folder: folder,
        }
    }

    /// A backup by a list that lies; the rung that will do.
    fn run(&self, told: &Told, require: Rung) -> daemon::Result<BackupReport> {
        let changes = Changes {
            parent: ParentChoice::Named(Box::new(self.parent.clone())),
            changed: Some(told.list()),
            require,
            audit: Budget::DEFAULT,
            trust_source: true,
            ..Changes::default()
        };
        back_up(&self.repository, self.volume.file.path(), &options(changes))
    }
}

fn snapshot(repository: &Repository, report: &BackupReport) -> Snapshot {
    let snapshots = repository.snapshots().unwrap();
    snapshots.into_iter().find(|s| s.id == Some(report.snapshot)).unwrap()
}

fn contents(repository: &Repository, snapshot: &Snapshot) -> Vec<ContentId> {
    let image = repository.image(snapshot).unwrap();
    (0..usize::try_from(CHUNKS).unwrap())
        .map(|at| image.table.content(at))
        .collect()
}

/// A thousand lost ranges did not fit the volume that lies were tried on.
#[test]
fn up_to_a_thousand_lost_ranges_are_found_as_often_as_computed() {
    let world = World::new();
    let mut random = Random::new(11);
    let mut version = 1;
    for grain in [Grain::Chunk, Grain::Blocks] {
        for lost in LOST {
            let (mut found, mut expect, mut variance) = (0u64, 0.0, 0.0);
            let rounds = blockferry_tests::rounds(ROUNDS.0, ROUNDS.1);
            for _ in 0..rounds {
                version += 1;
                let told = Told::random(grain, lost, &mut random);
                let lost_chunks = told.lost_chunks();
                let missed = chance_to_miss(lost_chunks.count(), CHUNKS - told.list().map.count());
                expect += 1.0 - missed;
                variance += missed * (1.0 - missed);
                world.volume.change(&told, version);
                // A second wrong chunk ends in reading everything, which is not waited for here.
                match world.run(&told, Rung::Delta) {
                    Err(error) => {
                        assert!(
                            chain(&error).contains("the audit found blocks changed"),
                            "{}",
                            chain(&error)
                        );
                        found += 1;
                    }
                    Ok(report) => {
                        found += u64::from(!report.mismatches.is_empty());
                        assert_eq!(stale(&world, &told, &report), stands_unfound(&lost_chunks, &report));
                    }
                }
                world.volume.change_back(&told);
            }
            eprintln!("{lost} lost ({grain:?}): found in {found} of {rounds} runs, computed {expect:.1}");
            assert!(
                (found as f64 - expect).abs() <= 4.0 * f64::sqrt(variance) + 1.0,
                "{lost} lost ({grain:?}): {found} found, {expect:.1} expected"
            );
        }
    }
    // In full: nothing is wrong after everything was read.
    version += 1;
    let told = Told::random(Grain::Blocks, 1000, &mut random);
    world.volume.change(&told, version);
    let report = world.run(&told, Rung::Full).unwrap();
    assert_eq!(report.decision.rung, Rung::HashCompare);
    let after = contents(&world.repository, &snapshot(&world.repository, &report));
    let changed = told.changed_chunks();
    for chunk in 0..CHUNKS {
        let at = usize::try_from(chunk).unwrap();
        let want = match changed.get(ChunkIndex::new(chunk)) {
            true => world.volume.content(&world.repository, chunk),
            false => world.before[at],
        };
        assert_eq!(after[at], want, "chunk {chunk}");
    }
}

/// Chunks that changed and are in the snapshot of `report` as they were before.
fn stale(world: &World, told: &Told, report: &BackupReport) -> Vec<u64> {
    let after = contents(&world.repository, &snapshot(&world.repository, report));
    let changed = told.changed_chunks();
    let same = |chunk: &u64| {
        let at = usize::try_from(*chunk).unwrap();
        after[at] == world.before[at]
    };
    let (changed, others): (Vec<u64>, Vec<u64>) = (0..CHUNKS).partition(|chunk| changed.get(ChunkIndex::new(*chunk)));
    assert!(others.iter().all(same), "what did not change is as it was");
    changed.into_iter().filter(same).collect()
}

/// What was lost and not found.
fn stands_unfound(lost: &BlockMap, report: &BackupReport) -> Vec<u64> {
    (0..CHUNKS)
        .filter(|chunk| lost.get(ChunkIndex::new(*chunk)) && !report.mismatches.contains(&ChunkIndex::new(*chunk)))
        .collect()
}
