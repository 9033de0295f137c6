//! Hydration while the repository does not answer: told once, asked again, for ever.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;

use super::{HydrateState, Shared, TICK};
use crate::lazy::Landed;

/// Without an answer for so long the repository is said to be waited for, while a fetch goes on: storage is asked again for minutes
/// before a fetch fails.
pub(super) const SILENCE: Duration = Duration::from_secs(10);

impl Shared {
    /// A fetch takes long. It goes on; and nothing is said of it while others end.
    pub(super) fn tell_of_silence(&self) {
        let mut inner = self.inner();
        if inner.state == HydrateState::Running && inner.heard_at.elapsed() >= SILENCE {
            let why = format!("no answer for {} s", SILENCE.as_secs());
            warn!(why, "hydration waits for the repository");
            inner.state = HydrateState::WaitingForRepository { why };
        }
    }

    /// The repository does not answer.
    pub(super) fn fall_out(&self, why: String) {
        let mut inner = self.inner();
        if inner.outage.is_some() || !inner.is_open() {
            return;
        }
        let delay = inner.delay;
        inner.delay = (delay * 2).min(self.options.retry_max);
        inner.outage = Some(Instant::now() + delay);
        // What else was sent for failed too, or will, and is not to be taken for a failure after this one. What is there stays.
        let is_there = |chunk| self.background.wait(chunk, Duration::ZERO) == Landed::Whole;
        for chunk in inner.plan.remove_ready(is_there) {
            inner.jobs -= 1;
            inner.under_way -= self.background.piece_bytes(chunk);
            inner.plan.try_again(chunk);
            self.background.let_go(chunk);
        }
        let is_new = inner.state == HydrateState::Running && delay == self.options.retry_min;
        inner.state = HydrateState::WaitingForRepository { why: why.clone() };
        drop(inner);
        if is_new {
            warn!(
                why,
                "the repository does not answer; hydration waits for it, and tries again for ever"
            );
        }
    }

    /// An outage has lasted as long as was waited for. Storage may try for minutes before it says that it is away, so it is asked on a
    /// thread that nobody waits for, and that holds nothing of the volume.
    pub(super) fn ask_again(self: &Arc<Self>) {
        if std::mem::replace(&mut self.inner().is_asking, true) {
            return;
        }
        let shared = Arc::downgrade(self);
        let asked = self.ask(move |answer| {
            if let Some(shared) = shared.upgrade() {
                shared.hear(answer);
            }
        });
        if let Err(why) = asked {
            self.hear(Err(why));
        }
    }

    /// Has `hear` told whether the repository answers, on a thread of its own.
    fn ask(&self, hear: impl FnOnce(Result<(), String>) + Send + 'static) -> Result<(), String> {
        let background = self.background.clone();
        let spawned = thread::Builder::new()
            .name("hydrate-ask".to_owned())
            .spawn(move || hear(background.reach()));
        spawned
            .map(drop)
            .map_err(|error| format!("no thread to ask the repository: {error}"))
    }

    /// Whether the repository answers now, asked in the same way, for one who cannot go on without; `None` at the end of hydration.
    pub(super) fn reach(&self) -> Option<Result<(), String>> {
        let (tell, told) = mpsc::channel();
        // Nobody waits for it any more when it cannot be sent.
        let asked = self.ask(move |answer| drop(tell.send(answer)));
        if let Err(why) = asked {
            return Some(Err(why));
        }
        loop {
            match told.recv_timeout(TICK) {
                Ok(answer) => return Some(answer),
                Err(RecvTimeoutError::Timeout) if self.is_over() => return None,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Some(Err("the thread that asked the repository died".to_owned()));
                }
            }
        }
    }

    /// What the repository answered, after an outage.
    fn hear(&self, answer: Result<(), String>) {
        let mut inner = self.inner();
        inner.is_asking = false;
        match answer {
            Ok(()) => {
                inner.outage = None;
                if inner.is_open() {
                    inner.state = HydrateState::Running;
                }
            }
            Err(why) => {
                let delay = inner.delay;
                inner.delay = (delay * 2).min(self.options.retry_max);
                inner.outage = Some(Instant::now() + delay);
                if inner.is_open() {
                    inner.state = HydrateState::WaitingForRepository { why };
                }
            }
        }
        drop(inner);
        self.changed.notify_all();
    }
}
