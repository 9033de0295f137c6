//! The process dies and the system does not: what was answered is there for the next one.

use super::in_place::{first_bytes, go, open, sparse, steps, target_disk};
use super::*;

fn fail(error: impl std::fmt::Display) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// All that was answered is there, whatever was flushed; and once the power goes after that, the contract of a crash holds, whatever
    /// of the notes reached the disk.
    #[test]
    fn a_process_that_dies_loses_nothing_that_was_answered(
        rounds in prop::collection::vec(acts(), 1..4), seed in 1u64..,
    ) {
        let mut random = seed;
        let disk = disk();
        let mut model = Model::new((0..SIZE).map(base_byte).collect());
        let open = || Inner::open(SimFolder::new(disk.clone()), base(), "x", LOG_SMALL);
        for acts in rounds {
            let overlay = open().map_err(fail)?;
            prop_assert!(all(&overlay) == model.now, "answered is there");
            run(&overlay, &acts, &mut model).map_err(fail)?;
            drop(overlay);
        }
        disk.lock().unwrap().lose_power(&mut random);
        let overlay = open().map_err(fail)?;
        model.check(&all(&overlay)).map_err(fail)?;
    }

    /// The same for a target that is hydrated, over hydrated chunks too; and in the end it is the volume.
    #[test]
    fn a_process_that_dies_while_it_hydrates_loses_nothing(
        rounds in prop::collection::vec(steps(), 1..4), seed in 1u64..,
    ) {
        let mut random = seed;
        let disk = target_disk(usize::MAX, seed);
        let mut model = Model::new(first_bytes());
        for steps in rounds {
            let overlay = open(&disk, sparse()).map_err(fail)?;
            prop_assert!(all(&overlay) == model.now, "answered is there");
            go(&overlay, &steps, &mut model).map_err(fail)?;
        }
        let overlay = open(&disk, sparse()).map_err(fail)?;
        prop_assert!(all(&overlay) == model.now, "answered is there");
        for chunk in 0..SIZE.div_ceil(CHUNK_SIZE) {
            overlay.hydrate(ChunkIndex::new(chunk), &*overlay.base).map_err(fail)?;
        }
        overlay.complete().map_err(fail)?;
        overlay.flush().map_err(fail)?; // of what was written after it was complete before
        drop(overlay);
        disk.lock().unwrap().lose_power(&mut random);
        prop_assert!(disk.lock().unwrap().files["data"].durable[..model.now.len()] == model.now, "the target is the volume");
        let again = open(&disk, sparse()).map_err(fail)?;
        prop_assert!(again.map_read().is_complete() && all(&again) == model.now);
    }
}

/// What hydration has put there is written over, and the process dies before a flush: without word of the hydration the next one would
/// take the old bytes from the base.
#[test]
fn a_write_over_a_hydrated_chunk_outlives_the_process() {
    let disk = target_disk(usize::MAX, 1);
    let overlay = open(&disk, sparse()).unwrap();
    overlay.hydrate(ChunkIndex::new(0), &*overlay.base).unwrap();
    overlay.write(4096, &[7; 512]).unwrap();
    drop(overlay);
    let read = all(&open(&disk, sparse()).unwrap());
    assert!(read[4096..4608] == [7; 512]);
}

/// A flush without room leaves its notes; the next process has all of it, and so has the one after a flush that went well.
#[test]
fn a_flush_that_failed_and_a_process_that_dies_lose_nothing() {
    let disk = disk();
    let overlay = opened(&disk).unwrap();
    overlay.write(0, &[7; 512]).unwrap();
    disk.lock().unwrap().log_max = Some(100);
    overlay.flush().unwrap_err();
    overlay.write(512, &[8; 512]).unwrap();
    overlay.flush().unwrap_err();
    overlay.write(1024, &[9; 512]).unwrap();
    drop(overlay);
    disk.lock().unwrap().log_max = None;
    let overlay = opened(&disk).unwrap();
    overlay.zero(Extent { offset: 512, len: 512 }, true).unwrap();
    overlay.flush().unwrap();
    overlay.write(1536, &[6; 512]).unwrap();
    drop(overlay);
    let read = all(&opened(&disk).unwrap());
    assert!(read[..512] == [7; 512] && read[512..1024] == [0; 512]);
    assert!(read[1024..1536] == [9; 512] && read[1536..2048] == [6; 512]);
}

/// Changes without a flush do not make a file without end.
#[test]
fn many_changes_flush_themselves() {
    let disk = disk();
    let overlay = opened(&disk).unwrap();
    for round in 0..LIVE_CHANGES {
        match round % 2 {
            0 => overlay.write(0, &[1; 512]).unwrap(),
            _ => overlay.zero(Extent { offset: 0, len: 512 }, false).unwrap(),
        }
        let mut disk = disk.lock().unwrap();
        disk.files.values_mut().for_each(|file| file.pending.clear());
    }
    let longest = |name: &str| disk.lock().unwrap().files[name].live.len() as u64;
    assert!(longest("live.0").max(longest("live.1")) <= live::LEN_MAX);
    assert!(disk.lock().unwrap().files["log"].live.len() > 40, "it was flushed");
}

/// A few more than fill a file.
const LIVE_CHANGES: u64 = live::LEN_MAX / 24 + 10;
