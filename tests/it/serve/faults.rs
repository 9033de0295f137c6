//! Damage, a repository that goes away and comes back: errors for the bytes they are about, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};

use blockferry_tests::kopia::{self, Kopia};
use blockferry_tests::volume::{BlockKind, Layout};
use blockferry_tests::wait::wait_for;
use repo::blob::BlobStore;
use repo::{BlobId, Repository};

use super::{DEADLINE, MIB, Serving, world};
use crate::bad_input::support::{PASSWORD, names, open};

/// The pack of chunk `number` of the only snapshot, and where in it the chunk begins.
fn pack_of(repository: &Repository, repo: &Path, number: usize) -> (PathBuf, usize) {
    let snapshot = repository.snapshots().unwrap().pop().unwrap();
    let content = repository.image(&snapshot).unwrap().table.content(number);
    let entry = repository.lookup(&content).unwrap();
    let name = entry.pack.to_string();
    let found = files(repo).into_iter().find(|path| {
        let relative = path.strip_prefix(repo).unwrap().to_string_lossy().replace('/', "");
        relative.starts_with(&name)
    });
    (found.unwrap(), entry.offset as usize)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.path().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

#[test]
fn damage_in_the_middle_is_an_error_there_and_told_of_once() {
    let (world, volume) = world(&Layout::uniform(91, 12 * MIB, BlockKind::Random));
    let repository = open(world.store());
    let (pack, at) = pack_of(&repository, &world.repo(), 5);
    let mut bytes = fs::read(&pack).unwrap();
    bytes[at + 7000] ^= 4;
    fs::write(&pack, bytes).unwrap();

    let serving = Serving::start(&world.ferry, &["latest"]);
    let source = volume.path().display().to_string();
    serving.script(&format!(
        "expect = open('{source}', 'rb').read()\n\
         for chunk in list(range(0, 5)) + list(range(6, 12)):\n\
         \x20   assert h.pread(M, chunk * M) == expect[chunk * M:(chunk + 1) * M], chunk\n\
         for _ in range(5):\n\
         \x20   fails(5 * M, 1)\n\
         \x20   fails(5 * M + 4096, 4096)\n\
         assert h.pread(4096, 5 * M - 4096) == expect[5 * M - 4096:5 * M]\n\
         fails(4 * M, 3 * M)\n\
         assert h.pread(4096, 6 * M) == expect[6 * M:6 * M + 4096]"
    ));
    let log = serving.log();
    assert_eq!(log.matches("a content is damaged").count(), 1, "{log}");
    assert_eq!(serving.stop("-TERM").code, Some(0));
}

#[test]
fn a_repository_that_vanishes_fails_what_was_not_read_and_comes_back() {
    let (world, volume) = world(&Layout::uniform(92, 24 * MIB, BlockKind::Random));
    let serving = Serving::start(&world.ferry, &["latest"]);
    serving.script("h.pread(4096, 0)");
    let away = world.path("away");
    fs::rename(world.repo(), &away).unwrap();
    let source = volume.path().display().to_string();
    serving.script(&format!(
        "expect = open('{source}', 'rb').read()\n\
         assert h.pread(4096, 0) == expect[:4096], 'what was read is there'\n\
         fails(20 * M, 4096)\n\
         fails(20 * M, 4096)"
    ));
    fs::rename(&away, world.repo()).unwrap();
    wait_for("the repository to be read again", DEADLINE, || {
        let mut copy = std::process::Command::new("nbdcopy");
        let target = serving.dir.path().join("back");
        copy.arg(serving.uri("latest")).arg(&target);
        let copied = blockferry_tests::process::run(&mut copy).is_ok();
        copied && fs::read(target).unwrap() == volume.bytes().unwrap()
    })
    .unwrap();
}

#[test]
fn what_others_move_to_new_packs_is_found_there() {
    if !kopia::available() {
        eprintln!("SKIPPED: kopia is not installed");
        return;
    }
    let (world, volume) = world(&Layout::uniform(93, 12 * MIB, BlockKind::Random));
    let kopia = Kopia::new(&world.repo(), PASSWORD).unwrap();
    kopia.connect().unwrap();
    let serving = Serving::start(&world.ferry, &["latest"]);
    serving.script("h.pread(4096, 0)");
    let before = names(&*world.store(), "p");
    kopia
        .run([
            "content",
            "rewrite",
            "--format-version=3",
            "--safety=none",
            "--dangerous-commands=enabled",
        ])
        .unwrap();
    // As maintenance does later.
    for pack in &before {
        world.store().delete(&BlobId::new(pack.clone()).unwrap()).unwrap();
    }
    assert!(!names(&*world.store(), "p").is_empty());
    assert!(serving.bytes() == volume.bytes().unwrap());
    assert!(!serving.log().contains("WARN"), "{}", serving.log());
}
