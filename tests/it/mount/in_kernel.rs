//! Mounts by the kernel's own drivers, in a virtual machine that has them: what outlives its server.

use std::path::PathBuf;
use std::process::Command;

use blockferry_tests::blockferry::program;
use blockferry_tests::{process, vm};

fn tool(name: &str) -> PathBuf {
    process::find(name, &["/usr/sbin".into(), "/sbin".into()]).unwrap_or_else(|| panic!("no {name} here"))
}

#[test]
fn mounts_outlive_their_servers() {
    if !vm::is_wanted() {
        return;
    }
    // All that is in the machine is in its memory.
    let dir = tempfile::tempdir().unwrap();
    let slim = dir.path().join("blockferry");
    process::run(Command::new("strip").arg("-o").arg(&slim).arg(program().unwrap())).unwrap();
    let programs = [slim, tool("mkfs.ext4"), tool("e2fsck"), tool("blockdev")];
    let machine = vm::Machine {
        modules: &["nbd nbds_max=4"],
        programs: &programs,
        script: include_str!("in_kernel.sh"),
    };
    let console = machine.run().unwrap();
    assert_eq!(console.matches("CASE ").count(), 6, "{console}");
    eprintln!("{console}");
}
