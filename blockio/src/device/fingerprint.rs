//! Whether a device was written between two looks at it, as far as the kernel can tell.

use super::{Device, DeviceId};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What changes when a device is written. Two equal ones say that nothing was written through this host in between.
///
/// - A regular file: its identity, size and times; every write moves the time of its inode.
/// - A block device: the boot, the sequence number of the disk (another one after each attachment) and the kernel's counters
///   of writes and discards on it. What another host writes to shared storage is not seen, nor what goes to a lower device
///   of a stack past this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// As one line of text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Device {
    /// The fingerprint as of this moment; `None` where the kernel does not count (no sysfs, or statistics switched off).
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        let text = match self.id() {
            DeviceId::File { device, inode } => {
                let meta = self.main().metadata().ok()?;
                format!(
                    "file {device}:{inode} size {} mtime {}.{:09} ctime {}.{:09}",
                    meta.size(),
                    meta.mtime(),
                    meta.mtime_nsec(),
                    meta.ctime(),
                    meta.ctime_nsec(),
                )
            }
            DeviceId::Block { number } => {
                let (major, minor) = (libc::major(number), libc::minor(number));
                let boot = line(Path::new("/proc/sys/kernel/random/boot_id"))?;
                block(&PathBuf::from(format!("/sys/dev/block/{major}:{minor}")), &boot)?
            }
        };
        Some(Fingerprint(text))
    }
}

/// The fingerprint of the block device whose folder in sysfs is `folder`. Of a partition it is that of the whole disk, which
/// may be written past the partition.
fn block(folder: &Path, boot: &str) -> Option<String> {
    let disk = match folder.join("partition").exists() {
        true => folder.join(".."),
        false => folder.to_path_buf(),
    };
    // A counter that stands still because nobody counts is no evidence.
    if line(&disk.join("queue/iostats"))? != "1" {
        return None;
    }
    let sequence = line(&disk.join("diskseq"))?;
    let stat = line(&disk.join("stat"))?;
    // Documentation/block/stat.rst: 4 write IOs, 6 sectors written, 11 discard IOs, 13 sectors discarded.
    let fields: Vec<&str> = stat.split_ascii_whitespace().collect();
    let counts = [4, 6, 11, 13].map(|at| fields.get(at).copied());
    let [Some(writes), Some(written), Some(discards), Some(discarded)] = counts else {
        return None;
    };
    let number = line(&folder.join("dev"))?;
    Some(format!(
        "block {number} boot {boot} disk {sequence} writes {writes} {written} discards {discards} {discarded}"
    ))
}

fn line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::OpenOptions;
    use std::io::Write;

    #[test]
    fn a_write_to_a_file_shows() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 4096]).unwrap();
        let device = Device::open(file.path(), &OpenOptions::read()).unwrap();
        let before = device.fingerprint().unwrap();
        assert_eq!(device.fingerprint().unwrap(), before);
        file.as_file_mut().set_len(8192).unwrap();
        assert_ne!(device.fingerprint().unwrap(), before);
    }

    #[test]
    fn counters_of_a_block_device_are_evidence_only_where_they_count() {
        let sysfs = tempfile::tempdir().unwrap();
        let disk = sysfs.path();
        let put = |name: &str, text: &str| {
            fs::create_dir_all(disk.join(name).parent().unwrap()).unwrap();
            fs::write(disk.join(name), text).unwrap();
        };
        put("dev", "7:0\n");
        put("queue/iostats", "1\n");
        put("diskseq", "12\n");
        put("stat", " 1 2 3 4 50 6 700 8 9 10 11 12 13 1400 15 16 17\n");
        let fingerprint = block(disk, "boot").unwrap();
        assert_eq!(
            fingerprint,
            "block 7:0 boot boot disk 12 writes 50 700 discards 12 1400"
        );
        put("stat", " 9 9 9 9 50 9 700 8 9 10 11 12 13 1400 15 16 17\n");
        assert_eq!(block(disk, "boot").unwrap(), fingerprint, "reads do not show");
        put("stat", " 1 2 3 4 51 6 708 8 9 10 11 12 13 1400 15 16 17\n");
        assert_ne!(block(disk, "boot").unwrap(), fingerprint, "writes do");
        put("stat", " 1 2 3 4 50 6 700 8 9 10 11\n");
        assert_eq!(block(disk, "boot"), None, "a kernel without counters of discards");
        put("stat", " 1 2 3 4 50 6 700 8 9 10 11 12 13 1400 15 16 17\n");
        put("queue/iostats", "0\n");
        assert_eq!(block(disk, "boot"), None);
    }
}
