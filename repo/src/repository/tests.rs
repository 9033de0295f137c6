use std::ops::Range;
use std::sync::Arc;

use super::*;
use crate::blob::MemStore;
use crate::error::Kind;
use crate::format::CreateOptions;
use crate::manifest::Changes;
use crate::session::{WriteOptions, WriteSession};

const PASSWORD: &str = "password";

fn created() -> (Arc<MemStore>, Repository) {
    let store = Arc::new(MemStore::new());
    Repository::create(&*store, PASSWORD, &CreateOptions::default()).expect("create");
    let repository = Repository::open(store.clone(), PASSWORD).expect("open");
    (store, repository)
}

/// Stores chunks filled with `numbers` and returns the table of an image of them.
fn store_chunks(repository: &Repository, numbers: Range<u8>) -> BlockAddressTable {
    let options = WriteOptions {
        sealers: 1,
        ..WriteOptions::default()
    };
    let session = WriteSession::begin(repository, &options).expect("begin");
    let mut sealer = session.sealer();
    let mut hashes = Vec::new();
    for n in numbers {
        let chunk = vec![n; blockio::CHUNK_BYTES];
        let id = repository.contents().content_id(None, &chunk);
        sealer.store(id, &chunk).expect("store");
        hashes.extend_from_slice(id.hash());
    }
    sealer.finish().expect("finish");
    session.commit_changes(&Changes::default()).expect("commit");
    BlockAddressTable::uniform(1 << 20, repository.contents().hash_len(), hashes)
}

fn age(repository: &Repository) {
    let mut looked = repository.looked.lock().expect("free");
    *looked = looked
        .checked_sub(LOOK_INTERVAL)
        .expect("the host runs longer than that");
}

#[test]
fn a_long_job_sees_what_others_stored_once_the_last_look_is_old() {
    let (store, repository) = created();
    let other = Repository::open(store, PASSWORD).expect("open");
    let table = store_chunks(&other, 1..3);
    repository.keep_fresh().expect("nothing to do");
    assert_eq!(repository.dead_pieces(&table), [0, 1]);
    age(&repository);
    repository.keep_fresh().expect("look");
    assert!(repository.dead_pieces(&table).is_empty());
}

#[test]
fn a_long_job_stops_when_an_upgrade_locks_the_repository_or_its_format_blob_is_another() {
    let (store, repository) = created();
    let id = BlobId::known(format::REPOSITORY_ID);
    let ours = store.get(&id).expect("get");

    let (strange, _) = created();
    store.put(&id, &strange.get(&id).expect("get")).expect("put");
    age(&repository);
    let e = repository
        .keep_fresh()
        .expect_err("another repository, or another password");
    assert_eq!(e.kind(), Kind::WrongPassword, "{e}");

    store.delete(&id).expect("delete");
    assert!(repository.keep_fresh().expect_err("gone").is_not_found());

    store.put(&id, &ours).expect("put");
    repository.keep_fresh().expect("ours again");

    let locked = crate::format::tests::with_lock(&ours, PASSWORD);
    store.put(&id, &locked).expect("put");
    repository.keep_fresh().expect("not due yet");
    age(&repository);
    let e = repository.keep_fresh().expect_err("locked");
    assert_eq!(e.kind(), Kind::Locked, "{e}");
    assert!(e.what().contains("upgrade"), "{e}");
}

/// A verification or a maintenance run of many hours went on under an upgrade lock.
#[test]
fn a_job_that_keeps_its_index_stops_as_well_when_an_upgrade_locks_the_repository() {
    let (store, repository) = created();
    let other = Repository::open(store.clone(), PASSWORD).expect("open");
    let table = store_chunks(&other, 1..3);
    let age = || {
        let mut asked = repository.asked.lock().expect("free");
        *asked = asked
            .checked_sub(LOOK_INTERVAL)
            .expect("the host runs longer than that");
    };
    age();
    repository.keep_permitted().expect("nothing is locked");
    assert_eq!(
        repository.dead_pieces(&table),
        [0, 1],
        "the index is the one it began with"
    );

    let id = BlobId::known(format::REPOSITORY_ID);
    let ours = store.get(&id).expect("get");
    store
        .put(&id, &crate::format::tests::with_lock(&ours, PASSWORD))
        .expect("put");
    repository.keep_permitted().expect("not due yet");
    age();
    assert_eq!(repository.keep_permitted().expect_err("locked").kind(), Kind::Locked);

    let percent = |percent| crate::verify::VerifyOptions { percent, workers: 1 };
    let (cancel, progress) = (blockio::Cancel::new(), blockio::Progress::new());
    let verified = crate::verify::verify(&repository, &[], &percent(100.0), &cancel, &progress);
    assert_eq!(verified.expect_err("locked").kind(), Kind::Locked);
}

#[test]
fn what_an_increment_copies_is_looked_for_in_a_fresh_index() {
    let (store, repository) = created();
    let table = store_chunks(&repository, 1..4);
    let parent = "00112233445566778899aabbccddeeff".parse().expect("id");
    let live = repository.liveness(&parent, &table).expect("look");
    assert_eq!(
        live,
        crate::liveness::Liveness {
            stands: false,
            dead: vec![]
        }
    );
    // The index that named them is taken back by its writer, as after a failed flush.
    for blob in store.list("xn").expect("list") {
        store.delete(&blob.id).expect("delete");
    }
    assert!(repository.dead_pieces(&table).is_empty(), "as last read");
    assert_eq!(repository.liveness(&parent, &table).expect("look").dead, [0, 1, 2]);
}

#[test]
fn a_refresh_reads_only_index_blobs_that_are_new() {
    use crate::blob::{FaultStore, StoreOp};
    let (store, _) = created();
    let other = Repository::open(store.clone(), PASSWORD).expect("open");
    let first = store_chunks(&other, 1..2);
    let faulty = Arc::new(FaultStore::new(store.clone()));
    let repository = Repository::open(faulty.clone(), PASSWORD).expect("open");
    let known = store.list("xn").expect("list")[0].id.clone();
    faulty.fail_once(StoreOp::Get, known.as_str(), Kind::Storage);
    let second = store_chunks(&other, 2..3);
    repository.refresh().expect("the first blob is not asked for");
    assert!(repository.dead_pieces(&first).is_empty() && repository.dead_pieces(&second).is_empty());
}
