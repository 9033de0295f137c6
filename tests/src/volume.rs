//! Deterministic disk images: the same bytes on every machine for the same seed and size.
//!
//! An image is a row of 1 MiB blocks, each of one [`BlockKind`]. The bytes of a block follow from the seed, the kind and the
//! position alone, so any part can be made without the parts before it.

mod fill;
mod loop_device;

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

pub use fill::Random;
pub use loop_device::{LoopDevice, LoopOptions};

use crate::{Failure, Result};

/// Bytes in a block, which is also the chunk size of block image objects.
pub const BLOCK_BYTES: usize = 1 << 20;

/// What the bytes of a block look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Incompressible and unique.
    Random,
    /// Rows of words and numbers, like pages of a database: compresses to about a third, unique.
    Records,
    /// One of [`DUPLICATES`] incompressible blocks.
    Duplicate,
    /// All zero; a hole in a sparse file.
    Zero,
}

/// Different blocks among all of kind [`BlockKind::Duplicate`].
pub const DUPLICATES: u64 = 16;

/// Whether zero blocks take space in the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// Zero blocks are written like others.
    Written,
    /// Zero blocks are holes.
    Holes,
}

/// Which kind of block is where.
#[derive(Clone, Debug)]
pub struct Layout {
    seed: u64,
    size: u64,
    blocks: Vec<BlockKind>,
}

/// Longest run of one kind in a mixed image, in blocks: files on a used disk are of such sizes.
const RUN_BLOCKS_MAX: u64 = 32;

impl Layout {
    /// A used disk: about 35 % random, 35 % records, 5 % duplicates and 25 % zero, in runs of 1 to 32 MiB. Small images (up to
    /// 16 blocks) go through all kinds in turn instead.
    pub fn mixed(seed: u64, size: u64) -> Self {
        const TURN: [BlockKind; 4] = [
            BlockKind::Random,
            BlockKind::Records,
            BlockKind::Zero,
            BlockKind::Duplicate,
        ];
        let count = block_count(size);
        if count <= 16 {
            return Self::from_blocks(seed, size, &TURN);
        }
        let mut random = Random::new(seed);
        let mut blocks = Vec::with_capacity(count);
        while blocks.len() < count {
            let kind = match random.below(100) {
                0..35 => BlockKind::Random,
                35..70 => BlockKind::Records,
                70..75 => BlockKind::Duplicate,
                _ => BlockKind::Zero,
            };
            let run = usize_of(1 + random.below(RUN_BLOCKS_MAX)).min(count - blocks.len());
            blocks.extend(std::iter::repeat_n(kind, run));
        }
        Self { seed, size, blocks }
    }

    /// One kind all over.
    pub fn uniform(seed: u64, size: u64, kind: BlockKind) -> Self {
        Self::from_blocks(seed, size, &[kind])
    }

    /// The kinds in `pattern`, again and again. An empty pattern is all zero.
    pub fn from_blocks(seed: u64, size: u64, pattern: &[BlockKind]) -> Self {
        let zero = [BlockKind::Zero];
        let pattern = if pattern.is_empty() { &zero } else { pattern };
        Self {
            seed,
            size,
            blocks: pattern.iter().copied().cycle().take(block_count(size)).collect(),
        }
    }

    /// A nearly empty disk: `data_blocks` blocks of data in runs of 16, spread evenly, zero elsewhere.
    pub fn sparse(seed: u64, size: u64, data_blocks: usize) -> Self {
        const RUN: usize = 16;
        let count = block_count(size);
        let mut blocks = vec![BlockKind::Zero; count];
        let runs = data_blocks.div_ceil(RUN).max(1);
        for i in 0..data_blocks.min(count) {
            let at = (i / RUN) * (count / runs) + i % RUN;
            if let Some(block) = blocks.get_mut(at) {
                *block = if i % 2 == 0 {
                    BlockKind::Random
                } else {
                    BlockKind::Records
                };
            }
        }
        Self { seed, size, blocks }
    }

    /// Bytes of the image. The last block may be a part of one.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The kind of each block.
    pub fn blocks(&self) -> &[BlockKind] {
        &self.blocks
    }

    /// Bytes in blocks that are not zero.
    pub fn data_bytes(&self) -> u64 {
        let zero = |&i: &usize| self.blocks[i] != BlockKind::Zero;
        (0..self.blocks.len())
            .filter(zero)
            .map(|i| self.block_len(i) as u64)
            .sum()
    }

    /// Writes the bytes of block `index` into `out`, which may be shorter than a block.
    pub fn fill_block(&self, index: usize, out: &mut [u8]) {
        let seed = self
            .seed
            .wrapping_mul(0x2545_F491_4F6C_DD1D)
            .wrapping_add(index as u64 * 1_000_003 + 7);
        match self.blocks[index] {
            BlockKind::Random => fill::random(seed, out),
            BlockKind::Records => fill::records(seed, out),
            BlockKind::Duplicate => fill::random(1_234_567 + index as u64 % DUPLICATES, out),
            BlockKind::Zero => out.fill(0),
        }
    }

    /// The whole image in memory; for small ones.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize_of(self.size)];
        for (index, block) in bytes.chunks_mut(BLOCK_BYTES).enumerate() {
            self.fill_block(index, block);
        }
        bytes
    }

    /// Creates or replaces the file at `path` with this image, on stable storage when it returns.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path, zeros: Zeros) -> Result<()> {
        self.write_io(path, zeros)
            .map_err(Failure::at(format!("write image {}", path.display())))
    }

    fn write_io(&self, path: &Path, zeros: Zeros) -> std::io::Result<()> {
        let mut file = File::create(path)?;
        let mut block = vec![0; BLOCK_BYTES];
        for index in 0..self.blocks.len() {
            let block = &mut block[..self.block_len(index)];
            if zeros == Zeros::Holes && self.blocks[index] == BlockKind::Zero {
                file.seek(SeekFrom::Current(block.len().try_into().unwrap_or(i64::MAX)))?;
                continue;
            }
            self.fill_block(index, block);
            file.write_all(block)?;
        }
        file.set_len(self.size)?;
        file.sync_all()
    }

    fn block_len(&self, index: usize) -> usize {
        let start = (index * BLOCK_BYTES) as u64;
        usize_of((self.size - start).min(BLOCK_BYTES as u64))
    }
}

/// An image in a file of its own folder, removed on drop.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
    size: u64,
    _folder: TempDir,
}

/// A changed part of a volume, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// First byte.
    pub offset: u64,
    /// Bytes, never 0.
    pub length: u64,
}

impl Volume {
    /// Writes `layout` into a file named `disk.img`, holes where it is zero.
    ///
    /// # Errors
    /// When the temporary folder cannot hold it.
    pub fn create(layout: &Layout) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(Failure::at("create folder for a volume"))?;
        let path = folder.path().join("disk.img");
        layout.write(&path, Zeros::Holes)?;
        Ok(Self {
            path,
            size: layout.size(),
            _folder: folder,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// All bytes of the file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        fs::read(&self.path).map_err(Failure::at("read volume"))
    }

    /// Overwrites bytes in place.
    ///
    /// # Errors
    /// When the file cannot be written, or `bytes` would make it longer.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        use std::os::unix::fs::FileExt;
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.size) {
            return Err(Failure::new(format!(
                "{} bytes at {offset} do not fit {}",
                bytes.len(),
                self.size
            )));
        }
        let file = OpenOptions::new()
            .write(true)
            .open(&self.path)
            .map_err(Failure::at("open volume"))?;
        file.write_all_at(bytes, offset).map_err(Failure::at("write volume"))
    }

    /// Overwrites `count` different blocks, chosen by `seed`, with random and record blocks in turn.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn change_blocks(&self, seed: u64, count: usize) -> Result<Vec<Change>> {
        change_blocks(&self.path, self.size, seed, count)
    }
}

/// As [`Volume::change_blocks`], for any file of `size` bytes. Changes come sorted and on the block grid.
///
/// # Errors
/// When the file cannot be written.
pub fn change_blocks(path: &Path, size: u64, seed: u64, count: usize) -> Result<Vec<Change>> {
    use std::os::unix::fs::FileExt;
    let total = block_count(size);
    let mut random = Random::new(seed);
    let mut chosen = std::collections::BTreeSet::new();
    while chosen.len() < count.min(total) {
        chosen.insert(usize_of(random.below(total as u64)));
    }
    let layout = Layout::from_blocks(seed ^ 0x5EED, size, &[BlockKind::Random, BlockKind::Records]);
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(Failure::at("open volume"))?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut changes = Vec::with_capacity(chosen.len());
    for index in chosen {
        let block = &mut block[..layout.block_len(index)];
        layout.fill_block(index, block);
        let offset = (index * BLOCK_BYTES) as u64;
        file.write_all_at(block, offset).map_err(Failure::at("write volume"))?;
        changes.push(Change {
            offset,
            length: block.len() as u64,
        });
    }
    file.sync_all().map_err(Failure::at("sync volume"))?;
    Ok(changes)
}

/// The document that `blockferry backup --changed` reads.
pub fn changes_json(volume_size: u64, changes: &[Change]) -> String {
    let changed: Vec<_> = changes
        .iter()
        .map(|change| serde_json::json!({"offset": change.offset, "length": change.length}))
        .collect();
    serde_json::json!({"volumeSize": volume_size, "changed": changed}).to_string()
}

fn block_count(size: u64) -> usize {
    usize_of(size.div_ceil(BLOCK_BYTES as u64))
}

/// Sizes of images that a test holds fit the address space of the 64-bit machines we support.
fn usize_of(value: u64) -> usize {
    usize::try_from(value).expect("64-bit machine")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::sha256;

    /// Changing these digests voids golden data and benchmark comparisons: the images are no longer those of before.
    #[test]
    fn images_are_the_same_on_every_machine() {
        let digest = |layout: Layout| sha256(&layout.bytes());
        assert_eq!(
            digest(Layout::mixed(1, 3 * BLOCK_BYTES as u64 + 512)),
            "9b353c9648fbf7a852497000d5d3465db3129596823ba40fd6f2244a79a3b126"
        );
        assert_eq!(
            digest(Layout::mixed(1, 40 * BLOCK_BYTES as u64)),
            "8f5f84cf2a4d6162a9420f4bfa0d8517fbad7fd34196d2eb7e68258cd0f2c2e6"
        );
    }

    #[test]
    fn a_mixed_image_has_the_promised_shares() {
        let layout = Layout::mixed(42, 4096 * BLOCK_BYTES as u64);
        let percent = |kind| layout.blocks().iter().filter(|&&block| block == kind).count() * 100 / 4096;
        assert!((25..45).contains(&percent(BlockKind::Random)));
        assert!((25..45).contains(&percent(BlockKind::Records)));
        assert!((1..12).contains(&percent(BlockKind::Duplicate)));
        assert!((15..35).contains(&percent(BlockKind::Zero)));
    }

    #[test]
    fn holes_and_written_zeros_read_the_same() {
        use std::os::unix::fs::MetadataExt;
        let layout = Layout::sparse(3, 64 * BLOCK_BYTES as u64 + 100, 3);
        let sparse = Volume::create(&layout).unwrap();
        assert_eq!(sparse.bytes().unwrap(), layout.bytes());
        assert!(fs::metadata(sparse.path()).unwrap().blocks() * 512 <= 4 * BLOCK_BYTES as u64);
        assert_eq!(layout.data_bytes(), 3 * BLOCK_BYTES as u64);
        layout.write(sparse.path(), Zeros::Written).unwrap();
        assert_eq!(sparse.bytes().unwrap(), layout.bytes());
    }

    #[test]
    fn changed_blocks_are_the_reported_ones() {
        let volume = Volume::create(&Layout::mixed(5, 20 * BLOCK_BYTES as u64 + 7)).unwrap();
        let before = volume.bytes().unwrap();
        let changes = volume.change_blocks(9, 6).unwrap();
        let after = volume.bytes().unwrap();
        assert_eq!(changes.len(), 6);
        for (index, (old, new)) in before.chunks(BLOCK_BYTES).zip(after.chunks(BLOCK_BYTES)).enumerate() {
            let reported = changes
                .iter()
                .any(|change| change.offset == (index * BLOCK_BYTES) as u64);
            assert_eq!(old != new, reported, "block {index}");
        }
        let json: serde_json::Value = serde_json::from_str(&changes_json(volume.size(), &changes)).unwrap();
        assert_eq!(json["volumeSize"], volume.size());
        assert_eq!(json["changed"].as_array().unwrap().len(), 6);
    }

    #[test]
    fn writes_past_the_end_are_refused() {
        let volume = Volume::create(&Layout::uniform(1, 1000, BlockKind::Random)).unwrap();
        assert!(volume.write_at(990, &[0; 11]).is_err());
        assert!(volume.write_at(u64::MAX, &[0; 11]).is_err());
        volume.write_at(990, &[9; 10]).unwrap();
        assert_eq!(
            volume.bytes().unwrap()[989..],
            [volume.bytes().unwrap()[989], 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]
        );
    }
}
