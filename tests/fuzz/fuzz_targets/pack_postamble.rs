//! The end of a pack: where its local index is, by what it says of itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo::pack::LocalIndex;

fuzz_target!(|bytes: &[u8]| {
    let len = bytes.len() as u64;
    if let Ok(local) = LocalIndex::find(len, bytes) {
        let range = local.range();
        assert!(range.start <= range.end && range.end <= len, "{range:?} of {len} bytes");
    }
    // A tail of a pack that is longer than what is at hand.
    if let Ok(local) = LocalIndex::find(1 << 30, bytes) {
        assert!(local.range().end <= 1 << 30);
    }
});
