//! How hard a job works: threads, bandwidth, way to the device. The same flags wherever they apply.

use std::num::NonZeroU64;

use blockio::EngineKind;
use clap::Args;
use repo::blob::Limits;

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

/// Limits of what goes to and from the repository's storage.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Storage")]
pub(crate) struct Storage {
    /// Bytes a second sent to the repository at most, such as 50MiB
    #[arg(long, global = true, value_parser = parse_rate, value_name = "RATE")]
    limit_upload: Option<NonZeroU64>,
    /// Bytes a second received from the repository at most
    #[arg(long, global = true, value_parser = parse_rate, value_name = "RATE")]
    limit_download: Option<NonZeroU64>,
    /// Requests a second at most
    #[arg(long, global = true, value_name = "N")]
    limit_requests: Option<NonZeroU64>,
    /// Requests of one direction in flight at most [default: found out by their times]
    #[arg(long, global = true, value_parser = clap::value_parser!(u16).range(1..=256), value_name = "N")]
    pub(crate) in_flight: Option<u16>,
}

impl Storage {
    /// The arguments that say the same.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let rates = [
            ("--limit-upload", self.limit_upload.map(NonZeroU64::get)),
            ("--limit-download", self.limit_download.map(NonZeroU64::get)),
            ("--limit-requests", self.limit_requests.map(NonZeroU64::get)),
            ("--in-flight", self.in_flight.map(u64::from)),
        ];
        let given = rates
            .into_iter()
            .filter_map(|(flag, value)| Some([flag.to_owned(), value?.to_string()]));
        given.flatten().collect()
    }

    /// As the storage layer takes them.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            upload: self.limit_upload,
            download: self.limit_download,
            requests: self.limit_requests,
        }
    }
}

fn parse_rate(text: &str) -> Result<NonZeroU64, String> {
    NonZeroU64::new(parse_size(text)?).ok_or_else(|| "a rate of nothing; leave the limit out".into())
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
