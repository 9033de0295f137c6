//! What the tests of this crate share: scratch space on a real disk, patterns, loop devices.

use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::{NamedTempFile, TempDir};

/// Beside the test binary: a disk with direct IO, which the directory for temporary files may not be.
fn scratch_place() -> PathBuf {
    std::env::current_exe()
        .expect("the test binary has a path")
        .parent()
        .expect("in a directory")
        .to_owned()
}

/// An empty file, gone when dropped.
pub(crate) fn scratch_file() -> NamedTempFile {
    NamedTempFile::new_in(scratch_place()).expect("room for scratch files")
}

/// An empty directory, gone when dropped.
pub(crate) fn scratch_dir() -> TempDir {
    TempDir::new_in(scratch_place()).expect("room for scratch files")
}

/// A file of `len` bytes of a pattern, and the bytes.
pub(crate) fn patterned_file(len: usize) -> (NamedTempFile, Vec<u8>) {
    let (file, bytes) = (scratch_file(), pattern(len, 1));
    std::fs::write(file.path(), &bytes).expect("room for scratch files");
    (file, bytes)
}

/// Bytes that differ from place to place and from seed to seed; none is zero.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3] | 1
    };
    (0..len).map(|_| next()).collect()
}

/// Runs a program; its output, or why it failed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let told = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if told.status.success() {
        Ok(text(&told.stdout))
    } else {
        Err(format!("{program}: {}", text(&told.stderr)))
    }
}

/// A loop device, detached when dropped.
pub(crate) struct LoopDevice(PathBuf);

impl LoopDevice {
    /// A loop device over `file`. `None`, with the reason printed, where there are none to be had; on CI that is a failure.
    pub(crate) fn over(file: &Path, options: &[&str]) -> Option<Self> {
        let file = file.to_str().expect("a plain path");
        let arguments = [&["--find", "--show"], options, &[file]].concat();
        match run("losetup", &arguments) {
            Ok(path) => Some(Self(path.into())),
            Err(why) if std::env::var("CI").as_deref() == Ok("true") => panic!("no loop devices on CI: {why}"),
            Err(why) => {
                eprintln!("skipped, no loop devices here: {why}");
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = run("losetup", &["--detach", self.0.to_str().expect("a plain path")]);
    }
}

/// A file system made on a loop device and mounted, unmounted when dropped.
pub(crate) struct Mounted {
    place: TempDir,
    disk: LoopDevice,
    _file: NamedTempFile,
}

impl Mounted {
    /// An ext4 of 32 MiB.
    pub(crate) fn ext4() -> Option<Self> {
        let file = scratch_file();
        file.as_file().set_len(32 << 20).expect("room for scratch files");
        let disk = LoopDevice::over(file.path(), &[])?;
        let place = scratch_dir();
        let (device, point) = (
            disk.path().to_str().expect("a plain path"),
            place.path().to_str().expect("a plain path"),
        );
        run("mkfs.ext4", &["-q", device]).expect("mkfs.ext4 works on a loop device");
        run("mount", &[device, point]).expect("a fresh file system can be mounted");
        Some(Self {
            place,
            disk,
            _file: file,
        })
    }

    pub(crate) fn place(&self) -> &Path {
        self.place.path()
    }

    pub(crate) fn disk(&self) -> &Path {
        self.disk.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run("umount", &[self.place().to_str().expect("a plain path")]);
    }
}
