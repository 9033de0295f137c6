//! Bytes of an index blob. All integers are big-endian; nothing is aligned.
//!
//! Source: kopia, repo/content/index/index_v1.go and index_v2.go.

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bit of the pack offset field that marks a deleted content; the other 31 are the offset.
pub(super) const DELETED: u32 = 1 << 31;

/// What sealing adds to a plaintext. Version 1 does not store the original length.
pub(super) const SEAL_OVERHEAD: u32 = 28;

/// Value of `key_len` that marks an empty version 1 index.
pub(super) const KEY_LEN_EMPTY: u8 = 255;

/// Head of version 2. After it: `entry_count` rows (key, [`ValueV2`], 0 to 3 bytes of [`ExtraV2`]) in strictly ascending
/// key order, `pack_count` [`PackRecord`]s, `format_count` [`FormatRecord`]s, pack names, and bytes of no meaning.
///
/// | offset | bytes | field          | meaning                                          |
/// |--------|-------|----------------|--------------------------------------------------|
/// | 0      | 1     | `version`      | 2                                                |
/// | 1      | 1     | `key_len`      | bytes of a key: prefix byte and hash             |
/// | 2      | 2     | `value_len`    | bytes of a value, 16 to 19                       |
/// | 4      | 4     | `entry_count`  | rows                                             |
/// | 8      | 4     | `pack_count`   | pack records                                     |
/// | 12     | 1     | `format_count` | format records                                   |
/// | 13     | 4     | `base_time`    | unix seconds added to each time; Kopia writes 0  |
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct HeaderV2 {
    pub(super) version: u8,
    pub(super) key_len: u8,
    pub(super) value_len: U16,
    pub(super) entry_count: U32,
    pub(super) pack_count: U32,
    pub(super) format_count: u8,
    pub(super) base_time: U32,
}
const _: () = assert!(size_of::<HeaderV2>() == 17);

/// Always present part of a version 2 value.
///
/// | offset | bytes | field          | meaning                                   |
/// |--------|-------|----------------|-------------------------------------------|
/// | 0      | 4     | `time`         | unix seconds minus the base time          |
/// | 4      | 4     | `offset`       | bit 31 deleted, bits 0..=30 pack offset   |
/// | 8      | 3     | `original_low` | original length, bits 0..=23              |
/// | 11     | 3     | `packed_low`   | packed length, bits 0..=23                |
/// | 14     | 2     | `pack_low`     | pack number, bits 0..=15                  |
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct ValueV2 {
    pub(super) time: U32,
    pub(super) offset: U32,
    pub(super) original_low: [u8; 3],
    pub(super) packed_low: [u8; 3],
    pub(super) pack_low: U16,
}
const _: () = assert!(size_of::<ValueV2>() == 16);

/// Rest of a version 2 value; as many of its bytes as the value length leaves, the others are zero.
///
/// | offset | bytes | field          | meaning                                                                       |
/// |--------|-------|----------------|-------------------------------------------------------------------------------|
/// | 16     | 1     | `format`       | format number                                                                 |
/// | 17     | 1     | `pack_high`    | pack number, bits 16..=23                                                     |
/// | 18     | 1     | `lengths_high` | high nibble: original length, low nibble: packed length, bits 24..=27 of each |
#[derive(Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct ExtraV2 {
    pub(super) format: u8,
    pub(super) pack_high: u8,
    pub(super) lengths_high: u8,
}
const _: () = assert!(size_of::<ExtraV2>() == 3);

/// Shortest and longest version 2 value.
pub(super) const VALUE_V2_MIN: usize = size_of::<ValueV2>();
pub(super) const VALUE_V2_MAX: usize = size_of::<ValueV2>() + size_of::<ExtraV2>();

/// One pack of a version 2 index.
///
/// | offset | bytes | field         | meaning                              |
/// |--------|-------|---------------|--------------------------------------|
/// | 0      | 1     | `name_len`    | bytes of the name                    |
/// | 1      | 4     | `name_offset` | of the name, from the index' start   |
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct PackRecord {
    pub(super) name_len: u8,
    pub(super) name_offset: U32,
}
const _: () = assert!(size_of::<PackRecord>() == 5);

/// One format of a version 2 index.
///
/// | offset | bytes | field            | meaning                              |
/// |--------|-------|------------------|--------------------------------------|
/// | 0      | 4     | `compression`    | header id; 0 = none                  |
/// | 4      | 1     | `format_version` | of the repository that wrote it      |
/// | 5      | 1     | `encryption_key` | 0: no other key was ever defined     |
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct FormatRecord {
    pub(super) compression: U32,
    pub(super) format_version: u8,
    pub(super) encryption_key: u8,
}
const _: () = assert!(size_of::<FormatRecord>() == 6);

/// Head of version 1. After it: `entry_count` rows (key, [`ValueV1`]) in strictly ascending key order, pack names, and
/// bytes of no meaning.
///
/// | offset | bytes | field         | meaning                                                  |
/// |--------|-------|---------------|----------------------------------------------------------|
/// | 0      | 1     | `version`     | 1                                                        |
/// | 1      | 1     | `key_len`     | bytes of a key: prefix byte and hash; 255 in an empty one |
/// | 2      | 2     | `value_len`   | 20                                                       |
/// | 4      | 4     | `entry_count` | rows                                                     |
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct HeaderV1 {
    pub(super) version: u8,
    pub(super) key_len: u8,
    pub(super) value_len: U16,
    pub(super) entry_count: U32,
}
const _: () = assert!(size_of::<HeaderV1>() == 8);

/// Value of version 1. Contents are not compressed; the original length is [`SEAL_OVERHEAD`] less than the packed one.
///
/// | offset | bytes | field            | meaning                                   |
/// |--------|-------|------------------|-------------------------------------------|
/// | 0      | 6     | `time`           | unix seconds                              |
/// | 6      | 1     | `format_version` | of the repository that wrote it           |
/// | 7      | 1     | `name_len`       | bytes of the pack name                    |
/// | 8      | 4     | `name_offset`    | of the pack name, from the index' start   |
/// | 12     | 4     | `offset`         | bit 31 deleted, bits 0..=30 pack offset   |
/// | 16     | 4     | `packed_len`     | packed length                             |
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct ValueV1 {
    pub(super) time_high: U16,
    pub(super) time_low: U32,
    pub(super) format_version: u8,
    pub(super) name_len: u8,
    pub(super) name_offset: U32,
    pub(super) offset: U32,
    pub(super) packed_len: U32,
}
const _: () = assert!(size_of::<ValueV1>() == 20);

/// The 24-bit number in three big-endian bytes.
pub(super) fn u24(bytes: [u8; 3]) -> u32 {
    u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]])
}

/// The low 24 bits of `n`, big-endian.
pub(super) fn low24(n: u32) -> [u8; 3] {
    let [_, a, b, c] = n.to_be_bytes();
    [a, b, c]
}

/// Bits 24..=27 of `n`. Bits above are lost; who writes checks [`LENGTH_END`](super::limits::LENGTH_END) before.
pub(super) fn nibble24(n: u32) -> u8 {
    n.to_be_bytes()[0] & 0x0f
}
