//! Clients that mean harm, in transmission.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use blockferry_tests::wait::wait_for;
use nbd::{Export, Limits, MemSource};

use super::raw::*;
use super::sources::Gated;
use super::{DEADLINE, MIB, Served, image, memory};

fn impatient() -> Limits {
    Limits {
        stall: Duration::from_millis(300),
        ..Limits::default()
    }
}

fn impatient_with(export: Export) -> Served {
    Served::limited(impatient(), export)
}

#[test]
fn of_a_flood_of_reads_whose_answers_nobody_reads_no_more_is_accepted_than_the_window() {
    let served = Served::read_only(memory(4 * MIB));
    let mut client = served.client();
    client.raw.stream.set_nonblocking(true).unwrap();
    let header = client.header(0, READ, 1, 0, MIB);
    let flood: Vec<u8> = header.iter().copied().cycle().take(header.len() * 1000).collect();
    // 200 000 reads of 1 MiB: 200 GiB of answers. The socket takes what the server has stopped reading, and then no more.
    let (mut sent, mut at) = (0, 0);
    let stuck = wait_for("the server to stop reading", Duration::from_secs(3), || {
        loop {
            match client.raw.stream.write(&flood[at..]) {
                Ok(count) => {
                    at = (at + count) % flood.len();
                    sent += count;
                    if sent >= 200_000 * header.len() {
                        return true;
                    }
                }
                Err(_) => return false,
            }
        }
    });
    assert!(stuck.is_err(), "all of it was taken");
    // A window of 64 MiB, and what the socket has taken of its answers.
    assert!(served.accepted() <= 64 + 2, "{} requests accepted", served.accepted());
    served.is_well();
}

#[test]
fn more_writes_in_flight_than_the_window_wait_for_it() {
    let volume = Gated::new(memory(3 * MIB));
    let limits = Limits {
        requests: 4,
        ..Limits::default()
    };
    let served = Served::limited(limits, Export::writable(volume.clone()));
    let mut client = served.client();
    let asked: Vec<u64> = (0..64).map(|i| client.ask(0, WRITE, i * 512, 512, &[1; 512])).collect();
    wait_for("the window to be full", DEADLINE, || {
        volume.waiting.load(std::sync::atomic::Ordering::SeqCst) == 4
    })
    .unwrap();
    volume.open();
    let mut answered: Vec<u64> = (0..64).map(|_| client.chunk().unwrap().cookie).collect();
    answered.sort_unstable();
    assert_eq!(answered, asked);
    assert!(client.read(0, 64 * 512).unwrap() == vec![1; 64 * 512]);
}

#[test]
fn a_client_that_does_not_read_is_cut_off_and_no_other() {
    let served = impatient_with(Export::read_only(Arc::new(memory(4 * MIB))));
    let mut client = served.client();
    for _ in 0..16 {
        client.ask(0, READ, 0, 4 * MIB, &[]);
    }
    served.is_well();
    wait_for("the connection to be cut", DEADLINE, || {
        let header = client.header(0, READ, 1, 0, 1);
        client.raw.stream.write_all(&header).is_err()
    })
    .unwrap();
    served.is_well();
}

#[test]
fn half_a_request_is_not_waited_for() {
    let served = impatient_with(Export::writable(Arc::new(memory(MIB))));
    let client = served.client();
    let header = client.header(0, WRITE, 1, 0, 8192);
    for cut in [1, 4, 27] {
        let mut client = served.client();
        client.raw.send(&header[..cut]);
        client.raw.is_closed();
    }
    // Nor half a payload.
    let mut client = served.client();
    client.raw.send(&[&header[..], &[1; 5000]].concat());
    client.raw.is_closed();
    let mut reader = served.client();
    assert!(
        reader.read(0, 8192).unwrap() == image(MIB)[..8192],
        "what was never whole was not written"
    );
}

#[test]
fn a_request_one_byte_at_a_time_is_cut_off_in_time() {
    let served = impatient_with(Export::read_only(Arc::new(memory(MIB))));
    let mut client = served.client();
    let header = client.header(0, READ, 1, 0, 512);
    // Each byte comes within the patience; all of them together do not. The last one is never sent.
    let mut at = 0;
    wait_for("the connection to be cut", DEADLINE, || {
        at += 1;
        if at >= header.len() {
            return client.raw.stream.write_all(&[]).is_err() || client.chunk().is_err();
        }
        wait_for("nothing", Duration::from_millis(100), || false).unwrap_err();
        client.raw.stream.write_all(&header[at - 1..at]).is_err()
    })
    .unwrap();
}

#[test]
fn an_idle_client_may_stay() {
    let served = impatient_with(Export::read_only(Arc::new(memory(MIB))));
    let mut client = served.client();
    wait_for("three times the patience", Duration::from_millis(900), || false).unwrap_err();
    assert!(client.read(0, 512).is_ok());
}

#[test]
fn a_length_bomb_takes_no_memory() {
    let served = Served::writable(MemSource::new(1 << 40));
    let mut client = served.client();
    let header = client.header(0, WRITE, 1, 0, u64::from(u32::MAX));
    client.raw.send(&header);
    client.raw.is_closed();
    let mut client = served.raw().extended().go("disk");
    let header = client.header(PAYLOAD, WRITE, 1, 0, 1 << 62);
    client.raw.send(&header);
    client.raw.is_closed();
    let mut client = served.raw().extended().go("disk");
    let header = client.header(PAYLOAD, CACHE, 1, 0, u64::MAX);
    client.raw.send(&header);
    client.raw.is_closed();
    assert_eq!(served.accepted(), 0, "a request that is not accepted gets no buffer");
    served.is_well();
}

#[test]
fn a_wrong_magic_ends_the_connection_after_what_came_before_it() {
    let served = Served::read_only(memory(MIB));
    let mut client = served.client();
    let asked = client.ask(0, READ, 0, 4096, &[]);
    client.raw.send(&[0x55; 28]);
    assert!(client.read_reply(asked, 0, 4096).is_ok());
    client.raw.is_closed();
    // The magic of a reply, of an option, and of the other width.
    for magic in [0x6744_6698u32, 0x4948_4156, 0x21e4_1c71] {
        let mut client = served.client();
        client.raw.send(&[&magic.to_be_bytes()[..], &[0; 28]].concat());
        client.raw.is_closed();
    }
    served.is_well();
}

#[test]
fn the_same_cookie_twice_is_answered_twice() {
    let served = Served::read_only(memory(MIB));
    let mut client = served.client();
    let header = client.header(0, READ, 77, 0, 512);
    client.raw.send(&[&header[..], &header].concat());
    for _ in 0..2 {
        assert_eq!(client.chunk().unwrap().cookie, 77);
    }
    client.disconnect();
}

#[test]
fn clients_that_vanish_anywhere_leave_nothing_behind() {
    let served = Served::writable(memory(4 * MIB));
    let template = served.client();
    let write = [template.header(0, WRITE, 1, 0, 8192), vec![3; 8192]].concat();
    for cut in [0, 1, 27, 28, 29, 5000, write.len() - 1] {
        let mut client = served.client();
        client.raw.send(&write[..cut]);
    }
    // In the middle of an answer: 4 MiB do not fit into a socket.
    for _ in 0..20 {
        let mut client = served.client();
        client.ask(0, READ, 0, 4 * MIB, &[]);
        assert!(client.raw.receive(100_000).is_ok());
    }
    drop(template);
    served.is_well();
    let mut reader = served.client();
    assert!(
        reader.read(0, 8192).unwrap() == image(MIB)[..8192],
        "half a write is no write"
    );
}

#[test]
fn half_closed_sockets_end_quietly() {
    let served = Served::read_only(memory(MIB));
    let mut client = served.client();
    client.stop_sending();
    client.raw.is_closed();
    let mut raw = served.raw();
    raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
    raw.is_closed();
    // One that will not read any more, and asks on.
    let mut client = served.client();
    client.raw.stream.shutdown(std::net::Shutdown::Read).unwrap();
    let header = client.header(0, READ, 1, 0, MIB);
    wait_for("the connection to end", DEADLINE, || {
        client.raw.stream.write_all(&header).is_err()
    })
    .unwrap();
    served.is_well();
}

#[test]
fn options_in_transmission_are_no_requests() {
    let served = Served::read_only(memory(MIB));
    let mut client = served.client();
    client.raw.send_option(3, b"");
    client.raw.send(&[0; 28]);
    client.raw.is_closed();
    served.is_well();
}

#[test]
fn block_status_of_everything_again_and_again_stays_within_the_window() {
    // Every other chunk is a hole, so that no two extents merge.
    let volume = MemSource::new(1 << 36);
    for chunk in (0..1u64 << 16).step_by(2) {
        // One byte a chunk would be 1 MiB of memory each: zeros that are allocated will do.
        blockio::BlockSink::write_zeroes(
            &volume,
            blockio::Extent {
                offset: chunk * MIB,
                len: MIB,
            },
        )
        .unwrap();
    }
    let served = Served::read_only(volume);
    let mut client = served.raw().extended().status().go("disk");
    let header = client.header(0, STATUS, 1, 0, 1 << 36);
    client.raw.stream.set_nonblocking(true).unwrap();
    let stuck = wait_for("the server to stop reading", Duration::from_secs(3), || {
        for _ in 0..100_000 {
            if client.raw.stream.write(&header).is_err() {
                return false;
            }
        }
        true
    });
    assert!(stuck.is_err());
    // Each is charged the longest list there may be, 1 MiB.
    assert!(served.accepted() <= 64 + 2, "{} requests accepted", served.accepted());
}
