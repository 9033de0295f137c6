use std::collections::BTreeSet;

use blockio::{CHUNK_SIZE, GrowingMap};
use proptest::prelude::*;

use super::*;
use crate::cbt::refusal::Next;

const MIB: u64 = CHUNK_SIZE;
const SIZE: u64 = 16 * MIB;
const BLOCK: u64 = 4096;

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
}

fn page(style: u64, capacity: i64, blocks: &[(i64, i64)]) -> Vec<u8> {
    let mut out = vec![0x08];
    varint(&mut out, style);
    out.push(0x10);
    varint(&mut out, capacity.cast_unsigned());
    for (offset, size) in blocks {
        let mut block = vec![0x08];
        varint(&mut block, offset.cast_unsigned());
        block.push(0x10);
        varint(&mut block, size.cast_unsigned());
        out.push(0x1a);
        varint(&mut out, block.len() as u64);
        out.extend(block);
    }
    out
}

fn fixed(blocks: &[u64]) -> Vec<u8> {
    let blocks: Vec<_> = blocks
        .iter()
        .map(|b| ((b * BLOCK).cast_signed(), BLOCK.cast_signed()))
        .collect();
    page(1, SIZE.cast_signed(), &blocks)
}

/// A machine with its map, at second 0.
struct Bench {
    machine: Machine,
    map: GrowingMap,
    now: Duration,
}

impl Bench {
    fn new(call: Call, size: u64) -> Self {
        Self {
            machine: Machine::new(call, size, Limits::default(), 1),
            map: GrowingMap::new(size),
            now: Duration::ZERO,
        }
    }

    /// A machine whose first stream is open.
    fn started(call: Call) -> Self {
        let mut bench = Self::new(call, SIZE);
        assert_eq!(bench.machine.start(), open(0));
        bench
    }

    fn message(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let Self { machine, map, now } = self;
        map.grow(|map| machine.message(*now, bytes, map))
    }

    fn ended(&mut self, end: End) -> Result<Action, Refusal> {
        let Self { machine, map, now } = self;
        map.grow(|map| machine.ended(*now, end, map))
    }

    fn status(&mut self, code: Code) -> Result<Action, Refusal> {
        self.ended(End::Status(code, "text".into()))
    }

    fn chunks(&self) -> Vec<u64> {
        self.map.map().iter().map(|chunk| chunk.get()).collect()
    }
}

fn open(offset: u64) -> Action {
    Action::Open {
        offset,
        token: Need::Valid,
        wait: Duration::ZERO,
    }
}

fn offset_of(action: &Action) -> u64 {
    match action {
        Action::Open { offset, .. } => *offset,
        Action::Done(_) => panic!("done"),
    }
}

#[track_caller]
fn broken(pages: &[Vec<u8>]) -> Violation {
    let mut bench = Bench::started(Call::Delta);
    for page in pages {
        match bench.message(page) {
            Ok(()) => {}
            Err(Refusal::Broken(violation)) => return violation,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("nothing is wrong with it")
}

#[test]
fn a_clean_end_is_confirmed_from_the_end_of_the_last_block() {
    let mut bench = Bench::started(Call::Delta);
    bench.message(&fixed(&[1, 300])).unwrap();
    assert_eq!(bench.map.known(), MIB, "block 300 is in chunk 1, which may get more");
    assert_eq!(bench.ended(End::Clean), Ok(open(301 * BLOCK)));
    // A driver that was cancelled ended cleanly: the confirmation finds the rest.
    bench.message(&fixed(&[700])).unwrap();
    assert_eq!(bench.ended(End::Clean), Ok(open(701 * BLOCK)));
    let Ok(Action::Done(outcome)) = bench.ended(End::Clean) else {
        panic!("confirmed")
    };
    assert_eq!((outcome.streams, outcome.tuples, outcome.retries), (3, 3, 0));
    assert_eq!((outcome.capacity, outcome.empty), (Some(SIZE), false));
    assert_eq!(bench.chunks(), [0, 1, 2]);
    assert_eq!(bench.map.known(), SIZE);
}

#[test]
fn nothing_can_follow_a_block_at_the_end() {
    let mut bench = Bench::started(Call::Delta);
    bench.message(&fixed(&[4095])).unwrap();
    assert!(matches!(bench.ended(End::Clean), Ok(Action::Done(_))));
}

#[test]
fn an_empty_answer_is_asked_for_twice_and_reported() {
    let mut bench = Bench::started(Call::Allocated);
    assert_eq!(bench.ended(End::Clean), Ok(open(0)));
    let Ok(Action::Done(outcome)) = bench.ended(End::Clean) else {
        panic!("confirmed")
    };
    assert!(outcome.empty);
    assert_eq!(outcome.capacity, None);
    assert!(bench.map.map().is_empty());
}

#[test]
fn a_cut_stream_goes_on_at_the_end_of_the_last_block_and_may_overlap() {
    let mut bench = Bench::started(Call::Allocated);
    let capacity = SIZE.cast_signed();
    bench
        .message(&page(2, capacity, &[(0, 5000), (6000, 100_000)]))
        .unwrap();
    let action = bench.status(Code::DeadlineExceeded).unwrap();
    assert_eq!(offset_of(&action), 106_000, "not rounded");
    bench.message(&page(2, capacity, &[(5500, 3_000_000)])).unwrap();
    let action = bench.ended(End::Connection("reset".into())).unwrap();
    assert_eq!(offset_of(&action), 3_005_500);
    assert_eq!(bench.machine.outcome().retries, 2);
    assert_eq!(bench.chunks(), [0, 1, 2]);
}

#[test]
fn out_of_range_at_the_end_is_complete_and_elsewhere_is_not() {
    let mut bench = Bench::started(Call::Delta);
    bench.message(&fixed(&[4095])).unwrap();
    let action = bench.status(Code::Unavailable).unwrap();
    assert_eq!(offset_of(&action), SIZE);
    assert!(matches!(bench.status(Code::OutOfRange), Ok(Action::Done(_))));
    let mut bench = Bench::started(Call::Delta);
    assert!(matches!(
        bench.status(Code::OutOfRange),
        Err(Refusal::OutOfRange { offset: 0, .. })
    ));
}

#[test]
fn each_status_has_its_refusal_and_its_next_step() {
    use Call::{Allocated, Delta};
    let refusal = |call, code| Bench::started(call).status(code).unwrap_err();
    let cases = [
        (Delta, Code::NotFound, "base-gone", Next::Allocated),
        (Allocated, Code::NotFound, "snapshot-gone", Next::Full),
        (Delta, Code::FailedPrecondition, "tracking-off", Next::Allocated),
        (Allocated, Code::FailedPrecondition, "tracking-off", Next::Full),
        (Delta, Code::InvalidArgument, "rejected", Next::Allocated),
        (Delta, Code::PermissionDenied, "denied", Next::Full),
        (Delta, Code::Unimplemented, "unimplemented", Next::Allocated),
        (Delta, Code::DataLoss, "other", Next::Allocated),
    ];
    for (call, code, word, next) in cases {
        let refusal = refusal(call, code);
        assert_eq!((refusal.word(), refusal.next(call)), (word, next), "{code:?}");
        assert!(!refusal.is_lie());
    }
}

#[test]
fn one_new_token_is_tried_and_another_after_the_stream_was_accepted() {
    let mut bench = Bench::started(Call::Delta);
    let renew = |bench: &mut Bench| match bench.status(Code::Unauthenticated) {
        Ok(Action::Open { token, .. }) => token,
        other => panic!("{other:?}"),
    };
    assert_eq!(renew(&mut bench), Need::New);
    bench.message(&fixed(&[1])).unwrap();
    assert_eq!(renew(&mut bench), Need::New);
    assert!(matches!(
        bench.status(Code::Unauthenticated),
        Err(Refusal::Unauthenticated(_))
    ));
}

#[test]
fn failures_without_progress_end_and_those_with_progress_do_not() {
    let mut bench = Bench::started(Call::Delta);
    for _ in 0..4 {
        assert!(bench.status(Code::Unavailable).is_ok());
    }
    let refusal = bench.status(Code::Unavailable).unwrap_err();
    assert!(refusal.to_string().contains("v0.1.0"), "{refusal}");
    assert_eq!(refusal.next(Call::Delta), Next::Allocated);

    let mut bench = Bench::started(Call::Allocated);
    for block in 0..100 {
        bench.message(&fixed(&[block])).unwrap();
        assert!(bench.status(Code::DeadlineExceeded).is_ok());
    }
    for _ in 0..3 {
        assert!(bench.ended(End::Silence).is_ok());
    }
    let refusal = bench.ended(End::Silence).unwrap_err();
    assert!(!refusal.to_string().contains("v0.1.0"), "{refusal}");
}

#[test]
fn streams_that_end_again_and_again_are_given_up() {
    let mut bench = Bench::started(Call::Allocated);
    bench.machine.limits.streams_max = 3;
    bench.message(&fixed(&[0])).unwrap();
    bench.status(Code::DeadlineExceeded).unwrap();
    bench.message(&fixed(&[1])).unwrap();
    bench.status(Code::DeadlineExceeded).unwrap();
    bench.message(&fixed(&[2])).unwrap();
    assert_eq!(bench.status(Code::DeadlineExceeded), Err(Refusal::Streams(3)));
}

#[test]
fn silence_is_measured_from_the_last_block_and_not_from_the_last_message() {
    let mut bench = Bench::started(Call::Allocated);
    bench.now = Duration::from_secs(100);
    bench.message(&fixed(&[0])).unwrap();
    let deadline = bench.machine.silent_at();
    bench.now = Duration::from_secs(200);
    bench.message(&fixed(&[])).unwrap();
    assert_eq!(bench.machine.silent_at(), deadline);
    assert_eq!(deadline, Duration::from_secs(100 + 660));
}

#[test]
fn what_breaks_the_contract_is_named() {
    let capacity = SIZE.cast_signed();
    let one = |style, blocks: &[(i64, i64)]| broken(&[page(style, capacity, blocks)]);
    let block = |offset, size| Violation::Block { index: 0, offset, size };
    assert_eq!(one(2, &[(-1, 5)]), block(-1, 5));
    assert_eq!(one(2, &[(1, -5)]), block(1, -5));
    assert_eq!(one(2, &[(1, 0)]), block(1, 0));
    assert_eq!(one(2, &[(i64::MAX, 1)]), block(i64::MAX, 1));
    assert_eq!(one(0, &[(0, 1)]), Violation::Style(0));
    assert_eq!(one(7, &[]), Violation::Style(7));
    assert_eq!(
        one(2, &[(10, 5), (14, 5)]),
        Violation::Order {
            index: 1,
            offset: 14,
            end: 15
        }
    );
    assert_eq!(
        one(1, &[(0, 4096), (4096, 512)]),
        Violation::FixedSize {
            index: 1,
            size: 512,
            fixed: 4096
        }
    );
    assert!(matches!(one(2, &[(capacity - 1, 2)]), Violation::PastEnd { .. }));
    assert!(matches!(one(1, &[(capacity, 4096)]), Violation::PastEnd { .. }));
    assert_eq!(broken(&[page(1, 0, &[(0, 1)])]), Violation::Capacity(0));
    assert_eq!(broken(&[page(1, -1, &[])]), Violation::Capacity(-1));
    assert_eq!(
        broken(&[page(1, 512, &[(0, 512)]), page(1, 1024, &[])]),
        Violation::CapacityChanged { was: 512, is: 1024 }
    );
    assert_eq!(
        broken(&[page(1, 512, &[]), page(2, 512, &[])]),
        Violation::StyleChanged { was: 1, is: 2 }
    );
    assert!(matches!(broken(&[vec![0x1a, 9]]), Violation::Malformed(_)));
}

#[test]
fn a_resumed_stream_that_begins_before_its_start_only_is_refused() {
    let mut bench = Bench::started(Call::Delta);
    bench.message(&fixed(&[5, 6])).unwrap();
    bench.status(Code::Unavailable).unwrap();
    let refusal = bench.message(&fixed(&[6])).unwrap_err();
    assert!(matches!(refusal, Refusal::Broken(Violation::BeforeStart { .. })));
    assert!(refusal.is_lie());
}

#[test]
fn messages_without_end_are_refused() {
    let mut bench = Bench::started(Call::Delta);
    bench.machine.limits.idle_messages_max = 2;
    assert!((0..2).all(|_| bench.message(&[]).is_ok()));
    assert_eq!(bench.message(&[]), Err(Refusal::Broken(Violation::IdleMessages(2))));
    // Blocks of one byte, more than any device has.
    let mut bench = Bench::started(Call::Delta);
    bench.machine.tuples_max = 3;
    let bytes = page(2, SIZE.cast_signed(), &[(0, 1), (1, 1), (2, 1), (3, 1)]);
    assert_eq!(bench.message(&bytes), Err(Refusal::Broken(Violation::Blocks(3))));
}

#[test]
fn a_fixed_block_may_pass_the_end_or_be_cut_there() {
    let capacity = (SIZE - 512).cast_signed();
    for last in [4096, 3584] {
        let mut bench = Bench::started(Call::Allocated);
        let blocks = [(0, 4096), (SIZE.cast_signed() - 4096, last)];
        bench.message(&page(1, capacity, &blocks)).unwrap();
        assert!(matches!(bench.ended(End::Clean), Ok(Action::Done(_))), "{last}");
        assert_eq!(bench.chunks(), [0, 15]);
    }
}

#[test]
fn what_lies_past_the_capacity_is_dirty_and_what_lies_past_the_device_is_left_out() {
    let ask = |size: u64, capacity: u64| {
        let mut bench = Bench::new(Call::Delta, size);
        bench.machine.start();
        let blocks = [(0, 1), (3 * MIB.cast_signed(), 2 * MIB.cast_signed())];
        bench.message(&page(2, capacity.cast_signed(), &blocks)).unwrap();
        bench.ended(End::Clean).unwrap();
        bench.ended(End::Clean).unwrap();
        bench.chunks()
    };
    assert_eq!(ask(16 * MIB, 16 * MIB), [0, 3, 4]);
    assert_eq!(ask(8 * MIB, 6 * MIB + 1), [0, 3, 4, 6, 7]);
    assert_eq!(ask(4 * MIB, 16 * MIB), [0, 3]);
    assert_eq!(ask(3 * MIB + 1, 16 * MIB), [0, 3]);
}

/// What happens to the answers of a driver that keeps to its contract.
#[derive(Clone, Debug)]
enum Fate {
    /// The stream fails after so many messages.
    Cut(usize),
    /// It ends cleanly after so many messages, although there is more.
    FalseEnd(usize),
    /// It runs to its end.
    Whole,
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        (1usize..4).prop_map(Fate::Cut),
        (1usize..4).prop_map(Fate::FalseEnd),
        Just(Fate::Whole)
    ];
    prop::collection::vec(fate, 0..12)
}

/// A driver with extents `blocks` (ascending): what it sends from `start` on, in messages of `per_page`.
fn answer(blocks: &[(u64, u64)], capacity: u64, style: u64, start: u64, per_page: usize) -> Vec<Vec<u8>> {
    let rest: Vec<_> = blocks
        .iter()
        .filter(|(offset, size)| offset + size > start)
        .map(|&(offset, size)| (offset.cast_signed(), size.cast_signed()))
        .collect();
    rest.chunks(per_page)
        .map(|blocks| page(style, capacity.cast_signed(), blocks))
        .collect()
}

proptest! {
    /// Whatever is cut wherever: the map is the one a naive reading of the driver's list gives.
    #[test]
    fn the_map_is_that_of_a_naive_model(
        raw in prop::collection::vec((1u64..3_000_000, 1u64..4_000_000), 0..40),
        is_fixed: bool, size_mib in 1u64..80, odd in 0u64..2, fates in fates(), per_page in 1usize..5,
    ) {
        let capacity = 40 * MIB - odd * 512;
        let size = size_mib * MIB - odd * 1000;
        let mut at = 0;
        let mut blocks = Vec::new();
        for (gap, len) in raw {
            let (offset, len) = match is_fixed {
                true => ((at + gap) / BLOCK * BLOCK + BLOCK, BLOCK),
                false => (at + gap, len),
            };
            at = offset + len;
            if offset >= capacity || (!is_fixed && at > capacity) {
                break;
            }
            blocks.push((offset, len));
        }
        let mut model = BTreeSet::new();
        for (offset, len) in &blocks {
            model.extend((offset / MIB..(offset + len).div_ceil(MIB)).filter(|chunk| chunk * MIB < size && offset.max(&(chunk * MIB)) < &size));
        }
        let mut bench = Bench::new(Call::Allocated, size);
        // The last block may come again without being news, so cuts in a row need not be progress.
        bench.machine.limits.failures_max = 100;
        let (mut fates, mut action) = (fates.into_iter(), bench.machine.start());
        let style = if is_fixed { 1 } else { 2 };
        let mut told = false;
        let outcome = loop {
            let start = match action {
                Action::Done(outcome) => break outcome,
                Action::Open { offset, .. } => offset,
            };
            let pages = answer(&blocks, capacity, style, start, per_page);
            let (take, end) = match fates.next().unwrap_or(Fate::Whole) {
                Fate::Cut(n) if n <= pages.len() => (n, End::Status(Code::DeadlineExceeded, String::new())),
                Fate::FalseEnd(n) if n <= pages.len() => (n, End::Clean),
                _ => (pages.len(), End::Clean),
            };
            for page in &pages[..take] {
                told = true;
                let known = bench.map.known();
                bench.message(page).unwrap();
                prop_assert!(bench.map.known() >= known);
            }
            action = bench.ended(end).unwrap();
        };
        if told {
            model.extend((capacity / MIB..size.div_ceil(MIB)).filter(|chunk| (chunk + 1) * MIB > capacity && size > capacity));
        }
        prop_assert_eq!(outcome.empty, blocks.is_empty());
        prop_assert_eq!(bench.chunks(), model.into_iter().collect::<Vec<_>>());
        prop_assert_eq!(bench.map.take_late(), None, "nothing comes behind the watermark");
    }

    /// Whatever bytes come: an answer or a refusal, and no chunk past the end.
    #[test]
    fn any_messages_are_taken_or_refused(pages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..6)) {
        let mut bench = Bench::started(Call::Delta);
        for page in pages {
            if bench.message(&page).is_err() {
                break;
            }
        }
    }
}
