//! Index blobs of both versions, after decryption. What is accepted must be whole: every entry that is listed is found.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo::index::{Merged, Table};

fuzz_target!(|bytes: &[u8]| {
    let Ok(table) = Table::parse(bytes.to_vec()) else {
        return;
    };
    let mut count = 0;
    let mut previous = None;
    for entry in table.iter() {
        count += 1;
        assert!(table.find(&entry.content).is_some(), "listed and not found: {entry:?}");
        let (key, len) = entry.content.key();
        let key = key[..len].to_vec();
        assert!(
            previous.as_ref().is_none_or(|previous| *previous < key),
            "not in order: {entry:?}"
        );
        previous = Some(key);
    }
    assert_eq!(count, table.len());
    let in_ranges: usize = (0..=u8::MAX).map(|prefix| table.range(prefix).count()).sum();
    assert!(in_ranges <= count, "{in_ranges} entries in ranges, {count} in all");
    if let Ok(merged) = Merged::new([table]) {
        assert_eq!(merged.iter(None).count(), count);
    }
});
