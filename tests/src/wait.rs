//! Waiting for a condition with a deadline.

use std::time::{Duration, Instant};

use crate::{Failure, Result};

/// Time between two looks. Short beside anything that is worth waiting for, long enough to leave the processor alone.
const INTERVAL: Duration = Duration::from_millis(10);

/// Looks until `condition` holds.
///
/// # Errors
/// Names `what` when `deadline` has passed and it never held.
pub fn wait_for(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    wait_for_some(what, deadline, || condition().then_some(()))
}

/// Looks until `condition` gives a value, and returns it.
///
/// # Errors
/// Names `what` when `deadline` has passed without a value.
pub fn wait_for_some<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if start.elapsed() >= deadline {
            return Err(Failure::new(format!("waited {} s for {what}", deadline.as_secs_f32())));
        }
        pause();
    }
}

fn pause() {
    sleep_until(Instant::now() + INTERVAL);
}

/// Returns at `at`, or at once when that has passed: for those whose work is to make others wait, such as a slow network.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that sleeps: between two looks at a condition, and to be slow on purpose"
)]
pub fn sleep_until(at: Instant) {
    let left = at.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        std::thread::sleep(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_looked_at_until_it_holds() {
        let mut looks = 0;
        let found = wait_for_some("the third look", Duration::from_secs(60), || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(found.unwrap(), 3);
    }

    #[test]
    fn a_deadline_names_what_did_not_come() {
        let failure = wait_for("rain", Duration::ZERO, || false).unwrap_err();
        assert_eq!(failure.to_string(), "waited 0 s for rain");
    }
}
