//! The generated messages and clients of `proto/`. They stay in this crate.

/// Package `snapshotmetadata`: what Kubernetes offers.
#[allow(
    dead_code,
    unreachable_pub,
    clippy::all,
    reason = "generated code; a few messages of it are not used"
)]
pub(super) mod sidecar {
    tonic::include_proto!("snapshotmetadata");
}

/// Package `csi.v1`: what a driver offers.
#[allow(
    dead_code,
    unreachable_pub,
    clippy::all,
    reason = "generated code; a few messages of it are not used"
)]
pub(super) mod driver {
    tonic::include_proto!("csi.v1");
}
