//! The store of Google's against a service of the test's own making. That of Azure has an emulator (`tests/it/azure.rs`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::blob::loopback::{Answer, CERTIFICATE, Request, Server};
use crate::blob::{BlobStore, Ca, Deadlines, GcsLocation, READ_SLACK};
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;

const MODIFIED: &str = "Tue, 14 Nov 2023 22:13:20 GMT";

/// Objects on a page of a listing.
const PAGE: usize = 2;

/// What the service has, by percent-encoded path.
type Objects = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        match byte {
            b'%' => {
                bytes.extend(hex::decode(&rest[..2]).unwrap());
                rest = &rest[2..];
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn parameter(query: &str, key: &str) -> Option<String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(name, _)| decode(name) == key)
        .map(|(_, value)| decode(value))
        .next()
}

/// A bucket called `bucket` with Google's XML interface.
fn bucket(objects: &Objects) -> impl Fn(&Request) -> Answer + Send + Sync + 'static {
    let objects = objects.clone();
    move |request| {
        let mut objects = objects.lock().unwrap();
        let Some(name) = request.path.strip_prefix("/bucket") else {
            return Answer::refused(404, "NoSuchBucket", "The specified bucket does not exist.");
        };
        let name = decode(name.trim_start_matches('/'));
        if name.is_empty() {
            return list(&objects, &request.query);
        }
        let described = |answer: Answer| answer.header("etag", "\"1\"").header("last-modified", MODIFIED);
        let found = objects.get(&name).cloned();
        match (request.method.as_str(), found) {
            ("PUT", _) => {
                objects.insert(name, request.body.clone());
                described(Answer::ok("")).header("x-goog-generation", "1")
            }
            (_, None) => Answer::refused(404, "NoSuchKey", "The specified key does not exist."),
            ("DELETE", _) => {
                objects.remove(&name);
                Answer {
                    status: 204,
                    ..Answer::default()
                }
            }
            (_, Some(bytes)) => match request.header("range").strip_prefix("bytes=") {
                None => described(Answer::ok(bytes)),
                Some(range) => {
                    let (first, last) = range.split_once('-').unwrap();
                    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                    if first >= bytes.len() {
                        return Answer::refused(416, "InvalidRange", "The requested range cannot be satisfied.");
                    }
                    let end = (last + 1).min(bytes.len());
                    let told = format!("bytes {first}-{}/{}", end - 1, bytes.len());
                    let answer = described(Answer::ok(&bytes[first..end])).header("content-range", told);
                    Answer { status: 206, ..answer }
                }
            },
        }
    }
}

fn list(objects: &BTreeMap<String, Vec<u8>>, query: &str) -> Answer {
    let prefix = parameter(query, "prefix").unwrap_or_default();
    let after = parameter(query, "continuation-token").unwrap_or_default();
    assert_eq!(parameter(query, "delimiter").as_deref(), Some("/"));
    let mut entries = BTreeMap::new();
    for (name, bytes) in objects.iter().filter(|(name, _)| name.starts_with(&prefix)) {
        match name[prefix.len()..].split_once('/') {
            Some((folder, _)) => entries.insert(format!("{prefix}{folder}/"), None),
            None => entries.insert(name.clone(), Some(bytes.len())),
        };
    }
    let mut page: Vec<_> = entries.into_iter().filter(|(name, _)| *name > after).collect();
    let more = page.len() > PAGE;
    page.truncate(PAGE);
    let mut text = String::from("<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>");
    for (name, len) in &page {
        let name = name.replace('&', "&amp;");
        text += &match len {
            Some(len) => format!(
                "<Contents><Key>{name}</Key><Size>{len}</Size><LastModified>2023-11-14T22:13:20.000Z</LastModified><ETag>\"1\"</ETag></Contents>"
            ),
            None => format!("<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"),
        };
    }
    if let (true, Some((last, _))) = (more, page.last()) {
        let last = last.replace('&', "&amp;");
        text += &format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>");
    }
    Answer::ok(text + "</ListBucketResult>")
}

fn location(server: &Server, prefix: &str) -> GcsLocation {
    GcsLocation {
        bucket: "bucket".into(),
        prefix: prefix.into(),
        anonymous: true,
        endpoint: Some(server.url.clone()),
        ..GcsLocation::default()
    }
}

fn open(location: &GcsLocation) -> Arc<dyn BlobStore> {
    let deadlines = Deadlines {
        connect: Duration::from_secs(10),
        base: Duration::from_secs(20),
        rate_min: 1 << 20,
    };
    super::open_gcs(location, &deadlines).unwrap()
}

/// A store whose service answers all with `answer`.
fn with(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> (Server, Arc<dyn BlobStore>) {
    let server = Server::start(answer);
    let store = open(&location(&server, "a/"));
    (server, store)
}

fn id(text: &str) -> BlobId {
    BlobId::known(text)
}

fn names(store: &dyn BlobStore, prefix: &str) -> Vec<String> {
    store
        .list(prefix)
        .unwrap()
        .into_iter()
        .map(|blob| blob.id.to_string())
        .collect()
}

#[test]
fn blobs_are_stored_read_listed_and_deleted() {
    for prefix in ["", "a/b/", "ä &+%#/x y/"] {
        let objects = Objects::default();
        let server = Server::start(bucket(&objects));
        let store = open(&location(&server, prefix));
        let bytes: Vec<u8> = (0..10_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        store.put(&id("p1"), b"first").unwrap();
        store.put_shared(&id("p1"), bytes.clone().into(), None).unwrap();
        assert_eq!(
            objects.lock().unwrap().keys().collect::<Vec<_>>(),
            [&format!("{prefix}p1")]
        );
        for name in ["q1", "p2", "p3", "kopia.repository"] {
            store.put(&id(name), b"").unwrap();
        }
        assert_eq!(store.get(&id("p1")).unwrap(), bytes);
        assert_eq!(store.get(&id("q1")).unwrap(), b"");
        let mut buf = vec![0; bytes.len() + 2 * READ_SLACK];
        for range in [0..bytes.len(), 5..6, 9_999..10_000, 77..7777] {
            let at = store
                .read_range(&id("p1"), range.start as u64..range.end as u64, &mut buf)
                .unwrap();
            assert_eq!(buf[at], bytes[range]);
        }
        for past in [9_990..10_001, 10_000..10_001] {
            assert_eq!(
                store.read_range(&id("p1"), past, &mut buf).unwrap_err().kind(),
                Kind::Corrupt
            );
        }
        let meta = store.meta(&id("p1")).unwrap();
        assert_eq!(meta.len, 10_000);
        let seconds = meta.modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(seconds, 1_700_000_000);
        assert_eq!(store.list("p1").unwrap(), [meta]);
        assert_eq!(names(&*store, ""), ["kopia.repository", "p1", "p2", "p3", "q1"]);
        assert_eq!(names(&*store, "p"), ["p1", "p2", "p3"]);
        for missing in [store.get(&id("p9")).map(drop), store.meta(&id("p9")).map(drop)] {
            assert_eq!(missing.unwrap_err().kind(), Kind::NotFound);
        }
        store.delete(&id("p1")).unwrap();
        store.delete(&id("p1")).unwrap();
        assert_eq!(names(&*store, "p"), ["p2", "p3"]);
    }
}

#[test]
fn what_is_no_blob_of_the_repository_is_passed_over() {
    let objects = Objects::default();
    for name in [
        "a/p1",
        "a/folder/p2",
        "a/.storageconfig",
        "a/odd name",
        "ab/p3",
        "a",
        "p4",
    ] {
        objects.lock().unwrap().insert(name.into(), vec![1]);
    }
    let server = Server::start(bucket(&objects));
    assert_eq!(names(&*open(&location(&server, "a/")), ""), ["p1"]);
    assert_eq!(names(&*open(&location(&server, "")), ""), ["a", "p4"]);
}

#[test]
fn a_put_says_what_it_is_and_can_be_checked() {
    let server = Server::start(bucket(&Objects::default()));
    let store = open(&GcsLocation {
        storage_class: Some("NEARLINE".into()),
        kms_key: Some("projects/p/k".into()),
        ..location(&server, "")
    });
    store.put(&id("p1"), b"123456789").unwrap();
    store.get(&id("p1")).unwrap();
    let requests = server.requests();
    let put = &requests[0];
    assert_eq!((put.method.as_str(), put.path.as_str()), ("PUT", "/bucket/p1"));
    assert_eq!(put.header("content-type"), "application/x-kopia");
    assert_eq!(put.header("x-goog-storage-class"), "NEARLINE");
    assert_eq!(put.header("x-goog-encryption-kms-key-name"), "projects/p/k");
    // The check value of CRC-32C (RFC 3720, B.4 has others; this one is that of the catalogue of CRCs).
    let crc = STANDARD.encode(0xe306_9283_u32.to_be_bytes());
    assert_eq!(put.header("x-goog-hash"), format!("crc32c={crc}"));
    assert_eq!(requests[1].header("x-goog-encryption-kms-key-name"), "", "of puts only");
}

#[test]
fn refusals_keep_their_reason() {
    for (status, code, kind) in [
        (403, "AccessDenied", Kind::Permission),
        (401, "AuthenticationRequired", Kind::Credentials),
        (404, "NoSuchBucket", Kind::NoBucket),
        (503, "ServiceUnavailable", Kind::Throttled),
        (429, "SlowDown", Kind::Throttled),
        (500, "InternalError", Kind::Unavailable),
    ] {
        let (server, store) = with(move |_| Answer::refused(status, code, "for a reason"));
        let mut buf = vec![0; 9000];
        let failures: [Result<()>; 5] = [
            store.put(&id("p1"), b"x"),
            store.get(&id("p1")).map(drop),
            store.read_range(&id("p1"), 0..9, &mut buf).map(drop),
            store.list("").map(drop),
            store.delete(&id("p1")),
        ];
        for failure in failures {
            let error = failure.unwrap_err();
            assert_eq!(error.kind(), kind, "{error:?}");
            assert!(format!("{error:?}").contains("for a reason"), "{error:?}");
        }
        assert_eq!(server.requests().len(), 5, "nothing is tried again here");
    }
    let (server, store) = with(|_| {
        Answer {
            status: 302,
            ..Answer::ok("")
        }
        .header("location", "http://127.0.0.1:1/")
    });
    assert_eq!(store.get(&id("p1")).unwrap_err().kind(), Kind::InvalidInput);
    assert_eq!(server.requests().len(), 1, "redirects are not followed");
}

#[test]
fn an_answer_cut_short_is_a_failure_in_passing() {
    let whole = |request: &Request| {
        let answer = Answer::ok(vec![7; 1000])
            .header("etag", "\"1\"")
            .header("last-modified", MODIFIED);
        let answer = match request.header("range") {
            "" => answer,
            _ => Answer {
                status: 206,
                ..answer.header("content-range", "bytes 0-999/5000")
            },
        };
        Answer {
            cut: Some(600),
            ..answer
        }
    };
    let (_server, store) = with(whole);
    let mut buf = vec![0; 10_000];
    for failure in [
        store.get(&id("p1")).map(drop),
        store.read_range(&id("p1"), 0..1000, &mut buf).map(drop),
    ] {
        let error = failure.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    }
    let (_server, store) = with(|_| Answer {
        status: 0,
        ..Answer::default()
    });
    assert_eq!(
        store.put(&id("p1"), &[7; 100_000]).unwrap_err().kind(),
        Kind::Unavailable
    );
}

#[test]
fn lengths_that_are_claimed_are_not_allocated() {
    let (_server, store) = with(|_| {
        let answer = Answer::ok("x")
            .header("etag", "\"1\"")
            .header("last-modified", MODIFIED);
        Answer {
            claim: Some(1 << 40),
            ..answer
        }
    });
    assert_eq!(store.get(&id("p1")).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn answers_that_are_no_google_s_are_errors() {
    let same = "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken></ListBucketResult>";
    for text in [
        "",
        "hello",
        "<a>",
        same,
        "<ListBucketResult><Contents><Key>a/p1</Key></Contents></ListBucketResult>",
    ] {
        let (_server, store) = with(move |_| Answer::ok(text));
        let error = store.list("").unwrap_err();
        assert_eq!(error.kind(), Kind::Storage, "{text}: {error:?}");
    }
}

#[test]
fn certificates_are_checked_against_the_ca_given() {
    let server = Server::start_tls(bucket(&Objects::default()));
    let put = |location: &GcsLocation| -> Result<(), RepoError> { open(location).put(&id("p1"), b"x") };
    let plain = location(&server, "");
    let error = put(&plain).unwrap_err();
    assert_eq!(error.kind(), Kind::Certificate, "{error:?}");
    put(&GcsLocation {
        ca: Some(Ca::Pem(CERTIFICATE.to_vec())),
        ..plain.clone()
    })
    .unwrap();
    put(&GcsLocation {
        skip_tls_verify: true,
        ..plain.clone()
    })
    .unwrap();
    let wrong = GcsLocation {
        ca: Some(Ca::Pem(b"nothing".to_vec())),
        ..plain
    };
    let error = super::open_gcs(&wrong, &Deadlines::DEFAULT).err().unwrap();
    assert_eq!(error.kind(), Kind::InvalidInput);
}

#[test]
fn an_endpoint_that_is_not_there_is_named() {
    let gone = GcsLocation {
        bucket: "bucket".into(),
        anonymous: true,
        endpoint: Some("http://127.0.0.1:1".into()),
        ..GcsLocation::default()
    };
    let error = open(&gone).get(&id("p1")).unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    for word in ["http://127.0.0.1:1", "tried for", "gs://bucket/"] {
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn a_service_that_does_not_answer_is_given_up_in_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = GcsLocation {
        bucket: "bucket".into(),
        anonymous: true,
        endpoint: Some(format!("http://{}", listener.local_addr().unwrap())),
        ..GcsLocation::default()
    };
    let deadlines = Deadlines {
        connect: Duration::from_secs(10),
        base: Duration::from_millis(50),
        rate_min: 1 << 20,
    };
    let store = super::open_gcs(&silent, &deadlines).unwrap();
    let error = store.get(&id("p1")).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("within 0.05 s"), "{error}");
}

#[test]
fn credentials_that_cannot_be_used_are_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let with_file = GcsLocation {
        bucket: "bucket".into(),
        credentials: Some(file.clone()),
        ..GcsLocation::default()
    };
    for text in [
        None,
        Some("HUSH"),
        Some(r#"{"type":"external_account","secret":"HUSH"}"#),
    ] {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        let error = super::open_gcs(&with_file, &Deadlines::DEFAULT).err().unwrap();
        assert_eq!(error.kind(), Kind::Credentials, "{error:?}");
        assert!(
            error.to_string().contains("keys.json") && !format!("{error:?}").contains("HUSH"),
            "{error:?}"
        );
    }
}
