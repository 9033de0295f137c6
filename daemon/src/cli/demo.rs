//! `blockferry demo`: the main job on a sample volume, measured.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Instant;

use blockio::{BlockMap, ChunkIndex, Device, EngineKind, Geometry, OpenOptions, Progress};
use clap::Args;
use repo::Repository;
use repo::blob::{BlobStore, FsStore};
use repo::compress::CompressionPolicy;
use repo::format::CreateOptions;
use repo::snapshot::Source;
use serde::Serialize;

use super::effort::default_workers;
use super::output::{Output, peak_rss_bytes, table};
use super::size::{parse_size, show_rate, show_size};
use super::{Global, image, progress, signals};
use crate::error::{JobError, Result};
use crate::mover::backup::{BackupOptions, Care, Changes, Listed, backup};
use crate::mover::restore::{RestoreOptions, Scope, restore};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Where to work; what is made there is deleted at the end [default: the directory for temporary files]
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
    /// Size of the sample volume
    #[arg(long, default_value = "1GiB", value_parser = parse_size, value_name = "SIZE")]
    size: u64,
}

/// Password of the demo's repository, which lives as long as the demo.
const PASSWORD: &str = "demo";

/// Smallest sample volume: below it a file system has no room for files.
const SIZE_MIN: u64 = 64 << 20;

/// Clock ticks a second in /proc/PID/stat; the kernel's interface fixes it at 100 (USER_HZ, include/asm-generic/param.h).
const TICKS_PER_SECOND: u64 = 100;

/// What the demo measured. Bytes, milliseconds.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Measured {
    volume_size: u64,
    volume_content: &'static str,
    device_read_ms: u64,
    backup_ms: u64,
    backup_cpu_ms: u64,
    bytes_new: u64,
    bytes_zero: u64,
    bytes_stored: u64,
    increment_ms: u64,
    increment_bytes_read: u64,
    increment_bytes_new: u64,
    audited_blocks: u64,
    restore_ms: u64,
    bytes_written: u64,
    equal: bool,
    engine: String,
    hash_kernel: &'static str,
    peak_rss_bytes: u64,
    repository_files: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    if arguments.size < SIZE_MIN {
        return Err(JobError::Usage(format!("--size below {}", show_size(SIZE_MIN))));
    }
    let cancel = signals::cancel_on_signal()?;
    let base = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let folder = tempfile::Builder::new()
        .prefix("blockferry-demo-")
        .tempdir_in(&base)
        .map_err(|e| failed("make a directory in", &base, &e))?;
    let say = |text: &str| {
        if !output.is_json() {
            eprintln!("{text}");
        }
    };
    let (volume, copy, place) = (
        folder.path().join("volume.img"),
        folder.path().join("restored.img"),
        folder.path().join("repository"),
    );

    say(&format!("1. a sample volume of {}", show_size(arguments.size)));
    let volume_content = make_volume(folder.path(), &volume, arguments.size)?;
    let device = Arc::new(Device::open(&volume, &OpenOptions::read())?);
    let device_read_ms = read_rate(&device, &cancel)?;

    say(&format!("2. a Kopia repository in {}", place.display()));
    let store: Arc<dyn BlobStore> = Arc::new(FsStore::create(&place)?);
    Repository::create(&*store, PASSWORD, &CreateOptions::default())?;
    let repository = Repository::open(store, PASSWORD)?;

    say("3. backup");
    let options = backup_options(&volume);
    let (cpu, steps) = (cpu_ms(), Progress::new());
    let display = progress::Display::start(global, "backup", &steps);
    let report = backup(&repository, &device, &options, &cancel, &steps);
    drop(display);
    let report = report?;
    let backup_cpu_ms = cpu_ms() - cpu;
    let repository_files = layout(&place).map_err(|e| failed("list", &place, &e))?;
    say(&repository_files
        .iter()
        .map(|line| format!("     {line}\n"))
        .collect::<String>());

    say("4. one block in a hundred changes: an increment reads those, and a sample of the rest");
    let map = change_blocks(&volume, device.geometry()).map_err(|e| failed("change", &volume, &e))?;
    let options = BackupOptions {
        changes: Changes {
            changed: Some(Listed {
                origin: "demo",
                volume_size: arguments.size,
                map,
            }),
            ..Changes::default()
        },
        ..options
    };
    let second = backup(&repository, &device, &options, &cancel, &Progress::new())?;

    say("5. restore to a second volume, read back and compared");
    let snapshot = image::find_snapshot(&repository.snapshots()?, &second.snapshot.to_string())?;
    let source = repository.image(&snapshot)?;
    let target = Arc::new(Device::create_file(&copy, source.size, false)?);
    let workers = default_workers();
    let options = RestoreOptions {
        scope: Scope::Full,
        workers,
        engine: EngineKind::Auto,
        limit: None,
        verify: false,
        target_is_zero: true,
        salvage: false,
        zero_rest: false,
        discard: false,
        allow_smaller: false,
        faults: None,
    };
    let steps = Progress::new();
    let display = progress::Display::start(global, "restore", &steps);
    let restored = restore(&repository, &source, &target, &options, &cancel, &steps);
    drop(display);
    let restored = restored?;
    let equal = same_bytes(&volume, &copy).map_err(|e| failed("compare with", &copy, &e))?;

    let measured = Measured {
        volume_size: arguments.size,
        volume_content,
        device_read_ms,
        backup_ms: report.duration_ms,
        backup_cpu_ms,
        bytes_new: report.new_bytes,
        bytes_zero: report.zero_bytes,
        bytes_stored: report.totals.stored_bytes,
        increment_ms: second.duration_ms,
        increment_bytes_read: second.read_bytes,
        increment_bytes_new: second.new_bytes,
        audited_blocks: second.audited_chunks,
        restore_ms: restored.duration_ms,
        bytes_written: restored.written_bytes,
        equal,
        engine: report.engine.kind.to_string(),
        hash_kernel: report.hash_kernel,
        peak_rss_bytes: peak_rss_bytes(),
        repository_files,
    };
    folder
        .close()
        .map_err(|e| failed("delete the demo's files in", &base, &e))?;
    output.print(&measured, text);
    match equal {
        true => Ok(ExitCode::SUCCESS),
        false => Err(JobError::Damage("the restored volume differs from the original".into())),
    }
}

fn failed(verb: &str, path: &Path, e: &io::Error) -> JobError {
    JobError::Usage(format!("{verb} {}: {e}", path.display()))
}

fn backup_options(volume: &Path) -> BackupOptions {
    BackupOptions {
        source: Source {
            host: image::host_name(),
            user: image::user_name(),
            path: volume.display().to_string(),
        },
        compression: CompressionPolicy::None,
        workers: default_workers(),
        engine: EngineKind::Auto,
        limit: None,
        change_id: None,
        volume_id: None,
        tags: std::collections::BTreeMap::new(),
        changes: Changes::default(),
        care: Care::default(),
        faults: None,
    }
}

/// Writes into one block of a hundred, at least four; returns which.
fn change_blocks(volume: &Path, geometry: Geometry) -> io::Result<BlockMap> {
    use std::os::unix::fs::FileExt;
    let file = File::options().write(true).open(volume)?;
    let mut map = BlockMap::new(geometry.chunks());
    let step = usize::try_from((geometry.chunks() / 4).clamp(1, 100)).unwrap_or(1);
    for chunk in (0..geometry.chunks()).step_by(step) {
        let chunk = ChunkIndex::new(chunk);
        file.write_all_at(&chunk.get().to_le_bytes(), geometry.chunk_extent(chunk).offset + 4000)?;
        map.set(chunk);
    }
    file.sync_data()?;
    Ok(map)
}

/// Fills `volume`: an ext4 file system with this host's programs where mkfs is present, otherwise structured records.
fn make_volume(folder: &Path, volume: &Path, size: u64) -> Result<&'static str> {
    let file = File::create(volume).map_err(|e| failed("create", volume, &e))?;
    file.set_len(size).map_err(|e| failed("size", volume, &e))?;
    let files = folder.join("files");
    copy_programs(&files, size / 2).map_err(|e| failed("fill", &files, &e))?;
    let mkfs = ["mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"]
        .iter()
        .find(|program| {
            let mut command = Command::new(program);
            let made = command
                .args(["-q", "-F", "-d"])
                .arg(&files)
                .arg(volume)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            made.is_ok_and(|status| status.success())
        });
    fs::remove_dir_all(&files).map_err(|e| failed("delete", &files, &e))?;
    let content = match mkfs {
        Some(_) => "an ext4 file system with programs of this host",
        None => {
            write_records(&file, size).map_err(|e| failed("write", volume, &e))?;
            "records, noise and zeros"
        }
    };
    file.sync_all().map_err(|e| failed("sync", volume, &e))?;
    Ok(content)
}

/// Copies programs and libraries of this host, `most` bytes of them.
fn copy_programs(to: &Path, most: u64) -> io::Result<()> {
    fs::create_dir(to)?;
    let mut left = most;
    for (n, entry) in ["/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/lib"]
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flatten()
        .flatten()
        .enumerate()
    {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        let len = entry.metadata().map_or(0, |meta| meta.len());
        if is_file
            && len <= left
            && fs::copy(entry.path(), to.join(format!("{n}-{}", entry.file_name().display()))).is_ok()
        {
            left -= len;
        }
    }
    Ok(())
}

/// Quarter by quarter: text-like records, noise, zeros, records again.
fn write_records(mut file: &File, size: u64) -> io::Result<()> {
    let mut state = 1u64;
    let mut chunk = vec![0u8; 1 << 20];
    for n in 0..size >> 20 {
        let quarter = n * 4 / (size >> 20);
        for word in chunk.as_chunks_mut::<8>().0 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *word = match quarter {
                1 => (state ^ (state >> 31)).to_le_bytes(),
                2 => [0; 8],
                _ => (state >> 58).to_le_bytes(),
            };
        }
        file.write_all(&chunk)?;
    }
    Ok(())
}

/// Milliseconds to read all of `device` with nothing else to do.
fn read_rate(device: &Arc<Device>, cancel: &blockio::Cancel) -> Result<u64> {
    let started = Instant::now();
    super::bench::read_all(device, EngineKind::Auto, cancel)?;
    Ok(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// User and system time of this process, in milliseconds.
fn cpu_ms() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15; the second field, in parentheses, may hold spaces.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    ticks * 1000 / TICKS_PER_SECOND
}

/// The files of a repository: the root's, and how many lie in each folder.
fn layout(place: &Path) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        let name = entry.file_name().display().to_string();
        if entry.file_type()?.is_dir() {
            let (mut count, mut bytes) = (0, 0);
            total(&entry.path(), &mut count, &mut bytes)?;
            lines.push(format!("{name}/  {count} blobs, {}", show_size(bytes)));
        } else {
            lines.push(format!("{name}  {}", show_size(entry.metadata()?.len())));
        }
    }
    lines.sort();
    Ok(lines)
}

fn total(folder: &Path, count: &mut u64, bytes: &mut u64) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => total(&entry.path(), count, bytes)?,
            false => (*count, *bytes) = (*count + 1, *bytes + entry.metadata()?.len()),
        }
    }
    Ok(())
}

fn same_bytes(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let count = a.read(&mut left)?;
        if count == 0 {
            return Ok(true);
        }
        b.read_exact(&mut right[..count])?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
    }
}

fn text(m: &Measured) -> String {
    let row = |name: &str, value: String| vec![name.to_string(), value];
    let mib_new = (m.bytes_new >> 20).max(1);
    #[expect(clippy::cast_precision_loss, reason = "shown to two decimals")]
    let cpu_per_mib = m.backup_cpu_ms as f64 / mib_new as f64;
    table(&[
        row("volume", format!("{}, {}", show_size(m.volume_size), m.volume_content)),
        row(
            "device alone, read",
            format!("{} ({})", show_rate(m.volume_size, m.device_read_ms), m.engine),
        ),
        row(
            "backup",
            format!("{} in {} ms", show_rate(m.volume_size, m.backup_ms), m.backup_ms),
        ),
        row(
            "  new / zero",
            format!("{} / {}", show_size(m.bytes_new), show_size(m.bytes_zero)),
        ),
        row("  stored", show_size(m.bytes_stored)),
        row(
            "  CPU per new MiB",
            format!("{cpu_per_mib:.2} ms (hash {})", m.hash_kernel),
        ),
        row(
            "increment",
            format!(
                "{} ms, {} read ({} blocks of it audited), {} new",
                m.increment_ms,
                show_size(m.increment_bytes_read),
                m.audited_blocks,
                show_size(m.increment_bytes_new)
            ),
        ),
        row(
            "restore",
            format!(
                "{} in {} ms, {} written",
                show_rate(m.volume_size, m.restore_ms),
                m.restore_ms,
                show_size(m.bytes_written)
            ),
        ),
        row(
            "comparison",
            if m.equal { "every byte equal" } else { "DIFFERENT" }.into(),
        ),
        row("peak memory", show_size(m.peak_rss_bytes)),
    ])
}
