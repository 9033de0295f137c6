//! The handshake as a state machine over bytes: fixed newstyle, every option. No IO, no clock.
//!
//! The caller feeds what came from the client and sends what it finds in `out`, until [`Next::Begin`], [`Next::StartTls`] or
//! [`Next::Close`]. A claimed length never leads to an allocation: data of options is read where it lies in the input, and
//! only up to [`OPTION_DATA_MAX`]; what is longer is counted down and dropped.

mod data;

use crate::proto::{self, OptionHeader, STRING_MAX, flag, handshake, info, option, reply};
use crate::transmit::{Session, Style};
use data::{Fields, Wanted};
use zerocopy::{FromBytes, IntoBytes};

/// Longest data of an option that is looked at. A name and 64 queries of usual length fit many times.
pub const OPTION_DATA_MAX: u32 = 64 << 10;
/// Longest data of an option that is read and dropped to stay in step; what claims more is no client.
pub const OPTION_DRAIN_MAX: u32 = 1 << 20;
/// Options of one connection. A careful client needs about ten.
pub const OPTIONS_MAX: u32 = 64;
/// Queries in one option about metadata contexts. There is one context to ask for.
pub const QUERIES_MAX: u32 = 64;

/// The exports a peer may see, as the handshake asks for them.
pub trait Directory {
    /// What holds an export open for a connection.
    type Ticket;

    /// Name and description of each export this peer may see.
    fn list(&self) -> Vec<(String, String)>;

    /// What there is to know of an export. The empty name is the default export.
    ///
    /// # Errors
    /// When this peer gets no such export.
    fn look(&self, name: &str) -> Result<Offer, Refusal>;

    /// Opens an export for this connection.
    ///
    /// # Errors
    /// As [`Directory::look`], and when there are too many connections.
    fn enter(&self, name: &str) -> Result<(Self::Ticket, Offer), Refusal>;

    /// The server is about to stop and opens nothing.
    fn is_closing(&self) -> bool {
        false
    }
}

/// An export as a client is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its canonical name.
    pub name: String,
    /// Text for people.
    pub description: String,
    /// Bytes.
    pub size: u64,
    /// Takes writes.
    pub writable: bool,
    /// Zeros of any length are quick.
    pub fast_zero: bool,
    /// Offsets and lengths of requests are multiples of this. A power of two up to 64 KiB.
    pub block_min: u32,
    /// The best length of requests.
    pub block_preferred: u32,
}

/// Why a peer does not get an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is none of that name that this peer may see.
    Unknown,
    /// Not now or not for this peer; says why.
    Policy(&'static str),
}

/// Where TLS stands on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// The transport needs none and offers none.
    Absent,
    /// Nothing but STARTTLS is served before it.
    Required,
    /// It is on.
    Active,
}

/// What the listener allows.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Where TLS stands.
    pub tls: Tls,
    /// LIST is answered.
    pub listing: bool,
}

/// What is to be done after the bytes in `out` were sent.
#[derive(Debug)]
pub enum Next<T> {
    /// More bytes of the client are needed.
    More,
    /// Do the handshake of TLS, then go on with a new [`Negotiation`] that has it [`Tls::Active`].
    StartTls,
    /// Go over to transmission.
    Begin(T, Session),
    /// Close the connection; says why.
    Close(&'static str),
}

#[derive(Debug)]
enum State {
    Flags,
    Option,
    /// Data of this option is awaited.
    Data(u32, usize),
    /// Data of this option is dropped, then `kind` is the answer.
    Drop {
        option: u32,
        left: u32,
        kind: u32,
        text: &'static str,
    },
}

/// A handshake under way.
#[derive(Debug)]
pub struct Negotiation {
    policy: Policy,
    state: State,
    options: u32,
    fixed: bool,
    no_zeroes: bool,
    style: Style,
    /// The export whose `base:allocation` was selected, by the name the client used.
    context_of: Option<String>,
}

/// Keeps what has been read, asks for more, or ends.
enum Turn<T> {
    Go,
    Next(Next<T>),
}

impl Negotiation {
    /// A handshake whose greeting is appended to `out`; the client speaks next.
    pub fn new(policy: Policy, out: &mut Vec<u8>) -> Self {
        let greeting = proto::Greeting {
            init_magic: proto::INIT_MAGIC.into(),
            option_magic: proto::OPTION_MAGIC.into(),
            flags: (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES).into(),
        };
        out.extend_from_slice(greeting.as_bytes());
        Self {
            policy,
            state: State::Flags,
            options: 0,
            fixed: false,
            no_zeroes: false,
            style: Style::Simple,
            context_of: None,
        }
    }

    /// The handshake goes on behind TLS: all that was agreed is forgotten, but for the client's flags and the count of options.
    #[must_use]
    pub fn after_tls(self) -> Self {
        Self {
            policy: Policy {
                tls: Tls::Active,
                ..self.policy
            },
            state: State::Option,
            style: Style::Simple,
            context_of: None,
            ..self
        }
    }

    /// Takes what it can of `input`. Returns how many bytes that was, and what is next.
    pub fn step<D: Directory>(&mut self, input: &[u8], out: &mut Vec<u8>, directory: &D) -> (usize, Next<D::Ticket>) {
        let mut taken = 0;
        loop {
            let rest = &input[taken..];
            match self.state {
                State::Flags => {
                    let Some(bytes) = rest.first_chunk::<4>() else {
                        return (taken, Next::More);
                    };
                    taken += 4;
                    let flags = u32::from_be_bytes(*bytes);
                    let known = u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
                    if flags & !known != 0 {
                        return (taken, Next::Close("unknown client flag"));
                    }
                    self.fixed = flags & u32::from(handshake::FIXED_NEWSTYLE) != 0;
                    self.no_zeroes = flags & u32::from(handshake::NO_ZEROES) != 0;
                    self.state = State::Option;
                }
                State::Option => {
                    let Ok((header, _)) = OptionHeader::read_from_prefix(rest) else {
                        return (taken, Next::More);
                    };
                    taken += size_of::<OptionHeader>();
                    if let Err(why) = self.header(&header) {
                        return (taken, Next::Close(why));
                    }
                }
                State::Data(option, length) => {
                    let Some(data) = rest.get(..length) else {
                        return (taken, Next::More);
                    };
                    taken += length;
                    self.state = State::Option;
                    let turn = self.option(option, data, out, directory);
                    match turn {
                        Turn::Go => {}
                        Turn::Next(Next::StartTls) if taken < input.len() => {
                            // Sent in clear, to be taken for part of what is protected: never.
                            return (taken, Next::Close("bytes in clear behind STARTTLS"));
                        }
                        Turn::Next(next) => return (taken, next),
                    }
                }
                State::Drop {
                    option,
                    left,
                    kind,
                    text,
                } => {
                    let now = rest.len().min(left as usize);
                    taken += now;
                    // `now` is at most `left`.
                    let left = left - u32::try_from(now).unwrap_or(left);
                    if left > 0 {
                        self.state = State::Drop {
                            option,
                            left,
                            kind,
                            text,
                        };
                        return (taken, Next::More);
                    }
                    error(out, option, kind, text);
                    self.state = State::Option;
                }
            }
        }
    }

    /// Bytes of input that the caller must be able to hold for [`Negotiation::step`] to get on.
    pub const INPUT_MAX: usize = OPTION_DATA_MAX as usize + size_of::<OptionHeader>();

    fn header(&mut self, header: &OptionHeader) -> Result<(), &'static str> {
        if header.magic.get() != proto::OPTION_MAGIC {
            return Err("wrong magic before an option");
        }
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err("too many options");
        }
        let (option, length) = (header.option.get(), header.length.get());
        if !self.fixed && option != option::EXPORT_NAME {
            return Err("an option other than EXPORT_NAME without fixed newstyle");
        }
        let dropped = |kind, text| State::Drop {
            option,
            left: length,
            kind,
            text,
        };
        let protected = self.policy.tls == Tls::Required && !matches!(option, option::STARTTLS | option::ABORT);
        self.state = if option == option::EXPORT_NAME {
            if protected {
                return Err("EXPORT_NAME before TLS");
            }
            if length as usize > STRING_MAX {
                return Err("EXPORT_NAME with a name that is too long");
            }
            State::Data(option, length as usize)
        } else if length > OPTION_DRAIN_MAX {
            return Err("an option with too much data");
        } else if protected {
            dropped(reply::ERR_TLS_REQD, "TLS first")
        } else if !(option::EXPORT_NAME..=option::EXTENDED_HEADERS).contains(&option) || option == 4 {
            dropped(reply::ERR_UNSUP, "unknown option")
        } else if length > OPTION_DATA_MAX {
            dropped(reply::ERR_TOO_BIG, "too much data")
        } else {
            State::Data(option, length as usize)
        };
        Ok(())
    }

    fn option<D: Directory>(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>, dir: &D) -> Turn<D::Ticket> {
        if option == option::ABORT {
            answer(out, option, reply::ACK, &[]);
            return Turn::Next(Next::Close("the client gave up"));
        }
        if option == option::EXPORT_NAME {
            return Turn::Next(self.export_name(data, out, dir));
        }
        if dir.is_closing() {
            error(out, option, reply::ERR_SHUTDOWN, "the server is stopping");
            return Turn::Go;
        }
        let bare = !matches!(
            option,
            option::INFO | option::GO | option::LIST_META_CONTEXT | option::SET_META_CONTEXT
        );
        if bare && !data.is_empty() {
            error(out, option, reply::ERR_INVALID, "this option takes no data");
            return Turn::Go;
        }
        match option {
            option::LIST if self.policy.listing => {
                for (name, description) in dir.list() {
                    let mut body = Vec::with_capacity(4 + name.len() + description.len());
                    body.extend_from_slice(&length_of(&name).to_be_bytes());
                    body.extend_from_slice(name.as_bytes());
                    body.extend_from_slice(description.as_bytes());
                    answer(out, option, reply::SERVER, &body);
                }
                answer(out, option, reply::ACK, &[]);
            }
            option::LIST => error(out, option, reply::ERR_POLICY, "exports are not listed here"),
            option::STARTTLS => return self.start_tls(out),
            option::INFO | option::GO => return self.info(option, data, out, dir),
            option::STRUCTURED_REPLY => match self.style {
                Style::Simple => {
                    self.style = Style::Structured;
                    answer(out, option, reply::ACK, &[]);
                }
                Style::Structured => error(out, option, reply::ERR_INVALID, "structured replies are agreed already"),
                Style::Extended => error(
                    out,
                    option,
                    reply::ERR_EXT_HEADER_REQD,
                    "extended headers are agreed already",
                ),
            },
            option::EXTENDED_HEADERS if self.style == Style::Extended => {
                error(out, option, reply::ERR_INVALID, "extended headers are agreed already");
            }
            option::EXTENDED_HEADERS => {
                self.style = Style::Extended;
                answer(out, option, reply::ACK, &[]);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(option, data, out, dir),
            _ => error(out, option, reply::ERR_UNSUP, "unknown option"),
        }
        Turn::Go
    }

    fn start_tls<T>(&self, out: &mut Vec<u8>) -> Turn<T> {
        match self.policy.tls {
            Tls::Absent => error(out, option::STARTTLS, reply::ERR_POLICY, "no TLS on this socket"),
            Tls::Active => error(out, option::STARTTLS, reply::ERR_INVALID, "TLS is on already"),
            Tls::Required => {
                answer(out, option::STARTTLS, reply::ACK, &[]);
                return Turn::Next(Next::StartTls);
            }
        }
        Turn::Go
    }

    fn export_name<D: Directory>(&mut self, data: &[u8], out: &mut Vec<u8>, dir: &D) -> Next<D::Ticket> {
        if self.style == Style::Extended {
            return Next::Close("EXPORT_NAME after extended headers");
        }
        if dir.is_closing() {
            return Next::Close("the server is stopping");
        }
        let Ok(name) = std::str::from_utf8(data) else {
            return Next::Close("a name that is no text");
        };
        let Ok((ticket, offer)) = dir.enter(name) else {
            return Next::Close("EXPORT_NAME without such an export");
        };
        if offer.block_min > 1 {
            return Next::Close("EXPORT_NAME for an export with a block size");
        }
        let session = self.session(name, &offer);
        let head = proto::ExportNameReply {
            size: offer.size.into(),
            flags: session.flags.into(),
        };
        out.extend_from_slice(head.as_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Next::Begin(ticket, session)
    }

    fn info<D: Directory>(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>, dir: &D) -> Turn<D::Ticket> {
        let mut fields = Fields::new(data);
        let Some((name, wanted)) = fields.name().and_then(|name| Some((name, Wanted::read(&mut fields)?))) else {
            error(out, option, reply::ERR_INVALID, "lengths do not add up");
            return Turn::Go;
        };
        let Ok(name) = std::str::from_utf8(name) else {
            error(out, option, reply::ERR_INVALID, "a name that is no text");
            return Turn::Go;
        };
        let offer = dir.look(name).and_then(|offer| {
            if option == option::GO && offer.block_min > 1 && !wanted.block_size {
                return Ok((None, offer));
            }
            if option == option::GO {
                return dir.enter(name).map(|(ticket, offer)| (Some(ticket), offer));
            }
            Ok((None, offer))
        });
        let (ticket, offer) = match offer {
            Ok(offer) => offer,
            Err(Refusal::Unknown) => {
                error(out, option, reply::ERR_UNKNOWN, "no such export");
                return Turn::Go;
            }
            Err(Refusal::Policy(why)) => {
                error(out, option, reply::ERR_POLICY, why);
                return Turn::Go;
            }
        };
        if option == option::GO && ticket.is_none() {
            error(
                out,
                option,
                reply::ERR_BLOCK_SIZE_REQD,
                "this export has a block size; ask for it",
            );
            return Turn::Go;
        }
        let session = self.session(name, &offer);
        let export = proto::InfoExport {
            kind: info::EXPORT.into(),
            size: offer.size.into(),
            flags: session.flags.into(),
        };
        answer(out, option, reply::INFO, export.as_bytes());
        let text = |kind: u16, text: &str| [&kind.to_be_bytes()[..], text.as_bytes()].concat();
        if wanted.name {
            answer(out, option, reply::INFO, &text(info::NAME, &offer.name));
        }
        if wanted.description {
            answer(out, option, reply::INFO, &text(info::DESCRIPTION, &offer.description));
        }
        let blocks = proto::InfoBlockSize {
            kind: info::BLOCK_SIZE.into(),
            minimum: offer.block_min.into(),
            preferred: offer.block_preferred.into(),
            maximum: proto::PAYLOAD_MAX.into(),
        };
        answer(out, option, reply::INFO, blocks.as_bytes());
        answer(out, option, reply::ACK, &[]);
        match ticket {
            Some(ticket) => Turn::Next(Next::Begin(ticket, session)),
            None => Turn::Go,
        }
    }

    fn contexts<D: Directory>(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>, dir: &D) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            // Replaced by what follows, and by nothing if that fails.
            self.context_of = None;
        }
        if self.style == Style::Simple {
            return error(
                out,
                option,
                reply::ERR_INVALID,
                "structured replies or extended headers first",
            );
        }
        let mut fields = Fields::new(data);
        let Some((name, count)) = fields.name().and_then(|name| Some((name, fields.u32()?))) else {
            return error(out, option, reply::ERR_INVALID, "lengths do not add up");
        };
        if count > QUERIES_MAX {
            return error(out, option, reply::ERR_TOO_BIG, "too many queries");
        }
        let mut selected = count == 0 && !set;
        for _ in 0..count {
            let Some(query) = fields.name() else {
                return error(out, option, reply::ERR_INVALID, "lengths do not add up");
            };
            if !query.contains(&b':') {
                return error(out, option, reply::ERR_INVALID, "a query without a namespace");
            }
            selected |= query == proto::allocation::NAME.as_bytes() || (!set && query == b"base:");
        }
        if !fields.is_empty() {
            return error(out, option, reply::ERR_INVALID, "lengths do not add up");
        }
        let Ok(name) = std::str::from_utf8(name) else {
            return error(out, option, reply::ERR_INVALID, "a name that is no text");
        };
        match dir.look(name) {
            Err(Refusal::Unknown) => return error(out, option, reply::ERR_UNKNOWN, "no such export"),
            Err(Refusal::Policy(why)) => return error(out, option, reply::ERR_POLICY, why),
            Ok(_) => {}
        }
        if selected {
            let id = if set { proto::allocation::ID } else { 0 };
            let body = [&id.to_be_bytes()[..], proto::allocation::NAME.as_bytes()].concat();
            answer(out, option, reply::META_CONTEXT, &body);
        }
        if set && selected {
            self.context_of = Some(name.to_owned());
        }
        answer(out, option, reply::ACK, &[]);
    }

    fn session(&self, name: &str, offer: &Offer) -> Session {
        let status = self.context_of.as_deref() == Some(name);
        let mut flags = flag::HAS_FLAGS | flag::SEND_CACHE | flag::CAN_MULTI_CONN;
        if offer.writable {
            flags |=
                flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
        } else {
            flags |= flag::READ_ONLY;
        }
        if self.style != Style::Simple {
            flags |= flag::SEND_DF;
        }
        if self.style == Style::Extended && status {
            flags |= flag::BLOCK_STATUS_PAYLOAD;
        }
        Session {
            style: self.style,
            status,
            size: offer.size,
            block_min: offer.block_min,
            writable: offer.writable,
            fast_zero: offer.fast_zero,
            flags,
        }
    }
}

fn answer(out: &mut Vec<u8>, option: u32, kind: u32, body: &[u8]) {
    let head = proto::OptionReply {
        magic: proto::OPTION_REPLY_MAGIC.into(),
        option: option.into(),
        kind: kind.into(),
        length: u32::try_from(body.len())
            .expect("our own names and texts are short")
            .into(),
    };
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(body);
}

fn error(out: &mut Vec<u8>, option: u32, kind: u32, text: &str) {
    answer(out, option, kind, text.as_bytes());
}

fn length_of(text: &str) -> u32 {
    u32::try_from(text.len()).expect("names are at most 4096 bytes")
}

#[cfg(test)]
mod tests;
