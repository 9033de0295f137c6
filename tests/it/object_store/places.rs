//! Where in a bucket a repository lies, and what else lies there.

use blockferry_tests::bucket::Bucket;
use blockferry_tests::garage::{BUCKET, Garage, Rights};
use blockferry_tests::volume::Layout;
use repo::BlobId;
use repo::blob::BlobStore;
use repo::blob::s3::{Credentials, S3Config, S3Store};

use super::servers_are_here;
use crate::kopia_compat::judge::{MIB, Shared};

/// Prefixes that somebody has: none, deep, without a slash, blanks, what URLs use themselves, other alphabets.
const PREFIXES: [&str; 6] = [
    "",
    "flat-",
    "a/b/c/d/",
    "with blanks/",
    "ques?tion&per%20cent+plus=#/",
    "größe/日本/",
];

#[test]
fn prefixes_of_all_sorts_are_the_same_for_both() {
    if !servers_are_here() {
        return;
    }
    let garage = Garage::start().unwrap();
    for (at, prefix) in PREFIXES.iter().enumerate() {
        // Each in a bucket of its own: the empty prefix has no neighbours.
        let name = format!("bucket-{at}");
        garage.create_bucket(&name).unwrap();
        let bucket = Bucket {
            key: garage.create_key(&name, Rights::FULL).unwrap(),
            bucket: name,
            ..Bucket::of(&garage, prefix)
        };
        let shared = Shared::in_bucket(&bucket);
        shared.we_create(&[]);
        let taken = [
            shared.we_take("ours", Layout::mixed(1, 2 * MIB + 3).bytes(), &[]),
            shared.kopia_takes_file(&Layout::mixed(2, MIB)),
        ];
        shared.both_approve(&taken);
    }
}

#[test]
fn two_repositories_in_a_bucket_know_nothing_of_each_other() {
    if !servers_are_here() {
        return;
    }
    let garage = Garage::start().unwrap();
    // One prefix begins with the other.
    let [one, two] = ["volumes/", "volumes/more/"].map(|prefix| Shared::in_bucket(&Bucket::of(&garage, prefix)));
    one.we_create(&[]);
    two.we_create(&[]);
    let in_one = [one.we_take("volume", Layout::mixed(1, 3 * MIB).bytes(), &[])];
    let in_two = [two.we_take("volume", Layout::mixed(2, 3 * MIB).bytes(), &[])];
    one.both_approve(&in_one);
    two.both_approve(&in_two);
    two.ours.run(["delete", &in_two[0].id]).unwrap();
    two.kopia_maintains();
    one.both_approve(&in_one);
}

/// Objects that no client of the format has put there: reports of other programs, half names, folders.
#[test]
fn foreign_objects_are_passed_over() {
    if !servers_are_here() {
        return;
    }
    let (garage, bucket, shared) = super::started();
    let before = garage.bucket_totals(BUCKET).unwrap().0;
    for name in [
        "README.txt",
        "p",
        "xn",
        "folder/inside",
        "q-not-a-pack",
        "_unknown",
        "kopia.unknown",
        "ünï/inside",
    ] {
        put(&bucket, name, b"not of the repository");
    }
    assert_eq!(garage.bucket_totals(BUCKET).unwrap().0, before + 8);
    let taken = [
        shared.we_take("ours", Layout::mixed(1, 2 * MIB).bytes(), &[]),
        shared.kopia_takes_file(&Layout::mixed(2, MIB)),
    ];
    shared.we_approve(&taken);
    shared.ours.run_json(["repo", "status"]).unwrap();
    let status = garage.bucket_totals(BUCKET).unwrap().0;
    assert!(status > before + 8, "nothing foreign is removed");
}

/// A second repository in the same place is refused, and the first is as it was.
#[test]
fn a_place_that_is_taken_is_refused() {
    if !servers_are_here() {
        return;
    }
    let (garage, _, shared) = super::started();
    let before = garage.bucket_totals(BUCKET).unwrap();
    let ended = shared.ours.ended(["repo", "create"]).unwrap();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("cluster-1/volumes"), "{ended:?}");
    assert_eq!(garage.bucket_totals(BUCKET).unwrap(), before);
    shared.both_verify(&[]);
}

/// Puts an object as it is, by way of our store; the name may have folders.
fn put(bucket: &Bucket, name: &str, bytes: &[u8]) {
    let (folder, id) = name.rsplit_once('/').map_or(("", name), |(folder, id)| (folder, id));
    let slash = if folder.is_empty() { "" } else { "/" };
    let mut config = S3Config::new(&bucket.bucket);
    config.prefix = format!("{}{folder}{slash}", bucket.prefix);
    config.endpoint = Some(bucket.endpoint.clone());
    config.region = Some(bucket.region.clone());
    config.credentials = Credentials::Static {
        key_id: bucket.key.id.clone(),
        secret: bucket.key.secret.clone().into(),
        token: None,
    };
    S3Store::open(config)
        .unwrap()
        .put(&BlobId::new(id).unwrap(), bytes)
        .unwrap();
}
