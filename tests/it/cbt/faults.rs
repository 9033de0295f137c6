//! Misbehaviour, one kind a test or a line of a table.

use std::time::Duration;

use blockferry_tests::cbt_server::listing::{FIXED, Listing, Sparse, VARIABLE, page};
use blockferry_tests::cbt_server::{AUTHORITY, CbtServer, Ending, OTHER_AUTHORITY, Play, code};
use blockio::{Cancel, GrowingMap};
use csi_glue::cbt::{Call, Limits, Next, Refusal, Violation};

use super::{BLOCK, MIB, SIZE, THREE, allocated, ask, ask_limited, client_with, delta, limits, three};

#[test]
fn a_stream_that_is_cut_goes_on_where_it_was() {
    let cuts = [
        Ending::Status(code::DEADLINE_EXCEEDED, "10 minutes are over".to_owned()),
        Ending::Status(code::UNAVAILABLE, String::new()),
        Ending::Status(code::INTERNAL, String::new()),
        Ending::Status(code::CANCELLED, String::new()),
        // Cancelled drivers end cleanly; proxies end streams without a status.
        Ending::Status(code::OK, String::new()),
        Ending::NoStatus,
        Ending::Reset,
        Ending::Hangup,
    ];
    for cut in cuts {
        let ending = cut.clone();
        let (answer, chunks, asked) = ask(&delta(), move |stream, asked| {
            let pages = three().pages(asked.starting_offset);
            match (pages.len() > 1, stream % 2) {
                (false, _) => Play::whole(pages),
                // A reset may take the message with it; every other stream is cut in a way that does not.
                (true, 0) => Play::ending(pages.into_iter().take(1), ending.clone()),
                (true, _) => Play::new(pages.into_iter().take(1), code::UNAVAILABLE, ""),
            }
        });
        answer.unwrap_or_else(|refusal| panic!("{cut:?}: {refusal}"));
        assert_eq!(chunks, THREE, "{cut:?}");
        assert!(asked.len() >= 4, "{cut:?}: {asked:?}");
        assert!(asked.iter().all(|asked| asked.starting_offset % BLOCK == 0), "{cut:?}");
    }
}

#[test]
fn a_large_listing_cut_every_few_messages_is_complete() {
    let sparse = Sparse {
        capacity: SIZE,
        every: 3,
        per_page: 50,
    };
    let (answer, chunks, _) = ask(&allocated(), move |_, asked| {
        let mut pages = sparse.pages(asked.starting_offset).peekable();
        match pages.peek() {
            Some(_) => Play::new(pages.take(7), code::DEADLINE_EXCEEDED, "cut"),
            None => Play::whole([]),
        }
    });
    let outcome = answer.unwrap();
    assert_eq!(outcome.tuples, sparse.count());
    assert!(outcome.retries >= sparse.count() / 350 && outcome.streams > outcome.retries);
    assert_eq!(chunks, (0..64).collect::<Vec<_>>());
}

#[test]
fn a_driver_that_misnumbers_unaligned_starts_is_asked_for_aligned_ones_only() {
    let listing = Listing::fixed(SIZE, BLOCK, &[1, 300, 301, 9000]).per_page(1);
    let (answer, chunks, _) = ask(&allocated(), move |_, asked| {
        let pages = listing.pages_misnumbered(asked.starting_offset, BLOCK);
        match pages.is_empty() {
            true => Play::whole([]),
            false => Play::new(pages.into_iter().take(1), code::DEADLINE_EXCEEDED, ""),
        }
    });
    answer.unwrap();
    assert_eq!(chunks, [0, 1, 35]);
}

#[test]
fn an_empty_answer_without_any_message_is_complete_and_suspicious() {
    for question in [allocated(), delta()] {
        let (answer, chunks, asked) = ask(&question, |_, _| Play::whole([]));
        let outcome = answer.unwrap();
        assert!(outcome.empty);
        assert_eq!((outcome.capacity, outcome.messages), (None, 0));
        assert!(chunks.is_empty());
        assert_eq!(asked.len(), 2, "asked twice");
    }
}

#[test]
fn sizes_that_differ_from_the_device_are_told_apart() {
    let of = |capacity: u64, blocks: &'static [(u64, u64)]| {
        ask(&delta(), move |_, asked| {
            Play::whole(Listing::variable(capacity, blocks).pages(asked.starting_offset))
        })
    };
    // The device has grown: what nobody tells of is dirty.
    let (answer, chunks, _) = of(SIZE - 2 * MIB - 1, &[(MIB, 1)]);
    answer.unwrap();
    assert_eq!(chunks, [1, 61, 62, 63]);
    // The device is smaller than the snapshot.
    let (answer, chunks, _) = of(2 * SIZE, &[(MIB, 1), (SIZE - 1, 2), (SIZE + MIB, 5)]);
    answer.unwrap();
    assert_eq!(chunks, [1, 63]);
    // The last block of one size passes the end.
    let (answer, chunks, _) = ask(&delta(), |_, _| {
        Play::whole([page(FIXED, SIZE - 512, &[(0, BLOCK), (SIZE - BLOCK, BLOCK)])])
    });
    answer.unwrap();
    assert_eq!(chunks, [0, 63]);
}

#[test]
fn a_message_of_five_mebibytes_is_read_and_one_past_the_limit_is_not() {
    let sparse = Sparse {
        capacity: 1 << 40,
        every: 1,
        per_page: 600_000,
    };
    let script = move |_: usize, asked: &blockferry_tests::cbt_server::Asked| {
        Play::whole(
            sparse
                .pages(asked.starting_offset)
                .take(1)
                .inspect(|page| assert!(page.len() > 5 << 20)),
        )
    };
    let server = CbtServer::tls(move |stream, asked| match stream {
        0 => script(stream, asked),
        _ => Play::whole([]),
    })
    .unwrap();
    let map = GrowingMap::new(1 << 40);
    let outcome = client_with(&server, AUTHORITY, limits()).ask_blocking(&allocated(), &map, &Cancel::new());
    assert_eq!(outcome.unwrap().tuples, 600_000);
    let small = Limits {
        message_bytes_max: 1 << 20,
        ..limits()
    };
    let (answer, ..) = ask_limited(&allocated(), small, script);
    let text = answer.unwrap_err().to_string();
    assert!(text.contains("too large") && text.contains("1048576"), "{text}");
}

#[test]
fn what_breaks_the_contract_ends_the_question() {
    let negative = |number: i64| number.cast_unsigned();
    let pages = |blocks: &[(u64, u64)]| vec![page(VARIABLE, SIZE, blocks)];
    let cases = [
        ("order", pages(&[(MIB, 5), (0, 5)])),
        ("overlap", pages(&[(0, 10), (9, 5)])),
        ("negative offset", pages(&[(negative(-4096), 4096)])),
        ("negative size", pages(&[(0, negative(-1))])),
        ("no size", pages(&[(MIB, 0)])),
        ("overflow", pages(&[(i64::MAX.cast_unsigned(), 4096)])),
        ("past the end", pages(&[(SIZE, 512)])),
        ("across the end", pages(&[(SIZE - 1, 512)])),
        ("fixed, past the end", vec![page(FIXED, SIZE, &[(SIZE, BLOCK)])]),
        (
            "fixed, of two sizes",
            vec![page(FIXED, SIZE, &[(0, BLOCK), (BLOCK, 512)])],
        ),
        ("no style", vec![page(0, SIZE, &[(0, BLOCK)])]),
        ("no capacity", vec![page(FIXED, 0, &[(0, BLOCK)])]),
        (
            "capacity change",
            vec![page(FIXED, SIZE, &[]), page(FIXED, SIZE + MIB, &[])],
        ),
        ("style change", vec![page(FIXED, SIZE, &[]), page(VARIABLE, SIZE, &[])]),
        ("garbage", vec![bytes::Bytes::from_static(b"\xff\xff\xff")]),
    ];
    for (name, pages) in cases {
        let (answer, _, asked) = ask(&delta(), move |_, _| Play::whole(pages.clone()));
        let refusal = answer.expect_err(name);
        assert!(refusal.is_lie(), "{name}: {refusal}");
        assert_eq!(refusal.next(Call::Delta), Next::Allocated, "{name}");
        assert_eq!(asked.len(), 1, "{name}: not asked again");
    }
}

#[test]
fn a_capacity_that_changes_between_two_streams_is_noticed() {
    let (answer, ..) = ask(&delta(), |stream, _| match stream {
        0 => Play::new([page(FIXED, SIZE, &[(0, BLOCK)])], code::UNAVAILABLE, ""),
        _ => Play::whole([page(FIXED, 2 * SIZE, &[(MIB, BLOCK)])]),
    });
    let violation = Violation::CapacityChanged {
        was: SIZE,
        is: 2 * SIZE,
    };
    assert_eq!(answer, Err(Refusal::Broken(violation)));
}

#[test]
fn a_storm_of_unavailable_ends_and_names_the_old_sidecar() {
    let (answer, _, asked) = ask(&delta(), |_, _| {
        Play::status(code::UNAVAILABLE, "VolumeSnapshot velero/handle-1 not found")
    });
    let text = answer.unwrap_err().to_string();
    assert_eq!(asked.len(), 5);
    assert!(
        text.contains("velero/handle-1 not found") && text.contains("v0.1.0"),
        "{text}"
    );
}

#[test]
fn what_no_repetition_changes_is_not_repeated() {
    let cases = [
        (code::NOT_FOUND, "base-gone", Next::Allocated),
        (code::FAILED_PRECONDITION, "tracking-off", Next::Allocated),
        (code::INVALID_ARGUMENT, "rejected", Next::Allocated),
        (code::PERMISSION_DENIED, "denied", Next::Full),
        (code::OUT_OF_RANGE, "out-of-range", Next::Allocated),
    ];
    for (status, word, next) in cases {
        let (answer, _, asked) = ask(&delta(), move |_, _| Play::status(status, "says why"));
        let refusal = answer.unwrap_err();
        assert_eq!((refusal.word(), refusal.next(Call::Delta)), (word, next));
        assert!(refusal.to_string().contains("says why"), "{refusal}");
        assert_eq!(asked.len(), 1, "{word}");
    }
    let (answer, _, asked) = ask(&delta(), |_, _| Play::status(code::UNAUTHENTICATED, "who?"));
    assert_eq!(answer.unwrap_err().word(), "unauthenticated");
    assert_eq!(asked.len(), 2, "one new token is tried");
}

#[test]
fn out_of_range_at_the_very_end_is_the_end() {
    let (answer, chunks, _) = ask(&allocated(), |_, asked| match asked.starting_offset {
        SIZE => Play::status(code::OUT_OF_RANGE, "past the end"),
        _ => Play::new([page(FIXED, SIZE, &[(SIZE - BLOCK, BLOCK)])], code::UNAVAILABLE, ""),
    });
    answer.unwrap();
    assert_eq!(chunks, [63]);
}

#[test]
fn a_stream_without_end_and_one_without_news_are_given_up() {
    let small = Limits {
        idle_messages_max: 100,
        ..limits()
    };
    let (answer, ..) = ask_limited(&delta(), small, |_, _| {
        Play::whole(std::iter::repeat_with(|| page(FIXED, SIZE, &[])))
    });
    assert_eq!(answer, Err(Refusal::Broken(Violation::IdleMessages(100))));
    let silent = Limits {
        silence_max: Duration::from_millis(100),
        ..limits()
    };
    let (answer, _, asked) = ask_limited(&delta(), silent, |_, _| {
        Play::ending(three().pages(0).into_iter().take(0), Ending::Silence)
    });
    assert_eq!(answer.unwrap_err().word(), "unavailable");
    assert!(asked.len() <= 5, "{asked:?}");
}

#[test]
fn only_the_given_authority_is_believed_and_only_over_tls() {
    let whole =
        |_: usize, asked: &blockferry_tests::cbt_server::Asked| Play::whole(three().pages(asked.starting_offset));
    let refused = |server: CbtServer, ca: &str| {
        let map = GrowingMap::new(SIZE);
        let answer = client_with(&server, ca, limits()).ask_blocking(&delta(), &map, &Cancel::new());
        assert!(server.asked().is_empty(), "no token was sent");
        answer.unwrap_err()
    };
    let wrong = refused(CbtServer::tls(whole).unwrap(), OTHER_AUTHORITY);
    assert_eq!((wrong.word(), wrong.next(Call::Delta)), ("tls", Next::Full), "{wrong}");
    let plain = refused(CbtServer::plain(whole).unwrap(), AUTHORITY);
    assert!(matches!(plain.word(), "tls" | "unavailable"), "{plain}");
    assert_eq!(plain.next(Call::Delta), Next::Full);
}
