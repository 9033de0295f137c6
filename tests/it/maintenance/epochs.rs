//! Epochs advanced, compacted and checkpointed by us, read by kopia.

use std::path::Path;
use std::time::Duration;

use blockferry_tests::kopia::Kopia;
use blockio::{Cancel, Progress};
use repo::maintenance::{self, Mode, Options, Outcome, Task};

use super::shared::{Both, US, age, check_ours};
use crate::bad_input::support::{PASSWORD, names};

/// Index blobs after which an epoch may end: the least that kopia allows.
const COUNT: u64 = 10;

/// Every index blob lies in a folder of its own letter.
fn is_index(path: &Path) -> bool {
    let text = path.display().to_string();
    text.contains("/x/")
        || path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('x'))
}

#[test]
fn kopia_reads_epochs_that_we_compacted() {
    let Some(mut both) = Both::new() else { return };
    let parameters = [
        "repository",
        "set-parameters",
        "--epoch-advance-on-count=10",
        "--epoch-refresh-frequency=10m",
        "--epoch-cleanup-safety-margin=30m",
        "--epoch-min-duration=30m",
        "--epoch-checkpoint-frequency=3",
    ];
    both.kopia.run(parameters).unwrap();
    let (mut checkpoints, mut deleted) = (0, 0);
    for epoch in 0..8 {
        // Epochs last seconds here; a client that caches listings for half a minute, as kopia does, would write to epochs
        // long over.
        both.kopia = Kopia::new(&both.world.repo(), PASSWORD).unwrap();
        both.kopia.connect().unwrap();
        both.we_take(300 + epoch, 1);
        both.kopia_takes(400 + epoch);
        let repository = both.open();
        for _ in 0..COUNT / 2 {
            maintenance::set_owner(&repository, US).unwrap();
        }
        // The first half of the epoch is an hour old, and older ones an hour older.
        age(&both.world.repo(), Duration::from_secs(3600), &is_index);
        for _ in 0..COUNT / 2 {
            maintenance::set_owner(&repository, US).unwrap();
        }
        let options = Options::new(Mode::Full, US);
        let report = maintenance::run(&both.open(), &options, &Cancel::new(), &Progress::new()).unwrap();
        let done = |task| report.task(task).unwrap().outcome == Outcome::Done;
        assert!(done(Task::AdvanceEpoch), "{report:?}");
        assert_eq!(done(Task::CompactSingleEpoch), epoch >= 2, "{report:?}");
        checkpoints += u64::from(done(Task::GenerateEpochRangeIndex));
        deleted += u64::from(done(Task::DeleteSupersededEpochIndexes));
        check_ours(&both.open(), &both.taken, &format!("epoch {epoch}"));
        let fresh = Kopia::new(&both.world.repo(), PASSWORD).unwrap();
        fresh.connect().unwrap();
        fresh.verify_full().unwrap();
        both.kopia = fresh;
    }
    assert!(
        checkpoints > 0 && deleted > 0,
        "{checkpoints} checkpoints, {deleted} times superseded blobs deleted"
    );
    let store = both.world.store();
    assert!(names(&*store, "xr").len() as u64 == checkpoints && names(&*store, "xs").len() >= 5);
    assert!(names(&*store, "xe").len() <= 3, "{:?}", names(&*store, "xe"));
    assert!(
        names(&*store, "xn0_").is_empty(),
        "the first epoch lives on in its compaction"
    );
    both.check("eight epochs");
    both.kopia.run(["index", "inspect", "--all"]).unwrap();
    both.kopia.run(["index", "epoch", "list"]).unwrap();

    // A client that has never seen the repository, and kopia's own upkeep on top of ours.
    let fresh = Kopia::new(&both.world.repo(), PASSWORD).unwrap();
    fresh.connect().unwrap();
    fresh.verify_full().unwrap();
    fresh.run(["maintenance", "set", "--owner=me"]).unwrap();
    fresh.run(["maintenance", "run", "--full", "--safety=full"]).unwrap();
    fresh.maintenance_full_unsafe().unwrap();
    both.check("kopia's upkeep on ours");
}
