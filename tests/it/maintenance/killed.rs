//! Maintenance that is cut off: by its storage after every change, and by a kill at chosen moments.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use blockferry_tests::kopia::Kopia;
use blockferry_tests::repo::copy_tree;
use blockferry_tests::wait::wait_for;
use blockio::{Cancel, Progress};
use repo::blob::{BlobStore, FaultStore, FsStore};
use repo::maintenance::{self, Mode, Options, Safety};

use super::shared::{Both, US, check_ours};
use crate::bad_input::support::{PASSWORD, names, open};

/// Far more than any step here takes, on any machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// A repository with something to do for every task without margins: a deleted snapshot, short packs, a dead session's
/// packs.
fn subject() -> Option<Both> {
    let mut both = Both::new()?;
    let goes = both.we_take(1, 3);
    both.we_take(2, 2);
    both.we_take(3, 2);
    both.kopia_takes(4);
    both.we_delete(&goes);
    // Marked, so that the next run has deletions to make final.
    both.we_maintain(&["--full", "--safety=none"]);
    let goes = both.we_take(5, 2);
    both.we_take(6, 1);
    both.we_delete(&goes);
    Some(both)
}

fn options() -> Options {
    Options {
        safety: Safety::NONE,
        ..Options::new(Mode::Full, US)
    }
}

fn maintain(store: Arc<dyn BlobStore>) -> repo::Result<maintenance::Report> {
    maintenance::run(&open(store), &options(), &Cancel::new(), &Progress::new())
}

/// Both find the repository in `folder` whole.
#[track_caller]
fn check(both: &Both, folder: &Path, case: &str) {
    check_ours(&open(Arc::new(FsStore::open(folder).unwrap())), &both.taken, case);
    let kopia = Kopia::new(folder, PASSWORD).unwrap();
    kopia.connect().unwrap();
    kopia.verify_full().unwrap_or_else(|e| panic!("{case}: {e}"));
}

#[test]
fn a_cut_after_any_change_leaves_what_kopia_verifies() {
    let Some(both) = subject() else { return };
    let copy = |name: &str| {
        let folder = both.world.path(name);
        copy_tree(&both.world.repo(), &folder).unwrap();
        folder
    };
    let whole = copy("whole");
    let faults = Arc::new(FaultStore::new(Arc::new(FsStore::open(&whole).unwrap())));
    maintain(faults.clone()).unwrap();
    check(&both, &whole, "a whole run");
    let total = faults.changes();
    assert!((15..80).contains(&total), "{total} changes");
    for changes in 0..total {
        let case = format!("cut after {changes} of {total}");
        let folder = copy(&format!("cut-{changes}"));
        let faults = Arc::new(FaultStore::new(Arc::new(FsStore::open(&folder).unwrap())));
        let repository = open(faults.clone());
        faults.cut_after(changes);
        maintenance::run(&repository, &options(), &Cancel::new(), &Progress::new()).expect_err(&case);
        check(&both, &folder, &case);
        // The next run goes on.
        maintain(Arc::new(FsStore::open(&folder).unwrap())).expect(&case);
        check_ours(&open(Arc::new(FsStore::open(&folder).unwrap())), &both.taken, &case);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn a_killed_process_leaves_what_kopia_verifies_and_the_next_run_finishes() {
    let Some(both) = subject() else { return };
    let store = both.world.store();
    type Seen = fn(&dyn BlobStore) -> usize;
    let moments: [(&str, Seen); 4] = [
        ("an index blob", |store| names(store, "xn").len()),
        ("a session marker", |store| names(store, "s").len()),
        ("a pack of metadata", |store| names(store, "q").len()),
        ("a watermark", |store| names(store, "xw").len()),
    ];
    let mut killed = 0;
    for (what, seen) in moments {
        let before = seen(&*store);
        let mut command = both
            .world
            .ferry
            .command(["maintenance", "run", "--full", "--safety=none", "--as", US]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut ended = None;
        wait_for(what, DEADLINE, || {
            ended = child.try_wait().unwrap();
            ended.is_some() || seen(&*store) != before
        })
        .unwrap();
        if ended.is_none() {
            let pid = child.id().to_string();
            killed += usize::from(
                Command::new("kill")
                    .args(["-s", "KILL", &pid])
                    .status()
                    .unwrap()
                    .success(),
            );
        }
        child.wait().unwrap();
        check(&both, &both.world.repo(), what);
    }
    assert!(killed > 0, "every run was faster than a look at the folder");
    both.we_maintain(&["--full", "--safety=none"]);
    both.check("the last run finished");
    assert_eq!(names(&*store, "s"), Vec::<String>::new());
}
