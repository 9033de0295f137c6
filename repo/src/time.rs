//! Points in time as Kopia's JSON has them: RFC 3339 in UTC with up to nine fractional digits.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point in time with nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(Timestamp);

impl Time {
    /// 1970-01-01T00:00:00Z, which directory entries leave out.
    pub const UNIX_EPOCH: Self = Self(Timestamp::UNIX_EPOCH);

    /// The host's clock.
    pub fn now() -> Self {
        Self(Timestamp::now())
    }

    /// `seconds` after 1970. Clamped to the year 9999.
    pub fn from_unix(seconds: u64) -> Self {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        Self(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX))
    }

    /// Whole seconds since 1970; 0 before.
    pub fn unix(self) -> u64 {
        u64::try_from(self.0.as_second()).unwrap_or(0)
    }

    /// This time and `by` more; clamped to the year 9999.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        let by = jiff::SignedDuration::try_from(by).unwrap_or(jiff::SignedDuration::MAX);
        Self(self.0.checked_add(by).unwrap_or(Timestamp::MAX))
    }

    /// This time less `by`; clamped to the beginning of what the type holds.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        let by = jiff::SignedDuration::try_from(by).unwrap_or(jiff::SignedDuration::MAX);
        Self(self.0.checked_sub(by).unwrap_or(Timestamp::MIN))
    }

    /// What passed since `earlier`; nothing when that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::try_from(self.0.duration_since(earlier.0)).unwrap_or_default()
    }

    /// Seconds since 1970, negative before, and nanoseconds after them (0 to 999,999,999).
    pub fn unix_parts(self) -> (i64, u32) {
        let nanos = self.0.as_nanosecond();
        let seconds = i64::try_from(nanos.div_euclid(1_000_000_000)).expect("years up to 9999");
        let rest = u32::try_from(nanos.rem_euclid(1_000_000_000)).expect("less than a second");
        (seconds, rest)
    }

    /// The next moment that Kopia's merging tells apart: 100 ms later.
    pub(crate) fn after_it(self) -> Self {
        Self(
            self.0
                .checked_add(jiff::SignedDuration::from_millis(100))
                .unwrap_or(Timestamp::MAX),
        )
    }

    /// Unset: Go's zero time, also after its passage through a 64-bit count of nanoseconds (year 1754).
    pub fn is_unset(self) -> bool {
        self.0.as_second() < -6_000_000_000
    }

    /// Go's zero time passed through a 64-bit count of nanoseconds, as Velero's block uploader writes it.
    pub fn go_unset() -> Self {
        let zero = Timestamp::new(-6_795_364_579, 128_654_848).expect("a time in 1754");
        Self(zero)
    }
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        Self(Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH))
    }
}

impl From<Time> for SystemTime {
    fn from(time: Time) -> Self {
        UNIX_EPOCH + Duration::from_secs(time.unix())
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        // Year 1 is Go's zero time; it is before what the clock type reaches only in other calendars.
        text.parse()
            .map(Self)
            .map_err(|e| de::Error::custom(format_args!("not a time: {text:?}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn round_trip(text: &str) -> Time {
        let json = format!("\"{text}\"");
        let time: Time = serde_json::from_str(&json).expect("a time");
        assert_eq!(serde_json::to_string(&time).expect("json"), json);
        time
    }

    #[test]
    fn times_print_like_go() {
        round_trip("2026-01-02T03:04:05.123456789Z");
        round_trip("2026-01-02T03:04:05Z");
        round_trip("2026-01-02T03:04:05.12Z");
        assert!(!round_trip("1970-01-01T00:00:00Z").is_unset());
    }

    #[test]
    fn gos_zero_time_counts_as_unset() {
        assert_eq!(round_trip("1754-08-30T22:43:41.128654848Z"), Time::go_unset());
        assert!(Time::go_unset().is_unset());
        let zero: Time = serde_json::from_str("\"0001-01-01T00:00:00Z\"").expect("a time");
        assert!(zero.is_unset());
        assert!(serde_json::from_str::<Time>("\"yesterday\"").is_err());
    }

    #[test]
    fn parts_count_nanoseconds_forward_also_before_1970() {
        assert_eq!(round_trip("1970-01-01T00:00:01.25Z").unix_parts(), (1, 250_000_000));
        assert_eq!(round_trip("1969-12-31T23:59:59.25Z").unix_parts(), (-1, 250_000_000));
    }

    #[test]
    fn offsets_become_utc() {
        let time: Time = serde_json::from_str("\"2026-01-02T03:04:05+02:00\"").expect("a time");
        assert_eq!(time.to_string(), "2026-01-02T01:04:05Z");
    }
}
