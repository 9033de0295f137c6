//! Volumes attached to the kernel. Needs root, FUSE and loop devices; for the kernel's NBD client and ublk QEMU.

mod fuse_loop;
mod power;
mod survivor;
mod volumes;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use blockferry_tests::process;
use blockferry_tests::wait::wait_for;
use nbd::Export;
use nbd::attach::{AttachedDevice, Kind, Options, attach};

/// More than any volume of these tests needs to flush, on a machine that does other things as well.
const GRACE: Duration = Duration::from_secs(60);

/// Runs a program that has to succeed, and returns what it printed.
#[track_caller]
fn run(program: &str, args: &[&str]) -> String {
    let found = process::find(program, &["/usr/sbin".into(), "/sbin".into()]);
    let mut command = Command::new(found.unwrap_or_else(|| program.into()));
    process::run(command.args(args)).unwrap()
}

/// An example program of the crate `nbd`, built as this test was.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/it");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--package", "blockferry-nbd", "--example", name]);
    cargo.arg("--target-dir").arg(folder.parent().expect("target"));
    // The folder of the dev profile is named debug, all others bear the name of their profile.
    match folder.file_name().and_then(|name| name.to_str()) {
        None | Some("debug") => {}
        Some(profile) => _ = cargo.args(["--profile", profile]),
    }
    process::run(cargo.current_dir(env!("CARGO_MANIFEST_DIR"))).unwrap();
    folder.join("examples").join(name)
}

/// A folder for the moment of mounting, and a name.
fn options(kind: Kind, runtime: &Path) -> Options {
    Options {
        kind: Some(kind),
        accept_fragile: true,
        runtime: runtime.to_owned(),
        ..Options::named("it-volume")
    }
}

/// A volume attached by FUSE, and the folder that it was mounted in.
struct World {
    device: Option<AttachedDevice>,
    runtime: tempfile::TempDir,
}

impl World {
    fn new(export: Export) -> Self {
        let runtime = tempfile::tempdir().unwrap();
        let device = attach(&Arc::new(export), &options(Kind::FuseLoop, runtime.path())).unwrap();
        Self {
            device: Some(device),
            runtime,
        }
    }

    fn device(&self) -> &AttachedDevice {
        self.device.as_ref().expect("attached")
    }

    fn path(&self) -> PathBuf {
        self.device().path().to_owned()
    }

    fn name(&self) -> String {
        self.path().display().to_string()
    }

    #[track_caller]
    fn detach(mut self) {
        let path = self.path();
        let mut device = self.device.take();
        // A child of another test has all our files between its fork and its exec.
        wait_for("nobody to use the device", GRACE, || {
            match device.take().expect("attached").detach(GRACE) {
                Err(refused) if refused.error.is_busy() => device = Some(refused.device),
                detached => detached.unwrap(),
            }
            device.is_none()
        })
        .unwrap();
        self.is_gone(&path);
    }

    /// Neither the device nor a mount nor a folder is left.
    #[track_caller]
    fn is_gone(&self, device: &Path) {
        assert_eq!(bound_file(device), None, "the device is unbound");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&self.runtime.path().display().to_string()), "{mounts}");
        assert_eq!(
            fs::read_dir(self.runtime.path()).unwrap().count(),
            0,
            "no folder is left"
        );
    }
}

/// The file behind a loop device.
fn bound_file(device: &Path) -> Option<String> {
    let name = device.file_name().unwrap().to_string_lossy().into_owned();
    fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()
}
