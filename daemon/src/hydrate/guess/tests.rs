use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// A file system made by `mkfs` in a file of `size` bytes. `None` where there is no such program.
fn made(program: &str, args: &[&str], size: u64) -> Option<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    let mut command = Command::new(program);
    let made = command.args(args).arg(file.path()).output().ok()?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(file)
}

fn guessed(path: &Path, size: u64) -> Vec<u64> {
    let file = File::open(path).unwrap();
    let mut fetch = |range: Extent| {
        let mut bytes = vec![0; range.bytes()];
        file.read_exact_at(&mut bytes, range.offset).unwrap();
        Some(bytes)
    };
    first_chunks(size, &mut fetch).iter().map(|chunk| chunk.get()).collect()
}

/// What `dumpe2fs` says behind `name`, in blocks of the file system.
fn said(text: &str, name: &str) -> Vec<u64> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix(name));
    let number = |rest: &str| {
        let digits: String = rest.trim().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    lines.filter_map(number).collect()
}

#[test]
fn the_tables_of_ext4_are_where_its_own_tools_say() {
    let size = 6u64 << 30;
    for (args, block) in [
        (&["-q", "-b", "4096"][..], 4096),
        (&["-q", "-b", "1024", "-O", "^64bit,^flex_bg"], 1024),
        (&["-q", "-b", "4096", "-t", "ext3"], 4096),
    ] {
        let Some(file) = made("mkfs.ext4", args, size) else {
            return;
        };
        let found = guessed(file.path(), size);
        assert_eq!(found[..2], [0, (size >> 20) - 1]);
        let told = Command::new("dumpe2fs").arg(file.path()).output().unwrap();
        let text = String::from_utf8_lossy(&told.stdout);
        for name in ["Inode table at", "Block bitmap at", ", Inode bitmap at"] {
            for place in said(&text, name) {
                let chunk = (place * block) >> 20;
                assert!(
                    found.contains(&chunk) || found.len() == CHUNKS_MAX,
                    "{args:?}: {name} {place}, chunk {chunk}"
                );
            }
        }
        assert!(said(&text, "Inode table at").len() > 10, "{text}");
        let told = Command::new("debugfs")
            .args(["-R", "bmap <8> 0"])
            .arg(file.path())
            .output()
            .unwrap();
        let journal: u64 = String::from_utf8_lossy(&told.stdout).trim().parse().unwrap();
        assert!(
            found.contains(&((journal * block) >> 20)),
            "{args:?}: the journal at {journal}"
        );
    }
}

#[test]
fn the_log_of_xfs_is_where_its_superblock_says() {
    let size = 1u64 << 30;
    let Some(file) = made("mkfs.xfs", &["-q"], size) else {
        return;
    };
    let found = guessed(file.path(), size);
    let groups = size / 4;
    for group in 0..4 {
        assert!(found.contains(&((group * groups) >> 20)), "{found:?}");
    }
}

/// A superblock of XFS as mkfs.xfs makes one for four groups of 256 MiB: magic, block size, log start, groups.
#[test]
fn the_log_of_xfs_is_found() {
    let mut head = vec![0; 4096];
    head[..4].copy_from_slice(b"XFSB");
    head[4..8].copy_from_slice(&4096u32.to_be_bytes());
    let log = (2u64 << 16) | 6;
    head[48..56].copy_from_slice(&log.to_be_bytes());
    head[56..64].copy_from_slice(&128u64.to_be_bytes());
    head[84..88].copy_from_slice(&65536u32.to_be_bytes());
    head[88..92].copy_from_slice(&4u32.to_be_bytes());
    head[96..100].copy_from_slice(&2560u32.to_be_bytes());
    (head[123], head[124]) = (3, 16);
    let found = first_chunks(1 << 30, &mut |_| Some(head.clone()));
    let found: Vec<u64> = found.iter().map(|chunk| chunk.get()).collect();
    assert_eq!(found[..2], [0, 1023]);
    assert_eq!(
        found[2..13],
        (512..523).collect::<Vec<u64>>()[..],
        "the log of 10 MiB from 24 KiB on"
    );
    assert!(found.contains(&256) && found.contains(&768));
}

proptest! {
    /// Bytes from outside end in a list of chunks of the volume, whatever they are.
    #[test]
    fn any_bytes_are_survived(
        mut head in prop::collection::vec(any::<u8>(), 4096), which in 0..3u8, shift in 0..8u8, size in 1u64..1 << 45, other in any::<u8>(),
    ) {
        match which {
            0 => head[..4].copy_from_slice(b"XFSB"),
            1 => head[1024 + 0x38..1024 + 0x3A].copy_from_slice(&0xEF53u16.to_le_bytes()),
            _ => {}
        }
        head[1024 + 0x18..1024 + 0x1C].copy_from_slice(&u32::from(shift).to_le_bytes());
        let mut asked = 0;
        let chunks = first_chunks(size, &mut |range| {
            assert!(range.end() <= size);
            asked += range.len;
            Some(match range.offset {
                0 => head.clone(),
                _ => vec![other; range.bytes()],
            })
        });
        prop_assert!(asked < 8 << 20, "{asked} bytes were asked for");
        prop_assert!(chunks.len() <= CHUNKS_MAX && chunks.iter().all(|chunk| chunk.offset() < size));
    }
}
