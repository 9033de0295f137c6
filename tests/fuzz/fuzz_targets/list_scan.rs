//! What is left of a list of which parts are missing: the first byte tells the length of the parts, the second which is lost.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo::verify::ListScan;

fuzz_target!(|bytes: &[u8]| {
    let [len, lost, text @ ..] = bytes else { return };
    let mut scan = ListScan::new();
    for (number, part) in text.chunks(usize::from(*len) + 1).enumerate() {
        if number == usize::from(*lost) {
            scan.gap();
            continue;
        }
        scan.take(part, |entry| {
            assert!(
                entry.start.checked_add(entry.len).is_some(),
                "ends past 2^64: {entry:?}"
            );
        });
    }
});
