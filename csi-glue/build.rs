//! Turns `proto/` into the messages and clients of `src/cbt/proto.rs`, without protoc.

use std::error::Error;

/// Where generated clients find the codec that leaves pages as bytes.
const CODEC: &str = "crate::cbt::codec::PageCodec";

/// What generated code uses for a message of a stream: its bytes, which `cbt::page` reads straight into the map.
const PAGE: &str = "crate::cbt::codec::RawPage";

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["proto/snapshot_metadata.proto", "proto/csi_snapshot_metadata.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .codec_path(CODEC)
        .extern_path(".snapshotmetadata.GetMetadataAllocatedResponse", PAGE)
        .extern_path(".snapshotmetadata.GetMetadataDeltaResponse", PAGE)
        .extern_path(".csi.v1.GetMetadataAllocatedResponse", PAGE)
        .extern_path(".csi.v1.GetMetadataDeltaResponse", PAGE)
        .compile_fds(descriptors)?;
    Ok(())
}
