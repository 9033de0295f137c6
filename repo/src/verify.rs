//! Verification: are all lists readable, all contents indexed, all packs present and long enough, and do contents
//! decrypt to what their ids say?

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use blockio::{BufPool, Cancel, Progress};

use crate::blob::READ_SLACK;
use crate::content::Unsealer;
use crate::directory::EntryKind;
use crate::error::{Kind, RepoError, Result};
use crate::id::{BlobId, ContentId, ObjectId};
use crate::object::{BlockAddressTable, TableBuilder};
use crate::plan::{FETCH_LEN_MAX, ReadPlan};
use crate::repository::Repository;
use crate::snapshot::Snapshot;

/// Damages listed; past this many the repository is in a state that the list cannot help.
const DAMAGE_MAX: usize = 10_000;

/// Deepest folder.
const DEPTH_MAX: usize = 1024;

/// What to read.
#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions {
    /// Share of the contents that are read, decrypted and hashed, in percent.
    pub percent: f64,
    /// Threads.
    pub workers: usize,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Snapshots walked.
    pub snapshots: u64,
    /// Files, folders and links.
    pub objects: u64,
    /// Different contents.
    pub contents: u64,
    /// Contents read.
    pub contents_read: u64,
    /// Bytes read from packs.
    pub read_bytes: u64,
    /// Each names the content, blob or object, and where it is used.
    pub damage: Vec<String>,
}

/// Verifies `snapshots`. Damage is reported, not an error; an error means that the look itself failed.
pub fn verify(
    repository: &Repository,
    snapshots: &[Snapshot],
    options: &VerifyOptions,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<Report> {
    let mut walk = Walk {
        repository,
        cancel,
        report: Report::default(),
        contents: BTreeMap::new(),
        seen: HashSet::new(),
    };
    for snapshot in snapshots {
        let name = snapshot.id.map(|id| id.to_string()).unwrap_or_default();
        walk.report.snapshots += 1;
        if let Some(root) = &snapshot.root {
            walk.object(&root.object, root.kind, &format!("snapshot {name}"), 0)?;
        }
    }
    let Walk {
        mut report, contents, ..
    } = walk;
    report.contents = contents.len() as u64;
    check_packs(repository, &contents, &mut report)?;
    let chosen = choose(contents, options.percent);
    read(repository, &chosen, options.workers, cancel, progress, &mut report)?;
    report.damage.sort();
    report.damage.dedup();
    report.damage.truncate(DAMAGE_MAX);
    Ok(report)
}

/// First use of a content, and the length its list gives it.
struct Use {
    place: String,
    len: u64,
}

struct Walk<'a> {
    repository: &'a Repository,
    cancel: &'a Cancel,
    report: Report,
    contents: BTreeMap<ContentId, Use>,
    seen: HashSet<ObjectId>,
}

impl Walk<'_> {
    fn object(&mut self, object: &ObjectId, kind: EntryKind, place: &str, depth: usize) -> Result<()> {
        check(self.cancel)?;
        if !self.seen.insert(*object) {
            return Ok(());
        }
        self.report.objects += 1;
        if depth > DEPTH_MAX {
            self.report
                .damage
                .push(format!("{place}: folders nested more than {DEPTH_MAX} deep"));
            return Ok(());
        }
        match self.repository.table(object) {
            Ok(table) => self.add(&table, place),
            Err(e) => return self.damage(e, place),
        }
        let mut list = object.list();
        while let Some(inner) = list {
            match self.repository.table(&inner) {
                Ok(table) => self.add(&table, place),
                Err(e) => return self.damage(e, place),
            }
            list = inner.list();
        }
        if kind == EntryKind::Directory {
            let directory = match self.repository.read_directory(object) {
                Ok(directory) => directory,
                Err(e) => return self.damage(e, place),
            };
            for entry in directory.entries {
                self.object(&entry.object, entry.kind, &format!("{place}/{}", entry.name), depth + 1)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, table: &BlockAddressTable, place: &str) {
        for entry in table.iter() {
            let len = entry.extent.len;
            let place = || match table.count() {
                0 | 1 => place.to_string(),
                _ => format!("{place} at byte {}", entry.extent.offset),
            };
            let first = self
                .contents
                .entry(entry.content)
                .or_insert_with(|| Use { place: place(), len });
            if first.len != len {
                // One of them is wrong; the index, which is compared with the first, cannot tell of the others.
                let damage = format!(
                    "{}: content {} is used with {len} bytes, and with {} bytes by {}",
                    place(),
                    entry.content,
                    first.len,
                    first.place
                );
                self.report.damage.push(damage);
            }
        }
    }

    fn damage(&mut self, e: RepoError, place: &str) -> Result<()> {
        match e.kind() {
            Kind::Corrupt | Kind::NotFound => {
                self.report.damage.push(format!("{place}: {}", full(&e)));
                Ok(())
            }
            _ => Err(e),
        }
    }
}

fn check(cancel: &Cancel) -> Result<()> {
    match cancel.is_cancelled() {
        true => Err(RepoError::new(Kind::Cancelled, "verification cancelled")),
        false => Ok(()),
    }
}

fn full(e: &dyn std::error::Error) -> String {
    match e.source() {
        Some(source) => format!("{e}: {}", full(source)),
        None => e.to_string(),
    }
}

/// Compares the index with a listing of the packs.
fn check_packs(repository: &Repository, contents: &BTreeMap<ContentId, Use>, report: &mut Report) -> Result<()> {
    let mut lengths: HashMap<BlobId, u64> = HashMap::new();
    for prefix in ["p", "q"] {
        lengths.extend(
            repository
                .store()
                .list(prefix)?
                .into_iter()
                .map(|meta| (meta.id, meta.len)),
        );
    }
    for (content, usage) in contents {
        let place = &usage.place;
        let Some(entry) = repository.lookup(content) else {
            report
                .damage
                .push(format!("{place}: content {content} is not in the index"));
            continue;
        };
        if u64::from(entry.original_len) != usage.len {
            report.damage.push(format!(
                "{place}: content {content} has {} bytes, its list says {}",
                entry.original_len, usage.len
            ));
        }
        let end = u64::from(entry.offset) + u64::from(entry.packed_len);
        match lengths.get(&entry.pack) {
            None => report.damage.push(format!(
                "{place}: pack {} is missing; content {content} was in it",
                entry.pack
            )),
            Some(len) if *len < end => {
                report.damage.push(format!(
                    "{place}: pack {} has {len} bytes; content {content} ends at {end}",
                    entry.pack
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Every n-th content by id: ids are hashes, so that is a fair sample, and another share is another sample.
fn choose(contents: BTreeMap<ContentId, Use>, percent: f64) -> Vec<(ContentId, Use)> {
    let mut credit = 0.0;
    let mut take = || {
        credit += percent;
        let taken = credit >= 100.0;
        credit -= if taken { 100.0 } else { 0.0 };
        taken
    };
    contents.into_iter().filter(|_| take()).collect()
}

/// Reads `chosen` in pack order, decrypts and hashes.
fn read(
    repository: &Repository,
    chosen: &[(ContentId, Use)],
    workers: usize,
    cancel: &Cancel,
    progress: &Progress,
    report: &mut Report,
) -> Result<()> {
    let mut builder = TableBuilder::new(repository.contents().hash_len());
    let mut places = Vec::new();
    for (content, usage) in chosen {
        let readable = repository
            .lookup(content)
            .is_some_and(|e| u64::from(e.original_len) == usage.len);
        if readable && usage.len > 0 {
            builder.push(usage.len, content)?;
            places.push(usage.place.as_str());
        }
    }
    let table = builder.finish();
    let plan = ReadPlan::new(repository, &table, 0..table.count())?;
    progress.add_total(plan.fetch_bytes());
    let slot = usize::try_from(plan.fetch_len_max().max(FETCH_LEN_MAX))
        .map_err(|_| RepoError::corrupt("a content too long for memory"))?;
    let no_memory = |e| RepoError::new(Kind::Storage, "reserve read buffers").because(e);
    let pool = BufPool::new((slot + 2 * READ_SLACK).next_multiple_of(READ_SLACK), workers.max(1)).map_err(no_memory)?;
    let job = Job {
        repository,
        table: &table,
        plan: &plan,
        places: &places,
        pool,
        next: AtomicUsize::new(0),
        cancel,
        progress,
        report: Mutex::new(report),
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers.max(1)).map(|_| scope.spawn(|| job.work())).collect();
        threads.into_iter().try_for_each(|t| {
            t.join()
                .unwrap_or_else(|_| Err(RepoError::new(Kind::Storage, "a verification thread panicked")))
        })
    })
}

struct Job<'a> {
    repository: &'a Repository,
    table: &'a BlockAddressTable,
    plan: &'a ReadPlan,
    places: &'a [&'a str],
    pool: BufPool,
    next: AtomicUsize,
    cancel: &'a Cancel,
    progress: &'a Progress,
    report: Mutex<&'a mut Report>,
}

impl Job<'_> {
    fn work(&self) -> Result<()> {
        let (mut unsealer, mut plaintext) = (Unsealer::new(), Vec::new());
        loop {
            let unit = self.next.fetch_add(1, Ordering::Relaxed);
            if unit >= self.plan.len() {
                return Ok(());
            }
            check(self.cancel)?;
            let fetch = self.plan.fetch(unit);
            let pieces = fetch.pieces(self.repository, self.table);
            let mut buf = self.pool.take();
            let mut damage = Vec::new();
            let at = match self
                .repository
                .store()
                .read_range(fetch.pack(), fetch.range(), &mut buf)
            {
                Ok(at) => Some(at),
                Err(e) if e.is_damage() || e.is_not_found() => {
                    damage.extend(
                        pieces
                            .iter()
                            .map(|p| format!("{}: content {}: {}", self.places[p.uses[0]], p.entry.content, full(&e))),
                    );
                    None
                }
                Err(e) => return Err(e),
            };
            for piece in at.iter().flat_map(|_| &pieces) {
                let sealed = &buf[at.clone().expect("inside its loop")][piece.at.clone()];
                plaintext.resize(piece.entry.original_len as usize, 0);
                let contents = self.repository.contents();
                let place = self.places[piece.uses[0]];
                match contents.unseal_into(&piece.entry, sealed, &mut unsealer, &mut plaintext) {
                    Err(e) if e.is_damage() => damage.push(format!("{place}: {}", full(&e))),
                    Err(e) => return Err(e.context(place)), // a compression this version does not read is no damage
                    Ok(()) => damage.extend(
                        contents
                            .verify_hash(&piece.entry.content, &plaintext)
                            .err()
                            .map(|e| format!("{place}: {}", full(&e))),
                    ),
                }
            }
            let range = fetch.range();
            self.progress.add_done(range.end - range.start);
            let mut report = self.report.lock().expect("no panic while held");
            report.contents_read += pieces.len() as u64;
            report.read_bytes += range.end - range.start;
            report.damage.extend(damage);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_contents_is_what_was_asked_for() {
        let contents = || {
            let id = |i: u8| ContentId::new(None, &[i; 16]).expect("valid");
            (0..200)
                .map(|i| {
                    (
                        id(i),
                        Use {
                            place: String::new(),
                            len: 1,
                        },
                    )
                })
                .collect::<BTreeMap<_, _>>()
        };
        for (percent, count) in [(0.0, 0), (1.0, 2), (50.0, 100), (100.0, 200)] {
            assert_eq!(choose(contents(), percent).len(), count, "{percent} %");
        }
    }
}
