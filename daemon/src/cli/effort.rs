//! How hard a job works: threads, bandwidth, way to the device. The same flags wherever they apply.

use blockio::EngineKind;
use clap::Args;

use super::size::parse_size;

/// Threads of a job.
#[derive(Args)]
pub(crate) struct Workers {
    /// Threads that hash, encrypt and decrypt [default: the host's cores, at most 4]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64), value_name = "N")]
    workers: Option<u16>,
}

/// Flags of a job that moves a volume.
#[derive(Args)]
pub(crate) struct Effort {
    #[command(flatten)]
    pub(crate) workers: Workers,
    /// Bytes of the volume a second at most, such as 100MiB
    #[arg(long, value_parser = parse_size, value_name = "RATE")]
    pub(crate) limit: Option<u64>,
    /// Way to the device: auto, uring, pread
    #[arg(long, default_value = "auto", value_name = "ENGINE")]
    pub(crate) engine: EngineKind,
}

/// Workers when none are asked for: one hashes 2 to 7 GiB/s, so four are past any single device.
const WORKERS_MAX: usize = 4;

impl Workers {
    /// As many as were asked for, or the default.
    pub(crate) fn count(&self) -> usize {
        self.workers.map_or_else(default_workers, usize::from)
    }
}

/// Workers when none are asked for.
pub(crate) fn default_workers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    cores.min(WORKERS_MAX)
}
