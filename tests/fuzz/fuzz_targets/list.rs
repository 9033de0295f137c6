//! Lists of indirect objects. Entries that are handed out are contiguous from 0.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo::ObjectId;
use repo::object::parse_list;

fuzz_target!(|bytes: &[u8]| {
    let name: ObjectId = "Ix00112233445566778899aabbccddeeff".parse().expect("a list");
    let mut end = 0;
    let _ = parse_list(&name, bytes, &mut |entry| {
        assert_eq!(entry.start, end, "a gap or an overlap");
        end = entry.start.checked_add(entry.len).expect("the end was checked");
        Ok(())
    });
});
