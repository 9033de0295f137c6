//! Repositories in buckets of a real S3 server, Garage, shared with the real kopia; by good and by bad networks.
//!
//! | module | what it shows |
//! |---|---|
//! | [`compat`] | what the tests of kopia and folders show, in a bucket |
//! | [`keys`] | where keys come from: token, instance, roles, file; what was asked is told |
//! | [`copies`] | `repo sync` to a bucket and back |
//! | [`cluster`] | three nodes, one of which dies |
//! | [`toxics`] | latency, resets, half bodies, "slow down", old lists, requests that arrive twice |
//! | [`refusals`] | wrong endpoint, region, bucket, key, secret, certificate, clock; missing permissions |
//! | [`places`] | prefixes of all sorts, neighbours in the bucket, what else lies there |

mod cluster;
mod compat;
mod copies;
mod keys;
mod places;
mod refusals;
mod toxics;

use blockferry_tests::bucket::Bucket;
use blockferry_tests::garage::{self, Garage};

use crate::kopia_compat::judge::{Shared, kopia_is_here};

/// Whether the servers are here: Garage, and kopia to judge.
fn servers_are_here() -> bool {
    garage::available() && kopia_is_here()
}

/// A server of one node, and a repository by us in a prefix of its bucket.
fn started() -> (Garage, Bucket, Shared) {
    let garage = Garage::start().unwrap();
    let bucket = Bucket::of(&garage, "cluster-1/volumes/");
    let shared = Shared::in_bucket(&bucket);
    shared.we_create(&[]);
    (garage, bucket, shared)
}
