//! Manifests: small labelled JSON documents, kept in contents with prefix `m`.
//!
//! Every content holds entries of one flush; the state is, for each id, the entry with the latest time.
//! Source of the layout: kopia, repo/manifest/serialized.go and committed_manifest_manager.go.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{Kind, RepoError, Result};
use crate::id::{ContentId, ManifestId};
use crate::time::Time;

/// Prefix of manifest contents.
pub const PREFIX: char = 'm';

/// Largest manifest content accepted after decompression, in bytes: 64 MiB hold some 50,000 snapshot manifests, and a
/// forged gzip stream cannot take more.
const INFLATED_LEN_MAX: u64 = 64 << 20;

/// Labels of a manifest.
pub type Labels = BTreeMap<String, String>;

/// A manifest: labels and a JSON document.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Name.
    pub id: ManifestId,
    /// What it is found by; `type` is always there.
    pub labels: Labels,
    /// When it was written.
    pub modified: Time,
    /// The document.
    pub data: Box<RawValue>,
}

/// One entry as stored.
#[derive(Serialize, Deserialize)]
struct Entry {
    id: String,
    labels: Option<Labels>,
    modified: Time,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
    data: Option<Box<RawValue>>,
}

/// The stored document. Kopia's reader takes no other key beside `entries`.
#[derive(Serialize, Deserialize)]
struct Document {
    entries: Option<Vec<Entry>>,
}

/// All live manifests of a repository.
#[derive(Debug, Default)]
pub struct Manifests {
    latest: HashMap<ManifestId, (Time, Option<Manifest>)>,
}

impl Manifests {
    /// Takes in the entries of one manifest content, given its plaintext.
    pub fn add(&mut self, content: &ContentId, plaintext: &[u8]) -> Result<()> {
        let damaged = |why: &str| RepoError::corrupt(format!("manifest content {content} {why}"));
        let mut text = Vec::new();
        let mut inflate = MultiGzDecoder::new(plaintext).take(INFLATED_LEN_MAX + 1);
        inflate
            .read_to_end(&mut text)
            .map_err(|e| damaged("is not a gzip stream").because(e))?;
        if text.len() as u64 > INFLATED_LEN_MAX {
            return Err(damaged(&format!("inflates to more than {INFLATED_LEN_MAX} bytes")));
        }
        let document: Document =
            serde_json::from_slice(&text).map_err(|e| damaged("is not the expected JSON").because(e))?;
        for entry in document.entries.unwrap_or_default() {
            let id: ManifestId = entry
                .id
                .parse()
                .map_err(|e: RepoError| damaged("names no manifest").because(e))?;
            if self
                .latest
                .get(&id)
                .is_some_and(|(modified, _)| *modified >= entry.modified)
            {
                continue;
            }
            let manifest = match (entry.deleted, entry.data) {
                (true, _) => None,
                (false, Some(data)) => Some(Manifest {
                    id,
                    labels: entry.labels.unwrap_or_default(),
                    modified: entry.modified,
                    data,
                }),
                (false, None) => return Err(damaged(&format!("has no document for manifest {id}"))),
            };
            self.latest.insert(id, (entry.modified, manifest));
        }
        Ok(())
    }

    /// Live manifests whose labels include all of `labels`, oldest first.
    pub fn find(&self, labels: &[(&str, &str)]) -> Vec<&Manifest> {
        let live = self.latest.values().filter_map(|(_, manifest)| manifest.as_ref());
        let matches = |m: &&Manifest| {
            labels
                .iter()
                .all(|(k, v)| m.labels.get(*k).is_some_and(|have| have == v))
        };
        let mut found: Vec<_> = live.filter(matches).collect();
        found.sort_by_key(|m| (m.modified, m.id));
        found
    }

    /// The live manifest `id`.
    pub fn get(&self, id: &ManifestId) -> Option<&Manifest> {
        self.latest.get(id).and_then(|(_, manifest)| manifest.as_ref())
    }
}

/// What a flush changes of the manifests.
#[derive(Default)]
pub struct Changes {
    entries: Vec<Entry>,
}

impl Changes {
    /// No entry to store.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a manifest with a new random id.
    pub fn put(&mut self, labels: Labels, document: &impl Serialize) -> Result<ManifestId> {
        if !labels.contains_key("type") {
            return Err(RepoError::new(
                Kind::InvalidInput,
                "a manifest needs the label \"type\"",
            ));
        }
        let mut id = [0; 16];
        aws_lc_rs::rand::fill(&mut id)
            .map_err(|_| RepoError::new(Kind::Storage, "the system's random source failed"))?;
        let id = ManifestId(id);
        let text = String::from_utf8(crate::json::to_vec(document)).expect("JSON is text");
        let data = RawValue::from_string(text).expect("JSON is JSON");
        self.entries.push(Entry {
            id: id.to_string(),
            labels: Some(labels),
            modified: Time::now(),
            deleted: false,
            data: Some(data),
        });
        Ok(id)
    }

    /// Deletes `manifest`. The entry is later than the one it replaces even when the clock went back.
    pub fn delete(&mut self, manifest: &Manifest) {
        let modified = Time::now().max(manifest.modified.after_it());
        self.entries.push(Entry {
            id: manifest.id.to_string(),
            labels: None,
            modified,
            deleted: true,
            data: None,
        });
    }

    /// Deletes the manifest `id` that this client itself wrote, not after `since`.
    pub(crate) fn delete_own(&mut self, id: ManifestId, since: Time) {
        self.entries.push(Entry {
            id: id.to_string(),
            labels: None,
            modified: Time::now().max(since.after_it()),
            deleted: true,
            data: None,
        });
    }

    /// Plaintext of the content that stores these changes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::new(6));
        #[derive(Serialize)]
        struct Borrowed<'a> {
            entries: &'a [Entry],
        }
        let mut text = crate::json::to_vec(&Borrowed { entries: &self.entries });
        text.push(b'\n');
        gzip.write_all(&text)
            .and_then(|()| gzip.finish())
            .expect("writing to memory does not fail")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> ContentId {
        "m00112233445566778899aabbccddeeff".parse().expect("valid")
    }

    fn labels() -> Labels {
        [
            ("type".to_string(), "snapshot".to_string()),
            ("path".to_string(), "/a".to_string()),
        ]
        .into()
    }

    #[test]
    fn the_latest_entry_counts_whatever_the_order() {
        let mut first = Changes::default();
        let id = first.put(labels(), &serde_json::json!({"a": 1})).expect("put");
        let mut state = Manifests::default();
        state.add(&content(), &first.to_bytes()).expect("valid");
        assert_eq!(state.find(&[("type", "snapshot"), ("path", "/a")]).len(), 1);
        assert!(state.find(&[("type", "policy")]).is_empty());

        let mut second = Changes::default();
        second.delete(state.get(&id).expect("live"));
        state.add(&content(), &second.to_bytes()).expect("valid");
        assert!(state.get(&id).is_none());
        state.add(&content(), &first.to_bytes()).expect("valid");
        assert!(
            state.get(&id).is_none(),
            "an older entry does not bring a deleted manifest back"
        );
    }

    #[test]
    fn extra_fields_are_taken_and_damage_is_not() {
        let gzip = |text: &str| {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(text.as_bytes())
                .and_then(|()| gzip.finish())
                .expect("memory")
        };
        let mut state = Manifests::default();
        let entry = r#"{"id":"00112233445566778899aabbccddeeff","labels":{"type":"x"},"modified":"2026-01-01T00:00:00Z","data":{"y":1},"z":2}"#;
        state
            .add(&content(), &gzip(&format!(r#"{{"entries":[{entry}],"more":3}}"#)))
            .expect("valid");
        assert_eq!(state.find(&[("type", "x")]).len(), 1);
        for bad in [
            "{",
            r#"{"entries":[{"id":"zz","modified":"2026-01-01T00:00:00Z"}]}"#,
            r#"{"entries":[{"id":"00","modified":1}]}"#,
        ] {
            assert!(state.add(&content(), &gzip(bad)).expect_err(bad).is_damage());
        }
        assert!(state.add(&content(), b"plain").expect_err("no gzip").is_damage());
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        let zeros = vec![b' '; 1 << 20];
        for _ in 0..=INFLATED_LEN_MAX >> 20 {
            gzip.write_all(&zeros).expect("memory");
        }
        let bomb = gzip.finish().expect("memory");
        assert!(
            Manifests::default()
                .add(&content(), &bomb)
                .expect_err("too large")
                .is_damage()
        );
    }
}
