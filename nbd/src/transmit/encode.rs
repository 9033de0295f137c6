//! Replies as bytes.

use super::Style;
use crate::error::Errno;
use crate::proto::{self, chunk};
use zerocopy::IntoBytes;

/// The longest head of a reply: an extended chunk with the body of a hole.
const HEAD_MAX: usize = size_of::<proto::ExtendedChunk>() + size_of::<proto::Hole>();

/// Longest text in an error. Enough for a sentence.
const TEXT_MAX: usize = 200;

/// What comes before the data of a reply, or all of it.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; HEAD_MAX],
    len: u8,
}

impl Head {
    /// No bytes: more data follows what was sent before.
    pub const EMPTY: Self = Self {
        bytes: [0; HEAD_MAX],
        len: 0,
    };

    fn of(parts: [&[u8]; 2]) -> Self {
        let mut head = Self::EMPTY;
        for part in parts {
            let at = usize::from(head.len);
            head.bytes[at..at + part.len()].copy_from_slice(part);
            head.len += u8::try_from(part.len()).expect("parts of a head are short");
        }
        head
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Encodes the replies to one request.
#[derive(Clone, Copy, Debug)]
pub struct Encoder {
    /// How replies look on this connection.
    pub style: Style,
    /// Cookie of the request.
    pub cookie: u64,
    /// Offset of the request.
    pub offset: u64,
}

impl Encoder {
    /// Success, and no data. `chunked` when the answer must be a chunk wherever there are chunks, as that of a READ must.
    pub fn done(&self, chunked: bool) -> Head {
        match self.style {
            Style::Extended => self.chunk(chunk::NONE, true, 0, &[]),
            Style::Structured if chunked => self.chunk(chunk::NONE, true, 0, &[]),
            _ => self.simple(0),
        }
    }

    /// `len` bytes of data that lie at `offset`; they follow. In a simple reply this is the head of all the data.
    pub fn data(&self, offset: u64, len: u32, last: bool) -> Head {
        match self.style {
            Style::Simple => self.simple(0),
            _ => self.chunk(chunk::OFFSET_DATA, last, 8 + u64::from(len), &offset.to_be_bytes()),
        }
    }

    /// `len` bytes of zeros at `offset`. Not for simple replies.
    pub fn hole(&self, offset: u64, len: u32, last: bool) -> Head {
        let hole = proto::Hole {
            offset: offset.into(),
            size: len.into(),
        };
        self.chunk(
            chunk::OFFSET_HOLE,
            last,
            size_of::<proto::Hole>() as u64,
            hole.as_bytes(),
        )
    }

    /// Head of a chunk of extents; `len` bytes of body follow. Not for simple replies.
    pub fn status(&self, len: usize) -> Head {
        let kind = match self.style {
            Style::Extended => chunk::BLOCK_STATUS_EXT,
            _ => chunk::BLOCK_STATUS,
        };
        self.chunk(kind, true, len as u64, &[])
    }

    /// Failure, about the byte `at` where that is known. Text and place go only into replies that have room for them.
    pub fn error(&self, error: Errno, text: &str, at: Option<u64>) -> (Head, Vec<u8>) {
        if self.style == Style::Simple {
            return (self.simple(error.code()), Vec::new());
        }
        let text = &text[..text.floor_char_boundary(TEXT_MAX)];
        let head = proto::ErrorHead {
            error: error.code().into(),
            message_length: u16::try_from(text.len()).expect("cut above").into(),
        };
        let mut body = [head.as_bytes(), text.as_bytes()].concat();
        if let Some(at) = at {
            body.extend_from_slice(&at.to_be_bytes());
        }
        let kind = if at.is_some() {
            chunk::ERROR_OFFSET
        } else {
            chunk::ERROR
        };
        (self.chunk(kind, true, body.len() as u64, &[]), body)
    }

    fn simple(&self, error: u32) -> Head {
        let reply = proto::SimpleReply {
            magic: proto::SIMPLE_REPLY_MAGIC.into(),
            error: error.into(),
            cookie: self.cookie.into(),
        };
        Head::of([reply.as_bytes(), &[]])
    }

    fn chunk(&self, kind: u16, last: bool, length: u64, start: &[u8]) -> Head {
        let flags = if last { chunk::FLAG_DONE } else { 0 };
        if self.style == Style::Extended {
            let chunk = proto::ExtendedChunk {
                magic: proto::EXTENDED_CHUNK_MAGIC.into(),
                flags: flags.into(),
                kind: kind.into(),
                cookie: self.cookie.into(),
                offset: self.offset.into(),
                length: length.into(),
            };
            return Head::of([chunk.as_bytes(), start]);
        }
        let chunk = proto::Chunk {
            magic: proto::CHUNK_MAGIC.into(),
            flags: flags.into(),
            kind: kind.into(),
            cookie: self.cookie.into(),
            length: u32::try_from(length)
                .expect("chunks are at most 32 MiB and a head")
                .into(),
        };
        Head::of([chunk.as_bytes(), start])
    }
}
