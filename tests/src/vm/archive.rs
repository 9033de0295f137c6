//! A cpio archive of the kind that a kernel unpacks as its first file system.

use std::collections::BTreeSet;
use std::path::Path;

/// Kinds of entries, as in the mode of an inode.
const FILE: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const LINK: u32 = 0o120_000;

/// An archive in the format `newc` (Documentation/driver-api/early-userspace/buffer-format.rst): text headers of 110 bytes, names
/// and contents padded to 4 bytes.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    count: u32,
    paths: BTreeSet<String>,
}

impl Archive {
    /// A file at an absolute path; folders above it come by themselves. The first one of a path stays.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, FILE | mode, content);
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.entry(path, LINK | 0o777, target.as_bytes());
    }

    /// A folder.
    pub(super) fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER | 0o755, &[]);
    }

    /// Whether there is something at this path.
    pub(super) fn has(&self, path: &str) -> bool {
        self.paths.contains(path)
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        if self.has(path) {
            return;
        }
        if let Some(parent) = Path::new(path)
            .parent()
            .and_then(Path::to_str)
            .filter(|parent| *parent != "/")
        {
            self.folder(parent);
        }
        self.paths.insert(path.to_owned());
        self.put(path.trim_start_matches('/'), mode, content);
    }

    fn put(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.count += 1;
        let len = |bytes: usize| u32::try_from(bytes).expect("files of a test fit 4 GiB");
        // Inode, mode, user, group, links, time, length, device and rdevice as two numbers each, length of the name, checksum.
        let fields = [
            self.count,
            mode,
            0,
            0,
            1,
            0,
            len(content.len()),
            0,
            0,
            0,
            0,
            len(name.len() + 1),
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The archive with its trailer.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.put("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_headers_of_their_length_and_folders_before_them() {
        let mut archive = Archive::default();
        archive.file("/bin/a", 0o755, b"12345");
        archive.file("/bin/a", 0o755, b"again");
        archive.link("/bin/b", "a");
        assert!(archive.has("/bin") && !archive.has("/"));
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 4);
        assert!(text.find("bin\0").unwrap() < text.find("bin/a\0").unwrap());
        assert!(text.contains("000081ED") && text.contains("12345") && !text.contains("again"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
