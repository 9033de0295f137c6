//! `cargo xtask golden`.

use crate::{Stop, kopia, process};

pub(crate) const HELP: &str = "cargo xtask golden [DIR] [--only NAME]

Makes the golden repositories again with the real kopia, each with its recipe and the listing that a reader must find.
Without DIR they replace those in tests/golden. Keys, ids and times are random, so every byte of a new one differs; the
volumes and trees inside are the same each time.";

pub(crate) fn run(args: &[String]) -> Result<(), Stop> {
    kopia::require()?;
    let mut golden = process::cargo_locked("run");
    golden
        .args(["--package", "blockferry-tests", "--bin", "golden", "--"])
        .args(args);
    Ok(process::run(&mut golden)?)
}
