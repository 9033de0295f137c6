//! Accounting: how many requests a store got, how many bytes, how long they took, what failed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;

use super::{BlobMeta, BlobStore, Habits, ObjectLock};
use crate::error::{Kind, Result};
use crate::id::BlobId;

/// An operation of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOp {
    /// `put` and `put_shared`.
    Put,
    /// `get`.
    Get,
    /// `read_range`.
    Range,
    /// `meta`.
    Meta,
    /// `list`.
    List,
    /// `delete`.
    Delete,
    /// `extend_lock`.
    Lock,
    /// `sync`.
    Sync,
}

impl StoreOp {
    /// Every operation, in the order of their discriminants.
    pub const ALL: [Self; 8] = [
        Self::Put,
        Self::Get,
        Self::Range,
        Self::Meta,
        Self::List,
        Self::Delete,
        Self::Lock,
        Self::Sync,
    ];

    /// The name in logs and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Range => "range",
            Self::Meta => "meta",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Lock => "lock",
            Self::Sync => "sync",
        }
    }
}

/// Buckets of the latency histogram: bucket `n` holds latencies of `n` significant bits of microseconds, so the last one
/// begins at 2^38 us, three days.
const BUCKETS: usize = 40;

/// Counts the requests of one or more stores. Clones count into the same numbers.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<[Counters; StoreOp::ALL.len()]>);

#[derive(Debug)]
struct Counters {
    count: AtomicU64,
    bytes: AtomicU64,
    missing: AtomicU64,
    errors: AtomicU64,
    retries: AtomicU64,
    throttled: AtomicU64,
    micros_total: AtomicU64,
    micros_max: AtomicU64,
    latencies: [AtomicU64; BUCKETS],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            count: AtomicU64::default(),
            bytes: AtomicU64::default(),
            missing: AtomicU64::default(),
            errors: AtomicU64::default(),
            retries: AtomicU64::default(),
            throttled: AtomicU64::default(),
            micros_total: AtomicU64::default(),
            micros_max: AtomicU64::default(),
            latencies: std::array::from_fn(|_| AtomicU64::default()),
        }
    }
}

/// What a store was asked and how it answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreStats {
    /// Requests sent: operations and their repetitions. The pages of a listing are one request.
    pub requests: u64,
    /// Bytes sent by puts.
    pub bytes_up: u64,
    /// Bytes received by reads.
    pub bytes_down: u64,
    /// By the name of the operation; those never asked for are left out.
    pub operations: BTreeMap<&'static str, OperationStats>,
}

/// What became of the operations of one sort.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationStats {
    /// Operations that have ended.
    pub count: u64,
    /// Bytes of blobs they moved.
    pub bytes: u64,
    /// Ended with the answer that the blob does not exist.
    pub missing: u64,
    /// Ended with another error.
    pub errors: u64,
    /// Repetitions after a failure in passing.
    pub retries: u64,
    /// Of these, because the storage asked for fewer requests.
    pub throttled: u64,
    /// Latency of the average operation, with repetitions and waits, in microseconds.
    pub latency_us_mean: u64,
    /// Half of the operations took at most this; right within a factor of 2.
    pub latency_us_p50: u64,
    /// 99 of 100 operations took at most this; right within a factor of 2.
    pub latency_us_p99: u64,
    /// The longest.
    pub latency_us_max: u64,
}

impl Meter {
    /// All zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// The numbers as they are.
    pub fn stats(&self) -> StoreStats {
        let mut stats = StoreStats::default();
        for op in StoreOp::ALL {
            let found = self.0[op as usize].stats();
            if found.count + found.retries == 0 {
                continue;
            }
            stats.requests += found.count + found.retries;
            match op {
                StoreOp::Put => stats.bytes_up += found.bytes,
                _ => stats.bytes_down += found.bytes,
            }
            stats.operations.insert(op.name(), found);
        }
        stats
    }

    /// Notes that `op` is tried again after a failure of `kind`.
    pub(crate) fn retried(&self, op: StoreOp, kind: Kind) {
        let counters = &self.0[op as usize];
        counters.retries.fetch_add(1, Ordering::Relaxed);
        if kind == Kind::Throttled {
            counters.throttled.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes the end of `op` after `latency`: the bytes moved, or the failure.
    fn ended(&self, op: StoreOp, latency: Duration, result: Result<u64, Kind>) {
        let counters = &self.0[op as usize];
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        counters.count.fetch_add(1, Ordering::Relaxed);
        counters.micros_total.fetch_add(micros, Ordering::Relaxed);
        counters.micros_max.fetch_max(micros, Ordering::Relaxed);
        counters.latencies[bucket(micros)].fetch_add(1, Ordering::Relaxed);
        let (counter, by) = match result {
            Ok(bytes) => (&counters.bytes, bytes),
            Err(Kind::NotFound) => (&counters.missing, 1),
            Err(_) => (&counters.errors, 1),
        };
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

impl Counters {
    fn stats(&self) -> OperationStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let latencies: Vec<u64> = self.latencies.iter().map(get).collect();
        let (count, latency_us_max) = (get(&self.count), get(&self.micros_max));
        OperationStats {
            count,
            bytes: get(&self.bytes),
            missing: get(&self.missing),
            errors: get(&self.errors),
            retries: get(&self.retries),
            throttled: get(&self.throttled),
            latency_us_mean: get(&self.micros_total).checked_div(count).unwrap_or(0),
            latency_us_p50: quantile(&latencies, 50).min(latency_us_max),
            latency_us_p99: quantile(&latencies, 99).min(latency_us_max),
            latency_us_max,
        }
    }
}

/// The bucket of a latency: its significant bits.
fn bucket(micros: u64) -> usize {
    let bits = usize::try_from(u64::BITS - micros.leading_zeros()).expect("at most 64");
    bits.min(BUCKETS - 1)
}

/// The largest latency of the bucket in which `percent` of all counts are reached.
fn quantile(latencies: &[u64], percent: u64) -> u64 {
    let total: u64 = latencies.iter().sum();
    let wanted = u64::try_from((u128::from(total) * u128::from(percent)).div_ceil(100)).unwrap_or(total);
    let mut seen = 0;
    for (bits, count) in latencies.iter().enumerate() {
        seen += count;
        if seen >= wanted.max(1) {
            return (1 << bits) - 1;
        }
    }
    0
}

/// A store whose operations are counted.
pub struct MeterStore {
    inner: Arc<dyn BlobStore>,
    meter: Meter,
}

impl MeterStore {
    /// Counts the operations of `inner` in `meter`.
    pub fn new(inner: Arc<dyn BlobStore>, meter: Meter) -> Self {
        Self { inner, meter }
    }

    /// What was counted.
    pub fn stats(&self) -> StoreStats {
        self.meter.stats()
    }

    fn count<T>(&self, op: StoreOp, bytes: impl FnOnce(&T) -> u64, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = run();
        let told = result.as_ref().map(bytes).map_err(|e| e.kind());
        self.meter.ended(op, start.elapsed(), told);
        result
    }
}

impl BlobStore for MeterStore {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn put(&self, id: &BlobId, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        self.count(StoreOp::Put, |()| len, || self.inner.put(id, bytes))
    }

    fn put_shared(&self, id: &BlobId, bytes: Bytes, lock: Option<&ObjectLock>) -> Result<()> {
        let len = bytes.len() as u64;
        self.count(StoreOp::Put, |()| len, || self.inner.put_shared(id, bytes, lock))
    }

    fn extend_lock(&self, id: &BlobId, lock: &ObjectLock) -> Result<()> {
        self.count(StoreOp::Lock, |()| 0, || self.inner.extend_lock(id, lock))
    }

    fn habits(&self) -> Habits {
        self.inner.habits()
    }

    fn get(&self, id: &BlobId) -> Result<Vec<u8>> {
        self.count(
            StoreOp::Get,
            |bytes: &Vec<u8>| bytes.len() as u64,
            || self.inner.get(id),
        )
    }

    fn read_range(&self, id: &BlobId, range: Range<u64>, buf: &mut [u8]) -> Result<Range<usize>> {
        let len = range.end.saturating_sub(range.start);
        self.count(StoreOp::Range, |_| len, || self.inner.read_range(id, range, buf))
    }

    fn meta(&self, id: &BlobId) -> Result<BlobMeta> {
        self.count(StoreOp::Meta, |_| 0, || self.inner.meta(id))
    }

    fn list(&self, prefix: &str) -> Result<Vec<BlobMeta>> {
        self.count(StoreOp::List, |_| 0, || self.inner.list(prefix))
    }

    fn delete(&self, id: &BlobId) -> Result<()> {
        self.count(StoreOp::Delete, |()| 0, || self.inner.delete(id))
    }

    fn sync(&self) -> Result<()> {
        self.count(StoreOp::Sync, |()| 0, || self.inner.sync())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::MemStore;
    use super::*;

    #[test]
    fn operations_are_in_the_order_of_their_discriminants() {
        for (at, op) in StoreOp::ALL.into_iter().enumerate() {
            assert_eq!(op as usize, at, "{op:?}");
        }
    }

    #[test]
    fn every_operation_is_counted_with_its_bytes_and_its_failure() {
        let meter = Meter::new();
        let store = MeterStore::new(Arc::new(MemStore::new()), meter.clone());
        let id = BlobId::new("p1").expect("a blob id");
        store.put(&id, &[7; 100]).expect("put");
        store.put_shared(&id, Bytes::from_static(&[7; 50]), None).expect("put");
        store.get(&id).expect("get");
        store.read_range(&id, 10..20, &mut [0; 9000]).expect("range");
        store.meta(&id).expect("meta");
        store.list("").expect("list");
        store.delete(&id).expect("delete");
        store.sync().expect("sync");
        store.get(&id).expect_err("gone");
        let lock = ObjectLock {
            mode: "GOVERNANCE".into(),
            period: Duration::from_secs(1),
        };
        store.extend_lock(&id, &lock).expect_err("no locks in memory");
        meter.retried(StoreOp::Put, Kind::Throttled);
        meter.retried(StoreOp::Put, Kind::Unavailable);

        let stats = store.stats();
        let seen: Vec<_> = (stats.operations.iter())
            .map(|(name, s)| (*name, s.count, s.bytes, s.missing, s.errors, s.retries, s.throttled))
            .collect();
        let expected = [
            ("delete", 1, 0, 0, 0, 0, 0),
            ("get", 2, 50, 1, 0, 0, 0),
            ("list", 1, 0, 0, 0, 0, 0),
            ("lock", 1, 0, 0, 1, 0, 0),
            ("meta", 1, 0, 0, 0, 0, 0),
            ("put", 2, 150, 0, 0, 2, 1),
            ("range", 1, 10, 0, 0, 0, 0),
            ("sync", 1, 0, 0, 0, 0, 0),
        ];
        assert_eq!(seen, expected);
        assert_eq!((stats.requests, stats.bytes_up, stats.bytes_down), (12, 150, 60));
        let json = serde_json::to_value(&stats).expect("plain data");
        assert_eq!(json["operations"]["put"]["count"], 2);
        assert!(json["operations"]["put"]["latencyUsP99"].is_u64(), "{json}");
    }

    #[test]
    fn nothing_counted_is_nothing_shown() {
        assert_eq!(Meter::new().stats(), StoreStats::default());
    }

    proptest! {
        /// The quantiles of the histogram are at least the true ones and less than twice them.
        #[test]
        fn quantiles_are_right_within_a_factor_of_two(
            latencies in proptest::collection::vec(0u64..10_000_000, 1..200),
        ) {
            let meter = Meter::new();
            for micros in &latencies {
                meter.ended(StoreOp::Get, Duration::from_micros(*micros), Ok(1));
            }
            let stats = &meter.stats().operations["get"];
            let mut sorted = latencies;
            sorted.sort_unstable();
            let exact = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1];
            for (seen, exact) in [(stats.latency_us_p50, exact(50)), (stats.latency_us_p99, exact(99))] {
                prop_assert!(exact <= seen && seen <= 2 * exact, "{seen} for {exact}");
            }
            prop_assert_eq!(stats.latency_us_max, sorted[sorted.len() - 1]);
            prop_assert_eq!(stats.latency_us_mean, sorted.iter().sum::<u64>() / sorted.len() as u64);
        }
    }
}
