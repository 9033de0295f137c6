//! Reading the list of an image: its slices in pack order, several in flight, each checked and read by its position.
//!
//! A list that is not exactly as we write lists is read as the stream it is, front to back.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::debug;

use super::hashes::{Hashes, HashesScatter};
use super::list::LIST_PIECE_LEN;
use super::text::{ListText, Read};
use super::{BlockAddressTable, ObjectReader, StoredList, TableBuilder};
use crate::blob::READ_SLACK;
use crate::content::Unsealer;
use crate::error::Result;
use crate::id::ObjectId;
use crate::plan::ReadPlan;
use crate::repository::Repository;

/// Threads that fetch and read slices, at most: a TiB has two or three reads of 8 to 24 MiB, and more threads than that
/// have nothing to do.
const LOADERS_MAX: usize = 4;

/// Bytes fetched and not yet read, at most, in all threads: two packs of 24 MiB. The hashes of 1 TiB are 16 MiB beside it.
const FETCHED_BYTES_MAX: u64 = 48 << 20;

/// The pieces of an object, and its list.
#[derive(Clone, Debug)]
pub struct LoadedList {
    /// The pieces, lists resolved.
    pub table: BlockAddressTable,
    /// The list, when it is as we write lists.
    pub list: Option<StoredList>,
}

impl Repository {
    /// The pieces of an object, and its list for an increment to take parts of it over.
    ///
    /// # Errors
    /// `Corrupt` when a list is damaged or contradicts its contents, besides what reading fails with.
    pub fn load_list(&self, object: &ObjectId) -> Result<LoadedList> {
        let hash_len = self.contents().hash_len();
        let mut builder = TableBuilder::new(hash_len);
        let Some(list) = object.list() else {
            self.add_pieces(object, None, 0, &mut builder)?;
            return Ok(LoadedList {
                table: builder.finish(),
                list: None,
            });
        };
        let pieces = self.table(&list)?;
        let first = match pieces.is_empty() {
            true => Vec::new(),
            false => {
                let first = self.read_piece(&pieces.entry(0));
                first.map_err(|e| e.context(format!("read list {object}")))?
            }
        };
        if let Some(text) = ListText::of_len(&first, hash_len, pieces.len())
            && let Some(hashes) = self.load_slices(object, &pieces, &text, &first)?
        {
            let table = BlockAddressTable::of_hashes(text.piece_len(), hashes);
            let list = StoredList::of_pieces(*object, table.clone(), text, &pieces);
            return Ok(LoadedList { table, list });
        }
        let text = ObjectReader::with_first(self, &pieces, first);
        self.add_list(object, text, 0, &mut builder)?;
        Ok(LoadedList {
            table: builder.finish(),
            list: None,
        })
    }

    /// The hashes in the list of `object`, whose text is in `pieces` and has the shape `text`; nothing when it has not, or
    /// when it is damaged: the parser of the stream knows what to say of it, and where.
    fn load_slices(
        &self,
        object: &ObjectId,
        pieces: &BlockAddressTable,
        text: &ListText,
        first: &[u8],
    ) -> Result<Option<Hashes>> {
        let is_sliced = pieces.count() == 1 || pieces.uniform_len() == Some(LIST_PIECE_LEN as u64);
        if !is_sliced || pieces.has_compressed() {
            return Ok(None);
        }
        let loader = Loader {
            repository: self,
            pieces,
            text,
            assembly: Mutex::new(Assembly {
                hashes: HashesScatter::new(self.contents().hash_len(), text.count()),
                seams: Vec::new(),
            }),
        };
        let read = match loader.read(0, first, &mut Vec::new()) {
            true => loader.run(),
            false => Ok(false),
        };
        match read {
            Ok(true) => Ok(loader.assembly.into_inner().expect("no panic while held").finish(text)),
            Ok(false) => Ok(None),
            Err(e) if e.is_damage() || e.is_not_found() => {
                debug!(%object, error = %e, "a list is read as a stream");
                Ok(None)
            }
            Err(e) => Err(e.context(format!("read list {object}"))),
        }
    }
}

/// Reads the slices of one list.
struct Loader<'a> {
    repository: &'a Repository,
    pieces: &'a BlockAddressTable,
    text: &'a ListText,
    assembly: Mutex<Assembly>,
}

impl Loader<'_> {
    /// Reads all slices but the first. False when one of them is not of the expected shape.
    fn run(&self) -> Result<bool> {
        let plan = ReadPlan::new(self.repository, self.pieces, 1..self.pieces.count())?;
        let fit = FETCHED_BYTES_MAX / plan.fetch_len_max().max(1);
        let loaders = usize::try_from(fit).unwrap_or(LOADERS_MAX).clamp(1, LOADERS_MAX);
        let loaders = loaders.min(self.repository.store().habits().reads).min(plan.len());
        let next = AtomicUsize::new(0);
        if loaders < 2 {
            return self.work(&plan, &next);
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..loaders).map(|_| scope.spawn(|| self.work(&plan, &next))).collect();
            threads.into_iter().try_fold(true, |all, thread| {
                let read = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                Ok(read? && all)
            })
        })
    }

    /// Takes one read of `plan` after the other.
    fn work(&self, plan: &ReadPlan, next: &AtomicUsize) -> Result<bool> {
        let mut memory = Memory::default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= plan.len() {
                return Ok(true);
            }
            let done = self.fetch(plan, number, &mut memory);
            if !matches!(done, Ok(true)) {
                next.store(plan.len(), Ordering::Relaxed); // the others need not go on
                return done;
            }
        }
    }

    fn fetch(&self, plan: &ReadPlan, number: usize, memory: &mut Memory) -> Result<bool> {
        let fetch = plan.fetch(number);
        let range = fetch.range();
        let len = usize::try_from(range.end - range.start).expect("as long as packs are");
        memory.sealed.resize(len + 2 * READ_SLACK, 0);
        let at = self
            .repository
            .store()
            .read_range(fetch.pack(), range, &mut memory.sealed)?;
        let sealed = &memory.sealed[at];
        for piece in fetch.pieces(self.repository, self.pieces) {
            memory.slice.resize(piece.entry.original_len as usize, 0);
            let contents = self.repository.contents();
            contents.unseal_into(&piece.entry, &sealed[piece.at], &mut memory.unsealer, &mut memory.slice)?;
            for number in piece.uses {
                if !self.read(number, &memory.slice, &mut memory.hashes) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Reads slice `number`. False when it is not of the expected shape.
    fn read(&self, number: usize, slice: &[u8], hashes: &mut Vec<u8>) -> bool {
        let at = number as u64 * LIST_PIECE_LEN as u64;
        hashes.clear();
        let Some(read) = self.text.read(at, slice, hashes) else {
            return false;
        };
        let mut assembly = self.assembly.lock().expect("no panic while held");
        assembly.put(at, slice.len(), &read, hashes);
        true
    }
}

/// What a thread keeps from one read to the next.
#[derive(Default)]
struct Memory {
    sealed: Vec<u8>,
    slice: Vec<u8>,
    hashes: Vec<u8>,
    unsealer: Unsealer,
}

/// What has been read.
struct Assembly {
    hashes: HashesScatter,
    /// Text at the borders of slices, and where it begins: each has a part of an entry.
    seams: Vec<(u64, Vec<u8>)>,
}

impl Assembly {
    fn put(&mut self, at: u64, len: usize, read: &Read<'_>, hashes: &[u8]) {
        self.hashes.put(read.entries.start, hashes);
        let after = at + (len - read.after.len()) as u64;
        for (at, seam) in [(at, read.before), (after, read.after)] {
            if !seam.is_empty() {
                self.seams.push((at, seam.to_vec()));
            }
        }
    }

    /// The hashes, once all slices have been read; nothing when what stands at their borders is not of the expected shape.
    fn finish(mut self, text: &ListText) -> Option<Hashes> {
        self.seams.sort_unstable();
        self.seams.dedup_by(|next, last| {
            let joins = last.0 + last.1.len() as u64 == next.0;
            if joins {
                last.1.append(&mut next.1);
            }
            joins
        });
        let mut hashes = Vec::new();
        for (at, seam) in &self.seams {
            hashes.clear();
            let entries = text.read_whole(*at, seam, &mut hashes)?;
            self.hashes.put(entries.start, &hashes);
        }
        self.hashes.finish()
    }
}
