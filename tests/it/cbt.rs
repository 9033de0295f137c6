//! The client of the SnapshotMetadata service against one that keeps its contract, and against one that breaks it in every way
//! known of drivers, sidecars, proxies and networks.

mod command;
mod faults;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockferry_tests::cbt_server::listing::Listing;
use blockferry_tests::cbt_server::{AUTHORITY, Asked, CbtServer, Play, code};
use blockio::{CHUNK_SIZE, Cancel, GrowingMap, MapState, SnapshotHandle};
use csi_glue::cbt::{CbtClient, CbtEndpoint, Limits, Need, Outcome, Question, Refusal, Token};

const MIB: u64 = CHUNK_SIZE;
const SIZE: u64 = 64 * MIB;
const BLOCK: u64 = 4096;
const CHUNK_BLOCKS: u64 = MIB / BLOCK;

/// Waits of milliseconds: the service is in this process.
fn limits() -> Limits {
    Limits {
        wait_first: Duration::from_millis(2),
        wait_max: Duration::from_millis(20),
        ..Limits::default()
    }
}

fn allocated() -> Question {
    Question {
        namespace: "velero".to_owned(),
        snapshot: "snap-2".to_owned(),
        base: None,
    }
}

fn delta() -> Question {
    Question {
        base: Some(SnapshotHandle::new("handle-1").unwrap()),
        ..allocated()
    }
}

fn client_with(server: &CbtServer, ca: &str, limits: Limits) -> CbtClient {
    let endpoint = CbtEndpoint {
        address: server.address().to_owned(),
        ca_pem: ca.as_bytes().to_vec(),
    };
    CbtClient::sidecar(&endpoint, Arc::new(|_: Need| Token::new("token")), limits).unwrap()
}

/// Asks a service that plays `script`: the answer, the chunks, and what the service was asked.
fn ask(
    question: &Question,
    script: impl Fn(usize, &Asked) -> Play + Send + Sync + 'static,
) -> (Result<Outcome, Refusal>, Vec<u64>, Vec<Asked>) {
    ask_limited(question, limits(), script)
}

fn ask_limited(
    question: &Question,
    limits: Limits,
    script: impl Fn(usize, &Asked) -> Play + Send + Sync + 'static,
) -> (Result<Outcome, Refusal>, Vec<u64>, Vec<Asked>) {
    let server = CbtServer::tls(script).unwrap();
    let map = GrowingMap::new(SIZE);
    let answer = client_with(&server, AUTHORITY, limits).ask_blocking(question, &map, &Cancel::new());
    let state = if answer.is_ok() {
        MapState::Finished
    } else {
        MapState::Failed
    };
    assert_eq!(map.state(), state);
    let chunks = map.into_map().iter().map(|chunk| chunk.get()).collect();
    (answer, chunks, server.asked())
}

/// A driver with three blocks in chunks 0, 2 and 40, one in a message.
fn three() -> Listing {
    Listing::fixed(SIZE, BLOCK, &[1, 2 * CHUNK_BLOCKS, 40 * CHUNK_BLOCKS + 5]).per_page(1)
}

const THREE: [u64; 3] = [0, 2, 40];

#[test]
fn both_questions_are_asked_as_the_contract_says_and_the_end_is_confirmed() {
    for question in [allocated(), delta()] {
        let (answer, chunks, asked) = ask(&question, |_, asked| Play::whole(three().pages(asked.starting_offset)));
        let outcome = answer.unwrap();
        assert_eq!(chunks, THREE);
        assert_eq!((outcome.tuples, outcome.streams, outcome.retries), (3, 2, 0));
        assert_eq!((outcome.capacity, outcome.empty), (Some(SIZE), false));
        let name = if question.base.is_some() { "Delta" } else { "Allocated" };
        let expect = Asked {
            path: format!("/snapshotmetadata.SnapshotMetadata/GetMetadata{name}"),
            token: "token".to_owned(),
            namespace: "velero".to_owned(),
            snapshot: "snap-2".to_owned(),
            base: question.base.map(|base| base.to_string()),
            starting_offset: 0,
            max_results: 4096,
        };
        let confirm = Asked {
            starting_offset: (40 * CHUNK_BLOCKS + 6) * BLOCK,
            ..expect.clone()
        };
        assert_eq!(asked, [expect, confirm]);
    }
}

#[test]
fn a_driver_is_asked_on_its_own_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("csi.sock");
    let server = CbtServer::unix(&socket, |_, asked| Play::whole(three().pages(asked.starting_offset))).unwrap();
    let map = GrowingMap::new(SIZE);
    let client = CbtClient::driver(&socket, limits());
    for (question, path) in [(allocated(), "Allocated"), (delta(), "Delta")] {
        client.ask_blocking(&question, &map, &Cancel::new()).unwrap();
        let asked = server.asked();
        let last = asked.last().unwrap();
        assert_eq!(last.path, format!("/csi.v1.SnapshotMetadata/GetMetadata{path}"));
        assert_eq!((last.snapshot.as_str(), last.max_results), ("snap-2", 4096));
        assert_eq!(last.base, question.base.map(|base| base.to_string()));
    }
    assert_eq!(map.into_map().iter().map(|c| c.get()).collect::<Vec<_>>(), THREE);
}

#[test]
fn the_map_is_read_while_the_stream_still_runs() {
    let gate = Arc::new((Mutex::new(false), std::sync::Condvar::new()));
    let opened = Arc::clone(&gate);
    let server = CbtServer::tls(move |_, asked| {
        let gate = Arc::clone(&gate);
        let pages = three().pages(asked.starting_offset).into_iter().enumerate();
        Play::whole(pages.map(move |(i, page)| {
            if i == 2 {
                let (open, changed) = &*gate;
                let _open = changed.wait_while(open.lock().unwrap(), |open| !*open).unwrap();
            }
            page
        }))
    })
    .unwrap();
    let (map, cancel) = (GrowingMap::new(SIZE), Cancel::new());
    let client = client_with(&server, AUTHORITY, limits());
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| client.ask_blocking(&allocated(), &map, &cancel));
        let next = map.wait_next(blockio::ChunkIndex::new(0), &cancel).unwrap();
        assert_eq!(next, blockio::NextChunk::Chunk(blockio::ChunkIndex::new(0)));
        assert_eq!(map.state(), MapState::Growing);
        *opened.0.lock().unwrap() = true;
        opened.1.notify_all();
        asking.join().unwrap().unwrap();
    });
    assert_eq!(map.known(), SIZE);
}

#[test]
fn a_token_is_asked_for_before_every_stream_and_renewed_when_refused() {
    // The first token expires while the stream runs, which is cut after two messages.
    let server = CbtServer::tls(|stream, asked| match (stream, asked.token.as_str()) {
        (0, "old") => Play::new(
            three().pages(0).into_iter().take(2),
            code::DEADLINE_EXCEEDED,
            "10 minutes",
        ),
        (_, "new") => Play::whole(three().pages(asked.starting_offset)),
        _ => Play::status(code::UNAUTHENTICATED, "expired"),
    })
    .unwrap();
    let (needs, calls) = (Arc::new(Mutex::new(Vec::new())), AtomicUsize::new(0));
    let seen = Arc::clone(&needs);
    let tokens = move |need: Need| {
        seen.lock().unwrap().push(need);
        let is_new = need == Need::New || calls.fetch_add(1, Ordering::SeqCst) > 1;
        Token::new(if is_new { "new" } else { "old" })
    };
    let endpoint = CbtEndpoint {
        address: server.address().to_owned(),
        ca_pem: AUTHORITY.as_bytes().to_vec(),
    };
    let map = GrowingMap::new(SIZE);
    let client = CbtClient::sidecar(&endpoint, Arc::new(tokens), limits()).unwrap();
    let outcome = client.ask_blocking(&delta(), &map, &Cancel::new()).unwrap();
    assert_eq!((outcome.streams, outcome.retries), (4, 2));
    assert_eq!(
        *needs.lock().unwrap(),
        [Need::Valid, Need::Valid, Need::New, Need::Valid]
    );
    assert_eq!(map.into_map().iter().map(|c| c.get()).collect::<Vec<_>>(), THREE);
}

#[test]
fn a_question_is_cancelled_while_the_service_is_silent() {
    let server = CbtServer::tls(|_, _| Play::ending([], blockferry_tests::cbt_server::Ending::Silence)).unwrap();
    let (map, cancel) = (GrowingMap::new(SIZE), Cancel::new());
    let client = client_with(&server, AUTHORITY, limits());
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| client.ask_blocking(&delta(), &map, &cancel));
        blockferry_tests::wait::wait_for("the question", Duration::from_secs(60), || !server.asked().is_empty())
            .unwrap();
        cancel.cancel();
        assert_eq!(asking.join().unwrap(), Err(Refusal::Cancelled));
    });
    assert_eq!(map.state(), MapState::Failed);
}
