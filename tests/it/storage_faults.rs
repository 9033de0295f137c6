//! Thousands of faults of the storage, by chance, over backup, restore, verification, deletion and maintenance: each job ends with
//! success or a clear error, what is restored is right, and what is left is whole.

use std::sync::Arc;
use std::time::Duration;

use blockferry_tests::volume::{BlockKind, Layout, Random, Volume};
use blockio::{Cancel, Progress};
use daemon::JobError;
use repo::blob::{Fault, FaultRule, FaultStore, MemStore, Meter, RetryBudget, RetryPolicy, RetryStore, StoreOp};
use repo::maintenance::{self, Mode, Safety};
use repo::manifest::Changes;
use repo::session::{WriteOptions, WriteSession};
use repo::{Kind, ManifestId, Repository};

use crate::bad_input::support::{
    MIB, PASSWORD, assert_same, back_up, backup_options, chain, copy, damage, empty, open, restored, shrink_packs,
};

/// Faults of a run of CI, and with soak: those that pass, and those that last. Together they are the number of the acceptance; a
/// fault that lasts ends its job, so that these take longer.
const FAULTS_PASSING: (u64, u64) = (1_600, 16_000);
const FAULTS_LASTING: (u64, u64) = (400, 4_000);

/// A sort of fault and the operations it happens to.
type Sort = (StoreOp, Fault);

/// Sorts of faults that pass: trying again helps.
const PASSING: [Sort; 12] = [
    (StoreOp::Put, Fault::Fail(Kind::Unavailable)),
    (StoreOp::Put, Fault::FailAfter(Kind::Unavailable)),
    (StoreOp::Put, Fault::SlowDown),
    (StoreOp::Put, Fault::Again(0)),
    (StoreOp::Get, Fault::Fail(Kind::Unreachable)),
    (StoreOp::Get, Fault::SlowDown),
    (StoreOp::Range, Fault::Truncate),
    (StoreOp::List, Fault::Fail(Kind::Unavailable)),
    (StoreOp::Meta, Fault::Fail(Kind::Unavailable)),
    (StoreOp::Delete, Fault::Fail(Kind::Unavailable)),
    (StoreOp::Delete, Fault::FailAfter(Kind::Unavailable)),
    (StoreOp::Sync, Fault::Fail(Kind::Unavailable)),
];

/// Sorts of faults that trying again does not help, or that nobody notices at once. A put that arrives once more after others
/// may undo a newer version of the one blob that has versions, that of maintenance.
const LASTING: [Sort; 8] = [
    (StoreOp::Put, Fault::Fail(Kind::Storage)),
    (StoreOp::Put, Fault::FailAfter(Kind::Storage)),
    (StoreOp::Put, Fault::Truncate),
    (StoreOp::Put, Fault::Again(4)),
    (StoreOp::Get, Fault::Truncate),
    (StoreOp::List, Fault::Stale(3)),
    (StoreOp::List, Fault::Stale(12)),
    (StoreOp::Delete, Fault::Fail(Kind::Permission)),
];

/// What is done to a repository while its storage fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Job {
    Backup,
    Restore,
    Verify,
    Delete,
    Maintain,
}

/// What happens between two looks at the repository in fair weather.
const JOBS: [Job; 6] = [
    Job::Backup,
    Job::Restore,
    Job::Verify,
    Job::Backup,
    Job::Delete,
    Job::Maintain,
];

/// Who maintains.
const OWNER: &str = "user@host";

/// What falls, and how much.
struct Weather<'a> {
    sorts: &'a [Sort],
    /// Operations of a thousand that are hit, of those that one of the sorts happens to.
    per_mille: u64,
    /// Margins of maintenance.
    safety: Safety,
}

/// A repository with two snapshots, and a volume that shares some of its chunks with them.
struct Subject {
    base: Arc<MemStore>,
    /// What each snapshot holds.
    known: Vec<(ManifestId, Vec<u8>)>,
    volume: Volume,
}

impl Subject {
    fn new() -> Self {
        let base = empty();
        shrink_packs(&*base);
        maintenance::set_owner(&open(base.clone()), OWNER).unwrap();
        let volume = Volume::create(&Layout::uniform(91, 14 * MIB + 512, BlockKind::Random)).unwrap();
        let mut known = Vec::new();
        for round in 0..2 {
            volume.change_blocks(round, 5).unwrap();
            let report = back_up(&open(base.clone()), volume.path(), &backup_options()).unwrap();
            known.push((report.snapshot, volume.bytes().unwrap()));
        }
        volume.change_blocks(7, 11).unwrap();
        Self { base, known, volume }
    }

    /// Does all jobs, one after the other, in the weather of `seed`. Returns how many faults there were, and how many jobs failed.
    fn run(&self, weather: &Weather<'_>, seed: u64) -> (u64, u64) {
        let left = copy(&*self.base);
        let faulty = Arc::new(FaultStore::new(left.clone()));
        let mut random = Random::new(seed);
        // In every fourth weather the repository is opened with faults too.
        if seed.is_multiple_of(4) {
            weather.set(&faulty, random.next_u64());
        }
        let mut made = Vec::new();
        let mut failed = 0;
        match Repository::open(persistent(&faulty), PASSWORD) {
            Err(error) => failed += clear(&error.into(), &format!("open with seed {seed}")),
            Ok(repository) => {
                for job in JOBS {
                    weather.set(&faulty, random.next_u64());
                    match self.job(job, &repository, weather, &mut random) {
                        Ok(snapshot) => made.extend(snapshot),
                        Err(error) => failed += clear(&error, &format!("{job:?} with seed {seed}")),
                    }
                }
            }
        }
        let injected = faulty.injected();
        faulty.clear();
        faulty.deliver().unwrap();
        self.check(&left, &made, &format!("seed {seed}"));
        (injected, failed)
    }

    /// The job; gives the snapshot that it made, if it made one.
    fn job(
        &self,
        job: Job,
        repository: &Repository,
        weather: &Weather<'_>,
        random: &mut Random,
    ) -> daemon::Result<Option<ManifestId>> {
        match job {
            Job::Backup => {
                let report = back_up(repository, self.volume.path(), &backup_options())?;
                Ok(Some(report.snapshot))
            }
            Job::Restore => {
                let (id, bytes) = &self.known[usize::try_from(random.below(2)).expect("0 or 1")];
                let snapshots = repository.snapshots()?;
                let snapshot = snapshots.iter().find(|snapshot| snapshot.id == Some(*id));
                let snapshot = snapshot.expect("nobody has deleted it yet");
                assert_same(&restored(repository, snapshot)?, bytes);
                Ok(None)
            }
            // Damage it reports is that of the answers it got.
            Job::Verify => damage(repository).map(|_| None).map_err(Into::into),
            Job::Delete => {
                let manifests = repository.manifests()?;
                let manifest = manifests.get(&self.known[0].0).expect("nobody has deleted it yet");
                let mut changes = Changes::default();
                changes.delete(manifest);
                let options = WriteOptions {
                    sealers: 0,
                    uploads: 1,
                    ..WriteOptions::default()
                };
                WriteSession::begin(repository, &options)?.commit_changes(&changes)?;
                Ok(None)
            }
            Job::Maintain => {
                let options = maintenance::Options {
                    safety: weather.safety.clone(),
                    ..maintenance::Options::new(Mode::Full, OWNER)
                };
                maintenance::run(repository, &options, &Cancel::new(), &Progress::new())?;
                Ok(None)
            }
        }
    }

    /// In fair weather: the repository is whole, every snapshot has its bytes, and the next backup succeeds.
    fn check(&self, left: &Arc<MemStore>, made: &[ManifestId], case: &str) {
        let repository = open(left.clone());
        assert_eq!(damage(&repository).unwrap(), Vec::<String>::new(), "{case}");
        let snapshots = repository.snapshots().unwrap();
        let has = |id: &ManifestId| snapshots.iter().any(|snapshot| snapshot.id == Some(*id));
        assert!(
            made.iter().all(has),
            "{case}: a snapshot that was reported is not there"
        );
        assert!(has(&self.known[1].0), "{case}: a snapshot that nobody deleted is gone");
        let volume = self.volume.bytes().unwrap();
        for snapshot in &snapshots {
            let known = self.known.iter().find(|(id, _)| snapshot.id == Some(*id));
            let want = known.map_or(&volume, |(_, bytes)| bytes);
            assert_same(&restored(&repository, snapshot).unwrap(), want);
        }
        back_up(&repository, self.volume.path(), &backup_options()).unwrap();
    }
}

/// `store` with everything tried again as in production, but without the waits.
fn persistent(store: &Arc<FaultStore>) -> Arc<RetryStore> {
    let policy = RetryPolicy {
        wait_max: Duration::from_millis(1),
        ..RetryPolicy::default()
    };
    let budget = Arc::new(RetryBudget::default());
    Arc::new(RetryStore::new(
        store.clone(),
        policy,
        budget,
        Cancel::new(),
        Meter::new(),
    ))
}

impl Weather<'_> {
    /// Lets the operations fail from now on, the sorts of faults for one with equal shares.
    fn set(&self, faulty: &FaultStore, seed: u64) {
        faulty.clear();
        for (at, (op, fault)) in (1..).zip(self.sorts) {
            let rule = FaultRule {
                op: *op,
                prefix: String::new(),
                skip: 0,
                count: u64::MAX,
                fault: *fault,
            };
            let share = self.sorts.iter().filter(|sort| sort.0 == *op).count() as u64;
            faulty.rule_by_chance(rule, self.per_mille / share, seed.wrapping_mul(at));
        }
    }
}

/// Asserts that a job failed as jobs do, and counts it.
fn clear(error: &JobError, case: &str) -> u64 {
    let (code, text) = (error.exit_code(), chain(error));
    assert!(matches!(code, 1 | 4), "{case}: code {code}: {text}");
    assert!(!text.contains("panic"), "{case}: {text}");
    eprintln!("{case}: {text}");
    1
}

/// Runs all jobs again and again until there were `faults`; tells how many jobs there were and how many failed.
fn rain(weather: &Weather<'_>, faults: u64) -> (u64, u64) {
    let subject = Subject::new();
    let (mut injected, mut jobs, mut failed) = (0, 0, 0);
    for seed in 1.. {
        if injected >= faults {
            break;
        }
        let (hits, failures) = subject.run(weather, seed);
        injected += hits;
        jobs += JOBS.len() as u64;
        failed += failures;
    }
    eprintln!("{injected} faults in {jobs} jobs, of which {failed} failed");
    (jobs, failed)
}

/// Of a thousand operations 400 fail at first, and so do 400 of those tried again. Nobody else is writing, so that maintenance may
/// go without margins.
#[test]
fn rounds_of_faults_that_pass_are_passed() {
    let weather = Weather {
        sorts: &PASSING,
        per_mille: 400,
        safety: Safety::NONE,
    };
    let (jobs, failed) = rain(&weather, blockferry_tests::rounds(FAULTS_PASSING.0, FAULTS_PASSING.1));
    assert!(
        failed * 20 <= jobs,
        "{failed} of {jobs} jobs gave up, and trying again would have helped"
    );
}

/// Few operations fail, but each for good: most jobs are to meet one, and not all at their first step. Margins are what makes
/// maintenance safe from a list that does not show what was just written.
#[test]
fn rounds_of_faults_that_last_lose_nothing() {
    let weather = Weather {
        sorts: &LASTING,
        per_mille: 100,
        safety: Safety::FULL,
    };
    let (jobs, failed) = rain(&weather, blockferry_tests::rounds(FAULTS_LASTING.0, FAULTS_LASTING.1));
    assert!(failed > 0 && failed < jobs, "{failed} of {jobs} jobs failed");
}
