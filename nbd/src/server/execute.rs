//! Carrying out a request: at once where that needs no wait, else on a thread that may wait.

use super::connection::{Conn, refusal};
use super::outbox::{Body, Reply};
use crate::error::Errno;
use crate::export::Export;
use crate::transmit::{Command, Encoder, Request, StatusList, Style, parse_payload};
use blockio::{BlockError, BlockSink, BlockSource, CHUNK_SIZE, Extent, ExtentKind, Kind, Op};
use std::sync::atomic::Ordering;
use tracing::warn;

/// Zeros shorter than this are sent as data: a head costs more than they do.
const HOLE_MIN: u64 = 4 << 10;

/// A BLOCK_STATUS looks at this much of a volume at a time, and stops when its list is full.
const STATUS_STEP: u64 = 1 << 30;

/// Lists used again for every request.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    extents: Vec<(Extent, ExtentKind)>,
    runs: Vec<Run>,
}

/// A part of a read that is answered in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    extent: Extent,
    zero: bool,
}

/// Answers `request` into `replies` if that needs no wait. Else `false`, and nothing has happened.
pub(super) fn now(
    conn: &Conn,
    request: &Request,
    payload: Option<&[u8]>,
    charge: u64,
    replies: &mut Vec<Reply>,
    scratch: &mut Scratch,
) -> bool {
    let export = &conn.ticket.export;
    match request.command {
        Command::Read { whole } => Read::new(conn, request, whole, charge).run(Wait::Never, replies, scratch),
        Command::BlockStatus { one, payload: listed } => {
            let listed = listed.then(|| payload.unwrap_or_default());
            replies.push(status(conn, request, one, listed, charge, scratch));
            true
        }
        Command::Cache => {
            export.source.prefetch(request.extent);
            replies.push(done(conn, request, charge));
            true
        }
        Command::Write | Command::Trim | Command::WriteZeroes { .. } | Command::Flush => {
            let Some(sink) = &export.sink else {
                replies.push(without_sink(conn, request, charge));
                return true;
            };
            let nothing = request.extent.is_empty() && request.command != Command::Flush && !request.fua;
            if !nothing && !sink.is_prompt() {
                return false;
            }
            replies.push(change(conn, request, payload, charge, &**sink));
            true
        }
    }
}

/// Answers `request` into `replies`, or sends parts of the answer already.
pub(super) fn wait(conn: &Conn, request: &Request, payload: Option<&[u8]>, charge: u64, replies: &mut Vec<Reply>) {
    if let Command::Read { whole } = request.command {
        let mut scratch = Scratch::default();
        Read::new(conn, request, whole, charge).run(Wait::AsNeeded, replies, &mut scratch);
        return;
    }
    replies.push(match &conn.ticket.export.sink {
        Some(sink) => change(conn, request, payload, charge, &**sink),
        None => without_sink(conn, request, charge),
    });
}

fn encoder(conn: &Conn, request: &Request) -> Encoder {
    Encoder {
        style: conn.session.style,
        cookie: request.cookie,
        offset: request.extent.offset,
    }
}

fn done(conn: &Conn, request: &Request, charge: u64) -> Reply {
    Reply::new(encoder(conn, request).done(false), Body::None, Some(charge))
}

/// Without a sink a FLUSH has nothing to do, and everything else was refused when it was decoded.
fn without_sink(conn: &Conn, request: &Request, charge: u64) -> Reply {
    if request.command == Command::Flush {
        return done(conn, request, charge);
    }
    refusal(
        &conn.session,
        request.cookie,
        request.extent.offset,
        Errno::Perm,
        "this export is read-only",
        charge,
    )
}

/// Counts a failure of the volume, tells the operator now and then, and finds the number for the client.
fn failed(export: &Export, error: &BlockError) -> (Errno, &'static str) {
    let count = export.counters.failures.fetch_add(1, Ordering::Relaxed) + 1;
    // A client that tries again and again must not fill the log.
    if count.is_power_of_two() {
        warn!(count, error = %chain(error), "a request failed on its volume");
    }
    Errno::of(error)
}

fn chain(error: &BlockError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn change(conn: &Conn, request: &Request, payload: Option<&[u8]>, charge: u64, sink: &dyn BlockSink) -> Reply {
    let extent = request.extent;
    let changed = match request.command {
        _ if extent.is_empty() && request.command != Command::Flush => Ok(()),
        Command::Write => sink.write_at(extent.offset, payload.unwrap_or_default()),
        Command::Trim | Command::WriteZeroes { no_hole: false, .. } => sink.discard(extent),
        Command::WriteZeroes { no_hole: true, .. } => sink.write_zeroes(extent),
        _ => Ok(()),
    };
    let durable = request.fua || request.command == Command::Flush;
    let changed = changed.and_then(|()| if durable { sink.flush() } else { Ok(()) });
    match changed {
        Ok(()) => done(conn, request, charge),
        Err(error) => {
            let (errno, text) = failed(&conn.ticket.export, &error);
            refusal(&conn.session, request.cookie, extent.offset, errno, text, charge)
        }
    }
}

fn status(
    conn: &Conn,
    request: &Request,
    one: bool,
    listed: Option<&[u8]>,
    charge: u64,
    scratch: &mut Scratch,
) -> Reply {
    let refused = |errno, text| {
        refusal(
            &conn.session,
            request.cookie,
            request.extent.offset,
            errno,
            text,
            charge,
        )
    };
    let extent = match listed {
        None => request.extent,
        Some(payload) => match parse_payload(&conn.session, request.extent.offset, payload) {
            Ok(extent) => extent,
            Err((errno, text)) => return refused(errno, text),
        },
    };
    let mut list = StatusList::new(conn.session.style, one);
    match fill(&*conn.ticket.export.source, extent, &mut list, &mut scratch.extents) {
        Ok(()) => {}
        // What is known so far is a good answer.
        Err(_) if !list.is_empty() => {}
        Err(error) => {
            let (errno, text) = failed(&conn.ticket.export, &error);
            return refused(errno, text);
        }
    }
    let body = list.encode();
    Reply::new(
        encoder(conn, request).status(body.len()),
        Body::Bytes(body),
        Some(charge),
    )
}

/// What the source says of `extent`, until the list is full.
fn fill(
    source: &dyn BlockSource,
    extent: Extent,
    list: &mut StatusList,
    extents: &mut Vec<(Extent, ExtentKind)>,
) -> Result<(), BlockError> {
    let mut at = extent.offset;
    while at < extent.end() {
        let step = Extent::between(at, extent.end().min(at.saturating_add(STATUS_STEP)));
        extents.clear();
        source.extents(step, extents)?;
        for (part, kind) in extents
            .iter()
            .filter_map(|(part, kind)| Some((part.clip(step)?, *kind)))
        {
            if part.offset != at {
                return Err(gaps(step));
            }
            if !list.push(part.len, kind) {
                return Ok(());
            }
            at = part.end();
        }
        if at != step.end() {
            return Err(gaps(step));
        }
    }
    Ok(())
}

fn gaps(step: Extent) -> BlockError {
    BlockError::new(
        Op::Map,
        Kind::InvalidInput("the source left gaps between its extents".to_owned()),
    )
    .at(step)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    Never,
    AsNeeded,
}

/// A READ being answered.
struct Read<'a> {
    conn: &'a Conn,
    source: &'a dyn BlockSource,
    encoder: Encoder,
    extent: Extent,
    /// All data behind one head.
    whole: bool,
    charge: u64,
}

impl<'a> Read<'a> {
    fn new(conn: &'a Conn, request: &Request, whole: bool, charge: u64) -> Self {
        Self {
            conn,
            source: &*conn.ticket.export.source,
            encoder: encoder(conn, request),
            extent: request.extent,
            whole: whole || conn.session.style == Style::Simple,
            charge,
        }
    }

    /// `false` when it would have had to wait and must not; `replies` is then as it was.
    fn run(&self, wait: Wait, replies: &mut Vec<Reply>, scratch: &mut Scratch) -> bool {
        if self.extent.is_empty() {
            replies.push(Reply::new(self.encoder.done(true), Body::None, Some(self.charge)));
            return true;
        }
        let before = replies.len();
        let read = if self.whole {
            self.in_one(wait, replies)
        } else {
            self.in_chunks(wait, replies, scratch)
        };
        match read {
            Ok(true) => {}
            Ok(false) => {
                replies.truncate(before);
                return false;
            }
            Err((at, error)) => {
                let (errno, text) = failed(&self.conn.ticket.export, &error);
                // In one piece, nothing of it is out yet. In chunks, those before stand.
                if self.whole {
                    replies.truncate(before);
                }
                let at = (!self.whole).then_some(at);
                let (head, body) = self.encoder.error(errno, text, at);
                replies.push(Reply::new(head, Body::Bytes(body), Some(self.charge)));
            }
        }
        true
    }

    fn in_one(&self, wait: Wait, replies: &mut Vec<Reply>) -> Result<bool, (u64, BlockError)> {
        let len = u32::try_from(self.extent.len).expect("at most 32 MiB");
        let mut head = Some(self.encoder.data(self.extent.offset, len, true));
        let mut at = self.extent.offset;
        while at < self.extent.end() {
            let Some(body) = self.piece(wait, Extent::between(at, self.extent.end()))? else {
                return Ok(false);
            };
            at += body.1;
            let last = at == self.extent.end();
            let head = head.take().unwrap_or(crate::transmit::Head::EMPTY);
            replies.push(Reply::new(head, body.0, last.then_some(self.charge)));
        }
        Ok(true)
    }

    fn in_chunks(
        &self,
        wait: Wait,
        replies: &mut Vec<Reply>,
        scratch: &mut Scratch,
    ) -> Result<bool, (u64, BlockError)> {
        runs(self.source, self.extent, scratch);
        for run in &scratch.runs {
            let mut at = run.extent.offset;
            while at < run.extent.end() {
                let rest = Extent::between(at, run.extent.end());
                let (head, body, len) = if run.zero {
                    let last = rest.end() == self.extent.end();
                    let len = u32::try_from(rest.len).expect("at most 32 MiB");
                    (self.encoder.hole(at, len, last), Body::None, rest.len)
                } else {
                    let Some((body, len)) = self.piece(wait, rest)? else {
                        return Ok(false);
                    };
                    let last = at + len == self.extent.end();
                    let short = u32::try_from(len).expect("at most 1 MiB");
                    (self.encoder.data(at, short, last), body, len)
                };
                at += len;
                let last = at == self.extent.end();
                replies.push(Reply::new(head, body, last.then_some(self.charge)));
                if wait == Wait::AsNeeded && !last {
                    // Out with it while the next piece is fetched.
                    self.conn.outbox.push(replies);
                }
            }
        }
        Ok(true)
    }

    /// The first bytes of `rest`, up to the end of their chunk, and how many.
    fn piece(&self, wait: Wait, rest: Extent) -> Result<Option<(Body, u64)>, (u64, BlockError)> {
        let chunk_end = (rest.offset / CHUNK_SIZE + 1).saturating_mul(CHUNK_SIZE);
        let piece = Extent::between(rest.offset, rest.end().min(chunk_end));
        if let Some(lent) = self.source.lend(piece) {
            let len = lent.len() as u64;
            if len > 0 && len <= piece.len {
                return Ok(Some((Body::Lent(lent), len)));
            }
        }
        let mut buffer = self.conn.buffers.take(piece.bytes());
        let read = match wait {
            Wait::Never => self.source.try_read_at(piece.offset, &mut buffer),
            Wait::AsNeeded => self.source.read_at(piece.offset, &mut buffer).map(|()| true),
        };
        match read {
            Ok(true) => Ok(Some((Body::Buffer(buffer), piece.len))),
            Ok(false) => Ok(None),
            Err(error) => Err((piece.offset, error)),
        }
    }
}

/// Cuts `extent` into runs of data and of zeros; zeros that are short go with the data beside them.
fn runs(source: &dyn BlockSource, extent: Extent, scratch: &mut Scratch) {
    let Scratch { extents, runs } = scratch;
    extents.clear();
    runs.clear();
    // Where nothing is known, everything may be data.
    if source.extents(extent, extents).is_err() {
        extents.clear();
    }
    let mut at = extent.offset;
    let mut push = |end: u64, zero: bool| {
        let run = Extent::between(at, end);
        at = end;
        match runs.last_mut() {
            Some(last) if last.zero == zero => last.extent = Extent::between(last.extent.offset, end),
            _ => runs.push(Run { extent: run, zero }),
        }
    };
    let mut known = extent.offset;
    let mut zeros: Option<Extent> = None;
    for (part, kind) in extents
        .iter()
        .filter_map(|(part, kind)| Some((part.clip(extent)?, *kind)))
    {
        if part.offset != known {
            break;
        }
        known = part.end();
        match (kind, &mut zeros) {
            (ExtentKind::Data, zeros) => {
                if let Some(run) = zeros.take() {
                    push(run.end(), run.len >= HOLE_MIN);
                }
                push(part.end(), false);
            }
            (_, Some(run)) => *run = Extent::between(run.offset, part.end()),
            (_, zeros) => *zeros = Some(part),
        }
    }
    if let Some(run) = zeros {
        push(run.end(), run.len >= HOLE_MIN);
    }
    if known < extent.end() {
        push(extent.end(), false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockio::Geometry;
    use proptest::prelude::*;

    /// A source that says what it is told to say.
    struct Says(Vec<(Extent, ExtentKind)>);

    impl BlockSource for Says {
        fn geometry(&self) -> Geometry {
            Geometry::of_bytes(1 << 30)
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), BlockError> {
            Ok(())
        }

        fn extents(&self, _: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
            out.extend(&self.0);
            Ok(())
        }
    }

    fn cut(lens: &[(u64, ExtentKind)], extent: Extent) -> Vec<(u64, bool)> {
        let mut at = 0;
        let said = lens.iter().map(|(len, kind)| {
            at += len;
            (Extent::between(at - len, at), *kind)
        });
        let mut scratch = Scratch::default();
        runs(&Says(said.collect()), extent, &mut scratch);
        scratch.runs.iter().map(|run| (run.extent.len, run.zero)).collect()
    }

    #[test]
    fn short_zeros_are_data() {
        use ExtentKind::{Data, Hole, Zero};
        let all = Extent { offset: 0, len: 20000 };
        assert_eq!(cut(&[(4096, Hole), (15904, Data)], all), [(4096, true), (15904, false)]);
        assert_eq!(cut(&[(4095, Hole), (15905, Data)], all), [(20000, false)]);
        assert_eq!(
            cut(&[(2048, Hole), (2048, Zero), (15904, Data)], all),
            [(4096, true), (15904, false)]
        );
        assert_eq!(cut(&[(1000, Data), (512, Hole), (18488, Data)], all), [(20000, false)]);
        assert_eq!(cut(&[], all), [(20000, false)], "nothing known is data");
        assert_eq!(
            cut(&[(10000, Hole)], all),
            [(10000, true), (10000, false)],
            "what is not said is data"
        );
    }

    proptest! {
        /// Runs cover the extent in order, and no byte that may be data is in a run of zeros.
        #[test]
        fn runs_cover_and_zeros_are_zero(
            lens in prop::collection::vec((1u64..9000, 0u8..3), 0..20),
            offset in 0u64..5000,
            len in 1u64..60000,
        ) {
            let kinds = [ExtentKind::Data, ExtentKind::Zero, ExtentKind::Hole];
            let lens: Vec<_> = lens.into_iter().map(|(len, kind)| (len, kinds[usize::from(kind)])).collect();
            let extent = Extent { offset, len };
            let mut at = offset;
            for (len, zero) in cut(&lens, extent) {
                if zero {
                    let mut start = 0;
                    for (part, kind) in &lens {
                        let part = Extent::between(start, start + part);
                        start = part.end();
                        let run = Extent { offset: at, len };
                        prop_assert!(*kind != ExtentKind::Data || part.clip(run).is_none());
                    }
                    prop_assert!(len >= HOLE_MIN);
                }
                at += len;
            }
            prop_assert_eq!(at, extent.end());
        }
    }
}
