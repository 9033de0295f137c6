//! One repository with a client of each kind, snapshots with the bytes they must have, and the checks both clients make.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::bucket::Bucket;
use blockferry_tests::kopia::{self, Kopia};
use blockferry_tests::repo::{TreeEntry, copy_tree, list_tree};
use blockferry_tests::volume::{Layout, Volume};
use repo::Repository;
use repo::blob::FsStore;
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const MIB: u64 = 1 << 20;

/// Password of every repository made here.
pub(crate) const PASSWORD: &str = "judge-passw0rd";

/// Whether kopia can judge. Without it the test fails in CI and says why it does nothing elsewhere.
pub(crate) fn kopia_is_here() -> bool {
    if !kopia::available() {
        return false;
    }
    match kopia::find() {
        Ok(_) => true,
        Err(failure) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("{failure}"),
        Err(failure) => {
            eprintln!("SKIPPED: {failure}");
            false
        }
    }
}

/// A repository, and who works on it.
pub(crate) struct Shared {
    pub(crate) kopia: Kopia,
    pub(crate) ours: Blockferry,
    /// Folder of the repository, unless it is in a bucket.
    pub(crate) repo: PathBuf,
    folder: TempDir,
}

/// A snapshot and what was in its source.
#[derive(Clone)]
pub(crate) struct Taken {
    pub(crate) id: String,
    source: String,
    bytes: Arc<Vec<u8>>,
    shape: Shape,
}

/// How a snapshot holds a volume.
#[derive(Clone, PartialEq)]
enum Shape {
    /// The root is the file.
    File,
    /// The root is a folder with the file.
    Stdin,
    /// The root is a folder with the file, padded to whole chunks.
    Image,
    /// The root is a folder with these entries; there is no volume.
    Tree(Arc<Vec<TreeEntry>>),
}

impl Shared {
    fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repo = folder.path().join("repo");
        Self {
            kopia: Kopia::new(&repo, PASSWORD).unwrap(),
            ours: Blockferry::new(&repo, PASSWORD).unwrap(),
            repo,
            folder,
        }
    }

    /// A place in a bucket, where there may or may not be a repository.
    pub(crate) fn in_bucket(bucket: &Bucket) -> Self {
        Self {
            kopia: Kopia::in_bucket(bucket, PASSWORD).unwrap(),
            ours: Blockferry::in_bucket(bucket, PASSWORD).unwrap(),
            ..Self::empty()
        }
    }

    /// Kopia creates the repository in a folder, with further options.
    pub(crate) fn by_kopia(args: &[&str]) -> Self {
        let shared = Self::empty();
        fs::create_dir(&shared.repo).unwrap();
        shared.kopia_creates(args);
        shared
    }

    /// We create the repository in a folder, with further options. Kopia connects to it.
    pub(crate) fn by_us(args: &[&str]) -> Self {
        let shared = Self::empty();
        shared.we_create(args);
        shared
    }

    /// Kopia creates the repository, with further options.
    pub(crate) fn kopia_creates(&self, args: &[&str]) {
        self.kopia.create(args).unwrap();
        self.kopia.policy_set("--global", &["--keep-latest=1000"]).unwrap();
    }

    /// We create the repository, with further options. Kopia connects to it.
    pub(crate) fn we_create(&self, args: &[&str]) {
        self.ours.run(["repo", "create"].iter().chain(args)).unwrap();
        self.kopia.connect().unwrap();
    }

    /// The same repository in another folder, with clients that know nothing yet.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::empty();
        copy_tree(&self.repo, &copy.repo).unwrap();
        copy.kopia.connect().unwrap();
        copy
    }

    /// A new file name in the folder beside the repository.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Opened by our library.
    pub(crate) fn library(&self) -> Repository {
        Repository::open(Arc::new(FsStore::open(&self.repo).unwrap()), PASSWORD).unwrap()
    }

    /// Kopia snapshots a file.
    pub(crate) fn kopia_takes_file(&self, layout: &Layout) -> Taken {
        let volume = Volume::create(layout).unwrap();
        let manifest = self.kopia.snapshot_create(volume.path(), &[]).unwrap();
        Taken::of(&manifest, volume.bytes().unwrap(), Shape::File)
    }

    /// Kopia snapshots a folder.
    pub(crate) fn kopia_takes_tree(&self, folder: &Path) -> Taken {
        let manifest = self.kopia.snapshot_create(folder, &[]).unwrap();
        let entries = Arc::new(list_tree(folder).unwrap());
        Taken::of(&manifest, Vec::new(), Shape::Tree(entries))
    }

    /// Kopia snapshots its standard input.
    pub(crate) fn kopia_takes_stdin(&self, name: &str, layout: &Layout) -> Taken {
        let bytes = layout.bytes();
        let manifest = self
            .kopia
            .snapshot_stdin(&format!("/piped/{name}"), "disk.raw", &bytes, &[])
            .unwrap();
        Taken::of(&manifest, bytes, Shape::Stdin)
    }

    /// We back a file up as `root@localhost:/volumes/<name>`.
    pub(crate) fn we_take(&self, name: &str, bytes: Vec<u8>, args: &[&str]) -> Taken {
        let path = self.file(&format!("{name}.img"));
        fs::write(&path, &bytes).unwrap();
        let source = our_source(name);
        let document = self.ours.backup(&path, &[&["--as", &source], args].concat()).unwrap();
        fs::remove_file(&path).unwrap();
        Taken::ours(&document, bytes)
    }

    /// Kopia becomes the one who maintains, and does so without any safety margin. Nobody may be writing.
    pub(crate) fn kopia_maintains(&self) {
        self.kopia.run(["maintenance", "set", "--owner=me"]).unwrap();
        self.kopia.maintenance_full_unsafe().unwrap();
    }

    /// Kopia finds everything whole: the repository opens, all of `taken` and nothing else is listed, all contents read.
    pub(crate) fn kopia_verifies(&self, taken: &[Taken]) {
        self.kopia.run(["repository", "status"]).unwrap();
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let list = self.kopia.snapshot_list_json().unwrap();
        let have = list.iter().map(|manifest| (text(&manifest["id"]), source_of(manifest)));
        same_snapshots(have.collect(), taken);
        self.kopia.verify_full().unwrap();
        self.kopia.content_verify_full().unwrap();
    }

    /// Kopia finds everything whole, and restores every snapshot to the bytes of its source.
    pub(crate) fn kopia_approves(&self, taken: &[Taken]) {
        self.kopia_verifies(taken);
        taken.iter().for_each(|snapshot| self.kopia_restores(snapshot));
    }

    fn kopia_restores(&self, snapshot: &Taken) {
        let target = self.file("by-kopia");
        self.kopia.restore(&snapshot.id, &target).unwrap();
        let file = match &snapshot.shape {
            Shape::File => target.clone(),
            Shape::Stdin | Shape::Image => only_file(&target),
            Shape::Tree(entries) => {
                assert!(
                    list_tree(&target).unwrap() == **entries,
                    "kopia restores {} wrong",
                    snapshot.id
                );
                remove(&target);
                return;
            }
        };
        let bytes = fs::read(&file).unwrap();
        let (volume, padding) = bytes.split_at(snapshot.bytes.len().min(bytes.len()));
        snapshot.is_same(volume, "kopia");
        assert!(
            padding.iter().all(|byte| *byte == 0),
            "{}: padding is not zero",
            snapshot.source
        );
        let size = match snapshot.shape {
            Shape::Image => (snapshot.bytes.len() as u64).next_multiple_of(MIB),
            Shape::File | Shape::Stdin | Shape::Tree(_) => snapshot.bytes.len() as u64,
        };
        assert_eq!(bytes.len() as u64, size, "{}", snapshot.source);
        remove(&target);
    }

    /// We find everything whole: all of `taken` and nothing else is listed, and all contents read.
    pub(crate) fn we_verify(&self, taken: &[Taken]) {
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let list = self.ours.run_json(["snapshots", "--all"]).unwrap();
        let rows = list.as_array().expect("a list").iter();
        same_snapshots(
            rows.map(|row| (text(&row["id"]), text(&row["source"]))).collect(),
            taken,
        );
        let report = self.ours.run_json(["verify", "--percent", "100"]).unwrap();
        assert_eq!(report["damage"], json!([]));
        assert_eq!(report["snapshots"], taken.len());
        assert_eq!(report["contents"], report["contentsRead"], "{report}");
    }

    /// We find everything whole, and restore every snapshot to the bytes of its source.
    pub(crate) fn we_approve(&self, taken: &[Taken]) {
        self.we_verify(taken);
        taken.iter().for_each(|snapshot| self.we_restore(snapshot));
    }

    /// We show every snapshot with its size and map it to where the source had data and zeros.
    pub(crate) fn we_describe(&self, taken: &[Taken]) {
        for snapshot in taken {
            let shown = self.ours.run_json(["show", &snapshot.id]).unwrap();
            assert_eq!(shown["image"]["size"], snapshot.bytes.len(), "{shown}");
            check_map(&self.ours.run_json(["map", &snapshot.id]).unwrap(), &snapshot.bytes);
        }
    }

    fn we_restore(&self, snapshot: &Taken) {
        let target = self.file("by-us");
        if let Shape::Tree(entries) = &snapshot.shape {
            let path = target.display().to_string();
            self.ours.run(["cp", &snapshot.id, "", &path]).unwrap();
            assert!(
                list_tree(&target).unwrap() == **entries,
                "blockferry restores {} wrong",
                snapshot.id
            );
            remove(&target);
            return;
        }
        let document = self.ours.restore(&snapshot.id, &target, &["--verify"]).unwrap();
        assert_eq!(document["verified"], true, "{document}");
        snapshot.is_same(&fs::read(&target).unwrap(), "blockferry");
        remove(&target);
    }

    /// Both find everything whole.
    pub(crate) fn both_verify(&self, taken: &[Taken]) {
        self.kopia_verifies(taken);
        self.we_verify(taken);
    }

    /// Both find everything whole, and restore every snapshot, whoever took it.
    pub(crate) fn both_approve(&self, taken: &[Taken]) {
        self.both_verify(taken);
        self.both_restore(taken);
    }

    /// Both restore `taken`.
    pub(crate) fn both_restore(&self, taken: &[Taken]) {
        for snapshot in taken {
            self.kopia_restores(snapshot);
            self.we_restore(snapshot);
        }
    }
}

impl Taken {
    fn of(manifest: &Value, bytes: Vec<u8>, shape: Shape) -> Self {
        let id = manifest["id"].as_str().expect("an id").to_owned();
        Self {
            id,
            source: source_of(manifest),
            bytes: Arc::new(bytes),
            shape,
        }
    }

    /// From the document our backup printed.
    pub(crate) fn ours(document: &Value, bytes: Vec<u8>) -> Self {
        assert_eq!(document["sourceSize"], bytes.len(), "{document}");
        let text = |key: &str| {
            document[key]
                .as_str()
                .unwrap_or_else(|| panic!("no {key}: {document}"))
                .to_owned()
        };
        Self {
            id: text("snapshotId"),
            source: text("source"),
            bytes: Arc::new(bytes),
            shape: Shape::Image,
        }
    }

    pub(crate) fn is_same(&self, have: &[u8], reader: &str) {
        let want = self.bytes.as_slice();
        let first = || {
            have.iter()
                .zip(want)
                .position(|(a, b)| a != b)
                .unwrap_or(have.len().min(want.len()))
        };
        let (source, id) = (&self.source, &self.id);
        assert!(
            have == want,
            "{reader} restores {id} of {source} wrong from byte {} ({} of {} bytes)",
            first(),
            have.len(),
            want.len()
        );
    }
}

/// The source under which we keep the volume `name`.
pub(crate) fn our_source(name: &str) -> String {
    format!("root@localhost:/volumes/{name}")
}

fn source_of(manifest: &Value) -> String {
    let part = |key: &str| manifest["source"][key].as_str().expect("text");
    format!("{}@{}:{}", part("userName"), part("host"), part("path"))
}

fn same_snapshots(mut have: Vec<(String, String)>, taken: &[Taken]) {
    let mut want: Vec<_> = taken
        .iter()
        .map(|taken| (taken.id.clone(), taken.source.clone()))
        .collect();
    have.sort();
    want.sort();
    assert_eq!(have, want);
}

fn only_file(folder: &Path) -> PathBuf {
    let files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let [file] = files.as_slice() else {
        panic!("one file is expected: {files:?}")
    };
    file.clone()
}

fn remove(path: &Path) {
    if path.is_dir() {
        fs::remove_dir_all(path).unwrap()
    } else {
        fs::remove_file(path).unwrap()
    }
}

/// Checks what `map --json` printed against the volume: extents without gaps, and zeros where it says so.
#[track_caller]
pub(crate) fn check_map(map: &Value, volume: &[u8]) {
    let number = |value: &Value| usize::try_from(value.as_u64().expect("a number")).expect("64-bit machine");
    let (mut end, mut data) = (0, 0);
    for extent in map["extents"].as_array().expect("extents") {
        let start = number(&extent["offset"]);
        assert_eq!(start, end, "{map}");
        end += number(&extent["length"]);
        match extent["kind"].as_str() {
            Some("data") => data += end - start,
            Some("zero") => assert!(volume[start..end].iter().all(|byte| *byte == 0), "not zero: {extent}"),
            _ => panic!("{extent}"),
        }
    }
    assert_eq!(end, volume.len(), "{map}");
    assert_eq!((number(&map["size"]), number(&map["data"])), (end, data), "{map}");
    assert_eq!(number(&map["zero"]), end - data, "{map}");
}
