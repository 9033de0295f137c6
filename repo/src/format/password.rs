//! Another password for a repository: `kopia.repository` and `kopia.blobcfg` are sealed under its key, nothing else is.
//!
//! The two blobs are stored one after the other, and whoever opens a repository reads both under one password. Kopia
//! itself (repo/format/format_change_password.go) stores `kopia.blobcfg` first: between its two puts no password opens the
//! repository. Here the order is another where it can be:
//!
//! | retention | order                                   | cut between two steps                                     |
//! |-----------|-----------------------------------------|-----------------------------------------------------------|
//! | none      | delete blobcfg, put repository, blobcfg | opens with the old password, then with the new one        |
//! | some      | put blobcfg, put repository             | opens with neither; the same command again completes it   |
//!
//! A missing `kopia.blobcfg` means that nothing is locked, so deleting one that says so changes nothing for a reader. One
//! that asks for object locks is never missing: a client would store packs without them.

use bytes::Bytes;
use tracing::warn;
use zeroize::Zeroizing;

use super::{BLOBCFG_ID, BlobConfig, BlobKeys, Format, FormatBlob, REPOSITORY_ID, Retention, RetentionMode};
use crate::blob::{BlobStore, ObjectLock};
use crate::crypto::Secret32;
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;

/// How a change of the password ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasswordChange {
    /// An earlier change was cut short, and this one completed it.
    pub resumed: bool,
}

/// The password a blob opens with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Old,
    New,
}

/// One change of the storage. Each is durable before the next begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    DropBlobcfg,
    PutBlobcfg,
    PutRepository,
}

/// What leads from what is there to both blobs under the new key.
fn steps(repository: Key, blobcfg: Option<Key>, is_locked: bool) -> &'static [Step] {
    match (repository, blobcfg) {
        (Key::New, Some(Key::New)) => &[],
        (Key::New, _) => &[Step::PutBlobcfg],
        (Key::Old, Some(Key::New)) => &[Step::PutRepository],
        (Key::Old, None) => &[Step::PutRepository, Step::PutBlobcfg],
        (Key::Old, Some(Key::Old)) if is_locked => &[Step::PutBlobcfg, Step::PutRepository],
        (Key::Old, Some(Key::Old)) => &[Step::DropBlobcfg, Step::PutRepository, Step::PutBlobcfg],
    }
}

/// Seals the parameters of the repository in `store`, which open with password `old`, for password `new`, reads them back
/// and opens them. What a change that was cut short has left is completed when both passwords are given again.
///
/// Clients that keep the old password fail from their next look at `kopia.repository` on, at most 15 minutes later.
///
/// # Errors
/// `WrongPassword` when `old` does not open the repository; `InvalidInput` for an empty or unchanged password;
/// `Unsupported` for repositories whose keys depend on the password; `Locked` when an upgrade is announced or under way;
/// `Storage` when another client changed the parameters meanwhile. A repository whose change failed opens with one of
/// the two passwords, or the error says how to complete it.
pub fn change_password(store: &dyn BlobStore, old: &str, new: &str) -> Result<PasswordChange> {
    if new.is_empty() {
        return Err(RepoError::new(Kind::InvalidInput, "a repository needs a password"));
    }
    if new == old {
        return Err(RepoError::new(
            Kind::InvalidInput,
            "the new password is the one the repository has",
        ));
    }
    let in_place = |e: RepoError| e.context(format!("repository in {}", store.place()));
    let change = Change::prepare(store, old, new).map_err(in_place)?;
    change.run().and_then(|()| change.check()).map_err(in_place)?;
    Ok(PasswordChange {
        resumed: change.resumed,
    })
}

/// Everything a change needs, read and sealed before anything is stored.
struct Change<'a> {
    store: &'a dyn BlobStore,
    new_key: Secret32,
    /// The blobs as they are.
    repository: Vec<u8>,
    repository_key: Key,
    blobcfg: Option<Vec<u8>>,
    /// The blobs as they will be.
    new_repository: Vec<u8>,
    new_blobcfg: Vec<u8>,
    lock: Option<ObjectLock>,
    steps: &'static [Step],
    resumed: bool,
}

impl<'a> Change<'a> {
    fn prepare(store: &'a dyn BlobStore, old: &str, new: &str) -> Result<Self> {
        let repository = store.get(&repository_id()).map_err(|e| match e.is_not_found() {
            true => RepoError::new(Kind::NotARepository, format!("it has no {REPOSITORY_ID}")).because(e),
            false => e,
        })?;
        let blob = FormatBlob::parse(&repository)?;
        let (old_key, new_key) = (blob.derive_key(old)?, blob.derive_key(new)?);
        let (format, repository_key) = match blob.open_with_key(&old_key) {
            Err(e) if e.kind() == Kind::WrongPassword => {
                let format = blob.open_with_key(&new_key).map_err(|_| e)?; // that the old one fails is what to tell
                (format, Key::New)
            }
            other => (other?, Key::Old),
        };
        check_changeable(&format)?;
        let blobcfg = match store.get(&blobcfg_id()) {
            Ok(bytes) => Some(bytes),
            Err(e) if e.is_not_found() => None,
            Err(e) => return Err(e),
        };
        let keyed = |key: &Secret32| Format {
            format_key: key.clone(),
            ..format.clone()
        };
        let (config, blobcfg_key) = match &blobcfg {
            None => (BlobConfig::default(), None),
            Some(bytes) => match keyed(&new_key).open_blobcfg(bytes) {
                Ok(config) => (config, Some(Key::New)),
                Err(_) => (
                    keyed(&old_key).open_blobcfg(bytes).map_err(foreign_blobcfg)?,
                    Some(Key::Old),
                ),
            },
        };
        let old_or_new = if repository_key == Key::Old { &old_key } else { &new_key };
        Ok(Self {
            store,
            new_repository: reseal(&repository, &blob, old_or_new, &new_key)?,
            new_blobcfg: keyed(&new_key).seal_blobcfg(&config),
            lock: config.retention.map(lock),
            steps: steps(repository_key, blobcfg_key, config.retention.is_some()),
            resumed: repository_key == Key::New || blobcfg_key == Some(Key::New),
            repository,
            repository_key,
            blobcfg,
            new_key,
        })
    }

    fn run(&self) -> Result<()> {
        let mut steps = self.steps;
        while let [step, rest @ ..] = steps {
            match self.step(*step) {
                Ok(()) => steps = rest,
                Err(e) if *step == Step::DropBlobcfg && e.kind() == Kind::Permission => {
                    warn!(error = %e, "{BLOBCFG_ID} may not be deleted; a cut in the next moment has to be completed by the same command");
                    steps = &[Step::PutBlobcfg, Step::PutRepository];
                }
                Err(e) => return Err(self.take_back(e)),
            }
        }
        Ok(())
    }

    fn step(&self, step: Step) -> Result<()> {
        let put = |id: &BlobId, bytes: &[u8]| {
            let bytes = Bytes::copy_from_slice(bytes);
            self.store.put_shared(id, bytes, self.lock.as_ref())
        };
        match step {
            Step::DropBlobcfg => self.store.delete(&blobcfg_id())?,
            Step::PutBlobcfg => put(&blobcfg_id(), &self.new_blobcfg)?,
            Step::PutRepository => {
                if self.store.get(&repository_id())? != self.repository {
                    let what = format!("another client changed {REPOSITORY_ID} meanwhile; try again");
                    return Err(RepoError::new(Kind::Storage, what));
                }
                put(&repository_id(), &self.new_repository)?;
            }
        }
        self.store.sync()
    }

    /// After a step failed with `e`: makes the old password good again, if `kopia.repository` is what it was.
    fn take_back(&self, e: RepoError) -> RepoError {
        let is_old = self.repository_key == Key::Old;
        let same = |id: &BlobId, bytes: &[u8]| self.store.get(id).is_ok_and(|now| now == bytes);
        let put_back = |bytes: &Vec<u8>| {
            same(&blobcfg_id(), bytes)
                || self
                    .store
                    .put_shared(&blobcfg_id(), Bytes::from(bytes.clone()), self.lock.as_ref())
                    .and_then(|()| self.store.sync())
                    .is_ok()
        };
        if is_old && same(&repository_id(), &self.repository) && self.blobcfg.as_ref().is_none_or(put_back) {
            return e.context("the password was not changed; the old one is good");
        }
        e.context(
            "the change of the password is not complete; the same command with the same two passwords completes it",
        )
    }

    /// Reads both blobs back and opens them with the new password.
    fn check(&self) -> Result<()> {
        let told = |e: RepoError| e.context("read the changed parameters back");
        let repository = self.store.get(&repository_id()).map_err(told)?;
        let format = FormatBlob::parse(&repository)
            .and_then(|blob| blob.open_with_key(&self.new_key))
            .map_err(told)?;
        let blobcfg = self.store.get(&blobcfg_id()).map_err(told)?;
        format.open_blobcfg(&blobcfg).map_err(told)?;
        Ok(())
    }
}

fn foreign_blobcfg(e: RepoError) -> RepoError {
    let what = format!(
        "{BLOBCFG_ID} opens with neither password: it is damaged, or a change to a third password was cut short, which that one as the new password completes"
    );
    RepoError::corrupt(what).because(e)
}

fn check_changeable(format: &Format) -> Result<()> {
    if !format.enable_password_change {
        let what = "its keys depend on the password, as in all repositories that began with Kopia 0.8 or older; the password cannot be changed";
        return Err(RepoError::new(Kind::Unsupported, what));
    }
    // Announced is enough: the owner of the lock rewrites the same blob from what it has read.
    match &format.upgrade_lock {
        Some(lock) => Err(RepoError::new(
            Kind::Locked,
            format!(
                "an upgrade by {:?} is under way since {}; try again when it is done",
                lock.owner, lock.created
            ),
        )),
        None => Ok(()),
    }
}

/// `kopia.repository` with its parameters, byte for byte, sealed under another key. Fields that this crate does not know
/// stay what they are.
fn reseal(bytes: &[u8], blob: &FormatBlob, from: &Secret32, to: &Secret32) -> Result<Vec<u8>> {
    let keys = |key: &Secret32| BlobKeys::new(key, blob.unique_id());
    let plaintext: Zeroizing<Vec<u8>> = keys(from).open(&blob.sealed)?;
    let mut outer: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(bytes).map_err(|e| RepoError::corrupt(REPOSITORY_ID).because(e))?;
    let sealed = super::inner::Base64::new(keys(to).seal(&plaintext));
    let sealed = serde_json::to_value(sealed).expect("text becomes JSON");
    outer.insert("encryptedBlockFormat".into(), sealed);
    let mut text = serde_json::to_vec_pretty(&outer).expect("plain data becomes JSON");
    text.push(b'\n');
    Ok(text)
}

fn lock(retention: Retention) -> ObjectLock {
    let mode = match retention.mode {
        RetentionMode::Governance => "GOVERNANCE",
        RetentionMode::Compliance => "COMPLIANCE",
        RetentionMode::Locked => "Locked",
    };
    ObjectLock {
        mode: mode.into(),
        period: retention.period,
    }
}

fn repository_id() -> BlobId {
    BlobId::known(REPOSITORY_ID)
}

fn blobcfg_id() -> BlobId {
    BlobId::known(BLOBCFG_ID)
}

#[cfg(test)]
mod tests;
