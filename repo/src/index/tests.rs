use std::collections::{BTreeMap, HashMap};

use proptest::collection::vec;
use proptest::prelude::*;

use super::builder::build_shards_of;
use super::*;
use crate::error::Kind;

const PK: &str = "p0123456789abcdef0123456789abcdef-s0011223344556677144";
const QK: &str = "qfedcba9876543210fedcba9876543210-s0011223344556677144";

/// Version 2, one entry. Written by Kopia's encoder, as the other texts of bytes here.
const V2_ONE: &str = "021100100000000100000001010000000000f7bc83f430538424b13298e6aa6fb1436955b9000000002010000010001c0000360000003d0000000003007030313233343536373839616263646566303132333435363738396162636465662d7330303131323233333434353536363737313434";
const V2_THREE: &str = "02110011000000030000000202000000000000112233445566778899aabbccddeeff6955c7108010003c10000010001c00000000f7bc83f430538424b13298e6aa6fb1436955b9000000002010000010001c0000006b00112233445566778899aabbccddeeff6955b9010000002000012c0000c8000101360000008d36000000c30000000003000000110103007030313233343536373839616263646566303132333435363738396162636465662d73303031313232333334343535363637373134347166656463626139383736353433323130666564636261393837363534333231302d7330303131323233333434353536363737313434";
const V2_LONG: &str = "021100130000000100000001010000000000f7bc83f430538424b13298e6aa6fb1436955b90000000020234567400000000000001136000000400000000003007030313233343536373839616263646566303132333435363738396162636465662d7330303131323233333434353536363737313434";
pub(super) const V1_THREE: &str = "01110014000000030000112233445566778899aabbccddeeff00006955c7100136000000778010003c0010001c00f7bc83f430538424b13298e6aa6fb14300006955b900013600000077000000200010001c6b00112233445566778899aabbccddeeff00006955b9010136000000ad00000020000000c87030313233343536373839616263646566303132333435363738396162636465662d73303031313232333334343535363637373134347166656463626139383736353433323130666564636261393837363534333231302d7330303131323233333434353536363737313434";

pub(super) fn entry(content: &str, time: u64, pack: u32) -> IndexEntry {
    IndexEntry {
        content: content.parse().expect("a content id"),
        pack: BlobId::known(format!("p{pack:032x}-s0011223344556677144")),
        offset: 32,
        packed_len: 128,
        original_len: 100,
        time,
        deleted: false,
        format_version: 3,
        compression: 0,
    }
}

fn first() -> IndexEntry {
    IndexEntry {
        pack: BlobId::known(PK),
        packed_len: 1_048_604,
        original_len: 1_048_576,
        ..entry("f7bc83f430538424b13298e6aa6fb143", 1_767_225_600, 0)
    }
}

fn three() -> Vec<IndexEntry> {
    let content = |text: &str| text.parse().expect("a content id");
    let deleted = IndexEntry {
        content: content("00112233445566778899aabbccddeeff"),
        time: 1_767_229_200,
        offset: 1_048_636,
        deleted: true,
        ..first()
    };
    let list = IndexEntry {
        content: content("k00112233445566778899aabbccddeeff"),
        pack: BlobId::known(QK),
        time: 1_767_225_601,
        packed_len: 200,
        original_len: 300,
        compression: 0x1101,
        ..first()
    };
    vec![list, first(), deleted]
}

pub(super) fn bytes(text: &str) -> Vec<u8> {
    hex::decode(text).expect("hex")
}

fn table(entries: &[IndexEntry]) -> Table {
    Table::parse(build_v2(entries.to_vec()).expect("valid entries")).expect("own bytes")
}

#[track_caller]
fn check_v2(entries: Vec<IndexEntry>, expect: &str) {
    assert_eq!(hex::encode(build_v2(entries.clone()).expect("valid entries")), expect);
    let table = Table::parse(bytes(expect)).expect("bytes of Kopia");
    let mut sorted = entries;
    sorted.sort_by_key(|e| e.content);
    assert_eq!(table.iter().collect::<Vec<_>>(), sorted);
    for entry in &sorted {
        assert_eq!(table.find(&entry.content), Some(entry.as_ref()));
    }
}

#[test]
fn version_2_is_written_and_read_as_kopia_does() {
    check_v2(vec![first()], V2_ONE);
    check_v2(three(), V2_THREE);
    check_v2(
        vec![IndexEntry {
            packed_len: 20_971_520,
            original_len: 19_088_743,
            ..first()
        }],
        V2_LONG,
    );
}

#[test]
fn version_1_is_read() {
    let table = Table::parse(bytes(V1_THREE)).expect("bytes of Kopia");
    let mut expect = three();
    expect.sort_by_key(|e| e.content);
    for entry in &mut expect {
        (entry.format_version, entry.compression, entry.original_len) = (1, 0, entry.packed_len - 28);
    }
    assert_eq!(table.iter().collect::<Vec<_>>(), expect);
    assert_eq!(table.range(b'k').collect::<Vec<_>>(), expect[2..]);
    assert!(Table::parse(bytes("01ff001400000000")).expect("empty").is_empty());
    assert!(
        Table::parse(bytes("01ff001400000000"))
            .expect("empty")
            .find(&first().content)
            .is_none()
    );
}

#[test]
fn both_versions_merge() {
    let tables = [V1_THREE, V2_THREE].map(|text| Table::parse(bytes(text)).expect("bytes of Kopia"));
    let merged = Merged::new(tables).expect("one key length");
    // Equal times: the deleted one is deleted in both; of the others either will do, they say the same but the version.
    assert_eq!(merged.iter(None).count(), 3);
    assert_eq!(merged.iter(Some(1_767_229_199)).count(), 3);
    assert_eq!(merged.iter(Some(1_767_229_200)).count(), 2);
}

#[test]
fn bytes_after_the_index_are_passed_over() {
    for text in [V1_THREE, V2_THREE] {
        let mut with_suffix = bytes(text);
        with_suffix.extend([0xa5; 32]);
        assert_eq!(Table::parse(with_suffix).expect("tolerated").len(), 3);
    }
}

#[test]
fn an_index_cut_short_at_any_byte_is_an_error() {
    for text in [V2_ONE, V2_THREE, V2_LONG, V1_THREE] {
        let whole = bytes(text);
        for len in 0..whole.len() {
            assert!(
                Table::parse(whole[..len].to_vec()).is_err(),
                "{len} of {} bytes",
                whole.len()
            );
        }
    }
}

/// Sets bytes of `text` from `at` on and expects a refusal that speaks of `why`.
#[track_caller]
fn refused(text: &str, at: usize, set: &[u8], why: &str) {
    let mut bytes = bytes(text);
    bytes[at..at + set.len()].copy_from_slice(set);
    let e = Table::parse(bytes).expect_err(why);
    assert!(e.what().contains(why), "{e}, expected {why:?}");
}

#[test]
fn every_field_that_contradicts_the_format_is_refused() {
    refused(V2_THREE, 0, &[3], "version 3");
    refused(V2_THREE, 1, &[1], "keys of 1 bytes");
    refused(V2_THREE, 1, &[34], "keys of 34 bytes");
    refused(V2_THREE, 1, &[255], "keys of 255 bytes");
    refused(V2_THREE, 2, &[0, 15], "values of 15 bytes");
    refused(V2_THREE, 2, &[0, 20], "values of 20 bytes");
    refused(V2_THREE, 4, &[255; 4], "asks for");
    refused(V2_THREE, 8, &[255; 4], "asks for");
    refused(V2_THREE, 12, &[255], "asks for");
    refused(V2_THREE, 13, &[255; 4], "2106");
    refused(V2_THREE, 17, b"a", "content id");
    refused(V2_THREE, 17, b"z", "ascending");
    refused(V2_THREE, 17 + 17 + 14, &[0, 2], "pack number");
    refused(V2_THREE, 17 + 17 + 16, &[2], "format number");
    let records = 17 + 3 * 34;
    refused(V2_THREE, records, &[0], "pack 0");
    refused(V2_THREE, records, &[255], "pack 0");
    refused(V2_THREE, records + 5 + 1, &[255; 4], "pack 1");
    refused(V2_THREE, records + 10 + 5, &[1], "encryption key 1");
    refused(V2_THREE, records + 10 + 12, b"/", "pack 0");
    refused(V2_THREE, records + 10 + 12, &[0xff], "pack 0");

    refused(V1_THREE, 2, &[0, 21], "values of 21 bytes");
    refused(V1_THREE, 4, &[255; 4], "asks for");
    let value = 8 + 17;
    refused(V1_THREE, value, &[1], "2106");
    refused(V1_THREE, value + 7, &[0], "pack name");
    refused(V1_THREE, value + 8, &[255; 4], "pack name");
    refused(V1_THREE, value + 16, &[0, 0, 0, 27], "shorter");
    refused(V1_THREE, value + 16, &[16, 0, 0, 0], "longer");
}

#[test]
fn equal_keys_are_refused() {
    let mut twice = bytes(V2_THREE);
    let row = 34;
    twice.copy_within(17..17 + 17, 17 + row);
    assert!(
        Table::parse(twice)
            .expect_err("equal keys")
            .what()
            .contains("ascending")
    );
}

#[test]
fn what_the_format_cannot_hold_is_not_written() {
    let check = |entry: IndexEntry, good: bool| {
        let built = build_v2(vec![entry.clone()]);
        assert_eq!(built.is_ok(), good, "{entry:?}");
        match built {
            Ok(bytes) => assert_eq!(
                Table::parse(bytes).expect("own bytes").iter().collect::<Vec<_>>(),
                [entry]
            ),
            Err(e) => assert_eq!(e.kind(), Kind::InvalidInput),
        }
    };
    let good = first();
    for (len, holds) in [((1 << 28) - 1, true), (1 << 28, false)] {
        check(
            IndexEntry {
                packed_len: len,
                ..good.clone()
            },
            holds,
        );
        check(
            IndexEntry {
                original_len: len,
                ..good.clone()
            },
            holds,
        );
    }
    check(
        IndexEntry {
            offset: (1 << 30) - 1,
            ..good.clone()
        },
        true,
    );
    check(
        IndexEntry {
            offset: 1 << 30,
            ..good.clone()
        },
        false,
    );
    check(
        IndexEntry {
            time: u64::from(u32::MAX),
            ..good.clone()
        },
        true,
    );
    check(
        IndexEntry {
            time: 1 << 32,
            ..good.clone()
        },
        false,
    );
    check(
        IndexEntry {
            pack: BlobId::known("p".repeat(255)),
            ..good.clone()
        },
        true,
    );
    check(
        IndexEntry {
            pack: BlobId::known("p".repeat(256)),
            ..good.clone()
        },
        false,
    );
    assert!(build_v2(Vec::new()).is_err());
    assert!(
        build_v2(vec![
            good.clone(),
            IndexEntry {
                content: "00".repeat(32).parse().expect("valid"),
                ..good.clone()
            }
        ])
        .is_err()
    );
    let formats = |n: u32| {
        (0..n)
            .map(|i| IndexEntry {
                compression: i,
                ..entry(&format!("{i:032x}"), 1, 0)
            })
            .collect()
    };
    assert!(build_v2(formats(255)).is_ok());
    assert!(build_v2(formats(256)).is_err());
}

#[test]
fn values_are_as_wide_as_the_numbers_of_packs_need() {
    let packs = |n: u32| (0..n).map(|i| entry(&format!("{i:032x}"), 1, i)).collect::<Vec<_>>();
    let (few, many) = (packs(1 << 16), packs((1 << 16) + 1));
    for (entries, width) in [(few, 16), (many, 18)] {
        let bytes = build_v2(entries.clone()).expect("valid entries");
        assert_eq!(bytes[3], width);
        assert!(Table::parse(bytes).expect("own bytes").iter().eq(entries));
    }
}

#[test]
fn of_two_entries_for_one_content_the_builder_keeps_the_one_that_counts() {
    let old = first();
    let new = IndexEntry {
        time: old.time + 1,
        deleted: true,
        ..old.clone()
    };
    for entries in [vec![old.clone(), new.clone()], vec![new.clone(), old]] {
        assert_eq!(table(&entries).iter().collect::<Vec<_>>(), std::slice::from_ref(&new));
    }
}

#[test]
fn a_later_entry_wins_then_a_live_one_then_the_larger_pack() {
    let base = entry("f7bc83f430538424b13298e6aa6fb143", 100, 1);
    let later = IndexEntry {
        time: 101,
        deleted: true,
        ..base.clone()
    };
    let deleted = IndexEntry {
        deleted: true,
        pack: entry("00", 0, 9).pack,
        ..base.clone()
    };
    let larger = IndexEntry {
        pack: entry("00", 0, 2).pack,
        ..base.clone()
    };
    for (winner, loser) in [
        (&later, &base),
        (&base, &deleted),
        (&larger, &base),
        (&larger, &deleted),
    ] {
        for order in [[winner, loser], [loser, winner]] {
            let merged = Merged::new(order.map(|e| table(std::slice::from_ref(e)))).expect("one key length");
            assert_eq!(merged.lookup(&base.content, None).as_ref(), Some(winner));
            assert_eq!(merged.iter(None).collect::<Vec<_>>(), std::slice::from_ref(winner));
        }
    }
}

#[test]
fn a_deletion_counts_until_the_watermark_reaches_it() {
    let live = entry("f7bc83f430538424b13298e6aa6fb143", 100, 1);
    let deleted = IndexEntry {
        time: 200,
        deleted: true,
        ..live.clone()
    };
    let merged = Merged::new([
        table(std::slice::from_ref(&live)),
        table(std::slice::from_ref(&deleted)),
    ])
    .expect("valid");
    assert_eq!(merged.lookup(&live.content, None), Some(deleted.clone()));
    assert_eq!(merged.lookup(&live.content, Some(199)), Some(deleted));
    assert_eq!(merged.lookup(&live.content, Some(200)), None);
    assert_eq!(merged.iter_prefix(0, Some(200)).count(), 0);
    let merged = Merged::new([table(std::slice::from_ref(&live))]).expect("valid");
    assert_eq!(
        merged.lookup(&live.content, Some(1000)),
        Some(live),
        "a watermark takes deletions only"
    );
}

#[test]
fn tables_with_other_hash_lengths_are_refused_and_leave_the_rest_alone() {
    let mut merged = Merged::new([table(&[first()])]).expect("valid");
    let other = IndexEntry {
        content: "00".repeat(32).parse().expect("valid"),
        ..first()
    };
    assert!(merged.add(table(&[other])).is_err());
    assert_eq!(merged.len(), 1);
    assert!(merged.find(&"00".repeat(32).parse().expect("valid"), None).is_none());
}

#[test]
fn shards_follow_fnv_1a_and_empty_ones_are_left_out() {
    let content: ContentId = "f7bc83f430538424b13298e6aa6fb143".parse().expect("valid");
    assert_eq!(shard_of(&content, usize::MAX), 1_377_333_735);
    assert_eq!(shard_of(&content, 1000), 735);
    assert_eq!([0, 1, 16_000_000, 16_000_001].map(shard_count), [0, 1, 1, 2]);

    let entries: Vec<_> = (0..100).map(|i| entry(&format!("{i:032x}"), 1, i)).collect();
    let shards = build_shards_of(entries.clone(), 10).expect("valid");
    assert!(shards.len() > 5 && shards.len() <= 10);
    for shard in &shards {
        let table = Table::parse(shard.clone()).expect("own bytes");
        let numbers: Vec<_> = table.iter().map(|e| shard_of(&e.content, 10)).collect();
        assert!(numbers.iter().all(|n| *n == numbers[0]));
    }
    let merged = Merged::new(shards.into_iter().map(|s| Table::parse(s).expect("own bytes"))).expect("valid");
    assert!(merged.iter(None).eq(entries));
    assert!(build_shards(Vec::new()).expect("none").is_empty());
}

#[test]
fn many_tables_are_folded_into_few() {
    let mut merged = Merged::default();
    let mut all = Vec::new();
    for i in 0..300_u32 {
        let entries: Vec<_> = (0..=i % 7)
            .map(|j| entry(&format!("{:032x}", (i * 7 + j).wrapping_mul(0x9e37_79b9)), 1, i))
            .collect();
        merged.add(table(&entries)).expect("valid");
        all.extend(entries);
        assert!(merged.tables() <= 8, "{} tables after {i}", merged.tables());
    }
    all.sort_by_key(|e| e.content);
    let at_once = Merged::new(all.chunks(3).map(table)).expect("valid");
    assert!(at_once.tables() <= 8 && at_once.iter(None).eq(merged.iter(None)));
    assert_eq!(merged.len(), all.len());
    assert!(merged.iter(None).eq(all.iter().cloned()));
    assert!(all.iter().all(|e| merged.lookup(&e.content, None).as_ref() == Some(e)));
}

fn contents(hash_len: usize) -> impl Strategy<Value = ContentId> {
    // Few different hashes, so that entries meet.
    (
        prop_oneof![Just(None), Just(Some('k')), Just(Some('g')), Just(Some('z'))],
        0..40_u8,
    )
        .prop_map(move |(prefix, n)| {
            let mut hash = vec![0xff; hash_len];
            (hash[0], hash[hash_len - 1]) = (n / 16 * 85, n % 16);
            ContentId::new(prefix, &hash).expect("valid")
        })
}

fn entries(lengths: std::ops::Range<u32>, packs: u32, formats: u32) -> impl Strategy<Value = IndexEntry> {
    let numbers = (
        0..1_u32 << 30,
        lengths.clone(),
        lengths,
        0..5_u64,
        any::<bool>(),
        0..packs,
        0..formats,
    );
    (contents(16), numbers).prop_map(
        |(content, (offset, packed_len, original_len, time, deleted, pack, format))| IndexEntry {
            content,
            offset,
            packed_len,
            original_len,
            deleted,
            compression: format * 0x1101,
            format_version: 3 - u8::from(format == 2),
            ..entry("00", 1_767_225_600 + time, pack)
        },
    )
}

/// The same as [`Merged`], in the simplest way.
#[derive(Default)]
struct Model(HashMap<ContentId, IndexEntry>);

impl Model {
    fn add(&mut self, entry: &IndexEntry) {
        let known = self.0.entry(entry.content).or_insert_with(|| entry.clone());
        let rank = |e: &IndexEntry| (e.time, !e.deleted, e.pack.to_string());
        if rank(entry) > rank(known) {
            *known = entry.clone();
        }
    }

    fn live(&self, watermark: Option<u64>) -> BTreeMap<ContentId, &IndexEntry> {
        let gone = |e: &IndexEntry| e.deleted && watermark.is_some_and(|w| e.time <= w);
        self.0.values().filter(|e| !gone(e)).map(|e| (e.content, e)).collect()
    }
}

/// One entry for each content and second: two that differ in a field no rule looks at could come out either way.
fn distinct(mut entries: Vec<IndexEntry>) -> Vec<IndexEntry> {
    entries.sort_by_key(|e| (e.content, e.time, e.deleted, e.pack.clone()));
    entries.dedup_by_key(|e| (e.content, e.time, e.deleted, e.pack.clone()));
    entries
}

fn round_trips(mut entries: Vec<IndexEntry>) -> Result<(), TestCaseError> {
    entries.sort_by_key(|e| e.content);
    entries.dedup_by_key(|e| e.content);
    let table = table(&entries);
    prop_assert_eq!(table.iter().collect::<Vec<_>>(), entries.clone());
    for prefix in [0, b'g', b'k', b'm', b'z', 255] {
        let expect: Vec<_> = entries
            .iter()
            .filter(|e| e.content.prefix_byte() == prefix)
            .cloned()
            .collect();
        prop_assert_eq!(table.range(prefix).collect::<Vec<_>>(), expect);
    }
    Ok(())
}

proptest! {
    #[test]
    fn narrow_values_round_trip(entries in vec(entries(0..1 << 24, 5, 1), 1..80)) {
        round_trips(entries)?;
    }

    #[test]
    fn wide_values_round_trip(entries in vec(entries(0..1 << 28, 5, 3), 1..80)) {
        round_trips(entries)?;
    }

    #[test]
    fn merged_tables_are_like_a_map(
        entries in vec(entries(1..1000, 3, 2), 1..300),
        cuts in vec(1..40_usize, 1..40),
        watermark in prop_oneof![Just(None), (1_767_225_599..1_767_225_606_u64).prop_map(Some)],
        added_at_once in any::<bool>(),
    ) {
        let mut rest = &distinct(entries)[..];
        let mut model = Model::default();
        rest.iter().for_each(|e| model.add(e));
        let mut parts = Vec::new();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (part, after) = rest.split_at((*cut).min(rest.len()));
            parts.push(table(part));
            rest = after;
        }
        let merged = if added_at_once {
            Merged::new(parts).expect("one key length")
        } else {
            let mut merged = Merged::default();
            parts.into_iter().for_each(|part| merged.add(part).expect("one key length"));
            merged
        };
        let live = model.live(watermark);
        prop_assert_eq!(merged.iter(watermark).collect::<Vec<_>>(), live.values().map(|e| (*e).clone()).collect::<Vec<_>>());
        for content in model.0.keys() {
            prop_assert_eq!(merged.lookup(content, watermark), live.get(content).map(|e| (*e).clone()));
        }
        let k: Vec<_> = live.values().filter(|e| e.content.prefix() == Some('k')).map(|e| (*e).clone()).collect();
        prop_assert_eq!(merged.iter_prefix(b'k', watermark).collect::<Vec<_>>(), k);
    }

    #[test]
    fn damaged_indexes_are_refused_or_read_but_never_panic(
        which in 0..4_usize,
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        len in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = bytes([V2_ONE, V2_THREE, V2_LONG, V1_THREE][which]);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cut {
            bytes.truncate(len.index(bytes.len() + 1));
        }
        if let Ok(table) = Table::parse(bytes) {
            prop_assert_eq!(table.iter().count(), table.len());
            for entry in table.iter() {
                prop_assert!(table.find(&entry.content).is_some());
            }
            let merged = Merged::new([table]).expect("one table");
            prop_assert_eq!(merged.iter(None).count(), merged.len());
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..200), version in 0..3_u8) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        let _ = Table::parse(bytes);
    }
}
