//! Readers that go front to back: who they are, and what they will want next.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Readers followed at once. Copying programs have four connections, each at a place of its own; as many again for others.
const STREAMS_MAX: usize = 8;

/// Pieces a request may be before or behind the one its reader asked for last: 16 requests of one piece are in flight, and
/// arrive in any order.
const REACH: usize = 16;

/// Finds sequential readers. Many threads tell it what is read.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Pieces sent for ahead of a reader at most.
    window_max: usize,
    count: usize,
    /// The piece noted last: most requests are for the same piece as the one before.
    last: AtomicUsize,
    streams: Mutex<Vec<Stream>>,
}

/// A reader. The one used last is the first of its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stream {
    /// The furthest piece it asked for.
    at: usize,
    /// Pieces ahead of it that are wanted.
    window: usize,
    /// The first piece that was not sent for.
    sent: usize,
}

impl Ahead {
    /// For a volume of `count` pieces, of which `window_max` may be sent for ahead of each reader.
    pub(super) fn new(window_max: usize, count: usize) -> Self {
        Self {
            window_max,
            count,
            last: AtomicUsize::new(usize::MAX),
            streams: Mutex::default(),
        }
    }

    /// Piece `number` is being read. Returns the pieces to send for.
    ///
    /// The window doubles with every piece its reader goes on by, and is filled again when half of it is used up, so that what
    /// is sent for comes in runs that one read of a pack can serve.
    pub(super) fn note(&self, number: usize) -> Range<usize> {
        if self.window_max == 0 || self.last.swap(number, Ordering::Relaxed) == number {
            return 0..0;
        }
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let near = |stream: &Stream| number + REACH >= stream.at && number <= stream.at + REACH;
        let Some(found) = streams.iter().position(near) else {
            streams.truncate(STREAMS_MAX - 1);
            let stream = Stream {
                at: number,
                window: 0,
                sent: number + 1,
            };
            streams.insert(0, stream);
            return 0..0;
        };
        streams[..=found].rotate_right(1);
        let stream = &mut streams[0];
        if number <= stream.at {
            return 0..0;
        }
        let by = number - stream.at;
        stream.at = number;
        stream.window = (stream.window.max(1) << by.min(5)).min(self.window_max);
        let from = stream.sent.max(number + 1);
        let to = (number + 1 + stream.window).min(self.count);
        let is_due = from.saturating_sub(number + 1) <= stream.window / 2;
        if !is_due || from >= to {
            return 0..0;
        }
        stream.sent = to;
        from..to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent for when these pieces are read.
    #[track_caller]
    fn check(window: usize, read: &[usize], expect: &[Range<usize>]) {
        let ahead = Ahead::new(window, 1000);
        let sent: Vec<_> = read.iter().map(|number| ahead.note(*number)).collect();
        let sent: Vec<_> = sent.into_iter().filter(|range| !range.is_empty()).collect();
        assert_eq!(sent, expect);
    }

    #[test]
    fn a_reader_that_goes_on_gets_more_and_more() {
        check(8, &[5, 6, 7, 8, 9, 10, 11, 12, 13], &[7..9, 9..12, 12..17, 17..21]);
        check(8, &[5, 5, 5], &[]);
        check(0, &[5, 6, 7], &[]);
    }

    #[test]
    fn places_at_random_and_backwards_get_nothing() {
        check(8, &[5, 900, 100, 400, 700, 50], &[]);
        check(8, &[50, 49, 48, 47, 46], &[]);
    }

    #[test]
    fn nothing_is_sent_for_behind_the_end() {
        check(8, &[990, 991, 992, 993, 994], &[992..994, 994..997, 997..1000]);
    }

    #[test]
    fn four_readers_at_once_are_told_apart() {
        let ahead = Ahead::new(4, 1000);
        let mut sent = vec![0; 1000];
        for step in 0..50 {
            for reader in 0..4 {
                for number in ahead.note(reader * 250 + step) {
                    sent[number] += 1;
                }
            }
        }
        assert!(sent.iter().all(|times| *times <= 1), "nothing is sent for twice");
        for reader in 0..4 {
            assert!((2..50).all(|step| sent[reader * 250 + step] == 1));
        }
    }

    #[test]
    fn requests_out_of_order_are_one_reader() {
        let ahead = Ahead::new(8, 1000);
        let mut sent = 0;
        for block in 0..10 {
            for number in [3, 1, 0, 2] {
                sent += ahead.note(block * 4 + number).len();
            }
        }
        assert!((30..=48).contains(&sent), "{sent}");
    }
}
