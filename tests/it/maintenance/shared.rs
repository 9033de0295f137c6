//! One repository, both clients, and what every snapshot must hold.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use blockferry_tests::kopia::{self, Kopia};
use blockferry_tests::volume::Layout;
use repo::Repository;
use serde_json::Value;

use crate::bad_input::support::{
    MIB, PASSWORD, World, assert_same, back_up, backup_options, damage, open, random_volume, restored,
};

/// The client that we are.
pub(super) const US: &str = "ferry@dock";

/// A repository in a folder with a client of each kind.
pub(super) struct Both {
    pub(super) world: World,
    pub(super) kopia: Kopia,
    /// Bytes of each snapshot's volume by id.
    pub(super) taken: BTreeMap<String, Vec<u8>>,
}

impl Both {
    /// An empty repository that we maintain; nothing where there is no kopia and tests may do without.
    pub(super) fn new() -> Option<Self> {
        if !kopia::available() {
            return None;
        }
        let world = World::new();
        world.ferry.run(["maintenance", "own", US]).unwrap();
        let kopia = Kopia::new(&world.repo(), PASSWORD).unwrap();
        kopia.connect().unwrap();
        kopia.policy_set("--global", &["--keep-latest=1000"]).unwrap();
        Some(Self {
            world,
            kopia,
            taken: BTreeMap::new(),
        })
    }

    pub(super) fn open(&self) -> Repository {
        open(self.world.store())
    }

    /// We back up a volume of random chunks, different for each seed.
    pub(super) fn we_take(&mut self, seed: u64, chunks: u64) -> String {
        let volume = random_volume(seed, chunks);
        let report = back_up(&self.open(), volume.path(), &backup_options()).unwrap();
        let id = report.snapshot.to_string();
        self.taken.insert(id.clone(), volume.bytes().unwrap());
        id
    }

    /// Kopia takes a snapshot of a used disk.
    pub(super) fn kopia_takes(&mut self, seed: u64) -> String {
        let bytes = Layout::mixed(seed, 2 * MIB + 512).bytes();
        let name = format!("/piped/{seed}");
        let manifest = self.kopia.snapshot_stdin(&name, "disk.raw", &bytes, &[]).unwrap();
        let id = manifest["id"].as_str().unwrap().to_owned();
        self.taken.insert(id.clone(), bytes);
        id
    }

    pub(super) fn we_delete(&mut self, id: &str) {
        self.world.ferry.run(["delete", id]).unwrap();
        self.taken.remove(id);
    }

    pub(super) fn kopia_deletes(&mut self, id: &str) {
        self.kopia.snapshot_delete(id).unwrap();
        self.taken.remove(id);
    }

    /// We maintain; returns the report.
    pub(super) fn we_maintain(&self, args: &[&str]) -> Value {
        let fixed = ["maintenance", "run", "--as", US];
        self.world.ferry.run_json(fixed.iter().chain(args)).unwrap()
    }

    /// Everything is whole for both, and holds what it must.
    #[track_caller]
    pub(super) fn check(&self, case: &str) {
        self.kopia.verify_full().unwrap_or_else(|e| panic!("{case}: {e}"));
        self.kopia
            .content_verify_full()
            .unwrap_or_else(|e| panic!("{case}: {e}"));
        let list = self.kopia.snapshot_list_json().unwrap();
        assert_eq!(list.len(), self.taken.len(), "{case}: kopia lists {list:?}");
        check_ours(&self.open(), &self.taken, case);
    }
}

/// Everything is whole for us, and holds what it must.
#[track_caller]
pub(super) fn check_ours(repository: &Repository, taken: &BTreeMap<String, Vec<u8>>, case: &str) {
    assert_eq!(damage(repository).unwrap(), Vec::<String>::new(), "{case}");
    let snapshots = repository.snapshots().unwrap();
    assert_eq!(snapshots.len(), taken.len(), "{case}");
    for snapshot in &snapshots {
        let id = snapshot.id.unwrap().to_string();
        assert_same(&restored(repository, snapshot).unwrap(), &taken[&id]);
    }
}

/// The outcome of a task in a report.
pub(super) fn outcome<'a>(report: &'a Value, task: &str) -> &'a str {
    task_of(report, task)["outcome"].as_str().unwrap()
}

/// The numbers of a task in a report.
pub(super) fn numbers<'a>(report: &'a Value, task: &str) -> &'a Value {
    &task_of(report, task)["numbers"]
}

fn task_of<'a>(report: &'a Value, task: &str) -> &'a Value {
    let tasks = report["tasks"].as_array().unwrap();
    let found = tasks.iter().find(|t| t["task"] == task);
    found.unwrap_or_else(|| panic!("no {task} in {report}"))
}

/// Makes every blob below `folder` whose file name satisfies `which` look `by` older to the storage.
pub(super) fn age(folder: &Path, by: Duration, which: &dyn Fn(&Path) -> bool) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            age(&path, by, which);
        } else if which(&path) {
            let older: SystemTime = entry.metadata().unwrap().modified().unwrap() - by;
            File::options()
                .append(true)
                .open(&path)
                .unwrap()
                .set_modified(older)
                .unwrap();
        }
    }
}
