//! Operations on a block device whose result is known: `exercise random DEVICE SEED OPERATIONS|FILE` and `exercise record DEVICE SEED`.
//!
//! `random` does operations of all kinds by four threads, each on a part of the device of its own, and compares what it reads with
//! what it knows; so many operations, or until there is such a FILE. `record` writes batches of which each is flushed, says so, and goes on until it is killed; `exercise check FILE
//! SEED BATCH [BASE]` then tells whether a volume that was zeros, or looked like BASE, may look like FILE with BATCH flushed batches.

use rustix::fs::{FallocateFlags, Mode, OFlags};
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Bytes of a sector.
const SECTOR: usize = 512;
/// Longest operation in sectors: 2 MiB, more than a device takes at once.
const SECTORS_MAX: u64 = 4096;
/// Parts of the device, each with a thread.
const PARTS: u64 = 4;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["random", device, seed, operations] => random(Path::new(device), seed.parse()?, operations),
        ["record", device, seed] => record(Path::new(device), seed.parse()?),
        ["check", file, seed, batch] => check(Path::new(file), seed.parse()?, batch.parse()?, None),
        ["check", file, seed, batch, base] => check(Path::new(file), seed.parse()?, batch.parse()?, Some(base)),
        _ => Err(
            "usage: exercise random DEVICE SEED OPERATIONS | record DEVICE SEED | check FILE SEED BATCH [BASE]".into(),
        ),
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("devices of these tests fit in memory")
}

/// Numbers that look random and are the same every time (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Short ones more often than long ones.
    fn sectors(&mut self, limit: u64) -> u64 {
        let most = (SECTORS_MAX >> self.below(12)).clamp(1, limit);
        1 + self.below(most)
    }
}

/// What is in a sector: zeros, or what a write of this number has put there.
type Content = u64;
const ZEROS: Content = 0;
/// What the volume had before.
const BASE: Content = u64::MAX;

fn fill(sector: u64, content: Content, bytes: &mut [u8]) {
    if content == ZEROS {
        bytes.fill(0);
        return;
    }
    let mut numbers = Numbers(sector << 32 ^ content);
    for word in bytes.chunks_mut(8) {
        word.copy_from_slice(&numbers.next().to_le_bytes());
    }
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..16].copy_from_slice(&content.to_le_bytes());
}

/// Memory that fits direct IO.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new() -> Self {
        let bytes = vec![0; index(SECTORS_MAX) * SECTOR + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        Self { bytes, start }
    }

    fn sectors(&mut self, count: u64) -> &mut [u8] {
        &mut self.bytes[self.start..][..index(count) * SECTOR]
    }
}

fn open(path: &Path, direct: bool) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | if direct { OFlags::DIRECT } else { OFlags::empty() };
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// A part of a device and what is known to be in it.
struct Part {
    files: [File; 2],
    start: u64,
    known: Vec<Content>,
    numbers: Numbers,
    buffer: Aligned,
}

impl Part {
    fn new(path: &Path, start: u64, sectors: u64, seed: u64) -> Result<Self> {
        let part = Self {
            files: [open(path, true)?, open(path, false)?],
            start,
            known: vec![ZEROS; usize::try_from(sectors)?],
            numbers: Numbers(seed),
            buffer: Aligned::new(),
        };
        rustix::fs::fallocate(
            &part.files[0],
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            start * SECTOR as u64,
            sectors * SECTOR as u64,
        )?;
        Ok(part)
    }

    fn step(&mut self, number: u64) -> Result<()> {
        let len = self.known.len() as u64;
        let count = self.numbers.sectors(len);
        let at = self.numbers.below(len - count + 1);
        let (first, offset) = (self.start + at, (self.start + at) * SECTOR as u64);
        let range = index(at)..index(at + count);
        // Through the page cache now and then: it and direct IO are to agree.
        let file = &self.files[usize::from(self.numbers.below(4) == 0)];
        match self.numbers.below(16) {
            0..6 => self.verify(range, self.numbers.0.is_multiple_of(4))?,
            6..13 => {
                let bytes = self.buffer.sectors(count);
                for (sector, bytes) in (first..).zip(bytes.chunks_mut(SECTOR)) {
                    fill(sector, number, bytes);
                }
                file.write_all_at(bytes, offset)?;
                self.known[range].fill(number);
            }
            kind @ 13..15 => {
                let how = if kind == 13 {
                    FallocateFlags::ZERO_RANGE
                } else {
                    FallocateFlags::PUNCH_HOLE
                };
                let bytes = count * SECTOR as u64;
                rustix::fs::fallocate(file, how | FallocateFlags::KEEP_SIZE, offset, bytes)?;
                self.known[range].fill(ZEROS);
            }
            _ => file.sync_data()?,
        }
        Ok(())
    }

    fn verify(&mut self, range: std::ops::Range<usize>, cached: bool) -> Result<()> {
        let bytes = self.buffer.sectors(range.len() as u64);
        let first = self.start + range.start as u64;
        self.files[usize::from(cached)].read_exact_at(bytes, first * SECTOR as u64)?;
        let mut expected = [0; SECTOR];
        for ((sector, bytes), content) in (first..).zip(bytes.chunks(SECTOR)).zip(&self.known[range]) {
            fill(sector, *content, &mut expected);
            if bytes != expected {
                return Err(format!("sector {sector} has {}, not write {content}", found_in(bytes)).into());
            }
        }
        Ok(())
    }
}

fn found_in(bytes: &[u8]) -> String {
    let word = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    format!("write {} of sector {}", word(8), word(0))
}

fn random(path: &Path, seed: u64, operations: &str) -> Result<()> {
    let is_over = |number: u64| match operations.parse::<u64>() {
        Ok(operations) => number > operations,
        Err(_) => number.is_multiple_of(16) && Path::new(operations).exists(),
    };
    let sectors = std::io::Seek::seek(&mut open(path, false)?, std::io::SeekFrom::End(0))? / SECTOR as u64;
    let each = sectors / PARTS / 8 * 8;
    let run = |part: u64| -> Result<u64> {
        let mut part = Part::new(path, part * each, each, seed.wrapping_add(part))?;
        let mut number = 1;
        while !is_over(number) {
            part.step(number)?;
            number += 1;
        }
        part.files[0].sync_data()?;
        let len = part.known.len();
        for start in (0..len).step_by(index(SECTORS_MAX)) {
            part.verify(start..len.min(start + index(SECTORS_MAX)), false)?;
        }
        Ok(number - 1)
    };
    let run = &run;
    let done = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..PARTS).map(|part| scope.spawn(move || run(part))).collect();
        let ended = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a thread panicked")?);
        ended.sum::<Result<u64>>()
    })?;
    println!("{done} operations by {PARTS} threads: every byte is right");
    Ok(())
}

/// Operations of a batch, the same every time: first sector, sectors, and whether they are zeroed.
fn batch(seed: u64, number: u64, sectors: u64) -> Vec<(u64, u64, bool)> {
    let mut numbers = Numbers(seed ^ number << 20);
    let count = 1 + numbers.below(8);
    let mut one = |_| {
        let count = numbers.sectors(sectors.min(256));
        (numbers.below(sectors - count + 1), count, numbers.below(8) == 0)
    };
    (0..count).map(&mut one).collect()
}

fn record(path: &Path, seed: u64) -> Result<()> {
    let file = open(path, true)?;
    let sectors = std::io::Seek::seek(&mut &file, std::io::SeekFrom::End(0))? / SECTOR as u64;
    let mut buffer = Aligned::new();
    for number in 1.. {
        for (first, count, zeroed) in batch(seed, number, sectors) {
            if zeroed {
                let how = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&file, how, first * SECTOR as u64, count * SECTOR as u64)?;
                continue;
            }
            let bytes = buffer.sectors(count);
            for (sector, bytes) in (first..).zip(bytes.chunks_mut(SECTOR)) {
                fill(sector, number, bytes);
            }
            file.write_all_at(bytes, first * SECTOR as u64)?;
        }
        println!("FLUSHING {number}");
        std::io::stdout().flush()?;
        file.sync_data()?;
        println!("DURABLE {number}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// A sector has what the last flushed batch that touched it has left there, or what a later one has.
fn check(path: &Path, seed: u64, durable: u64, base: Option<&str>) -> Result<()> {
    /// Batches that may have been written without anybody having heard of it: what a console holds back.
    const UNHEARD: u64 = 64;
    let file = File::open(path)?;
    let base = base.map(File::open).transpose()?;
    let sectors = std::io::Seek::seek(&mut &file, std::io::SeekFrom::End(0))? / SECTOR as u64;
    let before = if base.is_some() { BASE } else { ZEROS };
    let mut allowed: Vec<Vec<Content>> = vec![vec![before]; usize::try_from(sectors)?];
    for number in 1..=durable + UNHEARD {
        for (first, count, zeroed) in batch(seed, number, sectors) {
            let content = if zeroed { ZEROS } else { number };
            for sector in &mut allowed[index(first)..index(first + count)] {
                if number <= durable {
                    sector.clear();
                }
                sector.push(content);
            }
        }
    }
    let mut bytes = [0; SECTOR];
    let mut before = [0; SECTOR];
    let mut expected = [0; SECTOR];
    for (sector, allowed) in (0..).zip(&allowed) {
        file.read_exact_at(&mut bytes, sector * SECTOR as u64)?;
        if let Some(base) = &base {
            base.read_exact_at(&mut before, sector * SECTOR as u64)?;
        }
        let fits = allowed.iter().any(|content| match *content {
            BASE => bytes == before,
            content => {
                fill(sector, content, &mut expected);
                bytes == expected
            }
        });
        if !fits {
            return Err(format!("sector {sector} has {}, not one of {allowed:?}", found_in(&bytes)).into());
        }
    }
    println!("{sectors} sectors are as they may be after batch {durable}");
    Ok(())
}
