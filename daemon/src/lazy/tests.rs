use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use repo::Repository;
use repo::blob::{BlobMeta, BlobStore, Habits, MemStore};
use repo::compress::CompressionPolicy;
use repo::format::CreateOptions;
use repo::object::TableBuilder;
use repo::session::{WriteOptions, WriteSession};
use repo::{BlobId, ObjectId};

use super::*;

const MIB: usize = 1 << 20;

/// A store that counts ranged reads, and can hold them up or lose bytes.
#[derive(Default)]
pub(crate) struct Gate {
    pub(crate) inner: MemStore,
    reads: AtomicU64,
    /// Where the read that began last begins.
    last: AtomicU64,
    is_shut: Mutex<bool>,
    /// Reads that come through while it is shut.
    passes: Mutex<u64>,
    opened: Condvar,
    pub(crate) is_gone: AtomicBool,
    /// One who asks whether there is a repository gets no answer, and is counted.
    pub(crate) is_silent: AtomicBool,
    asked: AtomicU64,
}

impl Gate {
    pub(crate) fn shut(&self, is_shut: bool) {
        *self.is_shut.lock().unwrap() = is_shut;
        self.opened.notify_all();
    }

    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }

    /// Times that somebody asked whether there is a repository, and had to wait for the answer.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    /// Lets one read through that waits.
    fn pass_one(&self) {
        let is_shut = self.is_shut.lock().unwrap();
        *self.passes.lock().unwrap() += 1;
        drop(is_shut);
        self.opened.notify_all();
    }

    /// `true` once for each pass.
    fn has_pass(&self) -> bool {
        let mut passes = self.passes.lock().unwrap();
        let has_one = *passes > 0;
        *passes = passes.saturating_sub(1);
        has_one
    }

    /// Waits until `count` reads have begun.
    #[track_caller]
    fn await_reads(&self, count: u64) {
        let deadline = Instant::now() + LONG;
        while self.reads() < count {
            assert!(Instant::now() < deadline, "{} reads, not {count}", self.reads());
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

impl Gate {
    fn here(&self) -> repo::Result<()> {
        match self.is_gone.load(Ordering::SeqCst) {
            true => Err(repo::RepoError::new(repo::Kind::Unavailable, "the storage is away")),
            false => Ok(()),
        }
    }
}

impl BlobStore for Gate {
    fn place(&self) -> String {
        "memory".to_owned()
    }
    fn put(&self, id: &BlobId, bytes: &[u8]) -> repo::Result<()> {
        self.inner.put(id, bytes)
    }
    fn get(&self, id: &BlobId) -> repo::Result<Vec<u8>> {
        // Away and shut, it does not even say so.
        let mut is_shut = self.is_shut.lock().unwrap();
        let is_silent = || self.is_silent.load(Ordering::SeqCst) && id.as_str() == repo::format::REPOSITORY_ID;
        if is_silent() {
            self.asked.fetch_add(1, Ordering::SeqCst);
        }
        while is_silent() || *is_shut && self.is_gone.load(Ordering::SeqCst) {
            is_shut = self.opened.wait(is_shut).unwrap();
        }
        drop(is_shut);
        self.here()?;
        self.inner.get(id)
    }
    fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> repo::Result<Range<usize>> {
        self.last.store(range.start, Ordering::SeqCst);
        self.reads.fetch_add(1, Ordering::SeqCst);
        let mut is_shut = self.is_shut.lock().unwrap();
        while *is_shut && !self.has_pass() {
            is_shut = self.opened.wait(is_shut).unwrap();
        }
        drop(is_shut);
        self.here()?;
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
    fn habits(&self) -> Habits {
        Habits::LOCAL
    }
}

/// A volume of pieces of these lengths, its bytes, and the store they are in. A third of the pieces is zero.
pub(crate) struct World {
    pub(crate) store: Arc<Gate>,
    pub(crate) repository: Arc<Repository>,
    pub(crate) image: Image,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn world(lens: &[usize]) -> World {
    let store = Arc::new(Gate::default());
    Repository::create(&store.inner, "password", &CreateOptions::default()).unwrap();
    let repository = Repository::open(store.clone(), "password").unwrap();
    let options = WriteOptions {
        sealers: 1,
        uploads: 1,
        compression: CompressionPolicy::None,
        user: "u".into(),
        host: "h".into(),
        ..WriteOptions::default()
    };
    let session = WriteSession::begin(&repository, &options).unwrap();
    let mut sealer = session.sealer();
    let (mut table, mut bytes) = (TableBuilder::new(repository.contents().hash_len()), Vec::new());
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for (number, len) in lens.iter().enumerate() {
        let mut piece = vec![0; *len];
        for word in piece.chunks_mut(8).filter(|_| number % 3 != 2) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
        }
        let id = repository.contents().content_id(None, &piece);
        sealer.store(id, &piece).unwrap();
        table.push(piece.len() as u64, &id).unwrap();
        bytes.extend(piece);
    }
    sealer.finish().unwrap();
    session.abandon();
    let table = table.finish();
    let object: ObjectId = table.content(0).to_string().parse().unwrap();
    let snapshot = r#"{"id":"","source":{"host":"h","userName":"u","path":"/v"},"startTime":"2026-01-01T00:00:00Z","endTime":"2026-01-01T00:00:00Z"}"#;
    let image = Image {
        snapshot: serde_json::from_str(snapshot).unwrap(),
        object,
        size: table.len() - 100,
        table,
        list: None,
    };
    bytes.truncate(usize::try_from(image.size).unwrap());
    World {
        store,
        repository: Arc::new(repository),
        image,
        bytes,
    }
}

impl World {
    pub(crate) fn source(&self, memory: u64, deadline: Duration) -> LazySource {
        let fetcher = Fetcher::start(self.repository.clone(), &FetchOptions { memory, deadline }).unwrap();
        LazySource::new(Arc::new(fetcher), self.image.clone()).unwrap()
    }

    #[track_caller]
    fn check(&self, source: &LazySource, offset: usize, len: usize) {
        let mut buf = vec![1; len];
        source.read_at(offset as u64, &mut buf).unwrap();
        assert!(buf == self.bytes[offset..offset + len], "{len} bytes at {offset}");
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn any_bytes_are_those_of_the_volume() {
    for lens in [
        vec![MIB; 9],
        vec![300_000, 1, 700_000, 40, 512, 700_000, 65_536, 9, 700_000],
    ] {
        let world = world(&lens);
        let size = world.bytes.len();
        for memory in [0, 3 << 20, 64 << 20] {
            let source = world.source(memory, LONG);
            let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(60));
            let ranges = (0..size, prop_oneof![1..5000usize, 1..size]);
            let checked = runner.run(&ranges, |(offset, len)| {
                world.check(&source, offset, len.min(size - offset));
                let mut extents = Vec::new();
                let range = Extent::between(offset as u64, (offset + len.min(size - offset)) as u64);
                source.extents(range, &mut extents).unwrap();
                let mut at = range.offset;
                for (extent, kind) in extents {
                    prop_assert_eq!(extent.offset, at);
                    at = extent.end();
                    let part = &world.bytes[usize::try_from(extent.offset).unwrap()..usize::try_from(at).unwrap()];
                    prop_assert!(kind == ExtentKind::Data || part.iter().all(|byte| *byte == 0));
                }
                prop_assert_eq!(at, range.end());
                if let Some(lent) = source.lend(range) {
                    prop_assert!(!lent.is_empty() && world.bytes[offset..offset + lent.len()] == *lent);
                }
                Ok(())
            });
            checked.unwrap();
        }
        let source = world.source(0, LONG);
        let end = size as u64;
        assert!(source.read_at(end - 1, &mut [0; 2]).is_err() && source.read_at(u64::MAX, &mut [0]).is_err());
        assert!(source.lend(Extent { offset: end, len: 1 }).is_none());
    }
}

#[test]
fn zeros_and_the_map_are_known_without_a_read() {
    let world = world(&[MIB; 9]);
    let source = world.source(64 << 20, LONG);
    let before = world.store.reads();
    let mut extents = Vec::new();
    source
        .extents(
            Extent {
                offset: 0,
                len: 9 * MIB as u64 - 100,
            },
            &mut extents,
        )
        .unwrap();
    let kinds: Vec<_> = extents.iter().map(|(extent, kind)| (extent.len >> 20, *kind)).collect();
    let (data, hole) = (ExtentKind::Data, ExtentKind::Hole);
    assert_eq!(
        kinds,
        [(2, data), (1, hole), (2, data), (1, hole), (2, data), (0, hole)]
    );
    assert!(source.try_read_at(2 * MIB as u64, &mut vec![1; MIB]).unwrap());
    assert_eq!(world.store.reads(), before);
}

#[test]
fn a_content_is_fetched_once_however_many_wait_for_it() {
    let world = world(&[MIB; 3]);
    let source = world.source(64 << 20, LONG);
    let before = world.store.reads();
    world.store.shut(true);
    std::thread::scope(|scope| {
        for reader in 0..16 {
            let (world, source) = (&world, &source);
            scope.spawn(move || world.check(source, reader * 1000, 4096));
        }
        let deadline = Instant::now() + LONG;
        while world.store.reads() == before {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        world.store.shut(false);
    });
    assert_eq!(world.store.reads(), before + 1);
}

#[test]
fn neighbours_come_in_one_read_and_a_reader_front_to_back_waits_rarely() {
    let world = world(&[MIB; 24]);
    let source = world.source(256 << 20, LONG);
    let before = world.store.reads();
    world.check(&source, 0, 8 * MIB);
    let at_once = world.store.reads() - before;
    assert!(at_once <= 6, "{at_once} reads of 8 MiB");
    for chunk in 8..23 {
        world.check(&source, chunk * MIB, MIB);
    }
    let reads = world.store.reads() - before;
    assert!(reads <= 12, "{reads} reads of 16 contents");
}

#[test]
fn a_storage_that_does_not_answer_ends_reads_in_time_and_hurts_no_others() {
    let world = world(&[MIB; 6]);
    let source = world.source(64 << 20, Duration::from_millis(300));
    world.check(&source, 0, 100);
    world.store.shut(true);
    let began = Instant::now();
    let error = source.read_at(3 * MIB as u64, &mut [0; 100]).unwrap_err();
    assert!(began.elapsed() < LONG && error.kind == Kind::Io, "{error}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("no answer from the repository"), "{cause}");
    world.check(&source, 50, 100);
    assert!(
        source.read_at(2 * MIB as u64, &mut [0; 100]).is_ok(),
        "zeros need nobody"
    );
    world.store.shut(false);
    let deadline = Instant::now() + LONG;
    while source.read_at(3 * MIB as u64, &mut [0; 100]).is_err() {
        assert!(Instant::now() < deadline, "it did not come back");
    }
    world.check(&source, 3 * MIB, MIB);
}

#[test]
fn a_storage_that_is_away_fails_reads_with_its_reason_until_it_is_back() {
    let world = world(&[MIB; 6]);
    let source = world.source(64 << 20, LONG);
    world.store.is_gone.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let error = source.read_at(0, &mut [0; 100]).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("away"));
    }
    world.store.is_gone.store(false, Ordering::SeqCst);
    world.check(&source, 0, 2 * MIB);
}

#[test]
fn damage_is_an_error_for_its_own_bytes() {
    let world = world(&[MIB; 9]);
    // The piece in the middle of the three reads that are one.
    let entry = world.repository.lookup(&world.image.table.content(3)).unwrap();
    let mut pack = world.store.inner.get(&entry.pack).unwrap();
    pack[entry.offset as usize + 5000] ^= 1;
    world.store.inner.put(&entry.pack, &pack).unwrap();
    let source = world.source(64 << 20, LONG);
    assert!(source.read_at(0, &mut vec![0; 9 * MIB - 100]).is_err());
    for piece in (0..9).filter(|piece| *piece != 3) {
        world.check(&source, piece * MIB, MIB - 100);
    }
    assert!(source.read_at(3 * MIB as u64 + 9, &mut [0; 10]).is_err());
    assert!(
        source
            .try_read_at(3 * MIB as u64, &mut [0; 10])
            .is_ok_and(|ready| !ready)
    );
    assert!(
        source
            .lend(Extent {
                offset: 3 * MIB as u64,
                len: 10
            })
            .is_none()
    );
    // Cut short in the middle of another.
    let cut = world.repository.lookup(&world.image.table.content(4)).unwrap();
    assert_eq!(cut.pack, entry.pack);
    pack.truncate(cut.offset as usize + 100);
    world.store.inner.put(&cut.pack, &pack).unwrap();
    let source = world.source(64 << 20, LONG);
    for piece in 0..9usize {
        let lies = world.repository.lookup(&world.image.table.content(piece)).unwrap();
        let is_whole = piece % 3 == 2 || (piece != 3 && lies.offset < cut.offset);
        let read = source.read_at((piece * MIB) as u64, &mut vec![0; MIB - 100]);
        assert_eq!(read.is_ok(), is_whole, "piece {piece}");
    }
}

/// With readers that never paused, hydration got nothing at all.
#[test]
fn the_background_gets_a_thread_even_while_readers_want_all_of_them() {
    let world = world(&[MIB; 24]);
    let source = Arc::new(world.source(64 << 20, LONG));
    let background = Background::new(source.clone());
    let chunk = |number: u64| Extent {
        offset: number * MIB as u64,
        len: 512,
    };
    // Those that are not zero, in no order in which two of them could be one read.
    let mut wanted = [0u64, 9, 18, 3, 12, 21].into_iter();
    let threads = world.store.habits().reads as u64;
    let before = world.store.reads();
    world.store.shut(true);
    for busy in 1..=threads {
        source.prefetch(chunk(wanted.next().unwrap()));
        world.store.await_reads(before + busy);
    }
    // A reader was there first, and has no thread. The first that is free takes what is owed, and not that.
    source.prefetch(chunk(wanted.next().unwrap()));
    let owed = ChunkIndex::new(wanted.next().unwrap());
    background.send_for(&[owed]);
    world.store.pass_one();
    world.store.await_reads(before + threads + 1);
    let content = world.image.table.content(usize::try_from(owed.get()).unwrap());
    let place = world.repository.lookup(&content).unwrap().offset;
    assert_eq!(
        world.store.last.load(Ordering::SeqCst),
        u64::from(place),
        "what is read is that of the background"
    );
    world.store.shut(false);
    assert_eq!(background.wait(owed, LONG), Landed::Whole);
    background.let_go(owed);
}
