//! Mounts by the kernel's own drivers, in a virtual machine that has them: what outlives its server.

use std::path::{Path, PathBuf};
use std::process::Command;

use blockferry_tests::blockferry::program;
use blockferry_tests::{process, vm};

pub(super) fn tool(name: &str) -> PathBuf {
    process::find(name, &["/usr/sbin".into(), "/sbin".into()]).unwrap_or_else(|| panic!("no {name} here"))
}

/// Our program, small enough for a machine that has all in its memory, and tools of the host.
pub(super) fn programs(dir: &Path, tools: &[&str]) -> Vec<PathBuf> {
    let slim = dir.join("blockferry");
    process::run(Command::new("strip").arg("-o").arg(&slim).arg(program().unwrap())).unwrap();
    [slim].into_iter().chain(tools.iter().map(|name| tool(name))).collect()
}

/// A script with settings, and the commands that all of these have.
pub(super) fn script(settings: &str, cases: &str) -> String {
    [settings, include_str!("ferry.sh"), cases].join("\n")
}

/// Both kinds in one machine each; everything that is asked of one is asked of the other.
fn outlives(kind: &str, modules: &[&str]) {
    if !vm::is_wanted() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let machine = vm::Machine {
        modules,
        programs: &programs(dir.path(), &["mkfs.ext4", "e2fsck", "blockdev"]),
        script: &script(&format!("KIND={kind} PLACE=/tmp"), include_str!("in_kernel.sh")),
        seconds: 600,
        ..vm::Machine::default()
    };
    let console = machine.run().unwrap();
    assert_eq!(console.matches("CASE ").count(), 7, "{console}");
    eprintln!("{console}");
}

#[test]
fn mounts_by_the_kernels_nbd_client_outlive_their_servers() {
    outlives(
        "nbd",
        &["nbd nbds_max=4", "sd_mod", "scsi_debug dev_size_mb=64 lbpws=1 lbpu=1"],
    );
}

#[test]
fn mounts_by_ublk_outlive_their_servers() {
    outlives(
        "ublk",
        &["ublk_drv", "sd_mod", "scsi_debug dev_size_mb=64 lbpws=1 lbpu=1"],
    );
}
