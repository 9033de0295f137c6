//! A chain begun by lists in the layout of Velero's block uploader, made by Kopia's library without a line of ours
//! (`tests/golden/velero`): it continues, what did not change is copied to the byte, and both clients restore it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::golden;
use blockferry_tests::kopia::Kopia;
use blockferry_tests::repo::{copy_tree, sha256_file};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::kopia_compat::judge::{MIB, kopia_is_here};

/// What the maker printed of one volume.
struct Made {
    id: String,
    source: String,
    object: String,
    size: u64,
    sha256: String,
}

/// A copy of the repository, and who works on it.
struct Site {
    kopia: Kopia,
    ours: Blockferry,
    made: [Made; 2],
    folder: TempDir,
}

impl Site {
    fn new() -> Self {
        let golden = golden::folder().join("velero");
        let folder = tempfile::tempdir().unwrap();
        let repo = folder.path().join("repo");
        copy_tree(&golden.join("repo"), &repo).unwrap();
        let expected: Value = serde_json::from_slice(&fs::read(golden.join("expected.json")).unwrap()).unwrap();
        let made = |at: usize| {
            let text = |key: &str| expected["snapshots"][at][key].as_str().unwrap().to_owned();
            Made {
                id: text("id"),
                source: text("source"),
                object: text("object"),
                size: expected["snapshots"][at]["size"].as_u64().unwrap(),
                sha256: text("sha256"),
            }
        };
        Self {
            kopia: Kopia::new(&repo, golden::PASSWORD).unwrap(),
            ours: Blockferry::new(&repo, golden::PASSWORD).unwrap(),
            made: [made(0), made(1)],
            folder,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The volume of a snapshot that the maker wrote.
    fn restored(&self, made: &Made) -> PathBuf {
        let path = self.file("volume");
        self.ours.restore(&made.id, &path, &["--verify"]).unwrap();
        assert_eq!(sha256_file(&path).unwrap(), (made.size, made.sha256.clone()));
        path
    }

    /// Continues the chain of `made` from the state `base` to `state`.
    fn continued(&self, made: &Made, volume: &Path, [base, state]: [&str; 2], changed: &[(u64, u64)]) -> Value {
        let extents: Vec<Value> = (changed.iter())
            .map(|(offset, length)| json!({"offset": offset, "length": length}))
            .collect();
        let list = self.file("list");
        let size = fs::metadata(volume).unwrap().len();
        fs::write(&list, json!({"volumeSize": size, "changed": extents}).to_string()).unwrap();
        let list = list.display().to_string();
        let volume_id = made.source.replace(
            "default@default:snapshot-data-upload-download/velero-block/ns1/",
            "volume-",
        );
        let args = [
            ["--as", &made.source],
            ["--volume-id", &volume_id],
            ["--base-change-id", base],
            ["--change-id", state],
            ["--changed", &list],
            ["--require", "delta"],
            ["--tag", "snapshot-requester=snapshot-data-upload-download"],
            ["--audit", "0"],
        ];
        self.ours.backup(volume, &args.concat()).unwrap()
    }

    /// The text of the list of an object.
    fn list(&self, object: &str) -> String {
        self.kopia.run(["show", object.strip_prefix('I').unwrap()]).unwrap()
    }

    /// Asserts that both clients restore the snapshot of `document` to the bytes of `volume`.
    fn both_restore(&self, document: &Value, volume: &Path) {
        let id = document["snapshotId"].as_str().unwrap();
        let want = fs::read(volume).unwrap();
        let target = self.file("target");
        self.ours.restore(id, &target, &["--force", "--verify"]).unwrap();
        assert!(fs::read(&target).unwrap() == want);
        let target = self.file("by-kopia");
        self.kopia.restore(id, &target).unwrap();
        let files: Vec<_> = fs::read_dir(&target)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        let [file] = files.as_slice() else {
            panic!("one file in the folder, not {files:?}");
        };
        let bytes = fs::read(file).unwrap();
        assert_eq!(bytes.len(), want.len().next_multiple_of(usize::try_from(MIB).unwrap()));
        assert!(bytes[..want.len()] == want && bytes[want.len()..].iter().all(|byte| *byte == 0));
        fs::remove_dir_all(&target).unwrap();
    }
}

/// Asserts what Velero demands of a list before it continues it: entry `i` begins at `i` MiB, has 1 MiB, and is no list.
fn assert_uniform(list: &str, count: u64) -> Vec<Value> {
    let list: Value = serde_json::from_str(list).unwrap();
    assert_eq!(list["stream"], "kopia:indirect");
    let entries = list["entries"].as_array().unwrap();
    assert_eq!(entries.len() as u64, count);
    for (at, entry) in (0..).zip(entries) {
        assert_eq!(entry["s"].as_u64().unwrap_or(0), at * MIB);
        assert_eq!(entry["l"], MIB);
        let object = entry["o"].as_str().unwrap();
        assert!(
            object.len() == 32 && object.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{object}"
        );
    }
    entries.clone()
}

fn write(volume: &Path, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(volume).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

#[test]
fn a_chain_begun_in_veleros_layout_continues() {
    if !kopia_is_here() {
        return;
    }
    let site = Site::new();
    site.kopia.connect().unwrap();
    let small = &site.made[0];
    let volume = site.restored(small);

    // A block in the middle.
    write(&volume, 3 * MIB + 77, b"changed");
    let first = site.continued(small, &volume, ["change-small", "change-2"], &[(3 * MIB + 77, 7)]);
    assert_eq!(
        (&first["rung"], &first["parentId"]),
        (&json!("delta"), &json!(small.id)),
        "{first}"
    );
    assert_eq!(first["bytesRead"], MIB);
    let (before, after) = (site.list(&small.object), site.list(first["objectId"].as_str().unwrap()));
    let (old, new) = (assert_uniform(&before, 8), assert_uniform(&after, 8));
    for at in 0..8 {
        assert_eq!(old[at] == new[at], at != 3, "entry {at}");
    }
    let id_of = |entry: &Value| entry["o"].as_str().unwrap().to_owned();
    // Block 0 has the content that block 3 had, and keeps it: all but one id is copied to the byte.
    let place = before.rfind(&id_of(&old[3])).unwrap();
    let expected = format!("{}{}{}", &before[..place], id_of(&new[3]), &before[place + 32..]);
    assert!(after == expected, "{after}");
    site.both_restore(&first, &volume);

    // What Velero looks for in a parent.
    let manifests = site.kopia.snapshot_list_json().unwrap();
    let of = |id: &Value| manifests.iter().find(|manifest| manifest["id"] == *id).unwrap();
    let (theirs, ours) = (of(&json!(small.id)), of(&first["snapshotId"]));
    assert_eq!(theirs["source"], ours["source"]);
    for tag in [
        "snapshot-requester",
        "snapshot-uploader",
        "cbt-volume-id",
        "bdev-source-size",
    ] {
        assert_eq!(theirs["tags"][tag], ours["tags"][tag], "{tag}");
    }
    assert_eq!(ours["tags"]["cbt-change-id"], "change-2");
    for field in ["description", "pins", "stats"] {
        assert_eq!(theirs[field], ours[field], "{field}");
    }
    for field in ["type", "mode", "summ"] {
        assert_eq!(theirs["rootEntry"][field], ours["rootEntry"][field], "{field}");
    }
    let folder = |manifest: &Value| -> Value {
        let folder = site
            .kopia
            .run(["show", manifest["rootEntry"]["obj"].as_str().unwrap()])
            .unwrap();
        let mut folder: Value = serde_json::from_str(&folder).unwrap();
        assert_eq!(folder["entries"].as_array().map(Vec::len), Some(1));
        let mut entry = folder["entries"][0].take();
        entry.as_object_mut().unwrap().remove("obj");
        entry.as_object_mut().unwrap().remove("mtime");
        entry
    };
    assert_eq!(folder(theirs), folder(ours));

    // Grown past the end that lay within a block: that block is read, whatever the list says.
    File::options()
        .write(true)
        .open(&volume)
        .unwrap()
        .set_len(9 * MIB + 1)
        .unwrap();
    write(&volume, 9 * MIB, b"!");
    write(&volume, 7 * MIB + 512, b"where the padding was");
    let second = site.continued(small, &volume, ["change-2", "change-3"], &[]);
    assert_eq!(second["parentId"], first["snapshotId"], "{second}");
    assert_uniform(&site.list(second["objectId"].as_str().unwrap()), 10);
    site.both_restore(&second, &volume);
    site.kopia.verify_full().unwrap();
    site.kopia.content_verify_full().unwrap();
}

#[test]
fn a_list_of_lists_in_veleros_layout_is_copied_to_the_byte() {
    let site = Site::new();
    let large = &site.made[1];
    let volume = site.restored(large);
    let same = site.continued(large, &volume, ["change-large", "change-2"], &[]);
    assert_eq!(
        (&same["parentId"], &same["objectId"]),
        (&json!(large.id), &json!(large.object)),
        "{same}"
    );
    assert_eq!(same["bytesRead"], 0);

    write(&volume, 1000 * MIB, b"changed");
    let changed = site.continued(large, &volume, ["change-2", "change-3"], &[(1000 * MIB, 7)]);
    assert_eq!(changed["bytesRead"], MIB, "{changed}");
    let target = site.file("target");
    let id = changed["snapshotId"].as_str().unwrap();
    site.ours.restore(id, &target, &["--verify"]).unwrap();
    assert_eq!(sha256_file(&target).unwrap(), sha256_file(&volume).unwrap());
    if kopia_is_here() {
        site.kopia.connect().unwrap();
        site.kopia.verify_full().unwrap();
        assert_uniform(&site.list(changed["objectId"].as_str().unwrap()), 2000);
    }
}
