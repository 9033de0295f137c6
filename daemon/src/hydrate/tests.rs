use std::path::PathBuf;

use repo::BlobId;
use repo::blob::BlobStore;

use super::*;
use crate::lazy::tests::{World, world};
use crate::touch::{Watch, Watched};

const MIB: usize = 1 << 20;
const LONG: Duration = Duration::from_secs(120);

/// Retries within a test's time.
const FAST: HydrateOptions = HydrateOptions {
    watch: None,
    retry_min: Duration::from_millis(20),
    retry_max: Duration::from_millis(100),
};

/// A target of old bytes, longer than the volume, beside a state.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(world: &World) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("target"), vec![0xEE; world.bytes.len() + 5000]).unwrap();
        Self { dir }
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }

    /// The volume over its source, as a process would have it that starts.
    fn open(&self, world: &World) -> (Arc<Overlay>, Arc<LazySource>) {
        let source = Arc::new(world.source(64 << 20, LONG));
        let overlay =
            Overlay::open_in_place(&self.dir.path().join("state"), &self.target(), source.clone(), "x").unwrap();
        (Arc::new(overlay), source)
    }

    #[track_caller]
    fn check(&self, expect: &[u8]) {
        let found = std::fs::read(self.target()).unwrap();
        assert!(found[..expect.len()] == *expect, "the target is the volume");
        assert!(found[expect.len()..].iter().all(|byte| *byte == 0xEE), "and no more");
    }
}

#[track_caller]
fn wait(hydrator: &Hydrator, is_it: impl Fn(&HydrateStatus) -> bool) -> HydrateStatus {
    let deadline = Instant::now() + LONG;
    loop {
        let status = hydrator.status();
        if is_it(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        thread::park_timeout(Duration::from_millis(2));
    }
}

fn is_final(status: &HydrateStatus) -> bool {
    !matches!(
        status.state,
        HydrateState::Running | HydrateState::WaitingForRepository { .. }
    )
}

/// Pieces as we write them, and as a splitter that looks at the data does; a third of them zero.
fn shapes() -> [Vec<usize>; 3] {
    let odd = |number: usize| [300_000, 1, 700_000, 40, 512, 65_536, 9, 2_500_000][number * 7 % 8];
    [vec![MIB; 40], (0..60).map(odd).collect(), vec![4 * MIB; 9]]
}

#[test]
fn a_volume_of_any_shape_is_filled_while_it_is_read_and_written() {
    for lens in shapes() {
        let world = world(&lens);
        let place = Place::new(&world);
        let (volume, source) = place.open(&world);
        let watch = Arc::new(Watch::new(world.image.size));
        let served = Watched::new(volume.clone(), watch.clone());
        let options = HydrateOptions {
            watch: Some(watch.clone()),
            ..FAST
        };
        let hydrator = Hydrator::start(volume, source, None, options).unwrap();
        let mut model = world.bytes.clone();
        let mut random = 88_172_645_463_325_252u64;
        let mut round = 0u32;
        // On until it is complete, and a little more.
        while round < 50 || !is_final(&hydrator.status()) {
            round += 1;
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let at = usize::try_from(random).unwrap() % (model.len() - 9000);
            let len = 1 + usize::try_from(random >> 40).unwrap() % 9000;
            let extent = Extent::between(at as u64, (at + len) as u64);
            match round % 5 {
                0 => {
                    let bytes = vec![u8::try_from(round % 250).unwrap(); len];
                    served.write_at(at as u64, &bytes).unwrap();
                    model[at..at + len].copy_from_slice(&bytes);
                }
                1 if round % 10 == 1 => {
                    served.discard(extent).unwrap();
                    model[at..at + len].fill(0);
                }
                _ => {
                    let mut read = vec![1; len];
                    served.read_at(at as u64, &mut read).unwrap();
                    assert!(read == model[at..at + len], "{len} bytes at {at}");
                }
            }
            thread::park_timeout(Duration::from_micros(200));
        }
        let status = hydrator.status();
        assert_eq!(status.state, HydrateState::Complete);
        assert_eq!(
            (status.present_bytes, status.total_bytes),
            (world.image.size, world.image.size)
        );
        drop((hydrator, served));
        place.check(&model);
        assert!(watch.touches() > 0);
        // Nothing is fetched for a volume that is complete.
        let before = world.store.reads();
        let (volume, source) = place.open(&world);
        let mut hydrator = Hydrator::start(volume, source, None, FAST).unwrap();
        assert_eq!(hydrator.stop().state, HydrateState::Complete);
        assert_eq!(world.store.reads(), before);
    }
}

#[test]
fn a_repository_that_goes_away_is_waited_for() {
    let world = world(&[MIB; 40]);
    let place = Place::new(&world);
    let (volume, source) = place.open(&world);
    world.store.is_gone.store(true, Ordering::SeqCst);
    let hydrator = Hydrator::start(volume.clone(), source, None, FAST).unwrap();
    let waiting = |status: &HydrateStatus| matches!(&status.state, HydrateState::WaitingForRepository { why } if why.contains("away"));
    wait(&hydrator, waiting);
    // Whole sectors: parts of them need the base.
    volume.write_at(5120, &[7; 3072]).unwrap();
    volume.flush().unwrap();
    // Longer than any wait between two tries.
    thread::park_timeout(FAST.retry_max * 3);
    wait(&hydrator, waiting);
    world.store.is_gone.store(false, Ordering::SeqCst);
    assert_eq!(wait(&hydrator, is_final).state, HydrateState::Complete);
    drop(hydrator);
    let mut model = world.bytes.clone();
    model[5120..8192].fill(7);
    place.check(&model);
}

#[test]
fn it_is_stopped_while_the_repository_is_asked_and_says_nothing() {
    let world = world(&[MIB; 40]);
    let place = Place::new(&world);
    let (volume, source) = place.open(&world);
    world.store.is_gone.store(true, Ordering::SeqCst);
    let hydrator = Hydrator::start(volume, source, None, FAST).unwrap();
    wait(&hydrator, |status| {
        matches!(status.state, HydrateState::WaitingForRepository { .. })
    });
    world.store.shut(true);
    let asked = Instant::now();
    while !hydrator.shared.inner().is_asking || asked.elapsed() < FAST.retry_max * 2 {
        thread::park_timeout(Duration::from_millis(2));
    }
    check_stops(hydrator, || world.store.shut(false));
}

/// It is stopped, although the repository does not answer until it is told to.
#[track_caller]
fn check_stops(mut hydrator: Hydrator, answer: impl Fn()) {
    let stopped = thread::spawn(move || hydrator.stop());
    let limit = Instant::now() + Duration::from_secs(10);
    while !stopped.is_finished() && Instant::now() < limit {
        thread::park_timeout(Duration::from_millis(2));
    }
    let is_stopped = stopped.is_finished();
    answer();
    assert!(is_stopped, "it waits for a repository that does not answer");
    assert_eq!(stopped.join().unwrap().state, HydrateState::Stopped);
}

/// Flips a bit of content number `number` of the volume; gives its pack as it was.
fn damage(world: &World, number: usize) -> (BlobId, Vec<u8>) {
    let entry = world.repository.lookup(&world.image.table.content(number)).unwrap();
    let pack = world.store.inner.get(&entry.pack).unwrap();
    let mut damaged = pack.clone();
    damaged[entry.offset as usize + 5000] ^= 1;
    world.store.inner.put(&entry.pack, &damaged).unwrap();
    (entry.pack, pack)
}

#[test]
fn it_is_stopped_while_it_asks_whether_damage_is_believed() {
    let world = world(&[MIB; 12]);
    damage(&world, 3);
    let place = Place::new(&world);
    let (volume, source) = place.open(&world);
    world.store.is_silent.store(true, Ordering::SeqCst);
    let hydrator = Hydrator::start(volume, source, None, FAST).unwrap();
    let deadline = Instant::now() + LONG;
    while world.store.asked() == 0 {
        assert!(Instant::now() < deadline, "{:?}", hydrator.status());
        thread::park_timeout(Duration::from_millis(2));
    }
    check_stops(hydrator, || {
        world.store.is_silent.store(false, Ordering::SeqCst);
        world.store.shut(false);
    });
}

#[test]
fn damage_costs_its_own_chunk_and_that_the_volume_is_complete() {
    let world = world(&[MIB; 12]);
    let (pack, whole) = damage(&world, 3);
    let place = Place::new(&world);
    let (volume, source) = place.open(&world);
    let mut hydrator = Hydrator::start(volume.clone(), source, None, FAST).unwrap();
    let status = wait(&hydrator, is_final);
    assert!(
        matches!(&status.state, HydrateState::Failed { why } if why.contains("1 chunks of the volume cannot be had")),
        "{status:?}"
    );
    assert_eq!(
        (status.damaged_chunks, status.present_bytes),
        (1, world.image.size - MIB as u64)
    );
    assert_eq!(volume.absent().iter().collect::<Vec<_>>(), [ChunkIndex::new(3)]);
    assert!(volume.complete().is_err());
    let mut read = vec![0; 2 * MIB];
    assert!(volume.read_at(3 * MIB as u64 + 5, &mut read[..10]).is_err());
    volume.read_at(4 * MIB as u64, &mut read).unwrap();
    assert!(read == world.bytes[4 * MIB..6 * MIB]);
    hydrator.stop();
    drop((hydrator, volume));
    // Mended, the next one ends it.
    world.store.inner.put(&pack, &whole).unwrap();
    let (volume, source) = place.open(&world);
    let hydrator = Hydrator::start(volume, source, None, FAST).unwrap();
    assert_eq!(wait(&hydrator, is_final).state, HydrateState::Complete);
    drop(hydrator);
    place.check(&world.bytes);
}

#[test]
fn what_is_stopped_goes_on_where_it_was() {
    let world = world(&[MIB; 60]);
    let place = Place::new(&world);
    let mut present = 0;
    let mut model = world.bytes.clone();
    for round in 0..4u8 {
        let (volume, source) = place.open(&world);
        assert!(volume.present_bytes() >= present, "what was flushed is there");
        volume.write_at(u64::from(round) * 7000, &[round; 3000]).unwrap();
        model[usize::from(round) * 7000..usize::from(round) * 7000 + 3000].fill(round);
        let mut hydrator = Hydrator::start(volume.clone(), source, None, FAST).unwrap();
        let goal = present + (8 * MIB) as u64;
        wait(&hydrator, |status| status.present_bytes >= goal || is_final(status));
        present = hydrator.stop().present_bytes;
    }
    let (volume, source) = place.open(&world);
    let hydrator = Hydrator::start(volume, source, None, FAST).unwrap();
    assert_eq!(wait(&hydrator, is_final).state, HydrateState::Complete);
    drop(hydrator);
    place.check(&model);
}

#[test]
fn packs_are_read_in_long_reads_and_zeros_not_at_all() {
    let world = world(&[MIB; 60]);
    let place = Place::new(&world);
    let (volume, source) = place.open(&world);
    let before = world.store.reads();
    let hydrator = Hydrator::start(volume, source, None, FAST).unwrap();
    assert_eq!(wait(&hydrator, is_final).state, HydrateState::Complete);
    // 40 MiB of data: the guess reads three chunks alone, and an edge of the window is a read of its own now and then.
    let reads = world.store.reads() - before;
    assert!(reads <= 16, "{reads} reads of 40 contents");
}

#[test]
fn a_reader_does_not_wait_behind_what_is_sent_for_and_that_fills_no_memory() {
    let world = world(&[MIB; 60]);
    let source = Arc::new(world.source(64 << 20, LONG));
    let background = Background::new(source.clone());
    world.store.shut(true);
    let chunks: Vec<ChunkIndex> = (0..45).map(ChunkIndex::new).collect();
    let before = world.store.reads();
    background.send_for(&chunks);
    // As many reads as it may have, which do not return.
    let deadline = Instant::now() + LONG;
    while world.store.reads() < before + 3 {
        assert!(Instant::now() < deadline);
        thread::park_timeout(Duration::from_millis(1));
    }
    thread::scope(|scope| {
        let reader = scope.spawn(|| source.read_at(58 * MIB as u64, &mut [0; 512]));
        while world.store.reads() < before + 4 {
            assert!(Instant::now() < deadline, "it waits behind the others");
            thread::park_timeout(Duration::from_millis(1));
        }
        world.store.shut(false);
        reader.join().unwrap().unwrap();
    });
    for chunk in &chunks {
        assert_eq!(background.wait(*chunk, LONG), Landed::Whole);
        let mut read = vec![1; MIB];
        background.read_at(chunk.offset(), &mut read).unwrap();
        let at = usize::try_from(chunk.offset()).unwrap();
        assert!(read == world.bytes[at..at + MIB]);
        background.let_go(*chunk);
    }
    assert!(background.read_at(0, &mut [0; 10]).is_err(), "it was let go");
    assert!(
        !source.try_read_at(0, &mut [0; 10]).unwrap(),
        "nothing of it is in memory"
    );
    assert!(
        source.try_read_at(58 * MIB as u64, &mut [0; 10]).unwrap(),
        "what was read is"
    );
    // One that a reader joins stays for him.
    world.store.shut(true);
    background.send_for(&chunks[..1]);
    thread::scope(|scope| {
        let reader = scope.spawn(|| source.read_at(0, &mut [0; 512]));
        thread::park_timeout(Duration::from_millis(50));
        world.store.shut(false);
        reader.join().unwrap().unwrap();
    });
    assert!(source.try_read_at(0, &mut [0; 10]).unwrap());
}
