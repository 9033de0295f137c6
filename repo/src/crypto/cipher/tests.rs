//! Vectors of Kopia's encryption, and what must not open.

use proptest::prelude::*;

use super::super::{HashAlgorithm, Hasher};
use super::*;

const MK: &[u8] = b"01234567890123456789012345678901";
const SECRET: &[u8] = b"a-repository-testing-hmac-secret";
const FOX: &[u8] = b"The quick brown fox jumps over the lazy dog";
const AES: &str = "AES256-GCM-HMAC-SHA256";
const CHACHA: &str = "CHACHA20-POLY1305-HMAC-SHA256";

fn cipher(name: &str) -> Cipher {
    Cipher::new(name.parse().unwrap(), MK).unwrap()
}

#[track_caller]
fn check_opens(name: &str, iv: &str, plaintext: &str, sealed: &str) {
    let opened = cipher(name).open(iv.as_bytes(), &hex::decode(sealed).unwrap()).unwrap();
    assert_eq!(opened, plaintext.as_bytes());
}

#[test]
fn what_kopia_sealed_opens() {
    let (iv, zeros) = ("aabbccddeeffgghhiijjkkllmmnnoopp", "0".repeat(32));
    let fox = "quick brown fox jumps over the lazy dog";
    check_opens(
        AES,
        iv,
        "foo",
        "e43ba07f85a6d70c5f1102ca06cf19c597e5f91e527b21f00fb76e8bec3fd1",
    );
    check_opens(
        CHACHA,
        iv,
        "foo",
        "118359f3d4d589d939efbbc3168ae4c77c51bcebce6845fe6ef5d11342faa6",
    );
    check_opens(
        AES,
        &zeros,
        fox,
        "eaad755a238f1daa4052db2e5ccddd934790b6cca415b3ccfd46ac5746af33d9d30f4400ffa9eb3a64fb1ce21b888c12c043bf6787d4a5c15\
         ad10f21f6a6027ee3afe0",
    );
    check_opens(
        CHACHA,
        &zeros,
        fox,
        "836d2ba87892711077adbdbe1452d3b2c590bbfdf6fd3387dc6810220a32ec19de862e1a4f865575e328424b5f178afac1b7eeff11494f719\
         d119b7ebb924d1d0846a3",
    );
}

#[test]
fn every_content_has_the_key_kopia_gives_it() {
    let check = |iv: &[u8], expect: &str| {
        assert_eq!(hex::encode(hmac::sign(&cipher(AES).deriving, iv)), expect);
    };
    check(
        b"aabbccddeeffgghhiijjkkllmmnnoopp",
        "6c82491c819ee6c89e7bdd065cca8b86c314a7d950dffa92e1c30506f60463ea",
    );
    check(
        &[b'0'; 32],
        "e09bf92edcc7890a612c60ef1df18a8affff56d9fecfc7cb0585f1b73eb43169",
    );
    let id = Hasher::new(HashAlgorithm::Blake2b256_128, SECRET).unwrap().hash(FOX);
    check(
        &id.iv(),
        "81cf7de6b68525203b94d169c01866032fbab847cc6f137808b828cf5b04a0f0",
    );
}

#[test]
fn sealing_under_a_known_nonce_gives_the_known_bytes() {
    let iv = Hasher::new(HashAlgorithm::Blake2b256_128, SECRET)
        .unwrap()
        .hash(FOX)
        .iv();
    let check = |name: &str, expect: &str| {
        let mut sealed = vec![0; FOX.len() + OVERHEAD];
        seal_with(
            &cipher(name).content_key(&iv),
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
            &iv,
            FOX,
            &mut sealed,
        );
        assert_eq!(hex::encode(sealed), expect);
    };
    check(
        AES,
        "000102030405060708090a0b9e3a77d59ab7b168212f054496ed7e3d6eb2ac1f9623334cf28655a7e7a45b0a835ed5746ce687203fe355c93\
         845e86325371b5dc6d22916220c67",
    );
    check(
        CHACHA,
        "000102030405060708090a0bfdd66a9127f16b7d447a84f4dc79e91931b332d73edf293065cfd9eae67cbb475ac9f13cf331cfdd022df5ae6\
         51e05af01c5b85321b2bc0b125321",
    );
}

#[test]
fn a_blob_under_its_own_key_opens() {
    let format_key = hex::decode("cae9806b31c1039305b71cdd7a40c8f1dca346971f1d9ec60a63de59b48b39d2").unwrap();
    let unique_id = b"a5ba5d2da4b14b518b9501b64b5d87ca";
    let aad = hkdf32(&format_key, unique_id, b"CHECKSUM");
    let blobcfg = AesGcm::new(&hkdf32(&format_key, unique_id, b"AES"));
    let sealed = hex::decode("033bb53657c017a5adc963115c1bc9fdae94468b69c3ad3495063bd64b01").unwrap();
    assert_eq!(blobcfg.open(aad.as_bytes(), &sealed).unwrap(), b"{}");
    assert_eq!(blobcfg.open(b"CHECKSUM", &sealed), Err(Unauthentic));
    let again = blobcfg.seal(aad.as_bytes(), b"{}");
    assert_ne!(again, sealed, "the nonce is random");
    assert_eq!(blobcfg.open(aad.as_bytes(), &again).unwrap(), b"{}");
}

#[test]
fn nothing_opens_with_a_bit_changed_or_a_byte_missing() {
    for algorithm in CipherAlgorithm::ALL {
        let cipher = Cipher::new(algorithm, MK).unwrap();
        let sealed = cipher.seal(b"iv", FOX);
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let mut out = vec![0xee; FOX.len()];
            assert_eq!(cipher.open_into(b"iv", &damaged, &mut out), Err(Unauthentic));
            assert!(
                !FOX.iter().zip(&out).any(|(a, b)| a == b && *b != 0xee),
                "plaintext left in the buffer"
            );
        }
        for len in 0..sealed.len() {
            assert_eq!(cipher.open(b"iv", &sealed[..len]), Err(Unauthentic));
        }
        assert_eq!(cipher.open(b"vi", &sealed), Err(Unauthentic));
        assert_eq!(
            Cipher::new(algorithm, &MK[1..]).unwrap().open(b"iv", &sealed),
            Err(Unauthentic)
        );
    }
}

#[test]
fn damage_is_told_as_damage() {
    let error = RepoError::from(Unauthentic);
    assert!(error.is_damage());
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn nonces_do_not_repeat() {
    let cipher = cipher(AES);
    let nonces: std::collections::HashSet<_> = (0..1000)
        .map(|_| cipher.seal(b"iv", b"")[..NONCE_LEN].to_vec())
        .collect();
    assert_eq!(nonces.len(), 1000);
}

#[test]
#[should_panic(expected = "28 bytes longer")]
fn a_buffer_of_another_length_is_a_bug_of_the_caller() {
    cipher(AES).seal_into(b"iv", FOX, &mut [0; 10]);
}

#[test]
fn unknown_names_and_missing_keys_are_errors() {
    for name in ["AES128-GCM-HMAC-SHA256", "NONE", ""] {
        let error = name.parse::<CipherAlgorithm>().unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.what().contains(name), "{error}");
    }
    for algorithm in CipherAlgorithm::ALL {
        assert_eq!(algorithm.to_string().parse::<CipherAlgorithm>().unwrap(), algorithm);
        assert_eq!(Cipher::new(algorithm, b"").unwrap_err().kind(), Kind::InvalidInput);
    }
}

#[test]
fn debug_prints_no_key() {
    assert_eq!(format!("{:?}", cipher(AES)), "Cipher(AES256-GCM-HMAC-SHA256)");
    assert_eq!(format!("{:?}", AesGcm::new(&Secret32::new([1; 32]))), "AesGcm(..)");
}

proptest! {
    #[test]
    fn what_is_sealed_opens(
        plaintext in proptest::collection::vec(any::<u8>(), 0..5000),
        iv in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        for algorithm in CipherAlgorithm::ALL {
            let cipher = Cipher::new(algorithm, MK).unwrap();
            let sealed = cipher.seal(&iv, &plaintext);
            prop_assert_eq!(sealed.len(), plaintext.len() + OVERHEAD);
            prop_assert_eq!(cipher.open(&iv, &sealed).unwrap(), &plaintext[..]);
        }
    }
}
