//! Who uses a block device: mounts of any process, open files, swap, devices stacked on it.

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

/// One user of a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// Mounted there; in another mount namespace than ours, this process sees it.
    Mount {
        /// Where.
        point: PathBuf,
        /// A process that sees the mount, where we do not.
        process: Option<u32>,
    },
    /// Open in a process.
    Process {
        /// Its id.
        id: u32,
        /// Its name, at most 15 bytes of it.
        name: String,
    },
    /// A device on top of it: device mapper, RAID.
    Device(String),
    /// In use as swap.
    Swap,
    /// Claimed by somebody who shows nowhere, such as a mount that was detached while in use.
    Unseen,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Mount { point, process: None } => write!(f, "the mount at {}", point.display()),
            Holder::Mount {
                point,
                process: Some(id),
            } => write!(f, "the mount at {} of process {id}", point.display()),
            Holder::Process { id, name } => write!(f, "process {id} ({name})"),
            Holder::Device(name) => write!(f, "/dev/{name}"),
            Holder::Swap => write!(f, "swap"),
            Holder::Unseen => write!(f, "somebody who shows neither as a mount nor as a process"),
        }
    }
}

/// Major and minor number of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DeviceNumber {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl DeviceNumber {
    /// Of the device node at `path`.
    pub(super) fn of(path: &Path) -> rustix::io::Result<Self> {
        let stat = rustix::fs::stat(path)?;
        Ok(Self {
            major: rustix::fs::major(stat.st_rdev),
            minor: rustix::fs::minor(stat.st_rdev),
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    }

    fn sysfs(self) -> PathBuf {
        PathBuf::from(format!("/sys/dev/block/{}:{}", self.major, self.minor))
    }

    /// The device and its partitions.
    fn with_partitions(self) -> BTreeSet<Self> {
        let entries = fs::read_dir(self.sysfs()).into_iter().flatten().flatten();
        let partitions = entries
            .map(|entry| entry.path())
            .filter(|path| path.join("partition").exists())
            .filter_map(|path| Self::parse(&fs::read_to_string(path.join("dev")).ok()?));
        std::iter::once(self).chain(partitions).collect()
    }
}

/// All users of the device at `path` but the descriptors `own` of this process. Processes that we may not look at do not show.
pub(super) fn find(path: &Path, own: &[RawFd]) -> Vec<Holder> {
    let Ok(number) = DeviceNumber::of(path) else {
        return Vec::new();
    };
    let numbers = number.with_partitions();
    let mut found = BTreeSet::new();
    for number in &numbers {
        let stacked = fs::read_dir(number.sysfs().join("holders"))
            .into_iter()
            .flatten()
            .flatten();
        found.extend(stacked.map(|entry| Holder::Device(entry.file_name().to_string_lossy().into_owned())));
    }
    if swaps(&text_of("/proc/swaps")).any(|path| DeviceNumber::of(&path).is_ok_and(|number| numbers.contains(&number)))
    {
        found.insert(Holder::Swap);
    }
    let mounts_of = |text: &str, process| -> Vec<Holder> {
        mounts(text)
            .filter(|mount| numbers.contains(&mount.number) || mount.source == path)
            .map(|mount| Holder::Mount {
                point: mount.point,
                process,
            })
            .collect()
    };
    found.extend(mounts_of(&text_of("/proc/self/mountinfo"), None));
    let mut namespaces: BTreeSet<PathBuf> = fs::read_link("/proc/self/ns/mnt").into_iter().collect();
    let us = std::process::id();
    for id in processes() {
        let open = descriptors(id).any(|fd| (id != us || !own.contains(&fd)) && is_open_on(id, fd, &numbers));
        if open {
            let name = text_of(&format!("/proc/{id}/comm")).trim_end().to_owned();
            found.insert(Holder::Process { id, name });
        }
        if let Ok(namespace) = fs::read_link(format!("/proc/{id}/ns/mnt"))
            && namespaces.insert(namespace)
        {
            found.extend(mounts_of(&text_of(&format!("/proc/{id}/mountinfo")), Some(id)));
        }
    }
    if found.is_empty() && is_claimed(path) {
        found.insert(Holder::Unseen);
    }
    found.into_iter().collect()
}

/// An exclusive open is refused while a file system, swap or another device has claimed it.
fn is_claimed(path: &Path) -> bool {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    matches!(
        rustix::fs::open(path, flags, Mode::empty()),
        Err(rustix::io::Errno::BUSY)
    )
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn descriptors(process: u32) -> impl Iterator<Item = RawFd> {
    let entries = fs::read_dir(format!("/proc/{process}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Asks the kernel alone: a descriptor on a network file system that hangs must not hang us.
fn is_open_on(process: u32, fd: RawFd, numbers: &BTreeSet<DeviceNumber>) -> bool {
    let link = format!("/proc/{process}/fd/{fd}");
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(CWD, link.as_str(), flags, StatxFlags::TYPE).is_ok_and(|stat| {
        let number = DeviceNumber {
            major: stat.stx_rdev_major,
            minor: stat.stx_rdev_minor,
        };
        FileType::from_raw_mode(stat.stx_mode.into()) == FileType::BlockDevice && numbers.contains(&number)
    })
}

/// A table of the kernel; names in it may be of any bytes. Empty when it cannot be read.
fn text_of(path: &str) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    number: DeviceNumber,
    point: PathBuf,
    source: PathBuf,
}

/// Lines of mountinfo: `id parent major:minor root point options [tags] - type source options`
/// (Documentation/filesystems/proc.rst). The source counts too because some file systems show a number of their own.
fn mounts(text: &str) -> impl Iterator<Item = Mount> + '_ {
    text.lines().filter_map(|line| {
        let (own, file_system) = line.split_once(" - ")?;
        let mut own = own.split(' ').skip(2);
        Some(Mount {
            number: DeviceNumber::parse(own.next()?)?,
            point: unescape(own.nth(1)?),
            source: unescape(file_system.split(' ').nth(1)?),
        })
    })
}

fn swaps(text: &str) -> impl Iterator<Item = PathBuf> + '_ {
    let lines = text.lines().skip(1);
    lines
        .filter_map(|line| line.split_ascii_whitespace().next())
        .map(unescape)
}

/// Undoes the kernel's `\040` for a blank; it escapes blank, tab, line feed and backslash, nothing else.
fn unescape(text: &str) -> PathBuf {
    let plain = text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n");
    PathBuf::from(plain.replace("\\134", "\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_by_field() {
        let text =
            "36 35 7:2 / /mnt/a\\040b rw,noatime master:1 - ext3 /dev/loop2 rw,errors=continue\nnonsense\n36 35 x\n";
        let expected = Mount {
            number: DeviceNumber { major: 7, minor: 2 },
            point: "/mnt/a b".into(),
            source: "/dev/loop2".into(),
        };
        assert_eq!(mounts(text).collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn swaps_are_read_past_their_headline() {
        let text = "Filename\t\tType\n/dev/nbd0       partition\t8\t0\t-2\n";
        assert_eq!(swaps(text).collect::<Vec<_>>(), [Path::new("/dev/nbd0")]);
    }

    #[test]
    fn holders_are_told_in_words() {
        let holders = [
            Holder::Process {
                id: 7,
                name: "dd".into(),
            },
            Holder::Mount {
                point: "/mnt".into(),
                process: Some(9),
            },
        ];
        assert_eq!(holders[0].to_string(), "process 7 (dd)");
        assert_eq!(holders[1].to_string(), "the mount at /mnt of process 9");
    }
}
