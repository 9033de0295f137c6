//! Vectors of Kopia's hashes, and every kernel against the serial one.

use proptest::prelude::*;

use super::*;

const SECRET: &[u8] = b"a-repository-testing-hmac-secret";
const FOX: &[u8] = b"The quick brown fox jumps over the lazy dog";

#[track_caller]
fn check(name: &str, secret: &[u8], message: &[u8], expect: &str) {
    let hasher = Hasher::new(name.parse().unwrap(), secret).unwrap();
    let digest = hasher.hash(message);
    assert_eq!(digest.to_string(), expect, "{name}");
    assert_eq!(digest.as_slice().len(), hasher.digest_len(), "{name}");
    let mut many = Vec::new();
    hasher.hash_many(&[message; 9], &mut many);
    assert_eq!(many, [digest; 9], "{name}");
}

/// The row of `name` in the table of vectors: empty input, [`FOX`], 1 MiB of zeros.
#[track_caller]
fn check_row(name: &str, expect: [&str; 3]) {
    check(name, SECRET, b"", expect[0]);
    check(name, SECRET, FOX, expect[1]);
    check(name, SECRET, &vec![0; 1 << 20], expect[2]);
}

/// [`check_row`] for `name` and for `cut`, the same construction cut to 16 bytes.
#[track_caller]
fn check_rows(name: &str, cut: &str, expect: [&str; 3]) {
    check_row(name, expect);
    check_row(cut, expect.map(|hex| &hex[..32]));
}

#[test]
fn every_algorithm_gives_the_digests_kopia_gives() {
    check_rows(
        "BLAKE2B-256",
        "BLAKE2B-256-128",
        [
            "d2e77dfd7bcfba20cf0c41ea491baf9c434600d0ce69899df23c80f390351c3a",
            "977293f8e7218a2ffade44b305a12deb1b167b050929c89fef189a000d8ef8bf",
            "03f921987cb46f5e3f52ddb367978a7bf1e68c60c51f3339df10b24fbbb051dd",
        ],
    );
    check_row(
        "BLAKE2S-128",
        [
            "0791ccdc35572b4ae3e921ebe7efc8a5",
            "38af02df4c28f041a9fd58865b52861a",
            "7c0f29869916a129f253be39fd78c879",
        ],
    );
    check_row(
        "BLAKE2S-256",
        [
            "6e680dbe1e4c4a83ca8b817bbf4af092a9e3c51a5e9ca50473969e022a3115f7",
            "e6a64485cbe19d59fa7fb2e594f34a35292d905930afee5d44616d670d678d85",
            "3d0fd3e93a9ba9c6f00c92db130304e56b51f5b431054737a84b9ced21fe8f25",
        ],
    );
    check_rows(
        "BLAKE3-256",
        "BLAKE3-256-128",
        [
            "1da56d1e1c5a044c1a25689abbd09080bbd8c838ffe8974b8dab95de982b069e",
            "09b33920db1e5cf605279827567a5e1c14e17751514ad5f2952a72fa56573920",
            "db89c5fd95fb8fa7e4c475f8850dd4ae20efecaf59572f013fceddbca3a2abba",
        ],
    );
    check_rows(
        "HMAC-SHA256",
        "HMAC-SHA256-128",
        [
            "0c2d44dc80de21b71d4219623082f5dc253fe9bb54e48b0fc90e118f8e6cf419",
            "6bbb74fef0699e516fb96252d8280c1c7f3492e12de9ec6d79c3c9c39b7b0063",
            "1b4336a0a5554cd6ddc2a2c5c908648df1aa2db48d789c9e38b963e406c1981a",
        ],
    );
    check_row(
        "HMAC-SHA224",
        [
            "48d972b51d1cbcf0a6c66b7aba1513f5f299e2641f66882637585e5d",
            "85b617db73da44afb76ff4b36ae8f3d4437a94535fd0ac1af150ec3c",
            "5b119397692aa5d89c3896ffad2544db06e6f48723dd9eb7ff65002e",
        ],
    );
    check_row(
        "HMAC-SHA3-224",
        [
            "74c1539f0ebf7fd0f7351a2350a83c774e4be47977a1a8dbf70457a9",
            "55dc39210aa8bb6be8082d88e9ce6df2020a82fcfac3de8a2c509a08",
            "534dd2f6a5eab9bf3cb8f9c725c656f6bc5ee2cdf0866664f76ac96a",
        ],
    );
    check_row(
        "HMAC-SHA3-256",
        [
            "9ea96035840bece859ac442f1e81b4df12bd1b2cbcfd5a84a97175dc7f1b54d4",
            "2ec1fa388a1738411189fc7ed286ca21d2e8d14d694a60b609b6355cbeae1756",
            "25576d460e563665e466113ab2998c93e331beee19133dbac5723c361461fabb",
        ],
    );
}

#[test]
fn short_and_empty_secrets_give_the_digests_kopia_gives() {
    check(
        "HMAC-SHA256",
        b"key",
        FOX,
        "f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8",
    );
    check("BLAKE2B-256-128", b"key", FOX, "27fbd5f2cdea2c98fa372a1a3b572a2f");
    check(
        "BLAKE3-256",
        b"key",
        FOX,
        "109f7e6ec10cda22662850d9d790955d9fffee3ec42d577d9b5666ce85a668bf",
    );
    check("BLAKE2B-256-128", b"", &[1, 2, 3], "11c0e79b71c3976ccd0c02d1310e2516");
    check("BLAKE2B-256-128", b"", &[2, 3, 4], "24ff687b6ca564bd005a99420c90a0db");
    let stretched = blake3::derive_key(BLAKE3_STRETCH_CONTEXT, b"key");
    assert_eq!(
        hex::encode(stretched),
        "d8e498caaf850bc7d8f1d50ab775aafab640f1085fae8802a220cb47088d56f9"
    );
}

#[test]
fn blake3_uses_the_first_32_bytes_of_a_long_secret() {
    let hash = |secret: &[u8]| Hasher::new(HashAlgorithm::Blake3_256, secret).unwrap().hash(FOX);
    assert_eq!(hash(&[SECRET, b"more"].concat()), hash(SECRET));
}

#[test]
fn secrets_a_construction_does_not_take_are_refused_by_length() {
    for algorithm in HashAlgorithm::ALL {
        let taken: Vec<usize> = [0, 1, 32, 33, 64, 65, 200]
            .into_iter()
            .filter(|&len| match Hasher::new(algorithm, &vec![1; len]) {
                Ok(_) => true,
                Err(error) => {
                    assert_eq!(error.kind(), Kind::InvalidInput);
                    assert!(error.what().contains(algorithm.name()), "{error}");
                    false
                }
            })
            .collect();
        let expect: &[usize] = match algorithm {
            HashAlgorithm::Blake2b256 | HashAlgorithm::Blake2b256_128 => &[0, 1, 32, 33, 64],
            HashAlgorithm::Blake2s256 => &[0, 1, 32],
            HashAlgorithm::Blake2s128 => &[1, 32],
            _ => &[0, 1, 32, 33, 64, 65, 200],
        };
        assert_eq!(taken, expect, "{algorithm}");
    }
}

#[test]
fn names_parse_back_and_unknown_ones_are_an_error_with_the_name() {
    for algorithm in HashAlgorithm::ALL {
        assert_eq!(algorithm.to_string().parse::<HashAlgorithm>().unwrap(), algorithm);
    }
    let error = "BLAKE2B-512".parse::<HashAlgorithm>().unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.what().contains("BLAKE2B-512"), "{error}");
}

#[test]
fn an_iv_is_the_last_sixteen_bytes() {
    let iv = |algorithm| hex::encode(Hasher::new(algorithm, SECRET).unwrap().hash(FOX).iv());
    assert_eq!(iv(HashAlgorithm::Blake2b256_128), "977293f8e7218a2ffade44b305a12deb");
    assert_eq!(iv(HashAlgorithm::Blake2b256), "1b167b050929c89fef189a000d8ef8bf");
    assert_eq!(iv(HashAlgorithm::HmacSha224), "6ae8f3d4437a94535fd0ac1af150ec3c");
}

#[test]
fn only_blake2b_reports_lanes() {
    for algorithm in HashAlgorithm::ALL {
        let hasher = Hasher::new(algorithm, SECRET).unwrap();
        let blake2b = matches!(algorithm, HashAlgorithm::Blake2b256 | HashAlgorithm::Blake2b256_128);
        let expect = if blake2b { Kernel::best() } else { Kernel::Serial };
        assert_eq!((hasher.kernel(), hasher.lanes()), (expect.name(), expect.lanes()));
    }
}

#[test]
fn debug_prints_no_key() {
    let hasher = Hasher::new(HashAlgorithm::HmacSha256, SECRET).unwrap();
    assert_eq!(format!("{hasher:?}"), "Hasher(HMAC-SHA256, serial)");
}

/// Lengths around block borders, and a length that several messages of one batch are likely to share.
fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => Just(1024),
        2 => (0_usize..6).prop_map(|blocks| blocks * 128),
        2 => (1_usize..6, 0_usize..3).prop_map(|(blocks, off)| blocks * 128 + off - 1),
        2 => 0_usize..700,
    ]
}

fn messages() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let message = (length(), any::<u8>()).prop_map(|(len, seed)| {
        (0..len)
            .map(|i| ((i as u64 * 0x9e37_79b9 + u64::from(seed) * 0x85eb_ca6b) >> 7).to_le_bytes()[0])
            .collect()
    });
    proptest::collection::vec(message, 0..36)
}

proptest! {
    #[test]
    fn every_kernel_gives_the_serial_digests(
        key in proptest::collection::vec(any::<u8>(), 0..=64),
        messages in messages(),
    ) {
        let hasher = Hasher::new(HashAlgorithm::Blake2b256, &key).unwrap();
        let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        let mut state = blake2b_simd::Params::new();
        state.hash_length(32).key(&key);
        let expect: Vec<_> = messages.iter().map(|m| state.hash(m).to_hex().to_string()).collect();
        for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()) {
            let mut digests = Vec::new();
            hasher.clone().with_kernel(kernel).unwrap().hash_many(&messages, &mut digests);
            prop_assert_eq!(digests.iter().map(Digest::to_string).collect::<Vec<_>>(), &expect[..], "{}", kernel);
        }
    }
}
