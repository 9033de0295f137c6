//! Reading: whole blobs, ranges, length and time.

use std::ops::Range;
use std::time::SystemTime;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;

use super::S3Store;
use super::errors::{Doing, refusal_in};
use crate::blob::{BlobMeta, GET_LEN_MAX};
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;

/// The algorithm of SSE-C; there is one.
pub(super) const CUSTOMER_ALGORITHM: &str = "AES256";

/// What a key must be allowed to do.
const NEEDS: &str = "s3:GetObject";

/// Bytes of a body whose length is not told, for its time: a pack and half of another.
const UNTOLD_LEN: u64 = 32 << 20;

impl S3Store {
    pub(super) fn read_whole(&self, id: &BlobId) -> Result<Vec<u8>> {
        let doing = Doing::new(format!("read blob {id}"), NEEDS);
        self.collect(&doing, self.get_blob(id), GET_LEN_MAX)
    }

    /// Reads an object that is no blob, at most `len_max` bytes of it. It is not encrypted with a key of ours.
    pub(super) fn read_settings(&self, name: &str, len_max: u64) -> Result<Vec<u8>> {
        let doing = Doing::new(format!("read {name}"), NEEDS);
        self.collect(&doing, self.get_object(name), len_max)
    }

    fn collect(&self, doing: &Doing, request: GetObjectFluentBuilder, len_max: u64) -> Result<Vec<u8>> {
        let answer = self.run(doing, 0, async {
            request.send().await.map_err(|e| self.place.failed(doing, e))
        })?;
        let len = answer.content_length().and_then(|len| u64::try_from(len).ok());
        if len.is_some_and(|len| len > len_max) {
            let reason = format!("it has {} bytes, more than {len_max}", len.unwrap_or_default());
            return Err(self.place.error(Kind::Corrupt, doing, &reason));
        }
        self.run(doing, len.unwrap_or(UNTOLD_LEN), async {
            // Without a length the body's end is marked, and the transport keeps it below `GET_LEN_MAX`.
            let mut bytes = Vec::with_capacity(usize::try_from(len.unwrap_or(0)).unwrap_or(0));
            self.stream(doing, answer.body, len, |chunk| bytes.extend_from_slice(&chunk))
                .await?;
            Ok(bytes)
        })
    }

    pub(super) fn read_part(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> Result<Range<usize>> {
        let len = usize::try_from(range.end - range.start).expect("a range fits the buffer that takes it");
        let buf = &mut buf[..len];
        if len == 0 {
            return Ok(0..0);
        }
        let doing = Doing::new(
            format!("read bytes {} to {} of blob {id}", range.start, range.end),
            NEEDS,
        );
        let request = self
            .get_blob(id)
            .range(format!("bytes={}-{}", range.start, range.end - 1));
        self.run(&doing, len as u64, async {
            let answer = request.send().await.map_err(|e| self.place.failed(&doing, e))?;
            self.check_range(&doing, &answer, &range)?;
            let mut done = 0;
            let take = |chunk: Bytes| {
                buf[done..done + chunk.len()].copy_from_slice(&chunk);
                done += chunk.len();
            };
            self.stream(&doing, answer.body, Some(len as u64), take).await
        })?;
        Ok(0..len)
    }

    /// Whether `answer` is the range that was asked for.
    fn check_range(&self, doing: &Doing, answer: &GetObjectOutput, range: &Range<u64>) -> Result<()> {
        let Some(told) = answer.content_range() else {
            let reason =
                "the service answers a ranged read with the whole blob; it, or a proxy before it, cannot be used";
            return Err(self.place.error(Kind::Unsupported, doing, reason));
        };
        let wrong = || {
            self.place.error(
                Kind::Storage,
                doing,
                &format!("the service answers with another range: {told}"),
            )
        };
        let (given, whole) = parse_content_range(told).ok_or_else(wrong)?;
        if whole.is_some_and(|whole| whole < range.end) {
            return Err(self.place.error(
                Kind::Corrupt,
                doing,
                &format!("the blob ends before byte {}", range.end),
            ));
        }
        if given == *range { Ok(()) } else { Err(wrong()) }
    }

    /// Hands the body of an answer on, piece by piece: `len` bytes when that is known, and never more.
    async fn stream(
        &self,
        doing: &Doing,
        mut body: ByteStream,
        len: Option<u64>,
        mut take: impl FnMut(Bytes),
    ) -> Result<()> {
        let mut done = 0;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|e| self.place.cut_short(doing, done, len).because(e))?;
            done += chunk.len() as u64;
            if len.is_some_and(|len| done > len) {
                return Err(self
                    .place
                    .error(Kind::Storage, doing, "the service sends more than it was asked for"));
            }
            take(chunk);
        }
        if len.is_some_and(|len| done < len) {
            return Err(self.place.cut_short(doing, done, len));
        }
        Ok(())
    }

    pub(super) fn head(&self, id: &BlobId) -> Result<BlobMeta> {
        let doing = Doing::new(format!("look up blob {id}"), NEEDS);
        let mut request = self
            .client
            .head_object()
            .bucket(&self.place.bucket)
            .key(self.key(id.as_str()));
        if let Some(key) = &self.customer_key {
            request = request
                .sse_customer_algorithm(CUSTOMER_ALGORITHM)
                .sse_customer_key(key.key.as_str())
                .sse_customer_key_md5(&key.md5);
        }
        let answer = self.run(&doing, 0, async {
            request.send().await.map_err(|e| self.place.failed(&doing, e))
        });
        let answer = answer.map_err(|e| self.with_reason(&doing, id, e))?;
        let len = answer.content_length().and_then(|len| u64::try_from(len).ok());
        let modified = answer.last_modified().and_then(|time| SystemTime::try_from(*time).ok());
        let (Some(len), Some(modified)) = (len, modified) else {
            return Err(self
                .place
                .error(Kind::Storage, &doing, "the answer has no length or time"));
        };
        Ok(BlobMeta {
            id: id.clone(),
            len,
            modified,
        })
    }

    /// The error `e` of a `HEAD`, whose answer has no body and so no reason, with the reason that a read is refused for.
    fn with_reason(&self, doing: &Doing, id: &BlobId, e: RepoError) -> RepoError {
        if !refusal_in(&e).is_some_and(|refusal| refusal.is_bare()) {
            return e;
        }
        let request = self.get_blob(id).range("bytes=0-0");
        let again = self.run(doing, 1, async {
            request.send().await.map_err(|e| self.place.failed(doing, e))
        });
        again.err().filter(|again| refusal_in(again).is_some()).unwrap_or(e)
    }

    fn get_blob(&self, id: &BlobId) -> GetObjectFluentBuilder {
        let request = self.get_object(id.as_str());
        match &self.customer_key {
            None => request,
            Some(key) => request
                .sse_customer_algorithm(CUSTOMER_ALGORITHM)
                .sse_customer_key(key.key.as_str())
                .sse_customer_key_md5(&key.md5),
        }
    }

    fn get_object(&self, name: &str) -> GetObjectFluentBuilder {
        self.client.get_object().bucket(&self.place.bucket).key(self.key(name))
    }
}

/// Range and, when told, whole length in `bytes FIRST-LAST/LENGTH` (RFC 9110, 14.4).
fn parse_content_range(text: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, whole) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let whole = match whole {
        "*" => None,
        whole => Some(whole.parse().ok()?),
    };
    let (first, last) = (first.parse().ok()?, last.parse::<u64>().ok()?);
    Some((first..last.checked_add(1)?, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(parse_content_range("bytes 5-9/100"), Some((5..10, Some(100))));
        assert_eq!(parse_content_range("bytes 0-0/*"), Some((0..1, None)));
        for text in [
            "",
            "bytes",
            "bytes */100",
            "bytes 5/100",
            "bytes -5-9/100",
            "bytes 0-18446744073709551615/*",
            "items 0-1/2",
        ] {
            assert_eq!(parse_content_range(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_content_range_or_none(text in "(bytes )?[0-9*-]{0,30}/?[0-9*]{0,30}") {
            let _ = parse_content_range(&text);
        }
    }
}
