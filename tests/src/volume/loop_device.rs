//! Loop devices: a file as a block device. Needs root.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Failure, Result, process};

/// How a file is attached.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoopOptions {
    /// Writes are refused by the device.
    pub read_only: bool,
    /// Logical block size in bytes, a power of two from 512 to 4096; the kernel's choice (512) when absent.
    pub logical_block: Option<u32>,
}

/// A file attached as a block device; detached on drop.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches `file` to a free loop device.
    ///
    /// # Errors
    /// When we are not root, the kernel has no loop devices, or the options do not fit the file.
    pub fn attach(file: &Path, options: LoopOptions) -> Result<Self> {
        let mut losetup = losetup();
        // The file is read and written directly, so that the page cache does not hold each block twice.
        losetup.args(["--find", "--show", "--direct-io=on"]);
        if options.read_only {
            losetup.arg("--read-only");
        }
        if let Some(bytes) = options.logical_block {
            losetup.args(["--sector-size", &bytes.to_string()]);
        }
        let path = process::run(losetup.arg(file))?;
        let path = PathBuf::from(path.trim());
        if !path.starts_with("/dev") {
            return Err(Failure::new(format!(
                "losetup printed `{}`, not a device",
                path.display()
            )));
        }
        Ok(Self { path })
    }

    /// The device, such as `/dev/loop3`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(failure) = process::run(losetup().arg("--detach").arg(&self.path)) {
            eprintln!("loop device stays: {failure}");
        }
    }
}

fn losetup() -> Command {
    let program = process::find("losetup", &["/usr/sbin".into(), "/sbin".into()]);
    Command::new(program.unwrap_or_else(|| "losetup".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Layout, Volume};

    #[test]
    fn a_device_shows_the_file_and_leaves_with_its_owner() {
        let volume = Volume::create(&Layout::mixed(4, 2 << 20)).unwrap();
        let options = LoopOptions {
            read_only: true,
            logical_block: Some(4096),
        };
        let device = LoopDevice::attach(volume.path(), options).unwrap();
        assert_eq!(std::fs::read(device.path()).unwrap(), volume.bytes().unwrap());
        let name = device.path().to_owned();
        drop(device);
        let attached = process::run(losetup().args(["--list", "--noheadings", "--output", "NAME,BACK-FILE"])).unwrap();
        let file = volume.path().display().to_string();
        assert!(
            !attached.lines().any(|line| line.contains(&file)),
            "{} stays: {attached}",
            name.display()
        );
    }
}
