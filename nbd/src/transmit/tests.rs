use super::*;
use blockio::ExtentKind;
use proptest::prelude::*;
use zerocopy::IntoBytes;

const SIZE: u64 = 1 << 20;

fn session(style: Style) -> Session {
    Session {
        style,
        status: true,
        size: SIZE,
        block_min: 1,
        writable: true,
        fast_zero: true,
        flags: 0,
    }
}

fn compact(command: u16, flags: u16, offset: u64, length: u32) -> Vec<u8> {
    let request = proto::Request {
        magic: proto::REQUEST_MAGIC.into(),
        flags: flags.into(),
        command: command.into(),
        cookie: 7.into(),
        offset: offset.into(),
        length: length.into(),
    };
    request.as_bytes().to_vec()
}

fn extended(command: u16, flags: u16, offset: u64, length: u64) -> Vec<u8> {
    let request = proto::ExtendedRequest {
        magic: proto::EXTENDED_REQUEST_MAGIC.into(),
        flags: flags.into(),
        command: command.into(),
        cookie: 7.into(),
        offset: offset.into(),
        length: length.into(),
    };
    request.as_bytes().to_vec()
}

/// `ok payload`, or the number of the error and what is to be drained, or how the connection ends.
fn told(decoded: Decoded) -> String {
    match decoded {
        Decoded::Incomplete => "incomplete".to_owned(),
        Decoded::Request(request) => format!("ok {}", request.payload),
        Decoded::Refused { error, drain, .. } => format!("{error:?} {drain}"),
        Decoded::Disconnect => "disc".to_owned(),
        Decoded::Broken(_) => "broken".to_owned(),
    }
}

#[track_caller]
fn check(session: Session, bytes: &[u8], expect: &str) {
    assert_eq!(told(session.decode(bytes)), expect);
}

#[test]
fn ranges_are_checked_before_anything_else_happens() {
    let s = session(Style::Structured);
    check(s, &compact(command::READ, 0, SIZE - 4, 4), "ok 0");
    check(s, &compact(command::READ, 0, SIZE - 4, 5), "Inval 0");
    check(s, &compact(command::READ, 0, u64::MAX - 511, 512), "Inval 0");
    check(s, &compact(command::READ, 0, u64::MAX, u32::MAX), "Inval 0");
    check(s, &compact(command::WRITE, 0, SIZE, 1), "NoSpc 1");
    check(s, &compact(command::WRITE_ZEROES, 0, SIZE, 1), "NoSpc 0");
    check(s, &compact(command::TRIM, 0, SIZE, 1), "Inval 0");
    check(s, &compact(command::READ, 0, 3, 0), "ok 0");
    check(s, &compact(command::WRITE, 0, 3, 0), "ok 0");
    check(s, &compact(command::BLOCK_STATUS, 0, 3, 0), "Inval 0");
}

#[test]
fn payloads_are_drained_up_to_64_mib_and_no_further() {
    let big = Session {
        size: 1 << 40,
        ..session(Style::Simple)
    };
    check(
        big,
        &compact(command::WRITE, 0, 0, 32 << 20),
        &format!("ok {}", 32 << 20),
    );
    check(
        big,
        &compact(command::WRITE, 0, 0, (32 << 20) + 1),
        &format!("Inval {}", (32 << 20) + 1),
    );
    check(
        big,
        &compact(command::WRITE, 0, 0, 64 << 20),
        &format!("Inval {}", 64 << 20),
    );
    check(big, &compact(command::WRITE, 0, 0, (64 << 20) + 1), "broken");
    check(big, &compact(command::WRITE, 0, 0, u32::MAX), "broken");
    check(big, &compact(command::READ, 0, 0, u32::MAX), "Inval 0");
    check(big, &compact(command::TRIM, 0, 0, u32::MAX), "ok 0");
}

#[test]
fn a_read_only_export_takes_no_write_of_any_kind() {
    let s = Session {
        writable: false,
        ..session(Style::Structured)
    };
    check(s, &compact(command::WRITE, 0, 0, 512), "Perm 512");
    check(s, &compact(command::TRIM, 0, 0, 512), "Perm 0");
    check(s, &compact(command::WRITE_ZEROES, 0, 0, 512), "Perm 0");
    check(s, &compact(command::FLUSH, 0, 0, 0), "ok 0");
    check(s, &compact(command::READ, command_flag::FUA, 0, 512), "ok 0");
}

#[test]
fn flags_stand_only_where_they_belong() {
    use command_flag as f;
    let s = session(Style::Structured);
    check(s, &compact(command::READ, f::DF, 0, 512), "ok 0");
    check(
        session(Style::Simple),
        &compact(command::READ, f::DF, 0, 512),
        "Inval 0",
    );
    check(s, &compact(command::READ, f::NO_HOLE, 0, 512), "Inval 0");
    check(s, &compact(command::READ, 1 << 15, 0, 512), "Inval 0");
    check(s, &compact(command::CACHE, f::FUA, 0, 512), "Inval 0");
    check(
        s,
        &compact(command::WRITE_ZEROES, f::FUA | f::NO_HOLE | f::FAST_ZERO, 0, 512),
        "ok 0",
    );
    check(s, &compact(command::WRITE, f::PAYLOAD_LEN, 0, 512), "Inval 512");
    check(s, &compact(command::READ, f::PAYLOAD_LEN, 0, 512), "Inval 0");
    check(s, &compact(99, 0, 0, 512), "Inval 0");
    check(s, &compact(command::DISC, 0xffff, 1, 2), "disc");
    let slow = Session { fast_zero: false, ..s };
    check(slow, &compact(command::WRITE_ZEROES, f::FAST_ZERO, 0, 512), "NotSup 0");
}

#[test]
fn a_read_in_one_chunk_that_is_too_long_says_so() {
    let s = Session {
        size: 1 << 40,
        ..session(Style::Structured)
    };
    check(
        s,
        &compact(command::READ, command_flag::DF, 0, (32 << 20) + 1),
        "Overflow 0",
    );
    check(s, &compact(command::READ, 0, 0, (32 << 20) + 1), "Inval 0");
}

#[test]
fn extended_requests_carry_a_payload_when_they_say_so() {
    use command_flag as f;
    let s = Session {
        size: 1 << 50,
        ..session(Style::Extended)
    };
    check(s, &extended(command::TRIM, 0, 0, 1 << 45), "ok 0");
    check(s, &extended(command::BLOCK_STATUS, 0, 0, 1 << 50), "ok 0");
    check(s, &extended(command::WRITE, f::PAYLOAD_LEN, 0, 512), "ok 512");
    check(s, &extended(command::WRITE, 0, 0, 512), "ok 512");
    check(s, &extended(command::READ, f::PAYLOAD_LEN, 0, 512), "Inval 512");
    check(s, &extended(command::READ, f::PAYLOAD_LEN, 0, 1 << 40), "broken");
    check(s, &extended(command::BLOCK_STATUS, f::PAYLOAD_LEN, 0, 12), "ok 12");
    check(s, &extended(command::BLOCK_STATUS, f::PAYLOAD_LEN, 0, 4), "Inval 4");
    check(
        s,
        &extended(command::BLOCK_STATUS, f::PAYLOAD_LEN, 0, 1 << 20),
        &format!("Inval {}", 1 << 20),
    );
    check(s, &compact(command::READ, 0, 0, 512), "incomplete");
    check(s, &[compact(command::READ, 0, 0, 512), vec![0; 9]].concat(), "broken");
}

#[test]
fn a_list_of_contexts_names_the_selected_one_once() {
    let s = session(Style::Extended);
    let payload = |len: u64, ids: &[u32]| {
        let mut bytes = len.to_be_bytes().to_vec();
        ids.iter().for_each(|id| bytes.extend(id.to_be_bytes()));
        parse_payload(&s, 512, &bytes).map(|extent| extent.len)
    };
    let id = proto::allocation::ID;
    assert_eq!(payload(512, &[id]), Ok(512));
    assert!(payload(512, &[]).is_err() && payload(512, &[id, id]).is_err() && payload(512, &[id + 1]).is_err());
    assert!(payload(SIZE, &[id]).is_err() && payload(0, &[id]).is_err() && payload(u64::MAX, &[id]).is_err());
}

#[test]
fn requests_off_the_grid_are_refused_except_at_the_end() {
    let s = Session {
        block_min: 512,
        size: SIZE + 100,
        ..session(Style::Simple)
    };
    check(s, &compact(command::READ, 0, 1, 512), "Inval 0");
    check(s, &compact(command::READ, 0, 512, 100), "Inval 0");
    check(s, &compact(command::READ, 0, SIZE, 100), "ok 0");
}

#[test]
fn status_lists_merge_neighbours_and_cut_at_32_bits() {
    let mut list = StatusList::new(Style::Structured, false);
    assert!(
        list.push(512, ExtentKind::Hole) && list.push(512, ExtentKind::Hole) && list.push(5 << 30, ExtentKind::Data)
    );
    let body = list.encode();
    let words: Vec<u32> = body
        .chunks(4)
        .map(|w| u32::from_be_bytes(w.try_into().unwrap()))
        .collect();
    assert_eq!(words, [1, 1024, 3, 0xffff_0000, 0, 0x4001_0000, 0]);

    let mut one = StatusList::new(Style::Extended, true);
    assert!(one.push(5 << 30, ExtentKind::Zero) && one.push(1, ExtentKind::Zero));
    assert!(!one.push(1, ExtentKind::Data));
    assert_eq!(one.encode().len(), 8 + 16);
}

#[test]
fn a_status_list_is_bounded() {
    let mut list = StatusList::new(Style::Structured, false);
    let kinds = [ExtentKind::Data, ExtentKind::Hole];
    let pushed = (0..1 << 20).take_while(|i| list.push(1, kinds[i % 2])).count();
    assert_eq!(pushed, 64 << 10);
}

#[test]
fn errors_have_a_text_only_where_there_is_room() {
    let encoder = |style| Encoder {
        style,
        cookie: 1,
        offset: 2,
    };
    let long = "ä".repeat(300);
    let (head, body) = encoder(Style::Simple).error(Errno::Io, &long, Some(3));
    assert_eq!((head.as_bytes().len(), body.len()), (16, 0));
    let (head, body) = encoder(Style::Structured).error(Errno::Io, &long, Some(3));
    assert_eq!((head.as_bytes().len(), body.len()), (20, 6 + 200 + 8));
    let (head, body) = encoder(Style::Extended).error(Errno::Io, "", None);
    assert_eq!((head.as_bytes().len(), body.len()), (32, 6));
}

proptest! {
    /// Whatever the bytes: no panic, and what is accepted lies inside the export.
    #[test]
    fn any_bytes_are_decoded(bytes in prop::collection::vec(any::<u8>(), 0..40), which in 0..3usize) {
        let style = [Style::Simple, Style::Structured, Style::Extended][which];
        let mut bytes = bytes;
        if bytes.len() > 8 {
            let magic = if which == 2 { proto::EXTENDED_REQUEST_MAGIC } else { proto::REQUEST_MAGIC };
            bytes[..4].copy_from_slice(&magic.to_be_bytes());
            (bytes[4], bytes[6], bytes[7]) = (0, 0, bytes[7] % 10);
        }
        if let Decoded::Request(request) = session(style).decode(&bytes) {
            let status = matches!(request.command, Command::BlockStatus { payload: true, .. });
            prop_assert!(status || request.extent.end() <= SIZE);
            prop_assert!(request.payload <= u64::from(PAYLOAD_MAX));
        }
    }
}
