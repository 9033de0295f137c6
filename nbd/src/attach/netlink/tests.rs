//! Messages against bytes, and against nonsense. Vectors are of little-endian machines, the ones we ship for.

use super::*;
use proptest::prelude::*;

const NBD: Family = Family {
    id: 0x1d,
    group: Some(7),
};

/// Bytes from a picture of them.
fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits.chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn requests_lie_as_the_kernel_reads_them() {
    assert_eq!(noop(9), bytes("10000000 0100 0500 09000000 00000000"));
    assert_eq!(
        get_family(1),
        bytes("1c000000 1000 0500 01000000 00000000  03 01 0000  0800 0200 6e626400")
    );
    assert_eq!(
        disconnect(NBD, 2, 3),
        bytes("1c000000 1d00 0500 02000000 00000000  02 01 0000  0800 0100 03000000")
    );
    assert_eq!(
        status(NBD, 4),
        bytes("14000000 1d00 0500 04000000 00000000  05 01 0000")
    );
}

#[test]
fn a_new_size_keeps_what_was_said_of_links() {
    let link = Link {
        identifier: "abcd",
        timeout: Duration::from_secs(25),
        dead_timeout: Duration::from_secs(300),
        sockets: &[],
    };
    let message = "50000000 1d00 0500 05000000 00000000  03 01 0000  0800 0100 02000000  0c00 0200 0000200000000000
                   0c00 0400 1900000000000000  0c00 0800 2c01000000000000  0900 0a00 6162636400 000000  0400 0780";
    assert_eq!(resize(NBD, 5, 2, 2 << 20, &link), bytes(message));
}

#[test]
fn a_device_is_described_in_full() {
    let link = Link {
        identifier: "abcd",
        timeout: Duration::from_secs(25),
        dead_timeout: Duration::from_secs(300),
        sockets: &[5, 6],
    };
    let tail = "0c00 0400 1900000000000000  0c00 0800 2c01000000000000
                0900 0a00 6162636400 000000
                1c00 0780  0c00 0180 0800 0100 05000000  0c00 0180 0800 0100 06000000";
    let message = connect(
        NBD,
        1,
        &Connect {
            size: 1 << 20,
            block: 512,
            flags: 0x16d,
            link,
        },
    );
    let head = "78000000 1d00 0500 01000000 00000000  01 01 0000
                0c00 0200 0000100000000000  0c00 0300 0002000000000000  0c00 0500 6d01000000000000";
    assert_eq!(message, bytes(&format!("{head}{tail}")));
    let message = reconfigure(NBD, 2, 1, &link);
    let head = "5c000000 1d00 0500 02000000 00000000  03 01 0000  0800 0100 01000000";
    assert_eq!(message, bytes(&format!("{head}{tail}")));
}

#[test]
fn the_family_is_found_with_its_group() {
    let answer = bytes(
        "58000000 1000 0000 01000000 00000000  01 02 0000
         0800 0200 6e626400  0600 0100 1d00 0000  0800 0300 01000000
         2c00 0700  2800 0100  0800 0200 07000000
         1100 0100 6e62645f6d635f67726f757000 000000
         0800 0900 00000000",
    );
    let (message, rest) = next_message(&answer).unwrap().unwrap();
    let Message::Generic { body, sequence: 1, .. } = message else {
        panic!("{message:?}")
    };
    assert_eq!(parse_family(body).unwrap(), NBD);
    assert!(rest.is_empty());
}

#[test]
fn confirmations_and_errors_are_told_apart() {
    let done = bytes("24000000 0200 0001 05000000 00000000  00000000  10000000 0100 0500 05000000 00000000");
    let failed = bytes("24000000 0200 0000 06000000 00000000  eaffffff  10000000 0100 0500 06000000 00000000");
    let both = [done, failed].concat();
    let (first, rest) = next_message(&both).unwrap().unwrap();
    assert_eq!(
        first,
        Message::Done {
            sequence: 5,
            error: None
        }
    );
    let (second, rest) = next_message(rest).unwrap().unwrap();
    assert_eq!(
        second,
        Message::Done {
            sequence: 6,
            error: Some(22)
        }
    );
    assert!(next_message(rest).unwrap().is_none());
}

#[test]
fn devices_and_dead_links_are_named() {
    let list = bytes(
        "2c00 0980  1400 0180 0800 0100 00000000 0500 0200 01 000000  1400 0180 0800 0100 02000000 0500 0200 00 000000",
    );
    assert_eq!(parse_status(&list).unwrap(), [(0, true), (2, false)]);
    let event = bytes("1c000000 1d00 0000 00000000 00000000  04 01 0000  0800 0100 02000000");
    let (event, _) = next_message(&event).unwrap().unwrap();
    assert_eq!(parse_link_dead(NBD, &event).unwrap(), Some(2));
    let other = Family { id: 0x1e, group: None };
    assert_eq!(parse_link_dead(other, &event).unwrap(), None);
}

#[test]
fn what_does_not_fit_is_refused() {
    for bad in [
        "10",
        "ffffffff 1d00 0000 00000000 00000000",
        "08000000 1d00 0000 00000000 00000000",
        "12000000 1d00 0000 00000000 00000000 0401",
        "12000000 0200 0000 00000000 00000000 0401",
    ] {
        assert!(next_message(&bytes(bad)).is_err(), "{bad}");
    }
    for bad in ["0300 0100", "0000 0100", "0900 0100 01000000", "08"] {
        assert!(parse_index(&bytes(bad)).is_err(), "{bad}");
    }
    assert!(parse_index(&bytes("0600 0100 0100")).is_err(), "half a number");
    assert!(parse_family(&[]).is_err());
    assert!(parse_status(&[]).unwrap().is_empty());
}

proptest! {
    /// Whatever comes is read or refused, and reading ends.
    #[test]
    fn nonsense_is_no_harm(input in prop::collection::vec(any::<u8>(), 0..200), kind in 0u16..40) {
        let mut framed = input.clone();
        if framed.len() >= HEADER {
            let len = u32::try_from(framed.len()).unwrap();
            framed[..4].copy_from_slice(&len.to_ne_bytes());
            framed[4..6].copy_from_slice(&kind.to_ne_bytes());
        }
        for input in [input, framed] {
            let mut rest = &input[..];
            while let Ok(Some((message, next))) = next_message(rest) {
                prop_assert!(next.len() < rest.len());
                rest = next;
                let _ = parse_link_dead(NBD, &message);
                if let Message::Generic { body, .. } = message {
                    let _ = (parse_family(body), parse_status(body), parse_index(body));
                }
            }
        }
    }
}
