mod dies;
mod disk;
mod in_place;

use super::*;
use crate::memory::MemSource;
use disk::{Content, Disk, SimFolder, coin};
use proptest::prelude::*;
use std::collections::BTreeMap;

const SIZE: u64 = CHUNK_SIZE + 8 * 1024 + 700;

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
            let later = self
                .since
                .get(&sector)
                .is_some_and(|since| since.iter().any(|bytes| bytes == found));
            if found != flushed && !later {
                return Err(format!(
                    "sector {sector} holds what was neither flushed nor written later"
                ));
            }
        }
        Ok(())
    }
}

fn base_byte(at: u64) -> u8 {
    u8::try_from(at * 7 % 251).unwrap()
}

fn base() -> Arc<MemSource> {
    let bytes: Vec<u8> = (0..SIZE).map(base_byte).collect();
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
            let folder = SimFolder::new(disk.clone());
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
                disk.lose_power(&mut random);
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
            disk.lock().unwrap().lose_power(&mut random);
            let overlay = Inner::open(folder, below, "x", LOG_SMALL).map_err(|e| TestCaseError::fail(format!("{e}")))?;
            model.check(&all(&overlay)).map_err(TestCaseError::fail)?;
            if ended.is_ok() {
                break;
            }
        }
    }
}

fn opened(disk: &Arc<Mutex<Disk>>) -> Result<Inner<SimFolder>, BlockError> {
    Inner::open(SimFolder::new(disk.clone()), base(), "x", LOG_MIN)
}

fn disk() -> Arc<Mutex<Disk>> {
    Arc::new(Mutex::new(Disk {
        steps: usize::MAX,
        ..Disk::default()
    }))
}

/// All files of `disk` lose what was not synced, or parts of it.
fn lose_power(disk: &Mutex<Disk>) {
    let mut random = 5;
    disk.lock().unwrap().lose_power(&mut random);
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
    lose_power(&disk);
    let read = all(&opened(&disk).unwrap());
    assert!(read[..512] == [7; 512] && read[1024..1536] == [8; 512]);
}

#[test]
fn a_write_without_room_fails_alone() {
    let disk = disk();
    let overlay = opened(&disk).unwrap();
    overlay.write(0, &[7; 4096]).unwrap();
    disk.lock().unwrap().data_max = Some(8192);
    assert_eq!(overlay.write(6144, &[8; 4096]).unwrap_err().kind, Kind::NoSpace);
    assert_eq!(overlay.write(9000, &[8; 10]).unwrap_err().kind, Kind::NoSpace);
    // What needs no room goes on, and so does everything when there is some.
    overlay.zero(Extent { offset: 512, len: 512 }, true).unwrap();
    overlay.flush().unwrap();
    disk.lock().unwrap().data_max = None;
    overlay.write(9000, &[9; 10]).unwrap();
    overlay.flush().unwrap();
    drop(overlay);
    lose_power(&disk);
    let read = all(&opened(&disk).unwrap());
    assert!(read[..512] == [7; 512] && read[512..1024] == [0; 512] && read[1024..4096] == [7; 3072]);
    assert!(
        read[9000..9010] == [9; 10] && read[8192] == base_byte(8192),
        "the sector that was not written is the base's"
    );
}

#[test]
fn a_log_that_cannot_be_shortened_goes_on_as_it_is() {
    let disk = disk();
    let overlay = Inner::open(SimFolder::new(disk.clone()), base(), "x", LOG_SMALL).unwrap();
    for round in 0..40u8 {
        let long = disk.lock().unwrap().files["log"].live.len() as u64 > LOG_SMALL;
        // Room for what is appended, and none for a log from its first byte on.
        disk.lock().unwrap().full_new = long;
        overlay.write(u64::from(round) * 1024, &[round; 512]).unwrap();
        overlay.flush().unwrap();
    }
    assert!(disk.lock().unwrap().files["log"].live.len() as u64 > 4 * LOG_SMALL);
    disk.lock().unwrap().full_new = false;
    overlay.write(CHUNK_SIZE, &[77; 512]).unwrap();
    overlay.flush().unwrap();
    assert!(
        (disk.lock().unwrap().files["log"].live.len() as u64) < LOG_SMALL,
        "replaced when there is room"
    );
    let before = all(&overlay);
    drop(overlay);
    assert!(all(&opened(&disk).unwrap()) == before);
}

#[test]
fn parts_of_a_sector_written_at_once_are_all_there() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = Overlay::open(dir.path(), base(), "x").unwrap();
    let (writers, part) = (8u64, 64);
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let overlay = &overlay;
            scope.spawn(move || {
                for sector in 0..200 {
                    let byte = u8::try_from(writer + 1).unwrap();
                    overlay.write_at(sector * 512 + writer * part, &[byte; 64]).unwrap();
                    if sector % 50 == writer {
                        overlay.flush().unwrap();
                    }
                }
            });
        }
    });
    overlay.flush().unwrap();
    drop(overlay);
    let overlay = Overlay::open(dir.path(), base(), "x").unwrap();
    let mut read = vec![0; 200 * 512];
    overlay.read_at(0, &mut read).unwrap();
    for (at, byte) in read.iter().enumerate() {
        assert_eq!(u64::from(*byte), at as u64 % 512 / part + 1, "byte {at}");
    }
}

#[test]
fn records_that_cannot_follow_are_not_read() {
    let binding = log::Binding {
        identity: "x".to_owned(),
        size: SIZE,
        target: None,
    };
    let header = binding.encode().unwrap();
    let batch = |number: u64, count: usize| log::encode(number, &vec![(0, map::State::Zero); count]);
    let said = |records: &[&[u8]]| {
        let disk = disk();
        let content = Content {
            live: [&header[..], &records.concat()].concat(),
            ..Content::default()
        };
        disk.lock().unwrap().files.insert("log", content);
        binding.replay(&SimFolder::new(disk).file("log")).map(|said| said.batch)
    };
    let (first, second) = (batch(0, 2), batch(1, 1));
    let half = &first[..first.len() / 2];
    assert_eq!(said(&[&first, &second]).unwrap(), 2);
    assert_eq!(said(&[half, &second]).unwrap(), 2, "cut short, then opened again");
    assert_eq!(
        said(&[&first, &batch(0, 1)]).unwrap(),
        1,
        "of an older log in the same place"
    );
    for forged in [batch(u64::MAX, 1), batch(7, 1)] {
        assert!(
            said(&[&first, &forged]).is_err(),
            "nothing that was durable may be left out"
        );
    }
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
    assert!(
        overlay.read(0, &mut buf, true).unwrap() && buf == [7; 512],
        "reads go on"
    );
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
    assert!(
        refused.contains("repo/object") && refused.contains("repo/other"),
        "{refused}"
    );
    assert!(open(Arc::new(MemSource::new(SIZE + 1)), "repo/object").is_err());
    let again = open(base(), "repo/object").unwrap();
    let mut buf = [0; 7];
    again.read_at(99, &mut buf).unwrap();
    assert_eq!(buf[1..6], [1; 5]);
    assert_eq!(
        buf[0],
        u8::try_from(99 * 7 % 251).unwrap(),
        "beside it the base shows through"
    );
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
    overlay
        .discard(Extent {
            offset: 1024,
            len: 1024,
        })
        .unwrap();
    let mut extents = Vec::new();
    overlay.extents(Extent { offset: 0, len: 4096 }, &mut extents).unwrap();
    let kinds: Vec<_> = extents.iter().map(|(extent, kind)| (extent.len, *kind)).collect();
    assert_eq!(
        kinds,
        [
            (512, ExtentKind::Data),
            (512, ExtentKind::Data),
            (1024, ExtentKind::Zero),
            (2048, ExtentKind::Data)
        ]
    );
}
