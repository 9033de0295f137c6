//! `repo sync` from a folder to a bucket, by a bad network too, and from the bucket to a second folder: the same blobs
//! everywhere, and kopia takes each copy for the repository that it is.

use std::path::Path;

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::bucket::Bucket;
use blockferry_tests::garage::{BUCKET, Garage};
use blockferry_tests::kopia::Kopia;
use blockferry_tests::proxy::{Fault, Proxy, Rule, Weather, When};
use blockferry_tests::volume::Layout;
use repo::blob::{BlobStore, FsStore};
use serde_json::Value;

use super::servers_are_here;
use crate::bad_input::support::names;
use crate::kopia_compat::judge::{MIB, PASSWORD, Shared};

/// A client of the repository in `folder` that has the key of `bucket`.
fn with_key(folder: &Path, bucket: &Bucket) -> Blockferry {
    let client = Blockferry::new(folder, PASSWORD).unwrap();
    let environment = bucket.environment().into_iter();
    environment.fold(client, |client, (name, value)| client.with(name, &value))
}

fn copied(report: &Value) -> u64 {
    report["copied"]["blobs"].as_u64().unwrap_or_else(|| panic!("{report}"))
}

#[test]
fn rounds_of_copies_go_to_a_bucket_and_come_back() {
    if !servers_are_here() {
        return;
    }
    let garage = Garage::start().unwrap();
    let bucket = Bucket::of(&garage, "copy/");
    let shared = Shared::by_us(&[]);
    let mut taken = vec![
        shared.we_take("first", Layout::mixed(1, 24 * MIB + 512).bytes(), &[]),
        shared.kopia_takes_file(&Layout::mixed(2, 3 * MIB)),
    ];
    let there = |proxy: &Proxy| bucket.through(proxy.endpoint()).url();
    let lost = vec![
        Rule::new(Fault::ResetBefore, &[], When::Percent(10.0)),
        Rule::new(Fault::ResetAfter, &[], When::Percent(10.0)),
        Rule::new(Fault::slow_down(), &[], When::Every(7)),
    ];
    let weather = Weather {
        rules: lost,
        ..Weather::default()
    };
    let from_folder = with_key(&shared.repo, &bucket);
    for round in 0..blockferry_tests::rounds(2, 20) {
        let proxy = Proxy::start(&garage.address(0), round, weather.clone()).unwrap();
        let target = there(&proxy);
        let report = from_folder.run_json(["repo", "sync", &target, "--verify"]).unwrap();
        assert!(copied(&report) > 0 && proxy.faults() > 0, "{report}");
        assert_eq!(report["differing"], Value::Array(Vec::new()));
        assert_eq!(copied(&from_folder.run_json(["repo", "sync", &target]).unwrap()), 0);
        let source = FsStore::open(&shared.repo).unwrap();
        // Kopia leaves logs of its own in the bucket.
        assert!(garage.bucket_totals(BUCKET).unwrap().0 >= names(&source, "").len() as u64);
        let in_bucket = Shared::in_bucket(&bucket);
        in_bucket.kopia.connect().unwrap();
        in_bucket.both_approve(&taken);
        taken.push(shared.we_take("more", Layout::mixed(10 + round, 2 * MIB).bytes(), &[]));
    }
    from_folder.run_json(["repo", "sync", &bucket.url()]).unwrap();

    let back = shared.file("back");
    let from_bucket = Blockferry::in_bucket(&bucket, PASSWORD).unwrap();
    let path = back.display().to_string();
    from_bucket.run_json(["repo", "sync", &path, "--verify"]).unwrap();
    let [one, other] = [&shared.repo, &back].map(|folder| FsStore::open(folder).unwrap());
    for id in names(&one, "") {
        let id = repo::BlobId::new(id).unwrap();
        assert!(one.get(&id).unwrap() == other.get(&id).unwrap(), "{id}");
    }
    let kopia = Kopia::new(&back, PASSWORD).unwrap();
    kopia.connect().unwrap();
    kopia.verify_full().unwrap();
}
