//! Which chunks a file system needs first, guessed from its superblock. A wrong guess costs some order and nothing else.
//!
//! | file system | chunks |
//! |---|---|
//! | any | the first and the last |
//! | ext2, ext3, ext4 | group descriptors; of each group its bit maps and the start of its inode table; the journal |
//! | XFS | the headers of each allocation group; the log |
//!
//! Sources: Documentation/filesystems/ext4 (super.rst, group_descr.rst, ifork.rst) of Linux, fs/xfs/libxfs/xfs_format.h of Linux.

use blockio::{CHUNK_SIZE, ChunkIndex, Extent};

/// Chunks guessed at most: 1 GiB, a few seconds of hydration.
const CHUNKS_MAX: usize = 1024;
/// Of a journal or log, which is read when the volume was in use while the snapshot was taken.
const LOG_BYTES_MAX: u64 = 128 << 20;
/// Groups looked at: ext4 has 8 of them in a GiB, and those behind hold what is written later.
const GROUPS_MAX: u64 = 4096;

/// Gives bytes of the volume, or `None` when they cannot be had.
type Fetch<'a> = dyn FnMut(Extent) -> Option<Vec<u8>> + 'a;

/// The chunks that are needed first of a volume of `size` bytes, each once, in order of need.
pub(super) fn first_chunks(size: u64, fetch: &mut Fetch<'_>) -> Vec<ChunkIndex> {
    let mut guess = Guess {
        size,
        chunks: Vec::new(),
    };
    if size == 0 {
        return guess.chunks;
    }
    guess.add(0, 1);
    guess.add(size - 1, 1);
    if size < 4096 {
        return guess.chunks;
    }
    // Both superblocks lie in here.
    if let Some(head) = fetch(Extent { offset: 0, len: 4096 })
        && ext4(&head, &mut guess, fetch).is_none()
    {
        xfs(&head, &mut guess);
    }
    guess.chunks
}

struct Guess {
    size: u64,
    chunks: Vec<ChunkIndex>,
}

impl Guess {
    /// The chunks of `len` bytes from `offset` on, as far as they are in the volume.
    fn add(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.size);
        if offset >= end {
            return;
        }
        for chunk in Extent::between(offset, end).chunks() {
            if self.chunks.len() >= CHUNKS_MAX {
                return;
            }
            if !self.chunks.contains(&chunk) {
                self.chunks.push(chunk);
            }
        }
    }
}

fn le16(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?).into())
}

fn le32(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?).into())
}

fn be32(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?).into())
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// `None` when it is not ext2, ext3 or ext4.
fn ext4(head: &[u8], guess: &mut Guess, fetch: &mut Fetch<'_>) -> Option<()> {
    let sb = head.get(1024..2048)?;
    if le16(sb, 0x38)? != 0xEF53 {
        return None;
    }
    let shift = le32(sb, 0x18)?;
    if shift > 6 {
        return None; // blocks of 64 KiB are the longest
    }
    let block = 1024u64 << shift;
    let (blocks, first, per_group) = (le32(sb, 0x04)?, le32(sb, 0x14)?, le32(sb, 0x20)?);
    let incompat = le32(sb, 0x60)?;
    let is_64bit = incompat & 0x80 != 0;
    let blocks = if is_64bit {
        blocks | le32(sb, 0x150)? << 32
    } else {
        blocks
    };
    if per_group == 0 || blocks <= first {
        return None;
    }
    let groups = (blocks - first).div_ceil(per_group).min(GROUPS_MAX);
    let desc_len = match is_64bit {
        true => le16(sb, 0xFE)?.clamp(32, 1024),
        false => 32,
    };
    // With meta_bg (0x10) descriptors lie in their groups; the first ones are where all of them are without it.
    let in_table = if incompat & 0x10 != 0 {
        groups.min(block / desc_len)
    } else {
        groups
    };
    let table = Extent {
        offset: (first + 1).checked_mul(block)?,
        len: in_table * desc_len,
    };
    guess.add(table.offset, table.len);
    if table.end() > guess.size {
        return Some(());
    }
    let Some(descriptors) = fetch(table) else {
        return Some(());
    };
    let at = |descriptor: &[u8], low: usize, high: usize| -> Option<u64> {
        let high = if is_64bit && desc_len >= 64 {
            le32(descriptor, high)?
        } else {
            0
        };
        (le32(descriptor, low)? | high << 32).checked_mul(block)
    };
    let desc = usize::try_from(desc_len).ok()?;
    let first_table = descriptors
        .get(..desc)
        .and_then(|descriptor| at(descriptor, 0x08, 0x28));
    journal(sb, block, first_table, guess, fetch);
    for descriptor in descriptors.chunks_exact(desc) {
        for (low, high) in [(0x08, 0x28), (0x00, 0x20), (0x04, 0x24)] {
            if let Some(place) = at(descriptor, low, high) {
                guess.add(place, block);
            }
        }
    }
    Some(())
}

/// The journal of ext4: an inode of the first group whose first extent, or first block, says where it is.
fn journal(sb: &[u8], block: u64, table: Option<u64>, guess: &mut Guess, fetch: &mut Fetch<'_>) -> Option<()> {
    let has_journal = le32(sb, 0x5C)? & 0x4 != 0;
    let (number, inode_len) = (le32(sb, 0xE0)?, le16(sb, 0x58)?);
    if !has_journal || number == 0 || number > 100 || !(128..=4096).contains(&inode_len) {
        return None;
    }
    let inode = Extent {
        offset: table?.checked_add((number - 1) * inode_len)?,
        len: 128,
    };
    if inode.end() > guess.size {
        return None;
    }
    guess.add(inode.offset, inode.len);
    let inode = fetch(inode)?;
    let map = inode.get(0x28..0x64)?;
    let len = le32(&inode, 0x04)?.min(LOG_BYTES_MAX);
    let is_extents = le32(&inode, 0x20)? & 0x8_0000 != 0;
    let start = match is_extents {
        // Header of 12 bytes; an extent in a leaf has its place in 16 and 32 bits.
        true if le16(map, 0)? == 0xF30A && le16(map, 6)? == 0 => le16(map, 12 + 6)? << 32 | le32(map, 12 + 8)?,
        true => return None,
        false => le32(map, 0)?,
    };
    guess.add(start.checked_mul(block)?, len);
    Some(())
}

fn xfs(head: &[u8], guess: &mut Guess) -> Option<()> {
    if head.get(..4)? != b"XFSB" {
        return None;
    }
    let block = be32(head, 4)?;
    let (ag_blocks, ag_count, log_blocks) = (be32(head, 84)?, be32(head, 88)?, be32(head, 96)?);
    let (log_start, root, ag_shift) = (be64(head, 48)?, be64(head, 56)?, *head.get(124)?);
    let inode_shift = *head.get(123)?;
    if !(512..=65536).contains(&block) || ag_shift > 32 || inode_shift > 7 {
        return None;
    }
    let ag_len = ag_blocks.checked_mul(block)?;
    // A block number is an allocation group and a place in it.
    let place = |number: u64| -> Option<u64> {
        let (group, within) = (number >> ag_shift, number & ((1 << ag_shift) - 1));
        group.checked_mul(ag_len)?.checked_add(within * block)
    };
    if log_start > 0 {
        guess.add(place(log_start)?, (log_blocks * block).min(LOG_BYTES_MAX));
    }
    guess.add(place(root >> inode_shift)?, CHUNK_SIZE);
    for group in 0..ag_count.min(GROUPS_MAX) {
        guess.add(group * ag_len, 4 * block);
    }
    Some(())
}

#[cfg(test)]
mod tests;
