use super::*;
use proptest::prelude::*;

/// One export named `disk`; `b` has a block size.
struct Shelf {
    closing: bool,
}

impl Directory for Shelf {
    type Ticket = String;

    fn list(&self) -> Vec<(String, String)> {
        vec![("disk".to_owned(), "a disk".to_owned())]
    }

    fn look(&self, name: &str) -> Result<Offer, Refusal> {
        let offer = Offer {
            name: "disk".to_owned(),
            description: "a disk".to_owned(),
            size: 1 << 20,
            writable: false,
            fast_zero: false,
            block_min: if name == "b" { 512 } else { 1 },
            block_preferred: 1 << 20,
        };
        match name {
            "disk" | "" | "b" => Ok(offer),
            "full" => Err(Refusal::Policy("too many connections")),
            _ => Err(Refusal::Unknown),
        }
    }

    fn enter(&self, name: &str) -> Result<(String, Offer), Refusal> {
        self.look(name).map(|offer| (name.to_owned(), offer))
    }

    fn is_closing(&self) -> bool {
        self.closing
    }
}

const OPEN: Policy = Policy {
    tls: Tls::Absent,
    listing: true,
};

struct Client {
    negotiation: Negotiation,
    shelf: Shelf,
    sent: Vec<u8>,
}

impl Client {
    fn new(policy: Policy, flags: u32) -> Self {
        let mut greeting = Vec::new();
        let negotiation = Negotiation::new(policy, &mut greeting);
        assert_eq!(greeting.len(), 18);
        Self {
            negotiation,
            shelf: Shelf { closing: false },
            sent: flags.to_be_bytes().to_vec(),
        }
    }

    fn option(mut self, option: u32, data: &[u8]) -> Self {
        self.sent.extend(proto::OPTION_MAGIC.to_be_bytes());
        self.sent.extend(option.to_be_bytes());
        self.sent.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        self.sent.extend(data);
        self
    }

    /// Feeds everything in pieces of `piece` bytes. Returns kinds of replies, and how it ended.
    fn told(&mut self, piece: usize) -> (Vec<u32>, Option<Next<String>>) {
        let (mut out, mut held, mut end) = (Vec::new(), Vec::new(), None);
        'all: for part in self.sent.chunks(piece) {
            held.extend_from_slice(part);
            let (taken, next) = self.negotiation.step(&held, &mut out, &self.shelf);
            held.drain(..taken);
            if !matches!(next, Next::More) {
                end = Some(next);
                break 'all;
            }
        }
        let mut kinds = Vec::new();
        let mut rest = &out[..];
        while let Ok((head, body)) = proto::OptionReply::read_from_prefix(rest) {
            if head.magic.get() != proto::OPTION_REPLY_MAGIC {
                break;
            }
            kinds.push(head.kind.get());
            rest = &body[head.length.get() as usize..];
        }
        (kinds, end)
    }
}

fn ask(name: &[u8], kinds: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name);
    data.extend(u16::try_from(kinds.len()).unwrap().to_be_bytes());
    kinds.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend(u32::try_from(query.len()).unwrap().to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

/// One option, and what is answered to it; the pieces in which it comes make no difference.
#[track_caller]
fn check(option: u32, data: &[u8], expect: &[u32]) {
    for piece in [1, 7, 4096] {
        let (kinds, _) = Client::new(OPEN, 3).option(option, data).told(piece);
        assert_eq!(kinds, expect, "in pieces of {piece}");
    }
}

#[test]
fn every_option_has_its_answers() {
    check(option::LIST, b"", &[reply::SERVER, reply::ACK]);
    check(option::LIST, b"x", &[reply::ERR_INVALID]);
    check(option::ABORT, b"x", &[reply::ACK]);
    check(option::STARTTLS, b"", &[reply::ERR_POLICY]);
    check(option::STRUCTURED_REPLY, b"", &[reply::ACK]);
    check(option::STRUCTURED_REPLY, b"x", &[reply::ERR_INVALID]);
    check(option::EXTENDED_HEADERS, b"", &[reply::ACK]);
    check(
        option::INFO,
        &ask(b"disk", &[]),
        &[reply::INFO, reply::INFO, reply::ACK],
    );
    check(option::GO, &ask(b"disk", &[1, 2, 3, 99]), &[3, 3, 3, 3, reply::ACK]);
    check(option::GO, &ask(b"none", &[]), &[reply::ERR_UNKNOWN]);
    check(option::GO, &ask(b"full", &[]), &[reply::ERR_POLICY]);
    check(option::GO, &ask(b"b", &[]), &[reply::ERR_BLOCK_SIZE_REQD]);
    check(option::GO, &ask(b"b", &[3]), &[3, 3, reply::ACK]);
    check(option::GO, &ask(b"\xff", &[]), &[reply::ERR_INVALID]);
    check(option::GO, &ask(b"disk", &[])[..3], &[reply::ERR_INVALID]);
    check(
        option::GO,
        &[&ask(b"disk", &[])[..], b"x"].concat(),
        &[reply::ERR_INVALID],
    );
    check(option::GO, &[0xff; 40], &[reply::ERR_INVALID]);
    check(4, b"abc", &[reply::ERR_UNSUP]);
    check(77, b"abc", &[reply::ERR_UNSUP]);
    check(
        option::SET_META_CONTEXT,
        &contexts("disk", &["base:allocation"]),
        &[reply::ERR_INVALID],
    );
}

#[test]
fn data_that_is_too_long_is_dropped_and_the_stream_stays_in_step() {
    let long = vec![0; OPTION_DATA_MAX as usize + 1];
    let (kinds, _) = Client::new(OPEN, 3)
        .option(option::GO, &long)
        .option(option::LIST, b"")
        .told(1 << 20);
    assert_eq!(kinds, [reply::ERR_TOO_BIG, reply::SERVER, reply::ACK]);
    let mut client = Client::new(OPEN, 3).option(99, b"");
    let at = client.sent.len();
    client.sent[at - 4..].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(matches!(client.told(4096).1, Some(Next::Close(_))));
}

#[test]
fn contexts_are_for_the_export_they_were_selected_for() {
    let go = |selected: &str, option: u32, name: &str| {
        let mut client = Client::new(OPEN, 3)
            .option(option, b"")
            .option(
                option::SET_META_CONTEXT,
                &contexts(selected, &["x:y", "base:allocation"]),
            )
            .option(option::GO, &ask(name.as_bytes(), &[]));
        let Some(Next::Begin(_, session)) = client.told(4096).1 else {
            panic!("no session")
        };
        session
    };
    let session = go("disk", option::STRUCTURED_REPLY, "disk");
    assert!(session.status && session.flags & flag::SEND_DF != 0 && session.flags & flag::READ_ONLY != 0);
    assert!(session.flags & flag::BLOCK_STATUS_PAYLOAD == 0);
    assert!(!go("", option::STRUCTURED_REPLY, "disk").status);
    let extended = go("disk", option::EXTENDED_HEADERS, "disk");
    assert!(extended.style == Style::Extended && extended.flags & flag::BLOCK_STATUS_PAYLOAD != 0);
}

#[test]
fn queries_select_what_they_name() {
    let kinds = |option: u32, queries: &[&str]| {
        let client = Client::new(OPEN, 3).option(option::STRUCTURED_REPLY, b"");
        client.option(option, &contexts("disk", queries)).told(4096).0[1..].to_vec()
    };
    let (list, set) = (option::LIST_META_CONTEXT, option::SET_META_CONTEXT);
    assert_eq!(kinds(list, &[]), [reply::META_CONTEXT, reply::ACK]);
    assert_eq!(kinds(list, &["base:"]), [reply::META_CONTEXT, reply::ACK]);
    assert_eq!(kinds(set, &[]), [reply::ACK]);
    assert_eq!(kinds(set, &["base:"]), [reply::ACK]);
    assert_eq!(
        kinds(set, &["base:allocation", "base:allocation"]),
        [reply::META_CONTEXT, reply::ACK]
    );
    assert_eq!(kinds(set, &["qemu:dirty-bitmap:x"]), [reply::ACK]);
    assert_eq!(kinds(set, &["no namespace"]), [reply::ERR_INVALID]);
    assert_eq!(kinds(set, &vec!["a:b"; 65]), [reply::ERR_TOO_BIG]);
}

#[test]
fn a_failed_selection_forgets_the_one_before() {
    let mut client = Client::new(OPEN, 3)
        .option(option::STRUCTURED_REPLY, b"")
        .option(option::SET_META_CONTEXT, &contexts("disk", &["base:allocation"]))
        .option(option::SET_META_CONTEXT, &contexts("none", &["base:allocation"]))
        .option(option::GO, &ask(b"disk", &[]));
    let Some(Next::Begin(_, session)) = client.told(4096).1 else {
        panic!("no session")
    };
    assert!(!session.status);
}

#[test]
fn nothing_but_tls_is_served_before_tls() {
    let policy = Policy {
        tls: Tls::Required,
        listing: true,
    };
    let mut client = Client::new(policy, 3)
        .option(option::LIST, b"")
        .option(option::GO, &ask(b"disk", &[]))
        .option(option::STARTTLS, b"x")
        .option(option::STARTTLS, b"");
    let (kinds, end) = client.told(4096);
    assert_eq!(
        kinds,
        [reply::ERR_TLS_REQD, reply::ERR_TLS_REQD, reply::ERR_INVALID, reply::ACK]
    );
    assert!(matches!(end, Some(Next::StartTls)));
    assert!(matches!(
        Client::new(policy, 3).option(option::EXPORT_NAME, b"disk").told(99).1,
        Some(Next::Close(_))
    ));
    // Behind TLS: no second one, and nothing agreed before is kept.
    client.negotiation = client.negotiation.after_tls();
    client.sent.clear();
    let mut client = client
        .option(option::STARTTLS, b"")
        .option(option::SET_META_CONTEXT, &contexts("disk", &["base:allocation"]));
    assert_eq!(client.told(4096).0, [reply::ERR_INVALID, reply::ERR_INVALID]);
}

#[test]
fn bytes_in_clear_behind_starttls_end_the_connection() {
    let policy = Policy {
        tls: Tls::Required,
        listing: true,
    };
    let mut client = Client::new(policy, 3)
        .option(option::STARTTLS, b"")
        .option(option::LIST, b"");
    assert!(matches!(client.told(4096).1, Some(Next::Close(_))));
}

#[test]
fn the_old_way_works_and_cannot_say_no() {
    let mut client = Client::new(OPEN, 0).option(option::EXPORT_NAME, b"disk");
    assert!(matches!(client.told(4096).1, Some(Next::Begin(..))));
    assert!(matches!(
        Client::new(OPEN, 0).option(option::EXPORT_NAME, b"none").told(9).1,
        Some(Next::Close(_))
    ));
    assert!(matches!(
        Client::new(OPEN, 0).option(option::LIST, b"").told(9).1,
        Some(Next::Close(_))
    ));
    assert!(matches!(Client::new(OPEN, 4).told(9).1, Some(Next::Close(_))));
    let mut client = Client::new(OPEN, 3)
        .option(option::EXTENDED_HEADERS, b"")
        .option(option::EXPORT_NAME, b"disk");
    assert!(matches!(client.told(4096).1, Some(Next::Close(_))));
}

#[test]
fn a_flood_of_options_ends_the_connection() {
    let mut client = Client::new(OPEN, 3);
    for _ in 0..5000 {
        client = client.option(99, b"");
    }
    let (kinds, end) = client.told(1 << 20);
    assert_eq!(kinds.len(), OPTIONS_MAX as usize);
    assert!(matches!(end, Some(Next::Close(_))));
}

#[test]
fn a_stopping_server_says_so() {
    let mut client = Client::new(OPEN, 3)
        .option(option::GO, &ask(b"disk", &[]))
        .option(option::ABORT, b"");
    client.shelf.closing = true;
    assert_eq!(client.told(4096).0, [reply::ERR_SHUTDOWN, reply::ACK]);
}

proptest! {
    /// Whatever comes, in whatever pieces: no panic, and the same answers.
    #[test]
    fn pieces_make_no_difference(
        options in prop::collection::vec((0u32..13, prop::collection::vec(any::<u8>(), 0..40)), 0..8),
        piece in 1usize..60,
    ) {
        let build = || options.iter().fold(Client::new(OPEN, 3), |client, (option, data)| client.option(*option, data));
        let (whole, cut) = (build().told(1 << 20), build().told(piece));
        prop_assert_eq!(whole.0, cut.0);
        prop_assert_eq!(whole.1.map(|n| matches!(n, Next::Close(_))), cut.1.map(|n| matches!(n, Next::Close(_))));
    }
}
