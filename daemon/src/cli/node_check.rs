//! `blockferry node-check`: what this host offers, what is missing, how to get it.

use std::process::ExitCode;
use std::sync::Arc;

use blockio::{BufPool, CHUNK_BYTES, Device, Engine, EngineKind, EngineOptions, OpenOptions};
use clap::Args;
use nbd::attach::{self, Availability, Kind};
use repo::crypto::Kernel;
use serde::Serialize;

use super::output::{Output, table};
use super::{Global, size::show_size};
use crate::error::{JobError, Result};

#[derive(Args)]
pub(crate) struct Arguments {}

/// One thing looked at.
#[derive(Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    found: String,
    /// What to do when it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'static str>,
}

pub(crate) fn run(_arguments: &Arguments, _global: &Global, output: &Output) -> Result<ExitCode> {
    let mut checks = vec![kernel(), engine()?, hash_kernel(), memlock()];
    checks.extend(attach::probe().into_iter().map(|(kind, found)| mount(kind, &found)));
    checks.push(root());
    output.print(&checks, |checks| {
        let line = |c: &Check| {
            vec![
                c.name.to_string(),
                if c.ok { "yes" } else { "no" }.into(),
                c.found.clone(),
                c.advice.unwrap_or("").into(),
            ]
        };
        table(&checks.iter().map(line).collect::<Vec<_>>())
    });
    Ok(ExitCode::SUCCESS)
}

fn check(name: &'static str, ok: bool, found: impl Into<String>, advice: &'static str) -> Check {
    Check {
        name,
        ok,
        found: found.into(),
        advice: (!ok).then_some(advice),
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

fn kernel() -> Check {
    check("kernel", true, read("/proc/sys/kernel/osrelease"), "")
}

/// Opens a ring on a file of our own, exactly as a backup does.
fn engine() -> Result<Check> {
    let file = tempfile::NamedTempFile::new().map_err(|e| JobError::Usage(format!("make a temporary file: {e}")))?;
    file.as_file()
        .set_len(1 << 20)
        .map_err(|e| JobError::Usage(format!("size a temporary file: {e}")))?;
    let device = Arc::new(Device::open(file.path(), &OpenOptions::read())?);
    let pool = BufPool::new(CHUNK_BYTES, 1)?;
    let engine = Engine::open(
        &[device],
        &[pool],
        &EngineOptions {
            kind: EngineKind::Auto,
            ..EngineOptions::default()
        },
    )?;
    let choice = engine.choice();
    let ok = choice.kind == EngineKind::Uring;
    Ok(check(
        "io_uring",
        ok,
        choice.reason.clone(),
        "allow io_uring: sysctl kernel.io_uring_disabled=0, and a seccomp profile that permits it",
    ))
}

fn hash_kernel() -> Check {
    let kernel = Kernel::best();
    check(
        "hash lanes",
        kernel.lanes() > 1,
        format!("{} ({} at once)", kernel.name(), kernel.lanes()),
        "a CPU with AVX2 or AVX-512 hashes 2 to 4 times as fast",
    )
}

fn memlock() -> Check {
    let limits = read("/proc/self/limits");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max locked memory"))
        .unwrap_or_default();
    let soft = line.split_whitespace().nth(3).unwrap_or("unknown").to_string();
    // 64 MiB: the chunk buffers of two workers.
    let bytes = soft.parse::<u64>().ok();
    let enough = soft == "unlimited" || bytes.is_some_and(|bytes| bytes >= 64 << 20) || is_root();
    let found = bytes.map_or(soft, show_size);
    check(
        "locked memory",
        enough,
        found,
        "raise RLIMIT_MEMLOCK to 64 MiB or grant CAP_IPC_LOCK, else buffers are not registered (more CPU per MiB)",
    )
}

/// Whether `blockferry mount` can make such a device, and all that is missing for it.
fn mount(kind: Kind, found: &Availability) -> Check {
    let (name, advice) = match kind {
        Kind::Ublk => (
            "mount by ublk",
            "Linux 6.5 or later, modprobe ublk_drv; nbd and fuse do as well",
        ),
        Kind::Nbd => ("mount by nbd", "modprobe nbd; ublk and fuse do as well"),
        Kind::FuseLoop => ("mount by fuse", "modprobe fuse loop; `blockferry serve` needs neither"),
    };
    match found {
        Availability::Usable => check(
            name,
            true,
            if kind.survives() {
                "outlives its server"
            } else {
                "usable"
            },
            advice,
        ),
        Availability::Missing(missing) => {
            let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
            check(name, false, missing.join(", "), advice)
        }
    }
}

fn is_root() -> bool {
    read("/proc/self/status")
        .lines()
        .find_map(|l| l.strip_prefix("Uid:"))
        .and_then(|l| l.split_whitespace().nth(1))
        == Some("0")
}

fn root() -> Check {
    check(
        "root",
        is_root(),
        if is_root() {
            "running as root"
        } else {
            "running as a user"
        },
        "block devices need root, or a group that may read them",
    )
}
