//! A volume that is filled in place from a real repository while it is in use, over what it is filled onto in practice: loop devices
//! and files; with the repository going away, and with the process killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockferry_tests::kopia::{self, Kopia};
use blockferry_tests::process;
use blockferry_tests::volume::{Layout, LoopDevice, LoopOptions, Random, Volume};
use blockferry_tests::wait::{sleep_until, wait_for, wait_for_some};
use blockio::{BlockSink, BlockSource, Device, Extent, OpenOptions};
use daemon::hydrate::{HydrateOptions, HydrateState, HydrateStatus, Hydrator};
use daemon::lazy::{FetchOptions, Fetcher, LazySource};
use daemon::touch::{Trace, TraceKeeper, Watch, Watched};
use nbd::Overlay;
use repo::Repository;
use repo::blob::FsStore;

use crate::bad_input::support::{MIB, PASSWORD, back_up, backup_options, empty, materialise};

const DEADLINE: Duration = Duration::from_secs(120);
/// What a target has before.
const OLD: u8 = 0xEE;

/// A repository in a folder with one snapshot, and places for a state and a target.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        materialise(&*empty(), &folder.path().join("repo"));
        Self { folder }
    }

    fn backed_up(layout: &Layout) -> (Self, Vec<u8>) {
        let (world, volume) = (Self::new(), Volume::create(layout).unwrap());
        back_up(&world.repository(), volume.path(), &backup_options()).unwrap();
        (world, volume.bytes().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn repository(&self) -> Arc<Repository> {
        repository(&self.path("repo"))
    }

    /// A file of old bytes.
    fn file(&self, name: &str, len: u64) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, vec![OLD; usize::try_from(len).unwrap()]).unwrap();
        path
    }

    fn open(&self, target: &Path) -> Result<Mounted, blockio::BlockError> {
        Mounted::open(&self.path("repo"), &self.path("state"), target)
    }
}

fn repository(path: &Path) -> Arc<Repository> {
    let store = Arc::new(FsStore::open(path).unwrap());
    Arc::new(Repository::open(store, PASSWORD).unwrap())
}

/// The last snapshot of a repository, in place of what is in a target.
struct Mounted {
    volume: Arc<Overlay>,
    source: Arc<LazySource>,
    image: repo::ObjectId,
}

impl Mounted {
    fn open(repo: &Path, state: &Path, target: &Path) -> Result<Self, blockio::BlockError> {
        let repository = repository(repo);
        let snapshots = repository.snapshots().unwrap();
        let image = repository.image(snapshots.last().unwrap()).unwrap();
        let options = FetchOptions {
            memory: 64 << 20,
            deadline: Duration::from_secs(20),
        };
        let fetcher = Arc::new(Fetcher::start(repository, &options).unwrap());
        let (identity, object) = (image.object.to_string(), image.object);
        let source = Arc::new(LazySource::new(fetcher, image).unwrap());
        let volume = Overlay::open_in_place(state, target, source.clone(), &identity)?;
        Ok(Self {
            volume: Arc::new(volume),
            source,
            image: object,
        })
    }

    fn hydrate(&self, watch: Option<Arc<Watch>>, trace: Option<Trace>) -> Hydrator {
        let options = HydrateOptions {
            watch,
            retry_min: Duration::from_millis(50),
            retry_max: Duration::from_millis(200),
        };
        Hydrator::start(self.volume.clone(), self.source.clone(), trace, options).unwrap()
    }
}

#[track_caller]
fn wait(hydrator: &Hydrator, is_it: impl Fn(&HydrateStatus) -> bool) -> HydrateStatus {
    let look = || Some(hydrator.status()).filter(&is_it);
    wait_for_some("hydration", DEADLINE, look).unwrap_or_else(|e| panic!("{e}: {:?}", hydrator.status()))
}

fn is_complete(status: &HydrateStatus) -> bool {
    assert!(!matches!(status.state, HydrateState::Failed { .. }), "{status:?}");
    status.state == HydrateState::Complete
}

/// Random requests, the model beside them: what is read is what was there or was written.
fn use_it(volume: &(impl BlockSource + BlockSink), model: &mut [u8], random: &mut Random, rounds: usize) {
    for round in 0..rounds {
        let at = random.below(model.len() as u64 - 70_000);
        let len = 1 + random.below(70_000);
        let range = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
        match round % 6 {
            0 => {
                let bytes: Vec<u8> = (0..len).map(|_| random.next_u64().to_le_bytes()[0]).collect();
                volume.write_at(at, &bytes).unwrap();
                model[range].copy_from_slice(&bytes);
            }
            1 => {
                volume.write_zeroes(Extent { offset: at, len }).unwrap();
                model[range].fill(0);
            }
            2 if round % 12 == 2 => {
                volume.discard(Extent { offset: at, len }).unwrap();
                model[range].fill(0);
            }
            3 if round % 12 == 3 => volume.flush().unwrap(),
            _ => {
                let mut read = vec![1; range.len()];
                volume.read_at(at, &mut read).unwrap();
                assert!(read == model[range], "{len} bytes at {at}");
            }
        }
    }
}

#[track_caller]
fn check_target(target: &Path, model: &[u8]) {
    let found = fs::read(target).unwrap();
    assert!(found[..model.len()] == *model, "the target is the volume");
    assert!(found[model.len()..].iter().all(|byte| *byte == OLD), "and no more");
}

#[test]
fn a_loop_device_is_filled_while_it_is_used() {
    let (world, mut model) = World::backed_up(&Layout::mixed(91, 96 * MIB + 512));
    let backing = world.file("backing", 100 * MIB);
    let Ok(device) = LoopDevice::attach(&backing, LoopOptions::default()) else {
        return;
    };
    let mounted = world.open(device.path()).unwrap();
    let watch = Arc::new(Watch::new(model.len() as u64));
    let served = Watched::new(mounted.volume.clone(), watch.clone());
    let chunks = (model.len() as u64).div_ceil(MIB);
    let keeper = TraceKeeper::start(watch.clone(), &world.path("touches"), mounted.image, chunks, None).unwrap();
    let mut random = Random::new(92);
    let mut hydrator = mounted.hydrate(Some(watch.clone()), None);
    while !is_complete(&hydrator.status()) {
        use_it(&served, &mut model, &mut random, 20);
    }
    use_it(&served, &mut model, &mut random, 60);
    served.flush().unwrap();
    let status = hydrator.stop();
    assert_eq!(
        (status.state, status.present_bytes),
        (HydrateState::Complete, model.len() as u64)
    );
    keeper.stop();
    let trace = Trace::load(&world.path("touches"), &mounted.image, chunks).unwrap();
    assert!(trace.chunks().eq(watch.touched(0)) && watch.touches() > 10);
    drop((hydrator, served, mounted));
    check_target(device.path(), &model);
    // The repository is of no more use.
    let mounted = world.open(device.path()).unwrap();
    assert!(mounted.volume.is_complete());
    use_it(&*mounted.volume, &mut model, &mut random, 30);
    mounted.volume.flush().unwrap();
    drop(mounted);
    check_target(device.path(), &model);
}

#[test]
fn a_repository_that_is_moved_away_and_back_is_waited_for() {
    let (world, mut model) = World::backed_up(&Layout::mixed(93, 64 * MIB));
    let target = world.file("target", 64 * MIB);
    let mounted = world.open(&target).unwrap();
    fs::rename(world.path("repo"), world.path("away")).unwrap();
    let mut hydrator = mounted.hydrate(None, None);
    wait(&hydrator, |status| {
        matches!(status.state, HydrateState::WaitingForRepository { .. })
    });
    // What is written meanwhile needs no repository where it is whole blocks.
    mounted.volume.write_at(8192, &[5; 65536]).unwrap();
    model[8192..8192 + 65536].fill(5);
    mounted.volume.flush().unwrap();
    sleep_until(Instant::now() + Duration::from_millis(500));
    let status = hydrator.status();
    assert!(
        matches!(status.state, HydrateState::WaitingForRepository { .. }),
        "{status:?}"
    );
    assert_eq!(status.damaged_chunks, 0);
    fs::rename(world.path("away"), world.path("repo")).unwrap();
    wait(&hydrator, is_complete);
    hydrator.stop();
    drop((hydrator, mounted));
    check_target(&target, &model);
}

#[test]
fn a_file_that_kopia_took_is_hydrated_whatever_its_pieces_are() {
    if !kopia::available() {
        eprintln!("SKIPPED: kopia is not installed");
        return;
    }
    let world = World::new();
    let kopia = Kopia::new(&world.path("repo"), PASSWORD).unwrap();
    kopia.connect().unwrap();
    kopia.policy_set("--global", &["--splitter=DYNAMIC-1M-BUZHASH"]).ok();
    let volume = Volume::create(&Layout::mixed(94, 40 * MIB + 1234)).unwrap();
    kopia.snapshot_create(volume.path(), &[]).unwrap();
    let mut model = volume.bytes().unwrap();
    let target = world.file("target", 41 * MIB);
    let mounted = world.open(&target).unwrap();
    let hydrator = mounted.hydrate(None, None);
    let mut random = Random::new(95);
    while !is_complete(&hydrator.status()) {
        use_it(&*mounted.volume, &mut model, &mut random, 10);
    }
    mounted.volume.flush().unwrap();
    drop((hydrator, mounted));
    check_target(&target, &model);
}

/// Runs as a process of its own that is killed: fills a target, and says after each flush of its writes how many there are.
#[test]
fn filler() {
    let Ok(folder) = std::env::var("BLOCKFERRY_TEST_FILL") else {
        return;
    };
    let folder = PathBuf::from(folder);
    let mounted = Mounted::open(&folder.join("repo"), &folder.join("state"), &folder.join("target")).unwrap();
    let hydrator = mounted.hydrate(None, None);
    let from: u64 = std::env::var("BLOCKFERRY_TEST_FROM").unwrap().parse().unwrap();
    for number in from..from + 100_000 {
        let (at, bytes) = numbered(number);
        mounted.volume.write_at(at, &bytes).unwrap();
        if number % 4 == 3 {
            mounted.volume.flush().unwrap();
            // Replaced whole, so that it is never half of a number.
            fs::write(folder.join("flushed.new"), (number + 1).to_string()).unwrap();
            fs::rename(folder.join("flushed.new"), folder.join("flushed")).unwrap();
        }
        // So that there are some in every phase of hydration.
        sleep_until(Instant::now() + Duration::from_millis(1));
    }
    drop(hydrator);
}

const KILLED_SIZE: u64 = 160 * MIB;

/// Write number `number`: a place of its own, in no order.
fn numbered(number: u64) -> (u64, Vec<u8>) {
    let at = number * 7919 % (KILLED_SIZE / 1000) * 1000;
    (at, vec![u8::try_from(number % 251).unwrap(); 1000])
}

fn start_filler(world: &World, from: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hydrate::filler", "--nocapture"])
        .env("BLOCKFERRY_TEST_FILL", world.folder.path())
        .env("BLOCKFERRY_TEST_FROM", from.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

#[test]
fn a_process_that_is_killed_is_followed_by_one_that_goes_on() {
    let (world, mut model) = World::backed_up(&Layout::mixed(96, KILLED_SIZE));
    let target = world.file("target", KILLED_SIZE);
    let flushed = || -> u64 {
        let text = fs::read_to_string(world.path("flushed")).unwrap_or_default();
        text.parse().unwrap_or(0)
    };
    let mut from = 0;
    for round in 0..4u64 {
        let before = flushed();
        let mut child = start_filler(&world, from);
        wait_for("flushes", DEADLINE, || {
            assert!(child.try_wait().unwrap().is_none(), "it goes on until it is killed");
            flushed() >= before + 8 + 20 * round
        })
        .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let durable = flushed();
        assert!(durable > from);
        // Those after the last flush may be there or not; they are written again, by the next one.
        for number in from..durable {
            let (at, bytes) = numbered(number);
            model[usize::try_from(at).unwrap()..][..1000].copy_from_slice(&bytes);
        }
        from = durable;
    }
    let mounted = world.open(&target).unwrap();
    for number in 0..from {
        let (at, bytes) = numbered(number);
        let mut read = vec![0; 1000];
        mounted.volume.read_at(at, &mut read).unwrap();
        assert!(read == bytes, "write {number} was flushed");
    }
    // What the last one wrote without a flush: at most what it did between two of them, and the one under way.
    for number in from..from + 16 {
        let (at, bytes) = numbered(number);
        mounted.volume.write_at(at, &bytes).unwrap();
        model[usize::try_from(at).unwrap()..][..1000].copy_from_slice(&bytes);
    }
    let hydrator = mounted.hydrate(None, None);
    wait(&hydrator, is_complete);
    mounted.volume.flush().unwrap();
    drop((hydrator, mounted));
    check_target(&target, &model);
}

#[test]
fn devices_that_will_not_do_are_refused_and_left_as_they_are() {
    let (world, model) = World::backed_up(&Layout::mixed(97, 24 * MIB));
    let backing = world.file("backing", 32 * MIB);
    let Ok(device) = LoopDevice::attach(&backing, LoopOptions::default()) else {
        return;
    };
    let refused = |target: &Path, word: &str| {
        let error = world.open(target).err().expect("refused").to_string();
        assert!(error.contains(word), "{error}");
    };
    let small = world.file("small", 24 * MIB - 512);
    let small = LoopDevice::attach(&small, LoopOptions::default()).unwrap();
    refused(small.path(), "smaller");
    // A file behind a loop device is in use by that.
    refused(&backing, "in use");
    let holder = Device::open(device.path(), &OpenOptions::overwrite()).unwrap();
    refused(device.path(), "in use");
    drop(holder);
    let large = world.file("large blocks", 32 * MIB);
    let options = LoopOptions {
        logical_block: Some(4096),
        ..LoopOptions::default()
    };
    if let Ok(large) = LoopDevice::attach(&large, options) {
        refused(large.path(), "blocks of 4096 bytes");
    }
    assert!(
        fs::read(&backing).unwrap().iter().all(|byte| *byte == OLD),
        "nothing was written"
    );
    process::run(Command::new("mkfs.ext4").arg("-q").arg(device.path())).unwrap();
    let place = world.path("mounted");
    fs::create_dir(&place).unwrap();
    process::run(Command::new("mount").arg(device.path()).arg(&place)).unwrap();
    let found = world.open(device.path()).err().map(|error| error.to_string());
    process::run(Command::new("umount").arg(&place)).unwrap();
    assert!(found.is_some_and(|error| error.contains("mounted at")));
    // A state belongs to its device.
    drop(world.open(device.path()).unwrap());
    let other = world.file("other", 32 * MIB);
    let other = LoopDevice::attach(&other, LoopOptions::default()).unwrap();
    refused(other.path(), "another target");
    let mounted = world.open(device.path()).unwrap();
    let hydrator = mounted.hydrate(None, None);
    wait(&hydrator, is_complete);
    drop((hydrator, mounted));
    assert!(fs::read(device.path()).unwrap()[..model.len()] == model);
}
