//! Snapshot manifests: what a backup is called, when it was made, and its root object.
//!
//! Source of the fields: kopia, snapshot/manifest.go; of the tags: velero, pkg/uploader/kopia and its block uploader.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::directory::{DirectoryEntry, EntryKind};
use crate::error::{Kind, RepoError, Result};
use crate::id::ManifestId;
use crate::manifest::Manifest;
use crate::time::Time;

/// Tags of block images. The first six are Velero's, the others ours.
pub mod tag {
    /// True size of the volume in bytes, decimal; the object is padded to whole chunks.
    pub const SOURCE_SIZE: &str = "bdev-source-size";
    /// Change id of the CSI snapshot this was read from.
    pub const CHANGE_ID: &str = "cbt-change-id";
    /// Volume the change id belongs to.
    pub const VOLUME_ID: &str = "cbt-volume-id";
    /// Who asked for the snapshot.
    pub const REQUESTER: &str = "snapshot-requester";
    /// Which uploader wrote it.
    pub const UPLOADER: &str = "snapshot-uploader";
    /// Uploader name of block images.
    pub const UPLOADER_BLOCK: &str = "velero-block";
    /// Logical block size of the source in bytes, decimal.
    pub const LOGICAL_BLOCK: &str = "blockferry-logical-block";
    /// Version of blockferry that wrote the snapshot.
    pub const VERSION: &str = "blockferry-version";
    /// Session that wrote a checkpoint.
    pub const SESSION: &str = "blockferry-session";
    /// How much of the change information the backup rested on.
    pub const RUNG: &str = "blockferry-rung";
    /// Which rungs above it could not be had, and why: words of the form `rung:reason`.
    pub const RUNG_REASON: &str = "blockferry-rung-reason";
    /// The snapshot that an increment continues.
    pub const PARENT: &str = "blockferry-parent";
    /// Where the audit of unchanged chunks goes on: `position/chunks`.
    pub const AUDIT_WALK: &str = "blockferry-audit-walk";
    /// When an audit found the source's lists of changes wrong.
    pub const UNTRUSTED: &str = "blockferry-untrusted";
}

/// Description of the snapshots written here, as Velero's block uploader has it.
pub const DESCRIPTION: &str = "Block Uploader";

/// Pin that keeps a snapshot from Kopia's own expiry, as Velero writes it.
pub const PIN: &str = "velero-pin";

/// Whose volume a snapshot shows: `user@host:path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Source {
    /// Host name.
    pub host: String,
    /// User name.
    #[serde(rename = "userName")]
    pub user: String,
    /// Path of the volume.
    pub path: String,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}", self.user, self.host, self.path)
    }
}

impl FromStr for Source {
    type Err = RepoError;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text
            .split_once('@')
            .and_then(|(user, rest)| rest.split_once(':').map(|(host, path)| (user, host, path)));
        match parts {
            Some((user, host, path)) if !user.is_empty() && !host.is_empty() && !path.is_empty() => Ok(Self {
                host: host.into(),
                user: user.into(),
                path: path.into(),
            }),
            _ => Err(RepoError::new(
                Kind::InvalidInput,
                format!("not a source: {text:?}; it has the form user@host:path"),
            )),
        }
    }
}

/// Counters of a snapshot. All are always written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Stats {
    /// Bytes of the object (padded size for block images).
    pub total_size: u64,
    /// Bytes left out.
    pub excluded_total_size: u64,
    /// Files.
    pub file_count: u64,
    /// Files taken over unread.
    pub cached_files: u64,
    /// Files read.
    pub non_cached_files: u64,
    /// Folders.
    pub dir_count: u64,
    /// Files left out.
    pub excluded_file_count: u64,
    /// Folders left out.
    pub excluded_dir_count: u64,
    /// Errors passed over.
    pub ignored_error_count: u64,
    /// Errors.
    pub error_count: u64,
}

/// A snapshot as stored in the repository.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Manifest id; empty in storage, filled in when read.
    #[serde(rename = "id", serialize_with = "always_empty", deserialize_with = "any_text")]
    pub id: Option<ManifestId>,
    /// Whose volume.
    pub source: Source,
    /// Free text.
    #[serde(default)]
    pub description: String,
    /// When reading began.
    #[serde(rename = "startTime")]
    pub start: Time,
    /// When the last byte was stored.
    #[serde(rename = "endTime")]
    pub end: Time,
    /// Counters.
    #[serde(default)]
    pub stats: Stats,
    /// Why it is not complete; empty when it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub incomplete: String,
    /// The root: a file, or a folder.
    #[serde(rename = "rootEntry", default, skip_serializing_if = "Option::is_none")]
    pub root: Option<DirectoryEntry>,
    /// Free tags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// What keeps it from expiry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<String>,
}

impl Snapshot {
    /// Value of the manifest label `type`.
    pub const TYPE: &'static str = "snapshot";

    /// Labels that no tag may have.
    pub const LABELS: [&'static str; 4] = ["type", "hostname", "username", "path"];

    /// Reads the snapshot that is the document of `manifest`.
    ///
    /// # Errors
    /// `Corrupt` when it is none.
    pub fn parse(manifest: &Manifest) -> Result<Self> {
        let parsed: Result<Self, _> = serde_json::from_str(manifest.data.get());
        let mut snapshot = parsed.map_err(|e| {
            RepoError::corrupt(format!("snapshot manifest {} is not the expected JSON", manifest.id)).because(e)
        })?;
        snapshot.id = Some(manifest.id);
        Ok(snapshot)
    }

    /// Labels of the manifest: the source and every tag.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let source = &self.source;
        let fixed = [
            ("type", Self::TYPE),
            ("hostname", &source.host),
            ("username", &source.user),
            ("path", &source.path),
        ];
        let fixed = fixed.into_iter().map(|(k, v)| (k.to_string(), v.to_string()));
        // A tag with the name of a fixed label loses; the command line refuses such tags.
        self.tags
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .chain(fixed)
            .collect()
    }

    /// True size in bytes as its tag tells, when it has one.
    pub fn tagged_size(&self) -> Result<Option<u64>> {
        self.number(tag::SOURCE_SIZE)
    }

    /// Logical block size of the source in bytes, when known.
    pub fn logical_block(&self) -> Result<Option<u64>> {
        self.number(tag::LOGICAL_BLOCK)
    }

    fn number(&self, key: &str) -> Result<Option<u64>> {
        let Some(text) = self.tags.get(key) else {
            return Ok(None);
        };
        let number = text
            .parse()
            .map_err(|e| RepoError::corrupt(format!("snapshot tag {key} is {text:?}, not a number")).because(e))?;
        Ok(Some(number))
    }

    /// Whether the root is a folder, a file, or neither.
    pub fn root_kind(&self) -> EntryKind {
        self.root.as_ref().map_or(EntryKind::Unknown, |root| root.kind)
    }
}

fn always_empty<S: serde::Serializer>(_: &Option<ManifestId>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str("")
}

fn any_text<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<ManifestId>, D::Error> {
    String::deserialize(from)?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{"id":"","source":{"host":"node1","userName":"root","path":"/data/disk.img"},"description":"","startTime":"2026-01-02T03:04:05.123456789Z","endTime":"2026-01-02T03:05:05Z","stats":{"totalSize":2097152,"excludedTotalSize":0,"fileCount":1,"cachedFiles":0,"nonCachedFiles":0,"dirCount":0,"excludedFileCount":0,"excludedDirCount":0,"ignoredErrorCount":0,"errorCount":0},"rootEntry":{"name":"disk.img","type":"f","mode":"0644","size":2097152,"mtime":"2026-01-02T03:04:05.123456789Z","uid":1000,"gid":1000,"obj":"Ix00112233445566778899aabbccddeeff","summ":{"size":2097152,"files":1,"symlinks":0,"dirs":0,"maxTime":"2026-01-02T03:04:05.123456789Z","numFailed":0}}}"#;
    const VELERO: &str = r#"{"id":"","source":{"host":"default","userName":"default","path":"snapshot-data-upload-download/velero-block/ns1/pvc-1"},"description":"Block Uploader","startTime":"2026-01-02T03:04:05.123456789Z","endTime":"2026-01-02T03:05:05Z","stats":{"totalSize":2097152,"excludedTotalSize":0,"fileCount":0,"cachedFiles":0,"nonCachedFiles":0,"dirCount":0,"excludedFileCount":0,"excludedDirCount":0,"ignoredErrorCount":0,"errorCount":0},"rootEntry":{"type":"d","mode":"0777","mtime":"1754-08-30T22:43:41.128654848Z","obj":"kffeeddccbbaa99887766554433221100","summ":{"size":2097152,"files":0,"symlinks":0,"dirs":0,"maxTime":"1970-01-01T00:00:00Z","numFailed":0}},"tags":{"bdev-source-size":"2097152","cbt-change-id":"snap-2","cbt-volume-id":"vol-1","snapshot-requester":"snapshot-data-upload-download","snapshot-uploader":"velero-block"},"pins":["velero-pin"]}"#;

    #[test]
    fn both_known_shapes_round_trip_byte_for_byte() {
        for text in [FILE, VELERO] {
            let snapshot: Snapshot = serde_json::from_str(text).expect("valid");
            assert_eq!(String::from_utf8(crate::json::to_vec(&snapshot)).expect("text"), text);
        }
    }

    #[test]
    fn labels_carry_source_and_tags() {
        let snapshot: Snapshot = serde_json::from_str(VELERO).expect("valid");
        let labels = snapshot.labels();
        assert_eq!(labels["type"], "snapshot");
        assert_eq!(labels["hostname"], "default");
        assert_eq!(labels["cbt-volume-id"], "vol-1");
        assert_eq!(snapshot.tagged_size().expect("number"), Some(2_097_152));
        let mut damaged = snapshot;
        damaged.tags.insert(tag::SOURCE_SIZE.into(), "many".into());
        assert!(damaged.tagged_size().expect_err("not a number").is_damage());
    }

    #[test]
    fn sources_parse_from_text() {
        let source: Source = "default@default:a/b:c".parse().expect("valid");
        assert_eq!(
            source,
            Source {
                host: "default".into(),
                user: "default".into(),
                path: "a/b:c".into()
            }
        );
        for bad in ["", "a@b", "@b:c", "a@:c", "a@b:"] {
            assert!(bad.parse::<Source>().is_err(), "{bad:?}");
        }
    }
}
