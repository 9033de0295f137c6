use std::sync::Arc;

use blockio::CHUNK_BYTES;

use super::*;
use crate::blob::{Fault, FaultRule, FaultStore, MemStore, StoreOp};
use crate::error::Kind;
use crate::format::CreateOptions;
use crate::index::{IndexEntry, build_shards};
use crate::object::BlockAddressTable;
use crate::snapshot::Snapshot;

const PASSWORD: &str = "password";

fn options() -> WriteOptions {
    WriteOptions {
        sealers: 1,
        uploads: 1,
        user: "user".into(),
        host: "host".into(),
        ..WriteOptions::default()
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
    session.keep_up().expect("nothing to do");
    assert_eq!(count(&store, "xn"), 0);
    *session.last_flush.lock().expect("free") -= FLUSH_INTERVAL;
    session.keep_up().expect("flush");
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
    // The view taken at open says epoch 0; what a write finds after its last put is three epochs further: it is taken back
    // and written again.
    let session = WriteSession::begin(&repository, &options()).expect("begin");
    let table = store_chunks(&session, 1..2);
    session.commit(&snapshot("/a")).expect("commit");
    assert_eq!((count(&store, "xn0_"), count(&store, "xn3_")), (0, 1));
    let reader = open(&store);
    assert_eq!(reader.snapshots().expect("snapshots").len(), 1);
    assert_eq!(reader.read_content(&table.content(0)).expect("indexed"), chunk(1));
}

#[test]
fn an_index_blob_cut_short_that_may_not_be_deleted_is_made_whole() {
    let store = Arc::new(MemStore::new());
    open(&store);
    let faulty = Arc::new(FaultStore::new(store.clone()));
    let repository = Repository::open(faulty.clone(), PASSWORD).expect("open");
    let session = WriteSession::begin(&repository, &options()).expect("begin");
    let table = store_chunks(&session, 1..3);
    for (op, fault) in [
        (StoreOp::Put, Fault::Truncate),
        (StoreOp::Delete, Fault::Fail(Kind::Permission)),
    ] {
        faulty.rule(FaultRule {
            op,
            prefix: "xn".into(),
            skip: 0,
            count: 1,
            fault,
        });
    }
    session.commit(&snapshot("/a")).expect_err("the index was not stored");
    // Nobody could open it with half of that blob. What it says is true, the snapshot included.
    let reader = open(&store);
    assert_eq!(reader.read_content(&table.content(1)).expect("indexed"), chunk(2));
    assert_eq!(reader.snapshots().expect("snapshots").len(), 1);
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

#[test]
fn a_checkpoint_shows_what_is_indexed_and_goes_with_the_snapshot() {
    let store = Arc::new(MemStore::new());
    let repository = open(&store);
    let mut session = WriteSession::begin(&repository, &options()).expect("begin");
    session.checkpoint_interval = Duration::ZERO;
    let checkpoint = |table: &BlockAddressTable| {
        session
            .checkpoint_when_due(&mut || {
                let Some(part) = session.indexed_part(table) else {
                    return Ok(None);
                };
                let object = session.put_image_list(&part)?;
                let mut snapshot = snapshot("/a");
                snapshot
                    .tags
                    .insert(crate::snapshot::tag::SESSION.into(), session.id().to_string());
                snapshot.description = object.to_string();
                Ok(Some(snapshot))
            })
            .expect("checkpoint");
    };
    let zero = repository.zero_content();
    let first = store_chunks(&session, 0..20);
    assert_eq!(first.content(0), zero);
    session.uploaders.drain().expect("drain");
    checkpoint(&first);
    let reader = Repository::open(store.clone(), PASSWORD).expect("open");
    let shown = reader.snapshots().expect("snapshots");
    assert_eq!((shown.len(), shown[0].incomplete.as_str()), (1, CHECKPOINT));
    let object = shown[0].description.parse().expect("object");
    assert_eq!(
        reader.table(&object).expect("complete"),
        first,
        "all that is stored is shown"
    );

    // A chunk nobody stored reads as zero in a checkpoint.
    let strange = repository.contents().content_id(None, &chunk(99));
    let hashes = [first.content(1).hash(), strange.hash()].concat();
    checkpoint(&BlockAddressTable::uniform(1 << 20, 16, hashes));
    let reader = Repository::open(store.clone(), PASSWORD).expect("open");
    let shown = reader.snapshots().expect("snapshots");
    assert_eq!(shown.len(), 1, "the one before is gone");
    let table = reader
        .table(&shown[0].description.parse().expect("object"))
        .expect("complete");
    assert_eq!((table.content(0), table.content(1)), (first.content(1), zero));

    session.put_image_list(&first).expect("list");
    let (id, _) = session.commit(&snapshot("/a")).expect("commit");
    let shown = Repository::open(store.clone(), PASSWORD)
        .expect("open")
        .snapshots()
        .expect("snapshots");
    assert_eq!(shown.iter().map(|s| s.id).collect::<Vec<_>>(), [Some(id)]);
}

#[test]
fn a_checkpoint_of_a_crashed_session_goes_with_the_next_snapshot_once_its_marker_is_gone() {
    let store = Arc::new(MemStore::new());
    let repository = open(&store);
    let mut crashed = WriteSession::begin(&repository, &options()).expect("begin");
    crashed.checkpoint_interval = Duration::ZERO;
    let dead = crashed.id().clone();
    crashed
        .checkpoint_when_due(&mut || {
            let mut snapshot = snapshot("/a");
            snapshot
                .tags
                .insert(crate::snapshot::tag::SESSION.into(), dead.to_string());
            Ok(Some(snapshot))
        })
        .expect("checkpoint");
    drop(crashed); // neither committed nor abandoned, as after a crash
    let backup = || {
        let repository = open(&store);
        let session = WriteSession::begin(&repository, &options()).expect("begin");
        session.commit(&snapshot("/a")).expect("commit");
        open(&store)
            .snapshots()
            .expect("snapshots")
            .iter()
            .filter(|s| s.incomplete == CHECKPOINT)
            .count()
    };
    assert_eq!(backup(), 1, "its session may still be alive");
    assert_eq!(remove_markers(&repository, &dead).expect("clean up"), 1);
    assert_eq!(backup(), 0);
}

#[test]
fn a_content_whose_pack_is_gone_is_stored_again() {
    let store = Arc::new(MemStore::new());
    let repository = open(&store);
    let session = WriteSession::begin(&repository, &options()).expect("begin");
    store_chunks(&session, 1..4);
    session.abandon();
    for pack in store.list("p").expect("list") {
        store.delete(&pack.id).expect("lose the pack");
    }

    let blind = WriteSession::begin(&repository, &options()).expect("begin");
    store_chunks(&blind, 1..4);
    let (_, totals) = blind.commit(&snapshot("/blind")).expect("commit");
    assert_eq!((totals.reused_checked, totals.healed), (0, 0), "not asked to look");

    let watchful = WriteOptions {
        check_reused: 100,
        ..options()
    };
    let session = WriteSession::begin(&repository, &watchful).expect("begin");
    store_chunks(&session, 1..5);
    let (_, totals) = session.commit(&snapshot("/a")).expect("commit");
    assert_eq!((totals.reused_checked, totals.healed), (3, 3));
    let reader = Repository::open(store.clone(), PASSWORD).expect("open");
    for n in 1..5 {
        let id = reader.contents().content_id(None, &chunk(n));
        assert_eq!(reader.read_content(&id).expect("healed"), chunk(n));
    }

    let session = WriteSession::begin(&reader, &watchful).expect("begin");
    store_chunks(&session, 1..5);
    let (_, totals) = session.commit(&snapshot("/b")).expect("commit");
    assert_eq!((totals.reused_checked, totals.healed), (4, 0), "now they are there");
}

#[test]
fn a_content_known_to_be_damaged_is_stored_again() {
    let store = Arc::new(MemStore::new());
    let repository = open(&store);
    let session = WriteSession::begin(&repository, &options()).expect("begin");
    let table = store_chunks(&session, 1..4);
    session.abandon();
    let damaged = WriteOptions {
        damaged: Arc::new([table.content(1)].into()),
        ..options()
    };
    let session = WriteSession::begin(&repository, &damaged).expect("begin");
    store_chunks(&session, 1..4);
    let (_, totals) = session.commit(&snapshot("/a")).expect("commit");
    assert_eq!(
        (totals.healed, totals.contents),
        (1, 1 + 1),
        "the content and the manifest"
    );
    let first = repository.lookup(&table.content(0)).expect("indexed").pack;
    assert_ne!(repository.lookup(&table.content(1)).expect("indexed").pack, first);
}
