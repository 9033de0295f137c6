//! Requests and replies, told in bytes: all three widths, order, errors, shutdown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockferry_tests::wait::wait_for;
use blockio::{BlockSource, Kind};
use nbd::{Export, MemSource};

use super::raw::*;
use super::sources::{Damaged, Full, Gated, Trap};
use super::{DEADLINE, MIB, Served, image, memory};

#[test]
fn a_read_is_the_same_in_every_width() {
    let served = Served::read_only(memory(5 * MIB + 700));
    let expect = image(5 * MIB + 700);
    let clients = [
        served.raw().go("disk"),
        served.raw().structured().go("disk"),
        served.raw().extended().go("disk"),
    ];
    for mut client in clients {
        assert_eq!(client.size, 5 * MIB + 700);
        let ranges = [
            (0, 1),
            (0, 4096),
            (MIB - 3, 7),
            (2 * MIB - 100, MIB + 200),
            (0, 5 * MIB + 700),
            (MIB, 0),
        ];
        for (offset, len) in ranges {
            let read = client.read(offset, u32::try_from(len).unwrap()).unwrap();
            let from = usize::try_from(offset).unwrap();
            assert!(
                read == expect[from..from + read.len()] && read.len() as u64 == len,
                "{offset}+{len}"
            );
        }
    }
}

#[test]
fn zeros_travel_as_holes_unless_the_client_wants_one_chunk() {
    let served = Served::read_only(memory(4 * MIB));
    let mut client = served.client();
    let cookie = client.ask(0, READ, MIB, 3 * MIB, &[]);
    let kinds: Vec<u16> = client.reply(cookie).iter().map(|chunk| chunk.kind).collect();
    assert_eq!(kinds, [1, 2, 1]);
    let cookie = client.ask(DF, READ, MIB, 3 * MIB, &[]);
    let chunks = client.reply(cookie);
    assert_eq!((chunks.len(), chunks[0].kind), (1, 1));
    assert!(chunks[0].body[8..] == image(4 * MIB)[1 << 20..]);
}

#[test]
fn block_status_comes_from_the_table() {
    let served = Served::read_only(memory(4 * MIB));
    let mut client = served.client();
    assert_eq!(
        client.extents(0, 0, 4 * MIB).unwrap(),
        [(2 * MIB, 0), (MIB, 3), (MIB, 0)]
    );
    assert_eq!(
        client.extents(REQ_ONE, 100, 4 * MIB - 100).unwrap(),
        [(2 * MIB - 100, 0)]
    );
    assert_eq!(client.extents(0, 2 * MIB + 5, 10).unwrap(), [(10, 3)]);
    assert_eq!(client.extents(0, 0, 4 * MIB + 1), Err(EINVAL));
    assert_eq!(client.extents(0, 0, 0), Err(EINVAL));
}

#[test]
fn extended_headers_carry_lengths_of_64_bits() {
    let size = 1 << 42;
    let served = Served::writable(MemSource::new(size));
    let mut client = served.raw().extended().status().go("disk");
    assert!(client.flags & 1 << 12 != 0, "BLOCK_STATUS_PAYLOAD");
    assert_eq!(client.extents(0, 0, size).unwrap(), [(size, 3)]);
    assert_eq!(client.told(PAYLOAD, WRITE, 1 << 41, 3, b"abc"), 0);
    // One that forgets the flag is understood.
    assert_eq!(client.told(0, WRITE, (1 << 41) + 3, 3, b"def"), 0);
    assert_eq!(client.read(1 << 41, 6).unwrap(), b"abcdef");
    assert_eq!(
        client.extents(0, 0, size).unwrap(),
        [(1 << 41, 3), (MIB, 0), ((1 << 41) - MIB, 3)]
    );
    // 1 TiB of zeros in one request, around what was written.
    assert_eq!(client.told(FAST, ZEROES, (1 << 41) - (1 << 39), 1 << 40, &[]), 0);
    assert_eq!(client.read(1 << 41, 6).unwrap(), [0; 6]);

    let payload = [&size.to_be_bytes()[..], &1u32.to_be_bytes()].concat();
    let cookie = client.ask(PAYLOAD, STATUS, 0, 12, &payload);
    assert_eq!(client.extents_reply(cookie).unwrap(), [(size, 3)]);
    let unknown = [&size.to_be_bytes()[..], &9u32.to_be_bytes()].concat();
    assert_eq!(client.told(PAYLOAD, STATUS, 0, 12, &unknown), EINVAL);
    // A payload where none belongs is read and refused, and the stream stays in step.
    assert_eq!(client.told(PAYLOAD, READ, 0, 5000, &[1; 5000]), EINVAL);
    assert_eq!(client.told(PAYLOAD, TRIM, 0, 12, &payload), EINVAL);
    assert_eq!(client.told(0, CACHE, 0, size, &[]), 0);
    assert_eq!(client.read(0, 1).unwrap(), [0]);
    client.disconnect();
}

#[test]
fn writes_zeros_and_discards_do_what_they_say() {
    let served = Served::writable(memory(6 * MIB));
    let mut client = served.client();
    let mut model = image(6 * MIB);
    assert_eq!(client.flags & 0b1_1110_1101, 0b1_1110_1101, "flags {:#b}", client.flags);
    assert_eq!(client.told(FUA, WRITE, 100, 3000, &[7; 3000]), 0);
    model[100..3100].fill(7);
    assert_eq!(client.told(NO_HOLE, ZEROES, MIB, MIB, &[]), 0);
    assert_eq!(client.told(0, TRIM, 3 * MIB + 10, MIB, &[]), 0);
    assert_eq!(client.told(0, ZEROES, 4 * MIB + 512, MIB, &[]), 0);
    let at = |offset: u64| usize::try_from(offset).unwrap();
    model[at(MIB)..at(2 * MIB)].fill(0);
    model[at(3 * MIB + 10)..at(4 * MIB + 10)].fill(0);
    model[at(4 * MIB + 512)..at(5 * MIB + 512)].fill(0);
    assert_eq!(client.told(0, FLUSH, 0, 0, &[]), 0);
    assert!(client.read(0, u32::try_from(6 * MIB).unwrap()).unwrap() == model);
    let extents = client.extents(0, MIB, 2 * MIB).unwrap();
    assert_eq!(extents, [(MIB, 2), (MIB, 3)], "NO_HOLE is zero and allocated");
    client.disconnect();
}

#[test]
fn a_read_only_export_is_read_only() {
    let served = Served::read_only(memory(MIB));
    let mut client = served.client();
    assert_eq!(client.flags & 0b10, 0b10);
    assert_eq!(client.told(0, WRITE, 0, 4096, &[9; 4096]), EPERM);
    assert_eq!(client.told(0, WRITE, 0, 16 * MIB, &vec![9; 16 << 20]), EPERM);
    assert_eq!(client.told(0, TRIM, 0, 4096, &[]), EPERM);
    assert_eq!(client.told(0, ZEROES, 0, 4096, &[]), EPERM);
    assert_eq!(client.told(0, FLUSH, 0, 0, &[]), 0);
    assert!(client.read(0, 4096).unwrap() == image(MIB)[..4096]);
    client.disconnect();
}

#[test]
fn errors_have_their_numbers_and_the_stream_stays_in_step() {
    let served = Served::writable(memory(4 * MIB));
    for mut client in [
        served.raw().go("disk"),
        served.client(),
        served.raw().extended().go("disk"),
    ] {
        let write = if client.header(0, 0, 0, 0, 0).len() == 32 {
            PAYLOAD
        } else {
            0
        };
        assert_eq!(client.told(0, READ, 4 * MIB, 1, &[]), EINVAL);
        assert_eq!(client.told(0, READ, u64::MAX - 511, 512, &[]), EINVAL);
        assert_eq!(client.told(0, READ, 0, u64::from(u32::MAX), &[]), EINVAL);
        assert_eq!(client.told(write, WRITE, 4 * MIB - 10, 20, &[1; 20]), ENOSPC);
        assert_eq!(client.told(write, WRITE, u64::MAX - 5, 20, &[1; 20]), ENOSPC);
        assert_eq!(client.told(0, ZEROES, 4 * MIB, 512, &[]), ENOSPC);
        assert_eq!(client.told(0, TRIM, 4 * MIB, 512, &[]), EINVAL);
        assert_eq!(client.told(0, 99, 0, 512, &[]), EINVAL);
        assert_eq!(client.told(1 << 14, READ, 0, 512, &[]), EINVAL);
        assert_eq!(client.told(FUA, CACHE, 0, 512, &[]), EINVAL);
        // 40 MiB are more than is taken and not more than is drained.
        assert_eq!(client.told(write, WRITE, 0, 40 * MIB, &vec![1; 40 << 20]), ENOSPC);
        assert_eq!(client.told(write, WRITE, 8, 0, &[]), 0);
        assert!(client.read(8, 0).unwrap().is_empty());
        assert!(client.read(0, 4096).unwrap() == image(MIB)[..4096]);
        client.disconnect();
    }
}

#[test]
fn a_read_in_one_chunk_that_is_too_long_says_so() {
    let served = Served::read_only(MemSource::new(100 * MIB));
    let mut client = served.client();
    assert_eq!(client.told(DF, READ, 0, 33 * MIB, &[]), EOVERFLOW);
    assert_eq!(client.told(0, READ, 0, 33 * MIB, &[]), EINVAL);
    let cookie = client.ask(DF, READ, 0, 32 * MIB, &[]);
    let chunks = client.reply(cookie);
    assert_eq!(chunks[0].body.len(), (32 << 20) + 8);
}

#[test]
fn damage_is_an_error_for_its_own_bytes_and_never_zeros() {
    let inner = memory(4 * MIB);
    let at = BTreeMap::from([(MIB + 4096, Kind::Io)]);
    let served = Served::read_only(Damaged { inner, at });
    let mut client = served.client();
    assert!(client.read(0, 1 << 20).unwrap() == image(MIB)[..]);
    let cookie = client.ask(0, READ, 0, 2 * MIB, &[]);
    let chunks = client.reply(cookie);
    let last = chunks.last().unwrap();
    assert_eq!((last.kind, error_of(last)), (0x8002, EIO), "an error with its place");
    assert_eq!(long(&last.body, last.body.len() - 8), MIB);
    assert_eq!(client.told(0, READ, MIB + 4000, 200, &[]), EIO);
    assert!(client.read(3 * MIB, 4096).is_ok());
    // In a simple reply all of it fails, and no byte of data follows.
    let mut simple = served.raw().go("disk");
    assert_eq!(simple.told(0, READ, 0, 2 * MIB, &[]), EIO);
    assert!(simple.read(0, 4096).unwrap() == image(MIB)[..4096]);
}

#[test]
fn a_full_disk_is_told_as_such() {
    let inner = memory(MIB);
    let served = Served::writable(Full {
        inner,
        kind: Kind::NoSpace,
    });
    let mut client = served.client();
    assert_eq!(client.told(0, WRITE, 0, 512, &[1; 512]), ENOSPC);
    assert_eq!(client.told(0, ZEROES, 0, 512, &[]), ENOSPC);
    assert_eq!(client.told(0, FLUSH, 0, 0, &[]), ENOSPC);
    assert_eq!(client.told(FAST, ZEROES, 0, 512, &[]), 95);
    assert!(client.read(0, 512).is_ok());
}

#[test]
fn a_volume_that_panics_costs_one_request() {
    let served = Served::read_only(Trap(MIB));
    let mut client = served.client();
    assert_eq!(client.told(0, READ, 0, 512, &[]), EIO);
    assert_eq!(client.told(0, READ, 0, 512, &[]), EIO);
    assert_eq!(client.extents(0, 0, MIB).unwrap(), [(MIB, 0)]);
}

#[test]
fn who_waits_holds_up_nobody_else() {
    let volume = Gated::new(memory(3 * MIB));
    let served = Served::with(Export::writable(volume.clone()));
    let mut client = served.client();
    let slow: Vec<u64> = (0..8).map(|_| client.ask(0, READ, 0, 4096, &[])).collect();
    let quick = client.ask(0, READ, MIB, 4096, &[]);
    assert!(
        client.read_reply(quick, MIB, 4096).is_ok(),
        "answered before the eight in front of it"
    );
    served.is_well_at(MIB);
    volume.open();
    let mut waited: BTreeSet<u64> = slow.iter().copied().collect();
    while !waited.is_empty() {
        let chunk = client.chunk().unwrap();
        assert_eq!(error_of(&chunk), 0);
        if chunk.last {
            assert!(waited.remove(&chunk.cookie));
        }
    }
    client.disconnect();
}

#[test]
fn requests_that_touch_are_carried_out_in_their_order() {
    let volume = Gated::new(memory(3 * MIB));
    let served = Served::with(Export::writable(volume.clone()));
    let mut client = served.client();
    let first = client.ask(0, WRITE, 4096, 4096, &[1; 4096]);
    let second = client.ask(0, WRITE, 6000, 100, &[2; 100]);
    let read = client.ask(0, READ, 4096, 4096, &[]);
    volume.open();
    let (mut order, mut data) = (Vec::new(), Vec::new());
    while order.len() < 3 {
        let chunk = client.chunk().unwrap();
        assert_eq!(error_of(&chunk), 0);
        if chunk.kind == 1 {
            data.extend_from_slice(&chunk.body[8..]);
        }
        if chunk.last {
            order.push(chunk.cookie);
        }
    }
    // Answers may overtake each other; what they say may not.
    order.sort_unstable();
    assert_eq!(order, [first, second, read]);
    let mut expect = vec![1; 4096];
    expect[6000 - 4096..6100 - 4096].fill(2);
    assert!(data == expect);
}

#[test]
fn writes_are_carried_out_though_their_client_has_left() {
    let volume = Gated::new(memory(3 * MIB));
    let served = Served::with(Export::writable(volume.clone()));
    let mut client = served.client();
    client.ask(0, WRITE, 0, 4096, &[5; 4096]);
    wait_for("the write to be under way", DEADLINE, || {
        volume.waiting.load(Ordering::SeqCst) == 1
    })
    .unwrap();
    drop(client);
    volume.open();
    wait_for("the write to be there", DEADLINE, || {
        let mut buf = [0; 4096];
        volume.read_at(0, &mut buf).unwrap();
        buf == [5; 4096]
    })
    .unwrap();
}

#[test]
fn what_was_asked_before_leaving_is_answered() {
    let volume = Gated::new(memory(3 * MIB));
    let served = Served::with(Export::writable(volume.clone()));
    for polite in [true, false] {
        let mut client = served.client();
        let asked: BTreeSet<u64> = (0..20).map(|_| client.ask(0, READ, 0, 4096, &[])).collect();
        if polite {
            client.ask(0, DISC, 0, 0, &[]);
        } else {
            client.stop_sending();
        }
        volume.open();
        let mut answered = BTreeSet::new();
        while let Ok(chunk) = client.chunk() {
            if chunk.last {
                answered.insert(chunk.cookie);
            }
        }
        assert_eq!(answered, asked);
    }
}

#[test]
fn a_server_that_stops_answers_what_it_accepted() {
    let volume = Gated::new(memory(3 * MIB));
    let mut served = Served::with(Export::read_only(volume.clone()));
    let mut client = served.client();
    let asked = client.ask(0, READ, 0, 4096, &[]);
    wait_for("the read to be under way", DEADLINE, || {
        volume.waiting.load(Ordering::SeqCst) == 1
    })
    .unwrap();
    let server = served.server.take().unwrap();
    let stopping = std::thread::spawn(move || server.stop(DEADLINE));
    wait_for("the socket to be gone", DEADLINE, || !served.socket().exists()).unwrap();
    volume.open();
    assert!(client.read_reply(asked, 0, 4096).is_ok());
    client.raw.is_closed();
    let stopped = stopping.join().unwrap();
    assert_eq!((stopped.cut, stopped.stuck), (0, 0));
}

#[test]
fn an_export_that_is_withdrawn_refuses_and_closes() {
    let volume = Gated::new(memory(3 * MIB));
    let served = Served::with(Export::read_only(volume.clone()));
    served
        .exports
        .insert("other", Arc::new(Export::read_only(Arc::new(memory(MIB)))))
        .unwrap();
    let mut client = served.client();
    let mut other = served.raw().go("other");
    let asked = client.ask(0, READ, 0, 4096, &[]);
    wait_for("the read to be under way", DEADLINE, || {
        volume.waiting.load(Ordering::SeqCst) == 1
    })
    .unwrap();
    // Both are on their way when the export goes: the first was accepted, whether the second is, is open.
    client.ask(0, READ, MIB, 4096, &[]);
    assert!(served.exports.withdraw("disk"));
    volume.open();
    let mut errors = BTreeMap::new();
    while let Ok(chunk) = client.chunk() {
        if chunk.last {
            errors.insert(chunk.cookie, error_of(&chunk));
        }
    }
    assert_eq!(errors[&asked], 0);
    assert!(
        errors.values().all(|error| [0, ESHUTDOWN].contains(error)),
        "{errors:?}"
    );
    assert_eq!(served.raw().answer(7, &ask(b"disk", &[])), ERROR + 6);
    assert!(other.read(0, 512).is_ok());
}

#[test]
fn flush_reaches_the_volume_whichever_connection_asks() {
    let volume = Gated::new(memory(3 * MIB));
    volume.open();
    let served = Served::with(Export::writable(volume.clone()));
    let (mut one, mut two) = (served.client(), served.client());
    assert_eq!(one.told(0, WRITE, 0, 512, &[1; 512]), 0);
    assert_eq!(volume.flushes.load(Ordering::SeqCst), 0);
    assert_eq!(two.told(0, FLUSH, 0, 0, &[]), 0);
    assert_eq!(volume.flushes.load(Ordering::SeqCst), 1);
    assert_eq!(one.told(FUA, WRITE, 0, 512, &[2; 512]), 0);
    assert_eq!(volume.flushes.load(Ordering::SeqCst), 2);
    assert_eq!(one.told(FUA, TRIM, 0, 512, &[]), 0);
    assert_eq!(volume.flushes.load(Ordering::SeqCst), 3);
    assert_eq!(two.read(0, 512).unwrap(), [0; 512]);
    one.disconnect();
}

impl Served {
    /// Another client is served at `offset`.
    #[track_caller]
    fn is_well_at(&self, offset: u64) {
        assert!(self.client().read(offset, 4096).is_ok());
    }
}
