//! Snapshots go, and maintenance takes what only they used.

use std::collections::BTreeSet;

use blockferry_tests::volume::{BlockKind, Layout};
use repo::ContentId;

use super::judge::{MIB, Shared, Taken, kopia_is_here};

/// Volumes of incompressible chunks, so that packs shrink by what goes.
fn random(seed: u64, chunks: u64) -> Vec<u8> {
    Layout::uniform(seed, chunks * MIB, BlockKind::Random).bytes()
}

/// Chunks that only one volume has: more than 60 % of a pack, below which kopia moves contents, deleted ones too, to
/// another pack first.
const OWN: u64 = 16;

/// Contents of a snapshot's volume.
fn contents(shared: &Shared, snapshot: &Taken) -> BTreeSet<ContentId> {
    let repository = shared.library();
    let snapshots = repository.snapshots().unwrap();
    let id = |s: &repo::snapshot::Snapshot| s.id.expect("read from storage").to_string();
    let found = snapshots.iter().find(|s| id(s) == snapshot.id).expect("listed");
    repository
        .image(found)
        .unwrap()
        .table
        .iter()
        .map(|piece| piece.content)
        .collect()
}

fn data_bytes(shared: &Shared) -> u64 {
    repo::survey::Survey::of(&shared.library()).unwrap().totals["data packs"].1
}

#[test]
fn what_we_delete_is_gone_for_kopia_and_its_data_after_maintenance() {
    if !kopia_is_here() {
        return;
    }
    let shared = Shared::by_us(&[]);
    let bytes = random(2, 8);
    let own_and_shared = [&random(1, OWN), &bytes[..4 << 20]].concat();
    let stays = shared.we_take("stays", bytes, &[]);
    // One worker fills one pack, which nobody else uses.
    let goes = shared.we_take("goes", own_and_shared.clone(), &["--workers", "1"]);
    let theirs = shared.kopia_takes_file(&Layout::mixed(3, 2 * MIB));
    let left = [stays, theirs];
    let only_there: Vec<_> = contents(&shared, &goes)
        .difference(&contents(&shared, &left[0]))
        .copied()
        .collect();
    assert_eq!(only_there.len() as u64, OWN);

    let deleted = shared.ours.run_json(["delete", &goes.id]).unwrap();
    assert_eq!(deleted["deleted"], serde_json::json!([goes.id]));
    shared.both_approve(&left);
    let ended = shared.ours.ended(["show", &goes.id]).unwrap();
    assert_eq!(ended.code, Some(2), "{ended:?}");

    let before = data_bytes(&shared);
    shared.kopia_maintains();
    shared.both_approve(&left);
    let repository = shared.library();
    let gone = |id: &ContentId| repository.lookup(id).is_none_or(|entry| entry.deleted);
    assert!(
        only_there.iter().all(gone),
        "contents of the deleted snapshot are still indexed"
    );
    let freed = before - data_bytes(&shared);
    assert!(freed > OWN * MIB, "only {freed} bytes are freed");

    // The same volume again: what went is stored anew.
    let again = shared.we_take("goes", own_and_shared, &[]);
    shared.both_approve(&[left.as_slice(), &[again]].concat());
}

#[test]
fn what_kopia_deletes_is_gone_for_us() {
    if !kopia_is_here() {
        return;
    }
    let shared = Shared::by_kopia(&[]);
    let goes = shared.kopia_takes_file(&Layout::uniform(11, 3 * MIB, BlockKind::Random));
    let stays = shared.kopia_takes_file(&Layout::mixed(12, 3 * MIB));
    let ours = shared.we_take("ours", Layout::mixed(13, 3 * MIB).bytes(), &[]);
    let ours_goes = shared.we_take("ours-goes", Layout::mixed(14, 3 * MIB).bytes(), &[]);
    let only_there = contents(&shared, &goes);
    let left = [stays, ours];

    for snapshot in [&goes, &ours_goes] {
        shared.kopia.snapshot_delete(&snapshot.id).unwrap();
    }
    shared.both_approve(&left);
    let ended = shared
        .ours
        .ended(["restore", &goes.id, &shared.file("never").display().to_string()])
        .unwrap();
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(!shared.file("never").exists());

    shared.kopia_maintains();
    shared.both_approve(&left);
    let repository = shared.library();
    assert!(
        only_there
            .iter()
            .all(|id| repository.lookup(id).is_none_or(|entry| entry.deleted))
    );
}

/// A content that is marked deleted and still readable is no content to share: maintenance may take it any time.
#[test]
fn contents_marked_deleted_are_stored_anew() {
    if !kopia_is_here() {
        return;
    }
    let shared = Shared::by_us(&[]);
    let bytes = random(21, 3);
    let first = shared.we_take("volume", bytes.clone(), &[]);
    let ids: Vec<String> = contents(&shared, &first).iter().map(ToString::to_string).collect();
    shared.ours.run(["delete", &first.id]).unwrap();
    let delete = ["--dangerous-commands=enabled", "content", "delete"]
        .into_iter()
        .chain(ids.iter().map(String::as_str));
    shared.kopia.run(delete).unwrap();

    let again = [shared.we_take("volume", bytes, &[])];
    let repository = shared.library();
    for id in &ids {
        let entry = repository.lookup(&id.parse().unwrap()).expect("stored");
        assert!(!entry.deleted, "{id} is still marked deleted");
    }
    shared.both_approve(&again);
    shared.kopia_maintains();
    shared.both_approve(&again);
}
