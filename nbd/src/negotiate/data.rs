//! Data of options, taken apart without trusting a length in it.

use crate::proto::{STRING_MAX, info};

/// What is left of the data of an option.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        let (head, rest) = self.0.split_first_chunk::<2>()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*head))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*head))
    }

    /// A string behind its length. Names and queries both look like this.
    pub(super) fn name(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        if length > STRING_MAX {
            return None;
        }
        let (name, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(name)
    }
}

/// What a client asked for in INFO or GO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: bool,
    pub(super) description: bool,
    pub(super) block_size: bool,
}

impl Wanted {
    /// The rest of the data: a count and as many kinds, no more and no less. Kinds nobody knows are passed over.
    pub(super) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let mut wanted = Self::default();
        for _ in 0..fields.u16()? {
            match fields.u16()? {
                info::NAME => wanted.name = true,
                info::DESCRIPTION => wanted.description = true,
                info::BLOCK_SIZE => wanted.block_size = true,
                _ => {}
            }
        }
        fields.is_empty().then_some(wanted)
    }
}
