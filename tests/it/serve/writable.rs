//! Writes: kept beside the repository, bound to their snapshot, there again after a stop and after a kill.

use std::fs;

use blockferry_tests::repo::list_tree;
use blockferry_tests::volume::Layout;

use super::{MIB, Serving, world};

#[test]
fn what_clients_write_is_kept_beside_the_repository() {
    let (world, volume) = world(&Layout::mixed(51, 34 * MIB + 512));
    let before = list_tree(&world.repo()).unwrap();
    let state = world.text("state");
    let args = ["latest", "--writable", "--state", &state];
    let serving = Serving::start(&world.ferry, &args);
    assert_eq!(serving.document["exports"][0]["writable"], true);
    serving.client(
        "fio --name=v --ioengine=nbd --rw=randwrite --bs=4k --iodepth=16 --size=32M --io_size=8M --fsync=64 --verify=crc32c \
         --verify_fatal=1 --verify_state_save=0 --uri={uri} --output={dir}/fio",
    );
    serving.script(
        "h.pwrite(b'x' * 700, 33 * M - 100)\n\
         h.zero(M, 512)\n\
         h.trim(M, 2 * M)\n\
         h.flush()\n\
         assert h.pread(M, 2 * M) == bytes(M)",
    );
    let written = serving.bytes();
    assert!(written != volume.bytes().unwrap() && written.len() as u64 == volume.size());
    // Nobody else may have the same state, and none is lost to a kill.
    let socket = world.text("other");
    world.refuses(
        &["serve", "latest", "--writable", "--state", &state, "--socket", &socket],
        1,
        &["in use"],
    );
    assert_eq!(serving.stop("-KILL").code, None);
    let serving = Serving::start(&world.ferry, &args);
    assert!(serving.bytes() == written);
    assert_eq!(serving.stop("-TERM").code, Some(0));
    assert!(
        list_tree(&world.repo()).unwrap() == before,
        "the repository is as it was"
    );
    let serving = Serving::start(&world.ferry, &["latest"]);
    assert!(serving.bytes() == volume.bytes().unwrap(), "and so is the snapshot");
    drop(serving);

    // State of one snapshot under the name of another.
    volume.write_at(0, &[1; 512]).unwrap();
    let old = fs::read_dir(world.path("state"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let second = world.ferry.backup(volume.path(), &[]).unwrap();
    fs::rename(old, world.path("state").join(second["snapshotId"].as_str().unwrap())).unwrap();
    world.refuses(
        &["serve", "latest", "--writable", "--state", &state, "--socket", &socket],
        2,
        &["the overlay belongs to"],
    );
}

#[test]
fn a_full_disk_is_no_space_and_what_was_written_stays() {
    let Some(small) = crate::cache::Tmpfs::mount("size=6m") else {
        return;
    };
    let (world, volume) = world(&Layout::mixed(52, 16 * MIB));
    let state = small.path().join("state").display().to_string();
    let args = ["latest", "--writable", "--state", &state];
    let serving = Serving::start(&world.ferry, &args);
    let source = volume.path().display().to_string();
    serving.script(&format!(
        "expect = open('{source}', 'rb').read()\n\
         h.pwrite(b'a' * M, 0)\n\
         h.flush()\n\
         full = 0\n\
         for chunk in range(1, 16):\n\
         \x20   try:\n\
         \x20       h.pwrite(b'b' * M, chunk * M)\n\
         \x20   except nbd.Error as error:\n\
         \x20       assert error.errnum == errno.ENOSPC, error\n\
         \x20       full += 1\n\
         assert full >= 10, full\n\
         assert h.pread(M, 0) == b'a' * M\n\
         assert h.pread(M, 15 * M) == expect[15 * M:16 * M], 'what was not written is as it was'\n\
         h.trim(4 * M, M)\n\
         h.pwrite(b'c' * M, 15 * M)\n\
         h.flush()\n\
         assert h.pread(M, 15 * M) == b'c' * M"
    ));
    assert_eq!(serving.stop("-KILL").code, None);
    let serving = Serving::start(&world.ferry, &args);
    serving.script("assert h.pread(M, 0) == b'a' * M and h.pread(M, 15 * M) == b'c' * M");
}
