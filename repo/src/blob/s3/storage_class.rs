//! The hidden object `.storageconfig`: which storage class the blobs of which kind go to.

use serde::Deserialize;

use crate::error::{RepoError, Result};
use crate::id::BlobId;

/// Name of the object, below the prefix (kopia, repo/blob/s3/s3_storage_config.go).
pub(super) const FILE_NAME: &str = ".storageconfig";

/// Longest such object read, in bytes. A rule has some 60.
pub(super) const LEN_MAX: u64 = 1 << 20;

/// Storage classes by the beginning of a blob's id; the first that fits counts.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct StorageClasses {
    #[serde(default, rename = "blobOptions")]
    rules: Vec<Rule>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Rule {
    #[serde(default)]
    prefix: String,
    #[serde(default, rename = "storageClass")]
    class: String,
}

impl StorageClasses {
    /// Reads the object's text.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|e| {
            RepoError::corrupt(format!("{FILE_NAME} is not the JSON it should be; mend or delete it")).because(e)
        })
    }

    /// The class of `id`; `None` leaves it to others.
    pub(super) fn of(&self, id: &BlobId) -> Option<&str> {
        let rule = self.rules.iter().find(|rule| id.as_str().starts_with(&rule.prefix))?;
        Some(rule.class.as_str()).filter(|class| !class.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_fits_counts() {
        let text = br#"{"blobOptions":[{"prefix":"p","storageClass":"GLACIER_IR"},{"prefix":"q"},{"prefix":"","storageClass":"STANDARD_IA"}]}"#;
        let classes = StorageClasses::parse(text).unwrap();
        assert_eq!(classes.of(&BlobId::known("p01")), Some("GLACIER_IR"));
        assert_eq!(classes.of(&BlobId::known("q01")), None);
        assert_eq!(classes.of(&BlobId::known("xn0_1")), Some("STANDARD_IA"));
        assert_eq!(StorageClasses::parse(b"{}").unwrap(), StorageClasses::default());
    }

    #[test]
    fn other_text_is_damage() {
        for text in ["", "7", "{\"blobOptions\":7}", "\u{0}"] {
            assert!(
                StorageClasses::parse(text.as_bytes()).unwrap_err().is_damage(),
                "{text}"
            );
        }
    }
}
