use std::net::TcpListener;
use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use super::*;
use crate::RepoError;
use crate::blob::BlobStore;
use crate::blob::loopback::{Answer, CERTIFICATE, Server};
use crate::blob::s3::Checksum;
use crate::error::Kind;

/// All that a user gets to see of `e`.
fn shown(e: &RepoError) -> String {
    let mut text = format!("{e} {e:?}");
    let mut cause = std::error::Error::source(e);
    while let Some(e) = cause {
        text.push_str(&format!(" {e} {e:?}"));
        cause = e.source();
    }
    text
}

fn opening(config: S3Config) -> RepoError {
    S3Store::open(config).err().expect("this bucket cannot be opened")
}

#[test]
fn every_refusal_has_its_kind_and_says_where_and_what_to_do() {
    for (status, code, message, kind, says) in [
        (
            403,
            "InvalidAccessKeyId",
            "no such key",
            Kind::Credentials,
            "does not know the access key (access key KEYID)",
        ),
        (
            403,
            "SignatureDoesNotMatch",
            "check your key",
            Kind::Credentials,
            "secret does not belong",
        ),
        (
            400,
            "ExpiredToken",
            "The provided token has expired.",
            Kind::Credentials,
            "token has expired",
        ),
        (403, "RequestTimeTooSkewed", "too large", Kind::Clock, "NTP"),
        (
            404,
            "NoSuchBucket",
            "The specified bucket does not exist",
            Kind::NoBucket,
            "there is no bucket bucket",
        ),
        (403, "AccessDenied", "Access Denied", Kind::Permission, "s3:GetObject"),
        (
            403,
            "AccessDenied",
            "Forbidden: No such key: GK1",
            Kind::Credentials,
            "does not know the access key",
        ),
        (
            403,
            "AccessDenied",
            "Forbidden: Invalid signature",
            Kind::Credentials,
            "secret does not belong",
        ),
        (403, "InvalidObjectState", "archived", Kind::Unsupported, "archive"),
        (
            503,
            "SlowDown",
            "Please reduce your request rate.",
            Kind::Throttled,
            "fewer requests",
        ),
        (503, "Whatever", "x", Kind::Throttled, "fewer requests"),
        (429, "TooManyRequests", "x", Kind::Throttled, "fewer requests"),
        (
            500,
            "InternalError",
            "We encountered an internal error.",
            Kind::Unavailable,
            "in passing",
        ),
        (502, "", "<html>Bad Gateway", Kind::Unavailable, "in passing"),
        (404, "", "<html>Not Found</html>", Kind::Storage, "no S3 service"),
        (404, "", "", Kind::NotFound, "no such blob"),
        (507, "XMinioStorageFull", "full", Kind::StorageFull, "full"),
        (400, "Unheard", "of", Kind::Storage, "refused"),
        (
            400,
            "",
            "Client sent an HTTP request to an HTTPS server.",
            Kind::InvalidInput,
            "https://",
        ),
        (
            301,
            "PermanentRedirect",
            "use another endpoint",
            Kind::WrongRegion,
            "region",
        ),
    ] {
        let (_server, store) = store(move |_| match code {
            "" => Answer {
                status,
                ..Answer::ok(message)
            },
            _ => Answer::refused(status, code, message),
        });
        let e = store.get(&id("p1")).unwrap_err();
        assert_eq!(e.kind(), kind, "{status} {code}: {e}");
        let text = e.to_string();
        assert!(text.contains(says), "{status} {code}: {text}");
        assert!(
            text.contains("read blob p1 in s3://bucket/a/ at http://127.0.0.1"),
            "{text}"
        );
        let cause = std::error::Error::source(&e).unwrap().to_string();
        assert!(
            cause.contains(message) && cause.contains(&status.to_string()),
            "{cause}"
        );
        assert!(!shown(&e).contains("hush"), "{}", shown(&e));
    }
}

#[test]
fn a_missing_permission_is_named() {
    let (_server, store) = store(|_| Answer::refused(403, "AccessDenied", "Access Denied"));
    let lock = crate::blob::ObjectLock {
        mode: "COMPLIANCE".into(),
        period: Duration::from_secs(86_400),
    };
    for (e, permission) in [
        (store.list("").unwrap_err(), "s3:ListBucket"),
        (store.put(&id("p1"), b"x").unwrap_err(), "s3:PutObject on"),
        (
            store.put_shared(&id("p1"), "x".into(), Some(&lock)).unwrap_err(),
            "s3:GetBucketObjectLockConfiguration",
        ),
        (
            store.extend_lock(&id("p1"), &lock).unwrap_err(),
            "s3:GetBucketObjectLockConfiguration",
        ),
        (store.delete(&id("p1")).unwrap_err(), "s3:DeleteObject"),
        (store.meta(&id("p1")).unwrap_err(), "s3:GetObject"),
    ] {
        assert_eq!(e.kind(), Kind::Permission);
        assert!(e.to_string().contains(permission), "{e}");
    }
}

#[test]
fn a_bucket_that_does_not_tell_of_its_object_lock_gets_no_blob_to_lock() {
    let (_server, store) = store(move |request| match request.query.as_str() {
        "object-lock" => Answer::refused(403, "AccessDenied", "Access Denied"),
        _ => panic!("a service that ignores locks would store it unlocked"),
    });
    let lock = crate::blob::ObjectLock {
        mode: "COMPLIANCE".into(),
        period: Duration::from_secs(86_400),
    };
    let e = store.put_shared(&id("p1"), "x".into(), Some(&lock)).unwrap_err();
    assert_eq!(e.kind(), Kind::Permission);
    assert!(e.to_string().contains("s3:GetBucketObjectLockConfiguration"), "{e}");
}

#[test]
fn a_clock_that_is_off_is_found_by_the_date_of_a_refusal() {
    let (_server, store) = store(|_| {
        let date = DateTime::from(SystemTime::now() - Duration::from_secs(3600));
        Answer::refused(403, "SignatureDoesNotMatch", "check your key")
            .header("date", date.fmt(Format::HttpDate).unwrap())
    });
    let e = store.get(&id("p1")).unwrap_err();
    assert_eq!(e.kind(), Kind::Clock);
    assert!(e.to_string().contains("are 360"), "{e}");
}

#[test]
fn a_region_that_is_not_set_is_taken_from_the_answer() {
    let server = Server::start(|request| {
        match request.header("authorization").contains("/garage/s3/") {
        true => Answer::refused(404, "NoSuchKey", "missing"),
        false => Answer {
            status: 400,
            body: b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>unexpected scope</Message><Region>garage</Region></Error>".to_vec(),
            ..Answer::default()
        },
    }
    });
    let mut config = config(&server);
    config.region = None;
    let store = S3Store::open(config.clone()).unwrap();
    assert!(store.get(&id("p1")).unwrap_err().is_not_found());

    config.region = Some("elsewhere".into());
    let e = opening(config);
    assert_eq!(e.kind(), Kind::WrongRegion);
    assert!(
        e.to_string()
            .contains("in region garage, not elsewhere; set region=garage"),
        "{e}"
    );
}

#[test]
fn the_region_in_a_header_counts_as_well() {
    let server = Server::start(
        |request| match request.header("authorization").contains("/eu-west-3/s3/") {
            true => Answer::refused(404, "NoSuchKey", "missing"),
            false => Answer::refused(301, "PermanentRedirect", "elsewhere").header("x-amz-bucket-region", "eu-west-3"),
        },
    );
    let mut config = config(&server);
    config.region = None;
    S3Store::open(config).unwrap();
}

#[test]
fn a_key_that_may_read_nothing_but_its_blobs_can_open() {
    let server = Server::start(|_| Answer::refused(403, "AccessDenied", "Access Denied"));
    S3Store::open(config(&server)).unwrap();
}

#[test]
fn settings_that_are_garbled_are_not_passed_over() {
    let server = Server::start(|_| Answer::ok("no json"));
    let e = opening(config(&server));
    assert_eq!(e.kind(), Kind::Corrupt);
    assert!(e.to_string().contains(".storageconfig"), "{e}");
}

#[test]
fn an_address_where_nobody_listens_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let mut config = S3Config::new("bucket");
    config.credentials = Credentials::Anonymous;
    config.endpoint = Some(url.clone());
    let e = opening(config);
    assert_eq!(e.kind(), Kind::Unreachable);
    let text = e.to_string();
    assert!(
        text.contains(&format!("{url} cannot be reached: Connection refused")) && text.contains("tried for"),
        "{text}"
    );
}

#[test]
fn a_host_name_that_does_not_exist_is_told_as_such() {
    let mut config = S3Config::new("bucket");
    config.credentials = Credentials::Anonymous;
    config.endpoint = Some("http://nowhere.invalid:9000".into());
    let e = opening(config);
    assert_eq!(e.kind(), Kind::Unreachable);
    assert!(e.to_string().contains("not known to DNS"), "{e}");
}

#[test]
fn a_service_that_is_silent_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = S3Config::new("bucket");
    config.credentials = Credentials::Anonymous;
    config.endpoint = Some(format!("http://{}", listener.local_addr().unwrap()));
    config.deadlines.base = Duration::from_millis(200);
    let e = opening(config.clone());
    assert_eq!(e.kind(), Kind::Unavailable);
    assert!(e.to_string().contains("within 0.2 s"), "{e}");

    // TLS that is never answered is a connection that is never made.
    config.endpoint = config.endpoint.map(|url| url.replace("http", "https"));
    config.deadlines.base = Duration::from_secs(60);
    config.deadlines.connect = Duration::from_millis(200);
    let e = opening(config);
    assert_eq!(e.kind(), Kind::Unreachable, "{e}");
    assert!(e.to_string().contains("does not answer"), "{e}");
}

/// Every request had the time of a pack, so that one that got lost took nearly all the time there is for trying again.
#[test]
fn a_request_has_time_for_the_bytes_it_moves_and_no_more() {
    let server = Server::start(without_settings(|_| {
        loop {
            std::thread::park();
        }
    }));
    let mut config = config(&server);
    config.checksum = Checksum::Md5;
    config.deadlines.base = Duration::from_millis(100);
    config.deadlines.rate_min = 5 << 20;
    let store = S3Store::open(config).unwrap();
    for (e, limit) in [
        (store.meta(&id("p1")).unwrap_err(), "within 0.1 s"),
        (store.get(&id("p1")).unwrap_err(), "within 0.1 s"),
        (store.delete(&id("p1")).unwrap_err(), "within 0.1 s"),
        (store.list("").unwrap_err(), "within 0.3 s"),
        (store.put(&id("p1"), &[7; 1 << 20]).unwrap_err(), "within 0.3 s"),
        (
            store
                .read_range(&id("p1"), 0..1 << 20, &mut vec![0; (1 << 20) + 2 * 4096])
                .unwrap_err(),
            "within 0.3 s",
        ),
    ] {
        assert_eq!(e.kind(), Kind::Unavailable, "{e}");
        assert!(e.to_string().contains(limit), "{e}");
    }
}

#[test]
fn a_connection_that_breaks_is_told_as_such() {
    let (_server, store) = store(|_| Answer::default()); // which is none
    for e in [
        store.get(&id("p1")).unwrap_err(),
        store.put(&id("p1"), &[7; 1 << 20]).unwrap_err(),
    ] {
        assert_eq!(e.kind(), Kind::Unavailable, "{e}");
        assert!(e.to_string().contains("connection broke"), "{e}");
    }
}

#[test]
fn a_region_that_cannot_be_one_is_not_used() {
    let server = Server::start(|_| {
        Answer::refused(301, "PermanentRedirect", "x").header("x-amz-bucket-region", "evil.example/")
    });
    let mut config = config(&server);
    config.region = None;
    let e = opening(config);
    assert_eq!(e.kind(), Kind::WrongRegion);
    assert!(!e.to_string().contains("evil"), "{e}");
}

#[test]
fn certificates_are_checked_unless_told_otherwise() {
    let server = Server::start_tls(without_settings(|_| Answer::ok("")));
    let mut config = config(&server);
    config.checksum = Checksum::Md5;
    let e = opening(config.clone());
    assert_eq!(e.kind(), Kind::Certificate, "{e}");
    assert!(
        e.to_string().contains("is not trusted") && e.to_string().contains("give the CA"),
        "{e}"
    );

    config.skip_tls_verify = true;
    S3Store::open(config.clone()).unwrap().put(&id("p1"), b"x").unwrap();
    config.skip_tls_verify = false;
    config.ca = Some(CERTIFICATE.to_vec());
    S3Store::open(config.clone()).unwrap().put(&id("p1"), b"x").unwrap();

    // Right CA, wrong name.
    config.endpoint = config.endpoint.map(|url| url.replace("127.0.0.1", "localhost"));
    assert_eq!(opening(config.clone()).kind(), Kind::Certificate);
    for text in [
        "",
        "rubbish",
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    ] {
        config.ca = Some(text.into());
        assert_eq!(opening(config.clone()).kind(), Kind::InvalidInput, "{text}");
    }
}

#[test]
fn tls_with_a_service_that_has_none_says_so() {
    let server = Server::start(|_| Answer::ok(""));
    let mut config = config(&server);
    config.endpoint = config.endpoint.map(|url| url.replace("http", "https"));
    let e = opening(config);
    assert_eq!(e.kind(), Kind::Unreachable, "{e}");
    assert!(e.to_string().contains("http://"), "{e}");
}
