//! Index blobs of format version 1, which has no epochs: which of them are in force.
//!
//! | name  | content                                                                                     |
//! |-------|---------------------------------------------------------------------------------------------|
//! | `n*`  | index blobs, of one flush or of a compaction                                                |
//! | `m*`  | JSON: a compaction replaced these index blobs by those                                      |
//! | `l*`  | JSON: these `m` blobs are to be deleted some time later. It does not matter to a reader     |
//!
//! All `n` blobs are in force but those that a compaction replaced all of whose outputs are there. The order of two listings
//! does not matter: with a compaction between them a reader has its inputs, its outputs or both, which say the same.
//!
//! Source: kopia, repo/content/indexblob/index_blob_manager_v0.go.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::blob::{BlobMeta, BlobStore};
use crate::content::ContentFormat;
use crate::error::{Kind, RepoError, Result};
use crate::id::BlobId;

/// Prefix of index blobs, and of compaction logs.
const INDEX: &str = "n";
const COMPACTION: &str = "m";

/// Left behind by an upgrade to epochs, so that clients of before stop (kopia, repo/format/upgrade_lock.go).
const POISON: &str = "n00000000000000000000000000000000-repository_unreadable_by_this_kopia_version_upgrade_required";

/// A compaction, as far as a reader needs it.
#[derive(Debug, Deserialize)]
pub struct CompactionLog {
    #[serde(rename = "inputMetadata", default)]
    inputs: Option<Vec<Named>>,
    #[serde(rename = "outputMetadata", default)]
    outputs: Option<Vec<Named>>,
}

/// A blob in a compaction log. Its length and time are there too.
#[derive(Debug, Deserialize)]
struct Named {
    id: String,
}

impl CompactionLog {
    /// Reads the log that is the content of `blob`.
    ///
    /// # Errors
    /// `Corrupt` when it is none.
    pub fn parse(blob: &BlobId, plaintext: &[u8]) -> Result<Self> {
        serde_json::from_slice(plaintext)
            .map_err(|e| RepoError::corrupt(format!("compaction log {blob} is not the expected JSON")).because(e))
    }

    fn inputs(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().flatten().map(|named| named.id.as_str())
    }

    fn outputs(&self) -> impl Iterator<Item = &str> {
        self.outputs.iter().flatten().map(|named| named.id.as_str())
    }
}

/// Those of the index blobs in `listing` that are in force, given the logs of all compactions. Pure.
///
/// # Errors
/// `Corrupt` when the repository was upgraded to epochs: this index is of before then.
pub fn in_force(listing: Vec<BlobMeta>, logs: &[CompactionLog]) -> Result<Vec<BlobMeta>> {
    let mut blobs: BTreeMap<String, BlobMeta> = listing
        .into_iter()
        .map(|meta| (meta.id.as_str().to_owned(), meta))
        .collect();
    if blobs.contains_key(POISON) {
        let what = "the index was upgraded to epochs, and kopia.repository is from before; put the newer kopia.repository back";
        return Err(RepoError::new(Kind::Corrupt, what));
    }
    let valid = logs.iter().filter(|log| log.outputs().all(|id| blobs.contains_key(id)));
    let replaced: BTreeSet<&str> = valid.flat_map(CompactionLog::inputs).collect();
    blobs.retain(|id, _| !replaced.contains(id.as_str()));
    Ok(blobs.into_values().collect())
}

/// Lists the index blobs in `store` that are in force.
///
/// # Errors
/// Of the store, and `Corrupt` for a log that cannot be read or an index of before an upgrade.
pub fn read(store: &dyn BlobStore, contents: &ContentFormat) -> Result<Vec<BlobMeta>> {
    let listing = store.list(INDEX)?;
    let mut logs = Vec::new();
    for meta in store.list(COMPACTION)? {
        let sealed = match store.get(&meta.id) {
            Err(e) if e.is_not_found() => continue, // cleaned up meanwhile, long after its inputs
            other => other?,
        };
        logs.push(CompactionLog::parse(&meta.id, &contents.open_blob(&meta.id, &sealed)?)?);
    }
    in_force(listing, &logs)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn log(inputs: &[&str], outputs: &[&str]) -> CompactionLog {
        let named = |ids: &[&str]| Some(ids.iter().map(|id| Named { id: (*id).into() }).collect());
        CompactionLog {
            inputs: named(inputs),
            outputs: named(outputs),
        }
    }

    fn blobs(names: &[&str]) -> Vec<BlobMeta> {
        let meta = |name: &&str| BlobMeta {
            id: BlobId::new(*name).expect("valid"),
            len: 1,
            modified: SystemTime::UNIX_EPOCH,
        };
        names.iter().map(meta).collect()
    }

    #[track_caller]
    fn check(listing: &[&str], logs: &[CompactionLog], expect: &[&str]) {
        let have = in_force(blobs(listing), logs).expect("no poison");
        assert_eq!(have.iter().map(|blob| blob.id.as_str()).collect::<Vec<_>>(), expect);
    }

    #[test]
    fn inputs_of_a_whole_compaction_are_replaced() {
        check(&["n1", "n2", "n3"], &[], &["n1", "n2", "n3"]);
        check(&["n1", "n2", "n3", "n4"], &[log(&["n1", "n2"], &["n4"])], &["n3", "n4"]);
        check(&["n3", "n4"], &[log(&["n1", "n2"], &["n4"])], &["n3", "n4"]);
    }

    #[test]
    fn a_compaction_that_lost_an_output_counts_for_nothing() {
        check(
            &["n1", "n2", "n4"],
            &[log(&["n1", "n2"], &["n4", "n5"])],
            &["n1", "n2", "n4"],
        );
        check(&["n1"], &[log(&["n1"], &["n9"])], &["n1"]);
    }

    #[test]
    fn compactions_of_compactions_leave_the_last() {
        let logs = [log(&["n1", "n2"], &["n3"]), log(&["n3", "n4"], &["n5"])];
        check(&["n1", "n2", "n3", "n4", "n5"], &logs, &["n5"]);
        // A log is valid by what is stored, not by what is in force: the first one still replaces its inputs.
        check(&["n1", "n3", "n5"], &logs, &["n5"]);
        check(&["n1", "n3", "n4"], &logs, &["n3", "n4"]);
    }

    #[test]
    fn an_index_of_before_an_upgrade_is_not_read() {
        let error = in_force(blobs(&["n1", POISON]), &[]).expect_err("poisoned");
        assert!(error.is_damage() && error.what().contains("upgraded"), "{error}");
    }

    #[test]
    fn logs_parse_as_kopia_writes_them_and_damage_is_told() {
        let blob = BlobId::new("m00").expect("valid");
        let text = br#"{"inputMetadata":[{"id":"n1","length":12,"timestamp":"2026-01-01T00:00:00Z"}],"outputMetadata":[{"id":"n2","length":3,"timestamp":"2026-01-01T00:00:00Z"}]}"#;
        let parsed = CompactionLog::parse(&blob, text).expect("valid");
        assert_eq!(
            (
                parsed.inputs().collect::<Vec<_>>(),
                parsed.outputs().collect::<Vec<_>>()
            ),
            (vec!["n1"], vec!["n2"])
        );
        for empty in ["{}", r#"{"inputMetadata":null,"outputMetadata":null}"#] {
            let parsed = CompactionLog::parse(&blob, empty.as_bytes()).expect("valid");
            assert_eq!(parsed.inputs().count(), 0);
        }
        for bad in [
            "",
            "[]x",
            r#"{"inputMetadata":[1]}"#,
            r#"{"inputMetadata":[{"length":1}]}"#,
        ] {
            assert!(CompactionLog::parse(&blob, bad.as_bytes()).expect_err(bad).is_damage());
        }
    }
}
