//! `kopia.repository`: the outer JSON, before any key is known.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo::format::FormatBlob;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(blob) = FormatBlob::parse(bytes) {
        // Deriving a key is slow on purpose and left out; the parts a key would be derived from are there.
        let _ = blob.unique_id().len();
    }
});
