use std::time::{Duration, SystemTime};

use super::*;
use crate::blob::loopback::Answer;
use crate::blob::{BlobStore, READ_SLACK};
use crate::error::Kind;

const DATE: &str = "Tue, 14 Nov 2023 22:13:20 GMT";

/// Answers like a service that holds `bytes` under every key.
fn holding(bytes: &'static [u8]) -> impl Fn(&Request) -> Answer {
    move |request| {
        let Some(range) = request.header("range").strip_prefix("bytes=") else {
            return Answer::ok(bytes).header("last-modified", DATE);
        };
        let (first, last) = range.split_once('-').unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        if first >= bytes.len() {
            return Answer::refused(416, "InvalidRange", "The requested range is not satisfiable");
        }
        let last = last.min(bytes.len() - 1);
        let answer = Answer::ok(&bytes[first..=last]);
        Answer {
            status: 206,
            ..answer.header("content-range", format!("bytes {first}-{last}/{}", bytes.len()))
        }
    }
}

fn part(store: &S3Store, range: std::ops::Range<u64>) -> crate::Result<Vec<u8>> {
    let mut buf = vec![0; usize::try_from(range.end - range.start).unwrap() + 2 * READ_SLACK];
    let at = store.read_range(&id("p1"), range, &mut buf)?;
    Ok(buf[at].to_vec())
}

#[test]
fn a_blob_is_read_whole_and_in_part() {
    let (server, store) = store(holding(b"0123456789"));
    assert_eq!(store.get(&id("p1")).unwrap(), b"0123456789");
    assert_eq!(part(&store, 3..6).unwrap(), b"345");
    assert_eq!(part(&store, 9..10).unwrap(), b"9");
    assert_eq!(part(&store, 4..4).unwrap(), b"");
    let ranges: Vec<_> = server.requests().iter().map(|r| r.header("range").to_owned()).collect();
    assert_eq!(ranges, ["", "bytes=3-5", "bytes=9-9"]);
    let checked = |r: &Request| r.headers.contains_key("x-amz-checksum-mode");
    assert!(!server.requests().iter().any(checked), "no checksum of the SDK's");
}

#[test]
fn a_range_past_the_end_is_damage() {
    let (_server, store) = store(holding(b"0123456789"));
    for range in [8..11, 10..11, 100..200] {
        let e = part(&store, range.clone()).unwrap_err();
        assert_eq!(e.kind(), Kind::Corrupt, "{range:?}: {e}");
    }
}

#[test]
fn a_body_that_breaks_off_is_told_as_cut_short() {
    let (_server, store) = store(|request| {
        let answer = holding(b"0123456789")(request);
        Answer { cut: Some(2), ..answer }
    });
    for e in [store.get(&id("p1")).unwrap_err(), part(&store, 1..9).unwrap_err()] {
        assert_eq!(e.kind(), Kind::Unavailable, "{e}");
        assert!(e.to_string().contains("cut short: 2 of"), "{e}");
    }
}

#[test]
fn a_service_that_ignores_ranges_or_gives_others_is_refused() {
    let (_server, store) = store(|_| Answer::ok("0123456789"));
    assert_eq!(part(&store, 0..2).unwrap_err().kind(), Kind::Unsupported);

    for (told, body) in [("bytes 1-2/10", "12"), ("bytes 0-2/10", "012"), ("rubbish", "01")] {
        let (_server, store) = super::store(move |_| {
            let answer = Answer::ok(body).header("content-range", told);
            Answer { status: 206, ..answer }
        });
        assert_eq!(part(&store, 0..2).unwrap_err().kind(), Kind::Storage, "{told}");
    }
    let (_server, store) = super::store(|_| {
        let answer = Answer::ok("0123").header("content-range", "bytes 0-1/10");
        Answer { status: 206, ..answer }
    });
    let e = part(&store, 0..2).unwrap_err();
    assert!(e.to_string().contains("more than it was asked"), "{e}");
}

#[test]
fn a_claimed_length_is_not_believed() {
    let (_server, store) = store(|_| Answer {
        claim: Some(1 << 50),
        cut: Some(1),
        ..Answer::ok("x")
    });
    let e = store.get(&id("p1")).unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt);
    assert!(e.to_string().contains("1125899906842624 bytes"), "{e}");
}

#[test]
fn length_and_time_are_the_servers() {
    let (server, store) = store(holding(b"0123456789"));
    let meta = store.meta(&id("p1")).unwrap();
    assert_eq!(meta.len, 10);
    assert_eq!(
        meta.modified,
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    );
    assert_eq!(server.requests()[0].method, "HEAD");
}

#[test]
fn what_is_missing_is_not_found() {
    let (server, store) = store(|_| Answer::refused(404, "NoSuchKey", "The specified key does not exist."));
    assert!(store.get(&id("p1")).unwrap_err().is_not_found());
    assert!(part(&store, 0..1).unwrap_err().is_not_found());
    assert!(store.meta(&id("p1")).unwrap_err().is_not_found());
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn why_a_look_up_was_refused_is_asked_of_a_read() {
    let (_server, store) = store(|_| Answer::refused(403, "InvalidAccessKeyId", "does not exist in our records"));
    let e = store.meta(&id("p1")).unwrap_err();
    assert_eq!(e.kind(), Kind::Credentials, "{e}");
}

fn page(keys: &[&str], token: Option<&str>) -> Answer {
    let objects: String = keys
        .iter()
        .map(|key| format!("<Contents><Key>{key}</Key><LastModified>2023-11-14T22:13:20.000Z</LastModified><Size>5</Size></Contents>"))
        .collect();
    let more = token
        .map(|t| format!("<NextContinuationToken>{t}</NextContinuationToken>"))
        .unwrap_or_default();
    Answer::ok(format!(
        "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>bucket</Name><EncodingType>url</EncodingType><IsTruncated>{}</IsTruncated>{more}{objects}</ListBucketResult>",
        token.is_some()
    ))
}

#[test]
fn a_listing_goes_through_all_pages() {
    let (server, store) = store(|request| match request.query.contains("continuation-token=t%2F1") {
        false => page(&["a/p1", "a/.storageconfig", "a/p2"], Some("t/1")),
        true => page(&["a/p3", "a/odd%20name"], None),
    });
    let found = store.list("p").unwrap();
    let names: Vec<_> = found.iter().map(|blob| blob.id.as_str()).collect();
    assert_eq!(names, ["p1", "p2", "p3"]);
    assert_eq!(found[0].len, 5);
    assert_eq!(
        found[0].modified,
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    );
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    for part in ["list-type=2", "prefix=a%2Fp", "encoding-type=url"] {
        assert!(requests[0].query.contains(part), "{}", requests[0].query);
    }
}

#[test]
fn a_listing_in_circles_ends_with_an_error() {
    let (_server, store) = store(|_| page(&["a/p1"], Some("t")));
    let e = store.list("").unwrap_err();
    assert!(e.to_string().contains("circles"), "{e}");
}

#[test]
fn a_listing_cut_short_or_garbled_is_an_error() {
    let (_server, store) = store(|_| Answer {
        cut: Some(150),
        ..page(&["a/p1"], None)
    });
    let e = store.list("").unwrap_err();
    assert_eq!(e.kind(), Kind::Unavailable, "{e}");
    let (_server, store) = super::store(|_| Answer::ok("<html>hello"));
    let e = store.list("").unwrap_err();
    assert_eq!(e.kind(), Kind::Storage, "{e}");
}
