//! The file from which a verification goes on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo::verify::VerifyState;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(state) = VerifyState::parse(bytes) {
        let text = serde_json::to_vec(&state).expect("a state that was read can be written");
        let again = VerifyState::parse(&text).expect("what was written is read");
        assert_eq!(again.snapshots(), state.snapshots());
    }
});
