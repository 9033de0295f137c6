//! Numbers and messages of the NBD protocol, as they stand on the wire. Everything is big-endian.
//!
//! Source: NetworkBlockDevice/nbd, doc/proto.md; for extended headers the same file in the branch extension-ext-header.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `NBDMAGIC`, the first bytes of a server.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, before every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Before a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Before a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Before a chunk of an extended reply.
pub const EXTENDED_CHUNK_MAGIC: u32 = 0x6e8a_278c;

/// Strings (names, descriptions, messages, queries) are never longer.
pub const STRING_MAX: usize = 4096;
/// A payload up to this is never refused for its size alone: 32 MiB.
pub const PAYLOAD_MAX: u32 = 32 << 20;

/// Flags of the handshake, both directions.
pub mod handshake {
    /// Fixed newstyle: unknown options are answered.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// No 124 zero bytes after the answer to EXPORT_NAME.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Options of the handshake.
pub mod option {
    #![allow(missing_docs, reason = "the names of the protocol document")]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options.
pub mod reply {
    #![allow(missing_docs, reason = "the names of the protocol document")]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR + 1;
    pub const ERR_POLICY: u32 = ERROR + 2;
    pub const ERR_INVALID: u32 = ERROR + 3;
    pub const ERR_TLS_REQD: u32 = ERROR + 5;
    pub const ERR_UNKNOWN: u32 = ERROR + 6;
    pub const ERR_SHUTDOWN: u32 = ERROR + 7;
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR + 8;
    pub const ERR_TOO_BIG: u32 = ERROR + 9;
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR + 10;
}

/// Kinds of information about an export.
pub mod info {
    #![allow(missing_docs, reason = "the names of the protocol document")]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub mod flag {
    #![allow(missing_docs, reason = "the names of the protocol document")]
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Commands.
pub mod command {
    #![allow(missing_docs, reason = "the names of the protocol document")]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub mod command_flag {
    #![allow(missing_docs, reason = "the names of the protocol document")]
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Types and flags of reply chunks.
pub mod chunk {
    #![allow(missing_docs, reason = "the names of the protocol document")]
    pub const FLAG_DONE: u16 = 1;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const BLOCK_STATUS_EXT: u16 = 6;
    pub const ERROR: u16 = 1 << 15 | 1;
    pub const ERROR_OFFSET: u16 = 1 << 15 | 2;
}

/// The metadata context `base:allocation`.
pub mod allocation {
    /// Its name.
    pub const NAME: &str = "base:allocation";
    /// The number it gets on every connection. Any number would do; not 0, which LIST uses.
    pub const ID: u32 = 1;
    /// Nothing is allocated there.
    pub const HOLE: u32 = 1;
    /// Reads as zero.
    pub const ZERO: u32 = 1 << 1;
}

macro_rules! wire {
    ($(#[$doc:meta])* $name:ident, $size:literal { $($field:ident: $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(C)]
        #[allow(missing_docs, reason = "the names of the protocol document")]
        pub struct $name { $(pub $field: $type),+ }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

wire!(
    /// What the server says first.
    Greeting, 18 { init_magic: U64, option_magic: U64, flags: U16 }
);
wire!(
    /// Before the data of an option; `length` bytes of it follow.
    OptionHeader, 16 { magic: U64, option: U32, length: U32 }
);
wire!(
    /// Before the data of a reply to an option.
    OptionReply, 20 { magic: U64, option: U32, kind: U32, length: U32 }
);
wire!(
    /// Answer to EXPORT_NAME; 124 zero bytes follow unless NO_ZEROES was agreed.
    ExportNameReply, 10 { size: U64, flags: U16 }
);
wire!(
    /// Size and flags of an export.
    InfoExport, 12 { kind: U16, size: U64, flags: U16 }
);
wire!(
    /// Block sizes of an export.
    InfoBlockSize, 14 { kind: U16, minimum: U32, preferred: U32, maximum: U32 }
);
wire!(
    /// A compact request. `length` bytes follow a WRITE.
    Request, 28 { magic: U32, flags: U16, command: U16, cookie: U64, offset: U64, length: U32 }
);
wire!(
    /// An extended request. `length` bytes follow when the flag PAYLOAD_LEN is set.
    ExtendedRequest, 32 { magic: U32, flags: U16, command: U16, cookie: U64, offset: U64, length: U64 }
);
wire!(
    /// A simple reply; the data of a READ follows.
    SimpleReply, 16 { magic: U32, error: U32, cookie: U64 }
);
wire!(
    /// Head of a chunk of a structured reply.
    Chunk, 20 { magic: U32, flags: U16, kind: U16, cookie: U64, length: U32 }
);
wire!(
    /// Head of a chunk of an extended reply. `offset` repeats that of the request.
    ExtendedChunk, 32 { magic: U32, flags: U16, kind: U16, cookie: U64, offset: U64, length: U64 }
);
wire!(
    /// Body of an OFFSET_HOLE chunk.
    Hole, 12 { offset: U64, size: U32 }
);
wire!(
    /// Start of the body of an error chunk; the message follows, then the offset in ERROR_OFFSET.
    ErrorHead, 6 { error: U32, message_length: U16 }
);
wire!(
    /// One extent in a BLOCK_STATUS chunk.
    StatusExtent, 8 { length: U32, flags: U32 }
);
wire!(
    /// One extent in a BLOCK_STATUS_EXT chunk.
    StatusExtentExt, 16 { length: U64, flags: U64 }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magics_that_are_words_read_as_those_words() {
        assert_eq!(&INIT_MAGIC.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&OPTION_MAGIC.to_be_bytes(), b"IHAVEOPT");
    }

    #[test]
    fn a_request_lies_as_the_document_says() {
        let mut bytes = [0u8; 28];
        bytes[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
        bytes[5] = 1;
        bytes[7] = 6;
        bytes[15] = 9;
        bytes[22] = 1;
        bytes[26] = 2;
        let request = Request::read_from_bytes(&bytes[..]).unwrap();
        assert_eq!(request.magic.get(), REQUEST_MAGIC);
        assert_eq!(
            (request.flags.get(), request.command.get()),
            (command_flag::FUA, command::WRITE_ZEROES)
        );
        assert_eq!(
            (request.cookie.get(), request.offset.get(), request.length.get()),
            (9, 256, 512)
        );
    }
}
