//! Verification on the command line: what is damaged is told to people and to programs, down to the bytes of volumes, and a
//! verification that was cut short goes on.

use std::fs;

use blockferry_tests::kopia::{self, Kopia};
use blockferry_tests::repo::blob_file;
use repo::blob::BlobStore;
use serde_json::{Value, json};

use crate::bad_input::support::{
    MIB, PASSWORD, World, assert_words, back_up, backup_options, copy, empty, names, open, random_volume, shrink_packs,
};

/// A repository of two snapshots of one volume of 30 chunks in several packs; the second has three other chunks.
fn world() -> (World, Vec<String>) {
    let store = copy(&*empty());
    shrink_packs(&*store);
    let volume = random_volume(91, 30);
    back_up(&open(store.clone()), volume.path(), &backup_options()).unwrap();
    let mut bytes = volume.bytes().unwrap();
    let changed = random_volume(92, 3).bytes().unwrap();
    let at = usize::try_from(10 * MIB).unwrap();
    bytes[at..at + changed.len()].copy_from_slice(&changed);
    let folder = tempfile::tempdir().unwrap();
    let second = folder.path().join("second");
    fs::write(&second, &bytes).unwrap();
    back_up(&open(store.clone()), &second, &backup_options()).unwrap();
    let ids = open(store.clone()).snapshots().unwrap();
    let ids = ids.iter().map(|snapshot| snapshot.id.unwrap().to_string()).collect();
    (World::with(&*store), ids)
}

fn verify(world: &World, args: &[&str], code: i32) -> Value {
    let ended = world.ferry.ended(["verify", "--json"].iter().chain(args)).unwrap();
    assert_eq!(ended.code, Some(code), "{}{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

#[test]
fn damage_is_told_by_the_extents_of_every_snapshot_it_hurts() {
    let (world, ids) = world();
    let clean = verify(&world, &["--depth", "everything"], 0);
    assert_eq!(
        (&clean["damages"], &clean["lost"], &clean["depth"]),
        (&json!([]), &json!([]), &json!("everything"))
    );
    // Chunk 12 of the first snapshot is one that the second does not have, chunk 20 is in both.
    let repository = open(world.store());
    let snapshots = repository.snapshots().unwrap();
    let place = |n: usize| {
        let table = repository.image(&snapshots[0]).unwrap().table;
        repository.lookup(&table.content(n)).unwrap()
    };
    for n in [12, 20] {
        let place = place(n);
        let path = world.repo().join(blob_file(place.pack.as_str()));
        let mut bytes = fs::read(&path).unwrap();
        bytes[place.offset as usize + 77] ^= 0x40;
        fs::write(&path, bytes).unwrap();
    }
    verify(&world, &["--depth", "lists"], 0);
    let report = verify(&world, &["--depth", "everything"], 4);
    let damages = report["damages"].as_array().unwrap();
    assert_eq!(damages.len(), 2);
    let path = snapshots[0]
        .root
        .as_ref()
        .map(|_| report["lost"][0]["path"].clone())
        .unwrap();
    let hit = |id: &str, n: u64| json!({"snapshot": id, "path": path, "offset": n * MIB, "length": MIB});
    for (n, hits) in [
        (12, vec![hit(&ids[0], 12)]),
        (20, vec![hit(&ids[0], 20), hit(&ids[1], 20)]),
    ] {
        let place = place(n);
        let damage = damages
            .iter()
            .find(|damage| damage["content"] == place.content.to_string())
            .unwrap();
        assert_eq!(damage["kind"], "content-unreadable");
        assert_eq!(damage["blob"], place.pack.as_str());
        assert_eq!(
            (&damage["offset"], &damage["length"]),
            (&json!(place.offset), &json!(place.packed_len))
        );
        assert_eq!(damage["affected"], json!(hits));
    }
    assert_eq!(
        report["lost"],
        json!([hit(&ids[0], 12), hit(&ids[0], 20), hit(&ids[1], 20)])
    );
    let second = verify(&world, &[&ids[1], "--depth", "everything"], 4);
    assert_eq!(second["lost"], json!([hit(&ids[1], 20)]));
    if kopia::available() {
        // kopia finds the same two contents.
        let kopia = Kopia::new(&world.repo(), PASSWORD).unwrap();
        kopia.connect().unwrap();
        let failure = kopia.content_verify_full().unwrap_err().to_string();
        assert_words(
            &failure,
            &[&place(12).content.to_string(), &place(20).content.to_string()],
        );
    }
}

#[test]
fn a_lost_pack_is_one_damage_with_all_it_held() {
    let (world, ids) = world();
    // One that the first snapshot needs; the second has packs of its own.
    let pack = {
        let repository = open(world.store());
        let first = repository.snapshots().unwrap().remove(0);
        let table = repository.image(&first).unwrap().table;
        let content = (0..table.count())
            .map(|n| table.content(n))
            .find(|content| *content != repository.zero_content());
        repository.lookup(&content.unwrap()).unwrap().pack.to_string()
    };
    assert!(names(&*world.store(), "p").contains(&pack));
    fs::remove_file(world.repo().join(blob_file(&pack))).unwrap();
    let report = verify(&world, &["--depth", "lists"], 4);
    let [damage] = &report["damages"].as_array().unwrap()[..] else {
        panic!("{report}")
    };
    assert_eq!(
        (&damage["kind"], &damage["blob"]),
        (&json!("pack-missing"), &json!(pack))
    );
    let lost: u64 = report["lost"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hit| hit["length"].as_u64().unwrap())
        .sum();
    let repository = open(world.store());
    let snapshots = repository.snapshots().unwrap();
    let held = snapshots.iter().map(|snapshot| {
        let table = repository.image(snapshot).unwrap().table;
        let here = (0..table.count()).filter(|n| repository.lookup(&table.content(*n)).unwrap().pack.as_str() == pack);
        here.count() as u64 * MIB
    });
    assert_eq!(lost, held.sum::<u64>());
    let ended = world.ferry.ended(["verify", "--percent", "0"]).unwrap();
    assert_words(&ended.stdout, &["DAMAGE FOUND", &pack, "lost: snapshot", &ids[0][..8]]);
}

#[test]
fn a_verification_that_was_cancelled_goes_on() {
    let (world, _) = world();
    let state = world.text("state");
    let args = ["--depth", "everything", "--resume", &state];
    // A state as a run leaves it that was stopped after its first pack.
    let all = verify(&world, &args, 0);
    assert!(!world.path("state").exists(), "nothing to go on with");
    let repository = open(world.store());
    let packs = names(&*world.store(), "p");
    let newest = world
        .store()
        .list("p")
        .unwrap()
        .iter()
        .map(|pack| pack.modified)
        .max()
        .unwrap();
    let snapshots = repository.snapshots().unwrap();
    let ids: Vec<_> = snapshots
        .iter()
        .map(|snapshot| snapshot.id.unwrap().to_string())
        .collect();
    let written = |repository: &str| {
        json!({"version": 1, "repository": repository, "snapshots": ids, "percent": 100.0, "phase": 0.0,
            "newest": repo::time::Time::from(newest), "done": packs[0], "contentsRead": 1000, "readBytes": 0, "damage": []})
    };
    let unique_id = hex::encode(&repository.format().unique_id);
    fs::write(&state, written(&unique_id).to_string()).unwrap();
    let rest = verify(&world, &args, 0);
    let read = rest["contentsRead"].as_u64().unwrap() - 1000;
    assert!(read > 0 && read < all["contentsRead"].as_u64().unwrap(), "{read}");

    fs::write(&state, written("0011").to_string()).unwrap();
    world.refuses(
        &["verify", args[0], args[1], args[2], &state],
        2,
        &["another repository", &state],
    );
    fs::write(&state, "{}").unwrap();
    world.refuses(
        &["verify", args[0], args[1], args[2], &state],
        2,
        &["not the state of a verification"],
    );
    fs::remove_file(&state).unwrap();
    world.refuses(
        &["verify", "--depth", "lists", "--percent", "5"],
        2,
        &["--depth sampled"],
    );
    let sampled = verify(&world, &["--depth", "sampled", "--percent", "50"], 0);
    let (read, contents) = (
        sampled["contentsRead"].as_u64().unwrap(),
        sampled["contents"].as_u64().unwrap(),
    );
    assert!(read.abs_diff(contents / 2) <= 1, "{read} of {contents}");
}
