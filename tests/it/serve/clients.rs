//! nbdinfo, nbdcopy, qemu-img, fio and libnbd on a snapshot.

use std::fs;

use blockferry_tests::volume::{BlockKind, Layout};

use super::{MIB, Serving, answers, world};

#[test]
fn clients_see_the_volume_and_its_holes() {
    let kinds = [
        BlockKind::Random,
        BlockKind::Zero,
        BlockKind::Records,
        BlockKind::Zero,
        BlockKind::Zero,
    ];
    let (world, volume) = world(&Layout::from_blocks(71, 40 * MIB + 512, &kinds));
    let serving = Serving::start(&world.ferry, &["latest"]);
    let id = world.ferry.run_json(["snapshots"]).unwrap()[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let export = &serving.document["exports"][0];
    assert_eq!(
        (&export["snapshot"], &export["size"]),
        (&id.as_str().into(), &(40 * MIB + 512).into())
    );
    assert_eq!(export["names"], serde_json::json!(["latest", id]));
    assert_eq!(export["uris"][0], serving.uri("latest"));

    let info: serde_json::Value = serde_json::from_str(&serving.client("nbdinfo --json {uri}")).unwrap();
    let found = &info["exports"][0];
    assert_eq!(
        (&found["export-size"], &found["is_read_only"]),
        (&(40 * MIB + 512).into(), &true.into())
    );
    assert_eq!(found["can_multi_conn"], true);
    let source = volume.path().display().to_string();
    // Before anything was read: the map is in the list.
    serving.script(
        "seen = []\n\
         h.block_status(5 * M, 0, lambda context, offset, entries, error: seen.extend(entries))\n\
         assert seen == [M, 0, M, 3, M, 0, 2 * M, 3], seen\n\
         assert h.pread(3 * M, 3 * M)[:2 * M] == bytes(2 * M)\n\
         assert h.is_read_only()",
    );
    assert!(serving.bytes() == volume.bytes().unwrap());
    serving.client(&format!("qemu-img compare -f raw -F raw {source} {{uri}}"));
    serving.client("qemu-img convert -f raw -O raw {uri} {dir}/converted");
    let converted = fs::read(serving.dir.path().join("converted")).unwrap();
    assert!(converted[..usize::try_from(volume.size()).unwrap()] == volume.bytes().unwrap());
    serving.client(
        "fio --name=r --ioengine=nbd --rw=randread --bs=4k --iodepth=32 --size=32M --io_size=16M --uri={uri} --output={dir}/fio",
    );
    // By its id too, and without a name.
    serving.client(&format!("nbdinfo --size {}", serving.uri(&id)));
    serving.client(&format!("nbdinfo --size {}", serving.uri("")));

    let socket = serving.socket();
    let left = serving.stop("-TERM");
    assert_eq!(left.code, Some(0), "{}", left.log);
    assert!(
        left.log.contains("stopped serving") && !left.log.contains("WARN"),
        "{}",
        left.log
    );
    assert!(!socket.exists() && !answers(&socket));
}

#[test]
fn several_snapshots_have_names_of_their_own() {
    let (world, volume) = world(&Layout::mixed(72, 6 * MIB));
    let before = volume.bytes().unwrap();
    let older = world.ferry.run_json(["show", "latest"]).unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    volume.write_at(3 * MIB, &[9; 4096]).unwrap();
    world.ferry.backup(volume.path(), &[]).unwrap();
    let named = format!("before={}", &older[..8]);
    let serving = Serving::start(&world.ferry, &["latest", &named]);
    assert_eq!(
        serving.document["exports"][1]["names"],
        serde_json::json!(["before", &older[..8], older])
    );
    assert!(serving.bytes() == volume.bytes().unwrap());
    serving.client(&format!("nbdcopy {} {{dir}}/before", serving.uri("before")));
    assert!(fs::read(serving.dir.path().join("before")).unwrap() == before);
    let list = serving.client("nbdinfo --list --json nbd+unix:///?socket={dir}/s");
    assert!(list.contains("before") && list.contains("latest"), "{list}");
    assert_eq!(serving.stop("-INT").code, Some(0));
}
