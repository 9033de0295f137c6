//! Who else uses a storage object: mounts, swap, device mapper, loop devices.
//!
//! A mounted file system also claims its device, so that an exclusive open fails whichever mount namespace it is in; what is
//! found here gives that refusal a name, and covers files.

use super::DeviceId;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where a block device, one of its partitions, or a file is mounted or used as swap: the first place found. `None` when
/// there is none, as far as this mount namespace shows.
pub fn mounted_at(device: DeviceId) -> Option<String> {
    let devices: Vec<u64> = match device {
        DeviceId::Block { number } => std::iter::once(number).chain(partitions(number)).collect(),
        DeviceId::File { .. } => Vec::new(),
    };
    let swaps = text_of("/proc/swaps");
    if swap_paths(&swaps).any(|path| is_one_of(&path, device, &devices)) {
        return Some("swap".to_owned());
    }
    if devices.is_empty() {
        return None;
    }
    let mounts = text_of("/proc/self/mountinfo");
    mount_lines(&mounts)
        .find(|mount| devices.contains(&mount.device) || is_one_of(&mount.source, device, &devices))
        .map(|mount| mount.point.to_string_lossy().into_owned())
}

/// A table of the kernel. Names in it may be of any bytes; those that are not text are found by number, not by name.
fn text_of(path: &str) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// Names of the devices stacked on a block device or one of its partitions: device mapper, RAID.
pub(crate) fn holders(number: u64) -> Vec<String> {
    let of = |number: u64| {
        fs::read_dir(sysfs(number).join("holders"))
            .into_iter()
            .flatten()
            .flatten()
    };
    let all = std::iter::once(number).chain(partitions(number)).flat_map(of);
    all.map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// The loop device that has this file behind it.
pub(crate) fn loop_over(file: DeviceId) -> Option<String> {
    let blocks = fs::read_dir("/sys/block").ok()?;
    blocks.flatten().find_map(|entry| {
        let backing = backing_file(&entry.path())?;
        (id_of(&backing) == Some(file)).then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

/// What else is the same storage as this device, in whole or in part: the disk a partition is on, the file behind a loop
/// device. Device mapper and network storage are not looked through.
pub(crate) fn underlying(device: DeviceId) -> Vec<DeviceId> {
    let DeviceId::Block { number } = device else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let own = sysfs(number);
    let mut disk = own.clone();
    if own.join("partition").exists()
        && let Some(parent) = fs::canonicalize(&own).ok().and_then(|p| p.parent().map(Path::to_owned))
    {
        found.extend(device_number(&parent).map(|number| DeviceId::Block { number }));
        disk = parent;
    }
    found.extend(backing_file(&disk).and_then(|path| id_of(&path)));
    found
}

/// Whether the kernel says that the device takes no writes.
pub(crate) fn is_marked_read_only(number: u64) -> bool {
    fs::read_to_string(sysfs(number).join("ro")).is_ok_and(|text| text.trim() == "1")
}

fn backing_file(disk: &Path) -> Option<PathBuf> {
    let mut path = fs::read(disk.join("loop/backing_file")).ok()?;
    path.pop_if(|last| *last == b'\n');
    Some(PathBuf::from(OsString::from_vec(path)))
}

fn sysfs(number: u64) -> PathBuf {
    PathBuf::from(format!(
        "/sys/dev/block/{}:{}",
        libc::major(number),
        libc::minor(number)
    ))
}

fn partitions(number: u64) -> Vec<u64> {
    let entries = fs::read_dir(sysfs(number)).into_iter().flatten().flatten();
    entries
        .map(|e| e.path())
        .filter(|p| p.join("partition").exists())
        .filter_map(|p| device_number(&p))
        .collect()
}

fn device_number(sysfs: &Path) -> Option<u64> {
    parse_number(fs::read_to_string(sysfs.join("dev")).ok()?.trim())
}

fn parse_number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

fn id_of(path: &Path) -> Option<DeviceId> {
    fs::metadata(path).ok().map(|meta| DeviceId::of(&meta))
}

fn is_one_of(path: &Path, device: DeviceId, devices: &[u64]) -> bool {
    if !path.is_absolute() {
        return false;
    }
    let Ok(meta) = fs::metadata(path) else { return false };
    DeviceId::of(&meta) == device || (meta.file_type().is_block_device() && devices.contains(&meta.rdev()))
}

struct Mount {
    device: u64,
    point: PathBuf,
    source: PathBuf,
}

/// Lines of /proc/self/mountinfo: `id parent major:minor root point options [tags] - type source options`
/// (Documentation/filesystems/proc.rst). The source is asked too because some file systems show a number of their own.
fn mount_lines(text: &str) -> impl Iterator<Item = Mount> + '_ {
    text.lines().filter_map(|line| {
        let (own, file_system) = line.split_once(" - ")?;
        let mut own = own.split(' ').skip(2);
        let device = parse_number(own.next()?)?;
        let point = unescape(own.nth(1)?);
        let source = unescape(file_system.split(' ').nth(1)?);
        Some(Mount { device, point, source })
    })
}

fn swap_paths(text: &str) -> impl Iterator<Item = PathBuf> + '_ {
    text.lines()
        .skip(1)
        .filter_map(|line| line.split_ascii_whitespace().next())
        .map(unescape)
}

/// Undoes the kernel's `\040` for a blank and the like.
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) if byte == b'\\' => {
                out.push(code);
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_by_field() {
        let text = "36 35 8:2 / /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                    37 35 0:44 /sub /data rw shared:2 propagate_from:1 - btrfs /dev/sdb1 rw\n\
                    nonsense\n";
        let mounts: Vec<Mount> = mount_lines(text).collect();
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].device, libc::makedev(8, 2));
        assert_eq!(mounts[0].point, Path::new("/mnt/a b"));
        assert_eq!(mounts[1].point, Path::new("/data"));
        assert_eq!(mounts[1].source, Path::new("/dev/sdb1"));
    }

    #[test]
    fn swaps_are_read_past_their_headline() {
        let text = "Filename\t\t\t\tType\t\tSize\tUsed\tPriority\n/dev/dm-1                               partition\t8\t0\t-2\n";
        assert_eq!(swap_paths(text).collect::<Vec<_>>(), [Path::new("/dev/dm-1")]);
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape("a\\b\\9\\0400"), Path::new("a\\b\\9 0"));
    }

    #[test]
    fn the_root_file_system_is_found_mounted() {
        let root = fs::metadata("/").unwrap();
        let found = mounted_at(DeviceId::Block { number: root.dev() });
        assert!(found.is_some_and(|point| point.starts_with('/')));
    }
}
