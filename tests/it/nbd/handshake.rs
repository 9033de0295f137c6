//! The handshake, told in bytes.

use std::sync::Arc;
use std::time::Duration;

use blockferry_tests::wait::wait_for;
use nbd::{Export, Limits};

use super::raw::{ACK, ERROR, Raw, ask, contexts, option_header, word};
use super::{DEADLINE, MIB, Served, memory};

const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const GO: u32 = 7;
const STRUCTURED: u32 = 8;
const SET: u32 = 10;

const UNSUP: u32 = ERROR + 1;
const POLICY: u32 = ERROR + 2;
const INVALID: u32 = ERROR + 3;
const UNKNOWN: u32 = ERROR + 6;
const TOO_BIG: u32 = ERROR + 9;

#[test]
fn an_option_that_claims_4_gib_ends_its_connection_and_no_other() {
    let served = Served::read_only(memory(MIB));
    let mut raw = served.raw();
    raw.send(&option_header(GO, u32::MAX));
    raw.is_closed();
    served.is_well();
}

#[test]
fn lengths_inside_an_option_are_not_believed() {
    let served = Served::read_only(memory(MIB));
    let mut raw = served.raw();
    assert_eq!(raw.answer(GO, &[0xff; 4]), INVALID);
    assert_eq!(raw.answer(GO, &[0xff; 400]), INVALID);
    let mut name_longer_than_option = ask(b"disk", &[]);
    name_longer_than_option[3] = 200;
    assert_eq!(raw.answer(GO, &name_longer_than_option), INVALID);
    let mut more_kinds_than_there_are = ask(b"disk", &[3]);
    more_kinds_than_there_are[9] = 200;
    assert_eq!(raw.answer(GO, &more_kinds_than_there_are), INVALID);
    assert_eq!(raw.answer(GO, &ask(b"disk", &[])), ACK);
}

#[test]
fn unknown_options_are_answered_and_a_flood_of_them_is_not() {
    let served = Served::read_only(memory(MIB));
    let mut raw = served.raw();
    assert_eq!(raw.answer(77, &[1; 1000]), UNSUP);
    assert_eq!(raw.answer(LIST, b""), ACK);
    let flood: Vec<u8> = (0..5000).flat_map(|_| option_header(77, 0)).collect();
    // The server may close before it has read all of it.
    let _ = std::io::Write::write_all(&mut raw.stream, &flood);
    raw.is_closed();
    served.is_well();
}

#[test]
fn a_flood_of_options_whose_replies_nobody_reads_is_cut_off() {
    let served = Served::read_only(memory(MIB));
    // Each of these makes a reply of its own; none is read until the end.
    let mut raw = served.raw();
    let flood: Vec<u8> = (0..100_000).flat_map(|_| option_header(LIST, 0)).collect();
    let _ = std::io::Write::write_all(&mut raw.stream, &flood);
    raw.is_closed();
    served.is_well();
}

#[test]
fn two_hundred_half_open_handshakes_keep_nobody_out() {
    let served = Served::read_only(memory(MIB));
    let held: Vec<Raw> = (0..200).map(|_| Raw::greeted(&served.socket())).collect();
    served.is_well();
    drop(held);
}

#[test]
fn more_handshakes_than_the_limit_are_turned_away_and_room_comes_back() {
    let limits = Limits {
        handshakes: 3,
        ..Limits::default()
    };
    let served = Served::limited(limits, Export::read_only(Arc::new(memory(MIB))));
    let held: Vec<Raw> = (0..3).map(|_| Raw::greeted(&served.socket())).collect();
    let mut fourth = std::os::unix::net::UnixStream::connect(served.socket()).unwrap();
    let mut greeting = Vec::new();
    let refused = std::io::Read::read_to_end(&mut fourth, &mut greeting);
    assert!(greeting.is_empty(), "{refused:?}");
    drop(held);
    wait_for("room for a handshake", DEADLINE, || {
        let mut stream = std::os::unix::net::UnixStream::connect(served.socket()).unwrap();
        std::io::Read::read_exact(&mut stream, &mut [0; 18]).is_ok()
    })
    .unwrap();
}

#[test]
fn a_handshake_one_byte_at_a_time_is_cut_off_in_time() {
    let limits = Limits {
        handshake: Duration::from_millis(300),
        ..Limits::default()
    };
    let served = Served::limited(limits, Export::read_only(Arc::new(memory(MIB))));
    let mut raw = served.raw();
    let option = option_header(GO, 60_000);
    // A byte every 10 ms would go on for ten minutes.
    let mut bytes = option.iter().chain(std::iter::repeat(&0));
    wait_for("the end of a slow handshake", DEADLINE, || {
        std::io::Write::write_all(&mut raw.stream, &[*bytes.next().unwrap()]).is_err()
    })
    .unwrap();
}

#[test]
fn list_takes_no_data() {
    let served = Served::read_only(memory(MIB));
    let mut raw = served.raw();
    assert_eq!(raw.answer(LIST, b"x"), INVALID);
    let replies = raw.option(LIST, b"");
    assert_eq!(replies[0].1[4..], *b"disk");
}

#[test]
fn tls_is_not_to_be_had_on_a_unix_socket() {
    let served = Served::read_only(memory(MIB));
    let mut raw = served.raw();
    assert_eq!(raw.answer(STARTTLS, b""), POLICY);
    assert_eq!(raw.answer(STARTTLS, b""), POLICY);
    assert_eq!(raw.answer(LIST, b""), ACK);
}

#[test]
fn metadata_contexts_have_their_order() {
    let served = Served::read_only(memory(MIB));
    let query = contexts("disk", &["base:allocation"]);
    let mut raw = served.raw();
    assert_eq!(raw.answer(SET, &query), INVALID);
    assert_eq!(raw.answer(STRUCTURED, b""), ACK);
    assert_eq!(raw.answer(SET, &query), ACK);
    assert_eq!(raw.answer(SET, &contexts("other", &["base:allocation"])), UNKNOWN);
    // The failed one has undone the one before.
    let mut client = raw.go("disk");
    assert_eq!(client.extents(0, 0, 4096), Err(super::raw::EINVAL));
}

#[test]
fn a_flood_of_queries_is_too_big() {
    let served = Served::read_only(memory(MIB));
    let mut raw = served.raw().structured();
    // 100 000 queries need not even be sent: their number is enough.
    let mut data = contexts("disk", &[]);
    let at = data.len() - 4;
    data[at..].copy_from_slice(&100_000u32.to_be_bytes());
    assert_eq!(raw.answer(SET, &data), TOO_BIG);
    assert_eq!(
        raw.answer(SET, &contexts("disk", &vec!["base:allocation"; 5000])),
        TOO_BIG
    );
    let whole = contexts("disk", &vec!["a:b"; 100_000]);
    assert_eq!(raw.answer(SET, &whole), TOO_BIG);
    assert_eq!(raw.answer(SET, &contexts("disk", &["base:allocation"])), ACK);
}

#[test]
fn names_are_text_of_at_most_4096_bytes() {
    let served = Served::read_only(memory(MIB));
    let mut raw = served.raw();
    assert_eq!(raw.answer(GO, &ask(&[b'x'; 5000], &[])), INVALID);
    assert_eq!(raw.answer(GO, &ask(&[0xff, 0xfe], &[])), INVALID);
    assert_eq!(raw.answer(GO, &ask(b"di\0sk", &[])), UNKNOWN);
    // EXPORT_NAME cannot say no.
    raw.send(&option_header(1, 5000));
    raw.is_closed();
    served.is_well();
}

#[test]
fn unknown_flags_and_wrong_magics_end_the_connection() {
    let served = Served::read_only(memory(MIB));
    let mut raw = Raw::greeted(&served.socket());
    raw.send(&0x8000_0003u32.to_be_bytes());
    raw.is_closed();
    let mut raw = served.raw();
    raw.send(b"IHAVEOPX\0\0\0\x03\0\0\0\0");
    raw.is_closed();
    // A client of something else altogether.
    let mut raw = Raw::greeted(&served.socket());
    raw.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    raw.is_closed();
    served.is_well();
}

#[test]
fn the_oldest_way_in_still_works() {
    let served = Served::read_only(memory(MIB));
    let mut raw = Raw::greeted(&served.socket());
    raw.send(&0u32.to_be_bytes());
    raw.send(&option_header(1, 0));
    let reply = raw.receive(10 + 124).unwrap();
    assert_eq!(super::raw::long(&reply, 0), MIB);
    assert_eq!(reply[10..], [0; 124]);
    // In transmission at once, with simple replies.
    raw.send(
        &[
            &0x2560_9513u32.to_be_bytes()[..],
            &[0; 4],
            &7u64.to_be_bytes(),
            &[0; 8],
            &16u32.to_be_bytes(),
        ]
        .concat(),
    );
    let reply = raw.receive(16 + 16).unwrap();
    assert_eq!((word(&reply, 0), word(&reply, 4)), (0x6744_6698, 0));
    assert_eq!(reply[16..], super::image(MIB)[..16]);
}

#[test]
fn a_client_that_leaves_in_any_state_leaves_nothing_behind() {
    let served = Served::read_only(memory(MIB));
    let go = [option_header(GO, 10), ask(b"disk", &[])].concat();
    let hello = [
        &3u32.to_be_bytes()[..],
        &option_header(STRUCTURED, 0),
        &option_header(2, 0),
        &go,
    ]
    .concat();
    for cut in 0..hello.len() {
        let mut raw = Raw::greeted(&served.socket());
        raw.send(&hello[..cut]);
    }
    served.is_well();
}

#[test]
fn too_many_connections_to_an_export_are_refused_with_a_reason() {
    let served = Served::read_only(memory(MIB));
    let held: Vec<_> = (0..nbd::export::CONNECTIONS_PER_EXPORT)
        .map(|_| served.client())
        .collect();
    let replies = served.raw().option(GO, &ask(b"disk", &[]));
    let (kind, text) = replies.last().unwrap();
    assert_eq!(*kind, POLICY);
    assert!(String::from_utf8_lossy(text).contains("too many connections"));
    drop(held);
    wait_for("a free place", DEADLINE, || {
        served.raw().answer(GO, &ask(b"disk", &[])) == ACK
    })
    .unwrap();
}

#[test]
fn users_are_told_apart_by_the_kernel() {
    const NOBODY: u32 = 65534;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let exports = Arc::new(nbd::Exports::new());
    exports
        .insert("disk", Arc::new(Export::read_only(Arc::new(memory(MIB)))))
        .unwrap();
    let mut server = nbd::Server::new(exports, Limits::default());
    let connects = |name: &str, uid: u32| {
        let mut info = std::process::Command::new("setpriv");
        info.args([&format!("--reuid={uid}"), "--clear-groups", "nbdinfo", "--size"]);
        info.arg(format!("nbd+unix:///disk?socket={}", dir.path().join(name).display()));
        blockferry_tests::process::output(&mut info, b"")
            .unwrap()
            .status
            .success()
    };
    let listen = |name: &str, uids: Vec<u32>| nbd::UnixListen {
        uids,
        ..nbd::UnixListen::at(dir.path().join(name))
    };
    server.listen_unix(&listen("private", vec![])).unwrap();
    server.listen_unix(&listen("shared", vec![NOBODY])).unwrap();
    server.listen_unix(&listen("others", vec![NOBODY - 1])).unwrap();
    if std::fs::metadata("/proc/self")
        .map(|own| std::os::unix::fs::MetadataExt::uid(&own))
        .unwrap()
        != 0
    {
        eprintln!("not root, so nobody else to connect as");
        return;
    }
    assert!(connects("private", 0) && !connects("private", NOBODY));
    assert!(connects("shared", NOBODY));
    assert!(
        !connects("others", NOBODY),
        "let through by the mode, stopped by who it is"
    );
}
