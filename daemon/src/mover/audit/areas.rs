//! Where a file system keeps its metadata, as its superblock tells: places worth a look by the audit. A hint, never relied on.

use blockio::{CHUNK_SIZE, ChunkIndex};

/// First bytes of the volume that [`areas`] looks at: the superblocks of ext4 and XFS are in them.
pub(crate) const HEAD_LEN: usize = 4096;

/// Most places named: with the default budget a volume of 400 GiB looks at so many in a run.
const AREAS_MAX: usize = 1024;

/// Chunks of metadata of the file system whose volume of `size` bytes begins with `head`, the most important first; from another start
/// for another `turn`, so that a budget smaller than their number gets to all. Empty for what is not known.
pub(crate) fn areas(head: &[u8], size: u64, turn: u64) -> Vec<ChunkIndex> {
    let groups = ext4(head).or_else(|| xfs(head));
    let Some((group, first)) = groups.filter(|(group, _)| *group > 0) else {
        return Vec::new();
    };
    let count = size.div_ceil(group);
    (0..count.min(AREAS_MAX as u64))
        .map(|at| (turn.wrapping_mul(AREAS_MAX as u64).wrapping_add(at)) % count)
        .map(|at| at.saturating_mul(group).saturating_add(first))
        .filter(|offset| *offset < size)
        .map(|offset| ChunkIndex::new(offset / CHUNK_SIZE))
        .collect()
}

/// Bytes between two sets of bitmaps and inode tables, and where in each the first is. ext4 packs those of 16 block groups together
/// (flex_bg), or keeps them in each group (Linux, Documentation/filesystems/ext4/super.rst).
fn ext4(head: &[u8]) -> Option<(u64, u64)> {
    const SUPERBLOCK: usize = 1024;
    let u32_at = |at: usize| {
        let bytes = head.get(SUPERBLOCK + at..SUPERBLOCK + at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let magic = head.get(SUPERBLOCK + 0x38..SUPERBLOCK + 0x3A)?;
    if magic != [0x53, 0xEF] {
        return None;
    }
    let block = 1024u64.checked_shl(u32_at(0x18)?).filter(|block| *block <= 64 << 10)?;
    let blocks_per_group = u64::from(u32_at(0x20)?);
    let log_groups_per_flex = *head.get(SUPERBLOCK + 0x174)?;
    let flex = 1u64
        .checked_shl(log_groups_per_flex.into())
        .filter(|flex| *flex <= 1 << 16)?;
    Some((block.checked_mul(blocks_per_group)?.checked_mul(flex)?, 0))
}

/// XFS: each allocation group begins with its superblock and the roots of its trees (Linux, fs/xfs/libxfs/xfs_format.h).
fn xfs(head: &[u8]) -> Option<(u64, u64)> {
    if head.get(..4)? != b"XFSB" {
        return None;
    }
    let u32_at = |at: usize| Some(u32::from_be_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let block = u64::from(u32_at(4)?);
    let blocks_per_group = u64::from(u32_at(84)?);
    Some((block.checked_mul(blocks_per_group)?, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn ext4_head(log_block: u32, blocks_per_group: u32, log_flex: u8) -> Vec<u8> {
        let mut head = vec![0; HEAD_LEN];
        head[1024 + 0x38..][..2].copy_from_slice(&[0x53, 0xEF]);
        head[1024 + 0x18..][..4].copy_from_slice(&log_block.to_le_bytes());
        head[1024 + 0x20..][..4].copy_from_slice(&blocks_per_group.to_le_bytes());
        head[1024 + 0x174] = log_flex;
        head
    }

    #[test]
    fn the_groups_of_ext4_and_xfs_are_found() {
        let found = areas(&ext4_head(2, 32_768, 4), 10 * GIB, 0);
        let expect: Vec<_> = (0..5).map(|at| ChunkIndex::new(at * 2048)).collect();
        assert_eq!(found, expect, "a flex group of 4 KiB blocks is 2 GiB");

        let mut head = vec![0; HEAD_LEN];
        head[..4].copy_from_slice(b"XFSB");
        head[4..8].copy_from_slice(&4096u32.to_be_bytes());
        head[84..88].copy_from_slice(&262_144u32.to_be_bytes());
        let expect: Vec<_> = (0..4).map(|at| ChunkIndex::new(at * 1024)).collect();
        assert_eq!(areas(&head, 4 * GIB, 0), expect);
    }

    #[test]
    fn what_is_not_known_has_none() {
        assert!(areas(&[0; HEAD_LEN], GIB, 0).is_empty());
        assert!(areas(&[], GIB, 0).is_empty());
        assert!(areas(&ext4_head(2, 0, 4), GIB, 0).is_empty());
        assert!(areas(&ext4_head(99, 32_768, 4), GIB, 0).is_empty());
    }

    proptest! {
        #[test]
        fn no_superblock_leads_out_of_the_volume_or_to_many_places(
            log_block: u32, blocks: u32, log_flex: u8, size in 1u64..u64::MAX, turn: u64,
        ) {
            let found = areas(&ext4_head(log_block % 8, blocks, log_flex), size, turn);
            prop_assert!(found.len() <= AREAS_MAX);
            prop_assert!(found.iter().all(|chunk| chunk.offset() < size));
        }
    }
}
