use std::sync::Arc;

use repo::BlobId;
use repo::blob::MemStore;
use repo::format::CreateOptions;

use super::*;

fn repository() -> Repository {
    let store = Arc::new(MemStore::new());
    Repository::create(&*store, "password", &CreateOptions::default()).expect("create");
    Repository::open(store, "password").expect("open")
}

fn state() -> SourceState {
    SourceState {
        source: "u@h:/a".into(),
        path: "/dev/a".into(),
        size: 1 << 30,
        change: None,
        fingerprint: Some("written 7".into()),
    }
}

fn session() -> SessionId {
    SessionId::new([7; 8], 1_800_000_000)
}

fn entry(hash: u8) -> IndexEntry {
    IndexEntry {
        content: ContentId::new(None, &[hash; 16]).unwrap(),
        pack: BlobId::new("p0123456789abcdef").unwrap(),
        offset: 32,
        packed_len: 100,
        original_len: 72,
        time: 1_800_000_000,
        deleted: false,
        format_version: 3,
        compression: 0,
    }
}

#[track_caller]
fn check(edit: impl FnOnce(&mut SourceState), refused: Option<&str>) {
    let mut now = state();
    edit(&mut now);
    let why = now.differs_from(&state());
    match refused {
        None => assert_eq!(why, None),
        Some(words) => assert!(why.is_some_and(|why| why.contains(words)), "{why:?}"),
    }
}

#[test]
fn only_the_same_state_of_the_same_source_is_continued() {
    check(|_| {}, None);
    check(|now| now.size += 1, Some("size"));
    check(|now| now.source = "u@h:/b".into(), Some("source"));
    check(|now| now.path = "/dev/b".into(), Some("path"));
    check(|now| now.fingerprint = Some("written 8".into()), Some("was written"));
    check(|now| now.fingerprint = None, Some("cannot tell"));
    let change = |id: &str| Some((id.to_owned(), "v".to_owned()));
    check(|now| now.change = change("c1"), Some("only one"));
    let with = |id: &str| SourceState {
        change: change(id),
        ..state()
    };
    assert_eq!(
        with("c1").differs_from(&with("c2")),
        Some("its change id is another one")
    );
    // A named state is the same wherever it is attached.
    let moved = SourceState {
        path: "/dev/c".into(),
        fingerprint: None,
        ..with("c1")
    };
    assert_eq!(moved.differs_from(&with("c1")), None);
}

#[test]
fn what_was_noted_is_found_again_and_what_is_torn_is_not() {
    let repository = repository();
    let folder = tempfile::tempdir().unwrap();
    let begin = |state: &SourceState| Journal::begin(&repository, Some(folder.path()), state);
    let (journal, begun) = begin(&state());
    assert!(matches!(begun, Begun::Anew));
    let journal = journal.unwrap();
    journal.start(&session(), &[]);
    journal.finished([(ChunkIndex::new(3), &[1; 16][..]), (ChunkIndex::new(9), &[2; 16][..])].into_iter());
    journal.stored(&[entry(1), entry(2)]);
    // One at a time: another backup of the same source keeps no journal.
    assert!(begin(&state()).0.is_none());
    let path = journal.path.clone();
    drop(journal);

    let mut torn = fs::read(&path).unwrap();
    torn.extend_from_slice(b"c\xFF\x00");
    fs::write(&path, &torn).unwrap();
    let content = |hash| ContentId::new(None, &[hash; 16]).unwrap();
    let both = [(ChunkIndex::new(3), content(1)), (ChunkIndex::new(9), content(2))];
    let resumed = || match begin(&state()) {
        (journal, Begun::Resumed(finished)) => (journal.unwrap(), finished),
        (_, begun) => panic!("{begun:?}"),
    };
    for _ in 0..2 {
        let (_, finished) = resumed(); // and once more by the run after, when this one does not get to begin
        assert_eq!(finished.chunks, HashMap::from(both));
        assert_eq!(finished.entries, [entry(1), entry(2)]);
    }
    for taken_over in [&both[..], &both[1..], &[]] {
        resumed().0.start(&session(), taken_over);
        let (_, finished) = resumed();
        assert_eq!(
            finished.chunks,
            taken_over.iter().copied().collect(),
            "nothing else is left"
        );
        assert!(finished.entries.is_empty(), "they are in the index by now");
    }

    let written = SourceState {
        fingerprint: Some("written 8".into()),
        ..state()
    };
    let (journal, begun) = begin(&written);
    assert!(matches!(begun, Begun::Refused(_)));
    journal.unwrap().start(&session(), &[]);
    let (journal, begun) = begin(&written);
    assert!(
        matches!(&begun, Begun::Resumed(finished) if finished.chunks.is_empty()),
        "{begun:?}"
    );
    journal.unwrap().remove();
    assert!(!path.exists());
    fs::write(&path, b"anything").unwrap();
    assert!(matches!(
        begin(&state()).1,
        Begun::Refused("its journal cannot be read")
    ));
}

#[test]
fn without_a_place_or_on_a_full_one_a_backup_runs_without_a_journal() {
    let repository = repository();
    assert!(Journal::begin(&repository, None, &state()).0.is_none());
    assert!(
        Journal::begin(&repository, Some(Path::new("/proc")), &state())
            .0
            .is_none()
    );
}

#[test]
fn a_journal_of_anything_is_no_journal() {
    for bytes in [&b""[..], b"x", MAGIC, b"blockferry backup journal 2\n"] {
        assert!(parse(bytes, 16).is_none());
    }
    let mut twice = MAGIC.to_vec();
    let text = serde_json::to_vec(&state()).unwrap();
    twice.extend(Record::bytes(Tag::State, &text));
    twice.extend(Record::bytes(Tag::Entries, b"no index"));
    twice.extend(Record::bytes(Tag::Chunks, &[0; 24]));
    let (read, finished) = parse(&twice, 16).unwrap();
    assert_eq!(read, state());
    assert!(finished.chunks.is_empty(), "what follows damage does not count");
}

#[test]
fn a_journal_guards_the_session_that_wrote_it_for_as_long_as_its_marker_counts() {
    let repository = repository();
    let folder = tempfile::tempdir().unwrap();
    let guarded = || resumable(folder.path(), &repository).unwrap();
    assert!(guarded().is_empty());
    let journal = Journal::begin(&repository, Some(folder.path()), &state()).0.unwrap();
    assert!(guarded().is_empty(), "it notes nothing yet");
    journal.start(&session(), &[]);
    journal.stored(&[entry(1)]);
    assert_eq!(guarded(), HashSet::from([session()]));
    let next = SessionId::new([8; 8], 1_800_000_000);
    journal.start(&next, &[]);
    assert_eq!(
        guarded(),
        HashSet::from([next.clone()]),
        "what was noted before is indexed"
    );
    let file = File::options().write(true).open(&journal.path).unwrap();
    let aged = |age| file.set_modified(SystemTime::now() - age).unwrap();
    aged(GUARD_AGE_MAX - Duration::from_secs(60));
    assert_eq!(guarded(), HashSet::from([next]));
    aged(GUARD_AGE_MAX + Duration::from_secs(60));
    assert!(guarded().is_empty());
    aged(Duration::ZERO);
    journal.remove();
    assert!(guarded().is_empty());
    for bytes in [&b""[..], b"anything", MAGIC] {
        fs::write(&journal.path, bytes).unwrap();
        assert!(guarded().is_empty());
    }
}
