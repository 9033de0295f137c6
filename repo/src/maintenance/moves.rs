//! Short packs: their contents move to new, full ones, so that a repository of many small backups stays one of few packs.
//!
//! Sealed bytes are copied as they are, after they have been opened once: the encryption is bound to the content and not to
//! its place. Only contents that exist move; what is marked deleted waits in its old pack until that is final.

use std::collections::{BTreeMap, HashMap, HashSet};

use blockio::{Cancel, Progress};
use serde::Serialize;
use tracing::error;

use super::collect::Count;
use super::packs::PackUses;
use super::writer::Writer;
use crate::blob::READ_SLACK;
use crate::error::{Kind, RepoError, Result};
use crate::index::{EntryRef, IndexEntry};
use crate::repository::Repository;
use crate::time::Time;

/// Packs with less than this share of the pack size in contents are short, in percent (kopia,
/// repo/maintenance/content_rewrite.go).
const SHORT_PERCENT: u64 = 60;

/// Contents moved by one run at most: 20 MiB of entries in memory; 100 GiB of 1 MiB chunks. The next run goes on.
const CONTENTS_MAX: u64 = 100_000;

/// What a run would move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveTotals {
    /// Short packs.
    pub packs: u64,
    /// Contents to move.
    pub to_move: Count,
    /// Contents in short packs that are too young to move.
    pub too_young: u64,
}

impl std::fmt::Display for MoveTotals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} contents in {} short packs move; {} more are too young",
            self.to_move, self.packs, self.too_young
        )
    }
}

/// The packs whose contents move.
#[derive(Debug, Default)]
pub(super) struct MovePlan<'a> {
    pub(super) totals: MoveTotals,
    pub(super) packs: HashSet<&'a str>,
}

impl<'a> MovePlan<'a> {
    /// Chooses short packs, of a kind only when there are two: one alone has nothing to be merged with.
    pub(super) fn new(uses: &PackUses<'a>, max_pack_size: u32) -> Self {
        let short_below = u64::from(max_pack_size) * SHORT_PERCENT / 100;
        let mut kinds: BTreeMap<&str, Vec<&'a str>> = BTreeMap::new();
        for (name, usage) in uses {
            if usage.bytes() < short_below && usage.movable > 0 {
                kinds.entry(name.get(..1).unwrap_or_default()).or_default().push(name);
            }
        }
        let mut plan = Self::default();
        for mut names in kinds.into_values().filter(|names| names.len() >= 2) {
            // Shortest first: they gain most when not all can go at once.
            names.sort_unstable_by_key(|name| (uses[name].bytes(), *name));
            for name in names {
                let usage = &uses[name];
                if plan.totals.to_move.count + u64::from(usage.movable) > CONTENTS_MAX && !plan.packs.is_empty() {
                    break;
                }
                plan.packs.insert(name);
                plan.totals.packs += 1;
                plan.totals.to_move.count += u64::from(usage.movable);
                plan.totals.to_move.bytes += usage.alive_bytes;
                plan.totals.too_young += u64::from(usage.alive - usage.movable);
            }
        }
        plan
    }

    /// Whether `entry` is one that moves.
    pub(super) fn moves(&self, entry: &EntryRef<'_>, movable_before: Time) -> bool {
        !entry.deleted && Time::from_unix(entry.time) <= movable_before && self.packs.contains(entry.pack)
    }
}

/// What was moved.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moved {
    pub(super) done: Count,
    /// Damaged where they are: they stay there.
    pub(super) damaged: u64,
}

/// Moves `entries` through `writer`, pack by pack.
pub(super) fn move_contents(
    repository: &Repository,
    writer: &mut Writer<'_>,
    entries: Vec<IndexEntry>,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<Moved> {
    let mut by_pack: HashMap<_, Vec<IndexEntry>> = HashMap::new();
    for entry in entries {
        progress.add_total(u64::from(entry.packed_len));
        by_pack.entry(entry.pack.clone()).or_default().push(entry);
    }
    let mut moved = Moved::default();
    let habits = repository.store().habits();
    let mut buf = Vec::new();
    for (pack, mut entries) in by_pack {
        entries.sort_unstable_by_key(|entry| entry.offset);
        let near = |a: &IndexEntry, b: &IndexEntry| u64::from(b.offset) <= end(a) + habits.read_gap;
        for run in entries.chunk_by(near).flat_map(|run| split(run, habits.read_len)) {
            if cancel.is_cancelled() {
                return Err(RepoError::new(Kind::Cancelled, "move contents of short packs"));
            }
            repository.keep_permitted()?;
            let start = u64::from(run[0].offset);
            let range = start..run.iter().map(end).max().unwrap_or(start);
            let len =
                usize::try_from(range.end - range.start).map_err(|_| RepoError::corrupt("a range beyond memory"))?;
            buf.resize(len + 2 * READ_SLACK, 0);
            let at = match repository.store().read_range(&pack, range, &mut buf) {
                Err(e) if e.is_damage() || e.is_not_found() => {
                    error!(%pack, error = %e, contents = run.len(), "contents to be moved cannot be read; they stay where they are");
                    moved.damaged += run.len() as u64;
                    continue;
                }
                other => other?,
            };
            for entry in run {
                let first = at.start + usize::try_from(u64::from(entry.offset) - start).expect("inside the range");
                let sealed = &buf[first..first + entry.packed_len as usize];
                match repository.contents().unseal(entry, sealed) {
                    Ok(_) => {
                        writer.put_sealed(entry, sealed)?;
                        moved.done.add(u64::from(entry.packed_len));
                    }
                    Err(e) if e.is_damage() => {
                        error!(content = %entry.content, error = %e, "a content to be moved is damaged; it stays where it is");
                        moved.damaged += 1;
                    }
                    Err(e) => return Err(e),
                }
                progress.add_done(u64::from(entry.packed_len));
            }
        }
    }
    Ok(moved)
}

fn end(entry: &IndexEntry) -> u64 {
    u64::from(entry.offset) + u64::from(entry.packed_len)
}

/// Parts of `run` that are at most `len_max` bytes each, or one content.
fn split(run: &[IndexEntry], len_max: u64) -> impl Iterator<Item = &[IndexEntry]> {
    let mut rest = run;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let limit = u64::from(first.offset) + len_max;
        let count = rest.iter().take_while(|entry| end(entry) <= limit).count().max(1);
        let (part, left) = rest.split_at(count);
        rest = left;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::super::packs::PackUse;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn usage(alive_mib: u64, deleted_mib: u64, movable: u32) -> PackUse {
        PackUse {
            alive_bytes: alive_mib * MIB,
            deleted_bytes: deleted_mib * MIB,
            alive: u32::try_from(alive_mib).expect("small"),
            movable,
            deleted_at: 0,
        }
    }

    #[track_caller]
    fn check(packs: &[(&'static str, PackUse)], expect: &[&str]) {
        let uses: PackUses<'_> = packs.iter().copied().collect();
        let plan = MovePlan::new(&uses, 20 << 20);
        let mut chosen: Vec<_> = plan.packs.iter().copied().collect();
        chosen.sort_unstable();
        assert_eq!(chosen, expect);
    }

    #[test]
    fn two_short_packs_of_a_kind_move_and_one_alone_does_not() {
        check(&[("p1", usage(5, 0, 5)), ("q1", usage(1, 0, 1))], &[]);
        check(
            &[("p1", usage(5, 0, 5)), ("p2", usage(11, 0, 1)), ("q1", usage(1, 0, 1))],
            &["p1", "p2"],
        );
    }

    #[test]
    fn packs_that_are_full_too_young_or_held_by_deleted_contents_alone_stay() {
        check(
            &[("p1", usage(12, 0, 12)), ("p2", usage(5, 7, 5)), ("p3", usage(5, 0, 5))],
            &[],
        );
        check(&[("p1", usage(5, 0, 0)), ("p2", usage(5, 0, 5))], &[]);
        check(&[("p1", usage(0, 5, 0)), ("p2", usage(5, 0, 5))], &[]);
    }

    #[test]
    fn the_shortest_packs_come_first_when_not_all_can_go() {
        let many = usage(1, 0, u32::try_from(CONTENTS_MAX - 1).expect("fits"));
        let many = PackUse {
            alive: many.movable,
            ..many
        };
        check(&[("p1", usage(5, 0, 5)), ("p2", many), ("p3", usage(6, 0, 5))], &["p2"]);
    }

    #[test]
    fn long_runs_are_read_in_parts() {
        let entry = |offset: u32| IndexEntry {
            offset,
            packed_len: 100,
            content: crate::id::ContentId::new(None, &[1; 16]).expect("valid"),
            pack: crate::id::BlobId::known("p0"),
            original_len: 72,
            time: 1,
            deleted: false,
            format_version: 3,
            compression: 0,
        };
        let run: Vec<_> = (0..10).map(|i| entry(i * 100)).collect();
        assert_eq!(split(&run, 250).map(<[_]>::len).collect::<Vec<_>>(), [2; 5]);
        assert_eq!(split(&run, 1).map(<[_]>::len).collect::<Vec<_>>(), [1; 10]);
        assert_eq!(split(&run, 1000).map(<[_]>::len).collect::<Vec<_>>(), [10]);
    }
}
