//! Tables of partitions: whether a volume begins with one. The kernel reads what is in it.

use std::fmt;

/// A table of partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionTable {
    /// GUID partition table.
    Gpt,
    /// Master boot record.
    Mbr,
}

/// Offset, and type in it, of the four entries of a master boot record.
const ENTRIES: [usize; 4] = [446, 462, 478, 494];
const TYPE: usize = 4;

impl PartitionTable {
    /// Bytes from the start that tell: two blocks of the largest kind.
    pub const HEAD_LEN: usize = 8192;

    /// The table that a volume with these first bytes has.
    ///
    /// A boot sector of FAT or NTFS bears the mark of a master boot record too; it has code where that has its entries, which the
    /// kernel tells apart by their first bytes (block/partitions/msdos.c).
    pub fn in_head(head: &[u8]) -> Option<Self> {
        let at = |from: usize, len: usize| head.get(from..from + len);
        if [512, 4096].iter().any(|block| at(*block, 8) == Some(b"EFI PART")) {
            return Some(Self::Gpt);
        }
        let entry = |from: &usize| at(*from, 16);
        let is_plain = |from: &usize| entry(from).is_some_and(|entry| matches!(entry[0], 0 | 0x80));
        // Its type, its first sector and its length.
        let is_used = |from: &usize| entry(from).is_some_and(|entry| entry[TYPE] != 0 && entry[8..] != [0; 8]);
        let is_marked = at(510, 2) == Some(&[0x55, 0xaa]);
        (is_marked && ENTRIES.iter().all(is_plain) && ENTRIES.iter().any(is_used)).then_some(Self::Mbr)
    }
}

impl fmt::Display for PartitionTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gpt => "GPT",
            Self::Mbr => "MBR",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_told_from_boot_sectors() {
        let mut head = vec![0; PartitionTable::HEAD_LEN];
        assert_eq!(PartitionTable::in_head(&head), None);
        head[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(PartitionTable::in_head(&head), None, "nothing is in it");
        (head[446 + 4], head[446 + 8], head[446 + 13]) = (0x83, 1, 1);
        assert_eq!(PartitionTable::in_head(&head), Some(PartitionTable::Mbr));
        head[462] = 0x33;
        assert_eq!(PartitionTable::in_head(&head), None, "code of a boot sector");
        head[4096..4104].copy_from_slice(b"EFI PART");
        assert_eq!(PartitionTable::in_head(&head), Some(PartitionTable::Gpt));
        for short in [0, 511, 512, 519] {
            assert_eq!(PartitionTable::in_head(&head[..short]), None);
        }
    }
}
