//! What to compress, and how hard: pure decisions.
//!
//! Compression costs several times the CPU of everything else a backup does, so it pays only where the target is slower
//! than the cores granted, and only for data that shrinks. `auto` decides the second per content by a probe: 64 KiB at
//! the fastest level in use tells incompressible data (encrypted, already compressed, random) from the rest at a
//! sixteenth of the price. The first is the mover's to judge; it steps [`AutoLevel`].

use std::fmt;
use std::str::FromStr;

use super::Codec;
use crate::error::{RepoError, Result};

/// Front of a content that is compressed on trial, in bytes: 1/16 of a chunk, and enough for zstd's match finder to
/// meet repetitions.
pub const PROBE_BYTES: usize = 64 << 10;

/// zstd level of the probe. At -3 the ratio is a little above that of S2.
pub const PROBE_LEVEL: i32 = -3;

/// What the probe must save, in percent. Less does not pay for decompressing at every restore.
pub const PROBE_SAVING_PERCENT_MIN: usize = 10;

/// Longest output of a probe of `len` bytes that still saves enough.
pub(super) const fn probe_room(len: usize) -> usize {
    len - len * PROBE_SAVING_PERCENT_MIN / 100
}

/// What the operator wants done with contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompressionPolicy {
    /// Store everything plain. The default of Velero, and the fastest.
    #[default]
    None,
    /// Compress what a probe shows to shrink, with zstd at an [`AutoLevel`]; store the rest plain.
    Auto,
    /// Compress everything with one codec; store plain only what does not shrink.
    Named {
        /// The codec.
        codec: Codec,
        /// Its level; [`Codec::level`] unless someone knows better.
        level: i32,
    },
}

impl FromStr for CompressionPolicy {
    type Err = RepoError;

    /// From `none`, `auto` or Kopia's name of a codec this version writes.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "none" => Ok(Self::None),
            "auto" => Ok(Self::Auto),
            _ => {
                let codec =
                    Codec::by_name(name).map_err(|e| e.context("none, auto or a name kopia knows is needed"))?;
                codec.check_supported()?;
                Ok(Self::Named {
                    codec,
                    level: codec.level(),
                })
            }
        }
    }
}

impl fmt::Display for CompressionPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Auto => "auto",
            Self::Named { codec, .. } => codec.name(),
        })
    }
}

/// A zstd level `auto` may use, stepped by feedback: up while uploads wait for the network, down while workers are what
/// the job waits for.
///
/// | level | text, MiB/cpu-s | ratio | binaries, MiB/cpu-s | ratio |
/// |-------|-----------------|-------|---------------------|-------|
/// | -3    | 525             | 2.77  | 463                 | 1.91  |
/// | -1    | 533             | 2.81  | 372                 | 2.13  |
/// | 1     | 481             | 3.44  | 333                 | 2.44  |
/// | 3     | 390             | 3.59  | 192                 | 2.74  |
///
/// S2 is no level of `auto`: 569 MiB/s at a ratio of 2.35 for the text, 766 at 1.76 for binaries, where zstd -3 makes 456 at
/// 2.77 and 811 at 1.81 on the same core and decodes nearly twice as fast. It serves who names it.
///
/// (1 MiB contents. Text: generated log lines on AMD Zen 5, `examples/crypto_rates.rs`. Binaries: 192 MiB of programs
/// and libraries on Intel Sapphire Rapids. Random data ends at the probe: 2 us per MiB, against 88 for all of it.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AutoLevel(i32);

impl AutoLevel {
    /// Every level, fastest first. Above 3, speed falls by half for a few percent of ratio.
    pub const ALL: [Self; 4] = [Self(-3), Self(-1), Self(1), Self(3)];

    /// Where a job starts: what costs least is right until something shows to be slower than the CPU.
    pub const START: Self = Self::ALL[0];

    /// The zstd level.
    pub const fn get(self) -> i32 {
        self.0
    }

    /// The next stronger level, or this one at the top.
    #[must_use]
    pub fn stronger(self) -> Self {
        Self::ALL.into_iter().find(|level| *level > self).unwrap_or(self)
    }

    /// The next faster level, or this one at the bottom.
    #[must_use]
    pub fn faster(self) -> Self {
        Self::ALL.into_iter().rfind(|level| *level < self).unwrap_or(self)
    }
}
