//! QEMU and a kernel for it: what tests of block devices need that the host's own kernel lacks.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::install::{self, Tool};
use crate::process::{find, is_ci, program, run};

/// Set for the tests when machines could not be had outside CI: the tests that need them pass without doing anything.
pub(crate) const SKIP_VARIABLE: &str = "BLOCKFERRY_NO_VM";

/// The kernel: Debian's for clouds, with modules nbd and ublk_drv. A name that its archive makes newer from time to time.
const PACKAGE: &str = "linux-image-6.12-cloud-amd64";

const TOOLS: &[Tool] = &[
    Tool {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
    },
    Tool {
        program: "busybox",
        package: "busybox-static",
    },
    Tool {
        program: "depmod",
        package: "kmod",
    },
    Tool {
        program: "xz",
        package: "xz-utils",
    },
    Tool {
        program: "mkfs.xfs",
        package: "xfsprogs",
    },
];

/// Where the kernel is unpacked.
fn folder() -> Result<PathBuf, String> {
    let home = env::var_os("HOME").ok_or("HOME is not set, and the kernel is kept below it")?;
    Ok(PathBuf::from(home).join(".cache/blockferry/vm"))
}

/// Installs QEMU and unpacks a kernel, where they are not there yet.
///
/// # Errors
/// Says what could not be had.
pub(crate) fn require() -> Result<(), String> {
    install::ensure(TOOLS)?;
    let folder = folder()?;
    let kernel = folder.join("kernel");
    if kernel.join("complete").exists() {
        return Ok(());
    }
    if find("apt-get").is_none() {
        return Err(format!("no apt-get here to fetch the package {PACKAGE} with"));
    }
    let failed = |path: &Path| format!("{}: ", path.display());
    // What a run before left half done.
    let fresh = folder.join("unpacked");
    for old in [&kernel, &fresh] {
        match fs::remove_dir_all(old) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(old) + &error.to_string());
            }
            _ => {}
        }
    }
    fs::create_dir_all(&fresh).map_err(|error| failed(&fresh) + &error.to_string())?;
    run(program("apt-get").args(["--quiet", "update"]))?;
    let package = newest()?;
    run(program("apt-get")
        .args(["--quiet", "download", &package])
        .current_dir(&fresh))?;
    let file = only(&fresh, ".deb")?;
    run(program("dpkg").arg("-x").arg(&file).arg(&fresh))?;
    let version = package.trim_start_matches("linux-image-");
    run(program("depmod").arg("-b").arg(&fresh).arg(version))?;
    let unneeded = [file, fresh.join("usr")];
    let removed = fs::remove_file(&unneeded[0]).and_then(|()| fs::remove_dir_all(&unneeded[1]));
    removed.map_err(|error| format!("remove what is not needed: {error}"))?;
    fs::write(fresh.join("complete"), "").map_err(|error| failed(&fresh) + &error.to_string())?;
    fs::rename(&fresh, &kernel).map_err(|error| failed(&kernel) + &error.to_string())
}

/// The package with a version that [`PACKAGE`] stands for.
fn newest() -> Result<String, String> {
    let listed = program("apt-cache")
        .args(["depends", "--important", PACKAGE])
        .output()
        .map_err(|error| format!("start apt-cache: {error}"))?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    dependency(&listed).ok_or_else(|| format!("apt knows no package {PACKAGE}; apt-get update may help"))
}

fn dependency(listed: &str) -> Option<String> {
    let mut names = listed.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

fn only(folder: &Path, end: &str) -> Result<PathBuf, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files = entries.flatten().map(|entry| entry.path());
    files
        .find(|path| path.to_string_lossy().ends_with(end))
        .ok_or_else(|| format!("nothing that ends with {end} was downloaded"))
}

/// As [`require`] in CI. Elsewhere what is missing is said loudly and `false` comes back.
pub(crate) fn require_in_ci() -> Result<bool, String> {
    match require() {
        Ok(()) => Ok(true),
        Err(error) if is_ci() => Err(error),
        Err(error) => {
            eprintln!("\n*** {error}\n***\n*** SKIPPED: every test that needs a virtual machine. ***\n");
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_behind_the_name_is_found() {
        let listed = "linux-image-6.12-cloud-amd64\n  Depends: linux-image-6.12.117+deb12-cloud-amd64\n";
        assert_eq!(dependency(listed).unwrap(), "linux-image-6.12.117+deb12-cloud-amd64");
        assert_eq!(dependency("x\n  Depends: libc6\n"), None);
    }
}
