//! What a run does at which age.

use super::world::*;
use super::*;

#[test]
fn unused_data_goes_in_three_steps_days_apart() {
    let mut world = World::new();
    let stays = world.back_up(&[1, 2, 3]);
    let goes = world.back_up(&[2, 3, 4, 5]);
    world.delete(goes);
    world.check("before");
    let packs = world.packs();

    // Young: nothing is marked.
    let report = world.maintain(Mode::Full).expect("run");
    assert_eq!(
        numbers(&report, Task::SnapshotGc)["tooYoung"]["count"],
        3,
        "two chunks and a list"
    );
    world.pass(25 * HOUR);
    let report = world.maintain(Mode::Full).expect("run");
    assert_eq!(numbers(&report, Task::SnapshotGc)["toDelete"]["count"], 3);
    world.check("marked");

    // The deletions become final after two more collections: one to confirm, and the margins after it.
    world.pass(25 * HOUR);
    let report = world.maintain(Mode::Full).expect("run");
    assert_eq!(
        report.task(Task::FullDropDeletedContent).expect("ran").outcome,
        Outcome::Idle
    );
    assert!(world.names("xw").is_empty());
    world.pass(25 * HOUR);
    let report = world.maintain(Mode::Full).expect("run");
    assert_eq!(numbers(&report, Task::FullDropDeletedContent)["toForget"]["count"], 3);
    assert_eq!(world.names("xw").len(), 1);
    world.check("forgotten");
    // The packs with them go when they are empty and calm.
    for _ in 0..4 {
        world.pass(25 * HOUR);
        world.maintain(Mode::Full).expect("run");
        world.check("packs go");
    }
    assert!(world.packs() < packs, "{:?}", world.names(""));
    assert!(world.live.contains_key(&stays));
}

fn numbers(report: &Report, task: Task) -> &serde_json::Value {
    &report.task(task).expect("the task ran").numbers
}

#[test]
fn without_margins_everything_unused_goes_at_once() {
    let mut world = World::new();
    world.back_up(&[1, 2, 3]);
    let goes = world.back_up(&[4, 5]);
    world.delete(goes);
    world.pass(10);
    world.maintain_unsafely().expect("run");
    world.check("first");
    world.pass(10);
    world.maintain_unsafely().expect("run");
    world.check("second");
    let repository = world.open();
    let gone = repository.contents().content_id(None, &[4; CHUNK]);
    assert!(repository.lookup(&gone).is_none());
    assert_eq!(world.names("p").len(), 1, "one pack of data");
}

#[test]
fn a_snapshot_written_during_a_collection_gets_its_contents_back() {
    let mut world = World::new();
    world.back_up(&[9]);
    let first = world.back_up(&[1, 2, 3]);
    world.pass(30 * HOUR);
    // The client sees the chunks alive, and takes its time.
    let client = world.open();
    let running = world.begin(&client, &[1, 2, 3, 4]);
    world.delete(first);
    world.pass(5 * MINUTE);
    let report = world.maintain(Mode::Full).expect("run");
    assert_eq!(
        numbers(&report, Task::SnapshotGc)["toDelete"]["count"],
        4,
        "three chunks and the old list"
    );
    world.pass(30 * MINUTE);
    world.commit(&client, running);
    world.check("deleted contents can be read");
    for day in 0..8 {
        world.pass(25 * HOUR);
        let report = world.maintain(Mode::Full).expect("run");
        if day == 0 {
            assert_eq!(numbers(&report, Task::SnapshotGc)["toRestore"]["count"], 3);
        }
        world.check("given back");
    }
}

#[test]
fn packs_of_a_dead_client_stay_as_long_as_its_marker_is_young() {
    let mut world = World::new();
    world.back_up(&[1]);
    world.die(&[7, 8, 9]);
    let (packs, markers) = (world.names("p").len(), world.names("s").len());
    assert_eq!(markers, 1);
    world.pass(95 * HOUR);
    world.maintain(Mode::Full).expect("run");
    assert_eq!((world.names("p").len(), world.names("s").len()), (packs, 1));
    world.pass(2 * HOUR);
    world.maintain(Mode::Full).expect("run");
    assert_eq!((world.names("p").len(), world.names("s").len()), (packs - 1, 0));
    world.check("after");
}

#[test]
fn an_unreadable_marker_is_reported_and_guards_its_packs_for_ever() {
    let mut world = World::new();
    world.back_up(&[1]);
    world.die(&[7, 8]);
    let marker = crate::id::BlobId::known(world.names("s")[0].clone());
    crate::blob::BlobStore::put(&*world.store, &marker, b"damaged").expect("put");
    let packs = world.names("p").len();
    world.pass(1000 * DAY);
    world.maintain(Mode::Full).expect("run");
    world.pass(DAY);
    let report = world.maintain(Mode::Full).expect("run");
    assert_eq!((world.names("p").len(), world.names("s").len()), (packs, 1));
    assert_eq!(report.unreadable_markers.len(), 1);
    assert!(report.unreadable_markers[0].advice().contains(marker.as_str()));
}

#[test]
fn short_packs_are_merged_and_their_old_packs_deleted_by_the_next_run() {
    let mut world = World::new();
    for chunk in 0..5 {
        world.back_up(&[chunk]);
        world.pass(MINUTE);
    }
    assert_eq!(world.names("p").len(), 5);
    world.pass(30 * HOUR);
    let planned = world.dry_run(&world.options(Mode::Full)).expect("plan");
    assert_eq!(
        numbers(&planned, Task::FullRewriteContents)["toMove"]["count"],
        5 + 5 + 5 + 1
    );
    world.maintain(Mode::Full).expect("run");
    assert_eq!(world.names("p").len(), 6, "moved, and the old ones still there");
    world.check("moved");
    world.pass(2 * HOUR);
    let report = world.maintain(Mode::Full).expect("run");
    assert_eq!(
        report.task(Task::FullRewriteContents).expect("ran").outcome,
        Outcome::Idle
    );
    assert_eq!(world.names("p").len(), 1);
    world.check("old packs deleted");
}

#[test]
fn an_old_index_still_reads_what_was_moved_until_the_old_packs_go() {
    let mut world = World::new();
    world.back_up(&[1]);
    world.back_up(&[2]);
    world.pass(30 * HOUR);
    let reader = world.open();
    world.maintain(Mode::Full).expect("run");
    check_on(&reader, &world.live, "old index, old packs");
    world.pass(2 * HOUR);
    world.maintain(Mode::Full).expect("run");
    check_on(&reader, &world.live, "old index, packs gone: looked up again");
}

#[test]
fn epochs_advance_are_compacted_and_their_blobs_go() {
    let mut world = World::new();
    for day in 0..40_u8 {
        for chunk in 0..3 {
            world.back_up(&[day, 100 + chunk]);
            world.pass(8 * HOUR);
        }
        world.maintain(Mode::Full).expect("run");
        world.check("epochs");
    }
    let (own, single, range) = (
        world.names("xn").len(),
        world.names("xs").len(),
        world.names("xr").len(),
    );
    assert!(
        single > 3 && own < 120,
        "{own} own, {single} compacted, {range} checkpoints"
    );
    assert!(world.names("xe").len() <= 3, "{:?}", world.names("xe"));
}

#[test]
fn the_history_shows_runs_newest_first_with_the_next_times() {
    let mut world = World::new();
    world.back_up(&[1]);
    for _ in 0..60 {
        world.pass(HOUR);
        world.maintain(Mode::Quick).expect("run");
    }
    let history = History::read(&world.open()).expect("history");
    let runs = history.runs("advance-epoch");
    assert_eq!(runs.len(), 50);
    assert!(runs.windows(2).all(|pair| pair[0].start > pair[1].start));
    assert_eq!(history.next(Mode::Quick).unix(), world.now() + HOUR);
    let parameters = Parameters::read(&world.open()).expect("parameters");
    let time = crate::time::Time::from_unix;
    assert_eq!(
        history.due(&parameters, time(world.now())),
        Some(Mode::Full),
        "never ran"
    );
    world.maintain(Mode::Full).expect("run");
    let history = History::read(&world.open()).expect("history");
    assert_eq!(history.due(&parameters, time(world.now() + HOUR - 1)), None);
    assert_eq!(history.due(&parameters, time(world.now() + HOUR)), Some(Mode::Quick));
    assert_eq!(history.due(&parameters, time(world.now() + DAY)), Some(Mode::Full));
}

#[test]
fn a_dry_run_writes_nothing_and_says_what_the_run_then_does() {
    let mut world = World::new();
    world.back_up(&[1, 2, 3]);
    let goes = world.back_up(&[4, 5, 6]);
    world.die(&[7]);
    world.delete(goes);
    world.pass(100 * HOUR);
    let before: Vec<_> = world.store.clone().names_and_times();
    let planned = world.dry_run(&world.options(Mode::Full)).expect("plan");
    assert_eq!(world.store.clone().names_and_times(), before);
    let done = world.maintain(Mode::Full).expect("run");
    for task in [
        Task::SnapshotGc,
        Task::FullRewriteContents,
        Task::FullDropDeletedContent,
    ] {
        assert_eq!(numbers(&planned, task), numbers(&done, task), "{task:?}");
    }
    assert!(planned.dry_run && !done.dry_run);
}

trait NamesAndTimes {
    fn names_and_times(&self) -> Vec<(String, std::time::SystemTime)>;
}

impl NamesAndTimes for crate::blob::MemStore {
    fn names_and_times(&self) -> Vec<(String, std::time::SystemTime)> {
        let listing = crate::blob::BlobStore::list(self, "").expect("list");
        listing
            .iter()
            .map(|meta| (meta.id.to_string(), meta.modified))
            .collect()
    }
}

#[test]
fn status_explains_why_a_pack_is_there_and_when_it_can_go() {
    let mut world = World::new();
    world.back_up(&[1]);
    let goes = world.back_up(&[4]);
    world.die(&[7]);
    world.delete(goes);
    let options = world.options(Mode::Full);
    let explained = |world: &World, words: &[&str]| {
        let repository = world.open();
        let packs = world.names("p");
        let texts: Vec<String> = packs
            .iter()
            .map(|pack| explain(&repository, &crate::id::BlobId::known(pack.as_str()), &options).expect("explain"))
            .map(|e| format!("{} can go: {}", e.held_by.join("; "), e.can_go))
            .collect();
        for word in words {
            assert!(texts.iter().any(|text| text.contains(word)), "{word}: {texts:?}");
        }
    };
    explained(&world, &["exist", "it is young", "its session may be at work"]);
    world.pass(30 * HOUR);
    world.maintain(Mode::Full).expect("run");
    explained(
        &world,
        &["marked deleted", "second collection", "moved a short while ago"],
    );
    world.pass(100 * HOUR);
    explained(&world, &["can go: true"]);
    let status = status(&world.open(), &options).expect("status");
    assert!(status.is_owner && !status.is_veleros);
    assert_eq!(status.due, Some(Mode::Full));
    assert!(status.packs.to_delete.count >= 2, "{:?}", status.packs);
    assert!(
        status
            .tasks
            .iter()
            .any(|task| task.task == "snapshot-gc" && task.success)
    );
}
