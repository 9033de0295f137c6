//! Damage anywhere: a flipped bit, a cut, a blob that is gone. It is found, or it is where no reader looks; what is restored
//! is never wrong.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use blockferry_tests::volume::{Layout, Random};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use repo::blob::{BlobMeta, BlobStore, Fault, FaultRule, FaultStore, MemStore, StoreOp};
use repo::format::{Format, FormatBlob, REPOSITORY_ID};
use repo::{BlobId, Kind, RepoError, Repository};

use super::support::{
    MIB, PASSWORD, World, assert_refused, assert_same, assert_words, back_up, backup_options, chain, copy, damage,
    empty, names, open, random_volume, restored,
};

/// What is wrong with one blob.
#[derive(Clone, Debug)]
enum Harm {
    Flip { at: usize, bit: u8 },
    Cut { len: usize },
    Gone,
}

/// A store that shows one blob damaged.
struct Harmed {
    inner: Arc<MemStore>,
    harm: Mutex<Option<(BlobId, Harm)>>,
}

impl Harmed {
    fn set(&self, harm: Option<(BlobId, Harm)>) {
        *self.harm.lock().unwrap() = harm;
    }

    fn on(&self, id: &BlobId) -> Option<Harm> {
        self.harm
            .lock()
            .unwrap()
            .as_ref()
            .filter(|(blob, _)| blob == id)
            .map(|(_, harm)| harm.clone())
    }
}

impl BlobStore for Harmed {
    fn place(&self) -> String {
        "memory".into()
    }

    fn put(&self, id: &BlobId, bytes: &[u8]) -> repo::Result<()> {
        self.inner.put(id, bytes)
    }

    fn get(&self, id: &BlobId) -> repo::Result<Vec<u8>> {
        let mut bytes = self.inner.get(id)?;
        match self.on(id) {
            None => {}
            Some(Harm::Flip { at, bit }) => bytes[at] ^= 1 << bit,
            Some(Harm::Cut { len }) => bytes.truncate(len),
            Some(Harm::Gone) => return Err(RepoError::new(Kind::NotFound, format!("blob {id} in memory"))),
        }
        Ok(bytes)
    }

    fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> repo::Result<Range<usize>> {
        let bytes = self.get(id)?;
        let bounds = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        let part = bytes
            .get(bounds)
            .ok_or_else(|| RepoError::corrupt(format!("blob {id} in memory ends before byte {}", range.end)))?;
        buf[..part.len()].copy_from_slice(part);
        Ok(0..part.len())
    }

    fn meta(&self, id: &BlobId) -> repo::Result<BlobMeta> {
        let len = self.get(id)?.len() as u64;
        Ok(BlobMeta {
            len,
            ..self.inner.meta(id)?
        })
    }

    fn list(&self, prefix: &str) -> repo::Result<Vec<BlobMeta>> {
        let metas = self.inner.list(prefix)?;
        Ok(metas
            .into_iter()
            .filter(|meta| !matches!(self.on(&meta.id), Some(Harm::Gone)))
            .map(|meta| self.meta(&meta.id).unwrap())
            .collect())
    }

    fn delete(&self, id: &BlobId) -> repo::Result<()> {
        self.inner.delete(id)
    }

    fn sync(&self) -> repo::Result<()> {
        self.inner.sync()
    }
}

/// A repository with one snapshot of a volume, and what readers need of each blob.
struct Subject {
    store: Arc<Harmed>,
    repository: Repository,
    volume: Vec<u8>,
    /// Sealed contents in the packs.
    used: BTreeMap<String, Vec<Range<usize>>>,
    blobs: Vec<(BlobId, usize)>,
}

impl Subject {
    /// Chunks of every kind and an odd end: data pack, metadata pack with list, folder and manifest, index.
    fn new() -> Self {
        let inner = empty();
        let volume = blockferry_tests::volume::Volume::create(&Layout::mixed(5, 4 * MIB + 700)).unwrap();
        back_up(&open(inner.clone()), volume.path(), &backup_options()).unwrap();
        let store = Arc::new(Harmed {
            inner,
            harm: Mutex::new(None),
        });
        let repository = open(store.clone());
        let mut used: BTreeMap<String, Vec<Range<usize>>> = BTreeMap::new();
        for prefix in [0, b'k', b'm', b'x'] {
            let mut note = |entry: repo::index::IndexEntry| {
                let start = entry.offset as usize;
                used.entry(entry.pack.to_string())
                    .or_default()
                    .push(start..start + entry.packed_len as usize);
                Ok(())
            };
            repository.each_content(prefix, &mut note).unwrap();
        }
        let blobs = store
            .list("")
            .unwrap()
            .into_iter()
            .map(|meta| (meta.id, usize::try_from(meta.len).unwrap()))
            .collect();
        Self {
            store,
            repository,
            volume: volume.bytes().unwrap(),
            used,
            blobs,
        }
    }

    /// Blobs but the format blob, which a test of its own looks at: opening derives a slow key.
    fn targets(&self) -> Vec<(BlobId, usize)> {
        self.blobs
            .iter()
            .filter(|(id, _)| id.as_str() != REPOSITORY_ID)
            .cloned()
            .collect()
    }

    /// A reader needs this byte.
    fn is_used(&self, id: &BlobId, at: usize) -> bool {
        match self.used.get(id.as_str()) {
            Some(ranges) => ranges.iter().any(|range| range.contains(&at)),
            None => id.as_str().starts_with('x'),
        }
    }

    /// Bytes of the blob up to which readers need it.
    fn used_len(&self, id: &BlobId, len: usize) -> usize {
        match self.used.get(id.as_str()) {
            Some(ranges) => ranges.iter().map(|range| range.end).max().unwrap(),
            None if id.as_str().starts_with('x') => len,
            None => 0,
        }
    }

    /// Whether some look at the repository tells of the harm. Wrong bytes fail the test, and so does a restore that fails
    /// where a verification finds nothing.
    fn is_detected(&self, id: &BlobId, harm: &Harm) -> bool {
        self.store.set(Some((id.clone(), harm.clone())));
        let detected = self.look(&format!("{id} {harm:?}"));
        self.store.set(None);
        detected
    }

    fn look(&self, case: &str) -> bool {
        let named = |error: &RepoError| {
            assert!(error.is_damage(), "{case}: {}", chain(error));
            true
        };
        if let Err(error) = self.repository.reload() {
            return named(&error);
        }
        let snapshots = match self.repository.snapshots() {
            Ok(snapshots) => snapshots,
            Err(error) => return named(&error),
        };
        let found = !damage(&self.repository).unwrap().is_empty();
        match restored(&self.repository, snapshots.first().expect(case)) {
            Ok(bytes) => assert!(bytes == self.volume, "{case}: wrong bytes"),
            Err(error) => {
                assert_eq!(error.exit_code(), 4, "{case}: {}", chain(&error));
                assert!(
                    found,
                    "{case}: the restore fails, the verification finds nothing: {}",
                    chain(&error)
                );
            }
        }
        found
    }
}

#[test]
fn a_flipped_bit_is_found_or_is_where_no_reader_looks() {
    let subject = Subject::new();
    let targets = subject.targets();
    assert_eq!(
        subject.used.len(),
        2,
        "a data pack and a metadata pack: {:?}",
        subject.used
    );
    // Half of the flips go to sealed contents, so that the small ones between much padding are hit too.
    let strategy = (any::<Index>(), any::<Index>(), any::<Index>(), 0u8..8, any::<bool>());
    let mut runner = TestRunner::new(Config {
        cases: 160,
        failure_persistence: None,
        ..Config::default()
    });
    let run = |(blob, part, at, bit, in_content): (Index, Index, Index, u8, bool)| {
        let (id, len) = blob.get(&targets);
        let at = match subject.used.get(id.as_str()) {
            Some(ranges) if in_content => {
                let range = part.get(ranges);
                range.start + at.index(range.len())
            }
            _ => at.index(*len),
        };
        prop_assert_eq!(
            subject.is_detected(id, &Harm::Flip { at, bit }),
            subject.is_used(id, at),
            "{} byte {} bit {}",
            id,
            at,
            bit
        );
        Ok(())
    };
    runner.run(&strategy, run).unwrap();
}

/// First and last bytes of every part are where a bound that is off by one shows.
#[test]
fn a_flipped_bit_at_every_bound_is_found_or_is_where_no_reader_looks() {
    let subject = Subject::new();
    for (id, len) in subject.targets() {
        let ranges = subject.used.get(id.as_str()).cloned().unwrap_or_default();
        let bounds = ranges
            .iter()
            .flat_map(|range| [range.start, range.end - 1, range.end])
            .chain([0, len / 2, len - 1]);
        for at in bounds.filter(|at| *at < len) {
            assert_eq!(
                subject.is_detected(&id, &Harm::Flip { at, bit: 0 }),
                subject.is_used(&id, at),
                "{id} byte {at}"
            );
        }
    }
    let (index, len) = subject
        .targets()
        .into_iter()
        .find(|(id, _)| id.as_str().starts_with("xn"))
        .unwrap();
    for at in 0..len {
        assert!(
            subject.is_detected(&index, &Harm::Flip { at, bit: 7 }),
            "index byte {at}"
        );
    }
}

#[test]
fn a_blob_cut_short_is_found_when_a_reader_needs_the_rest() {
    let subject = Subject::new();
    for (id, len) in subject.targets() {
        let used = subject.used_len(&id, len);
        for cut in [0, 1, 31, 32, 33, used / 2, used.saturating_sub(1), used, len - 1] {
            let cut = cut.min(len - 1);
            assert_eq!(
                subject.is_detected(&id, &Harm::Cut { len: cut }),
                cut < used,
                "{id} cut to {cut} of {len}"
            );
        }
    }
}

#[test]
fn a_missing_pack_is_named_by_every_reader() {
    let subject = Subject::new();
    for (id, _) in subject
        .targets()
        .into_iter()
        .filter(|(id, _)| id.as_str().starts_with(['p', 'q']))
    {
        assert!(subject.is_detected(&id, &Harm::Gone), "{id}");
    }
    let world = World::with(&*subject.store.inner);
    let id = names(&*world.store(), "p").pop().unwrap();
    world.store().delete(&BlobId::new(id.as_str()).unwrap()).unwrap();
    let target = world.text("target");
    world.refuses(
        &["restore", "latest", &target],
        4,
        &["pack", &id, "missing", &world.repo().display().to_string()],
    );
    assert!(
        !world.path("target").exists(),
        "half a volume does not stay under the name of a whole one"
    );
    for percent in ["0", "100"] {
        let ended = world.ferry.ended(["verify", "--percent", percent]).unwrap();
        assert_eq!(ended.code, Some(4), "{}", ended.stderr);
        assert_words(&ended.stdout, &["DAMAGE FOUND", &id, "missing"]);
    }
}

#[test]
fn a_lost_index_blob_shows_in_what_refers_to_its_contents() {
    let store = empty();
    let (first, second) = (random_volume(6, 2), random_volume(6, 3));
    back_up(&open(store.clone()), first.path(), &backup_options()).unwrap();
    let before = names(&*store, "xn");
    back_up(&open(store.clone()), second.path(), &backup_options()).unwrap();

    // Without the later one its snapshot is not there, and the earlier stays whole.
    let later = copy(&*store);
    let newest = names(&*later, "xn")
        .into_iter()
        .find(|name| !before.contains(name))
        .unwrap();
    later.delete(&BlobId::new(newest).unwrap()).unwrap();
    let repository = open(later);
    assert_eq!(repository.snapshots().unwrap().len(), 1);
    assert_eq!(damage(&repository).unwrap(), Vec::<String>::new());

    // Without the earlier one the later snapshot, which shares its chunks, is damaged and says where.
    let earlier = copy(&*store);
    earlier.delete(&BlobId::new(before[0].as_str()).unwrap()).unwrap();
    let repository = open(earlier.clone());
    let snapshots = repository.snapshots().unwrap();
    assert_eq!(snapshots.len(), 1);
    let found = damage(&repository).unwrap();
    assert_eq!(found.len(), 2, "one line for each lost chunk: {found:?}");
    assert_words(
        &found.concat(),
        &["at byte 0", "at byte 1048576", "is not in the index", "-volume"],
    );
    assert_refused(
        restored(&repository, &snapshots[0]).unwrap_err(),
        4,
        &["content", "bytes 0..1048576", "not in the index"],
    );

    // A new backup of the volume heals it.
    back_up(&repository, second.path(), &backup_options()).unwrap();
    let repository = open(earlier);
    assert_eq!(damage(&repository).unwrap(), Vec::<String>::new());
    assert_same(
        &restored(&repository, &repository.snapshots().unwrap()[0]).unwrap(),
        &second.bytes().unwrap(),
    );
}

#[test]
fn an_index_blob_that_vanishes_under_the_reader_is_looked_for_again() {
    let store = empty();
    back_up(&open(store.clone()), random_volume(7, 1).path(), &backup_options()).unwrap();
    let faulty = Arc::new(FaultStore::new(store));
    faulty.rule(FaultRule {
        op: StoreOp::Get,
        prefix: "xn".into(),
        skip: 0,
        count: 2,
        fault: Fault::Fail(Kind::NotFound),
    });
    assert_eq!(open(faulty).snapshots().unwrap().len(), 1);
}

#[test]
fn damage_in_a_folder_leads_to_exit_code_4() {
    let store = empty();
    back_up(&open(store.clone()), random_volume(8, 2).path(), &backup_options()).unwrap();
    for (prefix, command) in [
        ("xn", &["snapshots"][..]),
        ("q", &["snapshots"]),
        ("p", &["verify", "--percent", "100"]),
        ("p", &["restore", "latest", "TARGET"]),
    ] {
        let world = World::with(&*store);
        let id = names(&*world.store(), prefix).pop().unwrap();
        let path = world.repo().join(blockferry_tests::repo::blob_file(&id));
        let mut bytes = fs::read(&path).unwrap();
        // Past the preamble in a pack, past the nonce in an index; every content of the metadata pack is hit.
        let end = if prefix == "q" { bytes.len().min(1000) } else { 41 };
        bytes[40..end].iter_mut().for_each(|byte| *byte ^= 0x10);
        fs::write(&path, bytes).unwrap();
        let target = world.text("target");
        let args: Vec<&str> = command
            .iter()
            .map(|arg| if *arg == "TARGET" { &target } else { *arg })
            .collect();
        let ended = world.ferry.ended(&args).unwrap();
        assert_eq!(
            ended.code,
            Some(4),
            "{prefix} {args:?}: {}{}",
            ended.stdout,
            ended.stderr
        );
        assert_words(&format!("{}{}", ended.stdout, ended.stderr), &[&id]);
    }
}

/// Outcome of opening changed bytes of the format blob; a key is derived only where salt or algorithm could differ.
fn opens(bytes: &[u8], good: &FormatBlob, key: &repo::crypto::Secret32, slow: &mut u32) -> Option<Format> {
    let blob = FormatBlob::parse(bytes).ok()?;
    if blob.unique_id() == good.unique_id() {
        return blob.open_with_key(key).ok();
    }
    *slow += 1;
    // Each costs a key derivation on purpose made slow; all flips of the salt are alike.
    if *slow <= 3 { blob.open(PASSWORD).ok() } else { None }
}

#[test]
fn a_flipped_bit_in_the_format_blob_is_found_or_changes_nothing() {
    let store = empty();
    let bytes = store.get(&BlobId::new(REPOSITORY_ID).unwrap()).unwrap();
    let good = FormatBlob::parse(&bytes).unwrap();
    let key = good.derive_key(PASSWORD).unwrap();
    let want = format!("{:?}", good.open_with_key(&key).unwrap());
    let (mut slow, mut opened) = (0, 0);
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            if let Some(format) = opens(&flipped, &good, &key, &mut slow) {
                opened += 1;
                assert_eq!(format!("{format:?}"), want, "byte {at} bit {bit}");
            }
        }
    }
    assert!(
        opened > 0 && slow > 3,
        "informational fields may change, the salt may not: {opened} {slow}"
    );

    let mut random = Random::new(9);
    for _ in 0..200 {
        let len = usize::try_from(random.below(bytes.len() as u64 - 2)).unwrap();
        assert!(opens(&bytes[..len], &good, &key, &mut slow).is_none(), "cut to {len}");
    }
}
