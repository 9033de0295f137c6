//! The third pass: contents are read, in the order in which they lie in packs, decrypted and hashed.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use blockio::{BufPool, Cancel, Progress};

use super::check;
use super::finding::{DamageKind, Finding, Key, full};
use super::packs::Packs;
use super::state::{Resume, Unreadable};
use super::walk::Marks;
use crate::blob::READ_SLACK;
use crate::content::Unsealer;
use crate::error::{Kind, RepoError, Result};
use crate::id::{BlobId, ContentId};
use crate::object::{BlockAddressTable, TableBuilder};
use crate::plan::{Piece, ReadPlan};
use crate::repository::Repository;
use crate::time::Time;

/// Contents planned at once: their plan takes 4 MiB.
const BATCH_CONTENTS: usize = 64 << 10;

/// Bytes read between two moments at which the state can be saved: some seconds from a disk, a minute from a slow network.
/// Tests have less to read.
const BATCH_BYTES: u64 = if cfg!(test) { 8 << 20 } else { 2 << 30 };

/// A content to read: 8 bytes each, so that 10,000,000 take 80 MiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Chosen {
    /// Number of its pack in the order of names.
    pack: u32,
    row: u32,
}

/// Every n-th of `rows`: their order is that of hashes, so that is a fair sample, and another `phase` (0 to 100) is another.
pub(super) fn choose(rows: impl Iterator<Item = usize>, percent: f64, phase: f64) -> impl Iterator<Item = usize> {
    let mut credit = phase;
    rows.filter(move |_| {
        credit += percent;
        let taken = credit >= 100.0;
        credit -= if taken { 100.0 } else { 0.0 };
        taken
    })
}

pub(super) struct Reading<'a> {
    pub(super) repository: &'a Repository,
    pub(super) marks: &'a Marks,
    pub(super) packs: &'a Packs,
    pub(super) percent: f64,
    pub(super) workers: usize,
    pub(super) cancel: &'a Cancel,
    pub(super) progress: &'a Progress,
}

impl Reading<'_> {
    /// Reads a share of the contents in use that can be had, and all of `moved`.
    pub(super) fn run(&self, moved: &[ContentId], resume: &mut Resume) -> Result<()> {
        if self.percent <= 0.0 {
            return Ok(());
        }
        for unreadable in &resume.state.damage {
            if let Ok(content) = unreadable.content.parse() {
                self.note(content, unreadable.what.clone());
            }
        }
        let (chosen, names, empty) = self.chosen(resume);
        let bytes = |chosen: &Chosen| u64::from(self.marks.index.row(chosen.row as usize).packed_len);
        self.progress.add_total(chosen.iter().map(bytes).sum());
        let habits = self.repository.store().habits();
        let longest = chosen.iter().map(bytes).max().unwrap_or(0).max(habits.read_len);
        let slot = usize::try_from(longest).map_err(|_| RepoError::corrupt("a content too long for memory"))?;
        let threads = self.workers.max(1).max(habits.reads);
        let no_memory = |e| RepoError::new(Kind::Storage, "reserve read buffers").because(e);
        let pool = BufPool::new((slot + 2 * READ_SLACK).next_multiple_of(READ_SLACK), threads).map_err(no_memory)?;
        let gone = Mutex::default();
        let mut left = chosen.as_slice();
        while !left.is_empty() {
            let (batch, rest) = left.split_at(batch_len(left, bytes));
            let job = Batch::plan(self, batch, &pool, &gone)?;
            job.run(threads)?;
            left = rest;
            let state = &mut resume.state;
            state.contents_read += job.contents_read.into_inner();
            state.read_bytes += job.read_bytes.into_inner();
            state.damage = self.unreadable();
            if let Some(last) = batch.last() {
                names[last.pack as usize].clone_into(&mut state.done);
            }
            resume.save_when_due()?;
        }
        for content in moved.iter().chain(&empty) {
            check(self.cancel)?;
            self.look_again(content, &gone)?;
            resume.state.contents_read += 1;
        }
        resume.state.damage = self.unreadable();
        Ok(())
    }

    /// What to read, in the order of pack names, those names, and the contents of no bytes, of which no range is planned.
    fn chosen(&self, resume: &Resume) -> (Vec<Chosen>, Vec<&str>, Vec<ContentId>) {
        let state = &resume.state;
        // What was stored since has its place anywhere in the order.
        let is_done = |pack: &str| {
            pack <= state.done.as_str()
                && self
                    .packs
                    .modified(pack)
                    .is_some_and(|modified| Time::from(modified) <= state.newest)
        };
        let rows = self.marks.used.rows().filter(|row| !self.marks.damaged.has(*row));
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let (mut chosen, mut empty) = (Vec::new(), Vec::new());
        for row in choose(rows, self.percent, state.phase) {
            let entry = self.marks.index.row(row);
            if is_done(entry.pack) {
                continue;
            }
            if entry.original_len == 0 {
                empty.push(entry.content);
                continue;
            }
            let next = u32::try_from(numbers.len()).expect("fewer packs than rows");
            let pack = *numbers.entry(entry.pack).or_insert(next);
            let row = u32::try_from(row).expect("an index in memory has fewer than 2^32 rows");
            chosen.push(Chosen { pack, row });
        }
        let mut names: Vec<(&str, u32)> = numbers.into_iter().collect();
        names.sort_unstable();
        let mut rank = vec![0; names.len()];
        for (at, (_, number)) in names.iter().enumerate() {
            rank[*number as usize] = u32::try_from(at).expect("fewer packs than rows");
        }
        chosen
            .iter_mut()
            .for_each(|chosen| chosen.pack = rank[chosen.pack as usize]);
        chosen.sort_unstable();
        (chosen, names.into_iter().map(|(name, _)| name).collect(), empty)
    }

    fn note(&self, content: ContentId, what: String) {
        let place = self.marks.place(&content);
        if let Some((row, _)) = self.marks.index.locate(&content, self.marks.watermark) {
            self.marks.damaged.set(row);
        }
        self.marks.findings.add(Key::Content(content), || Finding {
            kind: DamageKind::ContentUnreadable,
            what,
            place,
        });
    }

    fn unreadable(&self) -> Vec<Unreadable> {
        self.marks.findings.select(|(key, finding)| match key {
            Key::Content(content) if finding.kind == DamageKind::ContentUnreadable => Some(Unreadable {
                content: content.to_string(),
                what: finding.what.clone(),
            }),
            _ => None,
        })
    }

    /// Reads a content that failed once more, from where the index has it now: another client may have moved it. `gone`
    /// are packs that are known to be missing, for each of which the index is read again but once.
    fn look_again(&self, content: &ContentId, gone: &Mutex<HashSet<BlobId>>) -> Result<()> {
        let repository = self.repository;
        let pack = repository.lookup(content).map(|entry| entry.pack);
        if let Some(pack) = pack
            .as_ref()
            .filter(|pack| gone.lock().expect("no panic while held").contains(*pack))
        {
            self.note(*content, format!("pack {pack} is missing; content {content} was in it"));
            return Ok(());
        }
        let read = repository
            .read_content(content)
            .and_then(|plaintext| repository.contents().verify_hash(content, &plaintext));
        match read {
            Err(e) if e.is_damage() || e.is_not_found() => {
                let pack = repository.lookup(content).map(|entry| entry.pack);
                if let Some(pack) = pack.filter(|pack| repository.store().meta(pack).is_err_and(|e| e.is_not_found())) {
                    gone.lock().expect("no panic while held").insert(pack);
                }
                self.note(*content, full(&e));
                Ok(())
            }
            other => other,
        }
    }
}

/// How many of `chosen` make a batch: whole packs.
fn batch_len(chosen: &[Chosen], bytes: impl Fn(&Chosen) -> u64) -> usize {
    let mut sum = 0;
    for (at, content) in chosen.iter().enumerate() {
        let is_new_pack = at > 0 && chosen[at - 1].pack != content.pack;
        if is_new_pack && (sum >= BATCH_BYTES || at >= BATCH_CONTENTS) {
            return at;
        }
        sum += bytes(content);
    }
    chosen.len()
}

/// Contents of some packs, read by all threads.
struct Batch<'a> {
    reading: &'a Reading<'a>,
    table: BlockAddressTable,
    plan: ReadPlan,
    pool: &'a BufPool,
    gone: &'a Mutex<HashSet<BlobId>>,
    next: AtomicUsize,
    contents_read: AtomicU64,
    read_bytes: AtomicU64,
}

impl<'a> Batch<'a> {
    fn plan(
        reading: &'a Reading<'a>,
        chosen: &[Chosen],
        pool: &'a BufPool,
        gone: &'a Mutex<HashSet<BlobId>>,
    ) -> Result<Self> {
        let repository = reading.repository;
        let mut builder = TableBuilder::new(repository.contents().hash_len());
        for chosen in chosen {
            let entry = reading.marks.index.row(chosen.row as usize);
            // Forgotten since, when its snapshot was deleted meanwhile.
            if repository
                .lookup(&entry.content)
                .is_some_and(|now| now.original_len == entry.original_len)
            {
                builder.push(u64::from(entry.original_len), &entry.content)?;
            }
        }
        let table = builder.finish();
        Ok(Self {
            plan: ReadPlan::new(repository, &table, 0..table.count())?,
            reading,
            table,
            pool,
            gone,
            next: AtomicUsize::new(0),
            contents_read: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
        })
    }

    fn run(&self, threads: usize) -> Result<()> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads.min(self.plan.len()))
                .map(|_| scope.spawn(|| self.work()))
                .collect();
            threads.into_iter().try_for_each(|t| {
                t.join()
                    .unwrap_or_else(|_| Err(RepoError::new(Kind::Storage, "a verification thread panicked")))
            })
        })
    }

    fn work(&self) -> Result<()> {
        let result = self.try_work();
        if result.is_err() {
            self.next.store(self.plan.len(), Ordering::Relaxed); // the others need not go on
        }
        result
    }

    fn try_work(&self) -> Result<()> {
        let (mut unsealer, mut plaintext) = (Unsealer::new(), Vec::new());
        let repository = self.reading.repository;
        loop {
            let unit = self.next.fetch_add(1, Ordering::Relaxed);
            if unit >= self.plan.len() {
                return Ok(());
            }
            check(self.reading.cancel)?;
            repository.keep_permitted()?;
            let fetch = self.plan.fetch(unit);
            let (pieces, range) = (fetch.pieces(repository, &self.table), fetch.range());
            let mut buf = self.pool.take();
            match repository.store().read_range(fetch.pack(), range.clone(), &mut buf) {
                Ok(at) => {
                    self.read_bytes.fetch_add(range.end - range.start, Ordering::Relaxed);
                    for piece in &pieces {
                        self.check(piece, &buf[at.clone()][piece.at.clone()], &mut unsealer, &mut plaintext)?;
                    }
                }
                // One of them may be past the end of the pack; the others are read each for itself.
                Err(e) if e.is_damage() || e.is_not_found() => {
                    for piece in &pieces {
                        self.read_alone(piece, &mut buf, &mut unsealer, &mut plaintext)?;
                    }
                }
                Err(e) => return Err(e),
            }
            let bytes: u64 = pieces.iter().map(|piece| u64::from(piece.entry.packed_len)).sum();
            self.reading.progress.add_done(bytes);
            self.contents_read.fetch_add(pieces.len() as u64, Ordering::Relaxed);
        }
    }

    fn read_alone(
        &self,
        piece: &Piece,
        buf: &mut [u8],
        unsealer: &mut Unsealer,
        plaintext: &mut Vec<u8>,
    ) -> Result<()> {
        let entry = &piece.entry;
        let range: Range<u64> = u64::from(entry.offset)..u64::from(entry.offset) + u64::from(entry.packed_len);
        match self.reading.repository.store().read_range(&entry.pack, range, buf) {
            Ok(at) => {
                self.read_bytes
                    .fetch_add(u64::from(entry.packed_len), Ordering::Relaxed);
                self.check(piece, &buf[at], unsealer, plaintext)
            }
            Err(e) if e.is_damage() || e.is_not_found() => self.reading.look_again(&entry.content, self.gone),
            Err(e) => Err(e),
        }
    }

    fn check(&self, piece: &Piece, sealed: &[u8], unsealer: &mut Unsealer, plaintext: &mut Vec<u8>) -> Result<()> {
        let contents = self.reading.repository.contents();
        plaintext.resize(piece.entry.original_len as usize, 0);
        let read = contents
            .unseal_into(&piece.entry, sealed, unsealer, plaintext)
            .and_then(|()| contents.verify_hash(&piece.entry.content, plaintext));
        match read {
            Err(e) if e.is_damage() => self.reading.look_again(&piece.entry.content, self.gone),
            other => other, // a compression this version does not read is no damage
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_contents_is_what_was_asked_for() {
        for (percent, count) in [(0.0, 0), (1.0, 2), (50.0, 100), (100.0, 200)] {
            for phase in [0.0, 33.3, 99.999] {
                let chosen: Vec<_> = choose(0..200, percent, phase).collect();
                assert_eq!(chosen.len(), count, "{percent} % from {phase}");
            }
        }
        let samples: HashSet<usize> = (0..100)
            .flat_map(|phase| choose(0..100, 1.0, f64::from(phase)))
            .collect();
        assert_eq!(samples.len(), 100, "every content is in some sample");
    }

    #[test]
    fn a_batch_is_of_whole_packs() {
        let chosen: Vec<_> = (0..30).map(|i| Chosen { pack: i / 10, row: i }).collect();
        assert_eq!(batch_len(&chosen, |_| 1), 30);
        assert_eq!(batch_len(&chosen, |_| BATCH_BYTES / 5), 10);
        assert_eq!(batch_len(&chosen, |_| BATCH_BYTES / 15), 20);
        assert_eq!(batch_len(&[], |_| 1), 0);
    }
}
