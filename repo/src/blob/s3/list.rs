//! Listing: pages of keys, with the server's times.

use std::time::SystemTime;

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::EncodingType;
use tracing::debug;

use super::storage_class;
use crate::blob::BlobMeta;
use crate::id::BlobId;

/// Empty pages in a row after which a listing counts as running in circles. Services give a few where many versions or
/// delete markers lie between two keys.
const EMPTY_PAGES_MAX: u32 = 1000;

/// A listing under way.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) found: Vec<BlobMeta>,
    /// Keys passed over, and the first of them.
    foreign: u64,
    foreign_first: String,
    empty_pages: u32,
    first_key: String,
    token: Option<String>,
}

/// What to do after a page.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask for the page of this token.
    Page(String),
    /// Nothing: that was all.
    Done,
}

impl Listing {
    /// Takes in a page of keys below `prefix`. The error is what is wrong with the page.
    pub(super) fn add(&mut self, page: ListObjectsV2Output, prefix: &str) -> Result<Next, String> {
        let encoded = page.encoding_type() == Some(&EncodingType::Url);
        let mut first = true;
        for object in page.contents() {
            let key = object.key().ok_or("a key is missing")?;
            let key = if encoded {
                decode(key).ok_or_else(|| format!("key {key} is badly encoded"))?
            } else {
                key.to_owned()
            };
            if first && !self.first_key.is_empty() && key == self.first_key {
                return Err(format!("the listing runs in circles: two pages begin with {key}"));
            }
            if first {
                self.first_key.clone_from(&key);
                first = false;
            }
            let Some(name) = key.strip_prefix(prefix) else {
                return Err(format!("key {key} does not begin with {prefix}, which was asked for"));
            };
            if name == storage_class::FILE_NAME {
                continue;
            }
            let Ok(id) = BlobId::new(name) else {
                self.pass_over(name);
                continue;
            };
            let len = object.size().and_then(|len| u64::try_from(len).ok());
            let modified = object.last_modified().and_then(|time| SystemTime::try_from(*time).ok());
            let (Some(len), Some(modified)) = (len, modified) else {
                return Err(format!("key {key} has no length or time"));
            };
            self.found.push(BlobMeta { id, len, modified });
        }
        self.empty_pages = if first { self.empty_pages + 1 } else { 0 };
        if !page.is_truncated().unwrap_or(false) {
            return Ok(Next::Done);
        }
        let token = page
            .next_continuation_token()
            .ok_or("a page says more follow, but not where")?;
        if self.token.as_deref() == Some(token) || self.empty_pages > EMPTY_PAGES_MAX {
            return Err("the listing runs in circles: a page leads to itself".into());
        }
        self.token = Some(token.to_owned());
        Ok(Next::Page(token.to_owned()))
    }

    fn pass_over(&mut self, name: &str) {
        if self.foreign == 0 {
            self.foreign_first = name.to_owned();
        }
        self.foreign += 1;
    }

    /// The blobs. Says once what else lies there.
    pub(super) fn finish(self) -> Vec<BlobMeta> {
        if self.foreign > 0 {
            debug!(
                count = self.foreign,
                first = self.foreign_first,
                "objects passed over whose names are no blob ids"
            );
        }
        self.found
    }
}

/// Undoes the encoding of `encoding-type=url`: `%XX`, and `+` for a space.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                bytes.push(hex::decode(digits).ok()?.first().copied()?);
                rest = after;
            }
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::types::Object;
    use aws_smithy_types::DateTime;

    use super::*;

    fn object(key: &str) -> Object {
        let time = DateTime::from_secs(1_700_000_000);
        Object::builder().key(key).size(7).last_modified(time).build()
    }

    fn page(keys: &[&str], token: Option<&str>) -> ListObjectsV2Output {
        let page = ListObjectsV2Output::builder()
            .set_contents(Some(keys.iter().map(|key| object(key)).collect()))
            .is_truncated(token.is_some());
        page.set_next_continuation_token(token.map(str::to_owned)).build()
    }

    #[test]
    fn pages_add_up_and_what_is_no_blob_is_passed_over() {
        let mut listing = Listing::default();
        let keys = ["a/p1", "a/.storageconfig", "a/folder/x", "a/"];
        assert_eq!(listing.add(page(&keys, Some("t1")), "a/"), Ok(Next::Page("t1".into())));
        assert_eq!(listing.add(page(&[], Some("t2")), "a/"), Ok(Next::Page("t2".into())));
        assert_eq!(listing.add(page(&["a/q1"], None), "a/"), Ok(Next::Done));
        assert_eq!(listing.foreign, 2);
        let found = listing.finish();
        let names: Vec<_> = found.iter().map(|blob| blob.id.as_str()).collect();
        assert_eq!(names, ["p1", "q1"]);
        assert_eq!(found[0].len, 7);
        assert_eq!(
            found[0].modified,
            SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000)
        );
    }

    #[test]
    fn a_listing_that_does_not_advance_is_an_error() {
        let mut listing = Listing::default();
        listing.add(page(&["p1"], Some("t1")), "").unwrap();
        let e = listing.add(page(&["p2"], Some("t1")), "").unwrap_err();
        assert!(e.contains("circles"), "{e}");

        let mut listing = Listing::default();
        listing.add(page(&["p1"], Some("t1")), "").unwrap();
        let e = listing.add(page(&["p1"], Some("t2")), "").unwrap_err();
        assert!(e.contains("circles"), "{e}");

        let mut listing = Listing::default();
        let rounds = (0..).map(|n| listing.add(page(&[], Some(&format!("t{n}"))), ""));
        assert!(rounds.take(2000).any(|page| page.is_err()));
    }

    #[test]
    fn a_page_that_says_more_follow_but_not_where_is_an_error() {
        let page = ListObjectsV2Output::builder().is_truncated(true).build();
        assert!(Listing::default().add(page, "").is_err());
    }

    #[test]
    fn a_key_outside_the_prefix_or_without_time_is_an_error() {
        assert!(Listing::default().add(page(&["b/p1"], None), "a/").is_err());
        let bare = Object::builder().key("a/p1").build();
        let page = ListObjectsV2Output::builder().contents(bare).build();
        assert!(Listing::default().add(page, "a/").is_err());
    }

    #[test]
    fn encoded_keys_are_decoded_only_when_the_answer_says_so() {
        let mut listing = Listing::default();
        let mut answer = page(&["%C3%A4+b%2B/p1"], None);
        answer.encoding_type = Some(EncodingType::Url);
        listing.add(answer, "ä b+/").unwrap();
        listing.add(page(&["ä b+/p%32"], None), "ä b+/").unwrap();
        let names: Vec<_> = listing.finish().into_iter().map(|blob| blob.id.to_string()).collect();
        assert_eq!(names, ["p1", "p%32"]);
        assert_eq!(decode("%4"), None);
        assert_eq!(decode("%zz"), None);
        assert_eq!(decode("%ff"), None);
    }
}
