//! What was changed since the last flush, for the next process: a server that dies takes its memory with it, and the data that it
//! wrote is in the cache of the system, which lives on. The kernel that sent the writes was told that they are done, and does not send
//! them again.
//!
//! ```text
//! file    = header record*
//! header  = magic "BFLIVE01" | boot [16] | generation u64 | crc u32 | 0 u32
//! record  = offset u64 | len u64 | place u32 | crc u32
//! ```
//!
//! Everything is little-endian; each crc is CRC-32C over what is before it, that of a record begun with the generation. Nothing of
//! this is ever synced, and nothing of it is believed after the system was started again: that the data is there is only certain for as
//! long as the cache lives that both were written to.
//!
//! There are two files. A flush lets the changes from then on go to the other one, and empties the first once its log is durable.

use super::map::{Place, SECTOR};
use super::store::{Folder, Medium};
use super::{Inner, failed};
use blockio::{BlockError, CHUNK_SIZE, Extent, Op};
use std::io;
use std::sync::PoisonError;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"BFLIVE01";
const DATA: u32 = 1;
const ZERO: u32 = 2;

/// Changes of this many bytes are flushed by the one who makes the next: 700,000 of them.
pub(super) const LEN_MAX: u64 = 16 << 20;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    boot: [u8; 16],
    generation: U64,
    crc: U32,
    unused: U32,
}
const _: () = assert!(size_of::<Header>() == 40);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Record {
    offset: U64,
    len: U64,
    place: U32,
    crc: U32,
}
const _: () = assert!(size_of::<Record>() == 24);

/// Names a run of the system, at the end of which its caches are lost.
pub(super) type Boot = [u8; 16];

/// Sectors of one chunk, and where their bytes are from then on.
pub(super) type Change = (Extent, Place);

/// The changes since the last flush.
pub(super) struct Live<M> {
    files: [M; 2],
    lens: [u64; 2],
    current: usize,
    generation: u64,
    boot: Boot,
}

fn crc(generation: u64, bytes: &[u8]) -> U32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&generation.to_le_bytes());
    digest.update(bytes);
    u32::try_from(digest.finalize()).expect("a CRC of 32 bits").into()
}

fn crc_of_header(header: &Header) -> U32 {
    crc(header.generation.get(), &header.as_bytes()[..32])
}

impl<M: Medium> Live<M> {
    /// The files in `folder`, and the changes in them that count, in their order; `size` is that of the volume. `None` where the system
    /// does not say which run of it this is.
    pub(super) fn open<F: Folder<File = M>>(folder: &F, size: u64) -> io::Result<Option<(Self, Vec<Change>)>> {
        let Some(boot) = folder.boot() else { return Ok(None) };
        let files = [folder.live(0)?, folder.live(1)?];
        let mut found = Vec::new();
        for (number, file) in files.iter().enumerate() {
            if let Some((generation, changes)) = read(file, boot, size)? {
                found.push((generation, number, changes));
            }
        }
        found.sort_by_key(|(generation, _, _)| *generation);
        let generation = found.last().map_or(0, |(generation, _, _)| *generation);
        let current = found.last().map_or(0, |(_, number, _)| *number);
        let changes = found.into_iter().flat_map(|(_, _, changes)| changes).collect();
        let mut live = Self {
            lens: [files[0].len()?, files[1].len()?],
            files,
            current,
            generation,
            boot,
        };
        if live.lens[live.current] < size_of::<Header>() as u64 {
            live.begin()?;
        }
        Ok(Some((live, changes)))
    }

    /// Takes a change down, which is of the sectors of one chunk, and whose data is written.
    pub(super) fn append(&mut self, extent: Extent, place: Place) -> io::Result<()> {
        let mut record = Record {
            offset: extent.offset.into(),
            len: extent.len.into(),
            place: if place == Place::Data { DATA } else { ZERO }.into(),
            crc: 0.into(),
        };
        record.crc = crc(self.generation, &record.as_bytes()[..20]);
        let len = &mut self.lens[self.current];
        self.files[self.current].write_at(record.as_bytes(), *len)?;
        *len += size_of::<Record>() as u64;
        Ok(())
    }

    /// A flush should come.
    pub(super) fn is_long(&self) -> bool {
        self.lens[self.current] >= LEN_MAX
    }

    /// What is appended from here on is not in the flush that begins. Where a flush failed before, it stays with what that one was
    /// about, until one succeeds.
    pub(super) fn turn(&mut self) -> io::Result<()> {
        let other = 1 - self.current;
        if self.lens[other] == 0 && self.lens[self.current] > size_of::<Header>() as u64 {
            self.current = other;
            if let Err(error) = self.begin() {
                self.current = 1 - other;
                return Err(error);
            }
        }
        Ok(())
    }

    /// The flush is durable: what was there before the last turn is not needed any more.
    pub(super) fn retire(&mut self) -> io::Result<()> {
        let other = 1 - self.current;
        self.files[other].set_len(0)?;
        self.lens[other] = 0;
        Ok(())
    }

    /// Everything is durable, and nothing was changed since.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.retire()?;
        self.begin()
    }

    /// An empty file of the next generation.
    fn begin(&mut self) -> io::Result<()> {
        let file = &self.files[self.current];
        file.set_len(0)?;
        self.lens[self.current] = 0;
        let mut header = Header {
            magic: MAGIC,
            boot: self.boot,
            generation: (self.generation + 1).into(),
            crc: 0.into(),
            unused: 0.into(),
        };
        header.crc = crc_of_header(&header);
        file.write_at(header.as_bytes(), 0)?;
        self.generation += 1;
        self.lens[self.current] = size_of::<Header>() as u64;
        Ok(())
    }
}

/// The changes in `file`; `None` when they are of another run of the system, or there are none. A record that does not check out
/// was not finished when its process died: nobody was told that it is done.
fn read<M: Medium>(file: &M, boot: Boot, size: u64) -> io::Result<Option<(u64, Vec<Change>)>> {
    let len = file.len()?;
    let mut bytes = [0; size_of::<Header>()];
    if len < bytes.len() as u64 {
        return Ok(None);
    }
    file.read_at(&mut bytes, 0)?;
    let header = Header::read_from_bytes(&bytes).expect("as long as it is");
    if header.magic != MAGIC || header.boot != boot || header.crc != crc_of_header(&header) {
        return Ok(None);
    }
    let generation = header.generation.get();
    let mut changes = Vec::new();
    let mut window = vec![0; 1024 * size_of::<Record>()];
    let mut at = bytes.len() as u64;
    while at + size_of::<Record>() as u64 <= len {
        let whole = (len - at) / size_of::<Record>() as u64 * size_of::<Record>() as u64;
        let part = usize::try_from(whole.min(window.len() as u64)).expect("24 KiB at most");
        file.read_at(&mut window[..part], at)?;
        at += part as u64;
        for bytes in window[..part].chunks_exact(size_of::<Record>()) {
            let record = Record::read_from_bytes(bytes).expect("as long as it is");
            let extent = Extent {
                offset: record.offset.get(),
                len: record.len.get(),
            };
            let place = match record.place.get() {
                DATA => Place::Data,
                ZERO => Place::Zero,
                _ => continue,
            };
            if record.crc == crc(generation, &record.as_bytes()[..20]) && is_possible(extent, size) {
                changes.push((extent, place));
            }
        }
    }
    Ok(Some((generation, changes)))
}

/// Whole sectors of one chunk of a volume of `size` bytes.
fn is_possible(extent: Extent, size: u64) -> bool {
    let Some(end) = extent.offset.checked_add(extent.len) else {
        return false;
    };
    let is_whole = extent.offset.is_multiple_of(SECTOR) && (end.is_multiple_of(SECTOR) || end == size);
    extent.len > 0 && end <= size && is_whole && extent.offset / CHUNK_SIZE == (end - 1) / CHUNK_SIZE
}

impl<F: Folder> Inner<F> {
    /// Does something with the changes since the last flush, where they are noted.
    pub(super) fn live<T: Default>(&self, act: impl FnOnce(&mut Live<F::File>) -> io::Result<T>) -> io::Result<T> {
        match &self.live {
            Some(live) => act(&mut live.lock().unwrap_or_else(PoisonError::into_inner)),
            None => Ok(T::default()),
        }
    }

    /// The sectors of `part` are at `place` from now on, for the next process too.
    pub(super) fn change(&self, part: Extent, place: Place) -> Result<(), BlockError> {
        let is_long = {
            let mut map = self.map_write();
            if !map.set(part, place) {
                return Ok(());
            }
            let noted = self.live(|live| {
                live.append(part, place)?;
                Ok(live.is_long())
            });
            noted.map_err(failed(Op::Write, part))?
        };
        if is_long {
            self.flush()?;
        }
        Ok(())
    }
}
