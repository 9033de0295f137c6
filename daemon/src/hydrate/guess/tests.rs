use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blockio::{BlockError, BlockSource, ExtentKind, Geometry};
use nbd::Export;
use nbd::attach::{Options, attach};
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

/// A file as a volume that notes which chunks are read.
struct Noted {
    file: File,
    size: u64,
    read: Mutex<BTreeSet<u64>>,
}

impl BlockSource for Noted {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(self.size)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.file.read_exact_at(buf, offset).unwrap();
        let len = buf.len() as u64;
        let chunks = Extent { offset, len }.chunks();
        self.read.lock().unwrap().extend(chunks.map(ChunkIndex::get));
        Ok(())
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        out.push((range, ExtentKind::Data));
        Ok(())
    }
}

/// The chunks that the kernel reads when it mounts the file system in `image`. `None` where that cannot be tried.
fn read_by_a_mount(image: &Path, size: u64, options: &[&str]) -> Option<BTreeSet<u64>> {
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let noted = Arc::new(Noted {
        file: File::open(image).unwrap(),
        size,
        read: Mutex::default(),
    });
    let (runtime, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let attached = attach(
        &Arc::new(Export::read_only(noted.clone())),
        &Options {
            kind: Some(nbd::attach::Kind::FuseLoop),
            runtime: runtime.path().to_owned(),
            ..Options::named("guess")
        },
    );
    let device = match attached {
        Ok(device) => device,
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            return None;
        }
    };
    run(Command::new("mount")
        .args(options)
        .arg(device.path())
        .arg(folder.path()));
    let read = noted.read.lock().unwrap().clone();
    run(Command::new("umount").arg(folder.path()));
    // A process that another test is starting has our files for a moment.
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut left = device.detach(Duration::from_secs(30));
    while let Err(refused) = left {
        assert!(Instant::now() < deadline, "{}", refused.error);
        std::thread::park_timeout(Duration::from_millis(10));
        left = refused.device.detach(Duration::from_secs(30));
    }
    Some(read)
}

/// A volume that was in use: files were written, and its journal was not played back.
fn used(program: &str, args: &[&str], size: u64) -> Option<tempfile::NamedTempFile> {
    let image = made(program, args, size)?;
    let folder = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-o", "loop"])
        .arg(image.path())
        .arg(folder.path())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: needs to mount");
        return None;
    }
    for number in 0..200 {
        let name = folder.path().join(format!("folder {}", number % 20));
        std::fs::create_dir_all(&name).unwrap();
        std::fs::write(name.join(number.to_string()), vec![7; 100_000]).unwrap();
    }
    // As it is while it is in use, but for what is on its way: a copy after a sync.
    let synced = Command::new("sync").arg("-f").arg(folder.path()).status();
    assert!(synced.unwrap().success());
    let copy = tempfile::NamedTempFile::new().unwrap();
    let copied = Command::new("cp")
        .arg("--sparse=always")
        .args([image.path(), copy.path()])
        .status();
    let unmounted = Command::new("umount").arg(folder.path()).status();
    assert!(copied.unwrap().success() && unmounted.unwrap().success());
    Some(copy)
}

#[test]
fn what_a_mount_reads_of_xfs_was_guessed() {
    let size = 3u64 << 30;
    let Some(image) = used("mkfs.xfs", &["-q", "-f"], size) else {
        return;
    };
    let found = guessed(image.path(), size);
    // Its own tool says where things are.
    let asked = |commands: &[&str]| {
        let words = commands.iter().flat_map(|command| ["-c", command]);
        let told = Command::new("xfs_db").arg("-r").args(words).arg(image.path()).output();
        String::from_utf8(told.unwrap().stdout).unwrap()
    };
    let field = |name: &str| -> u64 {
        let text = asked(&["sb 0", &format!("p {name}")]);
        text.rsplit(' ').next().unwrap().trim().parse().unwrap()
    };
    let byte = |what: &str| -> u64 {
        let text = asked(&[&format!("convert {what} byte")]);
        let digits = text.rsplit('(').next().unwrap().trim_end().trim_end_matches(')');
        digits.parse().unwrap()
    };
    let log = byte(&format!("fsblock {}", field("logstart"))) >> 20;
    let log_chunks = (field("logblocks") * field("blocksize")) >> 20;
    assert!((log..log + log_chunks).all(|chunk| found.contains(&chunk)), "{found:?}");
    assert!(found.contains(&(byte(&format!("inode {}", field("rootino"))) >> 20)));
    for group in 0..field("agcount") {
        assert!(
            found.contains(&(byte(&format!("agno {group} agbno 0")) >> 20)),
            "{group}"
        );
    }
    // And so does the kernel, which reads what it needs.
    let options = ["-t", "xfs", "-o", "ro,nouuid,norecovery"];
    let Some(read) = read_by_a_mount(image.path(), size, &options) else {
        return;
    };
    let missed: Vec<_> = read.iter().filter(|chunk| !found.contains(chunk)).collect();
    assert!(missed.is_empty(), "{missed:?} of {read:?}, guessed {found:?}");
}

#[test]
fn what_a_mount_reads_of_ext4_was_guessed() {
    let size = 3u64 << 30;
    for args in [&["-q"][..], &["-q", "-b", "1024"], &["-q", "-t", "ext3"]] {
        let Some(image) = used("mkfs.ext4", args, size) else {
            return;
        };
        let found = guessed(image.path(), size);
        let Some(read) = read_by_a_mount(image.path(), size, &["-t", "ext4", "-o", "ro,noload"]) else {
            return;
        };
        let missed: Vec<_> = read.iter().filter(|chunk| !found.contains(chunk)).collect();
        assert!(missed.is_empty(), "{args:?}: {missed:?} of {read:?}, guessed {found:?}");
    }
}
