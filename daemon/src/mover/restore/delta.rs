//! Delta restore: one side compares the target with the list, the other fetches and writes what differs, batch by batch,
//! while the comparison goes on.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex};

use blockio::{BlockMap, BlockSink, BlockSource};
use repo::ContentId;

use super::transfer::Transfer;
use super::{ZeroPieces, merged, plan};
use crate::error::{Result, first_error};
use crate::mover::scan::{Scan, Verdict};

/// Differing pieces that are worth fetching while the comparison goes on. 32 chunks fill 16 reads twice; fewer would set up
/// rings for little, and spoil the order of the packs.
const BATCH_PIECES: usize = 32;

/// Contents remembered as written, 64 MiB of memory. One that comes again in a later batch is copied from the target; past
/// this many it would be fetched again.
const WRITTEN_MAX: usize = 1 << 20;

/// Pieces found to differ, and not fetched yet.
#[derive(Default)]
struct Found {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    pieces: Vec<u32>,
    over: bool,
}

impl Found {
    fn add(&self, piece: usize) {
        let mut state = self.state.lock().expect("no panic while held");
        state
            .pieces
            .push(u32::try_from(piece).expect("a table has fewer pieces"));
        if state.pieces.len() == BATCH_PIECES {
            self.wake.notify_all();
        }
    }

    /// The pieces there are, once they are enough for a batch or the comparison is over; nothing when that was all.
    fn take(&self) -> Vec<usize> {
        let state = self.state.lock().expect("no panic while held");
        let waiting = |state: &mut State| state.pieces.len() < BATCH_PIECES && !state.over;
        let mut state = self.wake.wait_while(state, waiting).expect("no panic while held");
        let pieces = std::mem::take(&mut state.pieces);
        pieces.into_iter().map(|piece| piece as usize).collect()
    }
}

/// Ends [`Found`] when dropped, be it by a panic: nobody waits for a thread that is gone.
struct Ends<'a>(&'a Found);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if let Ok(mut state) = self.0.state.lock() {
            state.over = true;
        }
        self.0.wake.notify_all();
    }
}

/// Brings the target to what the image says; bytes read to compare.
pub(super) fn run(transfer: &Transfer<'_>, changed: Option<&BlockMap>) -> Result<u64> {
    let scan = Scan {
        repository: transfer.repository,
        image: transfer.image,
        device: transfer.target,
        only: changed,
        workers: transfer.options.workers,
        engine: transfer.options.engine,
        limiter: transfer.limiter,
        cancel: transfer.cancel,
        stop: &transfer.stop,
        faults: transfer.options.faults.clone(),
    };
    let found = Found::default();
    let read_bytes = Mutex::new(0);
    let keep = |bytes| {
        transfer.progress.add_unchanged(bytes);
        transfer.progress.add_done(bytes);
    };
    std::thread::scope(|scope| {
        let compare = || {
            let _ends = Ends(&found);
            let scanned = scan.run(&|piece, verdict| {
                match verdict {
                    Verdict::Equal => keep(transfer.inside(piece).len),
                    Verdict::Differs => found.add(piece),
                }
                Ok(())
            })?;
            keep(transfer.image.size - scanned.bytes); // not to be looked at
            *read_bytes.lock().expect("no panic while held") = scanned.bytes - scanned.hole_bytes;
            Ok(())
        };
        let compared = scope.spawn(compare);
        let moved = Batches::new(transfer).run(&found);
        if moved.is_err() {
            transfer.stop.cancel();
        }
        first_error([Ok(moved), compared.join()])
    })?;
    Ok(read_bytes.into_inner().expect("the comparison is over"))
}

/// The side that fetches and writes.
struct Batches<'a> {
    transfer: &'a Transfer<'a>,
    zeros: ZeroPieces<'a>,
    /// Contents of batches before, and a piece that holds each.
    written: HashMap<ContentId, usize>,
}

impl<'a> Batches<'a> {
    fn new(transfer: &'a Transfer<'a>) -> Self {
        Self {
            transfer,
            zeros: ZeroPieces::of(transfer.repository, &transfer.image.table),
            written: HashMap::new(),
        }
    }

    fn run(mut self, found: &Found) -> Result<()> {
        loop {
            let pieces = found.take();
            if pieces.is_empty() {
                return Ok(());
            }
            self.batch(pieces)?;
        }
    }

    fn batch(&mut self, pieces: Vec<usize>) -> Result<()> {
        let table = &self.transfer.image.table;
        let (zeros, data): (Vec<usize>, Vec<usize>) = pieces.into_iter().partition(|piece| self.zeros.has(*piece));
        let mut fresh = Vec::with_capacity(data.len());
        for piece in data {
            if !self.copied(piece)? {
                fresh.push(piece);
            }
        }
        let (plan, lost) = plan(self.transfer, fresh.iter().copied())?;
        self.transfer.lose(&lost);
        let zeros = merged(table, self.transfer.image.size, zeros);
        self.transfer.run(&plan, &zeros)?;
        for piece in fresh {
            if self.written.len() < WRITTEN_MAX {
                self.written.entry(table.content(piece)).or_insert(piece);
            }
        }
        Ok(())
    }

    /// Whether `piece` was copied from another place of the target that a batch before has brought its content to. What is
    /// there is compared with the id, as everything that is taken from a target is.
    fn copied(&self, piece: usize) -> Result<bool> {
        let transfer = self.transfer;
        let entry = transfer.image.table.entry(piece);
        let Some(&from) = self.written.get(&entry.content) else {
            return Ok(false);
        };
        transfer.check()?;
        let (from, to) = (transfer.inside(from), transfer.inside(piece));
        let mut bytes = vec![0; entry.extent.bytes()];
        if from.len > entry.extent.len {
            return Ok(false); // lists that disagree about a content's length are told of by the plan
        }
        transfer.target.read_at(from.offset, &mut bytes[..from.bytes()])?;
        let digest = transfer.repository.contents().hasher().hash(&bytes);
        if digest.as_slice() != entry.content.hash() {
            return Ok(false);
        }
        transfer.limiter.take(to.len, transfer.cancel)?;
        transfer.target.write_at(to.offset, &bytes[..to.bytes()])?;
        transfer.progress.add_new(to.len);
        transfer.progress.add_done(to.len);
        Ok(true)
    }
}

/// What a comparison alone finds.
pub(super) struct Differing {
    /// Pieces the target does not hold.
    pub(super) pieces: Vec<usize>,
    /// Bytes read to find them.
    pub(super) read_bytes: u64,
}

/// Compares and writes nothing.
pub(super) fn differing(scan: &Scan<'_>) -> Result<Differing> {
    let pieces = Mutex::new(Vec::new());
    let scanned = scan.run(&|piece, verdict| {
        if verdict == Verdict::Differs {
            pieces.lock().expect("no panic while held").push(piece);
        }
        Ok(())
    })?;
    Ok(Differing {
        pieces: pieces.into_inner().expect("workers are done"),
        read_bytes: scanned.bytes - scanned.hole_bytes,
    })
}
