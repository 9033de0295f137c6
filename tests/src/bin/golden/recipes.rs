//! What each golden repository is for, and the steps that make it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime};

use blockferry_tests::volume::{BlockKind, Layout, Random, Zeros};
use blockferry_tests::{Failure, Result};

use crate::maker::{Maker, set_modified};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const HOUR: Duration = Duration::from_secs(3600);

/// Kopia drops all but the newest ten snapshots of a source unless told otherwise.
const KEEP_ALL: &[&str] = &["--keep-latest=1000"];

/// Time of all source files, so that directory objects are the same each time: 2026-01-02 03:04:05 UTC.
const SOURCE_TIME: Duration = Duration::from_secs(1_767_323_045);

pub(crate) fn make(name: &str, folder: &Path) -> Result<()> {
    match name {
        "default" => default(name, folder),
        "blake3" => one_image(
            name,
            folder,
            &["--block-hash=BLAKE3-256", "--object-splitter=FIXED-128K"],
        ),
        "hmac-chacha" => one_image(
            name,
            folder,
            &[
                "--block-hash=HMAC-SHA256",
                "--encryption=CHACHA20-POLY1305-HMAC-SHA256",
                "--object-splitter=FIXED-128K",
            ],
        ),
        "zstd" => zstd(name, folder),
        "tree" => tree(name, folder),
        "deleted" => deleted(name, folder),
        "epochs" => epochs(name, folder),
        "version-1" => version_1(Maker::create(name, &VERSION_1)?)?.finish(folder),
        "upgraded" => upgraded(name, folder),
        "nested" => nested(name, folder),
        // Long contents where shards are long, so that some are of several blocks.
        "ecc-1" => ecc(name, folder, "1", "FIXED-512K", 530 * KIB + 1),
        "ecc-2" => ecc(name, folder, "2", "FIXED-128K", 200 * KIB + 1),
        "ecc-5" => ecc(name, folder, "5", "FIXED-128K", 200 * KIB + 1),
        "ecc-10" => ecc(name, folder, "10", "FIXED-128K", 200 * KIB + 1),
        other => Err(Failure::new(format!("no recipe for {other}"))),
    }
}

/// Everything as kopia chooses it, with an image whose end is not on the block grid, and a stdin source.
fn default(name: &str, folder: &Path) -> Result<()> {
    let mut maker = Maker::create(name, &[])?;
    image(&maker, "disk.img", &Layout::mixed(1, 3 * MIB + 512))?;
    maker.snapshot("disk.img")?;
    let piped = Layout::uniform(2, 100 * KIB + 1, BlockKind::Records).bytes();
    maker.snapshot_stdin("stdin", "disk.raw", &piped)?;
    maker.finish(folder)
}

/// Other algorithms, and an image of several chunks, hence with a list.
fn one_image(name: &str, folder: &Path, args: &[&str]) -> Result<()> {
    let mut maker = Maker::create(name, args)?;
    image(
        &maker,
        "disk.img",
        &Layout::uniform(3, 300 * KIB + 77, BlockKind::Records),
    )?;
    maker.snapshot("disk.img")?;
    maker.finish(folder)
}

/// Compressed contents: zstd for one source, gzip for another, s2 and deflate for smaller ones.
fn zstd(name: &str, folder: &Path) -> Result<()> {
    let mut maker = Maker::create(name, &["--object-splitter=FIXED-1M"])?;
    for (source, compression, layout) in [
        (
            "zstd.img",
            "zstd-fastest",
            Layout::uniform(4, MIB + 50 * KIB, BlockKind::Records),
        ),
        ("gzip.img", "gzip", Layout::uniform(5, 200 * KIB, BlockKind::Records)),
        (
            "s2.img",
            "s2-default",
            Layout::uniform(6, 100 * KIB, BlockKind::Records),
        ),
        (
            "deflate.img",
            "deflate-default",
            Layout::uniform(7, 100 * KIB, BlockKind::Records),
        ),
        ("pgzip.img", "pgzip", Layout::uniform(8, 100 * KIB, BlockKind::Records)),
    ] {
        maker.policy(
            &format!("tester@testhost:/golden/{source}"),
            &["--compression", compression],
        )?;
        image(&maker, source, &layout)?;
        maker.snapshot(source)?;
    }
    maker.finish(folder)
}

/// 2,000 small files in 20 folders, links, odd names.
fn tree(name: &str, folder: &Path) -> Result<()> {
    let mut maker = Maker::create(name, &[])?;
    let root = maker.source("tree");
    plant(&root).map_err(Failure::at("make the tree"))?;
    set_times(&root)?;
    maker.snapshot("tree")?;
    maker.finish(folder)
}

fn plant(root: &Path) -> std::io::Result<()> {
    const ODD_NAMES: [&str; 4] = ["with space", "a<b>&c", "grüße", "dot."];
    let mut random = Random::new(8);
    for folder in 0..20 {
        let path = root.join(format!("folder-{folder:02}"));
        fs::create_dir_all(&path)?;
        for file in 0..100 {
            let words = random.below(8);
            let bytes: Vec<u8> = (0..words).flat_map(|_| random.next_u64().to_le_bytes()).collect();
            fs::write(path.join(format!("file-{file:02}")), bytes)?;
        }
    }
    for (i, odd) in ODD_NAMES.iter().enumerate() {
        fs::create_dir_all(root.join("odd/deep/er"))?;
        fs::write(root.join("odd/deep/er").join(odd), vec![b'x'; i])?;
    }
    fs::create_dir_all(root.join("empty"))?;
    symlink("folder-00/file-00", root.join("link"))?;
    symlink("../nowhere", root.join("odd/broken"))
}

/// Several snapshots of one source, one deleted, with maintenance in between: tombstones, compacted manifests, dropped
/// contents, several index blobs.
fn deleted(name: &str, folder: &Path) -> Result<()> {
    let mut maker = Maker::create(name, &[])?;
    maker.policy("--global", KEEP_ALL)?;
    let mut ids = Vec::new();
    // 16 manifest contents are what makes kopia compact them; more snapshots than that leave both kinds.
    for round in 0..20 {
        image(
            &maker,
            "disk.img",
            &Layout::uniform(100 + round, 8 * KIB, BlockKind::Records),
        )?;
        ids.push(maker.snapshot("disk.img")?);
        if round == 9 {
            maker.delete(&ids[3])?;
            maker.maintenance()?;
        }
    }
    maker.delete(&ids[12])?;
    maker.must_have("xn")?;
    maker.finish(folder)
}

/// Index blobs of several epochs: compacted ones (`xs`), a range (`xr`), those of the current epoch, markers, watermark.
fn epochs(name: &str, folder: &Path) -> Result<()> {
    let mut maker = Maker::create(name, &[])?;
    maker.policy("--global", KEEP_ALL)?;
    // The least that kopia allows: an epoch ends after 10 index blobs and an hour, two epochs make a range.
    let least = [
        "--epoch-min-duration=1h",
        "--epoch-advance-on-count=10",
        "--epoch-checkpoint-frequency=2",
    ];
    maker.run(&[&["repository", "set-parameters"], least.as_slice()].concat())?;
    for epoch in 0..5 {
        for round in 0..10 {
            let layout = Layout::uniform(1000 + epoch * 100 + round, 3 * KIB, BlockKind::Records);
            image(&maker, "disk.img", &layout)?;
            maker.snapshot("disk.img")?;
            if round == 0 {
                maker.age_index_blobs(48 * HOUR)?;
            }
        }
        // First the epoch ends, then, when its marker is old enough, the one before it is compacted.
        maker.maintenance()?;
        maker.age_index_blobs(24 * HOUR)?;
        maker.maintenance()?;
    }
    image(&maker, "disk.img", &Layout::uniform(2000, 3 * KIB, BlockKind::Records))?;
    maker.snapshot("disk.img")?;
    for prefix in ["xn", "xs", "xr", "xe", "xw"] {
        println!("epochs: {} {prefix}", maker.must_have(prefix)?);
    }
    maker.finish(folder)
}

/// A volume cut by content whose list is itself a list, and a folder so large that it is one.
fn nested(name: &str, folder: &Path) -> Result<()> {
    const ROUNDS: usize = 2300;
    const NAMES: u64 = 1300;
    const SEED: u64 = 41;
    let mut maker = Maker::create(name, &["--object-splitter=FIXED-128K"])?;
    maker.policy(
        "tester@testhost:/golden/disk.img",
        &["--splitter", "DYNAMIC-128K-BUZHASH"],
    )?;
    // The same 80 KiB again and again, of a seed that kopia cuts once a round: thousands of pieces, few contents.
    let path = maker.source("disk.img");
    image(&maker, "disk.img", &Layout::uniform(SEED, 80 * KIB, BlockKind::Random))?;
    let round = fs::read(&path).map_err(Failure::at("read the volume"))?;
    fs::write(&path, round.repeat(ROUNDS)).map_err(Failure::at("write the volume"))?;
    set_modified(&path, SystemTime::UNIX_EPOCH + SOURCE_TIME)?;
    maker.snapshot("disk.img")?;
    let root = maker.source("many");
    let plant = || -> std::io::Result<()> {
        fs::create_dir_all(&root)?;
        for at in 0..NAMES {
            fs::write(root.join(format!("a-file-with-a-long-name-{at:040}")), [])?;
        }
        Ok(())
    };
    plant().map_err(Failure::at("make the files"))?;
    set_times(&root)?;
    maker.snapshot("many")?;
    maker.must_be_rooted_at(&["IIx", "Ik"])?;
    maker.finish(folder)
}

/// Blobs with error correction.
fn ecc(name: &str, folder: &Path, percent: &str, splitter: &str, len: u64) -> Result<()> {
    let percent = format!("--ecc-overhead-percent={percent}");
    let splitter = format!("--object-splitter={splitter}");
    let mut maker = Maker::create(name, &["--ecc=REED-SOLOMON-CRC32", &percent, &splitter])?;
    image(&maker, "disk.img", &Layout::uniform(30, len, BlockKind::Records))?;
    maker.snapshot("disk.img")?;
    // A content of a few shards only.
    maker.snapshot_stdin(
        "stdin",
        "disk.raw",
        &Layout::uniform(31, 700, BlockKind::Records).bytes(),
    )?;
    maker.finish(folder)
}

/// The first format, whose objects are compressed as a whole, with small chunks so that there are lists.
const VERSION_1: [&str; 2] = ["--format-version=1", "--object-splitter=FIXED-128K"];

/// Compressed objects of several codecs and plain ones, index blobs that a compaction replaced and that are still there.
fn version_1(mut maker: Maker) -> Result<Maker> {
    maker.policy("--global", KEEP_ALL)?;
    for (source, compression, seed, len) in [
        ("zstd.img", "zstd", 20, 300 * KIB + 77),
        ("s2.img", "s2-better", 21, 200 * KIB),
        ("gzip.img", "gzip", 22, 40 * KIB),
        ("plain.img", "none", 23, 150 * KIB + 512),
    ] {
        maker.policy(
            &format!("tester@testhost:/golden/{source}"),
            &["--compression", compression],
        )?;
        image(&maker, source, &Layout::uniform(seed, len, BlockKind::Records))?;
        maker.snapshot(source)?;
    }
    let optimize = [
        "--dangerous-commands=enabled",
        "index",
        "optimize",
        "--max-small-blobs=2",
    ];
    maker.run(&optimize)?;
    // What comes after the compaction is in blobs of its own.
    let piped = Layout::uniform(24, 20 * KIB + 1, BlockKind::Records).bytes();
    maker.snapshot_stdin("stdin", "disk.raw", &piped)?;
    println!("{} n, {} m", maker.must_have("n")?, maker.must_have("m")?);
    Ok(maker)
}

/// Made as version 1 and raised to the newest: both kinds of index blobs, packs of before and of after.
fn upgraded(name: &str, folder: &Path) -> Result<()> {
    let mut maker = version_1(Maker::create(name, &VERSION_1)?)?;
    maker.upgrade()?;
    image(&maker, "zstd.img", &Layout::uniform(25, 140 * KIB, BlockKind::Records))?;
    maker.snapshot("zstd.img")?;
    maker.must_have("xn0")?;
    maker.must_have("n00000000000000000000000000000000-repository_unreadable")?;
    maker.finish(folder)
}

fn image(maker: &Maker, name: &str, layout: &Layout) -> Result<()> {
    let path = maker.source(name);
    fs::create_dir_all(maker.source("")).map_err(Failure::at("create source folder"))?;
    layout.write(&path, Zeros::Written)?;
    set_modified(&path, SystemTime::UNIX_EPOCH + SOURCE_TIME)
}

/// Sets the time of everything below `folder` and of the folder itself. Links keep theirs.
fn set_times(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Failure::at("list source"))? {
        let path = entry.map_err(Failure::at("list source"))?.path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            set_times(&path)?;
        }
        set_modified(&path, SystemTime::UNIX_EPOCH + SOURCE_TIME)?;
    }
    set_modified(folder, SystemTime::UNIX_EPOCH + SOURCE_TIME)
}
