//! Puts and object locks.

use std::time::SystemTime;

use aws_sdk_s3::operation::put_object::PutObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{
    ObjectLockEnabled, ObjectLockMode, ObjectLockRetention, ObjectLockRetentionMode, ServerSideEncryption, StorageClass,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use md5::{Digest, Md5};

use super::S3Store;
use super::checksum::{Plan, Proof};
use super::config::{Checksum, ServerEncryption};
use super::errors::{Doing, NO_LOCK, refusal_in};
use super::read::CUSTOMER_ALGORITHM;
use crate::blob::ObjectLock;
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;

/// Content type of every blob (kopia, repo/blob/s3/s3_storage.go).
const CONTENT_TYPE: &str = "application/x-kopia";

impl S3Store {
    /// Puts `bytes` with the proof that the service understands.
    pub(super) fn put_bytes(&self, id: &BlobId, bytes: Bytes, lock: Option<&ObjectLock>) -> Result<()> {
        match self.checksums.plan(&bytes, lock.is_some()) {
            Plan::Send(proof) => self.send(id, bytes, proof, lock),
            Plan::Try => {
                let (outcome, done) = self.try_crc(id, &bytes);
                self.checksums.settle(outcome);
                done
            }
        }
    }

    /// Puts `bytes` and finds out what the service checks. Whatever it is, a put that is done left the right bytes, and with
    /// them no wrong checksum, which some services would keep and hand out.
    fn try_crc(&self, id: &BlobId, bytes: &Bytes) -> (Option<Checksum>, Result<()>) {
        match self.send(id, bytes.clone(), Proof::wrong_crc32c(bytes), None) {
            Err(e) if refusal_in(&e).is_some_and(|refusal| refusal.is_wrong_checksum()) => {
                let done = self.send(id, bytes.clone(), Proof::crc32c(bytes), None);
                match done {
                    Ok(()) => return (Some(Checksum::Crc32c), Ok(())),
                    Err(e) if refusal_in(&e).is_some_and(|refusal| refusal.is_final()) => {}
                    Err(e) => return (None, Err(e)),
                }
            }
            Err(e) if refusal_in(&e).is_none_or(|refusal| !refusal.is_final()) => return (None, Err(e)),
            _ => {}
        }
        let done = self.send(id, bytes.clone(), Proof::md5(bytes), None);
        (done.is_ok().then_some(Checksum::Md5), done)
    }

    fn send(&self, id: &BlobId, bytes: Bytes, proof: Proof, lock: Option<&ObjectLock>) -> Result<()> {
        let needs = match lock {
            Some(_) => "s3:PutObject with s3:PutObjectRetention",
            None => "s3:PutObject",
        };
        let doing = Doing::new(format!("put blob {id}"), needs);
        let len = bytes.len() as u64;
        let class = self.put.classes.of(id).or(self.put.class.as_deref());
        let mut request = self
            .client
            .put_object()
            .bucket(&self.place.bucket)
            .key(self.key(id.as_str()))
            .content_type(CONTENT_TYPE)
            .set_storage_class(class.map(StorageClass::from))
            .set_tagging(self.put.tags.clone())
            .body(ByteStream::from(bytes));
        request = match proof {
            Proof::Md5(md5) => request.content_md5(md5),
            Proof::Crc32c(crc) => request.checksum_crc32_c(crc),
            Proof::None => request,
        };
        request = match &self.put.encryption {
            ServerEncryption::None | ServerEncryption::Customer { .. } => request,
            ServerEncryption::S3Managed => request.server_side_encryption(ServerSideEncryption::Aes256),
            ServerEncryption::Kms { key } => request
                .server_side_encryption(ServerSideEncryption::AwsKms)
                .set_ssekms_key_id(key.clone()),
        };
        if let Some(key) = &self.customer_key {
            request = request
                .sse_customer_algorithm(CUSTOMER_ALGORITHM)
                .sse_customer_key(key.key.as_str())
                .sse_customer_key_md5(&key.md5);
        }
        if let Some(lock) = lock {
            let (mode, until) = self.retention(&doing, lock)?;
            self.require_locks(&doing)?;
            request = request
                .object_lock_mode(ObjectLockMode::from(mode))
                .object_lock_retain_until_date(until);
        }
        let request = request.customize().disable_payload_signing();
        let answer = self.run(&doing, len, async {
            request.send().await.map_err(|e| self.place.failed(&doing, e))
        })?;
        if self.is_encrypted(&answer) {
            return Ok(());
        }
        let reason =
            "the service stored it without the encryption asked for, which it does not know; leave that setting out";
        Err(self.place.error(Kind::Unsupported, &doing, reason))
    }

    /// Whether the service says that it encrypted what it should encrypt. Some ignore the headers that ask for it.
    fn is_encrypted(&self, answer: &PutObjectOutput) -> bool {
        match &self.put.encryption {
            ServerEncryption::None => true,
            ServerEncryption::S3Managed | ServerEncryption::Kms { .. } => answer.server_side_encryption().is_some(),
            ServerEncryption::Customer { .. } => answer.sse_customer_algorithm().is_some(),
        }
    }

    /// Refuses a bucket without object lock. Some services ignore the headers of a lock, and what is thought to be locked
    /// must be; so the first locked put of a store asks.
    fn require_locks(&self, doing: &Doing) -> Result<()> {
        if self.locks.get().is_some() {
            return Ok(());
        }
        let asking = Doing::new("ask for object lock", "s3:GetBucketObjectLockConfiguration");
        let request = self.client.get_object_lock_configuration().bucket(&self.place.bucket);
        let answer = self.run(&asking, 0, async {
            request.send().await.map_err(|e| self.place.failed(&asking, e))
        });
        let enabled = match &answer {
            Ok(answer) => answer
                .object_lock_configuration()
                .is_some_and(|locks| locks.object_lock_enabled() == Some(&ObjectLockEnabled::Enabled)),
            // Some services refuse to tell, and then ignore locks all the same.
            Err(e) if matches!(e.kind(), Kind::Unsupported | Kind::NotFound | Kind::Storage) => false,
            Err(_) => return answer.map(drop),
        };
        if enabled {
            let _ = self.locks.set(()); // another thread may have been told the same
            return Ok(());
        }
        let refused = self.place.error(Kind::Unsupported, doing, NO_LOCK);
        Err(match answer {
            Ok(_) => refused,
            Err(e) => refused.because(e),
        })
    }

    /// Locks a blob that is there.
    pub(super) fn put_retention(&self, id: &BlobId, lock: &ObjectLock) -> Result<()> {
        let doing = Doing::new(format!("extend the lock of blob {id}"), "s3:PutObjectRetention");
        let (mode, until) = self.retention(&doing, lock)?;
        // A service that does not know of locks might take this for a put of the blob.
        self.require_locks(&doing)?;
        let retention = ObjectLockRetention::builder()
            .mode(ObjectLockRetentionMode::from(mode))
            .retain_until_date(until)
            .build();
        let request = self
            .client
            .put_object_retention()
            .bucket(&self.place.bucket)
            .key(self.key(id.as_str()))
            .retention(retention)
            .customize()
            // Services insist on a checksum here; older ones know MD5 only, which the SDK does not send.
            .mutate_request(|request| {
                if let Some(body) = request.body().bytes() {
                    let md5 = STANDARD.encode(Md5::digest(body));
                    request.headers_mut().insert("content-md5", md5);
                }
            });
        self.run(&doing, 0, async {
            let done = request.send().await;
            done.map(drop).map_err(|e| self.place.failed(&doing, e))
        })
    }

    /// Mode and end of `lock`, counted from now.
    fn retention(&self, doing: &Doing, lock: &ObjectLock) -> Result<(&'static str, DateTime)> {
        let mode = match lock.mode.as_str() {
            "GOVERNANCE" => "GOVERNANCE",
            "COMPLIANCE" => "COMPLIANCE",
            other => {
                let reason = format!("S3 has no object lock of mode {other:?}, only GOVERNANCE and COMPLIANCE");
                return Err(self.place.error(Kind::Unsupported, doing, &reason));
            }
        };
        let until = SystemTime::now().checked_add(lock.period).ok_or_else(|| {
            RepoError::new(
                Kind::InvalidInput,
                format!("object lock for {} s: no clock goes that far", lock.period.as_secs()),
            )
        })?;
        Ok((mode, DateTime::from(until)))
    }
}

/// `tags` as the header carries them: `key=value&key=value`.
pub(super) fn tagging(tags: &[(String, String)]) -> String {
    let pairs = tags
        .iter()
        .map(|(key, value)| format!("{}={}", escaped(key), escaped(value)));
    pairs.collect::<Vec<_>>().join("&")
}

/// `text` with everything but letters, digits and `-_.~` as `%XX`.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
