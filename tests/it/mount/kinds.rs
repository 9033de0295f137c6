//! Snapshots of all makes become devices: of Velero's block uploader, of its file uploader, of kopia. Other people's programs
//! compare them with their sources: `qemu-img compare`, and `nbdcopy` with `cmp`.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::golden;
use blockferry_tests::kopia::Kopia;
use blockferry_tests::process::run;
use blockferry_tests::repo::{copy_tree, sha256_file};
use blockferry_tests::volume::{BlockKind, Layout, Volume};
use serde_json::Value;

use super::into::Target;
use super::{Mounts, device};
use crate::bad_input::support::{MIB, PASSWORD, World};
use crate::kopia_compat::judge::kopia_is_here;

/// As Velero's file uploader names the image of a volume: a folder and the one file in it, both by the whole path of the device.
const VELERO_DEVICE: &str = "/host_pods/6e9cb5f9/volumeDevices/kubernetes.io~csi/pvc-5d33";
const VELERO_SOURCE: &str = "default@default:snapshot-data-upload-download/kopia/ns1/pvc-5d33";

impl Mounts {
    /// Of an empty repository, and `volume` that kopia is about to take.
    fn by_kopia(layout: &Layout) -> (Self, Kopia) {
        let world = World::new();
        let kopia = Kopia::new(&world.repo(), PASSWORD).unwrap();
        kopia.connect().unwrap();
        let volume = Volume::create(layout).unwrap();
        (Self { world, volume }, kopia)
    }

    /// Of volume number `number` in the layout of Velero's block uploader, with its source as kopia restores it.
    fn by_velero(number: usize) -> (Self, String) {
        let golden = golden::folder().join("velero");
        let folder = tempfile::tempdir().unwrap();
        copy_tree(&golden.join("repo"), &folder.path().join("repo")).unwrap();
        let ferry = Blockferry::new(&folder.path().join("repo"), golden::PASSWORD).unwrap();
        let world = World::of(folder, ferry);
        let expected: Value = serde_json::from_slice(&fs::read(golden.join("expected.json")).unwrap()).unwrap();
        let made = &expected["snapshots"][number];
        let (id, size) = (made["id"].as_str().unwrap(), made["size"].as_u64().unwrap());
        let volume = Volume::create(&Layout::uniform(0, size, BlockKind::Zero)).unwrap();
        let kopia = Kopia::new(&world.repo(), golden::PASSWORD).unwrap();
        kopia.connect().unwrap();
        let restored = world.path("by-kopia");
        kopia.restore(id, &restored).unwrap();
        let files: Vec<_> = fs::read_dir(&restored).unwrap().flatten().collect();
        assert_eq!(files.len(), 1, "{files:?}");
        let file = files[0].path();
        // Kopia knows whole chunks only.
        File::options().write(true).open(&file).unwrap().set_len(size).unwrap();
        assert_eq!(
            sha256_file(&file).unwrap(),
            (size, made["sha256"].as_str().unwrap().into())
        );
        run(Command::new("cp").arg("--sparse=always").arg(file).arg(volume.path())).unwrap();
        (Self { world, volume }, id.to_owned())
    }

    /// `device` is the source, padded with zeros to whole blocks.
    #[track_caller]
    fn judge(&self, device: &Path) {
        let source = self.volume.path();
        let mut compare = Command::new("qemu-img");
        run(compare
            .args(["compare", "-f", "raw", "-F", "raw"])
            .arg(source)
            .arg(device))
        .unwrap();
        let copy = self.world.path("copy");
        run(Command::new("nbdcopy").arg(device).arg(&copy)).unwrap();
        let size = self.volume.size();
        assert_eq!(fs::metadata(&copy).unwrap().len(), size.next_multiple_of(512));
        let bytes = size.to_string();
        run(Command::new("cmp").args(["-n", &bytes]).arg(source).arg(&copy)).unwrap();
        fs::remove_file(copy).unwrap();
    }

    /// Mounts `snapshot` read-only, has it compared, and takes it away.
    #[track_caller]
    fn judge_read_only(&self, snapshot: &str) {
        let mount = self.ok(&["mount", snapshot, "--attach", "fuse"]);
        assert_eq!(mount["size"], self.volume.size(), "{mount}");
        let device = device(&mount);
        assert_eq!(
            run(Command::new("blockdev").arg("--getro").arg(&device)).unwrap(),
            "1\n"
        );
        self.judge(&device);
        self.ok(&["unmount", mount["id"].as_str().unwrap()]);
        self.assert_none();
    }

    /// Makes a loop device the volume of `snapshot`, and compares while it is filled and when it is free again.
    #[track_caller]
    fn judge_into(&self, snapshot: &str) {
        let target = Target::new(self.volume.size());
        let path = target.text();
        let args = ["mount", snapshot, "--attach", "fuse", "--accept-fragile", "--name", "i"];
        let mount = self.ok(&[&args[..], &["--into", &path]].concat());
        self.judge(&device(&mount));
        self.wait_until_complete();
        self.judge(&device(&mount));
        self.ok(&["unmount", "i"]);
        self.assert_none();
        self.judge(&target.device);
    }
}

#[test]
fn what_veleros_block_uploader_stored_is_its_device() {
    if !kopia_is_here() {
        return;
    }
    let (mounts, id) = Mounts::by_velero(0);
    mounts.judge_read_only(&id);
    mounts.judge_into(&id);
    // With a list of lists.
    let (mounts, id) = Mounts::by_velero(1);
    mounts.judge_read_only(&id);
}

#[test]
fn what_veleros_file_uploader_stored_of_a_device_is_its_device() {
    if !kopia_is_here() {
        return;
    }
    let (mounts, kopia) = Mounts::by_kopia(&Layout::mixed(341, 37 * MIB + 512));
    let source = ["--override-source", VELERO_SOURCE, "--tags", "snapshot-uploader:kopia"];
    let input = mounts.volume.bytes().unwrap();
    kopia
        .snapshot_stdin(VELERO_DEVICE, VELERO_DEVICE, &input, &source)
        .unwrap();
    let listed = mounts.world.ferry.run(["ls", "latest"]).unwrap();
    assert!(listed.trim().ends_with(VELERO_DEVICE), "{listed}");
    mounts.judge_read_only(&format!("latest:{VELERO_SOURCE}"));
    mounts.judge_into("latest");
}

#[test]
fn a_file_that_kopia_took_is_its_device() {
    if !kopia_is_here() {
        return;
    }
    let (mounts, kopia) = Mounts::by_kopia(&Layout::mixed(342, 41 * MIB + 12345));
    kopia.policy_set("--global", &["--compression=zstd-fastest"]).unwrap();
    kopia.snapshot_create(mounts.volume.path(), &[]).unwrap();
    mounts.judge_read_only("latest");
    // A device that takes writes has no room for a part of a block.
    let target = Target::new(42 * MIB);
    mounts.refuses(
        &[
            "mount",
            "latest",
            "--attach",
            "fuse",
            "--accept-fragile",
            "--into",
            &target.text(),
        ],
        2,
        &["43003961 bytes", "not whole blocks of 512"],
    );
    mounts.assert_none();
}
