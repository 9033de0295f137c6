//! Sealing and opening of contents and of whole blobs: hashes name them, and the encryption of each is bound to its name.
//!
//! | what             | name                                   | bound to                                        |
//! |------------------|----------------------------------------|-------------------------------------------------|
//! | content          | prefix and hash of the plaintext       | last 16 bytes of the hash                       |
//! | local index      | none, its hash is in the postamble     | the whole hash                                  |
//! | whole blob       | prefix, hash of the plaintext, suffix  | last 16 bytes of the hash, as the name has them |
//!
//! Pure work for the threads that call it. Source: kopia, repo/content/content_manager_lock_free.go and
//! internal/blobcrypto/blob_crypto.go.

use std::borrow::Cow;
use std::fmt;

use tracing::warn;

use crate::compress::Decompressor;
use crate::crypto::ecc::Ecc;
use crate::crypto::hash::IV_BYTES;
use crate::crypto::{Cipher, CipherAlgorithm, Digest, HashAlgorithm, Hasher, Kernel, OVERHEAD};
use crate::error::{RepoError, Result};
use crate::format::Format;
use crate::id::{BlobId, ContentId};
use crate::index::IndexEntry;

/// Hash and encryption of a repository. Cheap to share, no state.
#[derive(Clone)]
pub struct ContentFormat {
    hasher: Hasher,
    cipher: Cipher,
    ecc: Option<Ecc>,
    format_version: u8,
}

/// What one thread reuses from content to content.
#[derive(Default)]
pub struct Unsealer {
    decompressor: Decompressor,
    /// Decrypted, still compressed bytes.
    packed: Vec<u8>,
    /// A content that is itself a compressed stream.
    stream: Vec<u8>,
    /// Sealed bytes, for those who have no place of their own to read them to.
    pub(crate) sealed: Vec<u8>,
}

impl ContentFormat {
    /// The hash and encryption that `format` names, under its keys.
    ///
    /// # Errors
    /// When a key does not suit its algorithm.
    pub fn new(format: &Format) -> Result<Self> {
        let plain = Self::with_keys(
            format.hash,
            format.encryption,
            format.secret(),
            format.master_key(),
            format.version,
        )?;
        Ok(Self {
            ecc: format.ecc.clone(),
            ..plain
        })
    }

    /// The given algorithms under the given keys.
    pub(crate) fn with_keys(
        hash: HashAlgorithm,
        encryption: CipherAlgorithm,
        secret: &[u8],
        master_key: &[u8],
        format_version: u8,
    ) -> Result<Self> {
        Ok(Self {
            hasher: Hasher::new(hash, secret)?,
            cipher: Cipher::new(encryption, master_key)?,
            ecc: None,
            format_version,
        })
    }

    /// The same format, hashing on another kernel; ids do not depend on it.
    ///
    /// # Errors
    /// `Unsupported` when this CPU does not have the kernel.
    pub fn with_kernel(self, kernel: Kernel) -> Result<Self> {
        Ok(Self {
            hasher: self.hasher.with_kernel(kernel)?,
            ..self
        })
    }

    /// The hash.
    pub fn hasher(&self) -> &Hasher {
        &self.hasher
    }

    /// The encryption.
    pub fn cipher(&self) -> &Cipher {
        &self.cipher
    }

    /// Bytes of the hash in every content id of the repository.
    pub fn hash_len(&self) -> usize {
        self.hasher.digest_len()
    }

    /// Format version to write into index entries.
    pub fn format_version(&self) -> u8 {
        self.format_version
    }

    /// Id of the content `data` under `prefix` (`None`, or `g`..=`z`).
    ///
    /// # Panics
    /// When the prefix is another character.
    pub fn content_id(&self, prefix: Option<char>, data: &[u8]) -> ContentId {
        self.content_id_of(prefix, &self.hasher.hash(data))
    }

    /// Id of the content with hash `digest` under `prefix`, for who hashes many at once.
    ///
    /// # Panics
    /// As [`Self::content_id`].
    pub fn content_id_of(&self, prefix: Option<char>, digest: &Digest) -> ContentId {
        ContentId::new(prefix, digest.as_slice()).expect("prefixes are g to z, digests 16 to 32 bytes")
    }

    /// Bytes of a sealed content with a payload (plaintext, or its compressed form) of `len` bytes.
    pub fn sealed_len(len: usize) -> usize {
        len + OVERHEAD
    }

    /// Encrypts the payload of content `id` into `out`.
    ///
    /// # Panics
    /// When `out` is not [`Self::sealed_len`] bytes long, or `id` is not one that this format gives.
    pub fn seal_into(&self, id: &ContentId, payload: &[u8], out: &mut [u8]) {
        let iv = iv(id).expect("ids of this format have hashes of 16 bytes or more");
        self.cipher.seal_into(iv, payload, out);
    }

    /// The plaintext of a content whose `sealed` bytes the pack of `entry` has.
    ///
    /// # Errors
    /// As [`Self::unseal_into`].
    pub fn unseal(&self, entry: &IndexEntry, sealed: &[u8]) -> Result<Vec<u8>> {
        let sealed = self.corrected(entry, sealed)?;
        let payload_len = check(entry, &sealed)?;
        let mut payload = vec![0; payload_len];
        self.open(entry, &sealed, &mut payload)?;
        if entry.compression == 0 {
            return Ok(payload);
        }
        let mut plaintext = Vec::new();
        let limit = entry.original_len as usize;
        let done = Decompressor::new().decompress(entry.compression, &payload, limit, &mut plaintext);
        done.map_err(|e| e.context(place(entry)))?;
        check_len(entry, plaintext.len())?;
        Ok(plaintext)
    }

    /// The same into `out`, which is exactly the original length of `entry`, without another allocation or copy.
    ///
    /// # Errors
    /// `Corrupt` when lengths disagree, when the bytes do not authenticate as this content, or when they do not decompress
    /// to it; `Unsupported` for a compression this crate does not read. What `out` holds then is of no use.
    ///
    /// # Panics
    /// When `out` has another length.
    pub fn unseal_into(
        &self,
        entry: &IndexEntry,
        sealed: &[u8],
        unsealer: &mut Unsealer,
        out: &mut [u8],
    ) -> Result<()> {
        assert_eq!(
            out.len(),
            entry.original_len as usize,
            "the caller makes room for exactly the plaintext"
        );
        let sealed = self.corrected(entry, sealed)?;
        let payload_len = check(entry, &sealed)?;
        if entry.compression == 0 {
            return self.open(entry, &sealed, out);
        }
        unsealer.packed.resize(payload_len, 0);
        self.open(entry, &sealed, &mut unsealer.packed)?;
        let len = unsealer
            .decompressor
            .decompress_into(entry.compression, &unsealer.packed, out);
        check_len(entry, len.map_err(|e| e.context(place(entry)))?)
    }

    /// [`Self::unseal_into`] for a content that holds a piece of an object compressed, as format version 1 does: `out` takes
    /// the piece, and its length is the piece's.
    ///
    /// # Errors
    /// As there, and `Corrupt` when the piece has another length.
    pub fn unseal_piece_into(
        &self,
        entry: &IndexEntry,
        sealed: &[u8],
        unsealer: &mut Unsealer,
        out: &mut [u8],
    ) -> Result<()> {
        let mut stream = std::mem::take(&mut unsealer.stream);
        stream.resize(entry.original_len as usize, 0);
        let unsealed = self.unseal_into(entry, sealed, unsealer, &mut stream);
        let decoded = unsealed.and_then(|()| {
            let len = unsealer.decompressor.decompress_any_into(&stream, out);
            len.map_err(|e| e.context(place(entry)))
        });
        unsealer.stream = stream;
        match decoded? {
            len if len == out.len() => Ok(()),
            len => Err(RepoError::corrupt(format!(
                "{}: a piece of {len} bytes, its list says {}",
                place(entry),
                out.len()
            ))),
        }
    }

    /// The stored bytes of a content, all of which must be there, without the error correction some repositories add.
    fn corrected<'a>(&self, entry: &IndexEntry, stored: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        if stored.len() != entry.packed_len as usize {
            return Err(RepoError::corrupt(format!(
                "{}: {} bytes of its {} are there",
                place(entry),
                stored.len(),
                entry.packed_len
            )));
        }
        self.correct(stored, &|| place(entry))
    }

    /// Stored bytes that are damaged may open all the same.
    pub(crate) fn corrects_errors(&self) -> bool {
        self.ecc.is_some()
    }

    fn correct<'a>(&self, stored: &'a [u8], place: &dyn Fn() -> String) -> Result<Cow<'a, [u8]>> {
        let Some(ecc) = &self.ecc else {
            return Ok(Cow::Borrowed(stored));
        };
        let corrected = ecc.correct(stored).map_err(|e| e.context(place()))?;
        if corrected.damaged_shards > 0 {
            let place = place();
            warn!(
                place,
                shards = corrected.damaged_shards,
                "damaged bytes were repaired by error correction; the storage loses data"
            );
        }
        Ok(Cow::Owned(corrected.bytes))
    }

    /// Decrypts into `out`, whose length is that of the payload.
    fn open(&self, entry: &IndexEntry, sealed: &[u8], out: &mut [u8]) -> Result<()> {
        let iv = iv(&entry.content)?;
        self.cipher
            .open_into(iv, sealed, out)
            .map_err(|e| RepoError::from(e).context(place(entry)))
    }

    /// Compares the hash of `plaintext` with `id`. Opening has authenticated the bytes as what the writer sealed under this
    /// id; this also finds a writer that sealed other bytes than it hashed.
    ///
    /// # Errors
    /// `Corrupt` when they differ.
    pub fn verify_hash(&self, id: &ContentId, plaintext: &[u8]) -> Result<()> {
        let digest = self.hasher.hash(plaintext);
        if digest.as_slice() == id.hash() {
            Ok(())
        } else {
            Err(RepoError::corrupt(format!(
                "content {id}: its {} bytes have the hash {digest}",
                plaintext.len()
            )))
        }
    }

    /// Names and seals a whole blob: `prefix`, hash, and `-suffix` if there is one.
    ///
    /// # Errors
    /// `InvalidInput` when that is no blob id.
    pub fn seal_blob(&self, prefix: &str, suffix: Option<&str>, plaintext: &[u8]) -> Result<(BlobId, Vec<u8>)> {
        let digest = self.hasher.hash(plaintext);
        let id = match suffix {
            Some(suffix) => BlobId::new(format!("{prefix}{digest}-{suffix}"))?,
            None => BlobId::new(format!("{prefix}{digest}"))?,
        };
        // The name decides, as it will for the reader.
        let sealed = self.cipher.seal(&blob_iv(&id)?, plaintext);
        Ok((id, sealed))
    }

    /// Opens a whole blob.
    ///
    /// # Errors
    /// `Corrupt` when the name has no hash, or the bytes do not authenticate as the blob of this name.
    pub fn open_blob(&self, id: &BlobId, sealed: &[u8]) -> Result<Vec<u8>> {
        self.open_bound(&blob_iv(id)?, sealed, &|| format!("blob {id}"))
    }

    /// Opens bytes that are bound to `iv`, of which errors tell as `place`.
    ///
    /// # Errors
    /// `Corrupt` when they do not authenticate.
    pub(crate) fn open_bound(&self, iv: &[u8], sealed: &[u8], place: &dyn Fn() -> String) -> Result<Vec<u8>> {
        let sealed = self.correct(sealed, place)?;
        self.cipher
            .open(iv, &sealed)
            .map_err(|e| RepoError::from(e).context(place()))
    }
}

impl fmt::Debug for ContentFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ContentFormat({:?}, {:?}, version {})",
            self.hasher, self.cipher, self.format_version
        )
    }
}

impl Unsealer {
    /// Nothing reserved yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Debug for Unsealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unsealer({} bytes)", self.packed.capacity())
    }
}

/// What the encryption of content `id` is bound to: the last 16 bytes of its hash. The prefix takes no part.
fn iv(id: &ContentId) -> Result<&[u8; IV_BYTES]> {
    id.hash()
        .last_chunk()
        .ok_or_else(|| RepoError::corrupt(format!("content {id} has a hash of less than {IV_BYTES} bytes")))
}

/// What the encryption of blob `id` is bound to: the 32 hex digits before the first `-`, or at the end.
fn blob_iv(id: &BlobId) -> Result<[u8; IV_BYTES]> {
    let text = id.as_str();
    let head = text.split('-').next().unwrap_or(text).as_bytes();
    let mut iv = [0; IV_BYTES];
    let digits = head.last_chunk::<{ 2 * IV_BYTES }>().ok_or_else(|| no_hash(id))?;
    hex::decode_to_slice(digits, &mut iv).map_err(|e| no_hash(id).because(e))?;
    Ok(iv)
}

fn no_hash(id: &BlobId) -> RepoError {
    RepoError::corrupt(format!("blob {id}: there is no hash in its name"))
}

/// Length of the payload in `sealed`, once it agrees with the lengths of `entry`.
fn check(entry: &IndexEntry, sealed: &[u8]) -> Result<usize> {
    let short = || {
        RepoError::corrupt(format!(
            "{}: {} bytes are fewer than encryption adds",
            place(entry),
            sealed.len()
        ))
    };
    let payload_len = sealed.len().checked_sub(OVERHEAD).ok_or_else(short)?;
    if entry.compression == 0 {
        check_len(entry, payload_len)?;
    }
    Ok(payload_len)
}

fn check_len(entry: &IndexEntry, len: usize) -> Result<()> {
    if len == entry.original_len as usize {
        return Ok(());
    }
    let what = format!(
        "{}: it has {len} bytes of plaintext, its index entry says {}",
        place(entry),
        entry.original_len
    );
    Err(RepoError::corrupt(what))
}

fn place(entry: &IndexEntry) -> String {
    let end = u64::from(entry.offset) + u64::from(entry.packed_len);
    format!(
        "content {} in pack {} at {}..{end}",
        entry.content, entry.pack, entry.offset
    )
}

#[cfg(test)]
mod tests;
