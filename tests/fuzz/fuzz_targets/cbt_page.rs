//! Messages of a SnapshotMetadata service, cut where a byte 0xff 0x00 stands. What is taken is within the volume and counted.
#![no_main]

use std::time::Duration;

use blockio::GrowingMap;
use csi_glue::cbt::{Call, Limits, Machine, page::Page};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let size = 1 << 30;
    let map = GrowingMap::new(size);
    let mut machine = Machine::new(Call::Delta, size, Limits::default(), 1);
    machine.start();
    let mut taken = 0;
    let mut rest = bytes;
    while !rest.is_empty() {
        let cut = rest.windows(2).position(|pair| pair == [0xff, 0]).unwrap_or(rest.len());
        let (message, more) = rest.split_at(cut);
        rest = more.get(2..).unwrap_or_default();
        let count = Page::parse(message).map_or(0, |page| page.count);
        if map.grow(|map| machine.message(Duration::ZERO, message, map)).is_err() {
            break;
        }
        taken += count;
    }
    assert!(machine.outcome().tuples >= taken);
    assert!(map.known() <= size);
});
