//! Packs: which index entries hold each of them, which can go, and why the others stay.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::collect::Count;
use super::safety::{Breaker, Safety};
use super::sessions::{Guard, Sessions};
use crate::blob::{BlobMeta, BlobStore};
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;
use crate::index::EntryRef;
use crate::time::Time;

/// What the index says of one pack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PackUse {
    /// Bytes of contents that exist.
    pub(super) alive_bytes: u64,
    /// Bytes of contents marked deleted, not for good yet.
    pub(super) deleted_bytes: u64,
    /// Contents that exist.
    pub(super) alive: u32,
    /// Those of them that may move to another pack.
    pub(super) movable: u32,
    /// When the last of the others was marked, in unix seconds.
    pub(super) deleted_at: u64,
}

impl PackUse {
    /// Bytes of all contents that the index names.
    pub(super) fn bytes(&self) -> u64 {
        self.alive_bytes + self.deleted_bytes
    }
}

/// Packs that the index names. Takes some 100 bytes a pack: 50 MiB for 10,000,000 chunks.
pub(super) type PackUses<'a> = HashMap<&'a str, PackUse>;

/// What the winning entries of `rows` say of each pack. Contents not younger than `movable_before` may move.
pub(super) fn pack_uses<'a>(
    rows: impl Iterator<Item = EntryRef<'a>>,
    watermark: Option<u64>,
    movable_before: Time,
) -> PackUses<'a> {
    let mut uses = PackUses::new();
    for entry in rows.filter(|entry| !entry.is_forgotten(watermark)) {
        let pack = uses.entry(entry.pack).or_default();
        let bytes = u64::from(entry.packed_len);
        if entry.deleted {
            pack.deleted_bytes += bytes;
            pack.deleted_at = pack.deleted_at.max(entry.time);
        } else {
            pack.alive_bytes += bytes;
            pack.alive += 1;
            pack.movable += u32::from(Time::from_unix(entry.time) <= movable_before);
        }
    }
    uses
}

/// Why a blob that nothing refers to stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// It was stored after this run began.
    StoredMeanwhile,
    /// It is younger than the margin: its writer may not have indexed it yet.
    TooYoung,
    /// Its session may still be at work.
    SessionLive,
    /// A session marker cannot be read, so nobody knows whether its session is over.
    MarkerUnreadable,
    /// Contents were moved a short while ago; clients with an older index still read the old packs.
    MovedLately,
    /// A run deletes at most so many; the next one goes on.
    NextRun,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StoredMeanwhile => "stored after the run began",
            Self::TooYoung => "younger than the margin in which a writer may still index them",
            Self::SessionLive => "their writing session may still be at work",
            Self::MarkerUnreadable => "a session marker cannot be read",
            Self::MovedLately => "contents were moved a short while ago",
            Self::NextRun => "more than one run deletes; the next goes on",
        })
    }
}

/// Blobs kept for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptCount {
    /// How many, and their bytes.
    #[serde(flatten)]
    pub blobs: Count,
    /// When the first of them can go at the earliest; none when no time brings that.
    pub earliest: Option<Time>,
}

/// What becomes of the packs and markers of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PackTotals {
    /// Packs with contents that exist.
    pub in_use: Count,
    /// Packs that only contents marked deleted hold.
    pub deleted_only: Count,
    /// Packs and session markers to be deleted.
    pub to_delete: Count,
    /// Nothing refers to them, and yet they stay.
    pub kept: BTreeMap<Kept, KeptCount>,
    /// Blobs that are named like packs, but are none; nobody touches them.
    pub foreign: Count,
}

impl fmt::Display for PackTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} packs and markers go; {} are in use, {} hold only contents marked deleted",
            self.to_delete, self.in_use, self.deleted_only
        )?;
        for (why, kept) in &self.kept {
            write!(f, "; {} stay: {why}", kept.blobs)?;
            if let Some(earliest) = kept.earliest {
                write!(f, " (the first can go at {earliest})")?;
            }
        }
        match self.foreign.count {
            0 => Ok(()),
            _ => write!(f, "; {} have names like packs and are none", self.foreign),
        }
    }
}

/// Packs that one run deletes at most: 2 TiB, and 10 MiB of memory for their names.
const VICTIMS_MAX: usize = 100_000;

/// Bytes of a pack's name up to the session: the letter and 32 hex digits.
const PACK_NAME_LEN: usize = 33;

/// What decides about packs.
pub(super) struct PackRules<'a> {
    pub(super) uses: &'a PackUses<'a>,
    pub(super) sessions: &'a Sessions,
    /// The storage's time when the run began.
    pub(super) now: Time,
    pub(super) safety: &'a Safety,
    /// End of the last move of contents.
    pub(super) moved: Option<Time>,
}

/// The storage's clock may not move between two blobs: as much slack as Kopia gives.
const SAME_TIME: Duration = Duration::from_secs(1);

impl PackRules<'_> {
    /// Whether blob `meta`, which nothing refers to, stays, and until when. No IO, no clock: tests feed it facts.
    fn keeps(&self, meta: &BlobMeta) -> Option<(Kept, Option<Time>)> {
        let (stored, now, safety) = (Time::from(meta.modified), self.now.plus(SAME_TIME), self.safety);
        if stored > now {
            return Some((Kept::StoredMeanwhile, Some(stored.plus(safety.pack_age_min))));
        }
        if now.since(stored) < safety.pack_age_min {
            return Some((Kept::TooYoung, Some(stored.plus(safety.pack_age_min))));
        }
        match self.sessions.guard(&meta.id, now, safety.session_age_max) {
            Some(Guard::Until(until)) => return Some((Kept::SessionLive, Some(until))),
            Some(Guard::Unreadable) => return Some((Kept::MarkerUnreadable, None)),
            None => {}
        }
        self.calm_from().map(|calm| (Kept::MovedLately, Some(calm)))
    }

    /// When packs may be deleted again, while that is yet to come.
    pub(super) fn calm_from(&self) -> Option<Time> {
        let delay = Some(self.safety.rewrite_to_delete).filter(|delay| !delay.is_zero())?;
        Some(self.moved?.plus(delay)).filter(|calm| self.now < *calm)
    }
}

/// Which packs and markers go.
#[derive(Debug, Default)]
pub(super) struct PackPlan {
    pub(super) totals: PackTotals,
    pub(super) victims: Vec<BlobMeta>,
    /// Bytes of all packs and markers listed.
    listed_bytes: u64,
}

impl PackPlan {
    /// Lists the packs of `store` and decides. Sixteen listings of each kind, so that one is small.
    pub(super) fn new(store: &dyn BlobStore, rules: &PackRules<'_>) -> Result<Self> {
        let mut plan = Self::default();
        for kind in ["p", "q"] {
            for digit in 0..16 {
                let listing = store.list(&format!("{kind}{digit:x}"))?;
                listing.into_iter().for_each(|meta| plan.add(rules, meta));
            }
        }
        let markers = store.list(super::sessions::PREFIX)?;
        markers.into_iter().for_each(|meta| plan.add(rules, meta));
        // Packs before markers: a marker that goes first would leave its packs without their guard.
        plan.victims
            .sort_by_key(|meta| (meta.id.as_str().starts_with(super::sessions::PREFIX), meta.modified));
        Ok(plan)
    }

    fn add(&mut self, rules: &PackRules<'_>, meta: BlobMeta) {
        let name = meta.id.as_str();
        if !is_pack(name) && !name.starts_with(super::sessions::PREFIX) {
            self.totals.foreign.add(meta.len);
            return;
        }
        self.listed_bytes += meta.len;
        match rules.uses.get(name) {
            Some(usage) if usage.alive > 0 => return self.totals.in_use.add(meta.len),
            Some(_) => return self.totals.deleted_only.add(meta.len),
            None => {}
        }
        let kept = rules.keeps(&meta);
        let kept = kept.or_else(|| (self.victims.len() >= VICTIMS_MAX).then_some((Kept::NextRun, None)));
        match kept {
            Some((why, until)) => {
                let count = self.totals.kept.entry(why).or_default();
                count.blobs.add(meta.len);
                count.earliest = match (count.earliest, until) {
                    (Some(earliest), Some(until)) => Some(earliest.min(until)),
                    (earliest, until) => earliest.or(until),
                };
            }
            None => {
                self.totals.to_delete.add(meta.len);
                self.victims.push(meta);
            }
        }
    }

    /// Refuses what looks like a listing that lies rather than like retention.
    ///
    /// # Errors
    /// `InvalidInput`, with the flag that says it is meant.
    pub(super) fn check(&self, breaker: &Breaker, allow_many: bool) -> Result<()> {
        let Count { count, bytes } = self.totals.to_delete;
        if breaker.trips(bytes, self.listed_bytes) && !allow_many {
            let what = format!(
                "this run would delete {count} packs with {bytes} of {} bytes, more than {} %; look at `maintenance run --full --dry-run`, and when it is meant: --yes-delete-many",
                self.listed_bytes, breaker.percent_max
            );
            return Err(RepoError::new(Kind::InvalidInput, what));
        }
        Ok(())
    }
}

/// Whether `name` is what a client calls a pack: `p` or `q`, 32 hex digits, and a session or nothing.
pub(super) fn is_pack(name: &str) -> bool {
    let Some((head, rest)) = name.split_at_checked(PACK_NAME_LEN) else {
        return false;
    };
    let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    head.starts_with(['p', 'q']) && head.bytes().skip(1).all(hex) && (rest.is_empty() || rest.starts_with("-s"))
}

/// Why victims go, for logs and history.
pub(super) fn reason(id: &BlobId) -> &'static str {
    if id.as_str().starts_with(super::sessions::PREFIX) {
        "the session is over for longer than the margin"
    } else {
        "no index entry refers to it, it is older than the margin and its session is over"
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const HOUR: u64 = 3600;
    const NOW: u64 = 1_800_000_000;

    fn meta(name: &str, age: u64) -> BlobMeta {
        BlobMeta {
            id: BlobId::known(name),
            len: 100,
            modified: SystemTime::UNIX_EPOCH + Duration::from_secs(NOW - age),
        }
    }

    fn pack(n: u8, session: &str) -> String {
        format!("p{:032x}{session}", n)
    }

    #[track_caller]
    fn check(name: &str, age: u64, moved: Option<u64>, safety: &Safety, expect: Option<Kept>) {
        let (uses, sessions) = (PackUses::new(), Sessions::default());
        let rules = PackRules {
            uses: &uses,
            sessions: &sessions,
            now: Time::from_unix(NOW),
            safety,
            moved: moved.map(|ago| Time::from_unix(NOW - ago)),
        };
        let mut plan = PackPlan::default();
        plan.add(&rules, meta(name, age));
        assert_eq!(plan.totals.kept.keys().next().copied(), expect);
        assert_eq!(plan.victims.len(), usize::from(expect.is_none()));
    }

    #[test]
    fn only_old_packs_of_dead_sessions_go_and_not_soon_after_a_move() {
        let name = pack(1, "-s11");
        check(&name, 24 * HOUR, None, &Safety::FULL, None);
        check(&name, 24 * HOUR - 2, None, &Safety::FULL, Some(Kept::TooYoung));
        check(&name, 48 * HOUR, Some(HOUR), &Safety::FULL, None);
        check(&name, 48 * HOUR, Some(HOUR - 1), &Safety::FULL, Some(Kept::MovedLately));
        check(&name, 0, Some(0), &Safety::NONE, None);
        check("s00-s11", 24 * HOUR, None, &Safety::FULL, None);
    }

    #[test]
    fn what_is_stored_during_a_run_stays_even_without_margins() {
        let (uses, sessions) = (PackUses::new(), Sessions::default());
        let rules = PackRules {
            uses: &uses,
            sessions: &sessions,
            now: Time::from_unix(NOW - 10),
            safety: &Safety::NONE,
            moved: None,
        };
        let mut plan = PackPlan::default();
        plan.add(&rules, meta(&pack(1, ""), 5));
        plan.add(&rules, meta(&pack(2, ""), 9));
        assert_eq!(plan.totals.kept[&Kept::StoredMeanwhile].blobs.count, 1);
        assert_eq!(plan.victims.len(), 1, "a second of slack");
    }

    #[test]
    fn what_the_index_names_stays_also_when_it_is_deleted() {
        let (alive, deleted) = (pack(1, ""), pack(2, ""));
        let mut uses = PackUses::new();
        uses.insert(
            &alive,
            PackUse {
                alive: 1,
                ..PackUse::default()
            },
        );
        uses.insert(&deleted, PackUse::default());
        let sessions = Sessions::default();
        let rules = PackRules {
            uses: &uses,
            sessions: &sessions,
            now: Time::from_unix(NOW),
            safety: &Safety::NONE,
            moved: None,
        };
        let mut plan = PackPlan::default();
        [&alive, &deleted]
            .into_iter()
            .for_each(|name| plan.add(&rules, meta(name, 1000 * HOUR)));
        assert_eq!((plan.totals.in_use.count, plan.totals.deleted_only.count), (1, 1));
        assert!(plan.victims.is_empty());
    }

    #[test]
    fn foreign_blobs_are_no_packs() {
        for name in [pack(3, ""), pack(3, "-s0011223344556677144")] {
            assert!(is_pack(&name), "{name}");
        }
        for name in [
            "photos.zip",
            "p0123",
            &pack(3, "-x"),
            &pack(3, "0"),
            &pack(3, "").to_uppercase(),
            "x0_00112233445566778899aabbccddeeff",
        ] {
            assert!(!is_pack(name), "{name}");
        }
        check("sonnet", 1000 * HOUR, None, &Safety::FULL, None);
    }

    #[test]
    fn a_run_that_would_delete_most_of_a_large_repository_is_refused() {
        let plan = PackPlan {
            totals: PackTotals {
                to_delete: Count {
                    count: 3,
                    bytes: 60 << 30,
                },
                ..PackTotals::default()
            },
            victims: Vec::new(),
            listed_bytes: 100 << 30,
        };
        let refused = plan.check(&Breaker::STANDARD, false).expect_err("60 %");
        assert!(refused.to_string().contains("--yes-delete-many"), "{refused}");
        plan.check(&Breaker::STANDARD, true).expect("meant");
    }
}
