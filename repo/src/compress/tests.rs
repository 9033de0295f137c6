//! Round trips, foreign and hostile streams, and the policy.

use std::io::Write;

use proptest::prelude::*;

use super::*;

fn text(len: usize) -> Vec<u8> {
    (0..)
        .flat_map(|i: u32| format!("line {i} of {}\n", i % 7).into_bytes())
        .take(len)
        .collect()
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

fn supported() -> impl Iterator<Item = Codec> {
    Codec::all()
        .iter()
        .copied()
        .filter(|codec| codec.check_supported().is_ok())
}

fn packed(codec: Codec, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    assert!(
        Compressor::new()
            .compress(codec, codec.level(), plain, &mut out)
            .unwrap(),
        "{codec}"
    );
    out
}

/// A stream under `codec`'s header.
fn with_header(codec: Codec, body: &[u8]) -> Vec<u8> {
    [&codec.id().get().to_be_bytes(), body].concat()
}

/// Decodes both ways, which must agree.
fn unpacked(codec: Codec, stream: &[u8], limit: usize) -> Result<Vec<u8>> {
    let mut grown = vec![1, 2, 3];
    let result = decompress(codec.id().get(), stream, limit, &mut grown);
    let mut slice = vec![0; limit.min(1 << 23)];
    match Decompressor::new().decompress_into(codec.id().get(), stream, &mut slice) {
        Ok(len) => assert_eq!(slice[..len], grown),
        Err(error) => {
            assert_eq!(error.what(), result.as_ref().unwrap_err().what());
            assert!(grown.is_empty(), "an error leaves nothing behind");
        }
    }
    result.map(|()| grown)
}

#[test]
fn ids_and_names_are_kopias() {
    let expect = [
        (0x1000, "gzip"),
        (0x1001, "gzip-best-speed"),
        (0x1002, "gzip-best-compression"),
        (0x1100, "zstd"),
        (0x1101, "zstd-fastest"),
        (0x1102, "zstd-better-compression"),
        (0x1103, "zstd-best-compression"),
        (0x1200, "s2-default"),
        (0x1201, "s2-better"),
        (0x1202, "s2-parallel-4"),
        (0x1203, "s2-parallel-8"),
        (0x1300, "pgzip"),
        (0x1301, "pgzip-best-speed"),
        (0x1302, "pgzip-best-compression"),
        (0x1400, "lz4"),
        (0x1500, "deflate-default"),
        (0x1501, "deflate-best-speed"),
        (0x1502, "deflate-best-compression"),
    ];
    assert_eq!(Codec::all().len(), expect.len());
    for (id, name) in expect {
        let codec = Codec::by_id(id).unwrap();
        assert_eq!((codec.id().get(), codec.name()), (id, name));
        assert_eq!(Codec::by_name(name).unwrap(), codec);
    }
}

#[test]
fn every_codec_we_write_reads_back_behind_its_header() {
    let plain = text(300_000);
    assert_eq!(supported().count(), 17);
    for codec in supported() {
        let stream = packed(codec, &plain);
        assert_eq!(stream[..4], codec.id().get().to_be_bytes());
        assert!(stream.len() < plain.len() / 2, "{codec}");
        assert_eq!(unpacked(codec, &stream, plain.len()).unwrap(), plain, "{codec}");
        assert_eq!(unpacked(codec, &stream, OUTPUT_BYTES_MAX).unwrap(), plain, "{codec}");
    }
}

#[test]
fn what_does_not_shrink_is_left_alone() {
    let mut compressor = Compressor::new();
    for codec in supported() {
        let mut out = vec![7];
        for plain in [&noise(100_000)[..], &noise(3), b"", b"a", b"aaaaa"] {
            assert!(
                !compressor.compress(codec, codec.level(), plain, &mut out).unwrap(),
                "{codec}"
            );
            assert!(out.is_empty());
        }
        let plain = text(100_000);
        assert_eq!(
            compressor
                .compress_into(codec, codec.level(), &plain, &mut [0; 100])
                .unwrap(),
            None,
            "{codec}"
        );
        assert!(
            compressor.compress(codec, codec.level(), &plain, &mut out).unwrap(),
            "{codec} works after a refusal"
        );
    }
}

#[test]
fn output_of_exactly_the_input_length_is_not_smaller() {
    // Room for one byte less than the input: a stream that would need the last byte is refused, one that does not is kept.
    let mut compressor = Compressor::new();
    for tail in 0..64 {
        let plain = [vec![b'a'; 20], noise(tail)].concat();
        for codec in supported() {
            let mut out = Vec::new();
            if compressor.compress(codec, codec.level(), &plain, &mut out).unwrap() {
                assert!(out.len() < plain.len());
                assert_eq!(unpacked(codec, &out, plain.len()).unwrap(), plain);
            }
        }
    }
}

#[test]
fn levels_change_the_stream_and_wrong_ones_are_refused() {
    let (plain, mut compressor) = (text(200_000), Compressor::new());
    let mut len = |codec: Codec, level| {
        let mut out = Vec::new();
        compressor.compress(codec, level, &plain, &mut out).map(|_| out.len())
    };
    let zstd = Codec::ZSTD_FASTEST;
    assert!(len(zstd, 9).unwrap() < len(zstd, -5).unwrap());
    assert!(len(Codec::by_id(0x1000).unwrap(), 9).unwrap() < len(Codec::by_id(0x1000).unwrap(), 1).unwrap());
    for (id, level) in [
        (0x1101, -8),
        (0x1101, 20),
        (0x1000, -1),
        (0x1500, 10),
        (0x1200, 0),
        (0x1200, 3),
    ] {
        let error = len(Codec::by_id(id).unwrap(), level).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidInput);
        assert!(error.what().contains(&level.to_string()), "{error}");
    }
}

#[test]
fn output_stops_at_the_limit() {
    let plain = text(50_000);
    for codec in supported() {
        let stream = packed(codec, &plain);
        for limit in [0, 1, 49_999] {
            let error = unpacked(codec, &stream, limit).unwrap_err();
            assert!(error.is_damage());
            assert!(
                error.what().contains(&format!("more than the {limit} bytes")),
                "{error}"
            );
        }
    }
}

#[test]
fn memory_follows_the_stream_and_not_its_claims() {
    // A frame header that claims a content of 2^28 - 1 bytes and a window to match, over one raw block of 3 bytes.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000];
    frame.extend_from_slice(&0x0fff_ffff_u32.to_le_bytes());
    frame.extend_from_slice(&[0b0001_1001, 0, 0, b'a', b'b', b'c']);
    let stream = with_header(Codec::ZSTD_FASTEST, &frame);
    let mut out = Vec::new();
    let error = decompress(0x1101, &stream, OUTPUT_BYTES_MAX, &mut out).unwrap_err();
    assert!(error.is_damage(), "{error}");
    assert!(out.capacity() <= 4 << 20, "{} bytes allocated", out.capacity());
}

#[test]
fn a_long_output_is_reached_from_a_short_stream() {
    let plain = vec![0; 20 << 20];
    for codec in supported() {
        assert!(unpacked(codec, &packed(codec, &plain[..6 << 20]), OUTPUT_BYTES_MAX).unwrap() == plain[..6 << 20]);
    }
    let mut out = Vec::new();
    decompress(0x1101, &packed(Codec::ZSTD_FASTEST, &plain), OUTPUT_BYTES_MAX, &mut out).unwrap();
    assert!(out == plain);
    assert!(out.capacity() <= 64 << 20);
}

#[test]
fn zstd_frames_without_a_content_size_and_several_in_a_row_decode() {
    let plain = text(400_000);
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(&plain).unwrap();
    let frame = encoder.finish().unwrap();
    assert_eq!(zstd::zstd_safe::get_frame_content_size(&frame).unwrap(), None);
    let stream = with_header(Codec::ZSTD_FASTEST, &frame);
    assert_eq!(unpacked(Codec::ZSTD_FASTEST, &stream, plain.len()).unwrap(), plain);
    let twice = [&stream[..], &frame].concat();
    assert_eq!(
        unpacked(Codec::ZSTD_FASTEST, &twice, OUTPUT_BYTES_MAX).unwrap(),
        plain.repeat(2)
    );
}

#[test]
fn gzip_members_in_a_row_decode_as_one() {
    let plain = text(10_000);
    let codec = Codec::by_name("pgzip").unwrap();
    let stream = packed(codec, &plain);
    let twice = [&stream[..], &stream[4..]].concat();
    assert_eq!(unpacked(codec, &twice, 20_000).unwrap(), plain.repeat(2));
    assert!(unpacked(codec, &twice, 19_999).unwrap_err().is_damage());
}

#[test]
fn cut_and_continued_streams_are_damage() {
    let plain = text(2_000);
    for codec in supported() {
        let stream = packed(codec, &plain);
        for len in 0..stream.len() {
            let error = unpacked(codec, &stream[..len], plain.len()).unwrap_err();
            assert!(error.is_damage(), "{codec} cut to {len}: {error}");
            assert!(error.what().contains(codec.name()), "{error}");
        }
        let longer = [&stream[..], b"xyz"].concat();
        assert!(
            unpacked(codec, &longer, plain.len()).unwrap_err().is_damage(),
            "{codec}"
        );
    }
}

#[test]
fn a_header_that_is_not_the_indexs_is_damage() {
    let stream = packed(Codec::ZSTD_FASTEST, &text(1000));
    let error = unpacked(Codec::by_id(0x1100).unwrap(), &stream, 1000).unwrap_err();
    assert!(error.is_damage());
    assert!(
        error.what().contains("0x1101") && error.what().contains("zstd (0x1100)"),
        "{error}"
    );
}

#[test]
fn a_stream_without_an_index_is_told_by_its_own_header() {
    let (plain, mut out) = (text(10_000), vec![1]);
    for codec in supported() {
        Decompressor::new()
            .decompress_any(&packed(codec, &plain), plain.len(), &mut out)
            .unwrap();
        assert_eq!(out, plain, "{codec}");
    }
    for short in [&b""[..], b"\0\0\x11"] {
        let error = Decompressor::new().decompress_any(short, 10, &mut out).unwrap_err();
        assert!(error.is_damage() && out.is_empty(), "{error}");
    }
}

#[test]
fn codecs_we_do_not_have_say_so_with_id_and_way_out() {
    for (id, name, way_out) in [(0x1400, "lz4", "v0.22.3")] {
        let codec = Codec::by_id(id).unwrap();
        let read = decompress(id, &with_header(codec, b"stream"), 100, &mut Vec::new()).unwrap_err();
        let written = Compressor::new()
            .compress(codec, 0, &text(1000), &mut Vec::new())
            .unwrap_err();
        let named = name.parse::<CompressionPolicy>().unwrap_err();
        for error in [read, written, named] {
            assert_eq!(error.kind(), Kind::Unsupported);
            for part in [name, &format!("{id:#x}"), way_out] {
                assert!(error.what().contains(part), "{error}");
            }
        }
    }
    for id in [0, 1, 0x1104, 0x1600, u32::MAX] {
        let error = decompress(id, &[0; 100], 100, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.what().contains(&format!("{id:#06x}")), "{error}");
    }
}

#[test]
fn policies_parse_and_print() {
    for name in [
        "none",
        "auto",
        "zstd",
        "zstd-fastest",
        "zstd-better-compression",
        "gzip",
        "pgzip",
        "deflate-default",
        "s2-default",
        "s2-better",
        "s2-parallel-4",
        "s2-parallel-8",
        "pgzip-best-speed",
    ] {
        assert_eq!(name.parse::<CompressionPolicy>().unwrap().to_string(), name);
    }
    let expect = CompressionPolicy::Named {
        codec: Codec::ZSTD_FASTEST,
        level: 1,
    };
    assert_eq!("zstd-fastest".parse::<CompressionPolicy>().unwrap(), expect);
    let error = "snappy".parse::<CompressionPolicy>().unwrap_err();
    assert!(
        error.kind() == Kind::Unsupported && error.what().contains("snappy"),
        "{error}"
    );
}

#[track_caller]
fn check_policy(policy: &str, plain: &[u8], expect: Option<u32>) {
    let mut out = vec![0; plain.len()];
    let found = Compressor::new()
        .apply(policy.parse().unwrap(), AutoLevel::START, plain, &mut out)
        .unwrap();
    assert_eq!(found.map(|c| c.id.get()), expect, "{policy}");
    if let Some(Compressed { id, len }) = found {
        assert_eq!(
            unpacked(Codec::by_id(id.get()).unwrap(), &out[..len], plain.len()).unwrap(),
            plain
        );
    }
}

#[test]
fn auto_compresses_what_its_front_shows_to_shrink() {
    let (text, noise) = (text(1 << 20), noise(1 << 20));
    check_policy("none", &text, None);
    check_policy("zstd", &text, Some(0x1100));
    check_policy("zstd", &noise, None);
    check_policy("auto", &text, Some(0x1101));
    check_policy("auto", &noise, None);
    // Only the front is looked at.
    let front = [&text[..PROBE_BYTES], &noise[..PROBE_BYTES]].concat();
    let back = [&noise[..PROBE_BYTES], &text[..PROBE_BYTES]].concat();
    check_policy("auto", &front, Some(0x1101));
    check_policy("auto", &back, None);
    check_policy("zstd-fastest", &back, Some(0x1101));
    // What is no longer than the front is its own probe, and any saving counts.
    check_policy("auto", &[&noise[..60_000], &[0; 3000]].concat(), Some(0x1101));
    check_policy("auto", b"", None);
}

#[test]
fn the_probe_asks_for_a_tenth() {
    assert_eq!(policy::probe_room(1000), 900);
    let shrinking = |zeros: usize| [vec![0; zeros], noise(PROBE_BYTES - zeros), vec![0; PROBE_BYTES]].concat();
    check_policy("auto", &shrinking(PROBE_BYTES * 8 / 100), None);
    check_policy("auto", &shrinking(PROBE_BYTES * 12 / 100), Some(0x1101));
}

#[test]
fn auto_levels_step_between_their_ends() {
    let steps = |mut level: AutoLevel, step: fn(AutoLevel) -> AutoLevel| {
        std::array::from_fn::<i32, 5, _>(|_| {
            let before = level;
            level = step(level);
            before.get()
        })
    };
    assert_eq!(steps(AutoLevel::START, AutoLevel::stronger), [-3, -1, 1, 3, 3]);
    assert_eq!(steps(AutoLevel::ALL[3], AutoLevel::faster), [3, 1, -1, -3, -3]);
}

proptest! {
    #[test]
    fn any_bytes_decode_to_a_bounded_result(
        body in proptest::collection::vec(any::<u8>(), 0..400),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        limit in 0_usize..5000,
    ) {
        for codec in supported() {
            let mut damaged = packed(codec, &text(3000));
            for (index, byte) in &flips {
                let index = HEADER_BYTES + index.index(damaged.len() - HEADER_BYTES);
                damaged[index] = *byte;
            }
            for stream in [with_header(codec, &body), damaged] {
                if let Ok(out) = unpacked(codec, &stream, limit) {
                    prop_assert!(out.len() <= limit);
                }
            }
        }
    }

    #[test]
    fn what_is_packed_unpacks(plain in proptest::collection::vec(0_u8..4, 0..3000), codec in 0_usize..17) {
        let codec = supported().nth(codec).unwrap();
        let mut out = Vec::new();
        if Compressor::new().compress(codec, codec.level(), &plain, &mut out).unwrap() {
            prop_assert!(out.len() < plain.len());
            prop_assert_eq!(unpacked(codec, &out, plain.len()).unwrap(), plain);
        }
    }
}
