use std::time::{Duration, SystemTime};

use aws_smithy_types::date_time::{DateTime, Format};
use bytes::Bytes;
use zeroize::Zeroizing;

use super::*;
use crate::blob::loopback::{Answer, CERTIFICATE, Request, Server};
use crate::blob::s3::checksum::Proof;
use crate::blob::s3::{Checksum, ServerEncryption};
use crate::blob::{BlobStore, ObjectLock};
use crate::error::Kind;

fn is_wrong(request: &Request) -> bool {
    let crc = request.header("x-amz-checksum-crc32c");
    !crc.is_empty() && Proof::Crc32c(crc.into()) != Proof::crc32c(&request.body)
}

#[test]
fn a_put_is_one_request_with_the_headers_of_kopia_and_an_unsigned_body() {
    let server = Server::start(without_settings(|_| Answer::ok("")));
    let mut config = config(&server);
    config.checksum = Checksum::Md5;
    let store = S3Store::open(config).unwrap();
    let body = Bytes::from(vec![7; 3 << 20]);
    store.put_shared(&id("p1"), body.clone(), None).unwrap();

    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    let put = &requests[0];
    assert_eq!((put.method.as_str(), put.path.as_str()), ("PUT", "/bucket/a/p1"));
    assert_eq!(put.body, body);
    assert_eq!(put.header("content-type"), "application/x-kopia");
    assert_eq!(put.header("content-length"), body.len().to_string());
    assert_eq!(put.header("x-amz-content-sha256"), "UNSIGNED-PAYLOAD");
    assert_eq!(Proof::Md5(put.header("content-md5").into()), Proof::md5(&body));
    assert!(put.signs("content-md5"), "{}", put.header("authorization"));
    let extra = |name: &&String| {
        name.starts_with("x-amz-checksum")
            || name.contains("sdk-checksum")
            || *name == "transfer-encoding"
            || *name == "x-amz-trailer"
    };
    assert_eq!(put.headers.keys().find(extra), None);
    assert!(put.header("authorization").contains("/test-1/s3/aws4_request"));
}

#[test]
fn a_service_that_checks_crcs_is_found_out_by_a_wrong_one() {
    let (server, store) = store(|request| match is_wrong(request) {
        true => Answer::refused(400, "XAmzContentChecksumMismatch", "does not match"),
        false => Answer::ok(""),
    });
    store.put(&id("s1"), b"first").unwrap();
    store.put(&id("p1"), &[1; 100_000]).unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    assert!(is_wrong(&requests[0]));
    for put in &requests[1..] {
        assert_eq!(
            Proof::Crc32c(put.header("x-amz-checksum-crc32c").into()),
            Proof::crc32c(&put.body)
        );
        assert!(put.signs("x-amz-checksum-crc32c"));
        assert_eq!(put.header("content-md5"), "");
    }
}

#[test]
fn a_service_that_ignores_crcs_gets_md5_and_keeps_no_wrong_crc() {
    let (server, store) = store(|_| Answer::ok(""));
    store.put(&id("s1"), b"first").unwrap();
    store.put(&id("p1"), b"second").unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    assert_eq!(
        requests[1].path, "/bucket/a/s1",
        "the trial is put again with a checksum that is right"
    );
    for put in &requests[1..] {
        assert_eq!(Proof::Md5(put.header("content-md5").into()), Proof::md5(&put.body));
        assert_eq!(put.header("x-amz-checksum-crc32c"), "");
    }
}

#[test]
fn a_service_that_refuses_crcs_as_such_gets_md5() {
    let (server, store) = store(|request| match request.header("x-amz-checksum-crc32c") {
        "" => Answer::ok(""),
        _ => Answer::refused(
            501,
            "NotImplemented",
            "A header you provided implies functionality that is not implemented",
        ),
    });
    // 501 is no word about the request itself: nothing is learnt, and the error is told.
    assert_eq!(store.put(&id("s1"), b"first").unwrap_err().kind(), Kind::Unsupported);
    drop(server);

    let (server, store) = super::store(|request| match request.header("x-amz-checksum-crc32c") {
        "" => Answer::ok(""),
        _ => Answer::refused(400, "InvalidDigest", "The Content-MD5 you specified is not valid"),
    });
    store.put(&id("s1"), b"first").unwrap();
    store.put(&id("s2"), b"second").unwrap();
    let kinds: Vec<_> = server
        .requests()
        .iter()
        .map(|put| put.header("content-md5").is_empty())
        .collect();
    assert_eq!(kinds, [true, true, false, false], "wrong CRC, right CRC, MD5, MD5");
}

#[test]
fn a_trial_that_fails_in_passing_is_repeated_by_the_next_put() {
    let first = std::sync::atomic::AtomicBool::new(true);
    let (server, store) = store(move |_| match first.swap(false, std::sync::atomic::Ordering::Relaxed) {
        true => Answer::refused(503, "SlowDown", "Please reduce your request rate."),
        false => Answer::ok(""),
    });
    assert_eq!(store.put(&id("s1"), b"first").unwrap_err().kind(), Kind::Throttled);
    store.put(&id("s1"), b"first").unwrap();
    assert!(is_wrong(&server.requests()[1]));
}

/// Answers like a bucket with object lock.
fn locking(request: &Request) -> Answer {
    match request.query.as_str() {
        "object-lock" => Answer::ok(
            "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>",
        ),
        _ => Answer::ok(""),
    }
}

#[test]
fn a_lock_goes_along_with_mode_end_and_proof() {
    let (server, store) = store(locking);
    let lock = ObjectLock {
        mode: "GOVERNANCE".into(),
        period: Duration::from_secs(86_400),
    };
    store
        .put_shared(&id("p1"), Bytes::from_static(b"x"), Some(&lock))
        .unwrap();
    store.extend_lock(&id("p1"), &lock).unwrap();
    let requests: Vec<_> = server
        .requests()
        .into_iter()
        .filter(|r| r.query != "object-lock")
        .collect();
    assert_eq!(server.requests().len(), requests.len() + 1, "the bucket is asked once");
    let put = &requests[0];
    assert_eq!(put.header("x-amz-object-lock-mode"), "GOVERNANCE");
    let until = DateTime::from_str(put.header("x-amz-object-lock-retain-until-date"), Format::DateTime).unwrap();
    let ahead = SystemTime::try_from(until)
        .unwrap()
        .duration_since(SystemTime::now())
        .unwrap();
    assert!(ahead > Duration::from_secs(86_000) && ahead <= lock.period, "{ahead:?}");
    assert!(!put.header("content-md5").is_empty());

    let extend = &requests[1];
    assert_eq!(
        (extend.method.as_str(), extend.path.as_str(), extend.query.as_str()),
        ("PUT", "/bucket/a/p1", "retention")
    );
    let body = String::from_utf8_lossy(&extend.body);
    assert!(
        body.contains("<Mode>GOVERNANCE</Mode>") && body.contains("<RetainUntilDate>"),
        "{body}"
    );
    assert_eq!(
        Proof::Md5(extend.header("content-md5").into()),
        Proof::md5(&extend.body)
    );
    assert!(extend.signs("content-md5"));
}

#[test]
fn what_a_service_cannot_lock_is_not_sent() {
    let lock = ObjectLock {
        mode: "COMPLIANCE".into(),
        period: Duration::from_secs(86_400),
    };
    for answer in [
        Answer::refused(
            501,
            "NotImplemented",
            "Unimplemented action: GetObjectLockConfiguration",
        ),
        Answer::refused(
            404,
            "ObjectLockConfigurationNotFoundError",
            "does not exist for this bucket",
        ),
        Answer::ok("<ListBucketResult></ListBucketResult>"),
        Answer::ok("<ObjectLockConfiguration></ObjectLockConfiguration>"),
    ] {
        let (server, store) = store(move |_| answer.clone());
        for e in [
            store
                .put_shared(&id("p1"), Bytes::from_static(b"x"), Some(&lock))
                .unwrap_err(),
            store.extend_lock(&id("p1"), &lock).unwrap_err(),
        ] {
            assert_eq!(e.kind(), Kind::Unsupported, "{e}");
            assert!(e.to_string().contains("no object lock"), "{e}");
        }
        assert!(server.requests().iter().all(|r| r.method == "GET"));
    }
}

#[test]
fn an_encryption_that_the_service_ignores_is_an_error() {
    for encryption in [ServerEncryption::S3Managed, ServerEncryption::Kms { key: None }] {
        let server = Server::start(without_settings(|_| Answer::ok("")));
        let mut config = config(&server);
        config.encryption = encryption;
        let e = S3Store::open(config).unwrap().put(&id("p1"), b"x").unwrap_err();
        assert_eq!(e.kind(), Kind::Unsupported, "{e}");
    }
}

#[test]
fn a_lock_mode_of_another_cloud_is_refused_unsent() {
    let (server, store) = store(|_| Answer::ok(""));
    let lock = ObjectLock {
        mode: "Locked".into(),
        period: Duration::from_secs(86_400),
    };
    let e = store
        .put_shared(&id("p1"), Bytes::from_static(b"x"), Some(&lock))
        .unwrap_err();
    assert_eq!(e.kind(), Kind::Unsupported);
    assert!(server.requests().is_empty());
}

#[test]
fn storage_class_tags_and_kms_go_along() {
    let server = Server::start(|request| match request.path.ends_with("/.storageconfig") {
        true => Answer::ok(r#"{"blobOptions":[{"prefix":"p","storageClass":"GLACIER_IR"}]}"#),
        false => Answer::ok("").header("x-amz-server-side-encryption", "aws:kms"),
    });
    let mut config = config(&server);
    config.checksum = Checksum::None;
    config.storage_class = Some("STANDARD_IA".into());
    config.tags = vec![("team".into(), "a b&c".into()), ("x".into(), "ä".into())];
    config.encryption = ServerEncryption::Kms {
        key: Some("key-1".into()),
    };
    let store = S3Store::open(config).unwrap();
    store.put(&id("p1"), b"x").unwrap();
    store.put(&id("q1"), b"x").unwrap();
    let requests = server.requests();
    assert_eq!(requests[0].header("x-amz-storage-class"), "GLACIER_IR");
    assert_eq!(requests[1].header("x-amz-storage-class"), "STANDARD_IA");
    for put in &requests {
        assert_eq!(put.header("x-amz-tagging"), "team=a%20b%26c&x=%C3%A4");
        assert_eq!(put.header("x-amz-server-side-encryption"), "aws:kms");
        assert_eq!(put.header("x-amz-server-side-encryption-aws-kms-key-id"), "key-1");
        assert_eq!(put.header("content-md5"), "");
    }
}

#[test]
fn a_customers_key_goes_along_with_puts_and_reads_and_only_through_tls() {
    let server = Server::start_tls(without_settings(|request| {
        let answer = Answer::ok("x")
            .header("last-modified", "Tue, 14 Nov 2023 22:13:20 GMT")
            .header("x-amz-server-side-encryption-customer-algorithm", "AES256");
        match request.header("range") {
            "" => answer,
            _ => Answer {
                status: 206,
                ..answer.header("content-range", "bytes 0-0/1")
            },
        }
    }));
    let mut config = config(&server);
    config.ca = Some(CERTIFICATE.to_vec());
    config.checksum = Checksum::Md5;
    config.encryption = ServerEncryption::Customer {
        key: Zeroizing::new([107; 32]),
    };
    let store = S3Store::open(config.clone()).unwrap();
    store.put(&id("p1"), b"x").unwrap();
    store.get(&id("p1")).unwrap();
    store.read_range(&id("p1"), 0..1, &mut [0; 1 + 2 * 4096]).unwrap();
    store.meta(&id("p1")).unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 4);
    for request in requests {
        assert_eq!(
            request.header("x-amz-server-side-encryption-customer-algorithm"),
            "AES256"
        );
        assert_eq!(
            request.header("x-amz-server-side-encryption-customer-key"),
            "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="
        );
        assert!(
            !request
                .header("x-amz-server-side-encryption-customer-key-md5")
                .is_empty()
        );
    }

    config.endpoint = config.endpoint.map(|url| url.replace("https", "http"));
    assert_eq!(S3Store::open(config).err().unwrap().kind(), Kind::InvalidInput);
}

#[test]
fn deleting_what_is_missing_is_done() {
    let (server, store) = store(|request| match request.path.as_str() {
        "/bucket/a/p1" => Answer {
            status: 204,
            ..Answer::default()
        },
        _ => Answer::refused(404, "NoSuchKey", "The specified key does not exist."),
    });
    store.delete(&id("p1")).unwrap();
    store.delete(&id("p2")).unwrap();
    assert!(
        server
            .requests()
            .iter()
            .all(|r| r.method == "DELETE" && !r.query.contains("version"))
    );
}
