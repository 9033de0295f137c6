//! Manifest contents, and the snapshots in them. Bytes are taken as the gzip stream, and as the JSON within one.
#![no_main]

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;
use repo::ContentId;
use repo::manifest::Manifests;
use repo::snapshot::Snapshot;

fuzz_target!(|bytes: &[u8]| {
    let content = ContentId::new(Some('m'), &[7; 16]).expect("a manifest content");
    let mut manifests = Manifests::default();
    let _ = manifests.add(&content, bytes);

    let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
    gzip.write_all(bytes).expect("write to memory");
    let _ = manifests.add(&content, &gzip.finish().expect("write to memory"));

    for manifest in manifests.find(&[]) {
        assert!(
            manifests.get(&manifest.id).is_some(),
            "listed and not found: {manifest:?}"
        );
        let snapshot: Result<Snapshot, _> = serde_json::from_str(manifest.data.get());
        if let Ok(snapshot) = snapshot {
            let _ = (snapshot.tagged_size(), snapshot.logical_block(), snapshot.root_kind());
            assert!(snapshot.labels().contains_key("type"));
        }
    }
});
