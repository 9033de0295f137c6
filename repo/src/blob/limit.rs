//! Limits that somebody asked for: bytes up and down, and requests, a second.
//!
//! All threads and stores of a process that share a [`Throttle`] share the rates. A request is a unit: it waits until those
//! before it are paid for, and then goes at full speed. Small requests (the format blob, session markers, manifests) wait only
//! for small ones, so that a queue of packs does not stand between a job and its bookkeeping; what they use is taken from
//! the packs that follow.

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockio::Cancel;
use bytes::Bytes;

use super::clock::{Clock, HostClock};
use super::{BlobMeta, BlobStore, Habits, ObjectLock};
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;

/// Rates not to exceed; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of blobs sent, a second.
    pub upload: Option<NonZeroU64>,
    /// Bytes of blobs received, a second.
    pub download: Option<NonZeroU64>,
    /// Requests a second, of whichever sort. The pages of a listing are one request.
    pub requests: Option<NonZeroU64>,
}

/// Bytes up to which a request is small: markers, manifests and index blobs of usual backups are. 64 KiB hold a line of
/// 1 MiB/s for a sixteenth of a second.
const SMALL_LEN: u64 = 64 << 10;

/// How much of an idle past may be made up for: 1 s, so that work that comes in gusts still reaches its rate.
const MADE_UP: Duration = Duration::from_secs(1);

/// Hands out shares of the rates; many threads and stores may draw from one.
#[derive(Debug)]
pub struct Throttle {
    upload: Option<Line>,
    download: Option<Line>,
    requests: Option<Line>,
    clock: Arc<dyn Clock>,
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Throttle {
    /// Keeps to `limits`.
    pub fn new(limits: Limits) -> Self {
        Self::with_clock(limits, HostClock::start())
    }

    fn with_clock(limits: Limits, clock: Arc<dyn Clock>) -> Self {
        Self {
            upload: limits.upload.map(Line::new),
            download: limits.download.map(Line::new),
            requests: limits.requests.map(Line::new),
            clock,
        }
    }
}

/// One rate.
#[derive(Debug)]
struct Line {
    per_second: NonZeroU64,
    paid: Mutex<Paid>,
}

/// When what was let through is paid for, counted from [`MADE_UP`] before the clock's zero.
#[derive(Debug, Default)]
struct Paid {
    all: Duration,
    small: Duration,
}

/// When a request may begin and when it is paid for, both from now.
#[derive(Debug, PartialEq, Eq)]
struct Turn {
    begin: Duration,
    paid: Duration,
}

impl Line {
    fn new(per_second: NonZeroU64) -> Self {
        Self {
            per_second,
            paid: Mutex::default(),
        }
    }

    /// Books `units` behind all that was booked before, or, when `small`, behind the small ones.
    fn book(&self, units: u64, small: bool, now: Duration) -> Turn {
        let nanos = u128::from(units) * 1_000_000_000 / u128::from(self.per_second.get());
        let price = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut paid = self.paid.lock().expect("no panic while held");
        let begin = paid.all.max(now);
        paid.all = begin.saturating_add(price);
        let mut turn = (begin, paid.all);
        if small {
            let begin = paid.small.max(now);
            paid.small = begin.saturating_add(price);
            turn = (begin, paid.small);
        }
        let now = now + MADE_UP;
        Turn {
            begin: turn.0.saturating_sub(now),
            paid: turn.1.saturating_sub(now),
        }
    }
}

/// A store that keeps to the rates of a [`Throttle`].
pub struct LimitStore {
    inner: Arc<dyn BlobStore>,
    throttle: Arc<Throttle>,
    cancel: Cancel,
}

impl LimitStore {
    /// Lets requests to `inner` through as `throttle` allows. When `cancel` is asked for, waits end at once, and what comes
    /// after is not made to wait: a job that ends has to tidy up.
    pub fn new(inner: Arc<dyn BlobStore>, throttle: Arc<Throttle>, cancel: Cancel) -> Self {
        Self {
            inner,
            throttle,
            cancel,
        }
    }

    /// Waits until a request that moves `bytes` over `line` may begin.
    fn enter(&self, line: Option<&Line>, bytes: u64) -> Result<()> {
        let now = self.throttle.clock.now();
        let request = self
            .throttle
            .requests
            .as_ref()
            .map(|line| line.book(1, false, now).begin);
        let moved = line.map(|line| line.book(bytes, bytes <= SMALL_LEN, now).begin);
        self.wait(request.max(moved))
    }

    /// Pays for the bytes of a read whose length was not known before: a large one holds its reader up, not the next.
    fn pay(&self, bytes: u64) -> Result<()> {
        let now = self.throttle.clock.now();
        let Some(line) = &self.throttle.download else {
            return Ok(());
        };
        if bytes <= SMALL_LEN {
            line.book(bytes, true, now);
            return Ok(());
        }
        self.wait(Some(line.book(bytes, false, now).paid))
    }

    fn wait(&self, time: Option<Duration>) -> Result<()> {
        let time = time.unwrap_or_default();
        if time.is_zero() || self.cancel.is_cancelled() {
            return Ok(());
        }
        let cancelled = |_| {
            RepoError::new(
                Kind::Cancelled,
                "cancelled while waiting for the rate limit of the storage",
            )
        };
        self.throttle.clock.wait(time, &self.cancel).map_err(cancelled)
    }
}

impl BlobStore for LimitStore {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn put(&self, id: &BlobId, bytes: &[u8]) -> Result<()> {
        self.enter(self.throttle.upload.as_ref(), bytes.len() as u64)?;
        self.inner.put(id, bytes)
    }

    fn put_shared(&self, id: &BlobId, bytes: Bytes, lock: Option<&ObjectLock>) -> Result<()> {
        self.enter(self.throttle.upload.as_ref(), bytes.len() as u64)?;
        self.inner.put_shared(id, bytes, lock)
    }

    fn extend_lock(&self, id: &BlobId, lock: &ObjectLock) -> Result<()> {
        self.enter(None, 0)?;
        self.inner.extend_lock(id, lock)
    }

    fn habits(&self) -> Habits {
        self.inner.habits()
    }

    fn get(&self, id: &BlobId) -> Result<Vec<u8>> {
        self.enter(self.throttle.download.as_ref(), 0)?;
        let bytes = self.inner.get(id)?;
        self.pay(bytes.len() as u64)?;
        Ok(bytes)
    }

    fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> Result<Range<usize>> {
        self.enter(self.throttle.download.as_ref(), range.end.saturating_sub(range.start))?;
        self.inner.read_range(id, range, buf)
    }

    fn meta(&self, id: &BlobId) -> Result<BlobMeta> {
        self.enter(None, 0)?;
        self.inner.meta(id)
    }

    fn list(&self, prefix: &str) -> Result<Vec<BlobMeta>> {
        self.enter(None, 0)?;
        self.inner.list(prefix)
    }

    fn delete(&self, id: &BlobId) -> Result<()> {
        self.enter(None, 0)?;
        self.inner.delete(id)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::MemStore;
    use super::super::clock::TestClock;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn rate(n: u64) -> Option<NonZeroU64> {
        NonZeroU64::new(n)
    }

    fn world(limits: Limits) -> (Arc<TestClock>, Cancel, LimitStore) {
        let clock = Arc::new(TestClock::default());
        let throttle = Arc::new(Throttle::with_clock(limits, clock.clone()));
        let cancel = Cancel::new();
        let store = LimitStore::new(Arc::new(MemStore::new()), throttle, cancel.clone());
        (clock, cancel, store)
    }

    fn id(text: &str) -> BlobId {
        BlobId::new(text).expect("a blob id")
    }

    #[test]
    fn without_limits_nothing_waits() {
        let (clock, _, store) = world(Limits::default());
        for _ in 0..100 {
            store.put(&id("p1"), &vec![0; 1 << 20]).expect("put");
            store.get(&id("p1")).expect("get");
        }
        assert_eq!(clock.now(), Duration::ZERO);
    }

    #[test]
    fn uploads_and_downloads_each_keep_to_their_rate() {
        let (clock, _, store) = world(Limits {
            upload: rate(MIB),
            download: rate(2 * MIB),
            requests: None,
        });
        let blob = vec![0; 4 << 20];
        for _ in 0..5 {
            store.put(&id("p1"), &blob).expect("put");
        }
        // The fifth begins when the 16 MiB of the first four are paid for, less the second that may be made up for.
        assert_eq!(clock.now(), Duration::from_secs(15));
        let mut buf = vec![0; (4 << 20) + 8192];
        store.read_range(&id("p1"), 0..4 * MIB, &mut buf).expect("range");
        assert_eq!(clock.now(), Duration::from_secs(15));
        store.read_range(&id("p1"), 0..4 * MIB, &mut buf).expect("range");
        assert_eq!(clock.now(), Duration::from_secs(16));
        // A whole blob is paid for by its own reader: 4 MiB before it and its own.
        store.get(&id("p1")).expect("get");
        assert_eq!(clock.now(), Duration::from_secs(20));
    }

    #[test]
    fn small_requests_do_not_stand_behind_packs_and_are_paid_for_by_them() {
        let line = Line::new(NonZeroU64::new(MIB).expect("not 0"));
        for _ in 0..20 {
            line.book(20 * MIB, false, Duration::ZERO);
        }
        for n in 0..16 {
            let turn = line.book(SMALL_LEN, true, Duration::ZERO);
            assert_eq!(turn.begin, Duration::ZERO, "{n}");
        }
        // 16 of them are a second; the second after that is waited for, or small requests alone would exceed the rate.
        assert_eq!(line.book(SMALL_LEN, true, Duration::ZERO).begin, Duration::ZERO);
        assert_eq!(
            line.book(SMALL_LEN, true, Duration::ZERO).begin,
            Duration::from_millis(62) + Duration::from_micros(500)
        );
        let pack = line.book(1, false, Duration::ZERO);
        assert_eq!(pack.begin, Duration::from_secs(400) + Duration::from_micros(125_000));
    }

    #[test]
    fn requests_of_every_sort_are_counted() {
        let (clock, _, store) = world(Limits {
            requests: rate(10),
            ..Limits::default()
        });
        for _ in 0..10 {
            store.put(&id("p1"), b"x").expect("put");
            store.get(&id("p1")).expect("get");
            store.meta(&id("p1")).expect("meta");
            store.list("").expect("list");
            store.delete(&id("p1")).expect("delete");
        }
        assert_eq!(clock.now(), Duration::from_millis(4900 - 1000));
    }

    #[test]
    fn a_cancellation_ends_a_wait_and_lets_the_rest_through() {
        let throttle = Arc::new(Throttle::new(Limits {
            upload: rate(1),
            ..Limits::default()
        }));
        let cancel = Cancel::new();
        let store = LimitStore::new(Arc::new(MemStore::new()), throttle, cancel.clone());
        store.put(&id("p1"), &vec![0; 1 << 20]).expect("the first is on credit");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| store.put(&id("p2"), &vec![0; 1 << 20]));
            cancel.cancel();
            // It was waiting, or came after the cancellation and was let through.
            match waiter.join().expect("no panic") {
                Ok(()) => {}
                Err(e) => assert_eq!(e.kind(), Kind::Cancelled),
            }
        });
        store
            .put(&id("p3"), &vec![0; 1 << 20])
            .expect("tidying up is not held up");
    }

    proptest! {
        /// Whatever comes when: what has begun, but for the last one, never exceeds the rate and the second made up for.
        #[test]
        fn a_rate_is_never_exceeded(requests in proptest::collection::vec((0u64..3000, 1u64..500_000), 1..100)) {
            let line = Line::new(NonZeroU64::new(MIB / 10).expect("not 0"));
            let mut now = Duration::ZERO;
            let mut begun: Vec<(Duration, u64)> = Vec::new();
            for (pause, bytes) in requests {
                now += Duration::from_millis(pause);
                let turn = line.book(bytes, false, now);
                begun.push((now + turn.begin, bytes));
            }
            for (at, _) in &begun {
                let before: u64 = begun.iter().filter(|(other, _)| other < at).map(|(_, bytes)| bytes).sum();
                let last = begun.iter().filter(|(other, _)| other < at).map(|(_, bytes)| *bytes).max().unwrap_or(0);
                let allowed = (at.as_secs_f64() + 1.0) * (MIB / 10) as f64 + last as f64 + 1.0;
                prop_assert!(before as f64 <= allowed, "{before} until {at:?}");
            }
        }
    }
}
