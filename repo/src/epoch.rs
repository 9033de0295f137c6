//! Epochs: which index blobs are in force, and under which epoch a writer stores its own.
//!
//! [`EpochState::from_listing`] is the whole decision, pure; [`read`] and [`IndexWriter`] apply it to a store.
//! Source of the rules: kopia, internal/epoch/epoch_manager.go and epoch_utils.go.

pub(crate) mod compact;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::blob::{BlobMeta, BlobStore, first_wait};
use crate::content::ContentFormat;
use crate::error::{Kind, RepoError, Result};
use crate::format::EpochParameters;
use crate::id::{BlobId, SessionId};

/// Prefix of every index and epoch blob.
const PREFIX: &str = "x";

/// A writer starts on a state that stays valid for this share of the refresh frequency, in percent.
const VALID_SHARE_MIN: u32 = 75;

/// Refreshes of one index write before it gives up: an epoch lasts at least 24 h, so a second change is a broken clock.
const RESTARTS_MAX: u32 = 3;

/// What a listing of the index blobs says.
#[derive(Clone, Debug)]
pub struct EpochState {
    /// Epoch that writers store under.
    pub write_epoch: u64,
    /// Deleted entries up to this time (unix seconds) do not exist.
    pub watermark: Option<u64>,
    /// Index blobs that together describe every content.
    pub blobs: Vec<BlobMeta>,
    taken: Instant,
}

impl EpochState {
    /// Decides from all blobs with prefix `x`, listed at `taken`. Names that fit no pattern are passed over.
    pub fn from_listing(listing: &[BlobMeta], taken: Instant) -> Self {
        let mut write_epoch = 0;
        let mut watermark = None;
        let mut own: BTreeMap<u64, Vec<&BlobMeta>> = BTreeMap::new();
        let mut single: BTreeMap<u64, Vec<&BlobMeta>> = BTreeMap::new();
        let mut range: BTreeMap<(u64, u64), Vec<&BlobMeta>> = BTreeMap::new();
        for meta in listing {
            match Name::parse(meta.id.as_str()) {
                Some(Name::Marker(epoch)) => write_epoch = write_epoch.max(epoch),
                Some(Name::Watermark(seconds)) => watermark = watermark.max(Some(seconds)),
                Some(Name::Own(epoch)) => own.entry(epoch).or_default().push(meta),
                Some(Name::Single(epoch)) => single.entry(epoch).or_default().push(meta),
                Some(Name::Range(first, last)) => range.entry((first, last)).or_default().push(meta),
                None => {}
            }
        }
        let ranges: BTreeMap<_, _> = range
            .into_iter()
            .filter_map(|(k, blobs)| Some((k, complete_set(&blobs)?)))
            .collect();
        let (mut blobs, first) = longest_chain(&ranges);
        let epochs: BTreeSet<u64> = own.keys().chain(single.keys()).copied().collect();
        for &epoch in epochs.range(first..=write_epoch.saturating_add(1).max(first)) {
            let settled = epoch.checked_add(2).is_some_and(|e| e <= write_epoch);
            let compacted = single
                .get(&epoch)
                .filter(|_| settled)
                .and_then(|blobs| complete_set(blobs));
            blobs.extend(compacted.or_else(|| own.get(&epoch).cloned()).unwrap_or_default());
        }
        Self {
            write_epoch,
            watermark,
            blobs: blobs.into_iter().cloned().collect(),
            taken,
        }
    }

    /// The state of a repository without epochs whose index blobs in force are `blobs`. Nobody writes an index by it.
    pub(crate) fn without_epochs(blobs: Vec<BlobMeta>) -> Self {
        Self {
            write_epoch: 0,
            watermark: None,
            blobs,
            taken: Instant::now(),
        }
    }

    /// The state may be acted on until `frequency` after its listing began.
    fn is_valid(&self, frequency: Duration) -> bool {
        self.taken.elapsed() < frequency
    }

    /// The state stays valid for long enough to begin a write.
    fn is_fresh(&self, frequency: Duration) -> bool {
        self.taken.elapsed() < frequency * (100 - VALID_SHARE_MIN) / 100
    }
}

/// A parsed name of an index or epoch blob.
enum Name {
    Own(u64),
    Single(u64),
    Range(u64, u64),
    Marker(u64),
    Watermark(u64),
}

impl Name {
    fn parse(id: &str) -> Option<Self> {
        let number = |text: &str| -> Option<u64> {
            let text = text.split('_').next()?;
            text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
        };
        let (kind, rest) = (id.get(..2)?, id.get(2..)?);
        match kind {
            "xn" => rest.contains('_').then(|| number(rest))?.map(Self::Own),
            "xs" => rest.contains('_').then(|| number(rest))?.map(Self::Single),
            "xr" => {
                let (first, rest) = rest.split_once('_')?;
                let (first, last) = (number(first)?, rest.contains('_').then(|| number(rest))??);
                (first <= last).then_some(Self::Range(first, last))
            }
            "xe" => number(rest).map(Self::Marker),
            "xw" => number(rest).map(Self::Watermark),
            _ => None,
        }
    }
}

/// The first set of blobs with one session part that has as many members as its names say. Names without both parts are
/// sets of one.
fn complete_set<'a>(blobs: &[&'a BlobMeta]) -> Option<Vec<&'a BlobMeta>> {
    let mut sets: BTreeMap<&str, Vec<&BlobMeta>> = BTreeMap::new();
    for blob in blobs {
        let parts: Vec<&str> = blob.id.as_str().split('-').collect();
        let session = parts.iter().find(|p| p.starts_with('s') && p.len() > 1);
        let count = parts.iter().find_map(|p| p.strip_prefix('c')?.parse::<usize>().ok());
        let (Some(session), Some(count)) = (session, count) else {
            return Some(vec![blob]);
        };
        let set = sets.entry(session).or_default();
        set.push(blob);
        if set.len() == count {
            return Some(set.clone());
        }
    }
    None
}

/// The blobs of the chain of ranges from epoch 0 that reaches furthest with the fewest ranges, and the epoch after it.
fn longest_chain<'a>(ranges: &BTreeMap<(u64, u64), Vec<&'a BlobMeta>>) -> (Vec<&'a BlobMeta>, u64) {
    // Best way to cover 0..next: for each next, the number of ranges and the last of them.
    let mut best: BTreeMap<u64, (usize, Option<(u64, u64)>)> = BTreeMap::from([(0, (0, None))]);
    for key @ (first, last) in ranges.keys() {
        let (Some((steps, _)), Some(next)) = (best.get(first).copied(), last.checked_add(1)) else {
            continue;
        };
        let known = best.entry(next).or_insert((usize::MAX, None));
        if steps + 1 < known.0 {
            *known = (steps + 1, Some(*key));
        }
    }
    let reached = best.keys().next_back().copied().unwrap_or(0);
    let (mut blobs, mut at) = (Vec::new(), reached);
    while let Some((_, Some(key))) = best.get(&at) {
        blobs.extend(&ranges[key]);
        at = key.0;
    }
    (blobs, reached)
}

/// Lists the index blobs and decides; again when that took longer than a state lasts.
pub fn read(store: &dyn BlobStore, parameters: &EpochParameters) -> Result<EpochState> {
    for _ in 0..RESTARTS_MAX {
        let taken = Instant::now();
        let state = EpochState::from_listing(&store.list(PREFIX)?, taken);
        if state.is_valid(parameters.refresh_frequency) {
            return Ok(state);
        }
        warn!(
            elapsed_s = taken.elapsed().as_secs(),
            "listing the index blobs took longer than its result is valid"
        );
    }
    let what = format!(
        "list index blobs in {}: every listing took longer than {:?}",
        store.place(),
        parameters.refresh_frequency
    );
    Err(RepoError::new(Kind::Storage, what))
}

/// Stores the index shards of one flush under the write epoch, by the rule that keeps them from being compacted away.
pub struct IndexWriter<'a> {
    /// Where.
    pub store: &'a dyn BlobStore,
    /// Whole-blob encryption.
    pub contents: &'a ContentFormat,
    /// Epoch parameters of the repository.
    pub parameters: &'a EpochParameters,
    /// The session whose contents these are.
    pub session: &'a SessionId,
}

impl IndexWriter<'_> {
    /// Stores `shards` and returns the blobs' names. On an error none of them is left behind as far as the storage lets.
    pub fn write(&self, shards: &[Vec<u8>], known: Option<&EpochState>) -> Result<Vec<BlobId>> {
        let mut written = Vec::new();
        let result = self.try_write(shards, known, &mut written);
        if result.is_err() {
            self.take_back(&mut written);
        }
        result.map(|()| written)
    }

    fn try_write(&self, shards: &[Vec<u8>], known: Option<&EpochState>, written: &mut Vec<BlobId>) -> Result<()> {
        let frequency = self.parameters.refresh_frequency;
        let mut state = match known {
            Some(state) if state.is_fresh(frequency) => state.clone(),
            _ => read(self.store, self.parameters)?,
        };
        let mut restarts = 0;
        'again: loop {
            for shard in shards {
                if !state.is_valid(frequency) {
                    let fresh = read(self.store, self.parameters)?;
                    let moved = fresh.write_epoch != state.write_epoch;
                    state = fresh;
                    if moved {
                        self.restart(&mut restarts, written)?;
                        continue 'again;
                    }
                }
                let prefix = format!("xn{}_", state.write_epoch);
                let suffix = format!("{}-c{}", self.session, shards.len());
                let (id, sealed) = self.contents.seal_blob(&prefix, Some(&suffix), shard)?;
                put_whole(self.store, &id, &sealed)?;
                written.push(id);
            }
            let after = read(self.store, self.parameters)?;
            if after.write_epoch < state.write_epoch.saturating_add(2) {
                return Ok(());
            }
            warn!(
                written = state.write_epoch,
                now = after.write_epoch,
                "the repository went on by two epochs while the index was written; it could be missed by compaction, so it is written again"
            );
            state = after;
            self.restart(&mut restarts, written)?;
        }
    }

    /// Takes back what was written under an epoch that is over.
    fn restart(&self, restarts: &mut u32, written: &mut Vec<BlobId>) -> Result<()> {
        *restarts += 1;
        if *restarts > RESTARTS_MAX {
            return Err(RepoError::new(
                Kind::Storage,
                "the write epoch changed again and again during one index write; look at the clocks of those who maintain the repository",
            ));
        }
        self.take_back(written);
        Ok(())
    }

    /// Deletes the blobs of a flush that failed.
    pub(crate) fn take_back(&self, written: &mut Vec<BlobId>) {
        for id in written.drain(..) {
            if let Err(e) = self.store.delete(&id) {
                warn!(blob = %id, error = %e, "own index blob of a failed flush could not be deleted; it is complete and harmless");
            }
        }
    }
}

/// Tries to leave nothing of an index blob, or all of it, when its put failed.
const UNDO_TRIES: u32 = 3;

/// Stores an index blob. One whose put failed may still be there, or a part of it where a storage keeps what arrived of a body;
/// one that cannot be read keeps every client from opening the repository. So it is deleted; where that is refused, what it should
/// be takes its place: that is true, though who asked for it is told that it failed.
///
/// # Errors
/// Of the put.
pub(crate) fn put_whole(store: &dyn BlobStore, id: &BlobId, sealed: &[u8]) -> Result<()> {
    let Err(failed) = store.put(id, sealed) else {
        return Ok(());
    };
    for tried in 1..=UNDO_TRIES {
        let Err(e) = store.delete(id) else { break };
        // A storage that does not answer was asked again and again already.
        let is_refused = first_wait(e.kind()).is_none();
        if is_refused && store.put(id, sealed).is_ok() {
            warn!(blob = %id, error = %e, "own index blob of a failed flush could not be deleted; it is complete and harmless");
            break;
        }
        if !is_refused || tried == UNDO_TRIES {
            warn!(blob = %id, error = %e, "own index blob of a failed flush could not be deleted; if a part of it was stored, no client can open the repository until it is deleted");
            break;
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn state(names: &[&str]) -> EpochState {
        let meta = |name: &&str| BlobMeta {
            id: BlobId::new(*name).expect("valid"),
            len: 1,
            modified: SystemTime::UNIX_EPOCH,
        };
        EpochState::from_listing(&names.iter().map(meta).collect::<Vec<_>>(), Instant::now())
    }

    #[track_caller]
    fn check(names: &[&str], epoch: u64, expect: &[&str]) {
        let state = state(names);
        let mut have: Vec<_> = state.blobs.iter().map(|b| b.id.as_str()).collect();
        have.sort_unstable();
        let mut expect = expect.to_vec();
        expect.sort_unstable();
        assert_eq!((state.write_epoch, have), (epoch, expect));
    }

    #[test]
    fn a_young_repository_has_its_own_blobs_of_epochs_0_and_1() {
        check(
            &["xn0_aa-s1-c1", "xn0_bb-s2-c1", "xn1_cc-s3-c1", "xn2_dd-s4-c1"],
            0,
            &["xn0_aa-s1-c1", "xn0_bb-s2-c1", "xn1_cc-s3-c1"],
        );
        check(&[], 0, &[]);
    }

    #[test]
    fn a_settled_epoch_is_taken_from_its_complete_compaction_only() {
        let base = [
            "xe3",
            "xn0_aa-s1-c1",
            "xn1_bb-s1-c1",
            "xn2_cc-s1-c1",
            "xn3_dd-s1-c1",
            "xn4_ee-s1-c1",
        ];
        check(
            &[&base[..], &["xs0_11-s9-c1", "xs1_22-s9-c2"]].concat(),
            3,
            &[
                "xs0_11-s9-c1",
                "xn1_bb-s1-c1",
                "xn2_cc-s1-c1",
                "xn3_dd-s1-c1",
                "xn4_ee-s1-c1",
            ],
        );
        check(
            &[
                &base[..],
                &["xs1_22-s9-c2", "xs1_33-s8-c2", "xs1_44-s9-c2", "xs2_55-s9-c1"],
            ]
            .concat(),
            3,
            &[
                "xn0_aa-s1-c1",
                "xs1_22-s9-c2",
                "xs1_44-s9-c2",
                "xn2_cc-s1-c1",
                "xn3_dd-s1-c1",
                "xn4_ee-s1-c1",
            ],
        );
    }

    #[test]
    fn range_checkpoints_form_the_longest_chain_with_the_fewest_steps() {
        let names = [
            "xe9",
            "xr0_2_a-s1-c1",
            "xr0_6_b-s1-c1",
            "xr3_6_c-s1-c1",
            "xr4_7_d-s1-c1",
            "xs7_e-s1-c1",
            "xn8_f-s1-c1",
            "xn9_g-s1-c1",
        ];
        check(
            &names,
            9,
            &["xr0_6_b-s1-c1", "xs7_e-s1-c1", "xn8_f-s1-c1", "xn9_g-s1-c1"],
        );
        check(&["xe3", "xr1_2_a-s1-c1", "xn0_b-s1-c1"], 3, &["xn0_b-s1-c1"]);
    }

    #[test]
    fn markers_and_watermarks_take_the_largest_number() {
        let state = state(&[
            "xe1",
            "xe10",
            "xe2",
            "xw5",
            "xw1767225600",
            "xw7",
            "xe",
            "xw-1",
            "xnq_1",
            "x",
            "xr5_2_a",
        ]);
        assert_eq!((state.write_epoch, state.watermark), (10, Some(1_767_225_600)));
    }

    #[test]
    fn a_forged_marker_with_a_huge_number_costs_no_time() {
        let state = state(&["xe18446744073709551615", "xn0_aa-s1-c1"]);
        assert_eq!(state.blobs.len(), 1);
    }
}
