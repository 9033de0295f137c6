//! Error correction around sealed bytes: Reed-Solomon shards with a checksum each. Read, and repaired when damaged; never
//! written.
//!
//! Sealed bytes with their length in front (4 bytes, big-endian), padded with zeros, are cut into data shards; parity shards
//! are computed from those. Stored are, without any framing:
//!
//! | part                                   | bytes                                                                   |
//! |----------------------------------------|-------------------------------------------------------------------------|
//! | parity shards, those of all blocks     | CRC-32 of the shard (4, big-endian) and the shard, each                 |
//! | data shards, those of all blocks       | the same; with several blocks the padding at the end is not stored      |
//!
//! A shard whose checksum is wrong counts as missing, and as many shards as there are parity shards can be missing in each
//! block. Sizes follow from the length of what is stored alone (`Layout::of_stored`).
//!
//! No client of Kopia turns this on by itself: `--ecc-overhead-percent` is 0 unless given (kopia,
//! cli/command_repository_create.go), and Velero knows no such option.
//!
//! Source: kopia, repo/ecc/ecc_rs_crc.go and ecc_utils.go.

mod field;
mod solve;

use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::error::{Kind, RepoError, Result};
use solve::Code;

/// The only algorithm there is; `ecc` in the format blob.
pub const ALGORITHM: &str = "REED-SOLOMON-CRC32";

/// Bytes of the length in front of the data, and of the checksum in front of a shard.
const LENGTH_BYTES: usize = 4;
const CRC_BYTES: usize = 4;

/// Shards of short inputs, whatever the percentage.
const SMALL_DATA: usize = 6;
const SMALL_PARITY: usize = 2;

/// Error correction of one repository. Cheap to clone.
#[derive(Clone)]
pub struct Ecc {
    geometry: Geometry,
    codes: Arc<Codes>,
}

/// The two codes of a repository, made when first something is to be repaired: up to 50 ms each.
#[derive(Default)]
struct Codes {
    small: OnceLock<Code>,
    large: OnceLock<Code>,
}

/// Numbers that follow from the percentage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Geometry {
    data: usize,
    parity: usize,
    shard_max: usize,
}

/// How something of a certain length is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    blocks: usize,
    data: usize,
    parity: usize,
    shard: usize,
}

/// Bytes freed of their error correction.
#[derive(Debug, PartialEq, Eq)]
pub struct Corrected {
    /// What had been sealed.
    pub bytes: Vec<u8>,
    /// Shards that were damaged. The data among them were computed anew.
    pub damaged_shards: usize,
}

impl Ecc {
    /// The error correction that `algorithm` and `percent` in the format blob ask for; `None` when they ask for none.
    ///
    /// # Errors
    /// `Unsupported` for a name nobody knows and for a percentage outside 1 to 100.
    pub fn new(algorithm: &str, percent: i64) -> Result<Option<Self>> {
        let unsupported = |what: String| Err(RepoError::new(Kind::Unsupported, what));
        match (algorithm, percent) {
            ("", _) | (_, 0) => Ok(None),
            (ALGORITHM, 1..=100) => Ok(Some(Self {
                geometry: Geometry::of(percent),
                codes: Arc::default(),
            })),
            (ALGORITHM, _) => unsupported(format!("error correction of {percent} %, known are 0 to 100")),
            _ => unsupported(format!("error correction {algorithm:?} is not known to this version")),
        }
    }

    /// What was sealed, from the `stored` bytes, with damaged shards repaired.
    ///
    /// # Errors
    /// `Corrupt` when more is damaged than the parity can repair.
    pub fn correct(&self, stored: &[u8]) -> Result<Corrected> {
        let layout = self.geometry.of_stored(stored.len());
        let unit = CRC_BYTES + layout.shard;
        let parity_len = layout.blocks * layout.parity * unit;
        if stored.len() < parity_len {
            let what = format!(
                "{} bytes are less than the {parity_len} of their error correction",
                stored.len()
            );
            return Err(RepoError::corrupt(what));
        }
        // The padding that is not stored is zeros, and so is the checksum of a shard that is all padding.
        let (parity, data) = stored.split_at(parity_len);
        let mut data = data.to_vec();
        data.resize(layout.blocks * layout.data * unit, 0);
        let stored_data = stored.len() - parity_len;

        let mut bytes = Vec::with_capacity(layout.blocks * layout.data * layout.shard);
        let mut damaged_shards = 0;
        for block in 0..layout.blocks {
            let first = block * layout.data;
            let mut data: Vec<Option<&[u8]>> = (first..first + layout.data)
                .map(|at| match at * unit < stored_data {
                    true => shard(&data, at, layout.shard),
                    false => Some(&data[at * unit + CRC_BYTES..(at + 1) * unit]),
                })
                .collect();
            let first = block * layout.parity;
            let parity: Vec<Option<&[u8]>> = (first..first + layout.parity)
                .map(|at| shard(parity, at, layout.shard))
                .collect();
            let bad = data.iter().chain(&parity).filter(|shard| shard.is_none()).count();
            damaged_shards += bad;
            let repaired;
            if data.contains(&None) {
                if bad > layout.parity {
                    return Err(RepoError::corrupt(format!(
                        "{bad} of {} shards are damaged, error correction repairs {}",
                        layout.data + layout.parity,
                        layout.parity
                    )));
                }
                repaired = self.code(&layout).repair(&data, &parity, layout.shard);
                let missing = data.iter_mut().filter(|shard| shard.is_none());
                missing.zip(&repaired).for_each(|(shard, bytes)| *shard = Some(bytes));
            }
            data.into_iter()
                .flatten()
                .for_each(|shard| bytes.extend_from_slice(shard));
        }
        unwrap(bytes).map(|bytes| Corrected { bytes, damaged_shards })
    }

    fn code(&self, layout: &Layout) -> &Code {
        let code = match layout.data == SMALL_DATA {
            true => &self.codes.small,
            false => &self.codes.large,
        };
        code.get_or_init(|| Code::new(layout.data, layout.parity))
    }
}

impl fmt::Debug for Ecc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ecc({:?})", self.geometry)
    }
}

/// Shard `at` of `shards`, when it has its checksum.
fn shard(shards: &[u8], at: usize, len: usize) -> Option<&[u8]> {
    let unit = &shards[at * (CRC_BYTES + len)..(at + 1) * (CRC_BYTES + len)];
    let (crc, bytes) = unit.split_first_chunk::<CRC_BYTES>()?;
    (crc32fast::hash(bytes) == u32::from_be_bytes(*crc)).then_some(bytes)
}

/// The bytes behind the length that all data shards together begin with.
fn unwrap(mut data: Vec<u8>) -> Result<Vec<u8>> {
    let (head, rest) = data
        .split_first_chunk::<LENGTH_BYTES>()
        .ok_or_else(|| RepoError::corrupt("error correction around no bytes"))?;
    let len = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
    if len > rest.len() {
        let what = format!("error correction around {len} bytes, of which {} are there", rest.len());
        return Err(RepoError::corrupt(what));
    }
    data.truncate(LENGTH_BYTES + len);
    data.drain(..LENGTH_BYTES);
    Ok(data)
}

impl Geometry {
    /// In Kopia's order and precision: the numbers come from truncating single floats.
    fn of(percent: i64) -> Self {
        let (shard_max, shard_float) = match percent {
            1 => (1024, 1024.0),
            2 => (512, 512.0),
            3 => (256, 256.0),
            4..=6 => (128, 128.0),
            _ => (64, 64.0),
        };
        let percent: f32 = u8::try_from(percent).unwrap_or(100).into();
        // What checksums leave of the space asked for.
        let free = (percent - 400.0_f32 / shard_float).max(0.01);
        let parity = share(128.0, free / 100.0, 1, 128);
        let (data, parity) = match parity {
            1 => (share(2.0, 100.0 / free, 128, 254), 2),
            _ => (128, parity),
        };
        Self {
            data,
            parity,
            shard_max,
        }
    }

    /// Longest input (its length included) that is cut into few shards.
    fn small_input_max(&self) -> usize {
        2 * CRC_BYTES * (self.data + self.parity)
    }

    /// Layout of what `stored` bytes hold.
    fn of_stored(&self, stored: usize) -> Layout {
        let unit = |layout: &Layout| (layout.data + layout.parity) * (CRC_BYTES + layout.shard);
        let small = self.small(self.small_input_max().div_ceil(SMALL_DATA));
        let large = self.large(1, self.shard_max);
        let shard = |layout: &Layout| {
            let unit = stored.div_ceil(layout.data + layout.parity);
            unit.max(CRC_BYTES + 1) - CRC_BYTES
        };
        if stored <= unit(&small) {
            self.small(shard(&small))
        } else if stored <= unit(&large) {
            self.large(1, shard(&large))
        } else {
            self.large(stored.div_ceil(unit(&large)), self.shard_max)
        }
    }

    fn small(&self, shard: usize) -> Layout {
        Layout {
            blocks: 1,
            data: SMALL_DATA,
            parity: SMALL_PARITY,
            shard,
        }
    }

    fn large(&self, blocks: usize, shard: usize) -> Layout {
        Layout {
            blocks,
            data: self.data,
            parity: self.parity,
            shard,
        }
    }
}

/// The whole part of `count * factor`, kept between two bounds.
fn share(count: f64, factor: f32, min: u16, max: u16) -> usize {
    let exact = count * f64::from(factor);
    let whole = (min..=max).rev().find(|n| f64::from(*n) <= exact);
    usize::from(whole.unwrap_or(min))
}

#[cfg(test)]
mod tests;
