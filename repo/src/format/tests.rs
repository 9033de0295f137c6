use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::inner::Wrapped;
use super::*;
use crate::crypto::KeyAlgorithm;
use crate::id::BlobId;
use crate::time::Time;

/// A complete `kopia.repository` by Kopia's encoder (password [`PASSWORD`]), and the parameters in it.
const BLOB: &str = include_str!("known_blob.json");
const PARAMETERS: &str = include_str!("known_parameters.json");

pub(crate) const PASSWORD: &str = "static-passw0rd";
pub(crate) const UID: &[u8] = b"a5ba5d2da4b14b518b9501b64b5d87ca";
pub(crate) const MASTER_KEY: &[u8] = b"01234567890123456789012345678901";
pub(crate) const SECRET: &[u8] = b"a-repository-testing-hmac-secret";
const FORMAT_KEY: &str = "cae9806b31c1039305b71cdd7a40c8f1dca346971f1d9ec60a63de59b48b39d2";

/// Blobs of small repositories that Kopia's library has written.
#[derive(Deserialize)]
pub(crate) struct Golden {
    pub(crate) repositories: Vec<GoldenRepository>,
}

#[derive(Deserialize)]
pub(crate) struct GoldenRepository {
    pub(crate) algorithms: String,
    /// The one deleted content.
    pub(crate) deleted: String,
    /// Contents in all, deleted ones included.
    pub(crate) contents: usize,
    blobs: BTreeMap<String, String>,
}

impl Golden {
    pub(crate) fn load() -> Self {
        serde_json::from_str(include_str!("golden.json")).expect("test data")
    }
}

impl GoldenRepository {
    pub(crate) fn blob(&self, id: &str) -> Vec<u8> {
        STANDARD.decode(&self.blobs[id]).expect("base64")
    }

    /// The blobs with a prefix.
    pub(crate) fn blobs(&self, prefix: &str) -> Vec<(BlobId, Vec<u8>)> {
        let ids = self.blobs.keys().filter(|id| id.starts_with(prefix));
        ids.map(|id| (BlobId::known(id.as_str()), self.blob(id))).collect()
    }

    pub(crate) fn format(&self) -> Format {
        FormatBlob::parse(&self.blob(REPOSITORY_ID))
            .and_then(|blob| blob.open(PASSWORD))
            .expect("opens")
    }
}

fn format_key() -> Secret32 {
    Secret32::new(hex::decode(FORMAT_KEY).expect("hex").try_into().expect("32 bytes"))
}

/// A format with Velero's parameters and the known keys, made without a password.
pub(crate) fn known_format() -> Format {
    changed(|_| ()).expect("valid")
}

/// The same with its JSON changed.
fn changed(change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> Result<Format> {
    let mut json: serde_json::Value = serde_json::from_str(PARAMETERS).expect("json");
    change(json["format"].as_object_mut().expect("an object"));
    let wrapped: Wrapped = serde_json::from_value(json).map_err(|e| RepoError::corrupt("test").because(e))?;
    blob::check(wrapped.format, UID.to_vec(), format_key())
}

/// `blob`, a `kopia.repository`, with an upgrade lock that holds at once.
pub(crate) fn with_lock(blob: &[u8], password: &str) -> Vec<u8> {
    let outer: blob::Outer = serde_json::from_slice(blob).expect("json");
    let parsed = FormatBlob::parse(blob).expect("a format blob");
    let keys = BlobKeys::new(&parsed.derive_key(password).expect("key"), &parsed.unique_id);
    let plaintext = keys.open(&parsed.sealed).expect("opens");
    let mut json: serde_json::Value = serde_json::from_slice(&plaintext).expect("json");
    json["format"]["upgradeLock"] = serde_json::json!({"ownerID": "host-1", "creationTime": "2026-08-21T00:00:00Z"});
    let sealed = keys.seal(&serde_json::to_vec(&json).expect("json"));
    serde_json::to_vec(&blob::Outer {
        encrypted_block_format: inner::Base64::new(sealed),
        ..outer
    })
    .expect("json")
}

#[test]
fn a_blob_of_kopia_opens_with_its_password() {
    let format = FormatBlob::parse(BLOB.as_bytes())
        .and_then(|blob| blob.open(PASSWORD))
        .expect("opens");
    assert_eq!(
        (format.hash, format.encryption),
        (HashAlgorithm::Blake2b256_128, CipherAlgorithm::Aes256GcmHmacSha256)
    );
    assert_eq!(
        (format.secret(), format.master_key(), &format.unique_id[..]),
        (SECRET, MASTER_KEY, UID)
    );
    assert_eq!(
        (format.version, format.max_pack_size, format.index_version),
        (3, 20 << 20, 2)
    );
    assert_eq!(
        (format.enable_password_change, format.splitter.as_str()),
        (true, "DYNAMIC-4M-BUZHASH")
    );
    assert_eq!(format.epoch, EpochParameters::default());
    assert!(format.upgrade_lock.is_none() && format.ignored_features.is_empty());
    assert_eq!(format.format_key.as_bytes(), format_key().as_bytes());
    format.check_writable().expect("writable");
    format.check_lock(0).expect("not locked");
}

#[test]
fn parameters_of_a_new_repository_are_those_of_velero_byte_for_byte() {
    let wrapped = Wrapped {
        format: create::inner(&CreateOptions::default(), SECRET, MASTER_KEY),
    };
    assert_eq!(
        String::from_utf8(crate::json::to_vec(&wrapped)).expect("text"),
        PARAMETERS.trim_end()
    );
}

#[test]
fn the_encrypted_part_of_a_blob_of_kopia_is_the_known_parameters() {
    let outer: blob::Outer = serde_json::from_str(BLOB).expect("json");
    let plaintext = BlobKeys::new(&format_key(), UID)
        .open(&outer.encrypted_block_format.into_vec())
        .expect("opens");
    assert_eq!(std::str::from_utf8(&plaintext).expect("text"), PARAMETERS.trim_end());
}

#[test]
fn any_flipped_bit_of_the_encrypted_part_fails_as_a_wrong_password_does() {
    let good = FormatBlob::parse(BLOB.as_bytes()).expect("parses");
    let outer: blob::Outer = serde_json::from_str(BLOB).expect("json");
    let (key, sealed) = (format_key(), outer.encrypted_block_format.into_vec());
    assert!(good.open_with_key(&key).is_ok());
    let open = |sealed: Vec<u8>| {
        let json = serde_json::to_vec(&blob::Outer::new(UID, KeyAlgorithm::Scrypt65536_8_1, sealed)).expect("json");
        FormatBlob::parse(&json)?.open_with_key(&key)
    };
    assert!(open(sealed.clone()).is_ok());
    for bit in 0..sealed.len() * 8 {
        let mut damaged = sealed.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            open(damaged).expect_err("damaged").kind(),
            Kind::WrongPassword,
            "bit {bit}"
        );
    }
    for len in 1..sealed.len() {
        assert_eq!(
            open(sealed[..len].to_vec()).expect_err("cut").kind(),
            Kind::WrongPassword,
            "{len} bytes"
        );
    }
    assert_eq!(open(Vec::new()).expect_err("empty").kind(), Kind::Corrupt);
    assert_eq!(
        good.open("static-passw0rd ").expect_err("wrong").kind(),
        Kind::WrongPassword
    );
}

#[test]
fn a_blob_cut_short_or_too_long_is_an_error() {
    for len in 0..BLOB.trim_end().len() {
        assert_eq!(
            FormatBlob::parse(&BLOB.as_bytes()[..len]).expect_err("cut").kind(),
            Kind::Corrupt,
            "{len} bytes"
        );
    }
    let mut long = BLOB.as_bytes().to_vec();
    long.resize(257 << 10, b' ');
    assert_eq!(FormatBlob::parse(&long).expect_err("long").kind(), Kind::Corrupt);
}

#[test]
fn unknown_outer_algorithms_are_named() {
    for (from, to) in [("scrypt-65536-8-1", "testing-only-insecure"), ("AES256_GCM", "ROT13")] {
        let e = FormatBlob::parse(BLOB.replace(from, to).as_bytes()).expect_err(to);
        assert_eq!(e.kind(), Kind::Unsupported);
        assert!(e.what().contains(to), "{e}");
    }
    assert!(
        FormatBlob::parse(BLOB.replace("uniqueID", "id").as_bytes()).is_err(),
        "a field without which nothing works"
    );
}

#[track_caller]
fn refused(field: &str, value: serde_json::Value, names: &str) {
    let e = changed(|json| drop(json.insert(field.into(), value))).expect_err(field);
    assert_eq!(e.kind(), Kind::Unsupported, "{e}");
    assert!(e.what().contains(names), "{e}, expected {names:?}");
}

#[test]
fn parameters_that_are_not_understood_are_refused_by_name() {
    use serde_json::json;
    refused("hash", json!("MD5"), "MD5");
    refused("encryption", json!("DES"), "DES");
    refused("version", json!(0), "format version 0");
    refused("version", json!(4), "format version 4");
    refused("version", json!(-1), "format version -1");
    refused("version", json!(259), "format version 259");
    refused("indexVersion", json!(3), "index version 3");
    refused("maxPackSize", json!((10 << 20) - 1), "maxPackSize");
    refused("maxPackSize", json!((120 << 20) + 1), "maxPackSize");
    refused("maxPackSize", json!(-1), "maxPackSize");
    refused("masterKey", json!("AAAA"), "master key of 3 bytes");
    refused("secret", json!(STANDARD.encode([0; 65])), "hash secret");
    refused(
        "requiredFeatures",
        json!([{"feature":"warp","ifNotUnderstood":{"warn":false}}]),
        "warp",
    );
}

#[test]
fn old_values_have_their_meaning() {
    use serde_json::json;
    let format = changed(|json| {
        json.insert("maxPackSize".into(), json!(0));
        json.insert("indexVersion".into(), json!(0));
        json.insert("enablePasswordChange".into(), json!(false));
        json.insert("splitter".into(), json!(""));
        json.insert("version".into(), json!(2));
        json.insert("fieldOfTheFuture".into(), json!({"a": [1]}));
    });
    let format = format.expect("valid");
    assert_eq!(
        (format.max_pack_size, format.index_version, format.splitter.as_str()),
        (20 << 20, 1, "FIXED")
    );
    assert_eq!(
        format.check_writable().expect_err("read only").kind(),
        Kind::Unsupported
    );
    let ecc = changed(|json| {
        json.insert("ecc".into(), json!("REED-SOLOMON-CRC32"));
        json.insert("eccOverheadPercent".into(), json!(5));
    })
    .expect("valid");
    assert!(
        ecc.check_writable()
            .expect_err("read only")
            .what()
            .contains("error correction")
    );
    let index_v1 = changed(|json| drop(json.insert("indexVersion".into(), json!(1)))).expect("valid");
    assert!(index_v1.check_writable().is_err());
    assert!(changed(|json| drop(json.insert("maxPackSize".into(), json!(120 << 20)))).is_ok());
    assert!(
        changed(|json| drop(json.remove("secret"))).is_ok(),
        "repositories without HMAC have none"
    );
}

#[test]
fn an_upgrade_lock_is_kept_and_checked_against_the_clock() {
    let lock = serde_json::json!({
        "ownerID": "host-1", "creationTime": "2026-08-21T00:00:00Z", "advanceNoticeDuration": 3_600_000_000_000_i64,
        "ioDrainTimeout": 900_000_000_000_i64, "statusPollInterval": 60_000_000_000_i64, "message": "soon",
        "maxPermittedClockDrift": 300_000_000_000_i64,
    });
    let format = changed(|json| drop(json.insert("upgradeLock".into(), lock))).expect("valid");
    let created = 1_787_270_400;
    format.check_lock(created).expect("announced only");
    let e = format.check_lock(created + 3600).expect_err("locked");
    assert_eq!(e.kind(), Kind::Locked);
    assert!(e.what().contains("host-1"), "{e}");
    assert!(changed(|json| drop(json.insert("upgradeLock".into(), serde_json::Value::Null))).is_ok());
}

#[test]
fn what_is_created_opens_and_no_two_are_alike() {
    let options = CreateOptions {
        hash: HashAlgorithm::Blake3_256,
        encryption: CipherAlgorithm::ChaCha20Poly1305HmacSha256,
        key_algorithm: KeyAlgorithm::Pbkdf2Sha256_600000,
        retention: None,
    };
    let made = create("secret", &options).expect("created");
    let blob = FormatBlob::parse(&made.repository).expect("parses");
    let format = blob.open("secret").expect("opens");
    assert_eq!((format.hash, format.encryption), (options.hash, options.encryption));
    assert_eq!(
        (format.secret(), format.master_key()),
        (made.format.secret(), made.format.master_key())
    );
    assert_eq!((format.secret().len(), format.unique_id.len()), (32, 32));
    assert_eq!(
        format.open_blobcfg(&made.blobcfg).expect("opens"),
        BlobConfig::default()
    );
    assert_eq!(blob.open("Secret").expect_err("wrong").kind(), Kind::WrongPassword);
    let text = String::from_utf8(made.repository).expect("text");
    assert!(
        text.starts_with("{\n  \"tool\": \"https://github.com/kopia/kopia\",\n") && text.ends_with("}\n"),
        "{text}"
    );

    let other = create("secret", &options).expect("created").format;
    assert_ne!(other.unique_id, format.unique_id);
    assert_ne!(
        (other.secret(), other.master_key()),
        (format.secret(), format.master_key())
    );
    assert_eq!(
        create("", &options).expect_err("no password").kind(),
        Kind::InvalidInput
    );
}

#[test]
fn the_default_is_what_velero_creates() {
    let made = create(PASSWORD, &CreateOptions::default()).expect("created");
    let text = String::from_utf8(made.repository).expect("text");
    assert!(
        text.contains("\"keyAlgo\": \"scrypt-65536-8-1\"") && text.contains("\"encryption\": \"AES256_GCM\""),
        "{text}"
    );
    assert_eq!((made.format.version, made.format.max_pack_size), (3, 20 << 20));
    made.format.check_writable().expect("writable");
}

#[test]
fn blobcfg_of_kopia_opens() {
    let sealed = hex::decode("033bb53657c017a5adc963115c1bc9fdae94468b69c3ad3495063bd64b01").expect("hex");
    let format = known_format();
    assert_eq!(format.open_blobcfg(&sealed).expect("opens"), BlobConfig::default());
    for at in 0..sealed.len() {
        let mut damaged = sealed.clone();
        damaged[at] ^= 0x80;
        assert_eq!(
            format.open_blobcfg(&damaged).expect_err("damaged").kind(),
            Kind::Corrupt
        );
        assert!(format.open_blobcfg(&sealed[..at]).is_err());
    }
    let retention = Some(Retention {
        mode: RetentionMode::Compliance,
        period: Duration::from_secs(86_400 * 30),
    });
    let config = BlobConfig { retention };
    assert_eq!(
        format.open_blobcfg(&format.seal_blobcfg(&config)).expect("opens"),
        config
    );
}

#[test]
fn repositories_of_kopia_open() {
    for repository in Golden::load().repositories {
        let format = repository.format();
        assert_eq!(
            format!("{} + {}", format.hash, format.encryption),
            repository.algorithms
        );
        assert_eq!(
            format.open_blobcfg(&repository.blob(BLOBCFG_ID)).expect("opens"),
            BlobConfig::default()
        );
        format.check_writable().expect("writable");
    }
}

#[test]
fn keys_that_an_upgraded_repository_takes_from_its_password() {
    let mut format = known_format();
    let from_master = "a438fc5d80f07f608690eb0db519c8dd2a6b50db5427d622db37aa537a449cf2";
    assert_eq!(hex::encode(format.maintenance_key().as_bytes()), from_master);
    format.enable_password_change = false;
    let from_password = crate::crypto::key::hkdf32(format_key().as_bytes(), UID, b"maintenance schedule");
    assert_eq!(format.maintenance_key().as_bytes(), from_password.as_bytes());
}

#[test]
fn a_maintenance_schedule_round_trips_in_kopias_json() {
    let format = known_format();
    let json = concat!(
        r#"{"nextFullMaintenance":"2026-08-22T00:00:00Z","nextQuickMaintenance":"2026-08-21T01:00:00.5Z","runs":{"snapshot-gc":["#,
        r#"{"start":"2026-08-21T00:00:00Z","end":"2026-08-21T00:00:01.25Z","success":true,"extra":[{"kind":"gc","data":{"n":18446744073709551615}}]},"#,
        r#"{"start":"2026-08-20T00:00:00Z","end":"2026-08-20T00:00:01Z","error":"no space"}]}}"#
    );
    let sealed = AesGcm::new(&format.maintenance_key()).seal(b"maintenance", json.as_bytes());
    let mut schedule = format.open_maintenance(&sealed).expect("opens");
    assert_eq!(schedule.runs["snapshot-gc"].len(), 2);
    assert!(schedule.runs["snapshot-gc"][0].success && schedule.runs["snapshot-gc"][1].error == "no space");
    let again = AesGcm::new(&format.maintenance_key())
        .open(b"maintenance", &format.seal_maintenance(&schedule))
        .expect("opens");
    assert_eq!(String::from_utf8(again).expect("text"), json);

    let run = schedule.runs["snapshot-gc"][1].clone();
    for second in 0..60 {
        schedule.add_run(
            "snapshot-gc",
            MaintenanceRun {
                start: Time::from_unix(second),
                ..run.clone()
            },
        );
    }
    assert_eq!(schedule.runs["snapshot-gc"].len(), 50);
    assert_eq!(schedule.runs["snapshot-gc"][0].start, Time::from_unix(59));

    let fresh =
        br#"{"nextFullMaintenance":"0001-01-01T00:00:00Z","nextQuickMaintenance":"0001-01-01T00:00:00Z","runs":null}"#;
    let fresh = AesGcm::new(&format.maintenance_key()).seal(b"maintenance", fresh);
    let fresh = format
        .open_maintenance(&fresh)
        .expect("a schedule before its first run");
    assert!(fresh.next_full.is_unset() && fresh.runs.is_empty());

    let mut damaged = sealed.clone();
    damaged[20] ^= 1;
    assert_eq!(
        format.open_maintenance(&damaged).expect_err("damaged").kind(),
        Kind::Corrupt
    );
    let no_schedule = AesGcm::new(&format.maintenance_key()).seal(b"maintenance", b"[]");
    assert_eq!(
        format
            .open_maintenance(&no_schedule)
            .expect_err("not a schedule")
            .kind(),
        Kind::Corrupt
    );
}

#[test]
fn debug_prints_no_key() {
    let text = format!(
        "{:?} {:?}",
        known_format(),
        FormatBlob::parse(BLOB.as_bytes()).expect("parses")
    );
    for key in [SECRET, MASTER_KEY, format_key().as_bytes()] {
        let list = format!("{key:?}");
        assert!(
            !text.contains(&hex::encode(key)) && !text.contains(list.trim_matches(['[', ']'])),
            "{text}"
        );
    }
}
