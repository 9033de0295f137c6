//! `cargo xtask bench` and `cargo xtask peers`.

use crate::{Stop, garage, install, kopia, process};

pub(crate) const HELP: &str = "cargo xtask bench [SUITE...] [OPTIONS]

Builds the release binaries and runs the benchmark suites (backup, restore, increment, unchanged, large, hash-compare,
delta-restore, verify, open, sparse, cbt, store, store-restore, latency, wide, maintenance, serve; all when none is named).
Prints Markdown tables and writes raw numbers into benches/results. Peers that are not installed are left out by name;
`cargo xtask peers` installs them. Options go to the runner; the useful ones:
  --size SIZE   image size, default 4GiB        --runs N       runs of each tool, default 3
  --dir DIR     where images and repositories are made (needs about five times the image), default target/bench
  --only A,B    only these tools                --no-results   print only
  --contents N  contents of the repository of `open`, default 1000000; `wide` and `maintenance` grow with it
  --line RATE   bytes a second of the slow line of `latency`, default 100MiB
benches/README.md says what makes a number void.";

pub(crate) const PEERS_HELP: &str = "cargo xtask peers

Installs what the benchmarks compare with: kopia (PATH, Go's bin folder, else `go install`), garage (PATH, cargo's bin folder,
else `cargo install`, about 6 minutes), restic, borgbackup, fio, nbdkit, qemu-utils and rclone (by apt when root; named and refused
otherwise).";

pub(crate) fn run(args: &[String]) -> Result<(), Stop> {
    install::ensure(&install::FOR_TESTS[..1])?;
    // In one go: built one after the other, they would have dependencies with other features.
    process::run(process::cargo_locked("build").args([
        "--release",
        "--package",
        "blockferry-daemon",
        "--package",
        "blockferry-repo",
        "--package",
        "blockferry-nbd",
        "--bins",
        "--example",
        "wide_repository",
        "--example",
        "liveness",
        "--example",
        "serve",
    ]))?;
    let mut bench = process::cargo_locked("run");
    bench
        .args(["--release", "--package", "blockferry-benches", "--bin", "bench", "--"])
        .args(args);
    Ok(process::run(&mut bench)?)
}

pub(crate) fn peers(args: &[String]) -> Result<(), Stop> {
    if let Some(extra) = args.first() {
        return Err(Stop::Usage(format!("`peers` takes no arguments, got `{extra}`")));
    }
    install::ensure(install::PEERS)?;
    kopia::require()?;
    garage::require()?;
    for (name, flag) in [
        ("kopia", "--version"),
        ("restic", "version"),
        ("borg", "--version"),
        ("fio", "--version"),
        ("rclone", "version"),
    ] {
        println!(
            "{name}: {}",
            process::first_line(process::program(name).arg(flag)).unwrap_or_default()
        );
    }
    println!(
        "qemu-img: {}",
        process::first_line(process::program("qemu-img").arg("--version")).unwrap_or_default()
    );
    Ok(())
}
