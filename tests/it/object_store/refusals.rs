//! What a server refuses, and what is wrong before there is a server: each told apart, with the way out.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use blockferry_tests::blockferry::{Blockferry, Ended};
use blockferry_tests::bucket::Bucket;
use blockferry_tests::garage::{BUCKET, Key, Rights};
use blockferry_tests::proxy::tls::{AUTHORITY, Front, OTHER_AUTHORITY};
use blockferry_tests::proxy::{Fault, Op, Proxy, Rule, Weather, When};
use blockferry_tests::volume::{Layout, Volume};

use super::servers_are_here;
use crate::bad_input::support::{assert_failed, assert_words};
use crate::kopia_compat::judge::{MIB, PASSWORD};

/// The command fails with 1 and one error that has all of `words`; returns how it ended.
#[track_caller]
fn refused(bucket: &Bucket, args: &[&str], words: &[&str]) -> Ended {
    let ended = Blockferry::in_bucket(bucket, PASSWORD).unwrap().ended(args).unwrap();
    assert_failed(&ended, 1, words);
    ended
}

#[test]
fn what_is_wrong_is_told_apart() {
    if !servers_are_here() {
        return;
    }
    let (garage, bucket, _shared) = super::started();
    let list = ["snapshots"];
    let is = |wrong: Bucket, words: &[&str]| _ = refused(&wrong, &list, words);
    is(
        Bucket {
            region: "eu-west-9".into(),
            ..bucket.clone()
        },
        &["region", "eu-west-9"],
    );
    is(
        Bucket {
            bucket: "no-such-bucket".into(),
            ..bucket.clone()
        },
        &["no bucket", "no-such-bucket"],
    );
    is(
        Bucket {
            prefix: "nothing-here/".into(),
            ..bucket.clone()
        },
        &["no Kopia repository", "nothing-here"],
    );
    let unknown = Key {
        id: "GK000000000000000000000000".into(),
        secret: "0".repeat(64),
    };
    is(
        Bucket {
            key: unknown,
            ..bucket.clone()
        },
        &["does not know the access key"],
    );
    let wrong = Key {
        secret: "0".repeat(64),
        ..bucket.key.clone()
    };
    is(
        Bucket {
            key: wrong,
            ..bucket.clone()
        },
        &["secret"],
    );
    let stranger = garage.create_key(BUCKET, Rights::NONE).unwrap();
    is(
        Bucket {
            key: stranger,
            ..bucket.clone()
        },
        &["access denied", BUCKET],
    );
}

#[test]
fn a_server_that_is_not_there_is_told_with_how_long_it_was_tried() {
    if !servers_are_here() {
        return;
    }
    let (_garage, bucket, _shared) = super::started();
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let start = Instant::now();
    refused(&bucket.through(endpoint.clone()), &["snapshots"], &[&endpoint, " s"]);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
}

#[test]
fn certificates_are_checked() {
    if !servers_are_here() {
        return;
    }
    let (garage, bucket, shared) = super::started();
    let front = Front::start(&garage.address(0)).unwrap();
    let [ca, other, rubbish] = ["ca.pem", "other.pem", "rubbish.pem"].map(|name| shared.file(name));
    fs::write(&ca, AUTHORITY).unwrap();
    fs::write(&other, OTHER_AUTHORITY).unwrap();
    fs::write(&rubbish, "no certificate").unwrap();
    let with = |authority| Bucket {
        authority,
        ..bucket.through(front.endpoint())
    };
    let ended = Blockferry::in_bucket(&with(Some(ca)), PASSWORD)
        .unwrap()
        .ended(["snapshots"])
        .unwrap();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for authority in [None, Some(other)] {
        refused(&with(authority), &["snapshots"], &["certificate", &front.endpoint()]);
    }
    let missing = shared.file("missing.pem");
    for (file, code) in [(rubbish, [1, 2]), (missing, [1, 2])] {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let ended = Blockferry::in_bucket(&with(Some(file)), PASSWORD)
            .unwrap()
            .ended(["snapshots"])
            .unwrap();
        assert!(ended.code.is_some_and(|it| code.contains(&it)), "{ended:?}");
        assert_words(&ended.stderr, &[&name]);
    }
}

#[test]
fn read_only_keys_restore_and_do_not_begin_to_write() {
    if !servers_are_here() {
        return;
    }
    let (garage, bucket, shared) = super::started();
    let layout = Layout::mixed(5, 8 * MIB + 512);
    let taken = shared.we_take("volume", layout.bytes(), &[]);
    let before = garage.bucket_totals(BUCKET).unwrap();
    let reader = Bucket {
        key: garage.create_key(BUCKET, Rights::READ_ONLY).unwrap(),
        ..bucket
    };
    let proxy = Proxy::start(&garage.address(0), 1, Weather::default()).unwrap();
    let reader = reader.through(proxy.endpoint());
    let ours = Blockferry::in_bucket(&reader, PASSWORD).unwrap();
    let target = shared.file("restored");
    ours.restore(&taken.id, &target, &["--verify"]).unwrap();
    taken.is_same(&fs::read(&target).unwrap(), "a key that may only read");
    ours.run(["verify", "--percent", "100"]).unwrap();

    let volume = Volume::create(&Layout::mixed(6, 64 * MIB)).unwrap();
    let path = volume.path().display().to_string();
    proxy.forget();
    refused(&reader, &["backup", &path], &["permission", BUCKET]);
    let sent: u64 = proxy.records().iter().map(|record| record.sent).sum();
    assert!(sent < MIB, "{sent} bytes were sent before it was noticed");
    refused(&reader, &["delete", &taken.id], &["permission", BUCKET]);
    assert_eq!(garage.bucket_totals(BUCKET).unwrap(), before);
}

/// Garage gives no right to get without the right to list, others do: the proxy refuses lists.
#[test]
fn a_bucket_that_may_not_be_listed_is_told() {
    if !servers_are_here() {
        return;
    }
    let (garage, bucket, _shared) = super::started();
    let denied = Fault::Answer {
        status: 403,
        code: "AccessDenied",
    };
    let weather = Weather {
        rules: vec![Rule::new(denied, &[Op::List], When::Always)],
        ..Weather::default()
    };
    let proxy = Proxy::start(&garage.address(0), 1, weather).unwrap();
    refused(
        &bucket.through(proxy.endpoint()),
        &["snapshots"],
        &["access denied", "list", BUCKET],
    );
}

#[test]
fn a_clock_that_is_wrong_is_told() {
    if !servers_are_here() {
        return;
    }
    let (garage, bucket, _shared) = super::started();
    let skewed = Fault::Answer {
        status: 403,
        code: "RequestTimeTooSkewed",
    };
    let weather = Weather {
        rules: vec![Rule::new(skewed, &[], When::Always)],
        ..Weather::default()
    };
    let proxy = Proxy::start(&garage.address(0), 1, weather).unwrap();
    refused(&bucket.through(proxy.endpoint()), &["snapshots"], &["clock"]);
}

/// Garage has no object locks. A repository that asks for them is not created rather than left without.
#[test]
fn locks_that_the_server_cannot_keep_are_refused() {
    if !servers_are_here() {
        return;
    }
    let (garage, bucket, _shared) = super::started();
    let before = garage.bucket_totals(BUCKET).unwrap();
    let elsewhere = Bucket {
        prefix: "locked/".into(),
        ..bucket
    };
    refused(
        &elsewhere,
        &["repo", "create", "--object-lock", "GOVERNANCE:30"],
        &["object lock"],
    );
    assert_eq!(garage.bucket_totals(BUCKET).unwrap(), before);
}
