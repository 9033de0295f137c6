//! `blockferry mount`, `mounts`, `unmount` and `commit`: devices with servers of their own. Needs root; FUSE and loop devices, which the
//! host has, and in a virtual machine the kernel's NBD client.

mod cache;
mod fio;
mod in_kernel;
mod into;
mod kinds;
mod life;
mod partitions;
mod power;
mod refusals;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use blockferry_tests::blockferry::Ended;
use blockferry_tests::process::run;
use blockferry_tests::volume::{BlockKind, Layout, Volume};
use serde_json::Value;

use crate::bad_input::support::{World, assert_failed};

/// A repository with one snapshot of a volume, and a host's folder of mounts. All mounts are taken away at the end.
struct Mounts {
    world: World,
    volume: Volume,
}

impl Mounts {
    fn new(layout: &Layout) -> Self {
        let volume = Volume::create(layout).unwrap();
        Self::of(volume)
    }

    fn of(volume: Volume) -> Self {
        let world = World::new();
        world.ferry.backup(volume.path(), &[]).unwrap();
        Self { world, volume }
    }

    fn state(&self) -> String {
        self.world.text("state")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.world.ferry.command(args.iter().copied());
        command.args(["--state", &self.state()]);
        command
    }

    /// The document of a command that has to succeed.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> Value {
        let text = run(self.command(args).arg("--json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// How a command ends.
    fn ended(&self, args: &[&str]) -> Ended {
        let output = self.command(args).output().unwrap();
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    fn refuses(&self, args: &[&str], code: i32, words: &[&str]) {
        assert_failed(&self.ended(args), code, words);
    }

    /// Mounts the latest snapshot by FUSE.
    #[track_caller]
    fn mount(&self, args: &[&str]) -> Value {
        self.ok(&[&["mount", "latest", "--attach", "fuse"], args].concat())
    }

    /// The only mount there is.
    #[track_caller]
    fn only(&self) -> Value {
        let document = self.ok(&["mounts"]);
        let mounts = document["mounts"].as_array().unwrap();
        assert_eq!(mounts.len(), 1, "{document}");
        mounts[0].clone()
    }

    #[track_caller]
    fn assert_none(&self) {
        let document = self.ok(&["mounts"]);
        assert_eq!(document["mounts"].as_array().unwrap().len(), 0, "{document}");
        assert_eq!(fs::read_dir(self.world.path("state/mounts")).unwrap().count(), 0);
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        let Ok(folders) = fs::read_dir(self.world.path("state/mounts")) else {
            return;
        };
        for folder in folders.flatten() {
            let name = folder.file_name().to_string_lossy().into_owned();
            let unmount = self.command(&["unmount", &name, "--force", "--discard"]);
            // A test that failed may leave what can hang.
            let mut limited = Command::new("timeout");
            limited.args(["--signal=KILL", "60"]).arg(unmount.get_program());
            limited.args(unmount.get_args());
            let set = unmount.get_envs().filter_map(|(name, value)| Some((name, value?)));
            let _ = limited.envs(set).output();
        }
    }
}

fn device(mount: &Value) -> PathBuf {
    mount["device"].as_str().unwrap().into()
}

/// The bytes of a device, past its cache.
#[track_caller]
fn bytes(device: &Path, len: u64) -> Vec<u8> {
    run(Command::new("blockdev").arg("--flushbufs").arg(device)).unwrap();
    let mut bytes = fs::read(device).unwrap();
    assert!(bytes.len() as u64 >= len);
    bytes.truncate(usize::try_from(len).unwrap());
    bytes
}

/// A volume with an ext4 of `mib` MiB on it that holds one file.
fn ext4(mib: u64) -> Volume {
    let volume = Volume::create(&Layout::uniform(0, mib << 20, BlockKind::Zero)).unwrap();
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("first"), "before\n").unwrap();
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-d"])
        .arg(tree.path())
        .arg(volume.path()))
    .unwrap();
    volume
}

fn kill(pid: &Value) {
    run(Command::new("kill").args(["-9", &pid.to_string()])).unwrap();
}
