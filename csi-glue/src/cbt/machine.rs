//! The protocol as a state machine. It does no IO and reads no clock: its driver opens streams, hands messages and endings in
//! together with the time since it began, and does what it is told.

use std::time::Duration;

use blockio::{Extent, Growth};
use tonic::Code;

use super::limits::{BLOCK_MIN, Limits, TUPLES_SPARE};
use super::pace::Pace;
use super::page::{Page, Tuple};
use super::refusal::{Refusal, Violation};
use super::token::Need;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Which blocks hold data.
    Allocated,
    /// Which blocks differ from the base.
    Delta,
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wait, get a token, open a stream.
    Open {
        /// The stream's `starting_offset`.
        offset: u64,
        /// Which token it takes.
        token: Need,
        /// How long to wait before.
        wait: Duration,
    },
    /// Nothing: the answer is complete.
    Done(Outcome),
}

/// How a stream ended, or did not begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Status OK.
    Clean,
    /// Another status.
    Status(Code, String),
    /// The connection was not made or broke.
    Connection(String),
    /// No block for [`Limits::silence_max`].
    Silence,
}

/// A complete answer; the blocks are in the map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes of the volume as the service sees it; unknown when no message came.
    pub capacity: Option<u64>,
    /// Streams opened, confirmations included.
    pub streams: u64,
    /// Messages received.
    pub messages: u64,
    /// Blocks received.
    pub tuples: u64,
    /// Streams that failed and were opened again.
    pub retries: u64,
    /// Not one block was named. Drivers have bugs that look like this: look at the volume before you believe it.
    pub empty: bool,
}

/// Where the streams of one question stand.
#[derive(Clone, Debug)]
pub struct Machine {
    call: Call,
    limits: Limits,
    /// Blocks that fit in the volume, and some.
    tuples_max: u64,
    /// What must stay the same.
    style: Option<Style>,
    capacity: Option<u64>,
    /// Size of all blocks, where they have one.
    fixed: Option<u64>,
    /// End of the last block of all streams.
    reached: u64,
    stream: Stream,
    pace: Pace,
    /// A new token was asked for since a stream was last accepted.
    renewed: bool,
    /// When the last block came, or the stream was opened.
    heard: Duration,
    idle_messages: u64,
    outcome: Outcome,
}

/// The stream that is open.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// What was asked for.
    start: u64,
    /// End of its last block.
    end: Option<u64>,
    /// It was opened to see that nothing follows a clean end.
    confirms: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Fixed,
    Variable,
}

impl Style {
    fn number(self) -> u64 {
        match self {
            Self::Fixed => 1,
            Self::Variable => 2,
        }
    }
}

impl Machine {
    /// A question about a device of `size` bytes. `seed` makes the waits of many clients differ.
    pub fn new(call: Call, size: u64, limits: Limits, seed: u64) -> Self {
        Self {
            call,
            limits,
            tuples_max: size / BLOCK_MIN + TUPLES_SPARE,
            style: None,
            capacity: None,
            fixed: None,
            reached: 0,
            stream: Stream::default(),
            pace: Pace::new(seed),
            renewed: false,
            heard: Duration::ZERO,
            idle_messages: 0,
            outcome: Outcome::default(),
        }
    }

    /// What to do first.
    pub fn start(&mut self) -> Action {
        self.open(Need::Valid, Duration::ZERO)
    }

    /// What is known so far.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// The driver begins to open the stream it was told to.
    pub fn opening(&mut self, now: Duration) {
        self.heard = now;
    }

    /// When the driver ends the stream with [`End::Silence`], unless a message comes before.
    pub fn silent_at(&self) -> Duration {
        self.heard + self.limits.silence_max
    }

    /// A message of the open stream.
    ///
    /// # Errors
    /// [`Refusal::Broken`]; the stream is to be closed.
    pub fn message(&mut self, now: Duration, bytes: &[u8], map: &mut Growth<'_>) -> Result<(), Refusal> {
        self.outcome.messages += 1;
        self.renewed = false;
        let before = self.reached;
        let taken = self.take(bytes, map);
        map.know_up_to(self.capacity.map_or(0, |capacity| self.reached.min(capacity)));
        taken.map_err(Refusal::Broken)?;
        if self.reached > before {
            self.pace.progressed();
            self.heard = now;
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], map: &mut Growth<'_>) -> Result<(), Violation> {
        let page = Page::parse(bytes)?;
        if page.count == 0 {
            self.idle_messages += 1;
            if self.idle_messages > self.limits.idle_messages_max {
                return Err(Violation::IdleMessages(self.limits.idle_messages_max));
            }
        }
        let Some(facts) = self.check_facts(&page)? else {
            return Ok(());
        };
        for tuple in page.tuples() {
            self.tuple(tuple?, facts, map)?;
        }
        Ok(())
    }

    /// Style and capacity, the same in all messages of all streams. A message without blocks may leave them out.
    fn check_facts(&mut self, page: &Page<'_>) -> Result<Option<(Style, u64)>, Violation> {
        let capacity = u64::try_from(page.capacity).map_err(|_| Violation::Capacity(page.capacity))?;
        let style = match page.style {
            0 if page.count == 0 => None,
            1 => Some(Style::Fixed),
            2 => Some(Style::Variable),
            other => return Err(Violation::Style(other)),
        };
        if capacity == 0 && page.count > 0 {
            return Err(Violation::Capacity(0));
        }
        if let Some(is) = style {
            let was = *self.style.get_or_insert(is);
            if was != is {
                let (was, is) = (was.number(), is.number());
                return Err(Violation::StyleChanged { was, is });
            }
        }
        if capacity > 0 {
            let was = *self.capacity.get_or_insert(capacity);
            self.outcome.capacity = self.capacity;
            if was != capacity {
                return Err(Violation::CapacityChanged { was, is: capacity });
            }
        }
        Ok(style.filter(|_| page.count > 0).map(|style| (style, capacity)))
    }

    #[inline]
    fn tuple(&mut self, tuple: Tuple, (style, capacity): (Style, u64), map: &mut Growth<'_>) -> Result<(), Violation> {
        let index = self.outcome.tuples;
        let Tuple { offset, size } = tuple;
        let bad = Violation::Block { index, offset, size };
        let (Ok(offset), Ok(size)) = (u64::try_from(offset), u64::try_from(size)) else {
            return Err(bad);
        };
        let end = offset + size; // two numbers of 63 bits
        if size == 0 || i64::try_from(end).is_err() {
            return Err(bad);
        }
        match self.stream.end {
            Some(last) if offset < last => {
                return Err(Violation::Order {
                    index,
                    offset,
                    end: last,
                });
            }
            None if end <= self.stream.start => {
                let start = self.stream.start;
                return Err(Violation::BeforeStart { index, end, start });
            }
            _ => {}
        }
        let past_end = Violation::PastEnd {
            index,
            offset,
            size,
            capacity,
        };
        if offset >= capacity {
            return Err(past_end);
        }
        match style {
            Style::Variable if end > capacity => return Err(past_end),
            Style::Variable => {}
            // The last block may reach past the end, or be cut there.
            Style::Fixed => match self.fixed {
                Some(fixed) if fixed != size && !(size < fixed && end == capacity) => {
                    return Err(Violation::FixedSize { index, size, fixed });
                }
                Some(_) => {}
                None => self.fixed = Some(size),
            },
        }
        if index >= self.tuples_max {
            return Err(Violation::Blocks(self.tuples_max));
        }
        self.outcome.tuples += 1;
        self.stream.end = Some(end);
        self.reached = self.reached.max(end);
        let on_device = Extent::between(offset, end.min(map.size()));
        if !on_device.is_empty() {
            map.set_extent(on_device).expect("clipped to the size of the map");
        }
        Ok(())
    }

    /// The stream ended as told.
    ///
    /// # Errors
    /// A [`Refusal`] when there will be no complete answer.
    pub fn ended(&mut self, now: Duration, end: End, map: &mut Growth<'_>) -> Result<Action, Refusal> {
        match end {
            End::Clean => self.ended_cleanly(map),
            End::Status(code, text) => self.ended_with(now, code, text, map),
            End::Connection(text) => self.again(now, None, text),
            End::Silence => {
                let text = format!("no block for {} s", self.limits.silence_max.as_secs());
                self.again(now, None, text)
            }
        }
    }

    /// A clean end is believed when the end of the volume is reached, or when another stream, asked for what follows, ends
    /// cleanly too without a block.
    fn ended_cleanly(&mut self, map: &mut Growth<'_>) -> Result<Action, Refusal> {
        self.renewed = false;
        let at_end = self.capacity.is_some_and(|capacity| self.reached >= capacity);
        if at_end || (self.stream.confirms && self.stream.end.is_none()) {
            return Ok(self.done(map));
        }
        self.check_streams()?;
        let action = self.open(Need::Valid, Duration::ZERO);
        self.stream.confirms = true;
        Ok(action)
    }

    fn ended_with(&mut self, now: Duration, code: Code, text: String, map: &mut Growth<'_>) -> Result<Action, Refusal> {
        match code {
            Code::OutOfRange if self.capacity == Some(self.stream.start) => Ok(self.done(map)),
            Code::OutOfRange => Err(Refusal::OutOfRange {
                offset: self.stream.start,
                text,
            }),
            Code::NotFound if self.call == Call::Delta => Err(Refusal::BaseGone(text)),
            Code::NotFound => Err(Refusal::SnapshotGone(text)),
            Code::FailedPrecondition => Err(Refusal::TrackingOff(text)),
            Code::InvalidArgument => Err(Refusal::Rejected(text)),
            Code::PermissionDenied => Err(Refusal::Denied(text)),
            Code::Unimplemented => Err(Refusal::Unimplemented(text)),
            Code::Unauthenticated if self.renewed => Err(Refusal::Unauthenticated(text)),
            Code::Unauthenticated => {
                self.check_streams()?;
                self.renewed = true;
                self.outcome.retries += 1;
                let confirms = self.stream.confirms && self.stream.end.is_none();
                let action = self.open(Need::New, Duration::ZERO);
                self.stream.confirms = confirms;
                Ok(action)
            }
            // UNKNOWN is what a broken connection looks like, and a stream that ended without a status.
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Internal
            | Code::Cancelled
            | Code::Unknown
            | Code::Aborted
            | Code::ResourceExhausted => self.again(now, Some(code), text),
            Code::Ok | Code::AlreadyExists | Code::DataLoss => Err(Refusal::Other { code, text }),
        }
    }

    /// Opens the stream again where it ended, if there is budget left.
    fn again(&mut self, now: Duration, code: Option<Code>, text: String) -> Result<Action, Refusal> {
        self.check_streams()?;
        let Some(wait) = self.pace.failed(now, &self.limits) else {
            return Err(Refusal::Unavailable {
                call: self.call,
                code,
                text,
                failures: self.pace.failures(),
                lasted: self.pace.failing_for(now),
            });
        };
        self.outcome.retries += 1;
        let confirms = self.stream.confirms && self.stream.end.is_none();
        let action = self.open(Need::Valid, wait);
        self.stream.confirms = confirms;
        Ok(action)
    }

    /// A stream from the end of the last block on, not rounded: drivers number blocks from where they are asked to begin.
    fn open(&mut self, token: Need, wait: Duration) -> Action {
        let offset = self
            .capacity
            .map_or(self.reached, |capacity| self.reached.min(capacity));
        self.outcome.streams += 1;
        self.stream = Stream {
            start: offset,
            ..Stream::default()
        };
        Action::Open { offset, token, wait }
    }

    fn check_streams(&self) -> Result<(), Refusal> {
        match self.outcome.streams < self.limits.streams_max {
            true => Ok(()),
            false => Err(Refusal::Streams(self.limits.streams_max)),
        }
    }

    /// A device that is larger than the volume was when the snapshot was taken: what is past that nobody knows.
    fn done(&mut self, map: &mut Growth<'_>) -> Action {
        self.outcome.empty = self.outcome.tuples == 0;
        let told = self.capacity.unwrap_or(map.size());
        let untold = Extent::between(told, map.size());
        if !untold.is_empty() {
            map.set_extent(untold).expect("within the size of the map");
        }
        map.finish();
        Action::Done(self.outcome.clone())
    }
}

#[cfg(test)]
mod tests;
