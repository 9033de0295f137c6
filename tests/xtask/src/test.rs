//! `cargo xtask test`.

use crate::{Stop, azurite, garage, install, kopia, process, vm};

pub(crate) const HELP: &str = "cargo xtask test [CARGO TEST ARGUMENTS]

Installs what the tests need, builds the `blockferry` binaries, then runs `cargo test --workspace`.
Arguments go to cargo test as they are: `cargo xtask test -- backup` runs tests with `backup` in their name.

Needs: gcc, e2fsprogs, xfsprogs, fdisk, util-linux, mount (by apt when root; named and refused otherwise), kopia 0.23.1 (from PATH or Go's bin
folder, else by `go install`), garage 2.5.0 (from PATH or cargo's bin folder, else by `cargo install`, about 6 minutes once),
azurite 3.35.0 (from PATH, else by npm below ~/.cache/blockferry), and QEMU with a Debian kernel (by apt, the kernel below
~/.cache/blockferry/vm). Without kopia, garage, azurite or QEMU the run fails when CI=true and says loudly what it skips otherwise.
Tests that use loop devices and mounts need root.";

/// Tells `blockferry_tests` that the binaries are built and current.
const BUILT_VARIABLE: &str = "BLOCKFERRY_BUILT";

pub(crate) fn run(args: &[String]) -> Result<(), Stop> {
    install::ensure(install::FOR_TESTS)?;
    let kopia = kopia::require_in_ci()?;
    let garage = garage::require_in_ci()?;
    let azurite = azurite::require_in_ci()?;
    let machines = vm::require_in_ci()?;
    process::run(process::cargo_locked("build").args(["--package", "blockferry-daemon", "--bins"]))?;
    let mut test = process::cargo_locked("test");
    test.arg("--workspace").args(args).env(BUILT_VARIABLE, "1");
    if !kopia {
        test.env(kopia::SKIP_VARIABLE, "1");
    }
    if !garage {
        test.env(garage::SKIP_VARIABLE, "1");
    }
    if !azurite {
        test.env(azurite::SKIP_VARIABLE, "1");
    }
    if !machines {
        test.env(vm::SKIP_VARIABLE, "1");
    }
    Ok(process::run(&mut test)?)
}
