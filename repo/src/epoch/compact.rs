//! Upkeep of the index: what the owner of maintenance may write and delete under `x`.
//!
//! [`Inventory`] is a listing sorted by what its blobs are; every plan is a pure question to it. Source of the rules: kopia,
//! internal/epoch/epoch_manager.go, epoch_advance.go and epoch_range.go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use tracing::{info, warn};

use super::{Name, PREFIX, complete_set, longest_chain, put_whole};
use crate::blob::{BlobMeta, BlobStore};
use crate::error::{Kind, RepoError, Result};
use crate::format::EpochParameters;
use crate::id::BlobId;
use crate::index::{Merged, Table};
use crate::repository::Repository;

/// Epochs below the write epoch that may still receive index blobs.
const UNSETTLED: u64 = 2;

/// Entries of one compacted blob: 69 MiB with 128-bit hashes, and the same again sealed. Kopia's own limit is 16,000,000,
/// which would take 1 GiB; readers ask only that the set is complete.
const ENTRIES_MAX: usize = 2_000_000;

/// Listings that may differ before the storage counts as one whose listings cannot be trusted.
const LISTINGS_MAX: u32 = 3;

/// Text of an epoch marker, and of a deletion watermark.
const MARKER: &[u8] = b"epoch-marker";
const WATERMARK: &[u8] = b"deletion-watermark";

/// The index blobs of a repository, sorted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) write_epoch: u64,
    pub(crate) watermark: Option<u64>,
    markers: Vec<(u64, BlobMeta)>,
    watermarks: Vec<(u64, BlobMeta)>,
    own: BTreeMap<u64, Vec<BlobMeta>>,
    /// Complete compactions of one epoch each.
    single: BTreeMap<u64, Vec<BlobMeta>>,
    /// First epoch that no range checkpoint covers.
    first_open: u64,
}

/// An epoch to be compacted, and its blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SinglePlan {
    pub(crate) epoch: u64,
    pub(crate) blobs: Vec<BlobMeta>,
}

/// Epochs to be put into one checkpoint, and the blobs in force for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RangePlan {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) blobs: Vec<BlobMeta>,
}

/// How full the write epoch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fill {
    pub(crate) blobs: u64,
    pub(crate) bytes: u64,
    pub(crate) span: Duration,
}

impl Inventory {
    /// Lists the index blobs in `store`.
    pub(crate) fn read(store: &dyn BlobStore) -> Result<Self> {
        Ok(Self::from_listing(&store.list(PREFIX)?))
    }

    /// Lists twice, until two listings agree on the epochs that no writer uses any more: what a listing leaves out would be
    /// left out of the compaction, and be lost with the blobs that it replaces.
    ///
    /// # Errors
    /// `Unavailable` when the listings of `store` go on differing.
    pub(crate) fn read_settled(store: &dyn BlobStore) -> Result<Self> {
        let mut last = Self::read(store)?;
        for _ in 0..LISTINGS_MAX {
            let next = Self::read(store)?;
            let settled = |inventory: &Self| -> BTreeSet<BlobId> {
                let own = inventory.own.iter().filter(|(epoch, _)| next.is_settled(**epoch));
                own.flat_map(|(_, blobs)| blobs).map(|blob| blob.id.clone()).collect()
            };
            if settled(&last) == settled(&next) {
                return Ok(next);
            }
            last = next;
        }
        let what = format!(
            "{} lists the index blobs of old epochs differently each time; nothing is compacted while its listings are old",
            store.place()
        );
        Err(RepoError::new(Kind::Unavailable, what))
    }

    /// Sorts a listing. Names that fit no pattern are passed over.
    pub(crate) fn from_listing(listing: &[BlobMeta]) -> Self {
        let mut inventory = Self::default();
        let mut single: BTreeMap<u64, Vec<&BlobMeta>> = BTreeMap::new();
        let mut range: BTreeMap<(u64, u64), Vec<&BlobMeta>> = BTreeMap::new();
        for meta in listing {
            match Name::parse(meta.id.as_str()) {
                Some(Name::Marker(epoch)) => inventory.markers.push((epoch, meta.clone())),
                Some(Name::Watermark(seconds)) => inventory.watermarks.push((seconds, meta.clone())),
                Some(Name::Own(epoch)) => inventory.own.entry(epoch).or_default().push(meta.clone()),
                Some(Name::Single(epoch)) => single.entry(epoch).or_default().push(meta),
                Some(Name::Range(first, last)) => range.entry((first, last)).or_default().push(meta),
                None => {}
            }
        }
        let whole = |blobs: Vec<&BlobMeta>| Some(complete_set(&blobs)?.into_iter().cloned().collect());
        inventory.single = single
            .into_iter()
            .filter_map(|(epoch, blobs)| Some((epoch, whole(blobs)?)))
            .collect();
        let ranges = range
            .into_iter()
            .filter_map(|(key, blobs)| Some((key, complete_set(&blobs)?)))
            .collect();
        inventory.first_open = longest_chain(&ranges).1;
        inventory.write_epoch = inventory.markers.iter().map(|(epoch, _)| *epoch).max().unwrap_or(0);
        inventory.watermark = inventory.watermarks.iter().map(|(seconds, _)| *seconds).max();
        inventory
    }

    /// Index blobs that are in force or may be, for status.
    pub(crate) fn open_epochs(&self) -> u64 {
        self.own.range(self.first_open..).count() as u64
    }

    fn is_settled(&self, epoch: u64) -> bool {
        epoch
            .checked_add(UNSETTLED)
            .is_some_and(|next| next <= self.write_epoch)
    }

    /// The oldest epoch that no writer uses any more and that has not been compacted. One a run, as Kopia does.
    pub(crate) fn plan_single(&self) -> Option<SinglePlan> {
        let open = self.own.range(self.first_open..);
        let (epoch, blobs) = open
            .take_while(|(epoch, _)| self.is_settled(**epoch))
            .find(|(epoch, _)| !self.single.contains_key(epoch))?;
        Some(SinglePlan {
            epoch: *epoch,
            blobs: blobs.clone(),
        })
    }

    /// How full the write epoch is, and whether that is enough for the next one to begin.
    pub(crate) fn plan_advance(&self, parameters: &EpochParameters) -> (Fill, bool) {
        let blobs = self.own.get(&self.write_epoch).map_or(&[][..], Vec::as_slice);
        let times = || blobs.iter().map(|blob| blob.modified);
        let span = match (times().min(), times().max()) {
            (Some(first), Some(last)) => last.duration_since(first).unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let fill = Fill {
            blobs: blobs.len() as u64,
            bytes: blobs.iter().map(|blob| blob.len).sum(),
            span,
        };
        let full = fill.blobs >= u64::from(parameters.advance_on_count) || fill.bytes >= parameters.advance_on_bytes;
        let advance = !blobs.is_empty() && span >= parameters.min_epoch_duration && full;
        (fill, advance)
    }

    /// Epochs to put into a checkpoint, when there are enough of them. It ends before the first epoch that has not been
    /// compacted by itself: the blobs of such an epoch would be left behind for ever, as only its own compaction replaces
    /// them by Kopia's rules.
    pub(crate) fn plan_range(&self, parameters: &EpochParameters) -> Option<RangePlan> {
        let settled = self.write_epoch.checked_sub(UNSETTLED)?;
        let first = self.first_open;
        if settled < first {
            return None;
        }
        let mut own = self.own.range(first..=settled).map(|(epoch, _)| *epoch);
        let last = match own.find(|epoch| !self.single.contains_key(epoch)) {
            Some(open) => open.checked_sub(1)?,
            None => settled,
        };
        if last.checked_sub(first)? < u64::from(parameters.full_checkpoint_frequency) {
            return None;
        }
        let single = self.single.range(first..=last);
        let blobs: Vec<BlobMeta> = single.flat_map(|(_, blobs)| blobs).cloned().collect();
        (!blobs.is_empty()).then_some(RangePlan { first, last, blobs })
    }

    /// The moment before which a replacement must have been stored for what it replaces to go: the newest index blob tells
    /// the storage's time, less the margin in which every client looks again.
    pub(crate) fn replaced_before(&self, parameters: &EpochParameters) -> Option<SystemTime> {
        let window = self.write_epoch.saturating_sub(1)..=self.write_epoch.saturating_add(1);
        let newest = self
            .own
            .range(window)
            .flat_map(|(_, blobs)| blobs)
            .map(|blob| blob.modified)
            .max()?;
        newest.checked_sub(parameters.cleanup_safety_margin)
    }

    /// Markers of epochs that are over, and watermarks that a later one replaced.
    pub(crate) fn plan_markers(&self, parameters: &EpochParameters) -> (Vec<BlobMeta>, Vec<BlobMeta>) {
        let Some(before) = self.replaced_before(parameters) else {
            return (Vec::new(), Vec::new());
        };
        let markers = self.markers.iter();
        let markers = markers.filter(|(epoch, _)| epoch.saturating_add(1) < self.write_epoch);
        let watermarks = self.watermarks.iter();
        let watermarks =
            watermarks.filter(|(seconds, blob)| Some(*seconds) != self.watermark && blob.modified < before);
        (
            markers.map(|(_, blob)| blob.clone()).collect(),
            watermarks.map(|(_, blob)| blob.clone()).collect(),
        )
    }

    /// Epochs whose blobs a compaction replaced long enough ago: the blobs, and the compaction.
    pub(crate) fn plan_superseded(&self, parameters: &EpochParameters) -> Vec<(u64, Vec<BlobMeta>, Vec<BlobMeta>)> {
        let Some(before) = self.replaced_before(parameters) else {
            return Vec::new();
        };
        let old = |set: &&Vec<BlobMeta>| set.iter().all(|blob| blob.modified < before);
        let epochs = self.own.iter().filter(|(epoch, _)| self.is_settled(**epoch));
        epochs
            .filter_map(|(epoch, blobs)| {
                let set = self.single.get(epoch).filter(old)?;
                Some((*epoch, blobs.clone(), set.clone()))
            })
            .collect()
    }
}

/// Reads `blobs` as one index.
fn load(repository: &Repository, blobs: &[BlobMeta]) -> Result<Merged> {
    let tables = blobs.iter().map(|meta| table(repository, meta));
    Merged::new(tables.collect::<Result<Vec<_>>>()?)
}

fn table(repository: &Repository, meta: &BlobMeta) -> Result<Table> {
    let sealed = repository.store().get(&meta.id)?;
    let plaintext = repository.contents().open_blob(&meta.id, &sealed)?;
    drop(sealed);
    Table::parse(plaintext).map_err(|e| e.context(format!("index blob {}", meta.id)))
}

/// Writes the compaction of one epoch; gives the blobs' names.
pub(crate) fn compact_single(repository: &Repository, plan: &SinglePlan) -> Result<Vec<BlobId>> {
    compact(repository, &plan.blobs, &format!("xs{}_", plan.epoch))
}

/// Writes a range checkpoint; gives the blobs' names.
pub(crate) fn compact_range(repository: &Repository, plan: &RangePlan) -> Result<Vec<BlobId>> {
    compact(repository, &plan.blobs, &format!("xr{}_{}_", plan.first, plan.last))
}

/// Merges `blobs` into a set of blobs that stands for them. The bytes depend on the entries alone; a set that is cut short
/// by a crash counts for nobody, as its names say how many belong to it.
fn compact(repository: &Repository, blobs: &[BlobMeta], prefix: &str) -> Result<Vec<BlobId>> {
    let merged = load(repository, blobs).map_err(|e| e.context(format!("compact {prefix}")))?;
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random)
        .map_err(|_| RepoError::new(Kind::Storage, "the system's random source failed"))?;
    let set = hex::encode(random);
    let store = repository.store();
    let mut written = Vec::new();
    let result = merged.each_shard(ENTRIES_MAX, &mut |plaintext, count| {
        let suffix = format!("s{set}-c{count}");
        let (id, sealed) = repository.contents().seal_blob(prefix, Some(&suffix), &plaintext)?;
        drop(plaintext);
        put_whole(&**store, &id, &sealed)?;
        written.push(id);
        Ok(())
    });
    if let Err(e) = result.and_then(|()| store.sync()) {
        for id in &written {
            if let Err(e) = store.delete(id) {
                warn!(blob = %id, error = %e, "own part of a compaction that failed could not be deleted; nobody reads it");
            }
        }
        return Err(e);
    }
    info!(
        from = blobs.len(),
        into = written.len(),
        prefix,
        "index blobs compacted"
    );
    Ok(written)
}

/// Those of `blobs` that say something `set` does not: they must stay, whatever their age. A blob that was stored late,
/// after its epoch was compacted, is one of them.
pub(crate) fn not_covered(repository: &Repository, blobs: &[BlobMeta], set: &[BlobMeta]) -> Result<BTreeSet<BlobId>> {
    let set = load(repository, set)?;
    let mut missing = BTreeSet::new();
    for meta in blobs {
        let table = match table(repository, meta) {
            Err(e) if e.is_not_found() => continue,
            other => other?,
        };
        let own = Merged::new([table])?;
        let covered =
            |entry: &crate::index::EntryRef<'_>| set.find(&entry.content, None).is_some_and(|s| s.is_at_least(entry));
        if !own.rows().all(|(_, entry)| covered(&entry)) {
            missing.insert(meta.id.clone());
        }
    }
    Ok(missing)
}

/// Lets the epoch after `epoch` begin.
pub(crate) fn advance(store: &dyn BlobStore, epoch: u64) -> Result<u64> {
    let next = epoch
        .checked_add(1)
        .ok_or_else(|| RepoError::corrupt("the epoch of the index is 2^64 - 1"))?;
    store.put(&BlobId::known(format!("xe{next}")), MARKER)?;
    store.sync()?;
    Ok(next)
}

/// Makes deletions up to `seconds` (unix) final.
pub(crate) fn put_watermark(store: &dyn BlobStore, seconds: u64) -> Result<()> {
    store.put(&BlobId::known(format!("xw{seconds}")), WATERMARK)?;
    store.sync()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::id::ContentId;
    use crate::index::{IndexEntry, build_shards, build_v2};

    const HOUR: u64 = 3600;

    /// Blobs by name and hour of storage.
    fn inventory(blobs: &[(&str, u64)]) -> Inventory {
        let meta = |(name, hour): &(&str, u64)| BlobMeta {
            id: BlobId::known(*name),
            len: 1000,
            modified: UNIX_EPOCH + Duration::from_secs(hour * HOUR),
        };
        Inventory::from_listing(&blobs.iter().map(meta).collect::<Vec<_>>())
    }

    fn names<'a>(blobs: impl IntoIterator<Item = &'a BlobMeta>) -> Vec<&'a str> {
        blobs.into_iter().map(|blob| blob.id.as_str()).collect()
    }

    #[test]
    fn the_oldest_settled_epoch_without_compaction_is_next() {
        let plan = |blobs: &[(&str, u64)]| inventory(blobs).plan_single().map(|plan| plan.epoch);
        let own = [
            ("xn0_a-s1-c1", 0),
            ("xn1_b-s1-c1", 0),
            ("xn2_c-s1-c1", 0),
            ("xn3_d-s1-c1", 0),
        ];
        assert_eq!(plan(&own), None, "epoch 0 is still written to");
        assert_eq!(plan(&[&own[..], &[("xe2", 0)]].concat()), Some(0));
        assert_eq!(plan(&[&own[..], &[("xe3", 0), ("xs0_a-s1-c1", 0)]].concat()), Some(1));
        assert_eq!(
            plan(&[&own[..], &[("xe3", 0), ("xs0_a-s1-c2", 0)]].concat()),
            Some(0),
            "half a set is none"
        );
        assert_eq!(plan(&[&own[..], &[("xe4", 0), ("xr0_1_a-s1-c1", 0)]].concat()), Some(2));
        assert_eq!(
            plan(&[("xe9", 0), ("xn5_a-s1-c1", 0)]),
            Some(5),
            "epochs without blobs are passed over"
        );
    }

    #[test]
    fn an_epoch_ends_when_it_is_both_long_and_full() {
        let parameters = EpochParameters::default();
        let check = |blobs: &[(&str, u64)], advance| {
            assert_eq!(inventory(blobs).plan_advance(&parameters).1, advance, "{blobs:?}");
        };
        let named: Vec<String> = (0..20).map(|i| format!("xn1_{i:02}-s1-c1")).collect();
        let at = |hour_of_last: u64, count: usize| -> Vec<(&str, u64)> {
            let mut blobs: Vec<(&str, u64)> = named[..count].iter().map(|name| (name.as_str(), 0)).collect();
            blobs.last_mut().expect("some").1 = hour_of_last;
            blobs.push(("xe1", 0));
            blobs
        };
        check(&at(24, 20), true);
        check(&at(23, 20), false);
        check(&at(24, 19), false);
        check(&[("xe1", 0)], false);
        check(&[("xn0_a-s1-c1", 0), ("xn0_b-s1-c1", 99)], false);
    }

    #[test]
    fn a_checkpoint_takes_the_compactions_of_enough_epochs() {
        let parameters = EpochParameters::default();
        let mut blobs = vec![("xe9", 0), ("xn0_a-s1-c1", 0), ("xn8_z-s1-c1", 0), ("xn7_c-s1-c1", 0)];
        blobs.extend([("xs0_a-s1-c1", 0), ("xs3_b-s1-c1", 0)]);
        assert_eq!(
            inventory(&blobs).plan_range(&parameters),
            None,
            "epoch 7 is not compacted"
        );
        blobs.push(("xs7_c-s1-c1", 0));
        let plan = inventory(&blobs).plan_range(&parameters).expect("epochs 0 to 7");
        assert_eq!((plan.first, plan.last), (0, 7));
        assert_eq!(names(&plan.blobs), ["xs0_a-s1-c1", "xs3_b-s1-c1", "xs7_c-s1-c1"]);
        blobs.push(("xr0_0_a-s1-c1", 0));
        assert_eq!(inventory(&blobs).plan_range(&parameters), None, "only 1 to 7 are left");
    }

    #[test]
    fn what_was_replaced_goes_after_the_margin_by_the_storages_own_clock() {
        let parameters = EpochParameters::default();
        let mut blobs = vec![("xe0", 0), ("xe1", 0), ("xe2", 0), ("xe3", 0)];
        blobs.extend([("xw10", 0), ("xw20", 90), ("xw30", 99)]);
        blobs.extend([("xn0_a-s1-c1", 0), ("xs0_a-s1-c1", 95)]);
        assert!(inventory(&blobs).plan_superseded(&parameters).is_empty(), "no clock");
        assert_eq!(inventory(&blobs).plan_markers(&parameters), (Vec::new(), Vec::new()));
        blobs.push(("xn3_b-s1-c1", 99));
        let plan = inventory(&blobs).plan_superseded(&parameters);
        assert!(plan.is_empty(), "four hours are not over");
        blobs.push(("xn3_c-s1-c1", 100));
        let plan = inventory(&blobs).plan_superseded(&parameters);
        assert_eq!(names(&plan[0].1), ["xn0_a-s1-c1"]);
        let (markers, watermarks) = inventory(&blobs).plan_markers(&parameters);
        assert_eq!(
            (names(&markers), names(&watermarks)),
            (vec!["xe0", "xe1"], vec!["xw10", "xw20"])
        );
    }

    #[test]
    fn a_compaction_has_the_bytes_of_an_index_of_the_same_entries() {
        let entry = |n: u64, time: u64| IndexEntry {
            content: ContentId::new(n.is_multiple_of(5).then_some('k'), &[n.to_be_bytes(), [7; 8]].concat())
                .expect("valid"),
            pack: BlobId::known(format!("p{}", n % 9)),
            offset: 32,
            packed_len: if n.is_multiple_of(11) { 1 << 25 } else { 100 },
            original_len: 72,
            time,
            deleted: n.is_multiple_of(3),
            format_version: 3,
            compression: if n.is_multiple_of(7) { 0x1101 } else { 0 },
        };
        let old: Vec<_> = (0..300).map(|n| entry(n, 5)).collect();
        let new: Vec<_> = (200..400).map(|n| entry(n, 6)).collect();
        let tables =
            [old.clone(), new.clone()].map(|part| Table::parse(build_v2(part).expect("build")).expect("parse"));
        let merged = Merged::new(tables).expect("one key length");
        let all: Vec<_> = old[..200].iter().chain(&new).cloned().collect();
        let whole = build_shards(all).expect("build");
        let mut shards = Vec::new();
        let mut take = |shard, count| {
            shards.push((shard, count));
            Ok(())
        };
        merged.each_shard(1000, &mut take).expect("shards");
        assert_eq!(shards, [(whole[0].clone(), 1)]);
        shards.clear();
        let mut take = |shard, count| {
            shards.push((shard, count));
            Ok(())
        };
        merged.each_shard(100, &mut take).expect("shards");
        assert_eq!(shards.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [4; 4]);
        let tables = shards.into_iter().map(|(shard, _)| Table::parse(shard).expect("parse"));
        let again = Merged::new(tables).expect("one key length");
        assert!(again.iter(None).eq(merged.iter(None)));
    }

    #[test]
    fn an_empty_index_has_no_shards() {
        Merged::default()
            .each_shard(10, &mut |_, _| panic!("a shard of nothing"))
            .expect("nothing");
    }
}
