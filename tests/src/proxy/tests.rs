//! The proxy between a client of a few lines and a server of a few lines.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::http::{self, Framing, Head};
use super::*;

/// A server that keeps objects: PUT and GET of `/b/key`, GET of `/b/?prefix=` lists names. Ends with the test process.
fn server() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let objects: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let objects = Arc::clone(&objects);
            thread::spawn(move || _ = answer_all(&client, &objects));
        }
    });
    address
}

fn answer_all(client: &TcpStream, objects: &Mutex<BTreeMap<String, Vec<u8>>>) -> io::Result<()> {
    let mut reader = BufReader::new(client);
    while let Some(head) = Head::read(&mut reader)? {
        let mut body = Vec::new();
        http::pump(&mut reader, head.request_body()?, Framing::Removed, &mut |piece| {
            body.extend_from_slice(piece);
            Ok(())
        })?;
        let words: Vec<&str> = head.first.split(' ').collect();
        let mut objects = objects.lock().unwrap();
        let answer = match (words[0], words[1].strip_prefix("/b/").unwrap()) {
            ("PUT", key) => {
                let times = objects.get(key).map_or(0, |old| old.len() / body.len().max(1));
                // Each delivery of the same object is counted: the object grows.
                objects.insert(key.to_owned(), body.repeat(times + 1));
                Vec::new()
            }
            (_, list) if list.starts_with('?') => objects.keys().cloned().collect::<Vec<_>>().join(",").into_bytes(),
            (_, key) => objects.get(key).cloned().unwrap_or_default(),
        };
        let mut client = client;
        client.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len()).as_bytes())?;
        client.write_all(&answer)?;
    }
    Ok(())
}

/// One request on a connection of its own. Returns the status and the body.
fn ask(proxy: &Proxy, method: &str, target: &str, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(proxy.address())?;
    request(&mut stream, method, target, body)
}

fn request(stream: &mut TcpStream, method: &str, target: &str, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut reader = BufReader::new(&*stream);
    let head = Head::read(&mut reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut answer = Vec::new();
    http::pump(&mut reader, head.answer_body(method)?, Framing::Removed, &mut |piece| {
        answer.extend_from_slice(piece);
        Ok(())
    })?;
    Ok((head.status(), answer))
}

fn with(rules: Vec<Rule>) -> Proxy {
    Proxy::start(
        &server(),
        7,
        Weather {
            rules,
            ..Weather::default()
        },
    )
    .unwrap()
}

#[test]
fn in_fair_weather_everything_passes_and_is_counted() {
    let proxy = with(vec![]);
    let body = vec![7; 300_000];
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    for key in ["one", "two"] {
        let target = format!("/b/dir/{key}");
        assert_eq!(request(&mut stream, "PUT", &target, &body).unwrap(), (200, vec![]));
        assert_eq!(request(&mut stream, "GET", &target, b"").unwrap(), (200, body.clone()));
    }
    let (_, names) = request(&mut stream, "GET", "/b/?list-type=2&prefix=dir", b"").unwrap();
    assert_eq!(names, b"dir/one,dir/two");
    let counts = [Op::Put, Op::Get, Op::List, Op::Head].map(|op| proxy.count(op));
    assert_eq!((counts, proxy.faults()), ([2, 2, 1, 0], 0));
    let first = &proxy.records()[0];
    assert_eq!(
        (first.name.as_str(), first.sent, first.received),
        ("dir/one", 300_000, 0)
    );
    assert!((1..=2).contains(&proxy.in_flight_max()));
    proxy.forget();
    assert!(proxy.records().is_empty());
}

#[test]
fn a_reset_before_leaves_nothing_and_a_reset_after_leaves_everything() {
    let proxy = with(vec![
        Rule {
            name: "before",
            ..Rule::new(Fault::ResetBefore, &[Op::Put], When::First(1))
        },
        Rule {
            name: "after",
            ..Rule::new(Fault::ResetAfter, &[Op::Put], When::First(1))
        },
    ]);
    for (key, left) in [("before", 0), ("after", 3)] {
        let target = format!("/b/{key}");
        let error = ask(&proxy, "PUT", &target, b"abc").unwrap_err();
        let kinds = [
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::BrokenPipe,
        ];
        assert!(kinds.contains(&error.kind()), "{error}");
        assert_eq!(ask(&proxy, "GET", &target, b"").unwrap().1.len(), left, "{key}");
    }
    assert_eq!(proxy.faults(), 2);
}

#[test]
fn bodies_are_cut_or_shortened() {
    let proxy = with(vec![
        Rule::new(Fault::CutBody, &[Op::Get], When::First(1)),
        Rule::new(Fault::ShortBody, &[Op::Get], When::First(1)),
    ]);
    ask(&proxy, "PUT", "/b/k", &[5; 1000]).unwrap();
    let error = ask(&proxy, "GET", "/b/k", b"").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    // The first rule matched once more, and no longer hits.
    assert_eq!(ask(&proxy, "GET", "/b/k", b"").unwrap(), (200, vec![5; 500]));
    assert_eq!(ask(&proxy, "GET", "/b/k", b"").unwrap(), (200, vec![5; 1000]));
}

#[test]
fn answers_of_its_own_keep_the_connection() {
    let proxy = with(vec![Rule::new(Fault::slow_down(), &[Op::Put], When::Every(2))]);
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    let mut statuses = Vec::new();
    for key in 0..4 {
        let (status, body) = request(&mut stream, "PUT", &format!("/b/{key}"), b"abc").unwrap();
        assert_eq!(
            status == 503,
            String::from_utf8(body).unwrap().contains("<Code>SlowDown</Code>")
        );
        statuses.push(status);
    }
    assert_eq!(statuses, [200, 503, 200, 503]);
    assert_eq!(ask(&proxy, "GET", "/b/1", b"").unwrap().1, b"");
}

#[test]
fn a_stale_list_is_an_earlier_one() {
    let proxy = with(vec![Rule::new(Fault::StaleList, &[Op::List], When::Every(3))]);
    let list = || String::from_utf8(ask(&proxy, "GET", "/b/?list-type=2", b"").unwrap().1).unwrap();
    let mut seen = Vec::new();
    for key in ["a", "b", "c", "d"] {
        ask(&proxy, "PUT", &format!("/b/{key}"), b"x").unwrap();
        seen.push(list());
    }
    assert_eq!(seen, ["a", "a,b", "a", "a,b,c,d"]);
}

#[test]
fn requests_arrive_once_more_at_once_or_late() {
    let proxy = with(vec![
        Rule {
            name: "now",
            ..Rule::new(Fault::Again(0), &[Op::Put], When::Always)
        },
        Rule {
            name: "late",
            ..Rule::new(Fault::Again(3), &[Op::Put], When::Always)
        },
    ]);
    let len = |key: &str| ask(&proxy, "GET", &format!("/b/{key}"), b"").unwrap().1.len();
    ask(&proxy, "PUT", "/b/now", b"x").unwrap();
    assert_eq!(len("now"), 2);
    ask(&proxy, "PUT", "/b/late", b"x").unwrap();
    assert_eq!([len("late"), len("late"), len("late"), len("late")], [1, 1, 1, 2]);
}

#[test]
fn latency_is_paid_once_a_round_trip_and_bandwidth_is_shared() {
    let latency = Duration::from_millis(80);
    let weather = Weather {
        latency,
        bandwidth: Some(4 << 20),
        ..Weather::default()
    };
    let proxy = Proxy::start(&server(), 1, weather).unwrap();
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    let timed = |stream: &mut TcpStream, method: &str, body: &[u8]| {
        let start = Instant::now();
        request(stream, method, "/b/k", body).unwrap();
        start.elapsed()
    };
    let small = timed(&mut stream, "GET", b"");
    assert!(small >= latency && small < latency * 10, "{small:?}");
    // 1 MiB at 4 MiB/s, both ways at the same time on two connections: they share one way only with their like.
    let put = timed(&mut stream, "PUT", &vec![1; 1 << 20]);
    assert!(put >= latency + Duration::from_millis(250), "{put:?}");
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| ask(&proxy, "GET", "/b/k", b"").unwrap());
        }
    });
    let two = start.elapsed();
    assert!(two >= Duration::from_millis(500), "{two:?}");
    assert_eq!(proxy.in_flight_max(), 2);
}

#[test]
fn silence_lasts_until_the_client_gives_up() {
    let proxy = with(vec![Rule::new(Fault::Silence, &[], When::First(1))]);
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    stream.write_all(b"GET /b/k HTTP/1.1\r\n\r\n").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(stream.read(&mut [0]).is_err());
    drop(stream);
    assert_eq!(ask(&proxy, "GET", "/b/k", b"").unwrap().0, 200);
}

#[test]
fn shares_follow_from_the_seed() {
    let hits = |seed| {
        let weather = Weather {
            rules: vec![Rule::new(Fault::Silence, &[], When::Percent(10.0))],
            ..Weather::default()
        };
        let proxy = Proxy::start("127.0.0.1:9", seed, weather).unwrap();
        let hit = |_| proxy.shared.decide(Op::Get, "k").is_some();
        (0..1000).map(hit).collect::<Vec<bool>>()
    };
    let count = hits(1).iter().filter(|hit| **hit).count();
    assert!((60..140).contains(&count), "{count} of 1000");
    assert_eq!(hits(1), hits(1));
    assert_ne!(hits(1), hits(2));
}

#[test]
fn a_server_that_does_not_listen_is_a_closed_connection() {
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap();
    let proxy = Proxy::start(&closed.to_string(), 1, Weather::default()).unwrap();
    assert!(ask(&proxy, "GET", "/b/k", b"").is_err());
}
