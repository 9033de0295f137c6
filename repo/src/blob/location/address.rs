//! Text to parts: `scheme://bucket/prefix/?key=value&key=value`.
//!
//! Bucket, prefix and values may be percent-encoded; what separates them must be, where it is meant as a character: `?` and
//! `%` in a prefix, `&` and `%` in a value. A `+` is a plus.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::error::{Kind, RepoError, Result};

/// Longest address read, in bytes. Names of buckets and objects end at some 1,000.
const ADDRESS_LEN_MAX: usize = 8192;

/// Longest prefix, in bytes: object stores stop at 1,024 for the whole name, and ids of blobs have up to 120.
const PREFIX_LEN_MAX: usize = 896;

/// Parts of the names of keys that carry a secret, in lower case without `-` and `_`.
const SECRET_WORDS: [&str; 10] = [
    "secret",
    "token",
    "password",
    "accesskey",
    "accountkey",
    "masterkey",
    "sas",
    "sig",
    "connectionstring",
    "privatekey",
];

/// The parts of an address.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) bucket: String,
    /// Empty, or ends in a slash.
    pub(super) prefix: String,
    pub(super) settings: AddressSettings,
}

/// The part after the question mark: values as written, which decode.
#[derive(Debug)]
pub(super) struct AddressSettings(BTreeMap<&'static str, String>);

impl Address {
    /// Reads what follows `scheme://`. `known` are the keys that may be set. `way_out` says where keys and secrets belong.
    pub(super) fn parse(scheme: &str, rest: &str, known: &[&'static str], way_out: &str) -> Result<Self> {
        if rest.len() > ADDRESS_LEN_MAX {
            return Err(bad(
                scheme,
                format!("{} bytes long, more than {ADDRESS_LEN_MAX}", rest.len()),
            ));
        }
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        if bucket.contains('@') {
            return Err(secret(scheme, "what stands before the @", way_out));
        }
        let bucket = decode(bucket).ok_or_else(|| bad_escape(scheme, "the name of the bucket"))?;
        check_bucket(scheme, &bucket)?;
        let prefix = decode(prefix).ok_or_else(|| bad_escape(scheme, "the prefix"))?;
        let prefix = normal_prefix(&prefix).map_err(|why| bad(scheme, why))?;
        let settings = AddressSettings::parse(scheme, query, known, way_out)?;
        Ok(Self {
            bucket,
            prefix,
            settings,
        })
    }
}

impl AddressSettings {
    fn parse(scheme: &str, query: &str, known: &[&'static str], way_out: &str) -> Result<Self> {
        let mut found = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).ok_or_else(|| bad_escape(scheme, "the name of a setting"))?;
            let Some(key) = known.iter().find(|key| **key == name) else {
                if is_secret(&name) {
                    return Err(secret(scheme, &format!("{name:?}"), way_out));
                }
                let what = format!("unknown setting {name:?}; known are {}", known.join(", "));
                return Err(bad(scheme, what));
            };
            let decoded = decode(value).ok_or_else(|| bad_escape(scheme, key))?;
            if decoded.is_empty() || decoded.chars().any(char::is_control) {
                return Err(bad(scheme, format!("setting {key} has no value that can be used")));
            }
            if found.insert(*key, value.to_owned()).is_some() {
                return Err(bad(scheme, format!("setting {key} is there twice")));
            }
        }
        Ok(Self(found))
    }

    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        self.0.remove(key).map(|value| decoded(&value))
    }

    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    /// The address of a service; a scheme is put before one that has none.
    pub(super) fn endpoint(&mut self, key: &str) -> Result<Option<String>> {
        self.text(key).map(|text| endpoint(&text)).transpose()
    }

    /// `true` or `false`; `None` when not set.
    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        let parse = |text: String| flag(&text).ok_or_else(|| bad_flag(key, &text));
        self.text(key).map(parse).transpose()
    }

    /// Pairs written `key=value,key=value`. A comma or, in a key, an equals sign that is meant as such is encoded.
    pub(super) fn pairs(&mut self, key: &str) -> Vec<(String, String)> {
        pairs(&self.0.remove(key).unwrap_or_default(), ',')
    }
}

/// Pairs `key=value`, percent-encoded, between separators. What does not decode stays as it is.
pub(super) fn pairs(text: &str, separator: char) -> Vec<(String, String)> {
    let pairs = text.split(separator).filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.map(|(key, value)| (decoded(key), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    decode(text).unwrap_or_else(|| text.to_owned())
}

/// Writes an address that reads back as what it was made from.
pub(super) struct AddressWriter {
    text: String,
    separator: char,
}

impl AddressWriter {
    pub(super) fn new(scheme: &str, bucket: &str, prefix: &str) -> Self {
        let text = format!("{scheme}://{}/{}", encode(bucket), encode(prefix));
        Self { text, separator: '?' }
    }

    pub(super) fn set(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.set_encoded(key, &encode(value));
        }
    }

    fn set_encoded(&mut self, key: &str, value: &str) {
        self.text.push(self.separator);
        self.text += &format!("{key}={value}");
        self.separator = '&';
    }

    pub(super) fn set_pairs(&mut self, key: &str, pairs: &[(String, String)]) {
        let encode = |text: &str| encode(text).replace(',', "%2C").replace('=', "%3D");
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(key, value)| format!("{}={}", encode(key), encode(value)))
            .collect();
        if !pairs.is_empty() {
            self.set_encoded(key, &pairs.join(","));
        }
    }

    pub(super) fn set_path(&mut self, key: &str, path: Option<&std::path::Path>) {
        self.set(key, path.map(|path| path.to_string_lossy()).as_deref());
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

/// An address that cannot be used. It is not shown: it may hold a secret.
pub(super) fn bad(scheme: &str, why: impl std::fmt::Display) -> RepoError {
    RepoError::new(Kind::InvalidInput, format!("repository address {scheme}://…: {why}"))
}

fn bad_escape(scheme: &str, place: &str) -> RepoError {
    let why = format!(
        "a % in {place} is not followed by two hexadecimal digits of UTF-8 text; a percent sign is written %25"
    );
    bad(scheme, why)
}

fn secret(scheme: &str, name: &str, way_out: &str) -> RepoError {
    let why = format!(
        "{name} is a secret, and an address is seen in process lists and logs; {way_out} (and change the secret: it has been on a command line)"
    );
    bad(scheme, why)
}

fn is_secret(name: &str) -> bool {
    let name: String = name
        .to_ascii_lowercase()
        .chars()
        .filter(|c| !matches!(c, '-' | '_'))
        .collect();
    SECRET_WORDS.iter().any(|word| name.contains(word))
}

fn check_bucket(scheme: &str, bucket: &str) -> Result<()> {
    let usable = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_' | ':' | '$');
    if bucket.is_empty() || matches!(bucket, "." | "..") || !bucket.chars().all(usable) {
        return Err(bad(scheme, format!("{bucket:?} is not the name of a bucket")));
    }
    Ok(())
}

/// `prefix` as it is, for keys that Kopia made with a prefix that ends in no slash; the error says why it cannot be used.
pub(super) fn exact_prefix(prefix: String) -> Result<String, String> {
    normal_prefix(&prefix).map(|_| prefix)
}

/// `prefix` with one slash at its end; the error says why it cannot be used.
pub(super) fn normal_prefix(prefix: &str) -> Result<String, String> {
    if prefix.is_empty() {
        return Ok(String::new());
    }
    let stem = prefix.strip_suffix('/').unwrap_or(prefix);
    if stem.len() > PREFIX_LEN_MAX {
        return Err(format!("a prefix of {} bytes, more than {PREFIX_LEN_MAX}", stem.len()));
    }
    if stem.chars().any(char::is_control) {
        return Err(format!("control characters in prefix {prefix:?}"));
    }
    if stem.split('/').any(|step| matches!(step, "" | "." | "..")) {
        return Err(format!(
            "prefix {prefix:?} has a step that is empty, . or .., which services and proxies take out"
        ));
    }
    Ok(format!("{stem}/"))
}

/// The address of a service: scheme, host and perhaps port; `https://` is put before one without a scheme.
pub(super) fn endpoint(text: &str) -> Result<String> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("https", text));
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let wrong = |why: &str| Err(RepoError::new(Kind::InvalidInput, format!("endpoint {text:?}: {why}")));
    if rest.contains('@') {
        let what = "endpoint (not shown): keys do not belong into it";
        return Err(RepoError::new(Kind::InvalidInput, what));
    }
    if !matches!(scheme, "http" | "https") {
        return wrong("its scheme must be http or https");
    }
    if rest.is_empty() || rest.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#')) {
        return wrong("write http://HOST:PORT or https://HOST:PORT");
    }
    Ok(format!("{scheme}://{rest}"))
}

pub(super) fn bad_flag(key: &str, text: &str) -> RepoError {
    let what = format!("setting {key} is {text:?}; write true or false");
    RepoError::new(Kind::InvalidInput, what)
}

/// What Go's `strconv.ParseBool` takes, as Velero does.
pub(super) fn flag(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" | "t" | "T" | "1" => Some(true),
        "false" | "False" | "FALSE" | "f" | "F" | "0" => Some(false),
        _ => None,
    }
}

/// Undoes percent-encoding.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            bytes.push(*hex::decode(digits).ok()?.first()?);
            rest = after;
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Encodes what would be read as something else, and what a shell or a log would stumble over.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b',' | b'=' => {
                encoded.push(char::from(byte));
            }
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}
