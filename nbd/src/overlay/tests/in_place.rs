//! Overlays whose data is the final volume: hydration among writes, cuts of power and deaths of the process.

use super::*;

/// What happens to a volume that is hydrated.
#[derive(Clone, Debug)]
enum Step {
    Act(Act),
    /// A chunk is fetched.
    Hydrate(u64),
    /// Zeros of the base are made zeros.
    Zeroes,
    /// All that is missing is fetched, and that is taken down.
    Complete,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => acts().prop_map(|acts| acts.into_iter().map(Step::Act).collect::<Vec<_>>()),
        6 => (0..2u64).prop_map(|chunk| vec![Step::Hydrate(chunk)]),
        1 => Just(vec![Step::Zeroes]),
        1 => Just(vec![Step::Complete]),
    ];
    prop::collection::vec(step, 1..4).prop_map(|steps| steps.into_iter().flatten().collect())
}

/// The second half of the first chunk is zero, and the map of the base says so.
fn base_byte(at: u64) -> u8 {
    match at {
        ZEROS.. if at < CHUNK_SIZE => 0,
        _ => super::base_byte(at),
    }
}

/// The first zero of the base.
const ZEROS: u64 = CHUNK_SIZE / 2;

struct Base(Arc<MemSource>);

impl BlockSource for Base {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.0.read_at(offset, buf)
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        let parts = [
            (0, ZEROS, ExtentKind::Data),
            (ZEROS, CHUNK_SIZE, ExtentKind::Hole),
            (CHUNK_SIZE, SIZE, ExtentKind::Data),
        ];
        for (from, to, kind) in parts {
            if let Some(part) = Extent::between(from, to).clip(range).filter(|part| !part.is_empty()) {
                out.push((part, kind));
            }
        }
        Ok(())
    }
}

fn base() -> Arc<Base> {
    let bytes: Vec<u8> = (0..SIZE).map(base_byte).collect();
    Arc::new(Base(Arc::new(MemSource::from_bytes(&bytes))))
}

/// A target that is full of what nobody may read.
fn target() -> Arc<Mutex<Disk>> {
    let garbage = vec![0xee; usize::try_from(SIZE).unwrap()];
    let content = Content {
        durable: garbage.clone(),
        live: garbage,
        pending: Vec::new(),
    };
    let disk = Disk {
        steps: usize::MAX,
        is_target: true,
        files: BTreeMap::from([("data", content)]),
        ..Disk::default()
    };
    Arc::new(Mutex::new(disk))
}

fn open(disk: &Arc<Mutex<Disk>>) -> Result<Inner<SimFolder>, BlockError> {
    Inner::open(SimFolder(disk.clone()), base(), "x", LOG_SMALL)
}

fn complete(overlay: &Inner<SimFolder>) -> Result<(), BlockError> {
    for chunk in 0..SIZE.div_ceil(CHUNK_SIZE) {
        overlay.hydrate(ChunkIndex::new(chunk), &*base())?;
    }
    overlay.complete()
}

fn go(overlay: &Inner<SimFolder>, steps: &[Step], model: &mut Model) -> Result<(), BlockError> {
    for step in steps {
        match step {
            Step::Act(act) => run(overlay, std::slice::from_ref(act), model)?,
            Step::Hydrate(chunk) => drop(overlay.hydrate(ChunkIndex::new(*chunk), &*base())?),
            Step::Zeroes => drop(overlay.hydrate_zeroes(Extent { offset: 0, len: SIZE })?),
            Step::Complete => {
                complete(overlay)?;
                model.flush(); // it is one
            }
        }
    }
    Ok(())
}

fn fail(error: impl std::fmt::Display) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}

fn first() -> Model {
    Model::new((0..SIZE).map(base_byte).collect())
}

/// Makes it whole, and looks at the target itself, which has to do without us from here on.
fn finish(
    disk: &Arc<Mutex<Disk>>,
    overlay: Inner<SimFolder>,
    model: &Model,
    random: &mut u64,
) -> Result<(), TestCaseError> {
    complete(&overlay).map_err(fail)?;
    overlay.flush().map_err(fail)?; // of what was written after it was complete before
    drop(overlay);
    disk.lock().unwrap().lose_power(random);
    prop_assert!(
        disk.lock().unwrap().files["data"].durable == model.now,
        "the target is the volume"
    );
    let again = open(disk).map_err(fail)?;
    prop_assert!(again.map_read().is_complete() && all(&again) == model.now);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Cut in every durable step in turn: what was flushed is there or something later, what was not written is the base's, never what the
    /// target had; and hydration goes on from there to a target that is the volume.
    #[test]
    fn a_cut_anywhere_while_it_is_hydrated_loses_nothing(steps in steps(), more in steps(), seed in 1u64..) {
        let mut random = seed;
        for cut in 0.. {
            coin(&mut random);
            let disk = target();
            (disk.lock().unwrap().steps, disk.lock().unwrap().random) = (cut, random);
            let mut model = first();
            let ended = open(&disk).and_then(|overlay| go(&overlay, &steps, &mut model));
            {
                let mut disk = disk.lock().unwrap();
                disk.lose_power(&mut random);
                (disk.dead, disk.steps) = (false, usize::MAX);
            }
            let overlay = open(&disk).map_err(fail)?;
            let read = all(&overlay);
            model.check(&read).map_err(fail)?;
            let mut model = Model::new(read);
            go(&overlay, &more, &mut model).map_err(fail)?;
            prop_assert!(all(&overlay) == model.now, "what was written is read");
            finish(&disk, overlay, &model, &mut random)?;
            if ended.is_ok() {
                break;
            }
        }
    }

    /// The process dies and the system does not: all that was answered is there, over hydrated chunks too, flushed or not.
    #[test]
    fn a_process_that_dies_while_it_hydrates_loses_nothing(rounds in prop::collection::vec(steps(), 1..4), seed in 1u64..) {
        let mut random = seed;
        let disk = target();
        let mut model = first();
        for steps in rounds {
            let overlay = open(&disk).map_err(fail)?;
            prop_assert!(all(&overlay) == model.now, "answered is there");
            go(&overlay, &steps, &mut model).map_err(fail)?;
        }
        let overlay = open(&disk).map_err(fail)?;
        prop_assert!(all(&overlay) == model.now, "answered is there");
        finish(&disk, overlay, &model, &mut random)?;
    }
}

/// What hydration has put there is written over, and the process dies before a flush: without word of the hydration the next one would
/// take the old bytes from the base.
#[test]
fn a_write_over_a_hydrated_chunk_outlives_the_process() {
    let disk = target();
    let overlay = open(&disk).unwrap();
    overlay.hydrate(ChunkIndex::new(0), &*base()).unwrap();
    overlay.write(4096, &[7; 512]).unwrap();
    drop(overlay);
    let read = all(&open(&disk).unwrap());
    assert!(read[4096..4608] == [7; 512]);
}

/// Four write, one hydrates, and all of it at once: written wins.
#[test]
fn writers_and_hydration_at_once_are_the_model() {
    let disk = target();
    let overlay = open(&disk).unwrap();
    let writers = 4usize;
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let overlay = &overlay;
            scope.spawn(move || {
                for sector in (writer..usize::try_from(SIZE / 512).unwrap()).step_by(writers * 3) {
                    let byte = u8::try_from(writer + 1).unwrap();
                    overlay.write(sector as u64 * 512, &[byte; 512]).unwrap();
                    if sector % 401 == 0 {
                        overlay.flush().unwrap();
                    }
                }
            });
        }
        scope.spawn(|| complete(&overlay).unwrap());
    });
    let mut want: Vec<u8> = (0..SIZE).map(base_byte).collect();
    for writer in 0..writers {
        for sector in (writer..usize::try_from(SIZE / 512).unwrap()).step_by(writers * 3) {
            want[sector * 512..sector * 512 + 512].fill(u8::try_from(writer + 1).unwrap());
        }
    }
    assert!(all(&overlay) == want);
    assert!(disk.lock().unwrap().files["data"].live == want);
}
