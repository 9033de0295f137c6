//! Time as maintenance needs it: the host's clock, and what the storage's clock says of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::blob::{BlobMeta, BlobStore};
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;
use crate::session::CLOCK_SKEW_MAX;
use crate::time::Time;

/// The clock of this host; tests put a virtual one in its place.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Time + Send + Sync>);

impl Clock {
    /// The host's.
    pub fn host() -> Self {
        Self(Arc::new(Time::now))
    }

    /// One that `now` tells.
    pub fn of(now: impl Fn() -> Time + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time.
    pub fn now(&self) -> Time {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

/// Looks at the storage's clock before a difference, or an old answer, counts.
const SAMPLES: u32 = 5;

/// Wait after the first old answer; it doubles, up to 3 s in all. Replicas of an object store agree within that time or
/// have trouble that lasts.
const STALE_DELAY: Duration = Duration::from_millis(200);

/// One look at a blob just written.
struct Sample {
    before: Time,
    stored: Time,
    after: Time,
}

impl Sample {
    /// How far the storage's clock is from the span in which it was asked.
    fn skew(&self) -> Duration {
        self.stored.since(self.after).max(self.before.since(self.stored))
    }
}

/// The storage's time of blob `id`, which now holds `written` and was `old` before. This is "now" for every rule about
/// ages: it comes from the clock that stamped everything else.
///
/// # Errors
/// `Clock` when that clock differs from the host's by more than [`CLOCK_SKEW_MAX`]; `Unavailable` when the storage goes on
/// answering with what the blob was before, which says nothing of its clock.
pub(super) fn storage_time(
    store: &dyn BlobStore,
    clock: &Clock,
    id: &BlobId,
    written: &[u8],
    old: Option<&BlobMeta>,
    wrote_at: Time,
) -> Result<Time> {
    let mut skewed: Option<Sample> = None;
    let mut stale = 0;
    let mut delay = STALE_DELAY;
    for sample in 1..=SAMPLES {
        let bytes = match store.get(id) {
            Err(e) if e.is_not_found() && old.is_none() => None,
            other => Some(other?),
        };
        let stored = match store.meta(id) {
            Err(e) if e.is_not_found() && old.is_none() => None,
            other => Some(other?.modified),
        };
        let answers_written = bytes.as_deref() == Some(written);
        let look = stored.map(|stored| Sample {
            before: wrote_at,
            stored: stored.into(),
            after: clock.now(),
        });
        match look {
            Some(look) if answers_written && look.skew() <= CLOCK_SKEW_MAX => return Ok(look.stored),
            Some(look) if answers_written && stored != old.map(|old| old.modified) => skewed = Some(look),
            _ => {
                stale += 1;
                if sample < SAMPLES {
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "replicas of an object store agree in their own time and send no signal"
                    )]
                    std::thread::sleep(delay);
                    delay *= 2;
                }
            }
        }
    }
    let place = store.place();
    let (kind, what) = match skewed {
        Some(sample) => (
            Kind::Clock,
            format!(
                "the clock of this host ({}) and that of {place} ({}) differ by {} s, more than {} s, in each of {} looks; set the clock right: maintenance compares the two to tell what is old",
                sample.after,
                sample.stored,
                sample.skew().as_secs(),
                CLOCK_SKEW_MAX.as_secs(),
                SAMPLES - stale,
            ),
        ),
        None => (
            Kind::Unavailable,
            format!(
                "{place} answered {stale} times with the version of {id} from before it was written: old answers, not a wrong clock; try again when its replicas agree"
            ),
        ),
    };
    Err(RepoError::new(kind, what))
}
