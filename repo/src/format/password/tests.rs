use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::blob::{FaultStore, MemStore, StoreOp};
use crate::format::CreateOptions;
use crate::repository::Repository;

const OLD: &str = "old words";
const NEW: &str = "new words";

fn repository() -> Arc<MemStore> {
    let store = MemStore::new();
    Repository::create(&store, OLD, &CreateOptions::default()).expect("create");
    Arc::new(store)
}

/// As Kopia opens: both blobs under one password, a missing `kopia.blobcfg` counts as empty.
fn opens(store: &dyn BlobStore, password: &str) -> bool {
    let Ok(format) = FormatBlob::parse(&store.get(&repository_id()).expect("never missing"))
        .expect("always parses")
        .open(password)
    else {
        return false;
    };
    match store.get(&blobcfg_id()) {
        Ok(bytes) => format.open_blobcfg(&bytes).is_ok(),
        Err(e) => e.is_not_found(),
    }
}

/// Takes object locks and forgets them.
struct Locking(Arc<dyn BlobStore>);

impl BlobStore for Locking {
    fn place(&self) -> String {
        self.0.place()
    }
    fn put(&self, id: &BlobId, bytes: &[u8]) -> Result<()> {
        self.0.put(id, bytes)
    }
    fn put_shared(&self, id: &BlobId, bytes: Bytes, lock: Option<&ObjectLock>) -> Result<()> {
        assert!(
            lock.is_some(),
            "{id} is stored without the lock that the repository asks for"
        );
        self.0.put(id, &bytes)
    }
    fn get(&self, id: &BlobId) -> Result<Vec<u8>> {
        self.0.get(id)
    }
    fn read_range(&self, id: &BlobId, range: std::ops::Range<u64>, buf: &mut [u8]) -> Result<std::ops::Range<usize>> {
        self.0.read_range(id, range, buf)
    }
    fn meta(&self, id: &BlobId) -> Result<crate::blob::BlobMeta> {
        self.0.meta(id)
    }
    fn list(&self, prefix: &str) -> Result<Vec<crate::blob::BlobMeta>> {
        self.0.list(prefix)
    }
    fn delete(&self, _: &BlobId) -> Result<()> {
        panic!("nothing is deleted from a repository with object locks")
    }
    fn sync(&self) -> Result<()> {
        self.0.sync()
    }
}

/// The same repository with object locks asked for.
fn with_retention(store: &MemStore) {
    let blob = FormatBlob::parse(&store.get(&repository_id()).expect("there")).expect("parses");
    let config = BlobConfig {
        retention: Some(Retention {
            mode: RetentionMode::Governance,
            period: Duration::from_secs(86_400),
        }),
    };
    let sealed = blob.open(OLD).expect("opens").seal_blobcfg(&config);
    store.put(&blobcfg_id(), &sealed).expect("put");
}

#[test]
fn the_new_password_opens_and_the_old_one_does_not() {
    let store = repository();
    let before = FormatBlob::parse(&store.get(&repository_id()).unwrap())
        .unwrap()
        .open(OLD)
        .unwrap();
    assert_eq!(
        change_password(&*store, OLD, NEW).unwrap(),
        PasswordChange { resumed: false }
    );
    assert!(opens(&*store, NEW) && !opens(&*store, OLD));
    let after = FormatBlob::parse(&store.get(&repository_id()).unwrap())
        .unwrap()
        .open(NEW)
        .unwrap();
    assert_eq!(
        (before.master_key(), before.secret()),
        (after.master_key(), after.secret())
    );
    assert_eq!(
        change_password(&*store, OLD, "third").unwrap_err().kind(),
        Kind::WrongPassword
    );
}

#[test]
fn a_cut_after_any_step_leaves_one_good_password_and_the_same_command_completes_it() {
    for changes in 0..=3 {
        let store = repository();
        let faults = FaultStore::new(store.clone());
        faults.cut_after(changes);
        let done = change_password(&faults, OLD, NEW).is_ok();
        assert!(!done, "cut after {changes}: what was stored cannot be read back");
        let good = [opens(&*store, OLD), opens(&*store, NEW)];
        assert_eq!(good, [changes < 2, changes >= 2], "cut after {changes}");
        change_password(&*store, OLD, NEW).unwrap();
        assert!(
            opens(&*store, NEW) && !opens(&*store, OLD),
            "cut after {changes}, run again"
        );
        assert!(store.get(&blobcfg_id()).is_ok());
    }
}

#[test]
fn a_cut_never_takes_object_locks_away_and_the_same_command_completes_it() {
    for changes in 0..=2 {
        let store = repository();
        with_retention(&store);
        let faults = Arc::new(FaultStore::new(store.clone()));
        faults.cut_after(changes);
        assert!(change_password(&Locking(faults), OLD, NEW).is_err());
        assert!(store.get(&blobcfg_id()).is_ok(), "cut after {changes}");
        change_password(&Locking(store.clone()), OLD, NEW).unwrap();
        let blob = FormatBlob::parse(&store.get(&repository_id()).unwrap()).unwrap();
        let config = blob
            .open(NEW)
            .unwrap()
            .open_blobcfg(&store.get(&blobcfg_id()).unwrap())
            .unwrap();
        assert!(config.retention.is_some(), "cut after {changes}");
    }
}

#[test]
fn a_store_without_object_locks_refuses_before_anything_is_changed() {
    let store = repository();
    with_retention(&store);
    let before = store.get(&blobcfg_id()).unwrap();
    assert_eq!(
        change_password(&*store, OLD, NEW).unwrap_err().kind(),
        Kind::Unsupported
    );
    assert_eq!(store.get(&blobcfg_id()).unwrap(), before);
    assert!(opens(&*store, OLD));
}

#[test]
fn a_failed_step_is_taken_back_and_a_forbidden_delete_is_done_without() {
    let store = repository();
    let faults = FaultStore::new(store.clone());
    faults.fail_once(StoreOp::Put, REPOSITORY_ID, Kind::StorageFull);
    let error = change_password(&faults, OLD, NEW).unwrap_err();
    assert!(error.what().contains("the old one is good"), "{error}");
    assert!(opens(&*store, OLD) && store.get(&blobcfg_id()).is_ok());

    faults.fail_once(StoreOp::Delete, BLOBCFG_ID, Kind::Permission);
    change_password(&faults, OLD, NEW).unwrap();
    assert!(opens(&*store, NEW));
}

#[test]
fn what_cannot_be_changed_is_refused_and_stays() {
    let store = repository();
    let before = store.get(&repository_id()).unwrap();
    for (old, new, kind) in [
        (OLD, "", Kind::InvalidInput),
        (OLD, OLD, Kind::InvalidInput),
        ("wrong", NEW, Kind::WrongPassword),
    ] {
        assert_eq!(change_password(&*store, old, new).unwrap_err().kind(), kind);
    }
    let foreign = format_of(&repository()).seal_blobcfg(&BlobConfig::default());
    store.put(&blobcfg_id(), &foreign).unwrap();
    assert!(change_password(&*store, OLD, NEW).unwrap_err().is_damage());
    assert_eq!(store.get(&repository_id()).unwrap(), before);
    let empty = change_password(&MemStore::new(), OLD, NEW).unwrap_err();
    assert_eq!(empty.kind(), Kind::NotARepository);

    let mut format = format_of(&store);
    assert!(check_changeable(&format).is_ok());
    format.enable_password_change = false;
    assert_eq!(check_changeable(&format).unwrap_err().kind(), Kind::Unsupported);
}

fn format_of(store: &MemStore) -> Format {
    let blob = FormatBlob::parse(&store.get(&repository_id()).unwrap()).unwrap();
    blob.open(OLD).unwrap()
}
