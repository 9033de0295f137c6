use proptest::prelude::*;

use super::super::clock::TestClock;
use super::super::{Fault, FaultRule, FaultStore, MemStore};
use super::*;

struct World {
    faulty: Arc<FaultStore>,
    clock: Arc<TestClock>,
    cancel: Cancel,
    meter: Meter,
    store: RetryStore,
}

fn world() -> World {
    let faulty = Arc::new(FaultStore::new(Arc::new(MemStore::new())));
    let clock = Arc::new(TestClock::default());
    let (cancel, meter) = (Cancel::new(), Meter::new());
    let budget = Arc::new(RetryBudget::with_clock(clock.clone()));
    let mut retrier = Retrier::new(RetryPolicy::default(), budget, cancel.clone(), meter.clone());
    retrier.clock = clock.clone();
    retrier.chance = Chance::seeded(1);
    let store = RetryStore::with(faulty.clone(), retrier);
    World {
        faulty,
        clock,
        cancel,
        meter,
        store,
    }
}

impl World {
    fn fail(&self, op: StoreOp, count: u64, kind: Kind) {
        self.faulty.rule(FaultRule {
            op,
            prefix: String::new(),
            skip: 0,
            count,
            fault: Fault::Fail(kind),
        });
    }
}

fn id(text: &str) -> BlobId {
    BlobId::new(text).expect("a blob id")
}

/// The whole table once more, by name: a new kind has to be decided in both places.
#[test]
fn only_what_failed_in_passing_is_tried_again() {
    let retried = [Kind::Unavailable, Kind::Unreachable, Kind::Throttled];
    let final_ = [
        Kind::NotFound,
        Kind::NotARepository,
        Kind::AlreadyExists,
        Kind::WrongPassword,
        Kind::Corrupt,
        Kind::Unsupported,
        Kind::Locked,
        Kind::Clock,
        Kind::StorageFull,
        Kind::Permission,
        Kind::Storage,
        Kind::Credentials,
        Kind::NoBucket,
        Kind::WrongRegion,
        Kind::Certificate,
        Kind::InvalidInput,
        Kind::Cancelled,
    ];
    for (kinds, again) in [(&retried[..], true), (&final_[..], false)] {
        for kind in kinds {
            assert_eq!(first_wait(*kind).is_some(), again, "{kind:?}");
            let world = world();
            world.fail(StoreOp::Put, 1, *kind);
            assert_eq!(world.store.put(&id("p1"), b"x").is_ok(), again, "{kind:?}");
        }
    }
}

#[test]
fn every_operation_is_tried_again() {
    let world = world();
    let ops = [
        StoreOp::Put,
        StoreOp::Get,
        StoreOp::Range,
        StoreOp::Meta,
        StoreOp::List,
        StoreOp::Delete,
        StoreOp::Sync,
    ];
    for op in ops {
        world.fail(op, 2, Kind::Unavailable);
    }
    let pack = id("p1");
    world.store.put(&pack, b"abc").expect("put");
    world
        .store
        .put_shared(&pack, Bytes::from_static(b"abc"), None)
        .expect("put shared");
    assert_eq!(world.store.get(&pack).expect("get"), b"abc");
    let mut buf = [0; 9000];
    let at = world.store.read_range(&pack, 1..3, &mut buf).expect("range");
    assert_eq!(&buf[at], b"bc");
    assert_eq!(world.store.meta(&pack).expect("meta").len, 3);
    assert_eq!(world.store.list("p").expect("list").len(), 1);
    world.store.delete(&pack).expect("delete");
    world.store.sync().expect("sync");
    let stats = world.meter.stats();
    for op in ops {
        assert_eq!(stats.operations[op.name()].retries, 2, "{op:?}");
    }
}

#[test]
fn an_operation_gives_up_after_its_time_and_says_how_long_and_how_often_it_tried() {
    let world = world();
    world.store.list("").expect("the storage answers");
    world.fail(StoreOp::Put, u64::MAX, Kind::Unavailable);
    let error = world.store.put(&id("p1"), b"x").expect_err("never works");
    assert_eq!(error.kind(), Kind::Unavailable);
    let took = world.clock.now();
    assert!(
        (Duration::from_secs(285)..=Duration::from_secs(300)).contains(&took),
        "{took:?}"
    );
    let tries = world.meter.stats().operations["put"].retries + 1;
    assert!((40..=100).contains(&tries), "{tries}");
    let told = format!("tried {tries} times in {:.1} s: ", took.as_secs_f64());
    assert!(error.what().starts_with(&told), "{}", error.what());
    assert!(error.what().contains("injected fault at Put p1"), "{}", error.what());
}

#[test]
fn a_put_survives_a_fail_over_of_four_minutes() {
    let world = world();
    world.store.list("").expect("the storage answers");
    world.fail(StoreOp::Put, 40, Kind::Unreachable);
    world.store.put(&id("p1"), b"x").expect("the storage is back");
    assert!(world.clock.now() > Duration::from_secs(60), "{:?}", world.clock.now());
}

#[test]
fn a_storage_that_never_answered_is_given_up_soon() {
    let first = world();
    first.fail(StoreOp::Get, u64::MAX, Kind::Unreachable);
    first.store.get(&id("kopia.repository")).expect_err("nobody there");
    assert!(first.clock.now() <= Duration::from_secs(20), "{:?}", first.clock.now());

    // A refusal is an answer.
    let second = world();
    second.store.get(&id("kopia.repository")).expect_err("missing");
    second.fail(StoreOp::Get, u64::MAX, Kind::Unreachable);
    second.store.get(&id("kopia.repository")).expect_err("gone again");
    assert!(
        second.clock.now() > Duration::from_secs(200),
        "{:?}",
        second.clock.now()
    );
}

#[test]
fn a_failure_that_is_final_ends_the_attempts_and_is_told_as_it_is() {
    let world = world();
    world.fail(StoreOp::Meta, 2, Kind::Throttled);
    world.fail(StoreOp::Meta, 1, Kind::Permission);
    let error = world.store.meta(&id("p1")).expect_err("refused");
    assert_eq!(error.kind(), Kind::Permission);
    assert!(error.what().starts_with("tried 3 times in "), "{}", error.what());
    assert_eq!(world.meter.stats().operations["meta"].throttled, 2);
}

#[test]
fn a_cancellation_ends_the_wait_and_lets_first_attempts_through() {
    let world = world();
    world.cancel.cancel();
    world.store.put(&id("s1"), b"x").expect("a first attempt");
    world.fail(StoreOp::Put, 1, Kind::Unavailable);
    let error = world.store.put(&id("p1"), b"x").expect_err("cancelled");
    assert_eq!(error.kind(), Kind::Cancelled);
    assert_eq!(world.clock.now(), Duration::ZERO);
}

#[test]
fn a_cancellation_wakes_a_real_wait() {
    let faulty = Arc::new(FaultStore::new(Arc::new(MemStore::new())));
    let policy = RetryPolicy {
        wait_max: Duration::from_secs(3600),
        time: Duration::from_secs(1 << 30),
        time_unanswered: Duration::from_secs(1 << 30),
    };
    let cancel = Cancel::new();
    let store = RetryStore::new(faulty.clone(), policy, Arc::default(), cancel.clone(), Meter::new());
    faulty.rule(FaultRule {
        op: StoreOp::List,
        prefix: String::new(),
        skip: 0,
        count: u64::MAX,
        fault: Fault::Fail(Kind::Throttled),
    });
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| store.list("").expect_err("cancelled").kind());
        cancel.cancel();
        assert_eq!(waiter.join().expect("no panic"), Kind::Cancelled);
    });
}

#[test]
fn waits_grow_and_stay_below_their_limits() {
    let world = world();
    world.store.retrier.answered.store(true, Ordering::Relaxed);
    for (tries, longest_ms) in [(1, 100), (2, 200), (4, 800), (7, 6400), (8, 10_000), (40, 10_000)] {
        let waits: Vec<_> = (0..200)
            .map(|_| {
                world.clock.advance(Duration::from_secs(1)); // the budget is not what is looked at here
                world
                    .store
                    .retrier
                    .next_wait(Kind::Unavailable, tries, Duration::ZERO)
                    .expect("again")
            })
            .collect();
        let longest = Duration::from_millis(longest_ms);
        assert!(waits.iter().all(|wait| *wait <= longest), "{tries}");
        assert!(waits.iter().any(|wait| *wait < longest / 10), "no jitter at {tries}");
        assert!(
            waits.iter().any(|wait| *wait > longest * 9 / 10),
            "no growth at {tries}"
        );
    }
}

#[test]
fn the_budget_turns_a_storm_into_a_trickle() {
    let clock = Arc::new(TestClock::default());
    let budget = RetryBudget::with_clock(clock.clone());
    for n in 0..64 {
        assert_eq!(budget.take(Duration::MAX), Some(Duration::ZERO), "{n}");
    }
    assert_eq!(budget.take(Duration::MAX), Some(Duration::from_millis(50)));
    assert_eq!(budget.take(Duration::MAX), Some(Duration::from_millis(100)));
    assert_eq!(budget.take(Duration::from_millis(149)), None);
    assert_eq!(
        budget.take(Duration::from_millis(150)),
        Some(Duration::from_millis(150)),
        "a refusal takes nothing"
    );
    clock.advance(Duration::from_secs(3600));
    assert_eq!((0..100).filter(|_| budget.take(Duration::ZERO).is_some()).count(), 64);
}

proptest! {
    /// In no stretch of time does the budget give out more than what is there at once and what is earned meanwhile.
    #[test]
    fn the_budget_is_never_overdrawn(steps in proptest::collection::vec(0u64..500, 1..300)) {
        let clock = Arc::new(TestClock::default());
        let budget = RetryBudget::with_clock(clock.clone());
        let mut given = 0;
        for millis in steps {
            clock.advance(Duration::from_millis(millis));
            given += u64::from(budget.take(Duration::ZERO).is_some());
            let earned = u64::try_from(clock.now().as_millis()).expect("short") * u64::from(RETRIES_PER_SECOND) / 1000;
            prop_assert!(given <= u64::from(RETRIES_AT_ONCE) + earned + 1);
        }
    }
}
