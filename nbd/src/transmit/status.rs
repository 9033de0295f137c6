//! BLOCK_STATUS: what was asked for, and the list of extents that answers it.

use super::{Session, Style};
use crate::error::Errno;
use crate::proto::{self, allocation};
use blockio::{Extent, ExtentKind};
use zerocopy::IntoBytes;

/// Extents in one answer. The protocol allows 2^20; a client asks again for the rest.
const EXTENTS_MAX: usize = 64 << 10;

/// Longest extent of 32 bits: the last multiple of 64 KiB below 2^32, so that what follows stays on every grid.
const COMPACT_MAX: u64 = 0xffff_0000;

/// The range that the payload of a BLOCK_STATUS at `offset` asks about: an effect length, and the ids of contexts.
///
/// # Errors
/// When it is not of that form, an id is unknown or there twice, or the range is not inside the export.
pub fn parse_payload(session: &Session, offset: u64, payload: &[u8]) -> Result<Extent, (Errno, &'static str)> {
    let (length, ids) = payload
        .split_first_chunk::<8>()
        .ok_or((Errno::Inval, "no list of contexts"))?;
    if ids != allocation::ID.to_be_bytes() {
        return Err((Errno::Inval, "not the one context that was selected"));
    }
    Extent::new(offset, u64::from_be_bytes(*length))
        .filter(|extent| extent.end() <= session.size && !extent.is_empty())
        .ok_or((Errno::Inval, "past the end of the export, or the status of nothing"))
}

/// The list of extents of one answer while it grows: neighbours of one kind merged, bounded, in the width of the session.
#[derive(Debug)]
pub struct StatusList {
    extents: Vec<(u64, u32)>,
    extents_max: usize,
    len_max: u64,
    style: Style,
}

impl StatusList {
    /// An empty list; `one` when the client wants no more than one extent.
    pub fn new(style: Style, one: bool) -> Self {
        Self {
            extents: Vec::new(),
            extents_max: if one { 1 } else { EXTENTS_MAX },
            len_max: if style == Style::Extended {
                u64::MAX
            } else {
                COMPACT_MAX
            },
            style,
        }
    }

    /// Appends `len` bytes of `kind`. `false` when not all of it went in; the list is then complete.
    pub fn push(&mut self, len: u64, kind: ExtentKind) -> bool {
        let flags = match kind {
            ExtentKind::Data => 0,
            ExtentKind::Zero => allocation::ZERO,
            ExtentKind::Hole => allocation::HOLE | allocation::ZERO,
        };
        let mut left = len;
        if let Some((last, same)) = self.extents.last_mut()
            && *same == flags
        {
            let more = left.min(self.len_max - *last);
            *last += more;
            left -= more;
        }
        while left > 0 {
            if self.extents.len() >= self.extents_max {
                return false;
            }
            let now = left.min(self.len_max);
            self.extents.push((now, flags));
            left -= now;
        }
        true
    }

    /// No extent yet.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Body of the chunk.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = allocation::ID.to_be_bytes().to_vec();
        if self.style == Style::Extended {
            let count = u32::try_from(self.extents.len()).expect("at most 64 Ki");
            body.extend_from_slice(&count.to_be_bytes());
        }
        for (len, flags) in &self.extents {
            if self.style == Style::Extended {
                let extent = proto::StatusExtentExt {
                    length: (*len).into(),
                    flags: u64::from(*flags).into(),
                };
                body.extend_from_slice(extent.as_bytes());
            } else {
                let extent = proto::StatusExtent {
                    length: u32::try_from(*len).expect("cut when it was appended").into(),
                    flags: (*flags).into(),
                };
                body.extend_from_slice(extent.as_bytes());
            }
        }
        body
    }
}
