use std::sync::Arc;

use blockio::CHUNK_BYTES;

use super::*;
use crate::blob::MemStore;
use crate::format::CreateOptions;
use crate::index::{IndexEntry, build_shards};
use crate::snapshot::Snapshot;

const PASSWORD: &str = "password";

fn options() -> WriteOptions {
    WriteOptions {
        sealers: 1,
        uploads: 1,
        compression: CompressionPolicy::None,
        user: "user".into(),
        host: "host".into(),
    }
}

fn open(store: &Arc<MemStore>) -> Repository {
    if store.list("").expect("list").is_empty() {
        Repository::create(&**store, PASSWORD, &CreateOptions::default()).expect("create");
    }
    Repository::open(store.clone(), PASSWORD).expect("open")
}

fn chunk(n: u8) -> Vec<u8> {
    vec![n; CHUNK_BYTES]
}

fn count(store: &MemStore, prefix: &str) -> usize {
    store.list(prefix).expect("list").len()
}

/// Stores chunks `numbers` and gives the table of an image of them.
fn store_chunks(session: &WriteSession<'_>, numbers: std::ops::Range<u8>) -> BlockAddressTable {
    let contents = session.repository().contents();
    let mut sealer = session.sealer();
    let mut hashes = Vec::new();
    for n in numbers {
        let id = contents.content_id(None, &chunk(n));
        sealer.store(id, &chunk(n)).expect("store");
        hashes.extend_from_slice(id.hash());
    }
    sealer.finish().expect("finish");
    BlockAddressTable::uniform(1 << 20, contents.hash_len(), hashes)
}

fn snapshot(path: &str) -> Snapshot {
    let text = format!(
        r#"{{"id":"","source":{{"host":"h","userName":"u","path":"{path}"}},"startTime":"2026-01-01T00:00:00Z","endTime":"2026-01-01T00:00:00Z"}}"#
    );
    serde_json::from_str(&text).expect("a snapshot")
}

#[test]
fn a_long_session_indexes_in_between_and_the_snapshot_needs_both_parts() {
    let store = Arc::new(MemStore::new());
    let repository = open(&store);
    let session = WriteSession::begin(&repository, &options()).expect("begin");
    assert_eq!(count(&store, "s"), 1, "the marker stands before the first pack");
    store_chunks(&session, 1..30);
    session.uploaders.drain().expect("drain");
    session.flush_index().expect("flush");
    assert_eq!((count(&store, "xn"), count(&store, "s")), (1, 1));

    let other = Repository::open(store.clone(), PASSWORD).expect("open");
    let first = repository.contents().content_id(None, &chunk(1));
    assert_eq!(other.read_content(&first).expect("indexed in between"), chunk(1));

    let table = store_chunks(&session, 20..40);
    let object = session.put_image_list(&table).expect("list");
    let (id, totals) = session.commit(&snapshot("/a")).expect("commit");
    assert_eq!((totals.index_blobs, count(&store, "xn"), count(&store, "s")), (2, 2, 0));
    assert_eq!(totals.contents, 29 + 10 + 2, "chunks once each, a list, a manifest");

    let reader = Repository::open(store.clone(), PASSWORD).expect("open");
    assert_eq!(reader.snapshots().expect("snapshots")[0].id, Some(id));
    assert_eq!(reader.table(&object).expect("table"), table);
    assert!(table.iter().all(|entry| reader.read_content(&entry.content).is_ok()));
}

#[test]
fn a_flush_before_its_time_does_nothing() {
    let store = Arc::new(MemStore::new());
    let repository = open(&store);
    let session = WriteSession::begin(&repository, &options()).expect("begin");
    store_chunks(&session, 1..30);
    session.uploaders.drain().expect("drain");
    session.flush_when_due().expect("nothing to do");
    assert_eq!(count(&store, "xn"), 0);
    *session.last_flush.lock().expect("free") -= FLUSH_INTERVAL;
    session.flush_when_due().expect("flush");
    assert_eq!(count(&store, "xn"), 1);
    session.abandon();
}

#[test]
fn an_abandoned_session_leaves_contents_for_the_next_and_no_marker() {
    let store = Arc::new(MemStore::new());
    let repository = open(&store);
    let session = WriteSession::begin(&repository, &options()).expect("begin");
    store_chunks(&session, 1..4);
    session.abandon();
    assert_eq!(count(&store, "s"), 0);

    let repository = open(&store);
    assert!(repository.snapshots().expect("snapshots").is_empty());
    let session = WriteSession::begin(&repository, &options()).expect("begin");
    let mut sealer = session.sealer();
    let id = repository.contents().content_id(None, &chunk(2));
    assert_eq!(sealer.store(id, &chunk(2)).expect("store"), Stored::Known);
    sealer.finish().expect("finish");
    session.abandon();
}

#[test]
fn a_snapshot_whose_worker_lost_its_pack_is_not_published() {
    let store = Arc::new(MemStore::new());
    let repository = open(&store);
    let session = WriteSession::begin(&repository, &options()).expect("begin");
    let mut sealer = session.sealer();
    let id = repository.contents().content_id(None, &chunk(1));
    sealer.store(id, &chunk(1)).expect("store");
    drop(sealer);
    let refused = session.commit(&snapshot("/a")).expect_err("a pack is missing");
    assert_eq!(refused.kind(), Kind::InvalidInput);
    assert!(open(&store).snapshots().expect("snapshots").is_empty());
    assert_eq!(count(&store, "s"), 0);
}

/// Writes index `entries` as another client would.
fn index_by_another(store: &MemStore, repository: &Repository, entries: Vec<IndexEntry>) {
    let session = SessionId::new([9; 8], Time::now().unix());
    let writer = IndexWriter {
        store,
        contents: repository.contents(),
        parameters: &repository.format().epoch,
        session: &session,
    };
    writer
        .write(&build_shards(entries).expect("build"), None)
        .expect("write");
}

#[test]
fn a_content_found_deleted_is_stored_again_with_a_later_time() {
    let store = Arc::new(MemStore::new());
    let repository = open(&store);
    let session = WriteSession::begin(&repository, &options()).expect("begin");
    store_chunks(&session, 1..2);
    session.abandon();
    let id = repository.contents().content_id(None, &chunk(1));
    // Deleted by a client whose clock is ten minutes ahead.
    let entry = repository.lookup(&id).expect("stored");
    let deletion_time = Time::now().unix() + 600;
    let deletion = IndexEntry {
        deleted: true,
        time: deletion_time,
        ..entry.clone()
    };
    index_by_another(&store, &repository, vec![deletion]);

    let repository = open(&store);
    assert_eq!(repository.deleted_at(&id), Some(Some(deletion_time)));
    assert_eq!(
        repository.read_content(&id).expect("readable above the watermark"),
        chunk(1)
    );
    let session = WriteSession::begin(&repository, &options()).expect("begin");
    store_chunks(&session, 1..2);
    session.abandon();
    let again = open(&store).lookup(&id).expect("alive");
    assert!(!again.deleted && again.time == deletion_time + 1 && again.pack != entry.pack);
}

#[test]
fn an_index_goes_to_the_epoch_in_force_when_it_is_written() {
    let store = Arc::new(MemStore::new());
    let repository = open(&store);
    for epoch in 1..=3 {
        store
            .put(&BlobId::known(format!("xe{epoch}")), b"epoch-marker")
            .expect("put");
    }
    // The view taken at open says epoch 0; what a write finds after its last put is three epochs further.
    let session = WriteSession::begin(&repository, &options()).expect("begin");
    store_chunks(&session, 1..2);
    let refused = session
        .commit(&snapshot("/a"))
        .expect_err("written two epochs too early");
    assert!(refused.to_string().contains("epoch"), "{refused}");
    assert_eq!(count(&store, "xn0_"), 0, "the shards were taken back");

    let repository = open(&store);
    let session = WriteSession::begin(&repository, &options()).expect("begin");
    store_chunks(&session, 1..2);
    session.commit(&snapshot("/a")).expect("commit");
    assert_eq!((count(&store, "xn0_"), count(&store, "xn3_")), (0, 1));
}

#[test]
fn long_lists_are_lists_of_pieces_that_read_back() {
    let store = Arc::new(MemStore::new());
    let repository = open(&store);
    let session = WriteSession::begin(&repository, &options()).expect("begin");
    let hashes: Vec<u8> = (0..4000u32).flat_map(|n| [n.to_be_bytes(); 4].concat()).collect();
    let table = BlockAddressTable::uniform(1 << 20, 16, hashes);
    let object = session.put_image_list(&table).expect("list");
    assert!(object.to_string().starts_with("IIx"), "{object}");
    let small = BlockAddressTable::uniform(1 << 20, 16, vec![7; 16]);
    let single = session.put_image_list(&small).expect("list");
    assert!(
        single.to_string().starts_with("Ix"),
        "a list is written even for one chunk: {single}"
    );
    session.abandon();
    let reader = open(&store);
    assert_eq!(reader.table(&object).expect("table"), table);
    assert_eq!(reader.table(&single).expect("table"), small);
}
