//! A bucket that keeps versions: a delete leaves a marker, and what lies under it is still there and none of ours.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use super::*;
use crate::blob::{BlobStore, READ_SLACK};
use crate::format::CreateOptions;
use crate::repository::Repository;
use crate::session::{WriteOptions, WriteSession};

/// Versions of each key, oldest first; nothing is a delete marker.
type Versions = Arc<Mutex<BTreeMap<String, Vec<Option<Vec<u8>>>>>>;

fn date(format: Format) -> String {
    DateTime::from(SystemTime::now()).fmt(format).unwrap()
}

/// Answers as Amazon documents it for a bucket with versions, as far as a blob store asks.
fn versioned(versions: Versions) -> impl Fn(&Request) -> Answer {
    move |request| {
        let mut versions = versions.lock().unwrap();
        if request.query.contains("list-type=2") {
            let prefix = request.query.split('&').find_map(|part| part.strip_prefix("prefix="));
            let prefix = prefix.unwrap_or_default().replace("%2F", "/");
            let listed: String = versions
                .iter()
                .filter(|(key, _)| key.starts_with(&prefix))
                .filter_map(|(key, versions)| Some((key, versions.last()?.as_ref()?.len())))
                .map(|(key, len)| {
                    let time = date(Format::DateTime);
                    format!(
                        "<Contents><Key>{key}</Key><LastModified>{time}</LastModified><Size>{len}</Size></Contents>"
                    )
                })
                .collect();
            return Answer::ok(format!(
                "<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>"
            ));
        }
        let key = request.path.trim_start_matches("/bucket/").to_owned();
        let marker = |answer: Answer| {
            answer
                .header("x-amz-delete-marker", "true")
                .header("x-amz-version-id", "3")
        };
        let stack = versions.entry(key).or_default();
        match request.method.as_str() {
            "PUT" => {
                stack.push(Some(request.body.clone()));
                Answer::ok("").header("x-amz-version-id", "2")
            }
            "DELETE" => {
                stack.push(None);
                marker(Answer {
                    status: 204,
                    ..Answer::default()
                })
            }
            _ => match stack.last() {
                Some(Some(bytes)) => found(bytes, request.header("range")),
                Some(None) => marker(Answer::refused(404, "NoSuchKey", "The specified key does not exist.")),
                None => Answer::refused(404, "NoSuchKey", "The specified key does not exist."),
            },
        }
    }
}

fn found(bytes: &[u8], range: &str) -> Answer {
    let answer = |bytes: &[u8]| Answer::ok(bytes).header("last-modified", date(Format::HttpDate));
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return answer(bytes);
    };
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    Answer {
        status: 206,
        ..answer(&bytes[first..=last]).header("content-range", format!("bytes {first}-{last}/{}", bytes.len()))
    }
}

#[test]
fn a_blob_under_a_delete_marker_is_a_missing_one_and_comes_back_with_a_put() {
    let versions = Versions::default();
    let (server, store) = store(versioned(versions.clone()));
    store.put(&id("p1"), b"first").unwrap();
    store.put(&id("p2"), b"other").unwrap();
    store.delete(&id("p1")).unwrap();
    store.delete(&id("p1")).unwrap();
    let mut buf = [0; 1 + 2 * READ_SLACK];
    for missing in [
        store.get(&id("p1")).unwrap_err(),
        store.meta(&id("p1")).unwrap_err(),
        store.read_range(&id("p1"), 0..1, &mut buf).unwrap_err(),
    ] {
        assert!(missing.is_not_found(), "{missing}");
    }
    let names = |store: &S3Store| -> Vec<String> {
        let listed = store.list("p").unwrap().into_iter();
        listed.map(|blob| blob.id.to_string()).collect()
    };
    assert_eq!(names(&store), ["p2"]);
    store.put(&id("p1"), b"again").unwrap();
    assert_eq!(store.get(&id("p1")).unwrap(), b"again");
    assert_eq!(names(&store), ["p1", "p2"]);
    let asked = server.requests();
    assert!(
        asked.iter().all(|request| !request.query.contains("version")),
        "{asked:?}"
    );
    assert_eq!(
        versions.lock().unwrap()["a/p1"].first().unwrap().as_deref(),
        Some(&b"first"[..])
    );
}

#[test]
fn a_repository_lives_in_a_bucket_that_keeps_versions() {
    let versions = Versions::default();
    let (_server, store) = store(versioned(versions.clone()));
    let store: Arc<dyn BlobStore> = Arc::new(store);
    Repository::create(&*store, "secret", &CreateOptions::default()).unwrap();
    let options = WriteOptions {
        sealers: 1,
        uploads: 1,
        ..WriteOptions::default()
    };
    // The second session finds what the first indexed, and not its marker, which is a version below a delete marker now.
    let mut contents = Vec::new();
    for bytes in [b"first", b"other"] {
        let repository = Repository::open(store.clone(), "secret").unwrap();
        let session = WriteSession::begin(&repository, &options).unwrap();
        contents.push(session.put_metadata('k', bytes, false).unwrap());
        session.abandon();
    }
    let repository = Repository::open(store.clone(), "secret").unwrap();
    let read: Vec<_> = contents
        .iter()
        .map(|content| repository.read_content(content).unwrap())
        .collect();
    assert_eq!(read, [b"first", b"other"]);
    assert!(store.list("s").unwrap().is_empty());
    let versions = versions.lock().unwrap();
    let markers = versions.iter().filter(|(key, _)| key.starts_with("a/s"));
    assert_eq!(
        markers.filter(|(_, versions)| versions.last() == Some(&None)).count(),
        2
    );
}
