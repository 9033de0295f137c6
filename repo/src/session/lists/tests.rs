use std::sync::{Arc, OnceLock};

use proptest::prelude::*;

use super::*;
use crate::blob::{BlobStore, MemStore};
use crate::format::CreateOptions;
use crate::index::{IndexEntry, build_shards};
use crate::manifest::Changes;
use crate::object::{TableBuilder, parse_list};
use crate::repository::Repository;
use crate::session::WriteOptions;

const MIB: u64 = 1 << 20;

fn created() -> (Arc<MemStore>, Repository) {
    let store = Arc::new(MemStore::new());
    Repository::create(&*store, "password", &CreateOptions::default()).expect("create");
    let repository = Repository::open(store.clone(), "password").expect("open");
    (store, repository)
}

/// One repository for all cases of a property: keys are derived once.
fn shared() -> &'static Repository {
    static SHARED: OnceLock<Repository> = OnceLock::new();
    SHARED.get_or_init(|| created().1)
}

fn begin(repository: &Repository) -> WriteSession<'_> {
    let options = WriteOptions {
        sealers: 1,
        uploads: 1,
        ..WriteOptions::default()
    };
    WriteSession::begin(repository, &options).expect("begin")
}

fn id(n: u32) -> ContentId {
    ContentId::new(None, &[n.to_be_bytes(); 4].concat()).expect("valid")
}

fn table(numbers: impl Iterator<Item = u32>) -> BlockAddressTable {
    let hashes = numbers.flat_map(|n| id(n).hash().to_vec()).collect();
    BlockAddressTable::uniform(MIB, 16, hashes)
}

/// Stores the list of `table` and gives it as an increment loads it.
fn stored(repository: &Repository, table: &BlockAddressTable) -> StoredList {
    let session = begin(repository);
    let put = session.put_image_list_from(table, None).expect("list");
    session.commit_changes(&Changes::default()).expect("commit");
    let loaded = repository.load_list(&put.object).expect("load");
    assert_eq!(&loaded.table, table);
    let list = loaded.list.expect("a list as we write it");
    assert_eq!(
        (list.object(), list.table(), list.slices()),
        (put.object, table, put.built)
    );
    list
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against the writer of lists of any shape, which shares no code with the one by position.
    #[test]
    fn a_list_made_from_a_parent_is_the_list_made_without_one(
        sizes in (1..7000usize, prop_oneof![Just(None), (1..7000usize).prop_map(Some)]),
        changes in proptest::collection::vec((0..7000usize, 0..3u32), 0..6),
        run in prop_oneof![Just(0..0usize), (0..7000usize, 0..5000usize).prop_map(|(start, len)| start..start + len)],
    ) {
        let repository = shared();
        let parent = table((0..sizes.0).map(|n| u32::try_from(n % 50).unwrap()));
        let parent = stored(repository, &parent);
        let count = sizes.1.unwrap_or(sizes.0);
        let mut child = parent.table().child(MIB, count, &id(999)).unwrap();
        for (at, n) in changes.into_iter().filter(|(at, _)| *at < count) {
            child.set_content(at, &id(n));
        }
        run.filter(|at| *at < count).for_each(|at| child.set_content(at, &id(7_000_000)));

        let session = begin(repository);
        let put = session.put_image_list_from(&child, Some(&parent)).unwrap();
        let plain = session.put_uneven_list(&child).unwrap();
        session.commit_changes(&Changes::default()).unwrap();
        prop_assert_eq!(put.object, plain);
        let list = put.list.unwrap();
        prop_assert_eq!(put.built + put.reused, list.slices());
        if child == *parent.table() {
            prop_assert_eq!((put.built, put.object), (0, parent.object()));
        }
        let loaded = repository.load_list(&put.object).unwrap();
        prop_assert_eq!(&loaded.table, &child);
        prop_assert_eq!(loaded.list.unwrap().slices(), list.slices());
    }

    /// Lists by other writers, and damaged ones: read as the parser of any list reads them, or refused as it refuses them.
    #[test]
    fn a_list_of_any_text_is_read_as_its_parser_reads_it(
        count in 1..5000usize, edits in proptest::collection::vec((any::<prop::sample::Index>(), 0..8usize, any::<u8>()), 0..3), cut in prop_oneof![3 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)],
    ) {
        let repository = shared();
        let even = table((0..count).map(|n| u32::try_from(n).unwrap()));
        let mut text = Vec::new();
        let shape = even.list_text().unwrap();
        shape.write(&even, 0..shape.len(), &mut text);
        for (at, edit, byte) in edits {
            // Half of the edits are at the border of a slice.
            let borders = text.len() / LIST_PIECE_LEN;
            let at = match borders > 0 && edit % 2 == 0 {
                true => (at.index(borders) + 1) * LIST_PIECE_LEN - 3 + at.index(7),
                false => at.index(text.len()),
            };
            let at = at.min(text.len() - 1);
            match edit / 2 {
                0 => text[at] = byte,
                1 => text.insert(at, b' '),
                2 => text[at] = text[at].to_ascii_uppercase(),
                _ => drop(text.remove(at)),
            }
        }
        if let Some(cut) = cut {
            text.truncate(cut.index(text.len()) + 1);
        }
        let session = begin(repository);
        let put = |slice: &[u8]| (slice.len() as u64, session.put_metadata(LIST_PREFIX, slice, true).unwrap());
        let pieces: Vec<_> = text.chunks(LIST_PIECE_LEN).map(put).collect();
        let object = session.put_list_of_pieces(&pieces).unwrap();
        session.commit_changes(&Changes::default()).unwrap();

        let mut strict = TableBuilder::new(16);
        let parsed = parse_list(&object, &text[..], &mut |entry| match entry.object.indirection {
            0 => strict.push(entry.len, &entry.object.content),
            _ => Err(crate::error::RepoError::corrupt("a list below")),
        });
        match (repository.load_list(&object), parsed) {
            (Ok(loaded), Ok(())) => {
                let strict = strict.finish();
                prop_assert_eq!(&loaded.table, &strict);
                if let Some(list) = loaded.list {
                    prop_assert_eq!(list.table(), &strict);
                    prop_assert_eq!(session_object(repository, &strict), object, "only a list as we write it is a parent");
                }
            }
            (Err(e), Err(strict)) => prop_assert!(e.is_damage() && strict.is_damage(), "{e} {strict}"),
            (loaded, strict) => prop_assert!(false, "{loaded:?} {strict:?}"),
        }
    }
}

fn session_object(repository: &Repository, table: &BlockAddressTable) -> ObjectId {
    let session = begin(repository);
    let object = session.put_image_list(table).expect("list");
    session.abandon();
    object
}

#[test]
fn an_unchanged_list_is_taken_over_and_stores_nothing() {
    let (store, repository) = created();
    let parent = stored(&repository, &table(0..6000));
    let packs = store.list("q").expect("list").len();
    let session = begin(&repository);
    let put = session
        .put_image_list_from(parent.table(), Some(&parent))
        .expect("list");
    let totals = session.commit_changes(&Changes::default()).expect("commit");
    assert_eq!((put.object, put.built, put.reused), (parent.object(), 0, 4));
    assert_eq!((totals.contents, store.list("q").expect("list").len()), (0, packs));
}

#[test]
fn slices_of_the_parent_that_are_dead_or_gone_are_stored_again() {
    let (store, repository) = created();
    let parent = stored(&repository, &table(0..6000));
    let slices: Vec<ContentId> = repository
        .table(&parent.object().list().expect("a list"))
        .expect("slices")
        .iter()
        .map(|piece| piece.content)
        .collect();
    // The second slice is deleted by maintenance of another client.
    let entry = repository.lookup(&slices[1]).expect("stored");
    let deletion = IndexEntry {
        deleted: true,
        time: entry.time + 600,
        ..entry
    };
    let shard = build_shards(vec![deletion]).expect("build").remove(0);
    repository
        .add_index(crate::id::BlobId::known("xn0_deletion"), shard)
        .expect("add");
    let session = begin(&repository);
    let put = session
        .put_image_list_from(parent.table(), Some(&parent))
        .expect("list");
    session.commit_changes(&Changes::default()).expect("commit");
    assert_eq!((put.object, put.built, put.reused), (parent.object(), 1, 3));
    let again = repository.lookup(&slices[1]).expect("stored again");
    assert!(!again.deleted && again.time > entry_time(&repository, &slices[0]) + 600);

    // Now the packs are lost, which is seen when they are looked for.
    for pack in store.list("q").expect("list") {
        store.delete(&pack.id).expect("delete");
    }
    let options = WriteOptions {
        sealers: 1,
        uploads: 1,
        check_reused: 100,
        ..WriteOptions::default()
    };
    let session = WriteSession::begin(&repository, &options).expect("begin");
    let put = session
        .put_image_list_from(parent.table(), Some(&parent))
        .expect("list");
    let totals = session.commit_changes(&Changes::default()).expect("commit");
    assert_eq!(
        (put.built, put.reused, totals.healed),
        (4, 0, 5),
        "and the list of slices"
    );
    let fresh = Repository::open(store, "password").expect("open");
    assert_eq!(&fresh.load_list(&put.object).expect("load").table, parent.table());
}

fn entry_time(repository: &Repository, id: &ContentId) -> u64 {
    repository.lookup(id).expect("stored").time
}

#[test]
fn a_slice_that_is_lost_is_named_by_the_reader_of_the_list() {
    let (store, repository) = created();
    let parent = stored(&repository, &table(0..6000));
    for pack in store.list("q").expect("list") {
        store.delete(&pack.id).expect("delete");
    }
    let e = repository.load_list(&parent.object()).expect_err("lost");
    assert!(e.is_damage(), "{e}");
}

#[test]
fn a_parent_of_another_grid_gives_nothing() {
    let (_, repository) = created();
    let parent = stored(&repository, &table(0..6000));
    let hashes = (0..6000).flat_map(|n| id(n).hash().to_vec()).collect();
    let child = BlockAddressTable::uniform(4 * MIB, 16, hashes);
    let session = begin(&repository);
    let put = session.put_image_list_from(&child, Some(&parent)).expect("list");
    assert_eq!(put.reused, 0);
    assert_eq!(session.put_uneven_list(&child).expect("list"), put.object);
    session.abandon();
}
