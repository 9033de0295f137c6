//! Targets larger and smaller than the volume.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use blockferry_tests::volume::{BlockKind, Layout, LoopDevice, LoopOptions};
use blockio::{Cancel, Device, OpenOptions, Progress};
use daemon::mover::restore::{RestoreOptions, RestoreReport, Scope, restore};
use repo::{Image, Repository};

use super::{delta, image_of};
use crate::bad_input::support::{MIB, assert_refused, assert_same};

/// Restores to a device over a file of `bytes`, and returns what is in the file afterwards.
fn on_device(
    (repository, image): &(Repository, Image),
    path: &Path,
    bytes: &[u8],
    options: &RestoreOptions,
) -> (daemon::Result<RestoreReport>, Vec<u8>) {
    fs::write(path, bytes).unwrap();
    let device = LoopDevice::attach(path, LoopOptions::default()).unwrap();
    let target = Arc::new(Device::open(device.path(), &OpenOptions::overwrite()).unwrap());
    let report = restore(repository, image, &target, options, &Cancel::new(), &Progress::new());
    drop((target, device));
    (report, fs::read(path).unwrap())
}

#[test]
fn what_a_larger_device_has_behind_the_volume_is_zeroed_on_demand() {
    let layout = Layout::mixed(87, 5 * MIB + 512);
    let world = image_of(&layout);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backing");
    for scope in [Scope::Full, Scope::Delta { changed: None }] {
        let options = RestoreOptions {
            scope,
            zero_rest: true,
            ..delta()
        };
        let (report, have) = on_device(&world, &path, &vec![0x99; 8 << 20], &options);
        let report = report.unwrap();
        assert_eq!((report.rest_bytes, report.rest_zeroed), (3 * MIB - 512, true));
        let (volume, rest) = have.split_at(layout.bytes().len());
        assert_same(volume, &layout.bytes());
        assert!(rest.iter().all(|byte| *byte == 0));
        assert_eq!(report.proof.unwrap().mismatches, 0);
    }
}

#[test]
fn a_smaller_device_takes_a_volume_whose_tail_is_zero() {
    // Data in two chunks and the first half of the third; zero to 6.5 MiB.
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    let mut bytes = Layout::uniform(88, 2 * MIB + MIB / 2, BlockKind::Random).bytes();
    let data = bytes.len();
    bytes.resize((6 << 20) + (1 << 19), 0);
    fs::write(&source, &bytes).unwrap();
    let repository = crate::bad_input::support::open(crate::bad_input::support::empty());
    crate::bad_input::support::back_up(&repository, &source, &crate::bad_input::support::backup_options()).unwrap();
    let snapshot = repository.snapshots().unwrap().remove(0);
    let image = repository.image(&snapshot).unwrap();
    let world = (repository, image);
    let path = folder.path().join("backing");
    for scope in [Scope::Full, Scope::Delta { changed: None }] {
        let options = |allow_smaller| RestoreOptions {
            scope: scope.clone(),
            allow_smaller,
            ..delta()
        };
        // On the grid, in a chunk of zeros, behind the last byte of data; and one sector less.
        for size in [4 << 20, (4 << 20) + 512, data, data - 512] {
            let before = vec![0x42; size];
            let (refused, have) = on_device(&world, &path, &before, &options(false));
            assert_refused(refused.unwrap_err(), 2, &["the target is smaller", "--allow-smaller"]);
            assert_same(&have, &before);
            let (report, have) = on_device(&world, &path, &before, &options(true));
            if size < data {
                assert_refused(
                    report.unwrap_err(),
                    2,
                    &["the target is smaller", "has data behind it, at byte"],
                );
                assert_same(&have, &before);
                continue;
            }
            let report = report.unwrap();
            assert_eq!((report.size, report.rest_bytes), (size as u64, 0));
            assert_same(&have, &bytes[..size]);
            let proof = report.proof.unwrap();
            assert_eq!((proof.mismatches, proof.bytes), (0, size as u64));
        }
    }
}
