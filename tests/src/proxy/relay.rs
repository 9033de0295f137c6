//! One connection through the proxy. Four threads: requests are read by one and delivered by another, and so are answers.

use std::collections::HashMap;
use std::io::{self, BufReader, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use super::http::{self, Body, Framing, Head};
use super::line::{Ending, Line, Travel};
use super::{Fault, Op, Record, Shared, lock};

/// How often an idle connection is asked whether the server has closed it.
const IDLE_LOOK: Duration = Duration::from_millis(100);

/// Answers to one list question that are remembered. An old list is any of them.
const ANSWERS_MAX: usize = 32;

/// Bodies of answers to lists, by question, oldest first.
#[derive(Debug, Default)]
pub(super) struct Lists(HashMap<String, Vec<Vec<u8>>>);

/// The parts of a request that decide what happens.
struct Request {
    method: String,
    target: String,
    op: Op,
    name: String,
    ranged: bool,
}

/// What the answering side is to do next.
struct Expected {
    request: Request,
    sent: u64,
    fault: Option<Fault>,
    received: Arc<AtomicU64>,
    shared: Arc<Shared>,
}

impl Expected {
    fn new(shared: &Arc<Shared>, request: Request, sent: u64, fault: Option<Fault>) -> Self {
        let in_flight = shared.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        shared.in_flight_max.fetch_max(in_flight, Ordering::SeqCst);
        Self {
            request,
            sent,
            fault,
            received: Arc::default(),
            shared: Arc::clone(shared),
        }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.shared.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A connection: both sockets, both ways.
struct Relay {
    shared: Arc<Shared>,
    client: Arc<TcpStream>,
    server: Arc<TcpStream>,
    up: Line,
    down: Line,
}

/// Serves one connection of a client to its end.
pub(super) fn serve(shared: &Arc<Shared>, client: TcpStream, number: u64) {
    // A server that does not listen looks like this one, which closes at once.
    let Ok(server) = TcpStream::connect(&shared.upstream) else {
        return;
    };
    // Pieces go out as they are; without this, small ones wait for acknowledgements.
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let relay = Relay {
        shared: Arc::clone(shared),
        client: Arc::new(client),
        server: Arc::new(server),
        up: Line::default(),
        down: Line::default(),
    };
    let sockets = [Arc::clone(&relay.client), Arc::clone(&relay.server)];
    lock(&shared.open).insert(number, sockets);
    thread::scope(|scope| {
        let relay = &relay;
        scope.spawn(|| relay.up.deliver(&relay.server, &relay.client));
        scope.spawn(|| relay.down.deliver(&relay.client, &relay.server));
        let (expect, expected) = mpsc::channel();
        scope.spawn(move || {
            let ending = relay.answers(&expected).unwrap_or(Ending::Close);
            relay.end_down(ending);
        });
        // Errors of sockets end the connection, as they would without a proxy.
        let _ = relay.requests(&expect);
        drop(expect);
        relay.up.end(Ending::Finish, relay.one_way());
    });
    lock(&shared.open).remove(&number);
}

impl Relay {
    /// Reads requests until the client has no more.
    fn requests(&self, expect: &Sender<Expected>) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(http::PIECE, &*self.client);
        while let Some(head) = Head::read(&mut reader)? {
            self.deliver_late();
            let request = Request::of(&head);
            let body = head.request_body()?;
            let shared = &self.shared;
            let fault = shared.decide(request.op, &request.name);
            if fault == Some(Fault::ResetBefore) {
                self.record(&Expected::new(shared, request, 0, fault), 0);
                self.end_down(Ending::Reset);
                return Ok(());
            }
            if head.field("expect").is_some() {
                // The client waits for this before it sends the body; the one of the server is dropped.
                self.send_down(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let reaches_server = !matches!(fault, Some(Fault::Answer { .. } | Fault::Silence));
            let head_bytes = head.to_bytes();
            let mut copy = matches!(fault, Some(Fault::Again(_))).then(|| head_bytes.clone());
            if !reaches_server {
                let sent = http::pump(&mut reader, body, Framing::Removed, &mut |_| Ok(()))?;
                let _ = expect.send(Expected::new(shared, request, sent, fault)); // the other side has ended
                continue;
            }
            // The length is known before for all but chunked bodies, and the server may answer before it has read them.
            let sent = if let Body::Length(len) = body { len } else { 0 };
            let again = fault.clone();
            let _ = expect.send(Expected::new(shared, request, sent, fault)); // as above
            self.send_up(&head_bytes)?;
            http::pump(&mut reader, body, Framing::Kept, &mut |piece| {
                if let Some(copy) = &mut copy {
                    copy.extend_from_slice(piece);
                }
                self.send_up(piece)
            })?;
            if let (Some(copy), Some(Fault::Again(after))) = (copy, again) {
                let due = shared.seen.load(Ordering::SeqCst) + after;
                lock(&shared.again).push((due, copy));
            }
        }
        Ok(())
    }

    /// Gives the client its answers, in the order of its requests.
    fn answers(&self, expected: &Receiver<Expected>) -> io::Result<Ending> {
        let mut reader = BufReader::with_capacity(http::PIECE, &*self.server);
        loop {
            let next = match expected.recv_timeout(IDLE_LOOK) {
                Ok(next) => next,
                Err(RecvTimeoutError::Disconnected) => return Ok(Ending::Finish),
                Err(RecvTimeoutError::Timeout) if reader.buffer().is_empty() && self.server_is_gone() => {
                    return Ok(Ending::Close);
                }
                Err(RecvTimeoutError::Timeout) => continue,
            };
            match next.fault {
                Some(Fault::Answer { status, code }) => {
                    let body = error_body(code, &next.request);
                    let reason = if status == 503 { "Service Unavailable" } else { "Error" };
                    let head = format!(
                        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/xml\r\ncontent-length: {}\r\n\r\n",
                        body.len()
                    );
                    self.record(&next, status);
                    self.send_down(head.as_bytes())?;
                    let body = if next.request.method == "HEAD" { "" } else { &body };
                    self.give(&next, body.as_bytes())?;
                }
                Some(Fault::Silence) => {
                    self.record(&next, 0);
                    // Until the client gives up.
                    while expected.recv().is_ok() {}
                    return Ok(Ending::Close);
                }
                _ => {
                    if let Some(ending) = self.answer(&mut reader, &next)? {
                        return Ok(ending);
                    }
                }
            }
        }
    }

    /// Passes one answer of the server on, with what the fault makes of it. Returns how the connection is to end, if it is.
    fn answer(&self, reader: &mut BufReader<&TcpStream>, next: &Expected) -> io::Result<Option<Ending>> {
        let read = loop {
            match Head::read(reader) {
                Ok(Some(head)) if head.status() < 200 => {}
                other => break other,
            }
        };
        let Ok(Some(head)) = read else {
            self.record(next, 0);
            return Ok(Some(Ending::Close));
        };
        let status = head.status();
        let body = head.answer_body(&next.request.method)?;
        let fine = (200..300).contains(&status);
        let closes = body == Body::UntilClose
            || head
                .field("connection")
                .is_some_and(|it| it.eq_ignore_ascii_case("close"));
        let mut ending = None;
        self.record(next, status);
        match (&next.fault, body) {
            (Some(Fault::ResetAfter), _) => {
                http::pump(reader, body, Framing::Removed, &mut |_| Ok(()))?;
                ending = Some(Ending::Reset);
            }
            (Some(Fault::CutBody | Fault::ShortBody), Body::Length(len)) if fine && len > 0 => {
                // Half of it, so that what comes is never what was asked for.
                let short = len / 2;
                let cut = next.fault == Some(Fault::CutBody);
                let head = if cut { head } else { head.with_length(short) };
                self.send_down(&head.to_bytes())?;
                http::pump(reader, body, Framing::Removed, &mut |piece| {
                    let left = short - next.received.load(Ordering::SeqCst);
                    let part = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
                    self.give(next, &piece[..part])
                })?;
                ending = cut.then_some(Ending::Close);
            }
            _ if next.request.op == Op::List && fine => {
                let mut bytes = Vec::new();
                http::pump(reader, body, Framing::Removed, &mut |piece| {
                    bytes.extend_from_slice(piece);
                    Ok(())
                })?;
                let stale = next.fault == Some(Fault::StaleList);
                let bytes = lock(&self.shared.lists).answer(&next.request.target, bytes, stale);
                self.send_down(&head.with_length(bytes.len() as u64).to_bytes())?;
                for piece in bytes.chunks(http::PIECE) {
                    self.give(next, piece)?;
                }
            }
            _ => {
                self.send_down(&head.to_bytes())?;
                http::pump(reader, body, Framing::Kept, &mut |piece| self.give(next, piece))?;
            }
        }
        Ok(ending.or_else(|| closes.then_some(Ending::Close)))
    }

    /// Sends what is to be delivered once more and is due, on a connection of its own, and waits for its answer, so that it has
    /// happened when the next request comes.
    fn deliver_late(&self) {
        let seen = self.shared.seen.fetch_add(1, Ordering::SeqCst);
        let due: Vec<(u64, Vec<u8>)> = lock(&self.shared.again).extract_if(.., |(at, _)| *at <= seen).collect();
        for (_, bytes) in due {
            // Nobody waits for the outcome of a request that was repeated on the way.
            let _ = self.deliver_alone(&bytes);
        }
    }

    fn deliver_alone(&self, request: &[u8]) -> io::Result<()> {
        let mut server = TcpStream::connect(&self.shared.upstream)?;
        server.write_all(request)?;
        let mut reader = BufReader::new(&server);
        loop {
            match Head::read(&mut reader)? {
                Some(head) if head.status() < 200 => {}
                Some(_) | None => return Ok(()),
            }
        }
    }

    /// Keeps what is known of a request when its answer begins: whoever has the answer finds the record.
    fn record(&self, next: &Expected, status: u16) {
        let record = Record {
            op: next.request.op,
            name: next.request.name.clone(),
            ranged: next.request.ranged,
            status,
            sent: next.sent,
            received: 0,
            fault: next.fault.clone(),
        };
        lock(&self.shared.records).push((record, Arc::clone(&next.received)));
    }

    /// Sends a piece of the body of an answer.
    fn give(&self, next: &Expected, piece: &[u8]) -> io::Result<()> {
        next.received.fetch_add(piece.len() as u64, Ordering::SeqCst);
        self.send_down(piece)
    }

    fn one_way(&self) -> Duration {
        lock(&self.shared.weather).latency / 2
    }

    fn send_up(&self, bytes: &[u8]) -> io::Result<()> {
        self.send(&self.up, &self.shared.up, bytes)
    }

    fn send_down(&self, bytes: &[u8]) -> io::Result<()> {
        self.send(&self.down, &self.shared.down, bytes)
    }

    fn send(&self, line: &Line, link: &super::line::Link, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let travel = {
            let weather = lock(&self.shared.weather);
            Travel {
                link,
                latency: weather.latency / 2,
                bandwidth: weather.bandwidth,
                window: weather.window,
            }
        };
        line.send(bytes, travel)
    }

    fn end_down(&self, ending: Ending) {
        self.down.end(ending, self.one_way());
    }

    /// Whether the server has closed the connection while nothing was asked.
    fn server_is_gone(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let seen = socket2::SockRef::from(&*self.server).recv_with_flags(&mut byte, flags);
        match seen {
            Ok(len) => len == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

/// The XML that S3 sends with an error.
fn error_body(code: &str, request: &Request) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>Answered by the test proxy.</Message>\
         <Resource>{}</Resource><RequestId>0</RequestId></Error>",
        request.name
    )
}

impl Request {
    /// Understands the first line as a path-style S3 request: `METHOD /bucket/key?query`.
    fn of(head: &Head) -> Self {
        let mut words = head.first.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().unwrap_or_default().to_owned();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let key = path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
        let asks = |name: &str| query.split('&').any(|part| part.split('=').next() == Some(name));
        let op = match method.as_str() {
            "GET"
                if key.is_empty() && (query.is_empty() || asks("list-type") || asks("prefix") || asks("delimiter")) =>
            {
                Op::List
            }
            "GET" if !key.is_empty() => Op::Get,
            "HEAD" if !key.is_empty() => Op::Head,
            "PUT" if !key.is_empty() => Op::Put,
            "DELETE" if !key.is_empty() => Op::Delete,
            "POST" if asks("delete") => Op::Delete,
            _ => Op::Other,
        };
        let name = if key.is_empty() { query } else { key }.to_owned();
        Self {
            method,
            op,
            name,
            ranged: head.field("range").is_some(),
            target,
        }
    }
}

impl Lists {
    /// What the client gets: the true answer, which is remembered, or the oldest one that differs from it.
    fn answer(&mut self, question: &str, truth: Vec<u8>, stale: bool) -> Vec<u8> {
        let answers = self.0.entry(question.to_owned()).or_default();
        let old = answers.iter().find(|old| **old != truth).cloned();
        if answers.len() < ANSWERS_MAX && answers.last() != Some(&truth) {
            answers.push(truth.clone());
        }
        old.filter(|_| stale).unwrap_or(truth)
    }
}
