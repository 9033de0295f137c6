//! `blockferry bench`: what this host can do, and what a backup would take.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockio::{
    BufPool, CHUNK_BYTES, CHUNK_SIZE, Cancel, ChunkIndex, Device, Engine, EngineKind, EngineOptions, OpKind,
    OpenOptions, Request, is_zero,
};
use clap::Args;
use repo::compress::{Codec, Compressor};
use repo::content::ContentFormat;
use repo::crypto::{Cipher, CipherAlgorithm, HashAlgorithm, Hasher};
use serde::Serialize;

use super::output::{Output, table};
use super::size::{show_rate, show_size};
use super::{Global, signals};
use crate::error::{JobError, Result};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Device or file to read; nothing is written to it
    device: Option<PathBuf>,
    /// Bytes of it to read at most
    #[arg(long, default_value = "1GiB", value_parser = super::size::parse_size, value_name = "SIZE")]
    read: u64,
    /// Way to the device: auto, uring, pread
    #[arg(long, default_value = "auto", value_name = "ENGINE")]
    engine: EngineKind,
}

/// Time spent on each primitive: long enough for a stable mean, short enough for a dozen of them.
const SPAN: Duration = Duration::from_millis(200);

/// Reads under way.
const DEPTH: usize = 16;

/// One line of the result: bytes a second of one thread.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Rate {
    name: String,
    bytes_per_second: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    rates: Vec<Rate>,
    device: Option<DeviceRate>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeviceRate {
    path: String,
    size: u64,
    bytes_read: u64,
    read_ms: u64,
    /// What a full backup without compression would take with one worker, in milliseconds: the slower of device and CPU.
    predicted_backup_ms: u64,
}

pub(crate) fn run(arguments: &Arguments, _global: &Global, output: &Output) -> Result<ExitCode> {
    let cancel = signals::cancel_on_signal()?;
    let rates = primitives()?;
    let device = match &arguments.device {
        None => None,
        Some(path) => {
            let device = Arc::new(Device::open(path, &OpenOptions::read())?);
            let started = Instant::now();
            let bytes_read = read_first(&device, arguments.read, arguments.engine, &cancel)?;
            let read_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
            let size = device.geometry().size;
            let seconds_per_byte = |name: &str| {
                rates
                    .iter()
                    .find(|r| r.name.starts_with(name))
                    .map_or(0, |r| u128::from(size) * 1000 / u128::from(r.bytes_per_second.max(1)))
            };
            let cpu_ms = seconds_per_byte("BLAKE2B-256-128") + seconds_per_byte("AES256-GCM");
            let device_ms = u128::from(size) * u128::from(read_ms) / u128::from(bytes_read.max(1));
            let predicted_backup_ms = u64::try_from(cpu_ms.max(device_ms)).unwrap_or(u64::MAX);
            Some(DeviceRate {
                path: path.display().to_string(),
                size,
                bytes_read,
                read_ms,
                predicted_backup_ms,
            })
        }
    };
    output.print(&Document { rates, device }, text);
    Ok(ExitCode::SUCCESS)
}

fn primitives() -> Result<Vec<Rate>> {
    let chunks: Vec<Vec<u8>> = (0..8u64).map(noise).collect();
    let texts: Vec<u8> = b"the quick brown fox jumps over the lazy dog; "
        .iter()
        .copied()
        .cycle()
        .take(CHUNK_BYTES)
        .collect();
    let all: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
    let mut rates = Vec::new();
    for algorithm in [
        HashAlgorithm::Blake2b256_128,
        HashAlgorithm::Blake3_256_128,
        HashAlgorithm::HmacSha256,
    ] {
        let hasher = Hasher::new(algorithm, &[7; 32])?;
        let mut digests = Vec::new();
        rates.push(rate(
            &format!("{algorithm} ({})", hasher.kernel()),
            all.len() * CHUNK_BYTES,
            || {
                digests.clear();
                hasher.hash_many(&all, &mut digests);
            },
        ));
    }
    for algorithm in CipherAlgorithm::ALL {
        let cipher = Cipher::new(algorithm, &[7; 32])?;
        let mut sealed = vec![0; ContentFormat::sealed_len(CHUNK_BYTES)];
        rates.push(rate(&algorithm.to_string(), CHUNK_BYTES, || {
            cipher.seal_into(&[7; 16], &chunks[0], &mut sealed)
        }));
    }
    let mut out = Vec::new();
    for name in ["zstd-fastest", "zstd"] {
        let codec = Codec::by_name(name)?;
        let mut compressor = Compressor::new();
        let mut failed = None;
        rates.push(rate(&format!("{name} (text)"), CHUNK_BYTES, || {
            failed = compressor
                .compress(codec, codec.level(), &texts, &mut out)
                .err()
                .or(failed.take());
        }));
        failed.map_or(Ok(()), Err)?;
    }
    let zeros = vec![0; CHUNK_BYTES];
    rates.push(rate("zero test", CHUNK_BYTES, || {
        assert!(is_zero(std::hint::black_box(&zeros)))
    }));
    Ok(rates)
}

/// One chunk without pattern.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..CHUNK_BYTES / 8).flat_map(|_| next()).collect()
}

fn rate(name: &str, bytes: usize, mut work: impl FnMut()) -> Rate {
    work(); // warms caches and tables
    let started = Instant::now();
    let mut done = 0u128;
    while started.elapsed() < SPAN {
        work();
        done += bytes as u128;
    }
    let per_second = done * 1_000_000_000 / started.elapsed().as_nanos().max(1);
    Rate {
        name: name.into(),
        bytes_per_second: u64::try_from(per_second).unwrap_or(u64::MAX),
    }
}

/// Reads all of `device`.
pub(super) fn read_all(device: &Arc<Device>, engine: EngineKind, cancel: &Cancel) -> Result<u64> {
    read_first(device, u64::MAX, engine, cancel)
}

/// Reads the first `most` bytes of `device` in whole chunks and returns how many those were.
fn read_first(device: &Arc<Device>, most: u64, engine: EngineKind, cancel: &Cancel) -> Result<u64> {
    let chunks = device.geometry().chunks().min(most.div_ceil(CHUNK_SIZE));
    let pool = BufPool::new(CHUNK_BYTES, DEPTH)?;
    let mut engine = Engine::open(
        std::slice::from_ref(device),
        std::slice::from_ref(&pool),
        &EngineOptions {
            kind: engine,
            ..EngineOptions::default()
        },
    )?;
    let mut completions = Vec::new();
    let mut next = 0;
    while next < chunks || engine.in_flight() > 0 {
        if cancel.is_cancelled() {
            return Err(JobError::Cancelled);
        }
        while next < chunks {
            let Some(buf) = pool.try_take() else { break };
            let request = Request {
                device: 0,
                kind: OpKind::Read,
                offset: ChunkIndex::new(next).offset(),
                len: CHUNK_BYTES,
                buf: Some(buf),
                tag: next,
            };
            engine
                .push(request)
                .map_err(|_| JobError::Panic("a ring with fewer entries than buffers".into()))?;
            next += 1;
        }
        engine.submit()?;
        engine.wait(1, &mut completions)?;
        for completion in completions.drain(..) {
            completion.result?;
        }
    }
    Ok((chunks * CHUNK_SIZE).min(device.geometry().size))
}

fn text(d: &Document) -> String {
    let mut rows: Vec<Vec<String>> = d
        .rates
        .iter()
        .map(|r| vec![r.name.clone(), show_rate(r.bytes_per_second, 1000)])
        .collect();
    if let Some(device) = &d.device {
        rows.push(vec![
            format!("read {}", device.path),
            show_rate(device.bytes_read, device.read_ms),
        ]);
        let seconds = Duration::from_millis(device.predicted_backup_ms).as_secs_f64();
        rows.push(vec![
            "full backup, predicted".into(),
            format!(
                "{seconds:.1} s for {}, one worker, no compression",
                show_size(device.size)
            ),
        ]);
    }
    format!("one thread each\n{}", table(&rows))
}
