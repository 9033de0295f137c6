//! Programs that come as distribution packages: installed by apt when we are root, named and refused otherwise.

use crate::process::{find, is_root, program, run};

/// A program and the Debian package that brings it.
#[derive(Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

/// What the tests start: a C compiler for the C parts of dependencies, file systems, loop devices, clients of NBD.
pub(crate) const FOR_TESTS: &[Tool] = &[
    Tool {
        program: "cc",
        package: "gcc",
    },
    Tool {
        program: "mkfs.ext4",
        package: "e2fsprogs",
    },
    Tool {
        program: "blockdev",
        package: "util-linux",
    },
    Tool {
        program: "mkfs.xfs",
        package: "xfsprogs",
    },
    Tool {
        program: "sfdisk",
        package: "fdisk",
    },
    Tool {
        program: "losetup",
        package: "mount",
    },
    Tool {
        program: "mount",
        package: "mount",
    },
    Tool {
        program: "rclone",
        package: "rclone",
    },
    Tool {
        program: "nbdkit",
        package: "nbdkit",
    },
    Tool {
        program: "nbdinfo",
        package: "libnbd-bin",
    },
    Tool {
        program: "nbdsh",
        package: "python3-libnbd",
    },
    Tool {
        program: "qemu-io",
        package: "qemu-utils",
    },
    Tool {
        program: "fio",
        package: "fio",
    },
];

/// What the benchmarks compare with, kopia apart.
pub(crate) const PEERS: &[Tool] = &[
    Tool {
        program: "restic",
        package: "restic",
    },
    Tool {
        program: "borg",
        package: "borgbackup",
    },
    Tool {
        program: "fio",
        package: "fio",
    },
    Tool {
        program: "nbdkit",
        package: "nbdkit",
    },
    Tool {
        program: "nbdcopy",
        package: "libnbd-bin",
    },
    Tool {
        program: "qemu-img",
        package: "qemu-utils",
    },
    Tool {
        program: "rclone",
        package: "rclone",
    },
];

/// Installs the packages of the tools that are missing.
///
/// # Errors
/// Names the packages when we may not install them, or when installing fails.
pub(crate) fn ensure(tools: &[Tool]) -> Result<(), String> {
    let missing = missing(tools, |name| find(name).is_some());
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !is_root() {
        return Err(format!(
            "missing packages: {names}. Not root, so install them first: sudo apt-get install {names}"
        ));
    }
    if find("apt-get").is_none() {
        return Err(format!(
            "missing: {names} (Debian package names), and there is no apt-get here to install them"
        ));
    }
    run(apt().args(["--quiet", "update"]))?;
    run(apt()
        .args(["--quiet", "--yes", "--no-install-recommends", "install"])
        .args(&missing))
}

fn apt() -> std::process::Command {
    let mut command = program("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Packages to install, each once, in the order of `tools`.
fn missing(tools: &[Tool], present: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for tool in tools {
        if !present(tool.program) && !packages.contains(&tool.package) {
            packages.push(tool.package);
        }
    }
    packages
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_package_of_two_missing_programs_is_installed_once() {
        let all = missing(FOR_TESTS, |_| false);
        let packages: HashSet<&str> = FOR_TESTS.iter().map(|tool| tool.package).collect();
        assert!(packages.len() < FOR_TESTS.len(), "some package has two programs");
        assert_eq!(all.len(), packages.len());
        assert_eq!(all.into_iter().collect::<HashSet<_>>(), packages);
        assert_eq!(missing(FOR_TESTS, |name| name != "losetup"), ["mount"]);
        assert!(missing(PEERS, |_| true).is_empty());
    }
}
