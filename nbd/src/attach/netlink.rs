//! Messages to and from the kernel's NBD client over generic netlink: encoding and decoding, no IO.
//!
//! A message is a header (`struct nlmsghdr`, 16 bytes), a generic header (`struct genlmsghdr`, 4 bytes: command, version, two
//! unused) and attributes (`struct nlattr`: length with head, type, value), each padded to 4 bytes; numbers in the byte order of
//! the machine. Sources: include/uapi/linux/netlink.h, genetlink.h, nbd-netlink.h.

use super::error::AttachError;
use std::os::fd::RawFd;
use std::time::Duration;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct genlmsghdr`.
const GENERIC: usize = 4;
/// Bytes of `struct nlattr`.
const ATTRIBUTE: usize = 4;

/// Types of messages that are not of a family.
mod message {
    pub(super) const NOOP: u16 = 1;
    pub(super) const ERROR: u16 = 2;
    pub(super) const DONE: u16 = 3;
    /// The family that knows the families.
    pub(super) const CONTROL: u16 = 0x10;
}

/// Flags of messages: this is a request, and it wants to be confirmed.
const REQUEST_ACK: u16 = 1 | 4;

/// Marks an attribute that holds attributes; not a part of its type, like the bit below it.
const NESTED: u16 = 1 << 15;
const TYPE_MASK: u16 = 0x3fff;

/// Of the control family.
mod control {
    pub(super) const GET_FAMILY: u8 = 3;
    pub(super) const FAMILY_ID: u16 = 1;
    pub(super) const FAMILY_NAME: u16 = 2;
    pub(super) const GROUPS: u16 = 7;
    pub(super) const GROUP_NAME: u16 = 1;
    pub(super) const GROUP_ID: u16 = 2;
}

/// Commands of the family `nbd`.
mod command {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const DISCONNECT: u8 = 2;
    pub(super) const RECONFIGURE: u8 = 3;
    pub(super) const LINK_DEAD: u8 = 4;
    pub(super) const STATUS: u8 = 5;
}

/// Attributes of the family `nbd`.
mod attribute {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const TIMEOUT: u16 = 4;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const DEAD_CONN_TIMEOUT: u16 = 8;
    pub(super) const DEVICE_LIST: u16 = 9;
    pub(super) const BACKEND_IDENTIFIER: u16 = 10;
    /// In SOCKETS.
    pub(super) const SOCKET_ITEM: u16 = 1;
    /// In SOCKET_ITEM.
    pub(super) const SOCKET_FD: u16 = 1;
    /// In DEVICE_LIST.
    pub(super) const DEVICE_ITEM: u16 = 1;
    /// In DEVICE_ITEM.
    pub(super) const DEVICE_INDEX: u16 = 1;
    /// In DEVICE_ITEM.
    pub(super) const DEVICE_CONNECTED: u16 = 2;
}

/// Name of the family, and of its group that hears of dead links.
pub(super) const FAMILY: &str = "nbd";
const GROUP: &str = "nbd_mc_group";

/// What the kernel calls the family, which differs from boot to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Family {
    pub(super) id: u16,
    /// The group that hears of dead links.
    pub(super) group: Option<u32>,
}

/// A new device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connect<'a> {
    /// Bytes.
    pub(super) size: u64,
    /// Bytes of a block, logical and physical.
    pub(super) block: u32,
    /// Transmission flags.
    pub(super) flags: u16,
    pub(super) link: Link<'a>,
}

/// Connections of a device, and how patient it is with them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link<'a> {
    /// What it serves. Others cannot take its place.
    pub(super) identifier: &'a str,
    /// Until a request is given to another connection. Whole seconds.
    pub(super) timeout: Duration,
    /// Until requests fail when no connection is left. Whole seconds.
    pub(super) dead_timeout: Duration,
    /// One for each connection.
    pub(super) sockets: &'a [RawFd],
}

/// A message being written.
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn new(kind: u16, sequence: u32) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&REQUEST_ACK.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        Self { bytes }
    }

    /// Of a family: version 1 of both that we speak to.
    fn generic(kind: u16, sequence: u32, command: u8) -> Self {
        let mut writer = Self::new(kind, sequence);
        writer.bytes.extend([command, 1, 0, 0]);
        writer
    }

    fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.nest(kind, |writer| writer.bytes.extend(value))
    }

    fn put_u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Strings of the kernel end with a NUL.
    fn put_text(&mut self, kind: u16, text: &str) -> &mut Self {
        self.nest(kind, |writer| {
            writer.bytes.extend(text.bytes());
            writer.bytes.push(0);
        })
    }

    /// An attribute around what `fill` writes.
    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend([0; ATTRIBUTE]);
        fill(self);
        let len =
            u16::try_from(self.bytes.len() - start).expect("our messages are short: identifiers and a few sockets");
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).expect("our messages are short: identifiers and a few sockets");
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes
    }
}

/// Asks nothing; the kernel confirms it, which wakes up who waits on the socket.
pub(super) fn noop(sequence: u32) -> Vec<u8> {
    Writer::new(message::NOOP, sequence).finish()
}

/// Asks what the family `nbd` is called.
pub(super) fn get_family(sequence: u32) -> Vec<u8> {
    let mut writer = Writer::generic(message::CONTROL, sequence, control::GET_FAMILY);
    writer.put_text(control::FAMILY_NAME, FAMILY);
    writer.finish()
}

/// Makes a device; the kernel chooses which.
pub(super) fn connect(family: Family, sequence: u32, connect: &Connect<'_>) -> Vec<u8> {
    let mut writer = Writer::generic(family.id, sequence, command::CONNECT);
    writer
        .put_u64(attribute::SIZE_BYTES, connect.size)
        .put_u64(attribute::BLOCK_SIZE_BYTES, connect.block.into())
        .put_u64(attribute::SERVER_FLAGS, connect.flags.into());
    put_link(&mut writer, &connect.link);
    writer.finish()
}

/// Gives a device other connections in place of dead ones.
pub(super) fn reconfigure(family: Family, sequence: u32, index: u32, link: &Link<'_>) -> Vec<u8> {
    let mut writer = Writer::generic(family.id, sequence, command::RECONFIGURE);
    writer.put(attribute::INDEX, &index.to_ne_bytes());
    put_link(&mut writer, link);
    writer.finish()
}

/// Gives a device another size. What is not said about its connections would be set back.
pub(super) fn resize(family: Family, sequence: u32, index: u32, size: u64, link: &Link<'_>) -> Vec<u8> {
    let mut writer = Writer::generic(family.id, sequence, command::RECONFIGURE);
    writer
        .put(attribute::INDEX, &index.to_ne_bytes())
        .put_u64(attribute::SIZE_BYTES, size);
    put_link(&mut writer, link);
    writer.finish()
}

/// Takes a device away.
pub(super) fn disconnect(family: Family, sequence: u32, index: u32) -> Vec<u8> {
    let mut writer = Writer::generic(family.id, sequence, command::DISCONNECT);
    writer.put(attribute::INDEX, &index.to_ne_bytes());
    writer.finish()
}

/// Asks which devices there are.
pub(super) fn status(family: Family, sequence: u32) -> Vec<u8> {
    Writer::generic(family.id, sequence, command::STATUS).finish()
}

fn put_link(writer: &mut Writer, link: &Link<'_>) {
    writer
        .put_u64(attribute::TIMEOUT, link.timeout.as_secs())
        .put_u64(attribute::DEAD_CONN_TIMEOUT, link.dead_timeout.as_secs())
        .put_text(attribute::BACKEND_IDENTIFIER, link.identifier)
        .nest(attribute::SOCKETS | NESTED, |writer| {
            for socket in link.sockets {
                writer.nest(attribute::SOCKET_ITEM | NESTED, |writer| {
                    writer.put(attribute::SOCKET_FD, &socket.to_ne_bytes());
                });
            }
        });
}

/// A message of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    /// The request with this sequence number is done, or failed with this number of the system.
    Done {
        sequence: u32,
        /// Positive.
        error: Option<i32>,
    },
    /// Of a family.
    Generic {
        family: u16,
        sequence: u32,
        command: u8,
        /// Attributes.
        body: &'a [u8],
    },
    /// Of a kind that means nothing to us.
    Other,
}

/// The first message in `input`, and what follows it. `None` at the end.
pub(super) fn next_message(input: &[u8]) -> Result<Option<(Message<'_>, &[u8])>, AttachError> {
    if input.is_empty() {
        return Ok(None);
    }
    let short = || AttachError::Message("it is shorter than it says");
    let header = input.get(..HEADER).ok_or_else(short)?;
    let len = usize::try_from(u32_at(header, 0).ok_or_else(short)?).map_err(|_| short())?;
    let body = input.get(HEADER..len).ok_or_else(short)?;
    // The last one need not be padded.
    let rest = input.get(len.next_multiple_of(4)..).unwrap_or_default();
    let sequence = u32_at(header, 8).ok_or_else(short)?;
    let message = match u16_at(header, 4).ok_or_else(short)? {
        message::ERROR => {
            let code = u32_at(body, 0).ok_or_else(short)?.cast_signed();
            Message::Done {
                sequence,
                error: (code != 0).then(|| code.saturating_abs()),
            }
        }
        message::DONE => Message::Done { sequence, error: None },
        kind if kind < message::CONTROL => Message::Other,
        family => Message::Generic {
            family,
            sequence,
            command: *body.first().ok_or_else(short)?,
            body: body.get(GENERIC..).ok_or_else(short)?,
        },
    };
    Ok(Some((message, rest)))
}

/// Attributes one after the other. One that does not fit ends them with an error.
#[derive(Clone, Debug)]
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), AttachError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let input = std::mem::take(&mut self.0);
        let found = u16_at(input, 0).zip(u16_at(input, 2)).and_then(|(len, kind)| {
            let len = usize::from(len);
            Some((len, kind & TYPE_MASK, input.get(ATTRIBUTE..len)?))
        });
        let Some((len, kind, value)) = found else {
            return Some(Err(AttachError::Message("an attribute is longer than its message")));
        };
        self.0 = input.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok((kind, value)))
    }
}

/// The first attribute of this type.
fn find(body: &[u8], wanted: u16) -> Result<Option<&[u8]>, AttachError> {
    for attribute in Attributes(body) {
        let (kind, value) = attribute?;
        if kind == wanted {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// The answer to [`get_family`].
pub(super) fn parse_family(body: &[u8]) -> Result<Family, AttachError> {
    let id = find(body, control::FAMILY_ID)?.and_then(|value| u16_at(value, 0));
    let mut group = None;
    for item in Attributes(find(body, control::GROUPS)?.unwrap_or_default()) {
        let (_, item) = item?;
        if find(item, control::GROUP_NAME)?.is_some_and(|name| text_of(name) == GROUP.as_bytes()) {
            group = find(item, control::GROUP_ID)?.and_then(|value| u32_at(value, 0));
        }
    }
    let id = id.ok_or(AttachError::Message("a family without a number"))?;
    Ok(Family { id, group })
}

/// The device that an answer or event is about.
pub(super) fn parse_index(body: &[u8]) -> Result<u32, AttachError> {
    find(body, attribute::INDEX)?
        .and_then(|value| u32_at(value, 0))
        .ok_or(AttachError::Message("a device without a number"))
}

/// The device of a dead link, when the message is about one.
pub(super) fn parse_link_dead(family: Family, message: &Message<'_>) -> Result<Option<u32>, AttachError> {
    match message {
        Message::Generic {
            family: id,
            command: command::LINK_DEAD,
            body,
            ..
        } if *id == family.id => parse_index(body).map(Some),
        _ => Ok(None),
    }
}

/// The answer to [`status`]: devices, and whether each is connected.
pub(super) fn parse_status(body: &[u8]) -> Result<Vec<(u32, bool)>, AttachError> {
    let mut devices = Vec::new();
    for item in Attributes(find(body, attribute::DEVICE_LIST)?.unwrap_or_default()) {
        let (kind, item) = item?;
        if kind != attribute::DEVICE_ITEM {
            continue;
        }
        let index = find(item, attribute::DEVICE_INDEX)?.and_then(|value| u32_at(value, 0));
        let connected = find(item, attribute::DEVICE_CONNECTED)?.and_then(|value| value.first());
        let index = index.ok_or(AttachError::Message("a device without a number"))?;
        devices.push((index, connected.is_some_and(|connected| *connected != 0)));
    }
    Ok(devices)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// Up to the NUL that ends a string of the kernel.
fn text_of(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
