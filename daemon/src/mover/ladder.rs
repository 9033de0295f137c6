//! How much of what is known of changes a backup may rely on: the ladder from a list of changes down to reading everything.
//!
//! | rung | taken over from the parent | read | zero without reading |
//! |---|---|---|---|
//! | delta | chunks the list does not name | what the list names | holes of a file |
//! | allocated | nothing | what the list of allocated blocks names | everything else |
//! | hash-compare | nothing; ids are compared by position | everything | holes of a file |
//! | full | nothing | everything | holes of a file |
//!
//! [`decide`] looks at facts only. A rung that cannot be had is a [`Step`] with its reason, and every step is told: in the report, in
//! the log and in the snapshot's tags.

use std::fmt;

use serde::Serialize;

/// What a backup rests on; smaller means higher on the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// A list of changes since the parent.
    Delta,
    /// A list of allocated blocks; the rest is zero.
    Allocated,
    /// The whole volume, compared with the parent.
    HashCompare,
    /// The whole volume.
    Full,
}

impl Rung {
    /// Its name in documents, tags and flags.
    pub fn name(self) -> &'static str {
        match self {
            Self::Delta => "delta",
            Self::Allocated => "allocated",
            Self::HashCompare => "hash-compare",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Rung {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Delta, Self::Allocated, Self::HashCompare, Self::Full];
        let found = all.into_iter().find(|rung| rung.name() == text);
        found.ok_or_else(|| format!("{text:?} is none of delta, allocated, hash-compare, full"))
    }
}

/// Why there is no parent to continue from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoParent {
    /// The caller wants none.
    NotWanted,
    /// The source has no complete block image yet.
    NoneYet,
    /// It has some, but none of this volume, or none with the change id the list starts from.
    NoneFits(String),
    /// Its shape cannot be continued: other chunks, a folder, a compressed object.
    Unfit(String),
    /// It, or something that may be newer than it, cannot be read.
    Unreadable(String),
}

/// Why a rung cannot be had, or was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nobody gave a list.
    NoList,
    /// The list is not of this volume as it is.
    ListUnfit(String),
    /// There is nothing to continue from.
    NoParent(NoParent),
    /// An audit caught the source of the list in an error, at this time or before.
    Untrusted(String),
    /// The audit of this very backup found blocks changed that were called unchanged.
    AuditFailed,
}

impl Reason {
    /// A word for programs and tags.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoList => "no-list",
            Self::ListUnfit(_) => "list-unfit",
            Self::NoParent(NoParent::NotWanted) => "no-parent-wanted",
            Self::NoParent(NoParent::NoneYet) => "no-parent-yet",
            Self::NoParent(NoParent::NoneFits(_)) => "no-parent-fits",
            Self::NoParent(NoParent::Unfit(_)) => "parent-unfit",
            Self::NoParent(NoParent::Unreadable(_)) => "parent-unreadable",
            Self::Untrusted(_) => "source-untrusted",
            Self::AuditFailed => "audit-failed",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoList => f.write_str("no list was given"),
            Self::ListUnfit(why) => write!(f, "the list does not fit: {why}"),
            Self::NoParent(NoParent::NotWanted) => f.write_str("no parent was asked for"),
            Self::NoParent(NoParent::NoneYet) => f.write_str("the source has no complete block image yet"),
            Self::NoParent(NoParent::NoneFits(why)) => write!(f, "no earlier snapshot fits: {why}"),
            Self::NoParent(NoParent::Unfit(why)) => write!(f, "the parent cannot be continued: {why}"),
            Self::NoParent(NoParent::Unreadable(why)) => write!(f, "the parent cannot be read: {why}"),
            Self::Untrusted(since) => write!(
                f,
                "an audit found blocks changed that the source's list called unchanged ({since}); --trust-source believes it again"
            ),
            Self::AuditFailed => f.write_str("the audit found blocks changed that the list called unchanged"),
        }
    }
}

/// A rung that was not taken, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The rung.
    pub rung: Rung,
    /// Why not.
    pub reason: Reason,
}

/// What is known before the first byte is read.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Whether there is a parent.
    pub parent: Result<(), NoParent>,
    /// The list of changes since the parent, as far as it was given.
    pub changed: Result<(), Reason>,
    /// The list of allocated blocks.
    pub allocated: Result<(), Reason>,
    /// When an earlier audit of this source failed.
    pub untrusted: Option<String>,
}

/// The rung to take, and those above it that could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What the backup rests on.
    pub rung: Rung,
    /// What it does not, from the top.
    pub steps: Vec<Step>,
}

impl Decision {
    /// One sentence for people.
    pub fn reason(&self) -> String {
        let told: Vec<String> = self
            .steps
            .iter()
            .map(|step| format!("no {}: {}", step.rung, step.reason))
            .collect();
        match (self.rung, told.is_empty()) {
            (Rung::Delta, _) => "the changes since the parent were given".into(),
            (_, true) => "it was asked for".into(),
            (_, false) => told.join("; "),
        }
    }

    /// Words for a tag: each step as `rung:reason`.
    pub fn codes(&self) -> String {
        let codes: Vec<String> = (self.steps.iter())
            .map(|step| format!("{}:{}", step.rung, step.reason.code()))
            .collect();
        codes.join(" ")
    }
}

/// The highest rung that the facts allow. After doubt about the source neither of its lists counts: what misses changes may miss
/// allocations as well.
pub fn decide(facts: &Facts) -> Decision {
    let untrusted = || {
        facts
            .untrusted
            .clone()
            .map_or(Ok(()), |since| Err(Reason::Untrusted(since)))
    };
    let parent = || facts.parent.clone().map_err(Reason::NoParent);
    let ladder = [
        (
            Rung::Delta,
            facts.changed.clone().and_then(|()| parent()).and_then(|()| untrusted()),
        ),
        (Rung::Allocated, facts.allocated.clone().and_then(|()| untrusted())),
        (Rung::HashCompare, parent()),
    ];
    let mut steps = Vec::new();
    for (rung, allowed) in ladder {
        match allowed {
            Ok(()) => return Decision { rung, steps },
            Err(reason) => steps.push(Step { rung, reason }),
        }
    }
    Decision {
        rung: Rung::Full,
        steps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            parent: Ok(()),
            changed: Ok(()),
            allocated: Ok(()),
            untrusted: None,
        }
    }

    #[track_caller]
    fn check(facts: &Facts, rung: Rung, codes: &str) {
        let decision = decide(facts);
        assert_eq!((decision.rung, decision.codes().as_str()), (rung, codes));
    }

    #[test]
    fn each_missing_fact_costs_one_rung_and_is_told() {
        check(&facts(), Rung::Delta, "");
        let mut without = facts();
        without.changed = Err(Reason::NoList);
        check(&without, Rung::Allocated, "delta:no-list");
        without.allocated = Err(Reason::ListUnfit("of another size".into()));
        check(&without, Rung::HashCompare, "delta:no-list allocated:list-unfit");
        without.parent = Err(NoParent::NoneYet);
        check(
            &without,
            Rung::Full,
            "delta:no-list allocated:list-unfit hash-compare:no-parent-yet",
        );
    }

    #[test]
    fn changes_without_the_state_they_start_from_are_worth_nothing() {
        let mut orphan = facts();
        orphan.parent = Err(NoParent::NoneFits("none of volume v".into()));
        check(&orphan, Rung::Allocated, "delta:no-parent-fits");
        orphan.allocated = Err(Reason::NoList);
        check(
            &orphan,
            Rung::Full,
            "delta:no-parent-fits allocated:no-list hash-compare:no-parent-fits",
        );
    }

    #[test]
    fn after_doubt_neither_list_counts() {
        let mut doubted = facts();
        doubted.untrusted = Some("2026-01-02T03:04:05Z".into());
        check(
            &doubted,
            Rung::HashCompare,
            "delta:source-untrusted allocated:source-untrusted",
        );
        assert!(decide(&doubted).reason().contains("--trust-source"));
    }

    #[test]
    fn rungs_have_one_name_everywhere() {
        for rung in [Rung::Delta, Rung::Allocated, Rung::HashCompare, Rung::Full] {
            assert_eq!(rung.name().parse(), Ok(rung));
            assert_eq!(serde_json::to_value(rung).unwrap(), rung.name());
        }
        assert!("increment".parse::<Rung>().is_err());
    }
}
