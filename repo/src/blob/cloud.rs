//! Google Cloud Storage and Azure Blob Storage, by way of the `object_store` library: what the two have in common.
//!
//! A blob is the object of prefix and blob id, put in one part. The library signs, words requests and reads answers; the
//! connections are ours ([`wire`]), so that its own retries, redirects and readings of errors stay out of the way. Nothing
//! is tried again here.

#[cfg(feature = "azure")]
mod azure;
mod errors;
#[cfg(feature = "gcs")]
mod gcs;
mod wire;

use std::future::poll_fn;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, PutOptions, PutPayload,
    RetryConfig,
};
use tracing::debug;

#[cfg(feature = "azure")]
pub(super) use self::azure::open as open_azure;
use self::errors::{Doing, Place};
#[cfg(feature = "gcs")]
pub(super) use self::gcs::open as open_gcs;
use self::wire::PutHeaders;
use super::bridge::Bridge;
use super::{BlobMeta, BlobStore, Deadlines, GET_LEN_MAX, Habits, ObjectLock};
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;

/// Content type of blobs, as Kopia's.
const CONTENT_TYPE: &str = "application/x-kopia";

/// Bytes that a page of a listing may have, for its time limit: 5,000 names (Azure) with 500 bytes of XML each.
const PAGE_LEN: u64 = 4 << 20;

/// Empty pages in a row after which a listing counts as running in circles. Services give a few.
const EMPTY_PAGES_MAX: u32 = 1000;

/// What differs between the services.
trait Service: Send + Sync {
    /// Whether the library's listing of a prefix has the object that is called just that.
    const LISTS_EXACT: bool;

    /// Requests that both have alike.
    fn objects(&self) -> &dyn ObjectStore;

    /// Listing by pages.
    fn pages(&self) -> &dyn PaginatedListStore;

    /// Headers of a put that carries `bytes`.
    fn put_headers(&self, bytes: &Bytes) -> PutHeaders;

    /// Deletes an object.
    fn delete(&self, path: &Path) -> impl Future<Output = object_store::Result<()>> + Send;
}

/// Blobs in a bucket or container.
struct CloudStore<S> {
    service: S,
    bridge: Bridge,
    place: Place,
    /// Empty, or ends in a slash.
    prefix: String,
    deadlines: Deadlines,
    storage_class: Option<String>,
}

/// For the library: what is tried again is decided elsewhere.
fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        retry_timeout: Duration::ZERO,
        ..RetryConfig::default()
    }
}

impl<S: Service> CloudStore<S> {
    fn path(&self, id: &BlobId) -> Result<Path> {
        let path = format!("{}{id}", self.prefix);
        Path::parse(&path).map_err(|e| {
            let what = format!("{path} is not a name the storage takes");
            RepoError::new(Kind::InvalidInput, what).because(e)
        })
    }

    /// Waits for `request`, but not longer than one that moves `bytes` may take.
    fn run<T>(&self, doing: &Doing, bytes: u64, request: impl Future<Output = object_store::Result<T>>) -> Result<T> {
        match self.wait(doing, self.deadlines.of(bytes), request)? {
            Ok(done) => Ok(done),
            Err(e) => Err(self.place.failed(doing, e)),
        }
    }

    fn wait<T>(&self, doing: &Doing, limit: Duration, work: impl Future<Output = T>) -> Result<T> {
        let done = self.bridge.wait_at_most(limit, work);
        done.ok_or_else(|| self.place.too_late(doing, limit))
    }

    /// Hands the body of `answer` on, piece by piece: `len` bytes, and never more.
    fn stream(&self, doing: &Doing, answer: GetResult, len: u64, mut take: impl FnMut(Bytes)) -> Result<()> {
        let mut body = answer.into_stream();
        self.wait(doing, self.deadlines.of(len), async {
            let mut done = 0;
            while let Some(piece) = poll_fn(|context| body.as_mut().poll_next(context)).await {
                let piece = piece.map_err(|e| self.place.cut_short(doing, done, len).because(e))?;
                done += piece.len() as u64;
                if done > len {
                    let reason = "the service sends more than it was asked for";
                    return Err(self.place.error(Kind::Storage, doing, reason));
                }
                take(piece);
            }
            if done < len {
                return Err(self.place.cut_short(doing, done, len));
            }
            Ok(())
        })?
    }

    fn put_bytes(&self, id: &BlobId, bytes: Bytes) -> Result<()> {
        let doing = Doing::new(format!("put blob {id}"), "to create and replace objects");
        let path = self.path(id)?;
        let len = bytes.len() as u64;
        let mut attributes = Attributes::from_iter([(Attribute::ContentType, CONTENT_TYPE)]);
        if let Some(class) = &self.storage_class {
            attributes.insert(Attribute::StorageClass, class.clone().into());
        }
        let mut options = PutOptions {
            attributes,
            ..PutOptions::default()
        };
        options.extensions.insert(self.service.put_headers(&bytes));
        let put = self.service.objects().put_opts(&path, PutPayload::from(bytes), options);
        self.run(&doing, len, put).map(|_| ())
    }

    fn read(&self, doing: &Doing, id: &BlobId, options: GetOptions) -> Result<GetResult> {
        let path = self.path(id)?;
        self.run(doing, 0, self.service.objects().get_opts(&path, options))
    }

    /// Adds what is a blob of ours among `objects` to `found`; returns how many were passed over.
    fn collect(&self, objects: Vec<ObjectMeta>, found: &mut Vec<BlobMeta>) -> u64 {
        let mut foreign = 0;
        for object in objects {
            let name = object.location.as_ref().strip_prefix(&self.prefix);
            match name.map(BlobId::new) {
                Some(Ok(id)) => found.push(BlobMeta {
                    id,
                    len: object.size,
                    modified: SystemTime::from(object.last_modified),
                }),
                _ => foreign += 1,
            }
        }
        foreign
    }
}

const READ: &str = "to read objects";

impl<S: Service> BlobStore for CloudStore<S> {
    fn place(&self) -> String {
        self.place.to_string()
    }

    fn put(&self, id: &BlobId, bytes: &[u8]) -> Result<()> {
        self.put_bytes(id, Bytes::copy_from_slice(bytes))
    }

    fn put_shared(&self, id: &BlobId, bytes: Bytes, lock: Option<&ObjectLock>) -> Result<()> {
        match lock {
            None => self.put_bytes(id, bytes),
            Some(lock) => Err(self.place.no_locks(lock)),
        }
    }

    fn extend_lock(&self, _: &BlobId, lock: &ObjectLock) -> Result<()> {
        Err(self.place.no_locks(lock))
    }

    fn habits(&self) -> Habits {
        Habits::REMOTE
    }

    fn get(&self, id: &BlobId) -> Result<Vec<u8>> {
        let doing = Doing::new(format!("read blob {id}"), READ);
        let answer = self.read(&doing, id, GetOptions::default())?;
        let len = answer.meta.size;
        if len > GET_LEN_MAX {
            let reason = format!("it has {len} bytes, more than {GET_LEN_MAX}");
            return Err(self.place.error(Kind::Corrupt, &doing, &reason));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        self.stream(&doing, answer, len, |piece| bytes.extend_from_slice(&piece))?;
        Ok(bytes)
    }

    fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> Result<Range<usize>> {
        let len = usize::try_from(range.end - range.start).expect("a range fits the buffer that takes it");
        let buf = &mut buf[..len];
        if len == 0 {
            return Ok(0..0);
        }
        let doing = Doing::new(
            format!("read bytes {} to {} of blob {id}", range.start, range.end),
            READ,
        );
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            ..GetOptions::default()
        };
        let too_short = || {
            let reason = format!("the blob ends before byte {}", range.end);
            self.place.error(Kind::Corrupt, &doing, &reason)
        };
        let answer = match self.read(&doing, id, options) {
            Ok(answer) if answer.range == range => answer,
            Ok(_) => return Err(too_short()),
            // Services word the refusal of a range past the end in many ways; the length tells.
            Err(e) if e.kind() == Kind::Storage && self.meta(id).is_ok_and(|meta| meta.len < range.end) => {
                return Err(too_short().because(e));
            }
            Err(e) => return Err(e),
        };
        let mut done = 0;
        self.stream(&doing, answer, len as u64, |piece| {
            buf[done..done + piece.len()].copy_from_slice(&piece);
            done += piece.len();
        })?;
        Ok(0..len)
    }

    fn meta(&self, id: &BlobId) -> Result<BlobMeta> {
        let doing = Doing::new(format!("look up blob {id}"), READ);
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        let found = self.read(&doing, id, options)?.meta;
        Ok(BlobMeta {
            id: id.clone(),
            len: found.size,
            modified: SystemTime::from(found.last_modified),
        })
    }

    /// Folders below the prefix are not looked into: no blob has a slash in its id.
    fn list(&self, wanted: &str) -> Result<Vec<BlobMeta>> {
        let doing = Doing::new(format!("list blobs {wanted}*"), "to list objects");
        let prefix = format!("{}{wanted}", self.prefix);
        let (mut found, mut foreign, mut empty_pages) = (Vec::new(), 0, 0);
        let mut token: Option<String> = None;
        loop {
            let options = PaginatedListOptions {
                delimiter: Some("/".into()),
                page_token: token.clone(),
                ..PaginatedListOptions::default()
            };
            let prefix = Some(prefix.as_str()).filter(|prefix| !prefix.is_empty());
            let page = self.run(&doing, PAGE_LEN, self.service.pages().list_paginated(prefix, options))?;
            let is_empty = page.result.objects.is_empty() && page.result.common_prefixes.is_empty();
            empty_pages = if is_empty { empty_pages + 1 } else { 0 };
            foreign += self.collect(page.result.objects, &mut found) + page.result.common_prefixes.len() as u64;
            match page.page_token {
                None => break,
                Some(next) if empty_pages > EMPTY_PAGES_MAX || token.as_ref() == Some(&next) => {
                    let reason = "the listing runs in circles: a page leads to itself";
                    return Err(self.place.error(Kind::Storage, &doing, reason));
                }
                next => token = next,
            }
        }
        if !S::LISTS_EXACT
            && let Ok(id) = BlobId::new(wanted)
        {
            match self.meta(&id) {
                Ok(blob) if found.contains(&blob) => {}
                Ok(blob) => found.push(blob),
                Err(e) if e.kind() == Kind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        if foreign > 0 {
            debug!(foreign, "objects and folders passed over whose names are no blob ids");
        }
        Ok(found)
    }

    /// In a bucket that keeps versions or deleted objects, those stay.
    fn delete(&self, id: &BlobId) -> Result<()> {
        let doing = Doing::new(format!("delete blob {id}"), "to delete objects");
        let path = self.path(id)?;
        match self.run(&doing, 0, self.service.delete(&path)) {
            Err(e) if e.kind() != Kind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// A put that returned is durable.
    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(all(test, feature = "gcs", feature = "s3"))]
mod tests;
