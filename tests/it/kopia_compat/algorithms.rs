//! Every hash with every cipher that a repository may have: kopia takes all that we create with them.

use blockferry_tests::volume::{BlockKind, Layout};
use repo::crypto::{CipherAlgorithm, HashAlgorithm};

use super::judge::{MIB, Shared, kopia_is_here};

/// A chunk of each sort: incompressible, compressible, zero, and a part of one.
const VOLUME: [BlockKind; 3] = [BlockKind::Random, BlockKind::Zero, BlockKind::Records];

fn every_hash_with(cipher: CipherAlgorithm) {
    if !kopia_is_here() {
        return;
    }
    for hash in HashAlgorithm::ALL {
        let (hash, cipher) = (hash.to_string(), cipher.to_string());
        let shared = Shared::by_us(&["--hash", &hash, "--encryption", &cipher]);
        let status = shared.kopia.run_json(["repository", "status", "--json"]).unwrap();
        let format = &status["contentFormat"];
        assert_eq!((&format["hash"], &format["encryption"]), (&hash.into(), &cipher.into()));
        let bytes = Layout::from_blocks(7, 2 * MIB + 3, &VOLUME).bytes();
        let taken = [shared.we_take("tiny", bytes, &[])];
        shared.kopia_approves(&taken);
        shared.we_approve(&taken);
    }
}

#[test]
fn every_hash_with_aes() {
    every_hash_with(CipherAlgorithm::Aes256GcmHmacSha256);
}

#[test]
fn every_hash_with_chacha() {
    every_hash_with(CipherAlgorithm::ChaCha20Poly1305HmacSha256);
}
