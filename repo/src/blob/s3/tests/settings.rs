use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use super::*;
use crate::blob::BlobStore;
use crate::blob::loopback::{Answer, Server};
use crate::error::Kind;

/// The access key that the service is asked with.
fn key_used(credentials: Credentials) -> crate::Result<String> {
    let server = Server::start(without_settings(|_| Answer::ok("")));
    let mut config = config(&server);
    config.credentials = credentials;
    S3Store::open(config)?.get(&id("p1"))?;
    let signed = server.requests()[0].header("authorization").to_owned();
    Ok(signed.split_once("Credential=").map_or(String::new(), |(_, rest)| {
        rest.split('/').next().unwrap_or_default().into()
    }))
}

fn file(text: &str) -> (tempfile::NamedTempFile, PathBuf) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let path = file.path().to_owned();
    (file, path)
}

fn chain(file: &Path, profile: Option<&str>) -> Credentials {
    Credentials::Chain {
        file: Some(file.to_owned()),
        profile: profile.map(str::to_owned),
    }
}

#[test]
fn keys_come_from_the_profile_of_the_file() {
    let text = "[default]\naws_access_key_id = ONE\naws_secret_access_key = hush\n[other]\naws_access_key_id = TWO\naws_secret_access_key = hush\n[profile third]\naws_access_key_id = THREE\naws_secret_access_key = hush\n";
    let (_file, path) = file(text);
    assert_eq!(key_used(chain(&path, None)).unwrap(), "ONE");
    assert_eq!(key_used(chain(&path, Some("other"))).unwrap(), "TWO");
    assert_eq!(key_used(chain(&path, Some("third"))).unwrap(), "THREE");
}

#[test]
fn a_file_or_profile_without_keys_is_told() {
    let (_file, path) = file("[default]\naws_access_key_id = ONE\naws_secret_access_key = hush\n");
    let missing = PathBuf::from("/nonexistent/credentials");
    for (credentials, says) in [
        (chain(&missing, None), "/nonexistent/credentials".to_owned()),
        (
            chain(&path, Some("other")),
            format!("profile other of {}", path.display()),
        ),
    ] {
        let e = key_used(credentials).unwrap_err();
        assert_eq!(e.kind(), Kind::Credentials, "{e}");
        assert!(e.to_string().contains(&says), "{e}");
    }
    let (_file, path) = file("rubbish\n[[[\n");
    assert_eq!(key_used(chain(&path, None)).unwrap_err().kind(), Kind::Credentials);
}

#[test]
fn a_role_is_taken_on_with_the_keys_of_its_source_profile() {
    let until = DateTime::from(SystemTime::now() + Duration::from_secs(3600))
        .fmt(Format::DateTime)
        .unwrap();
    let answer = format!(
        "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><Credentials><AccessKeyId>LENT</AccessKeyId><SecretAccessKey>hush</SecretAccessKey><SessionToken>token</SessionToken><Expiration>{until}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
    );
    let lender = Server::start(move |_| Answer::ok(answer.clone()));
    let text = format!(
        "[default]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = base\nendpoint_url = {}\n[base]\naws_access_key_id = BASE\naws_secret_access_key = hush\n",
        lender.url
    );
    let (_file, path) = file(&text);
    assert_eq!(key_used(chain(&path, None)).unwrap(), "LENT");
    let asked = lender.requests();
    assert!(asked[0].header("authorization").contains("Credential=BASE/"));
    assert!(String::from_utf8_lossy(&asked[0].body).contains("AssumeRole"));
}

#[test]
fn anonymous_requests_are_not_signed() {
    assert_eq!(key_used(Credentials::Anonymous).unwrap(), "");
}

#[test]
fn prefixes_with_odd_characters_reach_the_service_as_they_are() {
    for (prefix, path) in [
        ("a b/", "/bucket/a%20b/p1"),
        ("a+b%20c/", "/bucket/a%2Bb%2520c/p1"),
        ("ä/日本/", "/bucket/%C3%A4/%E6%97%A5%E6%9C%AC/p1"),
        ("it's (a)=&?#!*~/", "/bucket/it%27s%20%28a%29%3D%26%3F%23%21%2A~/p1"),
        ("a//b/", "/bucket/a//b/p1"),
        ("a\\b|c/", "/bucket/a%5Cb%7Cc/p1"),
        ("", "/bucket/p1"),
    ] {
        let server = Server::start(without_settings(|_| Answer::ok("")));
        let mut config = config(&server);
        config.prefix = prefix.into();
        let store = S3Store::open(config).unwrap();
        store.get(&id("p1")).unwrap();
        assert_eq!(server.requests()[0].path, path, "{prefix}");
    }
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let server = Server::start(|_| Answer::ok("{}"));
    let with = |change: &dyn Fn(&mut S3Config)| {
        let mut config = config(&server);
        change(&mut config);
        S3Store::open(config).err().map(|e| e.kind())
    };
    assert_eq!(with(&|_| {}), None);
    assert_eq!(with(&|c| c.bucket = String::new()), Some(Kind::InvalidInput));
    assert_eq!(with(&|c| c.bucket = "a/b".into()), Some(Kind::InvalidInput));
    assert_eq!(with(&|c| c.prefix = "/a/".into()), Some(Kind::InvalidInput));
    assert_eq!(with(&|c| c.prefix = "a/../b/".into()), Some(Kind::InvalidInput));
    assert_eq!(
        with(&|c| c.endpoint = Some("127.0.0.1".into())),
        Some(Kind::InvalidInput)
    );
}

#[test]
fn the_place_shows_no_secret() {
    let (_server, store) = store(|_| Answer::ok(""));
    assert!(
        store.place().starts_with("s3://bucket/a/ at http://127.0.0.1:"),
        "{}",
        store.place()
    );
}
