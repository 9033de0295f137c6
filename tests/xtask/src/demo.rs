//! `cargo xtask demo`.

use crate::{Stop, install, process};

pub(crate) const HELP: &str = "cargo xtask demo [DEMO ARGUMENTS]

Builds the release binary and runs `blockferry demo`: sample volume, full backup, increment, mount, restore, compare.
Arguments go to the demo as they are. Needs a C compiler (by apt when root).";

pub(crate) fn run(args: &[String]) -> Result<(), Stop> {
    install::ensure(&install::FOR_TESTS[..1])?;
    let mut demo = process::cargo_locked("run");
    demo.args([
        "--release",
        "--package",
        "blockferry-daemon",
        "--bin",
        "blockferry",
        "--",
        "demo",
    ]);
    demo.args(args.iter().skip_while(|arg| *arg == "--"));
    Ok(process::run(&mut demo)?)
}
