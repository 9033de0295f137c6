//! `cargo xtask lint`.

use crate::{Stop, install, process};

pub(crate) const HELP: &str = "cargo xtask lint

In this order, warnings being errors:
  cargo fmt --all --check, also for the fuzz crate
  cargo clippy --workspace --all-targets
  cargo doc --workspace --no-deps
  cargo deny check, where cargo-deny is installed (it is not installed for you; when it is missing that is said)";

pub(crate) fn run(args: &[String]) -> Result<(), Stop> {
    if let Some(extra) = args.first() {
        return Err(Stop::Usage(format!("`lint` takes no arguments, got `{extra}`")));
    }
    install::ensure(&install::FOR_TESTS[..1])?;
    process::run(process::cargo().args(["fmt", "--all", "--check"]))?;
    if process::root().join("tests/fuzz/Cargo.toml").is_file() {
        process::run(process::cargo().args(["fmt", "--check", "--manifest-path", "tests/fuzz/Cargo.toml"]))?;
    }
    process::run(process::cargo_locked("clippy").args(["--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    process::run(
        process::cargo_locked("doc")
            .args(["--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    if process::find("cargo-deny").is_some() {
        process::run(process::cargo().args(["deny", "check"]))?;
    } else {
        eprintln!("cargo-deny is not installed: licences, advisories and sources were not checked (deny.toml)");
    }
    Ok(())
}
