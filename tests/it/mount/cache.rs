//! The cache misbehaves under a mount: what is read is right all the same, or an error with a reason; each kind of trouble is told
//! of once.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::bucket::Bucket;
use blockferry_tests::garage::{self, Garage};
use blockferry_tests::process::run;
use blockferry_tests::volume::{Layout, Volume};
use blockferry_tests::wait::wait_for;

use super::{Mounts, bytes, device};
use crate::bad_input::support::{MIB, PASSWORD, World};
use crate::cache::{Tmpfs, contents};

const DEADLINE: Duration = Duration::from_secs(120);

/// What the log says when a damaged file was found, for the first time.
const DAMAGED: &str = "a damaged file of the cache was removed; the repository is asked instead";

/// Mounts of a snapshot in a bucket, which keep what they read in a cache.
struct Cached {
    mounts: Mounts,
    garage: Garage,
    /// What the server of the last mount said before it had a log.
    said: RefCell<String>,
}

impl Cached {
    fn new(seed: u64) -> Option<Self> {
        if !garage::available() {
            eprintln!("SKIPPED: garage is not installed");
            return None;
        }
        let garage = Garage::start().unwrap();
        let ferry = Blockferry::in_bucket(&Bucket::of(&garage, "mounted/"), PASSWORD).unwrap();
        ferry.run(["repo", "create"]).unwrap();
        let volume = Volume::create(&Layout::mixed(seed, 16 * MIB)).unwrap();
        ferry.backup(volume.path(), &[]).unwrap();
        let world = World::of(tempfile::tempdir().unwrap(), ferry);
        Some(Self {
            mounts: Mounts { world, volume },
            garage,
            said: RefCell::default(),
        })
    }

    /// Mounts without memory, so that every read is one of the cache; gives the device.
    #[track_caller]
    fn mount(&self, args: &[&str]) -> PathBuf {
        let ended = self.mounts.ended(
            &[
                &["mount", "latest", "--attach", "fuse", "--json", "--memory", "0"],
                args,
            ]
            .concat(),
        );
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        *self.said.borrow_mut() = ended.stderr;
        device(&serde_json::from_str(&ended.stdout).unwrap())
    }

    #[track_caller]
    fn check(&self, device: &Path, when: &str) {
        let volume = &self.mounts.volume;
        assert!(bytes(device, volume.size()) == volume.bytes().unwrap(), "{when}");
    }

    /// All that the server said.
    fn log(&self) -> String {
        let log = self.mounts.only()["log"].as_str().unwrap().to_owned();
        self.said.borrow().clone() + &fs::read_to_string(log).unwrap()
    }

    /// The log has `words` in one warning, and no other warning but those with words of `others`.
    #[track_caller]
    fn check_told_once(&self, words: &str, others: &[&str]) {
        let log = self.log();
        let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
        let of = |words: &str| warnings.iter().filter(|line| line.contains(words)).count();
        assert_eq!(of(words), 1, "{log}");
        let known = 1 + others.iter().map(|words| of(words)).sum::<usize>();
        assert_eq!(warnings.len(), known, "{log}");
        assert!(others.iter().all(|words| of(words) <= 1), "{log}");
    }

    #[track_caller]
    fn unmount(&self) {
        let id = self.mounts.only()["id"].as_str().unwrap().to_owned();
        self.mounts.ok(&["unmount", &id]);
        self.mounts.assert_none();
    }
}

/// Spoils the file number `number`; what is read of it meanwhile is old, new or half of each.
fn spoil(path: &Path, number: usize, how: usize) {
    let Ok(mut bytes) = fs::read(path) else { return };
    let at = (number * 7919 + 100) % bytes.len().max(1);
    let written = match how % 5 {
        // In place, as a disk does it: a bit in the head, the body or the codes.
        0 => File::options().write(true).open(path).and_then(|file| {
            let flipped = bytes.get(at).copied().unwrap_or(0) ^ 1 << (number % 8);
            file.write_all_at(&[flipped], at as u64)
        }),
        1 => File::options()
            .write(true)
            .open(path)
            .and_then(|file| file.set_len(at as u64)),
        2 => fs::write(path, []),
        3 => {
            bytes.fill(0x5a);
            fs::write(path, bytes)
        }
        // Longer than it was.
        _ => {
            bytes.extend([0; 4096]);
            fs::write(path, bytes)
        }
    };
    let _ = written; // it may have been removed meanwhile
}

#[test]
fn files_that_are_spoiled_between_and_during_mounts_are_never_read_as_data() {
    let Some(cached) = Cached::new(361) else { return };
    let folder = cached.mounts.world.ferry.cache();
    for how in 0..5 {
        let spoil_all = || {
            let kept = contents(&folder);
            assert!(kept.len() >= 8, "{kept:?}");
            kept.iter()
                .enumerate()
                .for_each(|(number, path)| spoil(path, number, how));
        };
        let device = cached.mount(&[]);
        cached.check(&device, "as it was left");
        spoil_all();
        cached.check(&device, "spoiled under the mount");
        // What was found damaged was fetched, and is kept again.
        cached.check(&device, "filled again");
        cached.check_told_once(DAMAGED, &[]);
        spoil_all();
        cached.unmount();
    }
}

#[test]
fn files_that_change_while_they_are_read_are_never_read_as_data() {
    let Some(cached) = Cached::new(362) else { return };
    let folder = cached.mounts.world.ferry.cache();
    let device = cached.mount(&[]);
    cached.check(&device, "at first");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (folder, is_over) = (&folder, &is_over);
        scope.spawn(move || {
            for how in 0.. {
                for (number, path) in contents(folder).iter().enumerate() {
                    spoil(path, number + how, how + number);
                }
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        for round in 0..25 {
            cached.check(&device, &format!("round {round}"));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    cached.check_told_once(DAMAGED, &["a cached file cannot be read"]);
    cached.unmount();
}

#[test]
fn a_full_or_read_only_cache_is_told_of_once_and_reads_go_on() {
    let Some(cached) = Cached::new(363) else { return };
    let Some(small) = Tmpfs::mount("size=3m") else { return };
    let remount = |options: &str| run(Command::new("mount").args(["-o", options]).arg(small.path())).is_ok();
    let folder = small.path().join("cache").display().to_string();

    let device = cached.mount(&["--cache-dir", &folder]);
    cached.check(&device, "a disk that becomes full");
    cached.check(&device, "a full disk");
    cached.check_told_once("No space left on device", &[]);
    assert!(!contents(small.path()).is_empty(), "what had room is kept");
    cached.unmount();

    // Read-only before there is a mount.
    wait_for("the cache to be read-only", DEADLINE, || remount("remount,ro,size=64m")).unwrap();
    let device = cached.mount(&["--cache-dir", &folder]);
    cached.check(&device, "a read-only disk");
    cached.check_told_once("Read-only file system", &[]);
    cached.unmount();
    assert!(remount("remount,rw"));
    // And under a mount. That may have fetched anew what was damaged before it, so all is damaged once nothing can be written.
    let place = small.bind();
    let folder = place.path().join("cache").display().to_string();
    let device = cached.mount(&["--cache-dir", &folder]);
    wait_for("the cache to be read-only", DEADLINE, || {
        run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(place.path())).is_ok()
    })
    .unwrap();
    for (number, path) in contents(small.path()).iter().enumerate() {
        spoil(path, number, 3);
    }
    cached.check(&device, "a disk that became read-only");
    cached.check(&device, "and stays so");
    cached.check_told_once("Read-only file system", &[DAMAGED]);
    cached.unmount();
}

#[test]
fn a_cache_that_is_removed_under_a_mount_is_made_again() {
    let Some(cached) = Cached::new(364) else { return };
    let folder = cached.mounts.world.ferry.cache();
    let device = cached.mount(&[]);
    cached.check(&device, "at first");
    for _ in 0..3 {
        fs::remove_dir_all(&folder).unwrap();
        cached.check(&device, "removed");
        assert!(contents(&folder).len() >= 8, "made again");
    }
    assert!(!cached.log().contains("WARN"), "{}", cached.log());
    // Something else stands in its place.
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "no folder").unwrap();
    cached.check(&device, "a file in its place");
    cached.check_told_once("the cache cannot be written", &["a cached file cannot be read"]);
    fs::remove_file(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    cached.unmount();

    // A folder and a pipe in place of files: neither is waited for, nor taken for data.
    let device = cached.mount(&[]);
    cached.check(&device, "filled");
    for (number, path) in contents(&folder).iter().enumerate() {
        fs::remove_file(path).unwrap();
        match number % 2 {
            0 => fs::create_dir(path).unwrap(),
            _ => _ = run(Command::new("mkfifo").arg(path)).unwrap(),
        }
    }
    cached.check(&device, "no files");
    cached.check(&device, "no files, again");
    cached.unmount();
}

#[test]
fn without_cache_and_repository_reads_fail_with_a_reason_until_one_is_back() {
    let Some(mut cached) = Cached::new(365) else { return };
    let device = cached.mount(&[]);
    cached.check(&device, "at first");
    cached.garage.kill(0);
    cached.check(&device, "from the cache alone");
    fs::remove_dir_all(cached.mounts.world.ferry.cache()).unwrap();
    run(Command::new("blockdev").arg("--flushbufs").arg(&device)).unwrap();
    let error = File::open(&device).unwrap().read_exact_at(&mut [0; 4096], 3 * MIB);
    let error = error.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    let log = cached.log();
    assert!(log.contains("storage keeps failing"), "{log}");
    assert!(cached.mounts.only()["failures"].as_u64().unwrap() > 0);
    cached.garage.restart(0).unwrap();
    wait_for("the repository to be read again", DEADLINE, || {
        run(Command::new("blockdev").arg("--flushbufs").arg(&device)).unwrap();
        fs::read(&device).is_ok()
    })
    .unwrap();
    cached.check(&device, "the repository is back");
    cached.unmount();
}
