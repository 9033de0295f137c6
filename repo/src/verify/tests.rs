use std::sync::Arc;

use blockio::CHUNK_BYTES;

use super::*;
use crate::blob::{BlobStore, Fault, FaultRule, FaultStore, MemStore, StoreOp};
use crate::compress::CompressionPolicy;
use crate::format::CreateOptions;
use crate::object::BlockAddressTable;
use crate::session::{WriteOptions, WriteSession};

const PASSWORD: &str = "password";
const MIB: u64 = 1 << 20;

fn everything() -> VerifyOptions {
    VerifyOptions {
        percent: 100.0,
        workers: 2,
    }
}

fn run(repository: &Repository, percent: f64) -> Report {
    let options = VerifyOptions {
        percent,
        ..everything()
    };
    let snapshots = repository.snapshots().unwrap();
    verify(repository, &snapshots, &options, &Cancel::new(), &Progress::new()).unwrap()
}

fn chunk(n: u64) -> Vec<u8> {
    let mut chunk = vec![7; CHUNK_BYTES];
    chunk[..8].copy_from_slice(&n.to_le_bytes());
    chunk
}

/// Stores an image of the chunks `numbers` as the only file of a snapshot.
fn store_image(repository: &Repository, numbers: impl Iterator<Item = u64>) -> ManifestId {
    let options = WriteOptions {
        sealers: 1,
        uploads: 1,
        compression: CompressionPolicy::None,
        user: "u".into(),
        host: "h".into(),
        ..WriteOptions::default()
    };
    let session = WriteSession::begin(repository, &options).unwrap();
    let (mut sealer, mut hashes) = (session.sealer(), Vec::new());
    for n in numbers {
        let id = repository.contents().content_id(None, &chunk(n));
        sealer.store(id, &chunk(n)).unwrap();
        hashes.extend_from_slice(id.hash());
    }
    sealer.finish().unwrap();
    let table = BlockAddressTable::uniform(MIB, repository.contents().hash_len(), hashes);
    let object = session.put_image_list(&table).unwrap();
    let snapshot = format!(
        r#"{{"id":"","source":{{"host":"h","userName":"u","path":"/v"}},"startTime":"2026-01-01T00:00:00Z","endTime":"2026-01-01T00:00:00Z",
            "rootEntry":{{"name":"v","type":"f","size":{},"obj":"{object}"}}}}"#,
        table.len()
    );
    session.commit(&serde_json::from_str(&snapshot).unwrap()).unwrap().0
}

fn create() -> Arc<MemStore> {
    let store = Arc::new(MemStore::new());
    Repository::create(&*store, PASSWORD, &CreateOptions::default()).unwrap();
    store
}

fn open(store: &Arc<MemStore>) -> Repository {
    Repository::open(store.clone(), PASSWORD).unwrap()
}

/// Packs, and which chunks of the image `numbers` are in each, in order.
fn packs(repository: &Repository, numbers: std::ops::Range<u64>) -> Vec<(BlobId, Vec<u64>)> {
    let mut packs: Vec<(BlobId, Vec<u64>)> = Vec::new();
    for n in numbers {
        let id = repository.contents().content_id(None, &chunk(n));
        let pack = repository.lookup(&id).unwrap().pack;
        match packs.iter_mut().find(|(known, _)| *known == pack) {
            Some((_, chunks)) => chunks.push(n),
            None => packs.push((pack, vec![n])),
        }
    }
    packs
}

fn flip(store: &MemStore, id: &BlobId, at: u64) {
    let mut bytes = store.get(id).unwrap();
    bytes[usize::try_from(at).unwrap()] ^= 1;
    store.put(id, &bytes).unwrap();
}

fn merged(chunks: &[u64]) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for chunk in chunks {
        match extents.last_mut().filter(|last| last.end() == chunk * MIB) {
            Some(last) => last.len += MIB,
            None => extents.push(Extent {
                offset: chunk * MIB,
                len: MIB,
            }),
        }
    }
    extents
}

#[test]
fn no_damage_hides_another_and_each_is_told_by_the_byte() {
    let store = create();
    let id = store_image(&open(&store), 0..70);
    let repository = open(&store);
    let packs = packs(&repository, 0..70);
    assert!(packs.len() >= 4, "{}", packs.len());
    assert!(run(&repository, 100.0).damage.is_empty());
    // A pack is gone, one is cut in its last content, and two contents of a third are hit.
    store.delete(&packs[0].0).unwrap();
    let place = |n: u64| {
        let id = repository.contents().content_id(None, &chunk(n));
        repository.lookup(&id).unwrap()
    };
    let last = *packs[1].1.iter().max_by_key(|n| place(**n).offset).unwrap();
    let cut = store.get(&packs[1].0).unwrap();
    store
        .put(&packs[1].0, &cut[..place(last).offset as usize + 10])
        .unwrap();
    let hit = [packs[2].1[1], packs[2].1[4]];
    for n in hit {
        flip(&store, &packs[2].0, u64::from(place(n).offset) + 100);
    }

    let kinds = |report: &Report| {
        let mut kinds: Vec<_> = report.damage.iter().map(|damage| damage.kind).collect();
        kinds.sort();
        kinds
    };
    let report = run(&repository, 0.0);
    assert_eq!(kinds(&report), [DamageKind::PackMissing, DamageKind::PackShort]);
    assert_eq!(report.contents_read, 0);
    let report = run(&repository, 100.0);
    assert_eq!(
        kinds(&report),
        [
            DamageKind::PackMissing,
            DamageKind::PackShort,
            DamageKind::ContentUnreadable,
            DamageKind::ContentUnreadable
        ]
    );
    for damage in &report.damage {
        let [affected] = &damage.affected[..] else {
            panic!("{damage:?}")
        };
        let chunks = match damage.kind {
            DamageKind::PackMissing => packs[0].1.clone(),
            DamageKind::PackShort => vec![last],
            _ => hit
                .into_iter()
                .filter(|n| damage.content == Some(place(*n).content))
                .collect(),
        };
        assert_eq!(
            (affected.snapshot, &affected.extents),
            (id, &merged(&chunks)),
            "{damage}"
        );
    }
    let mut lost = [&packs[0].1[..], &[last], &hit].concat();
    lost.sort_unstable();
    assert_eq!(report.lost(id), merged(&lost));

    let snapshots = repository.snapshots().unwrap();
    let salvage = salvage(&repository, &snapshots[0], &report, &Cancel::new()).unwrap();
    assert_eq!(salvage.lost, merged(&lost));
    assert_eq!(
        (salvage.image.size, salvage.image.table.uniform_len()),
        (70 * MIB, Some(MIB))
    );
    for (n, entry) in salvage.image.table.iter().enumerate() {
        let is_lost = lost.contains(&(n as u64));
        assert_eq!(salvage.is_lost(entry.extent), is_lost);
        let expect = if is_lost {
            repository.zero_content()
        } else {
            place(n as u64).content
        };
        assert_eq!(entry.content, expect);
    }
}

#[test]
fn a_list_with_a_hole_loses_only_what_the_hole_told_of() {
    let store = create();
    // 9000 chunks, three of them different: a list of five parts.
    let id = store_image(&open(&store), (0..9000).map(|n| n % 3));
    let repository = open(&store);
    let snapshot = repository.snapshots().unwrap().remove(0);
    let object = snapshot.root.as_ref().unwrap().object;
    let parts = repository.table(&object.list().unwrap()).unwrap();
    assert!(parts.count() >= 4 && object.indirection == 2);
    let part = repository.lookup(&parts.content(2)).unwrap();
    flip(&store, &part.pack, u64::from(part.offset) + 20);

    let report = run(&repository, 0.0);
    let [damage] = &report.damage[..] else {
        panic!("{:?}", report.damage)
    };
    assert_eq!(
        (damage.kind, damage.content),
        (DamageKind::ContentUnreadable, Some(part.content))
    );
    assert_eq!(damage.pack.as_ref(), Some(&part.pack));
    let [lost] = report.lost(id)[..] else {
        panic!("{:?}", report.lost(id))
    };
    // 128 KiB of entries of about 70 bytes, and the two that are cut.
    assert!((1500..2000).contains(&(lost.len / MIB)), "{lost}");
    assert_eq!(damage.affected[0].extents, [lost]);
    assert_eq!(run(&repository, 100.0).damage.len(), 1, "the same damage is told once");

    let salvage = salvage(&repository, &snapshot, &report, &Cancel::new()).unwrap();
    assert_eq!(
        (salvage.image.table.len(), &salvage.lost[..]),
        (9000 * MIB, &[lost][..])
    );
    for (n, entry) in salvage.image.table.iter().enumerate() {
        let expect = match lost.contains(entry.extent) {
            true => repository.zero_content(),
            false => repository.contents().content_id(None, &chunk(n as u64 % 3)),
        };
        assert_eq!(entry.content, expect, "{n}");
    }

    // The first part has the head of the list, the list of lists is one content: without it all is lost.
    let first = repository.lookup(&parts.content(0)).unwrap();
    flip(&store, &first.pack, u64::from(first.offset) + 20);
    let report = run(&open(&store), 0.0);
    assert_eq!((report.damage.len(), report.lost(id).len()), (2, 2));
    let lists = repository.lookup(&object.content).unwrap();
    flip(&store, &lists.pack, u64::from(lists.offset) + 20);
    let report = run(&open(&store), 0.0);
    assert_eq!(
        report.lost(id),
        [Extent {
            offset: 0,
            len: 9000 * MIB
        }]
    );
    let nothing = super::salvage(&repository, &snapshot, &report, &Cancel::new()).unwrap();
    assert_eq!(nothing.lost, report.lost(id));
}

#[test]
fn what_is_cut_short_goes_on_where_it_was() {
    let store = create();
    let id = store_image(&open(&store), 0..90);
    let repository = open(&store);
    let all = run(&repository, 100.0);
    let mut packs = packs(&repository, 0..90);
    packs.sort();
    let place = repository
        .lookup(&repository.contents().content_id(None, &chunk(packs[0].1[3])))
        .unwrap();
    flip(&store, &place.pack, u64::from(place.offset) + 50);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state");
    let faults = Arc::new(FaultStore::new(store.clone()));
    let repository = Repository::open(faults.clone(), PASSWORD).unwrap();
    let snapshots = repository.snapshots().unwrap();
    let last = &packs[packs.len() - 1].0;
    faults.rule(FaultRule {
        op: StoreOp::Get,
        prefix: last.as_str().into(),
        skip: 0,
        count: 1,
        fault: Fault::Fail(Kind::Unavailable),
    });
    let go = |options: &VerifyOptions, snapshots: &[Snapshot]| {
        verify_with_state(
            &repository,
            snapshots,
            options,
            Some(&file),
            &Cancel::new(),
            &Progress::new(),
        )
    };
    assert_eq!(go(&everything(), &snapshots).unwrap_err().kind(), Kind::Unavailable);
    let state = VerifyState::load(&file).unwrap().unwrap();
    assert_eq!((state.snapshots(), state.damage.len()), (vec![id], 1));
    assert!(state.contents_read > 0 && state.contents_read < all.contents_read);

    // Another verification does not take the file.
    let other = VerifyOptions {
        percent: 50.0,
        ..everything()
    };
    assert_eq!(go(&other, &snapshots).unwrap_err().kind(), Kind::InvalidInput);

    // What was read is not read again, and what was found is not forgotten.
    for (pack, _) in packs.iter().filter(|(pack, _)| pack.as_str() <= state.done.as_str()) {
        faults.rule(FaultRule {
            op: StoreOp::Get,
            prefix: pack.as_str().into(),
            skip: 0,
            count: 100,
            fault: Fault::Fail(Kind::Permission),
        });
    }
    let report = go(&everything(), &snapshots).unwrap();
    assert_eq!((report.contents_read, report.damage.len()), (all.contents_read, 1));
    assert_eq!(report.lost(id), merged(&[packs[0].1[3]]));
    assert!(!file.exists());
}

/// Another client rewrites packs while this one verifies: its index is older than what is there.
#[test]
fn what_was_moved_meanwhile_is_not_damaged() {
    let store = create();
    store_image(&open(&store), 0..30);
    let reader = open(&store);
    let snapshots = reader.snapshots().unwrap();
    let old = store.list("p").unwrap();
    let elsewhere = Arc::new(MemStore::new());
    for name in [crate::format::REPOSITORY_ID, crate::format::BLOBCFG_ID] {
        let id = BlobId::known(name);
        elsewhere.put(&id, &store.get(&id).unwrap()).unwrap();
    }
    // A second later, so that the new entries count.
    let first = open(&store)
        .lookup(&reader.contents().content_id(None, &chunk(0)))
        .unwrap()
        .time;
    while crate::time::Time::now().unix() <= first {
        std::thread::yield_now();
    }
    store_image(&open(&elsewhere), 0..30);
    for blob in elsewhere.list("").unwrap() {
        store.put(&blob.id, &elsewhere.get(&blob.id).unwrap()).unwrap();
    }
    old.iter().for_each(|pack| store.delete(&pack.id).unwrap());
    for percent in [0.0, 100.0] {
        let options = VerifyOptions {
            percent,
            ..everything()
        };
        let report = verify(&reader, &snapshots, &options, &Cancel::new(), &Progress::new()).unwrap();
        assert!(report.damage.is_empty(), "{:?}", report.damage);
    }
}

#[test]
fn a_folder_that_cannot_be_read_is_told_beside_what_can() {
    let store = create();
    let repository = open(&store);
    let options = WriteOptions {
        sealers: 1,
        uploads: 1,
        compression: CompressionPolicy::None,
        user: "u".into(),
        host: "h".into(),
        ..WriteOptions::default()
    };
    let session = WriteSession::begin(&repository, &options).unwrap();
    let folder = |entries: &str| {
        let text = format!(r#"{{"stream":"kopia:directory","entries":[{entries}],"summary":null}}"#);
        session.put_metadata('k', text.as_bytes(), false).unwrap()
    };
    let missing = "00112233445566778899aabbccddeeff";
    let good = folder(&format!(r#"{{"name":"lost","type":"f","size":5,"obj":"{missing}"}}"#));
    let bad = session.put_metadata('k', b"no folder", false).unwrap();
    let root = folder(&format!(
        r#"{{"name":"a","type":"d","obj":"{bad}"}},{{"name":"b","type":"d","obj":"k{missing}"}},{{"name":"c","type":"d","obj":"{good}"}}"#
    ));
    let snapshot = format!(
        r#"{{"id":"","source":{{"host":"h","userName":"u","path":"/v"}},"startTime":"2026-01-01T00:00:00Z","endTime":"2026-01-01T00:00:00Z",
            "rootEntry":{{"type":"d","obj":"{root}"}}}}"#
    );
    session.commit(&serde_json::from_str(&snapshot).unwrap()).unwrap();
    let report = run(&repository, 100.0);
    let have: Vec<_> = report
        .damage
        .iter()
        .map(|d| (d.affected[0].path.as_str(), d.kind))
        .collect();
    assert_eq!(
        have,
        [
            ("/a", DamageKind::Directory),
            ("/b", DamageKind::ContentMissing),
            ("/c/lost", DamageKind::ContentMissing)
        ]
    );
    assert_eq!(report.objects, 5);
}
