//! A bad network on loopback: an HTTP proxy in this process between a client and an S3 server, with the faults that storage
//! services and the way to them have.
//!
//! | module | what it is |
//! |---|---|
//! | `http` | heads and bodies of HTTP/1.1 messages |
//! | [`line`] | bytes on their way: latency, bandwidth, window |
//! | `relay` | one connection: requests there, answers back, faults between |
//! | [`tls`] | a front that speaks TLS, for clients that are to check certificates |
//!
//! What is hit follows from the seed and from how many requests of that rule came before, not from the clock.
//!
//! ```
//! use blockferry_tests::proxy::{Fault, Op, Proxy, Rule, Weather, When};
//!
//! // Every third PUT is answered "503 SlowDown", one request in a hundred ends with a reset connection.
//! let weather = Weather {
//!     rules: vec![
//!         Rule::new(Fault::slow_down(), &[Op::Put], When::Every(3)),
//!         Rule::new(Fault::ResetBefore, &[], When::Percent(1.0)),
//!     ],
//!     ..Weather::default()
//! };
//! let proxy = Proxy::start("127.0.0.1:9", 1, weather).unwrap();
//! assert!(proxy.endpoint().starts_with("http://127.0.0.1:"));
//! assert!(proxy.records().is_empty());
//! ```

mod http;
mod line;
mod relay;
pub mod tls;

use std::collections::HashMap;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use crate::volume::Random;
use crate::{Failure, Result};

/// What a request asks for, as an S3 server sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// Names in a bucket.
    List,
    /// An object or a range of it.
    Get,
    /// Length and time of an object.
    Head,
    /// Stores an object.
    Put,
    /// Removes an object, or several.
    Delete,
    /// Anything else: where a bucket is, its settings.
    Other,
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is reset; the server has not seen the request.
    ResetBefore,
    /// The server has done it; the connection is reset before the answer.
    ResetAfter,
    /// The body of the answer ends in the middle, and the connection with it.
    CutBody,
    /// The body of the answer is shorter than what the server sent, and its head says so too.
    ShortBody,
    /// The proxy answers instead of the server, which sees nothing.
    Answer {
        /// HTTP status.
        status: u16,
        /// `Code` of the XML error.
        code: &'static str,
    },
    /// A list is answered with what an earlier list with the same question was answered.
    StaleList,
    /// The server gets the request once more, after so many further requests; 0 is at once.
    Again(u64),
    /// No answer comes.
    Silence,
}

impl Fault {
    /// What S3 says to a client that asks too much.
    pub fn slow_down() -> Self {
        Self::Answer {
            status: 503,
            code: "SlowDown",
        }
    }

    /// What S3 says when something broke inside.
    pub fn internal_error() -> Self {
        Self::Answer {
            status: 500,
            code: "InternalError",
        }
    }
}

/// Which of the matching requests are hit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// All.
    Always,
    /// So many of a hundred, by the seed.
    Percent(f64),
    /// The n-th, the 2n-th and so on.
    Every(u64),
    /// The first n.
    First(u64),
}

/// A fault and what it happens to.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// What happens.
    pub fault: Fault,
    /// To these; to all when empty.
    pub ops: Vec<Op>,
    /// To objects whose last part of the name begins with this.
    pub name: &'static str,
    /// To these of them.
    pub when: When,
}

impl Rule {
    /// For objects of any name.
    pub fn new(fault: Fault, ops: &[Op], when: When) -> Self {
        Self {
            fault,
            ops: ops.to_vec(),
            name: "",
            when,
        }
    }
}

/// The state of the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Weather {
    /// What a round trip takes longer, half of it each way.
    pub latency: Duration,
    /// Bytes per second, each way, for all connections together.
    pub bandwidth: Option<u64>,
    /// Bytes that one connection has on its way within a round trip: what the buffers of TCP allow.
    pub window: u64,
    /// Faults; the first that hits counts.
    pub rules: Vec<Rule>,
}

impl Default for Weather {
    /// Fair: no latency, no limit, no faults.
    fn default() -> Self {
        Self {
            latency: Duration::ZERO,
            bandwidth: None,
            // The largest send buffer of Linux (net.ipv4.tcp_wmem).
            window: 4 << 20,
            rules: Vec::new(),
        }
    }
}

/// One request that came through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it asked for.
    pub op: Op,
    /// Name of the object after the bucket, as in the URL; for a list the query.
    pub name: String,
    /// Whether it asked for a part.
    pub ranged: bool,
    /// HTTP status of the answer; 0 when there was none.
    pub status: u16,
    /// Bytes of the body that came from the client.
    pub sent: u64,
    /// Bytes of the body that the client was given.
    pub received: u64,
    /// What was done to it.
    pub fault: Option<Fault>,
}

/// A running proxy. Ends, with its connections, when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

/// What the connections have in common.
#[derive(Debug)]
struct Shared {
    upstream: String,
    seed: u64,
    weather: Mutex<Weather>,
    /// Requests that matched each rule so far.
    matches: Mutex<Vec<u64>>,
    /// Each with the bytes its client has been given so far.
    records: Mutex<Vec<(Record, Arc<AtomicU64>)>>,
    up: line::Link,
    down: line::Link,
    lists: Mutex<relay::Lists>,
    /// Requests to be delivered once more, each with the number of requests that must have passed.
    again: Mutex<Vec<(u64, Vec<u8>)>>,
    seen: AtomicU64,
    in_flight: AtomicU64,
    in_flight_max: AtomicU64,
    open: Mutex<HashMap<u64, [Arc<TcpStream>; 2]>>,
    stop: AtomicBool,
}

impl Proxy {
    /// Starts a proxy in front of `upstream`, a `host:port`.
    ///
    /// # Errors
    /// When there is no port to listen on.
    pub fn start(upstream: &str, seed: u64, weather: Weather) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Failure::at("listen for the proxy"))?;
        let port = listener.local_addr().map_err(Failure::at("name the proxy"))?.port();
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            seed,
            matches: Mutex::new(vec![0; weather.rules.len()]),
            weather: Mutex::new(weather),
            records: Mutex::default(),
            up: line::Link::default(),
            down: line::Link::default(),
            lists: Mutex::default(),
            again: Mutex::default(),
            seen: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            in_flight_max: AtomicU64::new(0),
            open: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let ours = Arc::clone(&shared);
        thread::spawn(move || {
            for (number, client) in (0..).zip(listener.incoming()) {
                if ours.stop.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(client) = client {
                    let shared = Arc::clone(&ours);
                    thread::spawn(move || relay::serve(&shared, client, number));
                }
            }
        });
        Ok(Self { port, shared })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Changes the weather for requests from now on. Rules begin to count anew.
    pub fn set(&self, weather: Weather) {
        *lock(&self.shared.matches) = vec![0; weather.rules.len()];
        *lock(&self.shared.weather) = weather;
    }

    /// All requests so far, in the order in which their answers began.
    pub fn records(&self) -> Vec<Record> {
        let records = lock(&self.shared.records);
        let whole = |(record, received): &(Record, Arc<AtomicU64>)| Record {
            received: received.load(Ordering::SeqCst),
            ..record.clone()
        };
        records.iter().map(whole).collect()
    }

    /// Forgets the records.
    pub fn forget(&self) {
        lock(&self.shared.records).clear();
        self.shared.in_flight_max.store(0, Ordering::SeqCst);
    }

    /// Requests of this kind so far.
    pub fn count(&self, op: Op) -> usize {
        lock(&self.shared.records)
            .iter()
            .filter(|(record, _)| record.op == op)
            .count()
    }

    /// Requests so far that a fault hit.
    pub fn faults(&self) -> usize {
        let records = lock(&self.shared.records);
        records.iter().filter(|(record, _)| record.fault.is_some()).count()
    }

    /// The most requests that were under way at a time; one whose answer has just left still counts.
    pub fn in_flight_max(&self) -> u64 {
        self.shared.in_flight_max.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)); // wakes the one who accepts
        for sockets in lock(&self.shared.open).values() {
            for socket in sockets {
                let _ = socket.shutdown(Shutdown::Both); // closed already, perhaps
            }
        }
    }
}

impl Shared {
    /// What is to happen to a request.
    fn decide(&self, op: Op, name: &str) -> Option<Fault> {
        let weather = lock(&self.weather);
        let mut matches = lock(&self.matches);
        let last = name.rsplit('/').next().unwrap_or(name);
        for (index, rule) in weather.rules.iter().enumerate() {
            let applies = (rule.ops.is_empty() || rule.ops.contains(&op)) && last.starts_with(rule.name);
            if !applies {
                continue;
            }
            let number = matches[index];
            matches[index] += 1;
            let hit = match rule.when {
                When::Always => true,
                When::Every(n) => (number + 1).is_multiple_of(n),
                When::First(n) => number < n,
                When::Percent(share) => {
                    let mut random = Random::new(self.seed ^ ((index as u64) << 48) ^ number);
                    (random.below(1_000_000) as f64) < share * 10_000.0
                }
            };
            if hit {
                return Some(rule.fault.clone());
            }
        }
        None
    }
}

/// No panic happens while one of these is held, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
