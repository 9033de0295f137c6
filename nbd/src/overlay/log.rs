//! The log of an overlay: an append-only list of what became of chunks. What it says is durable, and what it does not say has
//! not happened.
//!
//! ```text
//! log     = header record*
//! header  = magic "BFOVRLY1" | version u32 | chunk u32 | size u64 | identity_len u32 | crc u32 | identity
//! record  = magic u32 | kind u32 | batch u64 | index u32 | count u32 | chunk u64 | len u32 | crc u32 | body
//! ```
//!
//! The log of an overlay in place has the magic "BFINPLC1", and as identity three texts with a zero byte between them: what the base
//! is, what the target is, and its mark, which may be empty. Its records are the same, and one more: that the whole volume
//! is in the target, which is the only one then.
//!
//! Everything is little-endian; each crc is CRC-32C over head and body with the crc itself as 0. A body is empty, or the two bit
//! maps of a chunk of which only some sectors were changed, 256 bytes each.
//!
//! A flush writes one batch and syncs it before the next one begins. So a crash leaves at most one batch that is not whole, at
//! the end. A record that does not check out in front of a later batch is damage to what was durable, and the overlay is refused
//! rather than opened with less in it.

use super::map::{Sectors, State};
use super::store::Medium;
use blockio::{BlockError, CHUNK_SIZE, Kind, Op};
use std::collections::BTreeMap;
use std::io;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"BFOVRLY1";
const MAGIC_IN_PLACE: [u8; 8] = *b"BFINPLC1";
const VERSION: u32 = 1;
const RECORD_MAGIC: u32 = 0x4352_564f;
/// Longest identity.
const IDENTITY_MAX: usize = 4096;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    chunk: U32,
    size: U64,
    identity_len: U32,
    crc: U32,
}
const _: () = assert!(size_of::<Header>() == 32);

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Record {
    magic: U32,
    kind: U32,
    batch: U64,
    /// Place in its batch, and how many there are.
    index: U32,
    count: U32,
    chunk: U64,
    len: U32,
    crc: U32,
}
const _: () = assert!(size_of::<Record>() == 40);

const ZERO: u32 = 1;
const DATA: u32 = 2;
const MIXED: u32 = 3;
const COMPLETE: u32 = 4;
/// Two bit maps of 2048 bits.
const BODY: usize = 512;

/// What an overlay belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    pub(super) identity: String,
    pub(super) size: u64,
    /// What has the data, when that is a volume of its own.
    pub(super) target: Option<Target>,
}

/// What has the data of an overlay in slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) name: String,
    /// Empty where it takes none.
    pub(super) mark: String,
}

/// What a log said.
#[derive(Debug)]
pub(super) struct Replayed {
    pub(super) chunks: BTreeMap<u64, State>,
    /// Bytes that count; what follows is a batch cut short.
    pub(super) len: u64,
    /// Number of the next batch.
    pub(super) batch: u64,
    /// The target has the whole volume.
    pub(super) is_complete: bool,
}

fn crc(head: &[u8], body: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(head);
    digest.update(body);
    u32::try_from(digest.finalize()).expect("a CRC of 32 bits")
}

fn invalid(text: String) -> BlockError {
    BlockError::new(Op::Open, Kind::InvalidInput(text))
}

impl Binding {
    fn magic(&self) -> [u8; 8] {
        match self.target {
            None => MAGIC,
            Some(_) => MAGIC_IN_PLACE,
        }
    }

    fn text(&self) -> String {
        match &self.target {
            None => self.identity.clone(),
            Some(target) => [&*self.identity, &*target.name, &*target.mark].join("\0"),
        }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, BlockError> {
        let text = self.text();
        let parts = 1 + 2 * usize::from(self.target.is_some());
        if text.len() > IDENTITY_MAX || text.split('\0').count() != parts {
            return Err(invalid(format!(
                "an identity of more than {IDENTITY_MAX} bytes, or with a zero byte in it"
            )));
        }
        let mut header = Header {
            magic: self.magic(),
            version: VERSION.into(),
            chunk: u32::try_from(CHUNK_SIZE).expect("1 MiB").into(),
            size: self.size.into(),
            identity_len: u32::try_from(text.len()).expect("checked above").into(),
            crc: 0.into(),
        };
        header.crc = crc(header.as_bytes(), text.as_bytes()).into();
        Ok([header.as_bytes(), text.as_bytes()].concat())
    }

    /// Reads the header of a log and returns its length.
    fn check(&self, log: &impl Medium) -> Result<u64, BlockError> {
        let failed = |error: io::Error| BlockError::from_io(Op::Open, error);
        let mut bytes = [0; size_of::<Header>()];
        if log.len().map_err(failed)? < bytes.len() as u64 {
            return Err(invalid("the log of the overlay has no header".to_owned()));
        }
        log.read_at(&mut bytes, 0).map_err(failed)?;
        let header = Header::read_from_bytes(&bytes).expect("as long as it is");
        let len = header.identity_len.get() as usize;
        if ![MAGIC, MAGIC_IN_PLACE].contains(&header.magic) || len > IDENTITY_MAX {
            return Err(invalid("not the log of an overlay".to_owned()));
        }
        if header.magic != self.magic() {
            let text = match self.target {
                None => "the state of an overlay in place, whose data is in a target",
                Some(_) => "the log of an overlay that has its data in itself, not in a target",
            };
            return Err(invalid(text.to_owned()));
        }
        if header.version.get() != VERSION || u64::from(header.chunk.get()) != CHUNK_SIZE {
            return Err(invalid(format!(
                "an overlay of version {}, known is {VERSION}",
                header.version.get()
            )));
        }
        let mut identity = vec![0; len];
        log.read_at(&mut identity, bytes.len() as u64).map_err(failed)?;
        let unsigned = Header {
            crc: 0.into(),
            ..header
        };
        if crc(unsigned.as_bytes(), &identity) != header.crc.get() {
            return Err(invalid("the header of the overlay's log is damaged".to_owned()));
        }
        let said = String::from_utf8_lossy(&identity).into_owned();
        let mut parts = said.split('\0').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        let (base, name, mark) = match self.target {
            None => (said.clone(), String::new(), String::new()),
            Some(_) => (part(), part(), part()),
        };
        if base != self.identity || header.size.get() != self.size {
            return Err(invalid(format!(
                "the overlay belongs to {base:?} of {} bytes, not to {:?} of {}",
                header.size.get(),
                self.identity,
                self.size
            )));
        }
        if let Some(target) = &self.target {
            if target.name != name {
                let (has, found) = (&name, &target.name);
                return Err(invalid(format!("the overlay is in another target: {has}, not {found}")));
            }
            if target.mark != mark {
                let text =
                    "the target was filled by another overlay since, or replaced: its mark is not that of this state";
                return Err(invalid(text.to_owned()));
            }
        }
        Ok((bytes.len() + len) as u64)
    }

    /// Reads a log to the end of its last whole record.
    pub(super) fn replay(&self, log: &impl Medium) -> Result<Replayed, BlockError> {
        let failed = |error: io::Error| BlockError::from_io(Op::Read, error);
        let end = log.len().map_err(failed)?;
        let mut said = Replayed {
            chunks: BTreeMap::new(),
            len: self.check(log)?,
            batch: 0,
            is_complete: false,
        };
        let chunks = self.size.div_ceil(CHUNK_SIZE);
        // The record before: batch, place in it, records of it.
        let mut last: Option<(u64, u32, u32)> = None;
        let mut window = Window::new(log, end);
        while let Some((record, word)) = window.record(said.len).map_err(failed)? {
            let (batch, index, count) = (record.batch.get(), record.index.get(), record.count.get());
            let begins = batch == said.batch && index == 0;
            let goes_on = last.is_some_and(|(same, before, of)| batch == same && index == before + 1 && count == of);
            if !(begins || goes_on) || index >= count {
                break;
            }
            if record.chunk.get() >= chunks {
                return Err(invalid(format!(
                    "the overlay's log names chunk {} of {chunks}",
                    record.chunk.get()
                )));
            }
            said.len += size_of::<Record>() as u64 + u64::from(record.len.get());
            said.batch = batch + 1;
            last = Some((batch, index, count));
            match word {
                Word::State(state) => drop(said.chunks.insert(record.chunk.get(), state)),
                Word::Complete if self.target.is_some() => said.is_complete = true,
                Word::Complete => return Err(invalid("a target is complete that there is none of".to_owned())),
            }
        }
        // In what follows there may be records of the batch that was cut short, and no later ones.
        let is_open = last.is_some_and(|(_, index, count)| index + 1 < count);
        let cut_short = if is_open { said.batch - 1 } else { said.batch };
        let mut at = said.len;
        while at + size_of::<Record>() as u64 <= end {
            let found = window.record(at).map_err(failed)?;
            if found.is_some_and(|(record, _)| record.batch.get() > cut_short) {
                return Err(invalid(format!("the overlay's log is damaged at byte {}", said.len)));
            }
            at += 1;
        }
        Ok(said)
    }
}

/// One batch as bytes.
pub(super) fn encode(batch: u64, states: &[(u64, State)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(states.len() * (size_of::<Record>() + 64));
    for (index, (chunk, state)) in states.iter().enumerate() {
        encode_one(
            Slot {
                batch,
                index,
                count: states.len(),
            },
            *chunk,
            state,
            &mut bytes,
        );
    }
    bytes
}

/// The batch that says that the whole volume is in the target.
pub(super) fn encode_complete(batch: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    push(
        Slot {
            batch,
            index: 0,
            count: 1,
        },
        COMPLETE,
        0,
        &[],
        &mut bytes,
    );
    bytes
}

/// Which of how many records of which batch.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub(super) batch: u64,
    pub(super) index: usize,
    pub(super) count: usize,
}

/// One record of a batch.
pub(super) fn encode_one(slot: Slot, chunk: u64, state: &State, bytes: &mut Vec<u8>) {
    let mut body = Vec::new();
    let kind = match state {
        State::Zero => ZERO,
        State::Data => DATA,
        State::Mixed(sectors) => {
            for word in sectors.data.iter().chain(&sectors.zero) {
                body.extend_from_slice(&word.to_le_bytes());
            }
            MIXED
        }
    };
    push(slot, kind, chunk, &body, bytes);
}

fn push(slot: Slot, kind: u32, chunk: u64, body: &[u8], bytes: &mut Vec<u8>) {
    let count = u32::try_from(slot.count).expect("chunks of a volume are counted by 32 bits in a batch");
    let mut record = Record {
        magic: RECORD_MAGIC.into(),
        kind: kind.into(),
        batch: slot.batch.into(),
        index: u32::try_from(slot.index).expect("below the count").into(),
        count: count.into(),
        chunk: chunk.into(),
        len: u32::try_from(body.len()).expect("512 at most").into(),
        crc: 0.into(),
    };
    record.crc = crc(record.as_bytes(), body).into();
    bytes.extend_from_slice(record.as_bytes());
    bytes.extend_from_slice(body);
}

/// What a record says.
enum Word {
    State(State),
    Complete,
}

/// A part of a log in memory.
struct Window<'a, M> {
    log: &'a M,
    end: u64,
    start: u64,
    bytes: Vec<u8>,
}

/// Bytes of a log read at once.
const READ: u64 = 256 << 10;

impl<'a, M: Medium> Window<'a, M> {
    fn new(log: &'a M, end: u64) -> Self {
        Self {
            log,
            end,
            start: 0,
            bytes: Vec::new(),
        }
    }

    /// The bytes from `at`, as many as a record may have, less at the end.
    fn at(&mut self, at: u64) -> io::Result<&[u8]> {
        let longest = (size_of::<Record>() + BODY) as u64;
        let want = longest.min(self.end.saturating_sub(at));
        if at < self.start || at + want > self.start + self.bytes.len() as u64 {
            let len = READ.min(self.end.saturating_sub(at));
            self.bytes.resize(usize::try_from(len).expect("256 KiB"), 0);
            self.log.read_at(&mut self.bytes, at)?;
            self.start = at;
        }
        let from = usize::try_from(at - self.start).expect("inside the window");
        Ok(&self.bytes[from..from + usize::try_from(want).expect("less than a KiB")])
    }

    /// The record at `at`; `None` when there is none that checks out.
    fn record(&mut self, at: u64) -> io::Result<Option<(Record, Word)>> {
        let bytes = self.at(at)?;
        let Ok((record, rest)) = Record::read_from_prefix(bytes) else {
            return Ok(None);
        };
        let len = record.len.get() as usize;
        let mixed = record.kind.get() == MIXED;
        let formed = record.magic.get() == RECORD_MAGIC
            && (ZERO..=COMPLETE).contains(&record.kind.get())
            && len == if mixed { BODY } else { 0 };
        let Some(body) = rest.get(..len).filter(|_| formed) else {
            return Ok(None);
        };
        let unsigned = Record {
            crc: 0.into(),
            ..record
        };
        if crc(unsigned.as_bytes(), body) != record.crc.get() {
            return Ok(None);
        }
        let state = match record.kind.get() {
            COMPLETE => return Ok(Some((record, Word::Complete))),
            ZERO => State::Zero,
            DATA => State::Data,
            _ => {
                let word = |index: usize| {
                    let bytes = body[index * 8..index * 8 + 8].try_into().expect("eight bytes");
                    u64::from_le_bytes(bytes)
                };
                State::Mixed(Box::new(Sectors {
                    data: std::array::from_fn(word),
                    zero: std::array::from_fn(|index| word(index + BODY / 16)),
                }))
            }
        };
        Ok(Some((record, Word::State(state))))
    }
}
