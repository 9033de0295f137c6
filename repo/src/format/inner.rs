//! The JSON inside the encrypted part of `kopia.repository`. Names and order of fields are Kopia's.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use super::epoch::RawEpoch;
use super::upgrade::{RequiredFeature, UpgradeLock};

/// The whole document.
#[derive(Serialize, Deserialize)]
pub(super) struct Wrapped {
    pub(super) format: Inner,
}

/// Parameters as stored, unchecked.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Inner {
    #[serde(default)]
    pub(super) hash: String,
    #[serde(default)]
    pub(super) encryption: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) ecc: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) ecc_overhead_percent: i64,
    #[serde(default)]
    pub(super) secret: Base64,
    #[serde(default)]
    pub(super) master_key: Base64,
    pub(super) version: i64,
    #[serde(default)]
    pub(super) max_pack_size: i64,
    #[serde(default)]
    pub(super) index_version: i64,
    #[serde(default)]
    pub(super) epoch_parameters: RawEpoch,
    #[serde(default)]
    pub(super) enable_password_change: bool,
    #[serde(default)]
    pub(super) splitter: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) upgrade_lock: Option<UpgradeLock>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) required_features: Vec<RequiredFeature>,
}

// By reference, as serde asks for it.
fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// Bytes that are base64 in JSON, wiped when dropped since some of them are keys.
#[derive(Default)]
pub(super) struct Base64(Zeroizing<Vec<u8>>);

impl Base64 {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(super) fn into_secret(self) -> Zeroizing<Vec<u8>> {
        self.0
    }

    /// The bytes, for those that are no secret.
    pub(super) fn into_vec(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&Zeroizing::new(STANDARD.encode(&*self.0)))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Base64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("base64 text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Base64, E> {
                // The text may be a key, so the error does not quote it.
                STANDARD
                    .decode(text)
                    .map(Base64::new)
                    .map_err(|_| E::custom("not base64"))
            }

            fn visit_unit<E>(self) -> Result<Base64, E> {
                Ok(Base64::default())
            }
        }
        from.deserialize_any(Visitor)
    }
}
