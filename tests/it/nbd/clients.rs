//! Other people's clients: nbdinfo, nbdcopy, qemu-img, qemu-io, fio, and nbdkit in between.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use blockferry_tests::process::run;
use nbd::{FileSource, MemSource};
use serde_json::Value;

use super::{MIB, Served, image, memory};

/// Runs `program` with arguments given in one string, in which `{uri}` and `{dir}` stand for those of the server.
#[track_caller]
fn client(served: &Served, line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    for word in words {
        let word = word.replace("{uri}", &served.uri());
        command.arg(word.replace("{dir}", &served.dir.path().display().to_string()));
    }
    run(&mut command).unwrap()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn file(served: &Served, name: &str, bytes: &[u8]) -> PathBuf {
    let path = served.dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[track_caller]
fn assert_same(path: &Path, expect: &[u8]) {
    assert!(fs::read(path).unwrap() == expect, "{} differs", path.display());
}

#[test]
fn nbdinfo_finds_what_there_is() {
    let served = Served::read_only(memory(4 * MIB));
    let info = json(&client(&served, "nbdinfo --json {uri}"));
    let export = &info["exports"][0];
    assert_eq!(
        (info["protocol"].as_str(), info["structured"].as_bool()),
        (Some("newstyle-fixed"), Some(true))
    );
    assert_eq!(export["export-size"], 4 * MIB);
    assert_eq!(export["is_read_only"], true);
    assert_eq!(export["can_multi_conn"], true);
    assert_eq!(export["can_df"], true);
    assert_eq!(export["can_cache"], true);
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
    assert_eq!(
        (&export["block_size_minimum"], &export["block_size_maximum"]),
        (&1.into(), &(32 * MIB).into())
    );

    let list = client(
        &served,
        &format!("nbdinfo --list nbd+unix:///?socket={}", served.socket().display()),
    );
    assert!(list.contains("disk"), "{list}");
    let map = json(&client(&served, "nbdinfo --map --json {uri}"));
    let extents: Vec<(u64, u64, u64)> = map.as_array().unwrap().iter().map(extent).collect();
    assert_eq!(extents, [(0, 2 * MIB, 0), (2 * MIB, MIB, 3), (3 * MIB, MIB, 0)]);

    let writable = Served::writable(memory(MIB));
    let info = json(&client(&writable, "nbdinfo --json {uri}"));
    for able in ["can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero"] {
        assert_eq!(info["exports"][0][able], true, "{able}");
    }
}

fn extent(extent: &Value) -> (u64, u64, u64) {
    let number = |key: &str| extent[key].as_u64().unwrap();
    (number("offset"), number("length"), number("type"))
}

#[test]
fn nbdcopy_copies_both_ways_over_four_connections() {
    let size = 40 * MIB + 12345;
    let served = Served::read_only(memory(size));
    let out = served.dir.path().join("out");
    client(&served, "nbdcopy --connections=4 --requests=64 {uri} {dir}/out");
    assert_same(&out, &image(size));

    let target = Served::writable(MemSource::new(size));
    file(&target, "in", &image(size));
    client(&target, "nbdcopy --connections=4 --requests=64 --flush {dir}/in {uri}");
    let mut reader = target.client();
    for at in (0..size).step_by(usize::try_from(8 * MIB).unwrap()) {
        let len = u32::try_from((size - at).min(8 * MIB)).unwrap();
        let from = usize::try_from(at).unwrap();
        assert!(
            reader.read(at, len).unwrap() == image(size)[from..from + len as usize],
            "at {at}"
        );
    }
    let extents = reader.extents(0, 0, size).unwrap();
    assert!(extents.contains(&(MIB, 3)), "holes stay holes: {extents:?}");
}

#[test]
fn a_file_is_served_as_well_as_memory_is() {
    let size = 20 * MIB + 512;
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("image"), dir.path().join("copy"));
    fs::write(&path, image(size)).unwrap();
    let served = Served::read_only(FileSource::open(&path, false).unwrap());
    client(&served, "nbdcopy --connections=4 {uri} {dir}/out");
    assert_same(&served.dir.path().join("out"), &image(size));

    fs::File::create(&copy).unwrap().set_len(size).unwrap();
    let target = Served::writable(FileSource::open(&copy, true).unwrap());
    file(&target, "in", &image(size));
    client(&target, "nbdcopy --connections=4 --flush {dir}/in {uri}");
    assert_same(&copy, &image(size));
}

#[test]
fn qemu_img_reads_maps_compares_and_converts() {
    let served = Served::read_only(memory(8 * MIB));
    file(&served, "same", &image(8 * MIB));
    let info = json(&client(&served, "qemu-img info --output=json {uri}"));
    assert_eq!(
        (info["format"].as_str(), info["virtual-size"].as_u64()),
        (Some("raw"), Some(8 * MIB))
    );
    let map = json(&client(&served, "qemu-img map --output=json {uri}"));
    let zeros: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["zero"].as_bool().unwrap())
        .collect();
    assert_eq!(zeros, [false, true, false, true, false]);
    let said = client(&served, "qemu-img compare -f raw -F raw {dir}/same {uri}");
    assert!(said.contains("identical"), "{said}");
    client(&served, "qemu-img convert -f raw -O raw {uri} {dir}/out");
    assert_same(&served.dir.path().join("out"), &image(8 * MIB));

    let target = Served::writable(MemSource::new(8 * MIB));
    file(&target, "same", &image(8 * MIB));
    client(&target, "qemu-img convert -n -f raw -O raw {dir}/same {uri}");
    let said = client(&target, "qemu-img compare -f raw -F raw {dir}/same {uri}");
    assert!(said.contains("identical"), "{said}");
}

#[test]
fn qemu_io_writes_zeroes_and_discards() {
    let served = Served::writable(memory(8 * MIB));
    let mut qemu = Command::new("qemu-io");
    qemu.args(["-f", "raw", "-d", "unmap", &served.uri()]);
    let script = [
        "write -P 0xab 1000 5000",
        "read -P 0xab 1000 5000",
        "write -f -P 0xcd 4M 64k",
        "write -z 0 1M",
        "read -P 0 0 1M",
        "write -z -u 3M 1M",
        "read -P 0 3M 1M",
        "discard 1M 1M",
        "read -P 0 1M 1M",
        "read -P 0xcd 4M 64k",
        "aio_write -P 1 6M 512k",
        "aio_write -P 2 7M 512k",
        "aio_flush",
        "read -P 1 6M 512k",
        "read -P 2 7M 512k",
        "flush",
    ];
    for line in script {
        qemu.args(["-c", line]);
    }
    let said = run(&mut qemu).unwrap();
    for wrong in ["failed", "error", "Error", "mismatch"] {
        assert!(!said.contains(wrong), "{said}");
    }
    let extents = served.client().extents(0, 0, 4 * MIB).unwrap();
    assert_eq!(extents, [(MIB, 2), (3 * MIB, 3)]);
}

#[test]
fn fio_verifies_what_it_wrote() {
    let served = Served::writable(MemSource::new(64 * MIB));
    let job =
        "fio --output-format=json --name=v --ioengine=nbd --uri={uri} --bs=4k --size=64M --io_size=16M --iodepth=32";
    for rw in ["randwrite", "randrw", "write"] {
        let said = client(
            &served,
            &format!("{job} --rw={rw} --verify=crc32c --verify_fatal=1 --verify_state_save=0 --serialize_overlap=1"),
        );
        let report = json(said.get(said.find('{').unwrap()..).unwrap());
        assert_eq!(report["jobs"][0]["error"], 0, "{rw}: {said}");
    }
}

#[test]
fn nbdkit_stacks_its_filters_on_us() {
    let served = Served::read_only(memory(16 * MIB));
    // A copy-on-write layer above, two connections at once, through nbdkit's own client.
    let kit = |filters: &str, run_line: &str| {
        let mut kit = Command::new("nbdkit");
        kit.args(["-U", "-", "--exit-with-parent"]);
        kit.args(filters.split_whitespace());
        kit.args([
            "nbd",
            &format!("socket={}", served.socket().display()),
            "export=disk",
            "--run",
            run_line,
        ]);
        run(&mut kit).unwrap()
    };
    let out = served.dir.path().join("out");
    kit(
        "--filter=cow --filter=readahead",
        &format!("nbdcopy --connections=4 \"$uri\" {}", out.display()),
    );
    assert_same(&out, &image(16 * MIB));
    let line = "qemu-io -f raw -c 'write -P 7 1M 1M' -c 'read -P 7 1M 1M' \"$uri\"";
    let said = kit("--filter=cow", line);
    assert!(!said.contains("failed"), "{said}");
    let map = kit("--filter=noextents", "nbdinfo --map --totals \"$uri\"");
    assert!(map.contains("data"), "{map}");
}
