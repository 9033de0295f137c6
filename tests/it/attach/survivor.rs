//! Kinds of devices that outlive their servers, in a virtual machine whose kernel has them.

use std::path::PathBuf;

use blockferry_tests::{process, vm};
use nbd::attach::Kind;

use super::example;

/// Servers killed under writing.
const KILLED: (u64, u64) = (10, 50);

/// Random operations of each of four threads.
const OPERATIONS: u64 = 300;

pub(super) fn program(name: &str) -> PathBuf {
    process::find(name, &["/usr/sbin".into(), "/sbin".into()]).unwrap_or_else(|| panic!("no {name} here"))
}

/// All cases of `survivor.sh` with a device of this kind.
fn survives(kind: Kind, device: &str, module: &str, grows: bool, xfs: bool) {
    if !vm::is_wanted() {
        return;
    }
    let mut programs = vec![example("attach"), example("exercise")];
    programs.extend(["mkfs.ext4", "e2fsck", "resize2fs", "blockdev"].map(program));
    let mut modules = vec![module];
    if xfs {
        programs.extend(["mkfs.xfs", "xfs_repair"].map(program));
        modules.push("xfs");
    }
    let rounds = blockferry_tests::rounds(KILLED.0, KILLED.1);
    let settings = format!(
        "KIND={kind} DEV={device} GROWS={} XFS={} LINKS={} ROUNDS={rounds} OPERATIONS={OPERATIONS}\n",
        if grows { "yes" } else { "no" },
        if xfs { "yes" } else { "" },
        if kind == Kind::Nbd { "yes" } else { "" }
    );
    let script = settings + include_str!("survivor.sh");
    let machine = vm::Machine {
        modules: &modules,
        programs: &programs,
        script: &script,
        // Half of it on two processors that do other things as well; the killing takes a few seconds a round.
        seconds: 900 + 10 * rounds,
        ..vm::Machine::default()
    };
    let console = machine.run().unwrap();
    assert_eq!(console.matches("CASE ").count(), 14, "{console}");
    eprintln!("{console}");
}

#[test]
fn the_kernels_nbd_client_is_served_and_survives_its_server() {
    survives(Kind::Nbd, "/dev/nbd0", "nbd nbds_max=2", true, false);
}

#[test]
fn a_ublk_device_is_served_and_survives_its_server() {
    // Growth came with Linux 6.16.
    survives(Kind::Ublk, "/dev/ublkb0", "ublk_drv", false, true);
}
