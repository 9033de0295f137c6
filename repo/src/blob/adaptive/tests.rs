use proptest::prelude::*;

use super::super::clock::Chance;
use super::super::{Fault, FaultRule, FaultStore, MemStore, StoreOp};
use super::*;

/// A storage that handles `knee` requests at once; more of them queue. Each takes 200 ms and some noise alone.
struct Storage {
    knee: usize,
    noise_percent: u64,
    chance: Chance,
    now: Duration,
}

const PACK: u64 = 20 << 20;

impl Storage {
    fn new(knee: usize, noise_percent: u64) -> Self {
        Self {
            knee,
            noise_percent,
            chance: Chance::seeded(7),
            now: Duration::ZERO,
        }
    }

    /// `requests` packs, always as many in flight as `width` allows.
    fn serve(&mut self, width: &mut Width, requests: usize) {
        for _ in 0..requests {
            let in_flight = width.now;
            let noise = 1000 + self.chance.below(self.noise_percent * 10 + 1);
            let alone = Duration::from_millis(200 * noise / 1000);
            let queue = u32::try_from(in_flight.max(self.knee)).expect("small");
            let latency = alone * queue / u32::try_from(self.knee).expect("small");
            self.now += latency / u32::try_from(in_flight).expect("small");
            width.window.was_full = true;
            let overloads = width.overloads;
            width.ended(&Ended {
                began: self.now.saturating_sub(latency),
                at: self.now,
                bytes: PACK,
                overloads,
                is_overload: false,
            });
        }
    }

    fn overload(&mut self, width: &mut Width, overloads: u64) {
        width.ended(&Ended {
            began: self.now,
            at: self.now,
            bytes: 0,
            overloads,
            is_overload: true,
        });
    }
}

#[test]
fn the_width_finds_the_knee() {
    for knee in [1, 2, 4, 6, 12, 14, 16] {
        let (mut width, mut storage) = (Width::new(64), Storage::new(knee, 0));
        storage.serve(&mut width, 2000);
        let near = knee.saturating_sub(1).max(1)..=knee + 1;
        assert!(near.contains(&width.now), "{} at a knee of {knee}", width.now);
    }
}

#[test]
fn noise_does_not_lead_the_width_astray() {
    let (mut width, mut storage) = (Width::new(64), Storage::new(14, 20));
    storage.serve(&mut width, 3000);
    assert!((8..=24).contains(&width.now), "{}", width.now);
}

#[test]
fn the_width_grows_quickly_at_first_and_never_past_its_maximum() {
    let (mut width, mut storage) = (Width::new(16), Storage::new(100, 0));
    assert_eq!(width.now, 4);
    // 4, 6, 9, 13: that is 8 + 12 + 18 + 26 packs, 1.3 GiB.
    storage.serve(&mut width, 64);
    assert_eq!(width.now, 16);
    storage.serve(&mut width, 2000);
    assert_eq!(width.now, 16);
    assert_eq!(Width::new(2).now, 2);
    assert_eq!(Width::new(0).now, 1);
}

#[test]
fn overload_halves_the_width_once_for_all_requests_that_were_in_flight() {
    let (mut width, mut storage) = (Width::new(16), Storage::new(100, 0));
    storage.serve(&mut width, 1000);
    let before = width.overloads;
    for _ in 0..16 {
        storage.overload(&mut width, before);
    }
    assert_eq!(width.now, 8);
    for expected in [4, 2, 1, 1] {
        let overloads = width.overloads;
        storage.overload(&mut width, overloads);
        assert_eq!(width.now, expected);
    }
    storage.serve(&mut width, 2000);
    assert_eq!(width.now, 16, "and grows again when it is over");
}

#[test]
fn a_storage_that_others_crowd_gets_less() {
    let (mut width, mut storage) = (Width::new(64), Storage::new(12, 0));
    storage.serve(&mut width, 2000);
    assert!(width.now >= 11, "{}", width.now);
    storage.knee = 4;
    storage.serve(&mut width, 4000);
    assert!(width.now <= 8, "{}", width.now);
}

#[test]
fn a_width_that_nobody_uses_does_not_grow() {
    let mut width = Width::new(16);
    for n in 0..1000 {
        let at = Duration::from_millis(100 * n + 50);
        width.ended(&Ended {
            began: at - Duration::from_millis(50),
            at,
            bytes: PACK,
            overloads: 0,
            is_overload: false,
        });
    }
    assert_eq!(width.now, START);
}

#[test]
fn no_more_requests_are_in_flight_than_the_gate_is_wide() {
    let gate = Gate::new(3);
    let (clock, cancel) = (HostClock::start(), Cancel::new());
    let (now, most) = (Mutex::new(0_usize), Mutex::new(0_usize));
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let _pass = gate.enter(&*clock, &cancel).expect("room");
                    let mut count = now.lock().expect("no panic");
                    *count += 1;
                    let mut most = most.lock().expect("no panic");
                    *most = (*most).max(*count);
                    drop((count, most));
                    std::thread::yield_now();
                    *now.lock().expect("no panic") -= 1;
                }
            });
        }
    });
    assert!(*most.lock().expect("no panic") <= 3);
    assert_eq!(gate.lock().in_flight, 0);
}

#[test]
fn failures_close_the_gate_and_give_their_room_back() {
    let faulty = Arc::new(FaultStore::new(Arc::new(MemStore::new())));
    let store = AdaptiveStore::new(faulty.clone(), Some(16), Cancel::new());
    assert_eq!((store.in_flight(), store.habits().puts), ((4, 4), 16));
    for (fault, expected) in [
        (Fault::SlowDown, 2),
        (Fault::Fail(Kind::Permission), 2),
        (Fault::Fail(Kind::Unavailable), 1),
    ] {
        faulty.rule(FaultRule {
            op: StoreOp::Put,
            prefix: String::new(),
            skip: 0,
            count: 1,
            fault,
        });
        store.put(&BlobId::known("p1"), b"x").expect_err("injected");
        assert_eq!(store.in_flight(), (expected, 4));
    }
    for _ in 0..100 {
        store.put(&BlobId::known("p1"), b"x").expect("room is back");
    }
    store.get(&BlobId::known("p2")).expect_err("missing");
    assert_eq!(store.in_flight().1, 4, "a missing blob is no overload");
}

#[test]
fn a_cancellation_ends_the_wait_for_room() {
    let gate = Gate::new(1);
    let (clock, cancel) = (HostClock::start(), Cancel::new());
    let _pass = gate.enter(&*clock, &cancel).expect("room");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| gate.enter(&*clock, &cancel).err().map(|e| e.kind()));
        while !gate.lock().width.window.was_full {
            std::thread::yield_now();
        }
        cancel.cancel();
        assert_eq!(waiter.join().expect("no panic"), Some(Kind::Cancelled));
    });
}

proptest! {
    /// Whatever happens, the width stays between one and its maximum.
    #[test]
    fn the_width_keeps_its_bounds(
        max in 1usize..40,
        events in proptest::collection::vec((0u64..50, 0u64..PACK, any::<bool>(), 0u32..20), 1..400),
    ) {
        let mut width = Width::new(max);
        let mut now = Duration::ZERO;
        for (millis, bytes, full, overload) in events {
            now += Duration::from_millis(millis);
            width.window.was_full |= full;
            let overloads = width.overloads;
            width.ended(&Ended {
                began: now.saturating_sub(Duration::from_millis(bytes % 1000)),
                at: now,
                bytes,
                overloads,
                is_overload: overload == 0,
            });
            prop_assert!((1..=max).contains(&width.now));
        }
    }
}
