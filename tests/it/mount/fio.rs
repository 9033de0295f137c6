//! fio as the judge of a mount whose servers are killed, in a virtual machine.

use blockferry_tests::vm;

use super::in_kernel::{programs, script};

/// Servers killed while fio runs.
const KILLED: (u64, u64) = (5, 50);

fn judged(kind: &str, module: &str) {
    if !vm::is_wanted() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let rounds = blockferry_tests::rounds(KILLED.0, KILLED.1);
    let machine = vm::Machine {
        modules: &[module],
        programs: &programs(dir.path(), &["fio"]),
        script: &script(
            &format!("KIND={kind} PLACE=/tmp ROUNDS={rounds}"),
            include_str!("fio.sh"),
        ),
        // The kernel's NBD client takes up to 34 s to send again what a server had when it died.
        seconds: 600 + 30 * rounds,
        ..vm::Machine::default()
    };
    let console = machine.run().unwrap();
    assert_eq!(console.matches("CASE ").count(), 3, "{console}");
    eprintln!("{console}");
}

#[test]
fn fio_finds_what_it_wrote_whichever_nbd_servers_are_killed() {
    judged("nbd", "nbd nbds_max=4");
}

#[test]
fn fio_finds_what_it_wrote_whichever_ublk_servers_are_killed() {
    judged("ublk", "ublk_drv");
}
