//! Mounts by the kernel's own drivers, in a virtual machine that has them: what outlives its server.

use std::path::PathBuf;
use std::process::Command;

use blockferry_tests::blockferry::program;
use blockferry_tests::{process, vm};

pub(super) fn tool(name: &str) -> PathBuf {
    process::find(name, &["/usr/sbin".into(), "/sbin".into()]).unwrap_or_else(|| panic!("no {name} here"))
}

/// Both kinds in one machine each; everything that is asked of one is asked of the other.
fn outlives(kind: &str, modules: &[&str]) {
    if !vm::is_wanted() {
        return;
    }
    // All that is in the machine is in its memory.
    let dir = tempfile::tempdir().unwrap();
    let slim = dir.path().join("blockferry");
    process::run(Command::new("strip").arg("-o").arg(&slim).arg(program().unwrap())).unwrap();
    let programs = [slim, tool("mkfs.ext4"), tool("e2fsck"), tool("blockdev")];
    let script = format!("KIND={kind}\n{}", include_str!("in_kernel.sh"));
    let machine = vm::Machine {
        modules,
        programs: &programs,
        script: &script,
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
