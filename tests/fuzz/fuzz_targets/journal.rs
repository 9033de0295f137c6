//! The journal from which an interrupted backup goes on.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    daemon::mover::parse_journal_for_fuzzing(bytes);
});
