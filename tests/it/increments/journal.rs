//! What an interrupted backup noted down is relied on only as far as it is true: runs that begin anew, contents that are lost, and
//! commits that failed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use blockferry_tests::volume::Volume;
use blockio::fault::{Fault as ReadFault, Outcome};
use blockio::{BlockMap, Cancel, ChunkIndex, Device, Extent, FaultPlan, Op, OpenOptions, Progress};
use daemon::mover::backup::{BackupOptions, BackupReport, Care};
use daemon::mover::commit::commit;
use repo::blob::{BlobStore, Fault, FaultRule, FaultStore, MemStore, StoreOp};
use repo::maintenance::Safety;
use repo::snapshot::Source;
use repo::{BlobId, Kind};
use tempfile::TempDir;

use crate::bad_input::support::{
    MIB, assert_clean, assert_same, back_up, backup_options, copy, damage, empty, names, open, random_volume, restored,
    shrink_packs,
};

const CHUNKS: u64 = 72;

/// Packs of the interrupted run, of nine or ten chunks each.
const PACKS: u64 = 5;

/// A chunk of the interrupted run's that the sample (of every third or fourth) does not look at, and that a run which fails with its
/// first pack does not get to.
const UNSAMPLED: u64 = 35;

/// What is written behind the back of the change id.
const OTHER: &[u8] = b"these bytes are not those that the interrupted run has read";

/// A source, its repository, and the state folder of its host.
struct Site {
    left: Arc<MemStore>,
    state: TempDir,
    volume: Volume,
}

impl Site {
    fn new() -> Self {
        let left = empty();
        shrink_packs(&*left);
        Self {
            left,
            state: tempfile::tempdir().unwrap(),
            volume: random_volume(63, CHUNKS),
        }
    }

    fn options(&self, begin_anew: bool) -> BackupOptions {
        BackupOptions {
            change_id: Some("c1".into()),
            volume_id: Some("v".into()),
            care: Care {
                check_reused: 100,
                notes: Some(self.state.path().to_owned()),
                begin_anew,
                ..Care::default()
            },
            ..backup_options()
        }
    }

    /// A backup to a storage that takes so many packs, and index blobs or not.
    fn fails(&self, packs: u64, index: bool, begin_anew: bool) {
        self.fails_and(packs, index, begin_anew, true);
    }

    /// The same, and the marker of its session stays or not.
    fn fails_and(&self, packs: u64, index: bool, begin_anew: bool, is_tidy: bool) {
        let faulty = FaultStore::new(self.left.clone());
        let refuse = |op, prefix: &str, skip| {
            faulty.rule(FaultRule {
                op,
                prefix: prefix.into(),
                skip,
                count: u64::MAX,
                fault: Fault::Fail(Kind::Storage),
            });
        };
        refuse(StoreOp::Put, "p", packs);
        if !index {
            refuse(StoreOp::Put, "x", 0);
        }
        if !is_tidy {
            refuse(StoreOp::Delete, "s", 0);
        }
        let repository = open(Arc::new(faulty));
        back_up(&repository, self.volume.path(), &self.options(begin_anew)).unwrap_err();
    }

    /// A run that leaves packs and a journal, and no index.
    fn is_interrupted(&self) {
        self.fails(PACKS, false, false);
        assert_eq!(names(&*self.left, "p").len() as u64, PACKS);
    }

    /// A run that was killed: it leaves its marker and its note too. Its session.
    fn is_killed(&self) -> String {
        self.fails_and(PACKS, false, false, false);
        let markers = names(&*self.left, "s");
        let [marker] = &markers[..] else {
            panic!("{markers:?}");
        };
        let session = marker.split_once('-').unwrap().1.to_owned();
        let notes = self.notes();
        fs::create_dir_all(&notes).unwrap();
        fs::write(notes.join(&session), b"").unwrap();
        session
    }

    fn notes(&self) -> PathBuf {
        let unique_id = hex::encode(&open(self.left.clone()).format().unique_id);
        self.state.path().join("sessions").join(unique_id)
    }

    fn has_marker(&self, session: &str) -> bool {
        names(&*self.left, "s").iter().any(|name| name.ends_with(session))
    }

    /// A backup of another source of this host.
    fn backs_up_another(&self) {
        let other = random_volume(64, 2);
        let options = BackupOptions {
            source: source("/other"),
            ..self.options(false)
        };
        back_up(&open(self.left.clone()), other.path(), &options).unwrap();
    }

    /// A commit of what was written over a snapshot of the other source.
    fn commits(&self) {
        let repository = open(self.left.clone());
        let snapshots = repository.snapshots().unwrap();
        let below = snapshots.iter().find(|s| s.source == source("/other")).unwrap();
        let image = repository.image(below).unwrap();
        let volume = random_volume(65, 2);
        let device = Device::open(volume.path(), &OpenOptions::read()).unwrap();
        let mut written = BlockMap::new(2);
        written.set(ChunkIndex::new(1));
        let options = BackupOptions {
            source: source("/committed"),
            ..self.options(false)
        };
        let (cancel, progress) = (Cancel::new(), Progress::new());
        commit(&repository, &image, &device, &written, &options, &cancel, &progress).unwrap();
    }

    fn write(&self, chunk: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(self.volume.path()).unwrap();
        file.write_all_at(bytes, chunk * MIB).unwrap();
    }

    #[track_caller]
    fn succeeds(&self) -> BackupReport {
        let report = back_up(&open(self.left.clone()), self.volume.path(), &self.options(false)).unwrap();
        let repository = open(self.left.clone());
        let snapshots = repository.snapshots().unwrap();
        let snapshot = snapshots.iter().find(|s| s.id == Some(report.snapshot)).unwrap();
        assert_eq!(damage(&repository).unwrap(), Vec::<String>::new());
        assert_same(&restored(&repository, snapshot).unwrap(), &self.volume.bytes().unwrap());
        report
    }
}

fn source(path: &str) -> Source {
    Source {
        path: path.into(),
        ..backup_options().source
    }
}

/// A run that was told to begin anew kept what the one before had noted; when it was interrupted too, the next took up both.
#[test]
fn a_journal_that_was_not_wanted_is_not_taken_up_later() {
    let site = Site::new();
    site.is_interrupted();
    site.write(UNSAMPLED, OTHER);
    site.fails(0, false, true);
    site.succeeds();
}

/// The same after the sample had found the source changed: the chunks that it did not look at came back with the next run.
#[test]
fn a_journal_whose_sample_failed_is_not_taken_up_later() {
    let site = Site::new();
    site.is_interrupted();
    let first = site.volume.bytes().unwrap()[..64].to_vec();
    site.write(0, OTHER);
    site.write(UNSAMPLED, OTHER);
    let unreadable = ReadFault {
        op: Op::Read,
        range: Extent::between(8 * MIB, 9 * MIB),
        skip: 0,
        count: 1,
        outcome: Outcome::Errno(5),
    };
    let options = BackupOptions {
        faults: Some(FaultPlan::new().with(unreadable)),
        ..site.options(false)
    };
    back_up(&open(site.left.clone()), site.volume.path(), &options).unwrap_err();
    site.write(0, &first); // where the sample looks first
    site.succeeds();
}

/// The journal has the entries of every pack, those with manifests too: a snapshot whose backup was told to have failed came to
/// light with the next run.
#[test]
fn a_snapshot_that_was_not_published_is_not_published_by_the_next_run() {
    let site = Site::new();
    site.fails(u64::MAX, false, false);
    let report = site.succeeds();
    assert_eq!(report.read_bytes, 0, "the data was stored");
    assert_clean(&site.left, 1);
}

/// Chunks of an interrupted run were believed when the index had their contents, without a look at the packs.
#[test]
fn what_was_lost_since_is_not_taken_up() {
    let site = Site::new();
    site.is_interrupted();
    site.fails(0, true, false);
    let lost = names(&*site.left, "p").remove(0);
    site.left.delete(&BlobId::new(lost).unwrap()).unwrap();
    let report = site.succeeds();
    assert!(report.read_bytes < CHUNKS * MIB, "the other packs are relied on");
}

/// The marker of the interrupted session is what keeps maintenance from packs that no index knows. It went before they were known.
#[test]
fn packs_are_guarded_until_they_are_in_the_index() {
    let site = Site::new();
    site.is_interrupted();
    let repository = open(site.left.clone());
    let mut first = vec![0; usize::try_from(MIB).unwrap()];
    File::open(site.volume.path())
        .unwrap()
        .read_exact_at(&mut first, 0)
        .unwrap();
    let content = repository.contents().content_id(None, &first);

    // As if the process had been killed: its marker and its note are there.
    let notes = site.notes();
    let session = "s0123456789abcdef100";
    site.left
        .put(&BlobId::new(format!("s0123-{session}")).unwrap(), b"marker")
        .unwrap();
    fs::create_dir_all(&notes).unwrap();
    let mut removed = 0;
    for changes in 0..8 {
        fs::write(notes.join(session), b"").unwrap();
        let left = copy(&*site.left);
        let faulty = Arc::new(FaultStore::new(left.clone()));
        let repository = open(faulty.clone());
        faulty.cut_after(changes);
        let saved = tempfile::tempdir().unwrap();
        blockferry_tests::repo::copy_tree(site.state.path(), &saved.path().join("state")).unwrap();
        let options = BackupOptions {
            care: Care {
                notes: Some(saved.path().join("state")),
                ..site.options(false).care
            },
            ..site.options(false)
        };
        back_up(&repository, site.volume.path(), &options).unwrap_err();
        let is_guarded = names(&*left, "s").iter().any(|name| name.ends_with(session));
        let is_known = open(left).deleted_at(&content) == Some(None);
        assert!(is_guarded || is_known, "after {changes} changes");
        removed += usize::from(!is_guarded);
    }
    assert!(removed > 0, "the marker goes");
}

/// Any run of any source removed the markers of all crashed sessions of the host, also of those whose backup was to be resumed: then
/// only their age kept maintenance from their packs.
#[test]
fn runs_of_other_sources_leave_the_marker_of_a_backup_that_can_be_resumed() {
    let site = Site::new();
    let session = site.is_killed();
    site.backs_up_another();
    assert!(site.has_marker(&session), "after a backup of another source");
    site.commits();
    assert!(site.has_marker(&session), "after a commit");
    let report = site.succeeds();
    assert!(report.resumed_bytes > 0);
    assert!(!site.has_marker(&session), "its packs are indexed");
    assert_eq!(names(&*site.left, "s"), Vec::<String>::new());
}

/// A marker counts for 96 hours; a journal that nobody takes up must not keep it for ever.
#[test]
fn an_old_journal_keeps_no_marker() {
    let site = Site::new();
    let session = site.is_killed();
    let journals = site.state.path().join("resume");
    let journals = fs::read_dir(&journals).unwrap().flatten().next().unwrap().path();
    let journal = fs::read_dir(&journals).unwrap().flatten().next().unwrap().path();
    let journal = File::options().write(true).open(journal).unwrap();
    let age = Safety::FULL.session_age_max + Duration::from_secs(60);
    journal.set_modified(SystemTime::now() - age).unwrap();
    site.backs_up_another();
    assert!(!site.has_marker(&session));
    // Its journal is as good as before.
    assert!(site.succeeds().resumed_bytes > 0);
}
