//! Transmission over bytes: requests are decoded and checked, replies encoded. No IO, no memory by a claimed length.

mod encode;
mod status;

use crate::error::Errno;
use crate::proto::{self, PAYLOAD_MAX, command, command_flag};
use blockio::Extent;
use zerocopy::FromBytes;

pub use encode::{Encoder, Head};
pub use status::{StatusList, parse_payload};

/// A payload that is refused is read and dropped up to this, to stay in step; what claims more is no client. Twice what is
/// accepted, as other servers have it.
pub const DRAIN_MAX: u64 = 64 << 20;

/// What a payload of BLOCK_STATUS may hold: an effect length and some ids. There is one context, so one id is useful.
pub const STATUS_PAYLOAD_MAX: u64 = 8 + 4 * 64;

/// How replies look on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// 28-byte requests, 16-byte replies.
    Simple,
    /// READ and BLOCK_STATUS are answered in chunks.
    Structured,
    /// 32-byte heads in both directions, lengths of 64 bits, all answers in chunks.
    Extended,
}

/// What was agreed for one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// How replies look.
    pub style: Style,
    /// `base:allocation` was selected for this export.
    pub status: bool,
    /// Bytes of the export.
    pub size: u64,
    /// Offsets and lengths are multiples of this.
    pub block_min: u32,
    /// The export takes writes.
    pub writable: bool,
    /// Zeros of any length are quick.
    pub fast_zero: bool,
    /// Transmission flags as they were sent.
    pub flags: u16,
}

/// A command that can be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read; all in one chunk if `whole`.
    Read {
        /// DF was set.
        whole: bool,
    },
    /// Write the payload.
    Write,
    /// Make durable what was answered before.
    Flush,
    /// These bytes are not needed any more.
    Trim,
    /// These bytes will be read soon.
    Cache,
    /// Make zero.
    WriteZeroes {
        /// The range stays allocated.
        no_hole: bool,
        /// Refuse rather than write zeros.
        fast: bool,
    },
    /// What is allocated, what is zero.
    BlockStatus {
        /// One extent is enough.
        one: bool,
        /// The payload holds effect length and ids.
        payload: bool,
    },
}

/// A request that was checked against its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Durable before it is answered.
    pub fua: bool,
    /// The client's name for it.
    pub cookie: u64,
    /// On which bytes. Inside the export, except for FLUSH, and for BLOCK_STATUS with a payload.
    pub extent: Extent,
    /// Bytes behind the header.
    pub payload: u64,
}

/// What the next bytes of a client are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A header is not complete yet.
    Incomplete,
    /// To be carried out.
    Request(Request),
    /// To be answered with an error, after `drain` bytes of payload were dropped.
    Refused {
        /// The client's name for it.
        cookie: u64,
        /// Offset as the client gave it.
        offset: u64,
        /// What is wrong.
        error: Errno,
        /// In words.
        text: &'static str,
        /// Bytes behind the header.
        drain: u64,
    },
    /// The client is done.
    Disconnect,
    /// Not a client any more; says why.
    Broken(&'static str),
}

/// Header fields of either width.
struct Raw {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u64,
}

impl Session {
    /// Bytes of a request header.
    pub fn header_len(&self) -> usize {
        match self.style {
            Style::Extended => size_of::<proto::ExtendedRequest>(),
            _ => size_of::<proto::Request>(),
        }
    }

    /// Decodes the request header at the start of `input`.
    pub fn decode(&self, input: &[u8]) -> Decoded {
        let raw = if self.style == Style::Extended {
            let Ok((raw, _)) = proto::ExtendedRequest::read_from_prefix(input) else {
                return Decoded::Incomplete;
            };
            if raw.magic.get() != proto::EXTENDED_REQUEST_MAGIC {
                return Decoded::Broken("wrong magic before a request");
            }
            Raw {
                flags: raw.flags.get(),
                command: raw.command.get(),
                cookie: raw.cookie.get(),
                offset: raw.offset.get(),
                length: raw.length.get(),
            }
        } else {
            let Ok((raw, _)) = proto::Request::read_from_prefix(input) else {
                return Decoded::Incomplete;
            };
            if raw.magic.get() != proto::REQUEST_MAGIC {
                return Decoded::Broken("wrong magic before a request");
            }
            Raw {
                flags: raw.flags.get(),
                command: raw.command.get(),
                cookie: raw.cookie.get(),
                offset: raw.offset.get(),
                length: u64::from(raw.length.get()),
            }
        };
        self.check(&raw)
    }

    fn check(&self, raw: &Raw) -> Decoded {
        if raw.command == command::DISC {
            return Decoded::Disconnect;
        }
        // The flag exists only with extended headers. A WRITE has a payload in any case, with or without it.
        let flagged = self.style == Style::Extended && raw.flags & command_flag::PAYLOAD_LEN != 0;
        let payload = if flagged || raw.command == command::WRITE {
            raw.length
        } else {
            0
        };
        if payload > DRAIN_MAX {
            return Decoded::Broken("a payload of more than 64 MiB");
        }
        match self.accept(raw, flagged) {
            Ok((command, extent)) => Decoded::Request(Request {
                command,
                fua: raw.flags & command_flag::FUA != 0,
                cookie: raw.cookie,
                extent,
                payload,
            }),
            Err((error, text)) => Decoded::Refused {
                cookie: raw.cookie,
                offset: raw.offset,
                error,
                text,
                drain: payload,
            },
        }
    }

    fn accept(&self, raw: &Raw, flagged: bool) -> Result<(Command, Extent), (Errno, &'static str)> {
        let set = |flag: u16| raw.flags & flag != 0;
        let (command, allowed) = match raw.command {
            command::READ => (
                Command::Read {
                    whole: set(command_flag::DF),
                },
                self.df(),
            ),
            command::WRITE if flagged => (Command::Write, command_flag::PAYLOAD_LEN),
            command::WRITE => (Command::Write, 0),
            command::FLUSH => (Command::Flush, 0),
            command::TRIM => (Command::Trim, 0),
            command::CACHE => (Command::Cache, 0),
            command::WRITE_ZEROES => (
                Command::WriteZeroes {
                    no_hole: set(command_flag::NO_HOLE),
                    fast: set(command_flag::FAST_ZERO),
                },
                command_flag::NO_HOLE | command_flag::FAST_ZERO,
            ),
            command::BLOCK_STATUS => (
                Command::BlockStatus {
                    one: set(command_flag::REQ_ONE),
                    payload: flagged,
                },
                command_flag::REQ_ONE
                    | if flagged && self.status {
                        command_flag::PAYLOAD_LEN
                    } else {
                        0
                    },
            ),
            _ => return Err((Errno::Inval, "unknown command")),
        };
        // A command that writes nothing may say FUA; CACHE takes no flag at all.
        let fua = if command == Command::Cache {
            0
        } else {
            command_flag::FUA
        };
        if raw.flags & !(allowed | fua) != 0 {
            return Err((Errno::Inval, "unknown or misplaced flag"));
        }
        let writes = matches!(command, Command::Write | Command::Trim | Command::WriteZeroes { .. });
        if writes && !self.writable {
            return Err((Errno::Perm, "this export is read-only"));
        }
        if command == Command::Flush {
            return Ok((command, Extent { offset: 0, len: 0 }));
        }
        if let Command::BlockStatus { payload, .. } = command {
            return self.accept_status(raw, command, payload);
        }
        let extent = self.extent(raw, command)?;
        if matches!(command, Command::Read { .. } | Command::Write) && extent.len > u64::from(PAYLOAD_MAX) {
            return Err(match command {
                Command::Read { whole: true } => (Errno::Overflow, "more than 32 MiB in one chunk"),
                _ => (Errno::Inval, "more than 32 MiB at once"),
            });
        }
        if matches!(command, Command::WriteZeroes { fast: true, .. }) && !self.fast_zero {
            return Err((Errno::NotSup, "zeros have to be written here"));
        }
        Ok((command, extent))
    }

    fn accept_status(
        &self,
        raw: &Raw,
        command: Command,
        payload: bool,
    ) -> Result<(Command, Extent), (Errno, &'static str)> {
        if !self.status {
            return Err((Errno::Inval, "no metadata context was selected"));
        }
        if payload {
            let fits = (8..=STATUS_PAYLOAD_MAX).contains(&raw.length) && raw.length.is_multiple_of(4);
            if !fits {
                return Err((Errno::Inval, "no list of contexts"));
            }
            // Its length is in the payload, and is checked by `parse_payload`.
            return Ok((
                command,
                Extent {
                    offset: raw.offset,
                    len: 0,
                },
            ));
        }
        if raw.length == 0 {
            return Err((Errno::Inval, "the status of nothing"));
        }
        Ok((command, self.extent(raw, command)?))
    }

    /// The extent of a request, when it is inside the export and on its grid.
    fn extent(&self, raw: &Raw, command: Command) -> Result<Extent, (Errno, &'static str)> {
        let outside = match command {
            Command::Write | Command::WriteZeroes { .. } => Errno::NoSpc,
            _ => Errno::Inval,
        };
        let extent = Extent::new(raw.offset, raw.length).ok_or((outside, "past the end of all numbers"))?;
        if extent.end() > self.size {
            return Err((outside, "past the end of the export"));
        }
        let grid = u64::from(self.block_min);
        // The last block may be cut short by the end of the export.
        let whole =
            extent.offset.is_multiple_of(grid) && (extent.len.is_multiple_of(grid) || extent.end() == self.size);
        if !whole {
            return Err((Errno::Inval, "not on the grid of the block size"));
        }
        Ok(extent)
    }

    fn df(&self) -> u16 {
        if self.style == Style::Simple {
            0
        } else {
            command_flag::DF
        }
    }
}

#[cfg(test)]
mod tests;
