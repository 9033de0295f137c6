//! What the tests of damage share: small repositories, whole jobs in one call, and a look at what is left behind.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blockferry_tests::blockferry::{Blockferry, Ended};
use blockferry_tests::volume::{BlockKind, Layout, Volume};
use blockio::{Cancel, Device, EngineKind, OpenOptions, Progress};
use daemon::JobError;
use daemon::mover::backup::{BackupOptions, BackupReport, backup};
use daemon::mover::restore::{RestoreOptions, RestoreReport, Scope, restore};
use repo::blob::{BlobStore, FsStore, MemStore};
use repo::compress::CompressionPolicy;
use repo::crypto::{AesGcm, Secret32, hkdf};
use repo::format::{CreateOptions, FormatBlob, REPOSITORY_ID};
use repo::snapshot::{Snapshot, Source};
use repo::verify::{VerifyOptions, verify};
use repo::{BlobId, Repository};
use serde_json::Value;
use tempfile::TempDir;

/// Password of every repository here.
pub(crate) const PASSWORD: &str = "correct horse battery";

/// One chunk.
pub(crate) const MIB: u64 = 1 << 20;

/// An empty repository in memory. All have the same keys: making them anew each time would take most of a test's time.
pub(crate) fn empty() -> Arc<MemStore> {
    static MADE: OnceLock<MemStore> = OnceLock::new();
    copy(MADE.get_or_init(|| {
        let store = MemStore::new();
        Repository::create(&store, PASSWORD, &CreateOptions::default()).unwrap();
        store
    }))
}

/// The same blobs in another store.
pub(crate) fn copy(store: &dyn BlobStore) -> Arc<MemStore> {
    let copy = MemStore::new();
    pour(store, &copy);
    Arc::new(copy)
}

/// Puts all blobs of `store` into `other`.
pub(crate) fn pour(store: &dyn BlobStore, other: &dyn BlobStore) {
    for id in names(store, "") {
        let id = BlobId::new(id).unwrap();
        other.put(&id, &store.get(&id).unwrap()).unwrap();
    }
}

/// The same blobs as a repository in the new folder `path`.
pub(crate) fn materialise(store: &dyn BlobStore, path: &Path) {
    pour(store, &FsStore::create(path).unwrap());
}

/// Names of all blobs that begin with `prefix`, sorted.
pub(crate) fn names(store: &dyn BlobStore, prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = store
        .list(prefix)
        .unwrap()
        .into_iter()
        .map(|blob| blob.id.to_string())
        .collect();
    names.sort();
    names
}

/// Opens with [`PASSWORD`].
pub(crate) fn open(store: Arc<dyn BlobStore>) -> Repository {
    Repository::open(store, PASSWORD).unwrap()
}

/// Changes the encrypted parameters of a repository as its owner could.
pub(crate) fn alter_parameters(store: &dyn BlobStore, change: impl FnOnce(&mut Value)) {
    let id = BlobId::new(REPOSITORY_ID).unwrap();
    let bytes = store.get(&id).unwrap();
    let blob = FormatBlob::parse(&bytes).unwrap();
    let format_key = blob.derive_key(PASSWORD).unwrap();
    let derive = |purpose: &[u8]| {
        let mut key = [0; 32];
        hkdf(format_key.as_bytes(), blob.unique_id(), purpose, &mut key);
        Secret32::new(key)
    };
    let (cipher, aad) = (AesGcm::new(&derive(b"AES")), derive(b"CHECKSUM"));
    let mut outer: Value = serde_json::from_slice(&bytes).unwrap();
    let sealed = STANDARD
        .decode(outer["encryptedBlockFormat"].as_str().unwrap())
        .unwrap();
    let mut inner: Value = serde_json::from_slice(&cipher.open(aad.as_bytes(), &sealed).unwrap()).unwrap();
    change(&mut inner["format"]);
    let sealed = cipher.seal(aad.as_bytes(), &serde_json::to_vec(&inner).unwrap());
    outer["encryptedBlockFormat"] = STANDARD.encode(sealed).into();
    store.put(&id, &serde_json::to_vec(&outer).unwrap()).unwrap();
}

/// Makes packs of a repository as small as the format allows, so that small volumes fill several.
pub(crate) fn shrink_packs(store: &dyn BlobStore) {
    alter_parameters(store, |format| format["maxPackSize"] = (10 * MIB).into());
}

/// A volume of `chunks` incompressible chunks, different for each seed.
pub(crate) fn random_volume(seed: u64, chunks: u64) -> Volume {
    Volume::create(&Layout::uniform(seed, chunks * MIB, BlockKind::Random)).unwrap()
}

/// Options of a plain backup by one worker, so that the order of what it stores is always the same.
pub(crate) fn backup_options() -> BackupOptions {
    BackupOptions {
        source: Source {
            host: "host".into(),
            user: "user".into(),
            path: "/volume".into(),
        },
        compression: CompressionPolicy::None,
        workers: 1,
        engine: EngineKind::Auto,
        limit: None,
        change_id: None,
        volume_id: None,
        tags: BTreeMap::new(),
        changes: daemon::mover::backup::Changes::default(),
        care: daemon::mover::backup::Care::default(),
        faults: None,
    }
}

/// Backs a file or device up.
pub(crate) fn back_up(repository: &Repository, path: &Path, options: &BackupOptions) -> daemon::Result<BackupReport> {
    let device = Arc::new(Device::open(path, &OpenOptions::read())?);
    backup(repository, &device, options, &Cancel::new(), &Progress::new())
}

/// Options of a plain restore.
pub(crate) fn restore_options() -> RestoreOptions {
    RestoreOptions {
        scope: Scope::Full,
        workers: 1,
        engine: EngineKind::Auto,
        limit: None,
        verify: false,
        target_is_zero: false,
        salvage: false,
        zero_rest: false,
        discard: false,
        allow_smaller: false,
        faults: None,
    }
}

/// Restores a snapshot to an open target.
pub(crate) fn restore_to(
    repository: &Repository,
    snapshot: &Snapshot,
    target: &Arc<Device>,
    options: &RestoreOptions,
) -> daemon::Result<RestoreReport> {
    let image = repository.image(snapshot)?;
    restore(repository, &image, target, options, &Cancel::new(), &Progress::new())
}

/// The bytes of a snapshot, by way of a restore to a new file.
pub(crate) fn restored(repository: &Repository, snapshot: &Snapshot) -> daemon::Result<Vec<u8>> {
    let folder = fast_folder();
    let path = folder.path().join("restored");
    let image = repository.image(snapshot)?;
    let target = Arc::new(Device::create_file(&path, image.size, true)?);
    let options = RestoreOptions {
        target_is_zero: true,
        ..restore_options()
    };
    restore(repository, &image, &target, &options, &Cancel::new(), &Progress::new())?;
    Ok(fs::read(&path).unwrap())
}

/// A folder in memory where there is one: thousands of small restores wait for no disk.
pub(crate) fn fast_folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// What a verification of every content of every snapshot finds.
pub(crate) fn damage(repository: &Repository) -> repo::Result<Vec<String>> {
    let options = VerifyOptions {
        percent: 100.0,
        workers: 1,
    };
    let report = verify(
        repository,
        &repository.snapshots()?,
        &options,
        &Cancel::new(),
        &Progress::new(),
    )?;
    Ok(report.damage.iter().map(ToString::to_string).collect())
}

/// Asserts that the repository, opened anew, has `snapshots` snapshots, no session marker, and no damage.
#[track_caller]
pub(crate) fn assert_clean(store: &Arc<MemStore>, snapshots: usize) {
    assert_eq!(names(&**store, "s"), Vec::<String>::new(), "a session marker stays");
    let repository = open(store.clone());
    assert_eq!(repository.snapshots().unwrap().len(), snapshots, "snapshots");
    assert_eq!(damage(&repository).unwrap(), Vec::<String>::new());
}

/// Asserts that a backup of `path` succeeds, verifies and restores byte for byte, and returns its report.
#[track_caller]
pub(crate) fn assert_round_trip(store: &Arc<MemStore>, path: &Path) -> BackupReport {
    let repository = open(store.clone());
    let report = back_up(&repository, path, &backup_options()).unwrap();
    let repository = open(store.clone());
    let snapshots = repository.snapshots().unwrap();
    let snapshot = snapshots.iter().find(|s| s.id == Some(report.snapshot)).unwrap();
    assert_same(&restored(&repository, snapshot).unwrap(), &fs::read(path).unwrap());
    assert_eq!(damage(&repository).unwrap(), Vec::<String>::new());
    report
}

/// As `assert_eq`, without printing megabytes.
#[track_caller]
pub(crate) fn assert_same(have: &[u8], want: &[u8]) {
    assert_eq!(have.len(), want.len(), "lengths differ");
    if let Some(at) = have.iter().zip(want).position(|(have, want)| have != want) {
        panic!(
            "bytes differ, the first at {at}: {:#04x} instead of {:#04x}",
            have[at], want[at]
        );
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Asserts the exit code an error leads to, and that its text has all of `words`.
#[track_caller]
pub(crate) fn assert_refused(error: impl Into<JobError>, code: u8, words: &[&str]) {
    let error = error.into();
    let text = chain(&error);
    assert_eq!(error.exit_code(), code, "{text}");
    assert_words(&text, words);
}

/// Asserts that `text` has all of `words`.
#[track_caller]
pub(crate) fn assert_words(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

/// A repository in a folder, and our command line for it.
pub(crate) struct World {
    folder: TempDir,
    /// The command line.
    pub(crate) ferry: Blockferry,
}

impl World {
    /// With an empty repository.
    pub(crate) fn new() -> Self {
        Self::with(&*empty())
    }

    /// With the blobs of `store`.
    pub(crate) fn with(store: &dyn BlobStore) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repo = folder.path().join("repo");
        materialise(store, &repo);
        let ferry = Blockferry::new(&repo, PASSWORD).unwrap();
        Self { folder, ferry }
    }

    /// With a client of a repository that is in `folder`, or somewhere else.
    pub(crate) fn of(folder: TempDir, ferry: Blockferry) -> Self {
        Self { folder, ferry }
    }

    /// Folder of the repository.
    pub(crate) fn repo(&self) -> PathBuf {
        self.folder.path().join("repo")
    }

    /// A path beside the repository.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same as text, for a command line.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The blobs.
    pub(crate) fn store(&self) -> Arc<FsStore> {
        Arc::new(FsStore::open(self.repo()).unwrap())
    }

    /// Runs a command and asserts that it ends with `code` and one error with all of `words`.
    #[track_caller]
    pub(crate) fn refuses(&self, args: &[&str], code: i32, words: &[&str]) -> Ended {
        let ended = self.ferry.ended(args).unwrap();
        assert_failed(&ended, code, words);
        ended
    }

    /// Asserts that the folder holds no temporary file and no session marker, and the repository `snapshots` snapshots
    /// without damage.
    #[track_caller]
    pub(crate) fn assert_clean(&self, snapshots: usize) {
        assert_eq!(temporary_files(&self.repo()), Vec::<PathBuf>::new());
        assert_clean(&copy(&*self.store()), snapshots);
    }
}

/// Asserts how a command ended: its code, nothing on standard output, all of `words` in its error.
#[track_caller]
pub(crate) fn assert_failed(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{}{}", ended.stdout, ended.stderr);
    assert_eq!(ended.stdout, "", "a failure prints no result");
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    assert_words(&ended.stderr, words);
}

/// Files below `folder` that a writer has not given their name yet.
pub(crate) fn temporary_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(temporary_files(&entry.path()));
        } else if entry.file_name().to_string_lossy().contains(".tmp.") {
            found.push(entry.path());
        }
    }
    found
}
