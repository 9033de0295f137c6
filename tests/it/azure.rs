//! Azure Blob Storage, behind Microsoft's emulator: the store does what a store has to do, a repository lives in it, and what
//! goes wrong is told.

use std::fs;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use blockferry_tests::azurite::{self, ACCOUNT, Azurite, CONTAINER, KEY};
use repo::blob::{BlobStore, Limits, Location, ObjectLock, READ_SLACK, RetryPolicy, Settings, Throttle};
use repo::format::CreateOptions;
use repo::object::BlockAddressTable;
use repo::session::{WriteOptions, WriteSession};
use repo::{BlobId, Kind, Repository};
use tempfile::TempDir;

/// A running emulator, and the folder of its credentials.
struct Cloud {
    azurite: Azurite,
    folder: TempDir,
}

impl Cloud {
    fn start() -> Self {
        Self {
            azurite: Azurite::start().unwrap(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn address(&self, container: &str, prefix: &str, key: &str) -> String {
        let path = self.folder.path().join(format!("{}.env", key.len()));
        let text = format!("AZURE_STORAGE_ACCOUNT={ACCOUNT}\nAZURE_STORAGE_ACCOUNT_ACCESS_KEY={key}\n");
        fs::write(&path, text).unwrap();
        let (url, path) = (self.azurite.url(), path.display());
        format!("az://{container}/{prefix}?endpoint={url}&credentials={path}")
    }

    fn open(&self, prefix: &str) -> Arc<dyn BlobStore> {
        open(&self.address(CONTAINER, prefix, KEY))
    }
}

fn settings() -> Settings {
    let second = Duration::from_secs(1);
    Settings {
        retry: RetryPolicy {
            wait_max: second / 10,
            time: second,
            time_unanswered: second,
        },
        ..Settings::default()
    }
}

fn open(address: &str) -> Arc<dyn BlobStore> {
    address.parse::<Location>().unwrap().open(&settings()).unwrap()
}

fn id(text: &str) -> BlobId {
    BlobId::new(text).unwrap()
}

fn names(store: &dyn BlobStore, prefix: &str) -> Vec<String> {
    let mut names: Vec<_> = store
        .list(prefix)
        .unwrap()
        .into_iter()
        .map(|blob| blob.id.to_string())
        .collect();
    names.sort();
    names
}

#[test]
fn blobs_are_stored_read_listed_and_deleted() {
    if !azurite::available() {
        return;
    }
    let cloud = Cloud::start();
    for prefix in ["", "a/b/", "%C3%A4%20%2B%26%25%23/x/"] {
        let store = cloud.open(prefix);
        let place = store.place();
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        store.put(&id("p1"), b"first").unwrap();
        store.put_shared(&id("p1"), bytes.clone().into(), None).unwrap();
        store.put(&id("q1"), b"").unwrap();
        store.put(&id("kopia.repository"), b"{}").unwrap();
        assert_eq!(store.get(&id("p1")).unwrap(), bytes, "{place}");
        assert_eq!(store.get(&id("q1")).unwrap(), b"", "{place}");
        let mut buf = vec![0; bytes.len() + 2 * READ_SLACK];
        for range in [0..bytes.len(), 5..6, 99_999..100_000, 4096..70_000] {
            let at = store
                .read_range(&id("p1"), range.start as u64..range.end as u64, &mut buf)
                .unwrap();
            assert_eq!(buf[at], bytes[range.clone()], "{place} {range:?}");
        }
        for past in [99_990..100_001, 100_000..100_001, 200_000..200_001] {
            let error = store.read_range(&id("p1"), past.clone(), &mut buf).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{place} {past:?}: {error:?}");
        }
        let meta = store.meta(&id("p1")).unwrap();
        assert_eq!(meta.len, 100_000, "{place}");
        let age = SystemTime::now().duration_since(meta.modified).unwrap_or_default();
        assert!(age < Duration::from_secs(600), "{place}: {age:?}");
        assert_eq!(names(&*store, ""), ["kopia.repository", "p1", "q1"], "{place}");
        assert_eq!(names(&*store, "p"), ["p1"], "{place}");
        assert!(names(&*store, "x").is_empty(), "{place}");
        let listed = store.list("p1").unwrap().remove(0);
        assert_eq!(listed.len, 100_000, "{place}");
        for missing in [store.get(&id("p9")).map(drop), store.meta(&id("p9")).map(drop)] {
            assert_eq!(missing.unwrap_err().kind(), Kind::NotFound, "{place}");
        }
        store.delete(&id("p1")).unwrap();
        store.delete(&id("p1")).unwrap();
        assert_eq!(names(&*store, ""), ["kopia.repository", "q1"], "{place}");
    }
}

/// More than a page, which has 5,000; beside them what is no blob of this repository.
#[test]
fn long_listings_have_every_blob_once_and_nothing_else() {
    if !azurite::available() {
        return;
    }
    const COUNT: usize = 5100;
    let cloud = Cloud::start();
    let store = cloud.open("r/");
    cloud.open("r/folder/").put(&id("p1"), b"x").unwrap();
    cloud.open("r2/").put(&id("p1"), b"x").unwrap();
    cloud.open("").put(&id("r"), b"x").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for n in (thread..COUNT).step_by(8) {
                    store.put(&id(&format!("p{n:05}")), b"x").unwrap();
                }
            });
        }
    });
    let expected: Vec<_> = (0..COUNT).map(|n| format!("p{n:05}")).collect();
    assert_eq!(names(&*store, ""), expected, "{}", store.place());
}

#[test]
fn what_goes_wrong_is_told_apart() {
    if !azurite::available() {
        return;
    }
    let cloud = Cloud::start();
    let wrong_key = "V1JPTkdXUk9OR1dST05HV1JPTkdXUk9ORw==";
    let nobody = "az://c/?anonymous=true&account=acc&endpoint=http://127.0.0.1:1/acc".to_owned();
    for (address, kind, words) in [
        (
            cloud.address("nosuchcontainer", "", KEY),
            Kind::NoBucket,
            ["nosuchcontainer", "create it"],
        ),
        (
            cloud.address(CONTAINER, "", wrong_key),
            Kind::Credentials,
            ["key or token", ".env"],
        ),
        (nobody, Kind::Unreachable, ["http://127.0.0.1:1", "tried"]),
    ] {
        let store = open(&address);
        let failures = [
            store.put(&id("p1"), b"x"),
            store.list("p").map(drop),
            store.get(&id("p1")).map(drop),
            store.delete(&id("p1")),
        ];
        for failure in failures {
            let error = failure.unwrap_err();
            assert_eq!(error.kind(), kind, "{error:?}");
            assert!(!format!("{error:?}").contains("WRONGWRONG"), "{error:?}");
            for word in words {
                assert!(error.to_string().contains(word), "no {word} in {error}");
            }
        }
    }
    let store = cloud.open("");
    let lock = ObjectLock {
        mode: "Locked".into(),
        period: Duration::from_secs(86_400),
    };
    for refused in [
        store.put_shared(&id("p1"), vec![1].into(), Some(&lock)),
        store.extend_lock(&id("p1"), &lock),
    ] {
        assert_eq!(refused.unwrap_err().kind(), Kind::Unsupported);
    }
}

#[test]
fn a_repository_lives_there() {
    if !azurite::available() {
        return;
    }
    let cloud = Cloud::start();
    let store = cloud.open("kopia/shop/");
    Repository::create(&*store, "secret", &CreateOptions::default()).unwrap();
    let again = Repository::create(&*store, "secret", &CreateOptions::default()).unwrap_err();
    assert_eq!(again.kind(), Kind::AlreadyExists);
    let repository = Repository::open(store, "secret").unwrap();
    let options = WriteOptions {
        sealers: 1,
        uploads: 2,
        ..WriteOptions::default()
    };
    let session = WriteSession::begin(&repository, &options).unwrap();
    let chunk = vec![7; 1 << 20];
    let content = repository.contents().content_id(None, &chunk);
    let mut sealer = session.sealer();
    sealer.store(content, &chunk).unwrap();
    sealer.finish().unwrap();
    let table = BlockAddressTable::uniform(1 << 20, repository.contents().hash_len(), content.hash().to_vec());
    let image = session.put_image_list(&table).unwrap();
    session.abandon();

    let again = Repository::open(cloud.open("kopia/shop/"), "secret").unwrap();
    assert_eq!(again.table(&image).unwrap(), table);
    assert_eq!(again.read_content(&content).unwrap(), chunk);
}

#[test]
fn stores_count_their_requests_and_keep_to_limits() {
    if !azurite::available() {
        return;
    }
    let cloud = Cloud::start();
    let limits = Limits {
        requests: NonZeroU64::new(1000),
        ..Limits::default()
    };
    let settings = Settings {
        throttle: Arc::new(Throttle::new(limits)),
        in_flight_max: Some(3),
        ..settings()
    };
    let location: Location = cloud.address(CONTAINER, "m/", KEY).parse().unwrap();
    let store = location.open(&settings).unwrap();
    assert_eq!(store.habits().puts, 3);
    for n in 0..20 {
        store.put(&id(&format!("p{n}")), &[7; 1000]).unwrap();
    }
    store.get(&id("p1")).unwrap();
    let stats = settings.meter.stats();
    assert_eq!((stats.requests, stats.bytes_up, stats.bytes_down), (21, 20_000, 1000));
    assert!(stats.operations["put"].latency_us_p99 > 0);
}
