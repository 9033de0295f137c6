//! A client made of bytes, so that it can say what no decent one would. Numbers are written out: it shares nothing with the server.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::DEADLINE;

/// A connection that has got the greeting.
pub(super) struct Raw {
    pub(super) stream: UnixStream,
    extended: bool,
    structured: bool,
}

/// A reply to an option: its type and data.
pub(super) type OptionReply = (u32, Vec<u8>);

pub(super) const ACK: u32 = 1;
pub(super) const ERROR: u32 = 1 << 31;

impl Raw {
    /// Connects and says that it knows fixed newstyle and needs no zeros.
    pub(super) fn connect(socket: &Path) -> Self {
        let mut raw = Self::greeted(socket);
        raw.send(&3u32.to_be_bytes());
        raw
    }

    /// Connects and says nothing.
    pub(super) fn greeted(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        let mut raw = Self {
            stream,
            extended: false,
            structured: false,
        };
        let greeting = raw.receive(18).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(greeting[16..], [0, 3]);
        raw
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(super) fn receive(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// The server has closed the connection; what it said before is passed over.
    #[track_caller]
    pub(super) fn is_closed(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "still open: {error}"),
        }
    }

    pub(super) fn send_option(&mut self, option: u32, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap();
        self.send(&option_header(option, len));
        self.send(data);
    }

    /// Replies to an option up to the last one.
    pub(super) fn replies(&mut self, option: u32) -> Vec<OptionReply> {
        let mut replies = Vec::new();
        loop {
            let head = self.receive(20).unwrap();
            assert_eq!(head[..8], 0x0003_e889_0455_65a9u64.to_be_bytes());
            assert_eq!(word(&head, 8), option);
            let (kind, len) = (word(&head, 12), word(&head, 16));
            replies.push((kind, self.receive(len as usize).unwrap()));
            if kind == ACK || kind & ERROR != 0 {
                return replies;
            }
        }
    }

    pub(super) fn option(&mut self, option: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send_option(option, data);
        self.replies(option)
    }

    /// Type of the last reply to an option.
    pub(super) fn answer(&mut self, option: u32, data: &[u8]) -> u32 {
        self.option(option, data).pop().unwrap().0
    }

    pub(super) fn structured(mut self) -> Self {
        assert_eq!(self.answer(8, b""), ACK);
        self.structured = true;
        self
    }

    pub(super) fn extended(mut self) -> Self {
        assert_eq!(self.answer(11, b""), ACK);
        self.extended = true;
        self
    }

    /// Selects `base:allocation` for `disk`.
    pub(super) fn status(mut self) -> Self {
        let replies = self.option(10, &contexts("disk", &["base:allocation"]));
        assert_eq!(replies.len(), 2, "{replies:?}");
        self
    }

    /// Goes over to transmission.
    pub(super) fn go(mut self, name: &str) -> Client {
        let replies = self.option(7, &ask(name.as_bytes(), &[]));
        assert_eq!(replies.last().unwrap().0, ACK, "{replies:?}");
        let export = &replies
            .iter()
            .find(|(kind, data)| *kind == 3 && data[..2] == [0, 0])
            .unwrap()
            .1;
        Client {
            size: u64::from_be_bytes(export[2..10].try_into().unwrap()),
            flags: u16::from_be_bytes(export[10..12].try_into().unwrap()),
            raw: self,
            cookie: 0,
        }
    }
}

pub(super) fn option_header(option: u32, len: u32) -> Vec<u8> {
    [&b"IHAVEOPT"[..], &option.to_be_bytes(), &len.to_be_bytes()].concat()
}

/// Data of INFO and GO.
pub(super) fn ask(name: &[u8], kinds: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name);
    data.extend(u16::try_from(kinds.len()).unwrap().to_be_bytes());
    kinds.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

/// Data of the options about metadata contexts.
pub(super) fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend(u32::try_from(query.len()).unwrap().to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(super) fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub(super) const READ: u16 = 0;
pub(super) const WRITE: u16 = 1;
pub(super) const DISC: u16 = 2;
pub(super) const FLUSH: u16 = 3;
pub(super) const TRIM: u16 = 4;
pub(super) const CACHE: u16 = 5;
pub(super) const ZEROES: u16 = 6;
pub(super) const STATUS: u16 = 7;

pub(super) const FUA: u16 = 1;
pub(super) const NO_HOLE: u16 = 2;
pub(super) const DF: u16 = 4;
pub(super) const REQ_ONE: u16 = 8;
pub(super) const FAST: u16 = 16;
pub(super) const PAYLOAD: u16 = 32;

pub(super) const EPERM: u32 = 1;
pub(super) const EIO: u32 = 5;
pub(super) const EINVAL: u32 = 22;
pub(super) const ENOSPC: u32 = 28;
pub(super) const EOVERFLOW: u32 = 75;
pub(super) const ESHUTDOWN: u32 = 108;

/// A client in transmission.
pub(super) struct Client {
    pub(super) raw: Raw,
    pub(super) size: u64,
    pub(super) flags: u16,
    cookie: u64,
}

/// One chunk of a reply; a simple reply is a chunk of type `SIMPLE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) cookie: u64,
    pub(super) kind: u16,
    pub(super) last: bool,
    pub(super) body: Vec<u8>,
}

pub(super) const SIMPLE: u16 = 999;

impl Client {
    /// Header of a request in the width of this connection.
    pub(super) fn header(&self, flags: u16, command: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
        let magic = if self.raw.extended { 0x21e4_1c71u32 } else { 0x2560_9513 };
        let mut header = magic.to_be_bytes().to_vec();
        header.extend(flags.to_be_bytes());
        header.extend(command.to_be_bytes());
        header.extend(cookie.to_be_bytes());
        header.extend(offset.to_be_bytes());
        if self.raw.extended {
            header.extend(len.to_be_bytes());
        } else {
            header.extend(u32::try_from(len).unwrap().to_be_bytes());
        }
        header
    }

    /// Sends a request and returns its cookie.
    pub(super) fn ask(&mut self, flags: u16, command: u16, offset: u64, len: u64, payload: &[u8]) -> u64 {
        self.cookie += 1;
        let header = self.header(flags, command, self.cookie, offset, len);
        self.raw.send(&header);
        self.raw.send(payload);
        self.cookie
    }

    /// Receives a chunk. The data behind a simple reply is not part of it.
    pub(super) fn chunk(&mut self) -> io::Result<Chunk> {
        let magic = self.raw.receive(4)?;
        match word(&magic, 0) {
            0x6744_6698 => {
                let rest = self.raw.receive(12)?;
                Ok(Chunk {
                    cookie: long(&rest, 4),
                    kind: SIMPLE,
                    last: true,
                    body: rest[..4].to_vec(),
                })
            }
            0x668e_33ef if !self.raw.extended => {
                let rest = self.raw.receive(16)?;
                let body = self.raw.receive(word(&rest, 12) as usize)?;
                Ok(chunk_of(&rest, body))
            }
            0x6e8a_278c if self.raw.extended => {
                let rest = self.raw.receive(28)?;
                let body = self.raw.receive(usize::try_from(long(&rest, 20)).unwrap())?;
                Ok(chunk_of(&rest, body))
            }
            other => panic!("not a reply: {other:#x}"),
        }
    }

    /// All chunks of the reply to `cookie`; nothing else is in flight.
    pub(super) fn reply(&mut self, cookie: u64) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        loop {
            let chunk = self.chunk().unwrap();
            assert_eq!(chunk.cookie, cookie);
            chunks.push(chunk);
            if chunks.last().unwrap().last {
                return chunks;
            }
        }
    }

    /// Sends a request and returns the number of the error, 0 for success.
    pub(super) fn told(&mut self, flags: u16, command: u16, offset: u64, len: u64, payload: &[u8]) -> u32 {
        let cookie = self.ask(flags, command, offset, len, payload);
        let chunks = self.reply(cookie);
        error_of(chunks.last().unwrap())
    }

    /// Reads in chunks, or simply, and puts the data together.
    pub(super) fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        let cookie = self.ask(0, READ, offset, u64::from(len), &[]);
        self.read_reply(cookie, offset, len)
    }

    pub(super) fn read_reply(&mut self, cookie: u64, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        if !self.raw.structured && !self.raw.extended {
            let chunk = self.chunk().unwrap();
            assert_eq!((chunk.cookie, chunk.kind), (cookie, SIMPLE));
            return match error_of(&chunk) {
                0 => Ok(self.raw.receive(len as usize).unwrap()),
                error => Err(error),
            };
        }
        let mut data = vec![0xee; len as usize];
        let mut covered = 0;
        for chunk in self.reply(cookie) {
            assert_ne!(chunk.kind, SIMPLE, "a READ is answered in chunks");
            let error = error_of(&chunk);
            if error != 0 {
                return Err(error);
            }
            let at = || usize::try_from(long(&chunk.body, 0) - offset).unwrap();
            match chunk.kind {
                0 => {}
                1 => {
                    data[at()..at() + chunk.body.len() - 8].copy_from_slice(&chunk.body[8..]);
                    covered += chunk.body.len() - 8;
                }
                2 => {
                    let hole = word(&chunk.body, 8) as usize;
                    data[at()..at() + hole].fill(0);
                    covered += hole;
                }
                other => panic!("chunk of type {other} in a READ"),
            }
        }
        assert_eq!(covered, len as usize, "all of the data, once");
        Ok(data)
    }

    /// Extents of a BLOCK_STATUS: lengths and flags.
    pub(super) fn extents(&mut self, flags: u16, offset: u64, len: u64) -> Result<Vec<(u64, u64)>, u32> {
        let cookie = self.ask(flags, STATUS, offset, len, &[]);
        self.extents_reply(cookie)
    }

    pub(super) fn extents_reply(&mut self, cookie: u64) -> Result<Vec<(u64, u64)>, u32> {
        let chunks = self.reply(cookie);
        let chunk = &chunks[0];
        match error_of(chunk) {
            0 => {}
            error => return Err(error),
        }
        assert_eq!(word(&chunk.body, 0), 1, "the id of the context");
        if self.raw.extended {
            assert_eq!(chunk.kind, 6);
            assert_eq!(word(&chunk.body, 4) as usize, (chunk.body.len() - 8) / 16);
            return Ok(chunk.body[8..].chunks(16).map(|e| (long(e, 0), long(e, 8))).collect());
        }
        assert_eq!(chunk.kind, 5);
        let pairs = chunk.body[4..].chunks(8);
        Ok(pairs.map(|e| (u64::from(word(e, 0)), u64::from(word(e, 4)))).collect())
    }

    /// Leaves as one should, and sees the server close.
    pub(super) fn disconnect(mut self) {
        self.ask(0, DISC, 0, 0, &[]);
        self.raw.is_closed();
    }

    /// Says that nothing follows.
    pub(super) fn stop_sending(&mut self) {
        self.raw.stream.shutdown(Shutdown::Write).unwrap();
    }
}

fn chunk_of(rest: &[u8], body: Vec<u8>) -> Chunk {
    Chunk {
        cookie: long(rest, 4),
        kind: u16::from_be_bytes([rest[2], rest[3]]),
        last: rest[1] & 1 != 0,
        body,
    }
}

/// Number of the error in a chunk; 0 when it is none.
pub(super) fn error_of(chunk: &Chunk) -> u32 {
    let is_error = chunk.kind == SIMPLE || chunk.kind & 0x8000 != 0;
    if is_error { word(&chunk.body, 0) } else { 0 }
}
