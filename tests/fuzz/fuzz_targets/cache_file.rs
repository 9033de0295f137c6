//! Files of the local cache: whatever they hold, no length in a head that is accepted goes past the file, and nothing passes that
//! was not stored under the key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo::cache::frame::{HEAD_LEN, Head};
use repo::crypto::Secret32;

fuzz_target!(|bytes: &[u8]| {
    let Ok(head) = Head::parse(bytes, bytes.len() as u64) else {
        return;
    };
    let (note, body) = bytes[HEAD_LEN..].split_at(head.note_len);
    assert_eq!(body.len() as u64, head.body_len);
    let key = Secret32::new([7; 32]);
    assert!(head.check_note(&key, "tables/0", note).is_err(), "a forged note");
    assert!(head.check_body(&key, body).is_err(), "a forged body");
});
