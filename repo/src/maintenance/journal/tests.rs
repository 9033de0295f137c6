use super::*;

const HOUR: u64 = 3600;

/// A run from hour to hour.
fn ran(start: u64, end: u64, success: bool) -> MaintenanceRun {
    let time = |hour| Time::from_unix(hour * HOUR);
    line(time(start), time(end), success, String::new(), Vec::new())
}

#[track_caller]
fn check(runs: &[(u64, u64, bool)], expect: Option<u64>) {
    let runs: Vec<_> = runs
        .iter()
        .map(|(start, end, success)| ran(*start, *end, *success))
        .collect();
    let hours = |n| Duration::from_secs(n * HOUR);
    let drop_time = safe_drop_time(&runs, hours(4), hours(1));
    assert_eq!(drop_time.map(|time| time.unix() / HOUR), expect);
}

#[test]
fn deletions_become_final_only_when_a_later_collection_confirms_them() {
    check(&[], None);
    check(&[(100, 101, true)], None);
    check(&[(124, 125, true), (100, 101, true)], Some(99));
    // The one before it began just four hours earlier, or ended too late.
    check(&[(105, 106, true), (101, 101, true)], None);
    check(&[(106, 107, true), (100, 102, true)], None);
    check(&[(107, 108, true), (100, 102, true)], Some(99));
    // Failures count for nothing, on either side.
    check(&[(124, 125, false), (100, 101, true)], None);
    check(&[(124, 125, true), (110, 111, false), (100, 101, true)], Some(99));
    // The newest that is old enough counts, in whatever order they were written down.
    check(
        &[(90, 91, true), (124, 125, true), (118, 119, true), (121, 122, true)],
        Some(117),
    );
}

#[test]
fn runs_are_told_by_name_and_the_last_success_counts() {
    let mut schedule = never();
    schedule.add_run("full-rewrite-contents", ran(1, 2, true));
    schedule.add_run("full-rewrite-contents", ran(5, 6, false));
    schedule.add_run("quick-rewrite-contents", ran(3, 4, true));
    let history = History::of(schedule);
    let last = |tasks: &[&str]| history.last_end(tasks).map(|time| time.unix() / HOUR);
    assert_eq!(last(&["full-rewrite-contents"]), Some(2));
    assert_eq!(last(&["full-rewrite-contents", "quick-rewrite-contents"]), Some(4));
    assert_eq!(last(&["full-delete-blobs"]), None);
}

#[test]
fn what_is_switched_off_is_never_due() {
    let history = History::of(never());
    let now = Time::from_unix(1);
    let mut parameters = Parameters::default();
    assert_eq!(history.due(&parameters, now), Some(Mode::Full));
    parameters.full.enabled = false;
    assert_eq!(history.due(&parameters, now), Some(Mode::Quick));
    parameters.quick.enabled = false;
    assert_eq!(history.due(&parameters, now), None);
}

#[test]
fn tasks_have_the_names_that_json_gives_them() {
    for task in [
        Task::SnapshotGc,
        Task::FullRewriteContents,
        Task::FullDropDeletedContent,
        Task::FullDeleteBlobs,
        Task::ExtendBlobRetentionTime,
        Task::CompactSingleEpoch,
        Task::AdvanceEpoch,
        Task::GenerateEpochRangeIndex,
        Task::CleanupEpochMarkers,
        Task::DeleteSupersededEpochIndexes,
        Task::CleanupLogs,
    ] {
        assert_eq!(serde_json::to_value(task).expect("JSON"), task.name());
    }
}
