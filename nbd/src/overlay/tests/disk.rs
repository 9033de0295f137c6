//! A disk in memory that can lose its power, and runs full.

use super::super::live::Boot;
use super::super::store::{Folder, Medium};
use blockio::{BlockError, Op};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

/// A change that is not durable yet.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
    Punch(usize, usize),
}

/// A file on a disk that may lose power: what is durable, what a reader sees, and what makes the difference.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) durable: Vec<u8>,
    pub(super) live: Vec<u8>,
    pub(super) pending: Vec<Change>,
}

impl Content {
    fn apply(bytes: &mut Vec<u8>, change: &Change) {
        match change {
            Change::Write(at, data) => {
                if bytes.len() < at + data.len() {
                    bytes.resize(at + data.len(), 0);
                }
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
            Change::Len(len) => bytes.resize(*len, 0),
            Change::Punch(at, len) => {
                let end = (at + len).min(bytes.len());
                bytes[*at..end].fill(0);
            }
        }
    }

    fn change(&mut self, change: Change) {
        Self::apply(&mut self.live, &change);
        self.pending.push(change);
    }

    /// The power is gone: of what was not durable any sectors may be, and any may not.
    pub(super) fn lose_power(&mut self, random: &mut u64) {
        for change in std::mem::take(&mut self.pending) {
            let pieces: Vec<Change> = match change {
                Change::Len(len) => vec![Change::Len(len)],
                Change::Write(at, data) => cut(at, data.len())
                    .map(|(from, to)| Change::Write(from, data[from - at..to - at].to_vec()))
                    .collect(),
                Change::Punch(at, len) => cut(at, len).map(|(from, to)| Change::Punch(from, to - from)).collect(),
            };
            for piece in pieces.iter().filter(|_| coin(random)) {
                Self::apply(&mut self.durable, piece);
            }
        }
        self.live.clone_from(&self.durable);
    }
}

/// `at..at + len` cut at every sector.
pub(super) fn cut(at: usize, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let end = at + len;
    let mut from = at;
    std::iter::from_fn(move || {
        let to = end.min((from / 512 + 1) * 512);
        let piece = (from < end).then_some((from, to));
        from = to;
        piece
    })
}

pub(super) fn coin(random: &mut u64) -> bool {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random & 8 != 0
}

#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) files: BTreeMap<&'static str, Content>,
    /// Durable steps until the power goes.
    pub(super) steps: usize,
    pub(super) dead: bool,
    /// Decides what a cut in the middle of a step leaves.
    pub(super) random: u64,
    /// The log takes no more bytes than this.
    pub(super) log_max: Option<usize>,
    /// The data takes no bytes at or behind this.
    pub(super) data_max: Option<usize>,
    /// Times that the power went.
    pub(super) boots: u8,
    /// There is no room for a second log.
    pub(super) full_new: bool,
}

impl Disk {
    /// All files lose what was not synced, or parts of it.
    pub(super) fn lose_power(&mut self, random: &mut u64) {
        self.boots += 1;
        self.files.values_mut().for_each(|file| file.lose_power(random));
    }

    /// One durable step; `false` when the power goes in it.
    fn step(&mut self) -> io::Result<()> {
        if self.steps == 0 {
            self.dead = true;
        }
        self.steps = self.steps.saturating_sub(1);
        self.alive()
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead {
            Err(io::Error::other("no power"))
        } else {
            Ok(())
        }
    }
}

#[derive(Clone)]
pub(super) struct SimFolder {
    pub(super) disk: Arc<Mutex<Disk>>,
    /// The data is a volume of its own, which is called so.
    pub(super) target: Option<&'static str>,
    /// What it is marked with.
    pub(super) mark: Option<&'static str>,
}

pub(super) struct SimFile {
    disk: Arc<Mutex<Disk>>,
    name: Mutex<&'static str>,
}

impl SimFolder {
    pub(super) fn new(disk: Arc<Mutex<Disk>>) -> Self {
        let (target, mark) = (None, None);
        Self { disk, target, mark }
    }

    pub(super) fn in_place(disk: Arc<Mutex<Disk>>, target: &'static str) -> Self {
        Self {
            target: Some(target),
            ..Self::new(disk)
        }
    }

    pub(super) fn file(&self, name: &'static str) -> SimFile {
        SimFile {
            disk: self.disk.clone(),
            name: Mutex::new(name),
        }
    }
}

impl Folder for SimFolder {
    type File = SimFile;
    type Data = SimFile;

    fn data(&self) -> Result<(SimFile, bool), BlockError> {
        let mut disk = self.disk.lock().unwrap();
        disk.alive().map_err(|error| BlockError::from_io(Op::Open, error))?;
        let content = disk.files.entry("data").or_default();
        let written = self.target.is_none() && content.live.iter().any(|byte| *byte != 0);
        drop(disk);
        Ok((self.file("data"), written))
    }

    fn target(&self) -> Option<&str> {
        self.target
    }

    fn marked(&self) -> io::Result<Option<String>> {
        Ok(self.mark.map(str::to_owned))
    }

    fn log(&self) -> io::Result<Option<SimFile>> {
        let disk = self.disk.lock().unwrap();
        disk.alive()?;
        Ok(disk.files.contains_key("log").then(|| self.file("log")))
    }

    fn begin_log(&self) -> io::Result<SimFile> {
        let mut disk = self.disk.lock().unwrap();
        disk.alive()?;
        if disk.full_new {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.files.insert("log.new", Content::default());
        // It keeps being this file when it gets the other name.
        Ok(self.file("log.new"))
    }

    fn commit_log(&self) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        // Cut in it, the name may be the old one or the new one.
        let cut = disk.step();
        if cut.is_err() && coin(&mut disk.random) {
            return cut;
        }
        let new = disk.files.remove("log.new").unwrap();
        assert!(new.pending.is_empty(), "put in place before it was durable");
        disk.files.insert("log", new);
        cut
    }

    fn live(&self, which: usize) -> io::Result<SimFile> {
        let mut disk = self.disk.lock().unwrap();
        disk.alive()?;
        let name = ["live.0", "live.1"][which];
        disk.files.entry(name).or_default();
        Ok(self.file(name))
    }

    fn boot(&self) -> Option<Boot> {
        Some([self.disk.lock().unwrap().boots; 16])
    }
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut Content) -> T) -> io::Result<T> {
        let mut disk = self.disk.lock().unwrap();
        disk.alive()?;
        let mut name = self.name.lock().unwrap();
        if *name == "log.new" && !disk.files.contains_key("log.new") {
            *name = "log";
        }
        Ok(act(disk.files.get_mut(*name).unwrap()))
    }
}

impl Medium for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|content| content.live.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|content| content.change(Change::Len(usize::try_from(len).unwrap())))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        self.with(|content| buf.copy_from_slice(&content.live[from..from + buf.len()]))
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.read_at(buf, offset).map(|()| true)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        let max = match *self.name.lock().unwrap() {
            "data" => self.disk.lock().unwrap().data_max,
            "live.0" | "live.1" => None,
            _ => self.disk.lock().unwrap().log_max,
        };
        let room = max.map_or(buf.len(), |max| max.saturating_sub(from).min(buf.len()));
        self.with(|content| content.change(Change::Write(from, buf[..room].to_vec())))?;
        if room < buf.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) {
        let (offset, len) = (usize::try_from(offset).unwrap(), usize::try_from(len).unwrap());
        let _ = self.with(|content| content.change(Change::Punch(offset, len)));
    }

    fn zero(&self, offset: u64, len: u64, _give_back: bool) -> io::Result<()> {
        let (offset, len) = (usize::try_from(offset).unwrap(), usize::try_from(len).unwrap());
        self.with(|content| content.change(Change::Punch(offset, len)))
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.lock().unwrap().step()?;
        self.with(|content| {
            content.durable.clone_from(&content.live);
            content.pending.clear();
        })
    }
}
