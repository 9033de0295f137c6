//! The cache on the disk: shared, and whatever becomes of it, never wrong.

use std::fs;

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::bucket::Bucket;
use blockferry_tests::garage::{self, Garage};
use blockferry_tests::volume::{Layout, Volume};

use super::{MIB, Serving};
use crate::bad_input::support::PASSWORD;
use crate::cache::{Tmpfs, contents};

#[test]
fn a_cache_that_is_filled_damaged_full_or_read_only_never_gives_wrong_bytes() {
    if !garage::available() {
        eprintln!("SKIPPED: garage is not installed");
        return;
    }
    let mut garage = Garage::start().unwrap();
    let ferry = Blockferry::in_bucket(&Bucket::of(&garage, "served/"), PASSWORD).unwrap();
    ferry.run(["repo", "create"]).unwrap();
    let volume = Volume::create(&Layout::mixed(41, 14 * MIB + 100)).unwrap();
    ferry.backup(volume.path(), &[]).unwrap();
    let expect = volume.bytes().unwrap();

    let serving = Serving::start(&ferry, &["latest"]);
    assert!(serving.bytes() == expect);
    drop(serving);
    let kept = contents(&ferry.cache());
    assert!(kept.len() >= 8, "{kept:?}");

    // Damaged: a bit in each, then each cut short.
    for round in 0..2 {
        for (number, path) in contents(&ferry.cache()).iter().enumerate() {
            let mut bytes = fs::read(path).unwrap();
            let at = (number * 7919 + 100) % bytes.len();
            match round {
                0 => bytes[at] ^= 1 << (number % 8),
                _ => bytes.truncate(at),
            }
            fs::write(path, bytes).unwrap();
        }
        let serving = Serving::start(&ferry, &["latest"]);
        assert!(serving.bytes() == expect, "round {round}");
        assert!(
            serving.log().contains("a damaged file of the cache was removed"),
            "{}",
            serving.log()
        );
    }
    // One server fills it, another one beside it reads from it; and from there all of it comes when the storage is gone.
    let (one, two) = (Serving::start(&ferry, &["latest"]), Serving::start(&ferry, &["latest"]));
    assert!(one.bytes() == expect && two.bytes() == expect);
    drop((one, two));

    if let Some(small) = Tmpfs::mount("size=3m") {
        let folder = small.path().join("cache").display().to_string();
        let serving = Serving::start(&ferry, &["latest", "--cache-dir", &folder]);
        assert!(serving.bytes() == expect, "on a full disk");
        assert!(serving.log().contains("No space left on device"), "{}", serving.log());
    }
    let nowhere = ferry.cache().join("CACHEDIR.TAG").display().to_string();
    let serving = Serving::start(&ferry, &["latest", "--cache-dir", &nowhere]);
    assert!(serving.bytes() == expect, "where no folder can be");
    drop(serving);

    let serving = Serving::start(&ferry, &["latest", "--memory", "0"]);
    garage.kill(0);
    assert!(serving.bytes() == expect, "from the cache alone");
}
