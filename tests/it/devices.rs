//! Block devices and sparse files: what the kernel's own edges do to a backup and a restore. Needs root and loop devices.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use blockferry_tests::volume::{BlockKind, Layout, LoopDevice, LoopOptions, Volume, Zeros};
use blockio::{BlockSink, Cancel, Device, EngineKind, OpenOptions};
use daemon::mover::backup::BackupOptions;
use daemon::mover::restore::RestoreOptions;
use daemon::mover::verify::compare;
use repo::compress::CompressionPolicy;
use repo::object::BlockAddressTable;
use repo::session::{WriteOptions, WriteSession};

use crate::bad_input::support::{
    MIB, World, assert_clean, assert_same, assert_words, back_up, backup_options, damage, empty, open, restore_options,
    restore_to, restored,
};

/// Bytes that were on a device before.
fn garbage(size: u64) -> Vec<u8> {
    Layout::uniform(0xBAD, size, BlockKind::Random).bytes()
}

/// Attaches a file of garbage at `path`.
fn garbage_device(path: &Path, size: u64, logical_block: u32) -> LoopDevice {
    fs::write(path, garbage(size)).unwrap();
    LoopDevice::attach(
        path,
        LoopOptions {
            logical_block: Some(logical_block),
            ..LoopOptions::default()
        },
    )
    .unwrap()
}

/// Bytes of the file behind a device that has been let go.
fn bytes_behind(device: LoopDevice, path: &Path) -> Vec<u8> {
    drop(device);
    fs::read(path).unwrap()
}

fn number(document: &serde_json::Value, field: &str) -> u64 {
    document[field]
        .as_u64()
        .unwrap_or_else(|| panic!("{field} in {document}"))
}

#[test]
fn devices_of_both_sector_sizes_make_the_round_trip() {
    for logical_block in [512, 4096] {
        let world = World::new();
        let size = 9 * MIB + u64::from(logical_block);
        let layout = Layout::mixed(71, size);
        layout.write(&world.path("source"), Zeros::Written).unwrap();
        let options = LoopOptions {
            logical_block: Some(logical_block),
            read_only: true,
        };
        let source = LoopDevice::attach(&world.path("source"), options).unwrap();
        let report = world.ferry.backup(source.path(), &[]).unwrap();
        assert_eq!(number(&report, "sourceSize"), size);
        assert_eq!(
            number(&report, "bytesRead"),
            10 * MIB,
            "a device has no holes: all chunks are read"
        );
        let snapshot = &world.ferry.run_json(["snapshots"]).unwrap()[0];
        assert_eq!(
            snapshot["tags"]["blockferry-logical-block"],
            logical_block.to_string().as_str()
        );
        assert_eq!(number(snapshot, "size"), size);

        // To a device of either kind that held something else, whose size is whole sectors of its own.
        for target_block in [512, 4096] {
            let target_size = size.next_multiple_of(target_block.into());
            let path = world.path("target");
            let target = garbage_device(&path, target_size, target_block);
            let report = world.ferry.restore("latest", target.path(), &["--verify"]).unwrap();
            assert_eq!(report["verified"], true);
            let zeros = layout.blocks().iter().filter(|kind| **kind == BlockKind::Zero).count() as u64;
            assert_eq!(
                number(&report, "bytesZeroed"),
                zeros * MIB,
                "zero chunks are zeroed, not written"
            );
            assert_eq!(number(&report, "bytesWritten"), size - zeros * MIB);
            let have = bytes_behind(target, &path);
            let (volume, rest) = have.split_at(usize::try_from(size).unwrap());
            assert_same(volume, &layout.bytes());
            assert_same(rest, &garbage(target_size)[volume.len()..]);
        }
        // And to a file.
        let file = world.path("file");
        world.ferry.restore("latest", &file, &["--verify"]).unwrap();
        assert_same(&fs::read(&file).unwrap(), &layout.bytes());
        world.assert_clean(1);
    }
}

#[test]
fn zeros_are_made_by_the_device_itself() {
    let store = empty();
    let repository = open(store);
    // Zero at the start, in the middle, and in the odd end.
    let kinds = [
        BlockKind::Zero,
        BlockKind::Random,
        BlockKind::Zero,
        BlockKind::Zero,
        BlockKind::Records,
        BlockKind::Zero,
    ];
    let volume = Volume::create(&Layout::from_blocks(72, 5 * MIB + 512, &kinds)).unwrap();
    back_up(&repository, volume.path(), &backup_options()).unwrap();
    let snapshot = repository.snapshots().unwrap().remove(0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("target");
    for engine in [EngineKind::Auto, EngineKind::Pread] {
        let device = garbage_device(&path, 5 * MIB + 512, 512);
        let target = Arc::new(Device::open(device.path(), &OpenOptions::overwrite()).unwrap());
        let options = RestoreOptions {
            engine,
            verify: true,
            ..restore_options()
        };
        let report = restore_to(&repository, &snapshot, &target, &options).unwrap();
        assert_eq!(report.zeroed_bytes, 3 * MIB + 512);
        assert_eq!(report.written_bytes, 2 * MIB);
        assert_eq!(report.zero.zero_out_bytes, 3 * MIB + 512, "{:?}", report.zero);
        assert_eq!(report.zero.refusals, Vec::<String>::new());
        let proof = report.proof.expect("asked for");
        assert_eq!((proof.blocks, proof.mismatches, proof.direct), (6, 0, true));
        assert_eq!(Some(proof.root), snapshot.root.as_ref().map(|root| root.object));
        drop(target);
        assert_same(&bytes_behind(device, &path), &volume.bytes().unwrap());
    }
}

/// `restore --discard`: zeros as before, and the blocks go back to what is behind the device.
#[test]
fn a_thin_device_gives_back_what_becomes_zero() {
    let world = World::new();
    let kinds = [BlockKind::Random, BlockKind::Zero, BlockKind::Zero, BlockKind::Random];
    let volume = Volume::create(&Layout::from_blocks(73, 16 * MIB, &kinds)).unwrap();
    world.ferry.backup(volume.path(), &[]).unwrap();
    let path = world.path("behind");
    let mut blocks = Vec::new();
    for args in [&[][..], &["--discard"], &["--discard", "--mode", "delta"]] {
        let device = garbage_device(&path, 16 * MIB, 512);
        let report = world
            .ferry
            .restore("latest", device.path(), &[&["--verify"], args].concat())
            .unwrap();
        assert_eq!(number(&report, "bytesZeroed"), 8 * MIB, "{report}");
        assert_eq!(report["verified"], true, "{report}");
        assert_eq!(report["zeroRefusals"], serde_json::json!([]), "{report}");
        assert_same(&bytes_behind(device, &path), &volume.bytes().unwrap());
        blocks.push(fs::metadata(&path).unwrap().blocks() * 512);
    }
    assert!(blocks[0] >= 16 * MIB, "{blocks:?}");
    assert!(blocks[1..].iter().all(|blocks| *blocks < 9 * MIB), "{blocks:?}");
}

#[test]
fn a_larger_device_keeps_what_lies_behind_the_volume() {
    let store = empty();
    let repository = open(store);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("target");
    // The last chunk is a piece of one: once data, once zero; and once the volume ends on the grid.
    for (size, kinds) in [
        (3 * MIB + 512, [BlockKind::Random, BlockKind::Zero]),
        (2 * MIB + 512, [BlockKind::Random, BlockKind::Random]),
        (MIB + 512, [BlockKind::Random, BlockKind::Zero]),
        (2 * MIB, [BlockKind::Random, BlockKind::Zero]),
    ] {
        let volume = Volume::create(&Layout::from_blocks(73, size, &kinds)).unwrap();
        let id = back_up(&repository, volume.path(), &backup_options()).unwrap().snapshot;
        let snapshot = repository
            .snapshots()
            .unwrap()
            .into_iter()
            .find(|s| s.id == Some(id))
            .unwrap();
        for logical_block in [512, 4096] {
            for workers in [1, 4] {
                let device = garbage_device(&path, 8 * MIB, logical_block);
                let target = Arc::new(Device::open(device.path(), &OpenOptions::overwrite()).unwrap());
                let options = RestoreOptions {
                    verify: true,
                    workers,
                    ..restore_options()
                };
                restore_to(&repository, &snapshot, &target, &options).unwrap();
                drop(target);
                let have = bytes_behind(device, &path);
                let (restored, rest) = have.split_at(usize::try_from(size).unwrap());
                assert_same(restored, &volume.bytes().unwrap());
                assert_same(rest, &garbage(8 * MIB)[restored.len()..]);
            }
        }
    }
}

#[test]
fn engines_and_workers_make_the_same_image() {
    let volume = Volume::create(&Layout::mixed(74, 20 * MIB + 4096)).unwrap();
    let mut objects = Vec::new();
    for engine in ["uring", "pread", "auto"] {
        for workers in ["1", "4"] {
            // A fresh repository with the same keys: nothing can be taken over from a run before.
            let world = World::new();
            let device = LoopDevice::attach(volume.path(), LoopOptions::default()).unwrap();
            for source in [volume.path(), device.path()] {
                let report = world
                    .ferry
                    .backup(source, &["--engine", engine, "--workers", workers])
                    .unwrap();
                assert!(engine == "auto" || report["engine"] == engine, "{report}");
                objects.push(report["objectId"].as_str().unwrap().to_owned());
            }
            world
                .ferry
                .restore(
                    "latest",
                    &world.path("target"),
                    &["--engine", engine, "--workers", workers, "--verify"],
                )
                .unwrap();
            assert_same(&fs::read(world.path("target")).unwrap(), &volume.bytes().unwrap());
        }
    }
    assert!(objects.iter().all(|object| *object == objects[0]), "{objects:?}");
    assert!(objects[0].starts_with("Ix"));
}

#[test]
fn compression_does_not_change_the_image() {
    let volume = Volume::create(&Layout::mixed(75, 8 * MIB)).unwrap();
    let store = empty();
    let plain = back_up(&open(store.clone()), volume.path(), &backup_options()).unwrap();
    let packed = empty();
    let options = BackupOptions {
        compression: CompressionPolicy::Auto,
        workers: 2,
        ..backup_options()
    };
    let small = back_up(&open(packed.clone()), volume.path(), &options).unwrap();
    assert_eq!(plain.object, small.object);
    assert!(
        small.totals.stored_bytes < plain.totals.stored_bytes,
        "{} of {} bytes",
        small.totals.stored_bytes,
        plain.totals.stored_bytes
    );
    assert_clean(&packed, 1);
}

#[test]
fn holes_of_a_sparse_file_are_neither_read_nor_restored() {
    let layout = Layout::sparse(76, 64 * MIB + 512, 3);
    let volume = Volume::create(&layout).unwrap();
    let world = World::new();
    let report = world.ferry.backup(volume.path(), &[]).unwrap();
    assert_eq!(number(&report, "bytesRead"), 3 * MIB, "holes are not read");
    assert_eq!(
        number(&report, "bytesZero"),
        62 * MIB,
        "whole chunks, the odd end counts as one"
    );
    assert_eq!(number(&report, "bytesNew"), 3 * MIB);
    for engine in ["uring", "pread"] {
        let target = world.path("target");
        let report = world
            .ferry
            .restore("latest", &target, &["--force", "--verify", "--engine", engine])
            .unwrap();
        assert_eq!(number(&report, "bytesWritten"), 3 * MIB);
        assert_same(&fs::read(&target).unwrap(), &layout.bytes());
        let taken = fs::metadata(&target).unwrap().blocks() * 512;
        assert!(
            taken <= 3 * MIB + 65_536,
            "the restored file is sparse: {taken} bytes on disk"
        );
    }
    // A file of written zeros is the same image, read in full.
    layout.write(volume.path(), Zeros::Written).unwrap();
    let full = world.ferry.backup(volume.path(), &[]).unwrap();
    assert_eq!((&full["objectId"], number(&full, "bytesNew")), (&report["objectId"], 0));
    assert_eq!(number(&full, "bytesRead"), 65 * MIB);
}

#[test]
fn a_comparison_finds_every_changed_piece_and_no_other() {
    let repository = open(empty());
    let volume = Volume::create(&Layout::mixed(77, 9 * MIB + 512)).unwrap();
    back_up(&repository, volume.path(), &backup_options()).unwrap();
    let snapshot = repository.snapshots().unwrap().remove(0);
    let image = repository.image(&snapshot).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("target");
    let device = garbage_device(&path, 12 * MIB, 512);
    let target = Arc::new(Device::open(device.path(), &OpenOptions::overwrite()).unwrap());
    restore_to(
        &repository,
        &snapshot,
        &target,
        &RestoreOptions {
            verify: true,
            ..restore_options()
        },
    )
    .unwrap();
    let found = |workers, engine| -> Vec<u64> {
        let found = compare(&repository, &image, &target, workers, engine, &Cancel::new()).unwrap();
        found.iter().map(|mismatch| mismatch.extent.offset / MIB).collect()
    };
    assert_eq!(found(1, EngineKind::Auto), Vec::<u64>::new());
    // One byte in data, one in zeros, the last of the volume; and one behind it, which is nobody's.
    for at in [MIB + 77, 2 * MIB, 9 * MIB + 511, 9 * MIB + 512] {
        let mut byte = [0];
        fs::File::open(device.path())
            .unwrap()
            .read_exact_at(&mut byte, at)
            .unwrap();
        target.write_at(at, &[byte[0] ^ 1]).unwrap();
    }
    target.flush().unwrap();
    for engine in [EngineKind::Auto, EngineKind::Pread] {
        for workers in [1, 4] {
            assert_eq!(found(workers, engine), [1, 2, 9]);
        }
    }
    // A second restore puts it right.
    restore_to(
        &repository,
        &snapshot,
        &target,
        &RestoreOptions {
            verify: true,
            ..restore_options()
        },
    )
    .unwrap();
}

/// Encryption binds a content to its name, not its name to its bytes: a client with the keys can store others under it.
#[test]
fn verification_finds_bytes_that_are_not_what_their_name_says() {
    let store = empty();
    let repository = open(store.clone());
    let (good, bad) = (
        Layout::uniform(78, MIB, BlockKind::Random).bytes(),
        Layout::uniform(79, MIB, BlockKind::Random).bytes(),
    );
    let options = WriteOptions {
        sealers: 1,
        uploads: 1,
        compression: CompressionPolicy::None,
        user: "user".into(),
        host: "host".into(),
        ..WriteOptions::default()
    };
    let session = WriteSession::begin(&repository, &options).unwrap();
    let id = repository.contents().content_id(None, &good);
    let mut sealer = session.sealer();
    sealer.store(id, &bad).unwrap();
    sealer.finish().unwrap();
    session
        .put_image_list(&BlockAddressTable::uniform(MIB, 16, id.hash().to_vec()))
        .unwrap();
    session.abandon();

    // A backup of the good bytes believes the name.
    let volume = Volume::create(&Layout::uniform(78, MIB, BlockKind::Random)).unwrap();
    let report = back_up(&repository, volume.path(), &backup_options()).unwrap();
    assert_eq!(report.new_bytes, 0);
    assert_words(
        &damage(&repository).unwrap().concat(),
        &[&id.to_string(), "have the hash"],
    );
    let snapshot = repository.snapshots().unwrap().remove(0);
    assert!(
        restored(&repository, &snapshot).unwrap() == bad,
        "without --verify the bytes are taken as they decrypt"
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("target");
    let target = Arc::new(Device::create_file(&path, MIB, true).unwrap());
    let options = RestoreOptions {
        verify: true,
        ..restore_options()
    };
    let proof = restore_to(&repository, &snapshot, &target, &options).unwrap().proof;
    let proof = proof.expect("asked for");
    let found: Vec<_> = proof
        .extents
        .iter()
        .map(|m| (m.extent.offset, m.extent.len, m.content))
        .collect();
    assert_eq!((proof.mismatches, found), (1, vec![(0, MIB, id)]));

    let world = World::with(&*store);
    let target = world.text("target");
    world.refuses(
        &["restore", "latest", &target, "--verify"],
        4,
        &[
            &target,
            "1 pieces differ from the snapshot",
            "at byte 0: 1048576 bytes",
            &id.to_string(),
            "not usable",
        ],
    );
    let ended = world
        .ferry
        .ended(["restore", "latest", &target, "--force", "--verify", "--json"])
        .unwrap();
    assert_eq!(ended.code, Some(4));
    let document: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(
        (&document["verified"], &document["proof"]["mismatches"]),
        (&false.into(), &1.into())
    );
    assert_eq!(document["proof"]["mismatchExtents"][0]["length"], MIB);
    let ended = world.ferry.ended(["verify", "--percent", "100"]).unwrap();
    assert_eq!(ended.code, Some(4));
    assert_words(&ended.stdout, &["DAMAGE FOUND", &id.to_string()]);
    assert_eq!(
        world.ferry.ended(["verify", "--percent", "0"]).unwrap().code,
        Some(0),
        "0 % reads no contents"
    );
}

/// Who restores a device mounts it next.
#[test]
fn a_device_is_free_as_soon_as_its_restore_is_over() {
    let repository = open(empty());
    let volume = Volume::create(&Layout::mixed(80, 4 * MIB)).unwrap();
    back_up(&repository, volume.path(), &backup_options()).unwrap();
    let snapshot = repository.snapshots().unwrap().remove(0);
    let folder = tempfile::tempdir().unwrap();
    let device = garbage_device(&folder.path().join("target"), 4 * MIB, 512);
    for engine in [EngineKind::Pread, EngineKind::Auto] {
        for _ in 0..5 {
            let target = Device::open(device.path(), &OpenOptions::overwrite()).expect("the restore before is over");
            let options = RestoreOptions {
                engine,
                ..restore_options()
            };
            restore_to(&repository, &snapshot, &Arc::new(target), &options).unwrap();
        }
    }
}
