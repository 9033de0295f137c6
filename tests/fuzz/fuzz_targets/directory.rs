//! Directory objects. What is accepted is the same after being written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo::ObjectId;
use repo::directory::Directory;

fuzz_target!(|bytes: &[u8]| {
    let name: ObjectId = "k00112233445566778899aabbccddeeff".parse().expect("a directory");
    if let Ok(directory) = Directory::parse(&name, bytes) {
        let written = directory.to_bytes();
        let again = Directory::parse(&name, &written).expect("what was written is read");
        assert_eq!(again.to_bytes(), written);
    }
});
