use super::*;
use crate::compress::{Codec, Compressor};
use crate::error::Kind;
use crate::format::tests::{Golden, MASTER_KEY, SECRET, known_format};
use crate::index::Table;

const FOX: &[u8] = b"The quick brown fox jumps over the lazy dog";

fn known() -> ContentFormat {
    ContentFormat::new(&known_format()).expect("valid")
}

/// Every algorithm once.
fn formats() -> Vec<ContentFormat> {
    let of = |hash, cipher| ContentFormat::with_keys(hash, cipher, SECRET, MASTER_KEY, 3).expect("valid");
    let ciphers = CipherAlgorithm::ALL.map(|cipher| of(HashAlgorithm::Blake2b256_128, cipher));
    HashAlgorithm::ALL
        .map(|hash| of(hash, CipherAlgorithm::Aes256GcmHmacSha256))
        .into_iter()
        .chain(ciphers)
        .collect()
}

fn entry(content: ContentId, sealed: &[u8], original_len: usize, compression: u32) -> IndexEntry {
    IndexEntry {
        content,
        pack: BlobId::known("p00-s00"),
        offset: 32,
        packed_len: u32::try_from(sealed.len()).expect("short"),
        original_len: u32::try_from(original_len).expect("short"),
        time: 1,
        deleted: false,
        format_version: 3,
        compression,
    }
}

/// Both ways to unseal, which give the same.
fn unseal(format: &ContentFormat, entry: &IndexEntry, sealed: &[u8]) -> Result<Vec<u8>> {
    let mut out = vec![0; entry.original_len as usize];
    let into = format
        .unseal_into(entry, sealed, &mut Unsealer::new(), &mut out)
        .map(|()| out);
    let new = format.unseal(entry, sealed);
    assert_eq!(
        into.as_ref().map_err(RepoError::kind),
        new.as_ref().map_err(RepoError::kind)
    );
    new
}

#[test]
fn contents_sealed_as_kopia_does_open() {
    let id: ContentId = "977293f8e7218a2ffade44b305a12deb".parse().expect("valid");
    let aes = "000102030405060708090a0b9e3a77d59ab7b168212f054496ed7e3d6eb2ac1f9623334cf28655a7e7a45b0a835ed5746ce687203fe355c93845e86325371b5dc6d22916220c67";
    let chacha = "000102030405060708090a0bfdd66a9127f16b7d447a84f4dc79e91931b332d73edf293065cfd9eae67cbb475ac9f13cf331cfdd022df5ae651e05af01c5b85321b2bc0b125321";
    for (cipher, sealed) in CipherAlgorithm::ALL.into_iter().zip([aes, chacha]) {
        let format =
            ContentFormat::with_keys(HashAlgorithm::Blake2b256_128, cipher, SECRET, MASTER_KEY, 3).expect("valid");
        assert_eq!(format.content_id(None, FOX), id);
        let sealed = hex::decode(sealed).expect("hex");
        assert_eq!(
            unseal(&format, &entry(id, &sealed, FOX.len(), 0), &sealed).expect("opens"),
            FOX
        );
        // The prefix takes no part in the encryption.
        let list = ContentId::new(Some('x'), id.hash()).expect("valid");
        assert_eq!(
            unseal(&format, &entry(list, &sealed, FOX.len(), 0), &sealed).expect("opens"),
            FOX
        );
    }
    let wide = ContentFormat::with_keys(
        HashAlgorithm::Blake2b256,
        CipherAlgorithm::ALL[0],
        SECRET,
        MASTER_KEY,
        3,
    )
    .expect("valid");
    let iv = hex::encode(iv(&wide.content_id(None, FOX)).expect("32 bytes"));
    assert_eq!(iv, "1b167b050929c89fef189a000d8ef8bf");
}

#[test]
fn contents_round_trip_under_every_algorithm() {
    for format in formats() {
        for plaintext in [&b""[..], FOX, &[0; 5000]] {
            let id = format.content_id(Some('k'), plaintext);
            let mut sealed = vec![0; ContentFormat::sealed_len(plaintext.len())];
            format.seal_into(&id, plaintext, &mut sealed);
            let entry = entry(id, &sealed, plaintext.len(), 0);
            assert_eq!(unseal(&format, &entry, &sealed).expect("opens"), plaintext);
            format.verify_hash(&id, plaintext).expect("its hash");
            assert_eq!(
                format.verify_hash(&id, b"other").expect_err("another").kind(),
                Kind::Corrupt
            );
            assert_eq!(id.hash().len(), format.hash_len());
        }
    }
}

#[test]
fn compressed_contents_open_to_exactly_their_length() {
    let format = known();
    let plaintext = FOX.repeat(500);
    let mut packed = Vec::new();
    let codec = Codec::ZSTD_FASTEST;
    assert!(
        Compressor::new()
            .compress(codec, codec.level(), &plaintext, &mut packed)
            .expect("compresses")
    );
    let id = format.content_id(None, &plaintext);
    let mut sealed = vec![0; ContentFormat::sealed_len(packed.len())];
    format.seal_into(&id, &packed, &mut sealed);

    let good = entry(id, &sealed, plaintext.len(), 0x1101);
    assert_eq!(unseal(&format, &good, &sealed).expect("opens"), plaintext);
    for wrong in [
        IndexEntry {
            original_len: good.original_len - 1,
            ..good.clone()
        },
        IndexEntry {
            original_len: good.original_len + 1,
            ..good.clone()
        },
        IndexEntry {
            original_len: 0,
            ..good.clone()
        },
        IndexEntry {
            compression: 0x1100,
            ..good.clone()
        },
        IndexEntry {
            packed_len: good.packed_len + 1,
            ..good.clone()
        },
        IndexEntry {
            compression: 0,
            ..good.clone()
        },
    ] {
        assert_eq!(
            unseal(&format, &wrong, &sealed).expect_err("wrong").kind(),
            Kind::Corrupt,
            "{wrong:?}"
        );
    }
    let unknown = IndexEntry {
        compression: 0x7777,
        ..good
    };
    assert!(unseal(&format, &unknown, &sealed).is_err());
}

#[test]
fn a_claimed_length_is_not_allocated() {
    let format = known();
    let mut packed = Vec::new();
    assert!(
        Compressor::new()
            .compress(Codec::ZSTD_FASTEST, 1, &[7; 1000], &mut packed)
            .expect("compresses")
    );
    let id = format.content_id(None, FOX);
    let mut sealed = vec![0; ContentFormat::sealed_len(packed.len())];
    format.seal_into(&id, &packed, &mut sealed);
    let claim = IndexEntry {
        original_len: u32::MAX,
        ..entry(id, &sealed, 0, 0x1101)
    };
    assert_eq!(format.unseal(&claim, &sealed).expect_err("4 GiB").kind(), Kind::Corrupt);
    let claim = IndexEntry {
        original_len: u32::MAX,
        packed_len: u32::MAX,
        ..entry(id, &sealed, 0, 0)
    };
    assert_eq!(format.unseal(&claim, &sealed).expect_err("4 GiB").kind(), Kind::Corrupt);
}

#[test]
fn damage_truncation_and_a_swapped_content_are_errors_that_name_the_place() {
    let format = known();
    let id = format.content_id(None, FOX);
    let mut sealed = vec![0; ContentFormat::sealed_len(FOX.len())];
    format.seal_into(&id, FOX, &mut sealed);
    let good = entry(id, &sealed, FOX.len(), 0);
    for at in 0..sealed.len() {
        let mut damaged = sealed.clone();
        damaged[at] ^= 1;
        let e = unseal(&format, &good, &damaged).expect_err("damaged");
        assert!(
            e.is_damage() && e.what().contains("p00-s00 at 32..103") && e.what().contains(&id.to_string()),
            "{e}"
        );
        assert!(unseal(&format, &good, &sealed[..at]).expect_err("short").is_damage());
        let short = IndexEntry {
            packed_len: u32::try_from(at).expect("short"),
            ..good.clone()
        };
        assert!(unseal(&format, &short, &sealed[..at]).expect_err("short").is_damage());
    }
    let other = IndexEntry {
        content: format.content_id(None, b"other"),
        ..good.clone()
    };
    assert!(unseal(&format, &other, &sealed).expect_err("swapped").is_damage());
    let stub = IndexEntry {
        content: "00ff".parse().expect("valid"),
        ..good
    };
    assert!(
        unseal(&format, &stub, &sealed)
            .expect_err("an id without an iv")
            .is_damage()
    );
}

#[test]
fn blobs_are_named_as_kopia_names_them() {
    let hash = HashAlgorithm::Blake2b256_128;
    let unkeyed = ContentFormat::with_keys(hash, CipherAlgorithm::ALL[0], b"", MASTER_KEY, 3).expect("valid");
    let name = |prefix, suffix, data: &[u8]| unkeyed.seal_blob(prefix, suffix, data).expect("seals").0.to_string();
    assert_eq!(
        name("prefix1_", None, &[1, 2, 3]),
        "prefix1_11c0e79b71c3976ccd0c02d1310e2516"
    );
    assert_eq!(
        name("prefix2_", None, &[2, 3, 4]),
        "prefix2_24ff687b6ca564bd005a99420c90a0db"
    );
    assert_eq!(
        name("s", Some("s00-c1"), &[2, 3, 4]),
        "s24ff687b6ca564bd005a99420c90a0db-s00-c1"
    );
}

#[test]
fn blobs_round_trip_and_are_bound_to_their_names() {
    for format in formats() {
        for suffix in [None, Some("s0011223344556677144-c1")] {
            let (id, sealed) = format.seal_blob("xn0_", suffix, FOX).expect("seals");
            assert_eq!(format.open_blob(&id, &sealed).expect("opens"), FOX);
            let (other, _) = format.seal_blob("xn0_", suffix, b"other").expect("seals");
            assert!(format.open_blob(&other, &sealed).expect_err("swapped").is_damage());
            let mut damaged = sealed.clone();
            damaged[12] ^= 1;
            assert!(format.open_blob(&id, &damaged).expect_err("damaged").is_damage());
            assert!(format.open_blob(&id, &sealed[..27]).expect_err("short").is_damage());
        }
    }
    for bad in [
        "xn0_00",
        "x",
        "kopia.repository",
        "xn0-977293f8e7218a2ffade44b305a12deb",
        &format!("x{}", "g".repeat(32)),
    ] {
        assert!(
            known()
                .open_blob(&BlobId::known(bad), &[0; 100])
                .expect_err("no hash")
                .is_damage()
        );
    }
    assert!(known().seal_blob("a/", None, FOX).is_err());
}

#[test]
fn index_blobs_and_metadata_contents_of_kopia_open() {
    for repository in Golden::load().repositories {
        let format = ContentFormat::new(&repository.format()).expect("valid");
        let tables = repository
            .blobs("xn")
            .into_iter()
            .map(|(id, sealed)| Table::parse(format.open_blob(&id, &sealed).expect("opens")).expect("an index"));
        let index = crate::index::Merged::new(tables).expect("one key length");
        let entries: Vec<_> = index.iter(None).collect();
        assert_eq!(entries.len(), repository.contents);
        let deleted: Vec<_> = entries
            .iter()
            .filter(|e| e.deleted)
            .map(|e| e.content.to_string())
            .collect();
        assert_eq!(deleted, std::slice::from_ref(&repository.deleted));

        let mut opened = 0;
        for (pack, bytes) in repository.blobs("q") {
            for entry in entries.iter().filter(|e| e.pack == pack) {
                let at = entry.offset as usize..(entry.offset + entry.packed_len) as usize;
                let plaintext = unseal(&format, entry, &bytes[at]).expect("opens");
                format.verify_hash(&entry.content, &plaintext).expect("its hash");
                opened += 1;
            }
        }
        assert!(opened >= 3, "a list, a manifest and a deleted content");
    }
}

#[test]
fn debug_prints_no_key() {
    let text = format!("{:?}", known());
    assert_eq!(
        text.matches("Hasher").count() + text.matches("Cipher").count(),
        2,
        "{text}"
    );
}
