//! An overlay whose data is the volume itself.

use super::*;
use std::sync::atomic::AtomicU64;

/// Bytes of the target, longer than the volume.
const TARGET: u64 = SIZE + 5000;

/// What a target has before it is used, and keeps behind the volume.
const OLD: u8 = 0xEE;

#[derive(Clone, Debug)]
pub(super) enum Step {
    Act(Act),
    Hydrate(u64),
    Zeroes(u64, u64),
    Complete,
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let act = acts().prop_map(|acts| acts.into_iter().map(Step::Act).collect::<Vec<_>>());
    let other = (0..8u8, 0..2u64, 0..SIZE, 0..SIZE).prop_map(|(which, chunk, offset, len)| match which {
        0..5 => vec![Step::Hydrate(chunk)],
        5..7 => vec![Step::Zeroes(offset, len.min(SIZE - offset))],
        _ => vec![Step::Hydrate(0), Step::Hydrate(1), Step::Complete],
    });
    prop::collection::vec(prop_oneof![act, other], 1..6).prop_map(|lists| lists.concat())
}

/// Zeros lie in the middle of the first chunk and across the border, not at the borders of sectors.
pub(super) fn first_bytes() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..SIZE).map(base_byte).collect();
    bytes[3000..9000].fill(0);
    let border = usize::try_from(CHUNK_SIZE).unwrap();
    bytes[border - 1700..border + 5000].fill(0);
    bytes
}

/// A volume that knows where it is zero, and counts what is read of it.
pub(super) struct Sparse {
    bytes: Vec<u8>,
    zeros: Vec<Extent>,
    read: AtomicU64,
}

pub(super) fn sparse() -> Arc<Sparse> {
    Arc::new(Sparse {
        bytes: first_bytes(),
        zeros: vec![
            Extent::between(3000, 9000),
            Extent::between(CHUNK_SIZE - 1700, CHUNK_SIZE + 5000),
        ],
        read: AtomicU64::new(0),
    })
}

impl BlockSource for Sparse {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(SIZE)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        let from = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&self.bytes[from..from + buf.len()]);
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        let mut at = range.offset;
        for zero in self.zeros.iter().filter_map(|zero| zero.clip(range)) {
            out.push((Extent::between(at, zero.offset), ExtentKind::Data));
            out.push((zero, ExtentKind::Hole));
            at = zero.end();
        }
        out.push((Extent::between(at, range.end()), ExtentKind::Data));
        out.retain(|(extent, _)| !extent.is_empty());
        Ok(())
    }
}

pub(super) fn target_disk(steps: usize, random: u64) -> Arc<Mutex<Disk>> {
    let old = vec![OLD; usize::try_from(TARGET).unwrap()];
    let content = Content {
        durable: old.clone(),
        live: old,
        ..Content::default()
    };
    let mut disk = Disk {
        steps,
        random,
        ..Disk::default()
    };
    disk.files.insert("data", content);
    Arc::new(Mutex::new(disk))
}

pub(super) fn open(disk: &Arc<Mutex<Disk>>, base: Arc<dyn BlockSource>) -> Result<Inner<SimFolder>, BlockError> {
    Inner::open(SimFolder::in_place(disk.clone(), "target"), base, "x", LOG_SMALL)
}

pub(super) fn go(overlay: &Inner<SimFolder>, steps: &[Step], model: &mut Model) -> Result<(), BlockError> {
    for step in steps {
        match step {
            Step::Act(act) => run(overlay, std::slice::from_ref(act), model)?,
            Step::Hydrate(chunk) => {
                overlay.hydrate(ChunkIndex::new(*chunk), &*overlay.base)?;
                assert!(!overlay.map_read().is_absent(*chunk));
            }
            Step::Zeroes(offset, len) => {
                let (offset, len) = (*offset, *len);
                overlay.hydrate_zeroes(Extent { offset, len })?;
            }
            Step::Complete => {
                let is_due = overlay.map_read().is_all_present();
                let done = overlay.complete();
                match is_due {
                    true => done.map(|()| model.flush())?,
                    false => assert!(done.is_err()),
                }
            }
        }
    }
    Ok(())
}

/// The target has the volume, and behind it what it had before.
fn check_target(disk: &Mutex<Disk>, volume: &[u8]) -> Result<(), TestCaseError> {
    let disk = disk.lock().unwrap();
    let (target, rest) = disk.files["data"].live.split_at(volume.len());
    prop_assert!(target == volume, "the target is the volume");
    prop_assert!(rest.iter().all(|byte| *byte == OLD), "what is behind it was touched");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Cut in every durable step in turn, whatever of the rest reached the disk, with hydration and its end among what is done: each
    /// sector reads as it was flushed, or as written later; and filled after that, the target is the volume.
    #[test]
    fn a_cut_anywhere_loses_nothing_and_the_rest_can_be_hydrated(steps in steps(), more in steps(), seed in 1u64..) {
        let mut random = seed;
        for cut in 0.. {
            coin(&mut random);
            let disk = target_disk(cut, random);
            let mut model = Model::new(first_bytes());
            let ended = open(&disk, sparse()).and_then(|overlay| go(&overlay, &steps, &mut model));
            {
                let mut disk = disk.lock().unwrap();
                disk.lose_power(&mut random);
                (disk.dead, disk.steps) = (false, usize::MAX);
            }
            let failed = |e: BlockError| TestCaseError::fail(format!("{e}"));
            let overlay = open(&disk, sparse()).map_err(failed)?;
            let read = all(&overlay);
            model.check(&read).map_err(TestCaseError::fail)?;
            let mut model = Model::new(read);
            go(&overlay, &more, &mut model).map_err(failed)?;
            prop_assert!(all(&overlay) == model.now, "what was written is read");
            drop(overlay);
            disk.lock().unwrap().lose_power(&mut random);
            // To the end.
            let overlay = open(&disk, sparse()).map_err(failed)?;
            let read = all(&overlay);
            model.check(&read).map_err(TestCaseError::fail)?;
            let missing = SIZE - overlay.map_read().present_bytes();
            let zeroes = overlay.hydrate_zeroes(overlay.whole()).map_err(failed)?;
            let mut filled = zeroes.bytes();
            for chunk in [1, 0] {
                filled += overlay.hydrate(ChunkIndex::new(chunk), &*overlay.base).map_err(failed)?.bytes();
            }
            prop_assert_eq!(filled, missing);
            prop_assert_eq!(overlay.map_read().present_bytes(), SIZE);
            overlay.complete().map_err(failed)?;
            prop_assert!(all(&overlay) == read, "a volume that is complete reads as before");
            drop(overlay);
            disk.lock().unwrap().lose_power(&mut random);
            check_target(&disk, &read)?;
            let overlay = open(&disk, sparse()).map_err(failed)?;
            prop_assert!(overlay.map_read().is_complete() && all(&overlay) == read);
            if ended.is_ok() {
                break;
            }
        }
    }
}

#[test]
fn zeros_of_the_base_are_not_fetched() {
    let disk = target_disk(usize::MAX, 1);
    let base = sparse();
    let overlay = open(&disk, base.clone()).unwrap();
    let zeroed = overlay.hydrate_zeroes(overlay.whole()).unwrap();
    // Whole sectors inside the zeros: 3072..8704 and from the first behind -1700 to the last before +5000.
    let across = 1536 + 4608;
    assert_eq!((zeroed.zeroed_bytes, zeroed.written_bytes), (5632 + across, 0));
    assert_eq!(base.read.load(Ordering::Relaxed), 0);
    let first = overlay.hydrate(ChunkIndex::new(0), &*base).unwrap();
    let second = overlay.hydrate(ChunkIndex::new(1), &*base).unwrap();
    assert_eq!(zeroed.bytes() + first.written_bytes + second.written_bytes, SIZE);
    assert_eq!(
        base.read.load(Ordering::Relaxed),
        first.written_bytes + second.written_bytes
    );
    assert_eq!(
        overlay.hydrate(ChunkIndex::new(0), &*base).unwrap(),
        Hydrated::default()
    );
    assert!(overlay.hydrate(ChunkIndex::new(2), &*base).is_err(), "behind the end");
    overlay.complete().unwrap();
    check_target(&disk, &base.bytes).unwrap();
}

/// A base that lets a writer in while it is read.
struct Slow<'a>(Arc<Sparse>, Mutex<Option<Box<dyn FnOnce() + Send + 'a>>>);

impl BlockSource for Slow<'_> {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.0.read_at(offset, buf)?;
        if let Some(act) = self.1.lock().unwrap().take() {
            act();
        }
        Ok(())
    }
    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        self.0.extents(range, out)
    }
}

#[test]
fn what_is_written_while_the_base_is_read_wins() {
    let disk = target_disk(usize::MAX, 1);
    let overlay = open(&disk, sparse()).unwrap();
    let write = || {
        overlay.write(512, &[7; 1024]).unwrap();
        overlay.write(20_003, &[8; 5]).unwrap();
        // Over sectors that the base has as zero.
        overlay.write(4096, &[9; 512]).unwrap();
    };
    let slow = Slow(sparse(), Mutex::new(Some(Box::new(write))));
    let done = overlay.hydrate(ChunkIndex::new(0), &slow).unwrap();
    drop(slow);
    assert_eq!(done.bytes(), CHUNK_SIZE - 1024 - 512 - 512);
    let mut expect = first_bytes();
    expect[512..1536].fill(7);
    expect[20_003..20_008].fill(8);
    expect[4096..4608].fill(9);
    assert!(all(&overlay) == expect);
    let live = disk.lock().unwrap().files["data"].live.clone();
    let chunk = usize::try_from(CHUNK_SIZE).unwrap();
    assert!(live[..chunk] == expect[..chunk], "and in the target");
}

#[test]
fn a_target_that_fails_leaves_what_is_there() {
    let disk = target_disk(usize::MAX, 1);
    let overlay = open(&disk, sparse()).unwrap();
    disk.lock().unwrap().data_max = Some(2048);
    assert_eq!(
        overlay.hydrate(ChunkIndex::new(0), &*overlay.base).unwrap_err().kind,
        Kind::NoSpace
    );
    assert!(all(&overlay) == first_bytes(), "still the base's");
    disk.lock().unwrap().data_max = None;
    overlay.hydrate(ChunkIndex::new(0), &*overlay.base).unwrap();
    assert!(all(&overlay) == first_bytes());
    assert!(overlay.complete().unwrap_err().to_string().contains("1 chunks"));
}

#[test]
fn a_log_is_of_one_kind_and_one_target() {
    let disk = target_disk(usize::MAX, 1);
    open(&disk, sparse()).unwrap();
    let open = |target: Option<&'static str>, mark: Option<&'static str>| {
        let folder = SimFolder {
            disk: disk.clone(),
            target,
            mark,
        };
        Inner::open(folder, sparse(), "x", LOG_SMALL)
            .err()
            .map(|error| error.to_string())
    };
    assert_eq!(open(Some("target"), None), None);
    let refused = open(Some("other"), None).unwrap();
    assert!(refused.contains("target, not other"), "{refused}");
    assert!(
        open(Some("target"), Some("another mark"))
            .unwrap()
            .contains("another overlay")
    );
    assert!(open(None, None).unwrap().contains("in place"));
    let scratch = super::disk();
    opened(&scratch).unwrap();
    let refused = Inner::open(SimFolder::in_place(scratch, "target"), base(), "x", LOG_SMALL);
    assert!(refused.err().unwrap().to_string().contains("in itself"));
    let plain = super::disk();
    let overlay = opened(&plain).unwrap();
    assert!(
        overlay.hydrate(ChunkIndex::new(0), &*overlay.base).is_err(),
        "not in place"
    );
    assert!(overlay.hydrate_zeroes(overlay.whole()).is_err() && overlay.complete().is_err());
}

#[test]
fn complete_is_one_record() {
    let disk = target_disk(usize::MAX, 1);
    let overlay = open(&disk, sparse()).unwrap();
    for chunk in 0..2 {
        overlay.hydrate(ChunkIndex::new(chunk), &*overlay.base).unwrap();
        overlay.flush().unwrap();
    }
    overlay.complete().unwrap();
    let len = disk.lock().unwrap().files["log"].live.len();
    assert_eq!(len, overlay.binding.encode().unwrap().len() + 40);
    overlay.write(5, &[1; 2000]).unwrap();
    overlay
        .zero(
            Extent {
                offset: 9000,
                len: 4096,
            },
            true,
        )
        .unwrap();
    overlay.flush().unwrap();
    assert_eq!(
        disk.lock().unwrap().files["log"].live.len(),
        len,
        "a plain volume has nothing to log"
    );
    let now = all(&overlay);
    drop(overlay);
    lose_power(&disk);
    check_target(&disk, &now).unwrap();
}

/// Writers of their own sectors each, and zeros, while the volume is hydrated and flushed: nobody's bytes are lost.
#[test]
fn writers_and_hydration_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let chunks = 12u64;
    let size = chunks * CHUNK_SIZE + 1234;
    let bytes: Vec<u8> = (0..size).map(base_byte).collect();
    let target = dir.path().join("target");
    std::fs::write(&target, vec![OLD; bytes.len()]).unwrap();
    let mem: Arc<MemSource> = Arc::new(MemSource::from_bytes(&bytes));
    let overlay = Overlay::open_in_place(&dir.path().join("state"), &target, mem.clone(), "x").unwrap();
    let writers = 4u64;
    let left: Vec<Vec<(usize, usize, u8)>> = std::thread::scope(|scope| {
        let hydrators = [0u64, 1].map(|half| {
            let overlay = &overlay;
            scope.spawn(move || {
                for chunk in (0..=chunks).filter(|chunk| chunk % 2 == half) {
                    overlay.hydrate(ChunkIndex::new(chunk)).unwrap();
                    if chunk % 4 == half {
                        overlay.flush().unwrap();
                    }
                }
            })
        });
        let writers: Vec<_> = (0..writers)
            .map(|writer| {
                let overlay = &overlay;
                scope.spawn(move || {
                    let mut random = writer + 1;
                    let mut done = Vec::new();
                    for round in 0..400u64 {
                        coin(&mut random);
                        // A place of 100 bytes in a sector is this writer's own.
                        let sector = random % (size / 512 - 1);
                        let at = sector * 512 + writer * 128;
                        let byte = u8::try_from(round % 255 + 1).unwrap();
                        if round % 7 == 0 {
                            overlay.write_zeroes(Extent { offset: at, len: 100 }).unwrap();
                            done.push((usize::try_from(at).unwrap(), 100, 0));
                        } else {
                            overlay.write_at(at, &[byte; 100]).unwrap();
                            done.push((usize::try_from(at).unwrap(), 100, byte));
                        }
                        let mut read = [0; 100];
                        overlay.read_at(at, &mut read).unwrap();
                        assert!(read == [done.last().unwrap().2; 100], "a writer reads what it wrote");
                    }
                    done
                })
            })
            .collect();
        hydrators.into_iter().for_each(|thread| thread.join().unwrap());
        writers.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut expect = bytes;
    for (at, len, byte) in left.into_iter().flatten() {
        expect[at..at + len].fill(byte);
    }
    assert_eq!((overlay.present_bytes(), overlay.absent().count()), (size, 0));
    overlay.complete().unwrap();
    assert!(overlay.is_complete());
    drop(overlay);
    assert!(std::fs::read(&target).unwrap() == expect);
    let overlay = Overlay::open_in_place(&dir.path().join("state"), &target, mem, "x").unwrap();
    assert!(overlay.is_complete());
}

#[test]
fn targets_that_will_not_do_are_refused_and_left_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let target = |name: &str, len: u64| {
        let path = dir.path().join(name);
        std::fs::write(&path, vec![OLD; usize::try_from(len).unwrap()]).unwrap();
        path
    };
    let open = |state: &Path, target: &Path| Overlay::open_in_place(state, target, base(), "x");
    let told = |state: &Path, target: &Path| open(state, target).err().unwrap().to_string();
    let small = target("small", SIZE - 1);
    let refused = told(&state, &small);
    assert!(refused.contains("smaller"), "{refused}");
    assert!(told(&state, dir.path()).contains("directory"));
    assert!(told(&state, &dir.path().join("none")).contains("not found"));
    let good = target("good", SIZE + 100);
    let first = open(&state, &good).unwrap();
    let other = dir.path().join("other state");
    assert!(
        matches!(open(&other, &good).err().unwrap().kind, Kind::Busy(_)),
        "in use"
    );
    assert!(
        matches!(open(&state, &good).err().unwrap().kind, Kind::Busy(_)),
        "state in use"
    );
    assert!(matches!(
        Overlay::open(&state, base(), "x").err().unwrap().kind,
        Kind::Busy(_)
    ));
    drop(first);
    open(&state, &good).unwrap();
    let another = target("another", SIZE + 100);
    assert!(told(&state, &another).contains("another target"));
    assert!(
        Overlay::open(&state, base(), "x")
            .err()
            .unwrap()
            .to_string()
            .contains("in place")
    );
    // Another state takes the target: the first one may not go on then.
    open(&other, &good).unwrap();
    if rustix::fs::getxattr(&good, "user.blockferry.state", &mut [0u8; 64][..]).is_ok() {
        let refused = told(&state, &good);
        assert!(refused.contains("mark"), "{refused}");
    }
    assert!(std::fs::read(&small).unwrap().iter().all(|byte| *byte == OLD));
    let scratch = dir.path().join("scratch");
    let overlay = Overlay::open(&scratch, base(), "x").unwrap();
    overlay.write_at(0, &[1; 512]).unwrap();
    overlay.flush().unwrap();
    drop(overlay);
    assert!(told(&scratch, &another).contains("in itself"));
}
