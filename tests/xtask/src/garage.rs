//! The real Garage: the S3 server that tests talk to. AGPL; a peer of the tests only, nothing of it is shipped.

use std::path::PathBuf;

use crate::install::{self, Tool};
use crate::process::{cargo, find, first_line, is_ci, program, run};

/// The release the tests were written against.
pub(crate) const VERSION: &str = "2.5.0";

/// Set for the tests when Garage could not be had outside CI: the tests that need it pass without doing anything.
pub(crate) const SKIP_VARIABLE: &str = "BLOCKFERRY_NO_GARAGE";

/// What its bundled libraries (libsodium, lmdb) are built with, beside the C compiler.
const MAKE: Tool = Tool {
    program: "make",
    package: "make",
};

/// A server for tests is compiled quickly instead of well: no link-time optimisation, which takes longer than all the rest.
const CHEAP_PROFILE: [(&str, &str); 4] = [
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
    ("CARGO_PROFILE_RELEASE_STRIP", "true"),
];

/// Finds Garage on PATH or in cargo's bin folder, else builds and installs it with cargo.
///
/// # Errors
/// Says how to get Garage when neither works.
pub(crate) fn require() -> Result<PathBuf, String> {
    if let Some(found) = find("garage") {
        let version = first_line(program("garage").arg("--version")).unwrap_or_default();
        eprintln!("garage: {} ({version})", found.display());
        if !version.contains(VERSION) {
            eprintln!(
                "garage: the tests were written against {VERSION}; another release serves as well but may differ"
            );
        }
        return Ok(found);
    }
    let help = format!(
        "garage is needed: put a `garage` {VERSION} on PATH, or have access to crates.io for\n  \
         cargo install garage --version {VERSION} --locked --no-default-features --features bundled-libs,lmdb"
    );
    let failed = |error: String| format!("{help}\n{error}");
    install::ensure(&install::FOR_TESTS[..1]).map_err(failed)?;
    install::ensure(&[MAKE]).map_err(failed)?;
    eprintln!("garage: building it once; about 6 minutes on two cores");
    let mut build = cargo();
    build
        .args(["install", "garage", "--version", VERSION, "--locked"])
        .args(["--no-default-features", "--features", "bundled-libs,lmdb"])
        .envs(CHEAP_PROFILE)
        // Outside of the workspace: its cargo settings are not meant for others.
        .current_dir(std::env::temp_dir());
    run(&mut build).map_err(failed)?;
    find("garage")
        .ok_or_else(|| format!("{help}\n`cargo install` succeeded but there is no garage in cargo's bin folder"))
}

/// As [`require`] in CI. Elsewhere a missing Garage is said loudly and `false` comes back.
pub(crate) fn require_in_ci() -> Result<bool, String> {
    match require() {
        Ok(_) => Ok(true),
        Err(error) if is_ci() => Err(error),
        Err(error) => {
            eprintln!("\n*** {error}\n***\n*** SKIPPED: every test that talks to a real S3 server. ***\n");
            Ok(false)
        }
    }
}
