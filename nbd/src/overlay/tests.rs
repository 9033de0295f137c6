use super::*;
use crate::memory::MemSource;
use proptest::prelude::*;
use std::collections::BTreeMap;

const SIZE: u64 = CHUNK_SIZE + 8 * 1024 + 700;

/// A change that is not durable yet.
#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
    Punch(usize, usize),
}

/// A file on a disk that may lose power: what is durable, what a reader sees, and what makes the difference.
#[derive(Clone, Debug, Default)]
struct Content {
    durable: Vec<u8>,
    live: Vec<u8>,
    pending: Vec<Change>,
}

impl Content {
    fn apply(bytes: &mut Vec<u8>, change: &Change) {
        match change {
            Change::Write(at, data) => {
                if bytes.len() < at + data.len() {
                    bytes.resize(at + data.len(), 0);
                }
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
            Change::Len(len) => bytes.resize(*len, 0),
            Change::Punch(at, len) => {
                let end = (at + len).min(bytes.len());
                bytes[*at..end].fill(0);
            }
        }
    }

    fn change(&mut self, change: Change) {
        Self::apply(&mut self.live, &change);
        self.pending.push(change);
    }

    /// The power is gone: of what was not durable any sectors may be, and any may not.
    fn lose_power(&mut self, random: &mut u64) {
        for change in std::mem::take(&mut self.pending) {
            let pieces: Vec<Change> = match change {
                Change::Len(len) => vec![Change::Len(len)],
                Change::Write(at, data) => cut(at, data.len())
                    .map(|(from, to)| Change::Write(from, data[from - at..to - at].to_vec()))
                    .collect(),
                Change::Punch(at, len) => cut(at, len).map(|(from, to)| Change::Punch(from, to - from)).collect(),
            };
            for piece in pieces.iter().filter(|_| coin(random)) {
                Self::apply(&mut self.durable, piece);
            }
        }
        self.live.clone_from(&self.durable);
    }
}

/// `at..at + len` cut at every sector.
fn cut(at: usize, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let end = at + len;
    let mut from = at;
    std::iter::from_fn(move || {
        let to = end.min((from / 512 + 1) * 512);
        let piece = (from < end).then_some((from, to));
        from = to;
        piece
    })
}

fn coin(random: &mut u64) -> bool {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random & 8 != 0
}

#[derive(Debug, Default)]
struct Disk {
    files: BTreeMap<&'static str, Content>,
    /// Durable steps until the power goes.
    steps: usize,
    dead: bool,
    /// Decides what a cut in the middle of a step leaves.
    random: u64,
    /// The log takes no more bytes than this.
    log_max: Option<usize>,
}

impl Disk {
    /// One durable step; `false` when the power goes in it.
    fn step(&mut self) -> io::Result<()> {
        if self.steps == 0 {
            self.dead = true;
        }
        self.steps = self.steps.saturating_sub(1);
        self.alive()
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(io::Error::other("no power")) } else { Ok(()) }
    }
}

#[derive(Clone)]
struct SimFolder(Arc<Mutex<Disk>>);

struct SimFile {
    disk: Arc<Mutex<Disk>>,
    name: Mutex<&'static str>,
}

impl SimFolder {
    fn file(&self, name: &'static str) -> SimFile {
        SimFile {
            disk: self.0.clone(),
            name: Mutex::new(name),
        }
    }
}

impl Folder for SimFolder {
    type File = SimFile;

    fn data(&self) -> io::Result<(SimFile, bool)> {
        let mut disk = self.0.lock().unwrap();
        disk.alive()?;
        let content = disk.files.entry("data").or_default();
        let written = content.live.iter().any(|byte| *byte != 0);
        drop(disk);
        Ok((self.file("data"), written))
    }

    fn log(&self) -> io::Result<Option<SimFile>> {
        let disk = self.0.lock().unwrap();
        disk.alive()?;
        Ok(disk.files.contains_key("log").then(|| self.file("log")))
    }

    fn begin_log(&self) -> io::Result<SimFile> {
        let mut disk = self.0.lock().unwrap();
        disk.alive()?;
        disk.files.insert("log.new", Content::default());
        // It keeps being this file when it gets the other name.
        Ok(self.file("log.new"))
    }

    fn commit_log(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        // Cut in it, the name may be the old one or the new one.
        let cut = disk.step();
        if cut.is_err() && coin(&mut disk.random) {
            return cut;
        }
        let new = disk.files.remove("log.new").unwrap();
        assert!(new.pending.is_empty(), "put in place before it was durable");
        disk.files.insert("log", new);
        cut
    }
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut Content) -> T) -> io::Result<T> {
        let mut disk = self.disk.lock().unwrap();
        disk.alive()?;
        let mut name = self.name.lock().unwrap();
        if *name == "log.new" && !disk.files.contains_key("log.new") {
            *name = "log";
        }
        Ok(act(disk.files.get_mut(*name).unwrap()))
    }
}

impl Medium for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|content| content.live.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|content| content.change(Change::Len(usize::try_from(len).unwrap())))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        self.with(|content| buf.copy_from_slice(&content.live[from..from + buf.len()]))
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.read_at(buf, offset).map(|()| true)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        let max = self.disk.lock().unwrap().log_max.filter(|_| *self.name.lock().unwrap() != "data");
        let room = max.map_or(buf.len(), |max| max.saturating_sub(from).min(buf.len()));
        self.with(|content| content.change(Change::Write(from, buf[..room].to_vec())))?;
        if room < buf.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) {
        let (offset, len) = (usize::try_from(offset).unwrap(), usize::try_from(len).unwrap());
        let _ = self.with(|content| content.change(Change::Punch(offset, len)));
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.lock().unwrap().step()?;
        self.with(|content| {
            content.durable.clone_from(&content.live);
            content.pending.clear();
        })
    }
}

#[derive(Clone, Debug)]
enum Act {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Discard(u64, u64),
    Flush,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    // Most changes near the start, at the border of the chunks and at the end, so that they meet.
    let offset = prop_oneof![0..6000u64, CHUNK_SIZE - 3000..CHUNK_SIZE + 3000, SIZE - 3000..SIZE];
    let len = prop_oneof![5 => 1..3000u64, 2 => Just(4096u64), 1 => Just(2 * CHUNK_SIZE)];
    let range = (offset, len).prop_map(|(offset, len)| (offset, len.min(SIZE - offset)));
    let act = (range, 0..8u8, 1..255u8).prop_map(|((offset, len), which, byte)| match which {
        0..4 => Act::Write(offset, len, byte),
        4 => Act::Zero(offset, len),
        5 => Act::Discard(offset, len),
        _ => Act::Flush,
    });
    prop::collection::vec(act, 1..14)
}

/// What each sector may hold after a crash: what it held at the last flush, and everything written to it since.
struct Model {
    now: Vec<u8>,
    flushed: Vec<u8>,
    since: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl Model {
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            flushed: bytes.clone(),
            now: bytes,
            since: BTreeMap::new(),
        }
    }

    fn fill(&mut self, offset: u64, len: u64, byte: u8) {
        let (from, to) = (usize::try_from(offset).unwrap(), usize::try_from(offset + len).unwrap());
        self.now[from..to].fill(byte);
        for sector in from / 512..to.div_ceil(512) {
            let range = sector * 512..(sector * 512 + 512).min(self.now.len());
            self.since.entry(sector).or_default().push(self.now[range].to_vec());
        }
    }

    fn flush(&mut self) {
        self.flushed.clone_from(&self.now);
        self.since.clear();
    }

    fn check(&self, read: &[u8]) -> Result<(), String> {
        for (sector, found) in read.chunks(512).enumerate() {
            let flushed = &self.flushed[sector * 512..sector * 512 + found.len()];
            let later = self.since.get(&sector).is_some_and(|since| since.iter().any(|bytes| bytes == found));
            if found != flushed && !later {
                return Err(format!("sector {sector} holds what was neither flushed nor written later"));
            }
        }
        Ok(())
    }
}

fn base() -> Arc<MemSource> {
    let bytes: Vec<u8> = (0..SIZE).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
    Arc::new(MemSource::from_bytes(&bytes))
}

fn all(overlay: &Inner<SimFolder>) -> Vec<u8> {
    let mut read = vec![0; usize::try_from(SIZE).unwrap()];
    overlay.read(0, &mut read, true).unwrap();
    read
}

fn run(overlay: &Inner<SimFolder>, acts: &[Act], model: &mut Model) -> Result<(), BlockError> {
    for act in acts {
        match *act {
            Act::Write(offset, len, byte) => {
                model.fill(offset, len, byte);
                overlay.write(offset, &vec![byte; usize::try_from(len).unwrap()])?;
            }
            Act::Zero(offset, len) | Act::Discard(offset, len) => {
                model.fill(offset, len, 0);
                overlay.zero(Extent { offset, len }, matches!(act, Act::Discard(..)))?;
            }
            Act::Flush => {
                overlay.flush()?;
                model.flush();
            }
        }
    }
    Ok(())
}

/// Small, so that the log is replaced within a few flushes.
const LOG_SMALL: u64 = 1500;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Cut in every durable step in turn, whatever of the rest reached the disk: each sector holds what was flushed, or
    /// something later; and what the overlay shows after that, it goes on showing.
    #[test]
    fn a_cut_anywhere_loses_nothing_that_was_flushed(acts in acts(), more in acts(), seed in 1u64..) {
        let mut random = seed;
        for cut in 0.. {
            coin(&mut random);
            let disk = Arc::new(Mutex::new(Disk { steps: cut, random, ..Disk::default() }));
            let folder = SimFolder(disk.clone());
            let below = base();
            let mut first = vec![0; usize::try_from(SIZE).unwrap()];
            below.read_at(0, &mut first).unwrap();
            let mut model = Model::new(first);
            let ended = Inner::open(folder.clone(), below.clone(), "x", LOG_SMALL).and_then(|overlay| run(&overlay, &acts, &mut model));
            if ended.is_ok() {
                prop_assert!(cut >= 3, "making one takes three steps");
            }
            {
                let mut disk = disk.lock().unwrap();
                disk.files.values_mut().for_each(|file| file.lose_power(&mut random));
                (disk.dead, disk.steps) = (false, usize::MAX);
            }
            let overlay = Inner::open(folder.clone(), below.clone(), "x", LOG_SMALL).map_err(|e| TestCaseError::fail(format!("{e}")))?;
            let read = all(&overlay);
            model.check(&read).map_err(TestCaseError::fail)?;
            // On from there, and once more.
            let mut model = Model::new(read);
            run(&overlay, &more, &mut model).map_err(|e| TestCaseError::fail(format!("{e}")))?;
            prop_assert!(all(&overlay) == model.now, "what was written is read");
            drop(overlay);
            disk.lock().unwrap().files.values_mut().for_each(|file| file.lose_power(&mut random));
            let overlay = Inner::open(folder, below, "x", LOG_SMALL).map_err(|e| TestCaseError::fail(format!("{e}")))?;
            model.check(&all(&overlay)).map_err(TestCaseError::fail)?;
            if ended.is_ok() {
                break;
            }
        }
    }
}

fn opened(disk: &Arc<Mutex<Disk>>) -> Result<Inner<SimFolder>, BlockError> {
    Inner::open(SimFolder(disk.clone()), base(), "x", LOG_MIN)
}

fn disk() -> Arc<Mutex<Disk>> {
    Arc::new(Mutex::new(Disk {
        steps: usize::MAX,
        ..Disk::default()
    }))
}

#[test]
fn a_log_without_room_is_tried_again_when_there_is_some() {
    let disk = disk();
    let overlay = opened(&disk).unwrap();
    overlay.write(0, &[7; 512]).unwrap();
    disk.lock().unwrap().log_max = Some(100);
    assert_eq!(overlay.flush().unwrap_err().kind, Kind::NoSpace);
    overlay.write(1024, &[8; 512]).unwrap();
    disk.lock().unwrap().log_max = None;
    overlay.flush().unwrap();
    drop(overlay);
    let mut random = 5;
    disk.lock().unwrap().files.values_mut().for_each(|file| file.lose_power(&mut random));
    let read = all(&opened(&disk).unwrap());
    assert!(read[..512] == [7; 512] && read[1024..1536] == [8; 512]);
}

#[test]
fn a_flush_that_fails_is_not_followed_by_one_that_succeeds() {
    let disk = disk();
    let overlay = opened(&disk).unwrap();
    overlay.write(0, &[7; 512]).unwrap();
    disk.lock().unwrap().steps = 0;
    assert!(overlay.flush().is_err());
    let mut disk = disk.lock().unwrap();
    (disk.dead, disk.steps) = (false, usize::MAX);
    drop(disk);
    assert!(overlay.flush().is_err() && overlay.write(0, &[1]).is_err());
    let mut buf = [0; 512];
    assert!(overlay.read(0, &mut buf, true).unwrap() && buf == [7; 512], "reads go on");
}

#[test]
fn damage_to_what_was_durable_is_refused_and_a_batch_cut_short_is_not() {
    let disk = disk();
    let overlay = opened(&disk).unwrap();
    let mut ends = Vec::new();
    for number in 0..3u64 {
        overlay.write(number * 1024, &[9; 512]).unwrap();
        overlay.flush().unwrap();
        ends.push(usize::try_from(overlay.log.lock().unwrap().len).unwrap());
    }
    drop(overlay);
    let log = disk.lock().unwrap().files["log"].live.clone();
    let put = |bytes: Vec<u8>| disk.lock().unwrap().files.get_mut("log").unwrap().live = bytes;
    for at in ends[0]..log.len() {
        let mut damaged = log.clone();
        damaged[at] ^= 4;
        put(damaged);
        // In the last batch it cannot be told from one that was cut short.
        assert_eq!(opened(&disk).is_ok(), at >= ends[1], "byte {at}");
        put(log[..at].to_vec());
        assert!(opened(&disk).is_ok(), "cut at {at}");
    }
    for at in 0..ends[0] {
        let mut damaged = log.clone();
        damaged[at] ^= 4;
        put(damaged);
        assert!(opened(&disk).is_err(), "byte {at}");
    }
}

#[test]
fn an_overlay_belongs_to_one_volume_and_one_user() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("overlay");
    let open = |base: Arc<MemSource>, identity: &str| Overlay::open(&path, base, identity);
    let first = open(base(), "repo/object").unwrap();
    first.write_at(100, &[1; 5]).unwrap();
    first.flush().unwrap();
    assert!(matches!(open(base(), "repo/object").err().unwrap().kind, Kind::Busy(_)));
    drop(first);
    let refused = open(base(), "repo/other").err().unwrap().to_string();
    assert!(refused.contains("repo/object") && refused.contains("repo/other"), "{refused}");
    assert!(open(Arc::new(MemSource::new(SIZE + 1)), "repo/object").is_err());
    let again = open(base(), "repo/object").unwrap();
    let mut buf = [0; 7];
    again.read_at(99, &mut buf).unwrap();
    assert_eq!(buf[1..6], [1; 5]);
    assert_eq!(buf[0], u8::try_from(99 * 7 % 251).unwrap(), "beside it the base shows through");
    assert_eq!(again.changed().count(), 1);
    drop(again);
    std::fs::remove_file(path.join("log")).unwrap();
    assert!(open(base(), "repo/object").is_err(), "data without its log");
}

#[test]
fn what_is_unchanged_is_lent_by_the_base() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = Overlay::open(dir.path(), base(), "x").unwrap();
    assert_eq!(overlay.lend(Extent { offset: 0, len: SIZE }).unwrap().len(), 1 << 20);
    overlay.write_at(5, &[1]).unwrap();
    assert!(overlay.lend(Extent { offset: 4096, len: 512 }).is_none());
    overlay.discard(Extent { offset: 1024, len: 1024 }).unwrap();
    let mut extents = Vec::new();
    overlay.extents(Extent { offset: 0, len: 4096 }, &mut extents).unwrap();
    let kinds: Vec<_> = extents.iter().map(|(extent, kind)| (extent.len, *kind)).collect();
    assert_eq!(kinds, [(512, ExtentKind::Data), (512, ExtentKind::Data), (1024, ExtentKind::Zero), (2048, ExtentKind::Data)]);
}
