//! What a census finds in use.

use std::sync::atomic::Ordering;

use blockio::{Cancel, Progress};

use super::super::census::Census;
use super::super::writer::Writer;
use super::hooked::Hooked;
use super::world::*;
use crate::id::{ContentId, ObjectId};
use crate::manifest::{self, Changes};
use crate::repository::Repository;
use crate::snapshot::Snapshot;
use crate::time::Time;

/// Stores contents and a snapshot whose root is what was stored last.
struct Tree<'r> {
    repository: &'r Repository,
    writer: Writer<'r>,
}

impl<'r> Tree<'r> {
    fn new(world: &World, repository: &'r Repository) -> Self {
        Self {
            repository,
            writer: Writer::new(repository, &world.clock(), "client@there").expect("writer"),
        }
    }

    fn put(&mut self, prefix: Option<char>, data: &[u8]) -> ContentId {
        let content = self.repository.contents().content_id(prefix, data);
        store_content(self.repository, &mut self.writer, content, data);
        content
    }

    fn list(&mut self, prefix: char, pieces: &[(usize, ObjectId)]) -> ObjectId {
        let mut start = 0;
        let entries: Vec<String> = pieces
            .iter()
            .map(|(len, object)| {
                let entry = format!(r#"{{"s":{start},"l":{len},"o":"{object}"}}"#);
                start += len;
                entry
            })
            .collect();
        let text = format!(r#"{{"stream":"kopia:indirect","entries":[{}]}}"#, entries.join(","));
        ObjectId::direct(self.put(Some(prefix), text.as_bytes())).indirect()
    }

    fn folder(&mut self, entries: &[(&str, ObjectId)]) -> String {
        let entries: Vec<String> = entries
            .iter()
            .map(|(kind, object)| format!(r#"{{"name":"n","type":"{kind}","obj":"{object}"}}"#))
            .collect();
        format!(
            r#"{{"stream":"kopia:directory","entries":[{}],"summary":null}}"#,
            entries.join(",")
        )
    }

    fn publish(mut self, kind: &str, root: ObjectId) {
        let text = format!(
            r#"{{"id":"","source":{{"host":"h","userName":"u","path":"/v"}},"startTime":"{0}","endTime":"{0}","rootEntry":{{"name":"v","type":"{kind}","obj":"{root}"}}}}"#,
            Time::from_unix(5)
        );
        let snapshot: Snapshot = serde_json::from_str(&text).expect("a snapshot");
        let mut changes = Changes::default();
        changes.put(snapshot.labels(), &snapshot).expect("put");
        self.put(Some(manifest::PREFIX), &changes.to_bytes());
        self.writer.finish().expect("store");
    }
}

fn used(census: &Census<'_>, contents: &[ContentId]) -> Vec<bool> {
    contents.iter().map(|content| census.uses_content(content)).collect()
}

#[test]
fn everything_below_a_folder_is_in_use_links_lists_of_lists_and_large_folders_too() {
    let world = World::new();
    let repository = world.open();
    let mut tree = Tree::new(&world, &repository);
    let data: Vec<ContentId> = (1..8).map(|n| tree.put(None, &[n; 10])).collect();
    let other = tree.put(None, &[99; 10]);
    let direct = |content: ContentId| ObjectId::direct(content);
    let list = tree.list('x', &[(10, direct(data[0])), (10, direct(data[1]))]);
    let nested = tree.list('x', &[(20, list), (10, direct(data[2]))]);
    // A list that is itself stored in pieces.
    let pieces_of = {
        let text = format!(
            r#"{{"stream":"kopia:indirect","entries":[{{"l":10,"o":"{}"}},{{"s":10,"l":10,"o":"{}"}}]}}"#,
            data[3], data[4]
        );
        let (head, tail) = text.as_bytes().split_at(37);
        let (a, b) = (tree.put(Some('x'), head), tree.put(Some('x'), tail));
        let inner = tree.list('x', &[(head.len(), direct(a)), (tail.len(), direct(b))]);
        ([a, b], inner.indirect())
    };
    // A folder large enough to be a list of pieces.
    let text = tree.folder(&[("s", direct(data[5])), ("?", direct(data[6]))]);
    let (head, tail) = text.as_bytes().split_at(50);
    let (a, b) = (tree.put(Some('k'), head), tree.put(Some('k'), tail));
    let large = tree.list('k', &[(head.len(), direct(a)), (tail.len(), direct(b))]);
    let root = tree.folder(&[("f", nested), ("f", pieces_of.1), ("d", large), ("d", large)]);
    let root = direct(tree.put(Some('k'), root.as_bytes()));
    tree.publish("d", root);

    let census = Census::take(&world.open(), &Cancel::new(), &Progress::new()).map(|census| {
        assert!(used(&census, &data).into_iter().all(|used| used));
        let lists = [
            list.content,
            nested.content,
            pieces_of.0[0],
            pieces_of.0[1],
            pieces_of.1.content,
        ];
        assert!(used(&census, &lists).into_iter().all(|used| used));
        assert!(
            used(&census, &[a, b, large.content, root.content])
                .into_iter()
                .all(|used| used)
        );
        assert!(!census.uses_content(&other));
        census.totals()
    });
    let totals = census.expect("a whole tree");
    assert_eq!(
        (totals.snapshots, totals.folders),
        (1, 2),
        "the folder that occurs twice is walked once"
    );
    assert_eq!(totals.lists, 5, "{totals:?}");
}

#[test]
fn what_snapshots_share_is_walked_once_and_a_later_snapshot_alone() {
    let mut world = World::new();
    for _ in 0..10 {
        world.back_up(&[1, 2, 3]);
    }
    let store = Hooked::new(&world.store, |_, listing| listing);
    let repository = world.open_on(store.clone());
    let (cancel, progress) = (Cancel::new(), Progress::new());
    let mut census = Census::take(&repository, &cancel, &progress).expect("census");
    assert_eq!(
        (
            census.totals().snapshots,
            census.totals().lists,
            census.totals().list_entries
        ),
        (10, 1, 3)
    );
    world.back_up(&[1, 4]);
    let before = store.reads.load(Ordering::SeqCst);
    census.catch_up(&cancel, &progress).expect("catch up");
    assert_eq!(
        (
            census.totals().snapshots,
            census.totals().lists,
            census.totals().list_entries
        ),
        (11, 2, 5)
    );
    let manifests = 12;
    assert_eq!(
        store.reads.load(Ordering::SeqCst) - before,
        manifests + 1,
        "manifests, and one list"
    );
    let new = repository.contents().content_id(None, &[4; CHUNK]);
    assert!(census.uses_content(&new), "stored after the census began");
    census.catch_up(&cancel, &progress).expect("nothing new");
    assert_eq!(census.totals().lists, 2);
}

#[test]
fn a_damaged_list_or_folder_is_an_error_and_not_an_empty_one() {
    for (kind, root) in [
        ("f", r#"{"stream":"kopia:indirect","entries":[{"l":10,"o":"zz"}]}"#),
        ("f", r#"{"stream":"kopia:directory","entries":[]}"#),
        (
            "f",
            r#"{"stream":"kopia:indirect","entries":[{"l":10,"o":"00112233445566778899aabbccddeeff"}]}"#,
        ),
        ("d", r#"{"stream":"kopia:indirect","entries":[]}"#),
        ("d", "no JSON"),
    ] {
        let world = World::new();
        let repository = world.open();
        let mut tree = Tree::new(&world, &repository);
        let prefix = if kind == "d" { 'k' } else { 'x' };
        let content = ObjectId::direct(tree.put(Some(prefix), root.as_bytes()));
        let object = if kind == "d" { content } else { content.indirect() };
        tree.publish(kind, object);
        let taken = Census::take(&world.open(), &Cancel::new(), &Progress::new()).map(|_| ());
        let error = taken.expect_err(root);
        assert!(error.is_damage() && error.to_string().contains("snapshot"), "{error}");
    }
}
