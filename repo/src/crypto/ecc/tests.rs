//! Against Kopia's own output, and damage up to the bound and past it.

mod vectors;

use aws_lc_rs::digest::{SHA256, digest};
use proptest::prelude::*;

use super::*;
use vectors::VECTORS;

fn ecc(percent: i64) -> Ecc {
    Ecc::new(ALGORITHM, percent).unwrap().unwrap()
}

fn input(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + (i >> 8)).to_le_bytes()[0]).collect()
}

/// What Kopia stores for `input`.
fn encode(ecc: &Ecc, input: &[u8]) -> Vec<u8> {
    let geometry = ecc.geometry;
    let mut data = u32::try_from(input.len()).unwrap().to_be_bytes().to_vec();
    data.extend_from_slice(input);
    let len = data.len();
    let layout = if len <= geometry.small_input_max() {
        geometry.small(len.div_ceil(SMALL_DATA))
    } else if len <= geometry.data * geometry.shard_max {
        geometry.large(1, len.div_ceil(geometry.data))
    } else {
        geometry.large(len.div_ceil(geometry.data * geometry.shard_max), geometry.shard_max)
    };
    data.resize(layout.blocks * layout.data * layout.shard, 0);
    let shards: Vec<&[u8]> = data.chunks(layout.shard).collect();
    let mut stored = Vec::new();
    let mut put = |shard: &[u8], len: usize| {
        stored.extend_from_slice(&crc32fast::hash(shard).to_be_bytes());
        stored.extend_from_slice(&shard[..len]);
    };
    for block in shards.chunks(layout.data) {
        let parity = ecc.code(&layout).encode(block);
        parity.iter().for_each(|shard| put(shard, layout.shard));
    }
    let mut left = if layout.blocks == 1 && len <= geometry.data * geometry.shard_max {
        data.len()
    } else {
        len
    };
    for shard in shards {
        if left > 0 {
            put(shard, left.min(layout.shard));
        }
        left = left.saturating_sub(layout.shard);
    }
    stored
}

#[test]
fn bytes_are_those_of_kopia() {
    for (percent, len, stored_len, hash) in VECTORS {
        let stored = encode(&ecc(*percent), &input(*len));
        assert_eq!(stored.len(), *stored_len, "{len} bytes with {percent} %");
        assert_eq!(
            hex::encode(&digest(&SHA256, &stored).as_ref()[..8]),
            *hash,
            "{len} bytes with {percent} %"
        );
        let corrected = ecc(*percent).correct(&stored).unwrap();
        assert_eq!((corrected.bytes, corrected.damaged_shards), (input(*len), 0));
    }
}

#[test]
fn every_percentage_has_the_shards_kopia_gives_it() {
    let shards = |percent| {
        let Geometry {
            data,
            parity,
            shard_max,
        } = Geometry::of(percent);
        (data, parity, shard_max)
    };
    assert_eq!(
        [1, 2, 3, 4, 5, 6, 7, 10, 100].map(shards),
        [
            (254, 2, 1024),
            (164, 2, 512),
            (139, 2, 256),
            (228, 2, 128),
            (128, 2, 128),
            (128, 3, 128),
            (254, 2, 64),
            (128, 4, 64),
            (128, 120, 64),
        ]
    );
    for percent in 1..=100 {
        let (data, parity, _) = shards(percent);
        assert!(data + parity <= 256, "{percent}");
    }
}

#[test]
fn any_byte_of_any_part_is_repaired() {
    for (percent, len) in [(1, 0), (1, 500), (5, 500), (5, 5000), (10, 30_000)] {
        let (ecc, input) = (ecc(percent), input(len));
        let stored = encode(&ecc, &input);
        let step = stored.len() / 97 + 1;
        for at in (0..stored.len()).step_by(step) {
            let mut damaged = stored.clone();
            damaged[at] ^= 0x40;
            let corrected = ecc.correct(&damaged).unwrap();
            assert_eq!(
                corrected,
                Corrected {
                    bytes: input.clone(),
                    damaged_shards: 1
                },
                "byte {at} of {len}"
            );
        }
    }
}

#[test]
fn as_many_shards_as_there_are_parity_shards_are_repaired_and_no_more() {
    for percent in [1, 2, 10, 100] {
        let ecc = ecc(percent);
        let Geometry {
            data,
            parity,
            shard_max,
        } = ecc.geometry;
        let input = input(data * shard_max * 2 - 100);
        let stored = encode(&ecc, &input);
        let unit = CRC_BYTES + shard_max;
        let first_data = 2 * parity * unit;
        let mut damaged = stored.clone();
        for shard in 0..parity {
            damaged[first_data + shard * unit] ^= 1;
            // The last bytes of the second block too; the very last shard is not whole.
            damaged[first_data + (data + shard) * unit + 9] ^= 0x80;
        }
        let corrected = ecc.correct(&damaged).unwrap();
        assert_eq!(
            (corrected.bytes, corrected.damaged_shards),
            (input, 2 * parity),
            "{percent} %"
        );
        damaged[first_data + parity * unit] ^= 1;
        let error = ecc.correct(&damaged).unwrap_err();
        assert!(
            error.is_damage() && error.what().contains(&format!("repairs {parity}")),
            "{error}"
        );
    }
}

#[test]
fn damaged_parity_alone_needs_no_repair_and_is_counted() {
    let ecc = ecc(10);
    let stored = encode(&ecc, &input(20_000));
    let unit = CRC_BYTES + ecc.geometry.shard_max;
    let mut damaged = stored.clone();
    damaged[..3 * ecc.geometry.parity * unit].fill(0xee);
    let corrected = ecc.correct(&damaged).unwrap();
    assert_eq!(corrected.bytes, input(20_000));
    assert_eq!(corrected.damaged_shards, 3 * ecc.geometry.parity);
}

#[test]
fn only_kopias_algorithm_is_known() {
    assert!(Ecc::new("", 5).unwrap().is_none());
    assert!(Ecc::new(ALGORITHM, 0).unwrap().is_none());
    for (name, percent, word) in [(ALGORITHM, -1, "-1 %"), (ALGORITHM, 101, "101 %"), ("LDPC", 1, "LDPC")] {
        let error = Ecc::new(name, percent).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.what().contains(word), "{error}");
    }
}

proptest! {
    #[test]
    fn every_length_comes_back(percent in 1_i64..=100, len in 0_usize..40_000) {
        let (ecc, input) = (ecc(percent), input(len));
        let stored = encode(&ecc, &input);
        prop_assert_eq!(ecc.correct(&stored).unwrap(), Corrected { bytes: input, damaged_shards: 0 });
    }

    #[test]
    fn any_bytes_are_bytes_or_damage(percent in 1_i64..=100, bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        match ecc(percent).correct(&bytes) {
            // Padding that is not stored is at most a block.
            Ok(corrected) => prop_assert!(corrected.bytes.len() <= bytes.len() + (254 << 10)),
            Err(e) => prop_assert!(e.is_damage()),
        }
    }
}
