//! Targets that are devices of both sector sizes, or files with holes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use blockferry_tests::volume::{BlockKind, Layout, LoopDevice, LoopOptions, Zeros};
use blockio::{Cancel, Device, OpenOptions, Progress};
use daemon::mover::restore::restore;

use super::{delta, image_of, run};
use crate::bad_input::support::{MIB, assert_same};

#[test]
fn devices_of_both_sector_sizes_are_brought_back() {
    for logical_block in [512, 4096] {
        let size = 9 * MIB + 4096;
        let kinds = [BlockKind::Random, BlockKind::Zero, BlockKind::Records, BlockKind::Zero];
        let layout = Layout::from_blocks(85, size, &kinds);
        let (repository, image) = image_of(&layout);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("backing");
        // Something else behind the volume, garbage where zeros should be, zeros where data should be, one bit flipped, and
        // the odd end changed.
        let mut bytes = layout.bytes();
        bytes.resize(12 << 20, 0x77);
        bytes[(1 << 20) + 5] = 1;
        bytes[3 << 20..4 << 20].fill(0x55);
        bytes[4 << 20..5 << 20].fill(0);
        bytes[(6 << 20) + 511] ^= 0x80;
        bytes[9 << 20] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let options = LoopOptions {
            logical_block: Some(logical_block),
            ..LoopOptions::default()
        };
        let device = LoopDevice::attach(&path, options).unwrap();
        let target = Arc::new(Device::open(device.path(), &OpenOptions::overwrite()).unwrap());
        let report = restore(&repository, &image, &target, &delta(), &Cancel::new(), &Progress::new()).unwrap();
        drop((target, device));
        assert_eq!(report.zeroed_bytes, 2 * MIB + 4096, "{report:?}");
        assert_eq!(
            report.zero.zero_out_bytes,
            2 * MIB + 4096,
            "zeroed by the device itself: {:?}",
            report.zero
        );
        assert_eq!(report.written_bytes, 2 * MIB);
        assert_eq!((report.rest_bytes, report.rest_zeroed), (3 * MIB - 4096, false));
        let proof = report.proof.unwrap();
        assert_eq!((proof.mismatches, proof.direct, proof.hole_bytes), (0, true, 0));
        let have = fs::read(&path).unwrap();
        let (volume, rest) = have.split_at(usize::try_from(size).unwrap());
        assert_same(volume, &layout.bytes());
        assert!(
            rest.iter().all(|byte| *byte == 0x77),
            "what lies behind the volume is kept"
        );
    }
}

#[test]
fn a_file_gets_its_holes_back_and_its_holes_are_not_read() {
    let layout = Layout::sparse(86, 64 * MIB + 512, 5);
    let (repository, image) = image_of(&layout);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("target");
    layout.write(&path, Zeros::Holes).unwrap();
    let equal = run(&repository, &image, &path, &delta()).unwrap();
    assert_eq!((equal.written_bytes, equal.zeroed_bytes), (0, 0));
    assert!(equal.read_bytes <= 6 * MIB, "holes are not read: {}", equal.read_bytes);
    assert!(equal.proof.unwrap().hole_bytes >= 58 * MIB);

    layout.write(&path, Zeros::Written).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let garbage = vec![0x33; 20 << 20];
    std::os::unix::fs::FileExt::write_all_at(&file, &garbage, 40 << 20).unwrap();
    drop(file);
    let before = fs::metadata(&path).unwrap().blocks() * 512;
    let report = run(&repository, &image, &path, &delta()).unwrap();
    assert_same(&fs::read(&path).unwrap(), &layout.bytes());
    assert_eq!(report.zero.punch_hole_bytes, report.zeroed_bytes, "{:?}", report.zero);
    let after = fs::metadata(&path).unwrap().blocks() * 512;
    assert!(
        after + report.zeroed_bytes <= before + 65_536,
        "holes are given back: {before} bytes on disk before, {after} after"
    );
}
