//! The kernel's NBD client, in a virtual machine that has one.

use std::path::PathBuf;

use blockferry_tests::{process, vm};

use super::example;

fn program(name: &str) -> PathBuf {
    process::find(name, &["/usr/sbin".into(), "/sbin".into()]).unwrap_or_else(|| panic!("no {name} here"))
}

#[test]
fn the_kernels_client_is_served_and_survives_its_server() {
    if !vm::is_wanted() {
        return;
    }
    let programs = [
        example("attach"),
        program("mkfs.ext4"),
        program("e2fsck"),
        program("blockdev"),
    ];
    let machine = vm::Machine {
        modules: &["nbd nbds_max=2"],
        programs: &programs,
        script: include_str!("kernel_nbd.sh"),
    };
    let console = machine.run().unwrap();
    assert_eq!(console.matches("CASE ").count(), 8, "{console}");
    eprintln!("{console}");
}
