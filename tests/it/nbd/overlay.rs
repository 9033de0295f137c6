//! A volume that is only read, written by real clients through an overlay.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use blockferry_tests::process::run;
use blockio::BlockSource;
use nbd::{Export, Overlay};

use super::raw::{FLUSH, FUA, TRIM, WRITE};
use super::{MIB, Served, image, memory};

const SIZE: u64 = 32 * MIB + 700;

fn open(dir: &Path) -> Arc<Overlay> {
    Arc::new(Overlay::open(dir, Arc::new(memory(SIZE)), "repository/object").unwrap())
}

fn all(overlay: &Overlay) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    overlay.read_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn what_was_flushed_is_there_when_the_overlay_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut expect = image(SIZE);
    {
        let served = Served::with(Export::writable(open(dir.path())));
        let (mut one, mut two) = (served.client(), served.client());
        assert_eq!(one.told(0, WRITE, 5 * MIB - 100, 300, &[1; 300]), 0);
        assert_eq!(one.told(0, TRIM, MIB + 3, 2 * MIB, &[]), 0);
        assert_eq!(two.told(FUA, WRITE, SIZE - 5, 5, &[2; 5]), 0);
        assert_eq!(two.told(0, FLUSH, 0, 0, &[]), 0);
        one.disconnect();
        assert_eq!(served.server.unwrap().stop(Duration::from_secs(10)).cut, 0);
    }
    let at = |offset: u64| usize::try_from(offset).unwrap();
    expect[at(5 * MIB) - 100..at(5 * MIB) + 200].fill(1);
    expect[at(MIB) + 3..at(3 * MIB) + 3].fill(0);
    expect[at(SIZE) - 5..].fill(2);
    let overlay = open(dir.path());
    assert!(all(&overlay) == expect);
    let changed: Vec<u64> = overlay.changed().iter().map(blockio::ChunkIndex::get).collect();
    assert_eq!(changed, [1, 2, 3, 4, 5, 32]);
}

#[test]
fn clients_read_back_what_they_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::with(Export::writable(open(dir.path())));
    let uri = served.uri();
    let mut fio = Command::new("fio");
    fio.args(["--name=v", "--ioengine=nbd", "--rw=randrw", "--bs=2k", "--iodepth=16"]);
    fio.args([
        "--size=32M",
        "--io_size=8M",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--serialize_overlap=1",
    ]);
    fio.args(["--fsync=64", &format!("--uri={uri}")]);
    run(&mut fio).unwrap();
    let mut qemu = Command::new("qemu-io");
    qemu.args([
        "-f",
        "raw",
        "-c",
        "write -z 0 3M",
        "-c",
        "read -P 0 0 3M",
        "-c",
        "write -P 9 1000 700",
        "-c",
        "flush",
        &uri,
    ]);
    let said = run(&mut qemu).unwrap();
    assert!(!said.contains("failed"), "{said}");

    // The whole volume anew, and out again.
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let bytes: Vec<u8> = image(SIZE).iter().rev().copied().collect();
    fs::write(&from, &bytes).unwrap();
    run(Command::new("nbdcopy")
        .args(["--connections=4", "--flush"])
        .arg(&from)
        .arg(&uri))
    .unwrap();
    run(Command::new("nbdcopy").args(["--connections=4"]).arg(&uri).arg(&to)).unwrap();
    assert!(fs::read(&to).unwrap() == bytes);
    served.server.unwrap().stop(Duration::from_secs(10));
    drop(served.export);
    drop(served.exports);
    assert!(all(&open(dir.path())) == bytes, "and after opening it again");
}
